"""generate_testcases: which pairs can be built, in which shapes, and each model built once."""

from __future__ import annotations

import json
import logging
import os
import textwrap
from pathlib import Path

import onnx
import pytest
import yaml

from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester import build, generate, generate_testcases
from nn_meter.builder.backend_meta.fusion_rule_tester.generate import Generated
from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import plan_chain
from nn_meter.builder.config import RuletestConfig
from nn_meter.builder.nn_modules.info import info_file
from nn_meter.builder.workspace import read_json
from nn_meter.errors import ConfigError, OperatorError, RegistrationError

CONFIG = {**RuletestConfig().as_dict(), "MODEL_DIR": "/nowhere"}
GUIDE = CONFIG | {"IMPLEMENT": "tensorflow"}


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "first", "second"),
    [
        ("conv_relu", (28, 28, 16), (28, 28, 256)),
        ("dwconv_conv", (28, 28, 16), (28, 28, 16)),
        ("maxpool_relu", (28, 28, 16), (14, 14, 16)),
        ("concat_relu", (28, 28, 16), (28, 28, 32)),
        ("split_relu", (28, 28, 16), (28, 28, 8)),
        ("reshape_conv", (28, 28, 16), (16, 28, 28)),
        ("flatten_relu", (28, 28, 16), (12544,)),
        ("globalavgpool_relu", (28, 28, 16), (16,)),
        ("fc_relu", (428,), (256,)),
        ("fc_fc", (428,), (256,)),
        ("fc_reshape", (428,), (256,)),
        ("relu_fc", (428,), (428,)),  # relu takes both ranks: 1-D, as the guide has it
        ("concat_fc", (428,), (856,)),
        ("flatten_fc", (28, 28, 16), (12544,)),  # what makes 1-D of 3-D
        ("globalavgpool_fc", (28, 28, 16), (16,)),
        ("reshape_fc", (428,), (1, 2, 214)),  # as the original program has it
    ],
)
def test_shapes_are_inferred_op_by_op(pair, first, second):
    plan = plan_chain(pair.split("_"), GUIDE)
    assert (plan.block.input_shape, plan.shapes[1]) == (first, second)
    chains = plan.chains(["a", "b"])
    assert [(name, chain.input_shape) for name, chain in chains.items()] == [
        ("a", first),
        ("b", second),
        ("block", first),
    ]


def test_the_channels_come_first_where_the_framework_has_them_first():
    for implement in ("onnx", "torch"):
        plan = plan_chain(("conv", "relu"), CONFIG | {"IMPLEMENT": implement})
        assert (plan.block.input_shape, plan.shapes[1]) == ((16, 28, 28), (256, 28, 28))


@pytest.mark.parametrize(
    ("changed", "second"),
    [
        ({"PADDING": "valid"}, (26, 26, 256)),
        ({"PADDING": "valid", "KERNEL_SIZE": 28, "COUT": 3}, (1, 1, 3)),
        ({"STRIDES": 2}, (14, 14, 256)),
        ({"HW": 7, "STRIDES": 3}, (3, 3, 256)),
    ],
)
def test_shapes_follow_the_configuration(changed, second):
    assert plan_chain(("conv", "relu"), GUIDE | changed).shapes[1] == second


def test_layers_1d_decide_which_input_a_pair_has():
    plan = plan_chain(("fc", "relu"), GUIDE | {"LAYERS_1D": []})
    assert (plan.block.input_shape, plan.shapes[1]) == ((28, 28, 16), (28, 28, 256))
    plan = plan_chain(("relu", "add"), GUIDE | {"LAYERS_1D": ["fc", "relu"]})
    assert (plan.block.input_shape, plan.shapes[1]) == ((428,), (428,))
    assert plan_chain(("conv", "fc"), GUIDE | {"LAYERS_1D": []}).shapes[1] == (28, 28, 256)


