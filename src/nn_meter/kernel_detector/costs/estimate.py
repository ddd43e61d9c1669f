"""What kernels cost, from the times of their excerpts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from scipy.stats import t as student

from nn_meter.kernel_detector.costs.cutting import Cut
from nn_meter.kernel_detector.costs.timing import Timed, Times

__all__ = ["Cost", "cost_of", "costs_of", "warm_ns"]

_COVERED = 0.95


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one kernel takes inside its model.

    Attributes:
        ns: The time. Noise may make that of a kernel that costs next to nothing less than 0.
        low: Where the interval of it begins, which holds the truth in 95 of 100 cases as far as
            chance between loads goes.
        high: Where it ends.
    """

    ns: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class _Base:
    """Of kernels that are the same, what follows from their excerpts.

    Attributes:
        ns: T(what feeds it, and it) - T(what feeds it), all in the caches.
        variance: Of that, outputs converted.
        conversions_ns: What it costs to give what feeds it as outputs.
        conversions_variance: Of that.
        behind_ns: How much more the kernel takes behind the whole model; None: not known.
    """

    ns: float
    variance: float
    conversions_ns: float
    conversions_variance: float
    behind_ns: float | None


def costs_of(
    cuts: Sequence[Cut], timed: Timed, call: str, kept: Mapping[str, Sequence[str]]
) -> dict[str, Cost]:
    """Tell what each kernel costs.

    Inside a model a kernel finds its inputs in the caches, where they were just written, and writes
    to memory that was just used; its weights were last read a whole run before. So what counts is
    the time with everything in the caches, and, for its weights, what bytes of weights cost behind
    a run of the whole model: by least squares over all kernels, with what bytes of outputs cost.

    Cut out, a kernel also converts its outputs to the layout of outputs. What that takes is told by
    whoever reads them (the same models with and without them as outputs), and taken off.

    Args:
        cuts: The kernels' models.
        timed: Their times.
        call: Key of the model that costs no more than its call.
        kept: Kernel -> the tensors that it gives to others only.

    Returns:
        By the kernel's name; those that could not be timed are not there.
    """
    spread, width = _spread(timed)
    bases = {cut.key: base for cut in cuts if (base := _base(cut, timed, call, spread)) is not None}
    conversions = _conversions(cuts, bases)
    rate = _weight_rate(cuts, bases)
    off: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for cut in cuts:
        known = [conversions.get(tensor, (0.0, 0.0)) for tensor in kept[cut.kernel.name]]
        off[cut.key].append((sum(ns for ns, _ in known), sum(var for _, var in known)))
    found = {}
    for cut in cuts:
        if (base := bases.get(cut.key)) is None:
            continue
        less, variance = np.mean(off[cut.key], axis=0)
        ns = base.ns + base.conversions_ns - float(less) + rate * cut.weights
        half = _half(width, math.sqrt(base.variance + float(variance)))
        found[cut.kernel.name] = Cost(ns=ns, low=ns - half, high=ns + half)
    return found


def cost_of(times: Times, timed: Timed) -> Cost | None:
    """What one model takes, all in the caches; None: it was not timed."""
    if not times.warm:
        return None
    spread, width = _spread(timed)
    ns = _middle(times.warm)
    half = _half(width, ns * spread * math.sqrt(math.pi / 2 / len(times.warm)))
    return Cost(ns=ns, low=ns - half, high=ns + half)


def _half(width: float, error: float) -> float:
    return width * error if math.isfinite(width) else math.inf


def warm_ns(times: Times | None) -> float | None:
    """What an excerpt took, all in the caches; None: it was not timed."""
    return _middle(times.warm) if times is not None and times.warm else None


def _middle(passes: Sequence[float]) -> float:
    """The median over passes: one that other work disturbed, or loaded badly, does not count."""
    return float(np.median(passes))


def _spread(timed: Timed) -> tuple[float, float]:
    """The spread of an excerpt's time between passes, as a share, and half of an interval by it.

    It is pooled over all excerpts: the median of what their passes are off their own median by,
    which is 0.6745 of a normal distribution's standard deviation.
    """
    off: list[float] = []
    freedom = 0
    for times in (timed.whole, *timed.times.values()):
        count = len(times.warm)
        if count > 1:
            shares = np.sort(np.abs(np.asarray(times.warm) / _middle(times.warm) - 1))
            # of an odd number one is the median itself, and off by nothing
            off += list(shares[count % 2 :] * math.sqrt(count / (count - 1)))
            freedom += count - 1
    if not freedom:
        return 0.0, math.inf
    return float(np.median(off)) / 0.6745, float(student.ppf((1 + _COVERED) / 2, freedom))


def _base(cut: Cut, timed: Timed, call: str, spread: float) -> _Base | None:
    """What the times of a kernel's models say, pass by pass; None: one of them has none."""
    before = timed.times.get(cut.feeding.key if cut.feeding is not None else call)
    behind, both = timed.times.get(cut.behind.key), timed.times.get(cut.both.key)
    if before is None or behind is None or both is None:
        return None
    if not (before.warm and behind.warm and both.warm):
        return None
    warm = _middle(behind.warm) - _middle(before.warm)
    errors = {
        # a median's variance is half as much again as a mean's
        name: math.pi / 2 * (_middle(times.warm) * spread) ** 2 / len(times.warm)
        for name, times in (("before", before), ("behind", behind), ("both", both))
    }
    more = None
    if behind.behind and before.behind:
        more = _middle(behind.behind) - _middle(before.behind) - warm
    return _Base(
        ns=warm,
        variance=errors["before"] + errors["both"],
        conversions_ns=_middle(both.warm) - _middle(behind.warm),
        conversions_variance=errors["both"] + errors["behind"] if cut.shares else 0.0,
        behind_ns=more,
    )


def _conversions(cuts: Sequence[Cut], bases: Mapping[str, _Base]) -> dict[str, tuple[float, float]]:
    """Tensor -> what it costs to give it as an output, as those that read it tell; the variance."""
    told: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for cut in cuts:
        if (base := bases.get(cut.key)) is not None:
            for tensor, share in cut.shares.items():
                told[tensor].append(
                    (share * base.conversions_ns, share**2 * base.conversions_variance)
                )
    return {
        tensor: (
            float(np.median([ns for ns, _ in found])),
            sum(variance for _, variance in found) / len(found) ** 2,
        )
        for tensor, found in told.items()
    }


def _weight_rate(cuts: Sequence[Cut], bases: Mapping[str, _Base]) -> float:
    """What a byte of weights costs that the caches do not hold, in ns."""
    known = {
        (cut.weights, cut.written): bases[cut.key].behind_ns
        for cut in cuts
        if cut.key in bases and bases[cut.key].behind_ns is not None
    }
    if not known:
        return 0.0
    rates, _ = nnls(np.asarray(list(known), np.float64), np.asarray(list(known.values())))
    return float(rates[0])
