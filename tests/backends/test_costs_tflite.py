"""Kernels cut out of TFLite models: each computes what it does inside, on LiteRT itself."""

from __future__ import annotations

import numpy as np
import pytest

from nn_meter.errors import ModelRejectedError
from nn_meter.kernel_detector.check.prepare import prepare
from nn_meter.kernel_detector.costs.cutting import Cutter
from nn_meter.kernel_detector.kernels import Kernel
from nn_meter.kernel_detector.readers import read_model

interpreters = pytest.importorskip("ai_edge_litert.interpreter")
from test_check_tflite import HW, IMAGE, KINDS, C, Model  # noqa: E402  (it skips without LiteRT)
from test_read_tflite import OPS, TYPES  # noqa: E402

KERNELS = {
    "stem": ["CONV_2D_0"],
    "block#1": ["CONV_2D_2", "ADD_3"],
    "block#2": ["CONV_2D_4", "ADD_5"],
    "up": ["TRANSPOSE_CONV_6"],
    "pool": ["MAX_POOL_2D_7", "LOGISTIC_8"],
}


def half(model, *shape):
    """A weight of halves, which an op that is folded away makes floats."""
    held = np.linspace(-0.5, 0.5, int(np.prod(shape)), dtype=np.float16)
    return model.add_op(
        OPS.DEQUANTIZE, model.tensor("half", list(shape), TYPES.FLOAT16, held), shape=list(shape)
    )


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    folder = tmp_path_factory.mktemp("residual")
    model = Model()
    first = model.conv(model.x, KINDS.RELU)
    weight = half(model, C, 3, 3, C)  # operator 1
    place = model.graph.operators[0]
    one = model.add(model.conv(first), first, KINDS.RELU)
    two = model.add(model.conv(one), one, KINDS.RELU)
    model.graph.operators[2].inputs[1] = weight
    assert place.inputs[1] != weight
    last = model.add_op(OPS.LOGISTIC, model.pool(model.up(two, KINDS.RELU6)))
    path = model.save(folder / "residual.tflite", last)
    graph = read_model(path)
    assert [op.name for op in graph.ops] == [op for ops in KERNELS.values() for op in ops]
    (folder / "copy").mkdir()
    copy = prepare(path, graph, folder / "copy")
    kernels = {
        name: Kernel(name=name, type=name, operators=(), ops=tuple(ops), inputs=(), outputs=())
        for name, ops in KERNELS.items()
    }
    return Cutter(copy, graph, list(kernels.values())), kernels, copy


def run(path, feeds, *, inside=False):
    """Outputs of a model by the names of its tensors; of all its tensors."""
    plain = interpreters.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    asked = {"experimental_op_resolver_type": plain, "experimental_preserve_all_tensors": True}
    found = interpreters.Interpreter(str(path), **(asked if inside else {}))
    found.allocate_tensors()
    given = found.get_input_details()
    assert {detail["name"] for detail in given} == set(feeds)
    for detail in given:
        found.set_tensor(detail["index"], feeds[detail["name"]])
    found.invoke()
    if not inside:
        details = found.get_output_details()
        return {detail["name"]: found.get_tensor(detail["index"]).copy() for detail in details}
    values = {}
    for detail in found.get_tensor_details():
        if detail["name"].startswith(("op", "in")):
            values[detail["name"]] = found.get_tensor(detail["index"]).copy()
    return values


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_computes_what_it_does_inside_with_what_feeds_it_and_without(
    residual, name, tmp_path
):
    cutter, kernels, copy = residual
    inside = run(copy.path, dict(copy.inputs), inside=True)
    cut = cutter.cut(kernels[name])
    for number, excerpt in enumerate(cut.excerpts()):
        path = excerpt.write(tmp_path / str(number))
        assert path.suffix == ".tflite"
        given = read_model(path).inputs
        assert [list(inside[each].shape[1:]) for each in given] == list(excerpt.shapes)
        for tensor, value in run(path, {each: inside[each] for each in given}).items():
            if excerpt is cut.alone:
                np.testing.assert_allclose(value, inside[tensor], rtol=1e-4, atol=1e-5)
            assert value.shape == inside[tensor].shape
    ops = [op.type for op in read_model(cut.alone.write(tmp_path / "alone")).ops]
    assert [op for op in ops if op != "RELU6"] == [op.rpartition("_")[0] for op in KERNELS[name]]


def test_what_feeds_a_kernel_is_the_heavy_op_before_it(residual, tmp_path):
    cutter, kernels, _ = residual
    assert cutter.cut(kernels["stem"]).feeding is None
    feeding = cutter.cut(kernels["block#2"]).feeding.write(tmp_path / "feeding")
    assert [op.type for op in read_model(feeding).ops] == ["CONV_2D"]
    through = cutter.cut(kernels["pool"]).feeding.write(tmp_path / "through")
    assert [op.type for op in read_model(through).ops] == ["TRANSPOSE_CONV", "RELU6"]


def test_the_whole_computes_what_the_copy_does(residual, tmp_path):
    cutter, _, copy = residual
    found = run(cutter.whole().write(tmp_path / "whole"), dict(copy.inputs))
    expected = run(copy.path, dict(copy.inputs))
    assert set(found) == set(expected)
    for tensor, value in expected.items():
        np.testing.assert_array_equal(found[tensor], value)


def test_equal_parts_have_one_key_whatever_their_weights_hold(tmp_path):
    model = Model()
    x = model.x
    for _ in range(3):
        x = model.conv(x)
    path = model.save(tmp_path / "row.tflite", model.conv(x, KINDS.RELU))
    graph = read_model(path)
    (tmp_path / "copy").mkdir()
    cutter = Cutter(prepare(path, graph, tmp_path / "copy"), graph, [])
    first, second, third, fourth = (cutter.alone(op.name) for op in graph.ops)
    assert first.key == second.key == third.key != fourth.key
    assert first.weights == fourth.weights == (C * 9 * C + C) * 4
    assert first.shapes == [[HW, HW, C]]


def test_a_call_is_a_model(residual, tmp_path):
    path = residual[0].call().write(tmp_path / "call")
    (found,) = run(path, {"x": np.float32([[-1.5]])}).values()
    assert found.tolist() == [[0.0]]


def test_what_backends_cannot_feed_is_refused_by_name(tmp_path):
    model = Model()
    where = model.add_op(OPS.ARG_MAX, model.x, model.tensor("axis", [], TYPES.INT32, np.int32(3)))
    model.graph.tensors[where].type = TYPES.INT64
    model.graph.tensors[where].shape = IMAGE[:3]
    options = model.add_op(OPS.ADD, where, where, shape=IMAGE[:3])
    model.graph.tensors[options].type = TYPES.INT64
    path = model.save(tmp_path / "where.tflite", options)
    graph = read_model(path)
    (tmp_path / "copy").mkdir()
    cutter = Cutter(prepare(path, graph, tmp_path / "copy"), graph, [])
    with pytest.raises(ModelRejectedError, match=r"where\.tflite: op0\.0 is int64 of shape"):
        cutter.alone(graph.ops[1].name).make()
