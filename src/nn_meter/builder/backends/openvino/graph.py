"""What OpenVINO's CPU plugin executes, read from the runtime model of a compiled model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode, Kind, ModelOp
from nn_meter.builder.backends.openvino.sources import Covered, Merged, covered
from nn_meter.errors import GraphUnavailableError

__all__ = ["KEYS", "Layer", "ModelOps", "executed", "model_ops", "name_apart", "read_graph"]

_TRIED = "2026.4"
_TRANSPOSE = "Transpose"

# Layers as the plugin calls them.
_LEFT_OUT = frozenset({"Const", "Input", "Output"})
_VIEWS = frozenset({"Reshape"})  # and all of its kind: Squeeze, Unsqueeze, Flatten
# ShuffleChannels is the transpose that other runtimes execute for a channel shuffle
_MOVES = frozenset({"Reorder", "Transpose", "Convert", "ShuffleChannels"})
# Those that write nothing where their inputs and outputs can share memory. The plugin then gives no
# primitive for them; its profiling counters agree (NOT_RUN), but show 0 µs for tiny tensors, too.
_IN_PLACE = frozenset({"Split", "Concatenation"})
_NO_PRIMITIVE = "unknown"

KEYS = ("layerType", "primitiveType", "originalLayersNames", "execOrder")
"""What a layer must say of itself."""

# The op that a layer's name says already. A layer that is not here, such as Subgraph, Eltwise or
# Pooling, may be one of many.
_SAID = {
    "Convolution": {"Convolution", "GroupConvolution"},
    "Deconvolution": {"ConvolutionBackpropData", "GroupConvolutionBackpropData"},
    "FullyConnected": {"MatMul"},
    "MatMul": {"MatMul"},
    "Concatenation": {"Concat"},
    "Split": {"Split", "VariadicSplit"},
}
_SCALE_OR_BIAS = {"Multiply", "Add"}


def name_apart(model: Any) -> None:
    """Give ops of a model that share a name names of their own; also such as hold a comma.

    The runtime says by name which ops a node covers, in a list divided by commas.
    """
    taken: set[str] = set()
    for op in model.get_ordered_ops():
        name = str(op.friendly_name)
        if name in taken or "," in name:
            base = name.replace(",", "_")
            numbered = (f"{base}#{number}" for number in range(len(taken) + 2))
            name = next(new for new in numbered if new not in taken)
            op.friendly_name = name
        taken.add(name)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of a runtime model, be it in memory or written to a file.

    Attributes:
        name: Its name.
        facts: What the plugin says of it; at least ``KEYS``.
        inputs: The tensors that it reads, constants among them.
        outputs: The tensors that it writes.
    """

    name: str
    facts: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModelOps:
    """The model's own ops, which layers tell by name that they came from.

    Attributes:
        ops: Each with a name of its own, in a topological order.
        inputs: The tensors that are the model's inputs, in its order.
        moves: Names of its transposes, which are no ops.
    """

    ops: tuple[ModelOp, ...]
    inputs: tuple[str, ...]
    moves: frozenset[str] = frozenset()


def read_graph(model: Any, compiled: Any, merged: Merged = dict) -> ExecutedGraph:
    """Read what is executed of a compiled model.

    Args:
        model: The ``openvino.Model`` that was compiled, its ops' names apart.
        compiled: The ``openvino.CompiledModel``.
        merged: Tells the ops that each layer was made of, as far as that is known; asked if the
            runtime model leaves something open.

    Returns:
        The nodes with their sources, and the model's ops.

    Raises:
        GraphUnavailableError: The runtime model does not tell what it should.
    """
    own = model_ops(model)
    try:
        layers = [
            Layer(
                name=node.friendly_name,
                facts=_facts(node),
                inputs=_reads(node, ()),
                outputs=tuple(_tensor(output) for output in node.outputs()),
            )
            for node in compiled.get_runtime_model().get_ordered_ops()
        ]
        return executed(layers, own.inputs, own, merged)
    except (KeyError, RuntimeError, ValueError) as exc:
        raise GraphUnavailableError(
            f"OpenVINO's runtime model does not tell what it does in {_TRIED}, which was tried: "
            f"{type(exc).__name__} {exc}"
        ) from exc


def model_ops(model: Any) -> ModelOps:
    """The ops of an ``openvino.Model``, whose names are apart."""
    return ModelOps(
        ops=_ops(model),
        inputs=tuple(_tensor(parameter.output(0)) for parameter in model.get_parameters()),
        moves=frozenset(
            op.friendly_name for op in model.get_ordered_ops() if op.get_type_name() == _TRANSPOSE
        ),
    )


