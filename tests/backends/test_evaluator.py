"""The quick operators of the reference evaluator against the evaluator's own, slow ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from nn_meter.builder.nn_modules.onnx import evaluator
from nn_meter.builder.nn_modules.onnx.evaluator import evaluate


def one_node(op_type, shape, weights=(), n_outputs=1, **attributes):
    """A model of one node; None among the weights is an input that is left out."""
    tensors = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights) if w is not None]
    outputs = [f"y{i}" for i in range(n_outputs)]
    inputs = ["x", *("" if w is None else f"w{i}" for i, w in enumerate(weights))]
    node = helper.make_node(op_type, inputs, outputs, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def used(monkeypatch):
    """Names of the quick operators that ran."""
    names = []
    for op in evaluator._QUICK:

        def run(self, *args, _run=op._run, _name=op.__name__, **kwargs):
            names.append(_name)
            return _run(self, *args, **kwargs)

        monkeypatch.setattr(op, "_run", run)
    return names


def agrees(model, *feeds):
    slow = ReferenceEvaluator(model)
    expected = slow.run(None, dict(zip(slow.input_names, feeds, strict=True)))
    found = evaluate(model, feeds)
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [2, 3]},
        {"kernel_shape": [3, 2], "strides": [2, 3]},
        {"kernel_shape": [3, 3], "pads": [1, 0, 1, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    ],
)
def test_pooling(op_type, attributes, used):
    agrees(one_node(op_type, [2, 3, 7, 8], **attributes), numbers(2, 3, 7, 8))
    assert set(used) == {op_type}


def test_max_pooling_with_more_padding_behind(used):
    """Against padding by hand, as onnx's own is wrong with it at stride 1 (1.23)."""
    x = numbers(1, 2, 6, 7)
    attributes = {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}
    (found,) = evaluate(one_node("MaxPool", x.shape, **attributes), [x])
    padded = np.pad(x, [(0, 0), (0, 0), (0, 1), (0, 1)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 2), axis=(2, 3))
    np.testing.assert_array_equal(found, windows.max(axis=(4, 5)))
    assert used == ["MaxPool"]


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 2, 0, 1]])
def test_average_with_the_padding_counted(pads, used):
    attributes = {"kernel_shape": [3, 3], "pads": pads, "count_include_pad": 1}
    agrees(one_node("AveragePool", [1, 2, 6, 7], **attributes), numbers(1, 2, 6, 7))
    assert set(used) == {"AveragePool"}


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 3]},
        {"pads": [1, 0, 1, 2]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        {"strides": [3, 4], "output_padding": [0, 2]},
    ],
)
def test_transposed_convolution(attributes, used):
    kernel, bias = numbers(4, 5, 3, 2, seed=1), numbers(5, seed=2)
    for weights in ((kernel,), (kernel, bias)):
        model = one_node("ConvTranspose", [2, 4, 5, 6], weights, kernel_shape=[3, 2], **attributes)
        agrees(model, numbers(2, 4, 5, 6))
    assert set(used) == {"ConvTranspose"}


def test_transposed_convolution_in_groups(used):
    """Against two convolutions, as onnx's own is wrong with groups (1.23)."""
    x, kernel, bias = numbers(2, 4, 5, 6), numbers(4, 3, 3, 3, seed=1), numbers(6, seed=2)
    attributes = {"strides": [2, 2], "kernel_shape": [3, 3]}
    (whole,) = evaluate(
        one_node("ConvTranspose", x.shape, (kernel, bias), group=2, **attributes), [x]
    )
    for part in range(2):
        inputs, outputs = slice(2 * part, 2 * part + 2), slice(3 * part, 3 * part + 3)
        half = one_node(
            "ConvTranspose", [2, 2, 5, 6], (kernel[inputs], bias[outputs]), **attributes
        )
        (expected,) = evaluate(half, [x[:, inputs]])
        np.testing.assert_allclose(whole[:, outputs], expected, rtol=1e-5, atol=1e-5)
    assert set(used) == {"ConvTranspose"}


NEAREST = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}


def resize(*scales, sizes=None, **attributes):
    weights = [None, None if sizes else np.array(scales, np.float32)]
    weights += [np.array(sizes, np.int64)] if sizes else []
    return one_node("Resize", [1, 2, 5, 6], weights, **{**NEAREST, **attributes})


@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 3, 1), (1, 2, 1.5, 0.5), (1, 1, 0.7, 2.4)])
def test_nearest_neighbours(scales, used):
    agrees(resize(*scales), numbers(1, 2, 5, 6))
    assert set(used) == {"Resize"}


def test_doubling_of_real_size_is_quick():
    import time

    x = numbers(1, 256, 28, 28)
    weights = (None, np.array([1, 1, 2, 2], np.float32))
    start = time.process_time()
    (found,) = evaluate(one_node("Resize", x.shape, weights, **NEAREST), [x])
    assert time.process_time() - start < 3.0  # older versions of onnx go number by number
    np.testing.assert_array_equal(found, x.repeat(2, axis=2).repeat(2, axis=3))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (resize(1, 1, 2, 2, coordinate_transformation_mode="half_pixel"), (1, 2, 5, 6)),
        (resize(1, 1, 1.5, 2, nearest_mode="ceil"), (1, 2, 5, 6)),
        (resize(1, 1, 2, 2, mode="linear"), (1, 2, 5, 6)),
        (resize(2, 2, axes=[2, 3]), (1, 2, 5, 6)),
        (resize(sizes=[1, 2, 8, 12]), (1, 2, 5, 6)),
        (one_node("MaxPool", [1, 2, 6, 6], kernel_shape=[2, 2], n_outputs=2), (1, 2, 6, 6)),
        (one_node("MaxPool", [1, 2, 6, 6], kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
         (1, 2, 6, 6)),
        (one_node("MaxPool", [1, 2, 8], kernel_shape=[3]), (1, 2, 8)),
        (one_node("MaxPool", [1, 2, 6, 6], kernel_shape=[2, 2], dilations=[2, 2]), (1, 2, 6, 6)),
        (one_node("AveragePool", [1, 2, 6, 6], kernel_shape=[3, 3], ceil_mode=1, strides=[2, 2]),
         (1, 2, 6, 6)),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_the_evaluator(model, shape, used):
    agrees(model, numbers(*shape))
    assert used == []


def test_a_transposed_convolution_of_real_size_is_quick():
    import time

    kernel = numbers(256, 256, 3, 3)
    model = one_node("ConvTranspose", [1, 256, 28, 28], (kernel,), kernel_shape=[3, 3])
    start = time.process_time()
    evaluate(model, [numbers(1, 256, 28, 28)])
    assert time.process_time() - start < 3.0  # onnx's own takes 5 to 10 s


def test_feeds_must_be_as_many_as_inputs():
    model = one_node("Relu", [1, 3])
    with pytest.raises(ValueError, match="zip"):
        evaluate(model, [])
    assert isinstance(model, onnx.ModelProto)
