"""Verdicts from executed graphs, made by hand so that each way of fusing stands alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from nn_meter.builder.backend_meta.fusion_rule_tester import find
from nn_meter.builder.backend_meta.fusion_rule_tester.evidence import Judges
from nn_meter.builder.backend_meta.fusion_rule_tester.graph_evidence import CaseGraphs, judge_chain
from nn_meter.builder.backend_meta.fusion_rule_tester.situations import part_name, plan
from nn_meter.builder.backend_meta.fusion_rule_tester.verdict import Verdict
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode, ModelOp
from nn_meter.builder.config import RuletestConfig
from nn_meter.builder.profiling.store import Failure, StoredGraph

CONFIG = {**RuletestConfig().as_dict(), "MODEL_DIR": "/nowhere"}


def row(*types: str, outputs: str | None = None, told: bool = True) -> StoredGraph:
    """Nodes in a row. ``view:`` and ``move:`` before a type say its kind."""
    nodes = []
    for i, text in enumerate(types):
        kind, _, name = text.rpartition(":")
        tensors = {"inputs": (f"t{i}",), "outputs": (f"t{i + 1}",)} if told else {}
        nodes.append(ExecutedNode(name=f"n{i}", type=name, kind=kind or "compute", **tensors))
    inputs = ("t0",) if told else None
    return StoredGraph(graph=ExecutedGraph(nodes=tuple(nodes), inputs=inputs), outputs=outputs)


def pair(op1: StoredGraph, op2: StoredGraph, block: StoredGraph) -> Verdict:
    parts = {part_name(0, 1): op1, part_name(1, 2): op2, part_name(0, 2): block}
    return judge_chain(("a", "b"), parts, rule="BF_a_b")


def alone(op1: StoredGraph, op2: StoredGraph) -> dict[str, StoredGraph]:
    return {part_name(0, 1): op1, part_name(1, 2): op2, part_name(0, 2): row("X")}


# --- counting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [True, False], ids=["tensors", "no tensors"])
def test_fewer_nodes_than_the_ops_alone_mean_fused(told):
    found = pair(row("A", told=told), row("B", told=told), row("AB", told=told))
    assert (found.obey, found.verdict, found.kernels) == (True, "fused", ("AB",))
    found = pair(row("A", told=told), row("B", told=told), row("A", "B", told=told))
    assert (found.obey, found.verdict, found.kernels) == (False, "separate", ("A", "B"))
    more = pair(row("A", told=told), row("B", told=told), row("A", "B", "C", told=told))
    assert more.verdict == "separate"


def test_moves_and_views_do_not_count():
    block = row("move:Reorder", "A", "move:Reorder", "view:Reshape", "B")
    assert pair(row("move:R", "A", "move:R"), row("B"), block).verdict == "separate"
    assert pair(row("A", "move:R"), row("move:R", "B"), row("move:R", "AB")).verdict == "fused"


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("nothing", [(), ("view:V",), ("move:M", "view:V")])
def test_an_op_that_computes_nothing_is_free_whichever_side_it_is_on(side, nothing):
    ops = [row("A"), row("B")]
    ops[side] = row(*nothing)
    found = pair(*ops, row("X"))
    assert (found.obey, found.verdict, found.free) == (None, "free", (("a", "b")[side],))
    assert "nothing that computes" in found.reason


def test_a_refused_model_is_unsupported_and_a_crash_undecided():
    for kind, verdict in (("refused", "unsupported"), ("crashed", "undecided")):
        bad = StoredGraph(graph=Failure(kind=kind, reason="its own words"), outputs=None)
        found = pair(row("A"), bad, row("A"))
        assert (found.obey, found.verdict) == (None, verdict)
        assert "its own words" in found.reason


# --- other operands ------------------------------------------------------------------------------


def branched(*nodes: tuple[str, Sequence[str], str]) -> StoredGraph:
    made = tuple(
        ExecutedNode(name=out, type=kind, inputs=tuple(ins), outputs=(out,))
        for kind, ins, out in nodes
    )
    return StoredGraph(graph=ExecutedGraph(nodes=made, inputs=("x", "y")), outputs=None)


def test_a_sum_that_the_other_convolution_takes_is_not_this_ones():
    conv, add = row("Conv"), branched(("Conv", ["y"], "c"), ("Add", ["x", "c"], "o"))
    first = branched(("Conv", ["y"], "c"), ("Conv[sum]", ["x", "c"], "o"))
    second = branched(("Conv", ["x"], "c"), ("Conv[sum]", ["y", "c"], "o"))
    neither = branched(("Conv", ["x"], "c"), ("Conv", ["y"], "d"), ("Add", ["c", "d"], "o"))
    assert pair(conv, add, first).verdict == "fused"
    assert pair(conv, add, second).verdict == "separate"
    assert pair(conv, add, neither).verdict == "separate"


def test_an_op_that_is_moved_to_the_other_operand_is_a_kernel_still():
    """OpenVINO scales an operand of a product instead of what comes out."""
    product = branched(("MatMul", ["x", "y"], "o"))
    moved = branched(("Mul", ["y"], "s"), ("MatMul", ["x", "s"], "o"))
    taken = branched(("FusedMatMul", ["x", "y"], "o"))
    assert pair(product, row("Mul"), moved).verdict == "separate"
    assert pair(product, row("Mul"), taken).verdict == "fused"
    parts = {
        **{"0-1": branched(("Conv", ["y"], "c"), ("MatMul", ["x", "c"], "o"))},
        **{"1-2": row("Mul"), "operand-0": row("Conv")},
    }
    for kernels, verdict in (
        ([("Conv", ["y"], "c"), ("Mul", ["c"], "s"), ("MatMul", ["x", "s"], "o")], "separate"),
        ([("Conv[scale]", ["y"], "c"), ("MatMul", ["x", "c"], "o")], "separate"),
        ([("Conv", ["y"], "c"), ("FusedMatMul", ["x", "c"], "o")], "fused"),
    ):
        found = judge_chain(("bmm", "scale"), {**parts, "0-2": branched(*kernels)}, rule="r")
        assert found.verdict == verdict, kernels


def test_what_an_operand_gives_away_is_no_op_that_moved_there():
    """IREE adds the bias of the other convolution behind the sum."""
    parts = {
        **{"0-1": row("d(conv, addf)"), "1-2": row("d(addf)"), "operand-1": row("d(conv, addf)")},
        "0-2": branched(("d(conv)", ["y"], "c"), ("d(conv, addf, addf, addf)", ["x", "c"], "o")),
    }
    assert judge_chain(("conv", "add"), parts, rule="r").verdict == "fused"


def test_without_tensors_the_operands_own_nodes_are_taken_off():
    parts = {
        "0-1": row("Conv", told=False),
        "1-2": row("Conv", "Add", told=False),
        "0-2": row("Conv", "Conv", "Add", told=False),
        "operand-1": row("Conv", told=False),
    }
    assert judge_chain(("conv", "add"), parts, rule="r").verdict == "separate"
    parts["0-2"] = row("Conv", "Conv", told=False)
    assert judge_chain(("conv", "add"), parts, rule="r").verdict == "fused"


# --- in context ----------------------------------------------------------------------------------


def test_what_is_around_the_block_is_taken_off():
    parts = {
        **{"before": row("C", "P"), "behind": row("P")},
        **{"0-1": row("C", "P", "A"), "1-2": row("B", "P")},
        "0-2": row("C", "P", "A", "B", "P"),
    }
    assert judge_chain(("a", "b"), parts, rule="r").verdict == "separate"
    parts["0-2"] = row("C", "P", "AB", "P")
    assert judge_chain(("a", "b"), parts, rule="r").verdict == "fused"


def test_an_op_that_fuses_with_what_is_around_the_block_is_not_fused_inside_it():
    """LiteRT puts a relu into the pool before it, whatever stands behind the relu."""
    parts = {
        **{"before": row("C", "P"), "behind": row("P")},
        **{"0-1": row("C", "P"), "1-2": row("B", "P")},
        "0-2": row("C", "P", "B", "P"),
    }
    found = judge_chain(("relu", "b"), parts, rule="r", alone=alone(row("Relu"), row("B")))
    assert (found.verdict, found.free) == ("separate", ())
    # and a convolution that takes the relu behind it, in a model in which a pool would, too
    parts |= {"0-1": row("C", "P", "Conv"), "1-2": row("Relu", "P")}
    parts["0-2"] = row("C", "P", "Conv", "P")
    found = judge_chain(("conv", "relu"), parts, rule="r", alone=alone(row("Conv"), row("Relu")))
    assert found.verdict == "fused"


def test_an_op_taken_by_one_of_the_kind_that_the_context_has():
    """OpenVINO puts a pad into the convolution behind it; there is another one before the block."""
    parts = {
        **{"before": row("Conv", "Pool"), "behind": row("Pool")},
        **{"0-1": row("Conv", "Pool", "Pad"), "1-2": row("Conv", "Pool")},
        "0-2": row("Conv", "Pool", "Conv[Pad]", "Pool"),
    }
    found = judge_chain(("pad", "conv"), parts, rule="r", alone=alone(row("Pad"), row("Conv")))
    assert found.verdict == "fused"


def test_an_op_dropped_inside_a_model_is_eliminated_there():
    plain = {
        "0-1": row("Relu", outputs="r"),
        "1-2": row("Clip", outputs="c"),
        "0-2": row("Relu", "Clip", outputs="c"),
    }
    parts = {
        **{"before": row("C", "P"), "behind": row("P")},
        **{"0-1": row("C", "P", "Relu"), "1-2": row("Clip", "P")},
        "0-2": row("C", "P", "Clip", "P"),
    }
    found = judge_chain(("relu", "relu6"), parts, rule="r", alone=plain)
    assert (found.verdict, found.eliminated) == ("fused", True)


def test_an_op_that_is_a_view_alone_and_a_kernel_in_the_block_is_not_free():
    split = pair(row("Conv"), row("view:Split"), row("Conv", "Split"))
    assert (split.verdict, split.free) == ("separate", ())
    concat = pair(row("view:Concat"), row("Relu"), row("Concat", "Relu"))
    assert (concat.verdict, concat.free) == ("separate", ())


def test_an_op_that_is_said_in_fewer_nodes_behind_another_one_is_not_fused():
    """MNN's prelu is three nodes alone, and one behind a pool."""
    found = pair(row("Pool"), row("Less", "Mul", "Select"), row("Pool", "PReLU"))
    assert found.verdict == "separate"
    part = pair(row("Conv"), row("Sigmoid", "Mul"), row("Conv", "Mul"))
    assert part.verdict == "fused"  # the sigmoid has gone into the convolution


