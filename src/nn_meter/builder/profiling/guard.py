"""A small process between nn-Meter and a worker, so that nothing a runtime starts outlives it.

A worker cannot be trusted to end: its runtime may hang while it holds Python's lock, and what it
started may have gone into a session of its own. So the process that nn-Meter starts forks at once.
The child becomes the worker. The parent, which runs nothing but the few lines below, waits until
the worker has ended or nobody is left to ask it anything, ends all that is left of it, removes its
temporary files, and ends as the worker did. On Linux all orphans below it become its children,
which is how it finds them; elsewhere it ends the worker's process group.

This module needs the standard library only, and runs in other virtual environments too.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from typing import NoReturn

__all__ = ["FOLDER", "become_guarded"]

FOLDER = "nn-meter-worker-"
"""What the names of the folders for temporary files begin with."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PATIENCE_S = 4.0  # less than nn-Meter has with the guard
_LONG_AGO_S = 60.0
_TEMPORARY = ("TMPDIR", "TEMP", "TMP")


def become_guarded() -> None:
    """Go on in a child that is guarded. To be called before any thread is started."""
    _sweep()
    folder, lock = _make_folder()
    _control(_PR_SET_CHILD_SUBREAPER, 1)
    news, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # all that is needed is that poll returns
    guard = os.getpid()
    worker = os.fork()
    if worker:
        _watch(worker, news, folder)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    for descriptor in (news, told, lock):
        if descriptor >= 0:
            os.close(descriptor)
    os.setpgid(0, 0)  # a runtime that kills its own group kills no guard
    _control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:  # it was gone before that
        os._exit(1)
    if folder:
        os.environ.update(dict.fromkeys(_TEMPORARY, folder))


def _watch(worker: int, news: int, folder: str) -> NoReturn:
    with contextlib.suppress(OSError):
        os.close(1)  # the worker alone answers
    poll = select.poll()
    poll.register(0, 0)  # nothing is read here: it only tells when nobody is left to write
    poll.register(news, select.POLLIN)
    ended: dict[int, int] = {}
    needed = True
    while needed and worker not in ended:
        for descriptor, _ in poll.poll():
            if descriptor != news or signal.SIGTERM in os.read(news, 4096):
                needed = False
        _collect(ended)
    status = ended.get(worker)
    _end_all(worker)
    if folder:
        _remove(folder)
    _end_as(status)


def _collect(ended: dict[int, int]) -> bool:
    """Collect children that have ended, with their status. False: there are no others."""
    try:
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = found[1]
    except ChildProcessError:
        return False
    return True


def _end_all(worker: int) -> None:
    """Kill what is left. Whoever a child leaves behind becomes a child."""
    with contextlib.suppress(OSError):
        os.killpg(worker, signal.SIGKILL)
    until_s = time.monotonic() + _PATIENCE_S
    while _collect({}) and time.monotonic() < until_s:
        for pid in _children():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _children() -> list[int]:
    """Processes whose parent this one is; empty where the system does not say so."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):  # noqa: PTH208 - nothing that takes long to import
            if name.isdigit() and _parent(name) == os.getpid():
                found.append(int(name))
    return found


def _parent(name: str) -> int:
    try:
        with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, LookupError, ValueError):
        return 0


def _end_as(status: int | None) -> NoReturn:
    """End with a worker's exit code, or by its signal."""
    code = os.waitstatus_to_exitcode(status) if status is not None else 0
    if code < 0:
        with contextlib.suppress(ImportError, OSError, ValueError):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one is enough
        with contextlib.suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        time.sleep(_PATIENCE_S)  # until it comes
    os._exit(abs(code))


def _control(option: int, value: int) -> None:
    """``prctl``, where there is one."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


# --- temporary files -----------------------------------------------------------------------------


def _place() -> str:
    return next((os.environ[name] for name in _TEMPORARY if os.environ.get(name)), "/tmp")


def _make_folder() -> tuple[str, int]:
    """Make a folder for temporary files, and lock it for as long as this process lives.

    Returns:
        Its path, and the lock's file descriptor; an empty path where none can be made: then the
        worker's temporary files go where all others do.
    """
    name = f"{FOLDER}{os.urandom(8).hex()}"
    made, folder = (os.path.join(_place(), known) for known in (f".{name}", name))  # noqa: PTH118
    try:
        os.mkdir(made, 0o700)  # noqa: PTH102
        lock = _lock(made)
        os.rename(made, folder)  # noqa: PTH104 - by that name it is locked, or its guard is gone
    except OSError:
        return "", -1
    return folder, lock


def _lock(folder: str) -> int:
    """Raises ``OSError`` if a process that lives has it locked."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sweep() -> None:
    """Remove the folders of guards that were killed."""
    with contextlib.suppress(OSError), os.scandir(_place()) as entries:
        for entry in entries:
            if not entry.name.startswith((FOLDER, f".{FOLDER}")):
                continue
            with contextlib.suppress(OSError):
                made = entry.stat(follow_symlinks=False)
                unnamed = entry.name.startswith(".")
                if made.st_uid == os.getuid() and not (
                    unnamed and time.time() - made.st_mtime < _LONG_AGO_S
                ):
                    descriptor = _lock(entry.path)
                    _remove(entry.path)
                    os.close(descriptor)


def _remove(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
