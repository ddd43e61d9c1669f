"""What the times of a question's models say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from nn_meter.builder.backend_meta.fusion_rule_tester.clock.design import (
    BARRIERS,
    BLOCK,
    HEAD,
    REFERENCE,
    Design,
    between,
    without_head,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.statistics import (
    Contrast,
    Spread,
    Times,
)

__all__ = ["Opinion", "decide", "layouts_of"]

_FREE_LIKE = 0.4  # of what it costs elsewhere: behind this barrier the tail seems to be fused
_HOME = 1.25  # times as dear behind a plain op: a pool is at home in a layout of the library's own
_SLOWER = 4.0  # of the scale, dearer together than apart: then something else runs
_OF_ALPHA = 0.6  # of EPS_ALPHA: in the middle between what unfused and fused pairs save
_LITTLE = 0.15  # what "separate" surely saves less than, while there is time to find out
_SOME = 0.03  # a saving that is surely more than this is one, if a small one
_PRECISE = 2.0  # times the least error among the controls
_EMPTY = 0.15  # of a relu's pass: an op that costs less executes nothing
_LEAST = 0.75  # of it: what the cheaper side is taken to cost at the least
_SAME_PLACE = 1.5  # times apart: the head's layout matters to the tail

_COMPARABLE = {
    "none": {"keeps", "own", "plain"},
    "own": {"keeps", "own"},
    "plain": {"keeps", "plain"},
    "unclear": {"keeps"},
}
"""By the layout of the head's result, those of the barriers that a tail costs as much behind."""


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What the clock says about an edge.

    Attributes:
        verdict: ``fused``, ``separate``, ``free``, ``undecided``, or the name of a case.
        saving: What the block saves, as a share of what the cheaper side costs; None: not known.
        low, high: The interval of ``saving``.
        reason: Why it is undecided, or what is free.
        free: Which sides execute nothing: "head", "tail".
        control: The barrier of the control that it was held against.
        near: The barriers that further loads should have controls of.
        settled: More loads would not change it.
        unsure: It is undecided since its interval holds the threshold.
        more: Ask for the models without the head, too: they may explain the saving.
    """

    verdict: str
    saving: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    free: tuple[str, ...] = ()
    control: str = ""
    near: tuple[str, ...] = ()
    settled: bool = False
    unsure: bool = False
    more: bool = False


def layouts_of(
    design: Design, loads: Sequence[Times], reference: Sequence[Times], spread: Spread
) -> Literal["none", "own", "plain", "unclear"]:
    """In which layout the head leaves its result, from what a pool costs behind it.

    Returns:
        ``none``: the runtime has one layout, or pools do not mind; ``own``: that of the library;
        ``plain``: that of the model; ``unclear``: in between.
    """
    own = next((n for n, b in BARRIERS.items() if b.layout == "own"), "")
    plain = next((n for n, b in BARRIERS.items() if b.layout == "keeps"), "")
    home = Contrast.of(reference, {without_head(own, own): 1, without_head(own): -1}, spread)
    away = Contrast.of(reference, {without_head(plain, own): 1, without_head(plain): -1}, spread)
    here = Contrast.of(loads, {between(own): 1, HEAD: -1}, spread)
    if home is None or away is None or here is None:
        return "none"
    step = away.plus(home, -1)
    if away.value < _HOME * home.value or step.value < 3 * step.error:
        return "none"
    place = (here.value - home.value) / step.value
    if place < 0.4:
        return "own"
    return "plain" if place > 0.6 else "unclear"


def decide(
    design: Design,
    loads: Sequence[Times],
    reference: Sequence[Times],
    spread: Spread,
    *,
    alpha: float,
    error_rate: float,
    among: Sequence[str] = (),
) -> Opinion:
    """Decide an edge.

    Args:
        design: Its models.
        loads: Their times, load by load.
        reference: The times of the reference models for the tensor at the edge.
        spread: What is known of the spread between loads.
        alpha: Share of the cheaper side that has to be saved: EPS_ALPHA.
        error_rate: With which a verdict may be wrong at this look.
        among: The barriers to choose from; empty: all.
    """
    if not loads:
        return Opinion(verdict="undecided", reason="nothing was measured")
    layout = layouts_of(design, loads, reference, spread)
    tails = {
        name: contrast
        for name in design.barriers
        if (contrast := _tail(loads, name, spread)) is not None
    }
    usable = {
        name: tail
        for name, tail in tails.items()
        if BARRIERS[name].layout in _COMPARABLE[layout] and (not among or name in among)
    }
    if design.elementwise:
        usable = _paid(usable, tails)
    usable = _precise(usable)
    if not usable:
        return Opinion(verdict="undecided", reason="no control could be measured", unsure=True)
    control = _second(usable) if design.elementwise else _held_against(usable)
    added = Contrast.of(loads, {BLOCK: 1, HEAD: -1}, spread)
    saved = Contrast.of(
        loads, {HEAD: 1, between(control, tail=True): 1, BLOCK: -1, between(control): -1}, spread
    )
    if added is None or saved is None:
        return Opinion(
            verdict="undecided", reason="too few of the runs were at full speed", unsure=True
        )
    compared = layout in ("none", "plain")
    apart = _apart(design, loads, usable, spread) if compared else None
    if apart is not None and apart.value < usable[control].value:
        saved = apart.plus(added, -1)
    costs = _costs(design, loads, reference, tails if layout == "own" else usable, spread)
    if costs is None:
        return Opinion(
            verdict="undecided",
            reason="what the ops cost by themselves is not known",
            unsure=True,
        )
    if idle := _idle(costs, error_rate):
        return Opinion(
            verdict="free",
            free=tuple(idle),
            reason=f"the {' and the '.join(idle)} costs nothing that can be measured",
            control=control,
            settled=True,
        )
    opinion = _weigh(saved, _scale(design, costs), _OF_ALPHA * alpha, error_rate)
    near = {control, *sorted(usable, key=lambda name: usable[name].value)[-2:]}
    return replace(
        opinion,
        control=control,
        near=tuple(name for name in BARRIERS if name in near),
        more=compared and opinion.verdict != "separate" and not _is_apart(design, loads),
    )


def _tail(loads: Sequence[Times], barrier: str, spread: Spread) -> Contrast | None:
    """What the tail costs behind the head and a barrier."""
    return Contrast.of(loads, {between(barrier, tail=True): 1, between(barrier): -1}, spread)


def _paid(usable: Mapping[str, Contrast], tails: Mapping[str, Contrast]) -> dict[str, Contrast]:
    """Leave out the barriers behind which an elementwise tail seems to be fused itself.

    An elementwise op costs a pass behind whatever; if it costs next to nothing behind a barrier, it
    fuses with that.
    """
    costs = sorted(tail.value for tail in tails.values())
    usual = float(np.mean(costs[-2:])) if costs else 0.0
    return {name: tail for name, tail in usable.items() if tail.value > _FREE_LIKE * usual}


def _precise(tails: Mapping[str, Contrast]) -> dict[str, Contrast]:
    """Leave out the barriers that cost so much themselves that the noise on them hides the tail."""
    least = min((tail.error for tail in tails.values()), default=0.0)
    return {name: tail for name, tail in tails.items() if tail.error <= _PRECISE * least}


def _held_against(tails: Mapping[str, Contrast]) -> str:
    """The barrier whose control a block is held against whose tail is not elementwise.

    Two have to agree that the tail costs so much, and one that leaves the head's layout as it is
    has to be one of them: else a tail that is dearer in another layout would look like a saving.
    (What layout an elementwise tail works on matters little, but it may fuse with such a barrier.)
    """
    second = _second(tails)
    keeps = [name for name in tails if BARRIERS[name].layout == "keeps"]
    return min([second, *keeps], key=lambda name: tails[name].value)


def _second(tails: Mapping[str, Contrast]) -> str:
    """The barrier with the second dearest tail: two have to agree that it costs so much."""
    names = sorted(tails, key=lambda name: tails[name].value)
    return names[-2] if len(names) > 1 else names[-1]


def _apart(
    design: Design,
    loads: Sequence[Times],
    usable: Mapping[str, Contrast],
    spread: Spread,
) -> Contrast | None:
    """What the tail costs behind a barrier in the head's place, the second dearest of them.

    None if it was not measured, or if the head's layout matters to the tail, so that this would
    compare unlike things.
    """
    found = {}
    for name in usable:
        contrast = Contrast.of(
            loads, {without_head(name, design.tail): 1, without_head(name): -1}, spread
        )
        if contrast is not None:
            found[name] = contrast
    if not found:
        return None
    here = _second({name: usable[name] for name in found})
    there = _second(found)
    one, other = usable[here].value, found[there].value
    if min(one, other) <= 0 or max(one, other) > _SAME_PLACE * min(one, other):
        return None
    return found[there]


def _is_apart(design: Design, loads: Sequence[Times]) -> bool:
    """Whether the tail was measured behind a barrier in the head's place."""
    parts = {without_head(name, design.tail) for name in design.barriers}
    return any(not parts.isdisjoint(load) for load in loads)


