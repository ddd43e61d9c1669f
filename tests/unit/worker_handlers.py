"""What the worker processes of test_process.py serve. Imported there by its name, on PYTHONPATH."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NoReturn

from nn_meter import errors


class OddConfigError(errors.ConfigError):
    """A class of a user's, derived from one of ours."""


class UnspeakableError(Exception):
    """One whose words cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no words")


class Handler:
    """Operations that behave, and operations that do not."""

    def __init__(self) -> None:
        self.value: object = None
        self.calls = 0

    def set_up(self, value: object) -> None:
        self.value = value

    def state(self) -> list[object]:
        self.calls += 1
        return [os.getpid(), self.value, self.calls]

    def echo(self, value: object) -> object:
        return value

    def warn(self, words: str, error: str = "") -> None:
        logging.getLogger("nn_meter.builder").warning("%s", words)
        if error:
            raise errors.BackendError(error)

    def say(self, words: str) -> None:
        sys.stderr.write(words)
        sys.stderr.flush()

    def last_words(self, words: str, code: int) -> NoReturn:
        sys.stderr.write(words)
        sys.stderr.flush()
        os._exit(code)

    def signalled(self, number: int) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    def segmentation_fault(self) -> None:
        ctypes.string_at(0)

    def leave(self) -> NoReturn:
        sys.exit("no more")

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    def compute(self) -> NoReturn:
        while True:
            pass

    def start(self, apart: bool = False, orphan: bool = False) -> int:
        """Start a process, in a session of its own or not, that holds all standard streams."""
        if not orphan:
            return subprocess.Popen(["sleep", "1000"], start_new_session=apart).pid
        code = (
            "import subprocess, sys; print(subprocess.Popen(['sleep', '1000'], stdout=sys.stderr, "
            f"start_new_session={apart}).pid)"
        )
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
        return int(done.stdout)

    def hold_the_lock(self) -> None:
        """Hang, so that no thread of Python's runs."""
        ctypes.PyDLL(None).sleep(1000)

    def end_group(self) -> None:
        os.killpg(0, signal.SIGKILL)

    def temporary(self) -> str:
        handle, name = tempfile.mkstemp()
        os.close(handle)
        return name

    def say_answers(self) -> str:
        for line in ('{"id": 1, "ok": 1}\n', '{"id": 2, "ok": 2}\n', '{"ok": 3}\n'):
            sys.stdout.write(line)
            sys.stdout.flush()
            os.write(1, line.encode())
            subprocess.run(["echo", line], check=True)
        return "the answer"

    def fork(self) -> list[int]:
        copy = os.fork()
        return [os.getpid(), copy]

    def close_streams(self) -> None:
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            stream.close()
        os.closerange(0, 3)

    def close_everything(self) -> None:
        os.closerange(0, 1000)

    def leave_threads(self) -> None:
        for _ in range(3):
            threading.Thread(target=time.sleep, args=(1000,)).start()

    def interrupt(self) -> NoReturn:
        raise KeyboardInterrupt

    def unspeakable_error(self) -> NoReturn:
        raise UnspeakableError

    def endless_error(self) -> NoReturn:
        raise RuntimeError("x" * 1_000_000)

    def take_memory(self) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, resource.RLIM_INFINITY))
        taken = []
        while True:
            taken.append(bytearray(2**23))

    def fill_disk(self, path: str, ours: bool) -> NoReturn:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        except OSError as exc:
            if not ours:
                raise
            raise errors.ConversionError(f"cannot be converted: {exc}") from exc

    def nest(self, depth: int) -> None:
        """Write an answer past the one who writes answers: their stream is the first one free."""
        os.write(100, b"[" * depth + b"]" * depth + b"\n")

    def last_bytes(self, words: list[int], code: int) -> NoReturn:
        os.write(2, bytes(words))
        os._exit(code)

    def fork_and_die(self) -> None:
        if os.fork():
            os._exit(7)
        time.sleep(1000)

    def chatter(self, size: int) -> str:
        block = "x" * 1023 + "\n"
        for _ in range(size // 1024):
            print(block, end="")  # noqa: T201
            os.write(1, block.encode())
        subprocess.run(["echo", '{"ok": "from a child"}'], check=True)
        sys.stdout.write('{"ok": "from print"}')
        return "done"

    def read(self) -> list[str]:
        return [sys.stdin.read(), subprocess.run(["cat"], stdout=subprocess.PIPE, text=True).stdout]

    def fail(self, name: str, message: str) -> NoReturn:
        raise getattr(errors, name)(message)

    def fail_as_derived(self) -> NoReturn:
        raise OddConfigError("odd")

    def fail_foreign(self) -> NoReturn:
        raise KeyError("conv")

    def unspeakable(self) -> object:
        return object()


class SlowBackend:
    """Races that take a minute, but for the first. Each says where the model is that it began."""

    def __init__(self) -> None:
        self.races = 0
        self.place = ""

    def open(self, key: str, converted: str, shapes: object, check: bool) -> None:
        self.place = converted

    def race(self, keys: list[str], **asked: object) -> dict[str, object]:
        self.races += 1
        if self.races > 1:
            Path(f"{self.place}{os.getpid()}").touch()
            time.sleep(60)
        visits = {key: [[1000]] for key in keys}
        return {"visits": visits, "failed": {}, "level_ns": 2000.0, "runs": 1, "counted": 1}

    def drop(self, keys: list[str]) -> None:
        pass
