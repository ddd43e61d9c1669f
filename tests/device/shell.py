"""The ``shell:`` and ``exec:`` services: a command runs in this computer's ``sh``.

With the shell protocol (``shell,v2``, Android 7 and later) both streams and the exit code travel
apart; without it, everything comes in one stream whose lines end as a terminal's do.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .faults import Fault
from .protocol import Stream

__all__ = ["serve_shell"]

_PACKET = struct.Struct("<BI")
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
_BLOCK = 1 << 16
_LOOK_S = 0.1
_GARBAGE = 4096


def serve_shell(
    stream: Stream,
    service: str,
    *,
    command: str,
    root: Path,
    environment: Mapping[str, str],
    fault: Fault | None,
    drop: Callable[[Fault], None],
    started: Callable[[int], None],
) -> None:
    """Run a command and send what it prints until it ends or the client leaves.

    When the client leaves, the shell gets SIGHUP as from Android; what it started may live on.

    Args:
        stream: The client's.
        service: As it was asked for: ``shell,v2,raw``, ``shell`` or ``exec``.
        command: What to run, its paths already those of this computer.
        root: The device's root, where it runs.
        environment: Of the process.
        fault: What goes wrong.
        drop: Breaks the connection.
        started: Is told the number of the process, which leads a group of its own.
    """
    framed = "v2" in service.split(",")
    terminal = not framed and service.startswith("shell")
    if fault is not None and fault.what != "drop":
        _go_wrong(stream, framed, fault)
        return
    with subprocess.Popen(
        ["sh", "-c", command],
        cwd=root,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if framed else subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        started(process.pid)
        feeder = threading.Thread(target=_feed, args=(stream, process, framed), daemon=True)
        feeder.start()
        sent = 0
        try:
            if fault is not None and fault.after_bytes == 0:
                drop(fault)
            for number, block in _blocks(stream, process):
                data = block.replace(b"\n", b"\r\n") if terminal else block
                if fault is not None and sent + len(data) > fault.after_bytes:
                    data = data[: fault.after_bytes - sent]
                _send(stream, framed, number, data)
                sent += len(data)
                if fault is not None and sent >= fault.after_bytes:
                    break
            if fault is not None and fault.after_bytes:
                drop(fault)
            if stream.ended:
                process.send_signal(signal.SIGHUP)
            code = process.wait()
            if framed:
                # the shell's own way to put a signal into an exit code
                number = 128 - code if code < 0 else code
                stream.write(_PACKET.pack(_EXIT, 1) + bytes([number & 255]))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGHUP)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_S)
                process.kill()
            stream.end()
            feeder.join()


def _blocks(stream: Stream, process: subprocess.Popen[bytes]) -> Iterator[tuple[int, bytes]]:
    """What the process prints, with the number of the stream; ends early when the client leaves."""
    numbers = {process.stdout: _STDOUT, process.stderr: _STDERR}
    with selectors.DefaultSelector() as selector:
        for file in filter(None, numbers):
            selector.register(file, selectors.EVENT_READ, numbers[file])
        while selector.get_map() and not stream.ended:
            events = selector.select(_LOOK_S)
            for key, _ in events:
                block = os.read(key.fd, _BLOCK)
                if block:
                    yield key.data, block
                else:
                    selector.unregister(key.fileobj)
            if not events and process.poll() is not None:
                return  # something that it left behind holds the streams


def _feed(stream: Stream, process: subprocess.Popen[bytes], framed: bool) -> None:
    """Give the process what the client sends."""
    assert process.stdin is not None
    with contextlib.suppress(OSError, EOFError), process.stdin as stdin:
        while not framed:
            block = stream.read_some()
            if not block:
                return
            stdin.write(block)
            stdin.flush()
        while True:
            kind, size = _PACKET.unpack(stream.read(_PACKET.size))
            data = stream.read(size)
            if kind == _CLOSE_STDIN:
                return
            if kind == _STDIN:
                stdin.write(data)
                stdin.flush()


def _send(stream: Stream, framed: bool, number: int, data: bytes) -> None:
    if data:
        stream.write(_PACKET.pack(number, len(data)) + data if framed else data)


def _go_wrong(stream: Stream, framed: bool, fault: Fault) -> None:
    if fault.what == "hang":
        while not stream.ended and stream.read_some():
            pass
    elif fault.what == "break":
        stream.connection.send_raw(os.urandom(_GARBAGE))
        stream.connection.drop()
    elif fault.what == "garbage":
        _send(stream, framed, _STDOUT, os.urandom(_GARBAGE))
        if framed:
            stream.write(_PACKET.pack(_EXIT, 1) + b"\0")
    else:
        while not stream.ended:
            _send(stream, framed, _STDOUT, b"all work and no play\n" * 3000)
