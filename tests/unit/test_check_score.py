"""Scoring kernels, and what of a runtime's word is believed: hand-made graphs, no runtime."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nn_meter.builder.backends.base import Environment
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode, ModelOp
from nn_meter.builder.backends.values import fingerprint, same_values
from nn_meter.errors import BackendError, ConversionError, ModelFileError, ModelRejectedError
from nn_meter.fusion_rules.rules import RuleSet
from nn_meter.kernel_detector.check import (
    Truth,
    check,
    executed_together,
    score,
    warn_of_another_runtime,
)
from nn_meter.kernel_detector.check.prepare import op_named, prepare
from nn_meter.kernel_detector.graph import Graph, Op, Tensor
from nn_meter.kernel_detector.kernels import Kernel
from nn_meter.kernel_detector.readers import read_model

CHAIN = ("Relu", "Sigmoid", "Reshape", "Tanh", "Abs")


def chain(*types: str) -> Graph:
    """Ops in a row, named as their types in small letters; all tensors are of shape [1, 8]."""
    tensors = ["x", *(f"t{i}" for i in range(len(types)))]
    ops = [
        Op(
            name=f"{kind.lower()}{i}",
            type=kind,
            inputs=(tensors[i], "shape") if kind == "Reshape" else (tensors[i],),
            outputs=(tensors[i + 1],),
        )
        for i, kind in enumerate(types)
    ]
    known = {name: Tensor(name=name, shape=(1, 8), dtype="float32") for name in tensors}
    known["shape"] = Tensor(name="shape", value=np.array([1, 8]), is_constant=True)
    return Graph(
        name="chain.onnx",
        format="onnx",
        layout="channels_first",
        ops=ops,
        inputs=("x",),
        outputs=(tensors[-1],),
        tensors=known,
    )


def saved(graph: Graph, folder: Path) -> Path:
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8])
        for name in (*graph.inputs, *graph.outputs)
    ]
    nodes = [helper.make_node(op.type, op.inputs, op.outputs) for op in graph.ops]
    model = helper.make_model(
        helper.make_graph(
            nodes, "g", values[:1], values[1:], [numpy_helper.from_array(np.array([1, 8]), "shape")]
        )
    )
    path = folder / "chain.onnx"
    onnx.save(model, str(path))
    return path


def kernels(*groups: str) -> list[Kernel]:
    return [
        Kernel(name=f"k{i}", type="", operators=(), ops=tuple(g.split()), inputs=(), outputs=())
        for i, g in enumerate(groups)
    ]


class Tells:
    """A backend that gives nodes with these sources, in a row, of a copy of a chain."""

    def __init__(self, *sources: Any, skips: bool = False, kinds: tuple[str, ...] = ()) -> None:
        self.sources, self.skips, self.kinds = sources, skips, kinds

    def convert_model(self, model_path: str, save_path: str, input_shape: Any = None) -> str:
        return model_path

    def executed_graph(self, converted_model: str, shapes: Any) -> ExecutedGraph:
        model = onnx.load(converted_model)
        nodes, before = [], "in0"
        for i, sources in enumerate(self.sources):
            named = None if sources is None else tuple(f"op{place}.0" for place in sources)
            kind: Any = self.kinds[i] if self.kinds else "compute"
            nodes.append(
                ExecutedNode(
                    name=f"n{i}",
                    type="Any",
                    inputs=("in0",) if self.skips and i == 2 else (before,),
                    outputs=(before := f"out{i}",),
                    sources=named,
                    kind=kind,
                )
            )
        ops = tuple(
            ModelOp(name=n.name, type=n.op_type, inputs=(n.input[0],), outputs=tuple(n.output))
            for n in model.graph.node
        )
        return ExecutedGraph(nodes=tuple(nodes), inputs=("in0",), ops=ops, op_inputs=("in0",))


@pytest.fixture
def told(tmp_path):
    def _told(graph: Graph, backend: Any) -> Truth:
        return executed_together(saved(graph, tmp_path), graph, backend)

    return _told


# --- score ---------------------------------------------------------------------------------------


def test_edges_are_counted_on_both_sides():
    graph = chain("Conv", "Relu", "Conv", "Relu", "MaxPool")
    truth = Truth(groups={"conv0": 0, "relu1": 0, "conv2": 1, "relu3": 2, "maxpool4": 3})
    found = score(graph, kernels("conv0", "relu1", "conv2 relu3", "maxpool4"), truth)
    assert (found.edges, found.tp, found.fp, found.fn, found.untold) == (4, 0, 1, 1, 0)
    assert (found.precision, found.recall, found.f1) == (0, 0, 0)
    assert (found.to_json()["edges"], found.to_json()["fused"]) == (4, 1)
    assert found.to_json()["differ"] == [
        {
            "ops": ["conv0", "relu1"],
            "types": ["Conv", "Relu"],
            "tensor": "t0",
            "executed": "fused",
            "kernels": "separate",
        },
        {
            "ops": ["conv2", "relu3"],
            "types": ["Conv", "Relu"],
            "tensor": "t2",
            "executed": "separate",
            "kernels": "fused",
        },
    ]


def test_precision_and_recall_are_not_each_other():
    graph = chain("Conv", "Relu", "Relu", "Relu")
    truth = Truth(groups={"conv0": 0, "relu1": 0, "relu2": 1, "relu3": 2})
    found = score(graph, kernels("conv0 relu1 relu2 relu3"), truth)
    assert (found.precision, found.recall, found.f1) == (pytest.approx(1 / 3), 1, 0.5)


def test_edges_at_ops_that_are_untold_or_idle_do_not_count():
    graph = chain("Conv", "Relu", "Reshape", "Relu", "Relu")
    truth = Truth(
        groups={"conv0": 0, "relu1": 0, "relu4": 3},
        untold=frozenset({"relu3"}),
        idle=frozenset({"reshape2"}),
    )
    found = score(graph, kernels("conv0 relu1 reshape2 relu3 relu4"), truth)
    assert (found.edges, found.tp, found.fp, found.untold) == (1, 1, 0, 1)


def test_nothing_fused_on_either_side_is_right_and_ops_without_kernel_are_separate():
    graph = chain("Conv", "Conv")
    found = score(graph, [], Truth(groups={"conv0": 0, "conv1": 1}))
    assert (found.edges, found.precision, found.recall, found.f1) == (1, 1, 1, 1)


def test_two_tensors_between_two_ops_are_one_edge():
    split = Op(name="split", type="Split", inputs=("x",), outputs=("a", "b"))
    add = Op(name="add", type="Add", inputs=("a", "b"), outputs=("y",))
    graph = Graph(
        **{"name": "g", "format": "onnx", "layout": "channels_first"},
        **{"ops": (split, add), "inputs": ("x",), "outputs": ("y",), "tensors": {}},
    )
    assert score(graph, kernels("split add"), Truth(groups={"split": 0, "add": 0})).edges == 1


# --- what is believed ----------------------------------------------------------------------------


def test_sources_that_fit_the_executed_graph_are_believed(told):
    truth = told(chain(*CHAIN), Tells([0, 1], [2], [3, 4], kinds=("compute", "view", "compute")))
    assert truth.groups["relu0"] == truth.groups["sigmoid1"]
    assert truth.groups["tanh3"] == truth.groups["abs4"] != truth.groups["relu0"]
    assert (truth.idle, truth.untold) == ({"reshape2"}, set())


def test_what_does_not_fit_the_executed_graph_is_untold(told):
    """The third node reads the model's input, which in the model nothing but the first op does."""
    truth = told(chain("Relu", "Sigmoid", "Tanh", "Abs"), Tells([0], [1], [2], [3], skips=True))
    assert truth.untold == {"sigmoid1", "tanh2"}
    assert set(truth.groups) == {"relu0", "abs3"}


