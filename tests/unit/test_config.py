"""Configuration files: the guide's defaults, and every bad one refused in words that help."""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import plan_chain
from nn_meter.builder.backends.debug.settings import DebugSettings
from nn_meter.builder.backends.interface import PLATFORMS, backend_spec, create_workspace
from nn_meter.builder.config import (
    BackendSettings,
    RuletestConfig,
    edit_distance,
    read_yaml,
    render_template,
    validate,
)
from nn_meter.builder.workspace import open_workspace
from nn_meter.errors import ConfigError, NNMeterError, OperatorError

OPERATORS = [
    *("conv", "dwconv", "convtrans", "bn", "globalavgpool", "maxpool", "avgpool", "se", "fc"),
    *("relu", "relu6", "sigmoid", "hswish", "reshape", "add", "concat", "flatten", "split"),
]
TESTCASES = ["MON"]

# The original program's list, in its order.
ORIGINAL = re.findall(
    r"\w+",
    """
add_add add_avgpool add_concat add_conv add_convtrans add_dwconv add_fc add_relu add_reshape
avgpool_add avgpool_avgpool avgpool_concat avgpool_conv avgpool_convtrans avgpool_dwconv
avgpool_relu avgpool_reshape bn_relu concat_add concat_avgpool concat_concat concat_conv
concat_convtrans concat_dwconv concat_fc concat_relu concat_reshape conv_add conv_avgpool conv_bn
conv_concat conv_conv conv_convtrans conv_dwconv conv_hswish conv_relu conv_reshape conv_se
convtrans_add convtrans_avgpool convtrans_concat convtrans_conv convtrans_convtrans
convtrans_dwconv convtrans_relu convtrans_reshape dwconv_add dwconv_avgpool dwconv_bn dwconv_concat
dwconv_conv dwconv_convtrans dwconv_dwconv dwconv_relu dwconv_reshape fc_add fc_concat fc_fc fc_relu
fc_reshape relu_add relu_avgpool relu_concat relu_conv relu_convtrans relu_dwconv relu_fc relu_relu
relu_reshape reshape_add reshape_avgpool reshape_concat reshape_conv reshape_convtrans
reshape_dwconv reshape_fc reshape_relu reshape_reshape se_relu
""",
)
LEFT_OUT = [
    *("relu6", "sigmoid", "hswish", "maxpool", "globalavgpool", "se", "bn", "flatten", "split")
]


def load(path: Path) -> RuletestConfig:
    return RuletestConfig.load(path, operators=OPERATORS, testcases=TESTCASES)


def from_dict(**keys: object) -> RuletestConfig:
    return RuletestConfig.from_dict(keys, source="r.yaml", operators=OPERATORS, testcases=TESTCASES)


@pytest.fixture
def refusal(tmp_path):
    """Load text as ruletest_config.yaml; returns the words of the refusal, less the file."""

    def _refusal(text: str) -> str:
        path = tmp_path / "ruletest_config.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        return message.removeprefix(f"{path}: ")

    return _refusal


# --- defaults ------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_guide(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing but a comment\n")
    config = load(tmp_path / "empty.yaml").as_dict()
    basic = config.pop("BASIC_TESTCASES")
    assert config == {
        "DETAIL": False,
        "IMPLEMENT": "onnx",
        "HW": 28,
        "CIN": 16,
        "SHAPE_1D": 428,
        "COUT": 256,
        "KERNEL_SIZE": 3,
        "PADDING": "same",
        "STRIDES": 1,
        "POOL_STRIDES": 2,
        "EPS_ALPHA": 0.5,
        "EVIDENCE": "auto",
        "CONFIDENCE": 0.95,
        "TIME_BUDGET": 0.35,
        "OTHER_TESTCASES": ["MON"],
        "LAYERS_1D": ["fc"],
    }
    assert basic[: len(ORIGINAL)] == ORIGINAL
    assert len(ORIGINAL) == 79


