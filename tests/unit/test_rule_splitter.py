"""Kernels by rules: which finding decides, and what can never be put together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hand_graphs import IMAGE, Builder, rules
from hypothesis import given, settings
from hypothesis import strategies as st

from nn_meter.builder.backend_meta.fusion_rule_tester.testcase import BaseTestCase
from nn_meter.errors import OperatorError, ResultFileError
from nn_meter.fusion_rules.read import read_shipped
from nn_meter.kernel_detector import RuleSplitter
from nn_meter.kernel_detector.graph import Graph, Op, Tensor
from nn_meter.kernel_detector.kernels import Kernel


def types(graph: Graph, given: Any, **how: Any) -> list[str]:
    return [kernel.type for kernel in RuleSplitter(given, **how).split(graph)]


def when(alone: bool, **situations: bool) -> dict[str, Any]:
    """A rule with situations: ``context_conv=True``."""
    inner = {name.replace("_", "/"): {"obey": obey} for name, obey in situations.items()}
    return {"obey": alone, "when": inner}


# --- pairs ---------------------------------------------------------------------------------------


def test_a_kernel_is_asked_by_its_heavy_op() -> None:
    b = Builder()
    graph = b.graph(b.relu(b.bn(b.conv(b.input()))))
    assert types(graph, rules(conv_bn=True, conv_relu=True, bn_relu=False)) == ["conv-bn-relu"]
    assert types(graph, rules(conv_bn=True, conv_relu=False, bn_relu=True)) == ["conv-bn", "relu"]
    assert types(graph, rules(conv_bn=False, bn_relu=True)) == ["conv", "bn-relu"]


def test_what_stands_before_the_heavy_op_does_not_speak_for_it() -> None:
    b = Builder()
    x = b.op("Pad", b.input())
    graph = b.graph(b.relu(b.conv(x, group=16)))
    assert types(graph, rules(pad_dwconv=True, dwconv_relu=True)) == ["pad-dwconv-relu"]


def test_behind_an_activation_the_heavy_op_does_not_speak_alone() -> None:
    """``BF_conv_add`` is about a convolution that has no activation yet."""

    def graph(activation: str) -> Graph:
        b = Builder()
        x = b.conv(b.input())
        return b.graph(b.relu(b.op("Add", b.op(activation, b.conv(b.conv(x))), x)))

    given = rules(conv_relu=True, conv_add=True, relu_add=False, conv_tanh=True)
    assert types(graph("Identity"), given)[-1] == "conv-add-relu"
    assert types(graph("Relu"), given)[-2:] == ["add", "relu"]
    assert types(graph("Tanh"), given)[-3:] == ["conv-tanh", "add", "relu"]
    given |= {"BF_relu_add": {"obey": True}}
    assert types(graph("Relu"), given)[-1] == "conv-relu-add-relu"


def test_of_two_alike_one_that_executes_nothing_is_in_the_other_ones_kernel() -> None:
    b = Builder()
    x, y = b.input(), b.input()
    inner = b.op("Concat", x, y, shape=(1, 32, 8, 8), axis=1)
    graph = b.graph(b.relu(b.op("Concat", inner, x, shape=(1, 48, 8, 8), axis=1)))
    free = {"obey": None, "verdict": "free", "free": ["concat"]}
    given = {"BF_concat_concat": free, "BF_concat_relu": free}
    assert types(graph, given) == ["concat-concat", "relu"]


def test_linear_ops_join_a_heavy_one_only_next_to_it() -> None:
    def fc(b: Builder, x: str) -> str:
        return b.op("Gemm", x, b.constant(shape=(8, 8)), shape=(1, 8))

    b = Builder()
    x = b.input((1, 8))
    given = rules(fc_fc=True, fc_relu=True, relu_fc=False)
    assert types(b.graph(fc(b, fc(b, x))), given) == ["fc-fc"]
    b = Builder()
    x = b.input((1, 8))
    assert types(b.graph(fc(b, b.relu(fc(b, x)))), given) == ["fc-relu", "fc"]


def test_a_constant_scale_folds_as_a_batch_normalization() -> None:
    b = Builder()
    x = b.op("Mul", b.conv(b.input()), b.constant(shape=(1, 16, 1, 1)))
    graph = b.graph(b.op("Add", x, b.constant(shape=(1, 16, 1, 1))))
    assert types(graph, rules(conv_bn=True)) == ["conv-scale-bias"]
    assert types(graph, rules(conv_bn=True, conv_scale=False)) == ["conv", "scale", "bias"]


def test_a_constant_operand_elsewhere_is_one_of_the_like_op_alone() -> None:
    b = Builder()
    graph = b.graph(b.relu(b.number("Add", b.op("MaxPool", b.input()), 1)))
    assert types(graph, rules(add_relu=when(True, context=False))) == ["maxpool", "addscalar-relu"]


def test_missing_and_undecided_rules_join_nothing_and_are_recorded() -> None:
    b = Builder()
    graph = b.graph(b.op("Tanh", b.relu(b.conv(b.input()))))
    splitter = RuleSplitter(rules(conv_relu=None))
    assert [kernel.type for kernel in splitter.split(graph)] == ["conv", "relu", "tanh"]
    assert [(d.operators, d.rule, d.fused, d.why) for d in splitter.decisions] == [
        (("conv", "relu"), "BF_conv_relu", False, "the rule cannot tell"),
        (("relu", "tanh"), "BF_relu_tanh", False, "there is no rule"),
    ]


def test_a_grouped_convolution_has_rules_of_its_own_or_those_of_conv_alone() -> None:
    b = Builder()
    graph = b.graph(b.relu(b.conv(b.input(), group=4)))
    assert types(graph, rules(gconv_relu=True, conv_relu=False)) == ["gconv-relu"]
    assert types(graph, rules(gconv_relu=False, conv_relu=True)) == ["gconv", "relu"]
    b = Builder()
    inside = b.graph(b.op("MaxPool", b.relu(b.conv(b.op("MaxPool", b.input()), group=4))))
    only_in_context = rules(conv_relu=when(False, context=True))
    assert types(inside, only_in_context) == ["maxpool", "gconv", "relu", "maxpool"]
    assert types(inside, rules(conv_relu=True)) == ["maxpool", "gconv-relu", "maxpool"]


def test_a_depthwise_convolution_without_a_rule_of_its_own_has_that_of_conv() -> None:
    b = Builder()
    graph = b.graph(b.op("Tanh", b.conv(b.input(), group=16)))
    assert types(graph, rules(conv_tanh=True)) == ["dwconv-tanh"]
    assert types(graph, rules(conv_tanh=True, dwconv_tanh=False)) == ["dwconv", "tanh"]


# --- where a block stands ------------------------------------------------------------------------


def test_alone_or_in_context() -> None:
    b = Builder()
    pair = b.graph(b.relu(b.conv(b.input())))
    given = rules(conv_relu=when(True, context=False))
    assert types(pair, given) == ["conv-relu"]
    b = Builder()
    inside = b.graph(b.op("MaxPool", b.relu(b.conv(b.op("MaxPool", b.input())))))
    assert types(inside, given) == ["maxpool", "conv", "relu", "maxpool"]


def test_an_open_finding_gives_way_to_one_that_is_decided() -> None:
    b = Builder()
    inside = b.graph(b.op("MaxPool", b.relu(b.conv(b.input()))))
    given = rules(conv_relu={"obey": True, "when": {"context": {"obey": None}}})
    splitter = RuleSplitter(given)
    assert [kernel.type for kernel in splitter.split(inside)] == ["conv-relu", "maxpool"]
    assert splitter.decisions[0].situation == "alone"


def _residual(other: str) -> Graph:
    b = Builder()
    x = b.op("MaxPool", b.input())
    y = b.conv(x)
    operand = {"conv": lambda: b.relu(b.conv(b.op("MaxPool", x))), "own": lambda: x}.get(
        other, b.input
    )()
    return b.graph(b.op("Add", y, operand))


@pytest.mark.parametrize("other", ["conv", "own", "input"])
def test_where_a_second_operand_comes_from(other: str) -> None:
    situation = "context" if other == "input" else f"context_{other}"
    given = rules(conv_add=when(False, **{situation: True}))
    assert "conv-add" in types(_residual(other), given)
    others = {"context": True, "context_conv": True, "context_own": True, situation: False}
    assert "conv-add" not in types(_residual(other), rules(conv_add=when(True, **others)))


def test_a_pool_behind_a_convolution_is_an_operand_from_a_convolution() -> None:
    b = Builder()
    x = b.op("MaxPool", b.relu(b.conv(b.input())))
    graph = b.graph(b.op("Add", b.conv(b.relu(b.conv(x))), x))
    given = rules(conv_add=when(False, context_conv=True))
    assert types(graph, given)[-1] == "conv-add"


def test_a_constant_beside_a_convolution_s_output_lies_as_it_likes() -> None:
    given = rules(conv_add=when(False, context_conv=True))
    for folds in (True, False):
        b = Builder()
        x = b.conv(b.input())
        x = b.number("Mul", x if folds else b.relu(x), 2)
        graph = b.graph(b.op("Add", b.conv(b.relu(b.conv(x))), x))
        assert types(graph, given)[-1] == ("conv-add" if folds else "add")


def test_the_operand_says_more_than_what_is_around() -> None:
    given = rules(conv_add=when(False, context=False, alone_conv=True))
    assert "conv-add" in types(_residual("conv"), given)


def test_what_was_found_of_a_kernel_that_is_not_there_does_not_count() -> None:
    """Found with a convolution that took the addition; here none can, as others read it."""
    b = Builder()
    x = b.op("MaxPool", b.input())
    left, right = b.conv(x), b.conv(x)
    graph = b.graph(b.relu(b.op("Add", left, right)), left, right)
    relu = when(False, context=False, context_conv=True)
    taken = rules(add_relu=relu, conv_add=when(False, context_conv=True))
    assert "add-relu" not in types(graph, taken)
    separate = rules(add_relu=relu, conv_add=when(False, context_conv=False))
    assert "add-relu" in types(graph, separate)


# --- two inputs, several readers -----------------------------------------------------------------


def _sum() -> Graph:
    b = Builder()
    x = b.input()
    return b.graph(b.relu(b.op("Add", b.conv(x, 3), b.conv(x, 1))))


@pytest.mark.parametrize(
    ("case", "taker"),
    [(None, 0), ("case1", None), ("case2", 0), ("case3", 1)],
)
def test_which_input_takes_an_addition(case: str | None, taker: int | None) -> None:
    given = {**rules(conv_add=True, conv_relu=True), "MIN": {"obey": case}}
    kernels = RuleSplitter(given).split(_sum())
    with_add = next(kernel for kernel in kernels if "add" in kernel.operators)
    convs = [name for name in ("op0", "op1") if name in with_add.ops]
    assert convs == ([] if taker is None else [f"op{taker}"])
    assert ("op3" in with_add.ops) == (taker is not None)


def test_with_a_relu_behind_the_case_with_a_relu_says_more() -> None:
    given = {**rules(conv_add=True), "MIN": {"obey": "case1"}, "MINRELU": {"obey": "case3"}}
    assert "conv-add" in types(_sum(), given)


def test_a_second_addition_is_asked_of_the_first() -> None:
    b = Builder()
    x, y, z = b.input(), b.input(), b.input()
    graph = b.graph(b.op("Add", b.op("Add", b.conv(x), y), z))
    assert types(graph, rules(conv_add=True)) == ["conv-add", "add"]
    assert types(graph, rules(conv_add=True, add_add=True)) == ["conv-add-add"]


def _branches() -> Graph:
    """The guide's block of MON."""
    b = Builder()
    x = b.conv(b.input(), group=16)
    first = b.relu(b.relu(x))
    return b.graph(first, b.conv(b.relu(x), group=16))


