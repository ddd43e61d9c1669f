"""``nn-meter validate``: verdicts by the clock, made blind, against what the runtime executed.

Verdicts are those of a clock, on whatever machine this is: asserted is what must hold of pairs that
save a whole pass over a tensor or nothing at all, and no figure that a busy neighbour can move.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from driving import User, edit

CLEAR = "conv_relu,add_relu,dwconv_bn,conv_reshape,relu_conv,maxpool_relu"
WORDS = {"fused", "separate", "free", "undecided", "unsupported"}
RUNTIMES = {"onnxruntime_cpu": "onnxruntime", "openvino_cpu": "openvino"}


@dataclass(frozen=True, kw_only=True)
class Validator(User):
    """A user whose temporary files lie in a folder of their own."""

    temporary: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "TMPDIR": str(self.temporary)}


@pytest.fixture
def validator(user, tmp_path) -> Iterator[Validator]:
    """Somebody who validates; nothing is left behind."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    yield Validator(folder=user.folder, home=user.home, temporary=temporary)
    assert list(temporary.iterdir()) == []


def checked(data: dict[str, Any]) -> dict[str, Any]:
    """A report whose numbers agree with its verdicts."""
    verdicts = data["verdicts"]
    assert len(verdicts) == data["questions"]
    assert {word for each in verdicts for word in (each["latency"], each["graph"])} <= WORDS
    cases = [each for each in verdicts if each["graph"] in ("fused", "separate")]
    decided = [each for each in cases if each["latency"] in ("fused", "separate")]
    right = [each for each in decided if each["latency"] == each["graph"]]
    assert (data["cases"], data["decided"], data["right"]) == (len(cases), len(decided), len(right))
    assert data["empty"] == sum(each["graph"] == "free" for each in verdicts)
    assert data["coverage"] == round(len(decided) / len(cases), 4)
    assert data["accuracy"] == (round(len(right) / len(decided), 4) if decided else None)
    assert data["found"]["of"] == sum(each["graph"] == "fused" for each in cases)
    timed = [each for each in cases if each["loads"]]
    for formula in ("formula", "formula_on_the_guides_models"):
        by_formula = [each for each in cases if each[formula] in ("fused", "separate")]
        agree = sum(each[formula] == each["graph"] for each in by_formula)
        assert (data[formula]["of"], data[formula]["right"]) == (len(by_formula), agree)
    assert data["formula"]["of"] == len(timed)
    assert data["formula_on_the_guides_models"]["of"] == len(cases)
    assert data["changed"] == []
    assert all(each["timed"] in (each["graph"], "undecided") for each in timed)
    seconds = [point["s"] for point in data["curve"]]
    assert seconds == sorted(seconds)
    last = data["curve"][-1]
    assert (last["decided"], last["right"]) == (data["decided"], data["right"])
    assert last["s"] == data["cost"]["measure_s"] <= data["wall_s"] <= data["total_s"]
    for each in decided:
        assert each["low"] <= each["saving"] <= each["high"]
        assert each["loads"] >= 1
        assert each["control"]
    assert all(each["reason"] for each in cases if each["latency"] == "undecided")
    return data


@pytest.mark.parametrize("backend", RUNTIMES)
def test_clear_pairs(validator, backend):
    if importlib.util.find_spec(RUNTIMES[backend]) is None:
        pytest.skip(f"{RUNTIMES[backend]} is not installed")
    asked = ("validate", "--backend", backend, "--testcases", CLEAR, "--budget", "60")
    printed = validator.succeed(*asked, "--json", "out/v.json").splitlines()
    data = checked(json.loads((validator.folder / "out" / "v.json").read_text()))
    found = {each["name"]: each for each in data["verdicts"]}
    assert list(found) == [f"BF_{name}" for name in CLEAR.split(",")]
    assert data["backend"] == data["environment"]["backend"] == backend
    version = metadata.version(RUNTIMES[backend])
    assert data["environment"]["version"].startswith(version)
    assert (data["empty"], data["unsupported"], data["graph_undecided"]) == (1, 0, 0)
    assert found["BF_conv_reshape"]["graph"] == "free"
    assert (data["accuracy"], data["false_fused"]) == (1.0, 0)
    assert data["coverage"] >= 0.6
    conv_relu = found["BF_conv_relu"]
    assert (conv_relu["latency"], conv_relu["graph"]) == ("fused", "fused")
    assert conv_relu["low"] > 0.2
    assert data["total_s"] < 120

    assert printed[0].startswith(f"{RUNTIMES[backend]} {version}")
    assert printed[0].endswith(" on CPU, 1 thread, float32: 6 questions")
    assert printed[1].startswith("5 cases; no cases: 1 empty")
    assert "Wrong: none" in printed
    assert "Executed in the size timed as in the size asked for: 5 of 5" in printed
    (accuracy,) = (line for line in printed if line.startswith("accuracy among decided"))
    assert "100.0 %" in accuracy


def test_what_is_not_optimized_comes_out_separate(validator):
    """No verdict rests on which pairs usually fuse: the runtime does not, and the clock says so."""
    asked = ("--testcases", "conv_relu,conv_bn,conv_sigmoid,fc_relu,conv_add", "--json", "-")
    off = ("--set", "GRAPH_OPTIMIZATION=disabled")
    data = checked(json.loads(validator.succeed("validate", *asked, *off)))
    assert data["environment"]["options"]["graph_optimization"] == "disabled"
    assert {each["graph"] for each in data["verdicts"]} == {"separate"}
    assert {each["latency"] for each in data["verdicts"]} <= {"separate", "undecided"}
    assert data["coverage"] >= 0.6
    as_usual = checked(json.loads(validator.succeed("validate", *asked)))
    assert as_usual["found"]["of"] == 4
    assert as_usual["found"]["fused"] >= 3


