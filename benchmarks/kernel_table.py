"""How right kernels are, for all models of a folder: a table in Markdown.

    python benchmarks/kernel_models.py models
    python benchmarks/keras_models.py models
    python benchmarks/kernel_table.py models [BACKEND:RULES ...]

asks ``nn-meter kernels FILE --rules RULES --check BACKEND`` of each file that a runtime takes, by
default of ONNX Runtime and OpenVINO with the rules that ship with nn-Meter, and prints for each
runtime how many kernels the rules make, F1, how many edges the runtime executes as one out of all
that count, and how many ops it does not tell of. Behind the table stand the edges that differ, by
number.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

USUAL = ("onnxruntime_cpu:onnxruntime-1.31", "openvino_cpu:openvino-2026.4")
SUFFIXES = {"onnxruntime_cpu": (".onnx",), "openvino_cpu": (".onnx", ".tflite")}
"""What a backend takes; one that is not here is asked of every file."""


def asked(file: Path, backend: str, rules: str) -> dict[str, Any] | str:
    """What nn-meter says of a model, or why it cannot."""
    command = ["kernels", str(file), "--rules", rules, "--check", backend, "--json", "-"]
    done = subprocess.run(["nn-meter", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it failed"])[-1]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cell(found: dict[str, Any] | str | None) -> str:
    """One runtime's part of a row."""
    if found is None:
        return "-"
    if isinstance(found, str):
        return "refused"
    check = found["check"]
    untold = f", {check['untold']} untold" if check["untold"] else ""
    edges = f"{check['fused']} of {check['edges']}"
    f1 = f"{check['f1']:.3f}" if check["edges"] else "-"
    return f"{len(found['kernels'])}, {f1}, {edges}{untold}"


def f1(counted: Counter[str]) -> float:
    """F1 of several models, their edges put together."""
    right = counted["all fused"] - counted["fused"]
    wrong = counted["fused"] + counted["separate"]
    return 2 * right / (2 * right + wrong) if right + wrong else 1.0


def main(arguments: list[str]) -> None:
    """Print the table."""
    folder, *pairs = arguments
    runtimes = [pair.rsplit(":", 1) for pair in pairs or USUAL]
    files = sorted(p for p in Path(folder).iterdir() if p.suffix in (".onnx", ".tflite"))
    causes: Counter[tuple[str, str, str]] = Counter()
    all_of: dict[str, Counter[str]] = {backend: Counter() for backend, _ in runtimes}
    refused: list[str] = []
    titles = " | ".join(f"{backend}, {rules}" for backend, rules in runtimes)
    print(f"| model | ops | {titles} |")
    print("| --- | --- |" + " --- |" * len(runtimes))
    for file in files:
        row, ops = [], "?"
        for backend, rules in runtimes:
            takes = file.suffix in SUFFIXES.get(backend, (file.suffix,))
            found = asked(file, backend, rules) if takes else None
            row.append(cell(found))
            if isinstance(found, str):
                refused.append(f"{file.name} on {backend}: {found}")
            elif found is not None:
                ops = str(found["summary"]["ops"])
                all_of[backend].update(edge["executed"] for edge in found["check"]["differ"])
                all_of[backend]["all fused"] += found["check"]["fused"]
                causes.update(
                    (backend, " -> ".join(edge["types"]), edge["executed"])
                    for edge in found["check"]["differ"]
                )
        print(f"| {file.name} | {ops} | {' | '.join(row)} |", flush=True)
    print(f"| all | | {' | '.join(f'F1 {f1(all_of[backend]):.3f}' for backend, _ in runtimes)} |")
    print("\n| edges | runtime | ops | executed |\n| --- | --- | --- | --- |")
    for (backend, types, how), count in causes.most_common():
        print(f"| {count} | {backend} | {types} | {how} |")
    for words in refused:
        print(f"\n{words}")


if __name__ == "__main__":
    main(sys.argv[1:])