@pytest.mark.parametrize(
    ("pair", "changed", "reason"),
    [
        ("conv_fc", {}, r"fc takes a 1-D tensor \(LAYERS_1D\), but conv gives \[28, 28, 256\]"),
        ("se_fc", {}, "fc takes a 1-D tensor"),
        ("fc_conv", {}, r"conv takes a 3-D tensor, but \[256\]"),
        ("flatten_conv", {}, r"conv takes a 3-D tensor, but \[12544\]"),
        ("conv_relu", {"PADDING": "valid", "KERNEL_SIZE": 29}, "kernel of 29 does not fit"),
        ("conv_conv", {"PADDING": "valid", "KERNEL_SIZE": 15}, "kernel of 15 does not fit .* 14"),
        ("conv_relu", {"HW": 2**20}, r"at conv has more than 134217728 values"),
        ("conv_relu", {"COUT": 2**20}, r"\[28, 28, 1048576\] at relu has more than"),
        ("relu_conv", {"COUT": 2**20}, r"\[28, 28, 1048576\] at conv has more than"),
        ("flatten_fc", {"HW": 4096}, "has more than 134217728 values"),
        ("split_relu", {"CIN": 15}, "split halves the channels: .* even, but 15 reach it"),
        ("conv_split", {"COUT": 15}, "even, but 15 reach it"),
        ("reshape_fc", {"SHAPE_1D": 427}, "reshape halves a 1-D tensor: .* even, but 427"),
        ("fc_reshape", {"COUT": 255}, "even, but 255 reaches it"),
    ],
)
def test_a_pair_that_cannot_be_built_says_why(pair, changed, reason):
    with pytest.raises(OperatorError, match=reason):
        plan_chain(pair.split("_"), GUIDE | changed)


# --- operators of users --------------------------------------------------------------------------

OWN = """
    import os
    from nn_meter.builder.nn_modules import BaseOperator

    class Own(BaseOperator):
        def get_model(self):
            return lambda graph, x: graph.op("Relu", [x])
"""


@pytest.fixture
def operator(tmp_path):
    """Register an operator, a Relu with the given methods besides; returns its script."""

    def _operator(body: str = "", name: str = "own") -> Path:
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").touch()
        script = package / "script.py"
        script.write_text(textwrap.dedent(OWN) + textwrap.indent(textwrap.dedent(body), "    "))
        meta = {"builtin_name": name, "implement": "onnx", "package_location": str(package)}
        meta |= {"class_module": "script", "class_name": "Own"}
        (tmp_path / "meta.yaml").write_text(yaml.safe_dump(meta))
        registry.register("operator", tmp_path / "meta.yaml")
        return script

    return _operator


def test_an_operator_of_the_users(workspace, operator):
    operator("def get_output_shape(self): return self.input_shape")
    ws = workspace(BASIC_TESTCASES=["own_relu", "fc_own"], MINE=3)
    found = generate_testcases()
    assert found["BF_own_relu"]["relu"]["shapes"] == [[4, 8, 8]]
    assert found["BF_fc_own"]["own"]["shapes"] == [[8]]
    block = onnx.load(ws.resolve(found["BF_fc_own"]["block"]["model"]))
    assert [node.op_type for node in block.graph.node][-1] == "Relu"


def test_an_operator_with_several_outputs_passes_on_the_first(operator):
    operator("def get_output_shape(self): return [[2, 8, 8], [2, 8, 8]]")
    plan = plan_chain(("own", "relu"), CONFIG)
    assert plan.shapes[1] == (2, 8, 8)


def test_a_layer_of_the_users_that_takes_1d(operator):
    operator()
    plan = plan_chain(("own", "relu"), CONFIG | {"LAYERS_1D": ["fc", "own"]})
    assert plan.block.input_shape == (428,)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def get_output_shape(self): return None", "own cannot be made for the shape .*TypeError"),
        ("def get_output_shape(self): return 'abc'", "own cannot be made .*ValueError"),
        ("def get_output_shape(self): return []", r"the shape \[\] at relu is empty"),
        ("def get_output_shape(self): return [0, 8, 8]", r"the shape \[0, 8, 8\] at relu is empty"),
        ("def get_output_shape(self): raise KeyError('X')", "own cannot be made .*KeyError: 'X'"),
        ("def __init__(self, *args): raise OSError('no')", "own cannot be made .*OSError: no"),
    ],
)
def test_an_operator_that_does_not_say_what_comes_out(operator, body, reason):
    operator(body)
    with pytest.raises(OperatorError, match=reason):
        plan_chain(("own", "relu"), CONFIG)


