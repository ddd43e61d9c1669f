"""The JSON files of results: reading test cases, writing views, keeping environments apart."""

from __future__ import annotations

import json
import logging
import math
import operator
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import Environment
from nn_meter.builder.disk import reason_of
from nn_meter.builder.workspace import (
    Workspace,
    atomic_write,
    move_aside,
    read_json,
    write_json,
)
from nn_meter.errors import ConfigError, NNMeterError, ResultFileError
from nn_meter.latency import measured_latency

__all__ = [
    "TestCases",
    "check_save_name",
    "read_situations",
    "read_testcases",
    "read_view",
    "results_folder",
    "write_results",
]

log = logging.getLogger(__name__)

TestCases = dict[str, dict[str, dict[str, Any]]]
"""Test case -> model -> ``{"model", "shapes", "latency"}``, as the guide prints it."""

ENVIRONMENT_FILE = "environment.json"

_MOST_ELEMENTS = 2**40

_TAKEN = (
    "origin_testcases.json",
    "detected_results.json",
    "detected_fusion_rule.json",
    ENVIRONMENT_FILE,
)


def check_save_name(name: Any) -> None:
    """Refuse a name of a result file that leads elsewhere, or to a file of another purpose.

    Raises:
        ConfigError: It is no plain name that ends in ``.json``, or one that is taken.
    """
    plain = (
        isinstance(name, str)
        and name.endswith(".json")
        and name.isprintable()
        and not name.startswith(".")
        and not set(name) & set("/\\")
        and len(name.encode()) <= 200  # file systems take 255, and a temporary name is longer
    )
    if not plain:
        raise ConfigError(
            f"save_name must be the plain name of a file that ends in .json, not {name!r:.200}"
        )
    if name.lower() in _TAKEN:
        raise ConfigError(f"save_name: {name} is a file of another purpose; choose another name")


def read_testcases(
    source: Mapping[str, Any] | str | Path, *, latency_only: bool = False
) -> TestCases:
    """Take a dict of test cases, or read the JSON file that holds one.

    Args:
        source: The dict, which is left as it is, or the path.
        latency_only: Models need no path and no shapes: only their latencies are asked for.

    Returns:
        A copy in plain values, latencies as ``"avg +- std"``.

    Raises:
        ResultFileError: It is not of the guide's form; the message names test case and model.
    """
    where = "the dict of test cases"
    if isinstance(source, str | Path):
        where = str(source)
        source = read_json(Path(source), "test cases")
    if not isinstance(source, Mapping):
        raise ResultFileError(
            f"test cases are a dict or the path of a JSON file, not a {type(source).__name__}"
        )
    found: TestCases = {}
    for testcase, models in source.items():
        _check_text(testcase, where)
        if not isinstance(models, Mapping) or not models:
            raise ResultFileError(f"{where}: {testcase}: should hold a dict of models")
        found[str(testcase)] = {}
        for name, model in models.items():
            _check_text(name, f"{where}: {testcase}")
            try:
                found[str(testcase)][str(name)] = _read_model(model, latency_only=latency_only)
            except NNMeterError as exc:
                raise ResultFileError(f"{where}: {testcase}: {name}: {exc}") from exc
    return found


def _read_model(model: Any, *, latency_only: bool) -> dict[str, Any]:
    """A model's entry as plain values; keys of others are kept."""
    if not isinstance(model, Mapping):
        raise ResultFileError("should be a dict with model, shapes and latency")
    found = dict(model)
    if found.get("latency") is not None:
        found["latency"] = str(measured_latency(found["latency"]))
    if isinstance(found.get("model"), Path):
        found["model"] = str(found["model"])
    if not latency_only:
        if "shapes" in found:  # profiled results have them with DETAIL only
            found["shapes"] = _read_shapes(found["shapes"])
        _check_path(found.get("model"), "model")
        if found.get("converted_model") is not None:
            _check_path(found["converted_model"], "converted_model")
    if found.get("error") is not None:
        found["error"] = _read_error(found["error"])
    try:
        text = json.dumps(found, ensure_ascii=False, allow_nan=False)
        text.encode()  # half of a surrogate pair is no text
        plain: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as exc:
        raise ResultFileError(f"holds what a JSON file cannot: {exc}") from exc
    return plain


def read_situations(workspace: Workspace) -> dict[str, TestCases]:
    """The models of situations: test case -> situation -> model -> ``{"model", "shapes"}``.

    They are made again with the test cases: what is damaged or gone is left out, with a warning.
    """
    found: dict[str, TestCases] = {}
    for name, situations in read_view(workspace.situations_file, "models of situations").items():
        try:
            read = read_testcases(situations)
        except ResultFileError as exc:
            log.warning("%s: %s: %s", workspace.situations_file, name, exc)
            continue
        found[name] = {}
        for situation, models in read.items():
            if reason := _unusable(workspace, models):
                log.warning(
                    "%s, %s is left out: %s; 'nn-meter ruletest generate' makes it again",
                    *(name, situation, reason),
                )
            else:
                found[name][situation] = models
    return found


