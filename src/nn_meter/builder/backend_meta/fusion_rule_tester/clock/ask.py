"""What the clock is asked in a run: its part of ``profile_models``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nn_meter.builder.backend_meta.fusion_rule_tester.basic import BasicFusion
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.design import Method
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.measure import (
    Asked,
    bench_of,
    measure,
    trial_names,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.same_shape import (
    collect_small_graphs,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.find import canonical, testcase_named
from nn_meter.builder.backend_meta.fusion_rule_tester.testcase import BaseTestCase
from nn_meter.builder.profiling.interface import Bed
from nn_meter.builder.profiling.measure import Model
from nn_meter.builder.profiling.run import case_models
from nn_meter.builder.workspace import Workspace
from nn_meter.errors import NNMeterError, ResultFileError

__all__ = ["ask_the_clock", "asked_of", "default_budget_s"]

_LEAST_S = 10.0


def default_budget_s(config: Mapping[str, Any], rules: int, *, beside: bool = False) -> float:
    """Seconds that measuring may take.

    Args:
        config: All keys of ``ruletest_config.yaml``.
        rules: How many there are.
        beside: The clock's opinion only stands beside what decides.
    """
    whole = float(config["TIME_BUDGET"]) * rules
    return whole if beside and config["EVIDENCE"] == "auto" else max(_LEAST_S, whole)


def asked_of(
    workspace: Workspace, case: BaseTestCase, models: Mapping[str, Mapping[str, Any]]
) -> Asked:
    """What is to be asked of a test case.

    Args:
        workspace: Where its models are.
        case: The test case.
        models: Its entry in test cases or results.
    """
    if isinstance(case, BasicFusion):
        return Asked(rule=case.name, ops=case.ops, config=case.config)
    entries = {name: dict(entry) for name, entry in models.items()}
    files: dict[str, Model] = {}
    try:
        files = {model.name: model for model in case_models(workspace, case.name, entries)}
    except ResultFileError:
        return Asked(rule=case.name, config=case.config)  # they have gone
    named = {"block", *(op for ops in case.cases.values() for op in ops)}
    if not named <= set(files):
        return Asked(rule=case.name, config=case.config)
    return Asked(
        rule=case.name,
        cases=case.cases,
        files={name: files[name] for name in sorted(named)},
        config=case.config,
    )


def ask_the_clock(bed: Bed) -> None:
    """Measure what the clock needs for its verdicts on the test cases of a run."""
    config = bed.workspace.operator_config()
    asked = []
    for given, models in bed.testcases.items():
        try:
            case = testcase_named(canonical(given, config), config)
        except NNMeterError:
            continue  # detection says so
        asked.append(asked_of(bed.workspace, case, models))
    if bed.fresh:
        bed.store.retire(bed.campaign, trial_names(bed.store, bed.campaign, asked))
    bench, _ = bench_of(
        asked,
        bed.store,
        bed.campaign,
        method=Method(),
        alpha=config["EPS_ALPHA"],
        confidence=config["CONFIDENCE"],
        time_limit_s=bed.time_limit_s,
    )
    bench.thorough = not bed.graphs  # beside a graph it is an opinion
    measure(
        bed.workspace,
        bed.connection,
        bed.store,
        bed.campaign,
        bench,
        budget_s=default_budget_s(config, len(asked), beside=bed.graphs),
        time_limit_s=bed.time_limit_s,
        progress=bed.progress,
    )
    if bed.graphs:
        collect_small_graphs(
            bed.workspace,
            bed.connection,
            bed.store,
            bed.environment,
            [question for question in bench.questions.values() if question.loads],
            time_limit_s=bed.time_limit_s,
            progress=bed.progress,
        )
