"""The parts of an ONNX model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nn_meter.kernel_detector.check.prepare import Copy, op_named
from nn_meter.kernel_detector.costs.parts import SMALL, Border, Constant, Node

__all__ = ["ONNXParts"]

_MOST_INSIDE = 100_000_000  # bytes of weights that a file holds; more lie beside it
_FLOATS = frozenset({"float16", "float32", "float64"})


class ONNXParts:
    """The parts of the copy of a model, see `Parts`."""

    suffix = ".onnx"

    def __init__(self, copy: Copy) -> None:
        self._model = onnx.load(str(copy.path))
        self._tensors = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self.nodes = [_node(proto) for proto in self._model.graph.node]
        self.of_op: dict[int, list[Node]] = {}
        for node in self.nodes:
            if (place := op_named(node.name)) is not None:
                self.of_op.setdefault(place, []).append(node)
        self.constants = {name: _constant(tensor) for name, tensor in self._tensors.items()}
        self.outputs = [value.name for value in self._model.graph.output]

    def made(
        self, nodes: Sequence[Node], inputs: Sequence[Border], outputs: Sequence[Border]
    ) -> Any:
        before: list[Any] = []
        constants = {
            name: self._tensors[name]
            for node in nodes
            for name in node.inputs
            if name in self._tensors
        }
        given = []
        for number, border in enumerate(inputs):
            fed = [1, *border.behind_batch]
            source = border.name
            if border.dtype != "float32":
                source = f"given{number}"
                cast = helper.make_node("Cast", [source], [border.name], to=_number(border.dtype))
                before.append(cast)
            if list(border.shape) != fed:
                target, source = source, f"flat{number}"
                sizes = numpy_helper.from_array(
                    np.asarray(border.shape, np.int64), f"sizes{number}"
                )
                constants[sizes.name] = sizes
                before.insert(0, helper.make_node("Reshape", [source, sizes.name], [target]))
            given.append(helper.make_tensor_value_info(source, onnx.TensorProto.FLOAT, fed))
        graph = helper.make_graph(
            [*before, *(_proto(node) for node in nodes)],
            "excerpt",
            given,
            [
                helper.make_tensor_value_info(border.name, _number(border.dtype), border.shape)
                for border in outputs
            ],
            list(constants.values()),
        )
        return helper.make_model(
            graph,
            opset_imports=self._model.opset_import,
            ir_version=self._model.ir_version,
            functions=self._model.functions,
        )

    def write(self, model: Any, path: Path, weights: int) -> None:
        apart = weights > _MOST_INSIDE
        onnx.save(model, str(path), save_as_external_data=apart, location=f"{path.stem}.bin")

    def call(self) -> Any:
        given, found = (
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1]) for name in "xy"
        )
        node = helper.make_node("Relu", ["x"], ["y"])
        graph = helper.make_graph([node], "call", [given], [found])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def _node(proto: Any) -> Node:
    attributes = sorted(
        (each.name, each.SerializeToString(deterministic=True)) for each in proto.attribute
    )
    return Node(
        name=proto.name,
        type=proto.op_type,
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        told=repr((proto.domain, attributes)),
        source=proto,
    )


def _proto(node: Node) -> Any:
    """The node as the format has it, reading what it is to read."""
    if tuple(node.source.input) == node.inputs:
        return node.source
    changed = onnx.NodeProto()
    changed.CopyFrom(node.source)
    del changed.input[:]
    changed.input.extend(node.inputs)
    return changed


def _constant(tensor: Any) -> Constant:
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    count = math.prod(tensor.dims)
    drawn = dtype.name in _FLOATS and count > 1  # it may hold random weights
    told = count <= SMALL and not drawn
    return Constant(
        dims=tuple(tensor.dims),
        dtype=dtype.name,
        size_bytes=count * dtype.itemsize,
        value=numpy_helper.to_array(tensor).tolist() if told else None,
    )


def _number(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