@pytest.mark.parametrize(
    ("case", "kernels"),
    [
        ("case1", {"dwconv", "relu-relu", "relu-dwconv"}),
        ("case2", {"dwconv-relu-relu", "relu-dwconv"}),
        ("case3", {"dwconv-relu", "relu-relu", "dwconv"}),
        (None, {"dwconv", "relu-relu", "relu-dwconv"}),
        (0, {"dwconv", "relu-relu", "relu-dwconv"}),
        (1, {"dwconv-relu-relu", "relu-dwconv"}),
    ],
)
def test_several_readers(case: str | int | None, kernels: set[str]) -> None:
    """The kernels are those in the guide's cases; a number is of the original's files."""
    heavy = case == "case3"
    given = rules(dwconv_relu=True, relu_relu=True, relu_dwconv=not heavy)
    assert set(types(_branches(), {**given, "MON": {"obey": case}})) == kernels


def test_no_cycle_by_a_branch_that_comes_back() -> None:
    b = Builder()
    x = b.conv(b.input())
    graph = b.graph(b.op("Add", b.relu(x), b.op("Tanh", x)))
    given = {**rules(conv_relu=True, conv_add=True), "MON": {"obey": 1}}
    assert types(graph, given) == ["conv-relu", "tanh", "add"]


def test_what_the_model_gives_is_kept() -> None:
    b = Builder()
    x = b.conv(b.input())
    graph = b.graph(b.relu(x), x)
    splitter = RuleSplitter(rules(conv_relu=True))
    assert [kernel.type for kernel in splitter.split(graph)] == ["conv", "relu"]
    assert splitter.decisions[0].why == "the model gives the tensor between them"


