"""The bytes of an ONNX file as a checked model whose weights are put aside.

What later steps hold is small however large the weights are: of a tensor above ``KEPT_ELEMENTS``
only shape and type are kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from nn_meter.errors import ModelFileError
from nn_meter.kernel_detector.readers.common import (
    KEPT_ELEMENTS,
    check_size,
    holds,
    plain,
    read_bytes,
    shown,
)

__all__ = [
    "Constant",
    "ONNXFile",
    "attribute_value",
    "domain_of",
    "load_onnx",
    "place_name",
]

_MOST_NODES = 300_000  # also once all functions are put in their places; each takes some 2 KB
_FIRST_IR_WITH_OPSETS = 3
_MOST_DIGITS = 20  # of numbers with 64 bits

# Several elements of these share a byte.
_BITS = {
    getattr(TensorProto, name): bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if hasattr(TensorProto, name)
}

Array = npt.NDArray[Any]
Key = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """What a tensor in the file holds.

    Attributes:
        shape: Its sizes; None: not known.
        elem_type: Type of its elements in ONNX's numbers; 0: not known.
        value: Its elements; None: there are too many, or they are not known.
    """

    shape: tuple[int, ...] | None
    elem_type: int
    value: Array | None = None


@dataclass(frozen=True, kw_only=True)
class ONNXFile:
    """A model without control flow and functions, and what its weights are.

    Attributes:
        path: Where it was read from.
        model: Nodes, inputs, outputs and known types; no initializers.
        constants: By name, what the initializers were.
        opsets: Version by domain; the default domain is ``""``.
    """

    path: Path
    model: ModelProto
    constants: Mapping[str, Constant]
    opsets: Mapping[str, int]

    def constant(self, tensor: TensorProto, what: str) -> Constant:
        """What a tensor in an attribute holds."""
        return _constant(self.path, tensor, what)


def domain_of(node: NodeProto) -> str:
    """The domain of a node's op; ONNX's own is ``""``, however it is written."""
    return "" if node.domain == "ai.onnx" else node.domain


def place_name(node: NodeProto, place: int) -> str:
    """A node's name, or one made of its type and its place."""
    return node.name or f"{node.op_type}_{place}"


def load_onnx(path: Path) -> ONNXFile:
    """Read a file.

    Raises:
        ModelFileError: It is no model, or one that cannot be held as a graph.
    """
    model = _parsed(path)
    _refuse_bytes(path, model)
    opsets = _opsets(path, model)
    _refuse_control_flow(path, model)
    constants: dict[str, Constant] = {}
    for name, constant in _initializers(path, model):
        if name in constants:
            raise ModelFileError(f"{path}: there are two initializers named {shown(name)}")
        constants[name] = constant
    if model.functions:
        model = _inlined(path, model, constants)
    del model.graph.initializer[:]
    del model.graph.sparse_initializer[:]
    return ONNXFile(path=path, model=model, constants=constants, opsets=opsets)


def _parsed(path: Path) -> ModelProto:
    data = read_bytes(path)
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as exc:  # protobuf has several classes for this, by its version
        raise ModelFileError(
            f"{path}: it is no ONNX model, or a truncated one: {plain(exc)}"
        ) from exc
    if model.ir_version < 1 or not model.HasField("graph"):
        raise ModelFileError(f"{path}: it is no ONNX model, or a truncated one: it has no graph")
    if len(model.graph.node) > _MOST_NODES:
        raise ModelFileError(f"{path}: it has {len(model.graph.node)} nodes: too many to be held")
    if not model.graph.output:
        raise ModelFileError(f"{path}: the model has no outputs, or was truncated before them")
    return model


def _refuse_bytes(path: Path, model: ModelProto) -> None:
    """Refuse names that are not UTF-8: protobuf hands them over as bytes."""
    graph = model.graph
    names: list[object] = [
        value.name for value in (*graph.input, *graph.output, *graph.initializer)
    ]
    names.extend(sparse.values.name for sparse in graph.sparse_initializer)
    names.extend(opset.domain for opset in model.opset_import)
    for node in itertools.chain(graph.node, *(function.node for function in model.functions)):
        names.extend((node.name, node.op_type, node.domain, *node.input, *node.output))
        names.extend(attribute.name for attribute in node.attribute)
    if any(isinstance(name, bytes) for name in names):
        raise ModelFileError(f"{path}: it holds a name that is no text (UTF-8)")


