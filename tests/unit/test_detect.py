"""detect_fusion_rule: the guide's inequality, its files, and rules that keep to where they hold."""

from __future__ import annotations

import copy
import json
import logging
import math
import re
import shutil
import textwrap

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester import BaseTestCase, detect_fusion_rule
from nn_meter.builder.backend_meta.fusion_rule_tester.mon import MultipleOutNodes
from nn_meter.builder.backends.base import Environment
from nn_meter.builder.backends.interface import create_workspace
from nn_meter.builder.profiling.store import Store
from nn_meter.builder.workspace import open_workspace, read_json, write_json
from nn_meter.errors import DetectionError, NNMeterError, ResultFileError

FILES = ("detected_results.json", "detected_fusion_rule.json")
CPU = Environment(runtime="r", version="1", host="h")
CPU_2 = Environment(runtime="r", version="2", host="h")


def case(**latencies: object) -> dict[str, dict[str, object]]:
    return {
        name: {"model": f"./models/{name}", "shapes": [[8]], "latency": latency}
        for name, latency in latencies.items()
    }


FUSED = {"op1": 4, "op2": 2, "block": 4}
SEPARATE = {"op1": 4, "op2": 2, "block": 6}


def pair(name: str, op1: float, op2: float, block: float) -> dict[str, object]:
    """A basic test case and its latencies."""
    first, second = name.removeprefix("BF_").split("_")
    if first == second:
        first, second = f"{first}_1", f"{second}_2"
    return {name: case(**{first: op1, second: op2, "block": block})}


def mon(answer: str) -> dict[str, object]:
    """MON, with latencies of which that case's sum is the block's."""
    block = {"case1": 7, "case2": 20, "case3": 30}[answer]
    models = {"relu_relu": 1, "relu_dwconv": 2, "dwconv": 4, "dwconv_relu_relu": 18}
    return {"MON": case(**models, dwconv_relu=25, block=block)}


def files(ws) -> dict[str, str]:
    return {
        str(file.relative_to(ws.results_dir)): file.read_text()
        for file in ws.results_dir.rglob("*.json")
    }


def measured(ws, testcases, environment: Environment = CPU, backend: str = "cpu"):
    """Test cases as profile_models gives them: written down where they were measured."""
    with Store(ws.store_file) as store:
        number = store.environment(backend, environment)
        for name, models in testcases.items():
            texts = {}
            for model, entry in models.items():
                entry["latency"] = texts[model] = f"{float(entry['latency'])} +- 0.0"
            store.add_reported(number, name, texts)
    return testcases


@pytest.fixture
def testcase(tmp_path):
    """Register a test case of a class whose body is given; returns its results, all of 1 ms."""

    def _testcase(name: str, body: str = "", cases: str = "{'case1': ['a', 'b'], 'case2': ['c']}"):
        package = tmp_path / f"package_{name}"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "script.py").write_text(
            "from nn_meter.builder.backend_meta.fusion_rule_tester import BaseTestCase\n"
            f"class Mine(BaseTestCase):\n    name = {name!r}\n    cases = {cases}\n"
            "    true_case = 'case1'\n" + textwrap.indent(textwrap.dedent(body), "    ")
        )
        meta = {"builtin_name": f"{name}TC", "implement": "onnx", "package_location": str(package)}
        meta |= {"class_module": "script", "class_name": "Mine"}
        (tmp_path / "meta.yaml").write_text(yaml.safe_dump(meta))
        registry.register("testcase", tmp_path / "meta.yaml")
        return {name: case(a=1, b=1, c=1, block=2)}

    return _testcase


