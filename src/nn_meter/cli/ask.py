"""``nn-meter ask``: one chain of operators, and which of its edges fuse."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import click

from nn_meter.builder.backend_meta.fusion_rule_tester.generate import Generated
from nn_meter.builder.backend_meta.fusion_rule_tester.interface import (
    detect_fusion_rule,
    generate_testcases,
    profile_models,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import INPUT_SHAPE
from nn_meter.builder.backends.base import OpensSessions, ShowsGraph, ShowsGraphs
from nn_meter.builder.config import suggestion
from nn_meter.builder.workspace import read_json
from nn_meter.cli import options, steps
from nn_meter.cli.console import log_to_stderr, one_line, print_json
from nn_meter.cli.temporary import operator_names, read_settings, temporary_workspace
from nn_meter.cli.verdicts import FORMULA, saved
from nn_meter.errors import ConfigError, GraphUnavailableError, OperatorError

__all__ = ["ask"]

log = logging.getLogger(__name__)


@click.command(short_help="Ask which edges of one chain of operators fuse.")
@click.argument("chain")
@click.option("--backend", metavar="NAME", default="onnxruntime_cpu", show_default=True)
@click.option(
    "--shape",
    metavar="SIZES",
    help="Shape of the first input without the batch dimension, e.g. 16x28x28 (onnx, torch: "
    "channels first; tensorflow: channels last). Default: from HW, CIN and SHAPE_1D.",
)
@options.settings_option
@click.option(
    "--implement",
    type=click.Choice(["onnx", "torch", "tensorflow"]),
    help="How the models are made. Default: onnx where the backend takes it.",
)
@options.like_option
@click.option("--alone", is_flag=True, help="Ask the chain alone, not inside a model too.")
@options.time_limit_option
@options.json_option
@options.debug_option
def ask(
    chain: str,
    backend: str,
    shape: str | None,
    settings: Sequence[str],
    implement: str | None,
    workspace: str | None,
    alone: bool,
    time_limit: float,
    as_json: bool,
) -> None:
    """Build one CHAIN of operators, such as conv+bn+hswish, and say which of its edges fuse.

    The answer is the runtime's own executed graph where it tells that, else an experiment by the
    clock where models can be kept loaded, else the guide's formula.
    Nothing is kept.
    """
    log_to_stderr()
    start = time.monotonic()
    ops = [op.strip() for op in chain.split("+")]
    given = read_settings(settings)
    if shape is not None:
        given[INPUT_SHAPE] = _shape(shape)
    _check_chain(ops, operator_names())
    asked = {"BASIC_TESTCASES": ["_".join(ops)], "OTHER_TESTCASES": [], "DETAIL": False}
    with temporary_workspace(
        backend, like=workspace, implement=implement, given=given, asked=asked
    ) as opened:
        connected = steps.connect(backend, opened)
        shows_graph = isinstance(connected, ShowsGraph | ShowsGraphs)
        evidence = given.get("EVIDENCE", "auto")
        timed_in_turn = isinstance(connected, OpensSessions)
        if evidence == "auto":
            evidence = "graph" if shows_graph else "latency" if timed_in_turn else "formula"
        ruletest = opened.ruletest.model_copy(update={"EVIDENCE": evidence})
        opened = replace(opened, ruletest=ruletest)
        found = Generated()
        try:
            generated = generate_testcases(
                opened,
                time_threshold=time_limit,
                progress=_silent,
                summary=found,
                with_situations=evidence == "graph" and not alone,
            )
        except OperatorError as exc:
            (reason,) = found.refused.values() or [str(exc)]
            raise OperatorError(f"{'+'.join(ops)} cannot be built: {reason}") from exc
        profile = partial(profile_models, connected, time_threshold=time_limit, progress=_silent)
        try:
            profiled = profile(generated, workspace=opened)
        except GraphUnavailableError as exc:
            # it tells on another device, or in another version
            if given.get("EVIDENCE", "auto") != "auto" or not timed_in_turn:
                raise
            log.warning(
                "%s does not tell what it executes, so the clock is asked: %s", backend, exc
            )
            ruletest = ruletest.model_copy(update={"EVIDENCE": "latency"})
            opened = replace(opened, ruletest=ruletest)
            profiled = profile(generated, workspace=opened)
        (verdict,) = detect_fusion_rule(profiled, opened).values()
        rules = read_json(opened.results_dir / "detected_fusion_rule.json", "fusion rules")
        (rule,) = rules.values()
        (models,) = generated.values()
    answer = {
        "chain": ops,
        "backend": backend,
        "environment": rule["environment"],
        "inputs": models["block"]["shapes"],
        **verdict,
        "edges": _edges(ops, verdict),
        "wall_s": round(time.monotonic() - start, 3),
    }
    if as_json:
        print_json(answer)
    else:
        _print(answer)


def _silent(stage: str, done: int, total: int, name: str) -> None:
    """A chain takes seconds: no progress."""


def _shape(text: str) -> list[int]:
    sizes = [size.strip() for size in text.lower().replace(",", "x").split("x")]
    if not all(size.isascii() and size.isdigit() and 0 < int(size) <= 2**20 for size in sizes):
        raise ConfigError(f"--shape: {text!r} should be sizes of at least 1, like 16x28x28 or 428")
    if len(sizes) not in (1, 3):
        raise ConfigError(
            f"--shape: {text!r} has {len(sizes)} sizes; give one or three, without the batch"
        )
    return [int(size) for size in sizes]


def _check_chain(ops: Sequence[str], operators: Sequence[str]) -> None:
    if len(ops) < 2 or not all(ops):
        raise ConfigError(
            f"{'+'.join(ops)!r} is no chain; join two or more operators by +, like conv+bn+relu"
        )
    for op in ops:
        if op not in operators:
            raise ConfigError(
                f"there is no operator {op!r}{suggestion(op, operators)}; nn-meter "
                "--list-operators names all"
            )


def _edges(ops: Sequence[str], verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A verdict for each edge; a chain of two has but one, which is the verdict itself."""
    if verdict.get("edges"):
        return list(verdict["edges"])
    found = {key: verdict[key] for key in ("verdict", "free", "reason") if key in verdict}
    return [{"ops": list(pair), **found} for pair in pairwise(ops)]


