"""What each executed node says that it covers: by its sources, or by what its tensors hold."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode
from nn_meter.builder.backends.values import Fingerprint, TracedGraph, same_values
from nn_meter.kernel_detector.check.prepare import Copy, op_named

__all__ = ["Claims", "by_sources", "by_values"]

Places = frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What executed nodes cover, before it is checked.

    Attributes:
        covers: For each node the places of the ops that it covers; None: it does not tell.
        passing: Numbers of the nodes that compute nothing: views, moves, and such as give what
            they are given.
        idle: Places of the ops that compute nothing, as far as is known.
    """

    covers: Sequence[Places | None]
    passing: frozenset[int]
    idle: Places = frozenset()


def by_sources(graph: ExecutedGraph) -> Claims:
    """Read the sources that nodes tell.

    An op of the runtime's that has no name of the copy's is a part of the one that reads it.
    """
    place_of: dict[str, int | None] = {}
    readers: dict[str, set[int | None]] = {}
    for op in reversed(graph.ops or ()):
        place = op_named(op.name)
        if place is None:
            reading = set().union(*(readers.get(tensor, set()) for tensor in op.outputs))
            place = reading.pop() if len(reading) == 1 else None
        place_of[op.name] = place
        for tensor in op.inputs:
            readers.setdefault(tensor, set()).add(place)
    covers: list[Places | None] = []
    for node in graph.nodes:
        if node.sources is None:
            covers.append(None)
        else:
            places = (place_of.get(name) for name in node.sources)
            covers.append(frozenset(place for place in places if place is not None))
    passing = {i for i, node in enumerate(graph.nodes) if node.kind != "compute"}
    return Claims(covers=covers, passing=frozenset(passing))


def by_values(traced: TracedGraph, copy: Copy) -> Claims:
    """Find by their values which tensors of the model the nodes read and write.

    A node covers the ops that lead from what it reads to what it writes. Nodes that hand on what
    is no tensor of the model's are taken together with those that read it.
    """
    known = _Classes(traced)
    written = _Written(copy, known)
    nodes = traced.graph.nodes
    passing = {
        i
        for i, node in enumerate(nodes)
        if node.kind == "const" or _same(known.executed, node.inputs, node.outputs)
    }
    covers: list[Places | None] = [frozenset()] * len(nodes)
    for together in _together(nodes, passing, known.executed):
        inside = {tensor for i in together for tensor in nodes[i].outputs}
        reads = {tensor for i in together for tensor in nodes[i].inputs} - inside
        found = written.between(
            [known.executed.get(tensor) for tensor in reads],
            [known.executed[tensor] for tensor in inside if tensor in known.executed],
        )
        # Which of several ops is in which of several nodes, nobody can tell; unless all but one of
        # the nodes only move data.
        computing = [i for i in together if nodes[i].kind == "compute"]
        if found and len(computing) == 1:
            covers[computing[0]] = found
            passing.update(i for i in together if i != computing[0])
            continue
        told = found if len(together) == 1 or (found is not None and len(found) == 1) else None
        for i in together:
            covers[i] = told
    # A relu of what is positive already computes; if one is executed it is not told which.
    executing = {
        known.executed[tensor]
        for i in passing
        if nodes[i].kind == "compute"
        for tensor in nodes[i].outputs
        if tensor in known.executed
    }
    idle = {place for place, what in written.idle.items() if what not in executing}
    return Claims(covers=covers, passing=frozenset(passing), idle=frozenset(idle))


