"""``nn-meter import-graph``: what a runtime printed on another device, judged here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from nn_meter.builder.backend_meta.fusion_rule_tester.interface import detect_fusion_rule
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.recorded import FORMATS, read_print
from nn_meter.builder.profiling.recorded import (
    Imported,
    choose_format,
    find_files,
    import_graphs,
)
from nn_meter.builder.workspace import open_workspace
from nn_meter.cli import options
from nn_meter.cli.console import log_to_stderr, one_line, print_json
from nn_meter.cli.verdicts import print_files, print_table, verdicts_json
from nn_meter.errors import ConfigError, DetectionError

__all__ = ["import_graph"]

_MOST_NAMED = 5
_FILES = ("profiled_results.json", "detected_results.json", "detected_fusion_rule.json")


@click.command(short_help="Judge what a runtime printed on another device.")
@click.argument("prints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_name",
    type=click.Choice(list(FORMATS)),
    help="Whose prints they are. Default: what the files surely are. tensorrt was written from "
    "documentation and is untried.",
)
@click.option(
    "--workspace",
    metavar="PATH",
    help="Whose models the prints are of. Without it, the nodes of one print are shown.",
)
@click.option(
    "--runtime-version", metavar="TEXT", help="Of the runtime that printed them, e.g. 1.31."
)
@click.option("--device", metavar="TEXT", help="That they were printed on, e.g. 'Pixel 8'.")
@options.json_option
@options.debug_option
def import_graph(
    prints: Sequence[Path],
    format_name: str | None,
    workspace: str | None,
    runtime_version: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Read PRINTS, files or folders, of what a runtime executed, and decide which operators fuse.

    Make the models with 'nn-meter ruletest generate', run each on the device, and let the runtime
    print what it executed: an optimized model of ONNX Runtime (.onnx), a runtime model of OpenVINO
    (.xml), op profiles of LiteRT's benchmark_model (.txt, .csv), layer information of TensorRT's
    trtexec (.json; untried). A print is called as its model: BF_conv_relu_block.xml.
    """
    log_to_stderr()
    start = time.monotonic()
    if workspace is None:
        _show(prints, format_name, as_json)
        return
    opened = open_workspace(workspace)
    files = find_files(prints, FORMATS[format_name] if format_name else None)
    kind = choose_format(files, format_name)
    if format_name is None:  # of a folder, only those of the format that was found
        files = [file for file in files if file in prints or file.suffix.lower() in kind.suffixes]
    found = import_graphs(opened, files, kind, version=runtime_version, device=device)
    if not found.testcases:
        name, models = next(iter(found.missing.items()))
        raise DetectionError(
            f"no test case has all of its prints yet; {name} lacks {_few(models)} (prints read, "
            f"and kept for the next call: {found.prints})"
        )
    detected = detect_fusion_rule(found.testcases, opened)
    if as_json:
        told = verdicts_json(
            detected,
            backend=found.backend,
            workspace=opened.path,
            wall_s=time.monotonic() - start,
            refused={},
        )
        lacking = {
            "prints": found.prints,
            "missing": found.missing,
            "unmatched": [str(file) for file in found.unmatched],
        }
        print_json({**told, "environment": found.environment, **lacking})
        return
    from rich.markup import escape

    print_table(detected, found.testcases, title=escape(found.environment), refused={})
    print_files([opened.results_dir / found.backend / file for file in _FILES])
    _print_lacking(found)


def _print_lacking(found: Imported) -> None:
    click.echo(f"prints read: {found.prints}")
    asked, lacking = found.situations
    if lacking:
        click.echo(
            f"situations left out, of which prints are missing: {lacking} of {asked} (their models "
            "are in fusion_rule_test/situations)"
        )
    if found.missing:
        names = [f"{name} ({_few(models)})" for name, models in found.missing.items()]
        click.echo(f"test cases left out, of which prints are missing: {len(names)}")
        _print_first(names)
    if found.unmatched:
        click.echo(f"files named after no model of the workspace: {len(found.unmatched)}")
        _print_first([str(file) for file in found.unmatched])


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:_MOST_NAMED], *(["…"] if names[_MOST_NAMED:] else [])])


def _print_first(names: Sequence[str]) -> None:
    for name in names[:_MOST_NAMED]:
        click.echo(f"  {one_line(name)}")
    if names[_MOST_NAMED:]:
        click.echo(f"  … and {len(names) - _MOST_NAMED} more")


def _show(prints: Sequence[Path], format_name: str | None, as_json: bool) -> None:
    """Show the nodes of one print."""
    if len(prints) != 1 or prints[0].is_dir():
        raise ConfigError(
            "without --workspace, give one file: its nodes are shown; with the workspace of the "
            "models, verdicts are"
        )
    (file,) = find_files(prints, None)
    graph = read_print(file, choose_format([file], format_name))
    if as_json:
        print_json(graph.to_json())
        return
    for line in _lines(graph):
        click.echo(line)


def _lines(graph: ExecutedGraph) -> list[str]:
    """A line for each node: what it is, its type, and what it reads and writes."""
    counts: Mapping[str, Any] = {
        kind: sum(node.kind == kind for node in graph.nodes)
        for kind in ("compute", "move", "view", "const")
    }
    lines = [", ".join(f"{count} {kind}" for kind, count in counts.items() if count)]
    for node in graph.nodes:
        wires = f"  {', '.join(node.inputs)} -> {', '.join(node.outputs)}" if node.outputs else ""
        lines.append(f"  {node.kind:<8}{one_line(node.type)}{one_line(wires) and wires}")
    return lines
