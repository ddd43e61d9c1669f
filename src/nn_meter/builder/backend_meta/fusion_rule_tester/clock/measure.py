"""Asking the clock: the models of all questions made, then loaded and timed pass by pass.

The first passes go over a third of the questions each. Not over less: loads of a question that come
right after one another are alike.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester import build
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.decision import Opinion
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.design import (
    HEAD,
    REFERENCE,
    Design,
    Method,
    between,
    design_edge,
    reference_design,
    without_head,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.plan import (
    NOT_REACHED,
    Bench,
    Question,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.shelf import Shelf
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.statistics import (
    Spread,
    Times,
    times_of,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import Chain, model_config
from nn_meter.builder.backends.base import Samples
from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.measure import DEVICE, Model
from nn_meter.builder.profiling.store import Failure, Store, StoredTrial
from nn_meter.builder.profiling.trials import Loaded, Trial, TrialRunner
from nn_meter.builder.workspace import Workspace
from nn_meter.errors import NNMeterError, OperatorError
from nn_meter.progress import Progress

__all__ = ["Asked", "Measured", "bench_of", "measure", "trial_names", "was_asked"]

_PREFIX = "clock:"
_GROUP = 12  # questions that share the models of a head
_PARTS = 3  # of the questions, one after the other, get their first loads, ...
_FIRST = 3  # ... so many: where loading takes long, there are verdicts before all were loaded once
_MAKING = 3  # times the budget is what making models may take: TensorFlow's take as long as timing
_LOST = 3  # loads that went down, of models that had run: then they are taken for the reason
_AT_ONCE = 4  # groups whose models are made together
_TOO_LATE = Opinion(
    verdict="undecided",
    reason="making its models took too long for the time (TIME_BUDGET; of validate, --budget)",
    settled=True,
)
_MOST_S = 4.0  # for the models of one load; a core that is slow for so long is left for later


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A rule and its edges.

    Attributes:
        rule: Its name.
        config: The keys that its models are made with.
        ops: The operators of its chain, if it is one.
        cases: Case -> its models, if it is a test case of cases.
        files: Their models and the block's, by name.
    """

    rule: str
    config: Mapping[str, Any]
    ops: tuple[str, ...] = ()
    cases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, Model] = field(default_factory=dict)


@dataclass(kw_only=True)
class Measured:
    """What measuring did.

    Attributes:
        bench: The questions, with what the clock says of each.
        runs, counted: How many runs there were, and how many of them were at full speed.
        build_s, convert_s, measure_s: Seconds that each took.
    """

    bench: Bench
    runs: int = 0
    counted: int = 0
    build_s: float = 0.0
    convert_s: float = 0.0
    measure_s: float = 0.0


def bench_of(
    asked: Iterable[Asked],
    store: Store,
    campaign: int,
    *,
    method: Method,
    alpha: float,
    confidence: float,
    time_limit_s: float = 300.0,
) -> tuple[Bench, dict[str, str]]:
    """The questions of rules, with what the store has of each.

    Args:
        asked: The rules.
        store: Where trials are.
        campaign: Number of the campaign that counts.
        method: The constants.
        alpha: EPS_ALPHA.
        confidence: With which each verdict is to hold.
        time_limit_s: For designing a question with a user's operator.

    Returns:
        The bench; and the questions that cannot be built, and why.
    """
    questions: dict[str, Question] = {}
    references: dict[str, list[Times]] = {}
    refused: dict[str, str] = {}
    known = store.trials(campaign, _PREFIX)
    asked = list(asked)
    designs = _designs(asked, method, time_limit_s)
    for each in asked:
        if each.cases:
            question = _case_question(each)
            questions[question.name] = question
        for edge in range(1, len(each.ops)):
            name = f"{_PREFIX}{each.rule}:{edge}"
            design = designs[each.rule, edge]
            if isinstance(design, NNMeterError):
                refused[name] = str(design)
                continue
            reference = _reference_name(design)
            if reference not in references:
                keys = _keys(reference_design(design))
                trials = known.get(reference, ())
                references[reference] = [t for t, _ in _loads(trials, keys, method.replicas)]
            questions[name] = Question(
                name=name, rule=each.rule, design=design, reference=reference
            )
    bench = Bench(
        questions=questions,
        references=references,
        method=method,
        alpha=alpha,
        confidence=confidence,
        refused=refused,
    )
    for name, question in questions.items():
        keys, trials = _keys_of(question), known.get(name, ())
        question.missing.update(
            (part, _reason(part, failure))
            for part, failure in store.failures(campaign, name, keys).items()
        )
        question.cost_s = _runtime_s(trials, keys)
        bench.replay(question, _loads(trials, keys, bench.replicas(question)))
    bench.learn()
    return bench, refused


