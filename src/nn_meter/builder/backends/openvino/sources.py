"""Which of the model's ops each executed node covers, from the names that OpenVINO gives for it.

The runtime says of a node which ops it came from (``originalLayersNames``): first the main op, last
the op whose output the node gives. These are names of the model's ops, which it keeps for that
purpose, with gaps: an op that a transformation merged into another loses its name to that one
(of x * sigmoid(x) the multiplication is named), and an op that was moved past a reshape gets a new
one and leaves its own to the reshape. This module closes the gaps where the graph leaves one answer
only, and says None where it does not. The names are never looked into.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from nn_meter.builder.backends.executed import ExecutedNode, ModelOp

__all__ = ["Covered", "covered"]

_LAYOUT = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Transpose", "Convert"})
_IN_PLACE = frozenset({"Split", "VariadicSplit", "Concat"})


@dataclass(frozen=True, kw_only=True)
class Covered:
    """What a node covers.

    Attributes:
        ops: The model's ops, in the model's order, as far as they are told.
        certain: Whether these are all.
    """

    ops: tuple[ModelOp, ...]
    certain: bool


def covered(
    nodes: Sequence[ExecutedNode], named: Sequence[Sequence[str]], ops: Sequence[ModelOp]
) -> list[Covered]:
    """Tell what each node covers.

    Args:
        nodes: What was executed; their ``sources`` are not read.
        named: For each node the names that the runtime gives for it, in its order.
        ops: The model's ops in a topological order, each with a name of its own.

    Returns:
        For each node what it covers.
    """
    known = {op.name: op for op in ops}
    direct = [{name for name in names if name in known} for names in named]
    inferred = _inferred(direct, ops)
    # Its output is no tensor of the model's: it holds an op that was moved there, under a name that
    # tells nothing. (An unknown name before a known last one is a part of what leads to that.)
    open_ended = [
        i
        for i, node in enumerate(nodes)
        if node.kind == "compute" and not (named[i] and named[i][-1] in known)
    ]
    computing = {op.name for op in ops if op.type not in _LAYOUT | _IN_PLACE}
    doubtful = _moved_back(open_ended, nodes, computing, direct, inferred)
    found = []
    for i, node in enumerate(nodes):
        names = direct[i] | (set() if i in doubtful else inferred[i])
        if node.kind != "compute":  # a name that another op left to it
            names -= computing
        found.append(
            Covered(
                ops=tuple(op for op in ops if op.name in names),
                certain=i not in doubtful and (bool(names) or not named[i]),
            )
        )
    return found


def _moved_back(
    open_ended: Sequence[int],
    nodes: Sequence[ExecutedNode],
    computing: Set[str],
    direct: Sequence[set[str]],
    inferred: Sequence[set[str]],
) -> set[int]:
    """Give each node that holds a moved op that op, where there is one answer only.

    Changes ``direct`` and ``inferred``; returns the nodes of which it stays open what they cover.
    """
    doubtful: set[int] = set()
    unexplained = []
    for i in open_ended:
        behind = _next(i, nodes)
        passed = [j for j in behind if nodes[j].kind != "compute"]
        takers = [j for j in behind if nodes[j].kind == "compute"]
        # What only moves data cannot have computed the op that it is named after: that op was moved
        # up, and this is where to.
        moved = computing & set().union(*(direct[j] | inferred[j] for j in passed))
        # What the next node was only inferred to cover may as well be here; if this node has
        # nothing else, and there is but one op, it is.
        maybe = computing & set().union(*(inferred[j] for j in takers))
        if not moved and not direct[i] and not inferred[i] and len(maybe) == 1:
            moved = maybe
        elif maybe:
            doubtful.update([i], [j for j in takers if inferred[j]])
        elif not moved:
            unexplained.append(i)
        for j in behind:
            direct[j].difference_update(moved)
            inferred[j].difference_update(moved)
        direct[i].update(moved)
    # An op before no op that has a name is in no node that ends with one.
    left = set(computing).difference(*direct, *inferred)
    if left and len(unexplained) == 1:
        direct[unexplained[0]].update(left)
    else:
        doubtful.update(unexplained)
    return doubtful


def _inferred(direct: Sequence[Set[str]], ops: Sequence[ModelOp]) -> list[set[str]]:
    """The ops that no node is named after, by the node that covers all that reads them.

    Ops that only change the layout stay out: a node that does so itself may have no name.
    """
    owners: dict[str, set[int]] = {}
    for i, names in enumerate(direct):
        for name in names:
            owners.setdefault(name, set()).add(i)
    readers: dict[str, list[str]] = {}
    for op in ops:
        for tensor in op.inputs:
            readers.setdefault(tensor, []).append(op.name)
    inferred: list[set[str]] = [set() for _ in direct]
    for op in reversed(ops):
        if op.name in owners:
            continue
        by = [reader for tensor in op.outputs for reader in readers.get(tensor, ())]
        owning = set().union(*(owners.get(reader, set()) for reader in by))
        if len(owning) == 1 and all(owners.get(reader) for reader in by):
            owners[op.name] = owning
            if op.type not in _LAYOUT:
                inferred[next(iter(owning))].add(op.name)
    return inferred


def _next(start: int, nodes: Sequence[ExecutedNode]) -> list[int]:
    """The nodes behind one, through those that only move data, the next computing ones included."""
    reached = set(nodes[start].outputs)
    found = []
    for i in range(start + 1, len(nodes)):
        if reached.intersection(nodes[i].inputs):
            found.append(i)
            if nodes[i].kind != "compute":
                reached.update(nodes[i].outputs)
    return found
