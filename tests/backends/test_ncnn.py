"""Ncnn: what pnnx makes of models one by one, and what its layers are read as."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nn_meter.builder.backends.base import ShowsGraph, ShowsGraphs
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.ncnn import convert
from nn_meter.builder.backends.ncnn.backend import NcnnCPUBackend
from nn_meter.builder.backends.ncnn.graph import executed, param_text, read_layers
from nn_meter.builder.nn_modules.onnx import operators
from nn_meter.builder.nn_modules.onnx.models import Graph, chain_model, run_model, save_model
from nn_meter.errors import (
    ConversionError,
    ModelRejectedError,
    NNMeterError,
    NotInstalledError,
)

CONFIG = {
    "COUT": 8,
    "KERNEL_SIZE": 3,
    "PADDING": "same",
    "STRIDES": 1,
    "POOL_STRIDES": 2,
}
SHAPE = [4, 7, 6]  # 7 x 6 is no multiple of 4: ncnn pads such channels

Shapes = list[list[int]]


@pytest.fixture
def backend() -> NcnnCPUBackend:
    return installed()


def installed() -> NcnnCPUBackend:
    for module in ("ncnn", "pnnx"):
        if find_spec(module) is None:
            pytest.skip(f"needs {module}, which is not installed")
    return NcnnCPUBackend()


def chain(
    path: Path, names: Sequence[str], shape: Sequence[int] = SHAPE, replicas: int = 1
) -> Shapes:
    """Write a chain of operators, and give the shapes of its inputs."""
    made = []
    for name in names:
        made.append(getattr(operators, name)(list(shape), CONFIG))
        shape = made[-1].get_output_shape()
    model, shapes = chain_model(made, replicas=replicas)
    save_model(model, path, shapes)
    return shapes


def written(path: Path, build: Callable[[Graph, str], Any], shape: Sequence[int] = SHAPE) -> Shapes:
    """Write a graph of one input, and give its shape."""
    graph = Graph()
    outputs = build(graph, graph.input(shape))
    model = graph.model(outputs if isinstance(outputs, list) else [outputs])
    save_model(model, path, graph.shapes)
    return graph.shapes


def conv(graph: Graph, x: str, cout: int = SHAPE[0]) -> str:
    weight = graph.weight(cout, SHAPE[0], 3, 3)
    return str(graph.op("Conv", [x, weight, graph.bias(cout)], pads=[1, 1, 1, 1]))


def unknown_operator(path: Path) -> Shapes:
    """A model whose operator nobody has."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 4, 4]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Foo", ["x"], ["y"], domain="my")], "g", [x], [y])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return [[4, 4, 4]]


def renamed(source: Path, target: Path, name: Callable[[int], str]) -> None:
    """Copy a model with other names for all tensors and nodes."""
    model = onnx.load(source)
    names: dict[str, str] = {"": ""}
    graph = model.graph
    for node in graph.node:
        node.name = f"node {name(len(names))}"
        for side in (node.input, node.output):
            side[:] = [names.setdefault(tensor, name(len(names))) for tensor in side]
    for tensors in (graph.input, graph.output, graph.initializer, graph.value_info):
        for tensor in tensors:
            tensor.name = names[tensor.name]
    onnx.save(model, target)


def types(graph: ExecutedGraph) -> list[str]:
    return [node.type for node in graph.nodes if node.kind != "view"]


def wiring(graph: ExecutedGraph) -> list[Any]:
    """All of a graph but its names."""
    assert graph.inputs is not None
    numbers: dict[str, int] = {}

    def numbered(tensors: Sequence[str]) -> list[int]:
        return [numbers.setdefault(tensor, len(numbers)) for tensor in tensors]

    return [
        numbered(graph.inputs),
        *(
            (node.type, node.kind, numbered(node.inputs), numbered(node.outputs))
            for node in graph.nodes
        ),
    ]


def alone(
    backend: NcnnCPUBackend, path: Path, shapes: Shapes, folder: Path
) -> ExecutedGraph | NNMeterError:
    try:
        converted = backend.convert_model(str(path), str(folder), shapes)
        return backend.executed_graph(converted, shapes)
    except NNMeterError as exc:
        return exc


