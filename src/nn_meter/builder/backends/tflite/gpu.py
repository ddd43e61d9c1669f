"""TFLite models on a GPU: LiteRT's GPU accelerator on this computer, or a phone's.

On this computer LiteRT runs the delegate of phones, ML Drift, through WebGPU on Vulkan. It loads
that into the process, which may crash when an interpreter with it ends in the usual way; worker
processes never end so.
"""

from __future__ import annotations

import functools
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from nn_meter.builder.backends.base import Array, Environment, Samples, Session, Shapes, time_calls
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.inputs import match_inputs, natural_key
from nn_meter.builder.backends.tflite.backend import TFLiteBackend, litert_version
from nn_meter.builder.backends.tflite.gpu_models import one_op
from nn_meter.builder.backends.vulkan.devices import IN_SOFTWARE, drivers_text
from nn_meter.builder.backends.vulkan.watched import call_watched, decoded
from nn_meter.builder.backends.words import native_words
from nn_meter.errors import DeviceError, ModelRejectedError, NNMeterError, NotInstalledError
from nn_meter.reference import reference_inputs

__all__ = ["Accelerator", "TFLiteGPUBackend", "TFLiteGPUSession"]

_ADAPTER = re.compile(
    r"Selected adapter: (?P<name>.*?)(?:, arch=.*?)?(?:, adapterType=(?P<type>.*))?$"
)
_NO_DEVICE = re.compile(r"No adapters found|[Ff]ailed to (?:initialize|create) WebGPU")
_WARNING = re.compile(r"^Warning: (.*)$")
_REASON = re.compile(r"^ERROR: (?!\[)(.*)$")
_LOG = re.compile(r"^(?:[A-Z]+: \[|[IWEF][0-9]{4} )")
_GRAPHS = "nn_meter.builder.backends.tflite.gpu_graph:read_graphs"


def _litert() -> ModuleType:
    try:
        from ai_edge_litert import compiled_model
    except ImportError as exc:
        raise NotInstalledError(
            "ai-edge-litert with compiled models (2.1 or newer) is not installed; "
            "pip install 'nn-meter[litert]' brings it"
        ) from exc
    module: ModuleType = compiled_model
    return module


class Accelerator:
    """LiteRT's GPU accelerator in this process; models share its device."""

    adapter: ClassVar[str] = ""
    """The device's name, once a model was loaded: LiteRT says it when it takes the device, and
    those that come later share that."""

    def __init__(self) -> None:
        self._environment: Any = None

    def load(self, model: Path | bytes) -> Any:
        """Load a model, all of it on the GPU, with arithmetic in float32.

        Returns:
            LiteRT's ``CompiledModel``.

        Raises:
            DeviceError: There is no GPU that LiteRT can use; says what there is.
            ModelRejectedError: LiteRT refuses the model, or would run some of it elsewhere.
        """
        litert = _litert()
        options = litert.Options(
            hardware_accelerators=litert.HardwareAccelerator.GPU,
            gpu_options=litert.GpuOptions(enforce_f32=True),
        )
        words: list[str] = []
        try:
            with native_words() as words:
                if self._environment is None:
                    folder = str(Path(str(litert.__file__)).parent)
                    self._environment = litert.Environment.create(
                        options=litert.EnvironmentOptions(runtime_path=folder)
                    )
                loaded = (
                    litert.CompiledModel.from_buffer(
                        model, environment=self._environment, options=options
                    )
                    if isinstance(model, bytes)
                    else litert.CompiledModel.from_file(
                        str(model), environment=self._environment, options=options
                    )
                )
        except Exception as exc:
            self.reset()
            if any(_NO_DEVICE.search(line) for line in words):
                raise DeviceError(_no_device(words)) from exc
            raise ModelRejectedError(
                f"LiteRT's GPU accelerator refuses the model: {_reason(words) or exc}"
            ) from exc
        found = [match for line in words if (match := _ADAPTER.search(line))]
        if found:
            name, kind = found[-1]["name"], found[-1]["type"] or ""
            software = kind.upper().startswith("CPU")
            Accelerator.adapter = f"{name}, {IN_SOFTWARE}" if software else name
        if not loaded.is_fully_accelerated():
            raise ModelRejectedError(
                "LiteRT's GPU accelerator refuses the model: it would run some of it on the CPU"
                + (f": {reason}" if (reason := _reason(words)) else "")
            )
        return loaded

    def reset(self) -> None:
        """Forget the device, which may be lost; the next model gets a new one."""
        self._environment = None