@dataclass(frozen=True, kw_only=True)
class _Costs:
    """What the sides of an edge cost by themselves, and a relu there; µs."""

    head: Contrast
    tail: Contrast
    relu: Contrast


def _costs(
    design: Design,
    loads: Sequence[Times],
    reference: Sequence[Times],
    tails: Mapping[str, Contrast],
    spread: Spread,
) -> _Costs | None:
    heads = []
    for name in design.barriers:
        front = Contrast.of(loads, {between(name): 1}, spread)
        alone = Contrast.of(reference, {without_head(name): 1}, spread)
        if front is not None and alone is not None:
            heads.append(front.plus(alone, -1))
    relu = _reference_pass(design, reference, spread)
    if not heads or not tails or relu is None:
        return None
    return _Costs(
        head=sorted(heads, key=lambda cost: cost.value)[len(heads) // 2],
        tail=min(tails.values(), key=lambda cost: cost.value),
        relu=relu,
    )


def _idle(costs: _Costs, error_rate: float) -> list[str]:
    """The sides that cost nothing: so little that a relu's pass is far more."""
    least = _EMPTY * costs.relu.value
    found = []
    for side, cost in (("head", costs.head), ("tail", costs.tail)):
        low, high = cost.bounds(error_rate)
        if -least < low and high < least:
            found.append(side)
    return found


def _scale(design: Design, costs: _Costs) -> Contrast:
    """What the cheaper side costs, and no less than most of a relu's pass.

    Fusing an elementwise op saves a pass over the tensor, and not its arithmetic. What seems to
    cost less than a pass is not well measured by that: a smaller tensor to hand out, say.
    """
    tail = costs.relu if design.elementwise else costs.tail
    scale = min(costs.head, tail, key=lambda cost: cost.value)
    if scale.value >= _LEAST * costs.relu.value:
        return scale
    return replace(
        costs.relu,
        value=_LEAST * costs.relu.value,
        variance=_LEAST**2 * costs.relu.variance,
    )


def _reference_pass(design: Design, reference: Sequence[Times], spread: Spread) -> Contrast | None:
    """What a relu's pass over the tensor costs."""
    found = {}
    for name in design.barriers:
        contrast = Contrast.of(
            reference, {without_head(name, REFERENCE): 1, without_head(name): -1}, spread
        )
        if contrast is not None:
            found[name] = contrast
    return found[_second(_precise(_paid(found, found) or found))] if found else None


def _weigh(saved: Contrast, scale: Contrast, alpha: float, error_rate: float) -> Opinion:
    low, high = saved.bounds(error_rate)
    floor = max(scale.value, 1e-9)
    share = saved.value / floor
    around = saved.plus(scale, -share).bounds(error_rate)  # the scale has an error, too
    known = Opinion(
        verdict="undecided",
        saving=share,
        low=share + around[0] / floor,
        high=share + around[1] / floor,
    )
    left = saved.plus(scale, -alpha)
    below, above = left.bounds(error_rate)
    if saved.value < -_SLOWER * floor and high < 0:
        return replace(
            known,
            reason="the two cost more together than apart, so something else than either runs",
            settled=high < -_SLOWER * floor and scale.value > 2 * scale.error,
        )
    if above < 0 and low > _SOME * floor:
        return replace(known, reason="it saves something, but less than EPS_ALPHA asks for")
    if above < 0:
        return replace(known, verdict="separate", settled=high < _LITTLE * floor)
    if scale.value < 2 * scale.error:
        return replace(known, reason="what the cheaper op costs is lost in the noise", unsure=True)
    if below > 0:
        return replace(known, verdict="fused", settled=True)
    return replace(known, reason="the interval of what is saved holds EPS_ALPHA", unsure=True)
