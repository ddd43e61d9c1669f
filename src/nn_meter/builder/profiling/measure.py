"""Measuring the models of one test case: opening them, running a plan, writing rounds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nn_meter.builder.profiling.plan import Plan
from nn_meter.builder.profiling.race import checked_samples
from nn_meter.builder.profiling.store import Failure, Store
from nn_meter.errors import (
    ConversionError,
    ModelRejectedError,
    NNMeterError,
    TimeLimitError,
    WorkerCrashedError,
)
from nn_meter.reference import compare_outputs

__all__ = [
    "Caller",
    "Model",
    "ModelFailedError",
    "failure_of",
    "identity",
    "measure_samples",
    "open_models",
]


class Caller(Protocol):
    """Whatever carries out operations of ``BackendJobs``: a worker process, or this one."""

    def call(self, op: str, timeout_s: float | None = None, **arguments: Any) -> Any:
        """See ``process.Worker.call``."""


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
    """Sort what went wrong with a model."""
    kinds: tuple[tuple[type[NNMeterError], str], ...] = (
        (ModelRejectedError, "refused"),
        (ConversionError, "refused"),
        (TimeLimitError, "time limit"),
        (WorkerCrashedError, "crashed"),
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
) -> None:
    """Load the models of a test case and warm them up.

    Args:
        caller: Carries out the backend's operations.
        models: All of them converted.
        check: Whether a model's outputs are to be compared with its source's.
        checked: Told what a comparison found.
        warmups: Runs of each model before the first measured one.
        time_limit_s: For each operation.

    Raises:
        ModelFailedError: A model cannot be loaded or run, or computes something else.
    """
    for model in models:
        wanted = model.reference is not None and check(model)
        with _failing(model):
            found = caller.call(
                "open",
                time_limit_s,
                key=model.name,
                converted=model.converted,
                shapes=[list(shape) for shape in model.shapes],
                check=wanted,
            )
            if wanted and model.reference is not None:
                difference = compare_outputs(found, model.reference)
                checked(model, difference)
                if difference is not None:
                    raise ModelFailedError(model, _wrong_output(difference))
            if warmups:
                caller.call("time", time_limit_s, key=model.name, runs=warmups)


def measure_samples(
    caller: Caller,
    models: Sequence[Model],
    plan: Plan,
    *,
    store: Store,
    campaign: int,
    testcase: str,
    time_limit_s: float,
) -> float:
    """Run a plan on models that are loaded, one stored round after the other.

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


def measure_metrics(
    caller: Caller,
    models: Sequence[Model],
    *,
    store: Store,
    campaign: int,
    testcase: str,
    metrics: Sequence[str],
    save_path: Path,
    own_file_method: bool,
    time_limit_s: float,
) -> None:
    """Profile each model once by the backend's own method, as one stored round.

    Raises:
        ModelFailedError: A model fails; nothing of the round stays.
    """
    visits: list[tuple[str, str, Mapping[str, Any]]] = []
    for model in models:
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
    store.add_round(store.load(campaign), testcase, list(visits))


class _failing:
    """Turn an error of ours in the block into a ModelFailedError of the model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, NNMeterError):
            raise ModelFailedError(self._model, failure_of(error)) from error
