"""TFLite models in LiteRT: the only module that imports it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from nn_meter.builder.backends.base import (
    Array,
    ComesLater,
    Environment,
    Samples,
    SessionBackend,
    SessionProfiler,
    Shapes,
    model_format,
    time_calls,
)
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.inputs import match_inputs, natural_key
from nn_meter.builder.backends.tflite.graph import executed_graph
from nn_meter.errors import (
    BackendError,
    ConfigError,
    ConversionError,
    ModelRejectedError,
    NotInstalledError,
)
from nn_meter.reference import reference_inputs

__all__ = [
    "TFLiteBackend",
    "TFLiteCPUBackend",
    "TFLiteGPUBackend",
    "TFLiteProfiler",
    "TFLiteSession",
]

_INSIDE = Path("assets.extra") / "model.tflite"
_SIGNATURE = "serving_default"


def _litert() -> ModuleType:
    try:
        from ai_edge_litert import interpreter
    except ImportError as exc:
        raise NotInstalledError.for_extra("ai-edge-litert", "litert") from exc
    module: ModuleType = interpreter
    return module


def _tensorflow() -> ModuleType:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # is read when TensorFlow is imported
    try:
        import tensorflow
    except ImportError as exc:
        raise NotInstalledError.for_extra("tensorflow", "tensorflow") from exc
    module: ModuleType = tensorflow
    return module


class TFLiteSession:
    """A model loaded by LiteRT's interpreter, inputs filled once: running leaves them as they are.

    Args:
        interpreter: Its tensors are allocated.
        inputs: Tensor indices of the inputs, in the model's order.
        outputs: Those of the outputs.
        feeds: What is timed: an array for each input, batch included.
    """

    def __init__(
        self, interpreter: Any, inputs: list[int], outputs: list[int], feeds: Sequence[Array]
    ) -> None:
        self._interpreter, self._inputs, self._outputs = interpreter, inputs, outputs
        self._feeds = list(feeds)
        self._fill(self._feeds)
        interpreter.invoke()

    def _fill(self, feeds: Sequence[Array]) -> None:
        for index, feed in zip(self._inputs, feeds, strict=True):
            self._interpreter.set_tensor(index, feed)

    def time(self, n: int) -> Samples:
        # The wrapper's own method: while anything holds the one below it, LiteRT refuses to run.
        return time_calls(self._interpreter.invoke, n)

    def outputs(self, feeds: Sequence[Array]) -> list[Array]:
        try:
            self._fill(feeds)
            self._interpreter.invoke()
            return [self._interpreter.get_tensor(index) for index in self._outputs]
        finally:
            self._fill(self._feeds)

    @property
    def inputs(self) -> dict[int, tuple[tuple[int, ...], bytes]]:
        """Shape and content of what is timed, by the index of the tensor that it goes into."""
        feeds = zip(self._inputs, self._feeds, strict=True)
        return {index: (feed.shape, feed.tobytes()) for index, feed in feeds}

    def close(self) -> None:
        del self._interpreter
        self._feeds.clear()


class TFLiteProfiler(SessionProfiler):
    """Times one model in LiteRT."""


class TFLiteBackend(SessionBackend):
    """TFLite models on ``TARGET``: ``host`` is LiteRT's CPU kernels, XNNPACK, on this computer."""

    profiler_class = TFLiteProfiler
    takes = ("tensorflow",)
    tried = ("litert 2.3",)

    @property
    def target(self) -> str:
        """Where models run: ``host`` or ``android``.

        Raises:
            ConfigError: The configuration does not say.
        """
        target = self.configs.get("TARGET")
        if target not in ("host", "android"):
            raise ConfigError(
                f"TARGET must say host (LiteRT on this computer) or android (a phone), but found "
                f"{'nothing' if target is None else repr(target)}; it is never guessed"
            )
        return str(target)

    def _require_host(self) -> None:
        if self.target != "host":
            raise BackendError(
                f"TARGET: {self.target} comes with the next release; "
                "TARGET: host runs on this computer"
            )

    def convert_model(
        self, model_path: str, save_path: str, input_shape: Shapes | None = None
    ) -> str:
        """Make a ``.tflite`` file, named as the model, of a SavedModel; one that is there stays.

        A SavedModel of ours holds it already. Others are converted by TensorFlow, with static
        shapes and the inputs in the model's order.
        """
        path = Path(model_path)
        if model_format(path) == "tflite":
            return str(model_path)
        if model_format(path) != "saved_model":
            raise self.refuse(model_path)
        target = Path(save_path) / f"{path.name}.tflite"
        part = target.with_name(f".{target.name}.{os.getpid()}")
        part.unlink(missing_ok=True)
        inside = path / _INSIDE
        if not inside.is_file():
            part.write_bytes(_convert(path, input_shape or ()))
        elif target.exists() and target.samefile(inside):
            return str(target)  # renaming one link of a file to another would leave both
        else:
            try:
                part.hardlink_to(inside.resolve())
            except OSError:  # another file system, or one without links
                shutil.copyfile(inside, part)
        part.replace(target)
        return str(target)

    def describe(self) -> Environment:
        self._require_host()
        return Environment(
            runtime="litert",
            version=_version(),
            device="CPU",
            threads=self.threads,
            options={"delegate": "XNNPACK"},
        )

    def open(self, converted_model: str, shapes: Shapes) -> TFLiteSession:
        self._require_host()
        litert = _litert()
        try:
            interpreter = litert.Interpreter(str(converted_model), num_threads=self.threads)
            tensors = _tensors(interpreter)
            shapes = shapes or [[int(size) for size in d["shape"][1:]] for d in tensors.inputs]
            found = [[int(size) for size in d["shape_signature"]] for d in tensors.inputs]
            order = match_inputs(tensors.names, found, shapes, by_name=tensors.signature)
            inputs = [tensors.inputs[position] for position in order]
            for detail, shape in zip(inputs, shapes, strict=True):
                if list(detail["shape"]) != [1, *shape]:
                    interpreter.resize_tensor_input(detail["index"], [1, *shape], strict=True)
            interpreter.allocate_tensors()
            indices = [int(detail["index"]) for detail in inputs]
            return TFLiteSession(interpreter, indices, tensors.outputs, reference_inputs(shapes))
        except Exception as exc:
            raise ModelRejectedError(f"LiteRT refuses the model: {exc}") from exc

    def test_connection(self) -> str:
        self._require_host()
        _litert()
        return super().test_connection()