_STYLES = {"fused": "green", "separate": "cyan"}


def _print(answer: Mapping[str, Any]) -> None:
    environment = answer["environment"] or {}
    where = f"{environment.get('runtime', answer['backend'])} {environment.get('version', '')}"
    inputs = ", ".join("x".join(str(size) for size in shape) for shape in answer["inputs"])
    click.echo(f"{'+'.join(answer['chain'])} on {where.strip()}, input {inputs}")
    for edge in answer["edges"]:
        first, second = edge["ops"]
        word = click.style(edge["verdict"], fg=_STYLES.get(edge["verdict"], "yellow"))
        click.echo(f"  {first} + {second}: {word}{_note(answer, edge)}")
    if answer.get("kernels") is not None:
        click.echo(f"ran: {', '.join(answer['kernels']) or 'nothing that computes'}")
    if answer.get("moves"):
        click.echo(f"moved data: {', '.join(answer['moves'])}")
    click.echo(f"evidence: {answer['evidence'] or 'none'}")
    if "saving" in answer:
        click.echo(f"saves {saved(answer)} of what the cheaper side costs")
    if answer["evidence"] == "formula":
        click.echo(FORMULA)
    if answer.get("reason"):
        click.echo(f"reason: {one_line(str(answer['reason']))}")
    others = {name: told for name, told in answer.get("when", {}).items() if name != "alone"}
    if others:
        click.echo("elsewhere:")
    for situation, told in others.items():
        edges = _edges(answer["chain"], told)
        words = ", ".join(
            f"{edge['ops'][0]} + {edge['ops'][1]} {edge['verdict']}" for edge in edges
        )
        ran = f" (ran: {', '.join(told['kernels'])})" if told.get("kernels") else ""
        click.echo(f"  {situation}: {words}{ran}")
    click.echo(f"{answer['wall_s']:.1f} s")


def _note(answer: Mapping[str, Any], edge: Mapping[str, Any]) -> str:
    if answer.get("eliminated"):
        return " (one of the two changes nothing there and is not executed)"
    if edge.get("free"):
        return f" ({' and '.join(edge['free'])}: nothing that computes)"
    return ""
