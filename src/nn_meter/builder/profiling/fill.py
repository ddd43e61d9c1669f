"""Latencies that were measured with other tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from nn_meter.builder.config import suggestion
from nn_meter.builder.profiling.results import TestCases, read_testcases
from nn_meter.builder.workspace import builder_config
from nn_meter.errors import ResultFileError, WorkspaceError
from nn_meter.latency import measured_latency

__all__ = ["fill_latency"]


def fill_latency(
    testcases: Mapping[str, Any] | str | Path, latencies: Mapping[str, Any]
) -> TestCases:
    """Fill in latencies by model.

    Args:
        testcases: What ``generate_testcases`` gave: the dict, or the path of its JSON file.
        latencies: Path of a model, as it stands in the test cases, to its latency: a number of ms,
            ``"avg +- std"``, or a ``Latency``. A model that several test cases have is filled in
            each of them. An absolute path does where a workspace is in use.

    Returns:
        New test cases, ready for ``detect_fusion_rule``; models that are not named stay as they
        are.

    Raises:
        ResultFileError: A path is no model of these test cases, or a latency is none, or 0.
    """
    if not isinstance(latencies, Mapping):
        raise ResultFileError(
            f"latencies are a dict of a model's path to its latency, not a {_kind(latencies)}"
        )
    filled = read_testcases(testcases)
    root = _root()
    models: dict[PurePath, list[dict[str, Any]]] = {}
    for case in filled.values():
        for model in case.values():
            models.setdefault(root / model["model"], []).append(model)
    for path, value in latencies.items():
        if not isinstance(path, str | PurePath):
            raise ResultFileError(f"{path!r:.80}: the path of a model is text, not a {_kind(path)}")
        wanted = root / path
        if wanted not in models:
            known = [str(PurePath(same[0]["model"])) for same in models.values()]
            raise ResultFileError(
                f"{path}: no test case has this model{suggestion(str(PurePath(path)), known)}"
            )
        try:
            text = str(measured_latency(value))
        except ResultFileError as exc:
            raise ResultFileError(f"{path}: {exc}") from exc
        for model in models[wanted]:
            model["latency"] = text
            model.pop("error", None)
    return filled


def _root() -> PurePath:
    """What the paths of models are relative to, if that is known."""
    try:
        return builder_config.workspace.path
    except WorkspaceError:
        return PurePath()


def _kind(value: Any) -> str:
    return type(value).__name__
