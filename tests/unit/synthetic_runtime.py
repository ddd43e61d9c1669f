"""A runtime of which all is known: what its ops cost, what fusing saves, what disturbs it.

Two ways lead from the truth to the times of a load. ``visits_of`` draws the visits at once, for
tests that need thousands of loads. ``Worker`` lets the project's own race, with its own speed gate,
time sessions that do nothing but move a clock: for what depends on when things happen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from nn_meter.builder.backend_meta.fusion_rule_tester.clock import statistics
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.design import (
    BARRIERS,
    BLOCK,
    HEAD,
    REFERENCE,
    Design,
    Method,
    between,
    without_head,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.plan import Bench, Question
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.statistics import Spread, Times
from nn_meter.builder.profiling import race
from nn_meter.builder.profiling.gate import SpeedGate

METHOD = Method()
TAIL = "tail"
REFERENCES = "references"

Visits = Mapping[str, list[np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a runtime's ops cost, in µs, and in which layout they work.

    Layouts are as of ``BARRIERS``: an op ``keeps`` what comes in, or wants the library's ``own`` or
    a ``plain`` tensor. Whatever enters and leaves a model is plain. A layout changes by a reorder.

    Attributes:
        saved: What the block saves, as a share of ``scale``.
        reorder: What changing the layout costs; 0: there are no layouts.
        call: What one call costs, whatever is in the model.
    """

    saved: float = 0.0
    head: float = 1.5
    tail: float = 0.6
    relu: float = 0.5
    barriers: Mapping[str, float] = field(
        default_factory=lambda: {"avgpool": 0.9, "tanh": 0.7, "sum": 0.8}
    )
    call: float = 5.0
    reorder: float = 0.0
    head_layout: str = "keeps"
    tail_layout: str = "keeps"
    elementwise: bool = False

    @property
    def scale(self) -> float:
        """What a saving is a share of: what the cheaper side costs where it stands."""
        tail = self._chain([HEAD, "tanh", TAIL]) - self._chain([HEAD, "tanh"])
        tail = self.relu if self.elementwise else tail
        return max(min(self.head, tail), 0.75 * self.relu)

    def cost(self, part: str) -> float:
        """The time of one call of a part's model, µs."""
        if part == BLOCK:
            chain = self._chain([HEAD, TAIL]) - self.saved * self.scale
        else:
            chain = self._chain([op for op in part.split("|") if op])
        return self.call + METHOD.replicas * chain

    def _chain(self, ops: Sequence[str]) -> float:
        costs = {HEAD: self.head, TAIL: self.tail, REFERENCE: self.relu, **self.barriers}
        return sum(costs[op] for op in ops) + self.reorder * self._reorders(ops)

    def _reorders(self, ops: Sequence[str]) -> int:
        layouts = {
            HEAD: self.head_layout,
            TAIL: self.tail_layout,
            REFERENCE: "keeps",
            **{name: barrier.layout for name, barrier in BARRIERS.items()},
        }
        wanted = [layout for op in ops if (layout := layouts[op]) != "keeps"]
        passed = ["plain", *wanted, "plain"]
        return sum(one != other for one, other in pairwise(passed))

    def design(self) -> Design:
        """The parts that a question about it takes; nothing is built of them."""
        parts = [HEAD, BLOCK]
        for name in BARRIERS:
            parts += [between(name), between(name, tail=True)]
            parts += [without_head(name), without_head(name, TAIL)]
        return Design(
            head=(HEAD,),
            tail=TAIL,
            shape=(4, 4, 16),
            models=dict.fromkeys(parts),  # type: ignore[arg-type]
            elementwise=self.elementwise,
        )


def reference_parts() -> list[str]:
    """The parts of the models that all questions share, as ``reference_design`` has them."""
    parts = []
    for name in BARRIERS:
        parts += [without_head(name), without_head(name, REFERENCE)]
    return [*parts, without_head("avgpool", "avgpool"), without_head("tanh", "avgpool")]


