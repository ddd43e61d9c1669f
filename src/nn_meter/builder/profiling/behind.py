"""Loaded models timed each right behind another one: with caches as that one leaves them.

This module runs in worker processes of other virtual environments too: it needs numpy.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping

from nn_meter.builder.backends.base import Session
from nn_meter.builder.profiling.gate import SpeedGate
from nn_meter.builder.profiling.race import checked_samples
from nn_meter.builder.profiling.worker import encode_error

__all__ = ["Behind"]


class Behind:
    """Rounds of random order, in each of which every model runs once behind a run of a large one.

    With a gate a run counts only if the processor was at full speed before and behind it; when full
    speed turns out to be another one, all runs until then are forgotten.

    Args:
        ahead: The large model.
        sessions: The models.
        seed: Of the order.
        gate: None: all runs count.

    Attributes:
        ahead: The ns of the large model's runs that count.
        runs: For each model the ns of the runs that count.
        failed: Models that cannot be run, and the error as plain values.
    """

    def __init__(
        self,
        ahead: Session,
        sessions: Mapping[str, Session],
        *,
        seed: int,
        gate: SpeedGate | None,
    ) -> None:
        self._large, self._sessions, self._gate = ahead, dict(sessions), gate
        self._rng = random.Random(seed)
        self._was_fast = True
        self.failed: dict[str, dict[str, str]] = {}
        self._forget()

    def run(self, *, visits: int, most_s: float) -> None:
        """Go on until each model has enough runs that count.

        Args:
            visits: So many.
            most_s: Seconds after which it ends, with what there is by then.
        """
        end_s = time.monotonic() + most_s
        while self.runs and min(map(len, self.runs.values())) < visits:
            order = list(self._sessions)
            self._rng.shuffle(order)
            for key in order:
                if time.monotonic() >= end_s:
                    return
                self._visit(key)

    def _visit(self, key: str) -> None:
        speed = self._gate.calibrations if self._gate is not None else 0
        self._was_fast = self._gate is None or self._gate.fast()
        counted = self._take(self._large, self.ahead)
        try:
            counted += self._take(self._sessions[key], self.runs[key])
        except Exception as exc:  # noqa: BLE001 - whatever a runtime raises is about its model
            self.failed[key] = encode_error(exc)
            del self._sessions[key], self.runs[key]
            return
        if self._gate is not None:
            self._gate.notice(2, counted)
            if self._gate.calibrations != speed:
                self._forget()

    def _take(self, session: Session, found: list[int]) -> int:
        """Run a model once; 1: it counted."""
        (ns,) = checked_samples(session.time(1), 1)
        is_fast = self._gate is None or self._gate.fast()
        counts = self._was_fast and is_fast
        if counts:
            found.append(int(ns))
        self._was_fast = is_fast
        return int(counts)

    def _forget(self) -> None:
        self.ahead: list[int] = []
        self.runs: dict[str, list[int]] = {key: [] for key in self._sessions}
