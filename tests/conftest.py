"""What the tests share: nothing of the user's own is read or written, and workspaces are tiny."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from nn_meter.builder import builder_config
from nn_meter.builder.workspace import Workspace, create_workspace, open_workspace, read_json

SMALL = {
    **{"HW": 8, "CIN": 4, "COUT": 8, "SHAPE_1D": 8},
    # what latencies are for; executed graphs are asked for where a test says so
    **{"BASIC_TESTCASES": ["conv_relu"], "OTHER_TESTCASES": [], "EVIDENCE": "formula"},
}
THREE = {"BASIC_TESTCASES": ["conv_relu", "dwconv_relu", "relu_relu"]}


@pytest.fixture(scope="session", autouse=True)
def _no_home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NN_METER_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def _nothing_of_another_test(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NN_METER_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setattr(builder_config, "_workspace", None)


@pytest.fixture
def workspace(tmp_path) -> Callable[..., Workspace]:
    """Make an ONNX Runtime workspace of tiny shapes and use it; later calls change its keys."""
    ruletest, backend_keys = dict(SMALL), {}

    def _workspace(backend: Mapping[str, Any] | None = None, **keys: Any) -> Workspace:
        ruletest.update(keys)
        backend_keys.update(backend or {})
        builder_config.init(small_workspace(tmp_path / "ws", ruletest, backend_keys))
        return builder_config.workspace

    return _workspace


@pytest.fixture
def generated(_generated, workspace, tmp_path) -> tuple[Workspace, dict[str, Any]]:
    """A workspace in use that has the models of three test cases; and the test cases."""
    shutil.copytree(_generated, tmp_path / "ws")
    ws = workspace(**THREE)
    return ws, read_json(ws.results_dir / "origin_testcases.json", "test cases")


@pytest.fixture(scope="session")
def _generated(tmp_path_factory) -> Path:
    from nn_meter.builder.backend_meta.fusion_rule_tester import generate_testcases

    path = small_workspace(tmp_path_factory.mktemp("generated") / "ws", {**SMALL, **THREE}, {})
    generate_testcases(open_workspace(path))
    return path


def small_workspace(path: Path, ruletest: Mapping[str, Any], backend: Mapping[str, Any]) -> Path:
    texts = [yaml.safe_dump(dict(keys)) for keys in (ruletest, backend)]
    if not path.exists():
        create_workspace(
            path, platform="onnxruntime", ruletest_config=texts[0], backend_config=texts[1]
        )
    for name, text in zip(("ruletest", "backend"), texts, strict=True):
        (path / "configs" / f"{name}_config.yaml").write_text(text)
    return path
