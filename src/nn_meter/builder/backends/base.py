"""The contract of a backend: the guide's three classes, and the abilities beyond it.

The guide's ``BaseBackend`` with a profiler and a parser is enough to be measured. What else a
backend can do it says by having the methods of a small protocol (``OpensSessions``, ``Describes``,
``ShowsGraph``); the program asks for those and never goes by a backend's name.

This module is also imported in worker processes of other virtual environments: it needs numpy and
the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.errors import BackendError, ConversionError, NNMeterError
from nn_meter.latency import Latency, ProfiledResults

__all__ = [
    "BaseBackend",
    "BaseParser",
    "BaseProfiler",
    "ConvertsMany",
    "Describes",
    "Environment",
    "HoldsFiles",
    "OpensSessions",
    "SamplesParser",
    "Session",
    "SessionBackend",
    "SessionProfiler",
    "ShowsGraph",
    "ShowsGraphs",
    "TimesInTurn",
    "Turn",
    "model_format",
    "time_calls",
]

Array = npt.NDArray[Any]
Samples = npt.NDArray[np.int64]
Shapes = Sequence[Sequence[int]]
ModelFormat = Literal["onnx", "saved_model", "tflite", "other"]

_MS_PER_NS = 1e-6


# --- values --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where results were found. Results of unlike environments are never merged.

    Attributes:
        runtime: Name of the runtime, e.g. ``onnxruntime``.
        version: Its version.
        device: What it ran on, in the runtime's own words, e.g. ``CPU``.
        threads: Threads that it was allowed.
        dtype: Type of the numbers that it computed with.
        host: The processor and system that it ran on.
        options: Whatever else of the configuration changes what is measured.
    """

    runtime: str
    version: str
    device: str = "CPU"
    threads: int = 1
    dtype: str = "float32"
    host: str = field(default_factory=lambda: host_description())
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain values; ``Environment(**data)`` reads them back."""
        text = json.dumps({**asdict(self), "options": dict(self.options)}, default=str)
        plain: dict[str, Any] = json.loads(text, parse_constant=str)
        return plain

    @property
    def key(self) -> str:
        """A short name of the environment: 12 hexadecimal digits."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        threads = f"{self.threads} thread" + ("s" if self.threads != 1 else "")
        return f"{self.runtime} {self.version} on {self.device}, {threads}, {self.dtype}"


def host_description() -> str:
    """The processor's name where the system tells it, the machine type, and the system."""
    name = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux: the standard library's answer stands
    return f"{name or 'unknown processor'}, {platform.machine()}, {platform.system()}"


def model_format(path: Path | str) -> ModelFormat:
    """Tell what a model file is: by its suffix, a SavedModel folder by what lies in it."""
    path = Path(path)
    if (path / "saved_model.pb").is_file():
        return "saved_model"
    formats: dict[str, ModelFormat] = {".onnx": "onnx", ".tflite": "tflite"}
    return formats.get(path.suffix.lower(), "other")


def time_calls(call: Callable[[], object], n: int) -> Samples:
    """Time calls one by one, by the clock of this process.

    Args:
        call: What is timed; with arguments bound by ``functools.partial``, which costs next to
            nothing.
        n: How often.

    Returns:
        int64 nanoseconds, shape ``(n,)``.
    """
    clock = time.perf_counter_ns
    samples = np.empty(n, dtype=np.int64)
    for i in range(n):
        start = clock()
        call()
        samples[i] = clock() - start
    return samples


# --- abilities -----------------------------------------------------------------------------------


class Session(Protocol):
    """A model loaded in a runtime, ready to run; inputs are filled already."""

    def time(self, n: int) -> Samples:
        """Run ``n`` times; gives int64 ns, shape ``(n,)``, by the best clock that there is."""

    def outputs(self, feeds: Sequence[Array]) -> list[Array]:
        """Run once on the given inputs, batch included, in the order of the model's inputs."""

    def close(self) -> None:
        """Let go of the model; the session is not used again."""