# --- the guide's inequality ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "op1", "op2", "block", "obey"),
    [
        (0.5, 4, 2, 5, False),  # saved: 1, and not more than half of the cheaper op
        (0.5, 4, 2, math.nextafter(5, 0), True),
        (0.5, 2, 4, 5, False),
        (0.5, 2, 4, math.nextafter(5, 0), True),
        (0.5, 4, 2, 4, True),
        (0.5, 4, 2, 7, False),
        (0, 4, 2, 6, False),
        (0, 4, 2, math.nextafter(6, 0), True),
        (1, 4, 2, 4, False),
        (1, 4, 2, math.nextafter(4, 0), True),
        (3, 4, 2, 1e-9, False),
    ],
)
def test_the_inequality_at_its_edge(workspace, alpha, op1, op2, block, obey):
    workspace(EPS_ALPHA=alpha)
    found = detect_fusion_rule(pair("BF_conv_relu", op1, op2, block))["BF_conv_relu"]
    words = {True: "fused", False: "separate"}
    assert found == {"obey": obey, "verdict": words[obey], "evidence": "formula"}


def test_deviations_do_not_count(workspace):
    workspace()
    results = pair("BF_conv_relu", "4 +- 100", "2 +- 50", "4 +- 9")
    assert detect_fusion_rule(results)["BF_conv_relu"]["obey"] is True


def test_an_op_that_stands_twice(workspace):
    workspace(DETAIL=True)
    found = detect_fusion_rule(pair("BF_relu_relu", 1, 1, 1))["BF_relu_relu"]
    assert found["obey"] is True
    assert list(found["latency"]) == ["block", "relu_1", "relu_2", "ops"]


# --- what is written -----------------------------------------------------------------------------

GUIDE = """\
    "BF_se_relu": {
        "latency": {
            "block": "20.3537 +- 1.0",
            "se": "20.521 +- 1.0",
            "relu": "2.6194 +- 2.0",
            "ops": "23.1404 +- 2.23606797749979"
        },
        "obey": true,
"""


def test_detail_is_written_as_the_guide_prints_it(workspace):
    ws = workspace(DETAIL=True)
    results = pair("se_relu", "20.521 +- 1.0", "2.6194 +- 2.0", "20.3537 +- 1.0")
    found = detect_fusion_rule(results)
    assert GUIDE in (ws.results_dir / "detected_results.json").read_text()
    assert list(found["BF_se_relu"]) == ["latency", "obey", "verdict", "evidence"]
    rules = read_json(ws.results_dir / "detected_fusion_rule.json", "rules")
    assert "latency" not in rules["BF_se_relu"]


def test_without_detail_there_are_no_latencies(workspace):
    ws = workspace(DETAIL=False)
    found = detect_fusion_rule(pair("se_relu", **FUSED))
    assert found == {"BF_se_relu": {"obey": True, "verdict": "fused", "evidence": "formula"}}
    assert read_json(ws.results_dir / "detected_results.json", "results") == found