# --- views ---------------------------------------------------------------------------------------


def test_a_view_goes_with_its_producer_and_joins_nothing() -> None:
    b = Builder()
    x = b.op("Flatten", b.relu(b.conv(b.input())), shape=(1, 1024))
    graph = b.graph(b.relu(x))
    given = rules(conv_relu=True, relu_flatten=None, flatten_relu=None)
    kernels = RuleSplitter(given).split(graph)
    assert [(kernel.type, kernel.operators) for kernel in kernels] == [
        ("conv-relu", ("conv", "relu", "flatten")),
        ("relu", ("relu",)),
    ]


def test_a_view_that_is_a_kernel_by_a_rule() -> None:
    b = Builder()
    graph = b.graph(b.op("Flatten", b.relu(b.input()), shape=(1, 1024)))
    assert types(graph, rules(relu_flatten=False)) == ["relu", "flatten"]


EVERYWHERE = rules(add_mul=True, mul_add=True, add_relu=True, relu_add=True, mul_relu=True) | {
    "MONELTWISE": {"obey": "case2"},
    "MINELTWISE": {"obey": "case4"},
}


def with_case(name: str, case: str | None) -> dict[str, Any]:
    return EVERYWHERE | {name: {"obey": case}}


def test_element_wise_kernels_may_give_a_tensor_that_others_read() -> None:
    b = Builder()
    y = b.op("Add", b.op("MaxPool", b.input()), b.input())
    graph = b.graph(b.relu(y), b.op("AveragePool", y))
    assert types(graph, EVERYWHERE) == ["maxpool", "add-relu", "avgpool"]
    assert types(graph, with_case("MONELTWISE", "case1")) == ["maxpool", "add", "relu", "avgpool"]
    # what a convolution could have taken is asked about with one
    b = Builder()
    y = b.op("Add", b.conv(b.input()), b.input())
    graph = b.graph(b.relu(y), b.op("AveragePool", y))
    assert types(graph, EVERYWHERE) == ["conv", "add-relu", "avgpool"]
    beside = {"BF_add_relu": when(True, context=True, context_conv=False)}
    assert types(graph, EVERYWHERE | beside) == ["conv", "add", "relu", "avgpool"]


def test_element_wise_kernels_may_join_at_an_op() -> None:
    b = Builder()
    x, y = b.op("MaxPool", b.input()), b.op("MaxPool", b.input())
    graph = b.graph(b.op("Add", b.relu(x), b.relu(y)))
    assert types(graph, EVERYWHERE) == ["maxpool", "maxpool", "relu-relu-add"]
    first_only = with_case("MINELTWISE", "case2")
    assert types(graph, first_only) == ["maxpool", "maxpool", "relu", "relu-add"]


