"""What OpenVINO's runtime model tells: kinds against its counters, sources against the model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nn_meter.builder.backends.base import ShowsGraph
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode, ModelOp
from nn_meter.builder.backends.openvino.backend import OpenVINOCPUBackend
from nn_meter.builder.backends.openvino.graph import name_apart, read_graph
from nn_meter.builder.backends.openvino.models import import_openvino, read_model
from nn_meter.builder.backends.openvino.sources import covered
from nn_meter.builder.backends.openvino.transformed import compile_and_show
from nn_meter.builder.backends.openvino.written import _paired
from nn_meter.builder.nn_modules.onnx import operators
from nn_meter.builder.nn_modules.onnx.models import Graph, save_model
from nn_meter.errors import GraphUnavailableError

ov = pytest.importorskip("openvino", reason="needs openvino, which is not installed")

SHAPE = [16, 32, 32]  # large enough for the counters, which count whole microseconds
CONFIG = {"COUT": 16, "KERNEL_SIZE": 3, "PADDING": "same", "STRIDES": 1, "POOL_STRIDES": 2}


def op(graph: Graph, name: str, x: Any) -> Any:
    return getattr(operators, name)(SHAPE, CONFIG).get_model()(graph, x)


def conv(graph: Graph, x: str) -> str:
    return str(op(graph, "Conv", x))


def chain(*names: str) -> Any:
    def build(graph: Graph, x: str) -> Any:
        for name in names:
            x = op(graph, name, x)
        return x

    return build


def silu(graph: Graph, x: str) -> str:
    y = conv(graph, x)
    return str(graph.op("Mul", [y, graph.op("Sigmoid", [y])]))


def hswish_in_parts(graph: Graph, x: str) -> str:
    y = conv(graph, x)
    three, zero, six = (graph.constant(np.float32(value)) for value in (3, 0, 6))
    gate = graph.op("Clip", [graph.op("Add", [y, three]), zero, six])
    return str(graph.op("Div", [graph.op("Mul", [y, gate]), six]))


def add_input(graph: Graph, x: str) -> str:
    return str(graph.op("Add", [conv(graph, x), graph.input(SHAPE)]))


def residual(graph: Graph, x: str) -> str:
    return str(graph.op("Relu", [graph.op("Add", [conv(graph, x), x])]))


def reshape(graph: Graph, x: str) -> str:
    return str(graph.op("Reshape", [x, graph.constant(np.array([1, -1, 8], dtype=np.int64))]))


def relu_behind_reshape(graph: Graph, x: str) -> str:
    return str(graph.op("Relu", [reshape(graph, x)]))


def conv_reshape_relu(graph: Graph, x: str) -> str:
    return relu_behind_reshape(graph, conv(graph, x))


def conv_transpose_relu(graph: Graph, x: str) -> str:
    y = graph.op("Transpose", [conv(graph, x)], perm=[0, 2, 3, 1])
    return str(graph.op("Relu", [y]))


def split(graph: Graph, x: str) -> list[str]:
    return list(graph.op("Split", [x], n_outputs=2, axis=1, num_outputs=2))


def split_behind_conv(graph: Graph, x: str) -> list[str]:
    return split(graph, conv(graph, x))


def concat(graph: Graph, x: str) -> str:
    return str(graph.op("Concat", [x, graph.input(SHAPE)], axis=1))


def concat_behind_conv(graph: Graph, x: str) -> str:
    return concat(graph, conv(graph, x))


def fc(graph: Graph, x: str) -> str:
    weight = graph.weight(SHAPE[-1], 6)
    return str(graph.op("Relu", [graph.op("MatMul", [x, weight])]))


# Computing nodes, by openvino 2026.4.1, each with the types of the model's ops that it covers.
MODELS: dict[str, tuple[Any, list[tuple[str, list[str]]]]] = {
    "relu": (chain("Conv", "Relu"), [("Convolution[Relu]", ["Convolution", "Add", "Relu"])]),
    "relu_relu": (chain("Relu", "Relu"), [("Subgraph[Relu+Relu]", ["Relu", "Relu"])]),
    "bn_relu": (
        chain("Conv", "BatchNorm", "Relu"),
        [
            (
                "Convolution[BatchNormInference+Relu]",
                ["Convolution", "Add", "BatchNormInference", "Relu"],
            )
        ],
    ),
    "silu": (
        silu,
        [("Convolution[Sigmoid+Multiply]", ["Convolution", "Add", "Sigmoid", "Multiply"])],
    ),
    "hswish_in_parts": (
        hswish_in_parts,
        [
            (
                "Convolution[Add+Maximum+Minimum+Multiply+Divide]",
                ["Convolution", "Add", "Add", "Maximum", "Minimum", "Multiply", "Divide"],
            )
        ],
    ),
    "add_input": (add_input, [("Convolution[Add]", ["Convolution", "Add", "Add"])]),
    "residual": (
        residual,
        [("Convolution", ["Convolution", "Add"]), ("Eltwise[Add+Relu]", ["Add", "Relu"])],
    ),
    "relu_behind_reshape": (relu_behind_reshape, [("Subgraph[Relu]", ["Relu"])]),
    "conv_reshape_relu": (
        conv_reshape_relu,
        [("Convolution[Relu]", ["Convolution", "Add", "Relu"])],
    ),
    "conv_transpose_relu": (
        conv_transpose_relu,
        [("Convolution[Relu]", ["Convolution", "Add", "Relu"])],
    ),
    "split": (split, []),
    "split_behind_conv": (
        split_behind_conv,
        [("Convolution", ["Convolution", "Add"]), ("Split", ["Split"])],
    ),
    "concat": (concat, []),
    "concat_behind_conv": (
        concat_behind_conv,
        [("Convolution", ["Convolution", "Add"]), ("Concatenation", ["Concat"])],
    ),
    "maxpool": (
        chain("Conv", "MaxPool"),
        [("Convolution", ["Convolution", "Add"]), ("Pooling[MaxPool]", ["MaxPool"])],
    ),
    "fc": (fc, [("FullyConnected[Relu]", ["MatMul", "Relu"])]),
}


@pytest.fixture(params=MODELS)
def model(request, tmp_path) -> tuple[Path, list[list[int]], list[tuple[str, list[str]]]]:
    build, expected = MODELS[request.param]
    return *saved(build, tmp_path), expected


def saved(build: Any, folder: Path) -> tuple[Path, list[list[int]]]:
    graph = Graph()
    outputs = build(graph, graph.input(SHAPE))
    made = graph.model(outputs if isinstance(outputs, list) else [outputs])
    save_model(made, folder / "model.onnx", graph.shapes)
    return folder / "model.onnx", graph.shapes


def shown(path: Path, shapes: list[list[int]]) -> ExecutedGraph:
    return OpenVINOCPUBackend({}).executed_graph(str(path), shapes)


def test_nodes_tell_what_they_cover(model):
    path, shapes, expected = model
    graph = shown(path, shapes)
    types = {op.name: op.type for op in graph.ops or ()}
    found = [(node.type, [types[name] for name in node.sources or ()]) for node in graph.compute()]
    assert found == expected


def test_the_counters_agree_with_the_kinds(model):
    """What computes was executed; what was not, is a view or a move or was done at load."""
    path, shapes, _ = model
    backend = OpenVINOCPUBackend({})
    runtime = import_openvino()
    core = runtime.Core()
    read = read_model(runtime, core, path, shapes)
    properties = backend._properties() | {"PERF_COUNT": True}
    compiled = core.compile_model(read, "CPU", properties)
    request = compiled.create_infer_request()
    feeds = [np.ones(port.shape, np.float32) for port in read.inputs]
    for _ in range(3):
        request.infer(feeds)
    counted = {info.node_name: info.status.name for info in request.get_profiling_info()}
    allowed = {
        "compute": {"EXECUTED"},
        "move": {"EXECUTED", "NOT_RUN"},
        "view": {"NOT_RUN"},
        "const": {None},
    }
    graph = read_graph(read, compiled)
    for node in graph.nodes:
        assert counted.get(node.name) in allowed[node.kind], node
    # Counting changes nothing: what is shown without it is the same.
    plain = shown(path, shapes)
    assert [(node.type, node.kind) for node in plain.nodes] == [
        (node.type, node.kind) for node in graph.nodes
    ]


def test_transposes_belong_to_no_op(tmp_path):
    """They are where OpenVINO's reader puts them, and no bar between the ops around them."""
    graph = shown(*saved(conv_transpose_relu, tmp_path))
    ops = graph.ops or ()
    assert [op.type for op in ops] == ["Convolution", "Add", "Relu"]
    assert ops[2].inputs == ops[1].outputs


