"""Latencies by hand: fill_latency, and reading test cases that somebody typed latencies into."""

from __future__ import annotations

import copy
import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nn_meter.builder import fill_latency
from nn_meter.builder.backend_meta.utils import Latency
from nn_meter.builder.profiling.results import read_testcases
from nn_meter.errors import NNMeterError, ResultFileError

MODELS = "./fusion_rule_test/models"


def some_testcases() -> dict[str, dict[str, dict[str, object]]]:
    return {
        f"BF_{case}": {
            model: {"model": f"{MODELS}/BF_{case}_{model}", "shapes": [[28, 28, 16]]}
            for model in (*case.split("_"), "block")
        }
        for case in ("conv_relu", "dwconv_bn")
    }


CONV = f"{MODELS}/BF_conv_relu_conv"
BLOCK = f"{MODELS}/BF_conv_relu_block"


# --- fill_latency --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (41, "41.0 +- 0.0"),
        (41.781, "41.781 +- 0.0"),
        ("41.781 +- 1.5", "41.781 +- 1.5"),
        ("2", "2.0 +- 0.0"),
        (" 1e-2+-.5 ", "0.01 +- 0.5"),
        (Latency(2.5, 0.25), "2.5 +- 0.25"),
        (np.float32(0.5), "0.5 +- 0.0"),
        (np.int64(3), "3.0 +- 0.0"),
        (Decimal("1.5"), "1.5 +- 0.0"),
    ],
)
def test_a_latency_may_be_written_in_many_ways(value, text):
    filled = fill_latency(some_testcases(), {CONV: value})
    assert filled["BF_conv_relu"]["conv"]["latency"] == text
    assert json.loads(json.dumps(filled)) == filled


@pytest.mark.parametrize(
    "path", [CONV, CONV.removeprefix("./"), Path(CONV), CONV.replace("/models/", "//models/./")]
)
def test_a_path_may_be_written_in_many_ways(path):
    assert "latency" in fill_latency(some_testcases(), {path: 1})["BF_conv_relu"]["conv"]


def test_an_absolute_path_is_one_in_the_workspace_in_use(workspace):
    with pytest.raises(ResultFileError, match="no test case has this model"):
        fill_latency(some_testcases(), {Path("/ws") / CONV: 1})
    root = workspace().path
    given = some_testcases()
    given["BF_conv_relu"]["block"]["model"] = str(root / BLOCK)
    for relu in (f"{MODELS}/BF_conv_relu_relu", root / MODELS / "BF_conv_relu_relu"):
        for conv, block in ((CONV, root / BLOCK), (str(root / CONV), BLOCK)):
            filled = fill_latency(given, {conv: 1, block: 2, relu: 3})["BF_conv_relu"]
            assert [entry["latency"][0] for entry in filled.values()] == ["1", "3", "2"]


@pytest.mark.parametrize("latencies", [None, [1, 2], "fast", {3: 1}, {None: 1}])
def test_what_is_no_dict_of_latencies(latencies):
    with pytest.raises(ResultFileError, match=r"dict of a model's path|path of a model is text"):
        fill_latency(some_testcases(), latencies)


def test_what_is_not_named_stays_and_what_was_given_too():
    given = some_testcases()
    given["BF_dwconv_bn"]["bn"]["latency"] = "3.0 +- 1.0"
    given["BF_conv_relu"]["block"]["error"] = {"kind": "crashed", "reason": "SIGSEGV"}
    before = copy.deepcopy(given)
    filled = fill_latency(given, {CONV: 1, BLOCK: 2})
    assert given == before
    wanted = copy.deepcopy(before)
    wanted["BF_conv_relu"]["conv"]["latency"] = "1.0 +- 0.0"
    wanted["BF_conv_relu"]["block"]["latency"] = "2.0 +- 0.0"
    del wanted["BF_conv_relu"]["block"]["error"]
    assert filled == wanted
    assert fill_latency(given, {}) == before


def test_the_path_of_the_json_file_does_as_the_dict(tmp_path):
    path = tmp_path / "origin_testcases.json"
    path.write_text(json.dumps(some_testcases()))
    for source in (path, str(path)):
        assert fill_latency(source, {CONV: 1}) == fill_latency(some_testcases(), {CONV: 1})


