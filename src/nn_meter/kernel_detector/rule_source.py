"""Rules to split by, from whatever holds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nn_meter.fusion_rules.read import parse_rules, read_rules
from nn_meter.fusion_rules.rules import RuleSet

__all__ = ["RuleSource", "load_rules"]

RuleSource = RuleSet | Mapping[str, Any] | str | Path

_GIVEN = "rules"


def load_rules(source: RuleSource) -> RuleSet:
    """Rules as a rule set.

    Args:
        source: A rule set; what ``detected_fusion_rule.json`` holds, as a dict; or what
            ``read_rules`` takes.

    Raises:
        ResultFileError: It holds no rules; says why.
    """
    if isinstance(source, RuleSet):
        return source
    if isinstance(source, Mapping):
        return parse_rules(source, _GIVEN)
    return read_rules(source)
