"""How long whole runs take, how much memory, and how much of the time is spent in the runtime.

    python benchmarks/whole_runs.py                 # every case
    python benchmarks/whole_runs.py onnx-generate   # one

Each case runs the command line in an empty folder, several times. Peak memory is the largest sum
over the process and all its children, sampled every 20 ms. The time in the runtime is the sum of
all measured runs in samples.db: warm-ups, loading and everything of ours is outside it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

NN_METER = str(Path(sys.executable).parent / "nn-meter")

SQUARE = ("conv", "dwconv", "convtrans", "avgpool", "add", "concat", "relu", "reshape")
ORIGINAL_79 = [
    *(f"{first}_{second}" for first in SQUARE for second in SQUARE),
    *(f"{op}_fc" for op in ("add", "concat", "relu", "reshape")),
    *(f"fc_{op}" for op in ("add", "concat", "fc", "relu", "reshape")),
    *("bn_relu", "conv_bn", "dwconv_bn", "conv_hswish", "conv_se", "se_relu"),
]
CASES_79 = ",".join([*ORIGINAL_79, "MON"])


@dataclass(frozen=True)
class Case:
    """A command to time.

    ``before`` runs first and is not timed; ``limit_s`` and ``limit_mb`` are the targets.
    """

    what: str
    command: list[str]
    before: list[str] | None = None
    limit_s: float | None = None
    limit_mb: float | None = None
    baseline: list[str] | None = None


# seconds for the executed graphs of the whole default list, generating its models included
GRAPH_LIMITS_S = {
    "onnxruntime_cpu": 20,
    "openvino_cpu": 40,
    "tflite_cpu": 60,
    "ncnn_cpu": 60,
    "mnn_cpu": 60,
    "iree_cpu": 120,
}
# seconds for verdicts by the clock on it, and the formula and the graphs to hold them against
CLOCK_LIMITS_S = {
    "onnxruntime_cpu": 60,
    "openvino_cpu": 100,
    "tflite_cpu": 240,
    "ncnn_cpu": 100,
    "mnn_cpu": 60,
}
PYTHON = [sys.executable, "-c", "pass"]
CASES = {
    "default": Case(
        "nn-meter run, defaults, ONNX Runtime",
        [NN_METER, "run", "--json"],
        limit_s=60,
        limit_mb=1500,
    ),
    "tflite-79": Case(
        "79 pairs + MON, TensorFlow on tflite_cpu, all steps (the original program: 155 s)",
        [NN_METER, "run", "--json", "--backend", "tflite_cpu", "--testcases", CASES_79],
        limit_s=77,
    ),
    **{
        f"clock-{backend}": Case(
            f"the whole default list by the clock, validated, {backend}",
            [NN_METER, "validate", "--backend", backend, "--json", "v.json"],
            limit_s=limit_s,
        )
        for backend, limit_s in CLOCK_LIMITS_S.items()
    },
    "onnx-generate": Case(
        "79 pairs + MON, ONNX, generating",
        [NN_METER, "ruletest", "generate", "--json", "--testcases", CASES_79],
        before=[NN_METER, "create", "--onnxruntime-workspace", "nn-meter-workspace"],
        limit_s=10,
    ),
    "tensorflow-generate": Case(
        "79 pairs + MON, TensorFlow, generating",
        [NN_METER, "ruletest", "generate", "--json", "--testcases", CASES_79],
        before=[NN_METER, "create", "--tflite-workspace", "nn-meter-workspace"],
        limit_s=60,
    ),
    **{
        f"graph-{backend}": Case(
            f"nn-meter run --evidence graph, the default list, on {backend}",
            [NN_METER, "run", "--evidence", "graph", "--json", "--backend", backend],
            limit_s=limit_s,
        )
        for backend, limit_s in GRAPH_LIMITS_S.items()
    },
    **{
        f"ask-{backend}": Case(
            f"nn-meter ask conv+bn+hswish on {backend}",
            [NN_METER, "ask", "conv+bn+hswish", "--json", "--backend", backend],
            limit_s=None if backend == "tflite_cpu" else 5,  # TensorFlow makes its models
        )
        for backend in GRAPH_LIMITS_S
    },
    "import": Case(
        "import nn_meter, beyond starting Python",
        [sys.executable, "-c", "import nn_meter"],
        limit_s=0.3,
        baseline=PYTHON,
    ),
    "help": Case(
        "nn-meter --help, beyond starting Python",
        [NN_METER, "--help"],
        limit_s=0.3,
        baseline=PYTHON,
    ),
}


def measure(command: list[str], folder: Path) -> tuple[float, float]:
    """Run a command; returns wall seconds and peak megabytes of it and its children."""
    start = time.monotonic()
    with (folder / "stderr.txt").open("wb") as errors:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=errors)
        peak = 0
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, resident(watched))
            time.sleep(0.02)
    wall_s = time.monotonic() - start
    if process.returncode:
        sys.exit(f"{' '.join(command)}: {(folder / 'stderr.txt').read_text()}")
    return wall_s, peak / 1e6


def resident(process: psutil.Process) -> int:
    """Bytes in memory of a process and its children; those that just ended count nothing."""
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.Error:
        pass
    return total


def runtime_s(folder: Path) -> float | None:
    """Seconds of all measured runs; None if nothing was measured."""
    store = folder / "nn-meter-workspace" / "fusion_rule_test" / "results" / "samples.db"
    if not store.is_file():
        return None
    with sqlite3.connect(store) as db:
        rows = db.execute("SELECT samples FROM visits WHERE samples IS NOT NULL")
        return sum(float(np.frombuffer(blob, "<i8").sum()) for (blob,) in rows) * 1e-9


def run_case(case: Case, runs: int) -> bool:
    """Run a case and print its figures; returns whether the targets are met."""
    walls, peaks, shares = [], [], []
    for _ in range(runs):
        folder = Path(tempfile.mkdtemp(prefix="nn-meter-benchmark-"))
        try:
            if case.before:
                subprocess.run(case.before, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            base_s = measure(case.baseline, folder)[0] if case.baseline else 0.0
            wall_s, peak_mb = measure(case.command, folder)
            inside_s = runtime_s(folder)
            walls.append(wall_s - base_s)
            peaks.append(peak_mb)
            if inside_s is not None:
                shares.append(inside_s / wall_s)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    wall_s, peak_mb = statistics.median(walls), max(peaks)
    met = (case.limit_s is None or wall_s <= case.limit_s) and (
        case.limit_mb is None or peak_mb <= case.limit_mb
    )
    print(case.what)
    print(
        f"  wall {wall_s:.2f} s (median of {runs}: {min(walls):.2f} to {max(walls):.2f}), "
        + (f"target {case.limit_s:g} s" if case.limit_s else "no target")
    )
    print(
        f"  peak memory {peak_mb:.0f} MB"
        + (f", target {case.limit_mb:g} MB" if case.limit_mb else "")
    )
    if shares:
        print(f"  inside the runtime {statistics.median(shares):.0%} of the wall time")
    print(f"  {'met' if met else 'MISSED'}", flush=True)
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--runs", type=int, default=3)
    chosen = parser.parse_args()
    names = chosen.cases or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    met = [run_case(CASES[name], chosen.runs) for name in names]
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
