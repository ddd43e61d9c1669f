"""Verdicts by the clock: of pairs, chains and test cases of cases, and beside other evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nn_meter.builder.backend_meta.fusion_rule_tester import build, find
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.cases import CALL, decide_case
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.decision import Opinion
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.design import Method, design_edge
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.evidence import LatencyEvidence
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.measure import Asked, bench_of
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.plan import Bench, Question
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.statistics import Spread
from nn_meter.builder.backend_meta.fusion_rule_tester.evidence import Judges
from nn_meter.builder.backend_meta.fusion_rule_tester.verdict import Edge, Verdict
from nn_meter.builder.backends.base import Environment
from nn_meter.builder.config import RuletestConfig
from nn_meter.builder.profiling.store import Store, StoredTrial

CONFIG = {**RuletestConfig().as_dict(), "MODEL_DIR": ".", "IMPLEMENT": "onnx"}
FUSED = Opinion(verdict="fused", saving=0.9, low=0.7, high=1.1, control="tanh", settled=True)
SEPARATE = Opinion(verdict="separate", saving=0.0, low=-0.1, high=0.1, settled=True)
OPEN = Opinion(verdict="undecided", saving=0.3, low=0.0, high=0.6, reason="too close")
FREE = Opinion(verdict="free", free=("tail",), reason="the tail costs nothing", settled=True)


def judged(name: str, *opinions: Opinion, choice: str = "latency", entries: Any = None) -> Any:
    questions = {
        str(edge): Question(
            name=str(edge), rule=name, opinion=opinion, loads=[{"head": 1.0}], cost_s=0.25
        )
        for edge, opinion in enumerate(opinions)
    }
    bench = Bench(questions=questions, references={}, method=Method(), alpha=0.5, confidence=0.95)
    case = find.testcase_named(name, CONFIG)
    return Judges(choice, {}, {name: bench}).judge(case, entries or {"block": {}})


@pytest.mark.parametrize(
    ("opinion", "obey"), [(FUSED, True), (SEPARATE, False), (OPEN, None), (FREE, None)]
)
def test_an_opinion_becomes_a_verdict_with_its_numbers(opinion, obey):
    found = judged("BF_conv_relu", opinion)
    told = found.to_json(detail=False)
    assert (told["verdict"], told["obey"], told["evidence"]) == (opinion.verdict, obey, "latency")
    assert told["confidence"] == 0.95
    assert told["cost"] == {"loads": 1, "runtime_s": 0.25}
    assert told.get("reason", "") == opinion.reason
    if opinion.saving is not None:
        assert [told[key] for key in ("saving", "low", "high")] == [
            *(opinion.saving, opinion.low, opinion.high)
        ]
    assert told.get("free") == (["relu"] if opinion is FREE else None)


@pytest.mark.parametrize(
    ("opinions", "verdict"),
    [
        ((FUSED, FUSED), "fused"),
        ((FUSED, SEPARATE), "separate"),
        ((SEPARATE, OPEN), "separate"),
        ((FUSED, OPEN), "undecided"),
        ((FREE, FUSED), "free"),
    ],
)
def test_a_chain_has_a_verdict_for_each_edge_and_one_for_all(opinions, verdict):
    found = judged("BF_conv_bn_relu", *opinions)
    assert found.verdict == verdict
    assert [edge.ops for edge in found.edges] == [("conv", "bn"), ("bn", "relu")]
    assert [edge.verdict for edge in found.edges] == [opinion.verdict for opinion in opinions]
    assert found.clock.loads == 2
    assert found.clock.runtime_s == 0.5


@pytest.mark.parametrize(
    ("timed", "graph", "word"),
    [
        ("separate", "fused", "undecided"),
        ("fused", "separate", "undecided"),
        ("fused", "fused", "fused"),
        ("", "separate", "fused"),
        ("undecided", "separate", "fused"),
        ("separate", "free", "fused"),
    ],
)
def test_a_pair_that_runs_otherwise_in_the_size_timed_is_left_open(timed, graph, word):
    question = Question(name="1", rule="BF_conv_relu", opinion=FUSED, timed=timed, loads=[{}])
    bench = Bench(
        questions={"1": question}, references={}, method=Method(), alpha=0.5, confidence=0.95
    )
    case = find.testcase_named("BF_conv_relu", CONFIG)
    asked = Verdict(obey=None, verdict=graph, evidence="graph")
    found = LatencyEvidence({"BF_conv_relu": bench}).judge(case, {}, asked)
    assert found.verdict == found.clock.verdict == word
    if word == "undecided":
        assert found.reason == (
            f"it is {timed} in the size that it was timed in, and {graph} in the size asked for"
        )


def test_only_the_edge_that_runs_otherwise_is_left_open():
    questions = {
        str(k): Question(
            name=str(k), rule="BF_conv_bn_relu", opinion=FUSED, timed="fused", loads=[{}]
        )
        for k in range(2)
    }
    bench = Bench(questions=questions, references={}, method=Method(), alpha=0.5, confidence=0.95)
    case = find.testcase_named("BF_conv_bn_relu", CONFIG)
    edges = [
        Edge(ops=("conv", "bn"), verdict="fused"),
        Edge(ops=("bn", "relu"), verdict="separate"),
    ]
    asked = Verdict(obey=False, verdict="separate", evidence="graph", edges=edges)
    found = LatencyEvidence({"BF_conv_bn_relu": bench}).judge(case, {}, asked)
    assert [edge.verdict for edge in found.edges] == ["fused", "undecided"]


@pytest.mark.parametrize(("opinion", "word"), [(FUSED, "undecided"), (SEPARATE, "separate")])
def test_a_chain_with_an_edge_that_could_not_be_asked_is_not_fused(opinion, word):
    asked = {"1": Question(name="1", rule="BF_conv_bn_relu", opinion=opinion, loads=[{}])}
    bench = Bench(
        questions=asked,
        references={},
        method=Method(),
        alpha=0.5,
        confidence=0.95,
        refused={"clock:BF_conv_bn_relu:2": "no relu of 16 channels"},
    )
    case = find.testcase_named("BF_conv_bn_relu", CONFIG)
    found = LatencyEvidence({"BF_conv_bn_relu": bench}).judge(case, {})
    assert found.verdict == word
    assert (found.reason == "no relu of 16 channels") == (word == "undecided")


def test_a_rule_that_the_clock_was_not_asked_has_no_verdict_by_it():
    case = find.testcase_named("BF_conv_relu", CONFIG)
    assert Judges("latency", {}).judge(case, {"block": {}}) is None


@pytest.mark.parametrize("begun", [True, False])
def test_a_rule_whose_turn_did_not_come_is_open_if_the_clock_was_asked_at_all(begun):
    asked = {"1": Question(name="1", rule="BF_conv_relu")}
    if begun:
        asked["2"] = Question(name="2", rule="BF_conv_bn", opinion=SEPARATE, loads=[{}])
    bench = Bench(questions=asked, references={}, method=Method(), alpha=0.5, confidence=0.95)
    case = find.testcase_named("BF_conv_relu", CONFIG)
    found = LatencyEvidence({"BF_conv_relu": bench}).judge(case, {})
    if not begun:
        assert found is None
        return
    assert (found.verdict, found.obey, found.clock.loads) == ("undecided", None, 0)
    assert found.reason == (
        "the time was up before its turn came (TIME_BUDGET; of validate, --budget)"
    )


def test_auto_takes_the_formula_for_a_rule_whose_turn_did_not_come():
    asked = {"1": Question(name="1", rule="BF_conv_relu")}
    asked["2"] = Question(name="2", rule="BF_conv_bn", opinion=SEPARATE, loads=[{}])
    bench = Bench(questions=asked, references={}, method=Method(), alpha=0.5, confidence=0.95)
    case = find.testcase_named("BF_conv_relu", CONFIG)
    entries = {name: {"latency": "1.0 +- 0.0"} for name in ("conv", "relu", "block")}
    found = Judges("auto", {}, {"BF_conv_relu": bench}).judge(case, entries)
    assert (found.evidence, found.obey) == ("formula", True)
    assert found.others == {"latency": None}


def test_auto_takes_the_clock_before_the_formula_and_says_what_that_says():
    entries = {name: {"latency": "1.0 +- 0.0"} for name in ("conv", "relu", "block")}
    found = judged("BF_conv_relu", SEPARATE, choice="auto", entries=entries)
    assert (found.evidence, found.obey) == ("latency", False)
    assert found.others == {"formula": True}
    assert judged("BF_conv_relu", SEPARATE, choice="formula", entries=entries).obey is True


# --- test cases of cases -------------------------------------------------------------------------

CASES = {"case1": ["a", "b"], "case2": ["ab"]}
SPREAD = Spread(variance=0.004**2, freedom=8.0)


def loads(block: float, *, a: float = 5.0, b: float = 3.0, ab: float = 6.0, call: float = 1.0):
    """Three loads of models whose costs are known, each of them half a percent off."""
    rng = np.random.default_rng(1)
    costs = {"a": a, "b": b, "ab": ab, "block": block}
    return [
        {
            CALL: call,
            **{part: (call + cost) * (1 + rng.normal(0, 0.002)) for part, cost in costs.items()},
        }
        for _ in range(3)
    ]


@pytest.mark.parametrize(("block", "case"), [(8.0, "case1"), (6.0, "case2")])
def test_the_case_whose_sum_fits_is_named(block, case):
    found = decide_case(CASES, loads(block), SPREAD, error_rate=0.01)
    assert found.verdict == case
    assert found.low > 0


def test_what_a_call_costs_does_not_count_once_for_each_model():
    found = decide_case(CASES, loads(8.0, call=3.0), SPREAD, error_rate=0.01)
    assert found.verdict == "case1"


def test_two_cases_that_fit_alike_are_undecided():
    found = decide_case(CASES, loads(7.0), SPREAD, error_rate=0.01)
    assert found.verdict == "undecided"
    assert "fit alike" in found.reason
    same = decide_case({"x": ["a", "b"], "y": ["b", "a"]}, loads(8.0), SPREAD, error_rate=0.01)
    assert same.verdict == "undecided"
    assert "the same models" in same.reason


def test_a_case_that_fits_better_by_what_borders_of_models_can_make_is_undecided():
    found = decide_case(CASES, loads(8.0, ab=7.0), SPREAD, error_rate=0.01)
    assert found.low > 0
    assert found.verdict == "undecided"
    assert "borders" in found.reason


@pytest.mark.parametrize("part", [CALL, "a", "ab", "block"])
def test_where_models_of_a_case_have_too_few_runs_no_other_case_wins(part):
    few = [{name: time for name, time in load.items() if name != part} for load in loads(8.0)]
    found = decide_case(CASES, few, SPREAD, error_rate=0.01)
    assert (found.verdict, found.settled) == ("undecided", False)


# --- from the store ------------------------------------------------------------------------------


def test_what_a_verdict_cost_is_known_from_the_store(tmp_path):
    method = Method()
    design = design_edge(("conv",), "relu", CONFIG, method)
    key = build.chain_key(design.models["head"])
    with Store(tmp_path / "samples.db") as store:
        environment = Environment(runtime="none", version="1")
        campaign = store.campaign(store.environment("none", environment))
        visits = [("head", key, np.array([1000, 3000])), ("head", "another's", np.array([9000]))]
        store.add_trial(campaign, "clock:BF_conv_relu:1", StoredTrial(visits=[*visits, *visits]))
        asked = Asked(rule="BF_conv_relu", ops=("conv", "relu"), config=CONFIG)
        bench, _ = bench_of([asked], store, campaign, method=method, alpha=0.5, confidence=0.95)
    (question,) = bench.of("BF_conv_relu")
    assert question.cost_s == pytest.approx(8e-6)