def _no_device(words: Sequence[str]) -> str:
    warnings = [match[1].rstrip(".") for line in words if (match := _WARNING.match(line))]
    why = f"; {'; '.join(warnings)}" if warnings else ""
    return f"LiteRT's GPU accelerator finds no device that it can use{why}; {drivers_text()}"


def _reason(words: Sequence[str]) -> str:
    """What LiteRT's delegate says: the block of lines that begins with an error of its own."""
    for number, line in enumerate(words):
        if match := _REASON.match(line):
            rest = words[number + 1 :]
            end = next((n for n, more in enumerate(rest) if _LOG.match(more)), len(rest))
            return "; ".join([match[1].rstrip(":"), *(more.strip() for more in rest[:end])])
    return ""


class TFLiteGPUSession:
    """A model on the GPU, inputs written once: running leaves them as they are.

    A run ends when its outputs were read: before that it was only enqueued.

    Args:
        model: LiteRT's ``CompiledModel``.
        shapes: Shapes of its inputs without the batch dimension; empty: as the file has them.
        lost: Called when running it fails.

    Raises:
        ValueError: Its inputs have other shapes.
    """

    def __init__(self, model: Any, shapes: Shapes, lost: Callable[[], None] | None = None) -> None:
        self._model, self._lost = model, lost
        key, self._signature, order = _signature(model, shapes)
        names = model.get_signature_list()[key]
        inputs, outputs = model.get_input_tensor_details(key), model.get_output_tensor_details(key)
        by_name = _has_signature(key)
        self._order = order
        self._given = sorted(
            range(len(names["outputs"])),
            key=(lambda i: natural_key(names["outputs"][i])) if by_name else None,
        )
        found = [inputs[names["inputs"][i]] for i in order]
        self.input_shapes = [tuple(int(size) for size in each["shape"]) for each in found]
        made = [outputs[names["outputs"][i]] for i in self._given]
        self.output_shapes = [tuple(int(size) for size in each["shape"]) for each in made]
        self._dtypes = [np.dtype(each["dtype"]) for each in made]
        self._types = [np.dtype(each["dtype"]) for each in found]
        self._inputs = model.create_input_buffers(self._signature)
        self._outputs = model.create_output_buffers(self._signature)
        self._reads = [
            functools.partial(self._outputs[i].read, math.prod(shape), dtype)
            for i, shape, dtype in zip(self._given, self.output_shapes, self._dtypes, strict=True)
        ]
        self._feeds = reference_inputs([shape[1:] for shape in self.input_shapes])
        self._fill(self._feeds)
        self.run()

    def _fill(self, feeds: Sequence[Array]) -> None:
        for position, dtype, feed in zip(self._order, self._types, feeds, strict=True):
            self._inputs[position].write(np.asarray(feed, dtype=dtype))

    def run(self) -> list[Array]:
        """Run once; gives the outputs, flat."""
        self._model.run_by_index(self._signature, self._inputs, self._outputs)
        return [read() for read in self._reads]

    def time(self, n: int) -> Samples:
        try:
            return time_calls(self.run, n)
        except Exception:
            self._give_up()
            raise

    def outputs(self, feeds: Sequence[Array]) -> list[Array]:
        try:
            self._fill(feeds)
            found = self.run()
            self._fill(self._feeds)
        except Exception:
            self._give_up()
            raise
        return [
            values.reshape(shape) for values, shape in zip(found, self.output_shapes, strict=True)
        ]

    def _give_up(self) -> None:
        if self._lost is not None:
            self._lost()

    def close(self) -> None:
        self._reads.clear()
        for buffer in (*self._inputs, *self._outputs):
            buffer.destroy()
        self._model.close()
        self._feeds.clear()


def _has_signature(key: str) -> bool:
    return not key.startswith("<")  # what LiteRT calls the one that a file without any has