def test_both_files_and_the_names_of_rules(workspace, tmp_path):
    ws = workspace()
    results = {
        **pair("conv_relu", **FUSED),  # the guide prints both
        **pair("BF_dwconv_relu", **SEPARATE),
        **pair("BF_add_add", **FUSED),
    }
    before = copy.deepcopy(results)
    found = detect_fusion_rule(results)
    assert results == before
    assert list(found) == ["BF_conv_relu", "BF_dwconv_relu", "BF_add_add"]
    assert [rule["obey"] for rule in found.values()] == [True, False, True]
    assert read_json(ws.results_dir / FILES[0], "results") == found
    rules = read_json(ws.results_dir / FILES[1], "rules")
    assert rules == {
        name: {**rule, "when": {}, "environment": None} for name, rule in found.items()
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    for source in (path, str(path)):
        assert detect_fusion_rule(source) == found


def test_latencies_alone_are_enough(workspace):
    workspace()
    results = {"conv_relu": {n: {"latency": 1} for n in ("conv", "relu", "block")}}
    assert detect_fusion_rule(results)["BF_conv_relu"]["obey"] is True


def test_what_was_measured_goes_to_the_folder_of_its_backend_too(workspace):
    ws = workspace()
    found = detect_fusion_rule(measured(ws, pair("BF_conv_relu", **FUSED)))
    for folder in (ws.results_dir, ws.results_dir / "cpu"):
        assert read_json(folder / FILES[0], "results") == found
        rule = read_json(folder / FILES[1], "rules")["BF_conv_relu"]
        assert rule["environment"]["backend"] == "cpu"
        del rule["environment"]["backend"]
        assert Environment(**rule["environment"]) == CPU


def test_averages_filled_in_by_hand_hold_nowhere_in_particular(workspace):
    ws = workspace()
    results = measured(ws, pair("BF_conv_relu", **FUSED))
    results["BF_conv_relu"]["block"]["latency"] = "3.9 +- 0.0"
    found = detect_fusion_rule(results)
    assert found["BF_conv_relu"]["evidence"] == "formula"
    assert set(files(ws)) == set(FILES)
    rule = read_json(ws.results_dir / FILES[1], "rules")["BF_conv_relu"]
    assert rule["environment"] is None


@pytest.mark.parametrize(
    ("environment", "backend"), [(CPU_2, "cpu"), (CPU, "another_cpu")], ids=["version", "backend"]
)
def test_results_of_two_places_hold_nowhere_in_particular(workspace, environment, backend):
    ws = workspace()
    here = measured(ws, pair("BF_conv_relu", **FUSED))
    there = measured(ws, pair("BF_add_relu", **FUSED), environment, backend)
    detect_fusion_rule({**here, **there})
    rules = read_json(ws.results_dir / FILES[1], "rules")
    assert [rule["environment"] for rule in rules.values()] == [None, None]


# --- MON and dependencies ------------------------------------------------------------------------

DWCONV_RELU = pair("BF_dwconv_relu", **FUSED)


@pytest.mark.parametrize("answer", ["case1", "case2", "case3"])
def test_mon_answers_with_a_case(workspace, answer):
    workspace()
    found = detect_fusion_rule({**mon(answer), **DWCONV_RELU})
    assert list(found) == ["MON", "BF_dwconv_relu"]
    assert found["MON"] == {"obey": answer, "verdict": answer, "evidence": "formula"}


def test_the_details_of_mon_are_its_models_and_its_cases(workspace):
    workspace(DETAIL=True)
    found = detect_fusion_rule({**mon("case2"), **DWCONV_RELU})["MON"]["latency"]
    assert (found["case1"], found["case2"], found["case3"]) == (
        "7.0 +- 0.0",
        "20.0 +- 0.0",
        "30.0 +- 0.0",
    )
    assert set(MultipleOutNodes.cases["case1"]) | {"block"} < set(found)


def test_a_tie_goes_to_the_true_case(workspace):
    workspace()
    sums_to_3 = {**dict.fromkeys(mon("case1")["MON"], 1), "dwconv_relu_relu": 2, "block": 4}
    results = {"MON": case(**sums_to_3), **DWCONV_RELU}
    assert detect_fusion_rule(results)["MON"]["obey"] == "case1"


def test_a_precondition_that_was_not_tested(workspace):
    workspace()
    assert detect_fusion_rule(mon("case2"))["MON"] == {
        "obey": None,
        "verdict": "unmet",
        "evidence": "",
        "reason": "it depends on BF_dwconv_relu, which was not tested; test it first, or in the "
        "same run",
    }


def test_a_precondition_that_came_out_otherwise(workspace):
    workspace()
    found = detect_fusion_rule({**mon("case2"), **pair("dwconv_relu", **SEPARATE)})["MON"]
    assert (found["obey"], found["verdict"]) == (None, "unmet")
    assert found["reason"] == ("it depends on BF_dwconv_relu being True, which came out separate")


def test_a_precondition_that_cannot_be_told(workspace):
    workspace()
    undecided = pair("BF_dwconv_relu", **FUSED)
    undecided["BF_dwconv_relu"]["block"]["latency"] = None
    found = detect_fusion_rule({**mon("case2"), **undecided})
    assert found["BF_dwconv_relu"]["verdict"] == "undecided"
    assert found["MON"]["verdict"] == "unmet"
    assert found["MON"]["reason"].endswith("came out undecided")


@pytest.mark.parametrize(
    ("wanted", "answer", "met"),
    [
        (True, "case1", True),
        (True, "case2", False),
        ("case2", "case2", True),
        ("case2", "case1", False),
        (False, "case1", False),
    ],
)
def test_a_dependency_on_mon(workspace, testcase, wanted, answer, met):
    workspace()
    mine = testcase("Mine", f"deps = {{'MON': {wanted!r}}}")
    found = detect_fusion_rule({**mine, **mon(answer), **DWCONV_RELU})["Mine"]
    assert found["verdict"] == ("case1" if met else "unmet")


@pytest.mark.parametrize("wanted", [True, False])
def test_a_dependency_by_the_short_name_is_judged_first(workspace, testcase, wanted):
    workspace()
    mine = testcase("Mine", f"deps = {{'dwconv_relu': {wanted}}}")
    found = detect_fusion_rule({**mine, **DWCONV_RELU})["Mine"]
    assert found["verdict"] == ("case1" if wanted else "unmet")


def test_dependencies_are_followed_however_long(workspace, testcase):
    workspace()
    first = testcase("First", "deps = {'Second': 'case1'}")
    second = testcase("Second", "deps = {'MON': 'case3', 'BF_dwconv_relu': True}")
    found = detect_fusion_rule({**first, **second, **mon("case3"), **DWCONV_RELU})
    assert [found[name]["verdict"] for name in ("First", "Second")] == ["case1", "case1"]
    found = detect_fusion_rule({**first, **second, **mon("case1"), **DWCONV_RELU})
    assert [found[name]["verdict"] for name in ("First", "Second")] == ["unmet", "unmet"]


def test_rules_that_depend_on_one_another(workspace, testcase):
    ws = workspace()
    results = {
        **testcase("First", "deps = {'Second': True}"),
        **testcase("Second", "deps = {'First': True}"),
    }
    with pytest.raises(DetectionError, match=r"depend on one another: (First|Second) ->"):
        detect_fusion_rule(results)
    assert files(ws) == {}


# --- rules found before --------------------------------------------------------------------------


def test_a_rule_of_the_same_environment_counts_as_tested_before(workspace):
    ws = workspace()
    detect_fusion_rule(measured(ws, pair("BF_dwconv_relu", **FUSED)))
    found = detect_fusion_rule(measured(ws, mon("case2")))
    assert list(found) == ["MON"]
    assert found["MON"]["obey"] == "case2"
    for folder in (ws.results_dir, ws.results_dir / "cpu"):
        assert set(read_json(folder / FILES[0], "results")) == {"MON"}
        rules = read_json(folder / FILES[1], "rules")
        assert {name: rule["obey"] for name, rule in rules.items()} == {
            "BF_dwconv_relu": True,
            "MON": "case2",
        }


@pytest.mark.parametrize(
    ("environment", "backend"), [(CPU_2, "cpu"), (CPU, "another_cpu")], ids=["version", "backend"]
)
def test_a_rule_of_another_environment_does_not(workspace, environment, backend):
    ws = workspace()
    detect_fusion_rule(measured(ws, pair("BF_dwconv_relu", **FUSED)))
    found = detect_fusion_rule(measured(ws, mon("case2"), environment, backend))
    assert found["MON"]["verdict"] == "unmet"
    for folder in (ws.results_dir, ws.results_dir / backend):
        assert list(read_json(folder / FILES[1], "rules")) == ["MON"]


def test_rules_by_hand_and_rules_measured_do_not_merge(workspace):
    ws = workspace()
    by_hand, by_clock = pair("BF_dwconv_relu", **FUSED), pair("BF_conv_relu", **FUSED)
    detect_fusion_rule(by_hand)
    assert detect_fusion_rule(mon("case2"))["MON"]["obey"] == "case2"
    assert list(read_json(ws.results_dir / FILES[1], "rules")) == ["BF_dwconv_relu", "MON"]
    detect_fusion_rule(measured(ws, by_clock))
    assert list(read_json(ws.results_dir / FILES[1], "rules")) == ["BF_conv_relu"]
    assert detect_fusion_rule(mon("case2"))["MON"]["verdict"] == "unmet"
    assert list(read_json(ws.results_dir / "cpu" / FILES[1], "rules")) == ["BF_conv_relu"]


def test_a_rule_found_again_is_replaced(workspace):
    ws = workspace()
    detect_fusion_rule(measured(ws, {**pair("BF_conv_relu", **FUSED), **DWCONV_RELU}))
    detect_fusion_rule(measured(ws, pair("BF_conv_relu", **SEPARATE)))
    rules = read_json(ws.results_dir / FILES[1], "rules")
    assert {name: rule["obey"] for name, rule in rules.items()} == {
        "BF_conv_relu": False,
        "BF_dwconv_relu": True,
    }


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_rule_file_that_is_damaged_is_moved_aside_and_made_again(workspace, caplog, content):
    ws = workspace()
    rules = ws.results_dir / FILES[1]
    write_json(rules, {})
    rules.write_text(content)
    with caplog.at_level(logging.WARNING):
        detect_fusion_rule(DWCONV_RELU)
    assert f"moved to {rules}.damaged" in caplog.text
    assert (ws.results_dir / f"{FILES[1]}.damaged").read_text() == content
    assert list(read_json(rules, "rules")) == ["BF_dwconv_relu"]


@pytest.mark.parametrize("rule", [3, None, [], {}, {"obey": True}, {"environment": None}])
def test_what_is_no_rule_of_ours_is_not_taken_over(workspace, rule):
    ws = workspace()
    write_json(ws.results_dir / "cpu" / FILES[1], {"BF_add_add": rule})
    detect_fusion_rule(measured(ws, pair("BF_conv_relu", **FUSED)))
    assert list(read_json(ws.results_dir / "cpu" / FILES[1], "rules")) == ["BF_conv_relu"]


def test_a_rule_whose_test_case_is_gone(workspace, testcase):
    ws = workspace()
    detect_fusion_rule(testcase("Old"))
    registry.unregister("testcase", "OldTC", "onnx")
    mine = testcase("Mine", "deps = {'Old': True}")
    found = detect_fusion_rule({**mine, **DWCONV_RELU})
    assert found["Mine"]["verdict"] == "unmet"
    assert "it depends on Old, whose true case is not known" in found["Mine"]["reason"]
    assert found["BF_dwconv_relu"]["obey"] is True
    assert "Old" in read_json(ws.results_dir / FILES[1], "rules")


# --- what cannot be told -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        ({"kind": "refused", "reason": "no such op"}, "unsupported"),
        ({"kind": "crashed", "reason": "SIGSEGV"}, "undecided"),
        ({"kind": "time limit", "reason": "300 s"}, "undecided"),
        ({"kind": "failed", "reason": "who knows"}, "undecided"),
    ],
)
def test_a_model_that_failed(workspace, error, verdict):
    workspace(DETAIL=True)
    results = {**pair("BF_conv_relu", **FUSED), **DWCONV_RELU}
    results["BF_conv_relu"]["block"] |= {"error": error, "latency": None}
    found = detect_fusion_rule(results)
    assert found["BF_conv_relu"] == {
        "obey": None,
        "verdict": verdict,
        "evidence": "",
        "reason": f"block: {error['kind']}: {error['reason']}",
    }
    assert found["BF_dwconv_relu"]["obey"] is True