def _unusable(workspace: Workspace, models: Mapping[str, dict[str, Any]]) -> str:
    """Why the models of a situation cannot be asked; empty: they can."""
    for name, entry in models.items():
        if "shapes" not in entry:
            return f"{workspace.situations_file}: its model {name} has no shapes"
        path = workspace.resolve(entry["model"])
        if path.parent.resolve() not in (
            workspace.situations_dir.resolve(),
            workspace.models_dir.resolve(),
        ):
            return f"{workspace.situations_file}: {entry['model']} is no model of this workspace"
        if not path.exists():
            return f"{path}: there is no such model"
    return ""


def _check_text(name: Any, where: str) -> None:
    try:
        str(name).encode()
    except UnicodeEncodeError as exc:
        raise ResultFileError(f"{where}: the name {name!r} is no text: {exc.reason}") from exc


def _check_path(path: Any, key: str) -> None:
    if not isinstance(path, str) or not path or "\0" in path:
        raise ResultFileError(f'"{key}" should be a path, but found {path!r:.200}')


def _read_error(error: Any) -> dict[str, str]:
    if not isinstance(error, Mapping):
        raise ResultFileError(
            f'"error" should be a dict of kind and reason, but found {error!r:.200}'
        )
    return {key: str(error.get(key, "")) for key in ("kind", "reason")}


def _read_shapes(shapes: Any) -> list[list[int]]:
    if not isinstance(shapes, list | tuple) or not shapes:
        raise ResultFileError(
            f'"shapes" should be a list of lists of sizes, but found {shapes!r:.200}'
        )
    return [_read_shape(shape) for shape in shapes]


def _read_shape(shape: Any) -> list[int]:
    try:
        sizes = [operator.index(size) for size in shape]
    except TypeError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ResultFileError(
            f'"shapes" should be a list of lists of sizes, but holds {shape!r:.200}'
        )
    if math.prod(sizes) > _MOST_ELEMENTS:
        raise ResultFileError(f'"shapes" holds {shape!r:.200}, which no memory does')
    return sizes


def results_folder(workspace: Workspace, backend: str, environment: Environment) -> Path:
    """The folder for a backend's results, cleared of those of another environment.

    Results of another environment that lie there are moved into a folder named after it, and the
    log says so. Those of this one come back from theirs.
    """
    folder = workspace.results_dir / backend
    mark = folder / ENVIRONMENT_FILE
    found = environment.to_json()
    if earlier := read_view(mark, "an environment"):
        key = earlier.pop("key", "earlier")
        if key == environment.key:
            return folder
        kept = folder / (key if re.fullmatch("[0-9a-f]{12}", str(key)) else "earlier")
        _move_results(folder, kept)
        differ = [name for name in found if found[name] != earlier.get(name)]
        log.warning(
            "%s: results of another environment (%s) are kept in %s; new files start here",
            folder,
            ", ".join(f"{name}: {earlier.get(name)} -> {found[name]}" for name in differ),
            kept,
        )
        if (folder / environment.key).is_dir():
            _move_results(folder / environment.key, folder)
    write_json(mark, {"key": environment.key, **found})
    return folder


def _move_results(source: Path, target: Path) -> None:
    """Move JSON files into another folder; last the one that says of which environment they are."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(source.glob("*.json"), key=lambda file: file.name == ENVIRONMENT_FILE):
            file.replace(target / file.name)
    except OSError as exc:
        raise ResultFileError(f"{target}: cannot be written: {reason_of(exc, target)}") from exc


def read_view(path: Path, what: str) -> dict[str, Any]:
    """Read a view that is made again anyway: one that is damaged is moved aside.

    Returns:
        What it holds; nothing if there is no such file, or no sound one.

    Raises:
        ResultFileError: It is damaged and cannot be moved.
    """
    if not path.is_file():
        return {}
    try:
        return read_json(path, what)
    except ResultFileError as exc:
        try:
            aside = move_aside(path)
        except OSError as error:
            raise ResultFileError(f"{exc}; and it cannot be moved aside: {error}") from exc
        log.warning("%s; it was moved to %s and is made again", exc, aside)
        return {}


def write_results(workspace: Workspace, folder: Path | None, name: str, data: Any) -> None:
    """Write a JSON view into the folder of its backend, and as the latest run's."""
    if folder is not None:
        write_json(folder / name, data)
    write_json(workspace.results_dir / name, data)


def profiled_view(testcases: TestCases, *, detail: bool) -> TestCases:
    """What ``profiled_results.json`` holds: shapes with ``DETAIL`` only, as the guide has it."""
    if detail:
        return testcases
    return {
        name: {
            model: {key: value for key, value in entry.items() if key != "shapes"}
            for model, entry in case.items()
        }
        for name, case in testcases.items()
    }


def write_errors(workspace: Workspace, lines: list[str]) -> Path:
    """Write ``profile_error.log``: a line for each model that has no latency; none, no file."""
    path = workspace.results_dir / "profile_error.log"
    if not lines:
        path.unlink(missing_ok=True)
        return path
    with atomic_write(path) as temporary:
        # a runtime's words may have lines of their own, or be no text
        text = "".join(" ".join(line.split()) + "\n" for line in lines)
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return path


def measured_backend(rules: Path) -> str | None:
    """The backend that a rule file's latest rules were found on; None: filled in by hand."""
    environments = [
        rule.get("environment")
        for rule in read_json(rules, "fusion rules").values()
        if isinstance(rule, dict)
    ]
    latest = environments[-1] if environments else None
    return str(latest["backend"]) if isinstance(latest, dict) and "backend" in latest else None
