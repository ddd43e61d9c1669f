"""Writing rule files that others can use: nothing of the machine in them that says nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nn_meter.builder.workspace import atomic_write
from nn_meter.errors import ResultFileError
from nn_meter.fusion_rules.rules import ALONE, Environment

__all__ = ["file_name", "portable", "write_rules"]

_FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[\\/][^\s\\/:'\"()\[\],]+)+(?=[\\/])[\\/]")
_LEFT_OUT = ("latency", "others", "when", "environment")


def file_name(environment: Environment) -> str:
    """The name of a runtime's rule file: ``<runtime>-<major.minor>.json``.

    Some projects put a date where others count releases; it belongs to the name then.

    Raises:
        ResultFileError: The environment does not tell runtime and version.
    """
    runtime, version = environment.get("runtime"), environment.get("version")
    found = re.match(r"\d+(?:\.\d+)?(?:\.20\d{6})?", str(version))
    if not runtime or not found:
        raise ResultFileError(
            f"a rule file is named after runtime and version, but these are {runtime!r} and "
            f"{version!r}"
        )
    return f"{re.sub(r'[^a-z0-9_]+', '_', str(runtime).lower())}-{found[0]}.json"


def portable(rule: Mapping[str, Any]) -> dict[str, Any]:
    """A rule without latencies, paths and the name of the processor.

    The machine's type stays (``x86_64, Linux``): what a runtime fuses depends on it. The situation
    ``alone`` is what the rule itself says, and is not said twice.
    """
    found = _finding(rule)
    situations = {
        situation: _without(_finding(inner), "evidence", found.get("evidence"))
        for situation, inner in rule.get("when", {}).items()
        if situation != ALONE
    }
    environment = rule.get("environment")
    if isinstance(environment, Mapping):
        environment = _any_machine(environment)
    return {**found, "when": situations, "environment": environment}


def _any_machine(environment: Environment) -> dict[str, Any]:
    """An environment without the processor's name, in ``host`` or as a runtime's option."""
    *processor, machine, system = ["", "", *str(environment.get("host", "")).split(", ")]
    name = ", ".join(part for part in processor if part)
    options = {key: value for key, value in environment.get("options", {}).items() if value != name}
    host = ", ".join(part for part in (machine, system) if part)
    return {**environment, "host": host, "options": options}


def _without(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    return {name: kept for name, kept in data.items() if name != key or kept != value}


def _finding(data: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in data.items() if key not in _LEFT_OUT}
    if "edges" in found:
        found["edges"] = [_no_paths(edge) for edge in found["edges"]]
    return _no_paths(found)


def _no_paths(data: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(data)
    if "reason" in found:
        found["reason"] = _FOLDERS.sub("", " ".join(str(found["reason"]).split()))
    return found


def write_rules(path: Path, rules: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a rule file, a rule a line, sorted: what changes shows line by line.

    Raises:
        WorkspaceError: It cannot be written.
    """
    lines = [
        f"{json.dumps(name)}: "
        + json.dumps(rules[name], sort_keys=True, ensure_ascii=False, allow_nan=False)
        for name in sorted(rules)
    ]
    with atomic_write(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