def outputs_of(
    backend: NcnnCPUBackend, path: Path, shapes: Shapes, folder: Path
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What ncnn computes, and what is right."""
    session = backend.open(backend.convert_model(str(path), str(folder), shapes), shapes)
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal((1, *shape)).astype(np.float32) for shape in shapes]
    found = session.outputs(feeds)
    session.close()
    return found, run_model(path, feeds)


# --- reading layers ------------------------------------------------------------------------------

LAYERS = """7767517
{count} 99
Input in0 0 1 in0
Input in1 0 1 in1
{lines}
"""


def read(*lines: str) -> ExecutedGraph:
    text = LAYERS.format(count=len(lines) + 2, lines="\n".join(lines))
    return executed(read_layers(text), ["in0", "in1"])


@pytest.mark.parametrize(
    ("layer", "params", "shown"),
    [
        ("Convolution", "0=8 1=3", "Convolution"),
        ("Convolution", "0=8 9=0", "Convolution"),
        ("Convolution", "0=8 9=1", "Convolution[relu]"),
        ("ConvolutionDepthWise", "9=2 -23310=1,0.1", "ConvolutionDepthWise[leakyrelu]"),
        ("Deconvolution", "9=3 -23310=2,0.0,6.0", "Deconvolution[clip]"),
        ("InnerProduct", "9=6 -23310=2,0.2,0.5", "InnerProduct[hardswish]"),
        ("Convolution", "9=99", "Convolution[#99]"),
        ("BinaryOp", "0=2", "BinaryOp[mul]"),
        ("BinaryOp", "0=0 1=1 2=3.0", "BinaryOp[add,scalar]"),
        ("UnaryOp", "", "UnaryOp[abs]"),
        ("Pooling", "0=1 4=1", "Pooling[avg,global]"),
        ("Pooling", "1=3", "Pooling[max]"),
        ("ReLU", "0=0.1", "ReLU[leaky]"),
        ("ReLU", "", "ReLU"),
        ("SomethingNew", "9=1", "SomethingNew"),
    ],
)
def test_a_type_tells_the_operator_and_what_is_fused(layer, params, shown):
    (node,) = read(f"{layer} name 1 1 in0 out0 {params}").nodes
    assert (node.type, node.kind) == (shown, "compute")


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        ("Split name 1 2 in0 a b", "view"),
        ("Dropout name 1 1 in0 a", "view"),
        ("Dropout name 1 1 in0 a 0=0.5", "compute"),
        ("Reshape name 1 1 in0 a 0=8", "move"),
        ("Permute name 1 1 in0 a 0=1", "move"),
        ("Slice name 1 2 in0 a b", "compute"),
        ("Concat name 2 1 in0 in1 a", "compute"),
        ("MemoryData name 0 1 a 0=4", "const"),
    ],
)
def test_kinds(layer, kind):
    (node,) = read(layer).nodes
    assert node.kind == kind


def test_constants_are_no_inputs():
    graph = read(
        "MemoryData k 0 1 k0 0=4",
        "Split s 1 2 k0 k1 k2",
        "BinaryOp a 2 1 in1 k1 x",
        "BinaryOp b 2 1 x k2 out0",
    )
    assert [node.inputs for node in graph.nodes] == [(), (), ("in1",), ("x",)]
    assert [node.kind for node in graph.nodes] == ["const", "const", "compute", "compute"]


@pytest.mark.parametrize(
    "text",
    ["", "no model", "7767517\n", LAYERS.format(count=9, lines="ReLU r 1 1 in0 out0")]
    + [LAYERS.format(count=3, lines=line) for line in ("ReLU r", "ReLU r 1 1 in0", "ReLU r 1 x")],
)
def test_what_is_no_param_file_is_refused(text):
    with pytest.raises(ValueError, match=r"layer|begins with"):
        read_layers(text)


def test_layers_are_written_as_they_were_read():
    text = LAYERS.format(count=3, lines='Reshape r 2 1 in0 in1 out0 6="0w,1h"').strip()
    assert param_text(read_layers(text)).split() == text.replace(" 99\n", " 3\n", 1).split()


# --- what ncnn executes --------------------------------------------------------------------------

EXECUTED = {
    "relu": (lambda g, x: g.op("Relu", [conv(g, x)]), ["Convolution[relu]"]),
    "hswish": (lambda g, x: g.op("HardSwish", [conv(g, x)]), ["Convolution", "HardSwish"]),
    "silu": (
        lambda g, x: g.op("Mul", [y := conv(g, x), g.op("Sigmoid", [y])]),
        ["Convolution", "Swish"],
    ),
    "add_own_input_relu": (
        lambda g, x: g.op("Relu", [g.op("Add", [conv(g, x), x])]),
        ["Convolution", "BinaryOp[add]", "ReLU"],
    ),
    "two_outputs": (
        lambda g, x: g.op("Split", [conv(g, x), g.constant([1, 3])], n_outputs=2, axis=1),
        ["Convolution", "Slice"],
    ),
}


def test_executed_layers_behind_a_convolution(backend, tmp_path):
    models = []
    for name, (build, _) in EXECUTED.items():
        shapes = written(tmp_path / f"{name}.onnx", build)
        models.append((str(tmp_path / f"{name}.onnx"), shapes))
    graphs = backend.executed_graphs(models, str(tmp_path))
    found = {name: types(graph) for name, graph in zip(EXECUTED, graphs, strict=True)}
    assert found == {name: wanted for name, (_, wanted) in EXECUTED.items()}
    assert isinstance(backend, ShowsGraph)
    assert isinstance(backend, ShowsGraphs)


def test_what_is_behind_an_input(backend, tmp_path):
    """Nodes hang on the model's inputs in its order: what depends on the first, on the second."""
    shapes = chain(tmp_path / "m.onnx", ["Conv", "Add", "Relu"])
    graph = alone(backend, tmp_path / "m.onnx", shapes, tmp_path)
    first, second = graph.inputs
    assert [node.type for node in graph.behind([first])] == ["Convolution", "BinaryOp[add]", "ReLU"]
    assert [node.type for node in graph.behind([second])] == ["BinaryOp[add]", "ReLU"]


NAMES = {
    "swapped": lambda number: f"in{9 - number}" if number < 9 else f"out{number}",
    "odd": lambda number: f'/a.{number}/ü="{"x" * 40}',
}


@pytest.mark.parametrize("name", NAMES)
def test_names_do_not_matter(backend, tmp_path, name):
    def build(graph: Graph, x: str) -> list[str]:
        vector = graph.constant(np.ones((SHAPE[0], 1, 1), np.float32))
        total = graph.op("Add", [conv(graph, x), vector])
        return [graph.op("Sub", [total, graph.input([SHAPE[0], 1, 1])]), graph.op("Relu", [x])]

    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    shapes = written(source, build)
    renamed(source, target, NAMES[name])
    before, after = (alone(backend, path, shapes, tmp_path) for path in (source, target))
    assert wiring(after) == wiring(before)
    assert "BinaryOp[sub]" in types(after)
    found, wanted = outputs_of(backend, target, shapes, tmp_path)
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


# --- outputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda g, x: g.op("Softmax", [x], axis=1), SHAPE),
        (lambda g, x: g.op("GlobalAveragePool", [conv(g, x)]), SHAPE),
        (lambda g, x: g.op("Split", [x, g.constant([9, 3])], n_outputs=2, axis=1), [12]),
        (lambda g, x: [g.op("Flatten", [y := conv(g, x)]), y, g.op("Relu", [x])], SHAPE),
    ],
    ids=["padded-channels", "axes-of-1", "1-d", "outputs-of-several-ranks"],
)
def test_outputs_have_the_shapes_and_values_of_the_source(backend, tmp_path, build, shape):
    shapes = written(tmp_path / "m.onnx", build, shape)
    found, wanted = outputs_of(backend, tmp_path / "m.onnx", shapes, tmp_path)
    assert [output.shape for output in found] == [output.shape for output in wanted]
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_run_does_not_write_into_its_inputs(backend, tmp_path):
    shapes = chain(tmp_path / "m.onnx", ["Relu"])
    session = backend.open(
        backend.convert_model(str(tmp_path / "m.onnx"), str(tmp_path), shapes), shapes
    )
    feed = np.full((1, *shapes[0]), -1, np.float32)
    session.outputs([feed])
    assert (feed == -1).all()


