"""What the names of executed nodes leave open, settled by what the nodes were made of.

OpenVINO gives an op that transformations made of others a name of its own, and forgets theirs; of
the nodes that hold such ops ``sources`` cannot tell what they cover. What it made of the model
before its plugin took over says more: of which ops each layer was made. That is no exact answer
either: a constant takes the names of all that it was computed from along, and slices that became
one split have no name. So structure has a word, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cache

from nn_meter.builder.backends.executed import ExecutedNode, ModelOp

__all__ = ["reads_more", "settled"]


def settled(
    nodes: Sequence[ExecutedNode],
    ops: Sequence[ModelOp],
    sure: Mapping[str, int],
    told: Mapping[int, Set[str]],
    made_of: Mapping[int, Sequence[Set[str]]],
) -> tuple[dict[int, set[str]], dict[int, set[str]]]:
    """Tell what nodes cover of which names do not tell all.

    An op that layers of several nodes were made of is in the first: the others got its name with a
    constant. What else such a layer was made of, and no other, may be in either node, so it is in
    none. A node that stands alone between others covers all that leads from these to those.

    Args:
        nodes: What was executed.
        ops: The model's ops, those left out that only change the layout.
        sure: Op -> the node that covers it, where names tell all.
        told: For each open node the ops that it is named after; there may be others in it.
        made_of: For each open node, and each layer in it, the ops that it was made of.

    Returns:
        For the open nodes what they cover, left out those of which it stays open; and for other
        nodes what may be in one of these instead.
    """
    return _Doubts(nodes, ops, sure, told, made_of).settled()


def reads_more(node: ExecutedNode, names: Set[str], ops: Mapping[str, ModelOp]) -> bool:
    """Whether ops read more tensors than a node does: then it cannot be what executes them.

    Args:
        node: The node.
        names: Of the ops; those that are not in ``ops`` do not count.
        ops: The model's ops; those that only change the layout are left out, and passed.
    """
    inside = [ops[name] for name in names if name in ops]
    given = {tensor for op in inside for tensor in op.outputs}
    return len({t for op in inside for t in op.inputs} - given) > len(set(node.inputs))


class _Doubts:
    """The arguments are those of ``settled``."""

    def __init__(
        self,
        nodes: Sequence[ExecutedNode],
        ops: Sequence[ModelOp],
        sure: Mapping[str, int],
        told: Mapping[int, Set[str]],
        made_of: Mapping[int, Sequence[Set[str]]],
    ) -> None:
        self._nodes, self._told, self._made_of = nodes, told, made_of
        self._ops = {op.name: op for op in ops}
        self._owner = {name: i for name, i in sure.items() if name in self._ops}
        for i, names in told.items():
            for name in names:
                self._owner.setdefault(name, i)
        self._makers = {tensor: op.name for op in ops for tensor in op.outputs}
        self._readers: dict[str, list[str]] = {}
        for op in ops:
            for tensor in op.inputs:
                self._readers.setdefault(tensor, []).append(op.name)
        self._next = cache(self._found_next)

    def settled(self) -> tuple[dict[int, set[str]], dict[int, set[str]]]:
        free = {name for name in self._ops if name not in self._owner}
        free -= self._by_what_they_were_made_of(free)
        unsettled = self._by_what_is_between({name for name in free if name not in self._owner})
        covers: dict[int, set[str]] = {i: set() for i in self._told if i not in unsettled}
        for name, i in self._owner.items():
            if i in covers:
                covers[i].add(name)
        covers = {
            i: names
            for i, names in covers.items()
            if not reads_more(self._nodes[i], names, self._ops)
        }
        return covers, self._in_doubt(self._told.keys() - covers.keys())

    def _in_doubt(self, unsettled: Set[int]) -> dict[int, set[str]]:
        """What a node of which nothing is told was made of may not be beside it, where it is named.

        That is so where a part of it was moved up past others.
        """
        found: dict[int, set[str]] = {}
        for i in unsettled:
            beside = {j for j in range(len(self._nodes)) if i in self._next(j)} | self._next(i)
            for name in set().union(*self._made_of[i]):
                if (owner := self._owner.get(name, -1)) in beside:
                    found.setdefault(owner, set()).add(name)
        return found

    def _by_what_they_were_made_of(self, free: Set[str]) -> set[str]:
        """Give ops to nodes; returns those that may be in either of two."""
        first: dict[str, int] = {}
        for i in sorted(self._made_of):
            for name in set().union(*self._made_of[i]) & free:
                first.setdefault(name, i)
        clean: dict[str, int] = {}
        for i, layers in self._made_of.items():
            for names in layers:
                mine = {name for name in names & free if first[name] == i}
                if mine == names & free:
                    clean |= dict.fromkeys(mine, i)
        shared = {
            name
            for i, layers in self._made_of.items()
            for names in layers
            for name in names & free
            if first[name] != i
        }
        self._owner |= clean
        self._owner |= {name: first[name] for name in shared}
        return {name for name in first if name not in self._owner}

    def _by_what_is_between(self, free: Set[str]) -> set[int]:
        """Give ops to nodes; returns the nodes of which it stays open whether they have them."""
        unsettled: set[int] = set()
        for together in self._joined(free):
            before = {self._owner.get(name, -1) for name in self._neighbours(together, back=True)}
            behind = {self._owner.get(name, -1) for name in self._neighbours(together, back=False)}
            between = {
                i
                for i in self._told
                if all(i in self._next(j) for j in before) and behind.issubset(self._next(i))
            }
            if before and behind and len(between) == 1 and not self._skipped(before, behind):
                self._owner |= dict.fromkeys(together, between.pop())
            else:
                unsettled |= before | behind | between
        return unsettled

    def _joined(self, free: Set[str]) -> Iterator[set[str]]:
        """Ops that are joined by tensors."""
        left = dict.fromkeys(name for name in self._ops if name in free)
        while left:
            together, waiting = set[str](), [next(iter(left))]
            while waiting:
                name = waiting.pop()
                if name in left:
                    del left[name]
                    together.add(name)
                    waiting += self._neighbours({name}, back=True)
                    waiting += self._neighbours({name}, back=False)
            yield together

    def _neighbours(self, names: Set[str], *, back: bool) -> list[str]:
        """The ops that others read, or that read them; in ``back`` what is given is ``""``."""
        found = []
        for name in names:
            op = self._ops[name]
            if back:
                found += [self._makers.get(tensor, "") for tensor in op.inputs]
            else:
                found += [r for tensor in op.outputs for r in self._readers.get(tensor, ())]
        return [name for name in found if name not in names]

    def _skipped(self, before: Set[int], behind: Set[int]) -> bool:
        """Whether a node reads another one by which ops between them were left out."""
        for i in before:
            for j in behind & self._next(i):
                reads = {
                    self._owner.get(self._makers.get(tensor, ""), -1)
                    for name, owner in self._owner.items()
                    if owner == j
                    for tensor in self._ops[name].inputs
                }
                if i not in reads:
                    return True
        return False

    def _found_next(self, start: int) -> frozenset[int]:
        """The nodes behind one, through those that only move data and cover nothing."""
        if start < 0:
            return frozenset()
        reached = set(self._nodes[start].outputs)
        holding = set(self._owner.values())
        found = set()
        for i in range(start + 1, len(self._nodes)):
            node = self._nodes[i]
            if reached.intersection(node.inputs):
                found.add(i)
                if node.kind != "compute" and i not in holding:
                    reached.update(node.outputs)
        return frozenset(found)
