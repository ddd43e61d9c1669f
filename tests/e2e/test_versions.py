"""Two versions of one runtime side by side, by the key ``PYTHON`` of ``backend_config.yaml``.

The other version stands in a virtual environment that has the runtime, numpy and onnx, and nothing
of nn-Meter's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from driving import User, edit, results

HERE = metadata.version("onnxruntime")
OTHER = "1.23.2"
"""A version that keeps hswish apart where later ones fuse it: inside the blocked layout."""

KEYS = {"HW": 8, "CIN": 16, "COUT": 32, "OTHER_TESTCASES": []}
PAIRS = ["conv_relu", "conv_hswish"]


@pytest.fixture(scope="module")
def other_python(tmp_path_factory) -> Path:
    """A Python with another version of ONNX Runtime."""
    folder = tmp_path_factory.mktemp("other") / "venv"
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    for command in (
        [sys.executable, "-m", "venv", "--without-pip", str(folder)],
        [*pip, "--disable-pip-version-check", "numpy", "onnx", f"onnxruntime=={OTHER}"],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"onnxruntime {OTHER} cannot be installed beside {HERE}: it takes too long")
        if done.returncode:
            words = done.stderr.strip().splitlines()
            last = words[-1] if words else "pip says nothing"
            pytest.skip(f"onnxruntime {OTHER} cannot be installed beside {HERE}: {last}")
    return python


@pytest.fixture(scope="module")
def both(other_python, tmp_path_factory) -> tuple[User, dict[str, Any]]:
    """Two workspaces, ``here`` and ``other``, and what running them printed."""
    folder = tmp_path_factory.mktemp("versions")
    user = User(folder=folder, home=folder / "home")
    done = {}
    for name, python in (("here", None), ("other", str(other_python))):
        user.succeed("create", "--onnxruntime-workspace", name)
        edit(folder / name, **KEYS, BASIC_TESTCASES=PAIRS)
        edit(folder / name, "backend_config.yaml", PYTHON=python)
        asked = ("--workspace", name, "--evidence", "graph", "--json")
        done[name] = user.nn_meter("run", *asked)
        assert done[name].code == 0, done[name].err
    return user, done


def test_each_is_judged_by_its_own_graph(both):
    user, done = both
    for name, version in (("here", HERE), ("other", OTHER)):
        verdicts = json.loads(done[name].out)["verdicts"]
        assert verdicts["BF_conv_relu"]["kernels"] == ["Conv[activation=Relu]"]
        assert {verdict["evidence"] for verdict in verdicts.values()} == {"graph"}
        rules = results(user.folder / name, "detected_fusion_rule.json")
        assert {rule["environment"]["version"] for rule in rules.values()} == {version}


def test_a_version_that_was_never_tried_is_warned_of_once(both):
    _, done = both
    assert done["here"].complaints == []
    (warning,) = done["other"].complaints
    assert warning.startswith(
        f"(nn-Meter) warning: nn-Meter was never tried with onnxruntime {OTHER}"
    )
    assert "onnxruntime 1.31, onnxruntime 1.32" in warning


def test_what_they_decide_differently(both):
    user, done = both
    data = json.loads(user.succeed("diff", "other", "here", "--json"))
    assert data["environment"]["version"] == [OTHER, HERE]
    when = json.loads(done["here"].out)["verdicts"]["BF_conv_hswish"]["when"]
    if when["context"]["verdict"] == "separate":
        pytest.skip("ONNX Runtime has no blocked layout on this processor")
    assert [
        (found["rule"], found["situation"], found["a"]["verdict"], found["b"]["verdict"])
        for found in data["differences"]
    ] == [("BF_conv_hswish", "context", "separate", "fused")]
    table = user.succeed("diff", "other", "here")
    assert OTHER in table
    assert HERE in table
    assert "BF_conv_hswish" in table


def test_one_workspace_for_both_keeps_them_apart(both, other_python):
    user, _ = both
    edit(user.folder / "here", "backend_config.yaml", PYTHON=str(other_python))
    try:
        done = user.nn_meter("run", "--workspace", "here", "--evidence", "graph", "--json")
    finally:
        edit(user.folder / "here", "backend_config.yaml", PYTHON=None)
    untried, moved = done.complaints
    assert "never tried" in untried
    assert f"version: {HERE} -> {OTHER}" in moved
    before = json.loads(both[1]["other"].out)["verdicts"]
    assert json.loads(done.out)["verdicts"] == before


def test_one_question(other_python, user):
    asked = ("ask", "conv+relu", "--set", f"PYTHON={other_python}", "--set", "HW=8", "--alone")
    done = user.nn_meter(*asked)
    assert done.out.startswith(f"conv+relu on onnxruntime {OTHER}, input ")
    assert len(done.complaints) == 1


def test_an_environment_that_lacks_what_the_graph_is_read_with(other_python, both, tmp_path):
    """Without the package onnx verdicts rest on latencies, or there is none."""
    user, _ = both
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "onnx.py").write_text("raise ImportError('not here')")
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={hidden} exec {other_python} "$@"\n')
    script.chmod(0o755)
    user.succeed("create", "--onnxruntime-workspace", "bare")
    edit(user.folder / "bare", **KEYS, BASIC_TESTCASES=["conv_relu"])
    edit(user.folder / "bare", "backend_config.yaml", PYTHON=str(script), RUNS=5)
    done = user.nn_meter("run", "--workspace", "bare", "--json")
    assert done.code == 0
    untried, mute = done.complaints
    assert "never tried" in untried
    assert "does not tell what it executes, so verdicts rest on latencies" in mute
    assert "pip install onnx" in mute
    assert json.loads(done.out)["verdicts"]["BF_conv_relu"]["evidence"] != "graph"
    line = user.fail(7, "run", "--workspace", "bare", "--evidence", "graph")
    assert "pip install onnx" in line
