"""`generate_testcases` and `detect_fusion_rule`: what the guide calls."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nn_meter.builder.backend_meta.fusion_rule_tester.clock.ask import ask_the_clock
from nn_meter.builder.backend_meta.fusion_rule_tester.detect import detect
from nn_meter.builder.backend_meta.fusion_rule_tester.evidence import Judges
from nn_meter.builder.backend_meta.fusion_rule_tester.generate import Generated, generate
from nn_meter.builder.backend_meta.fusion_rule_tester.origins import read_origins
from nn_meter.builder.backend_meta.fusion_rule_tester.verdict import Verdict
from nn_meter.builder.profiling import interface as profiling
from nn_meter.builder.profiling.interface import checked_time_limit
from nn_meter.builder.profiling.results import (
    TestCases,
    read_testcases,
    read_view,
    write_results,
)
from nn_meter.builder.workspace import Workspace, builder_config, write_json
from nn_meter.errors import DetectionError, OperatorError
from nn_meter.progress import Progress, logged

__all__ = ["detect_fusion_rule", "generate_testcases", "profile_models"]


def generate_testcases(
    workspace: Workspace | None = None,
    *,
    time_threshold: float = 300,
    progress: Progress = logged,
    summary: Generated | None = None,
    with_situations: bool | None = None,
) -> TestCases:
    """Make the models of all test cases that the configuration asks for.

    Models go to ``fusion_rule_test/models/``; a model that was built from the same before stays.
    Pairs that cannot be built are named in the log and left out.

    Args:
        workspace: Default: the one of ``builder_config.init``.
        time_threshold: Seconds that building one model may take, loading its framework aside; for
            a test case of your own, all of its models.
        progress: Told how far it is; default: the log, at level INFO.
        summary: Filled with what was done and what was refused.
        with_situations: Whether to build, besides, the models of the situations that executed
            graphs are asked in (see ``situations``). Default: if EVIDENCE may need them.

    Returns:
        Test case -> model -> ``{"model", "shapes"}``, as in ``results/origin_testcases.json``.

    Raises:
        WorkspaceError: No workspace is in use.
        ConfigError: A size that an op would have to halve is odd.
        OperatorError: No test case at all can be built.
    """
    workspace = workspace or builder_config.workspace
    found = summary if summary is not None else Generated()
    generate(
        workspace,
        found,
        progress,
        checked_time_limit(time_threshold),
        with_situations=(
            workspace.ruletest.EVIDENCE in ("auto", "graph")
            if with_situations is None
            else with_situations
        ),
    )
    if not found.testcases:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.refused.items())
        raise OperatorError(
            f"{workspace.ruletest_file}: no test case can be built; "
            + (reasons or "BASIC_TESTCASES and OTHER_TESTCASES are empty")
        )
    with workspace.lock():
        write_json(workspace.settings_file, workspace.ruletest.model_settings())
        write_json(workspace.results_dir / "origin_testcases.json", found.testcases)
    return found.testcases


@functools.wraps(profiling.profile_models)
def profile_models(*args: Any, **kwargs: Any) -> TestCases:
    """The guide's, which asks the clock, too, where EVIDENCE may need it."""
    return profiling.profile_models(*args, experiment=ask_the_clock, **kwargs)


def detect_fusion_rule(
    profiled_results: Mapping[str, Any] | str | Path, workspace: Workspace | None = None
) -> dict[str, dict[str, Any]]:
    """Detect the fusion rules from profiled test cases.

    Writes ``results/detected_results.json`` (these test cases, with what speaks for each verdict)
    and ``results/detected_fusion_rule.json`` (the rules alone, together with those found before in
    the same environment), and the same two in the folder of the backend that was measured.

    Args:
        profiled_results: What ``profile_models`` or ``fill_latency`` gave: the dict, or the path of
            its JSON file.
        workspace: Default: the one of ``builder_config.init``.

    Returns:
        Rule -> ``{"obey", "verdict", "evidence", …}``, as in ``detected_results.json``.

    Raises:
        ResultFileError: The results are not of the guide's form.
        DetectionError: A name belongs to no test case, or nothing has a latency.
        ConfigError: EVIDENCE asks for a kind that is not there.
    """
    workspace = workspace or builder_config.workspace
    profiled = read_testcases(profiled_results, latency_only=True)
    if not any(
        model.get("latency") is not None or model.get("graph") or model.get("error")
        for case in profiled.values()
        for model in case.values()
    ):
        raise DetectionError(
            "no model has a latency or an executed graph; run profile_models first, or fill "
            "latencies in with fill_latency"
        )
    config = workspace.operator_config()
    known = read_origins(workspace, profiled, config)
    origin, environment = known.origin, known.environment()
    folder = workspace.results_dir / origin.backend if origin is not None else None
    earlier = _earlier_rules(workspace, folder, environment)
    verdicts = detect(
        profiled,
        config,
        Judges(workspace.ruletest.EVIDENCE, known.graphs, known.benches),
        {name: rule["obey"] for name, rule in earlier.items()},
    )
    detail = workspace.ruletest.DETAIL
    detected = {name: verdict.to_json(detail=detail) for name, verdict in verdicts.items()}
    rules = {
        name: _with_sizes(_rule(verdict, environment), earlier.get(name))
        for name, verdict in verdicts.items()
    }
    with workspace.lock():
        write_results(workspace, folder, "detected_results.json", detected)
        write_results(workspace, folder, "detected_fusion_rule.json", {**earlier, **rules})
    return detected


def _rule(verdict: Verdict, environment: dict[str, Any] | None) -> dict[str, Any]:
    return {"when": {}, **verdict.to_json(detail=False), "environment": environment}


def _with_sizes(rule: dict[str, Any], earlier: dict[str, Any] | None) -> dict[str, Any]:
    """A rule, with the sizes that it was asked in before, if it came out as it did then."""
    if earlier is not None and "sizes" in earlier:
        sized = {**rule, "sizes": earlier["sizes"]}
        if sized == earlier:
            return sized
    return rule


def _earlier_rules(
    workspace: Workspace, folder: Path | None, environment: dict[str, Any] | None
) -> dict[str, Any]:
    """Rules of the workspace that were found in the same environment."""
    path = (folder or workspace.results_dir) / "detected_fusion_rule.json"
    return {
        name: {**rule, "environment": environment}  # one for all: files have one for each
        for name, rule in read_view(path, "fusion rules").items()
        if isinstance(rule, dict) and "obey" in rule and rule.get("environment") == environment
    }
