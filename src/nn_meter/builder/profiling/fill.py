"""Latencies that were measured with other tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from nn_meter.builder.config import suggestion
from nn_meter.builder.profiling.results import TestCases, read_testcases
from nn_meter.errors import ResultFileError
from nn_meter.latency import Latency

__all__ = ["fill_latency"]


def fill_latency(
    testcases: Mapping[str, Any] | str | Path, latencies: Mapping[str, Any]
) -> TestCases:
    """Fill in latencies by model.

    Args:
        testcases: What ``generate_testcases`` gave: the dict, or the path of its JSON file.
        latencies: Path of a model, as it stands in the test cases, to its latency: a number of ms,
            ``"avg +- std"``, or a ``Latency``. A model that several test cases have is filled in
            each of them.

    Returns:
        New test cases, ready for ``detect_fusion_rule``; models that are not named stay as they
        are.

    Raises:
        ResultFileError: A path is no model of these test cases, or a latency is none.
    """
    filled = read_testcases(testcases)
    models: dict[PurePath, list[dict[str, Any]]] = {}
    for case in filled.values():
        for model in case.values():
            models.setdefault(PurePath(model["model"]), []).append(model)
    for path, value in latencies.items():
        wanted = PurePath(path)
        if wanted not in models:
            known = [str(known) for known in models]
            raise ResultFileError(
                f"{path}: no test case has this model{suggestion(str(wanted), known)}"
            )
        try:
            text = str(Latency(value))
        except ResultFileError as exc:
            raise ResultFileError(f"{path}: {exc}") from exc
        for model in models[wanted]:
            model["latency"] = text
            model.pop("error", None)
    return filled
