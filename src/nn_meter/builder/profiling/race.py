"""Loaded models timed in turn, each often enough.

This module runs in worker processes of other virtual environments too: it needs numpy.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from nn_meter.builder.backends.base import Samples, Session
from nn_meter.builder.profiling.gate import SpeedGate
from nn_meter.builder.profiling.worker import encode_error
from nn_meter.errors import BackendError

__all__ = ["Race", "checked_samples"]


def checked_samples(found: Any, runs: int) -> Samples:
    """The samples that a session gave, if they are what was asked for.

    Args:
        found: What it gave.
        runs: How many it was to run.

    Raises:
        BackendError: They are more or fewer, or not all greater than 0.
    """
    samples = np.asarray(found, dtype=np.int64)
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