def test_a_model_without_a_latency(workspace):
    workspace()
    results = {**pair("BF_conv_relu", **FUSED), **DWCONV_RELU}
    del results["BF_conv_relu"]["relu"]["latency"]
    found = detect_fusion_rule(results)
    assert found["BF_conv_relu"]["verdict"] == "undecided"
    assert found["BF_conv_relu"]["reason"].startswith("the model relu has no latency")
    assert found["BF_dwconv_relu"]["obey"] is True


def test_a_model_that_is_missing(workspace):
    workspace()
    results = {**pair("BF_conv_relu", **FUSED), **DWCONV_RELU}
    del results["BF_conv_relu"]["relu"]
    found = detect_fusion_rule(results)["BF_conv_relu"]
    assert found["verdict"] == "undecided"
    assert "the model 'relu' is missing; generate the test case again" in found["reason"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def test(self): raise KeyError('conv')", "Mine: its test failed: KeyError: 'conv'"),
        ("def test(self): return None", "its test answered None; it should be True, False or one"),
        ("def test(self): return 'case9'", "its test answered 'case9'.*case1, case2"),
        ("def test(self): return 1", "its test answered 1"),
        ("def test(self): return ['case1']", "its test answered"),
        ("def load_latency(self, models): 1 / 0", "ZeroDivisionError"),
        ("def load_latency(self, models): self.latency = None", "its test failed"),
        ("def test(self): return self.latency['d'].avg > 1", "its test failed: KeyError: 'd'"),
    ],
)
def test_a_users_test_that_fails_costs_its_rule(workspace, testcase, body, reason):
    workspace()
    found = detect_fusion_rule({**testcase("Mine", body), **DWCONV_RELU})
    assert (found["Mine"]["obey"], found["Mine"]["verdict"]) == (None, "undecided")
    assert re.search(reason, found["Mine"]["reason"])
    assert found["BF_dwconv_relu"]["obey"] is True