def _opsets(path: Path, model: ModelProto) -> dict[str, int]:
    opsets = {
        "" if opset.domain == "ai.onnx" else opset.domain: opset.version
        for opset in model.opset_import
    }
    if "" not in opsets:
        if model.ir_version >= _FIRST_IR_WITH_OPSETS and any(
            not domain_of(node) for node in model.graph.node
        ):
            raise ModelFileError(f"{path}: it does not say which opset its nodes are of")
        opsets[""] = 1
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= opsets[""] <= newest:
        raise ModelFileError(
            f"{path}: it is of opset {opsets['']}, and the installed onnx {onnx.__version__} reads "
            f"1 to {newest}"
        )
    return opsets


def _refuse_control_flow(path: Path, model: ModelProto) -> None:
    for where, nodes in (
        ("", model.graph.node),
        *((f" of function {shown(function.name)}", function.node) for function in model.functions),
    ):
        for place, node in enumerate(nodes):
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise ModelFileError(
                    f"{path}: node {shown(place_name(node, place))}{where} is a {node.op_type}, "
                    "which holds graphs of its own: control flow cannot be read"
                )


def _initializers(path: Path, model: ModelProto) -> Iterator[tuple[str, Constant]]:
    for tensor in model.graph.initializer:
        yield tensor.name, _constant(path, tensor, f"initializer {shown(tensor.name)}")
    for sparse in model.graph.sparse_initializer:
        shape = tuple(sparse.dims)
        what = f"initializer {shown(sparse.values.name)}"
        _check_dims(path, shape, sparse.values.name, what)
        yield sparse.values.name, Constant(shape=shape, elem_type=sparse.values.data_type)


def _check_dims(path: Path, shape: tuple[int, ...], name: str, what: str) -> None:
    if any(size < 0 for size in shape):
        raise ModelFileError(f"{path}: {what} has a size below 0")
    check_size(path, name, shape)


def _constant(path: Path, tensor: TensorProto, what: str) -> Constant:
    """What a tensor holds; whether its data is all there is looked at without copying it."""
    shape = tuple(tensor.dims)
    _check_dims(path, shape, tensor.name, what)
    count = math.prod(shape)
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, TypeError, ValueError) as exc:
        raise ModelFileError(
            f"{path}: {what} has elements of the type {tensor.data_type}, which the installed onnx "
            "does not know"
        ) from exc
    bits = _BITS.get(tensor.data_type, dtype.itemsize * 8)
    size = (count * bits + 7) // 8
    if tensor.data_location == TensorProto.EXTERNAL:
        data = _external(path, tensor, what, size, read=holds(shape) <= KEPT_ELEMENTS)
        if data is None:
            return Constant(shape=shape, elem_type=tensor.data_type)
        tensor = TensorProto(dims=shape, data_type=tensor.data_type, raw_data=data)
    elif tensor.HasField("raw_data"):
        if len(tensor.raw_data) != size:
            raise ModelFileError(
                f"{path}: {what} should hold {size} bytes, but holds {len(tensor.raw_data)}"
            )
    elif count > KEPT_ELEMENTS:
        field = getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type))
        if len(field) * 8 < count:  # as many as eight elements share one entry
            raise ModelFileError(
                f"{path}: {what} should hold {count} elements, but holds {len(field)}"
            )
    if holds(shape) > KEPT_ELEMENTS:
        return Constant(shape=shape, elem_type=tensor.data_type)
    try:
        value = numpy_helper.to_array(tensor)
    except Exception as exc:
        raise ModelFileError(
            f"{path}: {what} does not hold what its shape and type say: {plain(exc)}"
        ) from exc
    return Constant(shape=shape, elem_type=tensor.data_type, value=value)


