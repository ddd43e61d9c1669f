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
_SURPRISES = 30  # so many of these among so many probes, and it is done anew:
_AMONG = round(_SURPRISES / _LOW)  # then the quantile is one of them
_BARREN_NS, _BARREN_RUNS = 1_000_000_000, 200
"""So long, and so many runs, without one that counts: then this is the machine's speed by now. Most
slow spells are shorter, and in one that is not all is slow alike. The number of runs is for models
that take as long as a spell does."""


class SpeedGate:
    """Tells runs at full speed from others.

    Args:
        clock: Gives nanoseconds; another one in tests.
        work: What is timed; another one in tests.

    Attributes:
        level_ns: What the work takes at full speed; 0: the clock is too coarse to tell, and no run
            is taken for a slow one.
        calibrations: How often full speed was found anew; what was timed before the last time was
            timed at another speed.
    """

    def __init__(
        self,
        clock: Callable[[], int] = time.perf_counter_ns,
        work: Callable[[], object] = lambda: sum(_PROBE),
    ) -> None:
        self._clock, self._work = clock, work
        self._faster: deque[tuple[int, int]] = deque(maxlen=_SURPRISES)
        self._probes = 0
        self._barren_runs, self._barren_since_ns = 0, 0
        self.level_ns = 0.0
        self.calibrations = 0
        self.calibrate()

    def calibrate(self) -> None:
        """Find out what the work takes at full speed: it is taken that some of the time is."""
        end = self._clock() + _CALIBRATION_NS
        found = [self._timed()]  # whatever the clock does meanwhile
        while self._clock() < end:
            found.append(self._timed())
        self.level_ns = float(sorted(found)[int(_LOW * len(found))])
        self._faster.clear()
        self._barren_runs = 0
        self.calibrations += 1

    def fast(self) -> bool:
        """Whether the processor runs at full speed; the second look is for a cache gone cold."""
        return not self.level_ns or self._probe() or self._probe()

    def notice(self, runs: int, counted: int) -> None:
        """Be told of runs; after a stretch in which none counted, full speed is found anew.

        Without that nothing would ever count again on a machine that has become slower for good.

        Args:
            runs: How many there were since the last time.
            counted: How many of them were at full speed.
        """
        now_ns = self._clock()
        if counted:
            self._barren_runs = 0
            return
        if not self._barren_runs:
            self._barren_since_ns = now_ns
        self._barren_runs += runs
        if self._barren_runs >= _BARREN_RUNS and now_ns - self._barren_since_ns >= _BARREN_NS:
            self.calibrate()

    def _probe(self) -> bool:
        taken = self._timed()
        self._probes += 1
        if taken < _FASTER * self.level_ns:
            self._faster.append((self._probes, taken))
            if len(self._faster) == _SURPRISES and self._probes - self._faster[0][0] < _AMONG:
                self.calibrate()  # these themselves may have found cold caches
        return _FASTER * self.level_ns <= taken < _SLOWER * self.level_ns

    def _timed(self) -> int:
        start = self._clock()
        self._work()
        return self._clock() - start
