"""Executed graphs in profiling: asked once a content, kept as they come, one failure costs one."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
import textwrap
from contextlib import closing
from pathlib import Path

import onnx
import psutil
import pytest
import yaml

from nn_meter import registry
from nn_meter.builder import fill_latency
from nn_meter.builder.backend_meta.fusion_rule_tester import detect_fusion_rule, generate_testcases
from nn_meter.builder.backends import BaseBackend, connect_backend
from nn_meter.builder.backends.base import Environment
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode
from nn_meter.builder.backends.onnxruntime.backend import OnnxRuntimeCPUBackend
from nn_meter.builder.profiling.interface import convert_models, profile_models
from nn_meter.builder.profiling.run import ProfileSummary
from nn_meter.builder.workspace import open_workspace, read_json
from nn_meter.errors import (
    BackendError,
    GraphUnavailableError,
    ModelRejectedError,
    ResultFileError,
)

CASES = ["BF_conv_relu", "BF_dwconv_relu", "BF_relu_relu"]
CONTENTS = 7  # of nine models: a relu of one shape stands in two test cases, in one of them twice


def fusing(path: str) -> ExecutedGraph:
    """What a runtime would execute that puts each relu into the convolution before it."""
    graph = onnx.load(path).graph
    nodes: list[ExecutedNode] = []
    for node in graph.node:
        before = nodes[-1] if nodes else None
        if node.op_type == "Relu" and before is not None and before.type == "Conv":
            nodes[-1] = ExecutedNode(
                name=before.name,
                type="Conv[relu]",
                inputs=before.inputs,
                outputs=tuple(node.output),
            )
            continue
        weights = {tensor.name for tensor in graph.initializer}
        nodes.append(
            ExecutedNode(
                name=node.name,
                type=node.op_type,
                inputs=tuple(name for name in node.input if name not in weights),
                outputs=tuple(node.output),
            )
        )
    return ExecutedGraph(nodes=tuple(nodes), inputs=tuple(value.name for value in graph.input))


class Tells(BaseBackend):
    """A backend that shows graphs and can do nothing else; made by hand, so it runs here.

    Args:
        faults: The name of a model -> what reading its graph raises; "" stands for every model.
    """

    def __init__(self, configs=None, faults=None) -> None:
        super().__init__(configs)
        self.faults = faults or {}
        self.asked: list[str] = []

    def describe(self) -> Environment:
        return Environment(
            runtime="tells", version="1", threads=self.configs.get("THREADS", 1), host="here"
        )

    def executed_graph(self, converted_model, shapes) -> ExecutedGraph:
        name = Path(converted_model).stem
        self.asked.append(name)
        for key in (name, ""):
            if key in self.faults:
                raise self.faults[key]
        return fusing(converted_model)


class Both(Tells, OnnxRuntimeCPUBackend):
    """One that opens sessions, too."""


class Many(BaseBackend):
    """A backend that shows graphs by the batch."""

    def __init__(self, configs=None, faults=None) -> None:
        super().__init__(configs)
        self._one = Tells(configs, faults)
        self.asked = self._one.asked
        self.batches: list[int] = []

    def describe(self) -> Environment:
        return self._one.describe()

    def executed_graphs(self, models, save_path):
        assert Path(save_path).is_dir()
        self.batches.append(len(models))
        return [self._executed(*model) for model in models]

    def _executed(self, path, shapes):
        try:
            return self._one.executed_graph(path, shapes)
        except ModelRejectedError as exc:
            return exc


@pytest.fixture
def graphs(generated, workspace):
    """A workspace whose EVIDENCE is graph, with three test cases; and these."""
    _, origin = generated
    return workspace(EVIDENCE="graph"), origin


def count(ws, table: str) -> int:
    with closing(sqlite3.connect(ws.store_file)) as db:
        return db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def keys(testcases) -> dict[str, set[str]]:
    """What was found of the models of each test case."""
    return {
        case: {key for entry in models.values() for key in entry} - {"model", "shapes"}
        for case, models in testcases.items()
    }


def verdicts(detected) -> dict[str, tuple[str, str]]:
    return {name: (found["verdict"], found["evidence"]) for name, found in detected.items()}


FUSED = {
    "BF_conv_relu": ("fused", "graph"),
    "BF_dwconv_relu": ("fused", "graph"),
    "BF_relu_relu": ("separate", "graph"),
}


# --- what is collected ---------------------------------------------------------------------------


def test_graph_collects_graphs_and_no_latencies(graphs):
    ws, origin = graphs
    backend, summary, told = Tells(), ProfileSummary(), []
    found = profile_models(
        backend, origin, summary=summary, progress=lambda *step: told.append(step)
    )
    assert len(backend.asked) == len(set(backend.asked)) == CONTENTS
    assert keys(found) == {case: {"graph"} for case in CASES}
    assert (summary.graphs, summary.failed, summary.measured) == (9, {}, [])
    assert count(ws, "rounds") == count(ws, "reported") == 0
    assert [step[1:3] for step in told if step[0] == "graph"] == [
        (done, CONTENTS) for done in range(1, CONTENTS + 1)
    ]
    detected = detect_fusion_rule(found)
    assert verdicts(detected) == FUSED
    assert detected["BF_conv_relu"]["kernels"] == ["Conv[relu]"]
    rules = read_json(ws.results_dir / "Tells" / "detected_fusion_rule.json", "rules")
    assert {rule["environment"]["runtime"] for rule in rules.values()} == {"tells"}


def test_auto_collects_both_and_the_graph_decides(graphs, workspace):
    ws, origin = graphs
    workspace(EVIDENCE="auto", backend={"RUNS": 5, "WARMUPS": 0})
    summary = ProfileSummary()
    backend = Both({"RUNS": 5, "WARMUPS": 0})
    found = profile_models(backend, origin, summary=summary)
    assert keys(found) == {case: {"graph", "latency"} for case in CASES}
    assert (summary.graphs, summary.measured) == (9, CASES)
    detected = detect_fusion_rule(found)
    assert verdicts(detected) == FUSED
    assert all(set(rule["others"]) == {"formula"} for rule in detected.values())
    assert count(ws, "rounds") == 15


def test_formula_asks_for_no_graph(graphs, workspace):
    _, origin = graphs
    workspace(EVIDENCE="formula")
    backend = Both({"RUNS": 1, "WARMUPS": 0})
    assert keys(profile_models(backend, origin)) == {case: {"latency"} for case in CASES}
    assert backend.asked == []


def test_graphs_by_the_batch(graphs):
    _, origin = graphs
    backend = Many()
    assert verdicts(detect_fusion_rule(profile_models(backend, origin))) == FUSED
    assert backend.batches == [CONTENTS]


def test_a_backend_that_cannot_tell_is_refused_before_anything_is_done(graphs):
    ws, origin = graphs

    class Mute(BaseBackend):
        pass

    words = rf"{ws.ruletest_file}: EVIDENCE is graph, but Mute cannot tell what it executes"
    with pytest.raises(BackendError, match=words):
        profile_models(Mute(), origin)
    assert [path.name for path in ws.results_dir.iterdir()] == ["origin_testcases.json"]


def test_what_was_detected_in_one_go_is_detected_from_the_file_too(graphs):
    ws, origin = graphs
    found = profile_models(Tells(), origin)
    at_once = detect_fusion_rule(found)
    rules = ws.results_dir / "detected_fusion_rule.json"
    written = rules.read_text()
    for source in (
        ws.results_dir / "profiled_results.json",
        read_json(ws.results_dir / "Tells" / "profiled_results.json", "results"),
    ):
        rules.unlink()
        assert detect_fusion_rule(source, open_workspace(ws.path)) == at_once
        assert rules.read_text() == written


def test_a_converted_model_that_was_given_is_the_one_that_is_read(graphs):
    ws, origin = graphs
    converted = convert_models(Tells(), origin)
    conv = ws.resolve(origin["BF_conv_relu"]["conv"]["model"])
    mine = shutil.copy(conv, ws.path / "mine.onnx")  # a conversion that loses the relu
    converted["BF_conv_relu"]["block"]["converted_model"] = str(mine)
    backend = Tells()
    found = profile_models(backend, converted, have_converted=True)
    assert "mine" in backend.asked
    assert detect_fusion_rule(found)["BF_conv_relu"]["kernels"] == ["Conv"]


# --- runtimes that do not tell -------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Both, Many])
def test_a_runtime_that_cannot_tell_is_an_error_with_graph(graphs, cls):
    ws, origin = graphs
    with pytest.raises(GraphUnavailableError, match=r"^this version is mute$"):
        _profile_mute(cls, origin)
    assert count(ws, "graphs") == 0


def test_a_runtime_that_cannot_tell_is_timed_with_auto(graphs, workspace, caplog):
    _, origin = graphs
    workspace(EVIDENCE="auto")
    with caplog.at_level(logging.WARNING):
        found = _profile_mute(Both, origin)
    assert [record.getMessage() for record in caplog.records] == [
        "Both does not tell what it executes, so verdicts rest on latencies: this version is mute"
    ]
    assert keys(found) == {case: {"latency"} for case in CASES}
    assert {found["evidence"] for found in detect_fusion_rule(found).values()} == {"formula"}


def _profile_mute(cls, origin):
    faults = {"": GraphUnavailableError("this version is mute")}
    return profile_models(cls({"RUNS": 2, "WARMUPS": 0}, faults), origin)


# --- one model that fails ------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Tells, Many])
def test_a_refused_model_is_unsupported_in_the_runtimes_words(graphs, cls):
    ws, origin = graphs
    faults = {"BF_conv_relu_block": ModelRejectedError("no kernel for it")}
    summary = ProfileSummary()
    found = profile_models(cls(None, faults), origin, summary=summary)
    assert found["BF_conv_relu"]["block"]["error"] == {
        "kind": "refused",
        "reason": "no kernel for it",
    }
    assert list(summary.failed) == ["BF_conv_relu: block"]
    log = ws.results_dir / "profile_error.log"
    assert log.read_text() == "BF_conv_relu: block: refused: no kernel for it\n"
    detected = detect_fusion_rule(found)
    assert verdicts(detected) == {**FUSED, "BF_conv_relu": ("unsupported", "")}
    assert "no kernel for it" in detected["BF_conv_relu"]["reason"]

    # it is not asked again until that is asked for
    again = cls()
    assert profile_models(again, origin) == found
    assert again.asked == []
    assert log.exists()
    mended = profile_models(again, origin, retry_failed=True)
    assert again.asked == ["BF_conv_relu_block"]
    assert verdicts(detect_fusion_rule(mended)) == FUSED
    assert not log.exists()


def test_a_graph_that_cannot_be_read_leaves_it_to_latencies_with_auto(graphs, workspace):
    _, origin = graphs
    workspace(EVIDENCE="auto")
    faults = {"BF_conv_relu_block": RuntimeError("odd")}
    found = profile_models(Both({"RUNS": 2, "WARMUPS": 0}, faults), origin)
    detected = detect_fusion_rule(found)
    assert "error" not in found["BF_conv_relu"]["block"]
    assert {name: rule["evidence"] for name, rule in detected.items()} == {
        **dict.fromkeys(CASES, "graph"),
        "BF_conv_relu": "formula",
    }


FRAGILE = """
    import os, signal, time
    from pathlib import Path
    from nn_meter.builder.backends.base import BaseBackend, Environment
    from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode

    class Fragile(BaseBackend):
        def describe(self):
            return Environment(runtime="fragile", version="1", host="here")

        def executed_graph(self, converted_model, shapes):
            name = Path(converted_model).stem
            with open(self.configs["LOG"], "a") as log:
                print(name, file=log)
            if name == self.configs["CRASHES"]:
                print("the last words of", name, flush=True)
                os.kill(os.getpid(), signal.SIGSEGV)
            if name == self.configs["HANGS"]:
                time.sleep(1000)
            node = ExecutedNode(name="n", type="N", inputs=("x",), outputs=("y",))
            return ExecutedGraph(nodes=(node,), inputs=("x",))

    class FragileMany(Fragile):
        executed_graph = None

        def executed_graphs(self, models, save_path):
            return [Fragile.executed_graph(self, *model) for model in models]

    class Short(FragileMany):
        def executed_graphs(self, models, save_path):
            return []
