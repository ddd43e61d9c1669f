"""Operators in graphs, whatever way a framework writes them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
from hand_graphs import IMAGE, Builder

from nn_meter.errors import ConfigError
from nn_meter.kernel_detector.patterns import patterns, read_patterns
from nn_meter.kernel_detector.recognition import Recognized, recognize
from nn_meter.registry.builtin import builtin_entries

Write = Callable[[Builder, str], str]


def operators(b: Builder, *outputs: str) -> list[str]:
    return [node.operator for node in recognize(b.graph(*outputs)).nodes]


def written(write: Write, shape: tuple[int, ...] = IMAGE, **how: str) -> list[str]:
    b = Builder(**how)
    return operators(b, write(b, b.input(shape)))


def relu6(b: Builder, x: str) -> str:
    return b.op("Clip", x, b.constant(0.0), b.constant(6.0))


def plus_three(b: Builder, x: str) -> str:
    return relu6(b, b.number("Add", x, 3))


def squeeze_excite(
    b: Builder,
    x: str,
    *,
    gate: Write = lambda b, x: b.op("Sigmoid", x),
    activation: Write = lambda b, x: b.relu(x),
    reshape: bool = False,
) -> str:
    y = b.op("GlobalAveragePool", x, shape=(1, 16, 1, 1))
    if reshape:
        y = b.op("Reshape", b.op("Squeeze", y, shape=(1, 16)), shape=(1, 16, 1, 1))
    y = activation(b, b.conv(y, 1, 4))
    return b.op("Mul", x, gate(b, b.conv(y, 1, 16)), shape=IMAGE)


def se_of_fcs(b: Builder, x: str) -> str:
    y = b.op("ReduceMean", x, shape=(1, 16), axes=[2, 3], keepdims=0)
    y = b.relu(b.op("Gemm", y, b.constant(shape=(16, 4)), b.constant(shape=(4,)), shape=(1, 4)))
    y = b.op("Gemm", y, b.constant(shape=(4, 16)), b.constant(shape=(16,)), shape=(1, 16))
    y = b.op("Reshape", b.op("HardSigmoid", y, alpha=1 / 6), shape=(1, 16, 1, 1))
    return b.op("Mul", y, x, shape=IMAGE)


def hard_sigmoid(b: Builder, x: str) -> str:
    return b.number("Div", plus_three(b, x), 6)


def erf_gate(b: Builder, x: str) -> str:
    return b.number("Add", b.op("Erf", b.number("Div", x, 2**0.5)), 1)


def tanh_gate(b: Builder, x: str) -> str:
    cube = b.number("Mul", b.number("Pow", x, 3), 0.044715)
    inner = b.number("Mul", b.op("Add", x, cube), (2 / 3.14159265) ** 0.5)
    return b.number("Add", b.op("Tanh", inner), 1)


def layer_norm(b: Builder, x: str) -> str:
    centred = b.op("Sub", x, b.op("ReduceMean", x, axes=[-1]))
    squares = b.op("ReduceMean", b.number("Pow", centred, 2), axes=[-1])
    y = b.op("Div", centred, b.op("Sqrt", b.number("Add", squares, 1e-5)))
    return b.op("Add", b.op("Mul", y, b.constant(shape=(8,))), b.constant(shape=(8,)))


def layer_norm_by_a_factor(b: Builder, x: str, *, offset: bool = True) -> str:
    """As Keras has it: one factor for what is normalized and for its mean."""
    axis = b.constant([-1])
    mean = b.op("MEAN", x, axis)
    variance = b.op("MEAN", b.op("SQUARED_DIFFERENCE", x, mean), axis)
    inverse = b.op("RSQRT", b.number("ADD", variance, 1e-6))
    factor = b.op("MUL", inverse, b.constant(shape=(8,)))
    shift = b.op("MUL", b.op("NEG", mean), factor)
    if offset:
        shift = b.op("ADD", shift, b.constant(shape=(8,)))
    return b.op("ADD", b.op("MUL", x, factor), shift)


def shuffle(b: Builder, x: str, perm: tuple[int, ...] = (0, 2, 1, 3, 4)) -> str:
    y = b.op("Reshape", x, shape=(1, 4, 4, 8, 8))
    return b.op("Reshape", b.op("Transpose", y, perm=list(perm)), shape=IMAGE)


ONE = {
    "hswish as one op": ("hswish", lambda b, x: b.op("HardSwish", x)),
    "hswish: (x * r) / 6": (
        "hswish",
        lambda b, x: b.number("Div", b.op("Mul", x, plus_three(b, x)), 6),
    ),
    "hswish: (x * r) * 1/6": (
        "hswish",
        lambda b, x: b.number("Mul", b.op("Mul", x, plus_three(b, x)), 1 / 6),
    ),
    "hswish: x * (r / 6)": ("hswish", lambda b, x: b.op("Mul", hard_sigmoid(b, x), x)),
    "hswish: (x / 6) * r": (
        "hswish",
        lambda b, x: b.op("Mul", b.number("Mul", x, 0.16667), plus_three(b, x)),
    ),
    "hswish by hard sigmoid": (
        "hswish",
        lambda b, x: b.op("Mul", x, b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)),
    ),
    "hard sigmoid as one op": ("hardsigmoid", lambda b, x: b.op("HardSigmoid", x)),
    "hard sigmoid by steps": ("hardsigmoid", hard_sigmoid),
    "swish as one op": ("swish", lambda b, x: b.op("Swish", x)),
    "swish": ("swish", lambda b, x: b.op("Mul", x, b.op("Sigmoid", x))),
    "swish, the other way": ("swish", lambda b, x: b.op("Mul", b.op("Sigmoid", x), x)),
    "gelu as one op": ("gelu", lambda b, x: b.op("Gelu", x)),
    "gelu by tanh": (
        "gelu",
        lambda b, x: b.op("Mul", b.number("Mul", x, 0.5), tanh_gate(b, x)),
    ),
    "relu6 by inputs": ("relu6", relu6),
    "relu6 by attributes": ("relu6", lambda b, x: b.op("Clip", x, min=0.0, max=6.0)),
    "relu6 by min and max": (
        "relu6",
        lambda b, x: b.number("Min", b.number("Max", x, 0), 6),
    ),
    "relu as clip": ("relu", lambda b, x: b.op("Clip", x, min=0.0)),
    "se": ("se", squeeze_excite),
    "se with views": ("se", lambda b, x: squeeze_excite(b, x, reshape=True)),
    "se with a hard sigmoid by steps": (
        "se",
        lambda b, x: squeeze_excite(b, x, gate=hard_sigmoid),
    ),
    "se with swish": (
        "se",
        lambda b, x: squeeze_excite(
            b, x, activation=lambda b, y: b.op("Mul", y, b.op("Sigmoid", y))
        ),
    ),
    "se of fully connected layers": ("se", se_of_fcs),
    "channel shuffle": ("channelshuffle", shuffle),
    "layer norm by steps": ("layernorm", layer_norm),
    "layer norm by a factor": ("layernorm", layer_norm_by_a_factor),
    "layer norm by a factor, without an offset": (
        "layernorm",
        lambda b, x: layer_norm_by_a_factor(b, x, offset=False),
    ),
    "layer norm as one op": ("layernorm", lambda b, x: b.op("LayerNormalization", x)),
    "depthwise": ("dwconv", lambda b, x: b.conv(x, group=16)),
    "grouped": ("gconv", lambda b, x: b.conv(x, group=4)),
    "convolution": ("conv", lambda b, x: b.conv(x)),
    "transposed": (
        "convtrans",
        lambda b, x: b.op("ConvTranspose", x, b.constant(shape=(16, 16, 2, 2))),
    ),
    "fc with a bias": (
        "fc",
        lambda b, x: b.op(
            "Add", b.op("MatMul", x, b.constant(shape=(8, 8))), b.constant(shape=(8,))
        ),
    ),
    "fc": ("fc", lambda b, x: b.op("MatMul", x, b.constant(shape=(8, 8)))),
    "product of two tensors": ("bmm", lambda b, x: b.op("MatMul", x, x)),
    "softmax over the last axis": ("rowsoftmax", lambda b, x: b.op("Softmax", x, axis=-1)),
    "softmax over the channels": ("softmax", lambda b, x: b.op("Softmax", x, axis=1)),
    "add": ("add", lambda b, x: b.op("Add", x, b.input())),
    "add of a number for each channel": (
        "bias",
        lambda b, x: b.op("Add", x, b.constant(shape=(1, 16, 1, 1))),
    ),
    "mul by a number for each channel": (
        "scale",
        lambda b, x: b.op("Mul", b.constant(shape=(16, 1, 1)), x),
    ),
    "mul by a number": ("mulscalar", lambda b, x: b.number("Mul", x, 2)),
    "mul by a number on an axis": ("mulone", lambda b, x: b.op("Mul", b.constant(shape=(1,)), x)),
    "div by a number on an axis": ("mulone", lambda b, x: b.op("Div", x, b.constant(shape=(1, 1)))),
    "a number on an axis by x": ("mulc", lambda b, x: b.op("Div", b.constant(shape=(1,)), x)),
    "div by a number": ("mulscalar", lambda b, x: b.number("Div", x, 2)),
    "add of a number": ("addscalar", lambda b, x: b.number("Add", x, 2)),
    "sub of a number for each channel": (
        "center",
        lambda b, x: b.op("Sub", x, b.constant(shape=(1, 16, 1, 1))),
    ),
    "mean along the last axis": (
        "mean",
        lambda b, x: b.op("ReduceMean", x, shape=(1, 16, 8, 1), axes=[-1]),
    ),
    "square": ("square", lambda b, x: b.op("SQUARE", x)),
    "power of two": ("square", lambda b, x: b.number("Pow", x, 2)),
    "power": ("pow", lambda b, x: b.number("Pow", x, 3)),
    "negative": ("neg", lambda b, x: b.op("Neg", x)),
    "padding": ("pad", lambda b, x: b.op("Pad", x, b.constant([1] * 8))),
    "padding with zeros": (
        "pad",
        lambda b, x: b.op("Pad", x, b.constant([1] * 8), b.constant(0.0)),
    ),
    "padding with something else": (
        "padc",
        lambda b, x: b.op("Pad", x, b.constant([1] * 8), b.constant(-1.0)),
    ),
    "padding by a mirror": ("padc", lambda b, x: b.op("Pad", x, mode="reflect")),
    "add of a number for each column": (
        "addc",
        lambda b, x: b.op("Add", x, b.constant(shape=(8,))),
    ),
    "global average as a mean": (
        "globalavgpool",
        lambda b, x: b.op("ReduceMean", x, shape=(1, 16, 1, 1), axes=[2, -1]),
    ),
    "flatten as a reshape": ("flatten", lambda b, x: b.op("Reshape", x, shape=(1, 1024))),
    "reshape": ("reshape", lambda b, x: b.op("Reshape", x, shape=(1, 16, 64))),
}


@pytest.mark.parametrize(("operator", "write"), ONE.values(), ids=ONE)
def test_one_operator(operator: str, write: Write) -> None:
    """Each way to write an operator is that operator and nothing else."""
    assert written(write) == [operator]


@pytest.mark.parametrize("order", list(permutations(("x", "gate", "half"))), ids="-".join)
def test_gelu_by_erf_in_any_order(order: tuple[str, ...]) -> None:
    """Three factors make a product in twelve ways; these are six, the mirrored ones the rest."""

    def write(b: Builder, x: str) -> str:
        factors = {"x": x, "gate": erf_gate(b, x), "half": b.constant(0.5)}
        first, second, third = (factors[name] for name in order)
        if order[0] == "half":
            first, second, third = third, second, first
        return b.op("Mul", b.op("Mul", first, second, shape=IMAGE), third, shape=IMAGE)

    assert written(write) == ["gelu"]


def test_hard_swish_as_keras_writes_it_for_tflite() -> None:
    """The addition's activation is its own: it ends in the middle of the composite."""

    def write(b: Builder, x: str) -> str:
        y = b.op("ADD", x, b.constant(3.0), fused_activation_function="RELU6")
        return b.op("MUL", x, b.op("MUL", y, b.constant(1 / 6)))

    assert written(write, (1, 8, 8, 16), format="tflite", layout="channels_last") == ["hswish"]


