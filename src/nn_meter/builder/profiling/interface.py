"""`profile_models` and `convert_models`: what the guide calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import BaseBackend
from nn_meter.builder.backends.spec import spec_of
from nn_meter.builder.profiling import results
from nn_meter.builder.profiling.cluster.settings import Scheduler
from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.convert import convert_all
from nn_meter.builder.profiling.request import (
    Bed,
    Request,
    check_needs_no_graph,
    model_settings,
)
from nn_meter.builder.profiling.results import TestCases, read_testcases
from nn_meter.builder.profiling.run import ProfileSummary, case_models
from nn_meter.builder.profiling.store import Failure
from nn_meter.builder.workspace import Workspace, builder_config
from nn_meter.errors import BackendError, ConfigError
from nn_meter.progress import Progress, logged

__all__ = [
    "Bed",
    "check_needs_no_graph",
    "checked_time_limit",
    "convert_models",
    "model_settings",
    "profile_devices",
    "profile_models",
]


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
    scheduler: str | Scheduler | None = None,
    device: str | None = None,
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
        scheduler: Measure on the devices of a Dask cluster: the address of its scheduler, or a
            ``Scheduler``; docs/distributed.md says how. Default: on this machine.
        device: The kind of device there: the name of the resource that its workers offer, and of
            the folder of its results. Default: the backend's name.

    Returns:
        The test cases, each model with ``latency`` as ``"avg +- std"`` in ms, or with ``error``;
        and with ``graph``, where its executed graph lies in the store.

    Raises:
        ConfigError: An argument cannot be, e.g. a ``save_name`` that is no plain name.
        ResultFileError: The test cases are not of the guide's form, or a model is missing.
        BackendError: The backend cannot be reached, or is none; or the scheduler cannot.
        DeviceError: The scheduler was lost, or no worker offers the device.
    """
    _check(backend, mode, save_name)
    if scheduler is None and device is not None:
        raise ConfigError(f"device: {device!r} is one of a cluster; give its scheduler, too")
    summary = summary if summary is not None else ProfileSummary()
    workspace = workspace or builder_config.workspace
    request = Request(
        workspace=workspace,
        metrics=_metric_names(metrics),
        save_name=save_name,
        have_converted=have_converted,
        broken_point_mode=broken_point_mode,
        time_limit_s=checked_time_limit(time_threshold),
        fresh=fresh,
        retry_failed=retry_failed,
        progress=progress,
        experiment=experiment,
    )
    testcases = read_testcases(models)
    if scheduler is not None:
        spec = spec_of(backend)
        kind = device or (spec.name if spec is not None else type(backend).__name__)
        _on_devices({kind: backend}, {kind: testcases}, {kind: summary}, scheduler, request)
        return testcases
    with workspace.lock(), Connection(backend, model_settings(workspace)) as connection:
        request.carry_out(connection, testcases, summary)
    return testcases


def profile_devices(
    backends: Mapping[str, BaseBackend],
    models: Mapping[str, Any] | str | Path,
    *,
    scheduler: str | Scheduler,
    time_threshold: float = 300,
    workspace: Workspace | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    progress: Progress = logged,
    summaries: dict[str, ProfileSummary] | None = None,
    experiment: Callable[[Bed], None] | None = None,
) -> dict[str, TestCases]:
    """Measure test cases on several kinds of devices of a Dask cluster, side by side.

    The results of a kind lie in ``results/<kind>/``; those of the first kind are the latest run's.

    Args:
        backends: Kind of device -> the backend that runs there. A kind is the name of the resource
            that its workers offer.
        models: Test cases: a dict, or the path of a JSON file.
        scheduler: The address of its scheduler, or a ``Scheduler``.
        time_threshold: Seconds that one operation on a model may take.
        workspace: Default: the one of ``builder_config.init``.
        fresh: Measure these test cases again; earlier samples are kept, but do not count.
        retry_failed: Try models again that failed in an earlier call.
        progress: Told how far it is; default: the log, at level INFO.
        summaries: Filled with what was done on each kind.
        experiment: As ``profile_models`` has it.

    Returns:
        What ``profile_models`` gives, for each kind.

    Raises:
        ConfigError: An argument cannot be.
        ResultFileError: The test cases are not of the guide's form, or a model is missing.
        BackendError: The scheduler, or a backend, cannot be reached.
        DeviceError: The scheduler was lost, or no worker offers a kind; the others are measured.
    """
    if not backends:
        raise ConfigError("devices: name at least one kind")
    for backend in backends.values():
        _check(backend, "ruletest", "profiled_results.json")
    request = Request(
        workspace=workspace or builder_config.workspace,
        metrics=("latency",),
        save_name="profiled_results.json",
        have_converted=False,
        broken_point_mode=False,
        time_limit_s=checked_time_limit(time_threshold),
        fresh=fresh,
        retry_failed=retry_failed,
        progress=progress,
        experiment=experiment,
    )
    found = {kind: read_testcases(models) for kind in backends}
    told = summaries if summaries is not None else {}
    told.update({kind: ProfileSummary() for kind in backends})
    _on_devices(backends, found, told, scheduler, request)
    return found


def _on_devices(
    backends: Mapping[str, BaseBackend],
    testcases: Mapping[str, TestCases],
    summaries: Mapping[str, ProfileSummary],
    scheduler: str | Scheduler,
    request: Request,
) -> None:
    # here, so that a run on this machine takes nothing of it
    from nn_meter.builder.profiling.cluster.interface import profile_kinds

    profile_kinds(backends, testcases, summaries, Scheduler.of(scheduler), request)


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
