"""Verdicts from what is stored of the clock's experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from nn_meter.builder.backend_meta.fusion_rule_tester.basic import BasicFusion
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.decision import Opinion
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.plan import (
    NOT_REACHED,
    Bench,
    Question,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.testcase import BaseTestCase
from nn_meter.builder.backend_meta.fusion_rule_tester.verdict import Edge, Saving, Verdict

__all__ = ["LatencyEvidence"]

_DECISIVE = ("separate", "undecided", "free")
"""A chain is as the first of these that one of its edges is: with one that is none, no kernel."""


class LatencyEvidence:
    """The controlled experiments of a workspace.

    Args:
        benches: Rule -> the bench that has its questions.
    """

    name = "latency"

    def __init__(self, benches: Mapping[str, Bench]) -> None:
        self._benches = benches

    def judge(
        self, case: BaseTestCase, models: Mapping[str, object], graph: Verdict | None = None
    ) -> Verdict | None:
        """Judge a test case; None: the clock was not asked, of this rule or of any.

        Args:
            case: The test case.
            models: Its models.
            graph: What the executed graph says, if that is known. An edge whose models the runtime
                executes otherwise in the size timed than in the size asked for is left open.
        """
        bench = self._benches.get(case.name)
        if bench is None:
            return None
        questions = bench.of(case.name)
        if not questions or not bench.has_begun:
            return None
        opinions = _where_alike(questions, graph)
        saving = _saving(questions, opinions, bench.confidence)
        verdict, obey = saving.verdict, None
        if verdict in ("fused", "separate"):
            obey = verdict == "fused"
        elif verdict in case.cases:
            return Verdict.of(verdict, self.name, clock=saving)
        if obey and (reason := self._refused(case, bench)):
            return Verdict.none("undecided", reason, evidence=self.name)
        edges: tuple[Edge, ...] = ()
        if isinstance(case, BasicFusion) and len(case.ops) > 2:
            edges = tuple(
                _edge(pair, opinion)
                for pair, opinion in zip(pairwise(case.ops), opinions, strict=False)
            )
        free = _named(case, questions) if verdict == "free" else ()
        return Verdict(
            obey=obey,
            verdict=verdict,
            evidence=self.name,
            reason=saving.reason,
            free=free,
            edges=edges,
            clock=saving,
        )

    def _refused(self, case: BaseTestCase, bench: Bench) -> str:
        """Why an edge of a chain could not be asked; empty: all were."""
        found = (why for name, why in bench.refused.items() if f":{case.name}:" in name)
        return next(found, "")


def _where_alike(questions: Sequence[Question], graph: Verdict | None) -> list[Opinion]:
    """What is said of each edge, where it was timed in a size that runs as the one asked for."""
    opinions = [question.opinion if question.is_begun else NOT_REACHED for question in questions]
    if graph is None:
        return opinions
    asked: list[str] = [edge.verdict for edge in graph.edges] or [graph.verdict]
    for k, (question, word) in enumerate(zip(questions, asked, strict=False)):
        if {question.timed, word} == {"fused", "separate"}:
            opinions[k] = replace(
                opinions[k],
                verdict="undecided",
                reason=f"it is {question.timed} in the size that it was timed in, and {word} in "
                "the size asked for",
            )
    return opinions


def _saving(questions: list[Question], opinions: list[Opinion], confidence: float) -> Saving:
    """What is said of all edges: what is said of the one that decides."""
    first = next(
        (opinion for word in _DECISIVE for opinion in opinions if opinion.verdict == word),
        min(opinions, key=lambda opinion: opinion.saving or 0.0),
    )
    return Saving(
        verdict=first.verdict,
        confidence=confidence,
        saving=first.saving,
        low=first.low,
        high=first.high,
        loads=sum(len(question.loads) for question in questions),
        runtime_s=sum(question.cost_s for question in questions),
        control=first.control,
        reason=first.reason,
    )


def _edge(ops: tuple[str, str], opinion: Opinion) -> Edge:
    free = tuple(op for op, side in zip(ops, ("head", "tail"), strict=True) if side in opinion.free)
    word = opinion.verdict
    if word == "fused":
        return Edge(ops=ops, verdict="fused")
    if word == "separate":
        return Edge(ops=ops, verdict="separate")
    if word == "free":
        return Edge(ops=ops, verdict="free", free=free)
    return Edge(ops=ops, verdict="undecided", reason=opinion.reason)


def _named(case: BaseTestCase, questions: list[Question]) -> tuple[str, ...]:
    """The names of the ops that cost nothing."""
    if not isinstance(case, BasicFusion):
        return ()
    found: list[str] = []
    for position, question in enumerate(questions):
        for side, at in (("head", position), ("tail", position + 1)):
            if side in question.opinion.free and case.ops[at] not in found:
                found.append(case.ops[at])
    return tuple(found)