def test_operators_that_cannot_be_built_cost_their_test_cases(
    generated, workspace, operator, caplog
):
    bodies = {
        "raises": ("def get_model(self): raise KeyError('DILATION')", "KeyError: 'DILATION'"),
        "fails": ("def get_model(self): return lambda graph, x: 1 / 0", "ZeroDivisionError"),
        "unknown": (
            "def get_model(self): return lambda graph, x: graph.op('Rleu', [x])",
            "no valid ONNX",
        ),
        "crashes": ("def get_model(self): os._exit(3)", "ended with exit code 3"),
    }
    for name, (body, _) in bodies.items():
        operator(body, name)
    workspace(BASIC_TESTCASES=["relu_relu", *(f"{name}_relu" for name in bodies)])
    summary = Generated()
    with caplog.at_level(logging.WARNING):
        found = generate_testcases(summary=summary)
    assert list(found) == ["BF_relu_relu"]
    assert set(summary.refused) == {f"BF_{name}_relu" for name in bodies}
    for name, (_, reason) in bodies.items():
        assert reason in summary.refused[f"BF_{name}_relu"]
        assert f"BF_{name}_relu cannot be built and is left out: " in caplog.text


def test_an_operator_of_another_framework(workspace, operator):
    operator()
    workspace(IMPLEMENT="torch")
    with pytest.raises(RegistrationError, match="own exists for onnx, but not for torch"):
        plan_chain(("own", "relu"), CONFIG | {"IMPLEMENT": "torch"})


# --- generate_testcases --------------------------------------------------------------------------


def mtimes(ws) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in ws.models_dir.iterdir() if p.is_file()}


def built(ws) -> tuple[int, int]:
    summary = Generated()
    generate_testcases(ws, summary=summary)
    return summary.built, summary.kept


def test_pairs_that_are_1d_behind_3d_are_built(workspace):
    pairs = ["globalavgpool_fc", "flatten_fc", "reshape_fc", "relu_fc"]
    ws = workspace(BASIC_TESTCASES=pairs)
    found = generate_testcases()
    shapes = {
        "globalavgpool_fc": ([[4, 8, 8]], [[4]]),
        "flatten_fc": ([[4, 8, 8]], [[256]]),
        "reshape_fc": ([[8]], [[1, 2, 4]]),
        "relu_fc": ([[8]], [[8]]),
    }
    for pair in pairs:
        case = found[f"BF_{pair}"]
        assert list(case) == [*pair.split("_"), "block"]
        assert (case["block"]["shapes"], case["fc"]["shapes"]) == shapes[pair]
        for name, entry in case.items():
            path = f"./fusion_rule_test/models/BF_{pair}_{name}.onnx"
            assert entry == {"model": path, "shapes": entry["shapes"]}
            onnx.checker.check_model(ws.resolve(path))
    assert read_json(ws.results_dir / "origin_testcases.json", "test cases") == found


