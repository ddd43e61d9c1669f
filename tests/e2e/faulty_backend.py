"""A customized backend whose runtime, ONNX Runtime, does not survive some models.

test_faults.py registers it. Its key FAULTS says what happens to which model: `step: model: fault`,
the model by its file's name, or by the type of an op that it has.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnx

from nn_meter.builder.backends.onnxruntime.backend import OnnxRuntimeCPUBackend

STRAY = [sys.executable, "-c", "import time; time.sleep(1000)"]


class UnspeakableError(Exception):
    def __init__(self, lock: threading.Lock) -> None:
        super().__init__(lock)  # which cannot be pickled

    def __str__(self) -> str:
        raise ValueError("no words")


class Faults:
    """Things that runtimes do. What returns lets the runtime go on."""

    def segfault(self) -> None:
        ctypes.string_at(0)

    def exit(self) -> NoReturn:
        os.write(1, b"the last words\n")
        os._exit(3)

    def killed(self) -> None:  # as by the system when memory is short
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_group(self) -> None:
        os.kill(0, signal.SIGTERM)
        time.sleep(1000)

    def out_of_memory(self) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
        taken = []
        while True:
            taken.append(bytearray(2**24))

    def hang(self) -> None:
        """Hangs with Python's lock held, and has started three that do not go by themselves."""
        self.stray()
        ctypes.PyDLL(None).sleep(1000)

    def stray(self) -> None:
        """One in its group, one in a session of its own, and one whose parent is gone."""
        code = f"import subprocess; subprocess.Popen({STRAY!r}, start_new_session=True)"
        subprocess.Popen(STRAY)
        subprocess.Popen(STRAY, start_new_session=True)
        subprocess.run([sys.executable, "-c", code], check=True)

    def flood(self) -> None:
        """Megabytes that are no text and have no lines."""
        block = bytes(range(128, 256)) * 2**13
        for _ in range(50):
            os.write(1, block)
            os.write(2, block)

    def flood_and_crash(self) -> NoReturn:
        self.flood()
        os.write(2, b"\nthe \x1b[2Jend\n")
        os._exit(4)

    def threads(self) -> NoReturn:
        """Ends, but threads keep it."""
        for _ in range(3):
            threading.Thread(target=time.sleep, args=(1000,)).start()
        sys.exit("no more")

    def threads_left(self) -> None:
        threading.Thread(target=time.sleep, args=(1000,)).start()

    def closes_streams(self) -> None:
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            stream.close()
        os.closerange(0, 3)

    def closes_all(self) -> None:
        os.closerange(0, 1024)

    def talks_json(self) -> None:
        for line in ('{"id": 1, "ok": [1]}', '{"ok": [1]}', '{"id": 5, "error": {}}', "[]"):
            sys.stdout.write(line)
            sys.stdout.flush()
            os.write(1, line.encode() + b"\n")
            subprocess.run(["echo", line], check=True)

    def system_exit(self) -> NoReturn:
        raise SystemExit(9)

    def interrupt(self) -> NoReturn:
        raise KeyboardInterrupt

    def unspeakable(self) -> NoReturn:
        raise UnspeakableError(threading.Lock())

    def endless(self) -> NoReturn:
        raise RuntimeError("words\nand\nlines " * 100_000)

    def fork(self) -> None:
        os.fork()  # and both go on


SAMPLES = {
    "nan": lambda n: [float("nan")] * n,
    "negative": lambda n: [-1] * n,
    "empty": lambda n: [],
    "too_many": lambda n: [1] * (n + 1),
    "huge": lambda n: [10**30] * n,
    "zero": lambda n: np.zeros(n, dtype=np.int64),
    "nothing": lambda n: None,
}


class FaultyBackend(OnnxRuntimeCPUBackend):
    def fault(self, step: str, model: str) -> str | None:
        faults = (self.configs.get("FAULTS") or {}).get(step, {})
        if not faults:
            return None
        types = {node.op_type for node in onnx.load(model).graph.node}
        found = [fault for key, fault in faults.items() if key == Path(model).stem or key in types]
        once = self.configs.get("ONCE")
        if found and once:
            if Path(once).exists():
                return None
            Path(once).touch()
        return found[0] if found else None

    def happens(self, step: str, model: str) -> None:
        fault = self.fault(step, model)
        if fault is not None and fault not in SAMPLES:
            getattr(Faults(), fault)()

    def convert_model(self, model_path, save_path, input_shape=None):
        self.happens("convert", model_path)
        return super().convert_model(model_path, save_path, input_shape)

    def executed_graph(self, converted_model, shapes):
        self.happens("graph", converted_model)
        return super().executed_graph(converted_model, shapes)

    def open(self, converted_model, shapes):
        self.happens("open", converted_model)
        return FaultySession(super().open(converted_model, shapes), self, converted_model)


class FaultySession:
    def __init__(self, session, backend: FaultyBackend, model: str) -> None:
        self._session, self._backend, self._model = session, backend, model

    def time(self, n: int):
        self._backend.happens("time", self._model)
        given = self._session.time(n)
        return SAMPLES.get(self._backend.fault("time", self._model), lambda n: given)(n)

    def outputs(self, feeds):
        return self._session.outputs(feeds)

    def close(self) -> None:
        self._backend.happens("close", self._model)
        self._session.close()