def _signature(model: Any, shapes: Shapes) -> tuple[str, int, list[int]]:
    """Name and number of the signature with these inputs, and where each input stands in it."""
    errors: list[ValueError] = []
    for key, names in model.get_signature_list().items():
        details = model.get_input_tensor_details(key)
        found = [[int(size) for size in details[name]["shape"]] for name in names["inputs"]]
        wanted = shapes or [shape[1:] for shape in found]
        try:
            order = match_inputs(names["inputs"], found, wanted, by_name=_has_signature(key))
        except ValueError as exc:
            errors.append(exc)
        else:
            return key, int(model.get_signature_index(key)), order
    raise errors[0] if errors else ValueError("it has no signature")


class TFLiteGPUBackend(TFLiteBackend):
    """TFLite models on the GPU."""

    on_gpu = True

    def __init__(self, configs: Mapping[str, Any] | None = None) -> None:
        super().__init__(configs)
        self._accelerator = Accelerator()
        if self.configs.get("TARGET") == "host":  # a phone shows its graphs one by one
            self.executed_graphs = self._graphs_here

    def describe_here(self) -> Environment:
        self.check_here()
        return Environment(
            runtime="litert",
            version=litert_version(),
            device=Accelerator.adapter or "GPU",
            threads=self.threads,
            options={"delegate": "ML Drift, WebGPU"},
        )

    def open_here(self, converted_model: str, shapes: Shapes) -> Session:
        accelerator = self._accelerator
        model = accelerator.load(Path(converted_model))
        words: list[str] = []
        try:
            with native_words() as words:
                return TFLiteGPUSession(model, shapes, accelerator.reset)
        except Exception as exc:
            accelerator.reset()
            reason = "; ".join([str(exc), *filter(None, [_reason(words)])])
            raise ModelRejectedError(
                f"LiteRT's GPU accelerator refuses the model: {reason}"
            ) from exc

    def check_here(self) -> None:
        """Run a model of one op: what is missing shows.

        Raises:
            NotInstalledError: LiteRT is not installed, or too old.
            DeviceError: There is no GPU that it can use.
        """
        model = self._accelerator.load(one_op("RELU", (1, 4, 4, 4)))
        with native_words():
            TFLiteGPUSession(model, []).close()

    def executed_graph(self, converted_model: str, shapes: Shapes) -> ExecutedGraph:
        """Run a converted model, and count the shaders that it dispatches.

        Raises:
            ModelRejectedError: LiteRT refuses the model.
            GraphUnavailableError: They cannot be counted here; says what to install.
            BackendError: They cannot be told apart in this model, or it computes something else
                than on the CPU.
        """
        if self.target == "android":
            return self.phone.executed_graph(Path(converted_model))
        (found,) = self._read([(converted_model, shapes)])
        if isinstance(found, NNMeterError):
            raise found
        return found

    def _graphs_here(
        self, models: Sequence[tuple[str, Shapes]], save_path: str
    ) -> list[ExecutedGraph | NNMeterError]:
        """Read the graphs of models that were not converted, in one process; see ``ShowsGraphs``.

        Raises:
            GraphUnavailableError: They cannot be counted here; says what to install.
        """
        found: dict[int, ExecutedGraph | NNMeterError] = {}
        converted: dict[int, tuple[str, Shapes]] = {}
        with tempfile.TemporaryDirectory(prefix=".graphs-", dir=save_path) as name:
            for number, (path, shapes) in enumerate(models):
                folder = Path(name) / str(number)
                folder.mkdir()
                try:
                    converted[number] = (self.convert_model(path, str(folder), shapes), shapes)
                except NNMeterError as exc:
                    found[number] = exc
            found |= zip(converted, self._read(list(converted.values())), strict=True)
        return [found[number] for number in range(len(models))]

    def _read(self, models: Sequence[tuple[str, Shapes]]) -> list[ExecutedGraph | NNMeterError]:
        if not models:
            return []
        asked = [[str(path), [list(shape) for shape in shapes]] for path, shapes in models]
        answers = call_watched(_GRAPHS, models=asked, threads=self.threads)
        return [
            decoded(answer["error"]) if "error" in answer else ExecutedGraph.from_json(answer["ok"])
            for answer in answers
        ]