"""


@pytest.fixture
def fragile(tmp_path, workspace):
    """Register backends whose runtime does not survive some models; gives the log of both."""
    package = tmp_path / "fragile"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "script.py").write_text(textwrap.dedent(FRAGILE))
    for name in ("Fragile", "FragileMany", "Short"):
        meta = {"builtin_name": name.lower(), "package_location": str(package)}
        meta |= {"class_module": "script", "class_name": name}
        (tmp_path / "meta.yaml").write_text(yaml.safe_dump(meta))
        registry.register("backend", tmp_path / "meta.yaml")
    log = tmp_path / "log.txt"
    workspace(
        backend={
            **{"CRASHES": "BF_conv_relu_block", "HANGS": "BF_dwconv_relu_dwconv"},
            "LOG": str(log),
        }
    )
    return log


@pytest.mark.parametrize("name", ["fragile", "fragilemany"])
def test_a_model_that_crashes_or_hangs_the_runtime_costs_itself_only(graphs, fragile, name):
    _, origin = graphs
    found = profile_models(connect_backend(name), origin, time_threshold=1)
    errors = {
        f"{case}: {model}": (entry["error"]["kind"], entry["error"]["reason"])
        for case, models in found.items()
        for model, entry in models.items()
        if "error" in entry
    }
    words = "was ended by SIGSEGV: the last words of BF_conv_relu_block"
    limit = "took longer than its time limit of 1 s and was stopped"
    assert errors == {
        "BF_conv_relu: block": ("crashed", f"{name} {words}"),
        "BF_dwconv_relu: dwconv": ("time limit", f"{name} {limit}"),
    }
    assert sum("graph" in entry for case in found.values() for entry in case.values()) == 7
    asked = fragile.read_text().split()
    assert len(set(asked)) == CONTENTS
    if name == "fragile":
        assert len(asked) == CONTENTS
    else:  # in one batch with others at first, in the end alone
        assert asked.count("BF_conv_relu_block") > 1
        assert asked.count("BF_dwconv_relu_dwconv") > 1
    detected = detect_fusion_rule(found)
    assert detected["BF_conv_relu"]["verdict"] == "undecided"
    assert "SIGSEGV" in detected["BF_conv_relu"]["reason"]
    assert not psutil.Process().children()


def test_a_backend_that_gives_too_few_graphs(graphs, fragile):
    _, origin = graphs
    found = profile_models(connect_backend("short"), origin)
    reasons = {e["error"]["reason"] for models in found.values() for e in models.values()}
    assert reasons == {"Short.executed_graphs was asked for 1 graphs and gave 0"}


# --- nothing twice, nothing lost -----------------------------------------------------------------


def test_a_run_that_is_interrupted_goes_on_with_the_missing_ones(graphs):
    _, origin = graphs

    def progress(stage: str, done: int, total: int, name: str) -> None:
        if (stage, done) == ("graph", 3):
            raise KeyboardInterrupt

    first, second = Tells(), Tells()
    with pytest.raises(KeyboardInterrupt):
        profile_models(first, origin, progress=progress)
    found = profile_models(second, origin)
    assert len(second.asked) == CONTENTS - 3
    assert not set(second.asked) & set(first.asked[:3])
    assert verdicts(detect_fusion_rule(found)) == FUSED


def test_a_graph_is_asked_for_once_until_fresh(graphs):
    _, origin = graphs
    found = profile_models(Tells(), origin)
    again = Tells()
    assert profile_models(again, origin) == found
    assert again.asked == []
    part = {"BF_conv_relu": origin["BF_conv_relu"]}
    assert profile_models(again, part, fresh=True) == {"BF_conv_relu": found["BF_conv_relu"]}
    assert sorted(again.asked) == [f"BF_conv_relu_{name}" for name in ("block", "conv", "relu")]


def test_a_model_that_changed_is_asked_again(graphs):
    ws, origin = graphs
    profile_models(Tells(), origin)
    block = ws.resolve(origin["BF_relu_relu"]["block"]["model"])
    conv = ws.resolve(origin["BF_conv_relu"]["conv"]["model"])
    shutil.copy(conv, block)
    again = Tells()
    found = profile_models(again, origin)
    assert again.asked == []  # its content is known by another name
    assert detect_fusion_rule(found)["BF_relu_relu"]["kernels"] == ["Conv"]
    model = onnx.load(conv)
    model.graph.node[0].op_type = "Mystery"
    onnx.save(model, block)
    found = profile_models(again, origin)
    assert again.asked == ["BF_relu_relu_block"]
    assert detect_fusion_rule(found)["BF_relu_relu"]["kernels"] == ["Mystery"]


def test_another_environment_has_graphs_of_its_own(graphs):
    ws, origin = graphs
    first = profile_models(Tells(), origin)
    backend = Tells({"THREADS": 2})
    second = profile_models(backend, origin)
    assert len(backend.asked) == CONTENTS
    assert count(ws, "graphs") == 2 * CONTENTS
    again = Tells()
    assert profile_models(again, origin) == first != second
    assert again.asked == []
    threads = {}
    for name, found in (("first", first), ("second", second)):
        detect_fusion_rule(found)
        rules = read_json(ws.results_dir / "detected_fusion_rule.json", "rules")
        threads[name] = {rule["environment"]["threads"] for rule in rules.values()}
    assert threads == {"first": {1}, "second": {2}}


# --- whose latencies -----------------------------------------------------------------------------


def test_latencies_filled_in_by_hand_take_the_formula(graphs, workspace):
    ws, origin = graphs
    workspace(EVIDENCE="auto")
    found = profile_models(Both({"RUNS": 2, "WARMUPS": 0}), origin)
    block = found["BF_conv_relu"]["block"]["model"]
    filled = fill_latency(found, {block: 100.0})
    edited = ws.path / "edited.json"
    text = (ws.results_dir / "profiled_results.json").read_text()
    data = json.loads(text)
    data["BF_conv_relu"]["block"]["latency"] = "100.0 +- 0.0"
    edited.write_text(json.dumps(data))
    for source in (filled, edited):
        detected = detect_fusion_rule(source)
        assert {name: rule["evidence"] for name, rule in detected.items()} == {
            **dict.fromkeys(CASES, "graph"),
            "BF_conv_relu": "formula",
        }
        assert detected["BF_conv_relu"]["obey"] is False  # by graph it is fused
        rules = read_json(ws.results_dir / "detected_fusion_rule.json", "rules")
        assert rules["BF_conv_relu"]["environment"] is None


@pytest.mark.parametrize("reference", ["1:abc", "77:" + "0" * 64, "x", 5, ["1"], {"a": 1}])
def test_a_reference_to_no_graph_is_none(graphs, reference):
    _, origin = graphs
    found = profile_models(Tells(), origin)
    found["BF_conv_relu"]["block"]["graph"] = reference
    detected = detect_fusion_rule(found)
    assert detected["BF_conv_relu"]["verdict"] == "undecided"
    assert verdicts(detected)["BF_relu_relu"] == ("separate", "graph")


# --- the store -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        '{"nodes": 3}',
        '{"nodes": [{}]}',
        '{"nodes": [{"name": "n", "type": "t", "inputs": "x", "outputs": [], "kind": "compute"}]}',
        '{"nodes": [{"name": "n", "type": "t", "inputs": [], "outputs": [], "kind": "magic"}]}',
        b"\xff",
    ],
    ids=lambda damage: str(damage)[:30],
)
def test_damaged_graphs_are_refused_by_file_and_nothing_is_lost(graphs, workspace, damage):
    ws, origin = graphs
    workspace(EVIDENCE="auto")
    found = profile_models(Both({"RUNS": 2, "WARMUPS": 0}), origin)
    with closing(sqlite3.connect(ws.store_file)) as db, db:
        db.execute("UPDATE graphs SET data = ?", [damage])
    words = r"samples\.db: the sample store cannot be used: .*move it away to start a new one"
    for call in (
        lambda: detect_fusion_rule(found),
        lambda: profile_models(Both(), origin),
    ):
        with pytest.raises(ResultFileError, match=words):
            call()
    assert (count(ws, "rounds"), count(ws, "graphs")) == (6, CONTENTS)


# --- situations ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _with_situations(_generated, tmp_path_factory):
    path = tmp_path_factory.mktemp("situations") / "ws"
    shutil.copytree(_generated, path)
    config = path / "configs" / "ruletest_config.yaml"
    asked = {"BASIC_TESTCASES": ["conv_relu", "relu_relu"], "EVIDENCE": "graph"}
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | asked))
    generate_testcases(open_workspace(path))
    return path


@pytest.fixture
def situated(_with_situations, tmp_path, workspace):
    """A workspace that has the models of situations, too; and its test cases."""
    shutil.copytree(_with_situations, tmp_path / "ws")
    ws = workspace(EVIDENCE="graph", BASIC_TESTCASES=["conv_relu", "relu_relu"])
    return ws, read_json(ws.results_dir / "origin_testcases.json", "test cases")


def whens(detected) -> dict[str, list[str]]:
    return {name: list(found["when"]) for name, found in detected.items()}


def test_situations_are_asked_and_judged(situated):
    _, origin = situated
    backend = Tells()
    detected = detect_fusion_rule(profile_models(backend, origin))
    assert whens(detected) == {case: ["alone", "context"] for case in origin}
    context = detected["BF_conv_relu"]["when"]["context"]
    assert (context["verdict"], context["kernels"]) == (
        "fused",
        ["Conv", "AveragePool", "Conv[relu]", "AveragePool"],
    )


def test_a_situation_that_is_refused_says_so_and_the_rest_stands(situated):
    ws, origin = situated
    around = read_json(ws.situations_file, "situations")
    name = Path(around["BF_conv_relu"]["context"]["0-2"]["model"]).stem
    backend = Tells(None, {name: ModelRejectedError("too deep")})
    detected = detect_fusion_rule(profile_models(backend, origin))
    assert detected["BF_conv_relu"]["verdict"] == "fused"
    context = detected["BF_conv_relu"]["when"]["context"]
    assert context["verdict"] == "unsupported"
    assert "too deep" in context["reason"]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"BF_conv_relu": 5}',
        '{"BF_conv_relu": "/etc/hostname"}',
        '{"BF_conv_relu": {"context": {}}}',
        '{"BF_conv_relu": {"context": {"0-1": 3}}}',
        '{"BF_conv_relu": {"context": {"0-1": {"model": "", "shapes": [[1]]}}}}',
        '{"BF_conv_relu": {"context": {"0-1": {"model": "workspace.json"}}}}',
    ],
    ids=lambda content: content[18:60],
)
def test_damaged_situations_are_left_out_with_a_warning(situated, caplog, content):
    ws, origin = situated
    ws.situations_file.write_text(content)
    with caplog.at_level(logging.WARNING):
        found = profile_models(Tells(), origin)
    (line,) = {record.getMessage() for record in caplog.records}
    assert ws.situations_file.name in line
    detected = detect_fusion_rule(found)
    assert verdicts(detected) == {case: FUSED[case] for case in origin}
    assert whens(detected) == {case: ["alone"] for case in origin}


def test_a_situation_whose_models_are_gone_is_left_out_with_a_warning(situated, caplog):
    ws, origin = situated
    around = read_json(ws.situations_file, "situations")
    ws.resolve(around["BF_relu_relu"]["context"]["0-2"]["model"]).unlink()
    with caplog.at_level(logging.WARNING):
        found = profile_models(Tells(), origin)
    (record,) = caplog.records
    assert "BF_relu_relu, context" in record.getMessage()
    assert "generate" in record.getMessage()
    detected = detect_fusion_rule(found)
    assert whens(detected) == {"BF_conv_relu": ["alone", "context"], "BF_relu_relu": ["alone"]}
    assert verdicts(detected) == {case: FUSED[case] for case in origin}
    # gone between profiling and detecting
    for path in ws.situations_dir.glob("*.onnx"):
        path.unlink()
    assert whens(detect_fusion_rule(found)) == {case: ["alone"] for case in origin}