@pytest.mark.parametrize(
    ("body", "obey"),
    [
        ("def test(self): return True", True),
        ("def test(self):\n    import numpy\n    return numpy.float32(1) > 2", False),
        ("def test(self): return 'case2'", "case2"),
        ("", "case1"),
    ],
)
def test_a_users_test_decides(workspace, testcase, body, obey):
    workspace()
    found = detect_fusion_rule(testcase("Mine", body))["Mine"]
    assert found["obey"] is obey if isinstance(obey, bool) else found["obey"] == obey


def test_latencies_of_a_case_are_the_sum_of_its_ops():
    class Mine(BaseTestCase):
        name = "Mine"
        cases = {"case1": ["a", "b", "b"], "case2": ["c"]}  # noqa: RUF012 - as users write it
        input_shape = [1, 2, 3]  # noqa: RUF012

        def load_config(self):
            pass

    mine = Mine({})
    mine.load_latency(case(a="1 +- 1", b="2 +- 2", c=4, block=5))
    assert str(mine.latency["case1"]) == "5.0 +- 3.0"
    assert mine.test() == "case1"


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "error", "words"),
    [
        ({"BF_conv_rleu": case(a=1)}, DetectionError, "no operator 'rleu'; did you mean 'relu'"),
        ({"MOM": case(a=1)}, DetectionError, "MOM: there is no such test case; did you mean 'MON'"),
        ({"BF_conv": case(a=1)}, DetectionError, "BF_conv: there is no such test case"),
        ({"BF_a_b_c": case(a=1)}, DetectionError, "BF_a_b_c: there is no operator 'a'"),
        ({"": case(a=1)}, DetectionError, "there is no such test case"),
        (
            {**pair("BF_conv_relu", **FUSED), **pair("conv_relu", **FUSED)},
            DetectionError,
            "BF_conv_relu stands twice",
        ),
        ({}, DetectionError, "no model has a latency or an executed graph; run"),
        ({"BF_conv_relu": case(conv=None)}, DetectionError, "no model has a latency"),
        ({"BF_conv_relu": case(conv=-1)}, ResultFileError, "BF_conv_relu: conv: a latency of -1"),
        ({"BF_conv_relu": {}}, ResultFileError, "BF_conv_relu: should hold a dict of models"),
    ],
)
def test_results_that_cannot_be_are_refused_and_nothing_is_written(
    workspace, results, error, words
):
    ws = workspace()
    with pytest.raises(error, match=words):
        detect_fusion_rule(results)
    assert files(ws) == {}


