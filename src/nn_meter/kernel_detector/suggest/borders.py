"""Rules that hold of some sizes only: what a rule says in a model's own sizes, and up to where."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nn_meter.fusion_rules.read import parse_rules
from nn_meter.fusion_rules.rules import ALONE, Bound, Finding
from nn_meter.kernel_detector.rule_source import load_rules
from nn_meter.kernel_detector.sizes import CHANNELS, SPATIAL, sizes_of
from nn_meter.kernel_detector.suggest.asking import Asks, begins_with_image
from nn_meter.kernel_detector.suggest.cut import Cut, Known, WrongEdge, cut

__all__ = ["Border", "find_border"]

Rules = Mapping[str, Any]

_KEYS = {
    CHANNELS: "CIN",
    "out_channels": "COUT",
    "kernel_size": "KERNEL_SIZE",
    "strides": "STRIDES",
    SPATIAL: "HW",
}
_ONE_D = "SHAPE_1D"
_MOST_STEPS = 8

IsLike = Callable[[int], bool | None]


@dataclass(frozen=True, kw_only=True)
class Border:
    """A rule with what it says in other sizes.

    Attributes:
        rule: The rule, as a rule file has it.
        size: Name of the size that it depends on.
        bound: Where it says something else.
        verdicts: Size -> what came out there.
        situation: The situation that they were read in.
    """

    rule: dict[str, Any]
    size: str
    bound: Bound
    verdicts: Mapping[int, str]
    situation: str


def find_border(
    name: str, speaks: int, edge: WrongEdge, *, known: Known, rules: Rules, asker: Asks
) -> Border | None:
    """Ask a rule in the sizes of a place where it was wrong, and find how far that goes.

    Args:
        name: The rule, which may be of a chain around the edge.
        speaks: Place of the node whose sizes count.
        edge: The edge.
        known: The model.
        rules: The rules, this one among them.
        asker: Asks.

    Returns:
        None: in the model's own sizes it says the same, or what comes out goes by several sizes at
        once.
    """
    now = cut(known, load_rules(rules))
    search = _Search(name, rules, asker, known, now)
    for sizes in search.tries(speaks):
        situation = search.helps(sizes, edge)
        if situation is None:
            continue
        for size, value in sizes.items():
            found = search.border(size, value, sizes, situation)
            if found is not None:
                return found
        return None
    return None


class _Search:
    """Asks one rule in several sizes."""

    def __init__(self, name: str, rules: Rules, asker: Asks, known: Known, now: Cut) -> None:
        self._name = name
        self._rules = rules
        self._asker = asker
        self._known = known
        self._now = now
        self._answers: dict[tuple[tuple[str, int], ...], dict[str, Any] | None] = {}
        config = asker.sizes
        self._is_image = begins_with_image(name, config)
        self._keys = _KEYS if self._is_image else {**_KEYS, CHANNELS: _ONE_D}
        self._defaults = {size: int(config[key]) for size, key in self._keys.items()}

    def tries(self, speaks: int) -> Iterator[dict[str, int]]:
        """The sizes of a place as far as they are others than those asked before.

        Height and width are asked apart: where they are small, there is no room for what stands
        around a block in a model.
        """
        here = sizes_of(self._now.model, speaks)
        sizes = {
            size: values[0]
            for size, values in here.items()
            if size != CHANNELS and len(values) == 1 and values[0] != self._defaults[size]
        }
        spatial = sizes.pop(SPATIAL, None)
        for channels in sorted(set(here[CHANNELS])):
            own = {CHANNELS: channels} if channels != self._defaults[CHANNELS] else {}
            if own or sizes:
                yield {**own, **sizes}
        if spatial is not None:
            yield {SPATIAL: spatial}

    def helps(self, sizes: Mapping[str, int], edge: WrongEdge) -> str | None:
        """The situation in which an answer in these sizes is right where the rule was wrong."""
        answer = self._ask(sizes)
        if answer is None:
            return None
        where = {size: Bound(least=value, most=value) for size, value in sizes.items()}
        found = cut(self._known, load_rules(self._with(answer, where, {})))
        if found.wrong >= self._now.wrong:
            return None
        names = tuple(self._now.model.nodes[place].name for place in edge.nodes)
        decision = found.decisions.get((names[0], names[1]))
        if decision is None or decision.rule != self._name:
            return None
        is_chain = self._name.count("_") > 2
        if is_chain and self._is_image and decision.situation.startswith(ALONE):
            return None  # what becomes of an image's layout goes by what is around it
        return decision.situation

    def border(
        self, size: str, value: int, sizes: Mapping[str, int], situation: str
    ) -> Border | None:
        """The border if this size alone makes the difference; else None."""
        there, usual = self._said({size: value}, situation), self._said({}, situation)
        if there is None or there == usual or there != self._said(sizes, situation):
            return None
        said = {value: there, self._defaults[size]: usual}

        def is_like_there(other: int) -> bool | None:
            if other not in said:
                said[other] = self._said({size: other}, situation)
            return None if said[other] not in (there, usual) else said[other] == there

        bound = _bound(value, self._defaults[size], is_like_there)
        answer = self._ask({size: value})
        if bound is None or answer is None:
            return None
        verdicts = {at: words for at, words in sorted(said.items()) if words is not None}
        rule = self._with(answer, {size: bound}, verdicts)[self._name]
        return Border(rule=rule, size=size, bound=bound, verdicts=verdicts, situation=situation)

    def _ask(self, sizes: Mapping[str, int]) -> dict[str, Any] | None:
        """The rule in other sizes; None: it cannot be built, or not be told."""
        key = tuple(sorted(sizes.items()))
        if not key:
            return dict(self._rules[self._name])
        if key not in self._answers:
            keys = {self._keys[size]: value for size, value in sizes.items()}
            found = self._asker.ask([self._name], keys).rules.get(self._name)
            self._answers[key] = found
        return self._answers[key]

    def _said(self, sizes: Mapping[str, int], situation: str) -> str | None:
        """What comes out in a situation, in words; None: it cannot be told."""
        answer = self._ask(sizes)
        if answer is None:
            return None
        finding = (
            parse_rules({self._name: answer}, "rules").rules[self._name].findings.get(situation)
        )
        return None if finding is None or finding.is_open else _words(finding)

    def _with(
        self, answer: Rules, where: Mapping[str, Bound], verdicts: Mapping[int, str]
    ) -> dict[str, Any]:
        """All rules, this one with what holds in other sizes."""
        rule = self._rules[self._name]
        sized: dict[str, Any] = {
            key: value for key, value in answer.items() if key not in ("environment", "sizes")
        }
        sized["where"] = {size: bound.to_json() for size, bound in where.items()}
        if verdicts:
            sized["asked"] = {str(size): words for size, words in verdicts.items()}
        return {**self._rules, self._name: {**rule, "sizes": [sized, *rule.get("sizes", [])]}}


def _words(finding: Finding) -> str:
    return finding.groups or finding.verdict


def _bound(value: int, usual: int, is_like_there: IsLike) -> Bound | None:
    """Which sizes are like one that differs from the usual one.

    Halving the distance finds the border between the two. Where the usual side of it, or a half, a
    quarter, … of that, is usual as twice itself is, and the half more of itself differs, it goes by
    multiples.

    Args:
        value: The size that differs.
        usual: The size that does not.
        is_like_there: Tells of a size whether it is like ``value``; None: neither.

    Returns:
        None: there is no border to be found.
    """
    differs, same = value, usual
    for _ in range(_MOST_STEPS):
        if abs(differs - same) <= 1:
            break
        middle = _between(differs, same)
        like = is_like_there(middle)
        if like is None:
            break
        differs, same = (middle, same) if like else (differs, middle)
    multiple = _multiple(value, same, is_like_there)
    if multiple is not None:
        return Bound(no_multiple_of=multiple)
    if value < usual:
        return Bound(most=differs)
    return Bound(least=differs)


def _between(a: int, b: int) -> int:
    """Halfway, in proportion; between two neighbours but one the one between."""
    low, high = sorted((a, b))
    return min(max(round(math.sqrt(low * high)), low + 1), high - 1)


def _multiple(value: int, same: int, is_like_there: IsLike) -> int | None:
    """The number whose multiples alone are as usual; None: there is none."""
    multiple = same
    while multiple > 1:
        probes = ((multiple + multiple // 2, True), (2 * multiple, False), (multiple, False))
        if value % multiple and all(is_like_there(size) is like for size, like in probes):
            return multiple
        if multiple % 2:
            break
        multiple //= 2
    return None