def test_element_wise_ops_of_a_layer_norm_are_one_kernel() -> None:
    """What two read, and what is joined again: as Keras writes it."""
    b = Builder()
    x, mean, scale = b.conv(b.input()), b.input((1, 16, 8, 1)), b.input((1, 16, 8, 1))
    factor = b.op("Mul", b.op("Neg", scale), b.constant(shape=(8,)), shape=IMAGE)
    shift = b.op("Mul", b.op("Neg", mean), factor, shape=IMAGE)
    graph = b.graph(b.op("Add", b.op("Mul", x, factor), shift))
    given = EVERYWHERE | rules(mul_mul=True, mulscalar_mul=True, conv_mul=False)
    assert types(graph, given) == ["conv", "neg-mulc-neg-mul-mul-add"]


def test_what_may_be_needed_first_does_not_join_an_element_wise_kernel() -> None:
    b = Builder()
    y = b.op("Add", b.input(), b.input())
    around = b.op("MaxPool", y)
    graph = b.graph(b.op("Mul", y, around))
    assert types(graph, EVERYWHERE) == ["add", "maxpool", "mul"]


def test_all_that_executes_nothing_goes_where_it_is_read() -> None:
    b = Builder()
    x, y = b.input(), b.input()
    inner = [b.op("Concat", each, each, shape=(1, 32, 8, 8), axis=1) for each in (x, y)]
    graph = b.graph(b.relu(b.op("Concat", *inner, shape=(1, 64, 8, 8), axis=1)))
    free = {"obey": None, "verdict": "free", "free": ["concat"]}
    assert types(graph, {"BF_concat_concat": free}) == ["concat-concat-concat", "relu"]


@pytest.mark.parametrize("reads", ["nothing", "before", "behind", "given"])
def test_a_sum_is_not_added_in_place_to_what_is_read_again(reads: str) -> None:
    b = Builder()
    other = b.op("MaxPool", b.input())
    y = b.relu(other) if reads == "before" else b.input()
    total = b.op("Add", b.conv(y), other)
    outputs = [b.op("AveragePool", total)]
    if reads == "behind":
        outputs.append(b.op("AveragePool", other))
    if reads == "given":
        outputs.append(other)
    found = types(b.graph(*outputs), rules(conv_add=when(True, context=True, context_again=False)))
    assert ("conv-add" in found) == (reads in ("nothing", "before"))


def test_an_operand_that_a_pool_passes_on() -> None:
    """Not the layout of a convolution's output, but what is found with a pool in between."""

    def graph(*between: str) -> Graph:
        b = Builder()
        x = b.conv(b.input())
        for name in between:
            x = b.op(name, x)
        return b.graph(b.op("Add", b.conv(b.op("MaxPool", x)), x))

    given = rules(conv_add=when(False, context=False, context_conv=True, context_passed=False))
    assert types(graph(), given)[-1] == "conv-add"
    assert types(graph("Sigmoid"), given | rules(conv_sigmoid=True))[-1] == "conv-add"
    assert types(graph("MaxPool"), given)[-2:] == ["conv", "add"]
    given |= rules(conv_add=when(False, context=False, context_passed=True))
    assert types(graph("MaxPool"), given)[-1] == "conv-add"


def test_what_a_pool_took_in_context_is_asked_alone() -> None:
    """``BF_scale_mul`` in context is about a pool's kernel where pools take scales."""
    b = Builder()
    x = b.op("Mul", b.op("Softmax", b.input(), axis=1), b.constant(shape=(1, 16, 1, 1)))
    graph = b.graph(b.relu(x))
    given = rules(scale_relu=when(True, context=False))
    assert types(graph, given) == ["softmax", "scale", "relu"]
    assert types(graph, given | rules(avgpool_scale=True)) == ["softmax", "scale-relu"]


def test_a_composite_is_left_in_parts_that_rules_tell_of_if_it_was_tested_as_one_op() -> None:
    b = Builder()
    x = b.number("Add", b.conv(b.input()), 3)
    graph = b.graph(b.number("Mul", b.op("Clip", x, b.constant(0.0), b.constant(6.0)), 1 / 6))

    def found(implement: str, **more: bool) -> list[str]:
        given = rules(conv_hardsigmoid=True, **more)
        environment = {"options": {"models": {"IMPLEMENT": implement}}}
        return types(graph, {name: {**r, "environment": environment} for name, r in given.items()})

    parts = {"conv_addscalar": False, "addscalar_relu6": False, "relu6_mulscalar": False}
    assert found("onnx", **parts) == ["conv", "addscalar", "relu6", "mulscalar"]
    assert found("tensorflow", **parts) == ["conv-hardsigmoid"]
    assert found("onnx") == ["conv-hardsigmoid"]


def test_views_that_give_the_shape_back_are_looked_through() -> None:
    b = Builder()
    x = b.op("Squeeze", b.conv(b.input()), shape=(16, 8, 8))
    graph = b.graph(b.relu(b.op("Unsqueeze", x, shape=IMAGE)))
    assert types(graph, rules(conv_relu=True)) == ["conv-relu"]


# --- composites, chains --------------------------------------------------------------------------


