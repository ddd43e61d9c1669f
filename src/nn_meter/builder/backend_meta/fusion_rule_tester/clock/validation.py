"""How good verdicts are that were made without looking: held against what the runtime executed.

A *question* is one pair of neighbours. It is a *case*, by which a method is judged, if the executed
graph says ``fused`` or ``separate``. It is *empty* if the graph says ``free``: one of the two
executes nothing that computes. What the graph leaves open, and what the runtime refuses, is no case
either. A method decides a case by ``fused`` or ``separate``; any other word counts against its
coverage, and not against its accuracy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nn_meter.builder.backend_meta.fusion_rule_tester.clock.decision import Opinion
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.design import BLOCK, HEAD, TAIL
from nn_meter.builder.backends.base import Samples
from nn_meter.builder.profiling.store import StoredTrial

__all__ = [
    "DECIDED",
    "CurvePoint",
    "History",
    "Judged",
    "Repeatability",
    "Report",
    "Score",
    "formula_of",
    "repeatability",
]

DECIDED = ("fused", "separate")
_EMPTY, _UNSUPPORTED = "free", "unsupported"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A question, and what each says about it.

    Attributes:
        name: Of its rule; of a longer chain with the edge's number.
        opinion: What the clock said, blind to the graph.
        graph: The verdict of the executed graph.
        formula: The verdict of the guide's inequality on the guide's models.
        formula_here: The same on the models and the samples that the clock's verdict rests on.
        timed: What the executed graph says in the size that was timed; empty: not known.
        loads: How often its models were loaded and timed.
        runtime_s: Seconds that the runtime took for the runs that count.
    """

    name: str
    opinion: Opinion
    graph: str
    formula: str
    formula_here: str = "undecided"
    timed: str = ""
    loads: int = 0
    runtime_s: float = 0.0

    @property
    def is_case(self) -> bool:
        return self.graph in DECIDED

    @property
    def is_open(self) -> bool:
        """Whether it is a case that the clock leaves open."""
        return self.is_case and self.opinion.verdict not in DECIDED

    @property
    def is_changed(self) -> bool:
        """Whether the runtime fuses the pair in one of the two sizes, and not in the other."""
        return self.is_case and self.timed in DECIDED and self.timed != self.graph

    @property
    def is_wrong(self) -> bool:
        """Whether it is a case that the clock decides, and not as the graph does."""
        return self.is_case and not self.is_open and self.opinion.verdict != self.graph


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a method did on the cases.

    Attributes:
        cases: How many there are.
        decided: How many of them it decided.
        right: How many of those as the graph does.
        fused: How many of the cases are fused by the graph.
        found: How many of those it called fused.
        false_fused: How many cases that are separate by the graph it called fused.
    """

    cases: int
    decided: int
    right: int
    fused: int
    found: int
    false_fused: int

    @classmethod
    def of(cls, words: Iterable[tuple[str, str]]) -> Score:
        """Count.

        Args:
            words: For each question what the method says, and what the graph says.
        """
        cases = [(said, graph) for said, graph in words if graph in DECIDED]
        decided = [(said, graph) for said, graph in cases if said in DECIDED]
        return cls(
            cases=len(cases),
            decided=len(decided),
            right=sum(said == graph for said, graph in decided),
            fused=sum(graph == "fused" for _, graph in cases),
            found=sum(said == graph == "fused" for said, graph in decided),
            false_fused=sum(said == "fused" and graph == "separate" for said, graph in decided),
        )

    @property
    def separate(self) -> int:
        """How many of the cases are separate by the graph."""
        return self.cases - self.fused

    @property
    def coverage(self) -> float | None:
        """Share of the cases that were decided; None: there is no case."""
        return self.decided / self.cases if self.cases else None

    @property
    def accuracy(self) -> float | None:
        """Share of those decided that are right; None: none was decided."""
        return self.right / self.decided if self.decided else None


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What it would have been, had measuring ended after so many seconds."""

    s: float
    decided: int
    right: int


