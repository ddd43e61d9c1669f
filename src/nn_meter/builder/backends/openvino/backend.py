"""OpenVINO: the only module that imports its Python interface."""

from __future__ import annotations

import ctypes
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from nn_meter.builder.backends.base import (
    Array,
    ComesLater,
    Environment,
    Samples,
    Session,
    SessionBackend,
    SessionProfiler,
    Shapes,
    model_format,
    time_calls,
)
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.inputs import match_inputs, natural_key
from nn_meter.builder.backends.openvino.graph import name_apart, read_graph
from nn_meter.builder.backends.openvino.native import NativeCore, Port, load_library
from nn_meter.builder.backends.openvino.transformed import compile_and_show
from nn_meter.builder.backends.openvino.written import name_as_written
from nn_meter.errors import (
    ConversionError,
    DeviceError,
    ModelRejectedError,
    NotInstalledError,
)
from nn_meter.reference import reference_inputs

__all__ = [
    "OpenVINOBackend",
    "OpenVINOCPUBackend",
    "OpenVINOProfiler",
    "OpenVINOSession",
    "OpenVINOVPUBackend",
]

log = logging.getLogger(__name__)

_TELEMETRY = "openvino_telemetry"
_SMALL = 1_000_000  # bytes of a model file: what is compiled of it is kept in memory
_SIGNATURE_PREFIX = "serving_default_"
_TRANSPOSED = "ConvolutionBackpropData"


