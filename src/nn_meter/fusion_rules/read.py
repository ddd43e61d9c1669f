"""Reading rules: of a file, a workspace, or what ships with the package."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from nn_meter.builder.config import suggestion
from nn_meter.builder.workspace import read_json
from nn_meter.errors import ResultFileError
from nn_meter.fusion_rules.rules import ALONE, Edge, Environment, Finding, Obey, Rule, RuleSet

__all__ = ["RULE_FILE", "read_folder", "read_rules", "read_shipped", "shipped_names"]

RULE_FILE = "detected_fusion_rule.json"
_MOST_BYTES = 2**26
_DEEPEST = 8
_WORDS: dict[bool, str] = {True: "fused", False: "separate"}


def read_rules(source: str | Path) -> RuleSet:
    """Read rules.

    Args:
        source: A rule file; a workspace, or the folder of a backend's results in it; or the name of
            a rule file that ships with the package, e.g. ``onnxruntime-1.31``. What lies at the
            path comes first; ``--list`` of ``nn-meter diff`` prints the names.

    Raises:
        ResultFileError: There is no such thing, or it holds no rules; says what to do.
    """
    name = str(source)
    path = Path(source)
    try:
        if name and path.is_dir():
            return _read_file(_file_in(path), name)
        if name and path.exists():
            return _read_file(path, name)
    except OSError as exc:
        raise ResultFileError(f"{name!r:.200}: cannot be read: {exc.strerror or exc}") from exc
    if name in shipped_names():
        return read_shipped(name)
    hint = suggestion(name, shipped_names())
    raise ResultFileError(
        f"{name!r:.200}: there is no such rule file or workspace, and no rule file of that name "
        f"ships with nn-meter{hint or '; nn-meter diff --list names those that do'}"
    )


def shipped_names() -> list[str]:
    """Names of the rule files that ship with the package, older versions first."""
    folder = files(__package__) / "data"
    if not folder.is_dir():
        return []
    names = [file.name for file in folder.iterdir() if file.name.endswith(".json")]
    return sorted((name.removesuffix(".json") for name in names), key=_by_version)


def read_shipped(name: str) -> RuleSet:
    """Read a rule file that ships with the package.

    Raises:
        ResultFileError: It is damaged.
    """
    with as_file(files(__package__) / "data" / f"{name}.json") as path:
        return _read_file(path, name)


def read_folder(folder: Path) -> list[RuleSet]:
    """Read all rule files of a folder, each called as its file without ``.json``.

    Raises:
        ResultFileError: One of them is bad.
    """
    names = sorted((file.stem for file in folder.glob("*.json")), key=_by_version)
    return [_read_file(folder / f"{name}.json", name) for name in names]


def _by_version(name: str) -> list[tuple[int, str]]:
    """Sorts ``x-1.9`` before ``x-1.10``."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _file_in(folder: Path) -> Path:
    for place in (folder / "fusion_rule_test" / "results", folder / "results", folder):
        if (place / RULE_FILE).is_file():
            return place / RULE_FILE
    if (folder / "configs").is_dir():
        raise ResultFileError(
            f"{folder}: no rules were found in this workspace yet; run 'nn-meter run --workspace "
            f"{folder}' first"
        )
    raise ResultFileError(
        f"{folder}: is neither a workspace nor a folder of results: there is no {RULE_FILE} in it"
    )


def _read_file(path: Path, name: str) -> RuleSet:
    if not path.is_file():
        raise ResultFileError(f"{path}: is no file")
    if path.stat().st_size > _MOST_BYTES:
        raise ResultFileError(f"{path}: is larger than {_MOST_BYTES} bytes, so no rule file")
    data = read_json(path, "fusion rules")
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError) as exc:
        raise ResultFileError(f"{path}: holds what is no text, or is nested too deep") from exc
    rules = {}
    for rule, entry in data.items():
        where = f"{path}: {rule!r:.80}"
        rules[_text(rule, where, "its name")] = _read_rule(rule, entry, where)
    environments: list[Environment] = []
    for found in rules.values():
        if found.environment is not None and found.environment not in environments:
            environments.append(found.environment)
    return RuleSet(name=name, rules=rules, environments=tuple(environments))