def _designs(
    asked: Sequence[Asked], method: Method, time_limit_s: float
) -> dict[tuple[str, int], Design | NNMeterError]:
    """The design of each edge; one with a user's operator is asked for in another process."""
    builtin = {e.name for e in registry.entries("operator") if e.origin == "builtin"}
    found: dict[tuple[str, int], Design | NNMeterError] = {}
    elsewhere: dict[tuple[str, int], tuple[Sequence[str], str, Mapping[str, Any]]] = {}
    for each in asked:
        for edge in range(1, len(each.ops)):
            head, tail = each.ops[:edge], each.ops[edge]
            if not builtin.issuperset(each.ops):
                elsewhere[each.rule, edge] = head, tail, each.config
                continue
            try:
                found[each.rule, edge] = design_edge(head, tail, each.config, method)
            except OperatorError as exc:
                found[each.rule, edge] = exc
    answers = build.designs_elsewhere(list(elsewhere.values()), method, time_limit_s)
    return {**found, **dict(zip(elsewhere, answers, strict=True))}


def was_asked(store: Store, campaign: int) -> bool:
    """Whether the clock was asked of anything."""
    return store.has_any(campaign, _PREFIX)


def trial_names(store: Store, campaign: int, asked: Iterable[Asked]) -> list[str]:
    """What the trials of rules are stored under."""
    starts = tuple(f"{_PREFIX}{each.rule}:" for each in asked)
    return [name for name in store.trials(campaign, _PREFIX) if name.startswith(starts)]


def _case_question(asked: Asked) -> Question:
    config = asked.config
    return Question(
        name=f"{_PREFIX}{asked.rule}:cases",
        rule=asked.rule,
        cases=asked.cases,
        files=asked.files,
        call=Chain(
            implement=config["IMPLEMENT"],
            ops=(REFERENCE,),
            input_shape=(1,),
            config=model_config(config),
        ),
    )


def _reference_name(design: Design) -> str:
    keys = sorted(build.chain_key(chain) for chain in reference_design(design).values())
    return f"{_PREFIX}reference:{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:16]}"


def _loads(
    trials: Iterable[StoredTrial], keys: Mapping[str, str], replicas: int
) -> Iterator[tuple[Times, Spread]]:
    """The times of each load, and the spread that it was looked at with."""
    for trial in trials:
        try:
            spread = Spread.from_json(trial.notes)
        except (KeyError, TypeError, ValueError):
            continue  # nobody knows how it was looked at
        seen: dict[str, list[Samples]] = {}
        for part, key, ns in trial.visits:
            if keys.get(part) == key:
                seen.setdefault(part, []).append(ns)
        if times := times_of(seen, trial.level_ns, replicas):
            yield times, spread


def _runtime_s(trials: Iterable[StoredTrial], keys: Mapping[str, str]) -> float:
    """Seconds of runs that count."""
    return sum(
        float(ns.sum()) * 1e-9
        for trial in trials
        for part, key, ns in trial.visits
        if keys.get(part) == key
    )


def _keys(models: Mapping[str, Chain]) -> dict[str, str]:
    return {part: build.chain_key(model) for part, model in models.items()}


def _keys_of(question: Question) -> dict[str, str]:
    """What tells the samples of each part from those of another model."""
    chains = question.chains() if question.design is None else question.design.models
    return _keys(chains) | _hashes(question.files)


def _hashes(files: Mapping[str, Model]) -> dict[str, str]:
    return {part: model.hash for part, model in files.items()}


def measure(
    workspace: Workspace,
    connection: Connection,
    store: Store,
    campaign: int,
    bench: Bench,
    *,
    budget_s: float,
    time_limit_s: float,
    progress: Progress,
) -> Measured:
    """Load and time the models of questions until all are settled or the time is up.

    Args:
        workspace: Where models are made and kept.
        connection: The backend; it opens sessions.
        store: Where trials go.
        campaign: Number of the campaign that they belong to.
        bench: The questions; told what is found.
        budget_s: Seconds for loading and timing. Making and converting models may take three times
            as long; a question whose models are not there by then is left open.
        time_limit_s: For one operation on one model.
        progress: Told how far it is.
    """
    if all(bench.is_settled(question) for question in bench.questions.values()):
        return Measured(bench=bench)
    return _Measurement(
        connection=connection,
        store=store,
        campaign=campaign,
        bench=bench,
        shelf=Shelf(workspace, connection, time_limit_s=time_limit_s, progress=progress),
        time_limit_s=time_limit_s,
        progress=progress,
    ).carry_out(budget_s)


