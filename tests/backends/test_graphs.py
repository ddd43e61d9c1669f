"""What every backend that shows its graph does, said once; run on each, with each IMPLEMENT.

What a runtime fuses is its own affair and stands in its own test file; here is what holds for all.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest

from nn_meter.builder.backends.base import SessionBackend, ShowsGraph
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode, Kind
from nn_meter.builder.backends.onnxruntime.backend import OnnxRuntimeCPUBackend
from nn_meter.builder.backends.openvino.backend import OpenVINOCPUBackend
from nn_meter.builder.nn_modules.frameworks import get_framework, layout_of, suffix_of
from nn_meter.errors import ModelRejectedError

FRAMEWORKS = {"onnx": "onnx", "torch": "torch", "tensorflow": "tensorflow"}
CONFIG = {
    "COUT": 6,
    "KERNEL_SIZE": 3,
    "PADDING": "same",
    "STRIDES": 1,
    "POOL_STRIDES": 2,
}
SHAPES = {"channels_first": [4, 8, 6], "channels_last": [8, 6, 4]}


@dataclass(frozen=True)
class Backend:
    """A backend that shows its graph, and what the tests need to know of it beforehand."""

    cls: type[SessionBackend]
    module: str
    loads: str
    configs: tuple[tuple[str, Any], ...] = ()

    def make(self) -> SessionBackend:
        return self.cls(dict(self.configs))


BACKENDS = {
    "onnxruntime_cpu": Backend(OnnxRuntimeCPUBackend, "onnxruntime", ".onnx"),
    "openvino_cpu": Backend(OpenVINOCPUBackend, "openvino", ".xml"),
}
# Chains of operators; each is built in every IMPLEMENT.
CHAINS = {
    "conv": ["Conv"],
    "relu": ["Relu"],
    "conv_relu": ["Conv", "Relu"],
    "relu_dwconv": ["Relu", "DwConv"],
    "conv_bn_relu": ["Conv", "BatchNorm", "Relu"],
    "conv_hswish": ["Conv", "Hswish"],
    "conv_relu6": ["Conv", "Relu6"],
    "relu_relu": ["Relu", "Relu"],
    "conv_add": ["Conv", "Add"],
    "maxpool_conv_add": ["MaxPool", "Conv", "Add"],
    "concat_relu": ["Concat", "Relu"],
    "split_relu": ["Split", "Relu"],
    "conv_se": ["Conv", "SE"],
    "reshape": ["Reshape"],
    "reshape_relu6": ["Reshape", "Relu6"],
    "globalavgpool_fc": ["GlobalAvgPool", "FC"],
    "flatten_fc": ["Flatten", "FC"],
    "fc_relu": ["FC", "Relu"],  # 1-D
}
CHAINS_1D = {"fc_relu"}
# Those in which frameworks differ, in what they write or how a runtime reads it: for an IMPLEMENT
# that is not the first of a backend these do.
TELLING = ("relu_dwconv", "conv_bn_relu", "conv_add", "split_relu", "fc_relu", "conv_se")


def taps(graph: Any, x: str) -> list[str]:
    """Each op's output is an output of the model, too."""
    y = graph.op("Conv", [x, graph.weight(6, 4, 3, 3)], pads=[1, 1, 1, 1])
    return [graph.op("Relu", [y]), y]


def doubled(graph: Any, x: str) -> list[str]:
    return [graph.op("Add", [x, x])]


def doubled_behind(graph: Any, x: str) -> list[str]:
    y = graph.op("Conv", [x, graph.weight(6, 4, 1, 1)])
    return [graph.op("Mul", [y, y])]


def both_parts(graph: Any, x: str) -> list[str]:
    y = graph.op("Conv", [x, graph.weight(6, 4, 1, 1)])
    a, b = graph.op("Split", [y], n_outputs=2, axis=1, num_outputs=2)
    return [graph.op("Concat", [graph.op("Relu", [a]), graph.op("Sigmoid", [b])], axis=1)]


