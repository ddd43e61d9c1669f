"""`profile_models` and `convert_models`: what the guide calls."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import BaseBackend
from nn_meter.builder.profiling import results
from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.convert import convert_all
from nn_meter.builder.profiling.results import TestCases, read_testcases
from nn_meter.builder.profiling.run import ProfileRun, ProfileSummary, case_models
from nn_meter.builder.profiling.store import Failure, Store
from nn_meter.builder.workspace import Workspace, builder_config
from nn_meter.errors import (
    BackendError,
    ConfigError,
)
from nn_meter.progress import Progress, logged

__all__ = [
    "Bed",
    "check_needs_no_graph",
    "checked_time_limit",
    "convert_models",
    "model_settings",
    "profile_models",
]

log = logging.getLogger(__name__)


def convert_models(
    backend: BaseBackend,
    models: Mapping[str, Any] | str | Path,
    mode: str = "ruletest",
    broken_point_mode: bool = False,
    time_threshold: float = 300,
    *,
    save_name: str = "converted_results.json",
    workspace: Workspace | None = None,
    progress: Progress = logged,
) -> TestCases:
    """Convert the models of test cases for a backend, without profiling them.

    Args:
        backend: A connected backend.
        models: Test cases: a dict, or the path of a JSON file.
        mode: ``ruletest``.
        broken_point_mode: Skip models that have a latency already.
        time_threshold: Seconds that one model may take.
        save_name: Name of the file in the workspace's results.
        workspace: Default: the one of ``builder_config.init``.
        progress: Told how far it is; default: the log, at level INFO.

    Returns:
        The test cases, each model with ``converted_model``, ready for
        ``profile_models(have_converted=True)``. One that fails has ``error`` instead.

    Raises:
        ConfigError: An argument cannot be, e.g. a ``save_name`` that is no plain name.
        ResultFileError: The test cases are not of the guide's form, or a model is missing.
        BackendError: The backend cannot be reached, or is none.
    """
    _check(backend, mode, save_name)
    time_limit_s = checked_time_limit(time_threshold)
    workspace = workspace or builder_config.workspace
    testcases = read_testcases(models)
    with workspace.lock(), Connection(backend, model_settings(workspace)) as connection:
        cases = {
            name: [
                model
                for model in case_models(workspace, name, case)
                if not (broken_point_mode and case[model.name].get("latency") is not None)
            ]
            for name, case in testcases.items()
        }
        unique = {model.hash: model for case in cases.values() for model in case}
        converted = convert_all(
            connection, workspace, unique, time_limit_s=time_limit_s, progress=progress
        )
        errors = []
        for name, case in cases.items():
            for model in case:
                entry, outcome = testcases[name][model.name], converted[model.hash]
                if isinstance(outcome, Failure):
                    entry["error"] = {"kind": outcome.kind, "reason": outcome.reason}
                    errors.append(f"{name}: {model.name}: {outcome.kind}: {outcome.reason}")
                else:
                    entry["converted_model"] = outcome.converted
        results.write_errors(workspace, errors)
        folder = results.results_folder(workspace, connection.name, connection.environment)
        results.write_results(workspace, folder, save_name, testcases)
    return testcases


@dataclass(frozen=True, kw_only=True)
class Bed:
    """What an experiment is carried out on: a backend that opens sessions, and where samples go.

    ``graphs``: the runtime was asked what it executes, and told.
    """

    workspace: Workspace
    connection: Connection
    store: Store
    environment: int
    campaign: int
    testcases: TestCases
    time_limit_s: float
    progress: Progress
    summary: ProfileSummary
    graphs: bool
    fresh: bool


def profile_models(
    backend: BaseBackend,
    models: Mapping[str, Any] | str | Path,
    mode: str = "ruletest",
    metrics: Sequence[str] = ("latency",),
    save_name: str = "profiled_results.json",
    have_converted: bool = False,
    broken_point_mode: bool = False,
    time_threshold: float = 300,
    *,
    workspace: Workspace | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    progress: Progress = logged,
    summary: ProfileSummary | None = None,
    experiment: Callable[[Bed], None] | None = None,
) -> TestCases:
    """Measure the models of test cases on a backend.

    With ``EVIDENCE: auto`` a backend that can tell is asked for the executed graph of each model,
    too; with ``EVIDENCE: graph`` for nothing else.

    The models of one test case are timed in turn, in rounds. Samples go to ``samples.db`` round by
    round; killed at any moment, the next call goes on from there, and measures no finished test
    case again. A model that fails is named in ``profile_error.log``, and the rest goes on.

    Args:
        backend: A connected backend: its runtime then runs in a process of its own, under the time
            limit. A backend object made without connecting runs in this process.
        models: Test cases: a dict, or the path of a JSON file.
        mode: ``ruletest``.
        metrics: What to ask of the backend; beyond ``latency`` only where its own parser gives it.
        save_name: Name of the file in the workspace's results.
        have_converted: The models have ``converted_model``; profile that.
        broken_point_mode: Skip models that have a latency already.
        time_threshold: Seconds that one operation on a model may take.
        workspace: Default: the one of ``builder_config.init``.
        fresh: Measure these test cases again; earlier samples are kept, but do not count.
        retry_failed: Try models again that failed in an earlier call.
        progress: Told how far it is; default: the log, at level INFO.
        summary: Filled with what was done.
        experiment: Carried out when the models were measured, with EVIDENCE ``auto`` or
            ``latency``, on a backend whose models can be kept loaded.

    Returns:
        The test cases, each model with ``latency`` as ``"avg +- std"`` in ms, or with ``error``;
        and with ``graph``, where its executed graph lies in the store.

    Raises:
        ConfigError: An argument cannot be, e.g. a ``save_name`` that is no plain name.
        ResultFileError: The test cases are not of the guide's form, or a model is missing.
        BackendError: The backend cannot be reached, or is none.
    """
    _check(backend, mode, save_name)
    time_limit_s = checked_time_limit(time_threshold)
    metrics = _metric_names(metrics)
    summary = summary if summary is not None else ProfileSummary()
    workspace = workspace or builder_config.workspace
    testcases = read_testcases(models)
    evidence = workspace.ruletest.EVIDENCE
    with workspace.lock(), contextlib.ExitStack() as stack:
        connection = stack.enter_context(Connection(backend, model_settings(workspace)))
        if connection.sessions and set(metrics) != {"latency"}:
            raise BackendError(
                f"metrics: {connection.name} measures latency, and nothing else; found "
                f"{', '.join(metrics)}"
            )
        if not connection.shows_graph:
            check_needs_no_graph(workspace, connection.name)
        if evidence == "latency" and not connection.sessions:
            raise BackendError(
                f"{workspace.ruletest_file}: EVIDENCE is latency, but {connection.name} cannot "
                "keep models loaded, so that they could be timed in turn; choose formula"
            )
        summary.environment = str(connection.environment)
        store = stack.enter_context(Store(workspace.store_file))
        number = store.environment(connection.name, connection.environment)
        run = ProfileRun(
            workspace=workspace,
            connection=connection,
            store=store,
            environment=number,
            campaign=store.campaign(number),
            testcases=testcases,
            metrics=metrics,
            time_limit_s=time_limit_s,
            save_name=save_name,
            summary=summary,
            timed=evidence != "graph",
            asked_for_graphs=evidence in ("auto", "graph") and connection.shows_graph,
        )
        if fresh:
            store.retire(run.campaign, testcases)
        if retry_failed:
            store.forget_failures(run.campaign)
            store.forget_graph_failures(number)
        run.profile(have_converted, broken_point_mode, progress, fresh=fresh)
        if experiment is not None and evidence in ("auto", "latency") and connection.sessions:
            experiment(
                Bed(
                    workspace=workspace,
                    connection=connection,
                    store=store,
                    environment=number,
                    campaign=run.campaign,
                    testcases=testcases,
                    time_limit_s=time_limit_s,
                    progress=progress,
                    summary=summary,
                    graphs=run.asked_for_graphs and summary.graphs > 0,
                    fresh=fresh,
                )
            )
    return testcases


def check_needs_no_graph(workspace: Workspace, backend: str) -> None:
    """Refuse ``EVIDENCE: graph`` on a backend that does not show graphs.

    Raises:
        BackendError: That is what the workspace asks for.
    """
    if workspace.ruletest.EVIDENCE == "graph":
        raise BackendError(
            f"{workspace.ruletest_file}: EVIDENCE is graph, but {backend} cannot tell what it "
            "executes; choose auto, or a backend that can"
        )


def model_settings(workspace: Workspace) -> dict[str, Any]:
    """What of the configuration belongs to the environment of a result: the models' shapes.

    Those that the models were generated with, should the configuration have changed since.
    """
    now = workspace.ruletest.model_settings()
    made = results.read_view(workspace.settings_file, "what models were generated with")
    if made and made != now:
        differ = [
            f"{key} {made.get(key)}, not {now[key]}" for key in now if made.get(key) != now[key]
        ]
        log.warning(
            "%s has changed since the models were generated: they have %s; "
            "generate them again to ask for what it says now",
            workspace.ruletest_file,
            ", ".join(differ),
        )
        return {"models": made}
    return {"models": now}


def _check(backend: Any, mode: str, save_name: Any) -> None:
    """Refuse what cannot be asked before anything is done."""
    if not isinstance(backend, BaseBackend):
        raise BackendError(f"{backend!r:.80} is no backend; give what connect_backend returned")
    if mode != "ruletest":
        raise ConfigError(f"mode: {mode!r} is unknown; this nn-Meter knows 'ruletest'")
    results.check_save_name(save_name)


def _metric_names(metrics: Any) -> tuple[str, ...]:
    names = (metrics,) if isinstance(metrics, str) else metrics
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"metrics must be a list of names, not {metrics!r:.80}")
    if "latency" not in names:
        raise ConfigError("metrics: 'latency' has to be among them")
    return tuple(names)


def checked_time_limit(seconds: float) -> float:
    """Refuse a ``time_threshold`` that is no number of seconds above 0."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ConfigError(f"time_threshold must be a number of seconds above 0, not {seconds!r}")
    return float(seconds)
