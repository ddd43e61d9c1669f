"""A device for adb: speaks its protocol on a port of 127.0.0.1, with a folder as its root.

``python -m device --root FOLDER`` (in ``tests/``) prints the port and serves until it is ended:
``adb connect 127.0.0.1:PORT``. It is no Android: commands are this computer's, and so
is the processor. What is Android's are the protocol and the paths: ``/data``, ``/sdcard``,
``/sys``, ``/system``, ``/vendor`` and a few files of ``/proc`` in commands and requests are those
below the root. (In the text of scripts that were pushed they are not.)

Anybody on this computer can connect and run commands as its user while it runs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from .faults import Fault, Faults
from .files import serve_files
from .protocol import Connection, Stream
from .shell import serve_shell

__all__ = ["FEATURES", "Device"]

FEATURES = ("shell_v2", "cmd", "stat_v2", "ls_v2")
_PRODUCT = {
    "ro.product.name": "stand_in",
    "ro.product.model": "Stand-in",
    "ro.product.device": "stand_in",
}
_PATH = re.compile(
    r"(?<![\w./~-])(?=/(?:(?:data|sdcard|storage|sys|system|vendor)(?![\w.-])"
    r"|proc/(?:cpuinfo|meminfo|version)\b))"
)
_SAFE_ROOT = re.compile(r"/[A-Za-z0-9_./-]+")
_SERVE_S = 20.0


class Device:
    """The device; there while the ``with`` lasts, but for when it leaves.

    Args:
        root: Its root: an absolute path without anything that a shell would read otherwise.
        features: What it offers; none: a device before Android 7.
        environment: Variables for what runs on it, besides this process's.

    Attributes:
        faults: What goes wrong.
        commands: The shell commands that it was asked to run, as they came.
        authorized: Whether it lets clients in that connect from here on.
    """

    def __init__(
        self,
        root: Path,
        *,
        features: Sequence[str] = FEATURES,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.root = root.resolve()
        if not _SAFE_ROOT.fullmatch(str(self.root)):
            raise ValueError(f"{self.root} would not be safe in a shell command")
        self.faults = Faults()
        self.commands: list[str] = []
        self.authorized = True
        facts = "".join(f"{key}={value};" for key, value in _PRODUCT.items())
        self._banner = f"device::{facts}features={','.join(features)}"
        self._environment = dict(environment or {})
        self._lock = threading.RLock()
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._connections: list[Connection] = []
        self._groups: list[int] = []
        self._stopped = False
        # holds the port while the device is away
        self._guard = _bound(0)
        self.port: int = self._guard.getsockname()[1]

    @property
    def serial(self) -> str:
        """What ``adb connect`` takes, and ``adb devices`` prints."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.come_back()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._stopped = True
        self.leave()
        for thread in self._threads:
            if isinstance(thread, threading.Timer):
                thread.cancel()
            thread.join(_SERVE_S)
        self.kill_commands()
        for connection in self._connections:
            connection.join(_SERVE_S)
        self._guard.close()

    def come_back(self) -> None:
        """Let clients connect."""
        with self._lock:
            if self._listener is not None or self._stopped:
                return
            self._listener = _bound(self.port)
            self._listener.listen(16)
            thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def leave(self) -> None:
        """Break all connections, and take none."""
        with self._lock:
            listener, self._listener = self._listener, None
            if listener is not None:
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
                listener.close()
            for connection in self._connections:
                connection.drop()

    def kill_commands(self) -> None:
        """End all that commands started and left behind."""
        with self._lock:
            groups, self._groups = self._groups, []
        for group in groups:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGKILL)

    def place(self, path: str) -> Path:
        """Where a path of the device lies on this computer.

        Raises:
            PermissionError: Outside its root.
        """
        place = Path(os.path.normpath(f"{self.root}/{path}"))
        if not place.is_relative_to(self.root):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return place

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                if self._listener is not listener:
                    sock.close()
                    return
                connection = Connection(sock, self._banner, self._serve, authorized=self.authorized)
                self._connections.append(connection)
                connection.start()

    def _serve(self, service: str, stream: Stream) -> None:
        name, _, words = service.partition(":")
        kind = name.partition(",")[0]
        if kind == "sync":
            serve_files(
                stream, self.place, lambda path: self.faults.of(path, push=True), self._drop
            )
        elif kind in ("shell", "exec"):
            self.commands.append(words)
            serve_shell(
                stream,
                name,
                command=_PATH.sub(str(self.root), words),
                root=self.root,
                environment={
                    **os.environ,
                    **self._environment,
                    "PATH": f"{self.root}/bin:{os.environ.get('PATH', os.defpath)}",
                },
                fault=self.faults.of(words, push=False),
                drop=self._drop,
                started=self._groups.append,
            )

    def _fault_of_push(self, path: str) -> Fault | None:
        return self.faults.of(path, push=True)

    def _drop(self, fault: Fault) -> None:
        if fault.absent_s:
            timer = threading.Timer(fault.absent_s, self.come_back)
            timer.daemon = True
            with self._lock:
                self.leave()
                self._threads.append(timer)
                timer.start()
        else:
            with self._lock:
                for connection in self._connections:
                    connection.drop()


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return sock
