"""What ``benchmark_model`` prints: latencies, ops, GPU kernels, and what became of a delegate.

Its builds differ. The forms that are read, ``…`` a number in µs, and where each was seen::

    Timings (microseconds): count=50 first=… curr=… min=… max=… avg=… std=…
        the guide's; the end of an op profile: github.com/microsoft/nn-Meter/issues/77
    count=50 first=… curr=… min=… max=… avg=… std=…
        a line for the warm-up and one for the runs: github.com/tensorflow/tensorflow/issues/42507;
        "avg=1.01013e+06": issues/41769 there; since 2024 after "INFO: " and p5=… median=… p95=…
    count=1 curr=…    count=50 curr=…(all same)
        where all runs took as long: issues/41769
    Inference timings in us: Init: …, First inference: …, Warmup (avg): …, Inference (avg): …
    Average inference timings in us: Warmup: …, Init: …, Inference: …
        or "no stats: …": github.com/yuenshome/yuenshome.github.io/issues/77
    Inference (avg):      7430.20 ms (10 runs)
        LiteRT's own tool, also "(min)", "(max)", "(std)":
        github.com/mlcommons/mobile_app_open/issues/1134

What a log puts before a line (``INFO:``, logcat's date and tag) does not matter. Op profiles are
read by ``recorded``; what is told of the GPU, by ``benchmark_gpu``.

Builds print their log on the standard output or the standard error: give both.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from nn_meter.builder.backends.tflite import capi, recorded
from nn_meter.builder.backends.tflite.benchmark_gpu import (
    NUMBER,
    Delegation,
    GpuKernel,
    delegations,
    kernels,
    means,
)
from nn_meter.errors import BackendError, GraphUnavailableError

__all__ = ["Benchmark", "Delegation", "GpuKernel", "Node", "read"]

_LONGEST_LINE = 20_000
_MOST_LINES = 100_000
_MOST_WARNINGS = 20
_LONGEST_WARNING = 300
_QUOTED_LINES = 20
_QUOTED_CHARACTERS = 2000
_COARSENESS = 1e-4  # C++ prints six digits
_HUNDREDTH_US = 10.0  # of a millisecond
_MOST_US = 1e15  # thirty years

_WORD = r"[^\s,()]++"  # a number, or what stands where one should: nan, inf
# one pass over everything finds the lines that matter, however long the rest is
_TELLING = re.compile(
    r"count=|Running benchmark for |timings in us|Inference \(|BENCHMARK RESULTS|Profiling Info for"
    r"|[Dd]elegate|GPU|fallback|accelerated|supported|WARN|ERROR|Per kernel timing|kernel_name\["
    r"|\]avg_ms=",
)
_COUNTED = re.compile(r"(?:^|[\s:])(?<!\(bytes\): )count=\S+(?:\s(?:first|curr)=|$)")
_FACT = re.compile(rf"\b(count|first|curr|min|max|avg|std|median)=({_WORD})")
_RUNNING = "Running benchmark for "
_TIMINGS = "Timings (microseconds):"
_LOADING = "Profiling Info for Benchmark Initialization"
_REGULAR = "Operator-wise Profiling Info"
_SUMMARY = re.compile(r"(?:Average inference|Inference) timings in us:")
_SUMMARY_FACT = re.compile(rf"\b(Inference(?: \(avg\))?|no stats): ({_WORD})")
_RESULT = re.compile(
    rf"Inference \((avg|min|max|std|median)\):\s*+({_WORD})(?: ms)?(?: \(([0-9]{{1,9}}) runs\))?"
)

_TROUBLE = re.compile(
    r"\b(?:WARN(?:ING)?|ERROR)\b|not supported|version supported|will not be executed"
    r"|partially executed|remaining [0-9]|Failed to apply|unsupported on this|fallback",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Node:
    """An op of a profile.

    Attributes:
        type: What it is: ``CONV_2D``, ``Convolution (NHWC, F32) IGEMM``, ``TfLiteGpuDelegateV2``.
        name: What the tool calls it: ``[output]:3``, ``Delegate/Clamp (NC):0``.
        us: How long it took on average, in µs, in steps of 1 µs.
        delegated: Whether a delegate ran it.
    """

    type: str
    name: str
    us: float
    delegated: bool


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A run of ``benchmark_model``. Times in µs; None: the build does not print it.

    Attributes:
        avg_us: Average time of a run, the warm-up left out; always more than 0.
        std_us: Their standard deviation.
        min_us: The shortest.
        max_us: The longest.
        median_us: The one in the middle.
        first_us: The first of the runs, not of the warm-up.
        count: How many there were.
        nodes: The ops of the runs' profile, in the order of execution.
        kernels: What the GPU ran.
        delegations: What is said of delegates.
        warnings: Lines that say something went wrong, at most 20.
    """

    avg_us: float
    std_us: float | None = None
    min_us: float | None = None
    max_us: float | None = None
    median_us: float | None = None
    first_us: float | None = None
    count: int | None = None
    nodes: tuple[Node, ...] = ()
    kernels: tuple[GpuKernel, ...] = ()
    delegations: tuple[Delegation, ...] = ()
    warnings: tuple[str, ...] = ()

    def require_delegate(self, name: str) -> None:
        """See to it that a delegate ran all of the model.

        Args:
            name: As the tool calls it: ``GPU``.

        Raises:
            BackendError: It says that the processor ran all or a part of the model, or does not say
                that the delegate ran it.
        """
        told = [one for one in self.delegations if means(one.name, name)]
        mine = [node for node in self.nodes if means(node.type, name)]
        others = [node for node in self.nodes if not means(node.type, name)]
        bad = [one for one in told if one.share in ("part", "none")]
        if bad or (mine and others):
            nothing = any(one.share == "none" for one in bad)
            said = [bad[-1].said] if bad else [f"{others[0].type} ran outside of it"]
            said += [line for line in self.warnings if "supported" in line][:3]
            raise BackendError(
                f"the {name} delegate took {'nothing' if nothing else 'a part'} of the model, so "
                f"this is no latency of it: {'; '.join(dict.fromkeys(said))}"
            )
        if not (mine or told or (means("GPU", name) and self.kernels)):
            raise BackendError(
                f"benchmark_model does not say that the {name} delegate took the model: is it "
                "built with it, and did all that it prints, also on the standard error, come here?"
            )