def _openvino() -> ModuleType:
    try:
        with _without_telemetry():
            import openvino
    except ImportError as exc:
        raise NotInstalledError.for_extra("openvino", "openvino") from exc
    module: ModuleType = openvino
    return module


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep OpenVINO from reporting to its vendor, which it does as soon as it is imported.

    Where the package ``openvino_telemetry`` cannot be imported OpenVINO puts a stub in its place.
    """
    missing = object()
    before = sys.modules.get(_TELEMETRY, missing)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # "cannot be imported"
    try:
        yield
    finally:
        if before is missing:
            del sys.modules[_TELEMETRY]
        else:
            sys.modules[_TELEMETRY] = before  # type: ignore[assignment]


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Undo what a conversion that fails leaves behind: a root logger that is nearly mute."""
    root = logging.getLogger()
    level, handlers, filters = root.level, list(root.handlers), list(root.filters)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:], root.filters[:] = handlers, filters


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn whatever goes wrong with a model into the refusal of it."""
    try:
        yield
    except Exception as exc:
        raise ModelRejectedError(f"OpenVINO refuses the model: {_words(exc)}") from exc


class OpenVINOSession:
    """A model compiled by OpenVINO, with one infer request whose inputs are bound once.

    Args:
        compiled: The ``openvino.CompiledModel``; its inputs are in the model's order.
        feeds: What is timed: an array for each input, batch included.
    """

    def __init__(self, compiled: Any, feeds: Sequence[Array]) -> None:
        self._compiled = compiled
        self._request, self._kept = self._bound(feeds)
        self._request.infer()

    def _bound(self, feeds: Sequence[Array]) -> tuple[Any, list[Array]]:
        """An infer request on arrays, and these: the request does not keep them alive."""
        ov = _openvino()
        request = self._compiled.create_infer_request()
        kept = [np.ascontiguousarray(feed) for feed in feeds]
        for position, feed in enumerate(kept):
            request.set_input_tensor(position, ov.Tensor(feed, shared_memory=True))
        return request, kept

    def time(self, n: int) -> Samples:
        # By default infer would copy every output.
        return time_calls(partial(self._request.infer, share_outputs=True), n)

    def outputs(self, feeds: Sequence[Array]) -> list[Array]:
        if len(feeds) != len(self._kept):
            raise ValueError(f"the model has {len(self._kept)} inputs, but got {len(feeds)}")
        request, _kept = self._bound(feeds)
        request.infer()
        return [np.array(tensor.data) for tensor in request.output_tensors]

    def close(self) -> None:
        del self._request, self._compiled
        self._kept.clear()


class OpenVINOProfiler(SessionProfiler):
    """Times one model in OpenVINO."""


class OpenVINOBackend(SessionBackend):
    """OpenVINO on ``DEVICE``; loads ``.onnx``, ``.tflite`` and its own IR as they are."""

    profiler_class = OpenVINOProfiler
    takes = ("onnx", "torch", "tensorflow")
    tried = ("openvino 2026.4",)
    _known_core: Any = None

    @property
    def device(self) -> str:
        """OpenVINO's name of the device, e.g. ``CPU``."""
        return str(self.configs.get("DEVICE") or "CPU")

    def convert_model(
        self, model_path: str, save_path: str, input_shape: Shapes | None = None
    ) -> str:
        """Make OpenVINO's IR, named as the model, of a SavedModel; other models stay as they are.

        The IR has static shapes, float32 weights, and the inputs in the model's order.
        """
        path = Path(model_path)
        if model_format(path) == "tflite" and self._overlooks_activations(path):
            log.warning(
                "%s: OpenVINO's reader of .tflite files is known to leave out an activation that "
                "is fused into a transposed convolution; better give it the SavedModel",
                path.name,
            )
        if model_format(path) in ("tflite", "onnx") or path.suffix == ".xml":
            return str(model_path)
        if model_format(path) != "saved_model":
            raise self.refuse(model_path)
        ov = _openvino()
        target = Path(save_path) / f"{path.name}.xml"
        with tempfile.TemporaryDirectory(prefix=".openvino-", dir=save_path) as folder:
            made = Path(folder) / "model.xml"
            try:
                model = _read(ov, ov.Core(), path, input_shape or ())
                ov.save_model(model, str(made), compress_to_fp16=False)
            except Exception as exc:
                raise ConversionError(
                    f"{path.name}: OpenVINO cannot convert it: {_words(exc)}"
                ) from exc
            # The .xml comes last and goes first: where there is one, both files are whole.
            target.unlink(missing_ok=True)
            made.with_suffix(".bin").replace(target.with_name(f"{path.name}.bin"))
            made.replace(target)
        return str(target)

    def _overlooks_activations(self, path: Path) -> bool:
        """Whether a ``.tflite`` file has ops that may have lost their activation when read."""
        ov = _openvino()
        try:
            ops = self._shared_core(ov).read_model(str(path)).get_ops()
        except RuntimeError:  # it is refused, in OpenVINO's words, when it is loaded
            return False
        return any(op.get_type_name() == _TRANSPOSED for op in ops)

    def describe(self) -> Environment:
        ov = _openvino()
        core = self._core(ov)
        return Environment(
            runtime="openvino",
            version="-".join(ov.__version__.split("-")[:2]),  # release and build; a branch follows
            device=self.device,
            threads=self.threads,
            options={"device_name": core.get_property(self.device, "FULL_DEVICE_NAME")},
        )

    def open(self, converted_model: str, shapes: Shapes) -> Session:
        ov = _openvino()
        core = self._core(ov)
        with _refusals():
            compiled = self._compiled(ov, core, Path(converted_model), shapes)
            return OpenVINOSession(compiled, reference_inputs(_feed_shapes(compiled)))

    def _compiled(self, ov: ModuleType, core: Any, path: Path, shapes: Shapes) -> Any:
        model = _read(ov, core, path, shapes)
        _static_shapes(model)
        return core.compile_model(model, self.device, self._properties())

    def test_connection(self) -> str:
        self._core(_openvino())
        return super().test_connection()

    def _core(self, ov: ModuleType) -> Any:
        core = self._shared_core(ov)
        device, devices = self.device.partition(".")[0], core.available_devices
        if device not in {name.partition(".")[0] for name in devices}:
            raise DeviceError(
                f"OpenVINO finds no device {self.device} here; there is: {', '.join(devices)}"
            )
        return core

    def _shared_core(self, ov: ModuleType) -> Any:
        """One for all models: making one, and asking it for its devices, takes 5 ms."""
        if self._known_core is None:
            self._known_core = ov.Core()
        return self._known_core

    def _properties(self) -> dict[str, Any]:
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if self.device == "CPU":
            properties |= {
                "INFERENCE_NUM_THREADS": self.threads,
                # Pinning sets the thread's affinity three times a run, which is timed (2 µs).
                "ENABLE_CPU_PINNING": False,
            }
        return properties


@dataclass(frozen=True, kw_only=True)
class _Exported:
    """A compiled model as OpenVINO exports it."""

    blob: bytes
    inputs: Sequence[Port]
    outputs: Sequence[Port]


