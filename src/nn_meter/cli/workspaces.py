"""``nn-meter create`` and ``nn-meter connect``."""

from __future__ import annotations

import click

from nn_meter.builder.backends.interface import PLATFORMS, connect_backend, create_workspace
from nn_meter.builder.profiling.connection import greet
from nn_meter.builder.workspace import open_workspace
from nn_meter.cli.console import log_to_stderr, say
from nn_meter.cli.options import debug_option

__all__ = ["connect", "create"]


def _create(backend: str | None, customized_workspace: str | None, **paths: str | None) -> None:
    log_to_stderr()
    given = {name.removesuffix("_workspace"): path for name, path in paths.items() if path}
    if customized_workspace:
        given["customized"] = customized_workspace
    if len(given) != 1:
        options = ", ".join(f"--{name}-workspace" for name in [*PLATFORMS, "customized"])
        raise click.UsageError(f"give one of {options}")
    platform, path = next(iter(given.items()))
    if (backend is not None) != (platform == "customized"):
        raise click.UsageError("--customized-workspace and --backend go together")
    if backend is not None:
        create_workspace(path, backend=backend)
    else:
        create_workspace(path, platform=platform)
    say(
        f"Workspace {path} for {platform} platform has been created. Users could edit experiment "
        f"config in {path.rstrip('/')}/configs/."
    )


create = click.Command(
    "create",
    callback=_create,
    help="Create a workspace: a folder with commented configuration files. "
    "An existing one is never overwritten.",
    short_help="Create a workspace.",
    params=[
        *(
            click.Option(
                [f"--{name}-workspace"],
                metavar="PATH",
                help=f"A workspace for {', '.join(platform.backends)}.",
            )
            for name, platform in PLATFORMS.items()
        ),
        click.Option(
            ["--customized-workspace"], metavar="PATH", help="A workspace for your own backend."
        ),
        click.Option(["--backend"], metavar="NAME", help="Your own backend, registered before."),
    ],
)
debug_option(create)


@click.command(short_help="Check the connection to a backend.")
@click.option("--backend", required=True, metavar="NAME", help="One of --list-backends.")
@click.option("--workspace", required=True, metavar="PATH", help="A workspace for it.")
@debug_option
def connect(backend: str, workspace: str) -> None:
    """Check that a backend's runtime and device are there."""
    log_to_stderr()
    say(greet(connect_backend(backend, open_workspace(workspace))))