def two_convs_with_moved_relus(graph: Graph, x: str) -> list[str]:
    return [conv_transpose_relu(graph, x), conv_transpose_relu(graph, x)]


def test_doubt_shows(tmp_path):
    """Two moved ops and two convs: the names do not tell which went where."""
    path, shapes = saved(two_convs_with_moved_relus, tmp_path)
    runtime = import_openvino()
    core = runtime.Core()
    read = read_model(runtime, core, path, shapes)
    compiled = core.compile_model(read, "CPU", OpenVINOCPUBackend({})._properties())
    graph = read_graph(read, compiled)
    assert [(node.type, node.sources) for node in graph.compute()] == [
        ("Convolution[?]", None),
        ("Convolution[?]", None),
    ]


def test_doubt_is_settled_by_what_layers_were_made_of(tmp_path):
    graph = shown(*saved(two_convs_with_moved_relus, tmp_path))
    assert [node.type for node in graph.compute()] == ["Convolution[Relu]"] * 2
    makers = {tensor: op.name for op in graph.ops or () for tensor in op.outputs}
    reads = {op.name: [makers.get(tensor) for tensor in op.inputs] for op in graph.ops or ()}
    for node in graph.compute():
        conv, bias, relu = node.sources or ()
        assert (reads[bias], reads[relu]) == ([conv], [bias])


