"""IREE: what its compiler makes of models, read one by one and many at once."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.iree.backend import IREECPUBackend
from nn_meter.builder.nn_modules.onnx import operators
from nn_meter.builder.nn_modules.onnx.models import Graph, chain_model, run_model, save_model
from nn_meter.errors import ConversionError, GraphUnavailableError, ModelRejectedError
from nn_meter.reference import compare_outputs, reference_inputs, sample_outputs

if find_spec("iree") is None:
    pytest.skip("needs iree, which is not installed", allow_module_level=True)

CONFIG = {"COUT": 6, "KERNEL_SIZE": 3, "PADDING": "same", "STRIDES": 1, "POOL_STRIDES": 2}
CONV = "dispatch(conv, addf"
RELU = "dispatch(cmpf, select)"
# What computes, by the operators of a chain.
KERNELS = {
    "Relu": [RELU],
    "Conv": [f"{CONV})"],
    "Conv_Relu": [f"{CONV}, cmpf, select)"],
    "Conv_Hswish": [f"{CONV}, addf, cmpf, select, cmpf, select, divf, mulf)"],
    "Conv_Swish": [f"{CONV}, negf, exp, addf, divf, mulf)"],
    "Conv_Gelu": [f"{CONV}, divf, erf, addf, mulf, mulf)"],
    "Conv_BatchNorm_Relu": [f"{CONV}, subf, mulf, mulf, addf, cmpf, select)"],
    "Conv_Add_Relu": [f"{CONV}, addf, cmpf, select)"],
    "Conv_Conv": [f"{CONV}, insert)", f"{CONV})"],
    "Relu_Conv": ["dispatch(cmpf, select, insert)", f"{CONV})"],
    "Relu_Relu": ["dispatch(cmpf, select, cmpf, select)"],
    "Add_GlobalAvgPool": ["dispatch(addf, reduce_addf, divf)"],
    "FC": ["dispatch(matmul, addf)"],
    "MaxPool": ["dispatch(window_maximumf)"],
    "Softmax": ["dispatch(reduce_maximumf, subf, exp)", "dispatch(reduce_addf, divf)"],
    "Reshape": [],
    "Flatten_Relu": [RELU],
    "ChannelShuffle": [],
    "Concat_Relu": ["flow.tensor.update", "flow.tensor.update", RELU],
    "Split": ["flow.tensor.slice", "flow.tensor.slice"],
    "Split_Relu": ["flow.tensor.slice", "dispatch(slice, cmpf, select)"],
    "Resize_Relu": ["dispatch(gather, cmpf, select)"],
    "Pad": ["dispatch(insert)"],
    "Conv_Pad": [f"{CONV}, insert)"],
    "SE": [
        "dispatch(reduce_addf, divf)",
        "dispatch(matmul, addf, cmpf, select)",
        "dispatch(matmul)",
        "dispatch(addf, mulf, addf, cmpf, select, cmpf, select, mulf)",
    ],
}
# The types of the model's ops that each of these kernels covers, where that is not plain.
SOURCES = {
    "Relu_Conv": [["Relu"], ["Conv"]],  # the border of the conv's input is written with the relu
    "Relu_Relu": [["Relu", "Relu"]],
    "Conv_Add_Relu": [["Conv", "Add", "Relu"]],
    "Conv_Pad": [["Conv", "Pad"]],
    "Add_GlobalAvgPool": [["Add", "GlobalAveragePool"]],
    "Split_Relu": [["Split"], ["Split", "Relu"]],
    "Resize_Relu": [["Resize", "Relu"]],
    "SE": [["GlobalAveragePool"], ["Conv", "Relu"], ["Conv"], ["HardSigmoid", "Mul"]],
}
SHAPES = {"FC": [24], "SE": [16, 8, 6]}
Model = tuple[str, list[list[int]]]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name in KERNELS:
        shape = SHAPES.get(name, [4, 8, 6])
        chain = []
        for operator in name.split("_"):
            chain.append(getattr(operators, operator)(shape, CONFIG))
            shape = chain[-1].get_output_shape()
        model, shapes = chain_model(chain)
        save_model(model, folder / f"{name}.onnx", shapes)
        made[name] = (str(folder / f"{name}.onnx"), shapes)
    return made


@pytest.fixture(scope="module")
def graphs(models, tmp_path_factory) -> dict[str, ExecutedGraph]:
    """All of them, by one run of the compiler."""
    folder = str(tmp_path_factory.mktemp("graphs"))
    found = IREECPUBackend().executed_graphs(list(models.values()), folder)
    assert not any(isinstance(graph, Exception) for graph in found), found
    assert not list(Path(folder).iterdir())
    return dict(zip(models, found, strict=True))


def single(path: str, shapes: list[list[int]], folder: Path) -> ExecutedGraph:
    backend = IREECPUBackend()
    return backend.executed_graph(backend.convert_model(path, str(folder), shapes), shapes)


# --- the graph -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(graphs, name):
    assert [node.type for node in graphs[name].compute()] == KERNELS[name]


@pytest.mark.parametrize("name", SOURCES)
def test_sources(graphs, name):
    graph = graphs[name]
    types = {op.name: op.type for op in graph.ops}
    found = [[types[source] for source in node.sources] for node in graph.compute()]
    assert found == SOURCES[name]


@pytest.mark.parametrize("name", ["Conv_BatchNorm_Relu", "Relu_Conv", "Concat_Relu", "SE", "Pad"])
def test_a_model_read_alone_has_the_graph_that_it_has_among_others(graphs, models, name, tmp_path):
    assert single(*models[name], tmp_path) == graphs[name]


def test_copies_are_moves_unless_they_are_all_that_an_op_does(graphs):
    (border,) = (node for node in graphs["Conv"].nodes if node.type == "dispatch(insert)")
    (pad,) = (node for node in graphs["Pad"].nodes if node.type == "dispatch(insert)")
    assert (border.kind, pad.kind) == ("move", "compute")
    assert [node.kind for node in graphs["Reshape"].nodes] == ["view"]
    kinds = {node.kind for node in graphs["ChannelShuffle"].nodes}
    assert kinds == {"view", "move"}


def test_nodes_are_reached_from_the_inputs_that_they_depend_on(graphs):
    graph = graphs["Conv_Add_Relu"]
    assert len(graph.inputs) == 2
    assert graph.compute()[0] in graph.behind(graph.inputs[:1])
    border = next(node for node in graph.nodes if node.type == "dispatch(insert)")
    assert border in graph.behind(graph.inputs[:1])
    assert border not in graph.behind(graph.inputs[1:])
    assert [op.type for op in graph.ops] == ["Conv", "Add", "Relu"]
    assert graph.ops[1].inputs == (*graph.ops[0].outputs, graph.op_inputs[1])


def test_names_of_a_model_are_not_read(graphs, models, tmp_path):
    """Not even names that look like those that the reader gives itself."""
    path, shapes = models["Conv_Add_Relu"]
    model = onnx.load(path)
    names: dict[str, str] = {}
    for node in model.graph.node:
        node.name = 'model_0:1"'
        for tensors in (node.input, node.output):
            tensors[:] = [names.setdefault(it, f"main:{9 - len(names)}") for it in tensors]
    for values in (model.graph.input, model.graph.output, model.graph.initializer):
        for value in values:
            value.name = names[value.name]
    del model.graph.value_info[:]
    model.graph.name = "main$async"
    renamed = str(tmp_path / "renamed.onnx")
    onnx.save(model, renamed)
    (found,) = IREECPUBackend().executed_graphs([(renamed, shapes)], str(tmp_path))
    assert found == graphs["Conv_Add_Relu"]


def test_the_conv_that_takes_the_sum_of_two(tmp_path):
    graph = Graph()
    x = graph.input([4, 8, 6])
    pads = {"kernel_shape": [1, 1]}
    one, two = (
        graph.op("Conv", [x, graph.weight(6, 4, 1, 1), graph.bias(6)], **pads) for _ in range(2)
    )
    path = tmp_path / "two.onnx"
    save_model(graph.model([graph.op("Add", [one, two])]), path, graph.shapes)
    found = single(str(path), graph.shapes, tmp_path)
    # What executes first leaves the sum with its bias to the other, which takes the add as well.
    assert [node.type for node in found.compute()] == [
        "dispatch(matmul)",
        "dispatch(matmul, addf, addf, addf)",
    ]
    assert [node.sources for node in found.compute()] == [("Conv_1",), ("Conv_0", "Add_2")]


def test_sources_are_not_told_where_one_cannot_be_traced(tmp_path):
    """One squeezed channel: a product with a number, of which IREE forgets the origin."""
    model, shapes = chain_model([operators.SE([4, 8, 6], CONFIG)])
    save_model(model, tmp_path / "se.onnx", shapes)
    found = single(str(tmp_path / "se.onnx"), shapes, tmp_path)
    assert len(found.compute()) == 3
    assert found.ops is None
    assert all(node.sources is None for node in found.nodes)


# --- refusals ------------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path) -> Model:
    """A model of an operator that nobody has."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"], domain="nobody.has")],
        "graph",
        [value("x", TensorProto.FLOAT, [1, 4])],
        [value("y", TensorProto.FLOAT, [1, 4])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nobody.has", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "bad.onnx")
    return str(tmp_path / "bad.onnx"), [[4]]


def test_a_model_that_is_refused_costs_only_itself(graphs, models, refused, tmp_path):
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"no model at all")
    other = (str(tmp_path / "other.tflite"), [[4]])
    asked = [models["Relu"], refused, (str(garbage), [[4]]), other, models["Conv"], refused]
    relu, bad, unread, odd, conv, again = IREECPUBackend().executed_graphs(asked, str(tmp_path))
    assert (relu, conv) == (graphs["Relu"], graphs["Conv"])
    assert isinstance(odd, ConversionError)
    assert "other.tflite: IREECPUBackend cannot take this model" in str(odd)
    assert isinstance(unread, ConversionError)
    assert "garbage.onnx: IREE cannot import it: " in str(unread)
    for error in (bad, again):
        assert isinstance(error, ModelRejectedError)
        assert "bad.onnx: IREE refuses the model: failed to legalize" in str(error)
        assert "Frobnicate" in str(error)


