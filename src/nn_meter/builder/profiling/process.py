"""The parent's end of a worker process: start, ask, limit in time, notice a crash, replace."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import math
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from nn_meter import errors
from nn_meter.builder.profiling.worker import NEW_CALL
from nn_meter.errors import NNMeterError, NotInstalledError, TimeLimitError, WorkerCrashedError

__all__ = ["Worker", "decode_error"]

# Loads nn_meter by its place, so that the interpreter of another virtual environment needs nothing
# of ours installed, and finds nothing of ours but this package. The folder that the user stands in
# is no place to import from.
_BOOTSTRAP = """\
import importlib.util, sys
sys.path = [place for place in sys.path if place]
root, handler = sys.argv[1:3]
spec = importlib.util.spec_from_file_location(
    "nn_meter", root + "/__init__.py", submodule_search_locations=[root])
package = importlib.util.module_from_spec(spec)
sys.modules["nn_meter"] = package
spec.loader.exec_module(package)
from nn_meter.builder.profiling.worker import main
main(handler)
"""
log = logging.getLogger(__name__)

_TAIL = 4000
_LONGEST = 256 * 2**20  # bytes of an answer
_EXIT_S = 5.0
_LOOK_S = 1.0


class Worker:
    """A process that serves one handler. Started at the first call, replaced after a crash.

    Args:
        handler: ``module:Class`` whose methods are the operations.
        python: The interpreter to run; default: this one.
        setup: Operations with their arguments to repeat whenever a process is started.
        what: What the process does, for messages: ``openvino_cpu``.
    """

    def __init__(
        self,
        handler: str,
        *,
        python: str | None = None,
        setup: tuple[str, dict[str, Any]] | None = None,
        what: str = "the worker",
    ) -> None:
        self._handler = handler
        self._python = python or sys.executable
        self._setup = setup
        self._what = what
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._tail: collections.deque[bytes] = collections.deque()
        self._said: set[str] = set()
        self._answered = False
        self._asked = 0
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether there is a process, with whatever it holds."""
        return self._process is not None

    def call(self, op: str, timeout_s: float | None = None, **arguments: Any) -> Any:
        """Ask for one operation.

        Args:
            op: Name of the handler's method.
            timeout_s: Seconds after which the process is killed; None: no limit.
            **arguments: JSON-able arguments.

        Raises:
            TimeLimitError: It took longer.
            WorkerCrashedError: The process ended meanwhile; the last that it printed is kept.
            NNMeterError: What the operation raised, as the same class.
        """
        if self._process is None:
            self._start()
            if self._setup is not None:
                setup_op, setup_arguments = self._setup
                try:
                    self._ask(setup_op, timeout_s, setup_arguments)
                except BaseException:
                    self.stop()
                    raise
        return self._ask(op, timeout_s, arguments)

    def stop(self) -> None:
        """End the process and all that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()  # its guard ends all that there is
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_EXIT_S)
        with contextlib.suppress(OSError):  # what is no guard, or no Python at all
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_EXIT_S)
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        for reader in self._readers:  # a daemon that it started may hold the other streams open
            reader.join(timeout=_LOOK_S)

    def _start(self) -> None:
        root = str(Path(errors.__file__).parent)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        try:
            python = str(Path(self._python).expanduser())
            self._process = subprocess.Popen(
                [python, "-c", _BOOTSTRAP, root, self._handler],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is the parent's; stop() ends the whole group
                env=environment,
            )
        except (OSError, RuntimeError, ValueError) as exc:  # ~nobody; a NUL in the path
            reason = getattr(exc, "strerror", None) or exc
            raise NotInstalledError(
                f"PYTHON: {self._python!r} cannot be run ({reason}); give the path of a Python "
                "interpreter"
            ) from exc
        self._answers = queue.SimpleQueue()
        self._tail = collections.deque()
        self._answered = False
        self._readers = [
            threading.Thread(target=target, args=(stream, sink), daemon=True)
            for target, stream, sink in (
                (_read_lines, self._process.stdout, self._answers),
                (_keep_tail, self._process.stderr, self._tail),
            )
        ]
        for reader in self._readers:
            reader.start()

    def _ask(self, op: str, timeout_s: float | None, arguments: dict[str, Any]) -> Any:
        process = self._process
        assert process is not None
        self._asked += 1
        line = json.dumps({"id": self._asked, "op": op, **arguments}) + "\n"
        end_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        try:
            _write(process, line.encode(), end_s)
            answer = self._answer(process, end_s)
        except (OSError, ValueError):  # it is gone; another thread may have closed the stream
            raise self._crashed(process) from None
        except queue.Empty:
            self.stop()
            raise TimeLimitError(
                f"{self._what} took longer than its time limit of {timeout_s:g} s and was stopped"
                + self._doubt()
            ) from None
        except BaseException:  # Ctrl-C: an answer still to come would be taken for a later one's
            self.stop()
            raise
        if answer is None:
            raise self._crashed(process)
        try:
            data = json.loads(answer)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict) or data.get("id") != self._asked:
            self.stop()
            raise WorkerCrashedError(
                f"{self._what} answered what is no answer: {answer[:200]!r}{self._doubt()}"
            )
        self._answered = True
        self._pass_on(data.get("said"))
        if "error" in data:
            raise decode_error(data["error"])
        return data["ok"]

    def _pass_on(self, said: Any) -> None:
        """Log what the process would have logged, each thing once."""
        for words in said if isinstance(said, list) else ():
            if isinstance(words, str) and words not in self._said:
                self._said.add(words)
                log.warning("%s", words)

    def _answer(self, process: subprocess.Popen[bytes], end_s: float) -> bytes | None:
        """Wait for a line; None: there will be none. Raises ``queue.Empty`` when the time is up."""
        while True:
            left_s = max(0.0, end_s - time.monotonic())
            try:
                return self._answers.get(timeout=min(left_s, _LOOK_S))
            except queue.Empty:
                if process.poll() is not None:  # but something that it forked holds the stream
                    with contextlib.suppress(queue.Empty):
                        return self._answers.get(timeout=_LOOK_S)
                    return None
                if left_s <= _LOOK_S:
                    raise

    def _crashed(self, process: subprocess.Popen[bytes]) -> WorkerCrashedError:
        try:
            code = process.wait(timeout=_EXIT_S)
        except subprocess.TimeoutExpired:
            code = None
        self.stop()
        if code is None:
            how = "closed its output"
        elif code < 0:
            names = {int(number): number.name for number in signal.Signals}
            how = f"was ended by {names.get(-code, f'signal {-code}')}"
            if -code == signal.SIGKILL:
                how += " (by somebody, or by the system for want of memory)"
        else:
            how = f"ended with exit code {code}"
        words = b"".join(self._tail).rpartition(NEW_CALL)[2].decode(errors="replace").strip()
        last = f": {_printable(words.splitlines()[-1])}" if words else ""
        return WorkerCrashedError(f"{self._what} {how}{last}{self._doubt()}")

    def _doubt(self) -> str:
        """That the interpreter may be none, while it has answered nothing."""
        if self._answered or self._python == sys.executable:
            return ""
        return (
            f" (PYTHON: {self._python!r} has not answered once; it should be a Python interpreter "
            "that has numpy and the runtime)"
        )


def _write(process: subprocess.Popen[bytes], line: bytes, end_s: float) -> None:
    """Write a request; raises ``queue.Empty`` if it is not taken in time."""
    assert process.stdin is not None
    descriptor = process.stdin.fileno()
    os.set_blocking(descriptor, False)
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    left = memoryview(line)
    while left:
        wait_s = min(max(0.0, end_s - time.monotonic()), _LOOK_S)
        if poll.poll(math.ceil(wait_s * 1000)):
            left = left[os.write(descriptor, left) :]
        elif process.poll() is not None:  # but something that it forked holds the stream
            raise BrokenPipeError
        elif time.monotonic() >= end_s:
            raise queue.Empty


def _read_lines(stream: IO[bytes], answers: queue.SimpleQueue[bytes | None]) -> None:
    with stream, contextlib.suppress(OSError, ValueError):
        while line := stream.readline(_LONGEST):
            answers.put(line)
            if len(line) == _LONGEST:
                break  # no answer is that long; whoever writes on finds nobody who reads
    answers.put(None)


def _printable(words: str) -> str:
    """A runtime's words without what would move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in words).strip()


def _keep_tail(stream: IO[bytes], tail: collections.deque[bytes]) -> None:
    size = 0
    with stream, contextlib.suppress(OSError, ValueError):
        while block := stream.read1(65536):  # type: ignore[attr-defined]
            tail.append(block[-_TAIL:])
            size += len(tail[-1])
            while size - len(tail[0]) >= _TAIL:
                size -= len(tail.popleft())


def decode_error(data: Mapping[str, str]) -> NNMeterError:
    """The error that ``worker.encode_error`` made plain values of."""
    kind = getattr(errors, data["type"], None) if data["type"] else None
    if isinstance(kind, type) and issubclass(kind, NNMeterError):
        return kind(data["message"])
    return errors.BackendError(data["message"])
