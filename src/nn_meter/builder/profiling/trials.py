"""Trials: models loaded afresh and timed in turn, some at a time on every core.

A trial is one load of the models of one question. What comes of it goes to the store, as one round,
and to whoever asked. Trials of one group come one after the other in one process and share the
models that they have in common, each loaded once for the group.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Self, TypeVar

import numpy as np

from nn_meter.builder.backends.base import Samples
from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.measure import (
    DEVICE,
    PATIENCE_S,
    Caller,
    Model,
    failure_of,
)
from nn_meter.builder.profiling.process import Worker, decode_error
from nn_meter.builder.profiling.store import Failure, Store, StoredTrial
from nn_meter.errors import NNMeterError, TimeLimitError, WorkerCrashedError

__all__ = ["Loaded", "Trial", "TrialRunner"]


T = TypeVar("T")

_TURN_VISITS = 4
"""Where each visit is a load of its own, and an average of many runs: a time is made of three at
the least."""
_TURN_MOST_S = 600.0
"""There a round takes seconds, of a GPU more, as the tool is started for each model; and with fewer
rounds than three a trial says nothing."""
_TURN_LIMIT_S = 30.0
"""For a visit there. The models are small; a device that answers no more is noticed so."""
_TURN_CALL_S = 600.0
"""For the call to the device that is under way when the time is up."""

_AND_ALL_IT_HAD_LOADED = (WorkerCrashedError, TimeLimitError)
"""Errors that a process ends with."""


class _GivenUpError(Exception):
    """Nobody waits for the trial any more. Never leaves this module."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What to load and to time in turn.

    Attributes:
        name: What its samples are stored under.
        models: The models by the part that they play; all of them converted.
        digests: What tells the samples of each from those of another model of that part.
        notes: What is stored with it, as JSON.
    """

    name: str
    models: Mapping[str, Model]
    digests: Mapping[str, str]
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What came of a trial.

    Attributes:
        visits: For each part the visits, each with the ns of the runs that count.
        level_ns: What the speed gate's work took at full speed; 0: there was no gate.
        failures: Parts whose model cannot be loaded or run, and why.
        lost: Parts that were timed when all that was loaded went down, which one of them, or
            something else, brought about: it is for whoever asked to say whether they failed.
        runs: How many runs there were.
        counted: How many of them count.
        conditions: How the device was, where it tells.
        runtime_s: Seconds of the runs that count.
    """

    visits: Mapping[str, list[Samples]] = field(default_factory=dict)
    level_ns: int = 0
    failures: Mapping[str, Failure] = field(default_factory=dict)
    lost: Mapping[str, Failure] = field(default_factory=dict)
    runs: int = 0
    counted: int = 0
    conditions: Sequence[Mapping[str, Any]] = ()

    @property
    def runtime_s(self) -> float:
        return sum(float(visit.sum()) for visits in self.visits.values() for visit in visits) * 1e-9