NOT = {
    "hswish that clips elsewhere": lambda b, x: b.number(
        "Div", b.op("Mul", x, b.op("Clip", b.number("Add", x, 3), min=0.0, max=5.0)), 6
    ),
    "hswish of two tensors": lambda b, x: b.number(
        "Div", b.op("Mul", b.relu(x), plus_three(b, x)), 6
    ),
    "swish of two tensors": lambda b, x: b.op("Mul", b.relu(x), b.op("Sigmoid", x)),
    "hard sigmoid of another slope": lambda b, x: b.op("Mul", x, b.op("HardSigmoid", x)),
    "a transpose that shuffles no channels": lambda b, x: shuffle(b, x, (0, 3, 1, 2, 4)),
}


@pytest.mark.parametrize("write", NOT.values(), ids=NOT)
def test_what_looks_like_it_and_is_not(write: Write) -> None:
    found = written(write)
    assert len(found) > 1
    assert not {"hswish", "swish", "channelshuffle"} & set(found)


def test_an_intermediate_tensor_that_others_read_keeps_a_composite_apart() -> None:
    b = Builder()
    x = b.input()
    gate = b.op("Sigmoid", x)
    product = b.op("Mul", x, gate)
    assert operators(b, product) == ["swish"]
    assert operators(b, product, gate) == ["sigmoid", "mul"]
    assert operators(b, product, b.relu(gate)) == ["sigmoid", "mul", "relu"]