# --- converting ----------------------------------------------------------------------------------


def test_converting_writes_three_files_and_nothing_else(backend, tmp_path):
    source, saves = tmp_path / "source", tmp_path / "saves"
    source.mkdir()
    saves.mkdir()
    shapes = chain(source / "my.model.onnx", ["Conv", "Relu"])
    converted = backend.convert_model(str(source / "my.model.onnx"), str(saves), shapes)
    assert converted == str(saves / "my.model.ncnn.param")
    stem = "my.model.ncnn"
    found = sorted(path.name for path in saves.iterdir())
    assert found == [f"{stem}.bin", f"{stem}.json", f"{stem}.param"]
    assert [path.name for path in source.iterdir()] == ["my.model.onnx"]


def test_refusals_keep_pnnxs_words(backend, tmp_path):
    """Of an operator that it leaves as it is, and of one that makes it crash."""
    averaged, unknown, saves = tmp_path / "a.onnx", tmp_path / "u.onnx", tmp_path / "saves"
    saves.mkdir()
    pooled = written(  # pads that differ
        averaged,
        lambda g, x: g.op("AveragePool", [x], kernel_shape=[3, 3], pads=[0, 0, 1, 1]),
    )
    with pytest.raises(ConversionError, match=r"a\.onnx.*todo AveragePool.*pads=\(0,0,1,1\)"):
        backend.convert_model(str(averaged), str(saves), pooled)
    with pytest.raises(ConversionError, match=r"u\.onnx.*my:Foo.* is not a registered"):
        backend.convert_model(str(unknown), str(saves), unknown_operator(unknown))
    assert not list(saves.iterdir())


def test_a_layer_that_ncnn_lacks_is_refused_in_its_words(backend, tmp_path):
    chain(tmp_path / "m.onnx", ["Relu"])
    converted = Path(backend.convert_model(str(tmp_path / "m.onnx"), str(tmp_path), [SHAPE]))
    converted.write_text(converted.read_text().replace("ReLU ", "Nonesuch "))
    for call in (backend.open, backend.executed_graph):
        with pytest.raises(ModelRejectedError, match="layer Nonesuch not exists"):
            call(str(converted), [SHAPE])


def test_what_is_not_installed_is_named(backend, monkeypatch):
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(NotInstalledError, match=r"nn-meter\[ncnn\]"):
        backend.test_connection()
    monkeypatch.undo()
    monkeypatch.setattr(convert, "find_spec", lambda name: None)
    for call in (backend.test_connection, backend.describe):
        with pytest.raises(NotInstalledError, match="pip install --no-deps pnnx"):
            call()
