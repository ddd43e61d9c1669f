"""A TFLite model as a graph, by the schema that LiteRT ships."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from nn_meter.errors import ModelFileError, NotInstalledError
from nn_meter.kernel_detector.graph import Graph, Op, Tensor
from nn_meter.kernel_detector.readers.common import (
    KEPT_ELEMENTS,
    Names,
    blaming,
    check_size,
    holds,
    input_shapes,
    needed,
    read_bytes,
    shown,
    topological,
)

__all__ = ["place_of", "read_tflite", "tflite_schema"]

Array = npt.NDArray[Any]

_IDENTIFIER = b"TFL3"
_SHARED = 4  # lists of a file may share its bytes, so many times over
_MOST_ENTRIES = 500_000  # ops, or tensors; each takes some 2 KB
_ABSENT = -1  # an optional input that is not given
_RANDOM = frozenset({"MULTINOMIAL", "RANDOM_STANDARD_NORMAL", "RANDOM_UNIFORM"})
_CUSTOM = "custom"
_PLAIN = frozenset(
    {
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    }
)
# In numpy's words, where they differ.
_DTYPES = {"string": "object", "resource": "object", "variant": "object"}
# Attributes whose numbers have names, and where the schema keeps these.
_ENUMS = {
    "fused_activation_function": "ActivationFunctionType",
    "padding": "Padding",
    "in_data_type": "TensorType",
    "out_data_type": "TensorType",
    "output_type": "TensorType",
    "idx_out_type": "TensorType",
}


def read_tflite(path: Path, shapes: Mapping[str, Sequence[int]]) -> Graph:
    """Read a ``.tflite`` file. Ops that read constants only are folded away.

    A fused activation stays an attribute of its op: ``fused_activation_function``, e.g. ``RELU6``.
    Of an input with an open size the shape is taken that the file gives beside it.

    Args:
        path: The file.
        shapes: Shapes of inputs by name; they can only be those of the file.

    Raises:
        ModelFileError: The file cannot be read as a graph, or the shapes do not fit it.
        NotInstalledError: ``ai-edge-litert`` is missing.
    """
    data = read_bytes(path)
    if data[4:8] != _IDENTIFIER:
        raise ModelFileError(f"{path}: it is no TFLite model, or a truncated one")
    with blaming(path):
        return _Reader(path, data).graph(shapes)


def place_of(op: Op) -> int:
    """The place of an op of `read_tflite` among the operators of the file."""
    return int(op.name.rpartition("_")[2])


def tflite_schema() -> ModuleType:
    """What LiteRT generated of the format's schema.

    Raises:
        NotInstalledError: ``ai-edge-litert`` is missing.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as exc:
        raise NotInstalledError.for_extra("ai-edge-litert", "litert") from exc
    module: ModuleType = schema_py_generated
    return module


@cache
def _enum(name: str) -> dict[int, str]:
    """Names by number."""
    words = vars(getattr(tflite_schema(), name))
    return {number: word for word, number in words.items() if word[0] != "_"}