def test_an_op_that_no_node_tells_of_is_untold_and_its_neighbours_are_not(told):
    truth = told(chain("Relu", "Sigmoid", "Tanh"), Tells([0], [2]))
    assert truth.untold == {"sigmoid1"}
    assert set(truth.groups) == {"relu0", "tanh2"}


def test_a_node_without_sources_makes_its_ops_untold(told):
    truth = told(chain("Relu", "Sigmoid", "Tanh"), Tells([0], None, [2]))
    assert (truth.untold, set(truth.groups)) == ({"sigmoid1"}, {"relu0", "tanh2"})


def test_an_op_in_two_nodes_is_told_only_if_it_is_alone_in_them(told):
    graph = chain("Relu", "Sigmoid", "Tanh")
    assert told(graph, Tells([0], [1], [1], [2])).untold == set()
    assert told(graph, Tells([0], [1], [1, 2])).untold == {"sigmoid1", "tanh2"}


def test_an_op_that_a_move_tells_of_computes_nothing_there(told):
    truth = told(chain("Relu", "Sigmoid"), Tells([0], [1], kinds=("compute", "move")))
    assert (truth.idle, set(truth.groups)) == ({"sigmoid1"}, {"relu0"})


def test_a_backend_that_cannot_tell_is_named(told):
    class Silent:
        pass

    class WithoutSources(Tells):
        def executed_graph(self, converted_model: str, shapes: Any) -> ExecutedGraph:
            return ExecutedGraph(nodes=(ExecutedNode(name="n", type="Any"),))

    for backend in (Silent(), WithoutSources(), Tells(None)):
        with pytest.raises(BackendError, match=type(backend).__name__):
            told(chain("Relu"), backend)


