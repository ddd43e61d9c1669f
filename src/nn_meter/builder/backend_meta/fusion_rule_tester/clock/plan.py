"""What to load and time next, from what was measured: the references first, then pass by pass.

In a pass every question that is not settled gets one more load. So all have had a look before any
gets a second one, and when the time is up it is the hardest that stay open. Each look at a question
spends its share of the error that a verdict may have, so that looking often does not make errors
likelier (a union bound over the looks).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from nn_meter.builder.backend_meta.fusion_rule_tester.clock import cases
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.decision import Opinion, decide
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.design import (
    BLOCK,
    HEAD,
    TAIL,
    Design,
    Method,
    between,
    without_head,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.statistics import (
    Contrast,
    Spread,
    Times,
    fit_spread,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import Chain
from nn_meter.builder.profiling.measure import Model

__all__ = ["NOT_REACHED", "Bench", "Question"]

NOT_REACHED = Opinion(
    verdict="undecided",
    reason="the time was up before its turn came (TIME_BUDGET; of validate, --budget)",
)

_LOADS_OF_TAIL = 2
_UNCONFIRMED = "it saves enough, but what the tail costs without the head was not measured yet"
_UNSETTLED = Opinion(verdict="undecided", reason="nothing was measured")


@dataclass
class Question:
    """One edge, or one test case of cases, and what is known of it so far.

    Attributes:
        name: Of its trials in the store.
        rule: The rule that it is of.
        design: Its models, if it is an edge.
        reference: Name of the reference that goes with it.
        cases: Case -> its models, if it is a test case of cases.
        files: The models that are there already: those of a test case of cases.
        call: The model that costs no more than its call, if it is one.
        loads: The times of its loads.
        missing: Parts whose model cannot be had, and why.
        opinion: What the clock says.
        timed: What the executed graph says in the size that is timed; empty: not known.
        with_heads_away: Whether the models without the head are asked for, too.
        with_tail: Whether the tail alone is timed, too, in the first loads: the formula needs it.
        cost_s: Seconds that timing its models took.
    """

    name: str
    rule: str
    design: Design | None = None
    reference: str = ""
    cases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, Model] = field(default_factory=dict)
    call: Chain | None = None
    loads: list[Times] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    opinion: Opinion = _UNSETTLED
    timed: str = ""
    with_heads_away: bool = False
    with_tail: bool = False
    cost_s: float = 0.0

    def chains(self) -> dict[str, Chain]:
        """What is to be built for its next load, by part."""
        if self.design is not None:
            return {part: self.design.models[part] for part in self.parts()}
        return {cases.CALL: self.call} if self.call is not None else {}

    def parts(self) -> list[str]:
        """The models of its next load."""
        if self.design is None:
            return list(dict.fromkeys([cases.BLOCK, cases.CALL, *chain(*self.cases.values())]))
        found = [HEAD, BLOCK]
        if self.with_tail and len(self.loads) < _LOADS_OF_TAIL:
            found.append(TAIL)
        for name in self.opinion.near or self.design.barriers:
            found += [between(name), between(name, tail=True)]
            if self.with_heads_away:
                found += [without_head(name), without_head(name, self.design.tail)]
        return [part for part in found if part not in self.missing]

    @property
    def is_begun(self) -> bool:
        """Whether it was loaded, or found to be impossible."""
        return bool(self.loads or self.impossible)

    @property
    def is_without_heads(self) -> bool:
        """Whether none of the models with the tail and without the head is to be had."""
        if self.design is None:
            return True
        tail = self.design.tail
        return all(without_head(name, tail) in self.missing for name in self.design.barriers)

    @property
    def impossible(self) -> str:
        """Why it cannot be asked at all; empty: it can."""
        needed = (HEAD, BLOCK) if self.design is not None else self.parts()
        return next((self.missing[part] for part in needed if part in self.missing), "")


@dataclass
class Bench:
    """All questions of a run, and the references that they share.

    Attributes:
        questions: By name.
        references: By name, the times of their loads.
        method: The constants.
        alpha: EPS_ALPHA.
        confidence: With which each verdict holds.
        thorough: Go on with what is separate until it surely saves little, while there is time.
        refused: Questions that cannot be built, and why.
    """

    questions: Mapping[str, Question]
    references: Mapping[str, list[Times]]
    method: Method
    alpha: float
    confidence: float
    thorough: bool = True
    refused: Mapping[str, str] = field(default_factory=dict)
    spread: Spread = field(init=False)
    clock: Callable[[], float] = time.monotonic
    started_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.started_s = self.clock()
        self.spread = self._spread()

    @property
    def error_rate(self) -> float:
        """What one look may spend."""
        return (1 - self.confidence) / len(self.method.looks)

    def of(self, rule: str) -> list[Question]:
        """The questions of a rule, in the order of its edges."""
        return [question for question in self.questions.values() if question.rule == rule]

    @property
    def has_begun(self) -> bool:
        """Whether anything was loaded, or found to be impossible."""
        return any(self.references.values()) or any(q.is_begun for q in self.questions.values())

    def look(self, question: Question) -> None:
        """Decide a question by what there is."""
        if question.impossible:
            question.opinion = Opinion(
                verdict="undecided", reason=question.impossible, settled=True
            )
            return
        count = len(question.loads)
        if 0 < count < self.method.looks[0]:
            self._choose(question)
        if count not in self.method.looks:
            return  # not one of the looks that the error was shared among
        if question.design is None:
            opinion = cases.decide_case(
                question.cases, question.loads, self.spread, error_rate=self.error_rate
            )
        else:
            opinion = self._decide(question, question.design)
        before = question.opinion
        if before.verdict == "separate" and opinion.unsure:
            # a verdict of any look holds with the confidence asked for: the looks share the error
            opinion = before
        opinion = replace(opinion, near=before.near or opinion.near)
        if opinion.more and question.is_without_heads:
            opinion = replace(opinion, more=False)  # they are not to be had
        if opinion.more:
            question.with_heads_away = True
            if opinion.verdict == "fused":
                opinion = replace(opinion, verdict="undecided", reason=_UNCONFIRMED)
        question.opinion = opinion

    def _choose(self, question: Question) -> None:
        """Choose the controls of the next loads: that is no verdict, and costs no error."""
        if question.design is not None and not question.opinion.near:
            first = self._decide(question, question.design)
            question.opinion = replace(_UNSETTLED, near=first.near, reason="loaded too seldom")

    def _decide(self, question: Question, design: Design) -> Opinion:
        return decide(
            design,
            question.loads,
            self.references[question.reference],
            self.spread,
            alpha=self.alpha,
            error_rate=self.error_rate,
            among=question.opinion.near,
        )

    def replicas(self, question: Question) -> int:
        """How often each model of a question holds its chain."""
        return self.method.replicas if question.design is not None else 1

    def replay(self, question: Question, loads: Iterable[tuple[Times, Spread]]) -> None:
        """Look at a question as when its loads came: each time with what was known by then."""
        now = self.spread
        for times, self.spread in loads:
            settled = self.is_settled(question)
            question.loads.append(times)
            if not settled:
                self.look(question)
        self.spread = now

    def learn(self) -> None:
        """Take up what all loads so far say of the spread between loads."""
        self.spread = self._spread()

    def is_settled(self, question: Question) -> bool:
        """Whether more loads would change nothing, or are not to be had."""
        opinion = question.opinion
        if question.impossible or len(question.loads) >= self.method.looks[-1]:
            return True
        return opinion.settled and not opinion.more

    def waiting(self, tries: Mapping[str, int]) -> list[Question]:
        """The questions that get another load.

        Those that are open, or fused if the models without the head say so, too; when there are
        none, those that are separate and could be surer, if it is to be thorough.
        """
        found = [
            question
            for question in self.questions.values()
            if not self.is_settled(question)
            and tries.get(question.name, 0) < 2 * self.method.looks[-1]
        ]
        open_ = [q for q in found if q.opinion.verdict != "separate"]
        return open_ or (found if self.thorough else [])

    def _spread(self) -> Spread:
        return fit_spread(list(self._variances()))

    def _variances(self) -> Iterator[tuple[float, int]]:
        start = Spread(variance=1.0, freedom=1.0)
        for question in self.questions.values():
            barriers = question.design.barriers if question.design is not None else []
            for name in list(question.opinion.near or barriers)[:1]:
                yield from _own(
                    question.loads,
                    {HEAD: 1, between(name, tail=True): 1, BLOCK: -1, between(name): -1},
                    start,
                )
        for loads in self.references.values():
            parts = list(loads[0]) if loads else []
            for one, other in zip(parts[::2], parts[1::2], strict=False):
                yield from _own(loads, {one: 1, other: -1}, start)


def _own(
    loads: Sequence[Times], signs: Mapping[str, float], start: Spread
) -> Iterator[tuple[float, int]]:
    contrast = Contrast.of(loads, signs, start)
    if contrast is not None and contrast.own[1] > 0:
        yield contrast.own