def test_composites_can_be_left_apart() -> None:
    b = Builder()
    graph = b.graph(squeeze_excite(b, b.input(), gate=hard_sigmoid))
    whole = recognize(graph)
    assert [node.operator for node in whole.nodes] == ["se"]
    parts = recognize(graph, apart={(whole.nodes[0].name, "se")})
    names = ["globalavgpool", "conv", "relu", "conv", "hardsigmoid", "mul"]
    assert [node.operator for node in parts.nodes] == names


def test_no_ops_go_with_what_they_hand_on() -> None:
    b = Builder()
    x = b.op("Dropout", b.conv(b.input()))
    found = recognize(b.graph(b.op("Identity", b.relu(x))))
    assert [(node.operator, node.ops) for node in found.nodes] == [
        ("conv", ("op0", "op1")),
        ("relu", ("op2", "op3")),
    ]
    assert found.nodes[1].is_kept
    assert found.readers == [(1,), ()]


def test_a_no_op_inside_a_composite() -> None:
    b = Builder()
    x = b.input()
    y = b.op("Mul", x, b.op("Identity", b.op("Sigmoid", x)))
    assert [node.ops for node in recognize(b.graph(y)).nodes] == [("op0", "op1", "op2")]


def test_an_activation_that_an_op_has_of_its_own_is_a_node() -> None:
    b = Builder("tflite", "channels_last")
    x = b.input((1, 8, 8, 16))
    weight = b.constant(shape=(32, 3, 3, 16))
    y = b.op(
        "CONV_2D", x, weight, shape=(1, 8, 8, 32), stride_h=2, stride_w=2,
        fused_activation_function="RELU6",
    )  # fmt: skip
    found = recognize(b.graph(y))
    assert [node.operator for node in found.nodes] == ["conv", "relu6"]
    assert [node.ops for node in found.nodes] == [("op0",), ("op0",)]
    assert found.nodes[1].inside == 0
    assert found.nodes[1].outputs == (y,)
    assert found.nodes[0].attributes == {
        "kernel_size": [3, 3],
        "strides": [2, 2],
        "in_channels": 16,
        "out_channels": 32,
        "groups": 1,
    }


