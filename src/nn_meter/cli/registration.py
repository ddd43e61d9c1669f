"""``nn-meter register`` and ``nn-meter unregister``."""

from __future__ import annotations

from pathlib import Path

import click

from nn_meter import registry
from nn_meter.cli.console import log_to_stderr, say
from nn_meter.cli.options import debug_option

__all__ = ["register", "unregister"]

_Given = str | tuple[str, str] | None


@click.command(short_help="Register an operator, test case or backend of your own.")
@click.option("--operator", metavar="META", help="Meta file of an operator.")
@click.option("--testcase", metavar="META", help="Meta file of a test case.")
@click.option("--backend", metavar="META", help="Meta file of a backend.")
@debug_option
def register(operator: str | None, testcase: str | None, backend: str | None) -> None:
    """Register an operator, test case or backend of your own by its meta file (YAML).

    The class is imported first; when that fails, nothing is registered.
    """
    log_to_stderr()
    kind, meta = _one(operator=operator, testcase=testcase, backend=backend)
    entry = registry.register(kind, Path(str(meta)))
    if kind == "backend":
        say(f"Successfully register backend {entry.name}.")
    else:
        say(f"Successfully register {kind}: {entry.name}")


@click.command(short_help="Take a registration back.")
@click.option("--operator", nargs=2, metavar="NAME IMPLEMENT", help="An operator.")
@click.option("--testcase", nargs=2, metavar="NAME IMPLEMENT", help="A test case.")
@click.option("--backend", metavar="NAME", help="A backend.")
@debug_option
def unregister(
    operator: tuple[str, str] | None, testcase: tuple[str, str] | None, backend: str | None
) -> None:
    """Take a registration back, e.g. 'nn-meter unregister --operator op1 tensorflow'."""
    log_to_stderr()
    kind, given = _one(operator=operator, testcase=testcase, backend=backend)
    name, implement = given if isinstance(given, tuple) else (given, None)
    registry.unregister(kind, name, implement)
    say(f"Successfully unregister {name}" + (f" ({implement})." if implement else "."))


def _one(
    operator: _Given, testcase: _Given, backend: _Given
) -> tuple[registry.Kind, str | tuple[str, str]]:
    """The one option that was given."""
    options: dict[registry.Kind, _Given] = {
        "operator": operator,
        "testcase": testcase,
        "backend": backend,
    }
    given = [(kind, value) for kind, value in options.items() if value is not None]
    if len(given) != 1:
        raise click.UsageError("give one of --operator, --testcase and --backend")
    kind, value = given[0]
    assert value is not None
    return kind, value
