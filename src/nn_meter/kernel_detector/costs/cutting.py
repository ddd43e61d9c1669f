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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nn_meter.errors import ModelRejectedError
from nn_meter.kernel_detector.check.prepare import Copy
from nn_meter.kernel_detector.graph import Graph
from nn_meter.kernel_detector.kernels import Kernel

__all__ = ["Cut", "Cutter", "Excerpt", "call_model"]

_MOST_INSIDE = 100_000_000  # bytes of weights that a file holds; more lie beside it
_SMALL = 64  # elements of a constant that a model is told by; of weights only the shape counts


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """A part of a model as a model.

    Attributes:
        key: The same for parts that take the same time: all but what weights hold.
        make: Makes the model.
        shapes: Of its inputs, without the batch dimension.
        weights: Bytes of its constants.
    """

    key: str
    make: Callable[[], Any]
    shapes: Sequence[Sequence[int]]
    weights: int

    def write(self, path: Path) -> None:
        """Write it as an ``.onnx`` file."""
        apart = self.weights > _MOST_INSIDE
        onnx.save(self.make(), str(path), save_as_external_data=apart, location=f"{path.stem}.bin")


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
        copy: An ONNX copy, from ``check.prepare``.
        graph: The model.
        kernels: All its kernels.

    Raises:
        ModelRejectedError: The copy is no ONNX model.
    """

    def __init__(self, copy: Copy, graph: Graph, kernels: Sequence[Kernel]) -> None:
        if graph.format != "onnx":
            raise ModelRejectedError(
                f"{graph.name}: only ONNX models can be cut into kernels to time, this one is read "
                f"as {graph.format}"
            )
        self._model = onnx.load(str(copy.path))
        self._name = graph.name
        self._constants = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._place = {node.name: i for i, node in enumerate(self._model.graph.node)}
        self._maker = {out: node for node in self._model.graph.node for out in node.output if out}
        self._given = {value.name for value in self._model.graph.output}
        self._shapes = {copy.tensors[name]: graph.shape(name) for name in copy.tensors}
        self._dtypes = {copy.tensors[name]: graph.tensors[name].dtype for name in copy.tensors}
        self._readers: dict[str, set[str]] = {}
        for node in self._model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, set()).add(node.name)
        place = {op.name: f"op{i}.0" for i, op in enumerate(copy.ops)}
        by_name = {node.name: node for node in self._model.graph.node}
        self._node_of = {op: by_name[name] for op, name in place.items() if name in by_name}
        self._nodes = {kernel.name: self._nodes_of(kernel.ops) for kernel in kernels}
        self._kernel_of = {
            node.name: kernel for kernel, nodes in self._nodes.items() for node in nodes
        }

    def whole(self) -> Excerpt:
        """All of the model."""
        return self._excerpt(
            list(self._model.graph.node), [value.name for value in self._model.graph.output]
        )

    def cut(self, kernel: Kernel) -> Cut | None:
        """Cut a kernel out; None: it has no op that is executed.

        Raises:
            ModelRejectedError: The shape of a tensor at its border is not known.
        """
        nodes = self._nodes[kernel.name]
        if not nodes:
            return None
        feeding: list[Any] = []
        instead: dict[str, str] = {}
        for tensor in self._read(nodes):
            found, stand_in = self._feeding(tensor)
            feeding += found
            instead[tensor] = stand_in
        made = {out for node in feeding for out in node.output}
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

    def _nodes_of(self, ops: Iterable[str]) -> list[Any]:
        return [self._node_of[op] for op in ops if op in self._node_of]

    def _feeding(self, tensor: str) -> tuple[list[Any], str]:
        """The nodes that are to give a tensor, or one like it, and the name of that."""
        if tensor not in self._maker:
            return [], tensor
        nodes = self._nodes.get(self._kernel_of.get(self._maker[tensor].name, ""), [])
        heavy = next((node for node in nodes if self._is_heavy(node)), None)
        if heavy is not None and self._shapes.get(heavy.output[0]) == self._shapes.get(tensor):
            return [heavy], str(heavy.output[0])
        found: list[Any] = []
        instead: dict[str, str] = {}
        if heavy is None:
            for name in self._read(nodes):
                before, instead[name] = self._feeding(name)
                found += before
        return [*found, *(_reading(node, instead) for node in nodes)], tensor

    def _is_heavy(self, node: Any) -> bool:
        """Whether it has weights that are more than a factor for each channel."""
        return any(
            name in self._constants and sum(size > 1 for size in self._constants[name].dims) > 1
            for name in node.input
        )

    def _read(self, nodes: Sequence[Any]) -> list[str]:
        """The tensors that nodes read, that none of them makes and that are no constants."""
        made = {out for node in nodes for out in node.output}
        read = (name for node in nodes for name in node.input)
        return [
            name
            for name in dict.fromkeys(read)
            if name and name not in made and name not in self._constants
        ]

    def _outputs(self, nodes: Sequence[Any]) -> list[str]:
        own = {node.name for node in nodes}
        return [
            name
            for node in nodes
            for name in node.output
            if name and (name in self._given or self._readers.get(name, set()) - own)
        ]

    def _size(self, tensor: str) -> int:
        return max(1, math.prod(self._shapes.get(tensor) or ()))

    def _weights(self, nodes: Iterable[Any]) -> int:
        names = {name for node in nodes for name in node.input if name in self._constants}
        return sum(_bytes(self._constants[name]) for name in names)

    def _excerpt(self, nodes: Iterable[Any], outputs: Sequence[str]) -> Excerpt:
        named = {node.name: node for node in nodes}
        ordered = sorted(named.values(), key=lambda node: self._place[node.name])
        inputs = self._read(ordered)
        for name in (*inputs, *outputs):
            shape = self._shapes.get(name)
            if not self._dtypes.get(name) or shape is None or any(size < 1 for size in shape):
                raise ModelRejectedError(
                    f"{self._name}: the shape of {name} is not known, so nothing can be cut there"
                )
        return Excerpt(
            key=self._key(ordered, inputs, outputs),
            make=lambda: self._made(ordered, inputs, outputs),
            shapes=[list(_behind_batch(self._shapes[name] or ())) for name in inputs],
            weights=self._weights(ordered),
        )

    def _made(self, nodes: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str]) -> Any:
        """The model: float inputs with a batch of one, as every backend feeds them."""
        before: list[Any] = []
        constants = {
            name: self._constants[name]
            for node in nodes
            for name in node.input
            if name in self._constants
        }
        given = []
        for number, name in enumerate(inputs):
            shape, dtype = self._shapes[name] or (), self._dtypes[name]
            fed = [1, *_behind_batch(shape)]
            source = name
            if dtype != "float32":
                source = f"given{number}"
                cast = helper.make_node(
                    "Cast", [source], [name], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
                )
                before.append(cast)
            if list(shape) != fed:
                target, source = source, f"flat{number}"
                sizes = numpy_helper.from_array(np.asarray(shape, np.int64), f"sizes{number}")
                constants[sizes.name] = sizes
                before.insert(0, helper.make_node("Reshape", [source, sizes.name], [target]))
            given.append(helper.make_tensor_value_info(source, onnx.TensorProto.FLOAT, fed))
        graph = helper.make_graph(
            [*before, *nodes],
            "excerpt",
            given,
            [
                helper.make_tensor_value_info(
                    name,
                    helper.np_dtype_to_tensor_dtype(np.dtype(self._dtypes[name])),
                    self._shapes[name],
                )
                for name in outputs
            ],
            list(constants.values()),
        )
        return helper.make_model(
            graph,
            opset_imports=self._model.opset_import,
            ir_version=self._model.ir_version,
            functions=self._model.functions,
        )

    def _key(self, nodes: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str]) -> str:
        numbers: dict[str, int] = {}

        def told(name: str) -> object:
            if name in self._constants:
                tensor = self._constants[name]
                small = math.prod(tensor.dims) <= _SMALL and not self._is_drawn(tensor)
                value = numpy_helper.to_array(tensor).tolist() if small else None
                return (tuple(tensor.dims), tensor.data_type, value)
            return numbers.setdefault(name, len(numbers)) if name else None

        ends = [(told(name), self._shapes[name], self._dtypes[name]) for name in inputs]
        body = [
            (
                node.op_type,
                [told(name) for name in node.input],
                [told(name) for name in node.output],
                sorted((a.name, a.SerializeToString(deterministic=True)) for a in node.attribute),
            )
            for node in nodes
        ]
        ends += [(told(name), self._shapes[name], self._dtypes[name]) for name in outputs]
        return hashlib.sha256(repr((ends, body)).encode()).hexdigest()[:32]

    def _is_drawn(self, tensor: Any) -> bool:
        """Whether it is a float with more than one element: it may hold random weights."""
        return tensor.data_type in _FLOATS and math.prod(tensor.dims) > 1


def call_model() -> Excerpt:
    """A model that costs no more than its call."""

    def make() -> Any:
        given, found = (
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1]) for name in "xy"
        )
        node = helper.make_node("Relu", ["x"], ["y"])
        graph = helper.make_graph([node], "call", [given], [found])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

    return Excerpt(key="call", make=make, shapes=[[1]], weights=0)


_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


def _reading(node: Any, instead: Mapping[str, str]) -> Any:
    """A node that reads other tensors instead of some."""
    if all(instead.get(name, name) == name for name in node.input):
        return node
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    del changed.input[:]
    changed.input.extend(instead.get(name, name) for name in node.input)
    return changed


def _behind_batch(shape: Sequence[int]) -> Sequence[int]:
    """A shape without its batch dimension; with all of its dimensions if that is not 1."""
    return shape[1:] if shape[:1] == (1,) else shape


def _bytes(tensor: Any) -> int:
    itemsize: int = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return int(math.prod(tensor.dims)) * itemsize
