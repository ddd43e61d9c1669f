"""Verdicts from profiled results: in the order of dependencies, one test case after the other."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from nn_meter.builder.backend_meta.fusion_rule_tester.evidence import Evidence
from nn_meter.builder.backend_meta.fusion_rule_tester.find import canonical, testcase_named
from nn_meter.builder.backend_meta.fusion_rule_tester.testcase import BaseTestCase
from nn_meter.builder.backend_meta.fusion_rule_tester.verdict import Obey, Verdict
from nn_meter.builder.profiling.results import TestCases
from nn_meter.errors import DetectionError, NNMeterError

__all__ = ["detect"]


def detect(
    profiled: TestCases,
    config: Mapping[str, Any],
    evidence: list[Evidence],
    earlier: Mapping[str, Obey],
) -> dict[str, Verdict]:
    """Judge test cases.

    Args:
        profiled: Test case -> model -> entry with a latency or an error.
        config: All keys of ``ruletest_config.yaml``.
        evidence: Kinds of evidence to ask, the best first.
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
            Verdict.none("unmet", unmet) if unmet else _judge(cases[name], models[name], evidence)
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
    evidence: list[Evidence],
) -> Verdict:
    for model, entry in models.items():
        if entry.get("latency") is None and (error := entry.get("error")):
            kind, reason = str(error.get("kind", "failed")), str(error.get("reason", ""))
            word = "unsupported" if kind == "refused" else "undecided"
            return Verdict.none(word, f"{model}: {kind}: {reason}")  # type: ignore[arg-type]
    try:
        for kind_of_evidence in evidence:
            verdict = kind_of_evidence.judge(case, models)
            if verdict is not None:
                return verdict
    except NNMeterError as exc:
        return Verdict.none("undecided", str(exc))
    missing = next((name for name, entry in models.items() if entry.get("latency") is None), None)
    reason = f"the model {missing} has no latency" if missing else "no evidence speaks for it"
    return Verdict.none("undecided", reason)