class _Classes:
    """Tensors that hold the same, by a number.

    Attributes:
        written: Tensors of the copy -> numbers.
        executed: Tensors of the executed graph -> numbers; left out: what is none of the copy's.
    """

    def __init__(self, traced: TracedGraph) -> None:
        self._buckets: dict[int, list[tuple[Fingerprint, int]]] = {}
        self.written: dict[str, int] = {}
        for name, values in traced.written.items():
            number = next((n for size, n in self._like(values) if size == values[0]), None)
            if number is None:
                number = len(self.written)
                self._buckets.setdefault(_bucket(values), []).append((values, number))
            self.written[name] = number
        self.executed = {
            name: number
            for name, values in traced.executed.items()
            if (number := self._known(values)) is not None
        }

    def _known(self, values: Fingerprint) -> int | None:
        """The number of what is executed: it may have more zeros than what is written."""
        like = dict(self._like(values))
        if values[0] in like:
            return like[values[0]]
        smaller = [number for size, number in like.items() if size < values[0]]
        return smaller[0] if len(smaller) == 1 else None

    def _like(self, values: Fingerprint) -> Iterator[tuple[float, int]]:
        """Sizes and numbers of what holds the same but for zeros."""
        # Only what has about the same sum can be the same: its bucket has it, or one beside.
        bucket = _bucket(values)
        for near in (bucket - 1, bucket, bucket + 1):
            for known, number in self._buckets.get(near, ()):
                if same_values(known, values):
                    yield known[0], number


def _bucket(values: Fingerprint) -> int:
    """About the logarithm of the sum of magnitudes, in steps of 6 to 12 %."""
    mantissa, exponent = math.frexp(values[1])
    return 8 * exponent + int(16 * (mantissa - 0.5))


class _Written:
    """The ops of the copy between tensors, known by number.

    Attributes:
        idle: Ops that give what they are given, by place -> the number of it.
    """

    def __init__(self, copy: Copy, known: _Classes) -> None:
        self.idle: dict[int, int] = {}
        self._makers: dict[int, set[int]] = {}
        self._reads: dict[int, list[int]] = {}
        self._unknown: set[int] = set()
        for place, op in enumerate(copy.ops):
            names = [copy.tensors[name] for name in op.inputs if name in copy.tensors]
            outputs = [copy.tensors[name] for name in op.outputs if name in copy.tensors]
            if outputs[0] in names:  # not copied
                continue
            if _same(known.written, names, outputs):
                self.idle[place] = known.written[outputs[0]]
                continue
            if any(name not in known.written for name in names):
                self._unknown.add(place)
            self._reads[place] = [known.written.get(name, -1) for name in names]
            for name in outputs:
                self._makers.setdefault(known.written.get(name, -1), set()).add(place)

    def between(self, reads: Iterable[int | None], gives: Iterable[int]) -> Places | None:
        """The ops that lead from tensors to others; None: these do not, or it is open which."""
        given, waiting = list(reads), list(dict.fromkeys(gives))
        if None in given or not waiting:
            return None
        start = set(given)
        found: set[int] = set()
        met: set[int] = set()
        seen = set(waiting)
        while waiting:
            makers = self._makers.get(waiting.pop(), set())
            if len(makers) != 1 or makers & self._unknown:  # an input, or one of several
                return None
            (maker,) = makers
            found.add(maker)
            for tensor in self._reads[maker]:
                if tensor in start:
                    met.add(tensor)
                elif tensor not in seen:
                    seen.add(tensor)
                    waiting.append(tensor)
        return frozenset(found) if met == start else None


def _same(known: Mapping[str, int], reads: Collection[str], gives: Sequence[str]) -> bool:
    """Whether all that is given is what is read."""
    numbers = {known[name] for name in reads if name in known}
    return bool(gives) and all(known.get(name, -1) in numbers for name in gives)


def _together(
    nodes: Sequence[ExecutedNode], passing: Collection[int], known: Collection[str]
) -> list[list[int]]:
    """Nodes that compute, those together that hand on tensors that are not known."""
    group = {i: i for i in range(len(nodes)) if i not in passing}

    def head(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    makers = {tensor: i for i, node in enumerate(nodes) for tensor in node.outputs}
    for i in group:
        waiting = list(nodes[i].inputs)
        while waiting:
            tensor = waiting.pop()
            maker = makers.get(tensor)
            if tensor in known or maker is None:
                continue
            if maker in group:
                group[head(i)] = head(maker)
            else:
                waiting += nodes[maker].inputs
    found: dict[int, list[int]] = {}
    for i in group:
        found.setdefault(head(i), []).append(i)
    return list(found.values())
