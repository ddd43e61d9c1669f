"""One run of profiling: what is asked of each test case, in which order, and what is written."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.nn_modules.info import hash_model, read_info
from nn_meter.builder.profiling import measure, results
from nn_meter.builder.profiling.averages import pooled
from nn_meter.builder.profiling.case import CaseSettings, measure_case, plan_of
from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.convert import convert_all
from nn_meter.builder.profiling.graphs import collect_graphs, is_known
from nn_meter.builder.profiling.measure import Model, ModelFailedError
from nn_meter.builder.profiling.plan import FixedPlan
from nn_meter.builder.profiling.references import fill_references
from nn_meter.builder.profiling.results import TestCases
from nn_meter.builder.profiling.store import Failure, Store, graph_reference
from nn_meter.builder.workspace import Workspace, make_folder, write_json
from nn_meter.errors import GraphUnavailableError, ResultFileError
from nn_meter.latency import Latency
from nn_meter.progress import Progress

__all__ = ["ProfileRun", "ProfileSummary", "case_models"]

log = logging.getLogger(__name__)

_MS_PER_NS = 1e-6
_VIEW_EVERY_S = 10.0


@dataclass(kw_only=True)
class ProfileSummary:
    """What one call of ``profile_models`` did; filled in as it goes.

    Attributes:
        measured: Test cases timed now.
        kept: Test cases that an earlier run had finished timing.
        failed: ``test case: model`` to why it has no latency.
        graphs: How many models of the test cases have an executed graph that is known.
        runtime_s: Seconds spent inside the runtime's measured runs.
        environment: What was measured in, in words.
    """

    measured: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, Failure] = field(default_factory=dict)
    graphs: int = 0
    runtime_s: float = 0.0
    environment: str = ""


def case_models(
    workspace: Workspace, testcase: str, case: Mapping[str, dict[str, Any]]
) -> list[Model]:
    """The models of a test case, their files hashed; an entry without shapes gets them."""
    found = []
    for name, entry in case.items():
        path = workspace.resolve(entry["model"])
        content = hash_model(path)
        info = read_info(path)
        if "shapes" not in entry:
            if info is None:
                raise ResultFileError(
                    f"{testcase}: {name}: it has no shapes, and nn-Meter did not make its model; "
                    "give the shapes of its inputs"
                )
            entry["shapes"] = [list(shape) for shape in info.shapes]
        shapes = entry["shapes"]
        told = info is not None and info.sha256 == content and info.shapes == shapes
        found.append(
            Model(
                name=name,
                path=path,
                hash=measure.identity(content, shapes),
                shapes=shapes,
                converted=entry.get("converted_model"),
                reference=(info.outputs or None) if info is not None and told else None,
            )
        )
    return found


@dataclass(kw_only=True)
class ProfileRun:
    """One call of ``profile_models``."""

    workspace: Workspace
    connection: Connection
    store: Store
    environment: int
    campaign: int
    testcases: TestCases
    metrics: tuple[str, ...]
    time_limit_s: float
    save_name: str
    summary: ProfileSummary
    timed: bool
    asked_for_graphs: bool
    latest: bool = True
    folder: Path | None = None
    earlier: TestCases = field(default_factory=dict)
    reported: set[str] = field(default_factory=set)
    lost: dict[str, dict[str, Failure]] = field(default_factory=dict)
    viewed_at_s: float = 0.0

    def profile(
        self, have_converted: bool, keep_latencies: bool, progress: Progress, *, fresh: bool
    ) -> None:
        cases: dict[str, list[Model]] = {}
        todo: dict[str, list[Model]] = {}
        shared: dict[str, Sequence[dict[str, Any]] | None] = {}
        for name, case in self.testcases.items():
            given = {
                model
                for model, entry in case.items()
                if keep_latencies and entry.get("latency") is not None
            }
            models = case_models(
                self.workspace, name, {m: entry for m, entry in case.items() if m not in given}
            )
            if have_converted:
                self._check_converted(name, models)
            else:
                models = [replace(model, converted=None) for model in models]
            models = [  # equal models share what is known of them: there may be 40,000
                replace(m, reference=shared.setdefault(m.hash, m.reference) or m.reference)
                for m in models
            ]
            for model in models:  # what an earlier run found, elsewhere maybe, is not this one's
                for found in ("latency", "error", "graph"):
                    case[model.name].pop(found, None)
            cases[name] = models
        with self._views():
            if self.asked_for_graphs:
                self._collect_graphs(cases, progress, fresh=fresh)
            for name, models in cases.items():
                if self.timed and models and not self._finished(name, models):
                    todo[name] = models
                    continue
                self._report(name, models)
                if self.timed:
                    self.summary.kept.append(name)
            self._say_how_often(todo)
            ready = todo if have_converted else self._convert(todo, progress)
            self._measure_all(ready, progress)
            if ready:
                progress("profile", len(ready), len(ready), "")

    def _collect_graphs(
        self, cases: Mapping[str, list[Model]], progress: Progress, *, fresh: bool
    ) -> None:
        """Ask what the runtime executes of all models, and of what is around their blocks."""
        asked = {model.hash: model for models in cases.values() for model in models}
        bare = [
            model
            for digest, model in asked.items()
            if model.reference is None and not is_known(self.store, self.environment, digest)
        ]
        found = fill_references(bare, time_limit_s=self.time_limit_s)
        asked |= {m.hash: replace(m, reference=found.get(m.hash)) for m in bare}
        around = results.read_situations(self.workspace)
        for name in cases:
            for situation, case in around.get(name, {}).items():
                try:
                    models = case_models(self.workspace, f"{name}, {situation}", case)
                except ResultFileError as exc:
                    log.warning("%s, %s is left out: %s", name, situation, exc)
                    continue
                for model in models:
                    asked.setdefault(model.hash, model)
        try:
            collect_graphs(
                self.connection,
                self.workspace,
                self.store,
                self.environment,
                asked,
                fresh=fresh,
                time_limit_s=self.time_limit_s,
                progress=progress,
            )
        except GraphUnavailableError as exc:
            if not self.timed:
                raise
            log.warning(
                "%s does not tell what it executes, so verdicts rest on latencies: %s",
                self.connection.name,
                exc,
            )

    def _say_how_often(self, todo: Mapping[str, Sequence[Model]]) -> None:
        """Say what rounds cost where the guide asks for each model once."""
        if todo and not self.connection.sessions and self._profile_rounds > 1:
            log.info(
                "%s answers with averages, so it is asked %s times for each of %s models, in "
                "rounds; ROUNDS: 1 in backend_config.yaml asks once",
                self.connection.name,
                self._profile_rounds,
                sum(map(len, todo.values())),
            )

    def _check_converted(self, name: str, models: Sequence[Model]) -> None:
        """Refuse models that were not converted; write down those whose conversion failed."""
        for model in models:
            if model.converted is not None:
                continue
            error = self.testcases[name][model.name].get("error")
            if error is None:
                raise ResultFileError(
                    f"{name}: {model.name}: have_converted is set, but it has no converted_model; "
                    "run convert_models first"
                )
            self._fail(name, model, Failure(kind=error["kind"], reason=error["reason"]))

    def _finished(self, name: str, models: Sequence[Model]) -> bool:
        hashes = {model.name: model.hash for model in models}
        if self.store.failures(self.campaign, name, hashes):
            return True
        if self.connection.sessions:
            return self._plan(models).next(self.store.samples(self.campaign, name, hashes)) is None
        answers = self._answers(name, hashes)
        return all(len(rows) >= self._profile_rounds for rows in answers.values())

    def _answers(self, name: str, hashes: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
        """What the visits to models gave, of a backend that opens no sessions."""
        found = self.store.metrics(self.campaign, name, hashes)
        return {
            model: [row for row in rows if set(self.metrics) <= set(row)]
            for model, rows in found.items()
        }

    def _visits_done(self, name: str, models: Sequence[Model]) -> dict[str, int]:
        """How many visits each model has had, of a backend that opens no sessions."""
        return {m: len(rows) for m, rows in self._answers(name, _hashes(models)).items()}

    @property
    def _profile_rounds(self) -> int:
        return self._settings.profile_rounds

    def _plan(self, models: Sequence[Model]) -> FixedPlan:
        return plan_of(models, self._settings)

    @property
    def _settings(self) -> CaseSettings:
        return CaseSettings(
            backend=self.connection.name,
            sessions=self.connection.sessions,
            own_file_method=self.connection.own_file_method,
            runs=self.connection.settings.RUNS,
            warmups=self.connection.settings.WARMUPS,
            metrics=self.metrics,
            rounds=self.connection.settings.ROUNDS,
            in_turn=self.connection.in_turn,
            dtype=self.connection.environment.dtype,
        )

    def _convert(self, todo: dict[str, list[Model]], progress: Progress) -> dict[str, list[Model]]:
        if self.connection.own_file_method:
            return todo
        unique = {model.hash: model for models in todo.values() for model in models}
        converted = convert_all(
            self.connection,
            self.workspace,
            unique,
            time_limit_s=self.time_limit_s,
            progress=progress,
        )
        ready: dict[str, list[Model]] = {}
        for name, models in todo.items():
            failed = [m for m in models if isinstance(converted[m.hash], Failure)]
            for model in failed:
                outcome = converted[model.hash]
                assert isinstance(outcome, Failure)
                self._fail(name, model, outcome)
            if failed:
                self._report(name, models)
            else:
                ready[name] = [self._converted(model, converted[model.hash]) for model in models]
        if self.connection.sessions:
            return self._with_references(ready)
        return ready

    @staticmethod
    def _converted(model: Model, outcome: Model | Failure) -> Model:
        assert isinstance(outcome, Model)
        return replace(model, converted=outcome.converted)

    def _with_references(self, ready: dict[str, list[Model]]) -> dict[str, list[Model]]:
        """Compute the reference outputs that are missing, of models not made by nn-Meter."""
        bare = {
            model.hash: model
            for models in ready.values()
            for model in models
            if model.reference is None and not self.store.checked(self.environment, model.hash)
        }
        found = fill_references(bare.values(), time_limit_s=self.time_limit_s)
        return {
            name: [
                replace(model, reference=model.reference or found.get(model.hash))
                for model in models
            ]
            for name, models in ready.items()
        }

    def _measure_all(self, ready: Mapping[str, Sequence[Model]], progress: Progress) -> None:
        """Measure test cases whose models are converted, and report each."""
        for done, (name, models) in enumerate(ready.items()):
            progress("profile", done, len(ready), name)
            self._measure(name, models)
            self._measured(name, models)

    def _measured(self, name: str, models: Sequence[Model]) -> None:
        self._report(name, models)
        self.summary.measured.append(name)
        self._refresh_view()

    def _measure(self, name: str, models: Sequence[Model]) -> None:
        folder = self.workspace.converted_dir / self.connection.name
        if not self.connection.sessions:
            make_folder(folder)
        try:
            self.summary.runtime_s += measure_case(
                self.connection.measuring,
                models,
                self._settings,
                store=self.store,
                campaign=self.campaign,
                testcase=name,
                save_path=folder,
                check=lambda model: not self.store.checked(self.environment, model.hash),
                checked=lambda model, found: self.store.add_check(
                    self.environment, model.hash, found
                ),
                time_limit_s=self.time_limit_s,
                done=self._visits_done(name, models),
                told=lambda conditions: self.connection.device_log.add(name, conditions),
            )
        except ModelFailedError as exc:
            self._fail(name, exc.model, exc.failure)

    def _fail(self, name: str, model: Model, failure: Failure) -> None:
        if failure.kind == measure.DEVICE:  # the next run tries again
            self.lost.setdefault(name, {})[model.name] = failure
        else:
            self.store.add_failure(self.campaign, name, model.name, model.hash, failure)
        log.warning("%s: %s: %s: %s", name, model.name, failure.kind, failure.reason)

    def _report(self, name: str, models: Sequence[Model]) -> None:
        """Fill a test case's entries from the store."""
        case = self.testcases[name]
        hashes = {model.name: model.hash for model in models}
        failures = self.store.failures(self.campaign, name, hashes) if self.timed else {}
        graphs = self._graphs(hashes) if self.asked_for_graphs else {}
        if not self.timed:  # then nothing else would say so
            failures |= {m: graph for m, graph in graphs.items() if isinstance(graph, Failure)}
        failures |= self.lost.get(name, {})
        for model, failure in failures.items():
            case[model].pop("latency", None)
            case[model]["error"] = {"kind": failure.kind, "reason": failure.reason}
            self.summary.failed[f"{name}: {model}"] = failure
        latencies: dict[str, str] = {}
        samples = self.store.samples(self.campaign, name, hashes)
        answers = self._answers(name, hashes)
        for model in hashes:
            if model in failures:
                continue
            case[model].pop("error", None)
            if visits := samples[model]:
                ns = [int(value) for visit in visits for value in visit]
                mean = sum(ns) / len(ns)
                std = (sum((value - mean) ** 2 for value in ns) / len(ns)) ** 0.5
                latencies[model] = str(
                    Latency(round(mean * _MS_PER_NS, 6), round(std * _MS_PER_NS, 6))
                )
            elif rows := answers[model]:
                answer = pooled(rows)
                case[model].update(answer)
                latencies[model] = str(answer["latency"])
        if self.timed or self._finished(name, models):  # what was measured before still holds
            for model, text in latencies.items():
                case[model]["latency"] = text
        for model, graph in graphs.items():
            if not isinstance(graph, Failure):
                case[model]["graph"] = graph_reference(self.environment, hashes[model])
                self.summary.graphs += 1
        self.store.add_reported(self.environment, name, latencies)
        self.reported.add(name)

    def _graphs(self, hashes: Mapping[str, str]) -> dict[str, ExecutedGraph | Failure]:
        """What is known of the executed graphs of a test case's models."""
        found = {m: self.store.graph(self.environment, digest) for m, digest in hashes.items()}
        return {model: stored.graph for model, stored in found.items() if stored is not None}

    # --- the JSON views --------------------------------------------------------------------------

    @contextmanager
    def _views(self) -> Iterator[None]:
        """Write the views at the end, be it a bad one."""
        self.folder = results.results_folder(
            self.workspace, self.connection.name, self.connection.environment
        )
        self.earlier = results.read_view(self.folder / self.save_name, "profiled results")
        write_json(self.folder / "origin_testcases.json", self._origin())
        self.viewed_at_s = time.monotonic()
        try:
            yield
        finally:
            self._write_views()

    def _origin(self) -> TestCases:
        """The test cases as they were generated, without what was measured."""
        return {
            name: {
                model: {key: entry[key] for key in ("model", "shapes")}
                for model, entry in case.items()
            }
            for name, case in self.testcases.items()
        }

    def _refresh_view(self) -> None:
        if time.monotonic() - self.viewed_at_s > _VIEW_EVERY_S:
            self._write_views()
            self.viewed_at_s = time.monotonic()

    def _write_views(self) -> None:
        known = {
            # what this run did not come to is as an earlier one left it
            name: case if name in self.reported else self.earlier.get(name, case)
            for name, case in self.testcases.items()
        }
        view = results.profiled_view(known, detail=self.workspace.ruletest.DETAIL)
        if not self.latest:
            assert self.folder is not None
            write_json(self.folder / self.save_name, view)
            return
        results.write_results(self.workspace, self.folder, self.save_name, view)
        results.write_errors(
            self.workspace,
            [f"{name}: {f.kind}: {f.reason}" for name, f in self.summary.failed.items()],
        )


def _hashes(models: Sequence[Model]) -> dict[str, str]:
    return {model.name: model.hash for model in models}