def test_default_pairs_of_the_other_operators_are_those_that_can_be_built():
    config = from_dict().as_dict()
    wanted = set()
    for op in LEFT_OUT:
        for partner in ("conv", "dwconv", "relu", "add", "fc"):
            for pair in ((op, partner), (partner, op)):
                try:
                    plan_chain(pair, config)
                except OperatorError:
                    continue
                wanted.add("_".join(pair))
    basic = config["BASIC_TESTCASES"]
    assert set(basic) == wanted | set(ORIGINAL)
    assert len(basic) == len(set(basic))


def test_backend_defaults():
    settings = validate(BackendSettings, {}, "backend_config.yaml")
    numbers = {"THREADS": 1, "RUNS": 50, "WARMUPS": 10}
    assert settings.as_dict() == {**numbers, "ROUNDS": None, "PYTHON": None}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_templates_read_back_to_the_defaults(tmp_path, platform):
    workspace = open_workspace(create_workspace(tmp_path / "ws", platform=platform))
    chosen = PLATFORMS[platform]
    assert workspace.ruletest == from_dict(IMPLEMENT=chosen.implement)
    guides = platform in ("tflite", "openvino")
    assert chosen.implement == ("tensorflow" if guides else "onnx")
    configs = backend_spec(chosen.backends[0], workspace).configs
    assert {key: configs[key] for key in ("THREADS", "RUNS", "WARMUPS", "PYTHON")} == {
        "THREADS": 1,
        "RUNS": 50,
        "WARMUPS": 10,
        "PYTHON": None,
    }
    for file in (workspace.ruletest_file, workspace.backend_file):
        lines = file.read_text().splitlines()
        for number, line in enumerate(lines):
            assert len(line) <= 100
            if line[:1].isupper():
                assert lines[number - 1].startswith("# "), f"{line} has no comment above it"


def test_template_holds_the_values_that_differ(tmp_path):
    path = tmp_path / "ruletest_config.yaml"
    changed = {"IMPLEMENT": "torch", "HW": 7, "BASIC_TESTCASES": "all", "LAYERS_1D": []}
    path.write_text(render_template(RuletestConfig, "A title.", **changed))
    assert path.read_text().startswith("# A title.\n")
    assert load(path) == from_dict(**changed)


def test_settings_do_not_change():
    config = from_dict()
    with pytest.raises(ValueError, match="frozen"):
        config.HW = 3


# --- refusals ------------------------------------------------------------------------------------


def bomb(form: str, alias: str) -> str:
    """Twenty keys, each of which stands for ten times as much as the one before."""
    lines = ["A0: &a0 {x: 1}"]
    for number in range(1, 21):
        inner = ", ".join([f"{alias}a{number - 1}"] * 10)
        lines.append(f"A{number}X{number}: &a{number} {form.format(inner)}")
    return "\n".join(lines)


