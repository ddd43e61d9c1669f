"""TFLite models in LiteRT: the only module that imports it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from nn_meter.builder.backends.base import (
    Array,
    Environment,
    Samples,
    Session,
    SessionBackend,
    SessionProfiler,
    Shapes,
    Turn,
    model_format,
    time_calls,
)
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.inputs import match_inputs, natural_key
from nn_meter.builder.backends.tflite.graph import executed_graph
from nn_meter.builder.backends.tflite.phone import VISITS, Phone
from nn_meter.errors import (
    ConfigError,
    ConversionError,
    ModelRejectedError,
    NotInstalledError,
)
from nn_meter.reference import reference_inputs

__all__ = [
    "TFLiteBackend",
    "TFLiteCPUBackend",
    "TFLiteProfiler",
    "TFLiteSession",
    "litert_version",
    "open_session",
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
    """TFLite models on ``TARGET``: ``host`` is LiteRT on this computer; ``android`` a phone.

    A class derived from it says ``on_gpu``, and what the host does: ``open_here``,
    ``describe_here`` and ``check_here``. The phone's part is the same for all.
    """

    profiler_class = TFLiteProfiler
    takes = ("tensorflow",)
    tried = ("litert 2.3",)

    on_gpu: ClassVar[bool] = False
    """Whether a phone runs the models on its GPU."""

    def __init__(self, configs: Mapping[str, Any] | None = None) -> None:
        self._phone: Phone | None = None
        super().__init__(configs)
        if self.configs.get("TARGET") == "android":
            self.runs_here = False  # whatever the class says of the host

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

    @property
    def phone(self) -> Phone:
        """The phone of ``TARGET: android``.

        Raises:
            ConfigError: A key that it takes is missing.
        """
        if self._phone is None:
            self._phone = Phone(self.configs, gpu=self.on_gpu, compute_here=self._compute_here)
        return self._phone

    def _compute_here(self, model: str, shapes: Shapes, feeds: Sequence[Array]) -> list[Array]:
        session = open_session(model, shapes, threads=self.threads)
        try:
            return session.outputs(feeds)
        finally:
            session.close()

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

    def update_configs(self) -> None:
        super().update_configs()
        if self.in_turn:  # each visit has warm-ups and runs of its own
            self.profiler_kwargs |= {"runs": VISITS, "warmups": 0}

    def describe(self) -> Environment:
        return self.phone.describe() if self.target == "android" else self.describe_here()

    def open(self, converted_model: str, shapes: Shapes) -> Session:
        if self.target == "android":
            return self.phone.open(Path(converted_model), shapes)
        return self.open_here(converted_model, shapes)

    def test_connection(self) -> str:
        if self.target == "android":
            self.phone.check()
        else:
            self.check_here()
        return super().test_connection()

    # --- on a phone ------------------------------------------------------------------------------

    @property
    def in_turn(self) -> bool:
        """Whether one call times many models: on a phone, unless a derived class loads its own."""
        opens = type(self).open is TFLiteBackend.open
        return opens and self.configs.get("TARGET") == "android"

    def time_in_turn(self, sessions: Sequence[Any], limit_s: float) -> Turn:
        return self.phone.time_in_turn(sessions, limit_s)

    def begin_run(self) -> str:
        return self.phone.begin_run() if self.in_turn else ""

    def join_run(self, run: str) -> None:
        if run:
            self.phone.join_run(run)

    def end_run(self) -> None:
        if self._phone is not None:
            self._phone.end_run()

    # --- on this computer; a class derived from it may do otherwise ------------------------------

    def describe_here(self) -> Environment:
        """The environment of ``TARGET: host``."""
        return Environment(
            runtime="litert",
            version=litert_version(),
            device="CPU",
            threads=self.threads,
            options={"delegate": "XNNPACK"},
        )

    def open_here(self, converted_model: str, shapes: Shapes) -> Session:
        """Load a converted model on this computer.

        Raises:
            ModelRejectedError: LiteRT refuses it; its own words are kept.
        """
        return open_session(converted_model, shapes, threads=self.threads)

    def check_here(self) -> None:
        """Check that what ``TARGET: host`` takes is there.

        Raises:
            BackendError: What is missing, and how to get it.
        """
        _litert()


class TFLiteCPUBackend(TFLiteBackend):
    """TFLite models on the CPU."""

    runs_here = True

    def executed_graph(self, converted_model: str, shapes: Shapes) -> ExecutedGraph:
        """Run a converted model once by LiteRT's C API, which has a profiler, and read what ran.

        Raises:
            ModelRejectedError: LiteRT refuses the model.
            GraphUnavailableError: This version's profiler cannot be read, or not for this model.
        """
        if self.target == "android":
            return self.phone.executed_graph(Path(converted_model))
        # The interpreter is what is timed: it says which models run, and on which inputs.
        session = open_session(converted_model, shapes, threads=self.threads)
        inputs = session.inputs
        session.close()
        return executed_graph(
            Path(converted_model), inputs, threads=self.threads, version=litert_version()
        )


def open_session(converted_model: str, shapes: Shapes, *, threads: int) -> TFLiteSession:
    """Load a ``.tflite`` file in LiteRT's interpreter, on the CPU of this computer.

    Raises:
        ModelRejectedError: LiteRT refuses the model; its own words are kept.
    """
    litert = _litert()
    try:
        interpreter = litert.Interpreter(str(converted_model), num_threads=threads)
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


def litert_version() -> str:
    """The version of ai-edge-litert.

    Raises:
        NotInstalledError: It is not installed.
    """
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
