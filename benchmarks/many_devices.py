"""Many devices: N simulated ones, each with a fixed latency, and the cost of a test case.

    python benchmarks/many_devices.py                      # 1, 2, 4, 8 and 16 devices
    python benchmarks/many_devices.py --cases 10000        # one run of many test cases

A simulated device is a Dask worker on this machine with a resource, and a backend that sleeps for
as long as a model takes: so sixteen of them take no more of the processor than one. The scheduler,
the workers, the wire, the processes and the store are real. With ``--cases`` the devices take no
time: what is left is what a test case costs, which is told for each tenth of the run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

HERE = Path(__file__).parent

BACKEND = """\
import time
import numpy as np
from nn_meter.builder.backends.base import Environment, SessionBackend


class Sleeper(SessionBackend):
    def describe(self):
        return Environment(runtime="sleeper", version="1", device="simulated", host="simulated")

    def convert_model(self, model_path, save_path, input_shape=None):
        return model_path

    def open(self, model, shapes):
        return Session(float(self.configs["SLEEP_S"]))


class Session:
    def __init__(self, sleep_s):
        self.sleep_s = sleep_s

    def time(self, n):
        if self.sleep_s:
            time.sleep(n * self.sleep_s)
        return np.full(n, max(1, round(self.sleep_s * 1e9)), dtype=np.int64)

    def outputs(self, feeds):
        raise NotImplementedError

    def close(self):
        pass
"""


@contextlib.contextmanager
def cluster(folder: Path, devices: int) -> Iterator[str]:
    """A scheduler and workers with one device each; gives the address."""
    processes: list[subprocess.Popen[bytes]] = []
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)

    def start(name: str, *arguments: str) -> None:
        with (folder / f"{name}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "dask", *arguments],
                    stdout=log,
                    stderr=log,
                    cwd=folder,
                    start_new_session=True,
                )
            )

    def wait_for(name: str, words: str) -> None:
        log = folder / f"{name}.log"
        limit = time.monotonic() + 300
        while words not in log.read_text():
            if time.monotonic() > limit or any(p.poll() is not None for p in processes):
                raise SystemExit(f"{name} did not start: {log.read_text()}")
            time.sleep(0.1)

    try:
        start(
            *("scheduler", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"),
            *("--scheduler-file", str(file)),
        )
        wait_for("scheduler", "Scheduler at:")
        while not file.exists():
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        for number in range(devices):
            start(
                *(f"worker{number}", "worker", address, "--resources", "sleeper=1"),
                *("--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"),
                *("--local-directory", str(folder / f"local{number}")),
            )
        for number in range(devices):
            wait_for(f"worker{number}", "Registered to:")
        yield address
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def prepare(folder: Path, cases: int, sleep_s: float, runs: int) -> tuple[Path, dict[str, object]]:
    """A workspace of models of a few bytes each, all of different content, and its test cases."""
    from nn_meter import registry
    from nn_meter.builder.workspace import create_workspace

    package = folder / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "sleeper.py").write_text(BACKEND)
    meta = {
        "builtin_name": "sleeper",
        "package_location": str(package),
        "class_module": "sleeper",
        "class_name": "Sleeper",
    }
    (package / "meta.yaml").write_text(yaml.safe_dump(meta))
    registry.register("backend", package / "meta.yaml")
    path = create_workspace(
        folder / "ws",
        platform="customized:sleeper",
        ruletest_config=yaml.safe_dump({"IMPLEMENT": "onnx", "EVIDENCE": "formula"}),
        backend_config=yaml.safe_dump({"RUNS": runs, "WARMUPS": 0, "SLEEP_S": sleep_s}),
    )
    models = path / "models"
    models.mkdir()
    (models / ".info").mkdir()
    found: dict[str, object] = {}
    for number in range(cases):
        case = {}
        for part in ("a", "b", "block"):
            file = models / f"{number}_{part}.bin"
            file.write_text(f"{number} {part}\n" * 50)
            case[part] = {"model": f"./models/{file.name}", "shapes": [[8, 8, 8]]}
        found[f"BF_case_{number}"] = case
    return path, found


def measure(path: Path, testcases: dict[str, object], address: str, ended: list[float]) -> float:
    """Measure test cases; seconds from the first that began to the last that ended.

    Converting comes before: these models are taken as they are.
    """
    from nn_meter.builder.backends import connect_backend
    from nn_meter.builder.profiling.interface import profile_models
    from nn_meter.builder.workspace import open_workspace

    workspace = open_workspace(path)
    shutil.rmtree(workspace.results_dir, ignore_errors=True)
    begun = [0.0]

    def progress(stage: str, done: int, total: int, name: str) -> None:
        if stage == "profile":
            ended.append(time.monotonic())
            begun[0] = begun[0] or ended[0]

    profile_models(
        connect_backend("sleeper", workspace),
        testcases,
        workspace=workspace,
        scheduler=address,
        progress=progress,
    )
    return ended[-1] - begun[0]


def devices(folder: Path, numbers: list[int], cases: int, sleep_s: float, runs: int) -> None:
    """The same test cases on more and more devices."""
    path, testcases = prepare(folder, cases, sleep_s, runs)
    alone_s = 3 * runs * sleep_s * cases
    print(f"{cases} test cases of {3 * runs * sleep_s:.2f} s on a device: {alone_s:.1f} s on one")
    print(f"{'devices':>8} {'seconds':>8} {'ideal':>8} {'speed-up':>9} {'of ideal':>9}")
    first = 0.0
    for number in numbers:
        with cluster(folder, number) as address:
            wall_s = measure(path, testcases, address, [])
        first = first or wall_s
        ideal_s = alone_s / number
        print(
            f"{number:8} {wall_s:8.2f} {ideal_s:8.2f} {first / wall_s:9.2f} "
            f"{ideal_s / wall_s:9.0%}",
            flush=True,
        )
        for left in folder.glob("local*"):
            shutil.rmtree(left, ignore_errors=True)


def many(folder: Path, cases: int) -> None:
    """Many test cases that take no time on the device."""
    path, testcases = prepare(folder, cases, 0.0, 10)
    ended: list[float] = []
    with cluster(folder, 2) as address:
        measure(path, testcases, address, ended)
    del ended[-1]  # told twice
    print(f"{cases} test cases of 3 models on 2 devices that take no time")
    tenth = cases // 10
    for part in range(10):
        taken_s = ended[(part + 1) * tenth] - ended[part * tenth]
        print(
            f"  test cases {part * tenth + 1:6} to {(part + 1) * tenth:6}: "
            f"{taken_s / tenth * 1e3:6.1f} ms each",
            flush=True,
        )
    print(f"  memory of this process at the most: {peak_mb():.0f} MB")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--each", type=int, default=64, help="test cases in the first table")
    parser.add_argument("--sleep-ms", type=float, default=40.0, help="what one run takes")
    parser.add_argument("--runs", type=int, default=10, help="runs of each model")
    parser.add_argument("--cases", type=int, default=0, help="so many test cases instead")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no process is left behind
    with tempfile.TemporaryDirectory(prefix="many-devices-") as name:
        folder = Path(name)
        os.environ["NN_METER_HOME"] = str(folder / "home")
        if given.cases:
            many(folder, given.cases)
        else:
            devices(folder, given.devices, given.each, given.sleep_ms / 1e3, given.runs)


if __name__ == "__main__":
    main()
