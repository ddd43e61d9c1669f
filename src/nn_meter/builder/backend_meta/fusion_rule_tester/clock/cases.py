"""Test cases of cases by the clock: which case's models add up to the block.

The models are the guide's own, in the size asked for. What a call costs is in each of them, so a
case of n models has it n - 1 times too often; a model that computes next to nothing tells how much
that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nn_meter.builder.backend_meta.fusion_rule_tester.clock.decision import Opinion
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.statistics import (
    Contrast,
    Spread,
    Times,
)

__all__ = ["BLOCK", "CALL", "decide_case"]

BLOCK = "block"
CALL = "(call)"
"""Part of the model that costs no more than its call: no model of a test case has that name."""

_BORDERS = 0.2
"""Of the block: what the borders of models may make of a difference between two cases.

Each model takes its inputs and gives its outputs in the runtime's layout at its own cost, which
stands in the sums as often as a case has models, and which no model of next to nothing tells. The
wrong case fitted better by up to 16 % (MON on OpenVINO, MIN on ONNX Runtime).
"""


def decide_case(
    models_of: Mapping[str, Sequence[str]],
    loads: Sequence[Times],
    spread: Spread,
    *,
    error_rate: float,
) -> Opinion:
    """Find the case whose sum fits the block best.

    Args:
        models_of: Case -> its models.
        loads: Times of the models, of the block and of a call.
        spread: What is known of the spread between loads.
        error_rate: With which the answer may be wrong at this look.

    Returns:
        An opinion whose verdict is the name of a case, or ``undecided``. Its saving is by how much
        the best case fits better than the next, as a share of the block.
    """
    found: dict[str, tuple[dict[str, float], float]] = {}
    for case, models in models_of.items():
        signs = {BLOCK: -1.0, CALL: 1.0 - len(models)}
        for model in models:
            signs[model] = signs.get(model, 0.0) + 1.0
        rest = Contrast.of(loads, signs, spread)
        if rest is not None:
            found[case] = signs, rest.value
    block = Contrast.of(loads, {BLOCK: 1, CALL: -1}, spread)
    if len(found) < len(models_of) or block is None or block.value <= 0:
        return Opinion(verdict="undecided", reason="too few of the runs were at full speed")
    order = sorted(found, key=lambda case: abs(found[case][1]))
    if len(order) == 1:
        return Opinion(verdict=order[0], settled=True)
    best, next_ = order[0], order[1]
    apart: dict[str, float] = {}
    for case, factor in ((next_, 1.0), (best, -1.0)):
        sign = factor if found[case][1] >= 0 else -factor
        for part, weight in found[case][0].items():
            apart[part] = apart.get(part, 0.0) + sign * weight
    apart = {part: weight for part, weight in apart.items() if weight}
    ahead = Contrast.of(loads, apart, spread) if apart else None
    if ahead is None:
        return Opinion(
            verdict="undecided", reason=f"{best} and {next_} have the same models", settled=True
        )
    low, high = ahead.bounds(error_rate)
    shares = Opinion(
        verdict="undecided",
        saving=ahead.value / block.value,
        low=low / block.value,
        high=high / block.value,
    )
    if low > _BORDERS * block.value:
        return Opinion(
            verdict=best, saving=shares.saving, low=shares.low, high=shares.high, settled=True
        )
    return Opinion(
        verdict="undecided",
        saving=shares.saving,
        low=shares.low,
        high=shares.high,
        reason=f"{best} and {next_} fit alike"
        if low <= 0
        else f"{best} fits better than {next_}, but by no more than borders of models can make",
        settled=high < _BORDERS * block.value,
    )
