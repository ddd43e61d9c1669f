"""What to measure next.

A plan is asked again and again, each time with the samples so far, until it says that it is done.
So a plan may decide by what was measured; profiling runs it and does not know why it asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nn_meter.builder.backends.base import Samples

__all__ = ["TURN_ROUNDS", "USUAL_ROUNDS", "FixedPlan", "Plan", "Round", "SamplesSoFar"]

USUAL_ROUNDS = 10

TURN_ROUNDS = 5
"""On a device that times models in turn: each visit there is a load of its own, and an average."""

SamplesSoFar = Mapping[str, Sequence[Samples]]
"""Samples of each model by its name, one array a round."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One visit to each of some models.

    Attributes:
        models: Their names, in the order of the visits.
        runs: Measured runs at each visit.
    """

    models: tuple[str, ...]
    runs: int


class Plan(Protocol):
    """Decides what to measure next from what was measured."""

    def next(self, samples: SamplesSoFar) -> Round | None:
        """The next round; None: there is enough."""


class FixedPlan:
    """Measures every model the same number of runs, spread over rounds.

    The order within a round rotates and turns round, so that no model always comes after the same
    one, nor first.

    Args:
        models: Names of the models.
        runs: Measured runs of each, all in all.
        rounds: How many rounds to spread them over.
    """

    def __init__(self, models: Sequence[str], *, runs: int, rounds: int = USUAL_ROUNDS) -> None:
        self._models = tuple(models)
        self._runs = runs
        self._per_visit = max(1, -(-runs // rounds))

    def next(self, samples: SamplesSoFar) -> Round | None:
        done = min(sum(len(visit) for visit in samples.get(name, ())) for name in self._models)
        if done >= self._runs:
            return None
        number = max(len(samples.get(name, ())) for name in self._models)
        shift = number // 2 % len(self._models)
        order = self._models[shift:] + self._models[:shift]
        return Round(
            models=order[::-1] if number % 2 else order,
            runs=min(self._per_visit, self._runs - done),
        )