def first_parts() -> list[str]:
    """The parts of a question's first load."""
    return [HEAD, BLOCK, *(between(b, tail=tail) for b in BARRIERS for tail in (False, True))]


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """What comes between the truth and the visits; all of it in shares of a time.

    Attributes:
        load: Deviation of the effect that loading a model has on its time.
        run: Mean of what is added to each run; it has an exponential distribution.
        outliers: How many runs take up to four times as long.
        drift: How much slower everything gets from the first visit of a load to the last.
        wander: Deviation of a factor that the whole of a load has, for all its models.
    """

    load: float = 0.015
    run: float = 0.01
    outliers: float = 0.0
    drift: float = 0.0
    wander: float = 0.0


def visits_of(
    truth: Truth, parts: Sequence[str], how: Disturbance, rng: np.random.Generator
) -> dict[str, list[np.ndarray]]:
    """The visits of one load, as a race would give them."""
    size = (len(parts), METHOD.visits, METHOD.runs)
    times = np.array([truth.cost(part) for part in parts])[:, None, None] * 1e3
    times = times * (1 + how.load * rng.standard_normal((len(parts), 1, 1)))
    times = times * (1 + how.wander * rng.standard_normal())
    times = times * (1 + how.drift * np.linspace(0, 1, METHOD.visits)[None, :, None])
    times = times * (1 + how.run * rng.exponential(size=size))
    if how.outliers:
        hit = rng.random(size) < how.outliers
        times = times * np.where(hit, rng.uniform(1.2, 4, size), 1)
    ns = np.rint(times).astype(np.int64)
    return {part: list(of_part) for part, of_part in zip(parts, ns, strict=True)}


def load_of(
    truth: Truth, parts: Sequence[str], how: Disturbance, rng: np.random.Generator
) -> dict[str, float]:
    """The times of one load."""
    return statistics.times_of(visits_of(truth, parts, how, rng), 0.0, METHOD.replicas)


def settle(
    truths: Sequence[Truth],
    how: Disturbance,
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    alpha: float = 0.5,
    seen: dict[str, list[tuple[Times, Spread]]] | None = None,
) -> Bench:
    """Ask the questions of one run, which share their references, until all are settled.

    The order of events is that of ``clock.measure.measure``. ``seen`` is told each question's loads
    and the spread that it was looked at with.
    """
    by_name = {str(number): truth for number, truth in enumerate(truths)}
    bench = Bench(
        questions={
            name: Question(name=name, rule=name, design=truth.design(), reference=REFERENCES)
            for name, truth in by_name.items()
        },
        references={REFERENCES: []},
        method=METHOD,
        alpha=alpha,
        confidence=confidence,
        clock=lambda: 0.0,
    )
    for _ in range(METHOD.first_loads):
        bench.references[REFERENCES].append(load_of(truths[0], reference_parts(), how, rng))
    tries: dict[str, int] = {}
    while waiting := bench.waiting(tries):
        for question in waiting:
            tries[question.name] = tries.get(question.name, 0) + 1
            truth = by_name[question.name]
            question.loads.append(load_of(truth, question.parts(), how, rng))
            if seen is not None:
                seen.setdefault(question.name, []).append((question.loads[-1], bench.spread))
            bench.look(question)
        bench.learn()
    return bench