def residual(graph: Any, x: str) -> list[str]:
    y = graph.op("Conv", [x, graph.weight(4, 4, 3, 3)], pads=[1, 1, 1, 1])
    return [graph.op("Relu", [graph.op("Add", [y, x])])]


def silu(graph: Any, x: str) -> list[str]:
    y = graph.op("Conv", [x, graph.weight(6, 4, 1, 1)])
    return [graph.op("Mul", [y, graph.op("Sigmoid", [y])])]


def transposed(graph: Any, x: str) -> list[str]:
    y = graph.op("Conv", [x, graph.weight(6, 4, 1, 1)])
    return [graph.op("Relu", [graph.op("Transpose", [y], perm=[0, 2, 3, 1])])]


# Models that are no chains; built as ONNX.
ODD = {
    function.__name__: function
    for function in (taps, doubled, doubled_behind, both_parts, residual, silu, transposed)
}


@dataclass(frozen=True)
class Made:
    """A model file and the shapes of its inputs."""

    path: Path
    shapes: list[list[int]]


Maker = Callable[[str, str], Made]
Shower = Callable[[str], ExecutedGraph]


def needs(module: str) -> None:
    if find_spec(module) is None:
        pytest.skip(f"needs {module}, which is not installed")


@pytest.fixture(scope="session")
def make(tmp_path_factory) -> Maker:
    """Models by implementation and name; each is made once."""
    made: dict[tuple[str, str], Made] = {}

    def model(implement: str, name: str) -> Made:
        if (implement, name) not in made:
            folder = tmp_path_factory.mktemp(implement)
            build = _odd if name in ODD else _chain
            made[implement, name] = build(implement, name, folder)
        return made[implement, name]

    return model


def _chain(implement: str, name: str, folder: Path) -> Made:
    framework = get_framework(implement)
    classes = importlib.import_module(f"nn_meter.builder.nn_modules.{implement}.operators")
    shape = [8] if name in CHAINS_1D else SHAPES[layout_of(implement)]
    operators = []
    for operator in CHAINS[name]:
        operators.append(getattr(classes, operator)(shape, CONFIG))
        shape = operators[-1].get_output_shape()
    framework.seed_weights(1)
    built, shapes = framework.chain_model(operators)
    path = folder / f"{name}{suffix_of(implement)}"
    framework.save_model(built, path, shapes)
    return Made(path, shapes)


def _odd(implement: str, name: str, folder: Path) -> Made:
    from nn_meter.builder.nn_modules.onnx.models import Graph, save_model

    graph = Graph()
    outputs = ODD[name](graph, graph.input(SHAPES["channels_first"]))
    path = folder / f"{name}.onnx"
    save_model(graph.model(outputs), path, graph.shapes)
    return Made(path, graph.shapes)


@pytest.fixture(
    params=[(name, implement) for name, kind in BACKENDS.items() for implement in kind.cls.takes],
    ids="-".join,
)
def pair(request) -> tuple[Backend, str]:
    """Every backend with every IMPLEMENT that it takes."""
    name, implement = request.param
    needs(BACKENDS[name].module)
    needs(FRAMEWORKS[implement])
    return BACKENDS[name], implement


@pytest.fixture(params=[name for name, kind in BACKENDS.items() if "onnx" in kind.cls.takes])
def takes_onnx(request) -> Backend:
    needs(BACKENDS[request.param].module)
    return BACKENDS[request.param]


@pytest.fixture
def show(pair, make, tmp_path) -> Shower:
    """The executed graph of a model by name."""
    backend, implement = pair
    return lambda name: shown(backend, make(implement, name), tmp_path)


def shown(backend: Backend, model: Made, folder: Path) -> ExecutedGraph:
    made = backend.make()
    assert isinstance(made, ShowsGraph)
    converted = made.convert_model(str(model.path), str(folder), model.shapes)
    return made.executed_graph(converted, model.shapes)