def read(text: str) -> Benchmark:
    """Read all that one call of ``benchmark_model`` printed, on both streams.

    The latency is that of the line ``count=…`` of the runs; else the average in the line
    ``Inference timings``; else ``Timings (microseconds)``, the sum over the ops of an op profile.

    Args:
        text: The output; of several runs the last counts.

    Raises:
        BackendError: It holds no latency, as of a run that did not end, or one that cannot be:
            zero, negative, infinite, of no runs. The last lines are quoted.
    """
    try:
        lines = _Lines(text)
        found = lines.latency()
        nodes = _nodes(text)
        ran = kernels(text, lines.spots)
    except (ValueError, GraphUnavailableError) as exc:
        raise BackendError(f"benchmark_model's output {exc}{_quoted(text)}") from None
    return replace(
        found,
        nodes=nodes,
        kernels=ran,
        delegations=tuple(delegations(map(_shown, lines.lines))),
        warnings=tuple(lines.warnings()),
    )


class _BadOutputError(ValueError):
    """What is wrong with an output, as the end of a sentence."""


class _Lines:
    """The lines of an output that tell something, in order."""

    def __init__(self, text: str) -> None:
        self.spots = list(itertools.islice(_telling_lines(text), _MOST_LINES + 1))
        if len(self.spots) > _MOST_LINES:
            raise _BadOutputError(f"is none: more than {_MOST_LINES} lines that mean something")
        self.lines = [line for _, line in self.spots]

    def latency(self) -> Benchmark:
        """The latency of the last run.

        Raises:
            _BadOutputError: There is none, or one that cannot be.
        """
        announced = 0  # first the warm-up, then the runs
        counted: str | None = None  # the line with numbers that followed
        chosen: Benchmark | None = None
        timed: str | None = None
        results: dict[str, str] = {}
        loading = False
        for line in self.lines:
            if _RUNNING in line:
                if chosen is not None or results:
                    announced, chosen, timed, results = 0, None, None, {}
                announced, counted = announced + 1, None
            elif _LOADING in line or _REGULAR in line:
                loading = _LOADING in line
            elif _TIMINGS in line:
                # of several graphs' profiles the first is the model's own
                timed = line if timed is None and not loading else timed
            elif _SUMMARY.search(line):
                chosen = _of_summary(line, counted)
            elif match := _RESULT.search(line):
                results[match[1]] = match[2]
                if match[3]:
                    results["count"] = match[3]
            elif _COUNTED.search(line):
                counted = line
        if chosen is not None:
            return chosen
        if "avg" in results:
            return _of_results(results, counted)
        if counted is not None and announced != 1:
            return _of_count(counted)
        if timed is not None:
            return _of_count(timed)
        ended = "; it ended before the runs did" if announced else ""
        raise _BadOutputError(f"holds no latency{ended}")

    def warnings(self) -> Iterator[str]:
        found = (_shown(line) for line in self.lines if _TROUBLE.search(line))
        for _, line in zip(range(_MOST_WARNINGS), dict.fromkeys(found), strict=False):
            yield line


