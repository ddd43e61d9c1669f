"""The entry point of ``nn-meter``."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

import nn_meter
from nn_meter.cli.console import printable
from nn_meter.errors import NNMeterError

__all__ = ["cli", "main"]

_INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

# Read when TensorFlow is imported, as a registered class may do in this process: then it does not
# announce itself on standard error.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}

_COMMANDS = {
    "run": ("run:run", "Do all steps and print which operators fuse."),
    "ruletest": ("ruletest:ruletest", "Do one step: generate, profile or detect."),
    "ask": ("ask:ask", "Ask which edges of one chain of operators fuse."),
    "import-graph": (
        "import_graph:import_graph",
        "Judge what a runtime printed on another device.",
    ),
    "diff": ("diff:diff", "Compare the rules of two runtimes, versions or shapes."),
    "validate": ("validate:validate", "Hold verdicts by the clock against executed graphs."),
    "kernels": ("kernels:kernels", "Cut a model into the kernels that rules make of it."),
    "map": ("map:fusion_map", "Ask all runtimes, and write a map of what they fuse."),
    "create": ("workspaces:create", "Create a workspace."),
    "connect": ("workspaces:connect", "Check the connection to a backend."),
    "register": (
        "registration:register",
        "Register an operator, test case or backend of your own.",
    ),
    "unregister": ("registration:unregister", "Take a registration back."),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called; its help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"nn_meter.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in _COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(nn_meter.__version__, prog_name="nn-meter")
@click.option("--list-backends", "listed", flag_value="backend", help="List all backends.")
@click.option("--list-operators", "listed", flag_value="operator", help="List all operators.")
@click.option(
    "--list-testcases",
    "listed",
    flag_value="testcase",
    help="List all test cases that are no pair of operators.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, listed: str | None, debug: bool) -> None:
    """Find out which operators an inference runtime fuses into one kernel.

    'nn-meter run' asks ONNX Runtime on this machine; see 'nn-meter run --help' for more.
    """
    if listed is not None:
        from nn_meter.cli.listing import print_list

        print_list(listed)
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0, or the exit code of the error's branch."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _terminated)
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    try:
        code = cli.main(given, prog_name="nn-meter", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        code = exc.exit_code
    except click.ClickException as exc:
        code = exc.exit_code
        _report(given, f"nn-meter: error: {_usage(exc)}")
    except (KeyboardInterrupt, click.Abort):
        same = "the same command" + (" without --fresh" if "--fresh" in given else "")
        click.echo(f"nn-meter: interrupted; {same} goes on from here", err=True)
        code = _INTERRUPTED
    except NNMeterError as exc:
        code = exc.exit_code
        _report(given, f"nn-meter: error: {exc}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as exc:  # noqa: BLE001 - a bug of ours: still one line, and its own exit code
        code = _INTERNAL_ERROR
        _report(
            given,
            f"nn-meter: internal error: {type(exc).__name__}: {exc} (--debug shows where; please "
            "report it)",
        )
    sys.exit(code if isinstance(code, int) else 0)


def _report(given: Sequence[str], line: str) -> None:
    if "--debug" in given:
        traceback.print_exc()
    click.echo(printable(" ".join(line.splitlines())), err=True)


def _usage(error: click.ClickException) -> str:
    """What is wrong with the command line, and where it is explained."""
    message = error.format_message().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{message} (see '{context.command_path} --help')" if context is not None else message


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """A polite kill ends as Ctrl-C does: with what was measured written."""
    raise KeyboardInterrupt
