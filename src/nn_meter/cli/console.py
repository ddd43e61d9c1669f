"""Printing, progress and logging of commands."""

from __future__ import annotations

import json
import logging
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from nn_meter.progress import Progress

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["log_to_stderr", "print_json", "progress_shown", "quiet", "say", "show_table"]

_JOINERS = "\u200c\u200d"
_PLAIN_EVERY_S = 10.0


def say(text: str) -> None:
    """Print a line as the guide does: ``(nn-Meter) …``."""
    click.echo(f"(nn-Meter) {text}")


def one_line(text: str) -> str:
    """A message of somebody else's, which may have several lines, as one."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """A text in which a file's words may stand: a terminal is not to be commanded by a file."""
    return "".join(c if _is_harmless(c) else ascii(c)[1:-1] for c in text)


def _is_harmless(character: str) -> bool:
    """Whether it is printed, or stands between what is: spaces, and what joins letters."""
    return (
        character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"
    )


def show_table(table: Table, *, widest: int = 200) -> None:
    """Print a table; in a pipe as wide as it needs, up to ``widest`` or what its words take."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        needed = console.measure(table, options=console.options.update(width=10_000))
        width = max(console.width, needed.minimum, min(needed.maximum, widest))
        console = Console(highlight=False, width=width)
    console.print(table)


def print_json(data: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


class _Handler(logging.Handler):
    """Prints warnings on standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        click.echo(f"(nn-Meter) {level}: {one_line(record.getMessage())}", err=True)


def log_to_stderr() -> None:
    """Show what nn-Meter logs from warnings upwards; once, however often it is called."""
    logger = logging.getLogger("nn_meter")
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        logger.addHandler(_Handler(logging.WARNING))
        logger.propagate = False


@contextmanager
def quiet() -> Iterator[None]:
    """Have no warnings shown meanwhile."""
    logger = logging.getLogger("nn_meter")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def progress_shown() -> Iterator[Progress]:
    """Show progress on standard error: a bar with the time left on a terminal, else plain lines."""
    if not sys.stderr.isatty():
        yield _plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}"),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int, name: str) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, name=name)
            bar.update(tasks[stage], completed=done, total=total, name=name)

        yield show


def _plain() -> Progress:
    """A line when a stage begins and ends, and every ten seconds between."""
    shown: dict[str, float] = {}

    def show(stage: str, done: int, total: int, name: str) -> None:
        now = time.monotonic()
        if stage not in shown or done == total or now - shown[stage] >= _PLAIN_EVERY_S:
            shown[stage] = now
            click.echo(f"(nn-Meter) {stage}: {done} of {total} {name}".rstrip(), err=True)

    return show
