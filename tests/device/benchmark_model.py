"""Stands in for LiteRT's ``benchmark_model``: really runs the model, and prints as the tool does.

The model runs on this computer's processor with the LiteRT of this interpreter, and what is printed
of latencies and operators was measured. ``--use_gpu=true`` changes the form only: there is no GPU
here, the first line says so, and every number is the processor's.

The forms are those that builds of the tool have had, told apart by ``format=`` in a file
``benchmark_model.settings`` beside the script that starts this::

    guide    Timings (microseconds): count=50 first=… curr=… min=… max=… avg=… std=…
    old      count lines, "Average inference timings in us", op tables with [start]
    new      count lines, "Inference timings in us"
    newest   the same on the standard error, after "INFO: ", with percentiles
    litert   the tool of LiteRT's CompiledModel: milliseconds after "Inference (avg):"

Other settings: ``gpu=`` ``all`` (the default), ``part``, ``none`` or ``fails``: what the delegate
is said to have taken; ``kernels=`` ``nn-meter``, ``linked`` or ``arrow``: lists of GPU kernels in
three forms, with the processor's operators in them; ``crash=``, ``hang=``, ``silent=``: a part of
the name of a model with which the tool is ended by a signal, never ends, or prints no latency.
"""

from __future__ import annotations

import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

__all__: list[str] = []

_DEFAULTS = {
    "graph": "",
    "num_threads": "-1",
    "num_runs": "50",
    "warmup_runs": "1",
    "min_secs": "1",
    "warmup_min_secs": "0.5",
    "max_secs": "150",
    "use_gpu": "false",
    "use_xnnpack": "true",
    "enable_op_profiling": "false",
    "require_full_delegation": "false",
    "gpu_precision_loss_allowed": "true",
    "kernel_path": "",
    "verbose": "false",
}
_COMPLETELY = (
    "Explicitly applied GPU delegate, and the model graph will be completely executed by the "
    "delegate."
)
_PARTIALLY = (
    "Explicitly applied GPU delegate, and the model graph will be partially executed by the "
    "delegate w/ 1 delegate kernels."
)
_NOT = (
    "Though GPU delegate is explicitly applied, the model graph will not be executed by the "
    "delegate."
)


class FailedError(Exception):
    """The tool ends with an error."""


