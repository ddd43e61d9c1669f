"""Measuring a test case where the device is; what was measured goes back as plain values.

This module runs on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nn_meter.builder.backends.base import Samples
from nn_meter.builder.profiling.case import CaseSettings, measure_case
from nn_meter.builder.profiling.measure import Caller, Model, ModelFailedError
from nn_meter.builder.profiling.store import Failure
from nn_meter.errors import DeviceError, NotInstalledError, WorkspaceError

__all__ = ["NOT_THE_MODELS_FAULT", "CaseResult", "differences", "measure_there"]

NOT_THE_MODELS_FAULT = (DeviceError, NotInstalledError, WorkspaceError)
"""Errors that say something of the device, or of its machine."""

Visit = tuple[str, str, "Samples | Mapping[str, Any]"]


@dataclass(kw_only=True)
class CaseResult:
    """What came of a test case.

    Attributes:
        rounds: Each a list of model, hash of its file, and samples (int64 ns) or metrics.
        checks: Hash of a model to how its conversion compared with its source.
        failed: The model that failed, and why; no model: it is unknown which.
        runtime_s: Seconds of the measured runs.
        conditions: How the device was, each time that it told.
    """

    rounds: list[list[Visit]] = field(default_factory=list)
    checks: dict[str, str | None] = field(default_factory=dict)
    failed: tuple[str | None, Failure] | None = None
    runtime_s: float = 0.0
    conditions: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "rounds": [
                [
                    [
                        model,
                        digest,
                        {"ns": found.tolist()}
                        if isinstance(found, np.ndarray)
                        else {"metrics": dict(found)},
                    ]
                    for model, digest, found in visits
                ]
                for visits in self.rounds
            ],
            "checks": self.checks,
            "failed": None
            if self.failed is None
            else {
                "model": self.failed[0],
                "kind": self.failed[1].kind,
                "reason": self.failed[1].reason,
            },
            "runtime_s": self.runtime_s,
            "conditions": self.conditions,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CaseResult:
        """Read ``to_json`` back."""
        failed = data["failed"]
        return cls(
            rounds=[
                [
                    (
                        str(model),
                        str(digest),
                        np.asarray(found["ns"], dtype=np.int64)
                        if "ns" in found
                        else dict(found["metrics"]),
                    )
                    for model, digest, found in visits
                ]
                for visits in data["rounds"]
            ],
            checks={
                str(digest): None if told is None else str(told)
                for digest, told in data["checks"].items()
            },
            failed=None
            if failed is None
            else (
                None if failed["model"] is None else str(failed["model"]),
                Failure(kind=str(failed["kind"]), reason=str(failed["reason"])),
            ),
            runtime_s=float(data["runtime_s"]),
            conditions=[dict(each) for each in data["conditions"]],
        )


class _Notebook:
    """Stands for the store, which is elsewhere.

    Args:
        runs: For each model how many runs each earlier round had: a plan goes on from there.
        result: Where the rounds go.
    """

    def __init__(self, runs: Mapping[str, Sequence[int]], result: CaseResult) -> None:
        self._runs, self._result = runs, result

    def samples(
        self, campaign: int, testcase: str, hashes: Mapping[str, str]
    ) -> dict[str, list[Samples]]:
        return {
            model: [np.ones(runs, dtype=np.int64) for runs in self._runs.get(model, ())]
            for model in hashes
        }

    def load(self, campaign: int) -> int:
        return 0

    def add_round(self, load: int, testcase: str, visits: list[Visit]) -> None:
        self._result.rounds.append(list(visits))


def measure_there(
    process: Caller, arguments: Mapping[str, Any], time_limit_s: float
) -> dict[str, Any]:
    """Measure a test case in a process of the machine that has the device.

    Args:
        process: Where the backend is.
        arguments: ``testcase``, ``models``, ``settings``, ``runs``, ``done`` and ``save_path``.
        time_limit_s: For each operation.

    Returns:
        A ``CaseResult`` as plain values.

    Raises:
        DeviceError: The device went away: it is not the test case that failed.
        NotInstalledError: Nor where what the backend needs is missing,
        WorkspaceError: or the disk is full.
    """
    result = CaseResult()
    models = [Model(**{**each, "path": Path(each["path"])}) for each in arguments["models"]]
    try:
        result.runtime_s = measure_case(
            process,
            models,
            CaseSettings(
                **{**arguments["settings"], "metrics": tuple(arguments["settings"]["metrics"])}
            ),
            store=_Notebook(arguments["runs"], result),
            campaign=0,
            testcase=arguments["testcase"],
            save_path=Path(arguments["save_path"]),
            check=lambda model: True,  # it comes with a reference only if it is to be checked
            checked=lambda model, found: result.checks.update({model.hash: found}),
            time_limit_s=time_limit_s,
            done=arguments["done"],
            told=lambda conditions: result.conditions.append(dict(conditions)),
        )
    except ModelFailedError as exc:
        if isinstance(exc.__cause__, NOT_THE_MODELS_FAULT):
            raise exc.__cause__ from None
        result.failed = exc.model.name, exc.failure
    return result.to_json()


def differences(found: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> str:
    """In what an environment is another one."""
    found, wanted = found or {}, wanted or {}
    told = ", ".join(
        f"{key}: {found.get(key)}, not {wanted.get(key)}"
        for key in {**wanted, **found}
        if found.get(key) != wanted.get(key)
    )
    return f"it is another environment than that of this run ({told})"
