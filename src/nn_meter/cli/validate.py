"""``nn-meter validate``: are verdicts by the clock right? The runtime's executed graph says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from nn_meter.builder.backend_meta.fusion_rule_tester.clock.ask import default_budget_s
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.decision import Opinion
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.design import Method
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.measure import (
    Asked,
    Measured,
    bench_of,
    measure,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.plan import Question
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.same_shape import (
    collect_small_graphs,
    read_small_verdict,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.validation import (
    History,
    Judged,
    Report,
    formula_of,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.generate import Generated
from nn_meter.builder.backend_meta.fusion_rule_tester.interface import (
    detect_fusion_rule,
    generate_testcases,
)
from nn_meter.builder.backends.base import BaseBackend, ShowsGraph, ShowsGraphs
from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.interface import model_settings
from nn_meter.builder.profiling.store import Store
from nn_meter.builder.workspace import Workspace, make_folder, write_json
from nn_meter.cli import options, steps
from nn_meter.cli.console import log_to_stderr, print_json, progress_shown
from nn_meter.cli.scores import Costs, Run, Validation, print_validation, validation_json
from nn_meter.cli.temporary import read_settings, temporary_workspace
from nn_meter.errors import BackendError, ConfigError

__all__ = ["validate"]

_STDOUT = Path("-")


@click.command(short_help="Hold verdicts by the clock against executed graphs.")
@click.option("--backend", metavar="NAME", default="onnxruntime_cpu", show_default=True)
@options.settings_option
@click.option(
    "--testcases",
    metavar="NAMES",
    help="Ask only these pairs and chains, e.g. conv_relu,add_relu. Default: those of the "
    "configuration.",
)
@click.option(
    "--budget",
    metavar="SECONDS",
    type=options.Seconds(),
    help="For loading and timing, all in all. Default: TIME_BUDGET for each pair.",
)
@click.option(
    "--repeat",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    help="Ask the clock so often, each time from the start, and compare.",
)
@options.like_option
@options.time_limit_option
@options.json_file_option
@options.debug_option
def validate(
    backend: str,
    settings: Sequence[str],
    testcases: str | None,
    budget: float | None,
    repeat: int,
    workspace: str | None,
    time_limit: float,
    json_file: Path | None,
) -> None:
    """Make verdicts by the clock, then ask the runtime what it executed, and compare.

    The clock is asked first, so it cannot know. Beside it stands the guide's formula, on average
    latencies of whole models, measured in the same run. Nothing is kept.
    """
    log_to_stderr()
    start = time.monotonic()
    given = read_settings(settings)
    asked = _asked(testcases)
    if "EVIDENCE" in given:
        raise ConfigError("--set: EVIDENCE: validate asks the clock, the graph and the formula")
    if json_file is not None and json_file != _STDOUT:
        make_folder(json_file.absolute().parent)  # said now, and not when all is measured
    with temporary_workspace(backend, like=workspace, given=given, asked=asked) as opened:
        found = _Validator(opened, steps.connect(backend, opened), backend, time_limit).validate(
            budget, repeat
        )
    found = replace(found, total_s=time.monotonic() - start)
    if json_file == _STDOUT:
        print_json(validation_json(found))
        return
    print_validation(found)
    if json_file is not None:
        write_json(json_file.absolute(), validation_json(found))


def _asked(testcases: str | None) -> dict[str, Any]:
    """The keys that the command itself decides: pairs and chains, and nothing else."""
    asked = steps.check_testcases(testcases)
    if others := asked.get("OTHER_TESTCASES"):
        raise ConfigError(
            f"--testcases: {others[0]}: validate asks pairs and chains of operators, like conv_relu"
        )
    return {**asked, "OTHER_TESTCASES": [], "EVIDENCE": "auto", "DETAIL": False}


@dataclass(frozen=True)
class _Validator:
    """Asks one backend, in a workspace of its own.

    Attributes:
        workspace: Where; nobody has asked anything there.
        backend: The backend.
        name: Its name.
        time_limit_s: For one operation on one model.
    """

    workspace: Workspace
    backend: BaseBackend
    name: str
    time_limit_s: float

    def validate(self, budget_s: float | None, repeat: int) -> Validation:
        """Ask the clock, then the formula, and only then the runtime."""
        if not isinstance(self.backend, ShowsGraph | ShowsGraphs):
            raise BackendError(
                f"{self.name} cannot tell what it executes, so there is nothing to hold the "
                "clock's verdicts against"
            )
        start = time.monotonic()
        generated = self._generate()
        models_s = time.monotonic() - start
        rules = {name: name.split("_")[1:] for name in generated.testcases}
        if budget_s is None:
            budget_s = default_budget_s(self.workspace.operator_config(), len(rules))
        answers = [self._ask_the_clock(rules, budget_s, number) for number in range(repeat)]
        formula, formula_s = self._ask_for("formula", generated)
        graph, graph_s = self._ask_for("graph", generated)
        timed = self._graphs_of_timed(answers[0].questions)
        runs = [
            Run(
                report=_report(rules, answer, graph, formula, timed),
                measured=answer.measured,
                wall_s=answer.wall_s,
            )
            for answer in answers
        ]
        return Validation(
            backend=self.name,
            environment=answers[0].environment,
            runs=runs,
            refused=generated.refused,
            costs=Costs(models_s=models_s, formula_s=formula_s, graph_s=graph_s),
        )

    def _generate(self) -> Generated:
        """The guide's models, that the formula and the graph are asked by."""
        found = Generated()
        with progress_shown() as progress:
            generate_testcases(
                self.workspace,
                time_threshold=self.time_limit_s,
                progress=progress,
                summary=found,
                with_situations=False,
            )
        return found

    def _ask_the_clock(
        self, rules: Mapping[str, Sequence[str]], budget_s: float, number: int
    ) -> _Answer:
        """Ask it from the start: with processes, loads and samples of this run's own."""
        start = time.monotonic()
        config = self.workspace.operator_config()
        asked = [Asked(rule=rule, ops=tuple(ops), config=config) for rule, ops in rules.items()]
        samples = self.workspace.results_dir / f"clock-{number}.db"
        history = History()
        with (
            self.workspace.lock(),
            Connection(self.backend, model_settings(self.workspace)) as connection,
            Store(samples) as store,
            progress_shown() as progress,
        ):
            if not connection.sessions:
                raise BackendError(
                    f"{self.name} does not keep models loaded, so the clock cannot be asked"
                )
            campaign = store.campaign(store.environment(connection.name, connection.environment))
            bench, refused = bench_of(
                asked,
                store,
                campaign,
                method=Method(),
                alpha=config["EPS_ALPHA"],
                confidence=config["CONFIDENCE"],
                time_limit_s=self.time_limit_s,
            )

            for question in bench.questions.values():
                question.with_tail = True

            def note() -> None:
                verdicts = {_edge(n): q.opinion.verdict for n, q in bench.questions.items()}
                history.see(bench.clock() - bench.started_s, verdicts)

            def shown(stage: str, done: int, total: int, name: str) -> None:
                if stage == "clock":
                    note()
                progress(stage, done, total, name)

            measured = measure(
                self.workspace,
                connection,
                store,
                campaign,
                bench,
                budget_s=budget_s,
                time_limit_s=self.time_limit_s,
                progress=shown,
            )
            note()
            environment = connection.environment
            trials = store.trials(campaign, "")
        return _Answer(
            questions={_edge(name): found for name, found in bench.questions.items()},
            refused={_edge(name): reason for name, reason in refused.items()},
            formula={
                _edge(name): formula_of(found, config["EPS_ALPHA"])
                for name, found in trials.items()
            },
            history=history,
            measured=measured,
            environment=environment.to_json(),
            wall_s=time.monotonic() - start,
        )

    def _graphs_of_timed(self, questions: Mapping[str, Question]) -> dict[str, str]:
        """What executed graphs say of the edges in the size that they were timed in."""
        with (
            self.workspace.lock(),
            Connection(self.backend, model_settings(self.workspace)) as connection,
            Store(self.workspace.store_file) as store,
            progress_shown() as progress,
        ):
            environment = store.environment(connection.name, connection.environment)
            collect_small_graphs(
                self.workspace,
                connection,
                store,
                environment,
                [question for question in questions.values() if question.loads],
                time_limit_s=self.time_limit_s,
                progress=progress,
            )
            return {
                name: read_small_verdict(self.workspace, store, environment, q.design) or ""
                for name, q in questions.items()
                if q.design is not None
            }

    def _ask_for(self, evidence: str, generated: Generated) -> tuple[dict[str, Any], float]:
        """The verdicts of one kind of evidence, and the seconds that they took."""
        start = time.monotonic()
        ruletest = self.workspace.ruletest.model_copy(update={"EVIDENCE": evidence})
        workspace = replace(self.workspace, ruletest=ruletest)
        profiled, _ = steps.profile(
            workspace, self.backend, generated.testcases, time_threshold=self.time_limit_s
        )
        return detect_fusion_rule(profiled, workspace), time.monotonic() - start


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What the clock answered in one run; questions by rule and number of the edge."""

    questions: Mapping[str, Question]
    refused: Mapping[str, str]
    formula: Mapping[str, str]
    history: History
    measured: Measured
    environment: Mapping[str, Any]
    wall_s: float


def _edge(trials: str) -> str:
    """Rule and edge of the trials of that name, ``clock:BF_conv_relu:1``."""
    return trials.partition(":")[2]


def _report(
    rules: Mapping[str, Sequence[str]],
    answer: _Answer,
    graph: Mapping[str, Mapping[str, Any]],
    formula: Mapping[str, Mapping[str, Any]],
    timed: Mapping[str, str],
) -> Report:
    judged, told = [], {}
    for rule, ops in rules.items():
        edges = len(ops) - 1
        by_graph, by_formula = _words(graph[rule], edges), _words(formula[rule], edges)
        for edge in range(1, edges + 1):
            key = f"{rule}:{edge}"
            question = answer.questions.get(key)
            told[key] = by_graph[edge - 1]
            judged.append(
                Judged(
                    name=rule if edges == 1 else key,
                    opinion=_opinion(question, answer.refused.get(key, "")),
                    graph=by_graph[edge - 1],
                    formula=by_formula[edge - 1],
                    formula_here=answer.formula.get(key, "undecided"),
                    timed=timed.get(key, ""),
                    loads=len(question.loads) if question is not None else 0,
                    runtime_s=question.cost_s if question is not None else 0.0,
                )
            )
    curve = answer.history.curve(told, answer.measured.measure_s)
    return Report(questions=judged, curve=curve)


def _opinion(question: Question | None, refused: str) -> Opinion:
    if question is None:
        return Opinion(verdict="undecided", reason=refused or "it was not asked")
    return question.opinion


def _words(verdict: Mapping[str, Any], edges: int) -> list[str]:
    """The verdict on each two neighbours."""
    if verdict.get("edges"):
        return [str(edge["verdict"]) for edge in verdict["edges"]]
    return [str(verdict["verdict"])] * edges
