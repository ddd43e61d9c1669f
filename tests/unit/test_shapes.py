"""The padding arithmetic against counting, and the shapes of the operators."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nn_meter.builder.nn_modules import shapes
from nn_meter.builder.nn_modules.shapes import (
    conv_output,
    same_padding,
    transposed_output,
    transposed_padding,
)
from nn_meter.errors import OddSizeError, ShapeError

SIZES = st.integers(1, 40)
KERNELS = st.integers(1, 9)
STRIDES = st.integers(1, 6)
PADDINGS = st.sampled_from(["same", "valid"])


def windows(size: int, kernel: int, stride: int) -> int:
    """How many windows fit, by trying each place."""
    return sum(1 for start in range(0, size, stride) if start + kernel <= size)


@given(SIZES, KERNELS, STRIDES)
def test_valid_gives_an_output_for_each_window_that_fits(size, kernel, stride):
    count = windows(size, kernel, stride)
    if count:
        assert conv_output(size, kernel, stride, "valid") == count
    else:
        with pytest.raises(ShapeError, match=f"kernel of {kernel} does not fit an input of {size}"):
            conv_output(size, kernel, stride, "valid")


@given(SIZES, KERNELS, STRIDES)
def test_same_gives_an_output_for_each_stride_that_starts_in_the_input(size, kernel, stride):
    assert conv_output(size, kernel, stride, "same") == len(range(0, size, stride))


@given(SIZES, KERNELS, STRIDES)
def test_same_padding_is_the_least_that_gives_the_output(size, kernel, stride):
    count = conv_output(size, kernel, stride, "same")
    least = next(zeros for zeros in range(99) if windows(size + zeros, kernel, stride) >= count)
    before, after = same_padding(size, kernel, stride)
    assert before + after == least
    assert windows(size + before + after, kernel, stride) == count
    assert after - before in (0, 1)


@given(SIZES, KERNELS, STRIDES, PADDINGS)
def test_a_transposed_convolution_has_the_input_of_the_convolution_as_its_output(
    size, kernel, stride, padding
):
    output = transposed_output(size, kernel, stride, padding)
    assert conv_output(output, kernel, stride, padding) == size


@given(SIZES, KERNELS, STRIDES, PADDINGS)
def test_transposed_padding_cuts_what_the_kernel_reaches_down_to_the_output(
    size, kernel, stride, padding
):
    reached = 1 + max(i * stride + k for i in range(size) for k in range(kernel))
    before, after, appended = transposed_padding(kernel, stride, padding)
    assert reached - before - after + appended == transposed_output(size, kernel, stride, padding)
    assert after - before in (0, 1)
    assert not (before + after and appended)
    assert appended < stride


@given(SIZES, SIZES, KERNELS, STRIDES)
def test_transposed_same_gives_stride_times_the_input(size, channels, kernel, stride):
    assert transposed_output(size, kernel, stride, "same") == size * stride


CONFIG = {"COUT": 8, "KERNEL_SIZE": 3, "PADDING": "same", "STRIDES": 2, "POOL_STRIDES": 3}


def first(cls):
    """The same operator with the channels first."""
    return type(cls.__name__, (cls,), {"layout": "channels_first"})


@pytest.mark.parametrize(
    ("cls", "shape", "output"),
    [
        (shapes.Conv, [7, 9, 4], [4, 5, 8]),
        (shapes.DwConv, [7, 9, 4], [4, 5, 4]),
        (shapes.ConvTrans, [7, 9, 4], [14, 18, 8]),
        (shapes.MaxPool, [7, 9, 4], [3, 3, 4]),
        (shapes.AvgPool, [7, 9, 4], [3, 3, 4]),
        (shapes.GlobalAvgPool, [7, 9, 4], [4]),
        (shapes.BatchNorm, [7, 9, 4], [7, 9, 4]),
        (shapes.SE, [7, 9, 4], [7, 9, 4]),
        (shapes.FC, [7, 9, 4], [7, 9, 8]),
        (shapes.FC, [12], [8]),
        (shapes.Relu, [12], [12]),
        (shapes.Reshape, [7, 9, 4], [4, 7, 9]),
        (shapes.Reshape, [12], [1, 2, 6]),
        (shapes.Add, [7, 9, 4], [7, 9, 4]),
        (shapes.Add, [[7, 9, 4], [7, 9, 4]], [7, 9, 4]),
        (shapes.Concat, [7, 9, 4], [7, 9, 8]),
        (shapes.Concat, [[7, 9, 4], [7, 9, 6]], [7, 9, 10]),
        (shapes.Concat, [12], [24]),
        (shapes.Flatten, [7, 9, 4], [252]),
        (shapes.Split, [7, 9, 4], [7, 9, 2]),
        (shapes.MatMul, [7, 9, 4], [7, 9, 8]),
        (shapes.MatMul, [12], [8]),
        (shapes.LayerNorm, [7, 9, 4], [7, 9, 4]),
        (shapes.PRelu, [12], [12]),
        (shapes.Mul, [[7, 9, 4], [7, 9, 4]], [7, 9, 4]),
        (shapes.ChannelShuffle, [7, 9, 4], [7, 9, 4]),
        (shapes.Pad, [7, 9, 4], [9, 11, 4]),
        (shapes.Resize, [7, 9, 4], [14, 18, 4]),
        (shapes.Scale, [7, 9, 4], [7, 9, 4]),
        (shapes.Mean, [7, 9, 4], [7, 9, 1]),
        (first(shapes.Mean), [4, 7, 9], [4, 7, 1]),
        (shapes.Mean, [12], [1]),
        (shapes.BMM, [[9, 9, 4], [9, 9, 4]], [9, 9, 4]),
        (first(shapes.BMM), [4, 9, 9], [4, 9, 9]),
        (shapes.RowSoftmax, [12], [12]),
        (first(shapes.MatMul), [4, 7, 9], [4, 7, 8]),
        (first(shapes.Pad), [4, 7, 9], [4, 9, 11]),
        (first(shapes.Resize), [4, 7, 9], [4, 14, 18]),
        (first(shapes.Conv), [4, 7, 9], [8, 4, 5]),
        (first(shapes.MaxPool), [4, 7, 9], [4, 3, 3]),
        (first(shapes.FC), [4, 7, 9], [4, 7, 8]),
        (first(shapes.Reshape), [4, 7, 9], [7, 9, 4]),
        (first(shapes.Concat), [4, 7, 9], [8, 7, 9]),
        (first(shapes.Concat), [12], [24]),
        (first(shapes.Split), [4, 7, 9], [2, 7, 9]),
    ],
)
def test_output_shapes_by_layout(cls, shape, output):
    assert cls(shape, CONFIG).get_output_shape() == output


def test_pooling_without_a_stride_of_its_own_takes_that_of_convolutions():
    config = {key: value for key, value in CONFIG.items() if key != "POOL_STRIDES"}
    assert shapes.MaxPool([8, 8, 4], config).get_output_shape() == [4, 4, 4]


def test_without_cout_the_channels_stay():
    config = {key: value for key, value in CONFIG.items() if key != "COUT"}
    assert shapes.Conv([8, 8, 5], config).get_output_shape() == [4, 4, 5]
    assert shapes.FC([9], config).get_output_shape() == [9]


@pytest.mark.parametrize(("kernel", "margin"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (7, 3)])
def test_padding_is_half_a_kernel_and_at_least_one(kernel, margin):
    padded = shapes.Pad([8, 9, 4], CONFIG | {"KERNEL_SIZE": kernel}).get_output_shape()
    assert padded == [8 + 2 * margin, 9 + 2 * margin, 4]


def test_an_operator_has_a_shape_and_a_config_of_its_own():
    shape, config = [8, 8, 4], {**CONFIG, "MINE": [1]}
    operator = shapes.Conv(shape, config)
    operator.input_shape[0] = 0
    operator.config["MINE"].append(2)
    assert (shape, config["MINE"]) == ([8, 8, 4], [1])


@pytest.mark.parametrize(
    ("cls", "shape"),
    [
        (shapes.Split, [4, 4, 5]),
        (shapes.Reshape, [5]),
        (shapes.ChannelShuffle, [4, 4, 5]),
        (first(shapes.Split), [5, 4, 4]),
        (first(shapes.ChannelShuffle), [5, 4, 4]),
    ],
)
def test_an_odd_size_that_must_be_halved_is_refused_by_name(cls, shape):
    with pytest.raises(OddSizeError, match="must be even, but 5 reach"):
        cls(shape, CONFIG)


@pytest.mark.parametrize(
    ("cls", "shape", "allowed"),
    [
        (shapes.Conv, [16], "a 3-D tensor"),
        (shapes.Flatten, [16], "a 3-D tensor"),
        (shapes.Pad, [16], "a 3-D tensor"),
        (shapes.Resize, [16], "a 3-D tensor"),
        (shapes.ChannelShuffle, [16], "a 3-D tensor"),
        (shapes.Softmax, [4, 4], "a 1-D or 3-D tensor"),
        (shapes.Relu, [4, 4], "a 1-D or 3-D tensor"),
        (shapes.FC, [1, 2, 3, 4], "a 1-D or 3-D tensor"),
        (shapes.Add, [[4, 4], [4, 4]], "a 1-D or 3-D tensor"),
    ],
)
def test_a_wrong_rank_is_refused_with_what_is_right(cls, shape, allowed):
    with pytest.raises(ShapeError, match=f"{cls.__name__.lower()} takes {allowed}, but "):
        cls(shape, CONFIG)
