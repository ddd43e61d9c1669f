"""What a run keeps on a phone: a folder of its own, with each model once, and nothing behind it.

The folder's name says which process began the run, so that a later run knows a folder that nobody
will remove any more: its process has gone, or nothing in it has changed for two days. Folders of
other computers, of which nobody here can tell, are left alone until then.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import secrets
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from nn_meter.builder.backends.tflite.adb import Adb, DeviceGoneError, quoted
from nn_meter.errors import BackendError, DeviceError

__all__ = ["RunFolder", "new_run_name"]

log = logging.getLogger(__name__)

_NAME = re.compile(
    r"nn-meter\.(?P<host>[0-9a-f]{8})\.(?P<pid>[0-9]{1,10})\.(?P<start>[0-9]{1,20})\.[0-9a-f]{8}"
)
_NOTES = re.compile(r"(([0-9]{1,10})\.[0-9]{1,10})\.pids")
_CALL_S = 30.0
_PUSH_S = 300.0
_MOST_BYTES = 1 << 20
_SCRIPT = "turn.sh"
_MANY = 50  # folders that are removed at a time

# The first argument is the folder of the runs, the second this run's.
_ENTER = """\
mkdir -p {folder} || exit 1
cd {base} || exit 1
ls -1 {folder}
echo //runs
ls -1 | grep '^nn-meter[.]'
echo //old
find . -maxdepth 1 -type d -name 'nn-meter.*' -mtime +1 2>/dev/null
exit 0
"""
# Ends what still runs of a run; a number that belongs to another process by now does not name us.
_END = """\
end() {{
  for p in $(cat "$1" 2>/dev/null); do
    case "$p" in *[!0-9]*) continue;; esac
    tr '\\0' '\\n' < "/proc/$p/cmdline" 2>/dev/null | grep -qF {name} && kill -9 "$p"
  done
}}
"""


def new_run_name() -> str:
    """A name for the folder of a run that this process begins."""
    pid = os.getpid()
    return f"nn-meter.{_host()}.{pid}.{_start(pid) or '0'}.{secrets.token_hex(4)}"


class RunFolder:
    """The folder of one run on a phone; several processes may share it.

    Args:
        adb: The phone.
        base: An absolute folder there, ``REMOTE_MODEL_DIR``.
        run: The run's name, of ``new_run_name``.

    Attributes:
        path: The folder.
    """

    def __init__(self, adb: Adb, base: str, run: str) -> None:
        if _NAME.fullmatch(run) is None:
            raise BackendError(f"{run!r:.80} is no name of a run on a phone")
        self._adb, self._base, self._run = adb, base.rstrip("/") or "/", run
        self._there: set[str] | None = None
        self.path = f"{self._base.rstrip('/')}/{run}"
        self._calls = 0

    def enter(self) -> None:
        """Make the folder, and remove what runs that were killed have left; once.

        Raises:
            BackendError: The phone lets nobody write there.
            DeviceError: It is not there, or left.
        """
        if self._there is not None:
            return
        script = _ENTER.format(folder=quoted(self.path), base=quoted(self._base))
        done = self._adb.shell(script, timeout_s=_CALL_S, max_bytes=_MOST_BYTES)
        if done.code:
            words = " ".join((done.stderr or done.stdout).split())[-300:]
            raise BackendError(
                f"the phone has no folder {self._base} (REMOTE_MODEL_DIR) to write to: {words}; "
                "choose another one, as /data/local/tmp/models"
            )
        files, _, rest = done.stdout.partition("//runs\n")
        runs, _, old = rest.partition("//old\n")
        self._there = set(files.splitlines())
        for match in filter(None, map(_NOTES.fullmatch, self._there)):
            pid = int(match[2])
            # a call of this process that broke; a process of this run that was killed and replaced
            if pid == os.getpid() or not _lives(pid):
                self._end(f"{self.path}/{match[1]}")
        aged = {line.removeprefix("./") for line in old.splitlines()}
        self._sweep(name for name in runs.splitlines() if _is_left(name, aged))

    def forget(self) -> None:
        """Look again at what is there: the phone was away, and may have been emptied."""
        self._there = None

    def put(self, model: Path, name: str = "") -> str:
        """Put a model there, unless its content is there already.

        Args:
            model: A file.
            name: That it was given here before; empty: it is found out.

        Returns:
            Its name in the folder.

        Raises:
            BackendError: It cannot be read, or the phone refuses it.
            DeviceError: The phone is not there, or left.
        """
        try:
            if not name:
                with model.open("rb") as file:
                    name = f"{hashlib.file_digest(file, 'sha256').hexdigest()[:32]}.tflite"
        except OSError as exc:
            raise BackendError(f"{model}: cannot be read: {exc.strerror or exc}") from exc
        return self._put(model, name)

    def put_script(self, text: str) -> str:
        """Put a script there, as ``turn.sh``, unless that is there; returns its path."""
        with tempfile.TemporaryDirectory(prefix="nn-meter-") as folder:
            file = Path(folder, _SCRIPT)
            file.write_text(text, encoding="ascii")
            return f"{self.path}/{self._put(file, _SCRIPT)}"

    def _put(self, file: Path, name: str) -> str:
        """Put a file there; one that lies there under its name is whole."""
        self.enter()
        assert self._there is not None
        if name not in self._there:
            part = f"{self.path}/{os.getpid()}.part"
            self._adb.push(file, part, timeout_s=_PUSH_S)
            self._call(f"mv -f {quoted(part, f'{self.path}/{name}')}", f"{file.name} put in place")
            self._there.add(name)
        return name

    def new_notes(self) -> str:
        """What the names of the files of the next call's own begin with: never an earlier one's."""
        self._calls += 1
        return f"{self.path}/{os.getpid()}.{self._calls}"

    def end(self, notes: str) -> None:
        """End what a call has started on the phone and still runs there."""
        self._end(notes)

    def remove(self) -> None:
        """End what runs of this run, and remove its folder."""
        self._sweep([self._run])
        self._there = None

    def _end(self, notes: str) -> None:
        files = [f"{notes}.{kind}" for kind in ("pids", "now", "late")]
        script = _END.format(name=quoted(self._run)) + (
            f"end {quoted(files[0])}\nrm -f {quoted(*files)}\n"
        )
        self._adb.shell(script, timeout_s=_CALL_S, max_bytes=_MOST_BYTES)

    def _sweep(self, runs: Iterable[str]) -> None:
        """Remove folders of runs that have ended."""
        for name in list(runs)[:_MANY]:
            path = f"{self._base.rstrip('/')}/{name}"
            script = _END.format(name=quoted(name)) + (
                f'for f in {quoted(path)}/*.pids; do end "$f"; done\n'
            )
            try:
                self._adb.shell(script, timeout_s=_CALL_S, max_bytes=_MOST_BYTES)
                self._adb.remove([path], timeout_s=_CALL_S)
            except DeviceGoneError:
                raise
            except (BackendError, DeviceError) as exc:
                log.warning(
                    "%s may still be on the phone, until another run removes it: %s", path, exc
                )

    def _call(self, script: str, what: str) -> None:
        done = self._adb.shell(script, timeout_s=_CALL_S, max_bytes=_MOST_BYTES)
        if done.code:
            words = " ".join((done.stderr or done.stdout).split())[-300:]
            raise BackendError(f"on the phone, {what}: {words or f'exit code {done.code}'}")


def _is_left(name: str, aged: set[str]) -> bool:
    """Whether a folder is one of a run that has ended, of this computer; or an old one."""
    match = _NAME.fullmatch(name)
    if match is None:
        return False
    if name in aged:
        return True
    return match["host"] == _host() and not _lives(int(match["pid"]), match["start"])


def _host() -> str:
    """Eight hexadecimal digits for where process numbers mean the same: a computer, a container."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text(encoding="utf-8"))
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def _start(pid: int) -> str | None:
    """When a process started, in the system's ticks; None: it has gone, or nobody tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else None


def _lives(pid: int, start: str | None = None) -> bool:
    """Whether a process still runs; where the system does not tell when it started, any of it."""
    if Path("/proc/self/stat").exists():
        found = _start(pid)
        return found is not None and start in (None, "0", found)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