def hswish_between_convs(graph: Graph, x: str) -> str:
    return conv(graph, hswish_in_parts(graph, x))


def slices(graph: Graph, x: str) -> str:
    """Both halves of the channels, which the plugin executes as one split."""
    zero, half, end, axis = (
        graph.constant(np.array([value], np.int64)) for value in (0, SHAPE[0] // 2, SHAPE[0], 1)
    )
    y = conv(graph, x)
    first, second = (
        graph.op("Slice", [y, start, stop, axis]) for start, stop in ((zero, half), (half, end))
    )
    return str(graph.op("Concat", [graph.op("Relu", [first]), second], axis=1))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        # the division may be in either: OpenVINO folds it into the weights behind
        (
            hswish_between_convs,
            [
                "Convolution Add Add Maximum Minimum Multiply",
                "Convolution Add",
            ],
        ),
        (slices, ["Convolution Add", "Slice Slice", "Relu", "Concat"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_ops_that_lost_their_names_are_found(build, expected, tmp_path):
    graph = shown(*saved(build, tmp_path))
    types = {op.name: op.type for op in graph.ops or ()}
    found = [" ".join(types[name] for name in node.sources or ()) for node in graph.nodes]
    assert [types for types in found if types] == expected


# --- names ---------------------------------------------------------------------------------------


def test_ops_of_one_name_are_not_confused(tmp_path):
    """Nor are names with a comma, the character between names in OpenVINO's lists."""
    path, shapes = saved(chain("MaxPool", "Conv", "MaxPool", "Relu"), tmp_path)
    wanted = shown(path, shapes)
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = "a,b"
    onnx.save(model, path)
    found = shown(path, shapes)
    assert [node.type for node in found.nodes] == [node.type for node in wanted.nodes]
    assert kinds_covered(found) == kinds_covered(wanted)
    assert not [op.name for op in found.ops or () if "," in op.name]


def kinds_covered(graph: ExecutedGraph) -> Counter[Any]:
    types = {op.name: op.type for op in graph.ops or ()}
    return Counter(tuple(types[name] for name in node.sources or ()) for node in graph.nodes)


def test_names_that_are_apart_stay(tmp_path):
    path, _ = saved(chain("Conv", "Relu"), tmp_path)
    model = ov.Core().read_model(path)
    before = [op.friendly_name for op in model.get_ordered_ops()]
    name_apart(model)
    assert [op.friendly_name for op in model.get_ordered_ops()] == before
    relu = next(op for op in model.get_ordered_ops() if op.get_type_name() == "Relu")
    others = {op.friendly_name for op in model.get_ordered_ops()} - {relu.friendly_name}
    relu.friendly_name = before[0]
    name_apart(model)
    names = [op.friendly_name for op in model.get_ordered_ops()]
    assert len(set(names)) == len(names)
    assert len(others.intersection(names)) >= len(others) - 1


# --- names that are lost -------------------------------------------------------------------------


def step(name: str, kind: Any, reads: str, named: str = "") -> tuple[ExecutedNode, list[str]]:
    node = ExecutedNode(
        name=name, type="T", kind=kind, inputs=tuple(reads.split()), outputs=(f"<{name}>",)
    )
    return node, named.split()


def line(*types: str) -> list[ModelOp]:
    """Ops in a row, named by number and type."""
    return [
        ModelOp(name=f"{i}{kind}", type=kind, inputs=(f"t{i}",), outputs=(f"t{i + 1}",))
        for i, kind in enumerate(types)
    ]


def covers(
    steps: list[tuple[ExecutedNode, list[str]]],
    ops: list[ModelOp],
    made_of: dict[str, str] | None = None,
    moves: str = "",
) -> list[list[str] | None]:
    nodes, named = zip(*steps, strict=True)
    merged = {layer: set(names.split()) for layer, names in (made_of or {}).items()}
    return [
        [op.name for op in found.ops] if found.certain else None
        for found in covered(
            nodes, named, ops, moves=frozenset(moves.split()), merged=lambda: merged
        )
    ]


def test_an_op_that_lost_its_name_is_with_what_reads_it():
    steps = [step("a", "compute", "x", "0A"), step("b", "compute", "<a>", "2C")]
    assert covers(steps, line("A", "B", "C")) == [["0A"], ["1B", "2C"]]


def test_an_op_whose_readers_are_not_all_known_is_left_open():
    ops = [*line("A", "B"), ModelOp(name="C", type="C", inputs=("t1",), outputs=("out",))]
    assert covers([step("b", "compute", "x", "1B")], ops) == [["1B"]]


def test_a_part_of_an_op_says_nothing_beyond_it():
    steps = [step("a", "compute", "x", "new 0A"), step("b", "compute", "<a>", "2C")]
    assert covers(steps, line("A", "B", "C")) == [["0A"], ["1B", "2C"]]


def test_an_op_moved_up_past_a_reshape_is_not_the_reshapes():
    steps = [step("a", "compute", "x", "0A new"), step("r", "view", "<a>", "2B")]
    assert covers(steps, line("A", "Reshape", "B")) == [["0A", "2B"], None]


def test_an_op_moved_into_a_node_of_its_own_is_found():
    steps = [
        step("new", "compute", "x", "new"),
        step("m", "move", "<new>"),
        step("b", "compute", "<m>", "1B"),
    ]
    assert covers(steps, line("A", "B")) == [["0A"], [], ["1B"]]


def test_an_op_moved_up_past_what_has_no_name_is_found():
    steps = [step("a", "compute", "x", "0A new"), step("m", "move", "<a>")]
    assert covers(steps, line("A", "B")) == [["0A", "1B"], []]


def test_what_may_be_in_either_of_two_nodes_is_in_doubt():
    """Both, and no other: neither may seem to cover less than it does."""
    steps = [
        step("a", "compute", "x", "0A new"),
        step("b", "compute", "<a>", "2C"),
        step("d", "compute", "<b>", "3D"),
    ]
    assert covers(steps, line("A", "B", "C", "D")) == [None, None, ["3D"]]


def test_a_node_that_tells_nothing_is_in_doubt():
    steps = [step("a", "compute", "x"), step("b", "compute", "<a>", "2C")]
    assert covers(steps, line("A", "B", "C")) == [None, None]


# --- what layers were made of --------------------------------------------------------------------


def test_an_op_of_two_layers_is_in_the_first():
    steps = [step("a", "compute", "x", "0A new"), step("c", "compute", "<a>", "3C")]
    found = covers(steps, line("A", "B", "B", "C"), {"new": "1B 2B", "3C": "1B 3C"})
    assert found == [["0A", "1B", "2B"], ["3C"]]


def test_what_only_a_later_one_of_two_layers_was_made_of_is_in_none():
    steps = [step("a", "compute", "x", "0A new"), step("c", "compute", "<a>", "3C")]
    found = covers(steps, line("A", "B", "B", "C"), {"new": "1B", "3C": "1B 2B 3C"})
    assert found == [["0A", "1B"], ["3C"]]


def test_a_node_between_others_covers_what_is_between():
    ops = [
        ModelOp(name="0A", type="A", inputs=("x",), outputs=("a",)),
        ModelOp(name="1S", type="Slice", inputs=("a",), outputs=("s",)),
        ModelOp(name="2S", type="Slice", inputs=("a",), outputs=("t",)),
        ModelOp(name="3C", type="C", inputs=("s", "t"), outputs=("y",)),
    ]
    steps = [
        step("a", "compute", "x", "0A"),
        step("split", "view", "<a>", "new"),
        step("c", "compute", "<split> <other>", "3C"),
    ]
    assert covers(steps, ops, {"new": "2S"}) == [["0A"], ["1S", "2S"], ["3C"]]
    steps[1:] = [
        step("b", "compute", "<a>", "new"),
        step("split", "view", "<a>", "other"),
        step("c", "compute", "<split> <b>", "3C"),
    ]
    assert covers(steps, ops, {"unlike": "2S"}) == [["0A"], None, None, ["3C"]]


def test_a_node_that_reads_less_than_an_op_does_not_execute_it():
    """What was moved up past it has its name, too, so where that is executed stays open."""
    ops = [
        ModelOp(name="0M", type="M", inputs=("x", "y"), outputs=("m",)),
        ModelOp(name="1B", type="B", inputs=("m",), outputs=("b",)),
        ModelOp(name="2C", type="C", inputs=("b",), outputs=("c",)),
    ]
    steps = [step("new", "compute", "y", "new"), step("c", "compute", "x <new>", "1B 2C")]
    assert covers(steps, ops) == [None, ["1B", "2C"]]
    assert covers(steps, ops, {"new": "0M 1B"}) == [None, ["2C"]]


def test_a_node_that_ends_with_a_transpose_is_told():
    steps = [step("a", "compute", "x", "0A turn"), step("b", "compute", "<a>", "2C")]
    ops = line("A", "B", "C")
    assert covers(steps, ops) == [None, None]
    assert covers(steps, ops, moves="turn") == [["0A"], ["1B", "2C"]]


# --- what cannot be told -------------------------------------------------------------------------


def test_a_runtime_model_that_tells_less_is_an_error(tmp_path):
    path, _ = saved(chain("Relu"), tmp_path)
    model = ov.Core().read_model(path)

    class Compiled:
        def get_runtime_model(self) -> Any:
            return model  # has none of the runtime's notes

    with pytest.raises(GraphUnavailableError, match=r"does not tell what it does in 2026"):
        read_graph(model, Compiled())


def test_it_says_that_it_shows_graphs():
    assert isinstance(OpenVINOCPUBackend({}), ShowsGraph)


# --- what OpenVINO made of a model ---------------------------------------------------------------


def test_a_version_that_does_not_show_what_it_made_compiles_all_the_same(tmp_path):
    """Then only names tell."""
    path, _ = saved(two_convs_with_moved_relus, tmp_path)
    core = ov.Core()
    model = core.read_model(path)
    name_apart(model)

    class WithoutProperty:
        def compile_model(self, model: Any, device: str, properties: dict[str, Any]) -> Any:
            if len(properties) > 1:
                raise RuntimeError("Unsupported property")
            return core.compile_model(model, device, properties)

    properties = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled, show = compile_and_show(WithoutProperty(), model, "CPU", properties)
    assert show() == {}
    graph = read_graph(model, compiled, show)
    assert [node.sources for node in graph.compute()] == [None, None]

    compiled, show = compile_and_show(core, model, "CPU", properties)
    relus = {op.friendly_name for op in model.get_ops() if op.get_type_name() == "Relu"}
    assert relus <= set().union(*show().values())


class FakeOp:
    """An op of one output, as far as two readings of a file are gone through."""

    def __init__(self, kind: str, *reads: FakeOp) -> None:
        self.kind, self.reads = kind, reads

    def get_name(self) -> str:
        return f"{self.kind}{id(self)}"

    def get_type_name(self) -> str:
        return self.kind

    def get_input_size(self) -> int:
        return len(self.reads)

    def inputs(self) -> list[FakePort]:
        return [FakePort(op) for op in self.reads]

    def input(self, index: int) -> FakePort:
        return FakePort(self.reads[index])


class FakePort:
    def __init__(self, op: FakeOp) -> None:
        self.op = op

    def get_source_output(self) -> FakePort:
        return self

    def get_node(self) -> FakeOp:
        return self.op


def test_two_readings_are_the_same_but_for_transposes():
    x, y = FakeOp("Parameter"), FakeOp("Parameter")
    one = FakeOp("Relu", FakeOp("Abs", FakeOp("Transpose", x, FakeOp("Constant"))))
    other = FakeOp("Relu", FakeOp("Transpose", FakeOp("Abs", y), FakeOp("Constant")))
    found = _paired([(FakePort(one), FakePort(other))])
    assert found[one.get_name()] is other
    assert [op.kind for op in found.values()] == ["Relu", "Abs"]
    with pytest.raises(GraphUnavailableError, match="has Abs where the model has Parameter"):
        _paired([(FakePort(one), FakePort(FakeOp("Relu", y)))])
