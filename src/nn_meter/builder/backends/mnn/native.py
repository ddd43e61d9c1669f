"""MNN's own modules, and what they say: MNN prints its complaints and raises little.

MNN's command line tools are never called: started, they run ``pip install`` and report to their
vendor. The modules below them, imported here, start no process, open no connection and write
nothing but what they are asked for.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import IO

from nn_meter.errors import NotInstalledError

__all__ = ["Words", "heard", "mnn", "mnn_converter"]

_STAMP = re.compile(r"^(\[[0-9:]+\]\s*)?(:[0-9]+:\s*)?(\[ERROR\]\s*)?")
_SMALL_TALK = re.compile(
    r"The device supports:|MNN use (high|normal|low) precision|Start to |ONNX Model (ir|opset) "
    r"version|inputTensors :|outputTensors:|Converted |Check failed: success ==>\s*$"
)


class Words:
    """What native code said, filled when ``heard`` ends."""

    text = ""

    def __str__(self) -> str:
        """In one line, without time stamps and greetings."""
        lines = [_STAMP.sub("", line.strip()).strip() for line in self.text.splitlines()]
        return " ".join(line for line in lines if line and not _SMALL_TALK.match(line))


@contextmanager
def heard() -> Iterator[Words]:
    """Listen to standard output, native code's too, instead of showing it: MNN says all there.

    Standard error stays as it is: a crash has its last words there.
    """
    words = Words()
    libc = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt
    with _memory() as file:
        _flush(libc)
        kept = os.dup(1)
        try:
            os.dup2(file.fileno(), 1)
            yield words
        finally:
            _flush(libc)  # what C still holds back goes where it belongs
            os.dup2(kept, 1)
            os.close(kept)
            file.seek(0)
            words.text = file.read().decode(errors="replace")


def _memory() -> IO[bytes]:
    """A file that has no name, and where the system can do it no place on a disk."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("nn-meter"), "w+b")
    return tempfile.TemporaryFile()


def _flush(libc: ctypes.CDLL) -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
    libc.fflush(None)


def mnn() -> ModuleType:
    """MNN's runtime.

    Raises:
        NotInstalledError: It cannot be imported.
    """
    return _imported("MNN")


def mnn_converter() -> ModuleType:
    """The module that MNN's converter is a shell of.

    Raises:
        NotInstalledError: It cannot be imported.
    """
    return _imported("_tools")


def _imported(name: str) -> ModuleType:
    if sys.modules.get(name) is not None:
        return sys.modules[name]
    try:
        with heard():  # it greets on standard output
            return importlib.import_module(name)
    except ImportError as exc:
        raise NotInstalledError.for_extra("MNN", "mnn") from exc
