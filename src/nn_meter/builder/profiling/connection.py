"""A backend as profiling sees it: its environment, what it can do, and processes that hold it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

from nn_meter.builder.backends.base import BaseBackend, Environment, HoldsFiles
from nn_meter.builder.backends.spec import BackendSpec, spec_of
from nn_meter.builder.config import BackendSettings, validate
from nn_meter.builder.profiling.device_log import DeviceLog
from nn_meter.builder.profiling.jobs import HANDLER, BackendJobs, unknown_environment
from nn_meter.builder.profiling.measure import Caller
from nn_meter.builder.profiling.process import Worker
from nn_meter.builder.profiling.worker import encode_error
from nn_meter.errors import BackendError, NNMeterError

__all__ = ["Connection", "greet", "settings_of", "warn_if_never_tried"]

log = logging.getLogger(__name__)

_CONNECT_LIMIT_S = 120.0
_BATCH = 50


class _Here:
    """Carries out a backend's operations in this process, with no limit in time.

    For a backend object that a user made without connecting: there is no telling how to make it
    again in another process.
    """

    def __init__(self, backend: BaseBackend) -> None:
        self._jobs = BackendJobs(backend)

    def call(self, op: str, timeout_s: float | None = None, **arguments: Any) -> Any:
        try:
            return getattr(self._jobs, op)(**arguments)
        except NNMeterError:
            raise
        except Exception as exc:
            raise BackendError(encode_error(exc)["message"]) from exc


class Connection:
    """What profiling knows of a backend, and the process that measures.

    Args:
        backend: Connected by ``connect_backend``: its runtime then runs in processes of its own; or
            made by the user: it runs here.
        options: What else belongs to the environment of what is measured.

    Raises:
        ConfigError: RUNS or WARMUPS of a backend made by the user cannot be.
        BackendError: The backend cannot be reached.
    """

    in_turn: bool = False
    """Whether the device times all models of a round by one call."""

    device_log = DeviceLog(None, "")
    """Told how such a device is; writes nothing until it is replaced."""

    def __init__(self, backend: BaseBackend, options: Mapping[str, Any] | None = None) -> None:
        self._backend = backend
        self.spec: BackendSpec | None = spec_of(backend)
        self.name = self.spec.name if self.spec else type(backend).__name__
        self.settings = settings_of(
            self.spec.configs if self.spec else getattr(backend, "configs", {}), self.name
        )
        self._run = backend.begin_run() if isinstance(backend, HoldsFiles) else ""
        self.measuring: Caller = _caller(backend, self._run)
        try:
            facts = self.measuring.call("describe", _CONNECT_LIMIT_S)
        except BaseException:
            self.__exit__()
            raise
        environment = (
            Environment(**facts["environment"])
            if facts["environment"]
            else unknown_environment(self.name, backend.configs)
        )
        warn_if_never_tried(backend, environment)
        self.environment = replace(environment, options={**environment.options, **(options or {})})
        self.sessions: bool = facts["sessions"]
        self.in_turn: bool = facts["in_turn"]
        self.averages: bool = facts["averages"]
        self.device_log = DeviceLog(None, self.name)
        self.gated: bool = facts["gated"]
        self.shows_graph: bool = facts["graph"] or facts["graphs"]
        self.shows_graphs: bool = facts["graphs"]
        self.converts_many: bool = facts["converts_many"]
        self.own_file_method: bool = facts["own_file_method"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if isinstance(self.measuring, Worker):
            self.measuring.stop()
        if self._run and isinstance(self._backend, HoldsFiles):
            self._backend.end_run()

    @property
    def isolated(self) -> bool:
        """Whether the backend runs in processes of its own, as many as are wanted."""
        return self.spec is not None

    @property
    def cores(self) -> int:
        """How many models may be timed at a time: one on other devices than this processor."""
        if not (self.isolated and self.gated):
            return 1
        return max(1, (os.cpu_count() or 1) // max(1, self.environment.threads))

    def workers(self, tasks: int, *, few: int) -> dict[str, Any]:
        """How ``spread`` gets its processes: as many as there are cores, or this one for a few.

        Args:
            tasks: How many there are.
            few: For so many, starting another process costs more than it saves.
        """
        if tasks <= few or not self.isolated:
            return {"opened": self._measuring_process, "most": 1}
        return {"opened": self.another, "most": None}

    def batch(self, models: int) -> int:
        """How many models are converted at once, at the most, if many can be.

        Args:
            models: How many there are.
        """
        return _BATCH

    @contextmanager
    def _measuring_process(self) -> Iterator[Caller]:
        """The one that measures, which ends if the work with it is broken off."""
        try:
            yield self.measuring
        except BaseException:
            if isinstance(self.measuring, Worker):
                self.measuring.stop()
            raise

    @contextmanager
    def another(self) -> Iterator[Caller]:
        """A further process with the same backend."""
        worker = _caller(self._backend, self._run)
        assert isinstance(worker, Worker)
        with worker:
            yield worker


def settings_of(configs: Mapping[str, Any], source: str) -> BackendSettings:
    """The keys that measuring reads itself; a backend made by hand brings them unchecked."""
    ours = {key: configs[key] for key in ("RUNS", "WARMUPS", "ROUNDS") if key in configs}
    return validate(BackendSettings, ours, source)


def warn_if_never_tried(backend: BaseBackend, environment: Environment) -> None:
    """Say that nobody has tried a backend with this version of its runtime.

    A class derived from one of ours may describe another runtime: of that it says nothing.
    """
    ours = [known for known in backend.tried if known.startswith(f"{environment.runtime} ")]
    found = f"{environment.runtime} {environment.version}"
    if ours and not any(re.match(rf"{re.escape(known)}(?![0-9a-z])", found) for known in ours):
        log.warning(
            "nn-Meter was never tried with %s, only with %s: check by hand what it finds",
            found,
            ", ".join(ours),
        )


def greet(backend: BaseBackend) -> str:
    """Check that a backend's runtime and device are there, in a process of its own.

    Returns:
        Its greeting.

    Raises:
        BackendError: What is missing, and how to get it.
    """
    run = backend.begin_run() if isinstance(backend, HoldsFiles) else ""
    try:
        caller = _caller(backend, run)
        try:
            return str(caller.call("test_connection", _CONNECT_LIMIT_S))
        finally:
            if isinstance(caller, Worker):
                caller.stop()
    finally:
        if run and isinstance(backend, HoldsFiles):
            backend.end_run()


def _caller(backend: BaseBackend, run: str = "") -> Caller:
    spec = spec_of(backend)
    if spec is None:
        return _Here(backend)
    return Worker(
        HANDLER,
        python=spec.configs.get("PYTHON") or None,
        setup=("connect", {"spec": spec.to_json(), "run": run}),
        what=spec.name,
    )
