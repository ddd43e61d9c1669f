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
from nn_meter.fusion_rules.rules import (
    ALONE,
    Bound,
    Edge,
    Environment,
    Finding,
    Obey,
    Rule,
    RuleSet,
    Sized,
)

__all__ = [
    "FIRST_READER",
    "RULE_FILE",
    "parse_rules",
    "read_data",
    "read_folder",
    "read_rules",
    "read_shipped",
    "shipped_names",
]

RULE_FILE = "detected_fusion_rule.json"
_DEEPEST = 8
_WORDS: dict[bool, str] = {True: "fused", False: "separate"}

FIRST_READER = "first"
"""What MON says, as a number above 0, in a file of the original: the first reader that fits."""

_CASES = ("case1", "case2", "case3")
_NAMED_CASES = {
    "MON": (*_CASES, FIRST_READER),
    "MIN": _CASES,
    "MINRELU": _CASES,
    "MONELTWISE": _CASES[:2],
    "MINELTWISE": (*_CASES, "case4"),
}
"""Test cases whose cases are known. Those of other classes may have any name."""


def read_rules(source: str | Path) -> RuleSet:
    """Read rules.

    Args:
        source: A rule file; a workspace, or the folder of a backend's results in it; or the name of
            a rule file that ships with the package, e.g. ``onnxruntime-1.31``. What lies at the
            path comes first; ``--list`` of ``nn-meter diff`` prints the names.

    Raises:
        ResultFileError: There is no such thing, or it holds no rules; says what to do.
    """
    data, where = read_data(source)
    return parse_rules(data, str(source), where=where)


def read_data(source: str | Path) -> tuple[dict[str, Any], str]:
    """What a rule file holds, as it stands there, and where that is.

    Args:
        source: As ``read_rules`` takes it.

    Raises:
        ResultFileError: There is no such thing, or it is no JSON object.
    """
    name = str(source)
    path = Path(source)
    try:
        if name and path.is_dir():
            return _load(_file_in(path))
        if name and path.exists():
            return _load(path)
    except OSError as exc:
        raise ResultFileError(f"{name!r:.200}: cannot be read: {exc.strerror or exc}") from exc
    if name in shipped_names():
        with as_file(files(__package__) / "data" / f"{name}.json") as path:
            return _load(path)
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
    data, where = _load(path)
    return parse_rules(data, name, where=where)


def _load(path: Path) -> tuple[dict[str, Any], str]:
    if not path.is_file():
        raise ResultFileError(f"{path}: is no file")
    return read_json(path, "fusion rules"), str(path)


def parse_rules(data: Mapping[str, Any], name: str, *, where: str = "") -> RuleSet:
    """Rules of what a rule file holds.

    Args:
        data: Name of a rule -> the rule. Of the original nn-Meter an answer may be a number.
        name: What the rules are called.
        where: Where they stand, for messages; empty: what they are called.

    Raises:
        ResultFileError: Something in it is no rule; names it.
    """
    place = where or name
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (UnicodeEncodeError, RecursionError) as exc:
        raise ResultFileError(f"{place}: holds what is no text, or is nested too deep") from exc
    except (TypeError, ValueError) as exc:
        raise ResultFileError(f"{place}: holds what is not of JSON: {exc}") from exc
    rules = {}
    for rule, entry in json.loads(text).items():
        at = f"{place}: {rule!r:.80}"
        rules[_text(rule, at, "its name")] = _read_rule(rule, entry, at)
    environments: list[Environment] = []
    for found in rules.values():
        if found.environment is not None and found.environment not in environments:
            environments.append(found.environment)
    return RuleSet(name=name, rules=rules, environments=tuple(environments))


def _read_rule(name: str, entry: Any, where: str) -> Rule:
    data = _in_words(name, _object(entry, where, "a rule"))
    findings = _read_findings(name, data, where)
    environment = data.get("environment")
    if environment is not None:
        environment = _read_environment(environment, where)
    sizes = tuple(
        _read_sized(name, inner, f'{where}: number {number} of "sizes"')
        for number, inner in enumerate(_list(data.get("sizes", []), where, '"sizes"'), start=1)
    )
    return Rule(name=name, findings=findings, environment=environment, sizes=sizes)


def _in_words(name: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A rule that says yes or no, or names a case, where the original has a number."""
    number = data.get("obey")
    if type(number) is not int:
        return data
    if name == "MON" and number >= 0:
        return {**data, "obey": FIRST_READER if number else False}
    if name.startswith("BF_") and number in (0, 1):
        return {**data, "obey": number == 1}
    return data


def _read_findings(name: str, data: Mapping[str, Any], where: str) -> dict[str, Finding]:
    """What holds in each situation, ``alone`` first."""
    alone = _read_finding(name, data, where)
    findings = {ALONE: alone}
    for situation, inner in _object(data.get("when", {}), where, '"when"').items():
        there = f"{where}: when {situation!r:.80}"
        _text(situation, there, "the situation")
        found = _read_finding(name, _object(inner, there, "a situation"), there, alone.evidence)
        if situation != ALONE:
            findings[situation] = found
        elif found.verdict != alone.verdict:
            raise ResultFileError(
                f"{there}: is {found.verdict}, but the rule itself says {alone.verdict}; the two "
                "must be alike"
            )
    return findings


def _read_sized(name: str, entry: Any, where: str) -> Sized:
    data = _object(entry, where, "it")
    bounds = _object(data.get("where"), where, '"where"')
    if not bounds:
        raise ResultFileError(f'{where}: "where" names no size')
    found = {}
    for size, given in bounds.items():
        there = f"{where}: {size!r:.80}"
        _text(size, there, "the name of a size")
        limits = _object(given, there, "a size")
        if not limits or not limits.keys() <= set(Bound.KINDS):
            raise ResultFileError(
                f"{there}: should have {', '.join(Bound.KINDS)}, but found {_shown(given)}"
            )
        if not all(type(limit) is int and limit > 0 for limit in limits.values()):
            raise ResultFileError(f"{there}: holds what is no size: {_shown(given)}")
        found[size] = Bound(**limits)
    return Sized(where=found, findings=_read_findings(name, data, where))


def _read_finding(name: str, data: Mapping[str, Any], where: str, evidence: str = "") -> Finding:
    obey, verdict = _read_obey(data, where)
    if isinstance(obey, str):
        _check_case(name, obey, where)
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


def _check_case(rule: str, case: str, where: str) -> None:
    """Refuse a case that the rule's test case does not have: it would say nothing."""
    if rule.startswith("BF_"):
        raise ResultFileError(
            f'{where}: "obey" of operators in a row must be true, false or null, but found '
            f"{_shown(case)}"
        )
    cases = _NAMED_CASES.get(rule, (case,))
    if case not in cases:
        raise ResultFileError(
            f'{where}: "obey" must be one of the cases {", ".join(cases)}, or null, but found '
            f"{_shown(case)}"
        )


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