POSITIVE = "a whole number of at least 1"
REFUSED = [
    # text; what the message has to hold
    ("KERNEL_SIZE: 0", ["KERNEL_SIZE", POSITIVE, "found 0"]),
    ("KERNEL_SIZE: -3", ["KERNEL_SIZE", POSITIVE, "found -3"]),
    ("KERNEL_SIZE: 3.0", ["KERNEL_SIZE", POSITIVE, "found 3.0"]),
    ("HW: '28'", ["HW", POSITIVE, "found '28'"]),
    ("HW: true", ["HW", POSITIVE, "found True"]),
    ("HW: [28]", ["HW", POSITIVE, "found [28]"]),
    ("HW:", ["HW", POSITIVE, "found nothing"]),
    ("CIN: 1048577", ["CIN", "at most 1048576", "found 1048577"]),
    ("COUT: 0", ["COUT", POSITIVE]),
    ("SHAPE_1D: 0", ["SHAPE_1D", POSITIVE]),
    ("STRIDES: 0", ["STRIDES", POSITIVE]),
    ("POOL_STRIDES: 0", ["POOL_STRIDES", POSITIVE]),
    (f"HW: 0x{'f' * 4000}", ["HW", POSITIVE]),
    ("PADDING: full", ["PADDING", "same or valid", "found 'full'"]),
    ("PADDING: vlaid", ["PADDING", "same or valid", "found 'vlaid'", "did you mean 'valid'"]),
    ("PADDING: 1", ["PADDING", "same or valid", "found 1"]),
    ("PADDING:", ["PADDING", "same or valid", "found nothing"]),
    (
        "IMPLEMENT: tensorflw",
        ["IMPLEMENT", "tensorflow, torch or onnx", "'tensorflw'", "did you mean 'tensorflow'"],
    ),
    ("EVIDENCE: guess", ["EVIDENCE", "auto, graph, latency or formula", "'guess'"]),
    ("DETAIL: 1", ["DETAIL", "true or false", "found 1"]),
    ("DETAIL: 'yes'", ["DETAIL", "true or false", "found 'yes'"]),
    ("EPS_ALPHA: -0.1", ["EPS_ALPHA", "a number of at least 0", "found -0.1"]),
    ("EPS_ALPHA: .nan", ["EPS_ALPHA", "a number of at least 0", "found nan"]),
    ("EPS_ALPHA: .inf", ["EPS_ALPHA", "a number of at least 0", "found inf"]),
    ("EPS_ALPHA: half", ["EPS_ALPHA", "a number of at least 0", "found 'half'"]),
    ("EPS_ALPHA: true", ["EPS_ALPHA", "a number of at least 0", "found True"]),
    (f"EPS_ALPHA: 1{'0' * 400}", ["EPS_ALPHA", "a number of at least 0"]),
    ("KERNEL_SIZ: 3", ["KERNEL_SIZ", "did you mean KERNEL_SIZE"]),
    ("KERNELSIZE: 3", ["KERNELSIZE", "did you mean KERNEL_SIZE"]),
    ("kernel_size: 3", ["kernel_size", "did you mean KERNEL_SIZE"]),
    ("KENREL_SIEZ: 3", ["KENREL_SIEZ", "did you mean KERNEL_SIZE"]),
    ("HWC: 3", ["HWC", "did you mean HW"]),
    ("BASIC_TESTCASE: []", ["BASIC_TESTCASE", "did you mean BASIC_TESTCASES"]),
    ("BASIC_TESTCASES: conv_relu", ["BASIC_TESTCASES", "a list of pairs", "found 'conv_relu'"]),
    ("BASIC_TESTCASES: al", ["BASIC_TESTCASES", "or: all", "did you mean 'all'"]),
    ("BASIC_TESTCASES: [3]", ["BASIC_TESTCASES", "a list of pairs", "found [3]"]),
    ("BASIC_TESTCASES: [[conv, relu]]", ["BASIC_TESTCASES", "a list of pairs"]),
    ("BASIC_TESTCASES: {conv: relu}", ["BASIC_TESTCASES", "a list of pairs"]),
    ("BASIC_TESTCASES: [conv_]", ["BASIC_TESTCASES", "'conv_'", "is no chain", "conv_relu"]),
    ("BASIC_TESTCASES: [_conv]", ["BASIC_TESTCASES", "'_conv'", "is no chain"]),
    ("BASIC_TESTCASES: [conv]", ["BASIC_TESTCASES", "'conv'", "is no chain"]),
    ("BASIC_TESTCASES: ['']", ["BASIC_TESTCASES", "''", "is no chain"]),
    (
        f"BASIC_TESTCASES: [{'_'.join(['relu'] * 17)}]",
        ["BASIC_TESTCASES", "is no chain", "at most 16"],
    ),
    ("BASIC_TESTCASES: [BF_conv]", ["BASIC_TESTCASES", "'BF_conv'", "is no chain"]),
    ("BASIC_TESTCASES: [conv_foo]", ["BASIC_TESTCASES", "'conv_foo'", "no operator 'foo'", "relu"]),
    ("BASIC_TESTCASES: [conv_rleu]", ["'conv_rleu'", "'rleu'", "did you mean 'relu'", "known:"]),
    ("OTHER_TESTCASES: [MOM]", ["OTHER_TESTCASES", "'MOM'", "did you mean 'MON'", "known: MON"]),
    ("OTHER_TESTCASES: MON", ["OTHER_TESTCASES", "a list of names of test cases", "found 'MON'"]),
    ("LAYERS_1D: [fcc]", ["LAYERS_1D", "'fcc'", "did you mean 'fc'", "known: conv, dwconv"]),
    ("LAYERS_1D: fc", ["LAYERS_1D", "a list of names of operators", "found 'fc'"]),
    ("HW: 1\nCIN: 2\nHW: 3", ["no valid YAML", "'HW' is given twice", "line 3"]),
    ("MINE: {a: 1, a: 2}", ["no valid YAML", "'a' is given twice"]),
    ("- HW", ["KEY: value", "a list"]),
    ("HW", ["KEY: value", "text"]),
    ("28", ["KEY: value", "a number"]),
    ("HW: 1\n CIN: 2", ["no valid YAML"]),
    ("HW: {", ["no valid YAML"]),
    ("1: 2", ["the key 1", "should be text"]),
    ("? [HW]\n: 2", ["no valid YAML", "a key is a list"]),
    ("HW: !!python/object/apply:os.system [ls]", ["no valid YAML", "python/object"]),
    # what YAML's own types cannot hold
    ("MINE: 2022-99-99", ["no valid YAML"]),
    ("MINE: !!bool maybe", ["no valid YAML"]),
    ("MINE: !!timestamp soon", ["no valid YAML"]),
    ("MINE: !!int ''", ["no valid YAML"]),
    (f"MINE: {'9' * 5000}", ["no valid YAML"]),
    (f"MINE: {'[' * 700}", ["no valid YAML"]),
    (f"MINE: {'x' * 2**18}", ["is larger than 262144 bytes"]),
    (f"MINE: {'ö' * 2**17}", ["is larger than 262144 bytes"]),
    # a few lines that stand for 10**20 values
    (bomb("[{}]", "*"), ["no valid YAML", "its aliases", "more than 100000 values"]),
    (bomb("{{<<: [{}]}}", "*"), ["no valid YAML", "its aliases"]),
    # what the process that builds or measures cannot be told
    ("MINE: 2022-06-14", ["MINE", "text, numbers", "found datetime.date(2022, 6, 14)", "quotes"]),
    ("MINE: {1: a}", ["MINE", "text, numbers", "found {1: 'a'}"]),
    ("MINE: [.nan]", ["MINE", "text, numbers", "found [nan]"]),
    ("MINE: !!binary aGFsbG8=", ["MINE", "text, numbers", "found b'hallo'"]),
    ("MINE: !!set {a, b}", ["MINE", "text, numbers"]),
    ("MINE: &x [*x]", ["no valid YAML", "recursive"]),
    ('MINE: "\\ud800"', ["MINE", "text, numbers"]),
    (f"MINE: 0x{'f' * 4000}", ["MINE", "text, numbers"]),
]


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=[text[:30] for text, _ in REFUSED])
def test_a_bad_file_is_refused_in_words_that_help(refusal, text, words):
    message = refusal(text + "\n")
    assert [word for word in words if word not in message] == [], message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("THREADS: 0", ["THREADS", POSITIVE, "found 0"]),
        ("THREADS: 5000", ["THREADS", f"each of {os.cpu_count()} cores", "found 5000"]),
        ("RUNS: 0", ["RUNS", POSITIVE, "found 0"]),
        ("WARMUPS: -1", ["WARMUPS", "a whole number of at least 0", "found -1"]),
        ("WARMUPS: ten", ["WARMUPS", "a whole number of at least 0", "found 'ten'"]),
        ("PYTHON: 3.11", ["PYTHON", "a path, or empty", "found 3.11"]),
        ("TREADS: 2", ["TREADS", "did you mean THREADS"]),
    ],
)
def test_bad_backend_settings_are_refused(text, words):
    with pytest.raises(ConfigError) as caught:
        validate(DebugSettings, yaml.safe_load(text), "backend_config.yaml")
    message = str(caught.value)
    assert message.startswith("backend_config.yaml: ")
    assert [word for word in words if word not in message] == [], message


