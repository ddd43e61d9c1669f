"""Loaded models timed in turn, each often enough.

This module runs in worker processes of other virtual environments too: it needs numpy.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nn_meter.builder.backends.base import Samples, Session, TimesInTurn, Turn
from nn_meter.builder.profiling.gate import SpeedGate
from nn_meter.builder.profiling.worker import encode_error
from nn_meter.errors import BackendError, NNMeterError

__all__ = ["Race", "TurnRace", "checked_samples", "turn_answer"]

_CALL_S = 20.0  # that a call to a device takes, about
_MOST_CALL_S = 400.0  # that it may take, should each visit reach its limit; one round may always


def checked_samples(found: Any, runs: int) -> Samples:
    """The samples that a session gave, if they are what was asked for.

    Args:
        found: What it gave.
        runs: How many it was to run.

    Raises:
        BackendError: They are more or fewer, or not all greater than 0.
    """
    try:
        samples = np.asarray(found, dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        samples = np.empty(0, dtype=np.int64)
    if samples.shape != (runs,) or (samples <= 0).any():
        raise BackendError(f"{runs} samples were asked for, but the backend gave {found!r:.200}")
    return samples


class Race:
    """Rounds of random order, in each of which every model gets one visit.

    A visit is one run that does not count, and some that do. With a gate a run counts only if the
    processor was at full speed before and behind it; when the gate finds that full speed is another
    one than it thought, all visits until then are forgotten. A model that cannot be run is left out
    from then on, and the others go on.

    Args:
        sessions: The models.
        runs: Runs of a visit.
        seed: Of the order.
        gate: None: all runs count.

    Attributes:
        visits: For each model, for each of its visits, the ns of the runs that count.
        failed: Models that cannot be run, and the error as plain values.
        made: How many runs there were.
    """

    def __init__(
        self, sessions: Mapping[str, Session], *, runs: int, seed: int, gate: SpeedGate | None
    ) -> None:
        self._sessions, self._runs, self._gate = dict(sessions), runs, gate
        self._rng = random.Random(seed)
        self.visits: dict[str, list[list[int]]] = {key: [] for key in sessions}
        self.failed: dict[str, dict[str, str]] = {}
        self.made = 0

    def run(self, *, visits: int, least_s: float, most_s: float) -> None:
        """Go on until each model has enough visits.

        Args:
            visits: So many, with one counted run or more each.
            least_s: Seconds that it takes at the least.
            most_s: Seconds after which it ends, with what there is by then.
        """
        start_s = time.monotonic()
        while (
            self.visits
            and (took_s := time.monotonic() - start_s) < most_s
            and (took_s < least_s or min(map(len, self.visits.values())) < visits)
        ):
            self._round(start_s + most_s)

    def _round(self, end_s: float) -> None:
        order = list(self.visits)
        self._rng.shuffle(order)
        for key in order:
            if time.monotonic() >= end_s:
                return
            speed = self._gate.calibrations if self._gate is not None else 0
            try:
                taken = self._visit(self._sessions[key])
            except Exception as exc:  # noqa: BLE001 - whatever a runtime raises is about its model
                self.failed[key] = encode_error(exc)
                del self.visits[key]
                continue
            self.made += self._runs
            if taken:
                self.visits[key].append(taken)
            if self._gate is not None:
                self._gate.notice(self._runs, len(taken))
                if self._gate.calibrations != speed:  # all that was at another speed
                    self.visits = {key: [] for key in self.visits}

    def _visit(self, session: Session) -> list[int]:
        session.time(1)
        if self._gate is None:
            return [int(ns) for ns in checked_samples(session.time(self._runs), self._runs)]
        found = []
        was_fast = self._gate.fast()
        for _ in range(self._runs):
            given = session.time(1)
            is_fast = self._gate.fast()
            (ns,) = checked_samples(given, 1)
            if was_fast and is_fast:
                found.append(int(ns))
            was_fast = is_fast
        return found


def turn_answer(keys: Sequence[str], turn: Turn) -> dict[str, Any]:
    """What a call to a device gave, as plain values.

    Args:
        keys: The models in the order of their visits.
        turn: What it gave.

    Returns:
        ``samples``: for each model the ns of its visits; ``failed``: models that cannot be run, and
        the error as plain values; ``conditions``.

    Raises:
        BackendError: It gave more or fewer visits than were asked for.
    """
    if len(turn.visits) != len(keys):
        raise BackendError(
            f"{len(keys)} visits were asked for, but the backend gave {len(turn.visits)}"
        )
    samples: dict[str, list[int]] = {key: [] for key in keys}
    failed: dict[str, dict[str, str]] = {}
    for key, visit in zip(keys, turn.visits, strict=True):
        try:
            if isinstance(visit, NNMeterError):
                raise visit
            samples[key] += [int(ns) for ns in checked_samples(visit, len(visit))]
        except NNMeterError as exc:
            failed[key] = encode_error(exc)
    for key in failed:
        del samples[key]
    return {"samples": samples, "failed": failed, "conditions": dict(turn.conditions)}


class TurnRace:
    """Rounds of random order on a device that times models in turn, some rounds in each call.

    A visit there gives one sample, the average that the device's own tool prints. A model that
    cannot be run is left out from then on, and the others go on.

    Args:
        backend: Whose device it is.
        sessions: The models.
        seed: Of the order.
        limit_s: Seconds that a visit may take.
    """

    def __init__(
        self, backend: TimesInTurn, sessions: Mapping[str, Session], *, seed: int, limit_s: float
    ) -> None:
        self._backend, self._sessions, self._limit_s = backend, dict(sessions), limit_s
        self._rng = random.Random(seed)
        self._visits: dict[str, list[list[int]]] = {key: [] for key in sessions}
        self._failed: dict[str, dict[str, str]] = {}
        self._conditions: list[dict[str, Any]] = []

    def run(self, *, visits: int, most_s: float) -> None:
        """Go on until each model has enough visits.

        Args:
            visits: So many.
            most_s: Seconds after which no other call begins.
        """
        start_s = time.monotonic()
        rounds, done = 1, 0
        while self._visits and done < visits and (took_s := time.monotonic() - start_s) < most_s:
            if done:
                in_time = int(min(_CALL_S, most_s - took_s) * done / took_s)
                bounded = int(_MOST_CALL_S / (len(self._visits) * self._limit_s))
                rounds = max(1, min(in_time, bounded, visits - done))
            self._call(rounds)
            done += rounds

    def _call(self, rounds: int) -> None:
        order: list[str] = []
        for _ in range(rounds):
            keys = list(self._visits)
            self._rng.shuffle(keys)
            order += keys
        turn = self._backend.time_in_turn([self._sessions[key] for key in order], self._limit_s)
        answer = turn_answer(order, turn)
        self._conditions.append(answer["conditions"])
        for key, found in answer["samples"].items():
            self._visits[key] += [[ns] for ns in found]
        for key, error in answer["failed"].items():
            self._failed[key] = error
            del self._visits[key]

    def answer(self) -> dict[str, Any]:
        """What came of it, as ``BackendJobs.race`` gives it."""
        made = sum(map(len, self._visits.values()))
        return {
            "visits": self._visits,
            "failed": self._failed,
            "level_ns": 0.0,
            "runs": made,
            "counted": made,
            "conditions": self._conditions,
        }
