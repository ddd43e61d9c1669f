"""A machine whose clock and speed are known: what the tests of the gate and of races run on."""

from __future__ import annotations

import random

from nn_meter.builder.profiling.gate import SpeedGate

FULL_NS = 2000
SECOND_NS = 1_000_000_000


class Machine:
    """A clock, and work that takes as long as the machine is slow; noise only ever adds.

    Attributes:
        now_ns: The time that it is.
        speed: Gives how many times the work takes what it takes at full speed, at a time in ns.
        tick_ns: The granularity of the clock.
    """

    def __init__(self, speed=lambda now_ns: 1.0, *, work_ns=FULL_NS, tick_ns=1, noise=0.02):
        self.now_ns = 123_456_789
        self.speed, self.tick_ns = speed, tick_ns
        self._work_ns, self._noise, self._rng = work_ns, noise, random.Random(1)

    def clock(self) -> int:
        self.now_ns += 30
        return self.now_ns // self.tick_ns * self.tick_ns

    def work(self) -> None:
        noise = 1 + self._rng.expovariate(1 / self._noise)
        if self._rng.random() < 0.001:
            noise += 5  # an interrupt
        self.now_ns += round(self._work_ns * self.speed(self.now_ns) * noise)

    def gate(self) -> SpeedGate:
        return SpeedGate(self.clock, self.work)

    def runs(self, speed_gate: SpeedGate, runs: int, run_ns: int = 20_000) -> list[bool]:
        """Make runs as a race does; gives which of them count."""
        found = []
        was_fast = speed_gate.fast()
        for _ in range(runs):
            self.now_ns += round(run_ns * self.speed(self.now_ns))
            is_fast = speed_gate.fast()
            found.append(was_fast and is_fast)
            was_fast = is_fast
        speed_gate.notice(runs, sum(found))
        return found

    def busy(self, speed_gate: SpeedGate, seconds: float) -> list[bool]:
        """Visits of four runs for so long."""
        end_ns, found = self.now_ns + round(seconds * SECOND_NS), []
        while self.now_ns < end_ns:
            found += self.runs(speed_gate, 4)
        return found
