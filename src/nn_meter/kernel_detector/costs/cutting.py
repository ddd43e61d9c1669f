"""Kernels cut out of a model, each as models of its own.

The time that a kernel takes inside a model is T(what feeds it, and it) - T(what feeds it): cut at
its inputs alone it would be given, and would have to convert, tensors in a layout that it never
meets inside. What feeds it is as little as gives its inputs in the layout that they have there: of
a kernel with a heavy op (one with a matrix of weights) that op, of another one all of it and what
feeds that in turn.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nn_meter.errors import ModelRejectedError
from nn_meter.kernel_detector.check.prepare import Copy
from nn_meter.kernel_detector.costs.parts import Border, Node, Parts, parts_of
from nn_meter.kernel_detector.graph import Graph
from nn_meter.kernel_detector.kernels import Kernel

__all__ = ["Cut", "Cutter", "Excerpt"]


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """A part of a model as a model.

    Attributes:
        key: The same for parts that take the same time: all but what weights hold.
        make: Makes the model.
        shapes: Of its inputs, without the batch dimension.
        weights: Bytes of its constants.
        parts: Of the model, which know its format.
    """

    key: str
    make: Callable[[], Any]
    shapes: Sequence[Sequence[int]]
    weights: int
    parts: Parts

    def write(self, path: Path) -> Path:
        """Write it as a file of the model's format, which gives the path its suffix."""
        path = path.with_name(path.name + self.parts.suffix)
        self.parts.write(self.make(), path, self.weights)
        return path


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The models that tell what one kernel costs.

    Attributes:
        kernel: The kernel.
        alone: It, its inputs given.
        feeding: What feeds it; None: the model's own inputs do.
        behind: What feeds it and it; if nothing does, it alone.
        both: The same, and what feeds it is given as outputs, too.
        shares: Tensor that it reads -> the share of it in what it costs to give these as outputs.
        weights: Bytes of its own constants.
        written: Bytes of its outputs.
    """

    kernel: Kernel
    alone: Excerpt
    feeding: Excerpt | None
    behind: Excerpt
    both: Excerpt
    shares: Mapping[str, float]
    weights: int
    written: int

    @property
    def key(self) -> str:
        """The same for kernels that cost the same."""
        return f"{self.behind.key} {self.feeding.key if self.feeding is not None else ''}"

    def excerpts(self) -> list[Excerpt]:
        """Its models, each once."""
        found = [self.alone, self.behind, self.both]
        if self.feeding is not None:
            found.append(self.feeding)
        return list({excerpt.key: excerpt for excerpt in found}.values())


class Cutter:
    """Cuts kernels out of the copy of a model.

    Args:
        copy: From ``check.prepare``.
        graph: The model.
        kernels: All its kernels.
    """

    def __init__(self, copy: Copy, graph: Graph, kernels: Sequence[Kernel]) -> None:
        self._parts = parts_of(copy, graph)
        self._name = graph.name
        self._constants = self._parts.constants
        self._place = {node.name: i for i, node in enumerate(self._parts.nodes)}
        self._maker = {out: node for node in self._parts.nodes for out in node.outputs if out}
        self._given = set(self._parts.outputs)
        self._shapes = {copy.tensors[name]: graph.shape(name) for name in copy.tensors}
        self._dtypes = {copy.tensors[name]: graph.tensors[name].dtype for name in copy.tensors}
        self._readers: dict[str, set[str]] = {}
        for node in self._parts.nodes:
            for name in node.inputs:
                self._readers.setdefault(name, set()).add(node.name)
        self._nodes_by_op = {
            op.name: self._parts.of_op[i] for i, op in enumerate(copy.ops) if i in self._parts.of_op
        }
        self._fed: dict[str, tuple[Sequence[Node], str]] = {}
        self._nodes = {kernel.name: self._nodes_of(kernel.ops) for kernel in kernels}
        self._kernel_of = {
            node.name: kernel for kernel, nodes in self._nodes.items() for node in nodes
        }

    def whole(self) -> Excerpt:
        """All of the model."""
        return self._excerpt(self._parts.nodes, self._parts.outputs)

    def call(self) -> Excerpt:
        """A model that costs no more than its call."""
        return Excerpt(
            key="call", make=self._parts.call, shapes=[[1]], weights=0, parts=self._parts
        )

    def cut(self, kernel: Kernel) -> Cut | None:
        """Cut a kernel out; None: it has no op that is executed.

        Raises:
            ModelRejectedError: The shape of a tensor at its border is not known.
        """
        nodes = self._nodes[kernel.name]
        if not nodes:
            return None
        feeding: list[Node] = []
        instead: dict[str, str] = {}
        for tensor in self._read(nodes):
            found, stand_in = self._feeding(tensor)
            feeding += found
            instead[tensor] = stand_in
        made = {out for node in feeding for out in node.outputs}
        fed = [name for name in dict.fromkeys(instead.values()) if name in made]
        own = [_reading(node, instead) for node in nodes]
        outputs = self._outputs(nodes)
        alone = self._excerpt(nodes, outputs)
        sizes = {t: self._size(t) for t, stand_in in instead.items() if stand_in in fed}
        return Cut(
            kernel=kernel,
            alone=alone,
            feeding=self._excerpt(feeding, fed) if fed else None,
            behind=self._excerpt([*feeding, *own], outputs) if fed else alone,
            both=(
                self._excerpt([*feeding, *own], list(dict.fromkeys([*fed, *outputs])))
                if fed
                else alone
            ),
            shares={t: size / sum(sizes.values()) for t, size in sizes.items()},
            weights=self._weights(nodes),
            written=sum(self._size(t) * np.dtype(self._dtypes[t]).itemsize for t in outputs),
        )

    def alone(self, op: str) -> Excerpt | None:
        """One op, its inputs given; None: it is not executed.

        Raises:
            ModelRejectedError: The shape of a tensor at its border is not known.
        """
        nodes = self._nodes_of([op])
        return self._excerpt(nodes, self._outputs(nodes)) if nodes else None

    def kept(self, kernel: Kernel) -> list[str]:
        """The tensors, by their names in the copy, that a kernel gives to others only.

        Those that the model gives are converted to the layout of outputs inside it, too.
        """
        return [t for t in self._outputs(self._nodes[kernel.name]) if t not in self._given]

    def _nodes_of(self, ops: Iterable[str]) -> list[Node]:
        return [node for op in ops for node in self._nodes_by_op.get(op, ())]

    def _feeding(self, tensor: str) -> tuple[Sequence[Node], str]:
        """The nodes that are to give a tensor, or one like it, and the name of that."""
        waiting, begun = [tensor], set[str]()
        while waiting:
            name = waiting[-1]
            if name in self._fed:
                waiting.pop()
                continue
            nodes = self._nodes.get(self._kernel_of.get(self._maker_of(name), ""), [])
            heavy = next((node for node in nodes if self._is_heavy(node)), None)
            if heavy is not None and self._shapes.get(heavy.outputs[0]) == self._shapes.get(name):
                self._fed[name] = ([heavy], heavy.outputs[0])
                continue
            before = self._read(nodes) if heavy is None else []
            if name not in begun and (
                unknown := [each for each in before if each not in self._fed]
            ):
                begun.add(name)
                waiting += unknown
                continue
            found: dict[str, Node] = {}
            instead: dict[str, str] = {}
            for each in before:
                fed, instead[each] = self._fed.get(each, ((), each))
                found |= {node.name: node for node in fed}
            found |= {node.name: _reading(node, instead) for node in nodes}
            self._fed[name] = (list(found.values()), name)
        return self._fed[tensor]

    def _maker_of(self, tensor: str) -> str:
        maker = self._maker.get(tensor)
        return maker.name if maker is not None else ""

    def _is_heavy(self, node: Node) -> bool:
        """Whether it has weights that are more than a factor for each channel."""
        constants = [self._constants[name] for name in node.inputs if name in self._constants]
        return any(
            sum(size > 1 for size in constant.dims) > 1 and constant.dtype not in _PLACES
            for constant in constants
        )

    def _read(self, nodes: Sequence[Node]) -> list[str]:
        """The tensors that nodes read, that none of them makes and that are no constants."""
        made = {out for node in nodes for out in node.outputs}
        read = (name for node in nodes for name in node.inputs)
        return [
            name
            for name in dict.fromkeys(read)
            if name and name not in made and name not in self._constants
        ]

    def _outputs(self, nodes: Sequence[Node]) -> list[str]:
        own = {node.name for node in nodes}
        return [
            name
            for node in nodes
            for name in node.outputs
            if name and (name in self._given or self._readers.get(name, set()) - own)
        ]

    def _size(self, tensor: str) -> int:
        return max(1, math.prod(self._shapes.get(tensor) or ()))

    def _weights(self, nodes: Iterable[Node]) -> int:
        names = {name for node in nodes for name in node.inputs if name in self._constants}
        return sum(self._constants[name].size_bytes for name in names)

    def _excerpt(self, nodes: Iterable[Node], outputs: Sequence[str]) -> Excerpt:
        named = {node.name: node for node in nodes}
        ordered = sorted(named.values(), key=lambda node: self._place[node.name])
        given = [self._border(name) for name in self._read(ordered)]
        found = [self._border(name) for name in outputs]
        return Excerpt(
            key=self._key(ordered, given, found),
            make=lambda: self._parts.made(ordered, given, found),
            shapes=[list(border.behind_batch) for border in given],
            weights=self._weights(ordered),
            parts=self._parts,
        )

    def _border(self, name: str) -> Border:
        """A tensor at which the model is cut.

        Raises:
            ModelRejectedError: Its shape is not known.
        """
        shape, dtype = self._shapes.get(name), self._dtypes.get(name)
        if not dtype or shape is None or any(size < 1 for size in shape):
            raise ModelRejectedError(
                f"{self._name}: the shape of {name} is not known, so nothing can be cut there"
            )
        return Border(name=name, shape=tuple(shape), dtype=dtype)

    def _key(
        self, nodes: Sequence[Node], inputs: Sequence[Border], outputs: Sequence[Border]
    ) -> str:
        numbers: dict[str, int] = {}

        def told(name: str) -> object:
            if name in self._constants:
                constant = self._constants[name]
                return (constant.dims, constant.dtype, constant.value)
            return numbers.setdefault(name, len(numbers)) if name else None

        def ends(borders: Sequence[Border]) -> list[object]:
            return [(told(border.name), border.shape, border.dtype) for border in borders]

        begins = ends(inputs)
        body = [
            (
                node.type,
                [told(name) for name in node.inputs],
                [told(name) for name in node.outputs],
                node.told,
            )
            for node in nodes
        ]
        text = repr((begins, body, ends(outputs)))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


_PLACES = frozenset({"int32", "int64"})  # types of places and sizes, never of weights


def _reading(node: Node, instead: Mapping[str, str]) -> Node:
    """A node that reads other tensors instead of some."""
    return replace(node, inputs=tuple(instead.get(name, name) for name in node.inputs))
