"""Which of the model's ops each executed node covers, from the names that OpenVINO gives for it.

The runtime says of a node which ops it came from (``originalLayersNames``): first the main op, last
the op whose output the node gives. These are names of the model's ops, which it keeps for that
purpose, with gaps: an op that a transformation merged into another loses its name to that one
(of x * sigmoid(x) the multiplication is named), and an op that was moved past a reshape gets a new
one and leaves its own to the reshape. This module closes the gaps where the graph leaves one answer
only, else by what is known of the transformations (``merged``), and says None where that does not
help. The names are never looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from nn_meter.builder.backends.executed import ExecutedNode, ModelOp
from nn_meter.builder.backends.openvino.doubts import reads_more, settled

__all__ = ["Covered", "Merged", "covered"]

Merged = Callable[[], Mapping[str, Set[str]]]

_LAYOUT = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Transpose", "Convert"})
_SLICES = frozenset({"Slice", "StridedSlice"})  # several of them become a split
_IN_PLACE = frozenset({"Split", "VariadicSplit", "Concat"}) | _SLICES


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
    nodes: Sequence[ExecutedNode],
    named: Sequence[Sequence[str]],
    ops: Sequence[ModelOp],
    *,
    moves: frozenset[str] = frozenset(),
    merged: Merged = dict,
) -> list[Covered]:
    """Tell what each node covers.

    Args:
        nodes: What was executed; their ``sources`` are not read.
        named: For each node the names that the runtime gives for it, in its order.
        ops: The model's ops in a topological order, each with a name of its own.
        moves: Names of what is in the model and no op of it, such as transposes.
        merged: Gives, for names that the runtime gives, those of all ops that they were made of,
            and maybe more, as far as that is known; called if it is needed.

    Returns:
        For each node what it covers.
    """
    found = _by_names(nodes, named, ops, moves)
    joined = {op.name: op for op in _joined(ops) if op.type not in _LAYOUT}
    for i, each in enumerate(found):
        if each.certain and reads_more(nodes[i], {op.name for op in each.ops}, joined):
            found[i] = replace(each, certain=False)
    computing = [each for node, each in zip(nodes, found, strict=True) if node.kind != "const"]
    if all(each.certain for each in computing) or not (made_of := merged()):
        return found
    return _with_doubts_settled(nodes, named, ops, moves, made_of, found, joined)


def _by_names(
    nodes: Sequence[ExecutedNode],
    named: Sequence[Sequence[str]],
    ops: Sequence[ModelOp],
    moves: frozenset[str],
) -> list[Covered]:
    known = {op.name: op for op in ops}
    direct = [{name for name in names if name in known} for names in named]
    inferred = _inferred(direct, ops)
    # Its output is no tensor of the model's: it holds an op that was moved there, under a name that
    # tells nothing. (An unknown name before a known last one is a part of what leads to that.)
    open_ended = [
        i
        for i, node in enumerate(nodes)
        if node.kind == "compute" and not _ends_known(named[i], known.keys() | moves)
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
                certain=i not in doubtful and (bool(names) or moves.issuperset(named[i])),
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

    Ops that only change the layout, and slices, stay out: a node that does so itself may have no
    name, or another one.
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
            if op.type not in _LAYOUT | _SLICES:
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


def _ends_known(names: Sequence[str], known: Set[str]) -> bool:
    return bool(names) and names[-1] in known


def _with_doubts_settled(
    nodes: Sequence[ExecutedNode],
    named: Sequence[Sequence[str]],
    ops: Sequence[ModelOp],
    moves: frozenset[str],
    merged: Mapping[str, Set[str]],
    found: Sequence[Covered],
    joined: Mapping[str, ModelOp],
) -> list[Covered]:
    types = {op.name: op.type for op in ops}

    def fitting(i: int, names: Iterable[str]) -> set[str]:
        """What computes is in no node that does not."""
        inside = {name for name in names if name in types and types[name] not in _LAYOUT}
        if nodes[i].kind != "compute":
            inside = {name for name in inside if types[name] in _IN_PLACE}
        return inside

    doubtful = [i for i, each in enumerate(found) if not each.certain and nodes[i].kind != "const"]
    made_of = {
        i: [fitting(i, merged[name]) for name in named[i] if name in merged] for i in doubtful
    }
    covers, in_doubt = settled(
        nodes,
        list(joined.values()),
        {op.name: i for i, each in enumerate(found) if each.certain for op in each.ops},
        {i: fitting(i, named[i]) for i in doubtful},
        made_of,
    )
    ends = types.keys() | moves
    told = list(found)
    for i, inside in covers.items():
        # Its last name is its output's. One that is not known is of what it was made of.
        explained = _ends_known(named[i], ends) or not inside.issubset(named[i])
        if inside and explained:
            named_too = inside.union(name for name in named[i] if types.get(name) in _LAYOUT)
            told[i] = Covered(ops=tuple(op for op in ops if op.name in named_too), certain=True)
    for i, names in in_doubt.items():
        told[i] = replace(told[i], ops=tuple(op for op in told[i].ops if op.name not in names))
    return told


def _joined(ops: Sequence[ModelOp]) -> Iterator[ModelOp]:
    """The ops, each as reading what those give whose output it gets by way of the layout's."""
    same: dict[str, str] = {}
    for op in ops:
        reads = tuple(same.get(tensor, tensor) for tensor in op.inputs)
        if op.type in _LAYOUT and reads:
            same |= dict.fromkeys(op.outputs, reads[0])
        yield replace(op, inputs=reads)