def test_a_model_of_several_test_cases_is_filled_in_each():
    given = some_testcases()
    given["BF_dwconv_bn"]["bn"]["model"] = CONV
    filled = fill_latency(given, {CONV: 5})
    assert filled["BF_dwconv_bn"]["bn"]["latency"] == "5.0 +- 0.0"
    assert filled["BF_conv_relu"]["conv"]["latency"] == "5.0 +- 0.0"


def test_a_path_that_no_test_case_has_is_refused_with_the_nearest():
    with pytest.raises(ResultFileError) as caught:
        fill_latency(some_testcases(), {f"{MODELS}/BF_conv_relu_konv": 1})
    assert f"{MODELS}/BF_conv_relu_konv: no test case has this model" in str(caught.value)
    assert "did you mean 'fusion_rule_test/models/BF_conv_relu_conv'" in str(caught.value)
    with pytest.raises(ResultFileError, match=r"^elsewhere: no test case has this model$"):
        fill_latency(some_testcases(), {"elsewhere": 1})


NO_LATENCIES = [
    *(
        0,
        "0.0 +- 0.1",
        Latency(0),
        float("nan"),
        float("inf"),
        -1,
        -0.5,
        10**400,
        True,
        None,
        [],
        {},
        object(),
        "",
        "fast",
    ),
    *("1 ms", "1 +- ", "+- 1", "-1 +- 1", "1 +- -1", "nan", "nan +- nan", "1e999", "inf", "1,5"),
    np.array([1.0, 2.0]),
    Decimal("sNaN"),
]


@pytest.mark.parametrize("value", NO_LATENCIES, ids=lambda value: str(value)[:20])
def test_what_is_no_latency_is_refused_with_the_model(value):
    with pytest.raises(ResultFileError) as caught:
        fill_latency(some_testcases(), {BLOCK: value})
    assert str(caught.value).startswith(f"{BLOCK}: ")
    assert len(str(caught.value)) < 400


# --- typed in ------------------------------------------------------------------------------------


def test_latencies_typed_in_are_read(tmp_path):
    typed = some_testcases()
    typed["BF_conv_relu"]["conv"]["latency"] = 12
    typed["BF_conv_relu"]["relu"]["latency"] = "2.36618 +- 0.0"
    typed["BF_conv_relu"]["block"]["latency"] = None
    path = tmp_path / "profiled_results.json"
    path.write_text(json.dumps(typed))
    for source in (typed, path):
        found = read_testcases(source)["BF_conv_relu"]
        assert found["conv"]["latency"] == "12.0 +- 0.0"
        assert found["relu"]["latency"] == "2.36618 +- 0.0"
        assert found["block"]["latency"] is None


@pytest.mark.parametrize(
    "value", [*(0, "0 +- 1", -1, True, [], {}, "", "fast", "1 ms", "-1 +- 1"), 10**400]
)
def test_what_is_no_latency_is_refused_with_test_case_and_model(tmp_path, value):
    typed = some_testcases()
    typed["BF_conv_relu"]["block"]["latency"] = value
    path = tmp_path / "profiled_results.json"
    path.write_text(json.dumps(typed))
    for source, where in ((typed, "the dict of test cases"), (path, str(path))):
        with pytest.raises(ResultFileError) as caught:
            read_testcases(source)
        assert str(caught.value).startswith(f"{where}: BF_conv_relu: block: ")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have(tmp_path, text):
    path = tmp_path / "profiled_results.json"
    path.write_text('{"BF_a_b": {"a": {"model": "m", "shapes": [[1]], "latency": %s}}}' % text)  # noqa: UP031
    with pytest.raises(ResultFileError, match=str(path)):
        read_testcases(path)