class TrialRunner:
    """Carries trials out, in a process for each core, which stay until it is closed.

    Args:
        connection: The backend; it has to open sessions.
        store: Where the samples go.
        campaign: Number of the campaign that they belong to.
        visits: Visits that each model gets in a trial, at the least.
        runs: Counted runs of a visit.
        share: What timing the models of a trial takes at the least, of what loading them took.
        most_s: Seconds that timing the models of one trial may take: a core that is never at full
            speed gives what it gave by then.
        time_limit_s: For loading one model.

    On a device that times models in turn a trial takes fewer visits and more time.
    """

    def __init__(
        self,
        connection: Connection,
        store: Store,
        campaign: int,
        *,
        visits: int,
        runs: int,
        share: float,
        most_s: float,
        time_limit_s: float,
    ) -> None:
        self._connection, self._store, self._campaign = connection, store, campaign
        self._visits, self._runs, self._share = visits, runs, share
        self._most_s, self._time_limit_s = most_s, time_limit_s
        self._visit_limit_s, self._race_limit_s = time_limit_s, self._most_s + time_limit_s
        if connection.in_turn or connection.averages:
            self._visits = min(visits, _TURN_VISITS)
            self._most_s = max(most_s, _TURN_MOST_S)
            self._visit_limit_s = min(time_limit_s, _TURN_LIMIT_S)
            self._time_limit_s += PATIENCE_S
            self._race_limit_s = self._most_s + self._time_limit_s + _TURN_CALL_S
        self._idle: SimpleQueue[Caller] = SimpleQueue()
        self._given_up = threading.Event()
        self._rng = random.Random()
        self._homes: dict[str, int] = {}

    def __enter__(self) -> Self:
        count = self._connection.cores
        with ExitStack() as stack:
            others = [stack.enter_context(self._connection.another()) for _ in range(count - 1)]
            self._callers: list[Caller] = [self._connection.measuring, *others]
            # opened last, so closed first: no process ends before the thread that uses it
            self._pool = stack.enter_context(ThreadPoolExecutor(count))
            self._stack = stack.pop_all()
        for caller in self._callers:
            self._idle.put(caller)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def run(
        self,
        groups: Sequence[Sequence[Trial]],
        *,
        take: Callable[[Trial, Loaded], None],
        goes_on: Callable[[], bool],
    ) -> None:
        """Carry groups of trials out.

        Args:
            groups: Trials that share models.
            take: Told what came of each trial, once that is stored.
            goes_on: Asked before each trial, from threads, too: whether to begin it.

        Whatever ends it early, Ctrl-C or an error: trials that are finished are stored, those under
        way are not, and the runner cannot be used again.
        """
        waiting = list(reversed(groups))
        running: dict[Future[None], SimpleQueue[tuple[Trial, Loaded]]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._connection.cores and goes_on():
                    found: SimpleQueue[tuple[Trial, Loaded]] = SimpleQueue()
                    seed = self._rng.getrandbits(32)
                    caller = self._idle.get()
                    group = self._next(waiting, caller)
                    task = self._pool.submit(self._group, caller, group, found, seed, goes_on)
                    running[task] = found
                if not running:
                    return
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future, found in list(running.items()):
                    for trial, loaded in _all_of(found):
                        self._keep(trial, loaded)
                        take(trial, loaded)
                    if future in done and found.empty():
                        del running[future]
                        future.result()
        except BaseException:
            self._give_up(running)
            for found in running.values():
                for trial, loaded in _all_of(found):
                    self._keep(trial, loaded)
            raise

    def _next(self, waiting: list[Sequence[Trial]], caller: Caller) -> Sequence[Trial]:
        """Take the next group that this process had before, else one that none had, else any.

        A runtime may be quicker to load what it has loaded before.
        """
        place = self._callers.index(caller)
        homes = [self._homes.get(group[0].name) for group in waiting]
        for wanted in (place, None):
            if wanted in homes:
                position = len(homes) - 1 - homes[::-1].index(wanted)
                group = waiting.pop(position)
                break
        else:
            group = waiting.pop()
        for trial in group:
            self._homes.setdefault(trial.name, place)
        return group

    def _give_up(self, running: Collection[Future[None]]) -> None:
        """End the trials under way, and the processes, which start anew when they are needed."""
        self._given_up.set()
        left: Collection[Future[None]] = running
        while left:
            for caller in self._callers:
                if isinstance(caller, Worker):
                    caller.stop()
            left = wait(left, timeout=0.1).not_done

    def _keep(self, trial: Trial, loaded: Loaded) -> None:
        visits = [
            (part, trial.digests[part], visit)
            for part, visits in loaded.visits.items()
            for visit in visits
        ]
        if visits:
            self._store.add_trial(
                self._campaign,
                trial.name,
                StoredTrial(visits=visits, level_ns=loaded.level_ns, notes=trial.notes),
            )
        for conditions in loaded.conditions:
            self._connection.device_log.add(trial.name, conditions)
        for part, failure in loaded.failures.items():
            self._store.add_failure(self._campaign, trial.name, part, trial.digests[part], failure)

    # --- in a thread of its own ------------------------------------------------------------------

    def _group(
        self,
        caller: Caller,
        trials: Sequence[Trial],
        found: SimpleQueue[tuple[Trial, Loaded]],
        seed: int,
        goes_on: Callable[[], bool],
    ) -> None:
        opened: set[str] = set()
        try:
            for number, trial in enumerate(trials):
                if number and not goes_on():
                    return
                later = {m.hash for t in trials[number + 1 :] for m in t.models.values()}
                found.put((trial, self._trial(caller, trial, opened, seed + number)))
                self._drop(caller, opened, opened - later)
        except _GivenUpError:
            return
        finally:
            self._drop(caller, opened, opened)
            self._idle.put(caller)

    def _trial(self, caller: Caller, trial: Trial, opened: set[str], seed: int) -> Loaded:
        failures: dict[str, Failure] = {}
        start_s = time.monotonic()
        for part, model in trial.models.items():
            if model.hash in opened:
                continue
            try:
                self._call(
                    caller,
                    "open",
                    self._time_limit_s,
                    key=model.hash,
                    converted=model.converted,
                    shapes=[list(shape) for shape in model.shapes],
                    check=False,
                )
                opened.add(model.hash)
            except NNMeterError as exc:
                failure = failure_of(exc)
                if failure.kind == DEVICE:
                    return Loaded(lost=dict.fromkeys(trial.models, failure))
                failures[part] = failure
                if isinstance(exc, _AND_ALL_IT_HAD_LOADED):
                    self._drop(caller, opened, opened)
                    return Loaded(failures=failures)
        ready = {part: model.hash for part, model in trial.models.items() if part not in failures}
        if not ready:
            return Loaded(failures=failures)
        try:
            answer = self._call(
                caller,
                "race",
                self._race_limit_s,
                keys=list(dict.fromkeys(ready.values())),
                visits=self._visits,
                least_s=self._share * (time.monotonic() - start_s),
                runs=self._runs,
                seed=seed,
                most_s=self._most_s,
                gated=self._connection.gated,
                limit_s=self._visit_limit_s,
            )
        except NNMeterError as exc:  # nobody knows which of them it was
            if isinstance(exc, _AND_ALL_IT_HAD_LOADED):
                self._drop(caller, opened, opened)
            return Loaded(failures=failures, lost=dict.fromkeys(ready, failure_of(exc)))
        for part, digest in list(ready.items()):
            if digest in answer["failed"]:
                failures[part] = failure_of(decode_error(answer["failed"][digest]))
                del ready[part]
        return Loaded(
            visits={
                part: [np.asarray(visit, dtype=np.int64) for visit in answer["visits"][digest]]
                for part, digest in ready.items()
            },
            level_ns=round(answer["level_ns"]),
            failures=failures,
            runs=int(answer["runs"]),
            counted=int(answer["counted"]),
            conditions=answer.get("conditions", ()),
        )

    def _call(self, caller: Caller, op: str, timeout_s: float, **arguments: Any) -> Any:
        if self._given_up.is_set():  # asking would start the process anew
            raise _GivenUpError
        try:
            return caller.call(op, timeout_s, **arguments)
        except NNMeterError:
            if self._given_up.is_set():  # no failure of a model: the process was ended
                raise _GivenUpError from None
            raise

    def _drop(self, caller: Caller, opened: set[str], gone: set[str]) -> None:
        keys = sorted(gone)
        opened.difference_update(keys)
        if keys and getattr(caller, "running", True):
            # a process that cannot even do that has gone, and with it all that it had loaded
            with suppress(NNMeterError):
                caller.call("drop", self._time_limit_s, keys=keys)


def _all_of(found: SimpleQueue[T]) -> Iterator[T]:
    """What is in a queue by now."""
    with suppress(Empty):
        while True:
            yield found.get_nowait()