def _read_rule(name: str, entry: Any, where: str) -> Rule:
    data = _object(entry, where, "a rule")
    alone = _read_finding(data, where)
    findings = {ALONE: alone}
    for situation, inner in _object(data.get("when", {}), where, '"when"').items():
        there = f"{where}: when {situation!r:.80}"
        _text(situation, there, "the situation")
        found = _read_finding(_object(inner, there, "a situation"), there, alone.evidence)
        if situation != ALONE:
            findings[situation] = found
        elif found.verdict != alone.verdict:
            raise ResultFileError(
                f"{there}: is {found.verdict}, but the rule itself says {alone.verdict}; the two "
                "must be alike"
            )
    environment = data.get("environment")
    if environment is not None:
        environment = _read_environment(environment, where)
    return Rule(name=name, findings=findings, environment=environment)


def _read_finding(data: Mapping[str, Any], where: str, evidence: str = "") -> Finding:
    obey, verdict = _read_obey(data, where)
    kernels = data.get("kernels")
    edges = [
        _object(edge, where, 'each of "edges"') for edge in _list(data.get("edges", []), where)
    ]
    return Finding(
        obey=obey,
        verdict=verdict,
        evidence=_text(data.get("evidence", evidence), where, '"evidence"'),
        kernels=None if kernels is None else _texts(kernels, where, '"kernels"'),
        edges=tuple(
            Edge(
                ops=_pair(edge.get("ops"), where),
                verdict=_text(edge.get("verdict"), where, "the verdict of an edge"),
            )
            for edge in edges
        ),
        free=_texts(data.get("free", []), where, '"free"'),
        eliminated=data.get("eliminated") is True,
        reason=_one_line(str(data.get("reason", ""))),
    )


def _read_obey(data: Mapping[str, Any], where: str) -> tuple[Obey, str]:
    """``obey``, and the verdict in words; rules of older files have no words."""
    if "obey" not in data:
        raise ResultFileError(f'{where}: has no "obey"; is this a file of fusion rules?')
    obey = data["obey"]
    if obey is not None and not isinstance(obey, bool | str):
        raise ResultFileError(
            f'{where}: "obey" must be true, false, null or the name of a case, but found '
            f"{_shown(obey)}"
        )
    if obey is None:
        verdict = _text(data.get("verdict", "undecided"), where, '"verdict"')
        fits = verdict not in _WORDS.values()
    else:
        expected = obey if isinstance(obey, str) else _WORDS[obey]
        verdict = _text(data.get("verdict", expected), where, '"verdict"')
        fits = verdict == expected
    if not fits or not verdict:
        raise ResultFileError(
            f'{where}: "obey" is {json.dumps(obey)}, but "verdict" is {verdict!r:.80}; '
            "the two must say the same"
        )
    return obey, verdict


def _read_environment(data: Any, where: str) -> Environment:
    environment = _object(data, where, '"environment"')
    for name in ("options", "models"):
        inner = environment if name == "options" else environment.get("options", {})
        _object(inner.get(name, {}), where, f'"{name}" of "environment"')
    if _is_deep(environment, _DEEPEST):
        raise ResultFileError(f'{where}: "environment" is nested too deep')
    for key, value in environment.items():
        _text(key, where, 'each key of "environment"')
        if isinstance(value, str):
            _text(value, where, f'{key!r:.80} of "environment"')
    return environment


def _is_deep(value: Any, most: int) -> bool:
    inner: list[Any] = []
    if isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, list):
        inner = value
    return most == 0 or any(_is_deep(part, most - 1) for part in inner)


# --- shapes of values ----------------------------------------------------------------------------


def _object(value: Any, where: str, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ResultFileError(f"{where}: {what} must be an object, but found {_shown(value)}")
    return value


def _list(value: Any, where: str, what: str = '"edges"') -> list[Any]:
    if not isinstance(value, list):
        raise ResultFileError(f"{where}: {what} must be a list, but found {_shown(value)}")
    return value


def _text(value: Any, where: str, what: str) -> str:
    """Text that can be printed as it is: a terminal is not to be commanded by a file."""
    if not isinstance(value, str) or not value.isprintable():
        raise ResultFileError(f"{where}: {what} must be plain text, but found {_shown(value)}")
    return value


def _texts(value: Any, where: str, what: str) -> tuple[str, ...]:
    return tuple(_text(part, where, f"each of {what}") for part in _list(value, where, what))


def _pair(value: Any, where: str) -> tuple[str, str]:
    ops = _texts(value, where, "the ops of an edge")
    if len(ops) != 2:
        raise ResultFileError(f"{where}: an edge is of two ops, but found {_shown(value)}")
    return ops[0], ops[1]


def _one_line(text: str) -> str:
    """A message of a runtime's, which may hold anything, as one line that can be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]