def test_check_puts_it_together(tmp_path):
    graph = chain("Relu", "Sigmoid", "Tanh")
    found = check(
        saved(graph, tmp_path), graph, kernels("relu0 sigmoid1", "tanh2"), Tells([0], [1, 2])
    )
    assert (found.edges, found.fp, found.fn) == (2, 1, 1)


# --- the copy ------------------------------------------------------------------------------------


def test_the_copy_refuses_what_it_cannot_be_made_of(tmp_path):
    graph = chain("Relu")
    path = saved(graph, tmp_path)
    (tmp_path / "none.onnx").write_bytes(b"no model")
    with pytest.raises(ModelRejectedError, match=r"none\.onnx"):
        prepare(tmp_path / "none.onnx", graph, tmp_path)
    with pytest.raises(ConversionError, match="relu0"):
        prepare(path, _renamed(graph), tmp_path)
    with pytest.raises(ModelFileError, match="no TFLite model"):
        prepare(path, Graph(**{**vars(graph), "format": "tflite"}), tmp_path)


def test_weights_that_a_file_shares_are_drawn_apart(tmp_path):
    """Equal ones are stored once; other constants stay shared, and as they are."""
    given = [numpy_helper.from_array(np.zeros(8, np.float32), name) for name in ("w", "number")]
    given[1] = numpy_helper.from_array(np.float32(0.5), "number")
    names = ["x", *(f"t{i}" for i in range(4))]
    nodes = [
        helper.make_node(kind, [names[i], constant], [names[i + 1]])
        for i, (kind, constant) in enumerate(
            [("Add", "w"), ("Add", "w"), ("Mul", "number"), ("Mul", "number")]
        )
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8])
        for name in (names[0], names[-1])
    ]
    path = tmp_path / "shared.onnx"
    made = helper.make_graph(nodes, "g", values[:1], values[1:], given)
    onnx.save(helper.make_model(made, ir_version=9), str(path))
    folder = tmp_path / "copy"
    folder.mkdir()
    copied = onnx.load(str(prepare(path, read_model(path), folder).path)).graph
    read = [node.input[1] for node in copied.node]
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in copied.initializer}
    assert len(set(read)) == 3
    assert read[2] == read[3]
    assert held[read[2]] == np.float32(0.5)
    assert not np.array_equal(held[read[0]], held[read[1]])
    assert np.all(held[read[0]] != 0)


def _renamed(graph: Graph) -> Graph:
    ops = [Op(name=op.name, type=op.type, inputs=op.inputs, outputs=("z",)) for op in graph.ops]
    return Graph(**{**vars(graph), "ops": ops})


def test_names_in_a_runtimes_graph_lead_back_to_ops():
    assert op_named("op12.0_nchwc") == 12
    assert op_named("fused op3.1") == 3
    assert op_named("Multiply_123") is None


def test_values_are_known_in_another_order_with_zeros_and_rounded():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    moved = np.concatenate([values[::-1] * np.float32(1 + 1e-6), np.zeros(24, np.float32)])
    found = fingerprint(values)
    assert found is not None
    assert same_values(found, fingerprint(moved))
    assert not same_values(found, fingerprint(-values))
    assert not same_values(found, fingerprint(np.maximum(values, -3.0)))
    assert not same_values(found, fingerprint(values * 1.001))
    assert fingerprint(np.array([np.inf])) is None
    assert fingerprint(np.zeros(8)) is None


# --- whose rules ---------------------------------------------------------------------------------


class Here:
    def describe(self) -> Environment:
        return Environment(runtime="onnxruntime", version="1.31.1")


@pytest.mark.parametrize(
    ("environments", "warned"),
    [
        ((), False),
        (({"runtime": "onnxruntime", "version": "1.31.1", "threads": 4},), False),
        (({"runtime": "onnxruntime", "version": "1.30.0"},), True),
        (({"runtime": "openvino", "version": "1.31.1"},), True),
    ],
)
def test_rules_of_another_runtime_or_version_are_warned_of(environments, warned, caplog):
    rules = RuleSet(name="mine", environments=environments)
    with caplog.at_level(logging.WARNING):
        assert warn_of_another_runtime(rules, Here()) is warned
    assert bool(caplog.records) is warned
    if warned:
        assert environments[0]["version"] in caplog.text
        assert "onnxruntime 1.31.1" in caplog.text