def test_situations_are_recorded_under_when():
    case = find.testcase_named("BF_conv_relu", CONFIG)
    separate = {"0-1": row("A"), "1-2": row("B"), "0-2": row("A", "B")}
    graphs = CaseGraphs(
        models={"conv": row("A"), "relu": row("B"), "block": row("AB")},
        # the second one is not whole: somebody took a model away
        situations={"alone/conv": separate, "context": {"0-2": row("A", "B")}},
    )
    found = Judges("graph", {"BF_conv_relu": graphs}).judge(case, {"conv": {}, "relu": {}})
    assert found.verdict == "fused"
    assert {name: told.verdict for name, told in found.when.items()} == {
        "alone": "fused",
        "alone/conv": "separate",
    }


# --- sources -------------------------------------------------------------------------------------


def sourced(model: Sequence[str], nodes: Mapping[str, Sequence[str]]) -> StoredGraph:
    """A chain of model ops, and executed nodes with the ops that each covers."""
    ops = tuple(
        ModelOp(name=name, type="T", inputs=(f"o{i}",), outputs=(f"o{i + 1}",))
        for i, name in enumerate(model)
    )
    made = tuple(
        ExecutedNode(
            name=name, type=name, inputs=(f"t{i}",), outputs=(f"t{i + 1}",), sources=tuple(covers)
        )
        for i, (name, covers) in enumerate(nodes.items())
    )
    graph = ExecutedGraph(nodes=made, inputs=("t0",), ops=ops, op_inputs=("o0",))
    return StoredGraph(graph=graph, outputs=None)


