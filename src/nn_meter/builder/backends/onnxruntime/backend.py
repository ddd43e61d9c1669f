"""ONNX Runtime on the CPU, and what it shares with the other execution providers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from nn_meter.builder.backends.base import (
    Array,
    Environment,
    Samples,
    SessionBackend,
    Shapes,
    model_format,
    time_calls,
)
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.onnxruntime.asked import CPU, Provider, asked_providers
from nn_meter.builder.backends.onnxruntime.graph import import_onnx, read_graph
from nn_meter.builder.backends.onnxruntime.plugins import add_plugin, register_plugin
from nn_meter.builder.backends.onnxruntime.values import tensor_values
from nn_meter.builder.backends.values import TracedGraph
from nn_meter.errors import (
    ConfigError,
    GraphUnavailableError,
    ModelRejectedError,
    NNMeterError,
    NotInstalledError,
)
from nn_meter.reference import reference_inputs

__all__ = [
    "OnnxRuntimeBackend",
    "OnnxRuntimeCPUBackend",
    "OnnxRuntimeSession",
    "import_onnxruntime",
    "not_written",
]


_USUAL = "all"
_LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    _USUAL: "ORT_ENABLE_ALL",
}


def import_onnxruntime() -> ModuleType:
    """The package onnxruntime.

    Raises:
        NotInstalledError: It cannot be imported.
    """
    # Its Linux wheel has telemetry on: without this, importing it writes a device id into the home
    # directory. Later calls that turn it off are too late for that.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as exc:
        raise NotInstalledError(
            f"onnxruntime cannot be imported ({exc}); pip install nn-meter brings it"
        ) from exc
    module: ModuleType = onnxruntime
    return module


class OnnxRuntimeSession:
    """A model loaded by ONNX Runtime, inputs and outputs bound once.

    With the tensors bound a call costs about 5 µs beyond the model.

    Attributes:
        inputs: Names of the model's inputs, in its order.
    """

    def __init__(self, session: Any, feeds: Sequence[Array]) -> None:
        ort = import_onnxruntime()
        self._session = session
        self.inputs = [tensor.name for tensor in session.get_inputs()]
        self._binding = session.io_binding()
        self._kept = []
        for name, feed in zip(self.inputs, feeds, strict=True):
            value = ort.OrtValue.ortvalue_from_numpy(feed)
            self._binding.bind_ortvalue_input(name, value)
            self._kept.append(value)
        outputs = self.outputs(feeds)
        for tensor, output in zip(session.get_outputs(), outputs, strict=True):
            value = ort.OrtValue.ortvalue_from_numpy(output)
            self._binding.bind_ortvalue_output(tensor.name, value)
            self._kept.append(value)

    def time(self, n: int) -> Samples:
        return time_calls(partial(self._session.run_with_iobinding, self._binding), n)

    def outputs(self, feeds: Sequence[Array]) -> list[Array]:
        outputs: list[Array] = self._session.run(None, dict(zip(self.inputs, feeds, strict=True)))
        return outputs

    def close(self) -> None:
        del self._binding, self._session
        self._kept.clear()


class OnnxRuntimeBackend(SessionBackend):
    """ONNX Runtime; loads ``.onnx`` files as they are."""

    takes = ("onnx", "torch")
    tried: ClassVar[tuple[str, ...]] = ("onnxruntime 1.31", "onnxruntime 1.32")

    @property
    def providers(self) -> tuple[Provider, ...]:
        """The execution providers that PROVIDERS asks for, most wanted first.

        Raises:
            ConfigError: It asks for what cannot be.
        """
        return asked_providers(self.configs)

    def update_configs(self) -> None:
        super().update_configs()
        _ = self.providers  # what cannot be is refused before anything is done

    def convert_model(
        self, model_path: str, save_path: str, input_shape: Shapes | None = None
    ) -> str:
        if model_format(model_path) != "onnx":
            raise self.refuse(model_path)
        return str(model_path)

    @property
    def graph_optimization(self) -> str:
        """How much ONNX Runtime may change a graph: a key of ``_LEVELS``."""
        return str(self.configs.get("GRAPH_OPTIMIZATION") or _USUAL)

    def open(self, converted_model: str, shapes: Shapes) -> OnnxRuntimeSession:
        return self._opened(converted_model, shapes, self._options())

    def _written_to(self, path: Path) -> Any:
        """Options that have the optimized model written to a file."""
        options = self._options()
        options.optimized_model_filepath = str(path)
        # Weights beside the file: they are not looked at, and may be more than a file holds.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "weights.bin"
        )
        return options

    def _options(self, level: str = "") -> Any:
        options = import_onnxruntime().SessionOptions()
        options.intra_op_num_threads = self.threads
        options.graph_optimization_level = getattr(
            import_onnxruntime().GraphOptimizationLevel, _LEVELS[level or self.graph_optimization]
        )
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options

    def _opened(self, converted_model: str, shapes: Shapes, options: Any) -> OnnxRuntimeSession:
        try:
            session = self._session(converted_model, options)
            return OnnxRuntimeSession(session, reference_inputs(shapes))
        except NNMeterError:
            raise
        except Exception as exc:
            raise ModelRejectedError(f"ONNX Runtime refuses the model: {exc}") from exc

    def _session(self, model: str, options: Any) -> Any:
        """An ``onnxruntime.InferenceSession``."""
        ort = import_onnxruntime()
        plugins = [asked for asked in self.providers if asked.plugin]
        for asked in plugins:
            register_plugin(ort, asked)
            add_plugin(ort, options, asked)
        own = [(asked.name, dict(asked.options)) for asked in self.providers if not asked.plugin]
        return ort.InferenceSession(
            str(model),
            options,
            providers=None if plugins else own,  # the CPU's is there in any case
            enable_fallback=0,  # else a provider that cannot be had is silently another one
        )

    def test_connection(self) -> str:
        import_onnxruntime()
        return super().test_connection()


class OnnxRuntimeCPUBackend(OnnxRuntimeBackend):
    """ONNX Runtime's CPU execution provider."""

    runs_here = True

    @property
    def providers(self) -> tuple[Provider, ...]:
        providers = super().providers or (Provider(CPU),)
        if other := [asked.name for asked in providers if asked.name != CPU]:
            raise ConfigError(
                f"backend_config.yaml: PROVIDERS names {', '.join(other)}, but onnxruntime_cpu "
                "runs on the CPU; the backend onnxruntime_providers runs where PROVIDERS says"
            )
        return providers

    def describe(self) -> Environment:
        level = self.graph_optimization
        return Environment(
            runtime="onnxruntime",
            version=str(import_onnxruntime().__version__),
            device="CPU",
            threads=self.threads,
            options={} if level == _USUAL else {"graph_optimization": level},
        )

    def executed_graph(self, converted_model: str, shapes: Shapes) -> ExecutedGraph:
        import_onnx()  # where it is missing, that is known before anything is loaded
        with tempfile.TemporaryDirectory(prefix="nn-meter-onnxruntime-") as folder:
            path = Path(folder) / "optimized.onnx"
            options = self._written_to(path)
            try:
                session = self._opened(converted_model, shapes, options)
            except ModelRejectedError as exc:
                self.open(converted_model, shapes).close()  # a model that is refused, is here, too
                raise not_written(exc.__cause__) from exc
            inputs = session.inputs
            session.close()
            return read_graph(path, inputs)

    def traced_graph(self, converted_model: str, feeds: Mapping[str, Array]) -> TracedGraph:
        """Read what is executed, and what the tensors hold, of the model and of what is executed.

        Args:
            converted_model: The model; its tensors have names of their own.
            feeds: An array for each of its inputs, in its order.

        Raises:
            ModelRejectedError: The runtime refuses the model; its own words are kept.
            GraphUnavailableError: What is executed cannot be written down, or not run again.
        """
        import_onnx()
        with tempfile.TemporaryDirectory(prefix="nn-meter-onnxruntime-") as folder:
            path = Path(folder) / "optimized.onnx"
            as_written = partial(self._session, options=self._options("disabled"))
            written = tensor_values(
                Path(converted_model), feeds, partial(_or_refused, load=as_written)
            )
            try:
                self._session(converted_model, self._written_to(path))
                graph = read_graph(path, list(feeds))
                executed = tensor_values(path, feeds, as_written)
            except GraphUnavailableError:
                raise
            except Exception as exc:
                raise not_written(exc) from exc
        return TracedGraph(graph=graph, executed=executed, written=written)


def not_written(cause: BaseException | None) -> GraphUnavailableError:
    """The error for a model that runs, but of which the optimized model cannot be had."""
    return GraphUnavailableError(
        f"ONNX Runtime runs the model, but cannot write down what it made of it: {cause}"
    )


def _or_refused(model: str, load: Callable[[str], Any]) -> Any:
    try:
        return load(model)
    except Exception as exc:
        raise ModelRejectedError(f"ONNX Runtime refuses the model: {exc}") from exc
