"""A whole phone for tests: the device, an adb server of its own, and what a phone has to read."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar, Self
from unittest import mock

from .daemon import FEATURES, Device

__all__ = ["AdbServer", "Phone"]

_PORT = "ANDROID_ADB_SERVER_PORT"
_START_S = 60.0
_LOOK_S = 0.02
_TRIES = 10

_GETPROP = """\
#!/bin/sh
if [ $# = 0 ]; then exec cat {root}/properties; fi
sed -n "s/^\\[$1\\]: \\[\\(.*\\)\\]\\$/\\1/p" {root}/properties
"""
_DUMPSYS = """\
#!/bin/sh
if [ "$1" = thermalservice ]; then exec cat {root}/thermalservice; fi
echo "Can't find service: $1"
"""
_BENCHMARK_MODEL = """\
#!/bin/sh
BENCHMARK_MODEL_SETTINGS={root}/data/local/tmp/benchmark_model.settings
export BENCHMARK_MODEL_SETTINGS
exec {python} -P {script} "$@"
"""
_THERMALSERVICE = """\
IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 1
\tkilled: false
\tbroadcasts count: -1
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=41.5, mType=0, mName=cpu-0, mStatus=0}}
HAL Ready: true
"""


class AdbServer:
    """An adb server on a free port, as a child of this process; clients find it by the environment.

    It writes its keys and its log to a folder of its own, and is gone at the end. Phones that are
    made inside are connected to it.

    Attributes:
        running: The ports of those that run now, as text.
        port: Its own.
    """

    running: ClassVar[set[str]] = set()

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.port = 0

    def __enter__(self) -> Self:
        if shutil.which("adb") is None:
            raise RuntimeError("adb is not installed: Debian's package adb has it")
        with contextlib.ExitStack() as stack:
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="adb-"))
            for _ in range(_TRIES):
                if self._start(stack, home):
                    break
            else:
                raise RuntimeError(f"no adb server starts: {Path(home, 'log').read_text()}")
            stack.enter_context(mock.patch.dict(os.environ, {_PORT: str(self.port)}))
            os.environ.pop("ANDROID_SERIAL", None)
            self.running.add(str(self.port))
            stack.callback(self.running.discard, str(self.port))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _start(self, stack: contextlib.ExitStack, home: str) -> bool:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        environment = {
            **os.environ,
            "HOME": home,
            "TMPDIR": home,
            _PORT: str(self.port),
            "ADB_LOCAL_TRANSPORT_MAX_PORT": "5554",  # emulators are not looked for
        }
        with Path(home, "log").open("ab") as log:
            server = subprocess.Popen(
                ["adb", "nodaemon", "server"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        end_s = time.monotonic() + _START_S
        while server.poll() is None and time.monotonic() < end_s:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                if server.poll() is None:
                    stack.callback(_end, server)
                    return True
            time.sleep(_LOOK_S)
        _end(server)  # somebody else took the port meanwhile
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


class Phone:
    """A phone that adb is connected to, with ``benchmark_model`` in ``/data/local/tmp``.

    Its ``benchmark_model`` is the stand-in beside this file: it runs models on this computer's
    processor with LiteRT and prints as the real one does. ``getprop``, ``dumpsys thermalservice``,
    thermal zones and processor frequencies are files below the root.

    Args:
        features: What the device offers; none: a device before Android 7.
        connected: Whether adb is connected to it from the start.

    Attributes:
        device: The device; its faults.
        root: Its root on this computer, which is removed at the end.
    """

    benchmark_model = "/data/local/tmp/benchmark_model"
    folder = "/data/local/tmp"

    def __init__(self, *, features: tuple[str, ...] = FEATURES, connected: bool = True) -> None:
        self._features = features
        self._connected = connected
        self._stack = contextlib.ExitStack()
        self.device: Device
        self.root: Path

    @property
    def serial(self) -> str:
        """Serial number, as ``adb devices`` prints it."""
        return self.device.serial

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if os.environ.get(_PORT) not in AdbServer.running:
                stack.enter_context(AdbServer())
            self.root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="phone-")))
            self._furnish()
            self.device = stack.enter_context(Device(self.root, features=self._features))
            if self._connected:
                stack.callback(self._adb, "disconnect", self.serial)
                self._connect()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def benchmark(self, **settings: str) -> None:
        """Change what the stand-in prints or does; see ``benchmark_model.py``."""
        lines = "".join(f"{key}={value}\n" for key, value in settings.items())
        (self.root / "data/local/tmp/benchmark_model.settings").write_text(lines)

    def files(self) -> set[str]:
        """What lies below the folder for models, but the stand-in's own."""
        top = self.root / "data/local/tmp"
        return {
            str(path.relative_to(top))
            for path in top.rglob("*")
            if not path.name.startswith("benchmark_model")
        }

    def set_temperature(self, celsius: float, zone: int = 0, *, kind: str = "cpu-0-0") -> None:
        """What a thermal zone reads."""
        folder = self.root / f"sys/class/thermal/thermal_zone{zone}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "type").write_text(f"{kind}\n")
        (folder / "temp").write_text(f"{round(celsius * 1000)}\n")

    def set_frequency(self, khz: int, cpu: int = 0) -> None:
        """What a core's frequency reads."""
        folder = self.root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scaling_cur_freq").write_text(f"{khz}\n")
        (folder / "scaling_max_freq").write_text("2802000\n")
        (folder / "scaling_governor").write_text("schedutil\n")

    def set_thermal_status(self, status: int) -> None:
        """What ``dumpsys thermalservice`` says, 0 (none) to 6 (shutdown)."""
        (self.root / "thermalservice").write_text(_THERMALSERVICE.format(status=status))

    def set_properties(self, **properties: str) -> None:
        """What ``getprop`` prints; ``__`` in a name stands for a dot."""
        lines = [f"[{key.replace('__', '.')}]: [{value}]\n" for key, value in properties.items()]
        (self.root / "properties").write_text("".join(lines))

    def _furnish(self) -> None:
        folder = self.root / "data/local/tmp"
        folder.mkdir(parents=True)
        (self.root / "bin").mkdir()
        stand_in = Path(__file__).with_name("benchmark_model.py")
        words = {
            "root": shlex.quote(str(self.root)),
            "python": shlex.quote(sys.executable),
            "script": shlex.quote(str(stand_in)),
        }
        scripts = {
            self.root / "bin/getprop": _GETPROP,
            self.root / "bin/dumpsys": _DUMPSYS,
            folder / "benchmark_model": _BENCHMARK_MODEL,
        }
        for path, text in scripts.items():
            path.write_text(text.format(**words))
            path.chmod(0o755)
        self.set_temperature(41.5)
        self.set_temperature(33.0, 1, kind="battery")
        self.set_frequency(1_803_000)
        self.set_frequency(2_802_000, 1)
        self.set_thermal_status(0)
        self.set_properties(
            ro__product__model="Stand-in",
            ro__product__manufacturer="nn-Meter",
            ro__build__version__release="14",
            ro__build__version__sdk="34",
            ro__build__fingerprint="nn-meter/stand_in/stand_in:14/TEST/1:user/test-keys",
            ro__soc__model="x86",
            ro__product__cpu__abi="x86_64",
        )

    def _connect(self) -> None:
        end_s = time.monotonic() + _START_S
        while f"{self.serial}\tdevice" not in self._adb("devices"):
            self._adb("connect", self.serial)
            if time.monotonic() > end_s:
                raise RuntimeError(f"adb does not connect: {self._adb('devices')}")
            time.sleep(_LOOK_S)

    @staticmethod
    def _adb(*words: str) -> str:
        done = subprocess.run(
            ["adb", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_START_S,
            check=False,
        )
        return done.stdout
