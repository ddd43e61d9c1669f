"""The copy of an ONNX model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from nn_meter.errors import ConversionError, ModelRejectedError
from nn_meter.kernel_detector.check.drawing import (
    FACTOR,
    OFFSET,
    SPREAD,
    Array,
    Drawing,
    is_weight,
)
from nn_meter.kernel_detector.graph import Graph, Op

__all__ = ["is_left_out", "write_onnx_copy"]

_MOST_INSIDE = 100_000_000  # bytes; not every converter takes weights that lie beside the model
_OLDEST_IR = 4  # from here on a constant need not be an input as well

# Where ops have weights, and how these are drawn.
_WEIGHTS: dict[str, dict[int, str]] = {
    "Conv": {1: SPREAD, 2: OFFSET},
    "ConvTranspose": {1: SPREAD, 2: OFFSET},
    "Gemm": {0: SPREAD, 1: SPREAD, 2: OFFSET},
    "MatMul": {0: SPREAD, 1: SPREAD},
    "BatchNormalization": {1: FACTOR, 2: OFFSET, 3: OFFSET, 4: FACTOR},
    "InstanceNormalization": {1: FACTOR, 2: OFFSET},
    "LayerNormalization": {1: FACTOR, 2: OFFSET},
    "GroupNormalization": {1: FACTOR, 2: OFFSET},
    "PRelu": {1: FACTOR},
    "LSTM": {1: SPREAD, 2: SPREAD, 3: OFFSET},
    "GRU": {1: SPREAD, 2: SPREAD, 3: OFFSET},
    "RNN": {1: SPREAD, 2: SPREAD, 3: OFFSET},
    "Add": {0: OFFSET, 1: OFFSET},
    "Sub": {0: OFFSET, 1: OFFSET},
    "Mul": {0: FACTOR, 1: FACTOR},
    "Div": {0: FACTOR, 1: FACTOR},
}
# Outputs that are read where a model is only run; the rest is for training.
_OUTPUTS = {"BatchNormalization": 1, "Dropout": 1}
# Ops that are not copied. A runtime that leaves one out may give its name to another op.
_NO_OPS = frozenset({"Dropout", "Identity"})


def is_left_out(op: Op, graph: Graph) -> bool:
    """Whether the copy has no such op: what it gives is what it is given."""
    if op.type not in _NO_OPS or op.outputs[0] in graph.outputs:
        return False
    return not any(graph.readers.get(tensor) for tensor in op.outputs[1:])


def write_onnx_copy(
    file: Path,
    graph: Graph,
    folder: Path,
    inputs: Mapping[str, Array],
    tensors: Mapping[str, str],
    drawing: Drawing,
) -> Path:
    """Write the copy; the arguments are as ``prepare`` has them.

    Raises:
        ModelRejectedError: The file is no ONNX model.
        ConversionError: It is not the file that the graph was read from.
    """
    try:
        model = onnx.load(str(file))
    except Exception as exc:
        raise ModelRejectedError(f"{file.name}: onnx cannot read it: {exc}") from exc
    copied = _Copier(model, graph, tensors, drawing).copied(inputs)
    path = folder / "model.onnx"
    apart = sum(len(tensor.raw_data) for tensor in copied.graph.initializer) > _MOST_INSIDE
    onnx.save(copied, str(path), save_as_external_data=apart, location="weights.bin")
    return path


class _Copier:
    """Makes the copy of one model.

    Args:
        model: As the file has it.
        graph: What was read of it.
        tensors: The graph's tensors -> their names in the copy.
        drawing: Draws weights.
    """

    def __init__(
        self, model: Any, graph: Graph, tensors: Mapping[str, str], drawing: Drawing
    ) -> None:
        self._model, self._graph, self._tensors = model, graph, tensors
        self._nodes = {out: node for node in model.graph.node for out in node.output if out}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._values: dict[str, Array] = {}
        self._constants: dict[tuple[str, int], str] = {}
        self._written: list[Any] = []
        self._drawing = drawing

    def copied(self, inputs: Mapping[str, Array]) -> Any:
        graph = helper.make_graph(
            [
                self._node(place, op)
                for place, op in enumerate(self._graph.ops)
                if not is_left_out(op, self._graph)
            ],
            "copy",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
                )
                for name, array in inputs.items()
            ],
            self._outputs(),
            self._written,
        )
        model = helper.make_model(
            graph,
            opset_imports=self._model.opset_import,
            ir_version=max(self._model.ir_version, _OLDEST_IR),
            functions=self._model.functions,
        )
        return model

    def _node(self, place: int, op: Op) -> Any:
        made = next((name for name in op.outputs if name), "")
        if (node := self._nodes.get(made)) is None:
            raise ConversionError(
                f"{self._graph.name}: op {op.name} gives {made}, which no node of the file does"
            )
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"op{place}.0"
        del copy.input[:], copy.output[:]
        for number, name in enumerate(node.input):
            copy.input.append(self._input(place, node.op_type, number, name))
        copy.output.extend(
            self._tensors.get(name, "") for name in node.output[: _OUTPUTS.get(node.op_type)]
        )
        return copy

    def _outputs(self) -> list[Any]:
        known = {value.name: value for value in self._model.graph.output}
        found = []
        for name in self._graph.outputs:
            if name in self._tensors and name in known:
                value = onnx.ValueInfoProto()
                value.CopyFrom(known[name])
                value.name = self._tensors[name]
                found.append(value)
        return found

    def _input(self, place: int, op_type: str, number: int, name: str) -> str:
        """What an op of the copy reads; weights are its own, even if exporters shared equal ones.

        Runtimes make nothing of a weight's sharing but trouble: some fold only what has one reader.
        """
        if not name or name in self._tensors:
            return self._tensors.get(name, "")
        value = self._value(name)
        drawn = _WEIGHTS.get(op_type, {}).get(number, "") if is_weight(value) else ""
        key = (name, place if drawn else -1)
        if key not in self._constants:
            new = f"const{len(self._constants)}"
            self._constants[key] = new
            if drawn:
                fan_in = math.prod(value.shape[1:]) if value.ndim > 2 else max(value.shape)
                value = self._drawing.like(value, drawn, fan_in)
            self._written.append(numpy_helper.from_array(value, new))
        return self._constants[key]

    def _value(self, name: str) -> Array:
        """What a constant holds in the file."""
        if name in self._values:
            return self._values[name]
        known = self._graph.tensors.get(name)
        if known is not None and known.value is not None:
            value = known.value
        elif name in self._initializers:
            value = numpy_helper.to_array(self._initializers[name])
        elif name in self._nodes:
            value = self._computed(name)
        else:
            raise ConversionError(f"{self._graph.name}: nothing in the file gives {name}")
        self._values[name] = np.asarray(value)
        return self._values[name]

    def _computed(self, name: str) -> Array:
        """What nodes that read constants only make of them."""
        chain: list[Any] = []
        feeds: dict[str, Array] = {}
        waiting, seen = [name], {name}
        while waiting:
            tensor = waiting.pop()
            known = self._graph.tensors.get(tensor)
            if tensor not in self._nodes or (known is not None and known.value is not None):
                feeds[tensor] = self._value(tensor)
                continue
            chain.append(self._nodes[tensor])
            new = [source for source in self._nodes[tensor].input if source and source not in seen]
            seen.update(new)
            waiting += new
        order = {id(node): place for place, node in enumerate(self._model.graph.node)}
        nodes = sorted({id(node): node for node in chain}.values(), key=lambda n: order[id(n)])
        graph = helper.make_graph(
            nodes,
            "constant",
            [helper.make_tensor_value_info(feed, 0, None) for feed in feeds],
            [helper.make_tensor_value_info(name, 0, None)],
        )
        model = helper.make_model(graph, opset_imports=self._model.opset_import)
        return np.asarray(ReferenceEvaluator(model).run(None, feeds)[0])
