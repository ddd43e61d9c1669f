"""MIN and MINRELU: their models in each framework, and what executed graphs say of them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn_meter.builder.backend_meta.fusion_rule_tester.min import (
    MultipleInNodes,
    MultipleInNodesRelu,
)
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode, ModelOp
from nn_meter.builder.nn_modules.frameworks import IMPLEMENTS, get_framework
from nn_meter.reference import reference_inputs

CONFIG = {
    "HW": 7,
    "CIN": 4,
    "SHAPE_1D": 12,
    "COUT": 6,
    "KERNEL_SIZE": 3,
    "PADDING": "same",
    "STRIDES": 2,
    "POOL_STRIDES": 2,
}
CASES = {"": MultipleInNodes, "_relu": MultipleInNodesRelu}


# --- models --------------------------------------------------------------------------------------


@pytest.fixture(params=IMPLEMENTS)
def implement(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    pytest.importorskip(name)
    return name


@pytest.fixture(params=CASES, ids=["MIN", "MINRELU"])
def relu(request: pytest.FixtureRequest) -> str:
    """What the names of the models with an addition end with."""
    return str(request.param)


class Built:
    """The models of a test case; each runs from every file of it, and in ONNX Runtime."""

    def __init__(self, implement: str, relu: str, folder: Path) -> None:
        case = CASES[relu]({**CONFIG, "IMPLEMENT": implement, "MODEL_DIR": str(folder)})
        case.check_contract()
        self.framework = get_framework(implement)
        self.relu = relu
        self.models = case.save_testcase()
        self.folder = folder / "models"

    def path(self, model: str) -> Path:
        return self.folder / Path(self.models[model]["model"]).name

    def shapes(self, model: str) -> list[list[int]]:
        shapes: list[list[int]] = self.models[model]["shapes"]
        return shapes

    def feeds(self, model: str) -> list[Any]:
        return reference_inputs(self.shapes(model))

    def run(self, model: str, *feeds: Any) -> Any:
        path = self.path(model)
        (output,) = self.framework.run_model(path, feeds)
        others = []
        if path.is_dir():
            others.append(self.framework.run_model(path / "assets.extra" / "model.tflite", feeds))
        elif find_spec("onnxruntime") is not None:
            others.append(by_onnxruntime(path, feeds))
        for (other,) in others:
            np.testing.assert_allclose(output, other, rtol=1e-4, atol=1e-3)
        return output


def by_onnxruntime(path: Path, feeds: Any) -> list[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found: list[Any] = session.run(None, dict(zip(names, feeds, strict=True)))
    return found


@pytest.fixture
def built(implement, relu, tmp_path) -> Built:
    return Built(implement, relu, tmp_path)


def test_the_models_of_all_cases_are_built_for_the_shapes_of_the_block(built, implement):
    image, convolved = [7, 7, 4], [4, 4, 6]
    if implement != "tensorflow":
        image, convolved = [4, 7, 7], [6, 4, 4]
    assert {model: entry["shapes"] for model, entry in built.models.items()} == {
        "block": [image, image],
        "conv_1": [image],
        "conv_2": [image],
        f"add{built.relu}": [convolved, convolved],
        f"conv_1_add{built.relu}": [image, convolved],
        f"conv_2_add{built.relu}": [convolved, image],
    }
    for model in built.models:
        output = built.run(model, *built.feeds(model))
        assert list(output.shape) == [1, *convolved]
        assert output.std() > 0.1


def test_what_is_added_is_what_the_name_says(built):
    """The addend that no convolution reads comes out as it went in; large, no relu cuts it."""
    for model, position in [("add", 0), ("add", 1), ("conv_1_add", 1), ("conv_2_add", 0)]:
        model += built.relu
        feeds = built.feeds(model)
        addend = feeds[position]
        outputs = []
        for value in (np.full_like(addend, 100.0), addend + np.float32(100.0)):
            feeds[position] = value
            outputs.append(built.run(model, *feeds))
        np.testing.assert_allclose(outputs[1] - outputs[0], addend, rtol=0, atol=1e-4)
        feeds[position] = np.full_like(addend, -100.0)
        negative = built.run(model, *feeds)
        assert negative.max() == 0 if built.relu else negative.max() < -50


def test_the_block_adds_two_convolutions_of_their_own(built):
    x, y = built.feeds("block")
    outputs = {
        (a, b): built.run("block", *feeds)
        for (a, b), feeds in {
            ("x", "y"): (x, y),
            ("y", "x"): (y, x),
            ("x", "x"): (x, x),
            ("y", "y"): (y, y),
        }.items()
    }
    assert np.abs(outputs["x", "y"] - outputs["y", "x"]).max() > 0.1
    kept = np.min(list(outputs.values()), axis=0) > 0  # where no relu could have cut anything
    assert kept.any()
    np.testing.assert_allclose(
        (outputs["x", "y"] + outputs["y", "x"])[kept],
        (outputs["x", "x"] + outputs["y", "y"])[kept],
        rtol=1e-3,
        atol=1e-4,
    )
    lowest = min(output.min() for output in outputs.values())
    assert lowest == 0 if built.relu else lowest < 0


@pytest.mark.parametrize("implement", ["onnx", "torch"])
def test_nothing_but_the_named_ops_is_in_the_file(built):
    import onnx

    end = ["Add", "Relu"] if built.relu else ["Add"]
    for model in built.models:
        types = [node.op_type for node in onnx.load(built.path(model)).graph.node]
        convs = 2 if model == "block" else model.count("conv")
        assert types == ["Conv"] * convs + (end if "add" in model or model == "block" else [])


# --- executed graphs -----------------------------------------------------------------------------


def node(type_: str, inputs: str, outputs: str, kind: Any = "compute", sources: Any = None) -> Any:
    return ExecutedNode(
        name=f"n_{outputs}",
        type=type_,
        inputs=tuple(inputs.split()),
        outputs=tuple(outputs.split()),
        kind=kind,
        sources=None if sources is None else tuple(sources.split()),
    )


def graph(*nodes: ExecutedNode, inputs: Any = ("a", "b"), **ops: Any) -> ExecutedGraph:
    return ExecutedGraph(nodes=nodes, inputs=inputs, **ops)


CONV = graph(node("Conv", "a", "y"), inputs=("a",))
PADDED = graph(node("Pad", "a", "p"), node("Conv", "p", "y"), inputs=("a",))
ADD = graph(node("Add", "a b", "y"))
OPS = (
    ModelOp(name="c1", type="Conv", inputs=("i1",), outputs=("t1",)),
    ModelOp(name="b1", type="Add", inputs=("t1",), outputs=("t2",)),
    ModelOp(name="c2", type="Conv", inputs=("i2",), outputs=("t3",)),
    ModelOp(name="s", type="Add", inputs=("t2", "t3"), outputs=("t4",)),
    ModelOp(name="r", type="Relu", inputs=("t4",), outputs=("t5",)),
)


def by_ops(*nodes: tuple[str, Any]) -> ExecutedGraph:
    """A graph of which only the ops are told that nodes cover."""
    made = [node(type_, "", str(n), sources=sources) for n, (type_, sources) in enumerate(nodes)]
    return graph(*made, inputs=None, ops=OPS, op_inputs=("i1", "i2"))


def grouping(block: ExecutedGraph, conv: ExecutedGraph = CONV, relu: str = "") -> str | None:
    graphs = {"block": block, "conv_1": conv, "conv_2": conv, f"add{relu}": ADD}
    graphs |= {f"conv_{number}_add{relu}": CONV for number in (1, 2)}
    return CASES[relu]({**CONFIG, "IMPLEMENT": "onnx", "MODEL_DIR": "."}).grouping(graphs)


BY_TENSORS = {
    "an addition of its own": (
        "case1",
        graph(node("Conv", "a", "x"), node("Conv", "b", "y"), node("Add", "x y", "z")),
    ),
    "its operands the other way round": (
        "case1",
        graph(node("Conv", "b", "y"), node("Conv", "a", "x"), node("Add", "y x", "z")),
    ),
    "the first conv adds what the second gave": (
        "case2",
        graph(node("Conv", "b", "y"), node("Conv[sum]", "a y", "z")),
    ),
    "the second conv adds what the first gave": (
        "case3",
        graph(node("Conv", "a", "x"), node("Conv[sum]", "b x", "z")),
    ),
    "in layouts of its own": (
        "case2",
        graph(
            node("ReorderInput", "b", "rb", "move"),
            node("Conv", "rb", "y"),
            node("ReorderInput", "a", "ra", "move"),
            node("Conv[sum]", "ra y", "rz"),
            node("ReorderOutput", "rz", "z", "move"),
        ),
    ),
    "an addition in a layout of its own": (
        "case1",
        graph(
            node("ReorderInput", "a", "ra", "move"),
            node("Conv", "ra", "rx"),
            node("ReorderOutput", "rx", "x", "move"),
            node("Conv", "b", "ry"),
            node("Reorder", "ry", "y", "move"),
            node("Add", "x y", "z"),
            node("Reshape", "z", "out", "view"),
        ),
    ),
    "a relu behind that is fused": (
        "case3",
        graph(node("Conv", "a", "x"), node("Conv[sum,activation=Relu]", "b x", "z")),
    ),
    "a relu behind that is not": (
        "case3",
        graph(node("Conv", "a", "x"), node("Conv[sum]", "b x", "z"), node("Relu", "z", "r")),
    ),
    "an addition of its own, and a relu": (
        "case1",
        graph(
            node("Conv", "a", "x"),
            node("Conv", "b", "y"),
            node("Add", "x y", "z"),
            node("Relu", "z", "r"),
        ),
    ),
    "one kernel for everything": (None, graph(node("Fused", "a b", "z"))),
    "both convs in one kernel": (
        None,
        graph(node("GroupedConv", "a b", "x y"), node("Add", "x y", "z")),
    ),
    "nothing that reads both": (None, graph(node("Conv", "a", "x"), node("Conv", "b", "y"))),
}


@pytest.mark.parametrize("name", BY_TENSORS)
@pytest.mark.parametrize("relu", CASES, ids=["MIN", "MINRELU"])
def test_tensors_tell_who_took_the_addition(name, relu):
    case, block = BY_TENSORS[name]
    assert grouping(block, relu=relu) == case


@pytest.mark.parametrize(
    ("case", "last"),
    [
        ("case1", [("Conv", "pa", "x"), ("Conv", "pb", "y"), ("Add", "x y", "z")]),
        ("case2", [("Conv", "pb", "y"), ("Conv[sum]", "pa y", "z")]),
        ("case3", [("Conv", "pa", "x"), ("Conv[sum]", "pb x", "z")]),
    ],
)
def test_a_conv_may_be_two_kernels_already(case, last):
    block = graph(node("Pad", "a", "pa"), node("Pad", "b", "pb"), *[node(*each) for each in last])
    assert grouping(block, PADDED) == case


BY_SOURCES = {
    "an addition of its own": ("case1", [("Conv", "c1 b1"), ("Conv", "c2"), ("Add", "s r")]),
    "the first conv's": ("case2", [("Conv", "c2"), ("Conv", "c1 b1 s"), ("Relu", "r")]),
    "the second conv's": ("case3", [("Conv", "c1 b1"), ("Conv", "c2 s r")]),
    "one kernel for everything": (None, [("Fused", "c1 b1 c2 s r")]),
    "what adds is not told, and kernels are fewer": (None, [("Conv", "c1"), ("Conv", "c2")]),
    "not all of it is told, and kernels are fewer": (None, [("Conv", None), ("Conv", "c2 s")]),
}


@pytest.mark.parametrize("name", BY_SOURCES)
def test_ops_covered_tell_who_took_the_addition_where_tensors_are_not_told(name):
    case, nodes = BY_SOURCES[name]
    assert grouping(by_ops(*nodes)) == case


def test_as_many_kernels_as_alone_are_an_addition_of_its_own_where_nothing_else_is_told():
    kernels = [node("Conv", "", "1"), node("Conv", "", "2"), node("Add", "", "3")]
    assert grouping(graph(*kernels, inputs=None)) == "case1"
    assert grouping(graph(*kernels[:2], inputs=None)) is None
    assert grouping(graph(*kernels, kernels[2], inputs=None)) is None
    moved = node("Reorder", "", "4", "move")
    assert grouping(graph(*kernels, moved, inputs=None)) == "case1"


def test_two_ways_that_disagree_are_told_and_decide_nothing(caplog):
    block = graph(
        node("Conv", "b", "y", sources="c1 b1"),
        node("Conv[sum]", "a y", "z", sources="c2 s"),
        ops=OPS,
        op_inputs=("i1", "i2"),
    )
    assert grouping(block) is None
    assert "MIN: the executed graph shows case2 by its nodes' tensors and case3" in caplog.text


def test_two_ways_that_agree_decide():
    block = graph(
        node("Conv", "b", "y", sources="c2"),
        node("Conv[sum]", "a y", "z", sources="c1 b1 s"),
        ops=OPS,
        op_inputs=("i1", "i2"),
    )
    assert grouping(block) == "case2"


def test_names_of_nodes_tensors_and_ops_do_not_matter():
    for case, block in BY_TENSORS.values():
        renamed = ExecutedGraph(
            nodes=tuple(
                ExecutedNode(
                    name="Add",
                    type=each.type,
                    inputs=tuple(f"Conv_{name}" for name in each.inputs),
                    outputs=tuple(f"Conv_{name}" for name in each.outputs),
                    kind=each.kind,
                )
                for each in block.nodes
            ),
            inputs=tuple(f"Conv_{name}" for name in block.inputs or ()),
        )
        assert grouping(renamed) == case
