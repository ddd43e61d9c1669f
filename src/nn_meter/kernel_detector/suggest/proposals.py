"""From edges that differ to the test cases that are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from nn_meter.fusion_rules.rules import ALONE, RuleSet
from nn_meter.kernel_detector.recognition import Recognized
from nn_meter.kernel_detector.suggest.cut import Cut, WrongEdge

__all__ = ["LONGEST", "Kind", "Proposal", "Unasked", "chains_around", "proposals"]

Kind = Literal["pair", "situations", "case", "chain", "again", "sizes"]

LONGEST = 4
"""Of the chains that are proposed."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A test case that may say what the rules do not.

    Attributes:
        kind: ``pair``: there is no rule; ``situations``: its rule was not found in several
            situations by executed graphs; ``case``: MON and the like; ``chain``: the rules of pairs
            are there, and say otherwise; ``again``: its rule says otherwise here than where it was
            found; ``sizes``: a rule that is there was asked in other sizes.
        name: Of the rule that comes of it.
        why: In words.
        edges: How many edges of the model ask for it.
    """

    kind: Kind
    name: str
    why: str
    edges: int = 1

    @property
    def ops(self) -> tuple[str, ...]:
        """The operators in a row; none: a test case of cases."""
        return tuple(self.name.split("_")[1:]) if self.name.startswith("BF_") else ()


@dataclass(frozen=True, kw_only=True)
class Unasked:
    """What no test case can be made of.

    Attributes:
        operators: Two neighbours.
        reason: Why.
        edges: How many edges of the model there are of it.
    """

    operators: tuple[str, str]
    reason: str
    edges: int


def proposals(
    found: Cut,
    rules: RuleSet,
    asked: Collection[str],
    testable: Collection[str],
    length: int = 2,
) -> tuple[list[Proposal], list[Unasked]]:
    """Propose test cases.

    Args:
        found: The model as the rules cut it.
        rules: The rules.
        asked: Names of rules that were asked for already, whatever came of it.
        testable: The operators that test cases can be made of.
        length: Of the two neighbours of each edge that differs, with what is around them. Of two
            the one that would be looked up first and was not asked yet is proposed.

    Returns:
        The proposals, in the order of the graph; and what cannot be asked.
    """
    proposed: dict[str, Proposal] = {}
    counted: Counter[str] = Counter()
    unasked: Counter[tuple[tuple[str, str], str]] = Counter()
    for edge in found.edges:
        reason = _unaskable(found, edge, testable)
        if reason:
            unasked[_operators(found, edge), reason] += 1
            continue
        new = [
            proposal
            for proposal in (
                _about_two(found, edge, rules, testable)
                if length == 2
                else _around(found, edge, testable, length)
            )
            if proposal.name not in asked
        ]
        for proposal in new[:1] if length == 2 else new:
            proposed.setdefault(proposal.name, proposal)
            counted[proposal.name] += 1
    return (
        [
            Proposal(kind=p.kind, name=name, why=p.why, edges=counted[name])
            for name, p in proposed.items()
        ],
        [
            Unasked(operators=operators, reason=reason, edges=edges)
            for (operators, reason), edges in unasked.items()
        ],
    )


def _operators(found: Cut, edge: WrongEdge) -> tuple[str, str]:
    nodes = found.model.nodes
    return nodes[edge.nodes[0]].operator, nodes[edge.nodes[1]].operator


# --- what cannot be asked ------------------------------------------------------------------------


def _unaskable(found: Cut, edge: WrongEdge, testable: Collection[str]) -> str:
    """Why nothing can be asked of an edge; empty: something can."""
    operators = _operators(found, edge)
    for op in operators:
        if not any(name in testable for name in (op, *_like(found.model, op))):
            return f"the tester has no operator {op}"
    return ""


def _like(model: Recognized, operator: str) -> Sequence[str]:
    """Operators whose rules hold of one that has none of its own."""
    known = model.patterns
    folds = known.folds_as.get(operator)
    return (*([folds] if folds else ()), *known.stands_for.get(operator, ()))


# --- what can ------------------------------------------------------------------------------------


def _around(
    found: Cut, edge: WrongEdge, testable: Collection[str], length: int
) -> Iterator[Proposal]:
    said = "fused" if edge.fused else "separate"
    for ops, position, _ in _windows(found.model, _paths(found.model, edge), length):
        if all(op in testable for op in ops):
            yield Proposal(
                kind="chain",
                name=_rule(ops),
                why=f"{ops[position]} and {ops[position + 1]} were executed {said}, and the rules "
                "of pairs say otherwise",
            )


def _about_two(
    found: Cut, edge: WrongEdge, rules: RuleSet, testable: Collection[str]
) -> Iterator[Proposal]:
    a, b = edge.nodes
    if a == b:
        yield from _about_one(found.model, a, rules, testable)
        return
    decision = edge.decision
    if decision is None:
        return
    for name in _pairs(found.model, decision.asked, testable) if len(decision.asked) == 2 else ():
        if name == decision.rule and name in rules.rules:
            break  # what is looked up behind it does not count
        if name not in rules.rules:
            yield Proposal(kind="pair", name=name, why="there is no rule")
    if decision.rule.startswith("BF_") and decision.rule in rules.rules:
        rule = rules.rules[decision.rule]
        ops = decision.rule.split("_")[1:]
        if (set(rule.findings) == {ALONE} or rule.alone.evidence != "graph") and all(
            op in testable for op in ops
        ):
            why = "its rule was not found by executed graphs in several situations"
            yield Proposal(kind="situations", name=decision.rule, why=why)
    several = len(found.model.readers[a]) > 1
    if several and edge.fused and "MON" not in rules.rules:
        yield Proposal(kind="case", name="MON", why="several operators read the tensor")
    if len(found.model.nodes[b].inputs) > 1 and "MIN" not in rules.rules:
        yield Proposal(kind="case", name="MIN", why="an operator reads several tensors")


def _about_one(
    model: Recognized, place: int, rules: RuleSet, testable: Collection[str]
) -> Iterator[Proposal]:
    """An operator of several ops that was not executed as one: how it is by itself, rules show."""
    operator = model.nodes[place].operator
    known = {op for name in rules.rules if name.startswith("BF_") for op in name.split("_")[1:]}
    if operator in known:
        return
    makers = [model.makers[t] for t in model.nodes[place].inputs if t in model.makers]
    pairs = [
        *((model.nodes[maker].operator, operator) for maker in makers),
        *((operator, model.nodes[reader].operator) for reader in model.readers[place]),
    ]
    why = f"no rule tells how {operator} is executed by itself"
    for pair in pairs:
        for name in _pairs(model, pair, testable):
            yield Proposal(kind="pair", name=name, why=why)


def _pairs(model: Recognized, asked: Sequence[str], testable: Collection[str]) -> Iterator[str]:
    """The rules that can be looked up for two operators and can be tested, the best first."""
    known = model.patterns
    one, other = asked
    folds = [known.folds_as[other]] if one in known.heavy and other in known.folds_as else []
    first = (one, *known.stands_for.get(one, ()))
    second = (other, *folds, *known.stands_for.get(other, ()))
    for a, b in product(first, second):
        if a in testable and b in testable:
            yield _rule((a, b))


def _rule(ops: Sequence[str]) -> str:
    return "_".join(["BF", *ops])


# --- chains --------------------------------------------------------------------------------------


def _paths(model: Recognized, edge: WrongEdge) -> list[tuple[list[int], int]]:
    """Nodes in a row around an edge, one row for each tensor read; and the edge's position in it.

    Of the first in a row others may read the tensor, too; of none behind it.
    """
    a, b = edge.nodes
    if a == b:
        return []
    behind = [b]
    while len(behind) < LONGEST - 1:
        readers = model.readers[behind[-1]]
        if len(readers) != 1 or model.nodes[behind[-1]].is_kept:
            break
        behind.append(readers[0])
    found = []
    for before in _before(model, a, LONGEST - 2):
        found.append(([*before, a, *behind], len(before)))
    return found


def _before(model: Recognized, place: int, most: int) -> list[list[int]]:
    """Rows of nodes that lead to one, the longest that there are."""
    if most == 0:
        return [[]]
    found = []
    alone = len(model.readers[place]) == 1
    for tensor in model.nodes[place].inputs if alone else ():
        maker = model.makers.get(tensor)
        if maker is not None:
            found += [[*row, maker] for row in _before(model, maker, most - 1)]
    return found or [[]]


def _windows(
    model: Recognized, paths: Sequence[tuple[Sequence[int], int]], length: int
) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Operators of so many neighbours in a row that hold an edge.

    Yields:
        Them, where in them the edge is, and the place of the first.
    """
    seen: set[tuple[tuple[str, ...], int]] = set()
    for row, position in paths:
        for start in range(max(0, position + 2 - length), position + 1):
            ops = tuple(model.nodes[place].operator for place in row[start : start + length])
            if len(ops) == length and (ops, position - start) not in seen:
                seen.add((ops, position - start))
                yield ops, position - start, row[start]


def chains_around(model: Recognized, edge: WrongEdge, length: int) -> Iterator[tuple[str, int]]:
    """Names of rules of chains of a length that hold an edge, and the place of their first node."""
    for ops, _, first in _windows(model, _paths(model, edge), length):
        yield _rule(ops), first
