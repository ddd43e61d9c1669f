"""``nn-meter diff``: rules of two workspaces, of files, and of what ships, side by side."""

from __future__ import annotations

import json
import os
import pty
import subprocess

import pytest
from driving import NN_METER, User, edit, results

from nn_meter.fusion_rules.read import shipped_names

SHAPES = {"HW": 8, "COUT": 32, "EVIDENCE": "graph", "OTHER_TESTCASES": []}
FULL = {"CIN": 16}
ODD = {"CIN": 5, "COUT": 5}
"""ONNX Runtime's blocked layout takes channels by the block: 16 fit, 5 do not."""


@pytest.fixture(scope="module")
def channels(tmp_path_factory) -> User:
    """Two workspaces, ``full`` and ``odd``, whose convolutions differ in their channels."""
    folder = tmp_path_factory.mktemp("diff")
    user = User(folder=folder, home=folder / "home")
    for name, keys in (("full", FULL), ("odd", ODD)):
        user.succeed("create", "--onnxruntime-workspace", name)
        edit(folder / name, **SHAPES | keys)
        user.succeed("run", "--workspace", name, "--testcases", "conv_relu,conv_add,conv_add_relu")
    return user


def verdicts(user: User, workspace: str) -> dict[tuple[str, str], str]:
    """What a workspace's own rule file says of each rule in each situation."""
    rules = results(user.folder / workspace, "detected_fusion_rule.json")
    return {
        (name, situation): found["verdict"]
        for name, rule in rules.items()
        for situation, found in rule["when"].items()
    }


def test_two_workspaces_that_differ(channels):
    full, odd = verdicts(channels, "full"), verdicts(channels, "odd")
    data = json.loads(channels.succeed("diff", "full", "odd", "--json"))
    told = {
        (d["rule"], d["situation"]): (d["a"]["verdict"], d["b"]["verdict"])
        for d in data["differences"]
    }
    assert told == {key: (full[key], odd[key]) for key in full if full[key] != odd[key]}
    if not told:
        pytest.skip("ONNX Runtime has no blocked layout on this processor")
    residual = ("BF_conv_add", "context/own")
    assert told[residual] == ("fused", "separate")
    assert data["counts"]["differences"] == len(told)
    assert data["counts"]["equal"] == len(full) - len(told)
    assert data["environment"] == {"CIN": ["16", "5"], "COUT": ["32", "5"]}
    assert (data["only_a"], data["only_b"], data["open"]) == ({}, {}, [])


def test_the_table(channels):
    table = channels.succeed("diff", "full", "odd")
    lines = [[cell.strip() for cell in line.split("│")] for line in table.splitlines()]
    told = {tuple(line[2:5]) for line in lines if len(line) > 5}
    assert ("alone", "separate", "separate") in told  # the guide's question, of a rule that differs
    assert ("context/own", "fused", "separate") in told
    assert "Conv[sum]" in table  # no markup of the table's
    assert "BF_conv_relu " not in table
    assert "\n  CIN: 16 | 5\n" in table
    assert "…" not in table
    rows = channels.succeed("diff", "full", "odd", "--situations")
    assert rows.count("context/") > table.count("context/")


@pytest.mark.parametrize("columns", [50, 90, 120, 190])
def test_the_table_is_never_cut_on_a_terminal(channels, columns):
    """A narrow one does without kernels, and says so."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [NN_METER, "diff", "full", "odd"],
        cwd=channels.folder,
        env={**channels.environment, "COLUMNS": str(columns), "TERM": "xterm"},
        stdout=theirs,
        check=False,
    )
    os.close(theirs)
    shown = _all_of(ours).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "…" not in shown
    assert ("a wider terminal shows the kernels" in shown) == ("AveragePool" not in shown)
    assert ("AveragePool" in shown) == (columns == 190)
    if columns > 50:
        assert {"BF_conv_add_relu", "context/own", "separate", "fused"} <= set(shown.split())


def _all_of(terminal: int) -> bytes:
    """What was written to a terminal that nobody writes to any more; it is handed out in pieces."""
    found = b""
    while True:
        try:
            piece = os.read(terminal, 2**16)
        except OSError:  # how Linux says that this was all
            return found
        if not piece:
            return found
        found += piece


def test_the_same_is_no_difference(channels):
    text = channels.succeed("diff", "odd", "odd")
    assert "decided differently: 0 rules, in 0 questions" in text
    assert "only" not in text.replace("by one side only", "")
    assert "━" not in text


def test_a_workspace_and_what_ships(channels):
    name = next(name for name in shipped_names() if name.startswith("onnxruntime-"))
    text = channels.succeed("diff", name, "full")
    assert f"A: {name}: onnxruntime " in text
    assert "\n  HW: 28 | 8\n" in text
    assert "only A has: BF_" in text
    listed = channels.succeed("diff", "--list").splitlines()
    assert [line.partition("  ")[0] for line in listed] == shipped_names()


def test_a_rule_file_as_the_guide_prints_it(channels):
    path = channels.folder / "by hand.json"
    path.write_text('{"BF_conv_relu": {"obey": false}, "BF_conv_add": {"obey": null}}')
    data = json.loads(channels.succeed("diff", "by hand.json", "full", "--json"))
    assert [d["rule"] for d in data["differences"]] == ["BF_conv_relu"]
    assert [d["rule"] for d in data["open"]] == ["BF_conv_add"]
    text = channels.succeed("diff", "by hand.json", "full")
    assert "Without an answer on one side" in text
    assert "A: by hand.json: environment not known" in text


def test_what_cannot_be_compared(channels):
    name = shipped_names()[0]
    assert f"did you mean '{name}'?" in channels.fail(9, "diff", f"{name}0", "full")
    assert "neither a workspace nor" in channels.fail(9, "diff", "full", ".")
    assert "Missing argument" in channels.nn_meter("diff", "full").err
    assert "also when they differ" in " ".join(channels.succeed("diff", "--help").split())
