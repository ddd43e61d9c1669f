"""A copy of a model by which a runtime's work can be traced: constants folded, weights drawn anew.

The copy has the ops of the graph and no others, each under a name of its own that says which it is.
Weights are drawn anew, as equal ones make a runtime merge ops, and make tensors equal that are not
the same; sizes, bounds and whatever else is no weight stay as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from nn_meter.errors import ConversionError, ModelRejectedError
from nn_meter.kernel_detector.graph import Graph, Op

__all__ = ["Copy", "op_named", "prepare"]

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

_FLOATS = frozenset({"float16", "float32", "float64"})
_NAME = re.compile(r"op([0-9]+)\.")
_MOST_INSIDE = 100_000_000  # bytes; not every converter takes weights that lie beside the model
_OLDEST_IR = 4  # from here on a constant need not be an input as well

# Where ops have weights, and how these are drawn.
_SPREAD, _FACTOR, _OFFSET = "spread", "factor", "offset"
_WEIGHTS: dict[str, dict[int, str]] = {
    "Conv": {1: _SPREAD, 2: _OFFSET},
    "ConvTranspose": {1: _SPREAD, 2: _OFFSET},
    "Gemm": {0: _SPREAD, 1: _SPREAD, 2: _OFFSET},
    "MatMul": {0: _SPREAD, 1: _SPREAD},
    "BatchNormalization": {1: _FACTOR, 2: _OFFSET, 3: _OFFSET, 4: _FACTOR},
    "InstanceNormalization": {1: _FACTOR, 2: _OFFSET},
    "LayerNormalization": {1: _FACTOR, 2: _OFFSET},
    "GroupNormalization": {1: _FACTOR, 2: _OFFSET},
    "PRelu": {1: _FACTOR},
    "LSTM": {1: _SPREAD, 2: _SPREAD, 3: _OFFSET},
    "GRU": {1: _SPREAD, 2: _SPREAD, 3: _OFFSET},
    "RNN": {1: _SPREAD, 2: _SPREAD, 3: _OFFSET},
    "Add": {0: _OFFSET, 1: _OFFSET},
    "Sub": {0: _OFFSET, 1: _OFFSET},
    "Mul": {0: _FACTOR, 1: _FACTOR},
    "Div": {0: _FACTOR, 1: _FACTOR},
}
# Outputs that are read where a model is only run; the rest is for training.
_OUTPUTS = {"BatchNormalization": 1, "Dropout": 1}
# Ops that are not copied. A runtime that leaves one out may give its name to another op.
_NO_OPS = frozenset({"Dropout", "Identity"})


@dataclass(frozen=True, kw_only=True)
class Copy:
    """The copy of a model.

    Attributes:
        path: Its file; weights that are large lie beside it.
        ops: The graph's ops, in its order: ``op_named`` gives places in it.
        inputs: For each of the copy's inputs an array to run it on, in the graph's order.
        tensors: The graph's tensors that are computed -> their names in the copy, which has no
            ``Dropout`` and no ``Identity``: what these give has the name of what they are given.
    """

    path: Path
    ops: Sequence[Op]
    inputs: Mapping[str, Array]
    tensors: Mapping[str, str]

    @property
    def shapes(self) -> list[list[int]]:
        """Shapes of the inputs without the batch dimension, as backends take them.

        None at all where a batch is not 1: then the file's shapes hold.
        """
        shapes = [array.shape for array in self.inputs.values()]
        if any(shape[:1] != (1,) for shape in shapes):
            return []
        return [list(shape[1:]) for shape in shapes]


def op_named(name: str) -> int | None:
    """The place of the op after which something in a runtime's graph is named; None: of none."""
    found = _NAME.search(name)
    return int(found[1]) if found else None


