"""Disks that take no more: what is said of them.

This module runs in worker processes of other virtual environments too: the standard library only.
"""

from __future__ import annotations

import errno
import math
import shutil
from pathlib import Path

from nn_meter.errors import WorkspaceError

__all__ = ["check_room", "full_disk", "is_full", "read_only_disk", "reason_of", "room"]

_ROOM = 2**18
"""Bytes. With less, whatever failed may have failed for want of room: runtimes do not say so."""


def is_full(exc: BaseException) -> bool:
    """Whether an error is of a disk, or of a user's share of it, that takes no more."""
    return isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT)


def room(path: Path) -> float:
    """Bytes that are free on the disk of a file; infinite: nobody knows."""
    try:
        return shutil.disk_usage(_existing(path)).free
    except (OSError, ValueError):
        return math.inf


def check_room(path: Path) -> None:
    """Refuse to believe that something failed while the disk is full.

    Args:
        path: A file on the disk.

    Raises:
        WorkspaceError: There is no room.
    """
    if room(path) < _ROOM:
        raise WorkspaceError(f"{path}: the disk is full: {full_disk(path)}")


def reason_of(exc: OSError, path: Path) -> str:
    """Why a file cannot be written, in words, and what to do; a full disk is named."""
    reason = exc.strerror or str(exc)
    if is_full(exc):
        return f"{reason}: {full_disk(path)}"
    if exc.errno == errno.EROFS:
        return f"{reason}: {read_only_disk(path)}"
    if exc.errno in (errno.EACCES, errno.EPERM):
        return f"{reason}: make {_existing(path)} writable, or use a workspace elsewhere"
    return reason


def full_disk(path: Path) -> str:
    """What to do where the disk of a file is full."""
    return f"make room on {_disk(path)}, and the same command goes on"


def read_only_disk(path: Path) -> str:
    """What to do where the disk of a file takes nothing."""
    return f"make {_disk(path)} writable, or use a workspace elsewhere"


def _disk(path: Path) -> str:
    """The disk that a file is on, or would be, as one knows it."""
    place = _existing(path)
    mount = next(above for above in (place, *place.parents) if above.is_mount())
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return f"the disk at {mount}"
    mb = 1e-6
    return f"the disk at {mount} ({usage.free * mb:.1f} of {usage.total * mb:.1f} MB are free)"


def _existing(path: Path) -> Path:
    """A file, or the nearest folder above it that is there."""
    whole = path.absolute()
    return next(above for above in (whole, *whole.parents) if _exists(above))


def _exists(path: Path) -> bool:
    """Whether a file is there; one whose folder nobody may look into is not."""
    try:
        return path.exists()
    except OSError:
        return False
