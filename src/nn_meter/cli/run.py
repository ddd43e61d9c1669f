"""``nn-meter run``: all steps with one command."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from nn_meter.builder.backend_meta.fusion_rule_tester.interface import detect_fusion_rule
from nn_meter.builder.backends.base import BaseBackend, ShowsGraph, ShowsGraphs
from nn_meter.builder.backends.interface import create_workspace, quickest_implement
from nn_meter.builder.config import RuletestConfig
from nn_meter.builder.profiling.connection import greet
from nn_meter.builder.profiling.results import read_view, write_results
from nn_meter.builder.workspace import Workspace, read_json
from nn_meter.cli import options, steps
from nn_meter.cli.console import log_to_stderr, print_json, quiet
from nn_meter.cli.verdicts import print_files, print_table, verdicts_json
from nn_meter.errors import GraphUnavailableError
from nn_meter.fusion_rules.ordinary import ordinary_cases, ordinary_pairs
from nn_meter.fusion_rules.read import RULE_FILE
from nn_meter.kernel_detector.suggest import ask_sizes

__all__ = ["run"]

_FILES = (
    "origin_testcases.json",
    "profiled_results.json",
    "detected_results.json",
    "detected_fusion_rule.json",
)


@click.command(short_help="Do all steps and print which operators fuse.")
@options.backend_option
@options.workspace_option
@options.testcases_option
@options.evidence_option
@options.measuring_options
@options.json_option
@options.debug_option
def run(
    backend: str | None,
    workspace: str,
    testcases: str | None,
    evidence: str | None,
    fresh: bool,
    retry_failed: bool,
    time_limit: float,
    as_json: bool,
) -> None:
    """Do all steps: make the models, measure them, decide which operators fuse.

    A workspace that is not there is created: for the backend, by default onnxruntime_cpu, with
    models in ONNX where the backend takes these.
    Where the runtime tells what it executes, and the configuration asks what that of a new
    workspace does, the pairs that networks are made of are asked, too, by executed graphs alone:
    their rules stand in the rule file, for 'nn-meter kernels'.
    Interrupted at any moment, the same command goes on from there.
    """
    log_to_stderr()
    start = time.monotonic()
    steps.check_testcases(testcases)
    if not (Path(workspace) / "configs").exists():
        chosen = backend or "onnxruntime_cpu"
        create_workspace(workspace, backend=chosen, implement=quickest_implement(chosen))
    opened = steps.workspace_for(workspace, testcases, evidence)
    name = backend or steps.default_backend(opened)
    connected = steps.connect(name, opened)
    greet(connected)  # a runtime that is not there is said before models are built
    earlier = read_view(opened.results_dir / name / RULE_FILE, "fusion rules")
    more = (
        {}
        if testcases or not _asks_more(opened, connected)
        else _ordinary(workspace, connected, time_limit)
    )
    generated = steps.generate(opened, time_limit)
    profiled, summary = steps.profile(
        opened,
        connected,
        generated.testcases,
        fresh=fresh,
        retry_failed=retry_failed,
        time_threshold=time_limit,
    )
    detected = detect_fusion_rule(profiled, opened)
    if more:
        with quiet():  # of rules that have been told
            _ask_sizes(opened, name, connected, earlier, time_limit)
    wall_s = time.monotonic() - start
    if as_json:
        print_json(
            verdicts_json(
                detected,
                backend=name,
                workspace=opened.path,
                wall_s=wall_s,
                refused=generated.refused,
            )
            | ({"more": more} if more else {})
        )
        return
    print_table(detected, profiled, title=summary.environment, refused=generated.refused)
    if more:
        counted = Counter(more.values()).most_common()
        told = ", ".join(f"{count} {verdict}" for verdict, count in counted)
        click.echo(f"{len(more)} ordinary pairs more in the rule file, by graph: {told}")
    print_files([opened.results_dir / file for file in _FILES])
    if summary.failed:
        click.echo(
            f"{len(summary.failed)} models failed; see {opened.results_dir / 'profile_error.log'}"
        )
    runs = f", {summary.runtime_s:.1f} s of measured runs in the runtime"
    timed = summary.measured or summary.kept
    click.echo(f"{steps.told(summary)}; {wall_s:.1f} s{runs if timed else ''}")


def _asks_more(workspace: Workspace, backend: BaseBackend) -> bool:
    """Whether the pairs that networks are made of are asked, too."""
    return (
        isinstance(backend, ShowsGraph | ShowsGraphs)
        and workspace.ruletest.EVIDENCE in ("auto", "graph")
        and workspace.ruletest.BASIC_TESTCASES == RuletestConfig().BASIC_TESTCASES
    )


def _ask_sizes(
    workspace: Workspace,
    name: str,
    backend: BaseBackend,
    earlier: Mapping[str, Any],
    time_limit: float,
) -> None:
    """Ask in which sizes the rules hold that go by a layout, and write it beside them."""
    folder = workspace.results_dir / name
    rules = read_json(folder / RULE_FILE, "fusion rules")
    sized = ask_sizes(rules, backend, workspace, earlier=earlier, time_limit_s=time_limit)
    with workspace.lock():
        write_results(workspace, folder, RULE_FILE, {**rules, **sized})


def _ordinary(path: str, backend: BaseBackend, time_limit: float) -> dict[str, str]:
    """Ask those pairs that a new workspace does not, by graph; gives each rule's verdict.

    What one asked for comes after, so that the files of results are about that.
    """
    known = set(RuletestConfig().BASIC_TESTCASES)
    pairs = [pair for pair in ordinary_pairs() if pair not in known]
    asked = steps.workspace_for(path, ",".join([*pairs, *ordinary_cases()]), "graph")
    generated = steps.generate(asked, time_limit)
    try:
        profiled, _ = steps.profile(
            asked,
            backend,
            generated.testcases,
            fresh=False,
            retry_failed=False,
            time_threshold=time_limit,
        )
    except GraphUnavailableError:
        return {}  # on this device; profiling what one asked for says so
    with quiet():  # nobody asked for these; what cannot be told stands in the rule file
        found = detect_fusion_rule(profiled, asked)
    return {rule: str(verdict["verdict"]) for rule, verdict in found.items()}
