"""The copy of a TFLite model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nn_meter.errors import ConversionError, ModelRejectedError
from nn_meter.kernel_detector.check.drawing import (
    FACTOR,
    OFFSET,
    SPREAD,
    Array,
    Drawing,
    is_weight,
)
from nn_meter.kernel_detector.graph import Graph
from nn_meter.kernel_detector.readers.tflite import place_of, read_tflite, tflite_schema

__all__ = ["write_tflite_copy"]

_IDENTIFIER = b"TFL3"
# Where ops have weights, and how these are drawn.
_WEIGHTS: dict[str, dict[int, str]] = {
    "CONV_2D": {1: SPREAD, 2: OFFSET},
    "DEPTHWISE_CONV_2D": {1: SPREAD, 2: OFFSET},
    "CONV_3D": {1: SPREAD, 2: OFFSET},
    "TRANSPOSE_CONV": {1: SPREAD, 3: OFFSET},
    "FULLY_CONNECTED": {1: SPREAD, 2: OFFSET},
    "BATCH_MATMUL": {0: SPREAD, 1: SPREAD},
    "PRELU": {1: FACTOR},
    "ADD": {0: OFFSET, 1: OFFSET},
    "SUB": {0: OFFSET, 1: OFFSET},
    "MUL": {0: FACTOR, 1: FACTOR},
    "DIV": {0: FACTOR, 1: FACTOR},
}
_ONE_FOR_EACH = frozenset({"DEPTHWISE_CONV_2D"})  # channels are not summed up
# Ops whose own activation readers of the format are known to overlook. The copy has it behind them,
# as an op that is a part of the same op of the graph.
_OVERLOOKED = frozenset({"TRANSPOSE_CONV"})


def write_tflite_copy(
    file: Path, graph: Graph, folder: Path, tensors: Mapping[str, str], drawing: Drawing
) -> Path:
    """Write the copy; the arguments are as ``prepare`` has them.

    Raises:
        ModelRejectedError: The file cannot be copied.
        ConversionError: It is not the file that the graph was read from.
    """
    again = read_tflite(file, {})
    if [(op.name, op.type) for op in again.ops] != [(op.name, op.type) for op in graph.ops]:
        raise ConversionError(f"{graph.name}: its ops are not those of the graph read before")
    data = file.read_bytes()
    model = tflite_schema().ModelT.InitFromPackedBuf(data, 0)
    if any(buffer.offset > 1 for buffer in model.buffers):
        raise ModelRejectedError(
            f"{graph.name}: it keeps weights behind the tables of the file, where they cannot be "
            "drawn anew"
        )
    path = folder / f"{Path(graph.name).stem}.tflite"
    path.write_bytes(_Copier(model, graph, tensors, drawing).copied())
    return path


class _Copier:
    """Changes one model into its copy.

    Args:
        model: All that the file holds, as the schema's objects.
        graph: What was read of it.
        tensors: The graph's tensors -> their names in the copy.
        drawing: Draws weights.
    """

    def __init__(
        self, model: Any, graph: Graph, tensors: Mapping[str, str], drawing: Drawing
    ) -> None:
        self._model, self._graph, self._tensors = model, graph, tensors
        self._drawing = drawing
        self._schema = tflite_schema()
        (self._subgraph,) = model.subgraphs

    def copied(self) -> bytes:
        import flatbuffers  # type: ignore[import-untyped]

        self._model.signatureDefs = self._model.metadata = self._model.metadataBuffer = None
        self._model.description = None
        operators = list(self._subgraph.operators)
        for number, tensor in enumerate(self._subgraph.tensors):
            tensor.name = f"const{number}"
        for name, number in zip(self._graph.inputs, self._subgraph.inputs, strict=True):
            self._subgraph.tensors[number].name = self._tensors[name]
        behind: dict[int, Any] = {}
        for op in self._graph.ops:
            place = place_of(op)
            operator = operators[place]
            written = [number for number in operator.outputs if number >= 0]
            for name, number in zip(op.outputs, written, strict=True):
                self._subgraph.tensors[number].name = self._tensors[name]
            self._draw_weights(op.type, operator)
            if op.type in _OVERLOOKED and (activation := self._parted(operator)) is not None:
                behind[place] = activation
        self._subgraph.operators = [
            each
            for place, operator in enumerate(operators)
            for each in (operator, *([behind[place]] if place in behind else []))
        ]
        read = {tensor.buffer for tensor in self._read()}
        for number, buffer in enumerate(self._model.buffers):
            if number not in read:  # what was there before it was drawn anew
                buffer.data = None
        builder = flatbuffers.Builder(1024)
        builder.Finish(self._model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())

    def _read(self) -> Iterator[Any]:
        """The tensors that ops read."""
        for operator in self._subgraph.operators:
            for number in operator.inputs:
                if number >= 0:
                    yield self._subgraph.tensors[number]

    def _draw_weights(self, op_type: str, operator: Any) -> None:
        """Draw an op's weights anew, as constants of its own: converters share equal ones."""
        for position, how in _WEIGHTS.get(op_type, {}).items():
            number = operator.inputs[position] if position < len(operator.inputs) else -1
            drawn = self._drawn(number, how, op_type) if number >= 0 else None
            if drawn is not None:
                operator.inputs = list(operator.inputs)
                operator.inputs[position] = len(self._subgraph.tensors)
                self._subgraph.tensors.append(drawn)

    def _drawn(self, number: int, how: str, op_type: str) -> Any | None:
        """A weight like a tensor; None: that is none."""
        tensor = self._subgraph.tensors[number]
        held = self._model.buffers[tensor.buffer].data
        if held is None or tensor.type != self._schema.TensorType.FLOAT32:
            return None
        value: Array = np.frombuffer(bytes(held), np.float32)
        if not is_weight(value):
            return None
        shape = [int(size) for size in tensor.shape]
        outputs = shape[-1] * shape[0] if op_type in _ONE_FOR_EACH else shape[0]
        drawn = self._drawing.like(value, how, max(1, value.size // max(1, outputs)))
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(drawn.tobytes(), np.uint8)
        found = self._schema.TensorT()
        vars(found).update(vars(tensor))
        found.buffer, found.name = len(self._model.buffers), f"const{len(self._subgraph.tensors)}"
        self._model.buffers.append(buffer)
        return found

    def _parted(self, operator: Any) -> Any | None:
        """Take an op's activation from it, and give it as an op of its own; None: it has none."""
        kinds = self._schema.ActivationFunctionType
        found = operator.builtinOptions.fusedActivationFunction
        if found == kinds.NONE:
            return None
        word = next(word for word, number in vars(kinds).items() if number == found)
        operator.builtinOptions.fusedActivationFunction = kinds.NONE
        (after,) = operator.outputs
        tensors = self._subgraph.tensors
        before = self._schema.TensorT()
        vars(before).update(vars(tensors[after]))
        before.name = f"{tensors[after].name}.before"
        activation = self._schema.OperatorT()
        activation.opcodeIndex = self._code(word)
        activation.inputs, activation.outputs = [len(tensors)], [after]
        operator.outputs = [len(tensors)]
        tensors.append(before)
        return activation

    def _code(self, word: str) -> int:
        """The place of an op's type among those of the file."""
        code = self._schema.OperatorCodeT()
        number = getattr(self._schema.BuiltinOperator, word)
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
        self._model.operatorCodes.append(code)
        return len(self._model.operatorCodes) - 1