@runtime_checkable
class OpensSessions(Protocol):
    """A backend whose models can be kept loaded, so that several are timed in turn."""

    def open(self, converted_model: str, shapes: Shapes) -> Session:
        """Load a converted model; shapes of its inputs without the batch dimension.

        Raises:
            ModelRejectedError: The runtime refuses it; its own words are kept.
        """


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one call to a device gave.

    Attributes:
        visits: For each visit its samples, or why there are none.
        conditions: How the device was meanwhile, as plain values: temperatures, frequencies.
    """

    visits: Sequence[Samples | NNMeterError]
    conditions: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class TimesInTurn(Protocol):
    """A backend that opens sessions on a device which one call asks for many visits, in turn.

    A sample of such a device is what its own tool says of one visit: an average, after warm-ups of
    its own.
    """

    @property
    def in_turn(self) -> bool:
        """Whether it does so, as it is configured."""

    def time_in_turn(self, sessions: Sequence[Any], limit_s: float) -> Turn:
        """Visit sessions of this backend in this order, by one call.

        Args:
            sessions: One for each visit; the same may come again.
            limit_s: Seconds that a visit may take.

        Raises:
            DeviceError: The device is not there any more; no model is to blame.
        """


@runtime_checkable
class HoldsFiles(Protocol):
    """A backend that keeps files on a device while a run lasts; a run may have many processes."""

    def begin_run(self) -> str:
        """Begin a run of this process; returns its name, for ``join_run`` in others."""

    def join_run(self, run: str) -> None:
        """Take part in a run, which another process may have begun."""

    def end_run(self) -> None:
        """Remove from the device what the run has put there; logs what cannot be removed."""


@runtime_checkable
class Describes(Protocol):
    """A backend that knows its environment."""

    def describe(self) -> Environment:
        """Say what results would be found in."""


@runtime_checkable
class ShowsGraph(Protocol):
    """A backend whose runtime tells what it executes."""

    def executed_graph(self, converted_model: str, shapes: Shapes) -> ExecutedGraph:
        """Load a converted model and read what runs.

        Raises:
            ModelRejectedError: The runtime refuses the model; its own words are kept.
            GraphUnavailableError: This runtime, or this version of it, cannot tell.
        """


@runtime_checkable
class ShowsGraphs(Protocol):
    """A backend that reads the graphs of many models at once, which costs it less."""

    def executed_graphs(
        self, models: Sequence[tuple[str, Shapes]], save_path: str
    ) -> list[ExecutedGraph | NNMeterError]:
        """Read what the runtime makes of model files that were not converted.

        Args:
            models: Paths of the source models, each with the shapes of its inputs.
            save_path: An existing folder for what has to be made on the way.

        Returns:
            For each model its graph, or the error that ``executed_graph`` would raise.
        """


@runtime_checkable
class ConvertsMany(Protocol):
    """A backend that converts many models at once, which costs it less."""

    def convert_models(
        self, models: Sequence[tuple[str, Shapes]], save_paths: Sequence[str]
    ) -> list[str | NNMeterError]:
        """Make of each model what ``convert_model`` makes of it.

        Args:
            models: Paths of the source models, each with the shapes of its inputs.
            save_paths: For each an existing folder of its own.

        Returns:
            For each model the path of what was made, or the error that ``convert_model`` would
            raise.
        """


# --- the guide's classes -------------------------------------------------------------------------


class BaseProfiler:
    """Runs one converted model. Derive from it, or from a profiler that is there."""

    def profile(self, converted_model: str, **kwargs: Any) -> Any:
        """Run the model and return the runner's output: whatever the parser reads."""
        raise NotImplementedError(f"{type(self).__name__} does not define profile")


class BaseParser:
    """Reads what a profiler returned."""

    def parse(self, content: Any) -> BaseParser:
        """Read the runner's output; returns itself, with ``results`` filled."""
        raise NotImplementedError(f"{type(self).__name__} does not define parse")

    @property
    def results(self) -> ProfiledResults:
        """What was read: ``ProfiledResults({"latency": Latency(avg, std)})``."""
        raise NotImplementedError(f"{type(self).__name__} does not define results")


