"""An ONNX model as a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import NodeProto, TypeProto, ValueInfoProto, helper

from nn_meter.errors import ModelFileError
from nn_meter.kernel_detector.graph import Graph, Op, Tensor
from nn_meter.kernel_detector.readers.common import (
    Names,
    blaming,
    input_shapes,
    needed,
    topological,
)
from nn_meter.kernel_detector.readers.onnx_file import (
    ONNXFile,
    attribute_value,
    domain_of,
    load_onnx,
    place_name,
)
from nn_meter.kernel_detector.readers.onnx_folding import Known, Walk

__all__ = ["read_onnx"]


def read_onnx(path: Path, shapes: Mapping[str, Sequence[int]]) -> Graph:
    """Read an ``.onnx`` file: functions in their places, constants folded, shapes inferred.

    Ops that no output of the model depends on are left out, as runtimes leave them out: they are
    what is left of a computation of shapes.

    Args:
        path: The file; data that it keeps in others has to be in its folder.
        shapes: Shapes of inputs by name, batch included.

    Raises:
        ModelFileError: The file cannot be read as a graph, or the shapes do not fit it.
    """
    with blaming(path):
        return _graph(load_onnx(path), shapes)


def _graph(file: ONNXFile, shapes: Mapping[str, Sequence[int]]) -> Graph:
    graph = file.model.graph
    inputs = [value for value in graph.input if value.name not in file.constants]
    if len({value.name for value in inputs}) < len(inputs):
        raise ModelFileError(f"{file.path}: two of its inputs have the same name")
    outputs = [value.name for value in graph.output]
    places = [place_name(node, place) for place, node in enumerate(graph.node)]
    order = topological(
        file.path,
        [(name, node.input, node.output) for name, node in zip(places, graph.node, strict=True)],
        given=[*(value.name for value in inputs), *file.constants],
        wanted=outputs,
    )
    walk = Walk(file, _input_types(file.path, inputs, shapes))
    nodes = graph.node
    kept = [place for place in order if not walk.fold(nodes[place], places[place])]
    names = _unique_names([nodes[place] for place in kept], [places[place] for place in kept])
    ops = needed(
        [_op(file, nodes[place], name) for place, name in zip(kept, names, strict=True)], outputs
    )
    used = dict.fromkeys(
        [
            *(value.name for value in inputs),
            *(tensor for op in ops for tensor in (*op.inputs, *op.outputs) if tensor),
            *outputs,
        ]
    )
    return Graph(
        name=file.path.name,
        format="onnx",
        layout="channels_first",
        ops=tuple(ops),
        inputs=tuple(value.name for value in inputs),
        outputs=tuple(outputs),
        tensors={name: _tensor(name, walk.known[name]) for name in used},
    )


def _input_types(
    path: Path, inputs: Sequence[ValueInfoProto], shapes: Mapping[str, Sequence[int]]
) -> dict[str, TypeProto]:
    """Types of the inputs with the shapes that they are to have; sequences have none."""
    declared = {
        value.name: _sizes(value.type) for value in inputs if not _holds_tensors(value.type)
    }
    found = input_shapes(path, declared, shapes)
    types = {value.name: value.type for value in inputs}
    for name, shape in found.items():
        types[name] = helper.make_tensor_type_proto(types[name].tensor_type.elem_type, shape)
    return types


def _holds_tensors(kind: TypeProto) -> bool:
    return any(kind.HasField(field) for field in ("sequence_type", "map_type", "optional_type"))


def _sizes(kind: TypeProto) -> tuple[int | None, ...] | None:
    if not kind.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in kind.tensor_type.shape.dim
    )


def _unique_names(nodes: Sequence[NodeProto], wanted: Sequence[str]) -> list[str]:
    """Names of nodes; the first that has a name keeps it, made up ones give way to it."""
    named = {node.name for node in nodes if node.name}
    made_up, repeated = Names(named), Names(named)
    seen: set[str] = set()
    found = []
    for node, name in zip(nodes, wanted, strict=True):
        if not node.name:
            name = made_up.unique(name)
        elif name in seen:
            name = repeated.unique(name)
        seen.add(name)
        found.append(name)
    return found


def _op(file: ONNXFile, node: NodeProto, name: str) -> Op:
    domain = domain_of(node)
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        value = attribute_value(file, attribute, name)
        if value is not None:
            attributes[attribute.name] = value
    return Op(
        name=name,
        type=f"{domain}.{node.op_type}" if domain else node.op_type,
        inputs=tuple(node.input),
        outputs=tuple(tensor for tensor in node.output if tensor),
        attributes=attributes,
    )


def _tensor(name: str, known: Known) -> Tensor:
    constant = known.constant
    elem_type = known.type.tensor_type.elem_type if known.type is not None else 0
    return Tensor(
        name=name,
        shape=known.shape,
        dtype=_dtype(elem_type),
        value=constant.value if constant is not None else None,
        is_constant=constant is not None,
    )


def _dtype(elem_type: int) -> str:
    if not elem_type:
        return ""
    try:
        return str(helper.tensor_dtype_to_np_dtype(elem_type).name)
    except (KeyError, TypeError, ValueError):
        return ""
