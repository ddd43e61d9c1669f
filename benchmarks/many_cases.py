"""Profiles and judges many test cases with a runtime that costs next to nothing: our own overhead.

    python benchmarks/many_cases.py --cases 10000 --folder /tmp/many

A customized backend loads models into ONNX Runtime, to compare their outputs, but takes no time to
run them. So what is measured is, but for loading, what nn-Meter itself needs: memory of its
process and of its workers, and milliseconds for each test case, by the clock and of the processor,
printed at 1,000, 2,000, 5,000 and so on. First the models are made, then timed. Then the same
again, which measures nothing: all is kept. Then the rules are detected. Test cases are chains of
three operators, in shapes that are so small that building them takes little.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import time
from pathlib import Path

import psutil
import yaml

BACKEND = """\
import numpy as np
from nn_meter.builder.backends.onnxruntime.backend import OnnxRuntimeCPUBackend

class Session:
    def __init__(self, session, model):
        self.session, self.ns = session, 1000 + sum(map(ord, model[-40:])) % 100
    def time(self, n):
        return np.full(n, self.ns, dtype=np.int64)
    def outputs(self, feeds):
        return self.session.outputs(feeds)
    def close(self):
        self.session.close()

class IdleBackend(OnnxRuntimeCPUBackend):
    def open(self, converted_model, shapes):
        return Session(super().open(converted_model, shapes), converted_model)
"""
SMALL = {"HW": 8, "CIN": 4, "COUT": 4, "SHAPE_1D": 8}
MARKS = (1000, 2000, 5000, 10_000, 20_000)


class Meter:
    """Memory and time, whenever a test case is done."""

    def __init__(self) -> None:
        self.me = psutil.Process()
        self.stage, self.last = "", 0
        self.begun_s, self.used_s = time.monotonic(), 0.0

    def __call__(self, stage: str, done: int, total: int, name: str) -> None:
        if stage != self.stage:
            self.stage, self.last = stage, 0
            self.begun_s, self.used_s = time.monotonic(), self.processor_s()
        if done in (*MARKS, total) and done > self.last:
            self.tell(stage, done, done - self.last)
            self.last = done

    def tell(self, what: str, done: int, count: int) -> None:
        now, used_s = time.monotonic(), self.processor_s()
        print(
            f"{what:9}{done:7}  {(now - self.begun_s) / count * 1e3:8.2f} ms each,"
            f" {(used_s - self.used_s) / count * 1e3:8.2f} ms of the processor"
            f" for the last {count:5}  {self.memory()}",
            flush=True,
        )
        self.begun_s, self.used_s = now, used_s

    def processor_s(self) -> float:
        """Of this process and all below it."""
        total = sum(self.me.cpu_times()[:4])
        for child in self.me.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                total += sum(child.cpu_times()[:2])
        return total

    def memory(self) -> str:
        own = self.me.memory_info().rss / 1e6
        rss = []
        for child in self.me.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                rss.append(child.memory_info().rss / 1e6)
        workers = ", ".join(f"{each:.0f}" for each in sorted(rss, reverse=True))
        return f"{own:5.0f} MB here; workers: {workers or 'none'} MB"


def chains(count: int) -> list[str]:
    """Names of chains of three operators that can be built."""
    from nn_meter import registry
    from nn_meter.builder.backend_meta.fusion_rule_tester.situations import plan
    from nn_meter.builder.config import RuletestConfig
    from nn_meter.errors import NNMeterError

    names = list(dict.fromkeys(e.name for e in registry.entries("operator")))
    config = RuletestConfig.from_dict(
        {**SMALL, "IMPLEMENT": "onnx", "OTHER_TESTCASES": []},
        source="here",
        operators=names,
        testcases=[],
    ).as_dict()
    found = []
    for ops in itertools.product(names, repeat=3):
        try:
            plan(ops, config)
        except NNMeterError:
            continue
        found.append("_".join(ops))
        if len(found) == count:
            return found
    raise SystemExit(f"there are {len(found)} only")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    os.environ["NN_METER_HOME"] = str(given.folder / "home")
    package = given.folder / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "idle.py").write_text(BACKEND)
    meta = given.folder / "meta.yaml"
    meta.write_text(
        f"builtin_name: idle\npackage_location: {package}\n"
        "class_module: idle\nclass_name: IdleBackend\n"
    )

    from nn_meter import registry
    from nn_meter.builder.backend_meta.fusion_rule_tester import (
        detect_fusion_rule,
        generate_testcases,
    )
    from nn_meter.builder.backends import connect_backend, interface
    from nn_meter.builder.profiling.interface import profile_models
    from nn_meter.builder.workspace import builder_config

    registry.register("backend", meta)
    place = given.folder / "ws"
    interface.create_workspace(place, backend="idle", implement="onnx")
    path = place / "configs" / "ruletest_config.yaml"
    names = chains(given.cases)
    asked = {**SMALL, "BASIC_TESTCASES": names, "OTHER_TESTCASES": [], "EVIDENCE": "formula"}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | asked))
    backend_file = place / "configs" / "backend_config.yaml"
    backend_file.write_text(yaml.safe_dump({"RUNS": 2, "WARMUPS": 0}))
    builder_config.init(place)
    workspace = builder_config.workspace

    meter = Meter()
    print(f"begin: {meter.memory()}", flush=True)
    cases = generate_testcases(progress=meter)
    assert len(cases) == given.cases
    size = sum(file.stat().st_size for file in workspace.models_dir.rglob("*") if file.is_file())
    print(f"{given.cases} test cases, {size * 1e-6:.0f} MB of models; {meter.memory()}", flush=True)
    profiled = profile_models(connect_backend("idle"), cases, progress=meter)
    for what in ("again", "detect"):
        meter.begun_s, meter.used_s = time.monotonic(), meter.processor_s()
        if what == "again":
            profiled = profile_models(connect_backend("idle"), cases, progress=meter)
        else:
            rules = detect_fusion_rule(profiled)
        meter.tell(what, given.cases, given.cases)
    assert len(rules) == given.cases
    files = [file for file in workspace.results_dir.iterdir() if file.is_file()]
    print(*(f"{file.name}: {file.stat().st_size * 1e-6:.1f} MB" for file in files), sep="\n")


if __name__ == "__main__":
    main()