class BaseBackend:
    """Where models run. Derive from it to add a backend of your own.

    Args:
        configs: The keys of ``backend_config.yaml``.

    Attributes:
        profiler_class, parser_class: What runs a model, and what reads the result.
        profiler_kwargs, parser_kwargs: What these are made with; ``update_configs`` fills them.
    """

    profiler_class: ClassVar[type[Any] | None] = None
    parser_class: ClassVar[type[Any] | None] = None

    takes: ClassVar[tuple[str, ...]] = ()
    """Values of IMPLEMENT whose models it takes; empty: it does not say."""

    tried: ClassVar[tuple[str, ...]] = ()
    """Runtimes, as ``describe`` names them, with versions that it was tried with, e.g.
    ``onnxruntime 1.31``, which stands for 1.31.0, too. A run warns of others. Empty: it does not
    say."""

    def __init__(self, configs: Mapping[str, Any] | None = None) -> None:
        self.configs: dict[str, Any] = dict(configs or {})
        self.profiler_kwargs: dict[str, Any] = {}
        self.parser_kwargs: dict[str, Any] = {}
        self.update_configs()
        self.profiler = self.profiler_class(**self.profiler_kwargs) if self.profiler_class else None
        self.parser = self.parser_class(**self.parser_kwargs) if self.parser_class else None

    def update_configs(self) -> None:
        """Fill ``profiler_kwargs`` and ``parser_kwargs`` from ``configs``."""

    def convert_model(
        self, model_path: str, save_path: str, input_shape: Shapes | None = None
    ) -> str:
        """Make a file that the runtime loads, by default the model itself.

        Args:
            model_path: The model; it is never touched.
            save_path: An existing folder for what is made.
            input_shape: Shapes of the inputs without the batch dimension.

        Returns:
            The path of the converted model.
        """
        return str(model_path)

    def profile(
        self,
        converted_model: str,
        metrics: Sequence[str] = ("latency",),
        input_shape: Shapes | None = None,
        **kwargs: Any,
    ) -> ProfiledResults:
        """Run a converted model and read the metrics.

        Raises:
            BackendError: The class names no profiler or no parser.
        """
        return self._profiled(converted_model, metrics, **kwargs)

    def _profiled(
        self, converted_model: str, metrics: Sequence[str], **kwargs: Any
    ) -> ProfiledResults:
        if self.profiler is None or self.parser is None:
            raise BackendError(
                f"{type(self).__name__} has no "
                f"{'profiler_class' if self.profiler is None else 'parser_class'}; "
                "a backend needs both, or a profile method of its own"
            )
        content = self.profiler.profile(converted_model, **kwargs)
        results: ProfiledResults = self.parser.parse(content).results.get(list(metrics))
        return results

    def profile_model_file(
        self,
        model_path: str,
        save_path: str,
        input_shape: Shapes | None = None,
        metrics: Sequence[str] = ("latency",),
        **kwargs: Any,
    ) -> ProfiledResults:
        """Convert a model file, then profile it."""
        Path(save_path).mkdir(parents=True, exist_ok=True)
        converted = self.convert_model(str(model_path), str(save_path), input_shape)
        return self.profile(converted, metrics, input_shape, **kwargs)

    def test_connection(self) -> str:
        """Check that the runtime and its device are there.

        Returns:
            A greeting.

        Raises:
            BackendError: What is missing, and how to get it.
        """
        return "hello backend !"


# --- backends that open sessions -----------------------------------------------------------------


class SessionProfiler(BaseProfiler):
    """Times one model in a session of its own.

    Args:
        backend: Whose ``open`` is used.
        runs: Measured runs.
        warmups: Runs before these.
    """

    def __init__(self, backend: OpensSessions, runs: int = 50, warmups: int = 10) -> None:
        self._backend, self._runs, self._warmups = backend, runs, warmups

    def profile(self, converted_model: str, input_shape: Shapes = (), **kwargs: Any) -> Samples:
        """Returns int64 nanoseconds, shape ``(runs,)``."""
        session = self._backend.open(converted_model, input_shape)
        try:
            if self._warmups:
                session.time(self._warmups)
            return session.time(self._runs)
        finally:
            session.close()


class SamplesParser(BaseParser):
    """Sums up samples: int64 nanoseconds in, their average and deviation in ms out."""

    def __init__(self) -> None:
        self._results = ProfiledResults()

    def parse(self, content: Any) -> SamplesParser:
        """Read nanoseconds, shape ``(runs,)``."""
        ms = np.asarray(content, dtype=np.float64) * _MS_PER_NS
        self._results = ProfiledResults({"latency": Latency(float(ms.mean()), float(ms.std()))})
        return self

    @property
    def results(self) -> ProfiledResults:
        return self._results


class SessionBackend(BaseBackend):
    """A backend that opens sessions: ``profile`` comes from ``open``.

    A class derived from it defines ``open`` and ``describe``, says what it ``takes``, and
    ``convert_model`` where the runtime does not load the model as it is.
    """

    profiler_class = SessionProfiler
    parser_class = SamplesParser

    runs_here: bool = False
    """Whether the processor that calls is the one that runs the model: then its speed just before
    and behind a run tells at which speed that was."""

    def update_configs(self) -> None:
        self.profiler_kwargs = {
            "backend": self,
            "runs": self.configs.get("RUNS", 50),
            "warmups": self.configs.get("WARMUPS", 10),
        }

    @property
    def threads(self) -> int:
        """Threads that the runtime may use."""
        return int(self.configs.get("THREADS", 1))

    def open(self, converted_model: str, shapes: Shapes) -> Session:
        """Load a converted model."""
        raise NotImplementedError(f"{type(self).__name__} does not define open")

    def profile(
        self,
        converted_model: str,
        metrics: Sequence[str] = ("latency",),
        input_shape: Shapes | None = None,
        **kwargs: Any,
    ) -> ProfiledResults:
        return self._profiled(converted_model, metrics, input_shape=input_shape or (), **kwargs)

    def refuse(self, model_path: str) -> ConversionError:
        """The error for a model that this backend has no way to take."""
        return ConversionError(
            f"{Path(model_path).name}: {type(self).__name__} cannot take this model "
            f"({model_format(model_path)}); it takes those of IMPLEMENT: {', '.join(self.takes)}"
        )
