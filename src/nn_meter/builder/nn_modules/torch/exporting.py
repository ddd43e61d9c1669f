"""A torch module as an ONNX model, with the graph as the module states it.

torch has two exporters. The older traces the module and takes milliseconds; torch calls it
deprecated, without a date. The newer (``torch.export``, by onnxscript) takes half a second a model.
So the older comes first, and the newer where that one is gone or refuses a model.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

__all__ = ["EXPORTERS", "by_torch_export", "by_tracing"]

_OPSET = 18
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
     "RandomUniformLike"}
)  # fmt: skip


def by_tracing(
    module: torch.nn.Module, inputs: Sequence[torch.Tensor], n_outputs: int
) -> onnx.ModelProto:
    """Export by the TorchScript exporter (``dynamo=False``).

    Args:
        module: In evaluation mode.
        inputs: Example inputs, batch included.
        n_outputs: How many tensors it gives.

    Returns:
        A checked model with the inputs ``input_1``, … and the outputs ``output_1``, …
    """
    file = io.BytesIO()
    with _quiet():
        torch.onnx.export(
            module,
            tuple(inputs),
            file,
            dynamo=False,
            opset_version=_OPSET,
            input_names=_names("input", len(inputs)),
            output_names=_names("output", n_outputs),
            # EVAL would fold batch normalization into the convolution before it.
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=True,
        )
    return _clean(onnx.load_model_from_string(file.getvalue()), inputs)


def by_torch_export(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    n_outputs: int,
    *,
    opset: int | None = _OPSET,
) -> onnx.ModelProto:
    """Export by the ``torch.export`` exporter (``dynamo=True``); as ``by_tracing``.

    Its own optimization is off, which fuses; only the folding of constants is asked for. Without
    an ``opset`` it is torch's own.
    """
    from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass
    from onnxscript import optimizer

    with _quiet():
        program = torch.onnx.export(
            module,
            tuple(inputs),
            dynamo=True,
            opset_version=opset,
            input_names=_names("input", len(inputs)),
            output_names=_names("output", n_outputs),
            optimize=False,
            verbose=False,
        )
        optimizer.fold_constants(program.model)
        IdentityEliminationPass()(program.model)
        RemoveUnusedNodesPass()(program.model)
    return _clean(program.model_proto, inputs)


EXPORTERS: dict[str, Callable[..., onnx.ModelProto]] = {
    "by tracing": by_tracing,
    "by torch.export": by_torch_export,
}


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}_{i}" for i in range(1, count + 1)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' warnings and progress off the terminal, and all else off stdout."""
    # The tracing exporter writes the graph that it fails on from C++, else to stdout.
    getattr(torch._C, "_jit_set_onnx_log_output_stream", lambda stream: None)("stderr")
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _clean(model: onnx.ModelProto, inputs: Sequence[torch.Tensor]) -> onnx.ModelProto:
    """Fold what is constant, drop what only tells where a node came from, infer all shapes."""
    _restore_inputs(model.graph, inputs)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    while _fold_constants(model):  # shapes that follow from constants give constants in turn
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    graph.ClearField("value_info")
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    return model


def _restore_inputs(graph: onnx.GraphProto, inputs: Sequence[torch.Tensor]) -> None:
    """Add the inputs that an exporter left out because nothing takes them."""
    known = {value.name: value for value in graph.input}
    del graph.input[:]
    for name, tensor in zip(_names("input", len(inputs)), inputs, strict=True):
        missing = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, tensor.shape)
        graph.input.append(known.get(name, missing))


def _fold_constants(model: onnx.ModelProto) -> bool:
    """Turn the tensors that depend on no input into initializers, as far as shapes are known.

    Exporters write constants, and the sizes of tensors, as nodes: a runtime would fold them, but
    whoever reads the graph takes them for operators.

    Returns:
        Whether there was one.
    """
    graph = model.graph
    sizes = _static_shapes(graph)
    constant = {tensor.name for tensor in graph.initializer}
    folded, kept = [], []
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in sizes:
            node = _shape_as_constant(node, sizes[node.input[0]])
        if _is_foldable(node) and constant.issuperset(filter(None, node.input)):
            folded.append(node)
            constant.update(node.output)
        else:
            kept.append(node)
    used = {name for node in kept for name in _uses(node)}
    used.update(output.name for output in graph.output)
    wanted = [name for node in folded for name in node.output if name in used]
    if wanted:
        graph.initializer.extend(_evaluate(model, folded, wanted))
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(initializers)
    return bool(folded)


def _evaluate(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], wanted: Sequence[str]
) -> list[onnx.TensorProto]:
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "constants",
        [],
        [helper.make_empty_tensor_value_info(name) for name in wanted],
        [tensor for tensor in model.graph.initializer if tensor.name in used],
    )
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    values = ReferenceEvaluator(part).run(None, {})
    return [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in zip(wanted, values, strict=True)
    ]


def _static_shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    shapes = {}
    for info in (*graph.input, *graph.value_info, *graph.output):
        tensor = info.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes[info.name] = [d.dim_value for d in tensor.shape.dim]
    return shapes


def _shape_as_constant(node: onnx.NodeProto, shape: Sequence[int]) -> onnx.NodeProto:
    given = {a.name: a.i for a in node.attribute}
    value = np.array(shape[given.get("start", 0) : given.get("end")], dtype=np.int64)
    return helper.make_node(
        "Constant", [], node.output, node.name, value=numpy_helper.from_array(value)
    )


def _is_foldable(node: onnx.NodeProto) -> bool:
    return (
        node.domain == ""
        and node.op_type not in _RANDOM
        and not any(a.HasField("g") or a.graphs for a in node.attribute)
    )


def _uses(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node takes, those that its subgraphs take from outside included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (output.name for output in graph.output)
            for inner in graph.node:
                yield from _uses(inner)