@dataclass(kw_only=True)
class _Measurement:
    """One call of ``measure``."""

    connection: Connection
    store: Store
    campaign: int
    bench: Bench
    shelf: Shelf
    time_limit_s: float
    progress: Progress
    done: Measured = field(init=False)
    tries: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    end_s: float = 0.0

    def __post_init__(self) -> None:
        self.done = Measured(bench=self.bench)

    def carry_out(self, budget_s: float) -> Measured:
        """Make the models, then measure."""
        bench, method = self.bench, self.bench.method
        open_ = [q for q in bench.questions.values() if not bench.is_settled(q)]
        references = self._make_references(open_)
        groups = self._make(_by_head(open_), _MAKING * budget_s)
        begun = bench.started_s = bench.clock()
        self.end_s = begun + budget_s
        with TrialRunner(
            self.connection,
            self.store,
            self.campaign,
            visits=method.visits,
            runs=method.runs,
            share=method.share,
            most_s=_MOST_S,
            time_limit_s=self.time_limit_s,
        ) as runner:
            self._time_references(runner, references)
            for start in range(_PARTS):
                for _ in range(_FIRST):
                    self._pass(runner, groups[start::_PARTS])
            while self._pass(runner, groups):
                pass
        for question in chain(*groups):
            if not question.is_begun and not question.opinion.settled:
                question.opinion = NOT_REACHED
        done = self.done
        done.measure_s = bench.clock() - begun
        done.build_s, done.convert_s = self.shelf.build_s, self.shelf.convert_s
        return done

    def _goes_on(self) -> bool:
        return self.bench.clock() < self.end_s

    def _make_references(self, questions: Iterable[Question]) -> dict[str, dict[str, Chain]]:
        """Make the models of the references that were loaded too seldom."""
        bench = self.bench
        references = {
            q.reference: reference_design(q.design)
            for q in questions
            if q.design is not None
            and len(bench.references[q.reference]) < bench.method.first_loads
        }
        self.shelf.fetch(each for models in references.values() for each in models.values())
        return references

    def _make(
        self, groups: Sequence[Sequence[Question]], limit_s: float
    ) -> list[Sequence[Question]]:
        """Make the models of groups of questions: as many as the time allows, and of one group.

        Groups are made a few at a time, so that all processes that convert have something to do.
        """
        found: list[Sequence[Question]] = []
        start = time.monotonic()
        for at in range(0, len(groups), _AT_ONCE):
            some = groups[at : at + _AT_ONCE]
            if found and time.monotonic() - start > limit_s:
                for question in chain(*some):
                    if not question.loads:
                        question.opinion = _TOO_LATE
                continue
            for question in chain(*some):
                if question.design is not None:
                    _leave_out(question, question.design, self.shelf)
                else:
                    self.shelf.put(question.files)
            self.shelf.fetch(each for q in chain(*some) for each in q.chains().values())
            found += some
        return found

    def _time_references(
        self, runner: TrialRunner, references: Mapping[str, Mapping[str, Chain]]
    ) -> None:
        bench = self.bench

        def take(trial: Trial, loaded: Loaded) -> None:
            self._count(loaded)
            if times := times_of(loaded.visits, loaded.level_ns, bench.method.replicas):
                bench.references[trial.name].append(times)

        # one load of each at a time: two in a row get the same places in memory
        for count in range(bench.method.first_loads):
            groups = []
            for name, models in references.items():
                trial, _ = _trial(name, _keys(models), self.shelf, bench.spread)
                if trial.models and len(bench.references[name]) <= count:
                    groups.append([trial])
            runner.run(groups, take=take, goes_on=self._goes_on)
        bench.learn()

    def _pass(self, runner: TrialRunner, groups: Sequence[Sequence[Question]]) -> bool:
        """One more load for each question of some groups that waits for one; whether any does."""
        names = {question.name for question in self.bench.waiting(self.tries)}
        waiting = [left for group in groups if (left := _named(group, names))]
        if not waiting or not self._goes_on():
            return False
        self.shelf.fetch(each for q in chain(*waiting) for each in q.chains().values())
        found = [[t for q in group if (t := self._next_trial(q))] for group in waiting]
        runner.run([trials for trials in found if trials], take=self._take, goes_on=self._goes_on)
        self.bench.learn()
        return True

    def _next_trial(self, question: Question) -> Trial | None:
        """A question's next load; None: it cannot be asked."""
        self.tries[question.name] = self.tries.get(question.name, 0) + 1
        keys = _keys(question.chains()) | _hashes(question.files)
        trial, failures = _trial(question.name, keys, self.shelf, self.bench.spread)
        for part, failure in failures.items():
            question.missing[part] = _reason(part, failure)
            self.store.add_failure(self.campaign, question.name, part, keys[part], failure)
        if not question.impossible:
            return trial
        self.bench.look(question)
        return None

    def _take(self, trial: Trial, loaded: Loaded) -> None:
        bench = self.bench
        self._count(loaded)
        question = bench.questions[trial.name]
        for part, failure in loaded.failures.items():
            question.missing[part] = _reason(part, failure)
        if loaded.lost:
            self._lose(trial, loaded.lost)
        times = times_of(loaded.visits, loaded.level_ns, bench.replicas(question))
        if times:
            question.loads.append(times)
        question.cost_s += loaded.runtime_s
        if times or question.impossible:  # no other look at what was looked at
            bench.look(question)
        settled = sum(bench.is_settled(q) for q in bench.questions.values())
        name = trial.name.removeprefix(_PREFIX)
        self.progress("clock", settled, len(bench.questions), name)

    def _lose(self, trial: Trial, lost: Mapping[str, Failure]) -> None:
        """Take notice of a load that went down: a few times, of one that had run, that is chance.

        Something else may have ended the process: for want of memory, say.
        """
        question = self.bench.questions[trial.name]
        self.lost[trial.name] = self.lost.get(trial.name, 0) + 1
        if question.loads and self.lost[trial.name] < _LOST:
            return
        for part, failure in lost.items():
            question.missing[part] = _reason(part, failure)
            if failure.kind != DEVICE:
                self.store.add_failure(
                    self.campaign, trial.name, part, trial.digests[part], failure
                )

    def _count(self, loaded: Loaded) -> None:
        self.done.runs += loaded.runs
        self.done.counted += loaded.counted


