"""Rules of users' own: a test case class that says which kernels each of its cases means.

Besides what a test case has, its class carries::

    pattern = {"dw": ("dwconv", "x"), "sum": ("add", "dw", "y"), "act": ("relu", "sum")}
    kernels = {"case1": [["dw", "sum"], ["act"]], "case2": [["dw"], ["sum", "act"]]}

``pattern`` names the operators of its block: the operator, then what it reads, which is another
name of the pattern or, under any other name, a tensor from outside; the same name is the same
tensor.
What ``kernels`` does not name is left to the other rules.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nn_meter import registry
from nn_meter.errors import NNMeterError, OperatorError
from nn_meter.fusion_rules.rules import RuleSet
from nn_meter.kernel_detector.recognition import Recognized

__all__ = ["Block", "Customized", "customized_rules", "find_blocks"]

log = logging.getLogger(__name__)

_COMMUTE = frozenset({"add", "mul"})


@dataclass(frozen=True, kw_only=True)
class Customized:
    """How a test case's block is split where it stands in a model.

    Attributes:
        name: The rule's.
        case: How the rule came out.
        pattern: Name -> operator and what it reads.
        kernels: Names of the operators in each kernel.
    """

    name: str
    case: str
    pattern: Mapping[str, tuple[str, ...]]
    kernels: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A place in a model that a customized rule is about.

    Attributes:
        rule: The rule.
        nodes: Name in its pattern -> place of the node.
    """

    rule: Customized
    nodes: Mapping[str, int]


def customized_rules(
    rules: RuleSet, testcases: Sequence[type[Any]] | None = None
) -> list[Customized]:
    """The rules of users' own that say how a model is split.

    Args:
        rules: What came out.
        testcases: Classes of test cases; None: those that are registered, loaded only if there is
            a rule that could be theirs.

    Raises:
        OperatorError: A class has a pattern or kernels that mean nothing.
    """
    named = {
        name: rule.alone.obey
        for name, rule in rules.rules.items()
        if not name.startswith("BF_") and isinstance(rule.alone.obey, str)
    }
    if testcases is None:
        builtin = {e.name for e in registry.entries("testcase") if e.origin == "builtin"}
        testcases = _registered() if named.keys() - builtin else ()
    found = []
    for cls in testcases:
        pattern, kernels = getattr(cls, "pattern", None), getattr(cls, "kernels", None)
        name = getattr(cls, "name", "")
        if name not in named or pattern is None or kernels is None:
            continue
        found.append(_checked(name, named[name], pattern, kernels))
    return found


def _registered() -> list[type[Any]]:
    found = []
    for entry in registry.entries("testcase"):
        if entry.origin == "builtin":
            continue
        try:
            found.append(registry.load(entry))
        except NNMeterError as exc:  # its rule is not applied; the model is split all the same
            log.warning("test case %s: its rule is not applied: %s", entry.name, exc)
    return found


def _checked(name: str, case: str, pattern: Any, kernels: Any) -> Customized:
    if (
        not isinstance(pattern, Mapping)
        or not pattern
        or not all(_are_texts(line) and len(line) > 1 for line in pattern.values())
    ):
        raise OperatorError(
            f"{name}: pattern should be a dict of name -> (operator, what it reads, ...), but is "
            f"{pattern!r:.200}"
        )
    if not isinstance(kernels, Mapping) or case not in kernels:
        raise OperatorError(
            f"{name}: kernels should be a dict of case -> kernels with {case!r} in it, but is "
            f"{kernels!r:.200}"
        )
    groups = kernels[case]
    members = [op for group in groups for op in group] if _are_lists(groups) else []
    if not members or len(set(members)) < len(members) or not pattern.keys() >= set(members):
        raise OperatorError(
            f"{name}: kernels of {case} should be lists of names in the pattern, each name once, "
            f"but are {groups!r:.200}"
        )
    return Customized(
        name=name,
        case=case,
        pattern={op: tuple(line) for op, line in pattern.items()},
        kernels=tuple(tuple(group) for group in groups),
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)


def _are_lists(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_are_texts, value))


# --- where they apply ----------------------------------------------------------------------------


def find_blocks(
    model: Recognized, rules: Sequence[Customized]
) -> tuple[list[Block], list[tuple[Block, str]]]:
    """Find the blocks of customized rules: the longest pattern first, then the first place.

    Returns:
        The blocks, which have no node in common; and those that were refused, each with why.
    """
    taken: set[int] = set()
    found: list[Block] = []
    refused: dict[tuple[str, frozenset[int]], tuple[Block, str]] = {}  # once, if it is symmetric
    by_operator: dict[str, list[int]] = {}
    for place, node in enumerate(model.nodes):
        by_operator.setdefault(node.operator, []).append(place)
    for rule in sorted(rules, key=lambda rule: -len(rule.pattern)):
        order = _connected(rule.pattern)
        for start in by_operator.get(rule.pattern[order[0]][0], ()):
            if start in taken:
                continue
            nodes = next(_matches(model, rule, order, {order[0]: start}, {}, taken), None)
            if nodes is None:
                continue
            block = Block(rule=rule, nodes=nodes)
            why = _refusal(model, block)
            if why:
                refused.setdefault((rule.name, frozenset(nodes.values())), (block, why))
            else:
                found.append(block)
                taken.update(nodes.values())
    return found, list(refused.values())


