"""Hearing what native code says on standard error: there it gives its reasons.

This module is also imported in worker processes of other virtual environments: it needs the
standard library only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from threading import Lock

__all__ = ["native_words"]

_STANDARD_ERROR = Lock()  # there is one of it, and models are converted in threads


@contextmanager
def native_words() -> Iterator[list[str]]:
    """Catch what is printed on standard error; the list has its lines when the block ends."""
    words: list[str] = []
    sys.stderr.flush()
    with _STANDARD_ERROR, TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield words
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            words += file.read().decode("utf-8", "replace").splitlines()