def _external(path: Path, tensor: TensorProto, what: str, size: int, *, read: bool) -> bytes | None:
    """Look up data that stands in another file, which has to be in the model's own folder.

    Returns:
        The data with ``read``; else None.
    """
    said = {entry.key: entry.value for entry in tensor.external_data}
    location = said.get("location", "")
    where = f"{what} is kept in {shown(location)}"
    try:
        folder = path.parent.resolve()
        place = (folder / location).resolve()
        # a cache keeps both files in a folder of its own, and links to them in the model's
        folders = (folder, path.resolve().parent)
        inside = any(place.is_relative_to(own) and place != own for own in folders)
        there = inside and place.is_file()
        held = place.stat().st_size if there else 0
    except (OSError, ValueError, RuntimeError) as exc:
        raise ModelFileError(f"{path}: {where}, which is no path: {plain(exc)}") from exc
    if not inside:
        raise ModelFileError(f"{path}: {where}, which is not in the model's own folder")
    if not there:
        raise ModelFileError(f"{path}: {where}, and there is no such file")
    try:
        offset = _whole(said.get("offset") or "0")
        length = _whole(said.get("length") or str(size))
    except ValueError as exc:
        raise ModelFileError(
            f"{path}: {where}, at a place that is no number: {plain(exc)}"
        ) from exc
    if offset < 0 or length != size or offset + size > held:
        raise ModelFileError(
            f"{path}: {where}, {length} bytes from byte {offset}, but it needs {size} bytes and "
            f"the file has {held}"
        )
    if not read:
        return None
    try:
        with place.open("rb") as file:
            file.seek(offset)
            data: bytes = file.read(size)
    except OSError as exc:
        raise ModelFileError(f"{path}: {where}: {exc.strerror or exc}") from exc
    return data


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"{text:.{_MOST_DIGITS}}...")
    return int(text)


def _inlined(path: Path, model: ModelProto, constants: Mapping[str, Constant]) -> ModelProto:
    """Put the model's own functions in the places where they are called."""
    from onnx import inliner

    _check_functions(path, model)
    for tensor in model.graph.initializer:  # only their names count here
        name, elem_type = tensor.name, tensor.data_type
        tensor.Clear()
        tensor.name, tensor.data_type = name, elem_type
        tensor.dims.append(0)
    try:
        inlined: ModelProto = inliner.inline_local_functions(model)
    except Exception as exc:
        raise ModelFileError(
            f"{path}: its functions cannot be put in their places: {plain(exc)}"
        ) from exc
    return inlined


def _check_functions(path: Path, model: ModelProto) -> None:
    """Refuse functions that call themselves, and those that become too much once inlined."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}

    def called(nodes: Iterable[NodeProto]) -> Iterator[Key]:
        for node in nodes:
            key = (node.domain, node.op_type, node.overload)
            if key in functions:
                yield key

    sizes: dict[Key, int] = {}
    for start in functions:
        path_down: dict[Key, Iterator[Key]] = {}
        step: Key | None = start
        while step is not None or path_down:
            if step is not None and step not in sizes:
                if step in path_down:
                    raise ModelFileError(f"{path}: function {shown(step[1])} calls itself")
                path_down[step] = called(functions[step].node)
            here = next(reversed(path_down), None)
            if here is None:
                break
            step = next(path_down[here], None)
            if step is None:
                nodes = functions[here].node
                sizes[here] = len(nodes) + sum(sizes[key] for key in called(nodes))
                del path_down[here]
    total = len(model.graph.node) + sum(sizes[key] for key in called(model.graph.node))
    if total > _MOST_NODES:
        raise ModelFileError(
            f"{path}: with its functions in their places it would have {total} nodes"
        )


def attribute_value(file: ONNXFile, attribute: AttributeProto, name: str) -> Any:
    """An attribute as numbers, strings, and lists of these; None: it is nothing of the kind."""
    if attribute.HasField("t"):
        value = file.constant(attribute.t, f"an attribute of node {shown(name)}").value
        return value.tolist() if value is not None and value.dtype.kind in "iufb" else None
    try:
        value = helper.get_attribute_value(attribute)
    except ValueError:
        return None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, str | int | float):
        return value
    if not isinstance(value, Iterable):
        return None
    items = [item.decode(errors="replace") if isinstance(item, bytes) else item for item in value]
    return items if all(isinstance(item, str | int | float) for item in items) else None
