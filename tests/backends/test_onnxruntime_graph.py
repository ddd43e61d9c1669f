"""What ONNX Runtime's optimized model tells, and that it is what runs."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nn_meter.builder.backends.base import ShowsGraph
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.onnxruntime.backend import OnnxRuntimeCPUBackend
from nn_meter.builder.nn_modules.onnx import operators
from nn_meter.builder.nn_modules.onnx.models import Graph, save_model
from nn_meter.errors import GraphUnavailableError, ModelRejectedError
from nn_meter.reference import reference_inputs

SHAPE = [16, 10, 10]
CONFIG = {"COUT": 16, "KERNEL_SIZE": 3, "PADDING": "same", "STRIDES": 1, "POOL_STRIDES": 2}


def op(graph: Graph, name: str, x: Any) -> Any:
    return getattr(operators, name)(SHAPE, CONFIG).get_model()(graph, x)


def conv(graph: Graph, x: str) -> str:
    return str(op(graph, "Conv", x))


def behind_conv(*names: str) -> Any:
    def build(graph: Graph, x: str) -> Any:
        y = conv(graph, x)
        for name in names:
            y = op(graph, name, y)
        return y

    return build


def silu(graph: Graph, x: str) -> str:
    y = conv(graph, x)
    return str(graph.op("Mul", [y, graph.op("Sigmoid", [y])]))


def add_input(graph: Graph, x: str) -> str:
    return str(graph.op("Add", [conv(graph, x), graph.input(SHAPE)]))


def residual(graph: Graph, x: str) -> str:
    return str(graph.op("Relu", [graph.op("Add", [conv(graph, x), x])]))


def residual_inside(graph: Graph, x: str) -> str:
    """A residual block whose input is in the blocked layout already, and stays in it."""
    return str(op(graph, "MaxPool", residual(graph, op(graph, "MaxPool", conv(graph, x)))))


def transpose(graph: Graph, x: str) -> str:
    return str(graph.op("Transpose", [conv(graph, x)], perm=[0, 2, 3, 1]))


def matmul_transposed(graph: Graph, x: str) -> str:
    y = graph.op("Transpose", [x], perm=[0, 1, 3, 2])
    return str(graph.op("MatMul", [x, y]))


# Computing nodes, by onnxruntime 1.31.1; each row is checked against its profiler, too.
MODELS: dict[str, tuple[Any, list[str]]] = {
    "relu": (behind_conv("Relu"), ["Conv[activation=Relu]"]),
    "relu6": (behind_conv("Relu6"), ["Conv[activation=Clip(0, 6)]"]),
    "sigmoid": (behind_conv("Sigmoid"), ["Conv[activation=Sigmoid]"]),
    "bn": (behind_conv("BatchNorm"), ["Conv"]),
    "bn_relu": (behind_conv("BatchNorm", "Relu"), ["Conv[activation=Relu]"]),
    "hswish": (behind_conv("Hswish"), ["Conv", "HardSigmoid", "Mul"]),
    "silu": (silu, ["Conv", "QuickGelu"]),
    "add": (add_input, ["Conv", "Add"]),
    "residual": (residual, ["Conv", "Add", "Relu"]),
    "residual_inside": (
        residual_inside,
        ["Conv", "MaxPool", "Conv[sum, activation=Relu]", "MaxPool"],
    ),
    "transpose": (transpose, ["Conv"]),
    "matmul_transposed": (matmul_transposed, ["FusedMatMul[transB=1]"]),
}


@pytest.fixture(params=MODELS)
def model(request, tmp_path) -> tuple[str, list[list[int]], list[str]]:
    build, expected = MODELS[request.param]
    path, shapes = saved(build, tmp_path)
    return str(path), shapes, expected


def saved(build: Any, folder: Path) -> tuple[Path, list[list[int]]]:
    graph = Graph()
    made = graph.model([build(graph, graph.input(SHAPE))])
    save_model(made, folder / "model.onnx", graph.shapes)
    return folder / "model.onnx", graph.shapes


def shown(path: Path | str, shapes: list[list[int]]) -> ExecutedGraph:
    return OnnxRuntimeCPUBackend({}).executed_graph(str(path), shapes)


def test_types_tell_what_was_fused(model):
    path, shapes, expected = model
    assert [node.type for node in shown(path, shapes).compute()] == expected


def test_the_profiler_sees_the_same_nodes(model, tmp_path):
    """In a session that writes no optimized model."""
    import onnxruntime as ort

    path, shapes, _ = model
    backend = OnnxRuntimeCPUBackend({})
    options = backend._options()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = reference_inputs(shapes)
    session.run(None, dict(zip([t.name for t in session.get_inputs()], feeds, strict=True)))
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
    assert ran == [node.type.partition("[")[0] for node in shown(path, shapes).nodes]


def test_layout_changes_are_moves(tmp_path):
    kinds = {node.type: node.kind for node in shown(*saved(transpose, tmp_path)).nodes}
    assert kinds == {
        "ReorderInput": "move",
        "Conv": "compute",
        "ReorderOutput[channels_last=1]": "move",
    }


def test_a_bias_is_no_sum(tmp_path):
    """What is added by a Gemm counts if the model computes it."""
    weight = np.ones((4, 4), np.float32)

    def plain(graph: Graph, x: str) -> str:
        return str(graph.op("Gemm", [x, graph.constant(weight), graph.constant(weight[0])]))

    def summed(graph: Graph, x: str) -> str:
        return str(graph.op("Gemm", [x, graph.constant(weight), graph.input([4])]))

    for build, expected in ((plain, "Gemm"), (summed, "Gemm[sum]")):
        graph = Graph()
        save_model(graph.model([build(graph, graph.input([4]))]), tmp_path / "m.onnx", graph.shapes)
        assert [node.type for node in shown(tmp_path / "m.onnx", graph.shapes).nodes] == [expected]


def test_what_only_a_branch_reads_is_read(tmp_path):
    """The walk reaches a node that has a tensor inside its subgraphs only."""
    branches = [
        helper.make_graph(
            [helper.make_node(kind, ["y"], ["z"])],
            kind,
            [],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4])],
        )
        for kind in ("Exp", "Neg")
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("ReduceSum", ["c"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["b"], to=TensorProto.BOOL),
        helper.make_node("If", ["b"], ["out"], then_branch=branches[0], else_branch=branches[1]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xc"]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph(nodes, "g", values, [out])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "if.onnx")
    found = shown(tmp_path / "if.onnx", [[4], [4]])
    assert [node.type for node in found.behind(["x"])] == ["Relu", "If"]


def test_without_onnx_it_says_what_to_install(model, monkeypatch):
    path, shapes, _ = model
    backend = OnnxRuntimeCPUBackend({})
    assert isinstance(backend, ShowsGraph)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(GraphUnavailableError, match="pip install onnx"):
        backend.executed_graph(path, shapes)
    backend.open(path, shapes).close()


def test_a_model_that_runs_but_cannot_be_written_down_is_not_refused(tmp_path, monkeypatch):
    path, shapes = saved(behind_conv("Relu"), tmp_path)
    nowhere = contextlib.nullcontext(str(tmp_path / "nowhere"))
    monkeypatch.setattr("tempfile.TemporaryDirectory", lambda **_: nowhere)
    with pytest.raises(GraphUnavailableError, match=r"cannot write down .*: \w+Error : "):
        shown(path, shapes)
    path.write_bytes(b"")
    with pytest.raises(ModelRejectedError):
        shown(path, shapes)


def test_weights_beside_the_model_are_found(tmp_path):
    """As in models of more than 2 GB."""
    path, shapes = saved(behind_conv("Relu"), tmp_path)
    big = tmp_path / "big.onnx"
    onnx.save(
        onnx.load(path), big, save_as_external_data=True, location="big.bin", size_threshold=0
    )
    assert shown(big, shapes) == shown(path, shapes)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["big.bin", "big.onnx", "model.onnx"]