def executed(
    layers: Sequence[Layer],
    inputs: Sequence[str],
    own: ModelOps | None,
    merged: Merged = dict,
) -> ExecutedGraph:
    """Make a graph of the layers of a runtime model.

    Args:
        layers: Constants, inputs and outputs among them.
        inputs: The tensors that are the model's inputs, in its order.
        own: The model's ops; None where they are not known: then sources are not told, and of what
            was fused into a layer only how many ops of the model's it is in all.
        merged: As ``read_graph`` takes it.

    Raises:
        KeyError, ValueError: A layer does not say of itself what it should.
    """
    nodes, named = _nodes(layers)
    if own is None:
        return ExecutedGraph(nodes=tuple(map(_counted, nodes, named)), inputs=tuple(inputs))
    covers = covered(nodes, named, own.ops, moves=own.moves, merged=merged)
    return ExecutedGraph(
        nodes=tuple(_told(node, found, own.ops) for node, found in zip(nodes, covers, strict=True)),
        inputs=tuple(inputs),
        ops=own.ops,
        op_inputs=own.inputs,
    )


def _nodes(layers: Sequence[Layer]) -> tuple[list[ExecutedNode], list[list[str]]]:
    """The nodes in the order of execution, and for each the names of the ops it came from."""
    constant: set[str] = set()
    nodes, named = [], []
    for layer in sorted(layers, key=lambda layer: int(layer.facts["execOrder"])):
        kind = layer.facts["layerType"]
        if kind in _LEFT_OUT:
            if kind == "Const":
                constant.update(layer.outputs)
            continue
        reads = tuple(tensor for tensor in layer.inputs if tensor not in constant)
        if not reads:
            constant.update(layer.outputs)
        nodes.append(
            ExecutedNode(
                name=layer.name,
                type=kind,
                inputs=reads,
                outputs=layer.outputs,
                kind=_kind(kind, layer.facts["primitiveType"]) if reads else "const",
            )
        )
        named.append([name for name in layer.facts["originalLayersNames"].split(",") if name])
    return nodes, named


def _counted(node: ExecutedNode, named: Sequence[str]) -> ExecutedNode:
    """The node, its type with how many ops it came from."""
    if node.kind != "compute" or len(named) < 2:
        return node
    return replace(node, type=f"{node.type}[{len(named)} ops]")


def _facts(node: Any) -> dict[str, str]:
    info = node.get_rt_info()
    return {key: str(info[key].astype(str)) for key in KEYS}


def _kind(layer: str, primitive: str) -> Kind:
    if layer in _VIEWS or (layer in _IN_PLACE and primitive.startswith(_NO_PRIMITIVE)):
        return "view"
    return "move" if layer in _MOVES else "compute"


def _ops(model: Any) -> tuple[ModelOp, ...]:
    """The model's ops that compute something of its inputs.

    What is made of constants only, and of shapes that are fixed, is no op. Neither is a transpose:
    reading a TensorFlow model, OpenVINO puts them around operators and moves them past others, so
    they belong to none. What reads the output of one, is told to read its input.
    """
    constant: set[str] = set()
    same: dict[str, str] = {}
    ops = []
    for op in model.get_ordered_ops():
        kind = op.get_type_name()
        if kind in ("Parameter", "Result"):
            continue
        reads = tuple(same.get(tensor, tensor) for tensor in _reads(op, constant))
        outputs = tuple(_tensor(output) for output in op.outputs())
        if not reads or (kind == "ShapeOf" and op.input(0).get_partial_shape().is_static):
            constant.update(outputs)
        elif kind == _TRANSPOSE:
            same[outputs[0]] = reads[0]
        else:
            ops.append(ModelOp(name=op.friendly_name, type=kind, inputs=reads, outputs=outputs))
    return tuple(ops)


def _reads(node: Any, constant: Collection[str]) -> tuple[str, ...]:
    tensors = (_tensor(port.get_source_output()) for port in node.inputs())
    return tuple(tensor for tensor in tensors if tensor not in constant)


def _tensor(output: Any) -> str:
    return f"{output.get_node().friendly_name}:{output.get_index()}"


def _told(node: ExecutedNode, found: Covered, ops: Sequence[ModelOp]) -> ExecutedNode:
    """The node with its sources, and its type with what is in it."""
    sources = tuple(op.name for op in found.ops) if found.certain else None
    if node.kind != "compute":
        return replace(node, sources=sources)
    inside = [op.type for op in _fused(node.type, found.ops, ops)]
    if not found.certain:
        inside.append("?")
    told = f"{node.type}[{'+'.join(inside)}]" if inside else node.type
    return replace(node, type=told, sources=sources)


def _fused(layer: str, inside: Sequence[ModelOp], ops: Sequence[ModelOp]) -> list[ModelOp]:
    """What a node holds beside the op that its layer's name says.

    Behind that, a scale and a bias by constants are weights of it.
    """
    said = _SAID.get(layer, {layer})
    main = next((op for op in inside if op.type in said), None)
    left = [op for op in inside if op is not main]
    while main is not None:
        readers = [op for op in ops if set(main.outputs).intersection(op.inputs)]
        main = next((op for op in readers if len(readers) == 1 and _is_weight(op, left)), None)
        left = [op for op in left if op is not main]
    return left


def _is_weight(op: ModelOp, left: Sequence[ModelOp]) -> bool:
    return op in left and op.type in _SCALE_OR_BIAS and len(op.inputs) == 1