def test_a_pair_that_cannot_be_built_is_named_and_the_rest_goes_on(workspace, caplog):
    ws = workspace(BASIC_TESTCASES=["conv_fc", "conv_relu", "fc_conv"])
    summary, told = Generated(), []
    with caplog.at_level(logging.WARNING):
        found = generate_testcases(summary=summary, progress=lambda *step: told.append(step))
    assert list(found) == ["BF_conv_relu"]
    assert list(summary.refused) == ["BF_conv_fc", "BF_fc_conv"]
    assert "BF_conv_fc cannot be built and is left out: fc takes a 1-D tensor" in caplog.text
    assert {step[:3] for step in told} == {("generate", done, 3) for done in (1, 2, 3)}
    assert not list(ws.models_dir.glob("BF_conv_fc*"))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"BASIC_TESTCASES": ["conv_fc"]}, "no test case can be built; BF_conv_fc: fc takes"),
        ({"BASIC_TESTCASES": []}, "BASIC_TESTCASES and OTHER_TESTCASES are empty"),
        ({"HW": 2**20}, "BF_conv_relu: the tensor .* has more than"),
        ({"KERNEL_SIZE": 2**20}, "BF_conv_relu: conv: "),
    ],
)
def test_nothing_that_can_be_built(workspace, keys, words):
    ws = workspace(**keys)
    with pytest.raises(OperatorError, match=f"{ws.ruletest_file}: .*{words}"):
        generate_testcases()
    assert not (ws.results_dir / "origin_testcases.json").exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"BASIC_TESTCASES": ["conv_relu", "split_relu"], "CIN": 5},
            r"BF_split_relu: split halves the channels: .* even, but 5 reach it \(CIN, or COUT",
        ),
        (
            {"BASIC_TESTCASES": ["reshape_fc"], "SHAPE_1D": 9},
            r"BF_reshape_fc: reshape halves .* even, but 9 reaches it \(SHAPE_1D",
        ),
        (
            {"BASIC_TESTCASES": ["fc_reshape", "conv_split"], "COUT": 7},
            r"BF_fc_reshape \(and 1 more\): reshape halves .* 7 reaches it",
        ),
    ],
)
def test_an_odd_size_is_refused_and_nothing_is_written(workspace, keys, words):
    ws = workspace(**keys)
    with pytest.raises(ConfigError, match=f"{ws.ruletest_file}: {words}"):
        generate_testcases()
    assert not ws.ruletest_dir.exists()


def test_every_pair_that_can_be_built(workspace, monkeypatch):
    ws = workspace(BASIC_TESTCASES="all", CIN=5)
    config = ws.operator_config()
    entries = [
        e for e in registry.entries("operator") if e.name in ("conv", "fc", "flatten", "split")
    ]
    monkeypatch.setattr(
        generate.registry, "entries", lambda kind: entries if kind == "operator" else []
    )
    summary = Generated()
    found = generate_testcases(ws, summary=summary)
    expected = []
    for first in entries:
        for second in entries:
            try:
                plan_chain((first.name, second.name), config)
            except OperatorError:
                continue
            expected.append(f"BF_{first.name}_{second.name}")
    assert sorted(found) == sorted(expected)
    assert "BF_flatten_fc" in found
    assert "BF_split_conv" not in found  # five channels: not asked for by name, so left out
    assert summary.refused == {}


def test_generating_again_builds_nothing(workspace):
    ws = workspace(BASIC_TESTCASES=["conv_relu", "relu_relu"], OTHER_TESTCASES=["MON"])
    first, then = Generated(), Generated()
    found = generate_testcases(summary=first)
    before = mtimes(ws)
    assert list(found) == ["BF_conv_relu", "BF_relu_relu", "MON"]
    assert generate_testcases(summary=then) == found
    assert (then.built, then.kept) == (0, 5)
    assert mtimes(ws) == before
    assert len(before) == first.built + 1  # relu_1 and relu_2 are equal
    for keys in ({"EPS_ALPHA": 0.1, "DETAIL": True}, {"BASIC_TESTCASES": ["conv_relu"]}):
        assert built(workspace(OTHER_TESTCASES=[], **keys))[0] == 0


def test_a_changed_configuration_builds_anew(workspace):
    ws = workspace(OTHER_TESTCASES=["MON"])
    generate_testcases()
    before = mtimes(ws)
    ws = workspace(PADDING="valid")
    assert built(ws)[0] == len(before)
    assert all(mtimes(ws)[name] != mtime for name, mtime in before.items())
    assert built(ws)[0] == 0


def test_what_a_model_is_built_from():
    chain = plan_chain(("conv", "relu"), CONFIG).block
    key = build.chain_key(chain)
    for changed in ({"COUT": 6}, {"KERNEL_SIZE": 1}, {"STRIDES": 2}, {"HW": 9}, {"MINE": None}):
        assert build.chain_key(plan_chain(("conv", "relu"), CONFIG | changed).block) != key
    for changed in ({"EPS_ALPHA": 1}, {"DETAIL": True}, {"EVIDENCE": "formula"}, {"LAYERS_1D": []}):
        assert build.chain_key(plan_chain(("conv", "relu"), CONFIG | changed).block) == key
    assert build.chain_key(plan_chain(("conv", "relu6"), CONFIG).block) != key
    assert build.chain_key(plan_chain(("conv", "relu"), GUIDE).block) != key


