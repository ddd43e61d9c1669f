"""Fusion rules as values: reading, comparing, writing them for others, and the map."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nn_meter.errors import ResultFileError
from nn_meter.fusion_rules import read
from nn_meter.fusion_rules.compare import compare
from nn_meter.fusion_rules.markdown import QUESTIONS, render
from nn_meter.fusion_rules.read import (
    parse_rules,
    read_folder,
    read_rules,
    read_shipped,
    shipped_names,
)
from nn_meter.fusion_rules.rules import RuleSet
from nn_meter.fusion_rules.write import file_name, portable, write_rules

FUSION_MAP = Path(__file__).parents[2] / "docs" / "fusion-map.md"

ENVIRONMENT = {
    "backend": "acme_cpu",
    "runtime": "acme",
    "version": "1.2.3",
    "device": "CPU",
    "threads": 1,
    "dtype": "float32",
    "host": "Acme Ryzen, 8 cores, x86_64, Linux",
    "options": {"device_name": "Acme Ryzen, 8 cores", "models": {"IMPLEMENT": "onnx", "CIN": 16}},
}


def rule(answer: bool | str | None, verdict: str = "", /, **rest: Any) -> dict[str, Any]:
    words = {True: "fused", False: "separate", None: "undecided"}
    word = verdict or (answer if isinstance(answer, str) else words[answer])
    return {"obey": answer, "verdict": word, "evidence": "graph", **rest}


def chain(*verdicts: str) -> dict[str, Any]:
    """A chain of ops a, b, c, …, by what was found of each two neighbours."""
    edges = [
        {"ops": [op, chr(ord(op) + 1)], "verdict": verdict}
        for op, verdict in zip("abcdef", verdicts, strict=False)
    ]
    if "undecided" in verdicts:
        return rule(None, edges=edges)
    return rule("separate" not in verdicts, edges=edges)


@pytest.fixture
def load(tmp_path):
    """Write rules into a file, and read it."""
    written = []

    def _load(data: Any, name: str = "rules.json") -> RuleSet:
        path = tmp_path / f"{len(written)}-{name}"
        written.append(path)
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return read_rules(path)

    return _load


# --- reading -------------------------------------------------------------------------------------


def test_rules_as_the_guide_prints_them(load):
    found = load({"BF_a_b": {"obey": True}, "BF_b_a": {"obey": False}, "MON": {"obey": "case1"}})
    words = {name: rule.alone.verdict for name, rule in found.rules.items()}
    assert words == {"BF_a_b": "fused", "BF_b_a": "separate", "MON": "case1"}
    assert found.environments == ()
    assert load({"BF_a_b": {"obey": None}}).rules["BF_a_b"].alone.is_open


def test_rules_with_situations(load):
    edges = [{"ops": ["a", "b"], "verdict": "fused"}, {"ops": ["b", "c"], "verdict": "separate"}]
    alone = rule(False, kernels=["A[b]", "C"], edges=edges)
    context = {"obey": True, "verdict": "fused", "kernels": ["A[b, c]"]}
    data = {**alone, "when": {"alone": alone, "context": context}, "environment": ENVIRONMENT}
    found = load({"BF_a_b_c": data, "BF_a_b": {**rule(True), "environment": ENVIRONMENT}})
    asked = found.rules["BF_a_b_c"]
    assert list(asked.findings) == ["alone", "context"]
    assert str(asked.alone) == "separate: a+b | c"
    assert asked.alone.kernels == ("A[b]", "C")
    assert asked.findings["context"].evidence == "graph"  # the rule's, where none is said
    assert found.environments == (ENVIRONMENT,)
    assert found.described() == "acme 1.2.3 on CPU, 1 thread, float32, onnx models"


def sized(**where: Any) -> dict[str, Any]:
    return {"R": {"obey": True, "sizes": [{"obey": False, "where": where}]}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("[]", "object"),
        ("{", "no valid JSON"),
        ('{"R": {"obey": NaN}}', "NaN"),
        ({"R": []}, "a rule must be an object"),
        ({"R": {}}, 'has no "obey"'),
        ({"R": {"obey": 1}}, "true, false, null or the name of a case"),
        ({"MON": {"obey": -1}}, "true, false, null or the name of a case"),
        ({"BF_a_b": {"obey": 2}}, "true, false, null or the name of a case"),
        ({"R": {"obey": ""}}, "the two must say the same"),
        ({"R": {"obey": True, "verdict": "separate"}}, "the two must say the same"),
        ({"R": {"obey": None, "verdict": "fused"}}, "the two must say the same"),
        ({"R": {"obey": True, "when": []}}, '"when" must be an object'),
        ({"R": {"obey": True, "when": {"context": {"obey": 2}}}}, "when 'context'"),
        ({"R": {"obey": True, "when": {"alone": {"obey": False}}}}, "the two must be alike"),
        ({"R": {"obey": True, "kernels": "Conv"}}, '"kernels" must be a list'),
        ({"R": {"obey": True, "kernels": ["\x1b[2J"]}}, "plain text"),
        ({"\x1b[2J": {"obey": True}}, "plain text"),
        ({"R": {"obey": True, "edges": [{"ops": ["a"], "verdict": "fused"}]}}, "two ops"),
        ({"BF_a_b": {"obey": "yes"}}, "'BF_a_b': \"obey\" of operators in a row must be true"),
        ({"BF_a_b": {"obey": True, "when": {"context": {"obey": "no"}}}}, "when 'context'"),
        ({"MON": {"obey": "yes"}}, "'MON': \"obey\" must be one of the cases case1, case2"),
        ({"MIN": {"obey": "first"}}, "one of the cases case1, case2, case3, or null"),
        ({"R": {"obey": True, "sizes": {}}}, '"sizes" must be a list'),
        ({"R": {"obey": True, "sizes": [3]}}, 'number 1 of "sizes"'),
        ({"R": {"obey": True, "sizes": [{"obey": False}]}}, '"where" must be an object'),
        ({"R": {"obey": True, "sizes": [{"obey": False, "where": {}}]}}, "names no size"),
        (sized(channels={"up_to": 8}), "should have least, most, multiple_of, no_multiple_of"),
        (sized(channels={}), "should have least"),
        (sized(channels={"most": 0}), "holds what is no size"),
        (sized(channels={"most": True}), "holds what is no size"),
        ({"R": {"obey": True, "environment": "here"}}, '"environment" must be an object'),
        ({"R": {"obey": True, "environment": {"options": 1}}}, '"options"'),
        ({"R": {"obey": True, "environment": {"x": [[[[[[[[[]]]]]]]]]}}}, "nested too deep"),
        ('{"R": {"obey": true, "x": "\\ud800"}}', "no text"),
        ('{"R": ' + "[" * 5000 + "]" * 5000 + "}", "rules.json"),
    ],
)
def test_a_bad_file_is_refused_by_name(load, data, words):
    with pytest.raises(ResultFileError, match=r"rules\.json: ") as caught:
        load(data)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


def test_numbers_of_the_original_are_words(load):
    found = load({"BF_a_b": {"obey": 1}, "BF_b_a": {"obey": 0}, "MON": {"obey": 2}})
    assert [rule.alone.obey for rule in found.rules.values()] == [True, False, "first"]
    other = load({"BF_a_b": {"obey": 0}, "BF_b_a": {"obey": 0}, "MON": {"obey": 0}})
    assert [each.rule for each in compare(found, other).differences] == ["BF_a_b", "MON"]


def test_cases_that_there_are(load):
    found = load({"MON": {"obey": "case3"}, "MIN": {"obey": None}, "My": {"obey": "yes"}})
    assert [rule.alone.obey for rule in found.rules.values()] == ["case3", None, "yes"]


def test_what_holds_in_other_sizes_is_read(load):
    where = {"channels": {"no_multiple_of": 16, "most": 40}, "kernel_size": {"least": 5}}
    other = {"obey": False, "where": where, "when": {"context": {"obey": True}}}
    (rule,) = load({"BF_a_b": {"obey": True, "sizes": [other]}}).rules.values()
    (sized,) = rule.sizes
    assert (rule.alone.verdict, sized.findings["alone"].verdict) == ("fused", "separate")
    assert sized.findings["context"].verdict == "fused"
    assert {size: bound.to_json() for size, bound in sized.where.items()} == where
    assert str(sized.where["channels"]) == "at most 40, no multiple of 16"
    assert sized.holds({"channels": [16, 24], "kernel_size": [5]})  # one of them is such
    assert not sized.holds({"channels": [16, 48], "kernel_size": [5]})
    assert not sized.holds({"channels": [24], "kernel_size": [3]})
    assert not sized.holds({"channels": [24]})  # not known: not such


def test_rules_that_are_loaded_already():
    found = parse_rules({"BF_a_b": {"obey": True}}, "mine")
    assert (found.name, found.fuses("a", "b")) == ("mine", True)
    with pytest.raises(ResultFileError, match=r"^mine: 'BF_a_b': "):
        parse_rules({"BF_a_b": {"obey": 3}}, "mine")
    for bad in ({"BF_a_b": {"obey": {1}}}, {"BF_a_b": {"obey": None, "x": float("nan")}}):
        with pytest.raises(ResultFileError, match="not of JSON"):
            parse_rules(bad, "mine")


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: takes no space
    with pytest.raises(ResultFileError, match="larger than"):
        read_rules(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ResultFileError, match="is no file"):
        read_rules(tmp_path / "pipe")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["obey", "verdict", "when", "alone", "edges", "ops", "kernels"])
            | st.sampled_from(["environment", "options", "models", "free", "reason", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
LIKE_RULES = st.dictionaries(
    st.text(max_size=5),
    st.fixed_dictionaries(
        {"obey": st.sampled_from([True, False, None, "case1"])},
        optional={
            "when": st.dictionaries(
                st.sampled_from(["alone", "context", "alone/own"]),
                st.fixed_dictionaries({"obey": st.booleans() | st.none()}),
            ),
            "kernels": st.lists(st.text(max_size=5), max_size=3),
            "reason": st.text(max_size=8) | st.integers(),
            "environment": JSON_VALUES,
        },
    ),
    max_size=4,
)


@settings(max_examples=150)
@given(JSON_VALUES | LIKE_RULES)
def test_whatever_a_file_holds_is_read_or_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.json"
        path.write_text(json.dumps(data), encoding="utf-8")
        try:
            found = read_rules(path)
        except ResultFileError as exc:
            assert str(path) in str(exc)  # noqa: PT017 - either it is read, or refused so
            return
    assert found.rules.keys() == data.keys()
    same = compare(found, found)
    assert same.differences == ()
    json.dumps(same.to_json(), allow_nan=False)
    assert found.described()
    render([found]).encode()


@settings(max_examples=50)
@given(st.binary(max_size=40))
def test_whatever_bytes_a_file_holds_it_is_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.json"
        path.write_bytes(b"\xff" + content)
        with pytest.raises(ResultFileError):
            read_rules(path)


# --- where rules come from -----------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "results", "fusion_rule_test/results"])
def test_rules_of_a_folder(tmp_path, place):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "detected_fusion_rule.json").write_text('{"BF_a_b": {"obey": true}}')
    found = read_rules(str(tmp_path))
    assert (found.name, list(found.rules)) == (str(tmp_path), ["BF_a_b"])


def test_a_folder_without_rules(tmp_path):
    with pytest.raises(ResultFileError, match="neither a workspace nor a folder of results"):
        read_rules(tmp_path)
    (tmp_path / "configs").mkdir()
    with pytest.raises(ResultFileError, match=f"nn-meter run --workspace {tmp_path}"):
        read_rules(tmp_path)


@pytest.mark.parametrize("source", ["", "no/such/file.json", "x" * 5000, "nul\0"])
def test_what_is_not_there(source):
    with pytest.raises(ResultFileError, match=r"nn-meter diff --list|cannot be read") as caught:
        read_rules(source)
    assert "\0" not in str(caught.value)


def test_a_name_that_is_nearly_right():
    name = shipped_names()[-1]
    with pytest.raises(ResultFileError, match=f"did you mean '{name}'"):
        read_rules(f"{name}0")


def test_what_lies_at_a_path_comes_before_what_ships(tmp_path, monkeypatch):
    name = shipped_names()[0]
    monkeypatch.chdir(tmp_path)
    assert read_rules(name).rules == read_shipped(name).rules
    Path(name).write_text('{"BF_a_b": {"obey": true}}')
    assert list(read_rules(name).rules) == ["BF_a_b"]


def test_versions_are_sorted_as_numbers(tmp_path):
    for name in ("x-1.10", "x-1.9", "b-2.0"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert [rules.name for rules in read_folder(tmp_path)] == ["b-2.0", "x-1.9", "x-1.10"]


# --- comparing -----------------------------------------------------------------------------------


def test_what_is_decided_differently(load):
    a = load(
        {
            "alike": rule(True),
            "opposite": rule(True),
            "free": rule(None, "free", free=["b"]),
            "case": rule("case1"),
            "open": rule(True),
            "neither": rule(None, "undecided"),
            "mine": rule(True, when={"context": rule(True)}),
        }
    )
    b = load(
        {
            "open": rule(None, "unsupported", reason="no such op"),
            "case": rule("case2"),
            "free": rule(False),
            "opposite": rule(False),
            "alike": rule(True),
            "neither": rule(None, "unsupported"),
        }
    )
    found = compare(a, b)
    assert [d.rule for d in found.of_kind("contradiction")] == ["opposite", "free", "case"]
    assert [d.rule for d in found.of_kind("open")] == ["open"]
    assert (found.equal, found.both_open) == (1, 1)
    assert found.only_a == {"mine": ("alone", "context")}
    assert found.only_b == {}
    counts = {"differences": 3, "open": 1, "equal": 1, "both_open": 1, "only_a": 2, "only_b": 0}
    data = found.to_json()
    assert data["counts"] == counts
    assert data["differences"][0] == {
        "rule": "opposite",
        "situation": "alone",
        "a": {"obey": True, "verdict": "fused", "evidence": "graph"},
        "b": {"obey": False, "verdict": "separate", "evidence": "graph"},
    }
    assert data["open"][0]["b"]["reason"] == "no such op"


def test_situations_are_compared_one_by_one(load):
    a = load({"R": rule(False, when={"context": rule(True), "alone/own": rule(True)})})
    b = load({"R": rule(False, when={"context": rule(False), "context/own": rule(True)})})
    found = compare(a, b)
    assert [(d.rule, d.situation) for d in found.differences] == [("R", "context")]
    assert (found.only_a, found.only_b) == ({"R": ("alone/own",)}, {"R": ("context/own",)})
    assert found.equal == 1


def test_other_sizes_are_questions_of_their_own(load):
    where = {"channels": {"most": 15}, "kernel_size": {"least": 5}}
    sized = {"obey": False, "where": where, "when": {"context": {"obey": True}}}
    usual = {"obey": True}
    found = compare(
        load({"BF_a_b": {**usual, "sizes": [sized]}, "BF_c_d": {**usual, "sizes": [sized]}}),
        load({"BF_a_b": usual, "BF_c_d": {**usual, "sizes": [{**sized, "obey": True}]}}),
    )
    words = ", where channels is at most 15 and kernel_size is at least 5"
    assert found.only_a == {"BF_a_b": (f"alone{words}", f"context{words}")}
    (difference,) = found.differences
    assert (difference.rule, difference.situation) == ("BF_c_d", f"alone{words}")
    assert (difference.a.verdict, difference.b.verdict) == ("separate", "fused")
    assert found.equal == 3


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        (["fused", "separate"], ["separate", "fused"], "contradiction"),
        (["fused", "separate"], ["fused", "separate"], None),
        (["fused", "undecided"], ["fused", "separate"], "open"),
        (["fused", "undecided"], ["separate", "separate"], "contradiction"),
        (["fused", "fused"], ["fused"], None),  # as much of it as both tell
    ],
)
def test_edges_of_a_chain_are_compared(load, a, b, kind):
    found = compare(load({"R": chain(*a)}), load({"R": chain(*b)}))
    assert [difference.kind for difference in found.differences] == ([kind] if kind else [])


def test_how_environments_differ(load):
    other = {
        **ENVIRONMENT,
        "version": "1.3.0",
        "host": "x86_64, Linux",
        "options": {"models": {"IMPLEMENT": "onnx", "CIN": 5}, "delegate": "none"},
    }
    a, b = (
        load({"R": {**rule(True), "environment": found}, "by hand": rule(True)})
        for found in (ENVIRONMENT, other)
    )
    assert compare(a, b).environment == {
        "version": ("1.2.3", "1.3.0"),
        "device_name": ("Acme Ryzen, 8 cores", None),
        "CIN": ("16", "5"),
        "delegate": (None, "none"),
    }
    assert compare(a, a).environment == {}
    by_hand = load({"R": rule(True)})
    assert compare(a, by_hand).environment["runtime"] == ("acme", None)
    assert by_hand.described() == "environment not known"


@given(st.lists(st.tuples(st.sampled_from("abcd"), *[st.sampled_from([True, False, None])] * 2)))
def test_comparing_the_other_way_round_says_the_same(pairs):
    def rules(which: int) -> RuleSet:
        data = {pair[0]: rule(pair[which]) for pair in pairs if pair != (pair[0], True, None)}
        return RuleSet(name="x", rules={n: read._read_rule(n, r, n) for n, r in data.items()})

    there, back = compare(rules(1), rules(2)), compare(rules(2), rules(1))
    assert {(d.rule, d.a, d.b) for d in there.differences} == {
        (d.rule, d.b, d.a) for d in back.differences
    }
    assert (there.equal, there.only_a) == (back.equal, back.only_b)


# --- writing for others --------------------------------------------------------------------------


def test_what_is_written_says_nothing_of_the_machine(tmp_path):
    found = {
        **rule(None, "unsupported", reason="cannot load '/home/ann/ws/m.onnx'\n(see C:\\tmp\\x)"),
        "latency": {"block": "1.0 +- 0.1"},
        "others": {"formula": True},
        "when": {"alone": rule(None, "unsupported"), "context": rule(True, kernels=["A"])},
        "environment": ENVIRONMENT,
    }
    assert portable(found) == {
        "obey": None,
        "verdict": "unsupported",
        "evidence": "graph",
        "reason": "cannot load 'm.onnx' (see x)",
        "when": {"context": {"obey": True, "verdict": "fused", "kernels": ["A"]}},
        "environment": {
            **ENVIRONMENT,
            "host": "x86_64, Linux",
            "options": {"models": ENVIRONMENT["options"]["models"]},
        },
    }
    assert portable(rule(True))["environment"] is None


def test_a_reason_that_only_looks_like_a_path_stays():
    reason = "op a/b: 3/4 of N/A, and/or https://x.org is not supported"
    assert portable(rule(None, reason=reason))["reason"] == reason


def test_what_is_written_reads_back(tmp_path, load):
    rules = {
        "b": {**rule(True, kernels=["A"]), "when": {"context": rule(False)}},
        "a": {**chain("fused", "separate"), "environment": ENVIRONMENT},
    }
    path = tmp_path / "folder" / "acme-1.2.json"
    write_rules(path, {name: portable(found) for name, found in rules.items()})
    text = path.read_text()
    assert [line[:3] for line in text.splitlines()] == ["{", '"a"', '"b"', "}"]
    found = compare(read_rules(path), load(rules))
    assert (found.differences, found.only_a, found.only_b, found.equal) == ((), {}, {}, 3)


@pytest.mark.parametrize(
    ("runtime", "version", "name"),
    [
        ("onnxruntime", "1.31.1", "onnxruntime-1.31.json"),
        ("openvino", "2026.4.1-22982", "openvino-2026.4.json"),
        ("ncnn", "1.0.20261020", "ncnn-1.0.20261020.json"),
        ("Acme/RT", "3", "acme_rt-3.json"),
    ],
)
def test_the_name_of_a_rule_file(runtime, version, name):
    assert file_name({"runtime": runtime, "version": version}) == name


def test_no_name_without_a_version():
    with pytest.raises(ResultFileError, match="named after runtime and version"):
        file_name({"runtime": "acme", "version": "unknown"})


# --- the map -------------------------------------------------------------------------------------


@pytest.fixture
def page(load) -> str:
    add = chain("separate", "fused")
    data = {
        "BF_conv_relu": rule(True, kernels=["Conv[a|b]"], when={"context": rule(True)}),
        "BF_conv_hswish": rule(False, when={"context": rule(True, kernels=["X"])}),
        "BF_conv_swish": rule(None, "unsupported", reason="no | such op"),
        "BF_conv_add_relu": {**add, "when": {"context": add, "alone/own": chain("fused", "fused")}},
        "BF_relu_relu": rule(True, eliminated=True),
        "BF_relu_reshape": rule(None, "free", free=["reshape"]),
        "MON": rule("case2"),
    }
    first = load({name: {**found, "environment": ENVIRONMENT} for name, found in data.items()})
    second = load({"BF_conv_relu": rule(False), "BF_conv_hswish": rule(False)})
    return render(
        [
            RuleSet(name="acme-1.2", rules=first.rules, environments=first.environments),
            RuleSet(name="other-9", rules=second.rules),
        ]
    )


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """The first table below a heading: first cell -> the others."""
    below = page.partition(heading)[2].partition("\n| ")[2].partition("\n\n")[0]
    lines = [line.strip("| ").replace("\\|", "¦") for line in below.splitlines()]
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return {first: rest for first, *rest in cells}


def test_the_matrix_of_the_map(page):
    found = rows(page, "## What people ask")
    titles = found["one kernel with the conv?"]
    assert titles == [question.title for question in QUESTIONS]
    assert dict(zip(titles, found["`acme-1.2`"], strict=False)) == {
        "relu": "yes",
        "hswish": "no; in context: yes",
        "swish (SiLU)": "unsupported",
        "gelu": "",
        "add+relu, other operand a graph input": "no (a ¦ b+c)",
        "… another conv's output": "",
        "… the block's own input": "yes",
    }
    assert found["`other-9`"][:2] == ["no", "no"]


def test_the_table_of_all_rules(page):
    found = rows(page, "## All rules")
    assert found.pop("rule") == ["`acme-1.2`", "`other-9`"]
    del found["---"]
    assert {name: cells[0] for name, cells in found.items()} == {
        "`BF_conv_add_relu`": "a ¦ b+c \\*",
        "`BF_conv_hswish`": "- \\*",
        "`BF_conv_relu`": "F",
        "`BF_conv_swish`": "x",
        "`BF_relu_relu`": "E",
        "`BF_relu_reshape`": "·",
        "`MON`": "case2",
    }
    assert found["`BF_conv_relu`"][1] == "-"


def test_the_lists_of_the_map(page):
    differing = page.partition("## Where situations differ")[2]
    assert "- **separate** alone; **fused** context: `BF_conv_hswish`\n" in differing
    assert "- **unsupported** no | such op: `BF_conv_swish`\n" in differing
    assert "`BF_conv_relu`" not in differing
    assert "| `Conv[a\\|b]` |" in page


def test_the_map_tells_where_the_rules_were_found(page):
    (row,) = (line for line in page.splitlines() if line.startswith("| `acme-1.2` | 1.2.3"))
    assert "IMPLEMENT onnx, CIN 16" in row


# --- what ships ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_names())
def test_rules_that_ship(name):
    found = read_shipped(name)
    assert {question.rule for question in QUESTIONS} <= found.rules.keys()
    (environment,) = found.environments
    assert file_name(environment) == f"{name}.json"
    assert environment["host"].count(",") == 1  # no name of a processor: machine and system
    decided = [r.alone for r in found.rules.values() if not r.alone.is_open]
    assert all(finding.evidence == "graph" for finding in decided)
    assert all(finding.kernels is not None for finding in decided)


def test_rules_ship_for_onnx_runtime():
    assert any(name.startswith("onnxruntime-") for name in shipped_names())


def test_the_map_is_made_of_what_ships():
    made = render([read_shipped(name) for name in shipped_names()])
    assert FUSION_MAP.read_text(encoding="utf-8") == made, (
        "docs/fusion-map.md and the rule files differ; run nn-meter map --render-only --rules "
        "src/nn_meter/fusion_rules/data --output docs/fusion-map.md"
    )
