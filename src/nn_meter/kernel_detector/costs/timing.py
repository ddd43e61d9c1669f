"""Excerpts of a model loaded and timed, pass by pass.

In each pass every excerpt is loaded afresh, some at a time, beside the whole model. It is timed
again and again, with all that it touches in the caches; and behind runs of the whole model, with
what that leaves there. The order is random.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.process import decode_error
from nn_meter.errors import NNMeterError, TimeLimitError, WorkerCrashedError
from nn_meter.kernel_detector.costs.cutting import Excerpt
from nn_meter.progress import Progress

__all__ = ["Timed", "Times", "time_excerpts"]

log = logging.getLogger(__name__)

_WHOLE = "whole"
_LOW = 0.25  # the quantile of runs that stands for them: what disturbs a run makes it longer
_PASSES = range(3, 9)  # at the least, so that one that is off does not count, and at the most
_VISITS, _COLD_PASSES = 3, 2  # behind the whole model: of a pass, and passes that have them
_ROUNDS, _RUNS = 4, 3  # of a pass: rounds of models in turn, and runs each time
_AT_ONCE, _MOST_BYTES = 48, 400_000_000  # excerpts that are loaded together, and their weights


@dataclass
class Times:
    """What one excerpt took in each pass, ns.

    Attributes:
        warm: When it had just run.
        behind: When the whole model had.
    """

    warm: list[float] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)


@dataclass(kw_only=True)
class Timed:
    """What came of all excerpts.

    Attributes:
        whole: What the whole model took, each time that excerpts were loaded beside it.
        times: By the excerpt's key.
        failed: Excerpt -> why it cannot be timed.
        passes: How many there were.
        runs: How many runs of models in turn.
        counted: How many of them counted: the processor was at full speed.
    """

    whole: Times = field(default_factory=Times)
    times: dict[str, Times] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    passes: int = 0
    runs: int = 0
    counted: int = 0


def time_excerpts(
    connection: Connection,
    whole: Excerpt,
    cold: Sequence[Excerpt],
    warm: Sequence[Excerpt],
    folder: Path,
    *,
    budget_s: float,
    time_limit_s: float,
    progress: Progress,
) -> Timed:
    """Time excerpts of a model.

    Args:
        connection: The backend; it opens sessions.
        whole: The model.
        cold: Excerpts that are timed behind the whole model, too.
        warm: Others.
        folder: Where files are written; what is there after an error is the caller's to remove.
        budget_s: Seconds; no pass is begun that would take longer, but three are made.
        time_limit_s: For one operation on one model.
        progress: Told how far it is.

    Raises:
        NNMeterError: The whole model cannot be run.
    """
    return _Timing(connection, folder, budget_s, time_limit_s, progress).carry_out(
        whole, cold, warm
    )


class _Timing:
    """One call of ``time_excerpts``."""

    def __init__(
        self,
        connection: Connection,
        folder: Path,
        budget_s: float,
        time_limit_s: float,
        progress: Progress,
    ) -> None:
        self._connection, self._folder = connection, folder
        self._budget_s, self._time_limit_s = budget_s, time_limit_s
        self._progress = progress
        self._rng = random.Random()
        self._found = Timed()

    def carry_out(self, whole: Excerpt, cold: Sequence[Excerpt], warm: Sequence[Excerpt]) -> Timed:
        found = self._found
        cold_keys: Collection[str] = {excerpt.key for excerpt in cold}
        excerpts = {excerpt.key: excerpt for excerpt in (*cold, *warm)}
        found.times = {key: Times() for key in excerpts}
        start_s = time.monotonic()
        self._converted = {_WHOLE: self._convert(whole, "whole")}
        self._open(_WHOLE, whole)
        for number in range(_PASSES[-1]):
            begun_s = time.monotonic()
            if number == _COLD_PASSES:
                cold_keys = set()
            for some in self._groups(excerpts, number):
                self._group(whole, some, cold_keys)
            found.passes = number + 1
            now_s = time.monotonic()
            if number + 1 >= _PASSES[0] and 2 * now_s - begun_s - start_s > self._budget_s:
                break
        self._connection.measuring.call("drop", self._time_limit_s, keys=[_WHOLE])
        return found

    def _groups(self, excerpts: dict[str, Excerpt], number: int) -> Iterator[list[Excerpt]]:
        """Excerpts that are loaded together, others each time."""
        waiting = [e for key, e in excerpts.items() if key not in self._found.failed]
        self._rng.shuffle(waiting)
        total, done = len(waiting), 0
        while waiting:
            some, size = [waiting.pop()], 0
            size = some[0].weights
            while waiting and len(some) < _AT_ONCE and size + waiting[-1].weights < _MOST_BYTES:
                size += waiting[-1].weights
                some.append(waiting.pop())
            self._progress("time", done, total, f"pass-{number + 1}")
            yield some
            done += len(some)
        self._progress("time", done, total, f"pass-{number + 1}")

    def _group(self, whole: Excerpt, some: Sequence[Excerpt], cold_keys: Collection[str]) -> None:
        """Load and time some."""
        call, limit_s = self._connection.measuring.call, self._time_limit_s
        opened: list[str] = []
        try:
            if not getattr(self._connection.measuring, "running", True):
                self._open(_WHOLE, whole)  # the process ended with what it had loaded
            for excerpt in some:
                try:
                    self._open(excerpt.key, excerpt)
                    opened.append(excerpt.key)
                except (WorkerCrashedError, TimeLimitError) as exc:
                    self._fail(excerpt.key, str(exc))
                    others = [each for each in some if each is not excerpt]
                    return self._group(whole, others, cold_keys)
                except NNMeterError as exc:
                    self._fail(excerpt.key, str(exc))
            most_s = limit_s * (1 + len(opened))
            found = call(
                "race",
                most_s + limit_s,
                **{"keys": [_WHOLE, *opened], "visits": _ROUNDS, "least_s": 0.0, "runs": _RUNS},
                **{"seed": self._rng.getrandbits(32), "most_s": most_s},
                gated=self._connection.gated,
            )
            self._found.runs += found["runs"]
            self._found.counted += found["counted"]
            times = {_WHOLE: self._found.whole, **self._found.times}
            for key, visited in found["visits"].items():
                _keep(times[key].warm, [ns for visit in visited for ns in visit])
            failed = dict(found["failed"])
            cold = [key for key in opened if key in cold_keys and key not in failed]
            if cold and _WHOLE not in failed:
                found = call(
                    "time_behind",
                    most_s + limit_s,
                    **{"ahead": _WHOLE, "keys": cold, "visits": _VISITS, "most_s": most_s},
                    seed=self._rng.getrandbits(32),
                    gated=self._connection.gated,
                )
                for key, runs in found["runs"].items():
                    _keep(times[key].behind, runs)
                failed |= found["failed"]
            for key, error in failed.items():
                if key == _WHOLE:
                    raise decode_error(error)
                self._fail(key, str(error.get("message", "")))
        finally:
            if opened and getattr(self._connection.measuring, "running", True):
                call("drop", limit_s, keys=opened)

    def _fail(self, key: str, reason: str) -> None:
        log.debug("%s cannot be timed: %s", key, reason)
        self._found.failed[key] = reason
        self._converted.pop(key, None)

    def _open(self, key: str, excerpt: Excerpt) -> None:
        if key not in self._converted:
            self._converted[key] = self._convert(excerpt, key)
        self._connection.measuring.call(
            "open",
            self._time_limit_s,
            key=key,
            converted=self._converted[key],
            shapes=[list(shape) for shape in excerpt.shapes],
            check=False,
        )

    def _convert(self, excerpt: Excerpt, name: str) -> str:
        place = self._folder / name
        place.mkdir()
        file = excerpt.write(place / name)
        answer: Any = self._connection.measuring.call(
            "convert",
            self._time_limit_s,
            model=str(file),
            save_path=str(place),
            shapes=[list(shape) for shape in excerpt.shapes],
        )
        return str(answer)


def _keep(found: list[float], runs: Sequence[int]) -> None:
    if runs:
        found.append(float(np.quantile(np.asarray(runs, dtype=np.float64), _LOW)))