class TFLiteCPUBackend(TFLiteBackend):
    """TFLite models on the CPU."""

    runs_here = True

    def executed_graph(self, converted_model: str, shapes: Shapes) -> ExecutedGraph:
        """Run a converted model once by LiteRT's C API, which has a profiler, and read what ran.

        Raises:
            ModelRejectedError: LiteRT refuses the model.
            GraphUnavailableError: This version's profiler cannot be read, or not for this model.
        """
        # The interpreter is what is timed: it says which models run, and on which inputs.
        session = self.open(converted_model, shapes)
        inputs = session.inputs
        session.close()
        return executed_graph(
            Path(converted_model), inputs, threads=self.threads, version=_version()
        )


class TFLiteGPUBackend(ComesLater, TFLiteBackend):
    """TFLite models on the GPU."""

    later = "tflite_gpu comes with the next release; tflite_cpu runs on this computer"


def _version() -> str:
    _litert()
    import ai_edge_litert

    version = getattr(ai_edge_litert, "__version__", None)
    return str(version or metadata.version("ai-edge-litert"))


@dataclass(frozen=True, kw_only=True)
class _Tensors:
    """What goes into a model file and comes out.

    Attributes:
        names: Of the inputs.
        inputs: LiteRT's details of them.
        outputs: Tensor indices of the outputs, in the model's order.
        signature: Whether the names are a signature's: then they tell the order, not the file.
    """

    names: list[str]
    inputs: list[dict[str, Any]]
    outputs: list[int]
    signature: bool


def _tensors(interpreter: Any) -> _Tensors:
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    for key in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(key)
        named, given = runner.get_input_details(), runner.get_output_details()
        if {detail["index"] for detail in named.values()} == {d["index"] for d in inputs}:
            return _Tensors(
                names=list(named),
                inputs=list(named.values()),
                outputs=[int(given[name]["index"]) for name in sorted(given, key=natural_key)],
                signature=True,
            )
    return _Tensors(
        names=[detail["name"] for detail in inputs],
        inputs=inputs,
        outputs=[int(detail["index"]) for detail in outputs],
        signature=False,
    )


def _convert(path: Path, shapes: Shapes) -> bytes:
    """Convert a SavedModel by TensorFlow; inputs and outputs come in the model's order.

    Raises:
        ConversionError: TensorFlow cannot; its own words are kept.
    """
    tf = _tensorflow()
    try:
        loaded = tf.saved_model.load(str(path))
        signature = _signature(loaded.signatures)
        specs = list(signature.structured_input_signature[1].items())
        found = [_shape(spec) for _, spec in specs]
        wanted = shapes or [(shape or ())[1:] for shape in found]
        order = match_inputs([name for name, _ in specs], found, wanted, by_name=True)
        names = [specs[position][0] for position in order]
        outputs = sorted(signature.structured_outputs, key=natural_key)

        def run(*tensors: Any) -> list[Any]:
            given = signature(**dict(zip(names, tensors, strict=True)))
            return [given[name] for name in outputs]

        concrete = tf.function(run, autograph=False).get_concrete_function(
            *(
                tf.TensorSpec([1, *shape], specs[position][1].dtype, name=specs[position][0])
                for position, shape in zip(order, wanted, strict=True)
            )
        )
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], loaded)
        # By default it goes through another SavedModel: slower, and inputs lose their order.
        converter.experimental_lower_to_saved_model = False
        return bytes(converter.convert())
    except Exception as exc:
        words = " ".join(str(exc).split())
        raise ConversionError(
            f"{path.name}: TensorFlow cannot convert it for LiteRT: {words}"
        ) from exc


def _signature(signatures: Mapping[str, Any]) -> Any:
    if _SIGNATURE in signatures:
        return signatures[_SIGNATURE]
    if len(signatures) != 1:
        raise ValueError(
            f"it should have one signature, or one named {_SIGNATURE}, but has: "
            f"{', '.join(signatures) or 'none'}"
        )
    return next(iter(signatures.values()))


def _shape(spec: Any) -> list[int] | None:
    if spec.shape.rank is None:
        return None
    return [-1 if size is None else int(size) for size in spec.shape]
