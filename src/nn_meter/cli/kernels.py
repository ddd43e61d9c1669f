"""``nn-meter kernels``: which ops of a model a runtime puts together, by rules."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nn_meter.builder.workspace import Workspace, atomic_write, make_folder, write_json
from nn_meter.cli import options
from nn_meter.cli.console import log_to_stderr, one_line, print_json, show_table
from nn_meter.cli.kernels_costs import (
    Profiled,
    check_profile,
    print_profiled,
    profile,
    profile_options,
)
from nn_meter.cli.kernels_suggest import (
    Suggested,
    check_suggest,
    print_suggested,
    suggest,
    suggest_options,
)
from nn_meter.cli.temporary import temporary_workspace
from nn_meter.errors import ConfigError
from nn_meter.kernel_detector.detector import KernelDetector
from nn_meter.kernel_detector.graph import Graph
from nn_meter.kernel_detector.kernels import Kernel
from nn_meter.kernel_detector.readers import read_model

if TYPE_CHECKING:
    from nn_meter.kernel_detector.check import Check

__all__ = ["kernels"]

_STDOUT = Path("-")
_MOST_OPS, _MOST_DIFFERENCES = 6, 40
_COLUMNS = ("name", "type", "operators", "ops", "inputs", "outputs")


@click.command(short_help="Cut a model into the kernels that rules make of it.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--rules",
    metavar="FILE|WORKSPACE|NAME",
    required=True,
    help="A rule file, a workspace that rules were detected in, or the name of rules that ship "
    "with nn-meter ('nn-meter diff --list' names them).",
)
@click.option(
    "--shape",
    "shapes",
    metavar="INPUT=1,3,224,224",
    multiple=True,
    help="The shape of an input that the model leaves open, batch included. May be given more "
    "than once.",
)
@click.option(
    "--check",
    "backend",
    metavar="BACKEND",
    help="Hold the kernels against what this backend executes of the model.",
)
@suggest_options
@profile_options
@options.json_file_option
@click.option(
    "--html",
    "html_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with a picture of the model, its kernels as boxes.",
)
@click.option(
    "--csv",
    "csv_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the table of kernels, a column for each attribute.",
)
@options.debug_option
def kernels(
    model: Path,
    rules: str,
    shapes: Sequence[str],
    backend: str | None,
    suggest_file: Path | None,
    against: Sequence[Path],
    profile_backend: str | None,
    budget_s: float | None,
    time_limit: float,
    json_file: Path | None,
    html_file: Path | None,
    csv_file: Path | None,
) -> None:
    """Cut MODEL into kernels.

    MODEL is an .onnx, .tflite or .keras file, a SavedModel or an exported torch program. Its ops
    are put together as RULES say that a runtime does.
    """
    log_to_stderr()
    check_suggest(suggest_file, against, backend, model)
    check_profile(profile_backend, budget_s)
    files = [file for file in (json_file, html_file, csv_file) if file not in (None, _STDOUT)]
    for file in files:
        assert file is not None
        make_folder(file.absolute().parent)  # said now, and not when all is done
        if file.exists() and not file.is_file():  # it would be replaced, not written to
            raise ConfigError(f"{file}: is no ordinary file, so nothing can be written there")
    given = _shapes(shapes)
    graph = read_model(model, shapes=given)
    detector = KernelDetector(rules)
    found = _Found(
        graph=graph,
        rules=rules,
        kernels=detector.detect(graph),
        summary=detector.summary.to_json(),
        check=None,
    )
    if backend is not None and suggest_file is not None:
        found = _suggested(found, model, given, backend, against, suggest_file)
    elif backend is not None:
        found = _checked(found, detector, model, given, backend, time_limit)
    if profile_backend is not None:
        found = _profiled(found, model, given, profile_backend, budget_s, time_limit)
    if html_file is not None:
        _write(html_file, _page(found))
    if csv_file is not None:
        _write(csv_file, _table(found.kernels))
    if json_file == _STDOUT:
        print_json(found.to_json())
        return
    if json_file is not None:
        write_json(json_file.absolute(), found.to_json())
    _print(found)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """All that is to be shown."""

    graph: Graph
    rules: str
    kernels: Sequence[Kernel]
    summary: Mapping[str, Any]
    check: Check | None
    backend: str = ""
    suggested: Suggested | None = None
    profiled: Profiled | None = None

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "model": self.graph.name,
            "rules": self.rules,
            "summary": dict(self.summary),
            "kernels": [kernel.to_json() for kernel in self.kernels],
        }
        if self.check is not None:
            data["check"] = {"backend": self.backend, **self.check.to_json()}
        if self.suggested is not None:
            data["suggest"] = self.suggested.to_json()
        if self.profiled is not None:
            data["profile"] = self.profiled.to_json()
        return data


def _shapes(given: Sequence[str]) -> dict[str, list[int]]:
    """The shapes of ``--shape``, by input."""
    found = {}
    for text in given:
        name, equals, sizes = text.rpartition("=")
        try:
            shape = [int(size) for size in sizes.split(",")]
        except ValueError:
            shape = []
        if not equals or not name or not shape or min(shape) < 1:
            raise ConfigError(f"--shape: {text!r} should be INPUT=1,3,224,224")
        found[name] = shape
    return found


def _workspace_for(backend: str) -> AbstractContextManager[Workspace]:
    """A temporary workspace with the defaults, to ask a backend from."""
    return temporary_workspace(backend, like=None, given={}, asked={"OTHER_TESTCASES": []})


def _checked(
    found: _Found,
    detector: KernelDetector,
    model: Path,
    shapes: Mapping[str, Sequence[int]],
    name: str,
    time_limit_s: float,
) -> _Found:
    """Ask a backend what it executes."""
    from dataclasses import replace

    from nn_meter.builder.backends.interface import connect_backend
    from nn_meter.kernel_detector.check import check, warn_of_another_runtime

    with _workspace_for(name) as workspace:
        backend = connect_backend(name, workspace)
        warn_of_another_runtime(detector.rules, backend)
        checked = check(
            model, found.graph, found.kernels, backend, shapes=shapes, time_limit_s=time_limit_s
        )
    return replace(found, check=checked, backend=name)


def _suggested(
    found: _Found,
    model: Path,
    shapes: Mapping[str, Sequence[int]],
    name: str,
    against: Sequence[Path],
    file: Path,
) -> _Found:
    """Learn what the rules lack; the check is that of the rules as they were."""
    from dataclasses import replace

    with _workspace_for(name) as workspace:
        suggested = suggest(
            model,
            found.graph,
            rules=found.rules,
            against=against,
            shapes=shapes,
            backend=name,
            workspace=workspace,
            file=file,
        )
    return replace(found, check=suggested.before, backend=name, suggested=suggested)


def _profiled(
    found: _Found,
    model: Path,
    shapes: Mapping[str, Sequence[int]],
    name: str,
    budget_s: float | None,
    time_limit_s: float,
) -> _Found:
    """Time the kernels."""
    from dataclasses import replace

    with _workspace_for(name) as workspace:
        profiled = profile(
            model,
            found.graph,
            found.kernels,
            shapes=shapes,
            backend=name,
            workspace=workspace,
            budget_s=budget_s,
            time_limit_s=time_limit_s,
        )
    return replace(found, kernels=profiled.told(found.kernels), profiled=profiled)


# --- files ---------------------------------------------------------------------------------------


def _write(file: Path, text: str) -> None:
    with atomic_write(file.absolute()) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _table(found: Sequence[Kernel]) -> str:
    """The kernels as CSV, what is a list joined by spaces."""
    keys = list(dict.fromkeys(key for kernel in found for key in kernel.attributes))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *keys])
    for kernel in found:
        data = kernel.to_json()
        values = [data[column] for column in _COLUMNS]
        values += [kernel.attributes.get(key, "") for key in keys]
        writer.writerow([_cell(value) for value in values])
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_shape(v) if isinstance(v, list | tuple) else str(v) for v in value)
    return "" if value is None else str(value)


def _page(found: _Found) -> str:
    from nn_meter.report.kernel_picture import kernel_page

    facts: dict[str, Any] = {"ops": len(found.graph.ops), "kernels": len(found.kernels)}
    if found.check is not None:
        facts[f"held against {found.backend}"] = _verdict(found.check)
    if found.profiled is not None:
        facts |= found.profiled.facts()
    return kernel_page(
        found.kernels,
        model=found.graph.name,
        rules=found.rules,
        facts=facts,
        types_of={op.name: op.type for op in found.graph.ops},
    )


# --- text ----------------------------------------------------------------------------------------


def _print(found: _Found) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    times = ("ms (95 %)", "share") if found.profiled is not None else ()
    for title in ("kernel", "type", *times, "ops", "inputs", "outputs"):
        table.add_column(title, overflow="fold")
    for kernel in found.kernels:
        ops = list(kernel.ops[:_MOST_OPS])
        if more := len(kernel.ops) - len(ops):
            ops.append(f"and {more} more")
        shapes = [kernel.attributes.get(f"{side}_shapes") or [] for side in ("input", "output")]
        cells = [
            *(kernel.name, kernel.type),
            *(found.profiled.cells(kernel) if found.profiled is not None else ()),
            ", ".join(ops),
            *(" ".join(_shape(shape) for shape in each) for each in shapes),
        ]
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    show_table(table)
    summary = found.summary
    click.echo(
        f"{one_line(found.graph.name)}: {len(found.graph.ops)} ops in {len(found.kernels)} "
        f"kernels, by the rules of {one_line(found.rules)}"
    )
    if unknown := summary.get("unrecognized"):
        kinds = ", ".join(f"{kind} ({count})" for kind, count in unknown.items())
        click.echo(f"not recognized, so each a kernel of its own: {one_line(kinds)}")
    if found.check is not None:
        _print_check(found.check, found.backend)
    if found.suggested is not None:
        print_suggested(found.suggested)
    if found.profiled is not None:
        print_profiled(found.profiled)


def _shape(shape: Sequence[int] | None) -> str:
    return "?" if shape is None else "x".join(map(str, shape))


def _verdict(check: Check) -> str:
    found = (
        f"F1 {check.f1:.3f} (precision {check.precision:.3f}, recall {check.recall:.3f}) on "
        f"{check.edges} edges"
    )
    return found + (f"; {check.untold} ops of which it does not tell" if check.untold else "")


def _print_check(check: Check, backend: str) -> None:
    click.echo(f"held against what {backend} executes: {_verdict(check)}")
    for difference in check.differ[:_MOST_DIFFERENCES]:
        told = difference.to_json()
        ops = f"{' -> '.join(told['types'])} ({' -> '.join(told['ops'])})"
        click.echo(
            f"  {one_line(ops)}: executed {told['executed']}, by the rules {told['kernels']}"
        )
    more = len(check.differ) - _MOST_DIFFERENCES
    if more > 0:
        click.echo(f"  and {more} more")
