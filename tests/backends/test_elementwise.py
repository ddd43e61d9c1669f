"""Element-wise kernels, and operands that are there before a block: asked of real runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn_meter.builder.backend_meta.fusion_rule_tester.min import MultipleInElementwise
from nn_meter.builder.backend_meta.fusion_rule_tester.mon import MultipleOutElementwise
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode
from nn_meter.builder.nn_modules.frameworks import IMPLEMENTS, get_framework, suffix_of
from nn_meter.cli import steps
from nn_meter.cli.temporary import temporary_workspace
from nn_meter.kernel_detector.suggest import Asker
from nn_meter.reference import reference_inputs

CONFIG = {"HW": 7, "CIN": 4, "SHAPE_1D": 12, "COUT": 6, "KERNEL_SIZE": 3, "PADDING": "same"}
CONFIG |= {"STRIDES": 1, "POOL_STRIDES": 2}
BACKENDS = {"onnxruntime_cpu": "onnxruntime", "openvino_cpu": "openvino"}


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("implement", IMPLEMENTS)
def test_models_compute_what_their_names_say(implement: str, tmp_path: Path) -> None:
    pytest.importorskip(implement)
    framework = get_framework(implement)

    def outputs(case: Any, model: str) -> tuple[list[Any], list[Any]]:
        saved = case.save_testcase()[model]
        feeds = reference_inputs(saved["shapes"])
        path = tmp_path / "models" / f"{case.name}_{model}{suffix_of(implement)}"
        return feeds, framework.run_model(path, feeds)

    keys = {**CONFIG, "IMPLEMENT": implement, "MODEL_DIR": str(tmp_path)}
    one, other = MultipleInElementwise(keys), MultipleOutElementwise(keys)
    for case in (one, other):
        case.check_contract()
    (x, y), (found,) = outputs(one, "block")
    expected = np.maximum(x, 0) + np.where(y < 0, 2 * y, y)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    (x, y), found = outputs(other, "block")
    assert len(found) == 2
    np.testing.assert_allclose(found[0], np.maximum(x + y, 0), rtol=0, atol=1e-5)
    (x, y), (found,) = outputs(one, "relu_2_add")
    np.testing.assert_allclose(found, x + np.where(y < 0, 2 * y, y), rtol=0, atol=1e-5)


# --- what executed graphs show -------------------------------------------------------------------


def ran(*nodes: tuple[str, tuple[str, ...], str]) -> ExecutedGraph:
    """Nodes: type, what it reads, what it gives."""
    return ExecutedGraph(
        nodes=tuple(
            ExecutedNode(name=f"n{i}", type=kind, kind="compute", inputs=reads, outputs=(gives,))
            for i, (kind, reads, gives) in enumerate(nodes)
        ),
        inputs=("x", "y"),
    )


ONE = ran(("relu", ("x",), "a"))
BLOCKS = {
    "case1": ran(("relu", ("x",), "a"), ("relu", ("y",), "b"), ("add", ("a", "b"), "c")),
    "case2": ran(("relu", ("y",), "b"), ("relu+add", ("x", "b"), "c")),
    "case3": ran(("relu", ("x",), "a"), ("relu+add", ("a", "y"), "c")),
    "case4": ran(("all", ("x", "y"), "c")),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_which_relus_an_addition_takes(case: str) -> None:
    tested = MultipleInElementwise({**CONFIG, "IMPLEMENT": "onnx", "MODEL_DIR": "."})
    graphs = {"relu_1": ONE, "relu_2": ONE, "add": ran(("add", ("x", "y"), "c"))}
    assert tested.grouping({**graphs, "block": BLOCKS[case]}) == case
    assert tested.grouping({**graphs, "relu_1": ran(), "block": BLOCKS[case]}) is None


# --- runtimes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=BACKENDS)
def asked(request: pytest.FixtureRequest) -> Iterator[tuple[str, Asker]]:
    backend = str(request.param)
    if find_spec(BACKENDS[backend]) is None:
        pytest.skip(f"needs {BACKENDS[backend]}, which is not installed")
    keys: dict[str, Any] = {"EVIDENCE": "graph", "OTHER_TESTCASES": []}
    with temporary_workspace(backend, like=None, given={}, asked=keys) as workspace:
        yield backend, Asker(steps.connect(backend, workspace), workspace)


def test_a_runtime_is_asked_about_element_wise_kernels(asked: tuple[str, Asker]) -> None:
    backend, asker = asked
    rules = asker.ask(["MONELTWISE", "MINELTWISE"]).rules
    found = tuple(rules[name]["obey"] for name in ("MONELTWISE", "MINELTWISE"))
    expected = {"onnxruntime_cpu": ("case1", "case1"), "openvino_cpu": ("case2", "case4")}
    assert found == expected[backend]


def test_a_runtime_is_asked_about_operands_that_are_there_before(asked: tuple[str, Asker]) -> None:
    """One adds in place only to what is not read again, one only in layouts of whole blocks."""
    backend, asker = asked
    passed, again = "context/passed", "context/again"
    expected = {
        "onnxruntime_cpu": {16: ("fused", "fused"), 24: ("separate", "separate")},
        "openvino_cpu": {16: ("fused", "separate"), 24: ("fused", "separate")},
    }
    for channels, verdicts in expected[backend].items():
        when = asker.ask(["BF_conv_add"], {"CIN": channels}).rules["BF_conv_add"]["when"]
        assert (when[passed]["verdict"], when[again]["verdict"]) == verdicts
    chain = asker.ask(["BF_conv_add_relu"]).rules["BF_conv_add_relu"]["when"]
    assert not {passed, again} & set(chain)  # its parts would not have the operand read again
