"""Measuring the models of one test case: opening them, running a plan, writing rounds."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nn_meter.builder.backends.base import Samples
from nn_meter.builder.profiling.averages import PROFILE_ROUNDS
from nn_meter.builder.profiling.plan import FixedPlan, Plan
from nn_meter.builder.profiling.process import decode_error
from nn_meter.builder.profiling.race import checked_samples
from nn_meter.builder.profiling.store import Failure
from nn_meter.errors import (
    ConversionError,
    DeviceError,
    ModelRejectedError,
    NNMeterError,
    TimeLimitError,
    WorkerCrashedError,
    WorkspaceError,
)
from nn_meter.reference import TOLERANCE, compare_outputs

__all__ = [
    "DEVICE",
    "PATIENCE_S",
    "Caller",
    "Model",
    "ModelFailedError",
    "Rounds",
    "Told",
    "failure_of",
    "identity",
    "measure_samples",
    "open_models",
]

_ONE_VISIT = np.ones(1, dtype=np.int64)

log = logging.getLogger(__name__)

DEVICE = "device"
"""The kind of a failure that says nothing about a model: it is told, not kept."""

PATIENCE_S = 150.0
"""Beyond the time limit, for a device that times models in turn: it may be away, and is waited for.
"""


class Caller(Protocol):
    """Whatever carries out operations of ``BackendJobs``: a worker process, or this one."""

    def call(self, op: str, timeout_s: float | None = None, **arguments: Any) -> Any:
        """See ``process.Worker.call``."""


class Rounds(Protocol):
    """What measuring asks of a ``Store``, and tells it; the store may be on another machine."""

    def samples(
        self, campaign: int, testcase: str, hashes: Mapping[str, str]
    ) -> dict[str, list[Samples]]:
        """See ``Store.samples``."""

    def load(self, campaign: int) -> int:
        """See ``Store.load``."""

    def add_round(
        self,
        load: int,
        testcase: str,
        visits: list[tuple[str, str, Samples | Mapping[str, Any]]],
    ) -> None:
        """See ``Store.add_round``."""


Told = Callable[[Mapping[str, Any]], None]
"""Told how a device was while it measured: temperatures, frequencies, what it was waited for."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model to measure.

    Attributes:
        name: Its name within the test case.
        path: Its file.
        hash: Its ``identity``.
        shapes: Shapes of its inputs without the batch dimension.
        converted: What the backend made of it; None: not converted (yet).
        reference: A sample of its outputs in its own framework; None: there is none.
    """

    name: str
    path: Path
    hash: str
    shapes: Sequence[Sequence[int]]
    converted: str | None = None
    reference: Sequence[dict[str, Any]] | None = None


def identity(content: str, shapes: Sequence[Sequence[int]]) -> str:
    """What a model is known by: the hash of its file, and the shapes that it runs with."""
    sizes = [[int(size) for size in shape] for shape in shapes]
    return hashlib.sha256(f"{content} {sizes}".encode()).hexdigest()


class ModelFailedError(Exception):
    """One model of a test case failed; carries which, and why. Never leaves this folder."""

    def __init__(self, model: Model, failure: Failure) -> None:
        super().__init__(f"{model.name}: {failure.reason}")
        self.model, self.failure = model, failure


def failure_of(error: NNMeterError) -> Failure:
    """Sort what went wrong with a model.

    Raises:
        WorkspaceError: The disk is full, which says nothing about the model.
    """
    if isinstance(error, WorkspaceError):
        raise error
    kinds: tuple[tuple[type[NNMeterError], str], ...] = (
        (ModelRejectedError, "refused"),
        (ConversionError, "refused"),
        (TimeLimitError, "time limit"),
        (WorkerCrashedError, "crashed"),
        (DeviceError, DEVICE),
    )
    kind = next((name for cls, name in kinds if isinstance(error, cls)), "failed")
    reason = str(error).encode(errors="replace").decode()  # a runtime's words may be no text
    return Failure(kind=kind, reason=reason)


def _wrong_output(difference: str) -> Failure:
    """No refusal: the runtime or the conversion took the model for another one."""
    reason = f"the converted model computes something else than its source: {difference}"
    return Failure(kind="wrong output", reason=reason)


def open_models(
    caller: Caller,
    models: Sequence[Model],
    *,
    check: Callable[[Model], bool],
    checked: Callable[[Model, str | None], None],
    warmups: int,
    time_limit_s: float,
    tolerance: float = TOLERANCE,
) -> None:
    """Load the models of a test case and warm them up.

    Args:
        caller: Carries out the backend's operations.
        models: All of them converted.
        check: Whether a model's outputs are to be compared with its source's.
        checked: Told what a comparison found.
        warmups: Runs of each model before the first measured one.
        time_limit_s: For each operation.
        tolerance: By how much outputs may differ, as a share of their scale.

    Raises:
        ModelFailedError: A model cannot be loaded or run, or computes something else.
    """
    for model in models:
        wanted = model.reference is not None and check(model)
        difference = None
        with _failing(model):
            found = caller.call(
                "open",
                time_limit_s,
                key=model.name,
                converted=model.converted,
                shapes=[list(shape) for shape in model.shapes],
                check=wanted,
            )
            if wanted and model.reference is not None and found is not None:
                difference = compare_outputs(found, model.reference, tolerance)
        if wanted and found is None:
            _say_unchecked()
        elif wanted:
            checked(model, difference)  # what the store cannot take is no failure of the model
        if difference is not None:
            raise ModelFailedError(model, _wrong_output(difference))
        if warmups:
            with _failing(model):
                caller.call("time", time_limit_s, key=model.name, runs=warmups)


@functools.cache
def _say_unchecked() -> None:
    log.warning(
        "conversions are not checked: the device does not tell what a model computes, and LiteRT, "
        "which could, is not installed here (pip install 'nn-meter[litert]')"
    )


def measure_samples(
    caller: Caller,
    models: Sequence[Model],
    plan: Plan,
    *,
    store: Rounds,
    campaign: int,
    testcase: str,
    time_limit_s: float,
    in_turn: bool = False,
    told: Told = lambda conditions: None,
) -> float:
    """Run a plan on models that are loaded, one stored round after the other.

    Args:
        caller: Carries out the backend's operations.
        models: They are loaded.
        plan: Says what to measure.
        store: Where rounds go.
        campaign: That they belong to.
        testcase: Theirs.
        time_limit_s: For each visit.
        in_turn: Whether the device times all models of a round by one call.
        told: Told how it was.

    Returns:
        Seconds that the measured runs took now, all together.

    Raises:
        ModelFailedError: A model fails while it runs; the rounds before stay.
    """
    by_name = {model.name: model for model in models}
    samples = store.samples(campaign, testcase, {m.name: m.hash for m in models})
    load = store.load(campaign)
    runtime_s = 0.0
    while (asked := plan.next(samples)) is not None:
        visits: list[tuple[str, str, Any]] = []
        if in_turn:
            visits += _turn(caller, [by_name[n] for n in asked.models], told, time_limit_s)
        else:
            for name in asked.models:
                with _failing(by_name[name]):
                    ns = caller.call("time", time_limit_s, key=name, runs=asked.runs)
                    found = checked_samples(ns, asked.runs)
                visits.append((name, by_name[name].hash, found))
        store.add_round(load, testcase, visits)
        for name, _, found in visits:
            samples[name].append(found)
            runtime_s += float(found.sum()) * 1e-9
    return runtime_s


def _turn(
    caller: Caller, models: Sequence[Model], told: Told, time_limit_s: float
) -> list[tuple[str, str, Samples]]:
    """One round on a device that times models in turn.

    Raises:
        ModelFailedError: A model fails, or the device, which is told apart by the kind.
    """
    with _failing(models[0]):
        answer = caller.call(
            "visit",
            PATIENCE_S + time_limit_s * len(models),
            keys=[model.name for model in models],
            limit_s=time_limit_s,
        )
    told(answer["conditions"])
    visits = []
    for model in models:
        with _failing(model):
            if model.name in answer["failed"]:
                raise decode_error(answer["failed"][model.name])
            found = answer["samples"][model.name]
            visits.append((model.name, model.hash, checked_samples(found, len(found))))
    return visits


def measure_metrics(
    caller: Caller,
    models: Sequence[Model],
    *,
    store: Rounds,
    campaign: int,
    testcase: str,
    metrics: Sequence[str],
    save_path: Path,
    own_file_method: bool,
    time_limit_s: float,
    rounds: int = PROFILE_ROUNDS,
    done: Mapping[str, int] | None = None,
) -> None:
    """Profile models by the backend's own method, once a round, one stored round after the other.

    Args:
        caller: Carries out the backend's operations.
        models: Of one test case; converted, unless ``own_file_method``.
        store: Where the rounds go. Each is a load of its own.
        campaign: Number of the campaign.
        testcase: Name of the test case.
        metrics: What is asked.
        save_path: A folder for what the backend converts itself.
        own_file_method: It takes models that are not converted.
        time_limit_s: For profiling a model once.
        rounds: How many there are to be.
        done: How many visits each model has had.

    Raises:
        ModelFailedError: A model fails; the rounds before stay, nothing of this one does.
    """
    by_name = {model.name: model for model in models}
    plan = FixedPlan(list(by_name), runs=rounds, rounds=rounds)
    seen = {name: [_ONE_VISIT] * (done or {}).get(name, 0) for name in by_name}
    while (asked := plan.next(seen)) is not None:
        visits: list[tuple[str, str, Samples | Mapping[str, Any]]] = []
        for name in asked.models:
            model = by_name[name]
            with _failing(model):
                found = caller.call(
                    "profile",
                    time_limit_s,
                    model=str(model.path),
                    save_path=str(save_path),
                    converted=None if own_file_method else model.converted,
                    shapes=[list(shape) for shape in model.shapes],
                    metrics=list(metrics),
                )
            visits.append((model.name, model.hash, found))
            seen[name].append(_ONE_VISIT)
        store.add_round(store.load(campaign), testcase, visits)


class _failing:
    """Turn an error of ours in the block into a ModelFailedError of the model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, NNMeterError):
            raise ModelFailedError(self._model, failure_of(error)) from error