def _telling_lines(text: str) -> Iterator[tuple[int, str]]:
    """Where lines with a word that matters end, and the lines; too long ones are none."""
    end = -1
    for match in _TELLING.finditer(text):
        if match.start() < end:
            continue  # in a line that has been looked at
        start = text.rfind("\n", max(end, 0), match.start()) + 1 or max(end, 0)
        end = text.find("\n", match.end())
        end = len(text) if end < 0 else end
        if end - start <= _LONGEST_LINE:
            yield end, text[start:end].strip()


# --- latencies -----------------------------------------------------------------------------------


def _of_count(line: str) -> Benchmark:
    """The latency of ``count=… first=… …``."""
    _, _, rest = line.partition("count=")
    facts = dict(_FACT.findall(f"count={rest}"))
    count = _number(facts.get("count"), "count", line)
    if count < 1 or count != int(count):
        raise _BadOutputError(f"is of no runs: {_shown(line)!r}")
    if "avg" not in facts and "curr" in facts:  # all as long
        facts.update({name: facts["curr"] for name in ("first", "min", "max", "avg", "median")})
        facts["std"] = "0"
    return _benchmark(facts, int(count), line, scale=1.0)


def _of_summary(line: str, counted: str | None) -> Benchmark:
    """The latency of ``Inference timings in us``, with what the line before tells of the same."""
    facts = dict(_SUMMARY_FACT.findall(line))
    word = next(
        (facts[name] for name in ("Inference (avg)", "Inference", "no stats") if name in facts),
        None,
    )
    found = Benchmark(avg_us=_positive(word, "Inference", line))
    if counted is not None:
        runs = _of_count(counted)
        if math.isclose(runs.avg_us, found.avg_us, rel_tol=_COARSENESS):
            return runs
    return found


def _of_results(results: dict[str, str], counted: str | None) -> Benchmark:
    """The latency of LiteRT's own tool, which prints hundredths of a millisecond."""
    line = f"Inference (avg): {results['avg']} ms"
    average_us = _number(results["avg"], "Inference (avg)", line) * 1000
    if counted is not None:
        runs = _of_count(counted)
        if abs(runs.avg_us - average_us) <= _HUNDREDTH_US:
            return runs
    count = int(results["count"]) if "count" in results else None
    if count == 0:
        raise _BadOutputError(f"is of no runs: {line!r}")
    return _benchmark(results, count, line, scale=1000.0)


def _benchmark(facts: Mapping[str, str], count: int | None, line: str, scale: float) -> Benchmark:
    """A latency of numbers that are in ``scale`` µs.

    Raises:
        _BadOutputError: They cannot be.
    """

    def us(name: str) -> float | None:
        return _number(facts[name], name, line) * scale if name in facts else None

    average_us = _positive(facts.get("avg"), "avg", line) * scale
    low_us, high_us = us("min"), us("max")
    slack_us = average_us * _COARSENESS
    if (low_us is not None and low_us > average_us + slack_us) or (
        high_us is not None and high_us < average_us - slack_us
    ):
        raise _BadOutputError(f"has an average outside of its own range: {_shown(line)!r}")
    return Benchmark(
        avg_us=average_us,
        std_us=us("std"),
        min_us=low_us,
        max_us=high_us,
        median_us=us("median"),
        first_us=us("first"),
        count=count,
    )


def _number(word: str | None, name: str, line: str) -> float:
    if word is None or not re.fullmatch(NUMBER, word):
        raise _BadOutputError(f"has no number as {name}: {_shown(line)!r}")
    value = float(word)
    if not 0 <= value < _MOST_US:
        raise _BadOutputError(f"has a {name} that cannot be: {_shown(line)!r}")
    return value


def _positive(word: str | None, name: str, line: str) -> float:
    value = _number(word, name, line)
    if value == 0:
        raise _BadOutputError(
            f"says that a run took no time, which is shorter than it can measure: {_shown(line)!r}"
        )
    return value


# --- ops -----------------------------------------------------------------------------------------


def _nodes(text: str) -> tuple[Node, ...]:
    if not recorded.recognises(text):
        return ()
    return tuple(
        Node(
            type=event.tag,
            name=name,
            us=float(event.elapsed_us),
            delegated=event.type == capi.DELEGATE_OP,
        )
        for name, event in recorded.named_events(text)
    )


# --- words ---------------------------------------------------------------------------------------


def _shown(line: str) -> str:
    words = " ".join(line[:_LONGEST_WARNING].split())
    return "".join(c if c.isprintable() else "\ufffd" for c in words)


def _quoted(text: str) -> str:
    """The last lines of an output, for a message."""
    tail = text[-_QUOTED_CHARACTERS:].strip().splitlines()[-_QUOTED_LINES:]
    lines = [_shown(line) for line in tail if line.strip()]
    return "; its last lines:\n  " + "\n  ".join(lines) if lines else "; it is empty"
