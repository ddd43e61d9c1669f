"""Options that several commands have."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = [
    "Seconds",
    "backend_option",
    "debug_option",
    "evidence_option",
    "json_file_option",
    "json_option",
    "like_option",
    "measuring_options",
    "settings_option",
    "testcases_option",
    "time_limit_option",
    "workspace_option",
]

F = TypeVar("F", bound=Callable[..., Any])


class Seconds(click.FloatRange):
    """A finite time of more than no seconds."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it; one that is no number passes every comparison of a range."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a number of seconds.", param, ctx)
        return seconds


backend_option = click.option(
    "--backend",
    metavar="NAME",
    help="One of --list-backends. Default: the one that the workspace was made for.",
)
workspace_option = click.option(
    "--workspace", metavar="PATH", default="./nn-meter-workspace", show_default=True
)
like_option = click.option(  # of commands that keep nothing
    "--workspace",
    metavar="PATH",
    help="Take the configuration of this workspace; nothing is written there.",
)
settings_option = click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="A key of ruletest_config.yaml or backend_config.yaml, e.g. KERNEL_SIZE=1, THREADS=2. "
    "May be given more than once.",
)
testcases_option = click.option(
    "--testcases",
    metavar="NAMES",
    help="Ask only these, e.g. conv_relu,add_relu. Default: what the configuration asks.",
)
time_limit_option = click.option(
    "--time-limit",
    type=Seconds(),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="For building, or for one operation on, one model; then it is given up and the rest "
    "goes on.",
)
evidence_option = click.option(
    "--evidence",
    type=click.Choice(["auto", "graph", "latency", "formula"]),
    help="What a verdict rests on: graph (what the runtime says that it executed), latency (a "
    "controlled experiment by the clock), formula (the guide's inequality on latencies) or auto "
    "(the first of them that there is, the others beside it). Default: EVIDENCE of the "
    "configuration, which is auto.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
)
json_file_option = click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Write all of it as one JSON object; -: on standard output, and nothing else there.",
)
debug_option = click.option(  # main looks for it
    "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
)


def measuring_options(command: F) -> F:
    """Add the options of commands that measure."""
    for option in (
        time_limit_option,
        click.option("--retry-failed", is_flag=True, help="Try models again that failed before."),
        click.option("--fresh", is_flag=True, help="Measure what is asked again, from the start."),
    ):
        command = option(command)
    return command
