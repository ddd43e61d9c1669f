"""Which ops of a chain an executed node covers, where the runtime tells its sources.

A runtime reads one operator as several ops (a convolution and its bias, say), and names them as it
likes. Which operator an op belongs to follows from the graph alone: in a chain, all that leads from
the model's first input to an operator's output belongs to it and to those before it, and how many
ops that are is known from the operators' own models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nn_meter.builder.backends.executed import ExecutedGraph, ModelOp

__all__ = ["Coverage", "read_coverage"]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What the sources of a chain's executed nodes tell.

    Attributes:
        edges: For each two neighbours whether one compute node covers ops of both.
        idle: Positions of the operators that views and moves do here, and no compute node.
    """

    edges: tuple[bool, ...]
    idle: frozenset[int]


def read_coverage(block: ExecutedGraph, alone: Sequence[ExecutedGraph]) -> Coverage | None:
    """Read which operators of a chain each executed node covers.

    Args:
        block: Graph of the chain.
        alone: Graph of each operator's own model.

    Returns:
        None if the runtime does not tell, or if it cannot be told which op belongs to which.
    """
    if block.ops is None or any(node.sources is None for node in block.compute()):
        return None
    parts = _parts(block, [len(_behind_first(graph)) for graph in alone])
    if parts is None:
        return None
    computed, passed = (
        [
            {parts[source] for source in node.sources or () if source in parts}
            for node in block.nodes
            if (node.kind == "compute") == computes
        ]
        for computes in (True, False)
    )
    edges = tuple(
        any({position, position + 1} <= numbers for numbers in computed)
        for position in range(len(alone) - 1)
    )
    return Coverage(
        edges=edges, idle=frozenset(set().union(*passed)) - frozenset(set().union(*computed))
    )


def _behind_first(graph: ExecutedGraph) -> list[ModelOp]:
    """The model's ops that depend on its first input."""
    reached, found = set(graph.op_inputs[:1]), []
    for op in graph.ops or ():
        if reached.intersection(op.inputs):
            found.append(op)
            reached.update(op.outputs)
    return found


def _parts(block: ExecutedGraph, sizes: Sequence[int]) -> dict[str, int] | None:
    """The operator's position in the chain, for each op that belongs to one."""
    ops = _behind_first(block)
    if sum(sizes) != len(ops) or 0 in sizes:
        return None
    before = _ancestors(ops)
    parts: dict[str, int] = {}
    told = 0
    for position, size in enumerate(sizes):
        told += size
        ends = [op for op in ops if len(before[op.name]) == told]
        groups = {frozenset(before[op.name]) for op in ends}
        if len(groups) != 1:
            return None
        for name in groups.pop():
            parts.setdefault(name, position)
    return parts


def _ancestors(ops: Sequence[ModelOp]) -> Mapping[str, set[str]]:
    """Each op's name -> names of the ops that it depends on, itself included."""
    makers = {tensor: op.name for op in ops for tensor in op.outputs}
    found: dict[str, set[str]] = {}
    for op in ops:  # in a topological order
        found[op.name] = {op.name}
        for tensor in op.inputs:
            if (maker := makers.get(tensor)) is not None and maker in found:
                found[op.name] |= found[maker]
    return found