def test_latencies_filled_in_by_hand_are_no_experiment(workspace):
    workspace(EVIDENCE="latency")
    found = detect_fusion_rule(DWCONV_RELU)["BF_dwconv_relu"]
    assert (found["verdict"], found["obey"], found["evidence"]) == ("undecided", None, "")
    assert "experiment by the clock" in found["reason"]
    workspace(EVIDENCE="formula")
    assert detect_fusion_rule(DWCONV_RELU)["BF_dwconv_relu"]["evidence"] == "formula"


def test_another_test_case_that_cannot_be_loaded_does_no_harm(workspace, testcase, tmp_path):
    workspace()
    testcase("Broken")
    mine = testcase("Mine")
    shutil.rmtree(tmp_path / "package_Broken")
    assert detect_fusion_rule(mine)["Mine"]["obey"] == "case1"
    with pytest.raises(
        DetectionError, match=r"known besides BF_…: MON, MIN, .*, Mine; .*BrokenTC.* no folder"
    ):
        detect_fusion_rule({"Yours": case(a=1)})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("name = ''", "name should be text"),
        ("name = 'a/b'", "name should be text that can stand in a file name, but is 'a/b'"),
        ("name = 3", "name should be text"),
        ("cases = {}", "cases should be a dict of cases"),
        ("cases = ['a']", "cases should be a dict of cases, but is"),
        ("cases = {'case1': 'a'}", "case1 should be a list of models, but is 'a'"),
        ("cases = {'case1': [3]}", "case1 should be a list of models"),
        ("deps = ['MON']", "deps should be a dict of rules, but is"),
        ("deps = {3: True}", "deps should be a dict of rules"),
        ("def load_config(self): self.config['GONE']", "Mine cannot be made: KeyError: 'GONE'"),
    ],
)
def test_a_class_that_does_not_keep_the_contract(workspace, testcase, body, words):
    workspace()
    with pytest.raises(DetectionError, match=words):
        detect_fusion_rule(testcase("Mine", body))


