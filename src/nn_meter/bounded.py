"""Reading files of others: never more than expected, never a pipe or a device, never for ever."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

__all__ = ["parse_json", "read_file"]

_MOST_JSON_VALUES = 4_000_000
"""A value of JSON may have two characters, and takes some 70 bytes of memory."""

_STEP_BYTES = 2**20


def read_file(path: Path, most_bytes: int) -> bytes:
    """Read a file that somebody else may have written.

    Args:
        path: The file.
        most_bytes: More than such a file can have is not read.

    Raises:
        OSError: It cannot be read, is a folder, a pipe or a device, or has more bytes;
            ``strerror`` says which.
        ValueError: The path has a NUL in it.
    """
    # without waiting: opening a pipe would wait for whoever writes to it
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    with open(descriptor, "rb") as file:  # noqa: PTH123 - it is open already
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if about.st_size <= most_bytes:
            content = file.read(about.st_size + 1)  # as much memory is taken as is asked for
            while len(content) <= most_bytes and (more := file.read(_STEP_BYTES)):
                content += more  # it grew meanwhile, or is of /proc, where all have 0 bytes
            if len(content) <= most_bytes:
                return content
    words = f"it is larger than {most_bytes} bytes, which no such file is"
    raise OSError(errno.EFBIG, words, str(path))


def parse_json(text: str) -> Any:
    """Parse JSON; ``NaN`` and what is infinite for Python, like ``1e999``, are no numbers of it.

    Raises:
        ValueError: It is no JSON, nested too deep, or holds more values than memory should hold.
    """
    if sum(map(text.count, "[{,")) > _MOST_JSON_VALUES:
        raise ValueError(f"it holds more than {_MOST_JSON_VALUES} values")
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError as exc:
        raise ValueError("it is nested too deep") from exc


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _no_number(text: str) -> float:
    raise ValueError(f"{text:.80} is no number of JSON")
