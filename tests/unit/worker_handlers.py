"""What the worker processes of test_process.py serve. Imported there by its name, on PYTHONPATH."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from nn_meter import errors


class OddConfigError(errors.ConfigError):
    """A class of a user's, derived from one of ours."""


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

    def start(self, apart: bool = False) -> int:
        """Start a process, in a session of its own or not, that holds all standard streams."""
        return subprocess.Popen(["sleep", "1000"], start_new_session=apart).pid

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