def test_a_refused_conversion_leaves_nothing_behind(refused, tmp_path):
    folder = tmp_path / "saves"
    folder.mkdir()
    with pytest.raises(ConversionError, match=r"bad\.onnx: IREE cannot compile it: .*Frobnicate"):
        IREECPUBackend().convert_model(*refused[:1], str(folder), refused[1])
    assert not list(folder.iterdir())


def test_no_graph_without_what_converting_keeps_beside_the_model(models, tmp_path):
    path, shapes = models["Relu"]
    backend = IREECPUBackend()
    converted = Path(backend.convert_model(path, str(tmp_path), shapes))
    converted.with_suffix(".mlirbc").unlink()
    with pytest.raises(GraphUnavailableError, match=r"Relu\.mlirbc cannot be read .*converting"):
        backend.executed_graph(str(converted), shapes)


# --- the rest ------------------------------------------------------------------------------------


def test_folders_may_be_relative(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, shapes = models["Relu"]
    backend = IREECPUBackend()
    assert backend.convert_model(path, ".", shapes) == "Relu.vmfb"
    assert len(backend.executed_graph("Relu.vmfb", shapes).compute()) == 1
    assert len(backend.executed_graphs([(path, shapes)], ".")[0].compute()) == 1
    assert sorted(it.name for it in tmp_path.iterdir()) == ["Relu.mlirbc", "Relu.vmfb"]


@pytest.mark.parametrize("name", ["SE", "Resize_Relu", "Softmax", "Split_Relu"])
def test_outputs_are_the_models_own(models, name, tmp_path):
    path, shapes = models[name]
    backend, feeds = IREECPUBackend(), reference_inputs(shapes)
    session = backend.open(backend.convert_model(path, str(tmp_path), shapes), shapes)
    found = sample_outputs(session.outputs(feeds))
    session.close()
    assert compare_outputs(found, sample_outputs(run_model(Path(path), feeds))) is None


@pytest.mark.parametrize(("threads", "device"), [(1, "local-sync"), (3, "local-task")])
def test_threads_choose_the_device(threads, device):
    found = IREECPUBackend({"THREADS": threads}).describe()
    assert (found.device, found.threads) == (device, threads)


def test_workers_are_as_many_as_asked_for_and_a_process_has_one_number(models, tmp_path):
    """In a process of its own, which also has to end well: letting go of a driver can crash."""
    path, shapes = models["Conv_Relu"]
    program = f"""
import time
from pathlib import Path
from nn_meter.builder.backends.iree.backend import IREECPUBackend
from nn_meter.errors import BackendError
backend = IREECPUBackend({{"THREADS": 3}})
session = backend.open(backend.convert_model({path!r}, {str(tmp_path)!r}, {shapes}), {shapes})
assert (session.time(3) > 0).all()
def workers():
    names = [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]
    return sum(name.startswith("iree-worker") for name in names)
end = time.monotonic() + 30
while workers() < 3 and time.monotonic() < end:
    time.sleep(0.01)  # a thread gives itself its name, once it has its turn
print(workers())
try:
    IREECPUBackend({{"THREADS": 2}}).test_connection()
except BackendError as exc:
    print(exc)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    workers, words = done.stdout.splitlines()
    assert int(workers) == 3
    assert "runs with 3 threads in this process already, not with 2" in words


def test_an_open_size_is_that_of_the_input_asked_for(models, tmp_path):
    path, shapes = models["Relu"]
    model = onnx.load(path)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, tmp_path / "open.onnx")
    backend = IREECPUBackend()
    converted = backend.convert_model(str(tmp_path / "open.onnx"), str(tmp_path), shapes)
    session = backend.open(converted, shapes)
    (feed,) = reference_inputs(shapes)
    np.testing.assert_array_equal(session.outputs([feed])[0], np.maximum(feed, 0))
    session.close()
