"""Running a program that must end in time, and print no more than it may; or is killed."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

__all__ = ["Ended", "TimeUpError", "TooMuchError", "child", "run_bounded"]

_BLOCK = 1 << 16
_LOOK_S = 0.2
_LINGER_S = 1.0
_EXIT_S = 5.0
_BEGINNING = 4096  # bytes


@dataclass(frozen=True)
class Ended:
    """What a program printed, and its exit code; negative: the signal that ended it."""

    stdout: bytes
    stderr: bytes
    code: int


class TimeUpError(Exception):
    """A program had not ended in time, and was killed."""


class TooMuchError(Exception):
    """A program printed more than it may, and was killed.

    Attributes:
        begins: The first bytes that it printed.
    """

    def __init__(self, begins: bytes) -> None:
        super().__init__(begins)
        self.begins = begins


def run_bounded(command: Sequence[str], timeout_s: float, max_bytes: int) -> Ended:
    """Run a program without input until it ends.

    What it leaves behind may hold its streams open: it is not waited for.

    Args:
        command: The program and its arguments.
        timeout_s: Seconds until it and its children are killed.
        max_bytes: What it may print, both streams together.

    Raises:
        TimeUpError: It took longer.
        TooMuchError: It printed more.
        OSError: It cannot be started.
        ValueError: An argument holds NUL.
    """
    end_s = time.monotonic() + timeout_s
    with child(command, subprocess.PIPE, subprocess.PIPE) as process:
        out, err = _read(process, end_s, max_bytes)
        try:
            code = process.wait(max(0.0, end_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeUpError from None
        return Ended(out, err, code)


@contextlib.contextmanager
def child(
    command: Sequence[str], stdout: int | IO[bytes], stderr: int | IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs, without input; killed with its children if it has not ended then.

    Raises:
        OSError: It cannot be started.
        ValueError: An argument holds NUL.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,  # Ctrl-C is ours; and the whole group can be killed
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(_EXIT_S)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _read(process: subprocess.Popen[bytes], end_s: float, max_bytes: int) -> tuple[bytes, bytes]:
    """What a program prints on its two streams.

    Raises:
        TimeUpError: It goes on at ``end_s`` on the monotonic clock.
        TooMuchError: It prints more than ``max_bytes``.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = bytearray(), bytearray()
    into = {process.stdout.fileno(): out, process.stderr.fileno(): err}
    heard_s = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for stream in into:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            now_s = time.monotonic()
            if now_s >= end_s:
                raise TimeUpError
            events = selector.select(min(_LOOK_S, end_s - now_s))
            for key, _ in events:
                block = os.read(key.fd, _BLOCK)
                if not block:
                    selector.unregister(key.fd)
                into[key.fd] += block
            if len(out) + len(err) > max_bytes:
                raise TooMuchError(bytes((out or err)[:_BEGINNING]))
            if events:
                heard_s = time.monotonic()
            elif process.poll() is not None and time.monotonic() > heard_s + _LINGER_S:
                break  # it ended, and something that it left behind holds the streams
    return bytes(out), bytes(err)