CONV = sourced(["k", "bias"], {"Conv": ["k", "bias"]})
RELU = sourced(["r"], {"Relu": ["r"]})


@pytest.mark.parametrize("names", [("k", "bias", "r"), ("9", "0", "k"), ("r", "k", "bias")])
def test_a_node_that_covers_ops_of_both_means_fused_whatever_they_are_called(names):
    k, bias, r = names
    fused = sourced(names, {"Conv[relu]": [k, bias, r]})
    assert pair(CONV, RELU, fused).verdict == "fused"
    separate = sourced(names, {"Conv": [k, bias], "Relu": [r]})
    assert pair(CONV, RELU, separate).verdict == "separate"


def test_the_two_ways_disagreeing_is_undecided_and_logged(caplog):
    parts = {"Conv": ["k"], "Bias": ["bias"]}
    split = sourced(["k", "bias"], parts)
    covered = sourced(["k", "bias", "r"], {**parts, "X": ["bias", "r"], "Y": ["r"]})
    with caplog.at_level(logging.WARNING):
        found = pair(split, RELU, covered)
    assert (found.obey, found.verdict) == (None, "undecided")
    assert "one executed node covers both, but the block executes no fewer" in found.reason
    assert "BF_a_b" in caplog.text
    dropped = sourced(["k", "bias", "r"], {"Conv": ["k", "bias"]})
    found = pair(CONV, RELU, dropped)
    assert "no executed node covers both, but the block executes fewer" in found.reason


