"""What two sets of rules decide differently."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nn_meter.fusion_rules.rules import Environment, Finding, Rule, RuleSet

__all__ = ["Comparison", "Difference", "compare"]

Kind = Literal["contradiction", "open"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A question that two sets of rules answer differently.

    Attributes:
        rule: Name of the rule.
        situation: Where it holds.
        a: What the first set says.
        b: What the second says.
        kind: ``contradiction``; or ``open``: one of the two has no answer.
    """

    rule: str
    situation: str
    a: Finding
    b: Finding
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sets of rules side by side. A question is a rule in one situation.

    Attributes:
        a: The first set.
        b: The second.
        differences: Questions answered differently, in the order of the first set.
        equal: How many questions both answer alike.
        both_open: How many neither answers.
        only_a: Rule -> situations that only the first set has; all, if the second has no
            such rule.
        only_b: The same of the second.
        environment: What differs where they were found: key -> value of the first and the second;
            None: not told.
    """

    a: RuleSet
    b: RuleSet
    differences: tuple[Difference, ...]
    equal: int
    both_open: int
    only_a: Mapping[str, tuple[str, ...]]
    only_b: Mapping[str, tuple[str, ...]]
    environment: Mapping[str, tuple[str | None, str | None]]

    def of_kind(self, kind: Kind) -> tuple[Difference, ...]:
        """The differences of one kind."""
        return tuple(found for found in self.differences if found.kind == kind)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "a": _head(self.a),
            "b": _head(self.b),
            "environment": {key: list(values) for key, values in self.environment.items()},
            "differences": [_entry(found) for found in self.of_kind("contradiction")],
            "open": [_entry(found) for found in self.of_kind("open")],
            "only_a": {rule: list(found) for rule, found in self.only_a.items()},
            "only_b": {rule: list(found) for rule, found in self.only_b.items()},
            "counts": {
                "differences": len(self.of_kind("contradiction")),
                "open": len(self.of_kind("open")),
                "equal": self.equal,
                "both_open": self.both_open,
                "only_a": sum(map(len, self.only_a.values())),
                "only_b": sum(map(len, self.only_b.values())),
            },
        }


def _head(rules: RuleSet) -> dict[str, Any]:
    return {
        "name": rules.name,
        "rules": len(rules.rules),
        "environments": [dict(environment) for environment in rules.environments],
    }


def _entry(found: Difference) -> dict[str, Any]:
    return {
        "rule": found.rule,
        "situation": found.situation,
        "a": found.a.to_json(),
        "b": found.b.to_json(),
    }


def compare(a: RuleSet, b: RuleSet) -> Comparison:
    """Compare two sets of rules, question by question."""
    differences: list[Difference] = []
    equal = both_open = 0
    for rule, situation in _shared(a, b):
        of_a, of_b = a.rules[rule].questions[situation], b.rules[rule].questions[situation]
        if of_a.is_open and of_b.is_open:
            both_open += 1
        elif kind := _differ(of_a, of_b):
            differences.append(
                Difference(rule=rule, situation=situation, a=of_a, b=of_b, kind=kind)
            )
        else:
            equal += 1
    return Comparison(
        a=a,
        b=b,
        differences=tuple(differences),
        equal=equal,
        both_open=both_open,
        only_a=_only(a, b),
        only_b=_only(b, a),
        environment=_environments(a, b),
    )


def _shared(a: RuleSet, b: RuleSet) -> Iterator[tuple[str, str]]:
    for name, rule in a.rules.items():
        other = b.rules.get(name)
        if other is not None:
            theirs = other.questions
            yield from ((name, situation) for situation in rule.questions if situation in theirs)


def _only(this: RuleSet, other: RuleSet) -> dict[str, tuple[str, ...]]:
    found = {
        name: tuple(s for s in rule.questions if s not in _findings(other.rules.get(name)))
        for name, rule in this.rules.items()
    }
    return {name: situations for name, situations in found.items() if situations}


def _findings(rule: Rule | None) -> Mapping[str, Finding]:
    return rule.questions if rule is not None else {}


def _differ(a: Finding, b: Finding) -> Kind | None:
    """How two findings differ; None: not at all."""
    pairs: list[tuple[Any, Any]] = [(a, b)]
    if [edge.ops for edge in a.edges] == [edge.ops for edge in b.edges]:
        pairs += zip(a.edges, b.edges, strict=True)
    unlike = [(x, y) for x, y in pairs if x.verdict != y.verdict]
    if not unlike:
        return None
    decided = any(not x.is_open and not y.is_open for x, y in unlike)
    return "contradiction" if decided else "open"


# --- environments --------------------------------------------------------------------------------


def _environments(a: RuleSet, b: RuleSet) -> dict[str, tuple[str | None, str | None]]:
    of_a, of_b = _values(a), _values(b)
    return {
        key: (of_a.get(key), of_b.get(key))
        for key in dict.fromkeys([*of_a, *of_b])
        if not _alike(key, of_a.get(key), of_b.get(key))
    }


def _alike(key: str, a: str | None, b: str | None) -> bool:
    if a is not None and b is not None and key == "host":
        return a.endswith(b) or b.endswith(a)  # rules that ship do not name the processor
    return a == b


def _values(rules: RuleSet) -> dict[str, str]:
    """Each key of a set's environments: its value; of several environments all values."""
    found: dict[str, dict[str, None]] = {}
    for environment in rules.environments:
        for key, value in _flat(environment):
            found.setdefault(key, {})[value] = None
    return {key: ", ".join(values) for key, values in found.items()}


def _flat(environment: Environment) -> Iterator[tuple[str, str]]:
    """Keys and values; those of ``options`` and of its ``models`` by their own names."""
    for key, value in environment.items():
        if key in ("options", "models") and isinstance(value, dict):
            yield from _flat(value)
        else:
            yield key, value if isinstance(value, str) else json.dumps(value, sort_keys=True)
