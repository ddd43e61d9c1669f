"""Rules to split by, from whatever holds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nn_meter.fusion_rules.read import FIRST_READER, parse_rules, read_data
from nn_meter.fusion_rules.rules import RuleSet

__all__ = ["FIRST_READER", "RuleSource", "load_rules"]

RuleSource = RuleSet | Mapping[str, Any] | str | Path

_GIVEN = "rules"


def load_rules(source: RuleSource) -> RuleSet:
    """Rules as a rule set.

    Args:
        source: A rule set; what ``detected_fusion_rule.json`` holds, as a dict; or what
            ``read_rules`` takes. In a file of the original nn-Meter MON may be a number.

    Raises:
        ResultFileError: It holds no rules; says why.
    """
    if isinstance(source, RuleSet):
        return source
    if isinstance(source, Mapping):
        return parse_rules(_in_words(source), _GIVEN)
    data, where = read_data(source)
    return parse_rules(_in_words(data), str(source), where=where)


def _in_words(data: Mapping[str, Any]) -> dict[str, Any]:
    """Rules that say yes or no, or name a case, where the original may have a number."""
    return {
        rule: {**entry, "obey": _in_word(rule, entry["obey"])} if _is_number(entry) else entry
        for rule, entry in data.items()
    }


def _in_word(rule: str, number: int) -> bool | str:
    if str(rule).startswith("BF_"):
        return number == 1
    return FIRST_READER if number > 0 else False


def _is_number(entry: Any) -> bool:
    return isinstance(entry, Mapping) and type(entry.get("obey")) is int
