"""TFLite models: a valid one, and such as no converter writes."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from fuzz_mutation import HOSTILE_INTS

__all__ = ["make_model", "models"]

_OPS, _TYPES = schema.BuiltinOperator, schema.TensorType
_IMAGE = (1, 8, 8, 4)


@cache
def models() -> list[tuple[str, bytes]]:
    """One model with a convolution, weights that are dequantized, and reshapes."""
    return [("model.tflite", _packed(_network()))]


def make_model(chance: Random) -> tuple[str, bytes]:
    """The model with some fields of its tables changed."""
    model = _network()
    for _ in range(chance.choice((1, 1, 2, 4))):
        _spoil(chance, model)
    return "model.tflite", _packed(model)


def _packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _network() -> Any:
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    model.operatorCodes = []
    graph.tensors, graph.operators = [], []

    def tensor(name: str, shape: Any = _IMAGE, kind: int = _TYPES.FLOAT32, data: Any = None) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name.encode(), list(shape), kind, 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.asarray(data).tobytes(), np.uint8)
            made.buffer = len(model.buffers)
            model.buffers.append(buffer)
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def op(kind: int, inputs: list[int], outputs: list[int], options: Any = None) -> None:
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode = kind, min(kind, 127)
        model.operatorCodes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex = len(model.operatorCodes) - 1
        made.inputs, made.outputs = inputs, outputs
        if options is not None:
            name = type(options).__name__.removesuffix("T")
            made.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            made.builtinOptions = options
        graph.operators.append(made)

    x, y = tensor("x"), tensor("y", [1, 256])
    half = tensor("half", [4, 1, 1, 4], _TYPES.FLOAT16, np.ones((4, 1, 1, 4), np.float16))
    weight, bias = tensor("w", [4, 1, 1, 4]), tensor("b", [4], data=np.ones(4, np.float32))
    conv, split = tensor("c"), tensor("s", [1, 8, 8, 2])
    other, joined = tensor("s", [1, 8, 8, 2]), tensor("j")
    axis = tensor("axis", [], _TYPES.INT32, np.int32(3))
    shape = tensor("shape", [2], _TYPES.INT32, np.int32([1, 256]))
    total = tensor("sum")
    joining = schema.ConcatenationOptionsT()
    joining.axis = 3
    flat = schema.ReshapeOptionsT()
    flat.newShape = [1, 256]
    halves = schema.SplitOptionsT()
    halves.numSplits = 2
    op(_OPS.DEQUANTIZE, [half], [weight])
    op(_OPS.CONV_2D, [x, weight, bias], [conv], schema.Conv2DOptionsT())
    op(_OPS.SPLIT, [axis, conv], [split, other], halves)
    op(_OPS.CONCATENATION, [split, other], [joined], joining)
    op(_OPS.ADD, [joined, x], [total], schema.AddOptionsT())
    op(_OPS.RESHAPE, [total, shape], [y], flat)
    graph.inputs, graph.outputs = [x], [y]
    return model


def _spoil(chance: Random, model: Any) -> None:
    graph = chance.choice(model.subgraphs) if model.subgraphs else schema.SubGraphT()
    tensors, ops = graph.tensors or [schema.TensorT()], graph.operators or [schema.OperatorT()]
    tensor, op = chance.choice(tensors), chance.choice(ops)
    numbers = [n for n in HOSTILE_INTS if -(2**31) <= n < 2**31]
    kind = chance.randrange(14)
    if kind == 0:
        tensor.shape = [chance.choice(numbers) for _ in range(chance.choice((0, 1, 4, 5, 70)))]
    elif kind == 1:
        tensor.buffer = chance.choice((0, 1, 2, 3, 99, 2**31))
    elif kind == 2:
        tensor.type = chance.choice((*range(20), 127, -1, -128))
    elif kind == 3:
        tensor.name = chance.choice((None, b"", b"x", b"\xff\xfe", b"\x1b[31m", b"n" * 5000))
    elif kind == 4:
        op.inputs = [chance.choice(numbers) for _ in range(chance.choice((0, 1, 3, 9)))]
    elif kind == 5:
        op.inputs = [chance.randrange(-1, 13) for _ in range(chance.choice((0, 1, 2, 3)))]
    elif kind == 6:
        op.outputs = [chance.randrange(-1, 13) for _ in range(chance.choice((0, 1, 2)))]
    elif kind == 7:
        op.opcodeIndex = chance.choice((0, 1, 5, 6, 2**31))
    elif kind == 8 and model.operatorCodes:
        code = chance.choice(model.operatorCodes)
        number = chance.choice((*range(0, 210, 7), 32, -1, 9999))
        code.builtinCode, code.deprecatedBuiltinCode = number, max(min(number, 127), -128)
        code.customCode = chance.choice((None, b"Mine", b"\xff" * 9))
    elif kind == 9:
        buffer = chance.choice(model.buffers)
        buffer.offset = chance.choice((0, 1, 2, 100, 2**32, 2**64 - 1))
        buffer.size = chance.choice((0, 1, 16, 2**32, 2**64 - 1))
    elif kind == 10:
        buffer = chance.choice(model.buffers)
        buffer.data = np.zeros(chance.choice((0, 1, 4, 16, 64)), np.uint8)
    elif kind == 11:
        graph.inputs = [chance.randrange(-2, 14) for _ in range(chance.randrange(3))]
    elif kind == 12:
        graph.outputs = [chance.randrange(-2, 14) for _ in range(chance.randrange(3))]
    else:
        options = chance.choice([op.builtinOptions for op in ops if op.builtinOptions] or [graph])
        key = chance.choice(list(vars(options)))
        if type(getattr(options, key)) is int:
            setattr(options, key, chance.choice((0, 1, 2, 7, 100, -1)))
