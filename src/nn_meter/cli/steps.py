"""What `run` and `ruletest` share: workspaces with overrides, the backend to use, one step each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester.find import make_testcase
from nn_meter.builder.backend_meta.fusion_rule_tester.generate import Generated
from nn_meter.builder.backend_meta.fusion_rule_tester.interface import (
    generate_testcases,
    profile_models,
)
from nn_meter.builder.backends.base import BaseBackend, ShowsGraph, ShowsGraphs
from nn_meter.builder.backends.interface import PLATFORMS, connect_backend
from nn_meter.builder.config import RuletestConfig
from nn_meter.builder.profiling.interface import check_needs_no_graph
from nn_meter.builder.profiling.results import TestCases
from nn_meter.builder.profiling.run import ProfileSummary
from nn_meter.builder.workspace import Workspace, open_workspace
from nn_meter.cli.console import progress_shown
from nn_meter.errors import ConfigError

__all__ = [
    "check_testcases",
    "connect",
    "default_backend",
    "generate",
    "only",
    "profile",
    "told",
    "workspace_for",
]


def workspace_for(path: str, testcases: str | None, evidence: str | None = None) -> Workspace:
    """Open a workspace.

    Args:
        path: Its folder.
        testcases: Ask only these, names joined by commas; None: what its configuration asks.
        evidence: EVIDENCE; None: what its configuration says.
    """
    asked = check_testcases(testcases)
    if evidence is not None:
        asked["EVIDENCE"] = evidence
    workspace = open_workspace(path)
    return replace(workspace, ruletest=workspace.ruletest.model_copy(update=asked))


def check_testcases(testcases: str | None) -> dict[str, Any]:
    """The keys of the configuration that ``--testcases`` stands for; None: no key.

    Raises:
        ConfigError: There is no such test case; says which is near.
    """
    if testcases is None:
        return {}
    names = [name.strip() for name in testcases.split(",") if name.strip()]
    if not names:
        raise ConfigError("--testcases: names none; give names like conv_relu,add_relu,MON")
    config = RuletestConfig.from_dict(
        {
            "BASIC_TESTCASES": [name for name in names if "_" in name],
            "OTHER_TESTCASES": [name for name in names if "_" not in name],
        },
        source="--testcases",
        operators=list(dict.fromkeys(entry.name for entry in registry.entries("operator"))),
        testcases=list(dict.fromkeys(entry.name for entry in registry.entries("testcase"))),
    )
    return {key: getattr(config, key) for key in ("BASIC_TESTCASES", "OTHER_TESTCASES")}


def default_backend(workspace: Workspace) -> str:
    """The backend that a workspace was made for.

    Raises:
        ConfigError: The workspace does not say.
    """
    kind, _, name = workspace.platform.partition(":")
    if kind == "customized" and name:
        return name
    if kind in PLATFORMS:
        return PLATFORMS[kind].backends[0]
    raise ConfigError(f"{workspace.path}: does not say which backend it is for; give --backend")


def connect(name: str, workspace: Workspace) -> BaseBackend:
    """Connect to a backend, and make sure that it takes the workspace's models.

    Raises:
        ConfigError: It does not take models of the workspace's IMPLEMENT.
        BackendError: The workspace asks for graphs, and it shows none.
    """
    backend = connect_backend(name, workspace)
    implement = workspace.ruletest.IMPLEMENT
    if backend.takes and implement not in backend.takes:
        raise ConfigError(
            f"{workspace.ruletest_file}: IMPLEMENT is {implement}, but {name} takes models of "
            f"{' or '.join(backend.takes)}"
        )
    if not isinstance(backend, ShowsGraph | ShowsGraphs):
        check_needs_no_graph(workspace, name)
    return backend


def generate(workspace: Workspace, time_limit_s: float) -> Generated:
    """Make the models, with progress shown."""
    found = Generated()
    with progress_shown() as progress:
        generate_testcases(workspace, time_threshold=time_limit_s, progress=progress, summary=found)
    return found


def profile(
    workspace: Workspace,
    backend: BaseBackend,
    testcases: TestCases | Path,
    **options: Any,
) -> tuple[TestCases, ProfileSummary]:
    """Measure the models, with progress shown."""
    summary = ProfileSummary()
    with progress_shown() as progress:
        profiled = profile_models(
            backend, testcases, workspace=workspace, progress=progress, summary=summary, **options
        )
    return profiled, summary


def told(summary: ProfileSummary) -> str:
    """What was profiled, in words."""
    parts = []
    if summary.measured or summary.kept:
        parts.append(
            f"{len(summary.measured)} test cases measured, {len(summary.kept)} kept from before"
        )
    if summary.graphs or not parts:
        parts.append(f"executed graphs of {summary.graphs} models")
    return ", ".join(parts)


def only(cases: TestCases, workspace: Workspace) -> TestCases:
    """Of generated test cases, those that a workspace's configuration asks for.

    Raises:
        ConfigError: One of them was not generated.
    """
    config = workspace.operator_config()
    names = [f"BF_{name}" for name in workspace.ruletest.BASIC_TESTCASES] + [
        make_testcase(registry.find("testcase", name, config["IMPLEMENT"]), config).name
        for name in workspace.ruletest.OTHER_TESTCASES
    ]
    if missing := [name for name in names if name not in cases]:
        raise ConfigError(f"{missing[0]} was not generated; run 'nn-meter ruletest generate' first")
    return {name: cases[name] for name in names}
