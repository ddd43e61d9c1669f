"""What ONNX Runtime executes, read from the optimized model that it writes.

It names a node after some tensor of the model's, not always the last that the node gives, so
names do not tell what a node covers: ``sources`` stays None.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode, Kind
from nn_meter.errors import GraphUnavailableError

__all__ = ["graph_of", "import_onnx", "read_graph"]

_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
_MOVES = frozenset(
    {"ReorderInput", "ReorderOutput", "Transpose", "Cast", "MemcpyFromHost", "MemcpyToHost"}
)

# Where a node takes what is added to its own result. A bias stands elsewhere or is a constant, so
# a tensor in that place is another op's output: a sum that became part of the node.
_SUMMAND = {"Conv": 3, "FusedConv": 3, "NhwcFusedConv": 3, "Gemm": 2, "FusedGemm": 2}

# Attributes by which a node tells what else became part of it, and what they are when nothing did.
_TELLING: dict[str, dict[str, Any]] = {
    "FusedMatMul": {"alpha": 1.0, "transA": 0, "transB": 0, "transBatchA": 0, "transBatchB": 0},
    "ReorderInput": {"channels_last": 0},  # a transpose
    "ReorderOutput": {"channels_last": 0},
}
_ACTIVATION_PARAMS = (
    "activation_params",
    "activation_alpha",
    "activation_beta",
    "activation_gamma",
)
_MOST_PARAMS = 3


def import_onnx() -> ModuleType:
    """The package that reads the optimized model.

    Raises:
        GraphUnavailableError: It is not installed beside ONNX Runtime.
    """
    try:
        import onnx
    except ImportError as exc:
        raise GraphUnavailableError(
            f"what ONNX Runtime executes is read with the package onnx, which cannot be imported "
            f"({exc}); pip install onnx in the environment that ONNX Runtime runs in"
        ) from exc
    module: ModuleType = onnx
    return module


def read_graph(path: Path, inputs: Sequence[str] | None = None) -> ExecutedGraph:
    """Read an optimized model.

    Args:
        path: The file that ONNX Runtime wrote; what its initializers hold is not read.
        inputs: Names of the model's inputs, in its order; default: those that the file names.

    Returns:
        Its nodes in the order of execution, without ``sources``.

    Raises:
        GraphUnavailableError: It cannot be read.
    """
    onnx = import_onnx()
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as exc:
        raise GraphUnavailableError(
            f"onnx {onnx.__version__} cannot read the model that ONNX Runtime optimized: {exc}"
        ) from exc
    return graph_of(model, inputs)


def graph_of(model: Any, inputs: Sequence[str] | None = None) -> ExecutedGraph:
    """As ``read_graph``, of a model in memory.

    Raises:
        Exception: Whatever onnx raises on a model that ONNX Runtime did not write.
    """
    onnx, graph = import_onnx(), model.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {tensor.values.name for tensor in graph.sparse_initializer}
    if inputs is None:  # models of old versions name their weights among the inputs
        inputs = [tensor.name for tensor in graph.input if tensor.name not in constants]
    nodes = []
    for node in graph.node:
        reads = tuple(name for name in _tensors_read(node) if name not in constants)
        # Fed by weights only: nothing that the model does to its inputs.
        const = not reads
        if const:
            constants |= set(node.output)
        nodes.append(
            ExecutedNode(
                name=node.name or next(filter(None, node.output), ""),
                type=_label(onnx, node, constants),
                inputs=reads,
                outputs=tuple(filter(None, node.output)),
                kind="const" if const else _kind(node.op_type),
            )
        )
    return ExecutedGraph(nodes=tuple(nodes), inputs=tuple(inputs))


def _kind(op_type: str) -> Kind:
    if op_type in _VIEWS:
        return "view"
    return "move" if op_type in _MOVES else "compute"


def _tensors_read(node: Any) -> Iterator[str]:
    """Names of the tensors that a node reads, those that only its subgraphs name included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            own = {tensor.name for tensor in [*graph.input, *graph.initializer]}
            for inner in graph.node:
                yield from (name for name in _tensors_read(inner) if name not in own)
                own.update(inner.output)


def _label(onnx: ModuleType, node: Any, constants: set[str]) -> str:
    """Operator type, and in brackets what was fused into it: ``Conv[sum, activation=Relu]``."""
    values = {
        attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute
    }
    told = []
    summand = _SUMMAND.get(node.op_type)
    if summand is not None and summand < len(node.input):
        name = node.input[summand]
        if name and name not in constants:
            told.append("sum")
    if activation := values.get("activation"):
        told.append(f"activation={_text(activation)}{_params(values)}")
    for name, usual in _TELLING.get(node.op_type, {}).items():
        if values.get(name, usual) != usual:
            told.append(f"{name}={_text(values[name])}")
    return f"{node.op_type}[{', '.join(told)}]" if told else str(node.op_type)


def _params(values: dict[str, Any]) -> str:
    params: list[float] = []
    for name in _ACTIVATION_PARAMS:
        value = values.get(name, [])
        params += value if isinstance(value, Sequence) else [value]
    if not 0 < len(params) <= _MOST_PARAMS:
        return ""
    return f"({', '.join(_text(value) for value in params)})"


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
