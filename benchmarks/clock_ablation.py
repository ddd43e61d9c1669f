"""What each part of the clock's method is worth: `nn-meter validate` with the part taken out.

    python benchmarks/clock_ablation.py --backend onnxruntime_cpu                   # every variant
    python benchmarks/clock_ablation.py --backend mnn_cpu --runs 3 as-it-is eight-replicas
    python benchmarks/clock_ablation.py --backend openvino_cpu --set HW=20 --set CIN=24

Each run is a process of its own; variants take turns, so that what the machine does meanwhile hits
all of them. A line for each run: cases decided, right, fused found, separate called fused, seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nn_meter.builder.backend_meta.fusion_rule_tester.clock import decision, design, statistics
from nn_meter.cli.main import main as nn_meter

Variant = Callable[[], None]


def constants(**values: Any) -> Variant:
    """Other constants of the method."""

    def change() -> None:
        defaults = design.Method.__init__.__kwdefaults__
        assert defaults is not None
        assert set(values) <= set(defaults)
        defaults.update(values)

    return change


def only(*barriers: str) -> Variant:
    """Fewer barriers, and so fewer controls."""

    def change() -> None:
        for name in set(design.BARRIERS) - set(barriers):
            del design.BARRIERS[name]

    return change


def in_decision(**values: Any) -> Variant:
    """Other constants, or functions, of the decision."""

    def change() -> None:
        for name, value in values.items():
            assert hasattr(decision, name)
            setattr(decision, name, value)

    return change


def mean_of_all(visits: Any) -> float | None:
    """The mean of all runs, in place of a low statistic."""
    runs = [visit for visit in visits if visit.size]
    return float(np.concatenate(runs).mean()) if len(runs) >= 3 else None


def with_a_mean() -> None:
    statistics.time_of = mean_of_all


VARIANTS: dict[str, Variant] = {
    "as-it-is": lambda: None,
    "8x8": constants(spatial=8),
    "one-replica": constants(replicas=1),
    "eight-replicas": constants(replicas=8),
    "verdicts-from-one-load": constants(looks=(1, 2, 3, 4, 6, 9, 13, 18)),
    "timing-half-of-loading": constants(share=0.5),
    "tanh-only": only("tanh"),
    "pool-only": only("avgpool"),
    "any-layout": in_decision(layouts_of=lambda *_: "none"),
    "dearest-control": in_decision(_second=lambda tails: max(tails, key=lambda n: tails[n].value)),
    "no-pass-as-scale": in_decision(_LEAST=0.0),
    "mean-for-low-statistic": with_a_mean,
}


def run(variant: str, arguments: list[str]) -> dict[str, Any]:
    """Validate in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "v.json"
        command = [sys.executable, __file__, "--variant", variant]
        subprocess.run([*command, *arguments, "--json", str(file)], check=True, capture_output=True)
        found: dict[str, Any] = json.loads(file.read_text())
    return found


def compare(variants: list[str], runs: int, arguments: list[str]) -> None:
    """Run variants in turn and print a line for each run."""
    for number in range(runs):
        for variant in variants:
            found = run(variant, arguments)
            cost = found["cost"]
            speed = cost["counted"] / cost["runs"] if cost["runs"] else 0.0
            print(
                f"{number + 1}  {variant:24} decided {found['decided']:3} of {found['cases']}, "
                f"right {found['right']:3}, fused found {found['found']['fused']} of "
                f"{found['found']['of']}, separate called fused {found['false_fused']}, "
                f"{found['wall_s']:.0f} s, {speed:.0%} of the runs at full speed",
                flush=True,
            )


def main() -> None:
    if sys.argv[1:2] == ["--variant"]:
        VARIANTS[sys.argv[2]]()
        sys.argv = ["nn-meter", "validate", *sys.argv[3:]]
        nn_meter()
        return
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--backend", default="onnxruntime_cpu")
    parser.add_argument("--budget", default="50")
    parser.add_argument("--set", action="append", default=[], dest="keys", metavar="KEY=VALUE")
    given = parser.parse_args()
    if unknown := set(given.variants) - set(VARIANTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there is: {', '.join(VARIANTS)}")
    keys = [word for key in given.keys for word in ("--set", key)]
    compare(
        given.variants or list(VARIANTS),
        given.runs,
        ["--backend", given.backend, "--budget", given.budget, *keys],
    )


if __name__ == "__main__":
    main()
