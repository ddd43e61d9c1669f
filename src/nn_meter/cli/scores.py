"""Showing how good verdicts by the clock are: as text, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from nn_meter.builder.backend_meta.fusion_rule_tester.clock.measure import Measured
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.validation import (
    DECIDED,
    Judged,
    Report,
    Score,
    repeatability,
)
from nn_meter.builder.backends.base import Environment
from nn_meter.cli.console import one_line

__all__ = ["Costs", "Run", "Validation", "print_validation", "validation_json"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One time that the clock was asked.

    Attributes:
        report: How its verdicts compare.
        measured: What measuring did.
        wall_s: Seconds that it took, from nothing to the verdicts.
    """

    report: Report
    measured: Measured
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds that went into what the clock is held against.

    Attributes:
        models_s: Building the guide's models.
        formula_s: Converting and timing them.
        graph_s: Asking for their executed graphs.
    """

    models_s: float
    formula_s: float
    graph_s: float


@dataclass(frozen=True, kw_only=True)
class Validation:
    """All that ``validate`` found.

    Attributes:
        backend: Its name.
        environment: What was measured in.
        runs: The runs, one or more.
        refused: Rules that cannot be built, and why.
        costs: Of what the clock is held against.
        total_s: Seconds that the command took.
    """

    backend: str
    environment: Mapping[str, Any]
    runs: Sequence[Run]
    refused: Mapping[str, str] = field(default_factory=dict)
    costs: Costs
    total_s: float = 0.0


# --- JSON ----------------------------------------------------------------------------------------


def validation_json(found: Validation) -> dict[str, Any]:
    """What ``--json`` writes."""
    first = found.runs[0]
    report = first.report
    data: dict[str, Any] = {
        "backend": found.backend,
        "environment": {"backend": found.backend, **found.environment},
        "questions": len(report.questions),
        "cases": report.clock.cases,
        "empty": report.empty,
        "unsupported": report.unsupported,
        "graph_undecided": report.untold,
        **_score_json(report.clock),
        "formula": _formula_json(report.formula_here),
        "formula_on_the_guides_models": _formula_json(report.formula),
        "changed": [judged.name for judged in report.changed],
        "wall_s": round(first.wall_s, 3),
        "total_s": round(found.total_s, 3),
        "curve": _curve_json(report),
        "confusion": report.confusion,
        "cost": {
            **_cost_json(first),
            "models_s": round(found.costs.models_s, 3),
            "formula_s": round(found.costs.formula_s, 3),
            "graph_s": round(found.costs.graph_s, 3),
        },
        "verdicts": [_judged_json(judged) for judged in report.questions],
    }
    if found.refused:
        data["refused"] = dict(found.refused)
    if len(found.runs) > 1:
        same = repeatability([run.report.verdicts() for run in found.runs])
        data["repeats"] = [
            {
                **_score_json(run.report.clock),
                "wall_s": round(run.wall_s, 3),
                "curve": _curve_json(run.report),
                "cost": _cost_json(run),
                "verdicts": [_judged_json(judged) for judged in run.report.questions],
            }
            for run in found.runs
        ]
        data["repeatability"] = {"flips": list(same.flips), "equal": _rounded(same.equal)}
    return data


def _score_json(score: Score) -> dict[str, Any]:
    return {
        "decided": score.decided,
        "right": score.right,
        "coverage": _rounded(score.coverage),
        "accuracy": _rounded(score.accuracy),
        "found": {"fused": score.found, "of": score.fused},
        "false_fused": score.false_fused,
    }


def _formula_json(score: Score) -> dict[str, Any]:
    return {**_score_json(score), "of": score.decided}


def _curve_json(report: Report) -> list[dict[str, Any]]:
    return [
        {"s": round(point.s, 3), "decided": point.decided, "right": point.right}
        for point in report.curve
    ]


def _cost_json(run: Run) -> dict[str, Any]:
    done = run.measured
    return {
        "build_s": round(done.build_s, 3),
        "convert_s": round(done.convert_s, 3),
        "measure_s": round(done.measure_s, 3),
        "loads": sum(judged.loads for judged in run.report.questions),
        "runs": done.runs,
        "counted": done.counted,
    }


def _judged_json(judged: Judged) -> dict[str, Any]:
    opinion = judged.opinion
    return {
        "name": judged.name,
        "latency": opinion.verdict,
        "graph": judged.graph,
        "saving": _rounded(opinion.saving),
        "low": _rounded(opinion.low),
        "high": _rounded(opinion.high),
        "loads": judged.loads,
        "runtime_s": round(judged.runtime_s, 6),
        "reason": opinion.reason,
        "control": opinion.control,
        "timed": judged.timed or None,
        "formula": judged.formula_here,
        "formula_on_the_guides_models": judged.formula,
    }


def _rounded(value: float | None) -> float | None:
    return round(float(value), 4) if value is not None and math.isfinite(value) else None


# --- text ----------------------------------------------------------------------------------------


def print_validation(found: Validation) -> None:
    """Print it: the first run at length, further ones and how they differ in short."""
    for line in _lines(found):
        click.echo(line)


def _lines(found: Validation) -> Iterator[str]:
    first = found.runs[0]
    report = first.report
    yield f"{Environment(**found.environment)}: {_many(len(report.questions), 'question')}"
    left_out = {
        "empty (one of the two executes nothing that computes)": report.empty,
        "unsupported": report.unsupported,
        "left open by the graph": report.untold,
    }
    others = [f"{count} {what}" for what, count in left_out.items() if count]
    cases = _many(report.clock.cases, "case")
    yield cases + (f"; no cases: {', '.join(others)}" if others else "")
    for name, reason in found.refused.items():
        yield f"  {name} left out: {one_line(reason)}"
    yield ""
    yield from _aligned(_scores(report))
    yield ""
    yield from _aligned(_confusion(report))
    yield ""
    yield from _not_right(report)
    yield ""
    yield _sizes(report)
    yield ""
    yield from _aligned(_curve(report))
    yield ""
    yield f"Cost: {_cost(first)}"
    yield (
        f"beside it: {found.costs.models_s:.1f} s to build the guide's models, "
        f"{found.costs.formula_s:.1f} s to time them for the formula, {found.costs.graph_s:.1f} s "
        f"for their graphs; {found.total_s:.1f} s in all"
    )
    if len(found.runs) > 1:
        yield ""
        yield from _repeats(found.runs)


def _scores(report: Report) -> list[list[str]]:
    both = (report.clock, report.formula_here, report.formula)
    return [
        ["", "by the clock", "formula, same samples", "formula, the guide's models"],
        ["decided", *(f"{s.decided} of {s.cases}" for s in both)],
        ["coverage", *(_percent(s.coverage) for s in both)],
        ["right", *(f"{s.right} of {s.decided}" for s in both)],
        ["accuracy among decided", *(_percent(s.accuracy) for s in both)],
        ["fused pairs found", *(f"{s.found} of {s.fused}" for s in both)],
        ["separate pairs called fused", *(f"{s.false_fused} of {s.separate}" for s in both)],
    ]


def _confusion(report: Report) -> list[list[str]]:
    confusion = report.confusion
    columns = list(confusion["fused"])
    return [
        ["the clock says \\ the graph", *columns],
        *(
            [f"  {said}", *(str(counts[graph]) for graph in columns)]
            for said, counts in confusion.items()
        ),
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        found = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join([name.ljust(widths[0]), *found]).rstrip()


def _not_right(report: Report) -> Iterator[str]:
    for title, judged in (("Wrong", report.wrong), ("Left open", report.open)):
        yield f"{title}:" if judged else f"{title}: none"
        for each in judged:
            yield f"  {each.name}: {each.opinion.verdict}, {_numbers(each)}"


def _sizes(report: Report) -> str:
    """Whether the runtime does the same in the size that was timed."""
    known = [each for each in report.questions if each.is_case and each.timed in DECIDED]
    same = len(known) - len(report.changed)
    found = f"Executed in the size timed as in the size asked for: {same} of {len(known)}"
    names = [f"{each.name} ({each.timed} where it was timed)" for each in report.changed]
    return "; not ".join([found, ", ".join(names)] if names else [found])


def _numbers(judged: Judged) -> str:
    opinion = judged.opinion
    parts = [f"by the graph {judged.graph}"]
    if opinion.saving is not None and opinion.low is not None and opinion.high is not None:
        parts.append(f"saving {opinion.saving:.2f} ({opinion.low:.2f} to {opinion.high:.2f})")
    if opinion.control:
        parts.append(f"against {opinion.control}")
    parts.append(_many(judged.loads, "load"))
    return ", ".join(parts) + (f": {one_line(opinion.reason)}" if opinion.reason else "")


def _curve(report: Report) -> list[list[str]]:
    return [
        ["after seconds of measuring", *(f"{round(point.s, 1):g}" for point in report.curve)],
        ["  decided", *(str(point.decided) for point in report.curve)],
        ["  right", *(str(point.right) for point in report.curve)],
    ]


def _cost(run: Run) -> str:
    done = run.measured
    loads = sum(judged.loads for judged in run.report.questions)
    share = f", {done.counted / done.runs:.0%} of the runs at full speed" if done.runs else ""
    return (
        f"{run.wall_s:.1f} s for the clock's verdicts ({done.build_s:.1f} s building models, "
        f"{done.convert_s:.1f} s converting them, {done.measure_s:.1f} s measuring: "
        f"{_many(loads, 'load')}{share})"
    )


def _repeats(runs: Sequence[Run]) -> Iterator[str]:
    for number, run in enumerate(runs, start=1):
        score = run.report.clock
        yield (
            f"Run {number}: decided {score.decided} of {score.cases} "
            f"({_percent(score.coverage)}), right {score.right} ({_percent(score.accuracy)}), "
            f"found {score.found} of {score.fused}, separate called fused {score.false_fused}, "
            f"{run.wall_s:.1f} s"
        )
        if number > 1:
            for each in run.report.wrong:
                yield f"  wrong: {each.name}: {each.opinion.verdict}, {_numbers(each)}"
            if run.report.open:
                yield f"  open: {', '.join(each.name for each in run.report.open)}"
    same = repeatability([run.report.verdicts() for run in runs])
    flips = ", ".join(same.flips) or "none"
    yield f"Fused in one run and separate in another: {flips}"
    yield f"Equal in all runs: {_percent(same.equal)} of the verdicts"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
