"""Learning what rules lack: which test cases are proposed, and what of the answers is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hand_graphs import Builder, rules

from nn_meter.builder.config import RuletestConfig
from nn_meter.fusion_rules.read import parse_rules
from nn_meter.kernel_detector.check.truth import Truth
from nn_meter.kernel_detector.graph import Graph
from nn_meter.kernel_detector.rule_source import load_rules
from nn_meter.kernel_detector.suggest import Known, cut, layouts, learn
from nn_meter.kernel_detector.suggest.asking import Answers
from nn_meter.kernel_detector.suggest.layouts import with_sizes

SIZES = RuletestConfig(IMPLEMENT="onnx").model_dump()
OPERATORS = frozenset({"conv", "bn", "relu", "tanh", "add", "mul", "fc", "matmul", "gelu", "se"})

Says = Callable[[tuple[str, str], Mapping[str, int]], bool]


class Runtime:
    """Answers test cases as it is told to, and remembers what it was asked."""

    operators = OPERATORS
    sizes = SIZES

    def __init__(self, says: Says, *, situations: Sequence[str] = ("context",)) -> None:
        self._says = says
        self._situations = situations
        self.asked: list[str] = []
        self.asked_sizes: list[Mapping[str, int]] = []

    def ask(self, names: Sequence[str], sizes: Mapping[str, int] | None = None) -> Answers:
        self.asked += [name for name in names if not sizes]
        self.asked_sizes += [sizes] if sizes else []
        here = {**{key: SIZES[key] for key in ("CIN", "COUT", "HW")}, **(sizes or {})}
        refused = {name: "no such shape" for name in names if name == "BF_fc_bn"}
        return Answers(
            rules={name: self._rule(name, here) for name in names if name not in refused},
            refused=refused,
        )

    def _rule(self, name: str, sizes: Mapping[str, int]) -> dict[str, Any]:
        if not name.startswith("BF_"):
            return {"obey": "case2", "verdict": "case2", "evidence": "graph"}
        found = [self._says(pair, sizes) for pair in pairwise(name.split("_")[1:])]
        finding: dict[str, Any] = {"obey": all(found), "evidence": "graph"}
        if len(found) > 1:
            finding["edges"] = [
                {"ops": list(pair), "verdict": "fused" if fused else "separate"}
                for pair, fused in zip(pairwise(name.split("_")[1:]), found, strict=True)
            ]
        return {**finding, "when": dict.fromkeys(self._situations, finding)}


def never(pair: tuple[str, str], sizes: Mapping[str, int]) -> bool:
    return False


def executed(graph: Graph, *kernels: str) -> Known:
    """What was executed, as numbers of ops: ``012`` is one kernel of three."""
    groups = {f"op{int(op)}": number for number, ops in enumerate(kernels) for op in ops}
    return Known(graph=graph, truth=Truth(groups=groups))


def asked_again(**obeys: Any) -> dict[str, Any]:
    """Rules that were found by graph, alone and in context: nothing is left to ask of them."""
    return {
        name: {**rule, "evidence": "graph", "when": {"context": rule}}
        for name, rule in rules(**obeys).items()
    }


def conv_tanh(times: int = 1) -> Graph:
    b = Builder()
    x = b.input()
    for _ in range(times):
        x = b.op("Tanh", b.conv(x))
    return b.graph(x)


# --- pairs ---------------------------------------------------------------------------------------


def test_a_missing_pair_is_asked_as_the_splitter_looks_it_up():
    b = Builder()
    graph = b.graph(b.op("Tanh", b.bn(b.conv(b.input()))))
    runtime = Runtime(lambda pair, _: pair == ("conv", "tanh"))
    learned = learn(executed(graph, "012"), asked_again(conv_bn=True), runtime)
    assert runtime.asked == ["BF_conv_tanh"]
    assert (learned.before.wrong, learned.after.wrong) == (1, 0)
    (asked,) = learned.asked
    assert asked.to_json() == {
        "name": "BF_conv_tanh",
        "kind": "pair",
        "why": "there is no rule",
        "edges": 1,
        "verdict": "fused",
        "when": {"context": "fused"},
        "kept": True,
    }
    assert learned.rules["BF_conv_bn"] == asked_again(conv_bn=True)["BF_conv_bn"]
    other = executed(conv_tanh(2), "01", "23")
    assert cut(other, load_rules(learned.rules)).wrong == 0


def test_what_is_right_asks_nothing():
    runtime = Runtime(never)
    given = asked_again(conv_bn=True)
    learned = learn(executed(conv_tanh(), "0", "1"), given, runtime)
    assert (runtime.asked, learned.asked, learned.rules) == ([], [], given)


def test_a_rule_by_which_more_edges_are_wrong_is_not_taken_over():
    known = executed(conv_tanh(3), "01", "2", "3", "4", "5")
    learned = learn(known, asked_again(tanh_conv=False), Runtime(lambda *_: True))
    refused = {a.proposal.name: a.reason for a in learned.asked if not a.is_kept}
    assert refused["BF_conv_tanh"] == "edges are wrong by it that were right"
    assert "BF_conv_tanh" not in learned.rules
    assert learned.after.wrong == learned.before.wrong == 1


def test_a_stand_in_that_cannot_be_built_gives_way_to_the_next():
    b = Builder()
    x = b.op("Gemm", b.input((1, 8)), b.constant(shape=(8, 8)), shape=(1, 8))
    graph = b.graph(b.op("Mul", x, b.constant(shape=(8,))))
    runtime = Runtime(lambda pair, _: pair == ("fc", "mul"))
    learned = learn(executed(graph, "01"), asked_again(fc_add=False), runtime)
    assert runtime.asked == ["BF_fc_bn", "BF_fc_mul"]
    assert [a.verdict for a in learned.asked] == ["cannot be built", "fused"]
    assert learned.after.wrong == 0


@pytest.mark.parametrize("rule", [{"obey": False}, {"obey": False, "evidence": "formula"}])
def test_a_rule_of_no_situation_or_of_latencies_is_asked_again(rule):
    runtime = Runtime(lambda *_: True)
    learned = learn(executed(conv_tanh(), "01"), {"BF_conv_tanh": rule}, runtime)
    assert [a.proposal.kind for a in learned.asked] == ["situations"]
    assert learned.rules["BF_conv_tanh"]["obey"] is True
    assert learned.after.wrong == 0


def test_what_several_read_asks_for_mon():
    b = Builder()
    x = b.conv(b.input())
    graph = b.graph(b.op("Tanh", b.relu(x)), b.conv(b.op("Tanh", x)))
    runtime = Runtime(never)
    given = asked_again(conv_relu=True, conv_tanh=False, relu_tanh=False, tanh_conv=False)
    learned = learn(executed(graph, "01", "2", "3", "4"), given, runtime)
    assert runtime.asked[0] == "MON"
    assert learned.rules["MON"]["obey"] == "case2"
    assert learned.after.wrong == 0


# --- what cannot be asked ------------------------------------------------------------------------


def test_operators_that_the_tester_lacks_are_counted():
    b = Builder()
    x = b.op("LRN", b.conv(b.input()))
    graph = b.graph(b.op("LRN", b.conv(x)))
    runtime = Runtime(never)
    learned = learn(executed(graph, "01", "23"), {}, runtime)
    assert runtime.asked == []
    (unasked,) = learned.unasked
    assert (unasked.operators, unasked.edges) == (("conv", "lrn"), 2)
    assert unasked.reason == "the tester has no operator lrn"
    (left,) = learned.left
    assert left.to_json() == {
        "operators": ["conv", "lrn"],
        "executed": "fused",
        "why": "there is no rule (BF_conv_lrn)",
        "edges": 2,
    }


def test_a_product_of_two_tensors_is_not_one_with_a_constant():
    b = Builder()
    x = b.op("MatMul", b.input((1, 8, 8)), b.input((1, 8, 8)), shape=(1, 8, 8))
    graph = b.graph(b.op("Tanh", x))
    learned = learn(executed(graph, "01"), {}, runtime := Runtime(never))
    assert runtime.asked == []
    assert "no operator bmm" in learned.unasked[0].reason


# --- chains --------------------------------------------------------------------------------------


def conv_bn_relu(channels: int = 16, before: int = 16) -> Graph:
    b = Builder()
    x = b.conv(b.input((1, before, 8, 8)), channels=channels)
    return b.graph(b.op("Tanh", b.relu(b.bn(x))))


def test_where_pairs_are_wrong_a_chain_is_asked():
    given = asked_again(conv_bn=True, conv_relu=True, relu_tanh=False, conv_tanh=False)
    runtime = Runtime(lambda pair, _: pair in {("conv", "bn"), ("conv", "relu")})
    learned = learn(executed(conv_bn_relu(), "01", "2", "3"), given, runtime)
    assert "BF_conv_bn_relu" in runtime.asked
    assert "BF_bn_relu_tanh" in runtime.asked
    assert learned.kept == ["BF_conv_bn_relu"]
    assert learned.after.wrong == 0


def test_a_chain_that_was_asked_with_nothing_around_says_nothing_of_a_model():
    given = asked_again(conv_bn=True, conv_relu=True, relu_tanh=False, conv_tanh=False)
    runtime = Runtime(lambda pair, _: pair in {("conv", "bn"), ("conv", "relu")}, situations=())
    learned = learn(executed(conv_bn_relu(), "01", "2", "3"), given, runtime)
    assert learned.kept == []
    refused = {a.proposal.name: a.reason for a in learned.asked}
    assert "with something around" in refused["BF_conv_bn_relu"]


# --- sizes ---------------------------------------------------------------------------------------

PAIRS = {"conv_relu": True, "relu_tanh": False, "conv_tanh": False}


def conv_relu(before: int, channels: int = 256) -> Graph:
    b = Builder()
    x = b.relu(b.conv(b.input((1, before, 8, 8)), channels=channels))
    return b.graph(b.op("Tanh", x))


def fuses_by(is_good: Callable[[int], bool], key: str = "CIN") -> Says:
    return lambda pair, sizes: pair == ("conv", "relu") and is_good(sizes[key])


@pytest.mark.parametrize(
    ("is_good", "wrong_at", "bound"),
    [
        (lambda size: size % 16 == 0, 8, {"no_multiple_of": 16}),
        (lambda size: size % 16 == 0, 24, {"no_multiple_of": 16}),
        (lambda size: size % 8 == 0, 12, {"no_multiple_of": 8}),
        (lambda size: size >= 12, 3, {"most": 11}),
        (lambda size: size < 50, 64, {"least": 50}),
    ],
)
def test_the_sizes_up_to_which_a_rule_holds_are_found(is_good, wrong_at, bound):
    runtime = Runtime(fuses_by(is_good))
    known = executed(conv_relu(wrong_at), "0", "1", "2")
    learned = learn(known, asked_again(**PAIRS), runtime)
    assert learned.after.wrong == 0
    (sized,) = learned.rules["BF_conv_relu"]["sizes"]
    assert sized["where"] == {"channels": bound}
    assert sized["obey"] is False
    assert len(runtime.asked_sizes) <= 10  # models are built for each
    assert "where channels is " in learned.asked[0].reason
    for size in (4, 8, 12, 16, 24, 32, 40, 48, 96):  # which it was not learned from
        fused = is_good(size)
        other = executed(conv_relu(size), *(["01", "2"] if fused else ["0", "1", "2"]))
        assert cut(other, load_rules(learned.rules)).wrong == 0, size


def test_which_of_several_sizes_matters_is_found():
    runtime = Runtime(fuses_by(lambda size: size >= 100, "COUT"))
    known = executed(conv_relu(8, channels=24), "0", "1", "2")
    learned = learn(known, asked_again(**PAIRS), runtime)
    (sized,) = learned.rules["BF_conv_relu"]["sizes"]
    assert sized["where"] == {"out_channels": {"most": 99}}
    runtime = Runtime(fuses_by(lambda size: size >= 10, "HW"))
    learned = learn(known, asked_again(**PAIRS), runtime)
    (sized,) = learned.rules["BF_conv_relu"]["sizes"]
    assert sized["where"] == {"spatial": {"most": 9}}


def test_where_sizes_explain_nothing_no_condition_is_made():
    runtime = Runtime(fuses_by(lambda size: True))
    known = executed(conv_relu(8), "0", "1", "2")
    learned = learn(known, asked_again(**PAIRS), runtime)
    assert "sizes" not in learned.rules["BF_conv_relu"]
    reasons = {a.proposal.name: a.reason for a in learned.asked}
    assert "no condition on one size" in reasons["BF_conv_relu"]


def test_a_rule_of_another_runtime_is_found_anew():
    runtime = Runtime(never)
    learned = learn(executed(conv_relu(8), "0", "1", "2"), asked_again(**PAIRS), runtime)
    assert learned.rules["BF_conv_relu"]["obey"] is False
    assert "sizes" not in learned.rules["BF_conv_relu"]
    assert [(a.proposal.kind, a.is_kept) for a in learned.asked] == [("again", True)]
    assert learned.after.wrong == 0


def test_it_comes_to_an_end_whatever_the_runtime_says():
    b = Builder()
    x = b.input()
    for _ in range(2):
        x = b.op("Tanh", b.relu(b.bn(b.conv(x))))
    known = executed(b.graph(x), "0", "12", "3", "45", "67")
    calls = []

    def moody(pair: tuple[str, str], sizes: Mapping[str, int]) -> bool:
        calls.append(pair)
        return len(calls) % 3 == 0

    learned = learn(known, {}, Runtime(moody))
    assert learned.after.wrong <= learned.before.wrong
    assert len(calls) < 2000


# --- sizes without a model -----------------------------------------------------------------------


class Layouts(Runtime):
    """Fuses in context where the channels are whole blocks, and never alone."""

    def __init__(self, block: int) -> None:
        super().__init__(never)
        self.block = block

    def _rule(self, name: str, sizes: Mapping[str, int]) -> dict[str, Any]:
        inside = {"obey": sizes["CIN"] % self.block == 0, "evidence": "graph"}
        return {"obey": False, "evidence": "graph", "when": {"context": inside}}


@pytest.mark.parametrize(("block", "asked"), [(16, [24, 32, 40, 48]), (8, [24, 12, 16, 20])])
def test_rules_that_go_by_a_layout_hold_of_whole_blocks_of_channels(
    block: int, asked: list[int]
) -> None:
    runtime = Layouts(block)
    given = runtime.ask(["BF_bn_relu", "BF_conv_add"]).rules
    given |= rules(conv_relu=True, conv_tanh=False)  # neither goes by what is around it

    found = with_sizes(given, runtime)

    assert set(found) == {"BF_bn_relu", "BF_conv_add"}
    assert [sized["where"] for sized in found["BF_bn_relu"]["sizes"]] == [
        {"channels": {"no_multiple_of": block}}
    ]
    assert found["BF_conv_add"]["sizes"][0]["where"] == {"out_channels": {"no_multiple_of": block}}
    assert {size["CIN"] for size in runtime.asked_sizes} >= set(asked[:2])
    rule = parse_rules(found, "rules").rules["BF_bn_relu"]
    (sized,) = rule.sizes
    assert sized.findings["context"].obey is False
    assert rule.findings["context"].obey is True
    assert not sized.holds({"channels": [4 * block]})
    assert sized.holds({"channels": [4 * block + block // 2]})


def test_rules_that_hold_of_all_sizes_have_none() -> None:
    runtime = Layouts(1)
    assert with_sizes(runtime.ask(["BF_bn_relu"]).rules, runtime) == {}
    assert with_sizes(rules(conv_relu=True), runtime) == {}


@dataclass(frozen=True)
class Place:
    """As much of a workspace as is looked at."""

    path: Path


def test_sizes_that_were_found_before_are_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = Layouts(16)
    monkeypatch.setattr(layouts, "Asker", lambda *_, **__: runtime)
    workspace: Any = Place(path=tmp_path)
    given = runtime.ask(["BF_bn_relu"]).rules
    first = layouts.ask_sizes(given, None, workspace)  # type: ignore[arg-type]
    runtime.asked_sizes.clear()
    again = layouts.ask_sizes(given, None, workspace, earlier=first)  # type: ignore[arg-type]
    assert (again, runtime.asked_sizes) == (first, [])
    changed = {"BF_bn_relu": {**first["BF_bn_relu"], "obey": True}}
    assert layouts.ask_sizes(given, None, workspace, earlier=changed) == first  # type: ignore[arg-type]
    assert runtime.asked_sizes