TFLITE = {
    "dwconv": ("DEPTHWISE_CONV_2D", (1, 3, 3, 16)),
    "gconv": ("CONV_2D", (16, 3, 3, 4)),
    "conv": ("CONV_2D", (16, 1, 1, 16)),
    "fc": ("FULLY_CONNECTED", (16, 16)),
}


@pytest.mark.parametrize("operator", TFLITE)
def test_tflite_ops_with_weights(operator: str) -> None:
    op_type, weight = TFLITE[operator]
    b = Builder("tflite", "channels_last")
    y = b.op(op_type, b.input((1, 8, 8, 16)), b.constant(shape=weight))
    assert operators(b, y) == [operator]


@pytest.mark.parametrize(
    ("op_type", "operator"),
    [
        ("HARD_SWISH", "hswish"),
        ("LOGISTIC", "sigmoid"),
        ("AVERAGE_POOL_2D", "avgpool"),
        ("GELU", "gelu"),
        ("RELU6", "relu6"),
        ("RESIZE_BILINEAR", "resize"),
        ("SOFTMAX", "softmax"),
    ],
)
def test_tflite_ops(op_type: str, operator: str) -> None:
    assert written(lambda b, x: b.op(op_type, x), format="tflite") == [operator]


def test_attributes_of_channels_first() -> None:
    b = Builder()
    found = recognize(b.graph(b.conv(b.input(), 1, 32)))
    assert found.nodes[0].attributes == {
        "kernel_size": [1, 1],
        "strides": [1, 1],
        "in_channels": 16,
        "out_channels": 32,
        "groups": 1,
    }