# --- anything ------------------------------------------------------------------------------------

VALID = {
    **pair("BF_conv_relu", **FUSED),
    **pair("dwconv_relu", **SEPARATE),
    **pair("BF_relu_relu", **FUSED),
    **mon("case2"),
}
names = st.sampled_from([*VALID, "BF_relu_relu", "relu_relu", "BF_a_b", "XX"]) | st.text(max_size=4)
models = st.sampled_from(["conv", "relu", "relu_1", "block", "dwconv", "\ud800"]) | st.text(
    max_size=3
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.just(10**400)
    | st.floats()
    | st.sampled_from(["1 +- 0", "1e308 +- 1e308", "-1", "\ud800", "x"])
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(models, inner, max_size=2),
    max_leaves=4,
)
entries = st.dictionaries(st.sampled_from(["latency", "error", "model", "shapes", "x"]), values)
whole = st.dictionaries(
    names, st.dictionaries(models, entries | values, max_size=3) | values, max_size=3
)


@st.composite
def mutated(draw):
    """Valid results with a few values replaced, taken out or put in."""
    results = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        place = results
        for _ in range(draw(st.integers(0, 3))):
            inner = [key for key, value in place.items() if isinstance(value, dict) and value]
            if not inner:
                break
            place = place[draw(st.sampled_from(inner))]
        key = draw(st.sampled_from(list(place) or ["x"]) | names | models)
        if draw(st.booleans()):
            place.pop(key, None)
        else:
            place[key] = draw(values | entries)
    return results


@pytest.fixture(scope="module")
def any_workspace(tmp_path_factory):
    return open_workspace(create_workspace(tmp_path_factory.mktemp("any") / "ws", platform="debug"))


@settings(max_examples=100, deadline=None)
@given(results=whole | mutated(), as_file=st.booleans())
def test_any_results_are_judged_or_refused_and_no_file_is_half_written(
    any_workspace, results, as_file
):
    ws, before = any_workspace, files(any_workspace)
    source = results
    if as_file:
        source = ws.path / "damaged.json"
        source.write_text(json.dumps(results))
    try:
        found = detect_fusion_rule(source, ws)
    except NNMeterError:
        assert files(ws) == before
    else:
        for file in FILES:
            assert set(read_json(ws.results_dir / file, "results")) >= set(found)
        for rule in found.values():
            assert rule["obey"] is None or rule["evidence"] == "formula"
    assert not list(ws.results_dir.rglob(".*"))