def prepare(
    model_path: Path,
    graph: Graph,
    folder: Path,
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    seed: int = 0,
) -> Copy:
    """Write the copy.

    Args:
        model_path: The model's ``.onnx`` file.
        graph: What was read of it.
        folder: Where the copy goes; it exists and is empty.
        shapes: Shapes of inputs, batch included, where they are others than the graph's.
        seed: What weights and inputs are drawn with.

    Raises:
        ModelRejectedError: The file is no ONNX model, or an input has no fixed shape.
        ConversionError: It is not the file that the graph was read from.
    """
    if graph.format != "onnx":
        raise ModelRejectedError(
            f"{model_path.name}: only ONNX models can be checked, this one is {graph.format}"
        )
    try:
        model = onnx.load(str(model_path))
    except Exception as exc:
        raise ModelRejectedError(f"{model_path.name}: onnx cannot read it: {exc}") from exc
    inputs = {
        f"in{number}": _random_input(graph, name, (shapes or {}).get(name), seed)
        for number, name in enumerate(graph.inputs)
    }
    tensors = dict(zip(graph.inputs, inputs, strict=True))
    for place, op in enumerate(graph.ops):
        if _is_left_out(op, graph):
            tensors[op.outputs[0]] = tensors[op.inputs[0]]
        else:
            tensors |= {name: f"op{place}.{i}" for i, name in enumerate(op.outputs) if name}
    copied = _Copier(model, graph, tensors, seed).copied(inputs)
    path = folder / "model.onnx"
    apart = sum(len(tensor.raw_data) for tensor in copied.graph.initializer) > _MOST_INSIDE
    onnx.save(copied, str(path), save_as_external_data=apart, location="weights.bin")
    return Copy(path=path, ops=graph.ops, inputs=inputs, tensors=tensors)


def _is_left_out(op: Op, graph: Graph) -> bool:
    if op.type not in _NO_OPS or op.outputs[0] in graph.outputs:
        return False
    return not any(graph.readers.get(tensor) for tensor in op.outputs[1:])


def _random_input(graph: Graph, name: str, shape: Sequence[int] | None, seed: int) -> Array:
    sizes = shape or graph.shape(name)
    if sizes is None or any(size < 1 for size in sizes):
        raise ModelRejectedError(f"{graph.name}: input {name} has no fixed shape; give --shape")
    rng = np.random.default_rng(seed)
    dtype = np.dtype(graph.tensors[name].dtype or "float32")
    if dtype.kind == "f":
        return rng.standard_normal(tuple(sizes)).astype(dtype)
    return rng.integers(0, 2, tuple(sizes)).astype(dtype)


class _Copier:
    """Makes the copy of one model.

    Args:
        model: As the file has it.
        graph: What was read of it.
        tensors: The graph's tensors -> their names in the copy.
        seed: What weights are drawn with.
    """

    def __init__(self, model: Any, graph: Graph, tensors: Mapping[str, str], seed: int) -> None:
        self._model, self._graph, self._tensors = model, graph, tensors
        self._nodes = {out: node for node in model.graph.node for out in node.output if out}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._values: dict[str, Array] = {}
        self._constants: dict[tuple[str, str], str] = {}
        self._written: list[Any] = []
        self._rng = np.random.default_rng(seed)

    def copied(self, inputs: Mapping[str, Array]) -> Any:
        graph = helper.make_graph(
            [
                self._node(place, op)
                for place, op in enumerate(self._graph.ops)
                if not _is_left_out(op, self._graph)
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
            copy.input.append(self._input(node.op_type, number, name))
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

    def _input(self, op_type: str, number: int, name: str) -> str:
        if not name or name in self._tensors:
            return self._tensors.get(name, "")
        value = self._value(name)
        drawn = _WEIGHTS.get(op_type, {}).get(number, "")
        if value.size < 2 or value.dtype.name not in _FLOATS:
            drawn = ""
        if (name, drawn) not in self._constants:
            new = f"const{len(self._constants)}"
            self._constants[name, drawn] = new
            if drawn:
                value = self._drawn(value, drawn)
            self._written.append(numpy_helper.from_array(value, new))
        return self._constants[name, drawn]

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

    def _drawn(self, value: Array, how: str) -> Array:
        """Random values of the same shape that neither blow up what they meet nor silence it."""
        if how == _FACTOR:
            return self._rng.uniform(0.5, 1.5, value.shape).astype(value.dtype)
        if how == _OFFSET:
            return self._rng.uniform(-0.5, 0.5, value.shape).astype(value.dtype)
        fan_in = math.prod(value.shape[1:]) if value.ndim > 2 else max(value.shape)
        drawn = self._rng.standard_normal(value.shape, dtype=np.float32)
        drawn *= np.float32(math.sqrt(2 / fan_in))
        return drawn.astype(value.dtype, copy=False)