def test_an_op_that_is_a_kernel_alone_and_a_view_in_the_block_is_free():
    """OpenVINO writes a concatenation's inputs in place where a convolution reads it."""
    concat, conv = sourced(["c"], {"Concat": ["c"]}), sourced(["k"], {"Conv": ["k"]})
    block = sourced(["c", "k"], {"Concat": ["c"], "Conv": ["k"]})
    in_place = replace(block.graph.nodes[0], kind="view")
    graph = replace(block.graph, nodes=(in_place, block.graph.nodes[1]))
    found = pair(concat, conv, StoredGraph(graph=graph, outputs=None))
    assert (found.verdict, found.free) == ("free", ("a",))


def test_a_node_whose_sources_are_not_told_leaves_it_to_counting():
    block = sourced(["k", "bias", "r"], {"Conv": ["k", "bias"]})
    unknown = ExecutedGraph(
        nodes=(ExecutedNode(name="n", type="N", inputs=("t0",), outputs=("t1",)),),
        inputs=("t0",),
        ops=block.graph.ops,
        op_inputs=("o0",),
    )
    assert pair(CONV, RELU, StoredGraph(graph=unknown, outputs=None)).verdict == "fused"


# --- elimination ---------------------------------------------------------------------------------


def test_an_op_that_changes_nothing_and_is_not_executed_is_eliminated():
    one = row("Relu", outputs="same")
    found = pair(one, one, row("Relu", outputs="same"))
    assert (found.verdict, found.eliminated) == ("fused", True)
    first = pair(row("Relu", outputs="x"), row("Clip", outputs="y"), row("Clip", outputs="y"))
    assert (first.verdict, first.eliminated) == ("fused", True)


def test_folding_and_fusing_are_no_elimination():
    folded = pair(row("Conv", outputs="x"), row("BN", outputs="y"), row("Conv", outputs="z"))
    assert (folded.verdict, folded.eliminated) == ("fused", False)
    both = row("Relu[Relu]", outputs="same")
    one = row("Relu", outputs="same")
    assert pair(one, one, both).eliminated is False
    unknown = pair(row("Relu"), row("Relu"), row("Relu"))
    assert unknown.eliminated is False


def test_an_eliminated_op_that_no_node_covers_is_no_contradiction():
    one = sourced(["r"], {"Relu": ["r"]})
    block = sourced(["r", "s"], {"Relu": ["r"]})
    known = [StoredGraph(graph=part.graph, outputs="same") for part in (one, one, block)]
    found = pair(*known)
    assert (found.verdict, found.eliminated) == ("fused", True)