def _connected(pattern: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Names so that each but the first is a neighbour of one before it, as far as there is one."""
    left, order = list(pattern), list[str]()
    while left:
        near = (op for op in left if any(_touch(pattern, op, other) for other in order))
        order.append(next(near, left[0]))
        left.remove(order[-1])
    return order


def _touch(pattern: Mapping[str, tuple[str, ...]], a: str, b: str) -> bool:
    return bool(
        a in pattern[b][1:]
        or b in pattern[a][1:]
        or (set(pattern[a][1:]) & set(pattern[b][1:]))  # they read the same tensor
    )


def _matches(
    model: Recognized,
    rule: Customized,
    order: Sequence[str],
    nodes: dict[str, int],
    tensors: dict[str, str],
    taken: set[int],
) -> Iterator[dict[str, int]]:
    """All ways to go on with a match whose last node was just set."""
    op = order[len(nodes) - 1]
    for bound in _bindings(model, rule, op, nodes, tensors):
        if len(nodes) == len(order):
            yield nodes
            continue
        following = order[len(nodes)]
        for place in _candidates(model, rule, following, nodes, bound):
            if place in taken or place in nodes.values():
                continue
            if model.nodes[place].operator == rule.pattern[following][0]:
                yield from _matches(model, rule, order, {**nodes, following: place}, bound, taken)


def _bindings(
    model: Recognized,
    rule: Customized,
    op: str,
    nodes: Mapping[str, int],
    tensors: dict[str, str],
) -> Iterator[dict[str, str]]:
    """The ways in which a node's inputs are what the pattern says."""
    operator, *names = rule.pattern[op]
    inputs = model.nodes[nodes[op]].inputs
    if len(inputs) != len(set(names)):
        return
    names = list(dict.fromkeys(names))
    swapped = operator in _COMMUTE and len(inputs) == 2
    for order in (inputs, inputs[::-1]) if swapped else (inputs,):
        bound = dict(tensors)
        if all(bound.setdefault(n, t) == t for n, t in zip(names, order, strict=True)) and all(
            bound[name] in model.nodes[place].outputs
            for name, place in nodes.items()
            if name in bound
        ):
            yield bound


def _candidates(
    model: Recognized,
    rule: Customized,
    op: str,
    nodes: Mapping[str, int],
    tensors: Mapping[str, str],
) -> Iterator[int]:
    """Nodes that could be the next one: makers and readers of what is bound already."""
    if op in tensors:
        if tensors[op] in model.makers:
            yield model.makers[tensors[op]]
        return
    seen: set[int] = set()
    for name in rule.pattern[op][1:]:
        sources = []
        if name in nodes:
            sources = list(model.readers[nodes[name]])
        elif name in tensors:
            sources = list(model.tensor_readers.get(tensors[name], ()))
        for place in sources:
            if place not in seen:
                seen.add(place)
                yield place


def _refusal(model: Recognized, block: Block) -> str:
    """Why a block cannot be split as the rule says; empty: it can."""
    inside = set(block.nodes.values())
    for name, place in block.nodes.items():
        is_read = any(name in line[1:] for line in block.rule.pattern.values())
        if is_read and (model.nodes[place].is_kept or not inside.issuperset(model.readers[place])):
            return f"{model.nodes[place].name} is read from outside the block"
    for group in block.rule.kernels:
        if not _is_one_way({block.nodes[name] for name in group}, model):
            return f"{' and '.join(group)} cannot be one kernel here: others stand between them"
    return ""


def _is_one_way(group: set[int], model: Recognized) -> bool:
    """Whether all that enters a group leads to all that leaves it, so that no cycle can arise."""
    leaving = [p for p in sorted(group) if not group.issuperset(model.readers[p])]
    entering = {
        place
        for place in group
        if any(model.makers.get(tensor) not in group for tensor in model.nodes[place].inputs)
    }
    return all(entering <= _behind(group, place, model) for place in leaving)


def _behind(group: set[int], place: int, model: Recognized) -> set[int]:
    """Members of a group that lead to one of them, itself included."""
    found, todo = {place}, [place]
    while todo:
        for tensor in model.nodes[todo.pop()].inputs:
            maker = model.makers.get(tensor)
            if maker in group and maker not in found:
                found.add(maker)
                todo.append(maker)
    return found
