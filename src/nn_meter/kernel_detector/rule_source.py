"""Rules to split by, from whatever holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nn_meter.builder.workspace import read_json
from nn_meter.errors import ResultFileError
from nn_meter.fusion_rules.read import RULE_FILE, read_rules
from nn_meter.fusion_rules.rules import RuleSet

__all__ = ["FIRST_READER", "RuleSource", "load_rules"]

RuleSource = RuleSet | Mapping[str, Any] | str | Path

FIRST_READER = "first"
"""What MON says, as a number above 0, in a file of the original: the first reader that fits."""

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
        return _of_dict(source, _GIVEN)
    path = Path(source)
    try:
        is_file = bool(str(source)) and path.is_file()
    except OSError:
        is_file = False
    if is_file:
        data = read_json(path, "fusion rules")
        if isinstance(data, Mapping) and any(map(_is_number, data.values())):
            return _of_dict(data, str(source))
    return read_rules(source)


def _of_dict(data: Mapping[str, Any], name: str) -> RuleSet:
    """Rules are read in one place only: what a dict holds is read as if it stood in a file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / RULE_FILE
        try:
            path.write_text(json.dumps({rule: _in_words(entry) for rule, entry in data.items()}))
            return replace(read_rules(path), name=name)
        except (TypeError, ValueError) as exc:
            raise ResultFileError(f"{name}: hold what is not of JSON: {exc}") from exc
        except ResultFileError as exc:
            raise ResultFileError(str(exc).replace(str(path), name)) from exc


def _is_number(entry: Any) -> bool:
    return isinstance(entry, Mapping) and type(entry.get("obey")) is int


def _in_words(entry: Any) -> Any:
    if not _is_number(entry):
        return entry
    return {**entry, "obey": FIRST_READER if entry["obey"] > 0 else False}