GOOD = {"model": "m.onnx", "shapes": [[4, 8, 8]]}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (3, "a dict or the path of a JSON file, not a int"),
        ({"BF_a_b": []}, "BF_a_b: should hold a dict of models"),
        ({"BF_a_b": {}}, "BF_a_b: should hold a dict of models"),
        ({"BF_a_b": {"a": 3}}, "BF_a_b: a: should be a dict with model, shapes and latency"),
        (
            {"BF_a_b": {"a": {"shapes": [[1]]}}},
            'BF_a_b: a: "model" should be a path, but found None',
        ),
        ({"BF_a_b": {"a": GOOD | {"model": 3}}}, '"model" should be a path, but found 3'),
        ({"BF_a_b": {"a": GOOD | {"model": ""}}}, '"model" should be a path'),
        ({"BF_a_b": {"a": GOOD | {"model": "a\0b"}}}, '"model" should be a path'),
        ({"BF_a_b": {"a": GOOD | {"model": "\ud800"}}}, "BF_a_b: a: holds what a JSON file cannot"),
        ({"BF_a_b": {"a": GOOD | {"converted_model": 3}}}, '"converted_model" should be a path'),
        ({"BF_a_b": {"a": GOOD | {"shapes": 3}}}, '"shapes" should be a list of lists of sizes'),
        ({"BF_a_b": {"a": GOOD | {"shapes": []}}}, '"shapes" should be'),
        ({"BF_a_b": {"a": GOOD | {"shapes": [4, 8, 8]}}}, '"shapes" should be.* but holds 4'),
        ({"BF_a_b": {"a": GOOD | {"shapes": [[0, 8]]}}}, '"shapes" should be.* holds .0, 8'),
        ({"BF_a_b": {"a": GOOD | {"shapes": [[4.0]]}}}, '"shapes" should be'),
        ({"BF_a_b": {"a": GOOD | {"shapes": ["abc"]}}}, '"shapes" should be'),
        (
            {"BF_a_b": {"a": GOOD | {"error": "crashed"}}},
            '"error" should be a dict of kind and reason',
        ),
        ({"BF_a_b": {"a": GOOD | {"extra": float("nan")}}}, "holds what a JSON file cannot"),
        ({"BF_a_b": {"a": GOOD | {"extra": object()}}}, "holds what a JSON file cannot"),
        ({"BF_a_\ud800": {"a": GOOD}}, "is no text"),
        ({"BF_a_b": {"\ud800": GOOD}}, "is no text"),
    ],
)
def test_what_is_not_of_the_guides_form_is_refused(source, words):
    with pytest.raises(ResultFileError, match=words):
        read_testcases(source)


def test_too_deep_is_refused():
    deep: object = []
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(ResultFileError, match="BF_a_b: a: holds what a JSON file cannot"):
        read_testcases({"BF_a_b": {"a": GOOD | {"extra": deep}}})


def test_what_is_read_is_a_copy_in_plain_values():
    given = {
        "BF_a_b": {
            "a": {
                "model": Path("models/a.onnx"),
                "shapes": ((np.int64(4), 8, 8),),
                "latency": Latency(1, 2),
                "energy": [7],
                "error": {"kind": "failed"},
            }
        }
    }
    found = read_testcases(given)
    assert found == {
        "BF_a_b": {
            "a": {
                "model": "models/a.onnx",
                "shapes": [[4, 8, 8]],
                "latency": "1.0 +- 2.0",
                "energy": [7],
                "error": {"kind": "failed", "reason": ""},
            }
        }
    }
    assert json.loads(json.dumps(found)) == found
    found["BF_a_b"]["a"]["energy"].append(8)
    assert given["BF_a_b"]["a"]["energy"] == [7]


# --- anything ------------------------------------------------------------------------------------

numbers = st.integers() | st.floats() | st.just(10**400)
words = st.sampled_from(["BF_conv_relu", "conv", "relu", "block", "model", "shapes", "latency"])
texts = words | st.text(max_size=5) | st.sampled_from(["1.5 +- 0.1", "-1 +- 0", "\ud800", "a\0"])
anything = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts, inner, max_size=3)
        | st.fixed_dictionaries({"model": inner, "shapes": inner, "latency": inner})
        | st.dictionaries(words, st.dictionaries(words, inner, max_size=3), max_size=2)
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(data=anything, latency_only=st.booleans())
def test_anything_is_read_or_refused(data, latency_only):
    try:
        found = read_testcases(data, latency_only=latency_only)
    except NNMeterError:
        return
    assert read_testcases(found, latency_only=latency_only) == found
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


@settings(max_examples=100, deadline=None)
@given(latencies=st.dictionaries(texts | st.just(CONV), anything, max_size=2))
def test_any_latency_is_filled_in_or_refused(latencies):
    try:
        found = fill_latency(some_testcases(), latencies)
    except NNMeterError:
        return
    assert set(latencies) <= {CONV}
    assert read_testcases(found) == found