def test_as_many_threads_as_four_for_each_core():
    most = 4 * os.cpu_count()
    assert validate(DebugSettings, {"THREADS": most}, "b.yaml").as_dict()["THREADS"] == most
    with pytest.raises(ConfigError, match=f"at most {most}"):
        validate(DebugSettings, {"THREADS": most + 1}, "b.yaml")


def test_aliases_of_a_sensible_size_are_taken(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("LIST: &list [a, b]\nTWICE: [*list, *list]\nMAP: &map {c: 1}\nM: {<<: *map}\n")
    config = load(path).as_dict()
    assert (config["TWICE"], config["M"]) == ([["a", "b"], ["a", "b"]], {"c": 1})


def test_a_file_that_is_not_there_or_is_no_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read"):
        read_yaml(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("MINE: Größe".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml: cannot be read"):
        read_yaml(tmp_path / "latin.yaml")


# --- what is taken -------------------------------------------------------------------------------


def test_own_keys_are_kept_as_they_are(tmp_path):
    own = {"MY_DILATION": 2, "NESTED": {"a": [1, None, "x"]}, "lower": True, "json": 1, "self": 2}
    own |= {"model_config": "x", "__class__": "y", "": 3, "DATE": "2022-06-14"}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(own))
    config = load(path)
    assert {key: config.as_dict()[key] for key in own} == own
    assert config.HW == 28


@pytest.mark.parametrize("key", ["KERNEL", "HWCD", "DEPTH", "STRIDES_2D", "CINEMA"])
def test_a_key_more_than_two_letters_away_is_the_users_own(key):
    assert from_dict(**{key: 5}).as_dict()[key] == 5


def test_numbers_and_cases_that_mean_the_same_are_taken():
    config = from_dict(EPS_ALPHA=1, PADDING="VALID", HW=1, COUT=2**20)
    assert config.EPS_ALPHA == 1.0
    assert isinstance(config.EPS_ALPHA, float)
    assert (config.PADDING, config.HW, config.COUT) == ("valid", 1, 2**20)
    assert from_dict(EPS_ALPHA=0).EPS_ALPHA == 0.0


@pytest.mark.parametrize("nothing", ["", "[]"])
def test_empty_lists(tmp_path, nothing):
    path = tmp_path / "r.yaml"
    keys = ("BASIC_TESTCASES", "OTHER_TESTCASES", "LAYERS_1D")
    path.write_text("".join(f"{key}: {nothing}\n" for key in keys))
    assert [getattr(load(path), key) for key in keys] == [[], [], []]


def test_names_of_pairs_are_written_one_way_and_once():
    config = from_dict(
        BASIC_TESTCASES=["conv_relu", "BF_conv_relu", "relu_relu", "conv_relu", "BF_add_fc"],
        OTHER_TESTCASES=["MON", "MON"],
    )
    assert config.BASIC_TESTCASES == ["conv_relu", "relu_relu", "add_fc"]
    assert config.OTHER_TESTCASES == ["MON"]
    assert from_dict(BASIC_TESTCASES="all").BASIC_TESTCASES == "all"


def test_the_old_name_of_eps_alpha(caplog):
    with caplog.at_level(logging.WARNING):
        assert from_dict(EMP_ALPHA=0.3).EPS_ALPHA == 0.3
    assert "EMP_ALPHA is now called EPS_ALPHA" in caplog.text
    assert "r.yaml" in caplog.text
    both = from_dict(EMP_ALPHA=0.3, EPS_ALPHA=0.3)
    assert both.EPS_ALPHA == 0.3
    assert "EMP_ALPHA" not in both.as_dict()
    with pytest.raises(ConfigError, match=r"EPS_ALPHA is 0\.5.*EMP_ALPHA says 0\.3"):
        from_dict(EMP_ALPHA=0.3, EPS_ALPHA=0.5)
    with pytest.raises(ConfigError, match="EPS_ALPHA must be a number of at least 0, but found -1"):
        from_dict(EMP_ALPHA=-1)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("HW", "HW", 0),
        ("", "HW", 2),
        ("HWC", "HW", 1),
        ("WH", "HW", 1),
        ("SIEZ", "SIZE", 1),
        ("KITTEN", "SITTING", 3),
    ],
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


# --- anything ------------------------------------------------------------------------------------

KEYS = [*RuletestConfig.model_fields, *BackendSettings.model_fields, "EMP_ALPHA", "MINE", "TARGET"]
words = st.sampled_from(
    ["conv_relu", "BF_add_fc", "MON", "fc", "conv", "conv_", "all", "same", "onnx", "torch", ""]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.integers()
    | st.floats()
    | words
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=6,
)
mappings = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), values, max_size=4)
tags = st.sampled_from(
    ["", "!!int", "!!float", "!!bool", "!!timestamp", "!!set", "!!omap", "!!null"]
)
tagged = st.text(alphabet="0123456789:.-+_xeETZ'[]{} ", max_size=12)
yaml_texts = (
    mappings.map(lambda data: yaml.safe_dump(data, allow_unicode=True))
    | values.map(lambda data: yaml.safe_dump(data, allow_unicode=True))
    | st.text(alphabet="HWCINabc01-_:.[]{}\"'!&*#?|>,~% \n\t\\", max_size=40)
    | st.text(max_size=40)
    | st.builds("{}: {} {}\n".format, st.sampled_from(KEYS), tags, tagged)
)
files = yaml_texts.map(lambda text: text.encode("utf-8", "replace")) | st.binary(max_size=30)


