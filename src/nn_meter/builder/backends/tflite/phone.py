"""A phone that runs TFLite models by ``benchmark_model``, through adb.

Nothing of it stays loaded: each visit to a model is a start of the tool, which loads the model,
warms it up, runs it and prints an average. That average is one sample. One call of adb makes many
visits in turn.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nn_meter.builder.backends.base import Array, Environment, Samples, Shapes, Turn
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.tflite import phone_output
from nn_meter.builder.backends.tflite.adb import Adb, DeviceTimeoutError
from nn_meter.builder.backends.tflite.phone_device import (
    cannot_run,
    check_place,
    check_tool,
    environment_of,
)
from nn_meter.builder.backends.tflite.phone_files import RunFolder, new_run_name
from nn_meter.builder.backends.tflite.phone_script import SCRIPT, Visited, read_turn, turn_command
from nn_meter.errors import BackendError, ConfigError, DeviceError, NNMeterError

__all__ = ["VISITS", "WAIT_S", "Phone", "PhoneSession"]

log = logging.getLogger(__name__)

T = TypeVar("T")

VISITS = 5
"""Visits to a model that is profiled alone."""

WAIT_S = 60.0
"""Seconds that a phone which has left is waited for."""

_FIRST_S = 60.0  # for the tool's first start, which reads it from the phone's storage
_LIMIT_S = 300.0
_TRIES = 3  # of a call, when the phone leaves while it lasts
_MOST_VISITS = 200  # in a call: their names go in one line to the phone's shell
_BASE_BYTES, _VISIT_BYTES = 1 << 20, 1 << 18
_WARMUP_S = 0.1
"""Warm-ups last so long at the least: a core that was idle takes that long to reach its speed. The
tool itself has half a second."""
_RUN_S = 0.02
"""And so do measured runs. The tool counts whole µs between two looks at a clock, which fall
anywhere in one: an average of many runs tells less than a µs, one of few may be 0.
"""


class PhoneSession:
    """A model on the phone.

    Args:
        phone: Where it lies.
        model: The same file here.
        name: Its name there.
        shapes: Of its inputs.
    """

    def __init__(self, phone: Phone, model: Path, name: str, shapes: Shapes) -> None:
        self._phone, self._shapes = phone, shapes
        self.model, self.name = model, name

    def time(self, n: int) -> Samples:
        """Visit the model ``n`` times; each gives one sample, the average of its runs."""
        found = self._phone.time_in_turn([self] * n, _LIMIT_S).visits
        samples = []
        for visit in found:
            if isinstance(visit, NNMeterError):
                raise visit
            samples.append(visit)
        return np.concatenate([np.empty(0, dtype=np.int64), *samples])

    def outputs(self, feeds: Sequence[Array]) -> list[Array]:
        """What LiteRT on this computer computes by the same file: the phone's tool tells nothing.

        Raises:
            NotInstalledError: LiteRT is not installed here.
        """
        return self._phone.compute_here(str(self.model), self._shapes, feeds)

    def close(self) -> None:
        self._phone.closed(self)


class Phone:
    """A phone, as the keys of ``backend_config.yaml`` name it.

    Args:
        configs: Its keys.
        gpu: Whether models run on its GPU.
        compute_here: Runs a model file on this computer: path, shapes, inputs.

    Raises:
        ConfigError: A key that it takes is missing.
    """

    def __init__(
        self,
        configs: Mapping[str, Any],
        *,
        gpu: bool,
        compute_here: Callable[[str, Shapes, Sequence[Array]], list[Array]],
    ) -> None:
        self._folder_there = _required(configs, "REMOTE_MODEL_DIR", "folder there for models")
        self._tool = _required(configs, "BENCHMARK_MODEL_PATH", "benchmark_model lies there")
        self._kernels = configs.get("KERNEL_PATH") or ""
        self._mask = str(configs.get("TASKSET") or "").lower().removeprefix("0x")
        self._threads = int(configs.get("THREADS", 1))
        self._runs = int(configs.get("RUNS", 50))
        self._warmups = int(configs.get("WARMUPS", 10))
        self._gpu = gpu
        self.compute_here = compute_here
        self._adb = Adb(configs.get("DEVICE_SERIAL") or None, wait_s=WAIT_S)
        self._run: str | None = None
        self._folder: RunFolder | None = None
        self._open: set[PhoneSession] = set()
        self._is_lost = False
        self._notes: list[str] = []

    def check(self) -> None:
        """Check that the phone is there, with a folder to write to and a tool that it can run.

        Raises:
            BackendError: What is missing, and how to bring it there.
        """
        check_place(self._adb, self._tool, self._folder_there)
        check_tool(self._adb, self._tool)

    def describe(self) -> Environment:
        """The environment of what it measures: of the phone, nothing of this computer.

        Raises:
            BackendError: As ``check``.
        """
        check_place(self._adb, self._tool, self._folder_there)
        return environment_of(
            self._adb, self._tool, gpu=self._gpu, threads=self._threads, mask=self._mask
        )

    # --- its files -------------------------------------------------------------------------------

    def begin_run(self) -> str:
        """Begin a run; what it puts on the phone stays until ``end_run``."""
        self._adb.start()  # by this process: a server that a worker starts ends with it
        run = new_run_name()
        self.join_run(run)
        return run

    def join_run(self, run: str) -> None:
        """Take part in a run that another process may have begun."""
        self._run, self._folder = run, RunFolder(self._adb, self._folder_there, run)

    def end_run(self) -> None:
        """Remove what the run has put on the phone."""
        folder, self._folder, self._run = self._folder, None, None
        if folder is None:
            return
        try:
            folder.remove()
        except BackendError as exc:
            log.warning(
                "%s may still be on the phone, until another run removes it: %s", folder.path, exc
            )

    def open(self, model: Path, shapes: Shapes) -> PhoneSession:
        """Put a model on the phone.

        Raises:
            BackendError: It cannot be put there.
            DeviceError: The phone is not there, also after a while.
        """
        try:
            name = self._patiently(lambda: self._place.put(model))
        except BaseException:
            if self._run is None and not self._open:
                self.end_run()
            raise
        session = PhoneSession(self, model, name, shapes)
        self._open.add(session)
        return session

    def closed(self, session: PhoneSession) -> None:
        """Be told that a session is not used again."""
        self._open.discard(session)
        if self._run is None and not self._open:
            self.end_run()  # of no run: nobody else would

    @property
    def _place(self) -> RunFolder:
        """The folder of the run; of no run, one that lasts until all sessions are closed."""
        if self._folder is None:
            self._folder = RunFolder(self._adb, self._folder_there, new_run_name())
        return self._folder

    # --- timing ----------------------------------------------------------------------------------

    def time_in_turn(self, sessions: Sequence[PhoneSession], limit_s: float) -> Turn:
        """See ``TimesInTurn``."""
        visits: list[Samples | NNMeterError] = []
        conditions: dict[str, Any] = {}
        for start in range(0, len(sessions), _MOST_VISITS):
            some = sessions[start : start + _MOST_VISITS]
            printed, now = self._visits(some, self._arguments(), limit_s)
            visits += [
                each if isinstance(each, NNMeterError) else self._sample(each) for each in printed
            ]
            conditions = {**now, "before": conditions.get("before", now.get("before"))}
        notes, self._notes = self._notes, []
        return Turn(visits=visits, conditions={**conditions, "notes": notes})

    def executed_graph(self, model: Path) -> ExecutedGraph:
        """Run a model once with the tool's op profiler and read what ran.

        Raises:
            GraphUnavailableError: The tool does not tell.
            BackendError: The model cannot be run.
        """
        session = self.open(model, ())
        try:
            arguments = [*self._arguments(once=True), "--enable_op_profiling=true"]
            (found,), _ = self._visits([session], arguments, _LIMIT_S)
        finally:
            session.close()
        if isinstance(found, NNMeterError):
            raise found
        return phone_output.graph(found.output, gpu=self._gpu)

    def _sample(self, visited: Visited) -> Samples | NNMeterError:
        try:
            average_us = phone_output.average_us(visited.output, gpu=self._gpu)
        except NNMeterError as exc:
            return exc
        return np.asarray([max(1, round(average_us * 1000))], dtype=np.int64)

    def _arguments(self, *, once: bool = False) -> list[str]:
        warmups, runs = (0, 1) if once else (self._warmups, self._runs)
        found = [
            f"--num_threads={self._threads}",
            f"--warmup_runs={warmups}",
            f"--warmup_min_secs={_WARMUP_S if warmups else 0:g}",
            f"--num_runs={runs}",
            f"--min_secs={0 if once else _RUN_S:g}",
        ]
        if self._gpu:
            found.append("--use_gpu=true")
            if self._kernels:
                found.append(f"--kernel_path={self._kernels}")
        return found

    def _visits(
        self, sessions: Sequence[PhoneSession], arguments: Sequence[str], limit_s: float
    ) -> tuple[list[Visited | NNMeterError], dict[str, Any]]:
        """Visit models in turn by one call, or each by its own, where the one cannot be read.

        Raises:
            DeviceError: The phone is not there, also after a while; or cannot run the tool.
        """
        failed: dict[str, NNMeterError] = {}
        found: list[Visited | NNMeterError] = []
        conditions: dict[str, Any] = {}
        try:
            return self._call(sessions, arguments, limit_s)
        except _UnclearError as exc:
            if len({session.name for session in sessions}) == 1:
                return [exc.reason] * len(sessions), {}
            log.info("%s; so each model is run by a call of its own", exc.reason)
        for session in sessions:
            if session.name in failed:
                found.append(failed[session.name])
                continue
            try:
                (visited,), now = self._call([session], arguments, limit_s)
                conditions = {**now, "before": conditions.get("before", now.get("before"))}
                found.append(visited)
            except _UnclearError as exc:
                failed[session.name] = exc.reason
                found.append(exc.reason)
        return found, conditions

    def _call(
        self, sessions: Sequence[PhoneSession], arguments: Sequence[str], limit_s: float
    ) -> tuple[list[Visited | NNMeterError], dict[str, Any]]:
        """Visit models in turn by one call.

        Raises:
            DeviceError: As ``_visits``.
            _UnclearError: What came of it cannot be put down to one of the models.
        """
        for again in (False, True):
            if again:  # models that were there are not: somebody has tidied up
                self._place.forget()
            found, conditions = self._patiently(lambda: self._ask(sessions, arguments, limit_s))
            if not any(isinstance(v, Visited) and v.end == "missing" for v in found):
                break
        return [
            phone_output.judged(visited, limit_s, self._cannot_run)
            if isinstance(visited, Visited)
            else visited
            for visited in found
        ], conditions

    def _ask(
        self, sessions: Sequence[PhoneSession], arguments: Sequence[str], limit_s: float
    ) -> tuple[list[Visited | NNMeterError], dict[str, Any]]:
        place = self._place
        for session in sessions:
            place.put(session.model, session.name)
        notes, mark = place.new_notes(), f"nn-meter-{secrets.token_hex(12)}"
        command = turn_command(
            place.put_script(SCRIPT),
            [session.name for session in sessions],
            notes=notes,
            mark=mark,
            tool=self._tool,
            arguments=arguments,
            limit_s=limit_s,
            mask=self._mask,
        )
        try:
            done = self._adb.shell(
                command,
                timeout_s=_FIRST_S + len(sessions) * (limit_s + 2),
                max_bytes=_BASE_BYTES + len(sessions) * _VISIT_BYTES,
            )
        except DeviceTimeoutError:  # no model's fault: the script itself ends those that hang
            place.end(notes)
            raise
        except DeviceError:
            raise
        except BackendError as exc:  # it printed without end
            place.end(notes)
            raise _UnclearError(exc) from exc
        printed = read_turn(done.stdout, mark)
        found: list[Visited | NNMeterError] = []
        for number in range(len(sessions)):
            visited = printed.visits.get(number)
            if visited is None or visited.end is None:
                words = phone_output.shown(done.stderr or done.stdout)
                raise _UnclearError(
                    BackendError(f"phone {self._adb.serial} answers what cannot be read: {words}")
                )
            found.append(visited)
        return found, {"before": printed.before, "after": printed.after}

    def _cannot_run(self, words: str) -> DeviceError:
        return cannot_run(self._adb, self._tool, words)

    def _patiently(self, call: Callable[[], T]) -> T:
        """Make a call to the phone; when it leaves meanwhile, wait for it and try again.

        Once it did not come back, the next calls do not wait for it.
        """
        for tried in range(1, _TRIES + 1):
            try:
                found = call()
            except DeviceTimeoutError:
                raise
            except DeviceError as exc:
                if self._is_lost or tried == _TRIES:
                    raise
                try:
                    self._adb.wait()
                except DeviceError:
                    self._is_lost = True
                    raise
                self._notes.append(f"{exc}; it was waited for, and came back")
                if self._folder is not None:
                    self._folder.forget()
            else:
                self._is_lost = False
                return found
        raise AssertionError("the last try returns or raises")


class _UnclearError(Exception):
    """A call came to nothing, and with several models nobody knows which did it."""

    def __init__(self, reason: BackendError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _required(configs: Mapping[str, Any], key: str, what: str) -> str:
    value = configs.get(key)
    if not isinstance(value, str) or not value.startswith("/"):
        raise ConfigError(
            f"backend_config.yaml: {key} must be an absolute path on the phone ({what}), as "
            f"TARGET is android, but found {'nothing' if not value else repr(value)}"
        )
    return value