def test_a_composite_that_runs_as_several_kernels_is_taken_apart_where_nothing_joins_it() -> None:
    def graph(before: str) -> Graph:
        b = Builder()
        x = b.op(before, b.input())
        return b.graph(b.op("Mul", x, b.op("Sigmoid", x)))

    spread = {"obey": False, "kernels": ["Relu", "Sigmoid", "Mul"]}
    one = {"obey": True, "kernels": ["Tanh"]}
    given = rules(relu_swish=spread, tanh_swish=spread | {"when": {"context": one}})
    assert types(graph("Relu"), given) == ["relu", "sigmoid", "mul"]
    assert types(graph("Tanh"), given) == ["tanh", "sigmoid", "mul"]
    b = Builder()
    x = b.op("Tanh", b.op("MaxPool", b.input()))
    inside = b.graph(b.op("Mul", x, b.op("Sigmoid", x)))
    assert types(inside, given) == ["maxpool", "tanh-swish"]


def test_a_composite_in_other_steps_than_were_tested_is_not_what_was_tested() -> None:
    """Executed by itself as two kernels: only what is written in two steps is known to it."""
    spread = {"obey": False, "kernels": ["Conv", "HardSigmoid", "Mul"]}
    one = {"obey": True, "kernels": ["Conv"]}
    given = rules(conv_hswish=spread | {"when": {"context": one}})

    def graph(parts: bool) -> Graph:
        b = Builder()
        x = b.conv(b.op("MaxPool", b.input()))
        if not parts:
            gate = b.op("HardSigmoid", x, alpha=1 / 6)
            return b.graph(b.op("Mul", x, gate))
        gate = b.op("Clip", b.number("Add", x, 3), b.constant(0.0), b.constant(6.0))
        return b.graph(b.number("Div", b.op("Mul", x, gate), 6))

    assert types(graph(parts=False), given) == ["maxpool", "conv-hswish"]
    parts = ["addscalar", "relu6", "mul", "mulscalar"]
    assert types(graph(parts=True), given) == ["maxpool", "conv", *parts]
    unknown = rules(conv_hswish=True)  # such as do not tell kernels
    assert types(graph(parts=True), unknown) == ["maxpool", "conv-hswish"]


def test_a_composite_that_is_several_kernels_even_joined_is_never_one() -> None:
    b = Builder()
    x = b.input()
    graph = b.graph(b.relu(b.op("Mul", x, b.op("Sigmoid", x))))
    several = {"obey": True, "kernels": ["Sigmoid", "Mul+Relu"]}
    given = rules(swish_relu=several, mul_relu=True)
    assert types(graph, given) == ["sigmoid", "mul-relu"]


def test_a_chain_says_more_than_its_pairs() -> None:
    b = Builder()
    graph = b.graph(b.op("Tanh", b.relu(b.bn(b.conv(b.input())))))
    edges = [
        {"ops": ["conv", "bn"], "verdict": "separate"},
        {"ops": ["bn", "relu"], "verdict": "fused"},
    ]
    chain = {"obey": False, "edges": edges}
    given = rules(conv_bn=True, conv_relu=True, relu_tanh=True, conv_bn_relu=chain)
    assert types(graph, given) == ["conv", "bn-relu-tanh"]
    given = rules(conv_bn=True, conv_relu=False, conv_bn_relu=True)
    splitter = RuleSplitter(given)
    assert [kernel.type for kernel in splitter.split(graph)] == ["conv-bn-relu", "tanh"]
    assert splitter.decisions[1].rule == "BF_conv_bn_relu"


def test_of_two_chains_the_longer_one_speaks_and_the_other_is_recorded() -> None:
    b = Builder()
    graph = b.graph(b.op("Tanh", b.relu(b.bn(b.conv(b.input())))))
    given = rules(conv_bn_relu=True, conv_bn_relu_tanh=True, bn_relu_tanh=False)
    splitter = RuleSplitter(given)
    assert [kernel.type for kernel in splitter.split(graph)] == ["conv-bn-relu-tanh"]
    assert splitter.conflicts == [
        "BF_conv_bn_relu at op0 gave way to BF_conv_bn_relu_tanh at op0",
        "BF_bn_relu_tanh at op1 gave way to BF_conv_bn_relu_tanh at op0",
    ]


def concatenated(channels: int, readers: int) -> Graph:
    b = Builder()
    x = b.input()
    joined = b.op(
        "Concat",
        *(b.conv(x), b.conv(x, channels=channels)),
        shape=(1, 16 + channels, 8, 8),
        axis=1,
    )
    outputs = [b.relu(b.bn(joined)), *(b.op("Tanh", joined) for _ in range(readers - 1))]
    return b.graph(*outputs)


def chain_of(concat: str, relu: str) -> dict[str, Any]:
    edges = [
        {"ops": ["concat", "bn"], "verdict": concat},
        {"ops": ["bn", "relu"], "verdict": relu},
    ]
    return {"obey": False, "edges": edges}


def test_a_chain_speaks_behind_a_tensor_that_others_read_but_not_of_that() -> None:
    given = rules(bn_relu=True, concat_bn=False, concat_tanh=False)
    given |= {"BF_concat_bn_relu": chain_of("fused", "separate")}
    assert types(concatenated(8, readers=1), given)[-2:] == ["concat-bn", "relu"]
    assert types(concatenated(8, readers=2), given)[2:] == ["concat", "bn", "relu", "tanh"]


