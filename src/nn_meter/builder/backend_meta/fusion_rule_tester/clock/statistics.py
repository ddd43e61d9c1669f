"""Times of models from their visits, and what a difference of times is worth.

Noise only ever adds to the time of a run, so a model's time in one load is a low statistic of its
visits. Loading a model again gives another time, by placement in memory: that spread is larger than
the noise within a load, so loads are what the error of a difference is worked out from. Few loads
say little about their own spread; what all questions of a run say together helps out (Smyth 2004,
doi 10.2202/1544-6115.1027, who has few samples of many genes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

__all__ = ["Contrast", "Spread", "Times", "fit_spread", "time_of", "times_of"]

Times = Mapping[str, float]
"""The time of each model in one load, in µs at the speed of the gate's reference."""

_SHARE = 1 / 3  # of the visits, the lowest
_FEWEST = 3  # visits that a time is made of
_REFERENCE_NS = 2000.0  # what the gate's work takes, to which times are scaled


def time_of(visits: Sequence[npt.NDArray[np.int64]]) -> float | None:
    """The time of a model in one load: the mean of the lowest third of its visits' least runs, ns.

    Returns:
        None if there are too few visits to tell.
    """
    least = sorted(float(visit.min()) for visit in visits if visit.size)
    if len(least) < _FEWEST:
        return None
    return float(np.mean(least[: max(2, round(_SHARE * len(least)))]))


def times_of(
    visits: Mapping[str, Sequence[npt.NDArray[np.int64]]], level_ns: float, replicas: int
) -> dict[str, float]:
    """The times of the models of one load.

    Args:
        visits: By part.
        level_ns: What the gate's work took at full speed, by which times are scaled, so that loads
            at different speeds can be compared; 0: they are not.
        replicas: How often each model holds its chain; times are those of one.

    Returns:
        By part, in µs; a part with too few visits is left out.
    """
    scale = (_REFERENCE_NS / level_ns if level_ns > 0 else 1.0) * 1e-3 / replicas
    found = {part: time_of(seen) for part, seen in visits.items()}
    return {part: time * scale for part, time in found.items() if time is not None}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What is known of the spread between loads before a question's own loads are looked at.

    Attributes:
        variance: Of the time of a model between loads, as a share of its time, squared.
        freedom: How many degrees of freedom that is worth.
    """

    variance: float
    freedom: float

    def to_json(self) -> dict[str, float]:
        """As plain values."""
        return {"variance": self.variance, "freedom": self.freedom}

    @classmethod
    def from_json(cls, data: Mapping[str, float]) -> Spread:
        """Read ``to_json`` back."""
        found = cls(variance=float(data["variance"]), freedom=float(data["freedom"]))
        if not (0 <= found.variance < math.inf and 0 < found.freedom < math.inf):
            raise ValueError("a spread has a variance, and degrees of freedom")
        return found


_LEAST_FREEDOM, _MOST_FREEDOM = 4.0, 40.0
_FEWEST_SAMPLES = 4  # as many as one set of references gives
_PRIOR = Spread(variance=0.015**2, freedom=4.0)
"""While nothing was measured: 1.5 %, as found on three runtimes."""


def fit_spread(variances: Sequence[tuple[float, int]]) -> Spread:
    """What many small samples say about the spread of each.

    By the moments of the logarithm of the variances (Smyth 2004, section 6.2). The result is worth
    no more degrees of freedom than the samples have together.

    Args:
        variances: Of each sample its variance and its degrees of freedom.
    """
    known = [(variance, dof) for variance, dof in variances if variance > 0 and dof > 0]
    if len(known) < _FEWEST_SAMPLES:
        return _PRIOR
    most = max(min(_MOST_FREEDOM, float(sum(dof for _, dof in known))), _LEAST_FREEDOM)
    z = np.log([variance for variance, _ in known])
    half = np.array([dof for _, dof in known]) / 2
    e = z - special.digamma(half) + np.log(half)
    mean = float(e.mean())
    excess = float(e.var(ddof=1) - special.polygamma(1, half).mean())
    if excess <= 0:  # no more than chance: all have the same
        return Spread(variance=math.exp(mean), freedom=most)
    freedom = 2 * _inverse_trigamma(excess)
    freedom = min(max(freedom, _LEAST_FREEDOM), most)
    variance = math.exp(mean + float(special.digamma(freedom / 2)) - math.log(freedom / 2))
    return Spread(variance=variance, freedom=freedom)


def _inverse_trigamma(value: float) -> float:
    low, high = 1e-3, 1e6
    return float(
        optimize.brentq(lambda x: float(special.polygamma(1, x)) - value, low, high)
        if special.polygamma(1, high) < value < special.polygamma(1, low)
        else (low if value >= special.polygamma(1, low) else high)
    )


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A signed sum of models' times, over loads.

    Attributes:
        value: Its mean over the loads, µs.
        variance: Of that mean.
        freedom: Degrees of freedom of the variance.
        weight: The sum of squares of the times that went into one load's sum: what a relative
            spread is multiplied by.
        own: Variance between the loads over ``weight``, and its degrees of freedom.
    """

    value: float
    variance: float
    freedom: float
    weight: float
    own: tuple[float, int]

    @classmethod
    def of(
        cls, loads: Sequence[Times], signs: Mapping[str, float], spread: Spread
    ) -> Contrast | None:
        """Work it out.

        Args:
            loads: The times of each load; one that lacks a part does not count.
            signs: By part its factor.
            spread: What is known of the spread from elsewhere.

        Returns:
            None if no load has all parts.
        """
        whole = [load for load in loads if all(part in load for part in signs)]
        if not whole:
            return None
        times = np.array([[load[part] for part in signs] for load in whole])
        factors = np.array(list(signs.values()))
        sums = times @ factors
        weight = float(((times * factors) ** 2).sum(axis=1).mean())
        dof = len(whole) - 1
        own = float(sums.var(ddof=1)) / weight if dof else 0.0
        freedom = spread.freedom + dof
        relative = (spread.freedom * spread.variance + dof * own) / freedom
        return cls(
            value=float(sums.mean()),
            variance=relative * weight / len(whole),
            freedom=freedom,
            weight=weight,
            own=(own, dof),
        )

    def plus(self, other: Contrast, factor: float) -> Contrast:
        """The sum with a multiple of another one, which has to be independent.

        The degrees of freedom are Welch's and Satterthwaite's.
        """
        added = factor**2 * other.variance
        return Contrast(
            value=self.value + factor * other.value,
            variance=self.variance + added,
            freedom=(self.variance + added) ** 2
            / (self.variance**2 / self.freedom + added**2 / other.freedom),
            weight=self.weight + factor**2 * other.weight,
            own=self.own,
        )

    @property
    def error(self) -> float:
        """Standard error."""
        return math.sqrt(self.variance)

    def bounds(self, error_rate: float) -> tuple[float, float]:
        """An interval that the truth lies below, and above, with ``error_rate`` each."""
        reach = float(stats.t.isf(error_rate, self.freedom)) * self.error
        return self.value - reach, self.value + reach
