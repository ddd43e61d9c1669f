"""Groups of operators as kernels, with their types, tensors and attributes."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from nn_meter.kernel_detector.groups import Group
from nn_meter.kernel_detector.kernels import Kernel
from nn_meter.kernel_detector.recognition import Recognized

__all__ = ["kernels_of"]


def kernels_of(model: Recognized, groups: Iterable[Group]) -> Iterator[Kernel]:
    """Kernels in a topological order: each behind those that it reads."""
    graph, views = model.graph, model.patterns.views
    ops = {op.name: op for op in graph.ops}
    order = {name: i for i, name in enumerate(ops)}
    given = frozenset(graph.outputs)
    counted: Counter[str] = Counter()
    for group in _sorted(model, list(groups)):
        nodes = [model.nodes[place] for place in sorted(group.nodes)]
        operators = tuple(node.operator for node in nodes)
        kind = "-".join([name for name in operators if name not in views] or operators)
        counted[kind] += 1
        names = sorted({name for node in nodes for name in node.ops}, key=order.__getitem__)
        inside = set(names)
        written = {tensor for name in names for tensor in ops[name].outputs}
        read = (tensor for name in names for tensor in graph.data_inputs(ops[name]))
        inputs = tuple(tensor for tensor in dict.fromkeys(read) if tensor not in written)
        outputs = tuple(
            tensor
            for name in names
            for tensor in ops[name].outputs
            if tensor in given
            or any(reader.name not in inside for reader in graph.readers.get(tensor, ()))
        )
        main = model.nodes[group.nodes[0] if group.anchor is None else group.anchor]
        yield Kernel(
            name=f"{kind}#{counted[kind]}",
            type=kind,
            operators=operators,
            ops=tuple(names),
            inputs=inputs,
            outputs=outputs,
            attributes={
                "input_shapes": [_listed(graph.shape(tensor)) for tensor in inputs],
                "output_shapes": [_listed(graph.shape(tensor)) for tensor in outputs],
                **main.attributes,
            },
        )


def _sorted(model: Recognized, groups: Sequence[Group]) -> Iterator[Group]:
    """Groups so that each stands behind those that it reads, else by their first node."""
    group_of = {place: i for i, group in enumerate(groups) for place in group.nodes}
    readers: list[set[int]] = [set() for _ in groups]
    for place, found in enumerate(model.readers):
        readers[group_of[place]].update(group_of[reader] for reader in found)
    waits = Counter(
        reader for own, found in enumerate(readers) for reader in found if reader != own
    )
    ready = [i for i in range(len(groups)) if not waits[i]]
    while ready:
        own = heapq.heappop(ready)
        yield groups[own]
        for reader in readers[own] - {own}:
            waits[reader] -= 1
            if not waits[reader]:
                heapq.heappush(ready, reader)


def _listed(shape: Sequence[int] | None) -> list[int] | None:
    return None if shape is None else list(shape)
