"""The parts of a TFLite model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nn_meter.errors import ModelRejectedError
from nn_meter.kernel_detector.check.prepare import Copy, op_named
from nn_meter.kernel_detector.costs.parts import SMALL, Border, Constant, Node
from nn_meter.kernel_detector.readers.tflite import tflite_schema

__all__ = ["TFLiteParts"]

_IDENTIFIER = b"TFL3"
_ABSENT = -1


class TFLiteParts:
    """The parts of the copy of a model, see `Parts`.

    Args:
        copy: From ``check.prepare``.
        name: Of the model, for messages.
    """

    suffix = ".tflite"

    def __init__(self, copy: Copy, name: str) -> None:
        self._name = name
        self._schema = tflite_schema()
        self._model = self._schema.ModelT.InitFromPackedBuf(copy.path.read_bytes(), 0)
        (subgraph,) = self._model.subgraphs
        self._tensors = {_text(tensor.name): tensor for tensor in subgraph.tensors}
        names = [_text(tensor.name) for tensor in subgraph.tensors]
        nodes = [self._node(each, place, names) for place, each in enumerate(subgraph.operators)]
        self._place = {node.name: place for place, node in enumerate(nodes)}
        self.of_op: dict[int, list[Node]] = {}
        self._makers: dict[str, Node] = {}  # of constants, by ops that the graph folded away
        for node in nodes:
            place = next((p for out in node.outputs if (p := op_named(out)) is not None), None)
            if place is not None:
                self.of_op.setdefault(place, []).append(node)
            else:
                self._makers |= dict.fromkeys(node.outputs, node)
        self.nodes = [node for node in nodes if not self._makers.keys() & set(node.outputs)]
        computed = {out for node in self.nodes for out in node.outputs}
        given = {names[number] for number in subgraph.inputs}
        self.constants = {
            name: self._constant(tensor)
            for name, tensor in self._tensors.items()
            if name not in computed and name not in given
        }
        self.outputs = [names[number] for number in subgraph.outputs]

    def made(
        self, nodes: Sequence[Node], inputs: Sequence[Border], outputs: Sequence[Border]
    ) -> Any:
        for border in inputs:
            if border.shape[:1] != (1,) or border.dtype != "float32":
                raise ModelRejectedError(
                    f"{self._name}: {border.name} is {border.dtype} of shape {list(border.shape)}; "
                    "a part of a .tflite model can be given floats with a batch of 1 only"
                )
        nodes = [*self._makers_of(nodes), *nodes]
        written = [out for node in nodes for out in node.outputs if out]
        read = [name for node in nodes for name in node.inputs if name]
        ends = [border.name for border in (*inputs, *outputs)]
        made = _Made(self._schema, self._model.operatorCodes)
        for name in dict.fromkeys([*ends, *read, *written]):
            tensor = self._tensors[name]
            is_given = name in written or any(name == border.name for border in inputs)
            made.tensor(name, tensor, None if is_given else self._model.buffers[tensor.buffer])
        for node in nodes:
            made.operator(node.source, node.inputs, node.outputs)
        return made.model([b.name for b in inputs], [b.name for b in outputs])

    def write(self, model: Any, path: Path, weights: int) -> None:
        del weights
        path.write_bytes(_packed(model))

    def call(self) -> Any:
        schema = self._schema
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
        code.version = 1
        made = _Made(schema, [code])
        for name in ("x", "y"):
            tensor = schema.TensorT()
            tensor.shape, tensor.type = [1, 1], schema.TensorType.FLOAT32
            made.tensor(name, tensor, None)
        made.operator(schema.OperatorT(), ["x"], ["y"])
        return made.model(["x"], ["y"])

    def _node(self, operator: Any, place: int, names: Sequence[str]) -> Node:
        code = self._model.operatorCodes[operator.opcodeIndex]
        options = [
            sorted((key, _plain(value)) for key, value in vars(held).items())
            for held in (operator.builtinOptions, operator.builtinOptions2)
            if held is not None
        ]
        return Node(
            name=f"node{place}",
            type=str(max(code.builtinCode, code.deprecatedBuiltinCode)),
            inputs=_named(operator.inputs, names),
            outputs=_named(operator.outputs, names),
            told=repr((code.customCode, options, _plain(operator.customOptions))),
            source=operator,
        )

    def _constant(self, tensor: Any) -> Constant:
        dtype = _dtypes().get(tensor.type, "")
        dims = tuple(int(size) for size in (() if tensor.shape is None else tensor.shape))
        held = self._model.buffers[tensor.buffer].data
        count = math.prod(dims)
        is_drawn = dtype.startswith("float") and count > 1
        return Constant(
            dims=dims,
            dtype=dtype,
            size_bytes=0 if held is None else len(held),
            value=None if held is None or is_drawn or count > SMALL else bytes(held).hex(),
        )

    def _makers_of(self, nodes: Iterable[Node]) -> list[Node]:
        """The nodes that make constants which these read, and what these are made of in turn."""
        found: dict[str, Node] = {}
        waiting = list(nodes)
        while waiting:
            for name in waiting.pop().inputs:
                maker = self._makers.get(name)
                if maker is not None and maker.name not in found:
                    found[maker.name] = maker
                    waiting.append(maker)
        return sorted(found.values(), key=lambda node: self._place[node.name])


class _Made:
    """A model that is put together.

    Args:
        schema: Of the format.
        codes: What operators know their types by.
    """

    def __init__(self, schema: Any, codes: Sequence[Any]) -> None:
        self._schema, self._codes = schema, list(codes)
        self._buffers = [schema.BufferT()]
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._number: dict[str, int] = {"": _ABSENT}

    def tensor(self, name: str, like: Any, held: Any | None) -> None:
        found = self._schema.TensorT()
        vars(found).update(vars(like))
        found.name, found.buffer = name, 0
        if held is not None:
            found.buffer = len(self._buffers)
            self._buffers.append(held)
        self._number[name] = len(self._tensors)
        self._tensors.append(found)

    def operator(self, like: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        found = self._schema.OperatorT()
        vars(found).update(vars(like))
        found.inputs = [self._number[name] for name in inputs]
        found.outputs = [self._number[name] for name in outputs]
        self._operators.append(found)

    def model(self, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
        subgraph = self._schema.SubGraphT()
        subgraph.name = "excerpt"
        subgraph.tensors, subgraph.operators = self._tensors, self._operators
        subgraph.inputs = [self._number[name] for name in inputs]
        subgraph.outputs = [self._number[name] for name in outputs]
        model = self._schema.ModelT()
        model.version, model.operatorCodes = 3, self._codes
        model.subgraphs, model.buffers = [subgraph], self._buffers
        return model


def _packed(model: Any) -> bytes:
    import flatbuffers  # type: ignore[import-untyped]

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _named(numbers: Iterable[int] | None, names: Sequence[str]) -> tuple[str, ...]:
    found = () if numbers is None else numbers
    return tuple(names[number] if number != _ABSENT else "" for number in found)


def _text(name: bytes | str | None) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name or ""


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


@cache
def _dtypes() -> Mapping[int, str]:
    return {
        number: word.lower()
        for word, number in vars(tflite_schema().TensorType).items()
        if word[0] != "_"
    }