def test_unknown_ops_stay_under_their_own_type() -> None:
    b = Builder()
    found = recognize(b.graph(b.op("my.Op", b.op("my.Op", b.relu(b.input())))))
    assert [node.operator for node in found.nodes] == ["relu", "my.Op", "my.Op"]
    assert found.unknown == {"my.Op": 2}


def test_shapes_that_are_not_known_stop_nothing() -> None:
    b = Builder()
    x = b.op("Reshape", shuffle(b, b.input()))
    graph = b.graph(x)
    for name, tensor in list(b.tensors.items()):
        if not tensor.is_constant:
            b.tensors[name] = type(tensor)(name=name)
    assert isinstance(recognize(graph), Recognized)


def test_all_operators_of_the_project_can_be_recognized() -> None:
    own = {entry.name for entry in builtin_entries("operator")}
    assert own - patterns().names == {"matmul"}  # which is a fully connected layer without a bias
    assert "matmul" in patterns().stands_for["fc"]


def test_each_composite_has_a_test() -> None:
    tested = {operator for operator, _ in ONE.values()} | {"gelu", "rmsnorm"}
    assert {composite.operator for composite in patterns().composites} <= tested


def test_bad_patterns_are_refused() -> None:
    with pytest.raises(ConfigError, match="means nothing"):
        read_patterns("operators: []\nhelpers: {a: ['x.y']}\ncomposites: []")


def test_behind_a_fully_connected_layer_channels_are_last() -> None:
    def factor(b: Builder, x: str) -> str:
        return b.op("Mul", x, b.constant(shape=(8,)))

    b = Builder()
    fc = b.op("MatMul", b.input(), b.constant(shape=(8, 8)))
    fc = b.op("Add", fc, b.constant(shape=(8,)))
    assert operators(b, factor(b, fc)) == ["fc", "scale"]
    b = Builder()
    assert operators(b, factor(b, b.op("Add", b.relu(b.input()), b.constant(shape=(8,))))) == [
        *("relu", "addc", "mulc"),
    ]
    b = Builder()
    both = b.input()
    assert operators(b, factor(b, b.op("MatMul", both, both))) == ["bmm", "mulc"]


@pytest.mark.parametrize("how", ["div", "one over", "reciprocal"])
def test_rms_normalization(how: str) -> None:
    b = Builder()
    x = b.input((1, 16, 8))
    mean = b.op("ReduceMean", b.number("Pow", x, 2), axes=[-1])
    root = b.op("Sqrt", b.number("Add", mean, 1e-6))
    if how == "div":
        y = b.op("Div", x, root)
    elif how == "one over":
        y = b.op("Mul", x, b.op("Div", b.constant(1.0), root))
    else:
        y = b.op("Mul", b.op("Reciprocal", root), x)
    assert operators(b, b.op("Mul", y, b.constant(shape=(8,)))) == ["rmsnorm"]
