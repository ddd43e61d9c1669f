"""What a backend's worker process does: convert, open, time, profile, read graphs.

This module runs in worker processes of other virtual environments too: it needs numpy, and what the
backend itself imports.
"""

from __future__ import annotations

import glob
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import (
    BaseBackend,
    ConvertsMany,
    Describes,
    Environment,
    HoldsFiles,
    OpensSessions,
    SamplesParser,
    Session,
    SessionBackend,
    SessionProfiler,
    Shapes,
    ShowsGraph,
    ShowsGraphs,
    TimesInTurn,
)
from nn_meter.builder.backends.spec import BackendSpec
from nn_meter.builder.profiling.averages import ProfilesInTurn
from nn_meter.builder.profiling.behind import Behind
from nn_meter.builder.profiling.gate import SpeedGate
from nn_meter.builder.profiling.race import Race, TurnRace, turn_answer
from nn_meter.builder.profiling.worker import encode_error
from nn_meter.errors import BackendError, ModelRejectedError, NNMeterError, NotInstalledError
from nn_meter.latency import measured_latency
from nn_meter.reference import reference_inputs, sample_outputs

__all__ = ["HANDLER", "BackendJobs", "opens_sessions"]

HANDLER = f"{__name__}:BackendJobs"


def opens_sessions(backend: BaseBackend) -> bool:
    """Whether a backend is timed by its sessions: it opens them, and no profiler stands above."""
    cls = type(backend)
    if not isinstance(backend, OpensSessions) or _own_file_method(backend):
        return False
    if not isinstance(backend, SessionBackend):
        return True
    return (
        cls.profile is SessionBackend.profile
        and cls.profiler_class is not None
        and cls.profiler_class.profile is SessionProfiler.profile
        and cls.parser_class is not None
        and cls.parser_class.parse is SamplesParser.parse
    )


def times_in_turn(backend: BaseBackend) -> bool:
    """Whether a backend's sessions are timed many at a time, by one call to its device."""
    return isinstance(backend, TimesInTurn) and backend.in_turn and opens_sessions(backend)


def gives_averages(backend: BaseBackend) -> bool:
    """Whether a backend has nothing but ``profile()``, of models that were converted."""
    return not opens_sessions(backend) and not _own_file_method(backend)


def _converts_many(backend: BaseBackend) -> bool:
    """Whether ``convert_models`` speaks for the backend: no ``convert_model`` stands above it."""
    if not isinstance(backend, ConvertsMany):
        return False
    classes = type(backend).__mro__
    many = next((cls for cls in classes if "convert_models" in vars(cls)), type(backend))
    return issubclass(many, next(cls for cls in classes if "convert_model" in vars(cls)))


def _own_file_method(backend: BaseBackend) -> bool:
    ours = BaseBackend.profile_model_file
    return getattr(type(backend), "profile_model_file", ours) is not ours


def _kept(made: Path, folder: Path) -> str:
    """What a backend made, in the folder for it.

    What lies among temporary files goes with this process, so it is put there, with what belongs to
    it: the folder that it lies in, or files that are named alike.
    """
    temporary = Path(tempfile.gettempdir()).resolve()
    place = made.resolve()
    if place.is_relative_to(folder.resolve()) or not place.is_relative_to(temporary):
        return str(made)
    if place.is_dir():
        return str(shutil.copytree(place, folder / place.name, dirs_exist_ok=True))
    alike = place.parent.glob(f"{glob.escape(place.stem)}.*")
    for each in alike if place.parent == temporary else place.parent.iterdir():
        if each.is_dir():
            shutil.copytree(each, folder / each.name, dirs_exist_ok=True)
        else:
            shutil.copy2(each, folder / each.name)
    if not (folder / place.name).exists():  # a name without a suffix
        shutil.copy2(place, folder / place.name)
    return str(folder / place.name)