class Machine:
    """A processor with a clock of its own, which only work moves.

    Args:
        rng: Chance.
        fast_ms, slow_ms: How long it stays at full speed, and 1.6 to 2.2 times slower, on average;
            0 ms slow: never.
        changes: (s, factor): from when on everything takes so many times longer, for good.
        stops: (s, s): when the process is stopped, and for how long.
    """

    PROBE_NS = 2000.0
    COLD = 1.08  # what a probe takes right after a run, as the caches are full of something else

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        fast_ms: float = 5.0,
        slow_ms: float = 0.0,
        changes: Sequence[tuple[float, float]] = (),
        stops: Sequence[tuple[float, float]] = (),
    ) -> None:
        self._rng, self._fast_ms, self._slow_ms = rng, fast_ms, slow_ms
        self._changes, self._stops = list(changes), list(stops)
        self._now = 0.0
        self._spell, self._change = 1.0, 1.0
        self._spell_ends = rng.exponential(fast_ms) * 1e6 if slow_ms else math.inf
        self._noise: list[float] = []
        self.is_cold = False

    def ns(self) -> int:
        return int(self._now)

    def seconds(self) -> float:
        return self._now * 1e-9

    def noise(self) -> float:
        """From an exponential distribution of mean 1."""
        if not self._noise:
            self._noise = self._rng.exponential(size=4096).tolist()
        return self._noise.pop()

    def work(self, ns: float) -> None:
        """Do what takes so long at full speed."""
        while True:
            factor = self._spell * self._change
            end = min(
                self._spell_ends,
                self._changes[0][0] * 1e9 if self._changes else math.inf,
                self._stops[0][0] * 1e9 if self._stops else math.inf,
            )
            if self._now + ns * factor <= end:
                self._now += ns * factor
                return
            ns -= max(end - self._now, 0.0) / factor
            self._now = max(end, self._now)
            self._turn()

    def _turn(self) -> None:
        if self._stops and self._now >= self._stops[0][0] * 1e9:
            self._now += self._stops.pop(0)[1] * 1e9
        elif self._changes and self._now >= self._changes[0][0] * 1e9:
            self._change = self._changes.pop(0)[1]
        else:
            slow = self._spell == 1.0
            self._spell = self._rng.uniform(1.6, 2.2) if slow else 1.0
            self._spell_ends = self._now + 1e6 * self._rng.exponential(
                self._slow_ms if slow else self._fast_ms
            )

    def probe(self) -> None:
        """The work of the speed gate."""
        self.work(self.PROBE_NS * (self.COLD if self.is_cold else 1.0) * (1 + 0.01 * self.noise()))
        self.is_cold = False


class _Session:
    def __init__(self, machine: Machine, ns: float, run: float) -> None:
        self._machine, self._ns, self._run = machine, ns, run

    def time(self, n: int) -> list[int]:
        machine, found = self._machine, []
        for _ in range(n):
            start = machine.ns()
            machine.work(self._ns * (1 + self._run * machine.noise()))
            found.append(machine.ns() - start)
        machine.is_cold = True
        return found

    def close(self) -> None:
        pass


class Worker:
    """A worker process on such a machine: the project's own race, with its own speed gate."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        machine: Machine,
        how: Disturbance,
        rng: np.random.Generator,
    ) -> None:
        monkeypatch.setattr(race, "time", SimpleNamespace(monotonic=machine.seconds))
        self.machine, self._how, self._rng = machine, how, rng
        self.gate = SpeedGate(machine.ns, machine.probe)

    def race(self, truth: Truth, parts: Sequence[str], most_s: float = 4.0) -> race.Race:
        """Load the models of some parts, and time them in turn."""
        effects = 1 + self._how.load * self._rng.standard_normal(len(parts))
        sessions = {
            part: _Session(self.machine, truth.cost(part) * 1e3 * effect, self._how.run)
            for part, effect in zip(parts, effects, strict=True)
        }
        run = race.Race(
            sessions,  # type: ignore[arg-type]
            runs=METHOD.runs,
            seed=int(self._rng.integers(2**32)),
            gate=self.gate,
        )
        run.run(visits=METHOD.visits, least_s=0.0, most_s=most_s)
        return run

    def load(self, truth: Truth, parts: Sequence[str], most_s: float = 4.0) -> dict[str, float]:
        """The times of one load."""
        found = self.race(truth, parts, most_s).visits
        visits = {part: [np.array(visit) for visit in seen] for part, seen in found.items()}
        return statistics.times_of(visits, self.gate.level_ns, METHOD.replicas)
