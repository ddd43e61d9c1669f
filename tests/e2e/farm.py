"""A Dask cluster for tests: a real scheduler and workers on this machine, which can be killed.

The workers' devices run `fixed`, a backend of a user's: it runs models in ONNX Runtime, and says
that each took a time that depends on its content alone. What it does besides, files in a folder
say, which the key PLAY names.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

WAIT_S = 60.0

_MARK = "NN_METER_TEST_FARM"

_BACKEND = """\
import hashlib, os, pathlib, signal, time
import numpy as np
import psutil
from nn_meter.builder.backends.base import Environment
from nn_meter.builder.backends.onnxruntime.backend import OnnxRuntimeCPUBackend
from nn_meter.errors import DeviceError


class Fixed(OnnxRuntimeCPUBackend):
    runs_here = False

    def describe(self):
        look_for(self.configs)
        return Environment(runtime="fixed", version=self.configs.get("VERSION", "1"), host="any")

    def open(self, model, shapes):
        look_for(self.configs)
        return Timed(super().open(model, shapes), pathlib.Path(model), self)


def look_for(configs):
    gone = pathlib.Path(configs["PLAY"], "gone")
    serial = configs.get("DEVICE_SERIAL", "")
    if gone.exists() and serial in gone.read_text().split():
        raise DeviceError(f"{serial} has left")


class Timed:
    def __init__(self, session, model, backend):
        self.session, self.play = session, pathlib.Path(backend.configs["PLAY"])
        self.configs = backend.configs
        self.ns = 1000 + int(hashlib.sha256(model.read_bytes()).hexdigest()[:3], 16)
        self.ns += backend.configs.get("EXTRA_NS", 0)
        with (self.play / "log").open("a") as log:
            log.write(f"{model.stem} {backend.configs.get('DEVICE_SERIAL', '')}\\n")
        if model.stem in self.told("exit"):
            os._exit(3)
        if model.stem in self.told("kill"):
            for process in psutil.Process().parents():
                words = " ".join(process.cmdline())
                if "spawn_main" in words or "worker" in words and "nn_meter" not in words:
                    process.kill()
                    time.sleep(60)

    def told(self, what):
        file = self.play / what
        return file.read_text().split() if file.exists() else []

    def time(self, n):
        for seconds in self.told("slow"):
            time.sleep(float(seconds) / 10)
        look_for(self.configs)
        return np.full(n, self.ns, dtype=np.int64)

    def outputs(self, feeds):
        return self.session.outputs(feeds)

    def close(self):
        self.session.close()
"""


def write_backend(folder: Path) -> Path:
    """Write the backend's package; its meta file."""
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "fixed.py").write_text(_BACKEND)
    meta = folder / "meta.yaml"
    meta.write_text(
        yaml.safe_dump(
            {
                "builtin_name": "fixed",
                "package_location": str(folder),
                "class_module": "fixed",
                "class_name": "Fixed",
            }
        )
    )
    return meta


class Process:
    """A scheduler or a worker, and all that it starts."""

    def __init__(self, arguments: list[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=dict(environment),
                cwd=log.parent,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End it at once, with its nanny."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=WAIT_S)

    def wait_for(self, words: str) -> None:
        wait_until(
            lambda: words in self.log.read_text() or self.process.poll() is not None,
            lambda: f"{words!r} in {self.log.read_text()}",
        )
        assert words in self.log.read_text(), self.log.read_text()


class Farm:
    """A scheduler and its workers."""

    def __init__(self, folder: Path, home: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.options = folder, options
        self.environment = {
            **os.environ,
            "NN_METER_HOME": str(home),
            _MARK: str(folder),
        }
        self.workers: list[Process] = []
        self.file = folder / "scheduler.json"
        self.scheduler = self._start_scheduler(0)
        self.address: str = self._written()["address"]

    def _start_scheduler(self, port: int) -> Process:
        scheduler = Process(
            [
                *("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"),
                *("--scheduler-file", str(self.file), *self.options),
            ],
            self.folder / f"scheduler-{time.monotonic_ns()}.log",
            self.environment,
        )
        scheduler.wait_for("Scheduler at:")
        wait_until(lambda: bool(self._written()))
        return scheduler

    def _written(self) -> dict[str, Any]:
        """What the scheduler has written of itself; empty: it has not, or is about to."""
        try:
            found: dict[str, Any] = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return {}
        return found

    def restart_scheduler(self) -> None:
        """Another scheduler at the same address."""
        self.scheduler = self._start_scheduler(int(self.address.rpartition(":")[2]))

    def worker(self, resources: str, *, nanny: bool = False, **variables: str) -> Process:
        """Start a worker that offers devices."""
        number = len(self.workers)
        worker = Process(
            [
                *("worker", self.address, "--resources", resources, "--no-dashboard"),
                *("--nthreads", "2", "--local-directory", str(self.folder / f"worker-{number}")),
                *("--host", "127.0.0.1", "--nanny" if nanny else "--no-nanny", *self.options),
            ],
            self.folder / f"worker-{number}.log",
            {**self.environment, **variables},
        )
        self.workers.append(worker)
        return worker

    def up(self, *workers: Process) -> None:
        """Wait until workers are registered."""
        for worker in workers:
            worker.wait_for("Registered to:")

    def close(self) -> None:
        """End all of it; nothing of it is left."""
        for process in [*self.workers, self.scheduler]:
            process.kill()
        wait_until(lambda: not self.left(), lambda: f"left: {self.left()}")

    def left(self) -> list[psutil.Process]:
        """Processes that run on behalf of the cluster."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == str(self.folder):
                    found.append(process)
        return found


def wait_until(
    moment: Callable[[], bool], told: Callable[[], str] = lambda: "it never came"
) -> None:
    """Wait for a moment; it has to come."""
    limit = time.monotonic() + WAIT_S
    while not moment():
        assert time.monotonic() < limit, told()
        time.sleep(0.05)