@dataclass(frozen=True)
class Op:
    """An operator that ran: its type and name in the tables, and how long it took."""

    type: str
    name: str
    us: int


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark; the exit code."""
    flags, unknown = _flags(arguments)
    graph = Path(flags["graph"])
    settings = _settings()
    form = settings.get("format", "new")
    say = _saying(form)
    say("STARTING!")
    if unknown:
        say(f"Unconsumed cmdline flags: {' '.join(unknown)}")
    for key, value in flags.items():
        if value != _DEFAULTS[key]:
            say(f"{key.replace('_', ' ').capitalize()}: [{value}]")
    for kind, act in (("crash", _crash), ("hang", _hang)):
        if settings.get(kind) and settings[kind] in graph.name:
            act()
    try:
        _benchmark(flags, graph, settings, form, say)
    except FailedError as exc:
        _put(f"ERROR: {exc}\nBenchmarking failed.", sys.stderr)
        return 1
    return 0


def _flags(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    flags, unknown = dict(_DEFAULTS), []
    for argument in arguments:
        key, found, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and found and key in flags:
            flags[key] = value
        else:
            unknown.append(argument)
    return flags, unknown


def _on(value: str) -> bool:
    return value.lower() in ("true", "1")


def _settings() -> dict[str, str]:
    file = Path(os.environ["BENCHMARK_MODEL_SETTINGS"])
    lines = file.read_text().splitlines() if file.exists() else []
    return dict(line.split("=", 1) for line in lines)


def _saying(form: str) -> Callable[[str], None]:
    """How the form prints a line of its log."""

    def say(line: str) -> None:
        if form == "newest":
            _put(f"INFO: {line}" if line else "", sys.stderr)
        else:
            _put(line)

    return say


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang() -> None:
    while True:
        signal.pause()


# --- running -------------------------------------------------------------------------------------


def _benchmark(
    flags: dict[str, str],
    graph: Path,
    settings: dict[str, str],
    form: str,
    say: Callable[[str], None],
) -> None:
    use_gpu = _on(flags["use_gpu"])
    if use_gpu:
        say("NOTE: stand-in without a GPU; only the form is the GPU's, the numbers are the CPU's")
    if not graph.is_file():
        raise FailedError(f"Could not open '{graph}'.\nERROR: Failed to mmap model {graph}")
    begin_us = _now_us()
    interpreter = _load(flags, graph)
    say(f"Loaded model {graph}")
    if use_gpu:
        _delegate(settings.get("gpu", "all"), _on(flags["require_full_delegation"]), say)
    elif _on(flags["use_xnnpack"]):
        say("Created TensorFlow Lite XNNPACK delegate for CPU.")
    say(f"The input model file size (MB): {graph.stat().st_size / 1e6:g}")
    init_us = _now_us() - begin_us
    say(f"Initialized session in {init_us / 1000:g}ms.")
    quiet = form == "guide"
    lot = [
        _run(interpreter, int(flags[runs]), float(flags[seconds]), float(flags["max_secs"]))
        for runs, seconds in (("warmup_runs", "warmup_min_secs"), ("num_runs", "min_secs"))
    ]
    if settings.get("silent") and settings["silent"] in graph.name:
        return
    if not quiet:
        for times, runs, seconds in (
            (lot[0], flags["warmup_runs"], flags["warmup_min_secs"]),
            (lot[1], flags["num_runs"], flags["min_secs"]),
        ):
            say(
                f"Running benchmark for at least {runs} iterations and at least {seconds} seconds "
                f"but terminate if exceeding {flags['max_secs']} seconds."
            )
            say(_stat(times, percentiles=form == "newest"))
            say("")
    _summary(form, init_us, lot[0], lot[1], say)
    if _on(flags["enable_op_profiling"]) or form == "guide":
        # the tables are about what ran: one line for all that a delegate took
        ops = (
            [Op("TfLiteGpuDelegateV2", "[y]:1", round(statistics.fmean(lot[1])))]
            if use_gpu and settings.get("gpu", "all") == "all"
            else _profile(interpreter, graph, max(1, int(flags["num_threads"])))
        )
        _tables(ops, form, lot[1], init_us)
    if use_gpu and "kernels" in settings:
        _kernels(_profile(interpreter, graph, 1), settings["kernels"])


def _load(flags: dict[str, str], graph: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = (
        OpResolverType.AUTO
        if _on(flags["use_xnnpack"])
        else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    import numpy as np

    try:
        interpreter = Interpreter(
            str(graph),
            num_threads=max(1, int(flags["num_threads"])),
            experimental_op_resolver_type=resolver,
        )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as exc:
        raise FailedError(f"{exc}\nERROR: Failed to load model {graph}") from exc
    random = np.random.default_rng(0)
    for tensor in interpreter.get_input_details():
        shape, dtype = tensor["shape"], tensor["dtype"]
        value = random.random(shape) if np.issubdtype(dtype, np.floating) else np.zeros(shape)
        interpreter.set_tensor(tensor["index"], value.astype(dtype))
    return interpreter


def _run(interpreter: Any, runs: int, least_s: float, most_s: float) -> list[int]:
    times: list[int] = []
    begin_s = time.monotonic()
    while True:
        passed_s = time.monotonic() - begin_s
        if (len(times) >= runs and passed_s >= least_s) or (times and passed_s >= most_s):
            return times
        begin_ns = time.perf_counter_ns()
        interpreter.invoke()
        times.append((time.perf_counter_ns() - begin_ns) // 1000)


def _profile(interpreter: Any, graph: Path, threads: int) -> list[Op]:
    """What LiteRT's own profiler sees in one more run."""
    from nn_meter.builder.backends.tflite import capi

    inputs = {
        tensor["index"]: (
            tuple(map(int, tensor["shape"])),
            interpreter.get_tensor(tensor["index"]).tobytes(),
        )
        for tensor in interpreter.get_input_details()
    }
    ops = []
    for event in capi.profile(capi.Library(capi.find_library()), graph, inputs, threads):
        if event.type == capi.DELEGATE_OP:
            ops.append(Op(event.tag, f"Delegate/{event.tag}:{event.index}", event.elapsed_us))
        elif event.type == capi.BUILTIN_OP and not event.tag.startswith("TfLite"):
            ops.append(Op(event.tag, f"[y]:{event.index}", event.elapsed_us))
    return ops


def _delegate(taken: str, wanted_whole: bool, say: Callable[[str], None]) -> None:
    say("Created TensorFlow Lite delegate for GPU.")
    if taken == "fails":
        raise FailedError("Failed to apply GPU delegate.")
    if taken != "all":
        say("Following operations are not supported by GPU delegate:")
        say("UNPACK: Operation is not supported.")
        gpu = int(taken == "part")
        say(
            f"{gpu} operations will run on the GPU, and the remaining 1 operations will run on "
            "the CPU."
        )
        if wanted_whole:
            raise FailedError("Disallowed CPU fallback detected.")
    if taken != "none":
        say("Initialized OpenCL-based API.")
        say("Created 1 GPU delegate kernels.")
    say({"all": _COMPLETELY, "part": _PARTIALLY, "none": _NOT}[taken])


# --- printing ------------------------------------------------------------------------------------


def _put(text: str, file: TextIO | None = None) -> None:
    file = file or sys.stdout
    file.write(f"{text}\n")
    file.flush()


def _now_us() -> int:
    return time.perf_counter_ns() // 1000


def _stat(times: Sequence[int], *, percentiles: bool = False) -> str:
    """A row of numbers, as the tool prints it."""
    if not times:
        return "count=0"
    if min(times) == max(times):
        return f"count={len(times)} curr={times[-1]}" + "(all same)" * (len(times) > 1)
    text = (
        f"count={len(times)} first={times[0]} curr={times[-1]} min={min(times)} max={max(times)} "
        f"avg={statistics.fmean(times):g} std={math.floor(statistics.pstdev(times))}"
    )
    if percentiles:
        row = sorted(times)
        for name, share in (("p5", 0.05), ("median", 0.5), ("p95", 0.95)):
            text += f" {name}={row[min(len(row) - 1, int(share * len(row)))]}"
    return text