@dataclass
class History:
    """Which verdict each question had at which time, while the clock was asked.

    Attributes:
        changes: Seconds since the measuring began, question, verdict from then on; oldest first.
    """

    changes: list[tuple[float, str, str]] = field(default_factory=list)
    _now: dict[str, str] = field(default_factory=dict)

    def see(self, at_s: float, verdicts: Mapping[str, str]) -> None:
        """Take note of the verdicts at a time, no earlier than those noted so far."""
        for name, verdict in verdicts.items():
            if self._now.get(name) != verdict:
                self._now[name] = verdict
                self.changes.append((at_s, name, verdict))

    def curve(self, graph: Mapping[str, str], end_s: float) -> list[CurvePoint]:
        """How many cases were decided, and rightly, after 1, 2, 5, 10, 20, 40, … seconds.

        Args:
            graph: The verdict of the graph on each question.
            end_s: When the measuring ended: the last point, with the verdicts as they are.
        """
        return [self._point(s, graph, s) for s in _times(end_s)] + [
            self._point(end_s, graph, math.inf)  # what the last look changed, too
        ]

    def _point(self, s: float, graph: Mapping[str, str], until_s: float) -> CurvePoint:
        verdicts = {name: verdict for at_s, name, verdict in self.changes if at_s <= until_s}
        score = Score.of((verdict, graph[name]) for name, verdict in verdicts.items())
        return CurvePoint(s=s, decided=score.decided, right=score.right)


def _times(end_s: float) -> Iterator[float]:
    """1, 2, 5, 10 and then twice as long each, as long as it is before the end."""
    s = 1.0
    while s < end_s:
        yield s
        s *= 2.5 if s == 2 else 2


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of holding the verdicts of one run against the graph.

    Attributes:
        questions: All that were asked.
        curve: Cases decided over time.
    """

    questions: Sequence[Judged]
    curve: Sequence[CurvePoint] = ()

    @property
    def clock(self) -> Score:
        return Score.of((each.opinion.verdict, each.graph) for each in self.questions)

    @property
    def formula(self) -> Score:
        return Score.of((each.formula, each.graph) for each in self.questions)

    @property
    def formula_here(self) -> Score:
        return Score.of((each.formula_here, each.graph) for each in self.questions)

    @property
    def changed(self) -> list[Judged]:
        return [each for each in self.questions if each.is_changed]

    @property
    def empty(self) -> int:
        """How many questions are empty."""
        return sum(each.graph == _EMPTY for each in self.questions)

    @property
    def unsupported(self) -> int:
        """How many the runtime refuses."""
        return sum(each.graph == _UNSUPPORTED for each in self.questions)

    @property
    def untold(self) -> int:
        """How many the graph leaves open."""
        return len(self.questions) - self.clock.cases - self.empty - self.unsupported

    @property
    def wrong(self) -> list[Judged]:
        return [each for each in self.questions if each.is_wrong]

    @property
    def open(self) -> list[Judged]:
        return [each for each in self.questions if each.is_open]

    @property
    def confusion(self) -> dict[str, dict[str, int]]:
        """The clock's verdict -> the graph's -> how many questions; words that nobody said aside.

        ``fused`` and ``separate`` are there always, and first.
        """
        counts = Counter((each.opinion.verdict, each.graph) for each in self.questions)
        rows = dict.fromkeys([*DECIDED, *sorted(said for said, _ in counts)])
        columns = dict.fromkeys([*DECIDED, *sorted(graph for _, graph in counts)])
        return {said: {graph: counts[said, graph] for graph in columns} for said in rows}

    def verdicts(self) -> dict[str, str]:
        """What the clock says of each question."""
        return {each.name: each.opinion.verdict for each in self.questions}


def formula_of(trials: Iterable[StoredTrial], alpha: float) -> str:
    """The guide's inequality on average latencies, from the samples of a question's trials.

    Args:
        trials: With the models of the head, the tail and the block; others do not matter.
        alpha: EPS_ALPHA.

    Returns:
        ``fused`` or ``separate``; ``undecided``, if one of the three has no samples.
    """
    runs: dict[str, list[Samples]] = {HEAD: [], TAIL: [], BLOCK: []}
    for trial in trials:
        for part, _, ns in trial.visits:
            if part in runs and ns.size:
                runs[part].append(ns)
    if not all(runs.values()):
        return "undecided"
    head, tail, block = (float(np.concatenate(found).mean()) for found in runs.values())
    return "fused" if head + tail - block > alpha * min(head, tail) else "separate"


@dataclass(frozen=True, kw_only=True)
class Repeatability:
    """How much the verdicts of several runs differ.

    Attributes:
        flips: Questions that are fused in one run and separate in another.
        equal: Share of the questions of which all runs say the same; None: there is no question.
    """

    flips: Sequence[str]
    equal: float | None


def repeatability(runs: Sequence[Mapping[str, str]]) -> Repeatability:
    """Compare runs.

    Args:
        runs: For each run the verdict on each question; all have the same questions.
    """
    names = list(runs[0]) if runs else []
    said = {name: {run[name] for run in runs} for name in names}
    return Repeatability(
        flips=[name for name in names if said[name].issuperset(DECIDED)],
        equal=sum(len(words) == 1 for words in said.values()) / len(names) if names else None,
    )
