"""Verdicts from profiled results: in the order of dependencies, one test case after the other."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal

from nn_meter.builder.backend_meta.fusion_rule_tester.evidence import Judges
from nn_meter.builder.backend_meta.fusion_rule_tester.find import canonical, testcase_named
from nn_meter.builder.backend_meta.fusion_rule_tester.testcase import BaseTestCase
from nn_meter.builder.backend_meta.fusion_rule_tester.verdict import Obey, Verdict
from nn_meter.builder.profiling.results import TestCases
from nn_meter.errors import DetectionError, NNMeterError

__all__ = ["detect"]


def detect(
    profiled: TestCases,
    config: Mapping[str, Any],
    judges: Judges,
    earlier: Mapping[str, Obey],
) -> dict[str, Verdict]:
    """Judge test cases.

    Args:
        profiled: Test case -> model -> entry with a latency or an error.
        config: All keys of ``ruletest_config.yaml``.
        judges: The kinds of evidence to ask.
        earlier: What rules found before, in the same environment, say; for dependencies.

    Returns:
        A verdict for each test case, in the order given, under its rule's name.

    Raises:
        DetectionError: A name belongs to no test case, stands twice, or dependencies form a circle.
    """
    models: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    for given, entry in profiled.items():
        name = canonical(given, config)
        if name in models:
            raise DetectionError(f"{name} stands twice, once as {given}")
        models[name] = entry
    cases = {name: testcase_named(name, config) for name in models}
    found: dict[str, Verdict] = {}
    for name in _ordered(cases, config):
        unmet = _unmet(cases[name], config, found, earlier)
        found[name] = (
            Verdict.none("unmet", unmet) if unmet else _judge(cases[name], models[name], judges)
        )
    return {name: found[name] for name in models}


def _ordered(cases: Mapping[str, BaseTestCase], config: Mapping[str, Any]) -> list[str]:
    graph = {name: {canonical(dep, config) for dep in case.deps} for name, case in cases.items()}
    try:
        return [name for name in TopologicalSorter(graph).static_order() if name in cases]
    except CycleError as exc:
        raise DetectionError(f"rules depend on one another: {' -> '.join(exc.args[1])}") from exc


def _unmet(
    case: BaseTestCase,
    config: Mapping[str, Any],
    found: Mapping[str, Verdict],
    earlier: Mapping[str, Obey],
) -> str:
    """Why a rule's preconditions do not hold; empty: they do."""
    for given, expected in case.deps.items():
        dep = canonical(given, config)
        if dep not in found and dep not in earlier:
            return f"it depends on {dep}, which was not tested; test it first, or in the same run"
        obey = found[dep].obey if dep in found else earlier[dep]
        wanted = expected
        if expected is True and isinstance(obey, str):
            try:
                wanted = testcase_named(dep, config).true_case
            except DetectionError as exc:  # it was found before, and is registered no longer
                return f"it depends on {dep}, whose true case is not known: {exc}"
        if obey != wanted:
            came_out = found[dep].verdict if dep in found else obey
            return f"it depends on {dep} being {wanted}, which came out {came_out}"
    return ""


def _judge(
    case: BaseTestCase,
    models: Mapping[str, Mapping[str, Any]],
    judges: Judges,
) -> Verdict:
    failed = next((f for entry in models.items() if (f := _failed(*entry)) is not None), None)
    if failed is not None and failed[0] in ("refused", "wrong output"):
        return failed[1]
    try:
        verdict = judges.judge(case, models)
    except NNMeterError as exc:
        verdict = Verdict.none("undecided", str(exc))
    if verdict is not None and (failed is None or verdict.evidence == "graph"):
        return verdict
    return failed[1] if failed is not None else Verdict.none("undecided", _missing(models))


def _failed(model: str, entry: Mapping[str, Any]) -> tuple[str, Verdict] | None:
    """How a model failed, and the verdict of that; None: it did not.

    A runtime that refuses a model, or takes it for another one, says nothing about the rule. One
    that crashes or takes too long while it is timed may have said before what it executes.
    """
    error = entry.get("error")
    if entry.get("latency") is not None or not error:
        return None
    kind, reason = str(error.get("kind", "failed")), str(error.get("reason", ""))
    word: Literal["unsupported", "undecided"] = "unsupported" if kind == "refused" else "undecided"
    return kind, Verdict.none(word, f"{model}: {kind}: {reason}")


def _missing(models: Mapping[str, Mapping[str, Any]]) -> str:
    for model, entry in models.items():
        if entry.get("latency") is None:
            return f"the model {model} has no latency" + (
                "" if entry.get("graph") else ", and its executed graph is not known"
            )
    return "neither an executed graph nor an experiment by the clock speaks for it"
