"""Showing verdicts: the table that ends a run, and the same as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from nn_meter.cli.console import one_line, show_table

__all__ = ["FORMULA", "print_files", "print_table", "saved", "verdicts_json"]

_WIDEST = 100
_STYLES = {"fused": "green", "separate": "cyan"}
_OPEN = ("undecided", "unsupported", "unmet")
_KEPT = (
    *("obey", "verdict", "evidence", "reason", "kernels", "moves", "eliminated", "free", "edges"),
    *("when", "others", "saving", "low", "high", "confidence", "cost", "control", "saves", "clock"),
)
FORMULA = (
    "Evidence 'formula' is the guide's inequality on average latencies of whole models. Against "
    "what runtimes really executed it was right in 26 to 68 % of cases: a hint, no proof."
)


def verdicts_json(
    detected: Mapping[str, Mapping[str, Any]],
    *,
    backend: str | None,
    workspace: Path,
    wall_s: float,
    refused: Mapping[str, str],
) -> dict[str, Any]:
    """What ``--json`` prints of verdicts."""
    data: dict[str, Any] = {
        "backend": backend,
        "workspace": str(workspace),
        "wall_s": round(wall_s, 3),
        "verdicts": {
            name: {key: verdict[key] for key in _KEPT if key in verdict}
            for name, verdict in detected.items()
        },
    }
    return {**data, "refused": dict(refused)} if refused else data


def print_table(
    detected: Mapping[str, Mapping[str, Any]],
    profiled: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    title: str,
    refused: Mapping[str, str],
) -> None:
    """Print a table of verdicts with what is behind them, and what is left open and why."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("rule", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("evidence")
    ran = any(verdict.get("kernels") is not None for verdict in detected.values())
    # latencies where a verdict rests on them; where none does, they would only fill the page
    timed = any(verdict["evidence"] == "formula" for verdict in detected.values()) and any(
        "latency" in entry for models in profiled.values() for entry in models.values()
    )
    clocked = any("saving" in _clock(verdict) for verdict in detected.values())
    if ran:
        table.add_column("what ran", overflow="fold")
    if clocked:
        table.add_column("saves", no_wrap=True)
    if timed:
        table.add_column("block, ms", justify="right", no_wrap=True)
        table.add_column("ops, ms")
    for name, verdict in detected.items():
        word = str(verdict["verdict"])
        models = profiled.get(name, {})
        style = _STYLES.get(word)
        told = word + (" (eliminated)" if verdict.get("eliminated") else "")
        if verdict.get("edges"):
            told += f": {_groups(verdict['edges'])}"
        ops = [_ms(entry) for model, entry in models.items() if model != "block"]
        table.add_row(
            name,
            f"[{style}]{told}[/]" if style else told,
            str(verdict["evidence"]),
            *([escape(", ".join(verdict.get("kernels") or ()))] if ran else []),
            *([saved(_clock(verdict))] if clocked else []),
            *([_ms(models.get("block", {})), "  ".join(ops)] if timed else []),
        )
    show_table(table, widest=_WIDEST)
    counts = Counter(str(verdict["verdict"]) for verdict in detected.values())
    click.echo(", ".join(f"{count} {word}" for word, count in counts.most_common()))
    for name, verdict in detected.items():
        if verdict["verdict"] in _OPEN:
            reason = one_line(str(verdict.get("reason", "")))
            click.echo(f"  {name} {verdict['verdict']}: {reason}")
    _print_differences(detected)
    for name, reason in refused.items():
        click.echo(f"  {name} left out: {one_line(reason)}")
    if any(verdict["evidence"] == "formula" for verdict in detected.values()):
        click.echo(FORMULA)


def _clock(verdict: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the clock says, be it the verdict or beside it."""
    found: Mapping[str, Any] = verdict.get("clock", verdict)
    return found


def saved(clock: Mapping[str, Any]) -> str:
    """What is saved, and the interval of it."""
    if "saving" not in clock:
        return "-"
    return f"{clock['saving']:.0%} ({clock['low']:.0%} to {clock['high']:.0%})"


def _groups(edges: Sequence[Mapping[str, Any]]) -> str:
    """A chain as its groups: ``conv+bn | hswish``."""
    joints = {"fused": "+", "separate": " | "}
    return str(edges[0]["ops"][0]) + "".join(
        f"{joints.get(edge['verdict'], ' ? ' if edge['verdict'] == 'undecided' else ' · ')}"
        f"{edge['ops'][1]}"
        for edge in edges
    )


def _print_differences(detected: Mapping[str, Mapping[str, Any]]) -> None:
    """Say in a line each where the same question has other answers in other situations."""
    for name, verdict in detected.items():
        situations: dict[str, list[str]] = {}
        for situation, told in verdict.get("when", {}).items():
            situations.setdefault(str(told["verdict"]), []).append(situation)
        if len(situations) > 1:
            parts = [f"{word} {', '.join(where)}" for word, where in situations.items()]
            click.echo(f"  {name} depends on where it stands: {'; '.join(parts)}")


def _ms(entry: Mapping[str, Any]) -> str:
    text = str(entry.get("latency") or "")
    try:
        return f"{float(text.partition(' ')[0]):.4g}"
    except ValueError:
        return "-"


def print_files(files: list[Path]) -> None:
    """Print the files that were written."""
    click.echo("Written:")
    for path in files:
        click.echo(f"  {path}")
