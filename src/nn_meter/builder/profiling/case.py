"""Measuring one test case, be it for the store of this machine or for another one's.

This module runs where the device is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nn_meter.builder.profiling.averages import PROFILE_ROUNDS
from nn_meter.builder.profiling.measure import (
    PATIENCE_S,
    Caller,
    Model,
    Rounds,
    Told,
    measure_metrics,
    measure_samples,
    open_models,
)
from nn_meter.builder.profiling.plan import TURN_ROUNDS, USUAL_ROUNDS, FixedPlan
from nn_meter.errors import NNMeterError
from nn_meter.reference import tolerance_of

__all__ = ["CaseSettings", "measure_case", "plan_of"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CaseSettings:
    """How a backend's test cases are measured.

    Attributes:
        backend: Its name, for messages.
        sessions: Whether its models can be kept loaded.
        own_file_method: Whether it takes models that are not converted.
        runs: Measured runs of each model.
        warmups: Runs of each model before the first measured one.
        metrics: What is asked of a backend that opens no sessions.
        rounds: Rounds that measuring is spread over; None: as many as usual.
        dtype: What the device computes with, as its environment says.
        in_turn: Whether its device times all models of a round by one call; then each visit has
            ``runs`` runs and warm-ups of its own, and gives one sample.
    """

    backend: str
    sessions: bool
    own_file_method: bool
    runs: int
    warmups: int
    metrics: tuple[str, ...]
    rounds: int | None = None
    dtype: str = "float32"
    in_turn: bool = False

    @property
    def profile_rounds(self) -> int:
        """How often a backend that opens no sessions is asked for each model."""
        return self.rounds or PROFILE_ROUNDS


def plan_of(models: Sequence[Model], settings: CaseSettings) -> FixedPlan:
    """What to measure of the models of a test case."""
    names = [model.name for model in models]
    if settings.in_turn:
        rounds = settings.rounds or TURN_ROUNDS
        return FixedPlan(names, runs=rounds, rounds=rounds)
    return FixedPlan(names, runs=settings.runs, rounds=settings.rounds or USUAL_ROUNDS)


def measure_case(
    caller: Caller,
    models: Sequence[Model],
    settings: CaseSettings,
    *,
    store: Rounds,
    campaign: int,
    testcase: str,
    save_path: Path,
    check: Callable[[Model], bool],
    checked: Callable[[Model, str | None], None],
    time_limit_s: float,
    done: Mapping[str, int] | None = None,
    told: Told = lambda conditions: None,
) -> float:
    """Measure the models of a test case.

    Args:
        caller: Carries out the backend's operations.
        models: All of them converted, unless the backend has a way of its own.
        settings: How.
        store: Where the rounds go.
        campaign: Number of the campaign.
        testcase: Name of the test case.
        save_path: A folder for what a backend's own way converts.
        check: Whether a model's outputs are to be compared with its source's.
        checked: Told what a comparison found.
        time_limit_s: For each operation.
        done: Visits that each model has had, of a backend that opens no sessions.
        told: Told how the device was, if it times models in turn.

    Returns:
        Seconds that the measured runs took, if the backend opens sessions.

    Raises:
        ModelFailedError: A model failed; the rounds before stay.
    """
    if not settings.sessions:
        measure_metrics(
            caller,
            models,
            store=store,
            campaign=campaign,
            testcase=testcase,
            metrics=settings.metrics,
            save_path=save_path,
            own_file_method=settings.own_file_method,
            time_limit_s=time_limit_s,
            rounds=settings.profile_rounds,
            done=done,
        )
        return 0.0
    try:
        open_models(
            caller,
            models,
            check=check,
            checked=checked,
            warmups=0 if settings.in_turn else settings.warmups,
            time_limit_s=time_limit_s + (PATIENCE_S if settings.in_turn else 0.0),
            tolerance=tolerance_of(settings.dtype),
        )
        return measure_samples(
            caller,
            models,
            plan_of(models, settings),
            store=store,
            campaign=campaign,
            testcase=testcase,
            time_limit_s=time_limit_s,
            in_turn=settings.in_turn,
            told=told,
        )
    finally:
        _close(caller, settings.backend, time_limit_s)


def _close(caller: Caller, backend: str, time_limit_s: float) -> None:
    """Unload what is loaded; a process that cannot even do that is replaced."""
    if getattr(caller, "running", True):
        try:
            caller.call("close", time_limit_s)
        except NNMeterError as exc:
            log.warning("%s: unloading models failed: %s", backend, exc)