def _named(group: Sequence[Question], names: Collection[str]) -> list[Question]:
    return [question for question in group if question.name in names]


def _by_head(questions: Sequence[Question]) -> list[list[Question]]:
    """Groups that share the models of the head, largest first, none of more than a few.

    They stay the same from pass to pass, so that a process is given what it has loaded before.
    """
    found: dict[str, list[Question]] = {}
    for question in questions:
        if question.design is None:
            key = question.name
        else:
            key = build.chain_key(question.design.models[HEAD])
        found.setdefault(key, []).append(question)
    groups = [
        group[i : i + _GROUP] for group in found.values() for i in range(0, len(group), _GROUP)
    ]
    return sorted(groups, key=len, reverse=True)


def _trial(
    name: str, keys: Mapping[str, str], shelf: Shelf, spread: Spread
) -> tuple[Trial, dict[str, Failure]]:
    """A load of models, and the parts whose model cannot be had.

    The spread that it will be looked at with is kept with it: what was decided is decided alike
    when it is read again.
    """
    found = {part: shelf.find(key) for part, key in keys.items()}
    models = {p: replace(m, name=p) for p, m in found.items() if isinstance(m, Model)}
    trial = Trial(
        name=name,
        models=models,
        digests={part: keys[part] for part in models},
        notes=spread.to_json(),
    )
    return trial, {part: m for part, m in found.items() if isinstance(m, Failure)}


def _leave_out(question: Question, design: Design, shelf: Shelf) -> None:
    """Leave out of a question the barriers that the runtime refuses even alone."""
    reference = reference_design(design)
    for name in design.barriers:
        model = reference.get(without_head(name))
        found = shelf.find_chain(model) if model is not None else None
        if isinstance(found, Failure):
            for part in (
                between(name),
                between(name, tail=True),
                without_head(name),
                without_head(name, design.tail),
            ):
                question.missing[part] = _reason(name, found)


def _reason(part: str, failure: Failure) -> str:
    return f"{part}: {failure.kind}: {failure.reason}"
