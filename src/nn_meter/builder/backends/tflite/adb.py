"""A phone through ``adb``: run a script on it, put a file there, remove it; errors told apart.

What is run is adb's own client, in a process of its own that is limited in time and in what it may
print. Three habits of adb decide how:

* When the device leaves in the middle of ``adb shell``, adb ends with exit code 0 (seen with 29.0.6
  and a device that closed its connection). So each script is followed by a line with a number that
  nobody can guess and the script's own exit code. Without that line the call did not end.
* The first call starts a server that stays, and may hold our streams open: ``run_bounded`` waits
  for adb, and not for them.
* ``adb shell`` hands one text to the device's shell. Every word that is no part of a script of
  ours goes through ``quoted``.

``ANDROID_SERIAL`` and ``ANDROID_ADB_SERVER_PORT`` are adb's own, and hold.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import secrets
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nn_meter.builder.backends.tflite.programs import (
    Ended,
    TimeUpError,
    TooMuchError,
    run_bounded,
)
from nn_meter.errors import BackendError, DeviceError, NotInstalledError

__all__ = ["Adb", "DeviceGoneError", "DeviceTimeoutError", "Shelled", "quoted"]

_PORT = "ANDROID_ADB_SERVER_PORT"
_SERIAL = "ANDROID_SERIAL"
_QUICK_S = 30.0  # for what adb answers without the device
_LOOK_S = 0.2
_MOST_WORDS = 1 << 20  # what adb itself may say, in bytes
_LONGEST_SCRIPT = 30_000  # bytes; adb's client takes 65,535 for a request, quoting included
_QUOTE_LIMIT = 300  # of what a device said, in messages, in characters
_READY = "device"
_NETWORK = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.%]+\]):[0-9]{1,5}")
# what adb says of a file when it is the connection that failed, and not the device that refused
_BROKEN = re.compile(
    r"couldn't read|failed to (?:read|send)|protocol fault|connection|broken pipe|closed|offline"
    r"|no response|\beof\b|device '[^']*' not found",
    re.IGNORECASE,
)
_PROPERTY = re.compile(r"\[([^\]\n]*)\]: \[(.*)")
_TO_DO = {
    "unauthorized": "accept this computer's key on the phone's screen ('Allow USB debugging?')",
    "authorizing": "accept this computer's key on the phone's screen ('Allow USB debugging?')",
    "offline": "plug it in again, or run 'adb reconnect offline'",
    "recovery": "start it into Android",
    "sideload": "start it into Android",
    "bootloader": "start it into Android",
    "no permissions": "give this user access to the phone's USB device (package "
    "android-sdk-platform-tools-common has the udev rules)",
}


class DeviceGoneError(DeviceError):
    """The device left, or its connection broke, before a call had ended: it may come back."""


class DeviceTimeoutError(DeviceError):
    """The device had not answered when the time for a call was up; adb was killed."""


@dataclass(frozen=True)
class Shelled:
    """What a script on the device came to.

    Attributes:
        stdout: What it printed; bytes that are no UTF-8 are replaced.
        stderr: What it printed there. Android before 7 puts that into ``stdout``.
        code: Its exit code.
    """

    stdout: str
    stderr: str
    code: int


def quoted(*words: str) -> str:
    """Words as the device's shell reads them: each stays one, and means nothing but itself.

    Args:
        *words: Any text but NUL.

    Raises:
        BackendError: A word holds NUL, which no shell can take.
    """
    for word in words:
        if "\0" in word:
            raise BackendError(f"{word!r} holds a NUL character, which a shell cannot take")
    return shlex.join(words)


class Adb:
    """One device, reached with adb.

    Which device that is, is found out at the first call and kept: when another is plugged in, the
    calls still go to the first.

    Args:
        serial: As ``adb devices`` prints it, or ``HOST:PORT``, which is connected to; None or
            empty: ``ANDROID_SERIAL``, or else the only device.
        adb: The program.
        wait_s: How long ``wait`` waits for the device, in seconds.
    """

    def __init__(
        self, serial: str | None = None, *, adb: str = "adb", wait_s: float = 60.0
    ) -> None:
        self._wanted = serial or os.environ.get(_SERIAL) or None
        self._adb = adb
        self._wait_s = wait_s
        self._serial: str | None = None
        self._started = False

    @property
    def serial(self) -> str:
        """Serial number of the device.

        Raises:
            DeviceError: There is none, or it cannot be told which.
            NotInstalledError: There is no adb.
        """
        if self._serial is None:
            self._serial = self._find()
        return self._serial

    # --- calls ----------------------------------------------------------------------------------

    def shell(self, script: str, *, timeout_s: float, max_bytes: int = 16 << 20) -> Shelled:
        """Run a script in the device's shell.

        Killing adb does not end everything that the script started on the device: a script whose
        programs may hang ends them itself.

        Args:
            script: Shell commands, at most 30,000 bytes; longer ones are pushed as a file first.
                Words that come from elsewhere must be ``quoted``.
            timeout_s: Seconds until adb and its children are killed.
            max_bytes: What the script may print, both streams together.

        Raises:
            BackendError: It printed more than it may, or is too long.
            DeviceGoneError: The device left meanwhile.
            DeviceTimeoutError: It took longer.
            DeviceError: The device is not there.
        """
        mark = f"nn-meter-{secrets.token_hex(12)}:"
        command = f'sh -c {quoted(script)}; echo "{mark}$?"'
        if len(os.fsencode(command)) > _LONGEST_SCRIPT:
            raise BackendError(
                f"a script of {len(os.fsencode(script))} bytes is too long for adb (at most about "
                f"{_LONGEST_SCRIPT}): put it on the device as a file and run that"
            )
        ended = self._on_device(["shell", command], timeout_s, max_bytes, "the script")
        before, found, after = ended.stdout.rpartition(mark.encode())
        code = re.match(rb"([0-9]{1,3})(\r?\n|$)", after)
        if not found or code is None:
            raise self._broken(ended)
        if code[2] == b"\r\n":  # no shell protocol before Android 7: everything is a terminal's
            before = before.replace(b"\r\n", b"\n")
        return Shelled(_text(before), _text(ended.stderr), int(code[1]))

    def push(self, local: Path, remote: str, *, timeout_s: float) -> None:
        """Put a file on the device; its folder is made when it is missing.

        Args:
            local: The file.
            remote: Its absolute path there. An existing folder gets the file under its own name.
            timeout_s: Seconds until adb is killed; there may then be a part of the file.

        Raises:
            BackendError: There is no such file, or the device refuses it: a full disk, no right.
            DeviceGoneError: The device left meanwhile.
            DeviceTimeoutError: It took longer.
            DeviceError: The device is not there.
        """
        source = str(local.absolute())
        if not local.is_file():
            raise BackendError(f"{local} is no file that could be put on the device")
        if not remote.startswith("/") or "\0" in remote:
            raise BackendError(f"{remote!r} is no absolute path of a file on the device")
        words = ["push", source, remote]
        ended = self._on_device(words, timeout_s, _MOST_WORDS, f"putting {local.name} on it")
        if ended.code == 0:
            return
        said = _text(ended.stderr + ended.stdout).replace(source, "").replace(remote, "")
        if _BROKEN.search(said) is None and self._state() == _READY:
            raise BackendError(
                f"{local.name} cannot be put on device {self._serial} as {remote!r}: "
                f"{_shown(ended.stderr or ended.stdout)}"
            )
        raise self._broken(ended)

    def remove(self, remotes: Sequence[str], *, timeout_s: float = 30) -> None:
        """Remove files and folders with all that is in them; those that are not there are no error.

        Args:
            remotes: Absolute paths on the device, at least two levels deep.
            timeout_s: Seconds until adb is killed, for each of the calls that it takes.

        Raises:
            BackendError: A path is not one that may be removed, or the device refuses.
            DeviceGoneError: The device left meanwhile.
            DeviceTimeoutError: It took longer.
            DeviceError: The device is not there.
        """
        for remote in remotes:
            parts = [part for part in remote.split("/") if part not in ("", ".")]
            if not remote.startswith("/") or len(parts) < 2 or ".." in parts:
                raise BackendError(
                    f"{remote!r} is not removed from the device: only absolute paths at least two "
                    "levels deep are, without '..'"
                )
        lots: list[str] = [""]
        for remote in remotes:
            word = f" {quoted(posixpath.normpath(remote))}"
            # quotes are quoted once more in shell(), four characters for one
            if len(os.fsencode(quoted(lots[-1] + word))) > _LONGEST_SCRIPT - 200:
                lots.append("")
            lots[-1] += word
        for lot in filter(None, lots):
            done = self.shell(f"rm -rf{lot}", timeout_s=timeout_s, max_bytes=_MOST_WORDS)
            if done.code:
                raise BackendError(
                    f"device {self._serial} cannot remove what was put there: "
                    f"{_shown((done.stderr or done.stdout).encode())}"
                )

    def properties(self) -> dict[str, str]:
        """Android's properties, as ``getprop`` prints them: ``ro.product.model`` and so on.

        Raises:
            DeviceError: The device is not there, left, or did not answer.
            BackendError: It answers something endless.
        """
        text = self.shell("getprop", timeout_s=_QUICK_S, max_bytes=4 << 20).stdout
        found: dict[str, str] = {}
        name: str | None = None
        for line in text.splitlines():
            if name is None:
                if not (match := _PROPERTY.fullmatch(line)):
                    continue
                name, value = match.groups()
            else:  # a value of several lines
                value = f"{found[name]}\n{line}"
            found[name] = value.removesuffix("]")
            if value.endswith("]"):
                name = None
        return found

    # --- which devices --------------------------------------------------------------------------

    def devices(self) -> list[tuple[str, str]]:
        """The devices that adb knows: serial number and state, ``device`` when it is ready.

        Raises:
            NotInstalledError: There is no adb.
            BackendError: It does not answer, or something that is no list of devices.
        """
        try:
            ended = self._ask(["devices"])
        except TimeUpError:
            raise BackendError(f"'{self._adb} devices' did not answer in {_QUICK_S:g} s") from None
        head, found, rest = _text(ended.stdout).partition("List of devices attached")
        if ended.code or not found:
            raise BackendError(
                f"'{self._adb} devices' gives no list of devices: "
                f"{_shown(ended.stderr or head.encode())}"
            )
        lines = (line.partition("\t") for line in rest.splitlines())
        return [(serial, state.strip()) for serial, tab, state in lines if tab and serial]

    def wait(self) -> None:
        """Wait until the device is there and ready, also again; at once when it is.

        Raises:
            DeviceError: It was not, in ``wait_s`` seconds and those of one call of adb; or several
                are, and none was named.
            NotInstalledError: There is no adb.
        """
        end_s = time.monotonic() + self._wait_s
        while True:
            try:
                if self._serial is None:
                    self._serial = self._find()
                elif self._state() != _READY:
                    self._reach(self._serial)
                    self._check(self._serial, self.devices())
            except DeviceError as exc:
                if time.monotonic() >= end_s:
                    raise DeviceError(f"{exc} (waited {self._wait_s:g} s)") from None
            else:
                return
            time.sleep(min(_LOOK_S, max(0.0, end_s - time.monotonic())))

    def _find(self) -> str:
        """The serial of the device that was asked for, and is ready."""
        found = self.devices()
        if self._wanted is None:
            if len(found) > 1:
                raise DeviceError(
                    f"several devices are there: give DEVICE_SERIAL one of {_listed(found)}"
                )
            serial = found[0][0] if found else ""
        else:
            serial = self._wanted
            if self._reach(serial, dict(found)):
                found = self.devices()
        self._check(serial, found)
        return serial

    def _check(self, serial: str, found: Sequence[tuple[str, str]]) -> None:
        """Raise DeviceError unless a device is there and ready."""
        state = dict(found).get(serial)
        if state == _READY:
            return
        if not serial:
            raise DeviceError(
                "adb finds no device: plug the phone in, with USB debugging switched on in its "
                "developer options"
            )
        if state is None:
            raise DeviceError(
                f"there is no device {serial!r}; adb finds {_listed(found) or 'none'}: set "
                "DEVICE_SERIAL, or plug it in, with USB debugging switched on"
            )
        to_do = next((words for key, words in _TO_DO.items() if state.startswith(key)), "")
        raise DeviceError(f"device {serial!r} is {state}{': ' if to_do else ''}{to_do}")

    def _reach(self, serial: str, states: dict[str, str] | None = None) -> bool:
        """Connect to a device that is on the network and not ready; whether that was tried."""
        states = dict(self.devices()) if states is None else states
        if states.get(serial) == _READY or not _NETWORK.fullmatch(serial):
            return False
        with contextlib.suppress(TimeUpError):
            if serial in states:  # adb takes a dead connection for one that is there
                self._ask(["disconnect", serial])
            self._ask(["connect", serial])
        return True

    def _state(self) -> str | None:
        return dict(self.devices()).get(self.serial)

    def _broken(self, ended: Ended) -> DeviceError:
        """Why a call to the device has no proper end."""
        said = _shown(ended.stderr or ended.stdout[-_QUOTE_LIMIT:])
        words = f": adb says {said}" if said else ""
        try:
            self._check(self.serial, self.devices())
        except DeviceError as exc:
            return DeviceGoneError(f"{exc}; it was there before{words}")
        return DeviceGoneError(
            f"device {self._serial} has answered without an end: the connection broke, or it is no "
            f"shell that answers{words}"
        )

    # --- adb's client ---------------------------------------------------------------------------

    def _on_device(self, words: list[str], timeout_s: float, max_bytes: int, what: str) -> Ended:
        """Run adb on the device."""
        serial = self.serial
        try:
            return self._run(["-s", serial, *words], timeout_s, max_bytes)
        except TimeUpError:
            raise DeviceTimeoutError(
                f"device {serial} took longer than {timeout_s:g} s for {what}; adb was killed"
            ) from None
        except TooMuchError as exc:
            raise BackendError(
                f"device {serial} printed more than {max_bytes} bytes; adb was killed. It begins "
                f"with {_shown(exc.begins)}"
            ) from None

    def _ask(self, words: list[str]) -> Ended:
        """Run adb without a device."""
        try:
            return self._run(words, _QUICK_S, _MOST_WORDS)
        except TooMuchError as exc:
            raise self._endless(words[0], exc) from None

    def _run(self, words: list[str], timeout_s: float, max_bytes: int) -> Ended:
        try:
            if not self._started:
                self._start_server()
            return run_bounded([self._adb, *words], timeout_s, max_bytes)
        except FileNotFoundError as exc:
            raise NotInstalledError(
                f"{self._adb} is not installed: it is in Debian's package adb, and in Android's "
                "SDK Platform-Tools"
            ) from exc
        except (OSError, ValueError) as exc:  # no right to; a NUL in an argument
            raise NotInstalledError(f"{self._adb!r} cannot be run: {exc}") from exc

    def start(self) -> None:
        """Start adb's server, if none runs.

        Raises:
            NotInstalledError: There is no adb.
            BackendError: It does not start.
        """
        self._ask(["version"])

    def _start_server(self) -> None:
        try:
            ended = run_bounded([self._adb, "start-server"], _QUICK_S, _MOST_WORDS)
        except TimeUpError:
            raise BackendError(
                f"'{self._adb} start-server' did not end in {_QUICK_S:g} s"
            ) from None
        except TooMuchError as exc:
            raise self._endless("start-server", exc) from None
        if ended.code:
            port = f" ({_PORT}={os.environ[_PORT]})" if _PORT in os.environ else ""
            raise BackendError(f"adb's server does not start{port}: {_shown(ended.stderr)}")
        self._started = True

    def _endless(self, word: str, exc: TooMuchError) -> BackendError:
        return BackendError(f"'{self._adb} {word}' prints endlessly: {_shown(exc.begins)}")


def _text(said: bytes) -> str:
    return said.decode(errors="replace")


def _shown(said: bytes) -> str:
    """A part of what adb or a device said, in one line that is fit to print."""
    words = " ".join(_text(said[-4 * _QUOTE_LIMIT :]).split())[-_QUOTE_LIMIT:]
    return "".join(c if c.isprintable() else "\ufffd" for c in words)


def _listed(found: Sequence[tuple[str, str]]) -> str:
    return ", ".join(
        serial if state == _READY else f"{serial} ({state})" for serial, state in found
    )