def _summary(
    form: str, init_us: int, warm: Sequence[int], times: Sequence[int], say: Callable[[str], None]
) -> None:
    average, warm_average = statistics.fmean(times), statistics.fmean(warm) if warm else 0.0
    if form == "old":
        say(
            f"Average inference timings in us: Warmup: {warm_average:g}, Init: {init_us}, "
            f"Inference: {average:g}"
        )
    elif form in ("new", "newest"):
        say(
            f"Inference timings in us: Init: {init_us}, First inference: "
            f"{warm[0] if warm else 0}, Warmup (avg): {warm_average:g}, "
            f"Inference (avg): {average:g}"
        )
        say("Memory footprint delta from the start of the tool (MB): init=2.5 overall=3.5")
    elif form == "litert":
        _put("\n========== BENCHMARK RESULTS ==========")
        for words, value in (
            ("Model initialization", f"{init_us / 1e3:.2f} ms"),
            ("Warmup (first)", f"{(warm[0] if warm else 0) / 1e3:.2f} ms"),
            ("Warmup (avg)", f"{warm_average / 1e3:.2f} ms ({len(warm)} runs)"),
            ("Inference (avg)", f"{average / 1e3:.2f} ms ({len(times)} runs)"),
            ("Inference (min)", f"{min(times) / 1e3:.2f} ms"),
            ("Inference (max)", f"{max(times) / 1e3:.2f} ms"),
            ("Inference (std)", f"{statistics.pstdev(times) / 1e3:.2f}"),
        ):
            _put(f"INFO: [benchmark_litert_model.h:92] {words + ':':<21} {value}")


def _tables(ops: Sequence[Op], form: str, times: Sequence[int], init_us: int) -> None:
    start = form in ("guide", "old")
    if not start:
        _put("Profiling Info for Benchmark Initialization:")
        _table("Run Order", [Op("AllocateTensors", "AllocateTensors/0", init_us)], start)
        _put(f"Timings (microseconds): count=1 curr={init_us}")
        _put("Memory (bytes): count=0\n1 nodes observed\n\n\n")
        _put("Operator-wise Profiling Info for Regular Benchmark Runs:")
    _table("Run Order", ops, start)
    _table("Top by Computation Time", sorted(ops, key=lambda op: -op.us), start)
    _put(f"Number of nodes executed: {len(ops)}")
    kinds = sorted({op.type for op in ops})
    _put(f"{' Summary by node type ':=^80}")
    _put("\t             [Node type]\t  [count]\t  [avg ms]\t    [avg %]\t    [cdf %]")
    for kind in kinds:
        mine = [op.us for op in ops if op.type == kind]
        _put(f"\t{kind:>24}\t{len(mine):9}\t{sum(mine) / 1e3:10.3f}")
    _put(f"\nTimings (microseconds): {_stat(times)}")
    _put(f"Memory (bytes): count=0\n{len(ops)} nodes observed\n\n")


def _table(title: str, ops: Sequence[Op], start: bool) -> None:
    _put(f"{'=' * 30} {title} {'=' * 30}")
    started = "\t          [start]" if start else ""
    _put(
        f"\t             [node type]{started}\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]"
        "\t[times called]\t[Name]"
    )
    total, passed = sum(op.us for op in ops) or 1, 0
    for op in ops:
        before = f"\t{passed / 1e3:17.3f}" if start else ""
        passed += op.us
        ms = op.us / 1e3
        _put(
            f"\t{op.type:>24}{before}\t{ms:9.3f}\t{ms:9.3f}"
            f"\t{100 * op.us / total:7.3f}%\t{100 * passed / total:7.3f}%\t{0:10.3f}\t{1:9}"
            f"\t{op.name}"
        )
    _put("")


def _kernels(ops: Sequence[Op], form: str) -> None:
    """Lists of kernels as GPU builds print them; the operators and times are the processor's."""
    words = [(op.type.partition(" ")[0].lower(), op.us / 1e3) for op in ops]
    if form == "nn-meter":
        for number, (name, ms) in enumerate(words):
            _put(f"kernel_name[{number}]={name} {number}")
            _put(f"local_work_size[{number}]=8,4,1")
            _put(
                f"kernel[{number}]avg_ms={ms:g} kernel[{number}]std_ms=0 "
                f"kernel[{number}]min_ms={ms:g} kernel[{number}]max_ms={ms:g}"
            )
        _put(f"comp_avg_ms={sum(ms for _, ms in words):g} comp_std_ms=0")
        return
    _put(f"Per kernel timing({len(words)} kernels):")
    for number, (name, ms) in enumerate(words):
        _put(
            f"  {name} {number} - {ms:.6f} ms"
            if form == "linked"
            else f"  {name} {number}; {ms:.6f} ms; 45.726452 Gb/s"
        )
    _put("--------------------")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
