"""``nn-meter kernels --profile``: what each kernel of a model costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nn_meter.cli import options
from nn_meter.cli.console import one_line, progress_shown
from nn_meter.errors import ConfigError

if TYPE_CHECKING:
    from nn_meter.builder.workspace import Workspace
    from nn_meter.kernel_detector.costs import Cost, Costs
    from nn_meter.kernel_detector.graph import Graph
    from nn_meter.kernel_detector.kernels import Kernel

__all__ = ["Profiled", "check_profile", "print_profiled", "profile", "profile_options"]

F = TypeVar("F", bound=Callable[..., Any])

_BUDGET_S = 120.0
_MOST_FAILED = 5
_BUSY = 0.7  # with fewer runs at full speed than that, times are long and their sums are off


def profile_options(command: F) -> F:
    """Add the options of timing kernels."""
    for option in (
        options.time_limit_option,
        click.option(
            "--budget",
            "budget_s",
            metavar="SECONDS",
            type=options.Seconds(),
            help="For timing with --profile; more gives narrower intervals. Default: "
            f"{_BUDGET_S:g}.",
        ),
        click.option(
            "--profile",
            "profile_backend",
            metavar="BACKEND",
            help="Cut each kernel out, time it on this backend as inside the model, and show what "
            "it costs. Equal kernels are timed once.",
        ),
    ):
        command = option(command)
    return command


def check_profile(profile_backend: str | None, budget_s: float | None) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: Says which, and what is missing.
    """
    if profile_backend is None and budget_s is not None:
        raise ConfigError("--budget: is for timing; give --profile BACKEND, too")


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """What kernels cost, and on what."""

    backend: str
    costs: Costs

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"backend": self.backend, **self.costs.to_json()}

    def told(self, kernels: Sequence[Kernel]) -> list[Kernel]:
        """The kernels, with what each costs among its attributes."""
        found = self.costs.to_json()["kernels"]
        return [
            replace(
                kernel,
                attributes={
                    **kernel.attributes,
                    **{
                        name: found.get(kernel.name, {}).get(key)
                        for name, key in (
                            ("ms", "value"),
                            ("low_ms", "low"),
                            ("high_ms", "high"),
                            ("share", "share"),
                        )
                    },
                },
            )
            for kernel in kernels
        ]

    def facts(self) -> dict[str, str]:
        """For the head of a page."""
        return {f"time on {self.backend}": _sums(self.costs)}

    def cells(self, kernel: Kernel) -> list[str]:
        """For the table: the time with its interval, and the share."""
        cost = self.costs.kernels.get(kernel.name)
        if cost is None:
            return ["?", ""]
        return [_time(cost), f"{self.costs.share(kernel.name):.1%}"]


def profile(
    model: Path,
    graph: Graph,
    kernels: Sequence[Kernel],
    *,
    shapes: Mapping[str, Sequence[int]],
    backend: str,
    workspace: Workspace,
    budget_s: float | None,
    time_limit_s: float,
) -> Profiled:
    """Time the kernels of a model.

    Args:
        model: The model.
        graph: What was read of it.
        kernels: What rules made of that.
        shapes: Of ``--shape``.
        backend: Name of the backend.
        workspace: A temporary one for it.
        budget_s: Of ``--budget``.
        time_limit_s: Of ``--time-limit``.
    """
    from nn_meter.cli import steps
    from nn_meter.kernel_detector.costs import time_kernels

    connected = steps.connect(backend, workspace)
    with progress_shown() as progress:
        costs = time_kernels(
            model,
            graph,
            kernels,
            connected,
            shapes=shapes,
            budget_s=budget_s or _BUDGET_S,
            time_limit_s=time_limit_s,
            progress=progress,
        )
    return Profiled(backend=backend, costs=costs)


def print_profiled(found: Profiled) -> None:
    """Print the sums."""
    costs = found.costs
    click.echo(f"timed on {one_line(found.backend)}: {_sums(costs)}")
    if costs.full_speed < _BUSY:
        click.echo(
            f"only {costs.full_speed:.0%} of the runs were at full speed: the machine is busy, and "
            "times are longer than they are on a quiet one, those of large models most of all; "
            "run it again when it is quiet"
        )
    if costs.alone_ns is not None and costs.ops_alone_ns is not None:
        click.echo(
            f"each cut out alone: kernels {_ms(costs.alone_ns)} ms, single ops, which cannot fuse, "
            f"{_ms(costs.ops_alone_ns)} ms"
        )
    for name, reason in list(costs.failed.items())[:_MOST_FAILED]:
        click.echo(f"not timed: {one_line(name)}: {one_line(reason)}")
    if (more := len(costs.failed) - _MOST_FAILED) > 0:
        click.echo(f"and {more} more were not timed")


def _sums(costs: Costs) -> str:
    ratio = costs.sum.ns / costs.whole.ns - 1
    lacking = f", {len(costs.failed)} are not in it" if costs.failed else ""
    return (
        f"the sum of {len(costs.kernels)} kernels is {_time(costs.sum)} ms{lacking}, the whole "
        f"model takes {_time(costs.whole)} ms ({ratio:+.1%}); {costs.models} models loaded "
        f"{costs.passes} times"
    )


def _time(cost: Cost) -> str:
    if not math.isfinite(cost.high):
        return _ms(cost.ns)
    return f"{_ms(cost.ns)} ({_ms(cost.low)} to {_ms(cost.high)})"


def _ms(ns: float) -> str:
    return f"{ns * 1e-6:.3f}"
