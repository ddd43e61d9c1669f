"""Backends that have nothing but the guide's ``profile()``: how often, and what comes of it.

Such a backend loads a model, runs it and answers with averages; how many runs these are of, it does
not say. So it is asked more than once, in rounds in which each model of a test case has its turn:
what drifts meanwhile is then in all of them, and how far answers lie apart is known.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nn_meter.builder.backends.base import Array, BaseBackend, Samples, Shapes, Turn
from nn_meter.errors import BackendError, NNMeterError
from nn_meter.latency import Latency, measured_latency

__all__ = ["PROFILE_ROUNDS", "Profiled", "ProfilesInTurn", "pooled"]

PROFILE_ROUNDS = 2
"""Rounds if ROUNDS does not say: there and back again, the fewest in which a drift cancels out."""

_NS_PER_MS = 1e6
_DIGITS = 6  # of ms, as of latencies that come from samples


def pooled(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put what a model's visits gave into one answer.

    Args:
        rows: One or more, each a value per metric; ``latency`` as ``"avg +- std"`` in ms.

    Returns:
        Of the latency the average of the averages, each counting alike, and a deviation with what
        was reported within visits and what lies between them; of other numbers the average; of
        anything else the latest.
    """
    latest = dict(rows[-1])
    if len(rows) == 1:
        return latest
    found = {metric: _average([row[metric] for row in rows if metric in row]) for metric in latest}
    latencies = [Latency(str(row["latency"])) for row in rows]
    averages = [latency.avg for latency in latencies]
    within = statistics.fmean(latency.std**2 for latency in latencies)
    std = math.sqrt(within + statistics.pvariance(averages))
    average = round(statistics.fmean(averages), _DIGITS) or statistics.fmean(averages)
    return found | {"latency": str(Latency(average, round(std, _DIGITS)))}


def _average(values: Sequence[Any]) -> Any:
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return statistics.fmean(values)
    return values[-1]


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """A model that ``profile()`` is asked for: nothing of it stays loaded."""

    backend: BaseBackend
    converted: str
    shapes: Shapes

    def time(self, n: int) -> Samples:
        """Ask ``n`` times; each answer is an average, in int64 ns."""
        return np.array([self._average_ns() for _ in range(n)], dtype=np.int64)

    def _average_ns(self) -> int:
        shapes = [list(shape) for shape in self.shapes]
        results = self.backend.profile(self.converted, ["latency"], shapes)
        if results is None or "latency" not in results:
            raise BackendError(
                f"{type(self.backend).__name__} was asked for latency and answered {results!r:.200}"
            )
        return max(1, round(measured_latency(results["latency"]).avg * _NS_PER_MS))

    def outputs(self, feeds: Sequence[Array]) -> list[Array]:
        """Never asked: such a backend does not give them."""
        raise BackendError(f"{type(self.backend).__name__} gives no outputs")

    def close(self) -> None:
        """Nothing is loaded."""


class ProfilesInTurn:
    """A backend with ``profile()`` alone, as one that times models in turn: a visit is a call."""

    in_turn = True

    def __init__(self, backend: BaseBackend) -> None:
        self._backend = backend

    def open(self, converted_model: str, shapes: Shapes) -> Profiled:
        """A model to ask for."""
        return Profiled(backend=self._backend, converted=converted_model, shapes=shapes)

    def time_in_turn(self, sessions: Sequence[Any], limit_s: float) -> Turn:
        """Ask for models in this order."""
        return Turn(visits=[_visit(session) for session in sessions])


def _visit(session: Profiled) -> Samples | NNMeterError:
    try:
        return session.time(1)
    except NNMeterError as exc:
        return exc
    except Exception as exc:  # noqa: BLE001 - whatever a user's profile() raises is about its model
        return BackendError(f"{type(exc).__name__}: {exc}")
