"""Graphs, references and groupings that cannot be, as a reviewer found them to do harm."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pytest

from nn_meter.builder.backend_meta.fusion_rule_tester import detect_fusion_rule, find
from nn_meter.builder.backend_meta.fusion_rule_tester.graph_evidence import (
    CaseGraphs,
    GraphEvidence,
    judge_chain,
)
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode
from nn_meter.builder.backends.interface import connect_backend
from nn_meter.builder.config import RuletestConfig
from nn_meter.builder.profiling.graphs import outputs_digest
from nn_meter.builder.profiling.interface import profile_models
from nn_meter.builder.profiling.measure import Model
from nn_meter.builder.profiling.store import Store, StoredGraph
from nn_meter.builder.workspace import read_json, write_json
from nn_meter.errors import ResultFileError
from nn_meter.reference import sample_outputs

CONFIG = {**RuletestConfig().as_dict(), "MODEL_DIR": "/nowhere"}


def graph(*types: str) -> StoredGraph:
    nodes = tuple(ExecutedNode(name=text, type=text) for text in types)
    return StoredGraph(graph=ExecutedGraph(nodes=nodes), outputs=None)


def test_the_walk_through_a_large_graph_is_quick():
    n = 20_000
    nodes = tuple(
        ExecutedNode(name=str(i), type="N", inputs=(f"t{i}",), outputs=(f"t{i + 1}",))
        for i in reversed(range(n))
    )
    start = time.process_time()
    assert len(ExecutedGraph(nodes=nodes, inputs=("t0",)).behind(["t0"])) == n
    assert time.process_time() - start < 5


def test_a_circle_ends():
    nodes = (
        ExecutedNode(name="a", type="A", inputs=("x", "b"), outputs=("a",)),
        ExecutedNode(name="b", type="B", inputs=("a",), outputs=("b",)),
        ExecutedNode(name="c", type="C", inputs=("y",), outputs=("c",)),
    )
    found = ExecutedGraph(nodes=nodes, inputs=("x",)).behind(["x"])
    assert [node.name for node in found] == ["a", "b"]


@pytest.mark.parametrize("word", ["\x1b[31mConv", "Conv\n", "Conv\ud800"])
def test_words_that_cannot_be_printed_are_shown_as_what_they_are(word):
    data = ExecutedGraph(nodes=(ExecutedNode(name="n", type=word),)).to_json()
    (node,) = ExecutedGraph.from_json(data).nodes
    assert node.type.isprintable()
    assert "Conv" in node.type
    node.type.encode()


@pytest.mark.parametrize(
    "answer",
    [RuntimeError("alas"), SystemExit(3), RecursionError(), 5, "case9", True, "", "\x1b[31m", []],
)
def test_a_grouping_that_fails_or_answers_nonsense_costs_its_rule_only(answer):
    case = find.testcase_named("MON", CONFIG)

    def grouping(graphs):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    case.grouping = grouping
    names = {"block", *(op for ops in case.cases.values() for op in ops)}
    known = CaseGraphs(models={name: graph("N") for name in names})
    found = GraphEvidence({"MON": known}).judge(case, {})
    assert (found.obey, found.verdict) == (None, "undecided")
    assert "its grouping" in found.reason


def test_a_runtime_that_tells_of_nothing_says_nothing():
    parts = {"0-1": graph(), "1-2": graph(), "0-2": graph()}
    found = judge_chain(("a", "b"), parts, rule="r")
    assert (found.obey, found.verdict) == (None, "undecided")
    assert "no node at all" in found.reason


@pytest.fixture
def profiled(workspace):
    """A workspace by graphs of ONNX Runtime, and its profiled results."""
    from nn_meter.builder.backend_meta.fusion_rule_tester import generate_testcases

    ws = workspace(EVIDENCE="auto", BASIC_TESTCASES=["conv_relu", "relu_relu"])
    testcases = generate_testcases()
    return ws, profile_models(connect_backend("onnxruntime_cpu"), testcases)


def test_a_reference_to_another_models_graph_does_not_count(profiled, caplog):
    _, results = profiled
    results["BF_relu_relu"]["block"]["graph"] = results["BF_conv_relu"]["block"]["graph"]
    with caplog.at_level(logging.WARNING):
        found = detect_fusion_rule(results)
    assert found["BF_conv_relu"]["evidence"] == "graph"
    assert found["BF_relu_relu"]["evidence"] == "formula"
    assert "BF_relu_relu: block: its graph is that of another model" in caplog.text


def test_a_model_that_was_taken_out_of_the_results(profiled):
    _, results = profiled
    del results["BF_conv_relu"]["conv"]
    found = detect_fusion_rule(results)
    assert found["BF_conv_relu"]["verdict"] == "undecided"
    assert found["BF_relu_relu"]["evidence"] == "graph"


def test_an_error_early_on_leaves_the_latencies_in_the_results(profiled):
    ws, results = profiled
    testcases = read_json(ws.results_dir / "origin_testcases.json", "test cases")
    with Store(ws.store_file) as store:
        store._rows("UPDATE graphs SET data = '{'")
    with pytest.raises(ResultFileError):
        profile_models(connect_backend("onnxruntime_cpu"), testcases)
    for place in (ws.results_dir, ws.results_dir / "onnxruntime_cpu"):
        kept = read_json(place / "profiled_results.json", "results")
        assert kept["BF_conv_relu"]["conv"]["latency"] == results["BF_conv_relu"]["conv"]["latency"]


def test_latencies_of_before_are_reported_with_graphs_alone(profiled, workspace):
    _, results = profiled
    workspace(EVIDENCE="graph")
    again = profile_models(connect_backend("onnxruntime_cpu"), results)
    for case, models in results.items():
        for model, entry in models.items():
            assert again[case][model]["latency"] == entry["latency"]


def test_shapes_changed_after_generating_are_not_taken_for_those_of_the_models(
    profiled, workspace, caplog
):
    ws, results = profiled
    made = ws.ruletest.HW
    workspace(HW=made // 2)
    with caplog.at_level(logging.WARNING):
        again = profile_models(connect_backend("onnxruntime_cpu"), results)
    assert f"HW {made}, not {made // 2}" in caplog.text
    detect_fusion_rule(again)
    rules = read_json(ws.results_dir / "detected_fusion_rule.json", "rules")
    assert rules["BF_conv_relu"]["environment"]["options"]["models"]["HW"] == made


def test_a_situation_whose_model_is_no_model_is_left_out(profiled, caplog):
    ws, results = profiled
    listed = read_json(ws.situations_file, "situations")
    listed["BF_conv_relu"]["context"]["0-2"]["model"] = ".."
    write_json(ws.situations_file, listed)
    with caplog.at_level(logging.WARNING):
        again = profile_models(connect_backend("onnxruntime_cpu"), results)
    assert "BF_conv_relu" in caplog.text
    found = detect_fusion_rule(again)
    assert list(found["BF_conv_relu"]["when"]) == ["alone"]


def test_few_outputs_tell_nothing_of_whether_two_models_compute_the_same():
    def digest(n: int) -> str | None:
        outputs = [np.linspace(0.5, 2.0, n, dtype=np.float32)[None]]
        model = Model(
            name="m", path=Path("m"), hash="h", shapes=[[n]], reference=sample_outputs(outputs)
        )
        return outputs_digest(model)

    assert digest(4) is None  # all positive by chance: a relu would change nothing of them
    assert digest(64) is not None
    assert digest(64) == digest(64) != digest(65)