class BackendJobs:
    """The operations. Everything that comes in and goes out is plain JSON values.

    Args:
        backend: Already made; None: ``connect`` makes it.
    """

    def __init__(self, backend: BaseBackend | None = None) -> None:
        self._backend = backend
        self._sessions: dict[str, Session] = {}
        self._gate: SpeedGate | None = None

    def connect(self, spec: Mapping[str, Any], run: str = "") -> None:
        """Make the backend of a ``BackendSpec`` in plain values.

        Args:
            spec: Of the backend.
            run: The run that it takes part in, if it ``HoldsFiles``; empty: none.
        """
        self._backend = BackendSpec.from_json(spec).make()
        if run and isinstance(self._backend, HoldsFiles):
            self._backend.join_run(run)

    @property
    def backend(self) -> BaseBackend:
        """The backend of this process."""
        if self._backend is None:
            raise BackendError("the worker was not connected to a backend")
        return self._backend

    def describe(self) -> dict[str, Any]:
        """What the backend can do, and its environment if it knows it."""
        backend = self.backend
        environment = backend.describe().to_json() if isinstance(backend, Describes) else None
        return {
            "environment": environment,
            "sessions": opens_sessions(backend),
            "in_turn": times_in_turn(backend),
            "averages": gives_averages(backend),
            "gated": opens_sessions(backend) and getattr(backend, "runs_here", False),
            "graph": isinstance(backend, ShowsGraph),
            "graphs": isinstance(backend, ShowsGraphs),
            "converts_many": _converts_many(backend),
            "own_file_method": _own_file_method(backend),
        }

    def test_connection(self) -> str:
        """The backend's greeting; user classes may return nothing."""
        return str(self.backend.test_connection() or "hello backend !")

    def convert(self, model: str, save_path: str, shapes: Shapes) -> str:
        """Convert a model file into an existing folder; returns the path of what was made."""
        converted = self.backend.convert_model(model, save_path, [list(s) for s in shapes])
        found = self._existing(converted, "convert_model")
        return found if Path(found) == Path(model) else _kept(Path(found), Path(save_path))

    def convert_many(
        self, models: Sequence[tuple[str, Shapes]], save_paths: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Convert many model files, each into an existing folder of its own.

        Returns:
            For each ``{"ok": path}`` or ``{"error": {"type", "message"}}``, as plain values.
        """
        backend = self.backend
        assert isinstance(backend, ConvertsMany)
        asked = [(path, [list(shape) for shape in shapes]) for path, shapes in models]
        found = backend.convert_models(asked, save_paths)
        if len(found) != len(asked):
            raise BackendError(
                f"{type(backend).__name__}.convert_models was asked for {len(asked)} models and "
                f"gave {len(found)}"
            )
        return [self._answer(converted) for converted in found]

    def _answer(self, converted: Any) -> dict[str, Any]:
        try:
            if isinstance(converted, NNMeterError):
                raise converted
            return {"ok": self._existing(converted, "convert_models")}
        except NNMeterError as exc:
            return {"error": encode_error(exc)}

    def _existing(self, converted: Any, method: str) -> str:
        if not isinstance(converted, str | Path) or not Path(converted).exists():
            raise BackendError(
                f"{type(self.backend).__name__}.{method} should return the path of the converted "
                f"model, but returned {converted!r}"
            )
        return str(converted)

    def open(self, key: str, converted: str, shapes: Shapes, check: bool) -> Any:
        """Load a converted model under a key.

        Returns:
            With ``check``: a sample of its outputs on the reference inputs, or None, if what it
            takes to compute them is not installed; else None.
        """
        backend = self.backend
        if gives_averages(backend):
            self._sessions[key] = ProfilesInTurn(backend).open(converted, shapes)
            return None
        assert isinstance(backend, OpensSessions)
        session = backend.open(converted, shapes)
        self._sessions[key] = session
        if not check:
            return None
        try:
            return sample_outputs(session.outputs(reference_inputs(shapes)))
        except NotInstalledError:
            return None
        except NNMeterError:
            raise
        except Exception as exc:
            raise ModelRejectedError(
                f"the runtime cannot run the model: {type(exc).__name__}: {exc}"
            ) from exc

    def time(self, key: str, runs: int) -> list[int]:
        """Run a loaded model. Returns nanoseconds, one for each run."""
        return [int(ns) for ns in self._sessions[key].time(runs)]

    def visit(self, keys: Sequence[str], limit_s: float) -> dict[str, Any]:
        """Visit loaded models in this order, by one call to a device that times them in turn.

        Args:
            keys: The models.
            limit_s: Seconds that a visit may take.

        Returns:
            ``samples``: for each model the ns that its visit gave; ``failed``: models that cannot
            be run, and the error as plain values; ``conditions``: how the device was.
        """
        backend = self.backend
        assert isinstance(backend, TimesInTurn)
        turn = backend.time_in_turn([self._sessions[key] for key in keys], limit_s)
        return turn_answer(keys, turn)

    def race(
        self,
        keys: Sequence[str],
        visits: int,
        least_s: float,
        runs: int,
        seed: int,
        most_s: float,
        gated: bool,
        limit_s: float = 300.0,
    ) -> dict[str, Any]:
        """Time loaded models in turn, in rounds of random order, until each has enough visits.

        Args:
            keys: The models.
            visits: Visits that each is to have at the least, with one counted run or more.
            least_s: Seconds that it takes at the least.
            runs: Runs of a visit.
            seed: Of the order.
            most_s: Seconds after which it ends, with what there is by then.
            gated: Whether the processor that runs this is the one that runs the models: then a run
                counts only if it was at full speed.
            limit_s: Seconds that a visit may take, on a device that times models in turn; there a
                visit gives one sample, whatever ``runs`` says.

        Returns:
            ``visits``: for each model, for each of its visits, the ns of the runs that count;
            ``failed``: models that cannot be run, and the error as plain values; ``level_ns``: what
            the gate's work takes at full speed (0 without a gate); ``runs`` and ``counted``: how
            many there were, and how many stand in ``visits``; ``conditions``: how the device was
            in each call to it.
        """
        if times_in_turn(self.backend) or gives_averages(self.backend):
            backend: Any = self.backend
            if gives_averages(self.backend):
                backend = ProfilesInTurn(self.backend)
            loaded = {key: self._sessions[key] for key in keys}
            turns = TurnRace(backend, loaded, seed=seed, limit_s=limit_s)
            turns.run(visits=visits, most_s=most_s)
            return turns.answer()
        gate = self._speed_gate() if gated else None
        sessions = {key: self._sessions[key] for key in keys}
        race = Race(sessions, runs=runs, seed=seed, gate=gate)
        race.run(visits=visits, least_s=least_s, most_s=most_s)
        return {
            "visits": race.visits,
            "failed": race.failed,
            "level_ns": gate.level_ns if gate is not None else 0.0,
            "runs": race.made,
            "counted": sum(len(taken) for found in race.visits.values() for taken in found),
            "conditions": [],
        }

    def time_behind(
        self, ahead: str, keys: Sequence[str], visits: int, seed: int, most_s: float, gated: bool
    ) -> dict[str, Any]:
        """Time loaded models in turn, each behind a run of one that is loaded, too.

        Args:
            ahead: The model that runs before each.
            keys: The models.
            visits: Runs that each is to have at the least.
            seed: Of the order.
            most_s: Seconds after which it ends, with what there is by then.
            gated: As in ``race``.

        Returns:
            ``ahead``: ns of the runs before; ``runs``: for each model the ns of its runs;
            ``failed``: as in ``race``.
        """
        if times_in_turn(self.backend):
            raise BackendError(
                "its device loads each model afresh for every visit, so none runs right behind "
                "another there; kernels are not timed on it"
            )
        sessions = {key: self._sessions[key] for key in keys}
        gate = self._speed_gate() if gated else None
        behind = Behind(self._sessions[ahead], sessions, seed=seed, gate=gate)
        behind.run(visits=visits, most_s=most_s)
        return {"ahead": behind.ahead, "runs": behind.runs, "failed": behind.failed}

    def _speed_gate(self) -> SpeedGate:
        if self._gate is None:
            self._gate = SpeedGate()
        return self._gate

    def drop(self, keys: Sequence[str]) -> None:
        """Unload some models; one that cannot be closed keeps none of the others loaded."""
        with ExitStack() as stack:
            for key in keys:
                if key in self._sessions:
                    stack.callback(self._sessions.pop(key).close)

    def close(self) -> None:
        """Unload all models."""
        self.drop(list(self._sessions))

    def graph(self, converted: str, shapes: Shapes) -> dict[str, Any]:
        """The executed graph of a converted model, as plain values."""
        backend = self.backend
        assert isinstance(backend, ShowsGraph)
        return backend.executed_graph(converted, [list(s) for s in shapes]).to_json()

    def graphs(self, models: Sequence[tuple[str, Shapes]], save_path: str) -> list[dict[str, Any]]:
        """The executed graphs of many models that were not converted.

        Returns:
            For each ``{"ok": graph}`` or ``{"error": {"type", "message"}}``, as plain values.
        """
        backend = self.backend
        assert isinstance(backend, ShowsGraphs)
        asked = [(path, [list(shape) for shape in shapes]) for path, shapes in models]
        found = backend.executed_graphs(asked, save_path)
        if len(found) != len(asked):
            raise BackendError(
                f"{type(backend).__name__}.executed_graphs was asked for {len(asked)} graphs and "
                f"gave {len(found)}"
            )
        return [
            {"error": encode_error(graph)}
            if isinstance(graph, Exception)
            else {"ok": graph.to_json()}
            for graph in found
        ]

    def profile(
        self,
        model: str,
        save_path: str,
        converted: str | None,
        shapes: Shapes,
        metrics: Sequence[str],
    ) -> dict[str, Any]:
        """Profile a model by the backend's own method.

        Args:
            model: The model file.
            save_path: A folder for what is converted.
            converted: The converted model, if there is one: then that is profiled.
            shapes: Shapes of the inputs without the batch dimension.
            metrics: Which metrics; ``latency`` is among them.

        Returns:
            A value per metric; the latency as ``"avg +- std"`` in ms.
        """
        shapes = [list(shape) for shape in shapes]
        if converted is None:
            results = self.backend.profile_model_file(model, save_path, shapes, list(metrics))
        else:
            results = self.backend.profile(converted, list(metrics), shapes)
        if results is None or any(metric not in results for metric in metrics):
            raise BackendError(
                f"{type(self.backend).__name__} was asked for {', '.join(metrics)} and answered "
                f"{results!r}"
            )
        found = {metric: results[metric] for metric in metrics}
        found["latency"] = str(measured_latency(found["latency"]))
        return found


def unknown_environment(name: str, configs: Mapping[str, Any]) -> Environment:
    """The environment of a backend that does not describe itself: its name and its keys."""
    return Environment(
        runtime=name,
        version="unknown",
        device="unknown",
        dtype="unknown",
        # how often it is asked changes nothing of what it answers
        options={key: value for key, value in configs.items() if key != "ROUNDS"},
    )
