"""Whether the processor runs at full speed right now.

A core of a shared machine has two speeds, up to two times apart, for milliseconds to seconds at a
time: a busy neighbour on the same physical core, a lower clock. A few microseconds of pure Python,
before and after a run, tell which it was. What ran at full speed repeats to one or two percent.

This module runs in worker processes of other virtual environments: the standard library only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

__all__ = ["SpeedGate"]

_PROBE = range(300)  # about 2 µs
_CALIBRATION_NS = 150_000_000
_LOW = 0.02  # the quantile of the probes that stands for full speed
_SLOWER = 1.3  # a probe that takes so many times the full speed's is slow: speeds are 1.6-2.2 apart
_FASTER = 0.8  # so many times: the calibration itself fell into a slow spell
_SURPRISES = 30  # so many of these, one after the other as it were, and it is done anew


class SpeedGate:
    """Tells runs at full speed from others.

    Args:
        clock: Gives nanoseconds; another one in tests.
        work: What is timed; another one in tests.

    Attributes:
        level_ns: What the work takes at full speed.
        calibrations: How often full speed was found anew; what was timed before the last time was
            timed at another speed.
    """

    def __init__(
        self,
        clock: Callable[[], int] = time.perf_counter_ns,
        work: Callable[[], object] = lambda: sum(_PROBE),
    ) -> None:
        self._clock, self._work = clock, work
        self._faster: deque[int] = deque(maxlen=_SURPRISES)
        self.level_ns = 0.0
        self.calibrations = 0
        self.calibrate()

    def calibrate(self) -> None:
        """Find out what the work takes at full speed: it is taken that some of the time is."""
        end = self._clock() + _CALIBRATION_NS
        found = []
        while self._clock() < end:
            found.append(self._timed())
        self.level_ns = float(sorted(found)[int(_LOW * len(found))])
        self._faster.clear()
        self.calibrations += 1

    def fast(self) -> bool:
        """Whether the processor runs at full speed; the second look is for a cache gone cold."""
        return self._probe() or self._probe()

    def _probe(self) -> bool:
        taken = self._timed()
        if taken < _FASTER * self.level_ns:
            self._faster.append(taken)
            if len(self._faster) == _SURPRISES:
                self.level_ns = float(sorted(self._faster)[_SURPRISES // 2])
                self._faster.clear()
                self.calibrations += 1
        return taken < _SLOWER * self.level_ns

    def _timed(self) -> int:
        start = self._clock()
        self._work()
        return self._clock() - start