def test_a_chain_is_asked_where_its_first_operand_comes_from() -> None:
    told = {**chain_of("separate", "separate"), "when": {}}
    for situation, relu in (("context", "separate"), ("context/conv", "fused")):
        told["when"][situation] = chain_of("separate", relu)
    given = rules(bn_relu=False) | {"BF_concat_bn_relu": told}
    assert types(concatenated(8, readers=1), given)[-1] == "bn-relu"
    told["when"]["context/conv"] = {"obey": None}  # it cannot be told where it fits best
    assert types(concatenated(8, readers=1), given)[-2:] == ["bn", "relu"]
    given = {**given, **rules(bn_relu=True)}
    assert types(concatenated(8, readers=1), given)[-1] == "bn-relu"


# --- sizes ---------------------------------------------------------------------------------------


def in_sizes(usual: bool, **where: Any) -> dict[str, Any]:
    return {"obey": usual, "sizes": [{"obey": not usual, "where": where}]}


@pytest.mark.parametrize(
    ("channels", "where", "fused"),
    [
        (16, {"channels": {"no_multiple_of": 16}}, True),
        (24, {"channels": {"no_multiple_of": 16}}, False),
        (24, {"channels": {"no_multiple_of": 16}, "kernel_size": {"most": 1}}, True),
        (24, {"channels": {"most": 23}}, True),
        (24, {"out_channels": {"multiple_of": 16}}, False),
        (24, {"strides": {"least": 2}}, True),
        (24, {"groups": {"least": 1}}, True),  # a size that is not known
    ],
)
def test_a_rule_says_otherwise_in_other_sizes(channels: int, where: Any, fused: bool) -> None:
    b = Builder()
    graph = b.graph(b.relu(b.conv(b.input((1, channels, 8, 8)), channels=32)))
    expected = ["conv-relu"] if fused else ["conv", "relu"]
    assert types(graph, rules(conv_relu=in_sizes(True, **where))) == expected


def test_sizes_are_those_of_the_op_that_is_asked() -> None:
    """Behind an activation that is the activation, and not the convolution before it."""

    def graph(channels: int) -> Graph:
        b = Builder()
        x, y = b.input(), b.input((1, channels, 8, 8))
        return b.graph(b.op("Add", b.relu(b.conv(x, channels=channels)), y))

    given = rules(conv_relu=True, conv_add=True)
    given |= rules(relu_add=in_sizes(True, channels={"no_multiple_of": 16}))
    assert types(graph(32), given) == ["conv-relu-add"]
    assert types(graph(24), given) == ["conv-relu", "add"]


def test_sizes_of_a_chain_are_those_of_all_that_its_first_op_reads() -> None:
    sized = {**chain_of("separate", "separate"), "where": {"channels": {"no_multiple_of": 16}}}
    given = rules(bn_relu=True)
    given |= {"BF_concat_bn_relu": {**chain_of("separate", "fused"), "sizes": [sized]}}
    assert types(concatenated(8, readers=1), given)[-2:] == ["bn", "relu"]
    assert types(concatenated(32, readers=1), given)[-1] == "bn-relu"


def test_a_chain_that_cannot_be_told_leaves_it_to_the_pairs() -> None:
    b = Builder()
    graph = b.graph(b.relu(b.bn(b.conv(b.input()))))
    given = rules(conv_bn=True, conv_relu=True, conv_bn_relu=None)
    assert types(graph, given) == ["conv-bn-relu"]


# --- customized rules ----------------------------------------------------------------------------


class MyTestCase(BaseTestCase):
    """As in the guide, with what splitting needs."""

    name = "MyTestCase"
    cases = {"case1": ["dwconv", "dwconv_add"], "case2": ["dwconv", "dwconv", "add"]}  # noqa: RUF012
    pattern = {  # noqa: RUF012
        "left": ("dwconv", "x"),
        "right": ("dwconv", "x"),
        "sum": ("add", "left", "right"),
    }
    kernels = {  # noqa: RUF012
        "case1": [["left"], ["right", "sum"]],
        "case2": [["left"], ["right"], ["sum"]],
    }


def _two_depthwise(*, kept: bool = False) -> Graph:
    b = Builder()
    x = b.input()
    left, right = b.conv(x, group=16), b.conv(x, group=16)
    y = b.op("Add", right, left)
    return b.graph(b.relu(y), *([left] if kept else []))


def test_a_customized_rule_changes_how_a_model_is_split() -> None:
    pairs = rules(dwconv_add=True)
    for case, expected in (
        ("case1", ["dwconv", "dwconv-add", "relu"]),
        ("case2", ["dwconv", "dwconv", "add", "relu"]),
    ):
        given = {**pairs, "MyTestCase": {"obey": case}}
        splitter = RuleSplitter(given, testcases=[MyTestCase])
        kernels = splitter.split(_two_depthwise())
        assert [kernel.type for kernel in kernels] == expected
        assert {d.rule for d in splitter.decisions if "customized" in d.why} == {"MyTestCase"}
    assert types(_two_depthwise(), {**pairs, "MyTestCase": {"obey": None}}) != expected


def test_a_registered_test_case_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from nn_meter import registry
    from nn_meter.registry.entry import Entry

    entry = Entry(
        kind="testcase", name="MyTC", origin="registered", implement="torch",
        class_module="here", class_name="MyTestCase",
    )  # fmt: skip
    known = registry.entries("testcase")
    monkeypatch.setattr(registry, "entries", lambda kind: [*known, entry])
    monkeypatch.setattr(registry, "load", lambda found: MyTestCase if found is entry else None)
    assert types(_two_depthwise(), {"MyTestCase": {"obey": "case1"}}) == [
        "dwconv",
        "dwconv-add",
        "relu",
    ]