def assert_sound(graph: ExecutedGraph) -> None:
    """Whatever the model: the graph hangs together."""
    assert graph.nodes
    for node in graph.nodes:
        assert node.name
        assert node.type
        assert node.kind in get_args(Kind)
    if graph.inputs is not None:
        assert_reached(graph.nodes, graph.inputs)
        awake = [node for node in graph.nodes if node.kind != "const"]
        assert graph.behind(graph.inputs) == tuple(awake)
    if graph.ops is None:
        assert all(node.sources is None for node in graph.nodes)
    else:
        assert_reached(graph.ops, graph.op_inputs)
        names = [op.name for op in graph.ops]
        assert len(set(names)) == len(names)
        for node in graph.nodes:
            assert set(node.sources or ()) <= set(names)
            assert node.kind != "compute" or node.sources != ()
    assert ExecutedGraph.from_json(json.loads(json.dumps(graph.to_json()))) == graph


def assert_reached(steps: Sequence[Any], inputs: Sequence[str]) -> None:
    """Every tensor is written once, before it is read, and all start at the inputs."""
    assert len(set(inputs)) == len(inputs)
    there = set(inputs)
    for step in steps:
        assert set(step.inputs) <= there
        assert not there.intersection(step.outputs)
        there.update(step.outputs)
    assert all(step.outputs for step in steps)


def types(graph: ExecutedGraph) -> list[str]:
    return [node.type for node in graph.compute()]


# --- what is shown -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "name"),
    [
        pytest.param((backend, implement), name, id=f"{backend}-{implement}-{name}")
        for backend, kind in BACKENDS.items()
        for implement in kind.cls.takes
        for name in (CHAINS if implement == kind.cls.takes[0] else TELLING)
    ],
    indirect=["pair"],
)
def test_graphs_hang_together(show, name):
    assert_sound(show(name))


@pytest.mark.parametrize("name", ODD)
def test_graphs_of_odd_models_hang_together(takes_onnx, make, name, tmp_path):
    assert_sound(shown(takes_onnx, make("onnx", name), tmp_path))


def test_a_relu_behind_a_conv_costs_no_node(show):
    conv, relu, block = (show(name).compute() for name in ("conv", "relu", "conv_relu"))
    assert len(conv) == len(relu) == 1
    assert len(block) < len(conv) + len(relu)


def test_what_became_part_of_a_node_shows_in_its_type(show):
    """Unless the runtime tells it by the sources."""
    conv, block = show("conv"), show("conv_relu")
    assert types(conv) != types(block) or block.ops is not None


def test_ops_far_apart_are_not_told_as_one(show):
    """se is several ops, of which no runtime makes one with the conv before it."""
    assert len(show("conv_se").compute()) > len(show("conv").compute())


def test_the_same_node_has_the_same_type_in_another_model(show):
    assert set(types(show("relu"))) <= set(types(show("relu_dwconv")))


def test_a_reshape_computes_nothing(show):
    graph = show("reshape")
    assert not graph.compute()
    assert {node.kind for node in graph.nodes} <= {"view", "move", "const"}


def test_inputs_are_in_the_models_order(show):
    """Behind the second input there is less: the maxpool takes the first."""
    graph = show("maxpool_conv_add")
    if graph.inputs is None:
        pytest.skip("this runtime does not tell which tensors its nodes read")
    first, second = (graph.behind([tensor]) for tensor in graph.inputs)
    assert count(first) > count(second) >= 1
    if graph.ops is not None:
        first_op, second_op = graph.op_inputs
        readers = {tensor: op.type for op in graph.ops for tensor in op.inputs}
        assert readers[first_op] == "MaxPool"
        assert readers[second_op] == "Add"


def count(nodes: Sequence[ExecutedNode]) -> int:
    return sum(node.kind == "compute" for node in nodes)


