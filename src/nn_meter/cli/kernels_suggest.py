"""``nn-meter kernels --suggest``: rules learned where a runtime executed a model otherwise."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nn_meter.builder.workspace import make_folder
from nn_meter.cli.console import one_line, progress_shown, say
from nn_meter.errors import ConfigError, ResultFileError
from nn_meter.fusion_rules.read import read_data
from nn_meter.fusion_rules.write import write_rules

if TYPE_CHECKING:
    from nn_meter.builder.workspace import Workspace
    from nn_meter.kernel_detector.check import Check
    from nn_meter.kernel_detector.graph import Graph
    from nn_meter.kernel_detector.suggest import Known, Learned

__all__ = ["Suggested", "check_suggest", "print_suggested", "suggest", "suggest_options"]

F = TypeVar("F", bound=Callable[..., Any])

_SAID_ELSEWHERE = (  # loggers: of what the list of questions says, and what was warned of once
    "nn_meter.builder.backend_meta.fusion_rule_tester.graph_evidence",
    "nn_meter.kernel_detector.rule_splitter",
)


def suggest_options(command: F) -> F:
    """Add the options of learning."""
    for option in (
        click.option(
            "--against",
            metavar="MODEL",
            multiple=True,
            type=click.Path(path_type=Path),
            help="With --suggest: show how right the rules are on this model, which they are not "
            "learned from, before and after. May be given more than once.",
        ),
        click.option(
            "--suggest",
            "suggest_file",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="With --check: ask the backend what the rules lack to cut the model as it does, "
            "and write them, together with what is found, to this rule file.",
        ),
    ):
        command = option(command)
    return command


def check_suggest(
    suggest_file: Path | None, against: Sequence[Path], backend: str | None, model: Path
) -> None:
    """Refuse options that do not go together, before anything is done.

    Raises:
        ConfigError: Says which, and what is missing.
    """
    if suggest_file is None:
        if against:
            raise ConfigError(
                "--against: shows what rules are worth that --suggest finds; give --suggest FILE, "
                "too"
            )
        return
    if backend is None:
        raise ConfigError(
            "--suggest: learns from what a runtime executes; give --check BACKEND, too"
        )
    if suggest_file.exists() and not suggest_file.is_file():
        what = "a folder" if suggest_file.is_dir() else "no ordinary file"
        raise ConfigError(f"{suggest_file}: is {what}, so no rules can be written there")
    make_folder(suggest_file.absolute().parent)
    for other in against:
        if _is_same(other, model):
            raise ConfigError(
                f"--against: {other} is the model that rules are learned from; give others"
            )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False  # one of them is not there: whoever reads it says so


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """A model by the rules as they were and as they are."""

    model: str
    is_learned_from: bool
    before: Check
    after: Check


@dataclass(frozen=True, kw_only=True)
class Suggested:
    """What was learned, and what it is worth.

    Attributes:
        file: The rule file that was written.
        backend: Who was asked.
        learned: What was asked and found.
        models: How right kernels are, of the model learned from and of the others.
        wall_s: Seconds that asking took.
    """

    file: Path
    backend: str
    learned: Learned
    models: Sequence[_Scored]
    wall_s: float

    @property
    def before(self) -> Check:
        """How right the kernels of the model are by the rules as they were."""
        return self.learned.before.check

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "backend": self.backend,
            "rules": str(self.file),
            "testcases": [asked.to_json() for asked in self.learned.asked],
            "cannot_be_asked": [
                {"operators": list(u.operators), "edges": u.edges, "reason": u.reason}
                for u in self.learned.unasked
            ],
            "still_differ": [left.to_json() for left in self.learned.left],
            "models": [
                {
                    "model": scored.model,
                    "learned_from": scored.is_learned_from,
                    "before": _figures(scored.before),
                    "after": _figures(scored.after),
                }
                for scored in self.models
            ],
            "wall_s": round(self.wall_s, 3),
        }


def _figures(check: Check) -> dict[str, Any]:
    data = check.to_json()
    return {key: data[key] for key in ("f1", "precision", "recall", "edges", "untold")}


def suggest(
    model: Path,
    graph: Graph,
    *,
    rules: str,
    against: Sequence[Path],
    shapes: Mapping[str, Sequence[int]],
    backend: str,
    workspace: Workspace,
    file: Path,
) -> Suggested:
    """Learn from a model, and write the rules.

    Args:
        model: The model.
        graph: What was read of it.
        rules: Where the rules are.
        against: Models to show the rules' worth on.
        shapes: Of ``--shape``; each for the models that have such an input.
        backend: Name of the backend.
        workspace: A temporary one for it.
        file: Where the rules go.

    Raises:
        NNMeterError: A model cannot be read, the backend does not tell what it executes, …
    """
    from nn_meter.cli import steps
    from nn_meter.kernel_detector.check import told_apart, warn_of_another_runtime
    from nn_meter.kernel_detector.rule_source import load_rules
    from nn_meter.kernel_detector.suggest import Asker, Known, cut, learn

    data, _ = read_data(rules)
    old = load_rules(rules)
    graphs = {path: _read(path, shapes) for path in against}
    connected = steps.connect(backend, _by_graph(workspace))
    warn_of_another_runtime(old, connected)

    with progress_shown() as progress, _without_repetitions():
        models: dict[Path, Known] = {}
        for path, read in {model: graph, **graphs}.items():
            own = {name: shape for name, shape in shapes.items() if name in read.inputs}
            truth = told_apart(path, read, connected, own)
            models[path] = Known(graph=read, truth=truth)
            progress("check", len(models), 1 + len(graphs), path.name)
        start = time.monotonic()
        learned = learn(models[model], data, Asker(connected, workspace, progress))
        wall_s = time.monotonic() - start
    new = load_rules(learned.rules)
    scored = [
        _Scored(
            model=graph.name,
            is_learned_from=True,
            before=learned.before.check,
            after=learned.after.check,
        )
    ]
    with _without_repetitions():
        scored += [
            _Scored(
                model=graphs[path].name,
                is_learned_from=False,
                before=cut(models[path], old).check,
                after=cut(models[path], new).check,
            )
            for path in graphs
        ]
    _write(file, learned.rules)
    return Suggested(file=file, backend=backend, learned=learned, models=scored, wall_s=wall_s)


def _by_graph(workspace: Workspace) -> Workspace:
    from dataclasses import replace

    ruletest = workspace.ruletest.model_copy(update={"EVIDENCE": "graph"})
    return replace(workspace, ruletest=ruletest)


def _read(path: Path, shapes: Mapping[str, Sequence[int]]) -> Graph:
    """Read a model, with the shapes of ``--shape`` if they fit it, else as it is."""
    from nn_meter.errors import ModelFileError
    from nn_meter.kernel_detector.readers import read_model

    try:
        return read_model(path, shapes=shapes)
    except ModelFileError:
        if not shapes:
            raise
    return read_model(path)


def _write(file: Path, rules: Mapping[str, Any]) -> None:
    try:
        write_rules(file.absolute(), rules)
    except ValueError as exc:
        raise ResultFileError(f"{file}: cannot hold these rules: {exc}") from exc


@contextmanager
def _without_repetitions() -> Iterator[None]:
    """Leave out warnings of what is said elsewhere."""
    loggers = [logging.getLogger(name) for name in _SAID_ELSEWHERE]

    def refuse(record: logging.LogRecord) -> bool:
        return False

    for logger in loggers:
        logger.addFilter(refuse)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(refuse)


# --- text ----------------------------------------------------------------------------------------


def print_suggested(found: Suggested) -> None:
    """Print what was learned, and what it is worth."""
    learned = found.learned
    click.echo(
        f"learned from {one_line(found.models[0].model)}: {_many(len(learned.asked), 'test case')} "
        f"asked of {found.backend} in {found.wall_s:.1f} s, {len(learned.kept)} taken over"
    )
    for asked in learned.asked:
        mark = "+" if asked.is_kept else "-"
        reason = f"; {one_line(asked.reason)}" if asked.reason else ""
        where = {s: v for s, v in asked.when.items() if v != asked.verdict}
        situations = "".join(f"; {situation}: {verdict}" for situation, verdict in where.items())
        click.echo(
            f"  {mark} {asked.proposal.name}: {asked.verdict}{situations} "
            f"({asked.proposal.why}: {_many(asked.proposal.edges, 'edge')}{reason})"
        )
    for unasked in learned.unasked:
        click.echo(
            f"  cannot be asked: {' -> '.join(map(one_line, unasked.operators))}, "
            f"{_many(unasked.edges, 'edge')}: {one_line(unasked.reason)}"
        )
    unasked_pairs = {unasked.operators for unasked in learned.unasked}
    for left in learned.left:
        if left.operators in unasked_pairs:
            continue
        said = "fused" if left.fused else "separate"
        click.echo(
            f"  still differs: {' -> '.join(map(one_line, left.operators))}, "
            f"{_many(left.edges, 'edge')}: executed {said}; {one_line(left.why)}"
        )
    rows = [["", "F1 before", "after", "edges", "untold"]]
    for scored in found.models:
        how = "learned from" if scored.is_learned_from else "not learned from"
        figures = [f"{scored.before.f1:.3f}", f"{scored.after.f1:.3f}"]
        counts = [str(scored.after.edges), str(scored.after.untold)]
        rows.append([f"  {one_line(scored.model)} ({how})", *figures, *counts])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        click.echo("  ".join([name.ljust(widths[0]), *aligned]))
    if len(found.models) == 1:
        click.echo("what it is worth on models that it was not learned from --against tells")
    say(f"rules: {found.file}")


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")