def test_equal_models_are_built_once_and_linked(workspace):
    ws = workspace(BASIC_TESTCASES=["relu_relu", "dwconv_relu", "relu_add", "add_relu"])
    summary = Generated()
    found = generate_testcases(summary=summary)
    relus = [
        ws.resolve(found[case][name]["model"])
        for case, name in (
            ("BF_relu_relu", "relu_1"),
            ("BF_relu_relu", "relu_2"),
            ("BF_dwconv_relu", "relu"),
            ("BF_relu_add", "relu"),
            ("BF_add_relu", "relu"),
        )
    ]
    assert len({path.stat().st_ino for path in relus}) == 1
    assert summary.built == 3 + 4  # relu, dwconv and add; and four blocks


def test_where_there_are_no_links_equal_models_are_copied(workspace, monkeypatch):
    def no_links(*_: object) -> None:
        raise OSError("not on this disk")

    monkeypatch.setattr(os, "link", no_links)
    ws = workspace(BASIC_TESTCASES=["relu_relu"])
    case = generate_testcases()["BF_relu_relu"]
    first, second = (ws.resolve(case[name]["model"]) for name in ("relu_1", "relu_2"))
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_ino != second.stat().st_ino
    assert not list(ws.models_dir.glob(".BF*"))


@pytest.mark.parametrize("what", ["model", "info", "damaged info", "all of one content"])
def test_a_model_that_is_gone_is_there_again(generated, what):
    ws, found = generated
    content = ws.resolve(found["BF_relu_relu"]["block"]["model"]).read_bytes()
    block = ws.resolve(found["BF_relu_relu"]["block"]["model"])
    if what == "model":
        block.unlink()
    elif what == "info":
        info_file(block).unlink()
    elif what == "damaged info":
        info = json.loads(info_file(block).read_text())
        info_file(block).write_text(json.dumps(info | {"outputs": [3]}))
    else:
        for name in ("BF_relu_relu_relu_1", "BF_relu_relu_relu_2", "BF_dwconv_relu_relu"):
            (ws.models_dir / f"{name}.onnx").unlink()
    summary = Generated()
    assert generate_testcases(summary=summary) == found
    assert summary.built == 1
    assert block.read_bytes() == content  # the same weights as before
    assert all(
        ws.resolve(e["model"]).exists() for models in found.values() for e in models.values()
    )


def test_a_linked_model_that_is_gone_is_linked_again(generated):
    ws, found = generated
    (ws.models_dir / "BF_relu_relu_relu_1.onnx").unlink()
    assert built(ws) == (0, 7)
    assert ws.resolve(found["BF_relu_relu"]["relu_1"]["model"]).exists()


def test_the_code_of_an_installed_operator(tmp_path, monkeypatch):
    """A module on its own is hashed alone: what lies beside it is not its code."""
    (tmp_path / "alone.py").write_text("a = 1")
    (tmp_path / "beside.py").write_text("b = 1")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("raise OSError('not to be imported')")
    (tmp_path / "package" / "inner.py").write_text("c = 1")
    monkeypatch.syspath_prepend(str(tmp_path))

    def key(module: str) -> str:
        entry = registry.Entry(
            kind="operator", name="own", origin="entry point", implement="onnx", class_module=module
        )
        return build.source_key(entry, "onnx")

    alone, inner = key("alone"), key("package.inner")
    (tmp_path / "beside.py").write_text("b = 2")
    assert (key("alone"), key("package.inner")) == (alone, inner)
    (tmp_path / "alone.py").write_text("a = 2")
    (tmp_path / "package" / "inner.py").write_text("c = 2")
    assert key("alone") != alone
    assert key("package.inner") != inner
    assert key("gone.inner")


# --- test cases of users -------------------------------------------------------------------------

TESTCASE = """
    import os
    from nn_meter.builder.backend_meta.fusion_rule_tester import BaseTestCase
    from nn_meter.builder.nn_modules.onnx.models import Graph

    class Mine(BaseTestCase):
        name = "MyRule"
        cases = {"case1": ["twice", "relu"], "case2": ["sigmoid", "relu"]}
        true_case = "case1"
        deps = {"MON": True}

        def _model_block(self):
            return self.build("Relu", "Relu", "Sigmoid")

        def _model_twice(self):
            return self.build("Relu", "Relu")

        def _model_never(self):
            raise AssertionError("no case names it")

        def build(self, *ops):
            graph = Graph()
            x = graph.input(self.input_shape)
            for op in ops:
                x = graph.op(op, [x])
            return graph.model([x]), [self.input_shape]
"""