# --- names tell nothing --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CHAINS, *ODD])
def test_names_of_the_model_change_nothing(takes_onnx, make, name, tmp_path):
    model = make("onnx", name)
    other = Made(renamed(model.path, tmp_path / f"{name}.onnx"), model.shapes)
    graphs = [shown(takes_onnx, each, tmp_path) for each in (model, other)]
    first, second = (Counter(signatures(graph)) for graph in graphs)
    assert first == second


def renamed(path: Path, target: Path, new: Callable[[int], str] = "Zz{}".format) -> Path:
    """The model with every node, tensor, initializer and the graph called otherwise.

    Names of the same order by the alphabet are in another order afterwards.
    """
    import onnx

    model = onnx.load(path)
    graph = model.graph
    names = {name for node in graph.node for name in [*node.input, *node.output] if name}
    told = [*graph.input, *graph.output, *graph.initializer, *graph.value_info]
    names |= {tensor.name for tensor in told}
    ordered = sorted(names, reverse=True)
    table = {name: new(number) for number, name in enumerate(ordered)} | {"": ""}
    for node in graph.node:
        node.input[:] = [table[name] for name in node.input]
        node.output[:] = [table[name] for name in node.output]
    for tensor in told:
        tensor.name = table[tensor.name]
    for number, node in enumerate(reversed(graph.node), start=len(table)):
        node.name = new(number)
    graph.name = new(0)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)
    return target


def signatures(graph: ExecutedGraph) -> list[Any]:
    """What each node is, all that is before it included, without any name."""
    kinds = {op.name: op.type for op in graph.ops or ()}
    made: dict[str, Any] = {name: number for number, name in enumerate(graph.inputs or ())}
    found = []
    for node in graph.nodes:
        sources = None if node.sources is None else tuple(kinds[name] for name in node.sources)
        before = tuple(made.get(tensor) for tensor in node.inputs)
        found.append((node.type, node.kind, sources, before))
        made |= {tensor: (found[-1], port) for port, tensor in enumerate(node.outputs)}
    return found


# --- refusals, and what is left behind -----------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"no model at all " * 40], ids=["empty", "garbage"])
def test_a_broken_file_is_refused(pair, content, tmp_path):
    backend, _ = pair
    path = tmp_path / f"broken{backend.loads}"
    path.write_bytes(content)
    with pytest.raises(ModelRejectedError, match=r"refuses the model: ."):
        backend.make().executed_graph(str(path), [[4, 4, 4]])


def test_a_model_of_other_shapes_is_refused(pair, make, tmp_path):
    backend, implement = pair
    model = make(implement, "conv_relu")
    converted = backend.make().convert_model(str(model.path), str(tmp_path), model.shapes)
    with pytest.raises(ModelRejectedError, match=r"refuses the model: ."):
        backend.make().executed_graph(converted, [[5, 5, 5]])


def test_nothing_is_left_behind(pair, make, tmp_path, monkeypatch, capfd):
    """No file, neither here nor beside the model nor among temporary files; and no words."""
    backend, implement = pair
    model = make(implement, "conv_relu")
    made = backend.make()
    for folder in ("converted", "here", "temporary"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    converted = made.convert_model(str(model.path), str(tmp_path / "converted"), model.shapes)
    folders = (model.path.parent, tmp_path)
    before = [sorted(folder.rglob("*")) for folder in folders]
    capfd.readouterr()
    made.executed_graph(converted, model.shapes)
    assert [sorted(folder.rglob("*")) for folder in folders] == before
    assert capfd.readouterr() == ("", "")


def test_showing_is_what_runs_when_timed(pair, make, tmp_path):
    """A session can be opened before and after, and both ways show the same."""
    backend, implement = pair
    model = make(implement, "conv_relu")
    made = backend.make()
    converted = made.convert_model(str(model.path), str(tmp_path), model.shapes)
    before = made.executed_graph(converted, model.shapes)
    session = made.open(converted, model.shapes)
    assert (session.time(2) > 0).all()
    after = made.executed_graph(converted, model.shapes)
    session.close()
    assert Counter(signatures(before)) == Counter(signatures(after))
