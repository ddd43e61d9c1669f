"""How near the sum over a model's kernels comes to what the whole model takes.

    python benchmarks/kernel_costs.py MODEL.onnx [MODEL.onnx ...] --backend NAME --rules RULES

Without a model: the nine light models of the onnx package. Runs ``nn-meter kernels --profile`` for
each and prints a table: the whole, the sum over kernels, what they differ by, and the sums over
kernels and over single ops that are cut out alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NN_METER = str(Path(sys.executable).parent / "nn-meter")


def light_models() -> list[Path]:
    """The models that ship with the onnx package."""
    import onnx

    return sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


def profiled(model: Path, rules: str, backend: str, budget_s: float) -> dict[str, Any]:
    """What the command says of a model."""
    asked = ["kernels", str(model), "--rules", rules, "--profile", backend, "--json", "-"]
    answer = subprocess.run(
        [NN_METER, *asked, "--budget", str(budget_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--backend", default="onnxruntime_cpu")
    parser.add_argument("--rules", default="onnxruntime-1.31")
    parser.add_argument("--budget", type=float, default=120.0)
    asked = parser.parse_args(arguments)
    off = []
    print("| model | kernels | whole, ms | sum, ms | sum to whole | alone: kernels, ops, ms | s |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for model in asked.models or light_models():
        start_s = time.monotonic()
        data = profiled(model, asked.rules, asked.backend, asked.budget)
        told = data["profile"]
        off.append(told["ratio"] - 1)
        whole, whole_sum = told["whole_ms"]["value"], told["sum_ms"]["value"]
        alone = [told["alone"][key] for key in ("kernels_ms", "single_ops_ms")]
        print(
            f"| {model.stem} | {len(data['kernels'])} | {whole:.2f} | {whole_sum:.2f} | "
            f"{told['ratio'] - 1:+.1%} | {', '.join(map(str, alone))} | "
            f"{time.monotonic() - start_s:.0f} |",
            flush=True,
        )
    within = {limit: sum(abs(share) <= limit for share in off) for limit in (0.10, 0.15)}
    print(
        f"\n{within[0.10]} of {len(off)} within 10 %, {within[0.15]} within 15 %; "
        f"the median is off by {statistics.median(map(abs, off)):.1%}"
    )
    return 0 if within[0.10] >= 0.9 * len(off) else 1


if __name__ == "__main__":
    sys.exit(main())
