"""What a phone is, and whether it has what it takes to measure on it."""

from __future__ import annotations

from typing import Any

from nn_meter.builder.backends.base import Environment
from nn_meter.builder.backends.tflite.adb import Adb, quoted
from nn_meter.builder.backends.tflite.phone_output import shown
from nn_meter.errors import BackendError, DeviceError

__all__ = ["cannot_run", "check_place", "check_tool", "environment_of"]

_CALL_S = 30.0
_FIRST_S = 60.0  # for the tool's first start, which reads it from the phone's storage
_MOST_BYTES = 1 << 20
_NOT_RUN = (126, 127)  # of a shell that cannot start a program
_NO_TOOL, _NO_LEAVE, _NO_FOLDER = 11, 12, 13
_SHOWN = 100


def check_place(adb: Adb, tool: str, folder: str) -> None:
    """Check that the phone is there, that the tool lies on it, and that a folder can be written to.

    Args:
        adb: The phone.
        tool: Path of ``benchmark_model``.
        folder: For models; it is made if it is missing.

    Raises:
        DeviceError: The phone is not there.
        BackendError: What is missing, and how to bring it there.
    """
    there, place = quoted(tool), quoted(folder)
    done = adb.shell(
        f"[ -f {there} ] || exit {_NO_TOOL}; [ -x {there} ] || exit {_NO_LEAVE}; "
        f"mkdir -p {place} 2>/dev/null; [ -d {place} ] && [ -w {place} ] || exit {_NO_FOLDER}",
        timeout_s=_CALL_S,
        max_bytes=_MOST_BYTES,
    )
    if not done.code:
        return
    phone, command = f"phone {adb.serial}", f"adb -s {quoted(adb.serial)}"
    allow = f"{command} shell {quoted(f'chmod +x {there}')}"
    if done.code == _NO_TOOL:
        raise BackendError(
            f"{phone} has no file {tool} (BENCHMARK_MODEL_PATH); put TFLite's benchmark_model for "
            f"its processor there: {command} push benchmark_model {there} && {allow}"
        )
    if done.code == _NO_LEAVE:
        raise BackendError(
            f"{phone} may not run {tool} (BENCHMARK_MODEL_PATH): {allow}; on its /sdcard nothing "
            "can be run, below /data/local/tmp it can"
        )
    if done.code == _NO_FOLDER:
        raise BackendError(
            f"{phone} has no folder {folder} (REMOTE_MODEL_DIR) to write to; choose one below "
            "/data/local/tmp"
        )
    raise BackendError(f"{phone} cannot be asked: {shown(done.stderr or done.stdout)}")


def check_tool(adb: Adb, tool: str) -> None:
    """Check that the phone can start the tool.

    Raises:
        DeviceError: It cannot, or is not there.
    """
    done = adb.shell(
        f"{quoted(tool)} --help </dev/null 2>&1", timeout_s=_FIRST_S, max_bytes=_MOST_BYTES
    )
    if done.code in _NOT_RUN:
        raise cannot_run(adb, tool, done.stdout)


def cannot_run(adb: Adb, tool: str, words: str) -> DeviceError:
    """The error for a tool that the phone cannot start, with what its shell said."""
    return DeviceError(
        f"phone {adb.serial} cannot run {tool} (BENCHMARK_MODEL_PATH): {shown(words)}; it should "
        "be a benchmark_model built for this phone's processor"
    )


def environment_of(adb: Adb, tool: str, *, gpu: bool, threads: int, mask: str) -> Environment:
    """The environment of what a phone measures: of the phone, nothing of this computer.

    Args:
        adb: The phone.
        tool: Path of ``benchmark_model``.
        gpu: Whether models run on its GPU.
        threads: Threads that they may use.
        mask: Of the cores that they run on; empty: Android chooses.

    Raises:
        DeviceError: The phone is not there.
        BackendError: It does not tell.
    """
    told = adb.properties()

    def tell(*names: str) -> str:
        found = next((told[name] for name in names if told.get(name)), "")
        return "".join(c for c in found if c.isprintable()).strip()[:_SHOWN]

    maker, model = tell("ro.product.manufacturer"), tell("ro.product.model") or "unknown phone"
    name = model if model.lower().startswith(maker.lower()) else f"{maker} {model}"
    chip = tell("ro.soc.model", "ro.board.platform", "ro.hardware") or "unknown processor"
    options: dict[str, Any] = {
        "target": "android",
        "build": tell("ro.build.fingerprint", "ro.build.display.id"),
    }
    if mask:
        options["taskset"] = mask
    return Environment(
        runtime="benchmark_model",
        version=_checksum(adb, tool),
        device=f"{'GPU' if gpu else 'CPU'} of {name}",
        threads=threads,
        # the tool lets the GPU compute in half precision unless it is told otherwise
        dtype="float16" if gpu else "float32",
        host=f"{chip}, {tell('ro.product.cpu.abi')}, Android "
        f"{tell('ro.build.version.release') or 'unknown'}",
        options=options,
    )


def _checksum(adb: Adb, tool: str) -> str:
    """What the tool is known by, as it does not tell its version: its content."""
    there = quoted(tool)
    done = adb.shell(
        f"sha256sum < {there} || md5sum < {there}", timeout_s=_FIRST_S, max_bytes=_MOST_BYTES
    )
    digest = (done.stdout.split() or [""])[0]
    if done.code or len(digest) not in (32, 64) or not set(digest) <= set("0123456789abcdef"):
        raise BackendError(
            f"phone {adb.serial} does not tell the checksum of {tool}: "
            f"{shown(done.stderr or done.stdout)}"
        )
    return f"{'sha256' if len(digest) == 64 else 'md5'}:{digest[:16]}"
