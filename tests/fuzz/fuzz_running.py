"""One input to a reader: what came of it, in which time and how much memory.

A reader of outside data answers with a value or with an error of the project's own that names the
file, within limits, and leaves the folder as it was. Whatever else it does is a finding.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nn_meter.errors import NNMeterError

__all__ = ["MOST_MIB", "MOST_S", "Outcome", "limited_memory", "run"]

MOST_S = 5.0
"""Of processor time, so that a busy machine finds nothing that an idle one does not."""

MOST_MIB = 300.0
"""Of memory beyond what the process had."""

_ROOM = 2 * 2**30  # beyond which the kernel refuses memory, so that no finding costs the machine
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one input.

    Attributes:
        refused: The reader raised an error of the project's own.
        finding: What is wrong with the reader; empty: nothing.
        cpu_s: The time that it took.
        grown_mib: What the process needed beyond what it had; 0 where the system does not tell.
        said: The error, or what was returned.
    """

    refused: bool
    finding: str
    cpu_s: float
    grown_mib: float
    said: str


def run(
    read: Callable[[Path], object], path: Path, *, names_file: bool = True, most_s: float = MOST_S
) -> Outcome:
    """Give a file to a reader.

    Args:
        read: The reader.
        path: The file.
        names_file: Whether an error has to name it.
        most_s: The processor time that it may take.
    """
    before, start_s = _listing(path.parent), time.process_time()
    resident = _reset_peak()
    refused, finding = False, ""
    try:
        said = type(read(path)).__name__
    except NNMeterError as exc:
        refused, said = True, f"{type(exc).__name__}: {exc}"
        if names_file and path.name not in said:
            finding = "the error does not name the file"
        elif len(said) > 8000:
            finding = "the error is longer than a screen"
        elif _ran_out(exc):
            finding = "it asked for memory that was not there"
    except BaseException as exc:
        if isinstance(exc, KeyboardInterrupt):
            raise
        said = f"{type(exc).__name__}: {exc}"
        finding = f"a foreign error: {type(exc).__name__}"
    cpu_s, grown = time.process_time() - start_s, _peak() - resident
    if not finding and cpu_s > most_s:
        finding = f"more than {most_s:g} s"
    if not finding and grown > MOST_MIB:
        finding = f"more than {MOST_MIB:g} MiB"
    if not finding and _listing(path.parent) != before:
        finding = "it wrote into the folder of the file"
    return Outcome(
        refused=refused,
        finding=finding,
        cpu_s=cpu_s,
        grown_mib=max(grown, 0.0),
        said=said[:1000],
    )


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Let the kernel refuse memory far beyond what a reader may take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + _ROOM
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _ran_out(exc: BaseException | None) -> bool:
    while exc is not None:
        if isinstance(exc, MemoryError):
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def _listing(folder: Path) -> list[tuple[str, int]]:
    found = []
    for entry in os.scandir(folder):
        about = entry.stat(follow_symlinks=False)
        found.append((entry.name, about.st_mtime_ns))
    return sorted(found)


def _memory_mib(key: str) -> float:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) / 1024
    return 0.0


def _reset_peak() -> float:
    """Let the peak start anew; what the process has now."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
    return _memory_mib("VmHWM:")


def _peak() -> float:
    return _memory_mib("VmHWM:")