# --- longer chains -------------------------------------------------------------------------------


def three(**graphs: StoredGraph) -> Verdict:
    names = {"a": "0-1", "b": "1-2", "c": "2-3", "ab": "0-2", "bc": "1-3", "abc": "0-3"}
    parts = {names[name]: graph for name, graph in graphs.items()}
    return judge_chain(("a", "b", "c"), parts, rule="BF_a_b_c")


def words(found: Verdict) -> list[str]:
    return [edge.verdict for edge in found.edges]


def test_an_edge_that_needs_what_is_before_it():
    """A batch normalization takes no relu, but a convolution with one folded into it does."""
    found = three(
        **{"a": row("A"), "b": row("B"), "c": row("C")},
        **{"ab": row("A"), "bc": row("B", "C"), "abc": row("A[c]")},
    )
    assert (found.obey, words(found)) == (True, ["fused", "fused"])


def test_a_chain_that_is_one_node_as_a_whole_only():
    """OpenVINO takes attention as one kernel, and no two neighbours of it."""
    parts = {
        **{"a": row("M"), "b": row("S"), "c": row("M")},
        **{"ab": row("M", "S"), "bc": row("S", "M")},
    }
    found = three(**parts, abc=row("MSM"))
    assert (found.obey, words(found)) == (True, ["fused", "fused"])
    assert three(**parts, abc=row("X", "Y")).verdict == "undecided"
    assert three(**parts, abc=row("M", "S", "M")).verdict == "separate"


def test_an_op_that_either_neighbour_would_take_goes_where_the_block_has_it():
    parts = {
        **{"a": row("A"), "b": row("B"), "c": row("C")},
        **{"ab": row("A[b]"), "bc": row("B[c]")},
    }
    found = three(**parts, abc=row("A", "B[c]"))
    assert (found.obey, words(found)) == (False, ["separate", "fused"])
    found = three(**parts, abc=row("A[b]", "C"))
    assert (found.obey, words(found)) == (False, ["fused", "separate"])
    found = three(**parts, abc=row("X", "Y"))
    assert (found.obey, found.verdict) == (None, "undecided")
    assert "disagree" in found.reason


def test_an_op_that_is_a_view_at_the_input_and_a_kernel_in_the_chain():
    """OpenVINO's concatenation is in place at the graph's input, and a kernel behind a conv."""
    found = three(
        **{"a": row("Conv"), "b": row("view:Concat"), "c": row("Relu")},
        **{"ab": row("Conv", "Concat"), "bc": row("view:Concat", "Relu")},
        abc=row("Conv", "Concat", "Relu"),
    )
    assert words(found) == ["separate", "separate"]


def test_a_free_op_in_a_chain():
    found = three(
        **{"a": row("A"), "b": row("view:V"), "c": row("C")},
        **{"ab": row("A"), "bc": row("C"), "abc": row("A", "C")},
    )
    assert (found.obey, words(found), found.free) == (None, ["free", "free"], ("b",))


# --- cases ---------------------------------------------------------------------------------------


def mon(**types: Sequence[str]) -> str | None:
    case = find.testcase_named("MON", CONFIG)
    graphs = {name: row(*nodes).graph for name, nodes in types.items()}
    return case.grouping(graphs)


MON = {
    "relu_relu": ["Relu", "Relu"],
    "relu_dwconv": ["Leaky", "Conv"],
    "dwconv": ["Conv"],
    "dwconv_relu": ["Conv[leaky]"],
    "dwconv_relu_relu": ["Conv[relu]", "Relu"],
}


def test_the_case_whose_nodes_the_block_executes():
    assert mon(**MON, block=["Conv", "Relu", "Relu", "Leaky", "Conv"]) == "case1"
    assert mon(**MON, block=["Conv[relu]", "Relu", "Leaky", "Conv"]) == "case2"
    assert mon(**MON, block=["Conv[leaky]", "Conv", "Relu", "Relu"]) == "case3"
    assert mon(**MON, block=["Everything"]) is None