class OpenVINOCPUBackend(OpenVINOBackend):
    """OpenVINO on the CPU of this host, whatever ``DEVICE`` says.

    Models are compiled by way of Python and run by way of C, which is quicker (see ``native``). A
    small one that is loaded again is compiled once and then imported, which makes the same kernels
    and allocates anew, in a fifth of the time.
    """

    runs_here = True
    _native: NativeCore | None = None
    _exported: dict[tuple[Any, ...], _Exported] | None = None

    @property
    def device(self) -> str:
        return "CPU"

    def describe(self) -> Environment:
        found = super().describe()
        called = "C" if _library() is not None else "Python"
        return replace(found, options={**found.options, "called_from": called})

    def open(self, converted_model: str, shapes: Shapes) -> Session:
        library = _library()
        if library is None:
            return super().open(converted_model, shapes)
        with _refusals():
            exported = self._export(Path(converted_model), shapes)
            if exported is None:  # outputs without fixed shapes
                return super().open(converted_model, shapes)
            if self._native is None:
                self._native = NativeCore(library, self.device, self._properties())
            feeds = reference_inputs([shape[1:] for _, shape in exported.inputs])
            return self._native.load(exported.blob, exported.inputs, exported.outputs, feeds)

    def _export(self, path: Path, shapes: Shapes) -> _Exported | None:
        if self._exported is None:
            self._exported = {}
        state = path.stat()
        key = (str(path), state.st_mtime_ns, state.st_size, str([list(s) for s in shapes]))
        if (known := self._exported.get(key)) is not None:
            return known
        ov = _openvino()
        compiled = self._compiled(ov, self._core(ov), path, shapes)
        if any(port.partial_shape.is_dynamic for port in compiled.outputs):
            return None
        found = _Exported(
            blob=compiled.export_model().getvalue(),
            inputs=[_port(port) for port in compiled.inputs],
            outputs=[_port(port) for port in compiled.outputs],
        )
        if state.st_size < _SMALL and model_format(path) != "other":  # it is all in this file
            self._exported[key] = found
        return found

    def executed_graph(self, converted_model: str, shapes: Shapes) -> ExecutedGraph:
        ov = _openvino()
        core = self._core(ov)
        with _refusals():
            model = _read(ov, core, Path(converted_model), shapes)
            _static_shapes(model)
        if model_format(converted_model) == "tflite":
            name_as_written(ov, model, Path(converted_model))
        name_apart(model)
        with _refusals():
            compiled, merged = compile_and_show(core, model, self.device, self._properties())
        return read_graph(model, compiled, merged)


class OpenVINOVPUBackend(ComesLater, OpenVINOBackend):
    """OpenVINO on ``DEVICE``, by default ``NPU``, the successor of the VPU stick."""

    later = "openvino_vpu comes with the next release; openvino_cpu runs on this computer"

    @property
    def device(self) -> str:
        return str(self.configs.get("DEVICE") or "NPU")


def _read(ov: ModuleType, core: Any, path: Path, shapes: Shapes) -> Any:
    """Read a model of any format, with static shapes and its inputs and outputs in order.

    ``shapes`` are the inputs', without the batch dimension; empty: those of the file.

    Raises:
        ValueError: The file's inputs have other shapes.
        RuntimeError: OpenVINO cannot read it.
    """
    if model_format(path) == "saved_model":
        # What OpenVINO's users are told to call for TensorFlow. It simplifies the graph beyond
        # reading it, which changes what is executed (fc after reshape).
        with _root_logger_kept():
            model, by_name = ov.convert_model(str(path)), True
    else:
        model = core.read_model(str(path))
        by_name = any(_name(port).startswith(_SIGNATURE_PREFIX) for port in model.inputs)
    order = list(range(len(model.inputs)))
    if shapes or by_name:
        found = [_shape(port) for port in model.inputs]
        order = match_inputs(
            [_name(port) for port in model.inputs],
            found,
            shapes or [(shape or ())[1:] for shape in found],
            by_name=by_name,
        )
    if by_name or order != sorted(order):
        parameters, results = model.get_parameters(), model.get_results()
        outputs = list(range(len(results)))
        if by_name:
            outputs.sort(key=lambda i: natural_key(_name(model.outputs[i])))
        model = ov.Model(
            [results[i] for i in outputs],
            [parameters[i] for i in order],
            model.get_friendly_name(),
        )
    if shapes and any(port.partial_shape.is_dynamic for port in model.inputs):
        model.reshape(
            {
                port: ov.PartialShape([1, *shape])
                for port, shape in zip(model.inputs, shapes, strict=True)
            }
        )
    return model


def _library() -> ctypes.CDLL | None:
    return load_library(Path(str(_openvino().__file__)).parent)


def _port(port: Any) -> Port:
    return str(port.element_type.to_dtype().name), tuple(int(size) for size in port.shape)


def _feed_shapes(compiled: Any) -> list[list[int]]:
    """Shapes of the inputs of a compiled model, without the batch dimension."""
    return [[int(size) for size in port.shape][1:] for port in compiled.inputs]


def _name(port: Any) -> str:
    return str(min(port.names, default=port.node.friendly_name))


def _shape(port: Any) -> list[int] | None:
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        return None
    return [-1 if size.is_dynamic else size.get_length() for size in shape]


def _static_shapes(model: Any) -> list[list[int]]:
    """Shapes of the inputs, without the batch dimension."""
    if any(port.partial_shape.is_dynamic for port in model.inputs):
        raise ValueError("its inputs have no fixed shapes; give input_shape")
    return [list(port.shape)[1:] for port in model.inputs]


def _words(exc: Exception) -> str:
    """What OpenVINO says, in one line, without the places in its source."""
    lines = [line.strip() for line in str(exc).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("Exception from "))
