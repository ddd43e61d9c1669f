"""``nn-meter ruletest``: one step of the test at a time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from nn_meter.builder.backend_meta.fusion_rule_tester.interface import detect_fusion_rule
from nn_meter.builder.profiling.results import measured_backend, read_testcases
from nn_meter.builder.profiling.run import ProfileSummary
from nn_meter.builder.workspace import Workspace
from nn_meter.cli import options, steps
from nn_meter.cli.cluster import Cluster, cluster_options, profile_on
from nn_meter.cli.console import log_to_stderr, one_line, print_json, say
from nn_meter.cli.verdicts import print_files, print_table, verdicts_json
from nn_meter.errors import ResultFileError

__all__ = ["ruletest"]


@click.group(short_help="Do one step: generate, profile or detect.")
def ruletest() -> None:
    """Do one step of the fusion rule test."""


@ruletest.command(short_help="Make the models of all test cases.")
@options.workspace_option
@options.testcases_option
@options.time_limit_option
@options.json_option
@options.debug_option
def generate(workspace: str, testcases: str | None, time_limit: float, as_json: bool) -> None:
    """Make the models of all test cases that the workspace's configuration asks for."""
    log_to_stderr()
    start = time.monotonic()
    opened = steps.workspace_for(workspace, testcases)
    found = steps.generate(opened, time_limit)
    wall_s = time.monotonic() - start
    if as_json:
        print_json(
            {
                "workspace": str(opened.path),
                "wall_s": round(wall_s, 3),
                "testcases": list(found.testcases),
                "refused": found.refused,
            }
        )
        return
    say(
        f"{len(found.testcases)} test cases: {found.built} models built, {found.kept} kept from "
        f"before; {wall_s:.1f} s"
    )
    for name, reason in found.refused.items():
        click.echo(f"  {name} left out: {one_line(reason)}")
    print_files([opened.results_dir / "origin_testcases.json"])


@ruletest.command(short_help="Measure the models on a backend.")
@options.workspace_option
@options.backend_option
@options.testcases_option
@options.evidence_option
@options.measuring_options
@cluster_options
@options.json_option
@options.debug_option
def profile(
    workspace: str,
    backend: str | None,
    testcases: str | None,
    evidence: str | None,
    fresh: bool,
    retry_failed: bool,
    time_limit: float,
    cluster: Cluster | None,
    as_json: bool,
) -> None:
    """Measure the models that 'ruletest generate' made. Interrupted, it goes on from there.

    With --scheduler it measures on the devices of a Dask cluster, several kinds side by side; see
    docs/distributed.md.
    """
    log_to_stderr()
    start = time.monotonic()
    opened = steps.workspace_for(workspace, testcases, evidence)
    name = backend or steps.default_backend(opened)
    cases = read_testcases(_made_by("generate", opened.results_dir / "origin_testcases.json"))
    if testcases is not None:
        cases = steps.only(cases, opened)
    measuring = {"fresh": fresh, "retry_failed": retry_failed, "time_threshold": time_limit}
    done = (
        {name: (name, steps.profile(opened, steps.connect(name, opened), cases, **measuring)[1])}
        if cluster is None
        else profile_on(cluster, opened, name, cases, **measuring)
    )
    wall_s = time.monotonic() - start
    if as_json:
        found = [
            _told(kind, of, summary, opened, wall_s, latest=number == 0)
            for number, (kind, (of, summary)) in enumerate(done.items())
        ]
        print_json(found[0] if len(found) == 1 else {"devices": found})
        return
    for kind, (_, summary) in done.items():
        where = f"{kind}: " if len(done) > 1 else ""
        say(f"{where}{summary.environment}: {steps.told(summary)}; {wall_s:.1f} s")
        for model, failure in summary.failed.items():
            click.echo(f"  {model}: {failure.kind}: {one_line(failure.reason)}")
    print_files([_results(opened, kind, latest=number == 0) for number, kind in enumerate(done)])


def _results(workspace: Workspace, kind: str, *, latest: bool) -> Path:
    """Where the results are: those of a further kind of device in its folder only."""
    folder = workspace.results_dir if latest else workspace.results_dir / kind
    return folder / "profiled_results.json"


def _told(
    kind: str,
    backend: str,
    summary: ProfileSummary,
    workspace: Workspace,
    wall_s: float,
    *,
    latest: bool,
) -> dict[str, Any]:
    """What --json prints of a backend."""
    return {
        "backend": backend,
        **({"device": kind} if kind != backend else {}),
        "workspace": str(workspace.path),
        "wall_s": round(wall_s, 3),
        "environment": summary.environment,
        "measured": len(summary.measured),
        "kept": len(summary.kept),
        "graphs": summary.graphs,
        "failed": {model: f.reason for model, f in summary.failed.items()},
        "results": str(_results(workspace, kind, latest=latest)),
    }


@ruletest.command(short_help="Detect the fusion rules.")
@options.workspace_option
@click.option(
    "--results",
    metavar="FILE",
    help="Profiled results. Default: results/profiled_results.json of the workspace.",
)
@options.evidence_option
@options.json_option
@options.debug_option
def detect(workspace: str, results: str | None, evidence: str | None, as_json: bool) -> None:
    """Detect the fusion rules from profiled results."""
    log_to_stderr()
    start = time.monotonic()
    opened = steps.workspace_for(workspace, None, evidence)
    made = opened.results_dir / "profiled_results.json"
    source = Path(results) if results else _made_by("profile", made)
    profiled = read_testcases(source, latency_only=True)
    detected = detect_fusion_rule(profiled, opened)
    wall_s = time.monotonic() - start
    rules = opened.results_dir / "detected_fusion_rule.json"
    backend = measured_backend(rules)
    if as_json:
        print_json(
            verdicts_json(
                detected, backend=backend, workspace=opened.path, wall_s=wall_s, refused={}
            )
        )
        return
    print_table(detected, profiled, title=backend or "latencies filled in by hand", refused={})
    print_files([opened.results_dir / "detected_results.json", rules])


def _made_by(step: str, path: Path) -> Path:
    """A file that an earlier step makes.

    Raises:
        ResultFileError: It did not.
    """
    if not path.exists():
        raise ResultFileError(f"{path}: is not there yet; run 'nn-meter ruletest {step}' first")
    return path
