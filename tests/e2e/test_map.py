"""``nn-meter map``: runtimes asked one after the other, a rule file of each, and a page."""

from __future__ import annotations

import json
from importlib import metadata

import pytest
from driving import all_json_files

ASK = ("map", "--backends", "onnxruntime_cpu")
PAIRS = "conv_relu,conv_reshape"


@pytest.fixture(scope="module")
def name() -> str:
    """Name of the rules of the ONNX Runtime that is installed."""
    major, minor, *_ = metadata.version("onnxruntime").split(".")
    return f"onnxruntime-{major}.{minor}"


def test_one_runtime(user, name):
    told = user.succeed(*ASK, "--testcases", PAIRS)
    assert f"(nn-Meter) onnxruntime_cpu: 2 rules in fusion-rules/{name}.json\n" in told
    assert told.endswith("(nn-Meter) The map is fusion-map.md\n")
    path = user.folder / "fusion-rules" / f"{name}.json"
    text = path.read_text()
    rules = json.loads(text)
    assert {rule: found["verdict"] for rule, found in rules.items()} == {
        "BF_conv_relu": "fused",
        "BF_conv_reshape": "free",
    }
    assert all(found["kernels"] and found["evidence"] == "graph" for found in rules.values())
    assert str(user.folder) not in text
    assert "latency" not in text
    page = (user.folder / "fusion-map.md").read_text()
    assert f"| rule | `{name}` |" in page
    assert "| `BF_conv_relu` | F |" in page
    assert "| `BF_conv_reshape` | · |" in page
    # and the same once more: the workspace is used again, and what is written is the same
    user.succeed(*ASK, "--testcases", PAIRS)
    assert (path.read_text(), (user.folder / "fusion-map.md").read_text()) == (text, page)
    # test cases asked later join those that are there
    user.succeed(*ASK, "--testcases", "relu_relu", "--output", "docs/page.md")
    assert json.loads(path.read_text()).keys() == {*rules, "BF_relu_relu"}
    assert "`BF_relu_relu`" in (user.folder / "docs" / "page.md").read_text()
    assert json.loads(user.succeed("diff", path, f"fusion-map-workspaces/{ASK[-1]}", "--json"))[
        "counts"
    ] == {"differences": 0, "open": 0, "equal": 6, "both_open": 0, "only_a": 0, "only_b": 0}


def test_rendering_alone_asks_nothing(user):
    rules = user.folder / "rules"
    rules.mkdir()
    (rules / "acme-1.2.json").write_text('{"BF_conv_relu": {"obey": true}}')
    user.succeed("map", "--render-only", "--rules", rules, "--output", "page.md")
    assert "| `acme-1.2` | yes |" in (user.folder / "page.md").read_text()
    assert [*all_json_files(user.folder)] == ["rules/acme-1.2.json"]


def test_what_cannot_be_asked(user):
    told = user.fail(7, "map", "--backends", "debug_backend", "--testcases", "conv_relu")
    assert told == "debug_backend cannot tell what it executes"
    assert "no_such" in user.fail(7, "map", "--backends", "no_such", "--testcases", "conv_relu")
    assert "conv_rleu" in user.fail(3, *ASK, "--testcases", "conv_rleu")
    (user.folder / "bad").mkdir()
    (user.folder / "bad" / "x-1.json").write_text("[]")
    assert "x-1.json" in user.fail(9, "map", "--render-only", "--rules", "bad")
    assert not (user.folder / "fusion-map.md").exists()
