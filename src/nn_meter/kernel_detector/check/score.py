"""Comparing kernels with the truth, edge by edge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nn_meter.kernel_detector.check.truth import Truth
from nn_meter.kernel_detector.graph import Graph, Op
from nn_meter.kernel_detector.kernels import Kernel

__all__ = ["Check", "Difference", "score"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An edge of which the kernels say something else than the runtime did.

    Attributes:
        ops: Names of the two ops, the one that writes first.
        types: Their types, in the file's words.
        tensor: What joins them.
        fused: Whether the runtime executed them as one; the kernels say the opposite.
    """

    ops: tuple[str, str]
    types: tuple[str, str]
    tensor: str
    fused: bool

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        words = ("separate", "fused")
        return {
            "ops": list(self.ops),
            "types": list(self.types),
            "tensor": self.tensor,
            "executed": words[self.fused],
            "kernels": words[not self.fused],
        }


@dataclass(frozen=True, kw_only=True)
class Check:
    """How right kernels are.

    Attributes:
        edges: Number of edges between two ops that compute and of which the truth is told.
        tp: Edges that are fused, and rightly so.
        fp: Edges that are fused by the kernels only.
        fn: Edges that are fused by the runtime only.
        untold: Number of ops of which the truth cannot be told; edges at them are left out.
        differ: The edges that differ, in the order of the graph.
    """

    edges: int
    tp: int
    fp: int
    fn: int
    untold: int
    differ: tuple[Difference, ...]

    @property
    def precision(self) -> float:
        """Share of the edges fused by the kernels that are fused; 1 if there are none."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else 1.0

    @property
    def recall(self) -> float:
        """Share of the fused edges that the kernels have fused; 1 if there are none."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else 1.0

    @property
    def f1(self) -> float:
        """The harmonic mean of both; 1 if nothing is fused on either side."""
        wrong = self.fp + self.fn
        return 2 * self.tp / (2 * self.tp + wrong) if self.tp + wrong else 1.0

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "edges": self.edges,
            "fused": self.tp + self.fn,
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "untold": self.untold,
            "differ": [difference.to_json() for difference in self.differ],
        }


def score(graph: Graph, kernels: Iterable[Kernel], truth: Truth) -> Check:
    """Compare edge by edge.

    Two ops that are joined by more than one tensor have one edge. An op that no kernel names is a
    kernel of its own.

    Args:
        graph: The model.
        kernels: What is scored.
        truth: What the runtime executed of it.
    """
    kernel_of = {name: kernel.name for kernel in kernels for name in kernel.ops}
    edges: dict[tuple[str, str], tuple[Op, Op, str]] = {}
    for maker, reader, tensor in graph.edges():
        if maker.name in truth.groups and reader.name in truth.groups:
            edges.setdefault((maker.name, reader.name), (maker, reader, tensor))
    counted = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    differ = []
    for maker, reader, tensor in edges.values():
        fused = truth.groups[maker.name] == truth.groups[reader.name]
        kernel = kernel_of.get(maker.name)
        said = kernel is not None and kernel == kernel_of.get(reader.name)
        counted[fused, said] += 1
        if fused != said:
            names, types = (maker.name, reader.name), (maker.type, reader.type)
            differ.append(Difference(ops=names, types=types, tensor=tensor, fused=fused))
    return Check(
        edges=len(edges),
        tp=counted[True, True],
        fp=counted[False, True],
        fn=counted[True, False],
        untold=len(truth.untold),
        differ=tuple(differ),
    )