def outcome(read):
    """What reading gives, or the words of an error of ours; another error goes through."""
    try:
        return read(), ""
    except NNMeterError as exc:
        return None, str(exc)


@pytest.fixture(scope="module")
def any_workspace(tmp_path_factory) -> Path:
    return create_workspace(tmp_path_factory.mktemp("any") / "ws", platform="onnxruntime")


@settings(max_examples=100, deadline=None)
@given(content=files)
def test_any_ruletest_config_is_read_or_refused(any_workspace, content):
    path = any_workspace / "configs" / "ruletest_config.yaml"
    path.write_bytes(content)
    workspace, refusal = outcome(lambda: open_workspace(any_workspace))
    if refusal:
        assert str(path) in refusal
    else:
        sent = json.loads(json.dumps(workspace.operator_config(), allow_nan=False))
        assert sent == workspace.operator_config()
        assert workspace.ruletest.HW >= 1
        assert workspace.ruletest.PADDING in ("same", "valid")


@settings(max_examples=100, deadline=None)
@given(content=files)
def test_any_backend_config_is_read_or_refused(any_workspace, content):
    (any_workspace / "configs" / "ruletest_config.yaml").write_text("")
    path = any_workspace / "configs" / "backend_config.yaml"
    path.write_bytes(content)
    spec, refusal = outcome(lambda: backend_spec("onnxruntime_cpu", open_workspace(any_workspace)))
    if refusal:
        assert str(path) in refusal
    else:
        assert json.loads(json.dumps(spec.to_json(), allow_nan=False)) == spec.to_json()
        assert spec.configs["THREADS"] >= 1


@settings(max_examples=100, deadline=None)
@given(data=mappings)
def test_any_mapping_is_taken_or_refused(data):
    config, refusal = outcome(lambda: from_dict(**data))
    if refusal:
        assert refusal.startswith("r.yaml: ")
    else:
        own = {key: data[key] for key in data if key not in RuletestConfig.model_fields}
        own.pop("EMP_ALPHA", None)
        assert {key: config.as_dict()[key] for key in own} == own
        assert not any(isinstance(value, datetime.date) for value in config.as_dict().values())