def test_repeats_are_compared(validator):
    asked = ("validate", "--testcases", "conv_relu,add_relu", "--repeat", "3", "--json")
    data = checked(json.loads(validator.succeed(*asked, "-")))
    assert [len(run["verdicts"]) for run in data["repeats"]] == [2, 2, 2]
    savings = {run["verdicts"][0]["saving"] for run in data["repeats"]}
    assert len(savings) == 3, "measured anew each time"
    assert data["repeats"][0]["verdicts"] == data["verdicts"]
    assert data["repeats"][1]["cost"]["build_s"] < data["cost"]["build_s"], "models are used again"
    assert data["repeatability"]["flips"] == []
    words = [{run["verdicts"][n]["latency"] for run in data["repeats"]} for n in (0, 1)]
    assert data["repeatability"]["equal"] == sum(len(word) == 1 for word in words) / 2
    printed = validator.succeed(*asked[:-3], "--repeat", "2").splitlines()
    assert [line.partition(":")[0] for line in printed if line.startswith("Run ")] == [
        "Run 1",
        "Run 2",
    ]
    assert printed[-2] == "Fused in one run and separate in another: none"
    assert re.fullmatch(r"Equal in all runs: \d+\.0 % of the verdicts", printed[-1])


def test_a_chain_is_a_question_for_each_of_its_edges(validator):
    asked = ("validate", "--testcases", "conv_bn_relu_add", "--json", "-")
    data = checked(json.loads(validator.succeed(*asked)))
    assert [(each["name"], each["graph"]) for each in data["verdicts"]] == [
        ("BF_conv_bn_relu_add:1", "fused"),
        ("BF_conv_bn_relu_add:2", "fused"),
        ("BF_conv_bn_relu_add:3", "separate"),
    ]
    assert data["decided"] >= 1
    assert data["accuracy"] == 1.0


def test_keys_and_a_workspace(validator):
    validator.succeed("create", "--onnxruntime-workspace", "ws")
    edit(validator.folder / "ws", HW=20, BASIC_TESTCASES=["conv_relu"], OTHER_TESTCASES=["MON"])
    before = {path: path.stat().st_mtime_ns for path in (validator.folder / "ws").rglob("*")}
    keys = ("--set", "CIN=24", "--set", "COUT=48", "--set", "THREADS=2")
    asked = ("validate", "--workspace", "ws", *keys, "--budget", "5", "--json", "-")
    data = json.loads(validator.succeed(*asked))
    models = data["environment"]["options"]["models"]
    assert [models[key] for key in ("HW", "CIN", "COUT")] == [20, 24, 48]
    assert data["environment"]["threads"] == 2
    assert [each["name"] for each in data["verdicts"]] == ["BF_conv_relu"]
    assert {p: p.stat().st_mtime_ns for p in (validator.folder / "ws").rglob("*")} == before


def test_when_the_time_is_up_the_rest_is_open(validator):
    asked = ("validate", "--testcases", "conv_relu,add_relu", "--budget", "0.001", "--json", "-")
    data = checked(json.loads(validator.succeed(*asked)))
    assert (data["cases"], data["decided"], data["coverage"]) == (2, 0, 0.0)
    assert (data["accuracy"], data["found"]) == (None, {"fused": 0, "of": 1})
    assert {each["reason"] for each in data["verdicts"]} == {
        "the time was up before its turn came (TIME_BUDGET; of validate, --budget)"
    }


REFUSED = [
    (7, "--backend onnxruntime", "did you mean 'onnxruntime_cpu'?"),
    (7, "--backend debug_backend", "debug_backend cannot tell what it executes, so there is "),
    (3, "--testcases conv_rellu", "did you mean 'relu'?"),
    (3, "--testcases MOM", "did you mean 'MON'?"),
    (3, "--testcases MON", "--testcases: MON: validate asks pairs and chains of operators"),
    (3, "--testcases ,", "--testcases: names none"),
    (3, "--set HV=8", "--set: unknown key HV; did you mean HW?"),
    (3, "--set HW=0", "--set: HW must be a whole number of at least 1"),
    (3, "--set HW", "--set: 'HW' should be KEY=VALUE"),
    (3, "--set EVIDENCE=graph", "--set: EVIDENCE: validate asks the clock, the graph and "),
    (3, "--set CIN=15 --testcases relu_split", "BF_relu_split: "),
    (6, "--testcases conv_fc", "fc takes a 1-D tensor"),
    (4, "--workspace nowhere", "there is no workspace here"),
    (4, "--json /proc/nowhere/v.json", "cannot be made a folder"),
    (2, "--json .", "is a directory"),
    (2, "--budget 0", "--budget"),
    (2, "--repeat 0", "--repeat"),
]


def test_what_cannot_be_is_refused_before_anything_is_measured(validator):
    asked = [(code, "validate", *arguments.split()) for code, arguments, _ in REFUSED]
    for (_, arguments, words), line in zip(REFUSED, validator.fail_each(*asked), strict=True):
        assert words in line, arguments
    assert list(validator.folder.iterdir()) == []


def test_nothing_is_left_when_it_is_interrupted(validator):
    process = validator.start("validate", "--testcases", CLEAR, "--json", "v.json")
    while not glob(str(validator.temporary / "**" / "clock-0.db"), recursive=True):  # noqa: PTH207 - folders go
        assert process.poll() is None
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "interrupted" in err
    assert not (validator.folder / "v.json").exists()
