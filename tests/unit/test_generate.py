"""Building models: what is there stays, what is damaged or wrong does not."""

from __future__ import annotations

import os
import textwrap

import pytest

from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester import generate_testcases
from nn_meter.builder.backend_meta.fusion_rule_tester.generate import Generated
from nn_meter.builder.nn_modules.info import hash_model
from nn_meter.errors import ConfigError

HEADER = """
import os, time
from nn_meter.builder.nn_modules import BaseOperator
from nn_meter.builder.backend_meta.fusion_rule_tester import BaseTestCase


class Same(BaseOperator):
    def get_model(self):
        return lambda graph, x: graph.op("Tanh", [x])
"""


@pytest.fixture
def register(tmp_path):
    """Register a class that is given as code."""

    def _register(kind, name, class_name, code, package="added"):
        folder = tmp_path / package
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
        (folder / "script.py").write_text(HEADER + textwrap.dedent(code))
        meta = tmp_path / f"{name}.yaml"
        meta.write_text(
            f"builtin_name: {name}\nimplement: onnx\npackage_location: {folder}\n"
            f"class_module: script\nclass_name: {class_name}\n"
        )
        return registry.register(kind, meta)

    return _register


def generated(workspace, *pairs, others=(), **rest):
    summary = Generated()
    ws = workspace(BASIC_TESTCASES=list(pairs), OTHER_TESTCASES=list(others))
    generate_testcases(ws, summary=summary, **rest)
    return ws, summary


@pytest.mark.parametrize("damage", [b"", b"garbage"], ids=["emptied", "overwritten"])
def test_a_damaged_model_is_built_again(workspace, damage):
    ws, first = generated(workspace, "conv_relu")
    block = ws.resolve(first.testcases["BF_conv_relu"]["block"]["model"])
    sound = hash_model(block)
    block.write_bytes(damage)
    summary = Generated()
    generate_testcases(ws, summary=summary)
    assert hash_model(block) == sound
    assert summary.built == 1


def test_a_damaged_link_does_not_spoil_the_other_test_cases(workspace):
    ws, first = generated(workspace, "conv_relu", "conv_bn")
    files = [ws.resolve(first.testcases[f"BF_conv_{op}"]["conv"]["model"]) for op in ("relu", "bn")]
    sound = hash_model(files[0])
    with files[0].open("r+b") as file:  # the same file on disk, where it is linked
        file.truncate(10)
    generate_testcases(ws)
    assert [hash_model(file) for file in files] == [sound] * 2


def test_an_operator_that_is_wrong_about_its_shape_is_refused(workspace, register):
    register(
        "operator",
        "wrong",
        "Wrong",
        """
        class Wrong(Same):
            def get_output_shape(self):
                return [2 * size for size in self.input_shape]
        """,
    )
    _, summary = generated(workspace, "wrong_relu", "relu_wrong", "conv_relu")
    assert set(summary.testcases) == {"BF_conv_relu"}
    for name in ("BF_wrong_relu", "BF_relu_wrong"):
        assert "get_output_shape of wrong says" in summary.refused[name]
        assert "has the shape [4, 8, 8]" in summary.refused[name]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("os.abort()", "was ended by SIGABRT"),
        ("time.sleep(600)", "took longer than its time limit of 3 s"),
        ("raise ValueError('no')", "ValueError: no"),
    ],
    ids=["crashes", "hangs", "raises"],
)
@pytest.mark.parametrize("method", ["get_output_shape", "get_model"])
def test_an_operator_that_fails_costs_its_own_test_cases(workspace, register, method, body, reason):
    register(
        "operator",
        "bad",
        "Bad",
        f"""
        class Bad(Same):
            def {method}(self):
                {body}
        """,
    )
    _, summary = generated(workspace, "bad_relu", "conv_relu", time_threshold=3)
    assert set(summary.testcases) == {"BF_conv_relu"}
    assert reason in summary.refused["BF_bad_relu"]


CASE = """
class {name}(BaseTestCase):
    name = "{rule}"
    cases = {{"case1": ["relu", "relu"]}}

    def _model_block(self):
        return self._model_relu()

    def _model_relu(self):
        from nn_meter.builder.nn_modules.onnx.models import Graph

        graph = Graph()
        return graph.model([graph.op("Relu", [graph.input(self.input_shape)])]), graph.shapes
"""


def test_two_classes_with_one_name_are_both_refused(workspace, register):
    for number in (1, 2):
        code = CASE.format(name=f"Case{number}", rule="Twin")
        register("testcase", f"TC{number}", f"Case{number}", code, package=f"package{number}")
    _, summary = generated(workspace, "conv_relu", others=["TC1", "TC2"])
    assert set(summary.testcases) == {"BF_conv_relu"}
    assert "the name 'Twin', as that of TC2 has" in summary.refused["TC1"]
    assert "the name 'Twin', as that of TC1 has" in summary.refused["TC2"]


def test_a_class_cannot_take_over_a_basic_test_case(workspace, register):
    register("testcase", "TC1", "Case", CASE.format(name="Case", rule="BF_conv_relu"))
    _, summary = generated(workspace, "conv_relu", others=["TC1"])
    assert set(summary.testcases) == {"BF_conv_relu"}
    assert "belong to the basic test cases" in summary.refused["TC1"]
    assert set(summary.testcases["BF_conv_relu"]) == {"conv", "relu", "block"}


def test_an_edited_package_is_built_anew_in_the_same_process(workspace, register):
    register("operator", "op1", "Same", "")
    ws, first = generated(workspace, "op1_relu")
    file = ws.resolve(first.testcases["BF_op1_relu"]["op1"]["model"])
    before = hash_model(file)
    script = ws.path.parent / "added" / "script.py"
    script.write_text(script.read_text().replace("Tanh", "Erf"))
    generate_testcases(ws)
    assert hash_model(file) != before


def test_what_a_killed_run_left_is_cleared(workspace):
    ws, _ = generated(workspace, "conv_relu")
    left = ws.models_dir / f".BF_conv_relu_block.{os.getpid()}.new"
    left.mkdir()
    (left / "saved_model.pb").touch()
    generate_testcases(ws)
    assert not left.exists()


@pytest.mark.parametrize("seconds", ["soon", 0, -1, None, True])
def test_a_time_limit_that_is_none_is_refused(workspace, seconds):
    with pytest.raises(ConfigError, match="time_threshold must be a number of seconds above 0"):
        generated(workspace, "conv_relu", time_threshold=seconds)
