"""Evidence ``graph``: what the runtime itself says that it executed.

A block of ops that fuse executes fewer compute nodes than its ops alone; where the runtime tells
which of the model's ops a node covers, one node covers both. Nodes count that depend on the model's
first input: a node that prepares another operand is no part of the chain, and so a sum that another
convolution takes over is not taken for one that this one fused with. A node there that the operand
has not by itself does the work of an op of the chain, and counts.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from nn_meter.builder.backend_meta.fusion_rule_tester.basic import BasicFusion, aliases
from nn_meter.builder.backend_meta.fusion_rule_tester.coverage import Coverage, read_coverage
from nn_meter.builder.backend_meta.fusion_rule_tester.situations import (
    ALONE,
    BEFORE,
    BEHIND,
    operand_name,
    part_name,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.testcase import BaseTestCase
from nn_meter.builder.backend_meta.fusion_rule_tester.verdict import Edge, Verdict
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.profiling.store import Failure, StoredGraph

__all__ = ["CaseGraphs", "GraphEvidence", "judge_chain"]

log = logging.getLogger(__name__)

_NOTHING = "the runtime tells of no node at all in any of the models"


@dataclass(frozen=True, kw_only=True)
class CaseGraphs:
    """What is known of the executed graphs of a test case.

    Attributes:
        models: By the name of the model.
        situations: Of basic test cases: situation -> name of a model (see ``situations``).
    """

    models: Mapping[str, StoredGraph]
    situations: Mapping[str, Mapping[str, StoredGraph]] = field(default_factory=dict)


class GraphEvidence:
    """Judges by executed graphs.

    Args:
        graphs: Rule -> its graphs; a rule without them is left to other evidence.
    """

    name = "graph"

    def __init__(self, graphs: Mapping[str, CaseGraphs]) -> None:
        self._graphs = graphs

    def judge(self, case: BaseTestCase, models: Mapping[str, object]) -> Verdict | None:
        """Judge a test case; None: not all of its graphs are known."""
        known = self._graphs.get(case.name)
        if known is None or not (set(models) | _needed(case)) <= set(known.models):
            return None
        if any(isinstance(stored.graph, Failure) for stored in known.models.values()):
            return None
        if isinstance(case, BasicFusion):
            return self._judge_basic(case, known)
        return self._judge_cases(case, known)

    def _judge_basic(self, case: BasicFusion, known: CaseGraphs) -> Verdict:
        names = aliases(case.ops)
        n = len(names)
        parts = {
            part_name(first, end): known.models[
                "block" if end - first == n else "_".join(names[first:end])
            ]
            for first in range(n)
            for end in range(first + 1, n + 1)
        }
        alone = judge_chain(case.ops, parts, rule=case.name)
        when = {ALONE: alone} | {
            situation: judge_chain(case.ops, graphs, rule=f"{case.name}, {situation}", alone=parts)
            for situation, graphs in known.situations.items()
            if set(parts) <= set(graphs) and (BEFORE in graphs) == (BEHIND in graphs)
        }
        return replace(alone, when=when)

    def _judge_cases(self, case: BaseTestCase, known: CaseGraphs) -> Verdict:
        graphs = {name: _graph(stored) for name, stored in known.models.items()}
        kernels = tuple(node.type for node in graphs["block"].compute())
        reason = "the executed graph of the block is that of none of the cases, or of several"
        try:
            found = case.grouping(graphs)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - a class of the user's may raise anything
            found, reason = None, f"its grouping failed: {type(exc).__name__}: {exc}"
        if found is not None and (not isinstance(found, str) or found not in case.cases):
            reason = (
                f"its grouping answered {found!r:.80}; it should be one of the cases "
                f"{', '.join(case.cases)}, or None"
            )
            found = None
        if not any(graph.nodes for graph in graphs.values()):
            found, reason = None, _NOTHING
        if found is None:
            return Verdict.none("undecided", reason, evidence=self.name, kernels=kernels)
        return Verdict.of(found, self.name, kernels=kernels)


def _needed(case: BaseTestCase) -> set[str]:
    """Names of the models that a test case is judged by."""
    if isinstance(case, BasicFusion):
        names, n = aliases(case.ops), len(case.ops)
        runs = ((first, end) for first in range(n) for end in range(first + 1, n + 1))
        return {"block"} | {"_".join(names[a:b]) for a, b in runs if b - a < n}
    return {"block", *(op for ops in case.cases.values() for op in ops)}


def judge_chain(
    ops: Sequence[str],
    parts: Mapping[str, StoredGraph],
    *,
    rule: str,
    alone: Mapping[str, StoredGraph] | None = None,
) -> Verdict:
    """Judge a chain in one situation.

    Args:
        ops: Names of its operators.
        parts: The graphs of a situation's models, by the names that ``situations`` gives them.
        rule: For messages.
        alone: The graphs of the chain with nothing around it; default: those in ``parts``.
    """
    for name, stored in parts.items():
        if isinstance(failure := stored.graph, Failure):
            word: Literal["unsupported", "undecided"] = (
                "unsupported" if failure.kind == "refused" else "undecided"
            )
            reason = f"{name}: {failure.kind}: {failure.reason}"
            return Verdict.none(word, reason, evidence="graph")
    if not any(_graph(stored).nodes for stored in parts.values()):
        return Verdict.none("undecided", _NOTHING, evidence="graph", kernels=())
    alone = parts if alone is None else alone
    n = len(ops)
    singles = [alone[part_name(k, k + 1)] for k in range(n)]
    chain = _Chain(ops, parts, singles, alone[part_name(0, n)])
    edges = chain.edges()
    for edge in edges:
        if edge.verdict == "undecided":
            log.warning("%s: %s", rule, edge.reason)
    kernels = tuple(node.type for node in chain.block.compute())
    shown = edges if len(ops) > 2 else ()
    free = tuple(dict.fromkeys(name for edge in edges for name in edge.free))
    words = [edge.verdict for edge in edges]
    moves = tuple(node.type for node in chain.block.nodes if node.kind == "move")
    rest: dict[str, Any] = {"kernels": kernels, "moves": moves, "edges": shown, "free": free}
    if "undecided" in words:
        reason = next(edge.reason for edge in edges if edge.verdict == "undecided")
        return Verdict.none("undecided", reason, evidence="graph", **rest)
    if "separate" in words:
        return Verdict.of(False, "graph", **rest)
    if "free" in words:
        verb = "executes" if len(free) == 1 else "execute"
        reason = f"{' and '.join(free)} {verb} nothing that computes"
        return Verdict.none("free", reason, evidence="graph", **rest)
    return Verdict.of(True, "graph", eliminated=chain.eliminated(), **rest)


class _Chain:
    """The graphs of a chain and of all its parts, each without what is around it."""

    def __init__(
        self,
        ops: Sequence[str],
        parts: Mapping[str, StoredGraph],
        singles: Sequence[StoredGraph],
        block: StoredGraph,
    ) -> None:
        self._ops = ops
        self._twins = [
            k
            for k, single in enumerate(singles)
            if single.outputs is not None and single.outputs == block.outputs
        ]
        self._computes = [bool(_on_the_way(_graph(single))) for single in singles]
        self._parts = parts
        self._context = BEFORE in parts
        self._n = len(ops)

    @property
    def block(self) -> ExecutedGraph:
        return self._of(0, self._n)

    def _of(self, first: int, end: int) -> ExecutedGraph:
        return _graph(self._parts[part_name(first, end)])

    def edges(self) -> list[Edge]:
        """Judge each two neighbours."""
        counted, covered = self._counted(), self._coverage()
        return [
            self._edge(k, None if counted is None else counted[k], covered)
            for k in range(self._n - 1)
        ]

    def _edge(self, k: int, counted: bool | None, coverage: Coverage | None) -> Edge:
        pair = (self._ops[k], self._ops[k + 1])
        covered = coverage.edges[k] if coverage is not None else None
        idle = coverage.idle if coverage is not None and counted and not covered else ()
        free = tuple(self._ops[side] for side in (k, k + 1) if side in idle or self._is_free(side))
        if free:
            return Edge(ops=pair, verdict="free", free=tuple(dict.fromkeys(free)))
        if counted is None and covered is None:
            return _undecided(
                pair, "counted from the front and from the back, the executed nodes disagree"
            )
        if counted and covered is False and self.eliminated():
            return Edge(ops=pair, verdict="fused")
        if counted is not None and covered is not None and covered != counted:
            told = "one executed node covers both" if covered else "no executed node covers both"
            return _undecided(
                pair,
                f"{told}, but the block executes {'fewer' if counted else 'no fewer'} nodes than "
                "its ops alone",
            )
        fused = covered if counted is None else counted
        return Edge(ops=pair, verdict="fused" if fused else "separate")

    def _is_free(self, side: int) -> bool:
        """Whether an op executes nothing that computes: not alone, and not in the chain either.

        (OpenVINO's split is a view alone, and a kernel behind a convolution.)
        """
        if self._computes[side]:
            return False
        after = side > 0 and self._count(0, side + 1) > self._count(0, side)
        before = side + 1 < self._n and self._count(side, self._n) > self._count(side + 1, self._n)
        return not after and not before

    def _counted(self) -> list[bool] | None:
        """For each two neighbours whether they fuse, by counting; None: it cannot be told.

        From the front each op is joined to all that stand before it, from the back to all that
        stand behind. In a chain of three the two may differ (an addition that either neighbour
        would take): then that one is right whose groups execute what the block executes. A single
        node is all of them, though no two neighbours fuse.
        """
        ahead = [self._joined((0, k + 1), (k + 1, k + 2)) for k in range(self._n - 1)]
        behind = [self._joined((k, k + 1), (k + 1, self._n)) for k in range(self._n - 1)]
        if ahead == behind:
            return ahead
        fitting = [fused for fused in (ahead, behind) if self._fits(fused)]
        if not fitting and self._count(0, self._n) == 1 and all(self._computes):
            return [True] * (self._n - 1)
        return fitting[0] if len(fitting) == 1 else None

    def _joined(self, left: tuple[int, int], right: tuple[int, int]) -> bool:
        """Whether two runs of ops execute fewer nodes together than one by one."""
        whole = (left[0], right[1])
        if self._count(*left) + self._count(*right) <= self._count(*whole):
            return False
        # Fewer, but each with nodes of its own: a runtime may say one side in other ops where it
        # stands behind another one (MNN's prelu is three nodes alone, and one behind a pool).
        sides = [self._own_types(*side) for side in (left, right)]
        found = self._own_types(*whole)
        return not any(
            mine <= found and (rest := found - mine) and not rest <= other
            for mine, other in (sides, sides[::-1])
        )

    def _fits(self, fused: Sequence[bool]) -> bool:
        """Whether groups that are put together so execute, by themselves, what the block does."""
        starts = [0, *(k + 1 for k, joined in enumerate(fused) if not joined), self._n]
        found: Counter[str] = Counter()
        for first, end in pairwise(starts):
            found += _types(self._of(first, end))
        return found == _types(self.block)

    def _count(self, first: int, end: int) -> int:
        """Compute nodes of some of the ops, less those of what is around them."""
        found = _on_the_way(self._of(first, end)) + self._moved_aside(first, end)
        if self._context and first == 0:
            found -= _on_the_way(_graph(self._parts[BEFORE]))
        if self._context and end == self._n:
            found -= _on_the_way(_graph(self._parts[BEHIND]))
        if self._of(first, end).inputs is None:
            found -= sum(  # the operands' own nodes cannot be told from the chain's
                len(_graph(self._parts[operand_name(position)]).compute())
                for position in range(first, end)
                if operand_name(position) in self._parts
            )
        return found

    def _moved_aside(self, first: int, end: int) -> int:
        """Compute nodes that prepare other operands, and that these do not execute by themselves.

        They do work of the ops: a product's scale may be put upon one of its operands, or into the
        convolution that this one comes from. A node into which less is fused than into one of the
        operand's own does nothing for the chain (IREE adds a bias of the operand's behind it).
        """
        found = _aside(self._of(first, end))
        own: Counter[str] = Counter()
        for position in range(first, end):
            if (operand := self._parts.get(operand_name(position))) is not None:
                own += _types(_graph(operand))
        found, own = found - own, own - found
        for type_ in [*found.elements()]:
            fuller = next((each for each in own.elements() if _words(type_) <= _words(each)), None)
            if fuller is not None:
                found[type_] -= 1
                own[fuller] -= 1
        return found.total()

    def _own_types(self, first: int, end: int) -> Counter[str]:
        """Types of the compute nodes of some of the ops, without those of what is around them."""
        found = _types_on_the_way(self._of(first, end))
        if self._context and first == 0:
            found = found - _types_on_the_way(_graph(self._parts[BEFORE]))
        if self._context and end == self._n:
            found = found - _types_on_the_way(_graph(self._parts[BEHIND]))
        return found

    def _coverage(self) -> Coverage | None:
        if self._context:
            return None  # which of the model's ops are the context's is not told
        return read_coverage(self.block, [self._of(k, k + 1) for k in range(self._n)])

    def eliminated(self) -> bool:
        """Whether the runtime executes one of two ops as if the other were not there.

        Both must hold: the model computes just what that op alone does, and is executed by the same
        nodes. (A batch normalization that is folded into a convolution's weights leaves the same
        nodes, too, but other values.)
        """
        coverage = self._coverage()
        if self._n != 2 or (coverage is not None and coverage.edges[0]):
            return False
        found = self._own_types(0, 2)
        return any(self._own_types(k, k + 1) == found for k in self._twins)


def _undecided(pair: tuple[str, str], reason: str) -> Edge:
    return Edge(ops=pair, verdict="undecided", reason=f"{pair[0]} and {pair[1]}: {reason}")


def _on_the_way(graph: ExecutedGraph) -> int:
    """Compute nodes that depend on the model's first input; all, where tensors are not told."""
    return _types_on_the_way(graph).total()


def _aside(graph: ExecutedGraph) -> Counter[str]:
    """Types of the compute nodes that do not depend on the model's first input."""
    return _types(graph) - _types_on_the_way(graph)


def _types_on_the_way(graph: ExecutedGraph) -> Counter[str]:
    nodes = graph.nodes if graph.inputs is None else graph.behind(graph.inputs[:1])
    return Counter(node.type for node in nodes if node.kind == "compute")


def _words(type_: str) -> Counter[str]:
    """The words of a node's type: the operator, and what was fused into it."""
    return Counter(re.findall(r"[^\W_]+|[?]", type_))


def _types(graph: ExecutedGraph) -> Counter[str]:
    return Counter(node.type for node in graph.compute())


def _graph(stored: StoredGraph) -> ExecutedGraph:
    assert isinstance(stored.graph, ExecutedGraph), stored.graph
    return stored.graph