def test_cases_that_look_alike_mean_the_one_that_claims_least():
    apart = MON | {"dwconv_relu": ["Conv", "Leaky"], "dwconv_relu_relu": ["Conv", "Relu", "Relu"]}
    assert mon(**apart, block=["Conv", "Relu", "Relu", "Leaky", "Conv"]) == "case1"


# --- which evidence ------------------------------------------------------------------------------


def test_auto_takes_the_graph_and_records_the_formula():
    case = find.testcase_named("BF_conv_relu", CONFIG)
    graphs = CaseGraphs(models={"conv": row("A"), "relu": row("B"), "block": row("A", "B")})
    entries = {name: {"latency": "1.0 +- 0.0"} for name in ("conv", "relu", "block")}
    found = Judges("auto", {"BF_conv_relu": graphs}).judge(case, entries)
    assert (found.evidence, found.obey, found.others) == ("graph", False, {"formula": True})
    assert Judges("auto", {}).judge(case, entries).evidence == "formula"
    assert Judges("formula", {"BF_conv_relu": graphs}).judge(case, entries).obey is True
    assert Judges("graph", {}).judge(case, entries) is None


# --- situations ----------------------------------------------------------------------------------


def test_situations_of_a_pair():
    assert set(plan(("conv", "relu"), CONFIG).situations) == {"context"}
    assert set(plan(("conv", "add"), CONFIG).situations) == {
        *("context", "context/conv", "context/own", "alone/conv", "alone/own"),
        *("context/passed", "context/again"),
    }
    operands = {"context/passed", "context/again"}
    assert not operands & set(plan(("add", "relu"), CONFIG).situations)
    assert not operands & set(plan(("conv", "add", "relu"), CONFIG).situations)
    assert set(plan(("fc", "relu"), CONFIG).situations) == set()
    assert set(plan(("maxpool", "add"), CONFIG).situations) == {
        *("context", "context/conv", "alone/conv"),  # the pool halves: no residual
    }


def test_models_of_a_situation():
    models = plan(("conv", "add"), CONFIG | {"HW": 8, "CIN": 4, "COUT": 6}).situations
    own = models["alone/own"]["0-2"]
    assert (own.input_shape, own.operands) == ((4, 8, 8), (None, 0))
    assert own.output_shape() == [4, 8, 8]
    inside = models["context/own"]["0-2"]
    assert inside.ops == ("conv", "avgpool", "conv", "add", "avgpool")
    assert inside.operands == (None, None, None, 2, None)
    before, behind = (models["context"][name] for name in ("before", "behind"))
    assert (before.ops, before.input_shape) == (("conv", "avgpool"), (4, 8, 8))
    assert before.output_shape() == [4, 8, 8]
    assert (behind.ops, behind.input_shape) == (("avgpool",), (6, 8, 8))
    passed, again = (models[f"context/{name}"] for name in ("passed", "again"))
    ahead = ("conv", "maxpool", "maxpool")
    assert passed["0-2"].ops == (*ahead, "conv", "add", "avgpool")
    assert passed["0-2"].operands == (None, None, None, None, 2, None)
    assert again["0-2"].ops == (*ahead, "conv", "add", "avgpool", "add")
    assert again["0-2"].operands == (None, None, None, None, 2, None, 2)
    assert again["0-1"].ops == (*ahead, "conv")
    assert (again["1-2"].ops, again["1-2"].operands) == (("add", "avgpool", "add"), (None,) * 3)
    assert (again["before"].ops, again["behind"].ops) == (ahead, ("avgpool", "add"))
    assert again["0-2"].output_shape() == [4, 8, 8]
    assert models["context"]["0-1"].ops == ("conv", "avgpool", "conv")
    assert models["context"]["1-2"].ops == ("add", "avgpool")
    operand = models["alone/conv"]["0-2"].operands[1]
    assert (operand.ops, operand.output_shape()) == (("conv",), [6, 8, 8])
    assert models["alone/conv"]["operand-1"] == operand
    assert models["alone/own"]["1-2"].operands == (None,)
