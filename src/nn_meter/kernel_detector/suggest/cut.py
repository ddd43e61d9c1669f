"""A model cut by rules, beside what a runtime executed of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from nn_meter.fusion_rules.rules import RuleSet
from nn_meter.kernel_detector.check.score import Check, score
from nn_meter.kernel_detector.check.truth import Truth
from nn_meter.kernel_detector.graph import Graph
from nn_meter.kernel_detector.groups import Decision
from nn_meter.kernel_detector.recognition import Recognized
from nn_meter.kernel_detector.rule_splitter import RuleSplitter

__all__ = ["Cut", "Known", "WrongEdge", "cut"]


@dataclass(frozen=True, kw_only=True)
class Known:
    """A model, and what a runtime executed of it.

    Attributes:
        graph: The model.
        truth: Which of its ops the runtime executed together.
    """

    graph: Graph
    truth: Truth


@dataclass(frozen=True, kw_only=True)
class WrongEdge:
    """Two neighbours that rules put together otherwise than the runtime did.

    Attributes:
        nodes: Places of the operators, the one that writes first; equal: both ops are one operator.
        fused: Whether the runtime executed them as one.
        decision: Why the rules say something else; None: no rule was asked.
    """

    nodes: tuple[int, int]
    fused: bool
    decision: Decision | None


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A model as rules cut it.

    Attributes:
        model: Its operators.
        check: How the kernels compare with what was executed.
        decisions: Names of two neighbours -> what was decided.
    """

    model: Recognized
    check: Check
    decisions: Mapping[tuple[str, str], Decision]

    @property
    def wrong(self) -> int:
        """How many edges are wrong."""
        return len(self.check.differ)

    @cached_property
    def edges(self) -> tuple[WrongEdge, ...]:
        """The wrong edges as operators."""
        return tuple(self._edges())

    def _edges(self) -> Iterator[WrongEdge]:
        last: dict[str, int] = {}
        first: dict[str, int] = {}
        for place, node in enumerate(self.model.nodes):
            for op in node.ops:
                last[op] = place
                first.setdefault(op, place)
        for difference in self.check.differ:
            maker, reader = difference.ops
            a, b = last[maker], first[reader]
            names = (self.model.nodes[a].name, self.model.nodes[b].name)
            yield WrongEdge(
                nodes=(a, b), fused=difference.fused, decision=self.decisions.get(names)
            )


def cut(known: Known, rules: RuleSet) -> Cut:
    """Cut a model by rules."""
    splitter = RuleSplitter(rules)
    kernels = splitter.split(known.graph)
    if splitter.recognized is None:
        raise AssertionError("a model that was split was recognized")
    return Cut(
        model=splitter.recognized,
        check=score(known.graph, kernels, known.truth),
        decisions={decision.edge: decision for decision in splitter.decisions},
    )
