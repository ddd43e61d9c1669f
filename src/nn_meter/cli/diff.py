"""``nn-meter diff``: what two sets of rules decide differently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from nn_meter.cli.console import log_to_stderr, print_json, show_table
from nn_meter.cli.options import debug_option, json_option
from nn_meter.fusion_rules.compare import Comparison, Difference, compare
from nn_meter.fusion_rules.read import read_rules, read_shipped, shipped_names
from nn_meter.fusion_rules.rules import ALONE, Finding

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["diff"]

_LEAST_FOR_KERNELS = 24
_MOST_NAMES = 12


def _list_shipped(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    for name in shipped_names():
        click.echo(f"{name}  {read_shipped(name).described()}")
    context.exit()


@click.command(short_help="Compare the rules of two runtimes, versions or shapes.")
@click.argument("rules_a")
@click.argument("rules_b")
@click.option(
    "--situations",
    "each_situation",
    is_flag=True,
    help="Show every situation of a rule that differs, a line each.",
)
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_shipped,
    help="Name the rules that ship with nn-meter, and stop.",
)
@json_option
@debug_option
def diff(rules_a: str, rules_b: str, each_situation: bool, as_json: bool) -> None:
    """Show which rules of RULES_A and RULES_B differ.

    Each is a workspace, a file of rules, or the name of rules that ship with nn-meter, e.g.
    onnxruntime-1.31 (--list names them). A rule is shown as the guide asks it ('alone'), and where
    else the two differ. The exit code is 0 also when they differ.
    """
    log_to_stderr()
    found = compare(read_rules(rules_a), read_rules(rules_b))
    if as_json:
        print_json(found.to_json())
        return
    _print_head(found)
    _print_table(found, found.of_kind("contradiction"), "Decided differently", each_situation)
    _print_table(found, found.of_kind("open"), "Without an answer on one side", each_situation)
    _print_counts(found)


def _print_head(found: Comparison) -> None:
    for letter, rules in (("A", found.a), ("B", found.b)):
        click.echo(f"{letter}: {rules.name}: {rules.described()}")
    for key, (of_a, of_b) in found.environment.items():
        click.echo(f"  {key}: {_told(of_a)} | {_told(of_b)}")


def _told(value: str | None) -> str:
    return "not told" if value is None else value


# --- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A line of the table: what both say of a rule in some situations."""

    rule: str
    where: str
    a: Finding
    b: Finding

    @property
    def verdicts(self) -> tuple[str, str]:
        return str(self.a), str(self.b)


def _rows(
    found: Comparison, differences: tuple[Difference, ...], each_situation: bool
) -> Iterator[_Row]:
    by_rule: dict[str, set[str]] = {}
    for difference in differences:
        by_rule.setdefault(difference.rule, set()).add(difference.situation)
    for name, differing in by_rule.items():
        of_a, of_b = found.a.rules[name].findings, found.b.rules[name].findings
        shared = [situation for situation in of_a if situation in of_b]
        rows = [
            _Row(rule=name, where=situation, a=of_a[situation], b=of_b[situation])
            for situation in shared
            if each_situation or situation == ALONE or situation in differing
        ]
        yield from rows if each_situation else _together(rows, len(shared))


def _together(rows: list[_Row], situations: int) -> Iterator[_Row]:
    """Rows that say the same as one, the first with its kernels."""
    by_verdicts: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        by_verdicts.setdefault(row.verdicts, []).append(row)
    for same in by_verdicts.values():
        first = same[0]
        everywhere = len(same) == situations > 1
        where = "everywhere" if everywhere else "\n".join(row.where for row in same)
        yield _Row(rule=first.rule, where=where, a=first.a, b=first.b)


def _print_table(
    found: Comparison, differences: tuple[Difference, ...], title: str, each_situation: bool
) -> None:
    """Print a table; in a pipe as wide as it must be, so that no verdict is cut."""
    from rich.console import Console

    rows = list(_rows(found, differences, each_situation))
    if not rows:
        return
    console = Console()
    table = _table(rows, title, with_kernels=True)
    unbounded = console.options.update(width=10_000)
    if console.is_terminal and console.width < console.measure(table, options=unbounded).minimum:
        table = _table(rows, title, with_kernels=False)
    show_table(table)
    if len(table.columns) == 4:
        click.echo("(a wider terminal shows the kernels; --json has them, too)")


def _table(rows: list[_Row], title: str, *, with_kernels: bool) -> Table:
    """The table; with kernels these may be folded and nothing else, without all columns may."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    cells = [[row.rule, row.where, *row.verdicts] for row in rows]
    for name, *column in zip(("rule", "where", "A", "B"), *cells, strict=True):
        widest = max(cell_len(line) for cell in column for line in cell.split("\n"))
        table.add_column(name, overflow="fold", min_width=widest if with_kernels else None)
    if with_kernels:
        for name in ("kernels A", "kernels B"):
            table.add_column(name, overflow="fold", min_width=_LEAST_FOR_KERNELS)
    before = ""
    for row, (rule, *others) in zip(rows, cells, strict=True):
        if before not in ("", rule):
            table.add_section()
        kernels = [_kernels(row.a), _kernels(row.b)] if with_kernels else []
        # no markup: Conv[sum] is a name
        table.add_row(*map(Text, ["" if rule == before else rule, *others, *kernels]))
        before = rule
    return table


def _kernels(finding: Finding) -> str:
    return "-" if finding.kernels is None else "\n".join(finding.kernels) or "none"


# --- counts --------------------------------------------------------------------------------------


def _print_counts(found: Comparison) -> None:
    counts = found.to_json()["counts"]
    rules = len({difference.rule for difference in found.of_kind("contradiction")})
    click.echo(
        f"decided differently: {rules} rules, in {counts['differences']} questions; questions "
        f"answered alike: {counts['equal']}, by one side only: {counts['open']}, by neither: "
        f"{counts['both_open']}"
    )
    for letter, only in (("A", found.only_a), ("B", found.only_b)):
        if only:
            click.echo(f"only {letter} has: {_names(found, only)}")


def _names(found: Comparison, only: Mapping[str, tuple[str, ...]]) -> str:
    """Rules that one side has; of those that both have, the situations."""
    shown = [
        f"{rule} ({', '.join(situations)})"
        if rule in found.a.rules and rule in found.b.rules
        else rule
        for rule, situations in only.items()
    ]
    more = len(shown) - _MOST_NAMES
    return ", ".join(shown[:_MOST_NAMES]) + (f", and {more} more (see --json)" if more > 0 else "")