class _Reader:
    """Reads one file. What its lists hold together is bounded by the size of the file.

    Args:
        path: For messages.
        data: What it holds.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        self._path = path
        self._data = data
        self._left = _SHARED * len(data)
        self._schema = tflite_schema()
        self._model = self._schema.Model.GetRootAs(data, 0)
        self._codes: list[str] = [
            self._op_type(self._model.OperatorCodes(place))
            for place in self._count(self._model.OperatorCodesLength())
        ]

    def graph(self, shapes: Mapping[str, Sequence[int]]) -> Graph:
        """The model's only subgraph."""
        subgraph = self._subgraph()
        for count in (subgraph.TensorsLength(), subgraph.OperatorsLength()):
            if count > _MOST_ENTRIES:
                raise ModelFileError(f"{self._path}: it has {count} entries: too many to be held")
        names = Names()
        tables = [subgraph.Tensors(place) for place in self._count(subgraph.TensorsLength())]
        tensor_names = [
            names.unique(self._text(table.Name()) or f"tensor_{place}")
            for place, table in enumerate(tables)
        ]

        def named(numbers: Array | int, what: str) -> tuple[str, ...]:
            if isinstance(numbers, int):  # there is no such list
                return ()
            self._count(len(numbers))
            found = numbers.tolist()
            if found and not _ABSENT <= min(found) <= max(found) < len(tensor_names):
                raise ModelFileError(
                    f"{self._path}: {what} names a tensor by a number that none has"
                )
            return tuple(tensor_names[n] if n != _ABSENT else "" for n in found)

        inputs = named(subgraph.InputsAsNumpy(), "the list of inputs")
        outputs = named(subgraph.OutputsAsNumpy(), "the list of outputs")
        if not outputs:
            raise ModelFileError(f"{self._path}: the model has no outputs")
        ops = []
        for place in self._count(subgraph.OperatorsLength()):
            table = subgraph.Operators(place)
            kind = self._type_of(table, place)
            name = f"{kind}_{place}"
            ops.append(
                Op(
                    name=name,
                    type=kind,
                    inputs=named(table.InputsAsNumpy(), name),
                    outputs=tuple(n for n in named(table.OutputsAsNumpy(), name) if n),
                    attributes=self._attributes(table),
                )
            )
        written = {tensor for op in ops for tensor in op.outputs}
        tensors = {
            name: self._tensor(name, table, given=name in written or name in inputs)
            for name, table in zip(tensor_names, tables, strict=True)
        }
        order = topological(
            self._path,
            [(op.name, op.inputs, op.outputs) for op in ops],
            given=[
                *inputs,
                *(
                    name
                    for name, table in zip(tensor_names, tables, strict=True)
                    if name not in written and (tensors[name].is_constant or table.IsVariable())
                ),
            ],
            wanted=outputs,
        )
        input_shapes(
            self._path,
            {name: tensors[name].shape for name in inputs},
            shapes,
            usual=(1, 224, 224, 3),
        )
        kept = needed(_folded([ops[place] for place in order], tensors), outputs)
        used = dict.fromkeys(
            [
                *inputs,
                *(tensor for op in kept for tensor in (*op.inputs, *op.outputs) if tensor),
                *outputs,
            ]
        )
        return Graph(
            name=self._path.name,
            format="tflite",
            layout="channels_last",
            ops=tuple(kept),
            inputs=inputs,
            outputs=outputs,
            tensors={name: tensors[name] for name in used},
        )

    def _count(self, length: int) -> range:
        """The places of a list; a file in which lists share their bytes is refused."""
        self._left -= length
        if self._left < 0:
            raise ModelFileError(f"{self._path}: its lists are longer than the file")
        return range(length)

    def _text(self, name: bytes | None) -> str:
        if not name:
            return ""
        self._count(len(name))
        return name.decode(errors="replace")

    def _subgraph(self) -> Any:
        count = self._model.SubgraphsLength()
        if count == 1:
            return self._model.Subgraphs(0)
        if count == 0:
            raise ModelFileError(f"{self._path}: the model is empty")
        names = [
            shown(self._text(self._model.Subgraphs(place).Name()) or f"subgraph {place}")
            for place in range(min(count, 4))
        ]
        more = ", ..." if count > len(names) else ""
        raise ModelFileError(
            f"{self._path}: it has {count} subgraphs ({', '.join(names)}{more}); control flow and "
            "several signatures cannot be read"
        )

    def _op_type(self, code: Any) -> str:
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if number == self._schema.BuiltinOperator.CUSTOM:
            return f"{_CUSTOM}.{self._text(code.CustomCode())}"
        return _enum("BuiltinOperator").get(int(number), f"BUILTIN_{number}")

    def _type_of(self, table: Any, place: int) -> str:
        code = table.OpcodeIndex()
        if code >= len(self._codes):
            raise ModelFileError(
                f"{self._path}: op {place} has the code {code}, which is not there"
            )
        kind: str = self._codes[code]
        return kind

    def _attributes(self, table: Any) -> dict[str, Any]:
        """An op's options by the names of the schema."""
        for creator, kind, options in (
            (self._schema.BuiltinOptionsCreator, table.BuiltinOptionsType, table.BuiltinOptions),
            (self._schema.BuiltinOptions2Creator, table.BuiltinOptions2Type, table.BuiltinOptions2),
        ):
            held = options()
            found = creator(kind(), held) if held is not None else None
            if found is not None:
                return dict(self._plain(vars(found)))
        return {}

    def _plain(self, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for key, value in options.items():
            name = re.sub(r"(?<!^)(?=[A-Z])", "_", key).lower()
            if isinstance(value, np.ndarray | list):
                self._count(len(value))
            if isinstance(value, np.ndarray):
                value = value.tolist()
            if isinstance(value, bytes):
                value = self._text(value)
            if name in _ENUMS and isinstance(value, int):
                value = _enum(_ENUMS[name]).get(value, value)
            if isinstance(value, str | int | float | list):
                yield name, value

    def _tensor(self, name: str, table: Any, *, given: bool) -> Tensor:
        """A tensor of the file.

        Args:
            name: Its name.
            table: What the file says of it.
            given: Whether an op writes it, or it is an input.
        """
        sizes = table.ShapeAsNumpy()
        found = () if isinstance(sizes, int) else tuple(int(size) for size in sizes)
        self._count(len(found))
        shape = found if all(size >= 0 for size in found) else None
        if shape is not None:
            check_size(self._path, name, shape)
        word = _enum("TensorType").get(table.Type(), "").lower()
        dtype = _DTYPES.get(word, word)
        if given or table.IsVariable():
            return Tensor(name=name, shape=shape, dtype=dtype)
        held = self._held(name, table.Buffer())
        if held is None and 0 not in found:
            return Tensor(name=name, shape=shape, dtype=dtype)
        value = None
        if held is not None and table.Sparsity() is None:
            value = self._value(name, held, shape, dtype)
        return Tensor(name=name, shape=shape, dtype=dtype, value=value, is_constant=True)

    def _held(self, name: str, number: int) -> memoryview | None:
        """The bytes of a buffer; None: it is empty."""
        if number == 0:
            return None
        if number >= self._model.BuffersLength():
            raise ModelFileError(
                f"{self._path}: tensor {shown(name)} has the buffer {number}, which is not there"
            )
        buffer = self._model.Buffers(number)
        offset, size = buffer.Offset(), buffer.Size()
        if offset > 1:  # behind the tables of the file
            if offset + size > len(self._data):
                raise ModelFileError(f"{self._path}: the data of {shown(name)} is truncated")
            return memoryview(self._data)[offset : offset + size]
        held = buffer.DataAsNumpy()
        return memoryview(held) if not isinstance(held, int) and held.size else None

    def _value(
        self, name: str, held: memoryview, shape: tuple[int, ...] | None, dtype: str
    ) -> Array | None:
        """A small constant; None: it is large, or its elements are no plain numbers."""
        if shape is None or dtype not in _PLAIN:
            return None
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        if len(held) != count * kind.itemsize:
            raise ModelFileError(
                f"{self._path}: tensor {shown(name)} should hold {count * kind.itemsize} bytes, "
                f"but holds {len(held)}"
            )
        if holds(shape) > KEPT_ELEMENTS:
            return None
        return np.frombuffer(held, kind).reshape(shape).copy()


def _folded(ops: Sequence[Op], tensors: dict[str, Tensor]) -> list[Op]:
    """The ops that depend on the inputs; what the others write becomes constant in ``tensors``.

    Shapes stand in the file, so a value is needed where an op is recognized by it only.
    """
    kept = []
    for op in ops:
        reads = [tensors[name] for name in op.inputs if name]
        is_constant = bool(reads) and all(tensor.is_constant for tensor in reads)
        is_shape = op.type == "SHAPE" and bool(reads) and reads[0].shape is not None
        if op.type in _RANDOM or "." in op.type or not (is_constant or is_shape):
            kept.append(op)
            continue
        for name in op.outputs:
            tensor = tensors[name]
            tensors[name] = Tensor(
                name=name,
                shape=tensor.shape,
                dtype=tensor.dtype,
                value=_computed(op, reads, tensor),
                is_constant=True,
            )
    return kept


def _computed(op: Op, reads: Sequence[Tensor], written: Tensor) -> Array | None:
    """What an op makes of constants, for the few ops that converters leave behind weights."""
    if op.type == "SHAPE":
        return np.array(reads[0].shape, written.dtype or np.int32)
    value, shape = reads[0].value, written.shape
    if value is None or shape is None or int(np.prod(shape, dtype=np.int64)) != value.size:
        return None
    if op.type in ("RESHAPE", "EXPAND_DIMS", "SQUEEZE"):
        return value.reshape(shape)
    if op.type == "CAST" or (op.type == "DEQUANTIZE" and reads[0].dtype == "float16"):
        return value.astype(written.dtype)
    return None