def test_a_block_that_is_read_from_outside_is_refused_by_name() -> None:
    given = {"MyTestCase": {"obey": "case1"}}
    splitter = RuleSplitter(given, testcases=[MyTestCase])
    kernels = splitter.split(_two_depthwise(kept=True))
    assert [kernel.type for kernel in kernels] == ["dwconv", "dwconv", "add", "relu"]
    assert splitter.conflicts == [
        "MyTestCase at op0 was not applied: op0 is read from outside the block"
    ]


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("pattern", {"left": "dwconv"}, "pattern should be"),
        ("kernels", {"case2": []}, "with 'case1' in it"),
        ("kernels", {"case1": [["left"], ["left"]]}, "each name once"),
        ("kernels", {"case1": [["middle"]]}, "names in the pattern"),
    ],
)
def test_a_bad_pattern_is_refused(attribute: str, value: Any, message: str) -> None:
    broken = type("Broken", (MyTestCase,), {attribute: value})
    with pytest.raises(OperatorError, match=message):
        RuleSplitter({"MyTestCase": {"obey": "case1"}}, testcases=[broken])


# --- rules from everywhere -----------------------------------------------------------------------


def test_rules_of_the_original(tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    obeys = {name: {"obey": True} for name in ("BF_dwconv_relu", "BF_relu_relu")}
    obeys |= {"MON": {"obey": 1}}
    file.write_text(json.dumps(obeys))
    assert types(_branches(), str(file))[0] == "dwconv-relu-relu"
    file.write_text(json.dumps({"BF_dwconv_relu": {"obey": True}, "MON": {"obey": "case1"}}))
    assert types(_branches(), file)[0] == "dwconv"


def test_rules_that_ship() -> None:
    b = Builder()
    graph = b.graph(b.op("MaxPool", b.relu(b.conv(b.input()))))
    assert types(graph, "onnxruntime-1.31") == ["conv-relu", "maxpool"]
    assert types(graph, read_shipped("onnxruntime-1.31")) == ["conv-relu", "maxpool"]


def test_a_pair_of_the_original_may_be_a_number() -> None:
    b = Builder()
    graph = b.graph(b.op("Tanh", b.relu(b.conv(b.input()))))
    assert types(graph, rules(conv_relu=1, relu_tanh=0)) == ["conv-relu", "tanh"]


@pytest.mark.parametrize("given", [{"BF_a_b": 3}, {"BF_a_b": {"obey": {1}}}, "no/such/rules"])
def test_what_holds_no_rules_is_refused(given: Any) -> None:
    with pytest.raises(ResultFileError) as caught:
        RuleSplitter(given)
    assert "/tmp" not in str(caught.value)


def test_no_rules_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert types(_sum(), {}) == ["conv", "conv", "add", "relu"]
    assert "holds no rules" in caplog.text


def test_rules_of_unknown_operators_are_warned_of_by_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert types(_sum(), rules(foo_relu=True, conv_bar=True)) == ["conv", "conv", "add", "relu"]
    assert "is recognized as: bar, foo" in caplog.text
    caplog.clear()
    RuleSplitter("openvino-2026.4")
    assert not caplog.text


def test_fuses() -> None:
    shipped = read_shipped("onnxruntime-1.31")
    assert shipped.fuses("conv", "relu") is True
    assert shipped.fuses("conv", "add") is False
    assert shipped.fuses("conv", "add", "context/conv") is True
    assert shipped.fuses("conv", "reshape") is None
    assert shipped.fuses("conv", "nothing") is None
    assert shipped.fuses("conv", "relu", "elsewhere") is None


# --- any graph, any rules ------------------------------------------------------------------------

_UNARY = ["Conv", "BatchNormalization", "Relu", "Tanh", "Sigmoid", "MaxPool", "Identity", "my.Op"]
_VIEWS = ["Flatten", "Squeeze"]
_OPERATORS = [
    "conv",
    "bn",
    "relu",
    "tanh",
    "sigmoid",
    "maxpool",
    "add",
    "mul",
    "flatten",
    "squeeze",
]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    b = Builder("tflite" if draw(st.booleans()) else "onnx")
    known = [b.input(), b.input()]
    for _ in range(draw(st.integers(1, 25))):
        recent = st.sampled_from(known[-4:])
        twos = ["Add", "Add", "Mul", "Concat"]
        kind = draw(st.sampled_from([*_UNARY, *_VIEWS, *twos, "Split"]))
        more = {}
        if draw(st.integers(0, 5)) == 0 and kind not in ("Identity", "Split"):
            more["fused_activation_function"] = "RELU"
        if kind in twos:
            known.append(b.op(kind, draw(recent), draw(recent), shape=IMAGE, **more))
        elif kind == "Conv":
            known.append(b.op(kind, draw(recent), b.constant(shape=(16, 16, 3, 3)), **more))
        elif kind == "Split":
            known += b.ops_of(kind, draw(recent), shapes=[IMAGE, IMAGE])
        else:
            known.append(b.op(kind, draw(recent), shape=IMAGE, **more))
    return b.graph(*draw(st.lists(st.sampled_from(known[2:]), min_size=1, max_size=3)), known[-1])


@st.composite
def rule_files(draw: st.DrawFn) -> dict[str, Any]:
    obey = st.sampled_from([True, True, True, False, None])
    found: dict[str, Any] = {
        f"BF_{a}_{b}": when(
            draw(obey), context=draw(obey), context_conv=draw(obey), context_again=False
        )
        for a in _OPERATORS
        for b in _OPERATORS
        if draw(st.integers(0, 9)) < 8
    }
    for ops in draw(st.lists(st.lists(st.sampled_from(_OPERATORS), min_size=3, max_size=4))):
        found["BF_" + "_".join(ops)] = {"obey": draw(obey)}
    for op in ("concat", "relu", "mul"):
        found[f"BF_{op}_{op}"] = {"obey": None, "verdict": "free", "free": [op]}
    found["MONELTWISE"] = {"obey": draw(st.sampled_from(["case1", "case2"]))}
    found["MINELTWISE"] = {"obey": draw(st.sampled_from(["case1", "case3", "case4"]))}
    found["MON"] = {"obey": draw(st.sampled_from([0, 1, "case1", "case2", "case3"]))}
    found["MIN"] = {"obey": draw(st.sampled_from(["case1", "case2", "case3", None]))}
    found["Pair"] = {"obey": draw(st.sampled_from(["one", "two"]))}
    return found


class Pair(MyTestCase):
    name = "Pair"
    pattern = {"a": ("relu", "x"), "b": ("tanh", "x"), "c": ("add", "a", "y")}  # noqa: RUF012
    kernels = {"one": [["a", "c"], ["b"]], "two": [["a", "b"]]}  # noqa: RUF012


def _has_cycle(graph: Graph, kernels: Sequence[Kernel]) -> bool:
    """Whether kernels, in the order given, read what a later one writes."""
    place = {op: i for i, kernel in enumerate(kernels) for op in kernel.ops}
    return any(place[a.name] > place[b.name] for a, b, _ in graph.edges())


def _renamed(graph: Graph) -> Graph:
    def new(name: str) -> str:
        return f"z{hash(name) % 997}.{name[::-1]}" if name else name

    def all_new(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(map(new, names))

    tensors = {new(name): replace(tensor, name=new(name)) for name, tensor in graph.tensors.items()}
    ops = [
        Op(
            name=new(op.name),
            type=op.type,
            inputs=all_new(op.inputs),
            outputs=all_new(op.outputs),
            attributes=op.attributes,
        )
        for op in graph.ops
    ]
    return replace(
        graph,
        ops=ops,
        inputs=all_new(graph.inputs),
        outputs=all_new(graph.outputs),
        tensors=tensors,
    )


@settings(max_examples=150, deadline=None)
@given(graphs(), rule_files())
def test_any_model_falls_into_kernels(graph: Graph, given_rules: dict[str, Any]) -> None:
    """A partition, in an order without cycles, the same each time and under any names."""
    splitter = RuleSplitter(given_rules, testcases=[Pair])
    kernels = splitter.split(graph)
    assert sorted(op for kernel in kernels for op in kernel.ops) == sorted(
        op.name for op in graph.ops
    )
    assert not _has_cycle(graph, kernels)
    assert len({kernel.name for kernel in kernels}) == len(kernels)
    assert splitter.split(graph) == kernels
    renamed = splitter.split(_renamed(graph))
    assert [kernel.name for kernel in renamed] == [kernel.name for kernel in kernels]
    places = [{op.name: i for i, op in enumerate(g.ops)} for g in (graph, _renamed(graph))]
    for kernel, other in zip(kernels, renamed, strict=True):
        assert [places[0][op] for op in kernel.ops] == [places[1][op] for op in other.ops]


@settings(max_examples=50, deadline=None)
@given(graphs(), rule_files())
def test_each_two_neighbours_have_a_decision(graph: Graph, given_rules: dict[str, Any]) -> None:
    splitter = RuleSplitter(given_rules)
    kernels = splitter.split(graph)
    model = splitter.recognized
    assert model is not None
    edges = {
        (model.nodes[place].name, model.nodes[reader].name)
        for place, readers in enumerate(model.readers)
        for reader in readers
    }
    assert {decision.edge for decision in splitter.decisions} == edges
    home = {op: kernel.name for kernel in kernels for op in kernel.ops}
    ops = {node.name: node.ops for node in model.nodes}
    for decision in splitter.decisions:
        together = home[ops[decision.edge[0]][0]] == home[ops[decision.edge[1]][0]]
        assert together or not decision.fused


@pytest.mark.parametrize("readers", [1, 2])
def test_inputs_and_outputs_of_kernels(readers: int) -> None:
    b = Builder()
    x = b.conv(b.input(), channels=32)
    ends = [b.relu(x) for _ in range(readers)]
    kernels = RuleSplitter(rules(conv_relu=True)).split(b.graph(*ends))
    assert kernels[0].inputs == ("in0",)
    assert kernels[0].outputs == ((ends[0],) if readers == 1 else (x,))
    assert kernels[0].attributes["input_shapes"] == [list(IMAGE)]
    assert kernels[0].attributes["output_shapes"] == [[1, 32, 8, 8]]
    assert kernels[0].attributes["out_channels"] == 32
    assert json.loads(json.dumps(kernels[0].to_json()))["type"] == kernels[0].type


def test_a_tensor_of_no_known_shape_has_none() -> None:
    graph = Graph(
        name="g", format="onnx", layout="channels_first", inputs=("x",), outputs=("y",),
        ops=(Op(name="o", type="Relu", inputs=("x",), outputs=("y",)),),
        tensors={name: Tensor(name=name) for name in "xy"},
    )  # fmt: skip
    (kernel,) = RuleSplitter({}).split(graph)
    assert kernel.attributes == {"input_shapes": [None], "output_shapes": [None]}
