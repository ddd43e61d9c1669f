"""The ``sync:`` service: files to and from the device's root, folders listed, paths looked at.

Version 1 of every request, and version 2 of those that look (``STA2``, ``LST2``, ``LIS2``), which
clients use when the device offers the features ``stat_v2`` and ``ls_v2``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from .faults import Fault
from .protocol import Stream

__all__ = ["serve_files"]

_REQUEST = struct.Struct("<4sI")
_STAT = struct.Struct("<4s3I")
_ENTRY = struct.Struct("<4s4I")
_STAT2 = struct.Struct("<4sI2Q4IQ3q")
_ENTRY2 = struct.Struct("<4sI2Q4IQ3qI")
_BLOCK = 1 << 16
_LOW = 0xFFFFFFFF


def serve_files(
    stream: Stream,
    place: Callable[[str], Path],
    fault_of: Callable[[str], Fault | None],
    drop: Callable[[Fault], None],
) -> None:
    """Answer requests until the client quits.

    Args:
        stream: The client's.
        place: Where a path of the device lies; raises OSError outside its root.
        fault_of: What goes wrong with a file that is pushed there.
        drop: Breaks the connection.
    """
    while True:
        name, size = _REQUEST.unpack(stream.read(_REQUEST.size))
        if name == b"QUIT":
            return
        path = stream.read(size).decode(errors="surrogateescape")
        if name in (b"STAT", b"STA2", b"LST2"):
            stream.write(_stat(name, path, place))
        elif name in (b"LIST", b"LIS2"):
            _list(stream, name == b"LIS2", path, place)
        elif name == b"RECV":
            _pull(stream, path, place)
        elif name == b"SEND":
            _push(stream, path, place, fault_of, drop)
        else:
            _fail(stream, f"unknown request {name!r}")
            return


def _fail(stream: Stream, words: str) -> None:
    said = words.encode()
    stream.write(_REQUEST.pack(b"FAIL", len(said)) + said)


def _stat(name: bytes, path: str, place: Callable[[str], Path]) -> bytes:
    try:
        found = place(path).stat(follow_symlinks=name == b"STA2")
    except OSError as exc:
        if name == b"STAT":
            return _STAT.pack(b"STAT", 0, 0, 0)
        return _STAT2.pack(name, exc.errno or errno.EIO, *[0] * 10)
    if name == b"STAT":
        return _STAT.pack(b"STAT", found.st_mode, found.st_size & _LOW, int(found.st_mtime) & _LOW)
    return _STAT2.pack(name, 0, *_facts(found))


def _facts(found: os.stat_result) -> tuple[int, ...]:
    ids = (found.st_mode, found.st_nlink, found.st_uid, found.st_gid)
    times = (int(found.st_atime), int(found.st_mtime), int(found.st_ctime))
    return (found.st_dev, found.st_ino, *ids, found.st_size, *times)


def _list(stream: Stream, second: bool, path: str, place: Callable[[str], Path]) -> None:
    with contextlib.suppress(OSError):
        for entry in sorted(place(path).iterdir()):
            found, name = entry.lstat(), os.fsencode(entry.name)
            if second:
                stream.write(_ENTRY2.pack(b"DNT2", 0, *_facts(found), len(name)) + name)
            else:
                facts = (found.st_mode, found.st_size & _LOW, int(found.st_mtime) & _LOW)
                stream.write(_ENTRY.pack(b"DENT", *facts, len(name)) + name)
    end = _ENTRY2.pack(b"DONE", *[0] * 12) if second else _ENTRY.pack(b"DONE", 0, 0, 0, 0)
    stream.write(end)


def _pull(stream: Stream, path: str, place: Callable[[str], Path]) -> None:
    try:
        file = place(path).open("rb")
    except OSError as exc:
        _fail(stream, exc.strerror or str(exc))
        return
    with file:
        while block := file.read(_BLOCK):
            stream.write(_REQUEST.pack(b"DATA", len(block)) + block)
    stream.write(_REQUEST.pack(b"DONE", 0))


def _push(
    stream: Stream,
    request: str,
    place: Callable[[str], Path],
    fault_of: Callable[[str], Fault | None],
    drop: Callable[[Fault], None],
) -> None:
    path, _, mode = request.rpartition(",")
    fault = fault_of(path)
    refused: str | None = None
    file: BinaryIO | None = None
    try:
        target = place(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("wb")
    except OSError as exc:
        refused = exc.strerror or str(exc)
    taken = 0
    with contextlib.ExitStack() as stack:
        if file is not None:
            stack.enter_context(file)
        while True:
            kind, size = _REQUEST.unpack(stream.read(_REQUEST.size))
            if kind != b"DATA":
                break
            data = stream.read(size)
            taken += len(data)
            if fault is not None and taken > fault.after_bytes:
                if fault.what == "drop":
                    drop(fault)
                elif fault.what == "hang":
                    while stream.read_some():
                        pass
                    return
                refused = os.strerror(errno.ENOSPC)
            if file is not None and refused is None:
                file.write(data)
    if refused is None:
        target.chmod((int(mode) & 0o777) or 0o644)
        os.utime(target, (size, size))  # DONE carries the time where DATA carries the size
        stream.write(_REQUEST.pack(b"OKAY", 0))
    else:
        _fail(stream, refused)