@pytest.fixture
def testcase(tmp_path):
    """Register the test case under a name, with pieces of its code replaced."""

    def _testcase(name: str = "MyTC", *replaced: str) -> None:
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").touch()
        text = textwrap.dedent(TESTCASE)
        for old, new in zip(replaced[::2], replaced[1::2], strict=True):
            assert old in text
            text = text.replace(old, new)
        (package / "script.py").write_text(text)
        meta = {"builtin_name": name, "implement": "onnx", "package_location": str(package)}
        meta |= {"class_module": "script", "class_name": "Mine"}
        (tmp_path / "meta.yaml").write_text(yaml.safe_dump(meta))
        registry.register("testcase", tmp_path / "meta.yaml")

    return _testcase


def test_a_test_case_of_the_users(workspace, testcase):
    testcase()
    ws = workspace(BASIC_TESTCASES=[], OTHER_TESTCASES=["MyTC"])
    summary = Generated()
    found = generate_testcases(summary=summary)
    assert list(found) == ["MyRule"]
    assert list(found["MyRule"]) == ["block", "twice", "relu", "sigmoid"]
    assert summary.built == 4
    for name, entry in found["MyRule"].items():
        path = f"./fusion_rule_test/models/MyRule_{name}.onnx"
        assert entry == {"model": path, "shapes": [[4, 8, 8]]}
        assert ws.resolve(path).exists()
    before = mtimes(ws)
    assert generate_testcases() == found
    assert mtimes(ws) == before


def test_a_damaged_record_of_a_test_case_is_made_again(workspace, testcase):
    testcase()
    ws = workspace(BASIC_TESTCASES=[], OTHER_TESTCASES=["MyTC"])
    found = generate_testcases()
    record = ws.models_dir / ".info" / "testcase-MyTC.json"
    good = record.read_text()
    (models,) = json.loads(good)["testcases"].values()
    for testcases in (
        None,
        {"MyRule": models, "XX": models},
        {"MyRule": {"block": {"model": 3, "shapes": [[1]]}}},
    ):
        record.write_text(json.dumps(json.loads(good) | {"testcases": testcases}))
        assert generate_testcases() == found
        assert record.read_text() == good
    record.write_text("{")
    assert generate_testcases() == found


def test_test_cases_that_cannot_be_built_are_named_and_the_rest_goes_on(
    generated, workspace, testcase
):
    table = [
        (('"Relu", "Relu", "Sigmoid"', '"Rleu"'), "the model 'block' cannot be built"),
        (('["sigmoid", "relu"]', '["sigmiod"]'), "no operator 'sigmiod'; did you mean 'sigmoid'"),
        (('["sigmoid", "relu"]', '["never"]'), "AssertionError: no case names it"),
        (("def _model_block", "def _model_blocks"), "Mine does not define _model_block"),
        (("graph = Graph()", "os._exit(4)"), "ended with exit code 4"),
        (('"MyRule"', '"../MyRule"'), "Mine: name should be text that can stand in a file name"),
        (('{"MON": True}', '["MON"]'), "Mine: deps should be a dict of rules"),
        (("[self.input_shape]\n", "3\n"), "cannot be built: TypeError"),
    ]
    names = [f"TC{number}" for number in range(len(table))]
    for name, (replaced, _) in zip(names, table, strict=True):
        testcase(name, *replaced)
    ws = workspace(BASIC_TESTCASES=["conv_relu"], OTHER_TESTCASES=names)
    summary = Generated()
    assert list(generate_testcases(summary=summary)) == ["BF_conv_relu"]
    assert set(summary.refused) == set(names)
    for name, (_, reason) in zip(names, table, strict=True):
        assert reason in summary.refused[name], summary.refused[name]
    assert not list(ws.ruletest_dir.glob("MyRule*"))
