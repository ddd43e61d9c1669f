"""Models of one op, made without TensorFlow: what a GPU executes of them is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["has_ops", "layout_models", "one_op"]

_LAYOUT_OPS = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE")  # move values, compute none
_RANK = 4  # of what a GPU's tensors are taken to be
_IDENTIFIER = b"TFL3"


def _schema() -> Any:
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def _packed(model: Any) -> bytes:
    import flatbuffers  # type: ignore[import-untyped]

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def one_op(op: str, shape: Sequence[int]) -> bytes:
    """A ``.tflite`` of one op that takes a tensor and gives one of the same shape.

    Args:
        op: As TFLite calls it: ``RELU``, ``ABS``.
        shape: Of the tensor, batch included.
    """
    return _model(_tensors(shape, shape), _operator([0]), _code(op), [_schema().BufferT()])


def _reshape(shape: Sequence[int], target: Sequence[int]) -> bytes:
    schema = _schema()
    graph, buffer = _tensors(shape, target, [len(target)]), schema.BufferT()
    buffer.data = np.frombuffer(np.array(target, np.int32).tobytes(), np.uint8)
    graph.tensors[2].type, graph.tensors[2].buffer = schema.TensorType.INT32, 1
    return _model(graph, _operator([0, 2]), _code("RESHAPE"), [schema.BufferT(), buffer])


def _tensors(*shapes: Sequence[int]) -> Any:
    schema = _schema()
    graph = schema.SubGraphT()
    graph.tensors = []
    for number, shape in enumerate(shapes):
        tensor = schema.TensorT()
        tensor.name = f"t{number}".encode()
        tensor.shape = np.array(shape, np.int32)
        tensor.type = schema.TensorType.FLOAT32
        tensor.buffer = 0
        graph.tensors.append(tensor)
    return graph


def _operator(inputs: Sequence[int]) -> Any:
    operator = _schema().OperatorT()
    operator.opcodeIndex = 0
    operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([1], np.int32)
    return operator


def _code(op: str) -> Any:
    schema = _schema()
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, op)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = 1
    return code


def _model(graph: Any, operator: Any, code: Any, buffers: Sequence[Any]) -> bytes:
    schema = _schema()
    graph.operators = [operator]
    graph.inputs, graph.outputs = np.array([0], np.int32), np.array([1], np.int32)
    model = schema.ModelT()
    model.version = 3
    model.operatorCodes = [code]
    model.subgraphs = [graph]
    model.buffers = list(buffers)
    signature = schema.SignatureDefT()
    signature.signatureKey = b"serving_default"
    signature.subgraphIndex = 0
    signature.inputs, signature.outputs = [], []
    for side, name, index in ((signature.inputs, b"x", 0), (signature.outputs, b"y", 1)):
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        side.append(entry)
    model.signatureDefs = [signature]
    return _packed(model)


def _read(path: Path) -> Any:
    schema = _schema()
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))


def has_ops(path: Path) -> bool:
    """Whether a ``.tflite`` file has any op: a converter may have dropped the only one."""
    return any(len(graph.operators or ()) for graph in _read(path).subgraphs)


def layout_models(path: Path) -> list[bytes]:
    """Models of what a model may execute to move values only, each of one op.

    These are its reshapes, transposes and the like, each cut out as it stands there; and for what
    any op writes with fewer than four dimensions, a reshape to that from the same with four: a mean
    over height and width squeezes them so.

    Args:
        path: A ``.tflite`` file.
    """
    schema, model = _schema(), _read(path)
    wanted = {getattr(schema.BuiltinOperator, op) for op in _LAYOUT_OPS}
    found: dict[bytes, None] = {}
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            code = model.operatorCodes[operator.opcodeIndex]
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            if number in wanted and (alone := _alone(model, graph, operator, code)) is not None:
                found[alone] = None
            for index in operator.outputs:
                shape = tuple(int(size) for size in graph.tensors[index].shape)
                if 2 <= len(shape) < _RANK and shape[0] == 1:
                    found[_reshape((*(1 for _ in range(_RANK - len(shape))), *shape), shape)] = None
    return list(found)


def _alone(model: Any, graph: Any, operator: Any, code: Any) -> bytes | None:
    """One op's own model: tensor 0 goes in, 1 comes out, and the constants stand behind."""
    schema = _schema()
    read = [index for index in operator.inputs if index >= 0]
    fixed = [index for index in read if _content(model, graph.tensors[index]) is not None]
    free = [index for index in read if index not in fixed]
    if len(free) != 1 or len(operator.outputs) != 1:
        return None
    places = {int(free[0]): 0, int(operator.outputs[0]): 1}
    buffers = [schema.BufferT()]
    for index in fixed:
        if int(index) not in places:
            places[int(index)] = len(places)
    cut = schema.SubGraphT()
    cut.tensors = []
    for number, index in enumerate(places):
        old, tensor = graph.tensors[index], schema.TensorT()
        tensor.name = f"t{number}".encode()
        tensor.shape, tensor.type = old.shape, old.type
        tensor.buffer = 0
        if number > 1:
            buffer = schema.BufferT()
            buffer.data = _content(model, old)
            tensor.buffer = len(buffers)
            buffers.append(buffer)
        cut.tensors.append(tensor)
    one = _operator([places.get(int(i), -1) for i in operator.inputs])
    one.builtinOptions, one.builtinOptionsType = (
        operator.builtinOptions,
        operator.builtinOptionsType,
    )
    return _model(cut, one, code, buffers)


def _content(model: Any, tensor: Any) -> Any:
    """What a constant holds; None: it is none."""
    data = model.buffers[tensor.buffer].data
    return data if data is not None and len(data) else None
