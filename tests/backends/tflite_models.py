"""Models of a few ops as ``.tflite`` files, made without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

CHANNELS = 16


class Model:
    """A model that grows op by op; the last tensor is its output.

    Args:
        shape: Of the first input, batch included.
    """

    def __init__(self, *shape: int) -> None:
        import flatbuffers
        from ai_edge_litert import schema_py_generated

        self._flatbuffers, self._schema = flatbuffers, schema_py_generated
        self._rng = np.random.default_rng(1)
        self._buffers = [self._schema.BufferT()]
        self._codes: dict[str, int] = {}
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._inputs = [self._tensor(shape)]
        self._outputs: list[int] = []
        self._last = self._inputs[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self._tensors[self._last].shape)

    def _tensor(self, shape: Any, data: Any = None) -> int:
        tensor = self._schema.TensorT()
        tensor.name = f"t{len(self._tensors)}".encode()
        tensor.shape = np.array(shape, np.int32)
        types = self._schema.TensorType
        tensor.type = types.FLOAT32 if data is None or data.dtype == np.float32 else types.INT32
        tensor.buffer = 0
        if data is not None:
            buffer = self._schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            tensor.buffer = len(self._buffers)
            self._buffers.append(buffer)
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _weights(self, *shape: int) -> int:
        return self._tensor(shape, (self._rng.standard_normal(shape) / 4).astype(np.float32))

    def _op(
        self, name: str, inputs: list[int], shape: Any, kind: str = "", **options: Any
    ) -> Model:
        operator = self._schema.OperatorT()
        operator.opcodeIndex = self._codes.setdefault(name, len(self._codes))
        self._last = self._tensor(shape)
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = np.array([self._last], np.int32)
        if kind:
            operator.builtinOptions = getattr(self._schema, f"{kind}T")()
            for key, value in options.items():
                setattr(operator.builtinOptions, key, value)
            operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, kind)
        self._operators.append(operator)
        return self

    def conv(self, channels: int = CHANNELS, kernel: int = 3) -> Model:
        *sizes, found = self.shape
        weights = self._weights(channels, kernel, kernel, found)
        return self._op(
            *("CONV_2D", [self._last, weights, self._weights(channels)], [*sizes, channels]),
            *("Conv2DOptions",),
            **{"padding": self._schema.Padding.SAME, "strideW": 1, "strideH": 1},
        )

    def unary(self, name: str) -> Model:
        kinds = {"HARD_SWISH": "HardSwishOptions", "GELU": "GeluOptions", "ABS": "AbsOptions"}
        return self._op(name, [self._last], self.shape, kinds.get(name, ""))

    def swish(self) -> Model:
        before = self._last
        self.unary("LOGISTIC")
        return self._op("MUL", [before, self._last], self.shape, "MulOptions")

    def add(self) -> Model:
        """Another input of the model is added."""
        self._inputs.append(self._tensor(self.shape))
        return self._op("ADD", [self._last, self._inputs[-1]], self.shape, "AddOptions")

    def maxpool(self) -> Model:
        batch, high, wide, channels = self.shape
        return self._op(
            *("MAX_POOL_2D", [self._last], [batch, high // 2, wide // 2, channels]),
            *("Pool2DOptions",),
            **dict.fromkeys(("strideW", "strideH", "filterWidth", "filterHeight"), 2),
        )

    def mean(self) -> Model:
        """Over height and width, which are squeezed."""
        axes = self._tensor([2], np.array([1, 2], np.int32))
        shape = (self.shape[0], self.shape[-1])
        return self._op("MEAN", [self._last, axes], shape, "ReducerOptions", keepDims=False)

    def reshape(self, *shape: int) -> Model:
        target = self._tensor([len(shape)], np.array(shape, np.int32))
        return self._op("RESHAPE", [self._last, target], shape, "ReshapeOptions", newShape=shape)

    def tap(self) -> Model:
        """What it has come to so far is an output, too."""
        self._outputs.append(self._last)
        return self

    def write(self, path: Path, *, signature: bool = True) -> Path:
        schema = self._schema
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs = np.array(self._inputs, np.int32)
        graph.outputs = np.array([*self._outputs, self._last], np.int32)
        model = schema.ModelT()
        model.version, model.subgraphs, model.buffers = 3, [graph], self._buffers
        model.operatorCodes = []
        for name in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, name)
            code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
            model.operatorCodes.append(code)
        if signature:
            model.signatureDefs = [self._signature(graph)]
        builder = self._flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return path

    def _signature(self, graph: Any) -> Any:
        schema = self._schema
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
        sides = []
        for word, indices in (("x", graph.inputs), ("y", graph.outputs)):
            entries = []
            for number, index in enumerate(indices):
                entry = schema.TensorMapT()
                entry.name, entry.tensorIndex = f"{word}_{number}".encode(), int(index)
                entries.append(entry)
            sides.append(entries)
        signature.inputs, signature.outputs = sides
        return signature

    @property
    def shapes(self) -> list[list[int]]:
        """Of the inputs, without the batch dimension."""
        return [[int(size) for size in self._tensors[i].shape[1:]] for i in self._inputs]
