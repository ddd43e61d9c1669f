"""``nn-meter map``: rule files and a page of all runtimes that can show what they execute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester.interface import detect_fusion_rule
from nn_meter.builder.backends.base import BaseBackend, ShowsGraph, ShowsGraphs
from nn_meter.builder.backends.interface import (
    connect_backend,
    create_workspace,
    quickest_implement,
)
from nn_meter.builder.config import RuletestConfig
from nn_meter.builder.profiling.connection import greet
from nn_meter.builder.workspace import Workspace, atomic_write, make_folder, read_json
from nn_meter.cli import options, steps
from nn_meter.cli.console import log_to_stderr, one_line, say
from nn_meter.errors import BackendError, OperatorError, ResultFileError, WorkerError
from nn_meter.fusion_rules.markdown import QUESTIONS, render
from nn_meter.fusion_rules.ordinary import ordinary_pairs
from nn_meter.fusion_rules.read import RULE_FILE, read_folder
from nn_meter.fusion_rules.write import file_name, portable, write_rules
from nn_meter.kernel_detector.suggest import ask_sizes

__all__ = ["fusion_map"]

Rules = dict[str, dict[str, Any]]

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("map", short_help="Ask all runtimes, and write a map of what they fuse.")
@click.option(
    "--backends",
    metavar="NAMES",
    help="Ask only these, e.g. onnxruntime_cpu,openvino_cpu. Default: all built-in ones that are "
    "installed and can show what they execute.",
)
@click.option(
    "--testcases",
    metavar="NAMES",
    help="Ask only these, e.g. conv_relu,MON. Default: the default test cases, and what the map's "
    "first table shows, and the pairs that networks are made of.",
)
@click.option(
    "--rules",
    type=_FOLDER,
    metavar="FOLDER",
    default="fusion-rules",
    show_default=True,
    help="Where rule files go. The map is made of all that lie there, of earlier versions, too.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    default="fusion-map.md",
    show_default=True,
    help="The map.",
)
@click.option(
    "--workspaces",
    type=_FOLDER,
    metavar="FOLDER",
    default="fusion-map-workspaces",
    show_default=True,
    help="A workspace for each backend: made here, or used again.",
)
@click.option(
    "--render-only",
    is_flag=True,
    help="Ask nothing: make the map of the rule files that are there.",
)
@click.option("--retry-failed", is_flag=True, help="Try models again that failed before.")
@options.time_limit_option
@options.debug_option
def fusion_map(
    backends: str | None,
    testcases: str | None,
    rules: Path,
    output: Path,
    workspaces: Path,
    render_only: bool,
    retry_failed: bool,
    time_limit: float,
) -> None:
    """Ask runtimes what they fuse, by their executed graphs, and write a map of it.

    Writes a rule file for each runtime and version, and a page in Markdown of all of them. With
    --testcases the other rules of the same environment stay in the files. Interrupted at any
    moment, the same command goes on from there.
    """
    log_to_stderr()
    if not render_only:
        asking = _Asking(
            testcases=steps.check_testcases(testcases),
            workspaces=workspaces,
            rules=rules,
            retry_failed=retry_failed,
            time_limit_s=time_limit,
        )
        make_folder(rules)
        _ask_all(_names(backends), asking)
    found = read_folder(rules)
    if not found:
        raise ResultFileError(f"{rules}: there is no rule file in this folder to make a map of")
    with atomic_write(output) as temporary:
        temporary.write_text(render(found), encoding="utf-8")
    say(f"The map is {output}")


def _names(backends: str | None) -> list[str]:
    if backends is None:
        return []
    names = [name.strip() for name in backends.split(",") if name.strip()]
    if not names:
        raise click.UsageError("--backends names none; give names of --list-backends")
    return list(dict.fromkeys(names))


def _builtin(kind: registry.Kind) -> list[str]:
    return [entry.name for entry in registry.entries(kind) if entry.origin == "builtin"]


def _ask_all(named: list[str], asking: _Asking) -> None:
    """Ask backends one after the other; of those that nobody named, whichever can answer."""
    written: dict[Path, str] = {}
    for name in named or _builtin("backend"):
        try:
            target, rules = asking.ask(name)
        except (BackendError, OperatorError, WorkerError) as exc:
            if named:
                raise
            say(f"{name} left out: {one_line(str(exc))}")
            continue
        if target in written:
            raise ResultFileError(
                f"{target}: would hold the rules of {written[target]} and of {name}; ask one of "
                "them at a time, with another --rules for each"
            )
        write_rules(target, rules)
        written[target] = name
        say(f"{name}: {len(rules)} rules in {target}")
    if not written:
        raise BackendError(
            "no backend is installed that can show what it executes; 'nn-meter connect' says what "
            "one of them needs"
        )


@dataclass(frozen=True, kw_only=True)
class _Asking:
    """What is asked of every backend, and where it goes.

    Attributes:
        testcases: Keys of the configuration that name test cases; none: all that the map shows.
        workspaces: The folder of the workspaces.
        rules: The folder of the rule files.
        retry_failed: Whether to try models again that failed before.
        time_limit_s: For one operation on one model.
    """

    testcases: Mapping[str, Any]
    workspaces: Path
    rules: Path
    retry_failed: bool
    time_limit_s: float

    def ask(self, name: str) -> tuple[Path, Rules]:
        """Ask a backend; its rule file, and what belongs into it.

        Raises:
            BackendError: It is not there, or cannot tell what it executes.
        """
        backend, workspace = self._connected(name)
        say(f"{name}: asked in {workspace.path}")
        generated = steps.generate(workspace, self.time_limit_s)
        profiled, _ = steps.profile(
            workspace,
            backend,
            generated.testcases,
            retry_failed=self.retry_failed,
            time_threshold=self.time_limit_s,
        )
        detected = detect_fusion_rule(profiled, workspace)
        found = read_json(workspace.results_dir / name / RULE_FILE, "fusion rules")
        rules = {rule: portable(found[rule]) for rule in detected}
        rules |= ask_sizes(rules, backend, workspace, time_limit_s=self.time_limit_s)
        environment = next(iter(rules.values()))["environment"]  # that of the run: one for all
        target = self.rules / file_name(environment or {})
        return target, {**(_earlier(target, environment) if self.testcases else {}), **rules}

    def _connected(self, name: str) -> tuple[BaseBackend, Workspace]:
        path = self.workspaces / name
        if not (path / "configs").exists():
            create_workspace(path, backend=name, implement=quickest_implement(name))
        workspace = steps.workspace_for(str(path), None, "graph")
        backend = connect_backend(name, workspace)
        if not isinstance(backend, ShowsGraph | ShowsGraphs):
            raise BackendError(f"{name} cannot tell what it executes")
        greet(backend)
        keys = self.testcases or _all_testcases()
        return backend, replace(workspace, ruletest=workspace.ruletest.model_copy(update=keys))


def _all_testcases() -> dict[str, Any]:
    chains = (question.chain for question in QUESTIONS)
    asked = [*RuletestConfig().BASIC_TESTCASES, *chains, *ordinary_pairs()]
    return {
        "BASIC_TESTCASES": list(dict.fromkeys(asked)),
        "OTHER_TESTCASES": _builtin("testcase"),
    }


def _earlier(path: Path, environment: Any) -> Rules:
    """What a rule file holds already of the same environment."""
    if not path.is_file():
        return {}
    return {
        name: rule
        for name, rule in read_json(path, "fusion rules").items()
        if isinstance(rule, dict) and rule.get("environment") == environment
    }
