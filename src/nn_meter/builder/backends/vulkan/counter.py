"""Counting the compute shaders that a Vulkan queue is given: builds a layer and speaks with it.

The layer, ``dispatches.c``, is compiled when it is first wanted, with the system's C compiler and
the Vulkan headers, and kept in the user's cache folder. It is loaded by the Vulkan loader of a
process whose environment names it (``layer_environment``), and by ``DispatchCounter`` in that same
process.

Worker processes of other virtual environments import this module: the standard library only.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nn_meter.builder.backends.vulkan.devices import cache_folder
from nn_meter.errors import GraphUnavailableError

__all__ = ["DispatchCounter", "built_layer", "layer_environment"]

_SOURCE: Final = Path(__file__).with_name("dispatches.c")
_LIBRARY: Final = "libnn_meter_dispatches.so"
_MANIFEST: Final = "nn_meter_dispatches.json"
_LAYER: Final = "VK_LAYER_NN_METER_dispatches"
_FLAGS: Final = ("-std=c11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread")
_COMPILERS: Final = ("cc", "gcc", "clang")
_TIME_LIMIT_S: Final = 120.0
_ROOM: Final = 1 << 16
_GET_IT: Final = (
    "counting what a GPU runs takes a C compiler and the Vulkan headers (Debian: apt-get install "
    "gcc libvulkan-dev); see docs/devices/gpu.md. By the clock it is measured without them"
)


@functools.cache
def built_layer() -> Path:
    """Build the layer, unless it is there.

    Returns:
        The library; its manifest lies beside it.

    Raises:
        GraphUnavailableError: It cannot be built; says what to install.
    """
    compiler = _compiler()
    flags = [*_FLAGS, *_include()]
    digest = hashlib.sha256(_SOURCE.read_bytes() + json.dumps([compiler, flags]).encode())
    folder = cache_folder() / "vulkan" / digest.hexdigest()[:16]
    if not (folder / _LIBRARY).is_file() or not (folder / _MANIFEST).is_file():
        try:
            _build(folder, [*compiler, *flags])
        except OSError as exc:
            raise GraphUnavailableError(
                f"{folder}: the layer that counts what a GPU runs cannot be written there: "
                f"{exc.strerror or exc}; XDG_CACHE_HOME names another folder"
            ) from exc
    return folder / _LIBRARY


def _compiler() -> list[str]:
    chosen = shlex.split(os.environ.get("CC", ""))
    names = [chosen] if chosen else [[name] for name in _COMPILERS]
    for name, *arguments in names:
        if found := shutil.which(name):
            return [found, *arguments]
    raise GraphUnavailableError(
        f"there is no C compiler ({' or '.join(' '.join(name) for name in names)}): {_GET_IT}"
    )


def _include() -> list[str]:
    sdk = os.environ.get("VULKAN_SDK", "")
    return ["-I", f"{sdk}/include"] if sdk else []


def _build(folder: Path, command: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as name:
        made = Path(name)
        try:
            done = subprocess.run(
                [*command, str(_SOURCE), "-o", str(made / _LIBRARY)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIME_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise GraphUnavailableError(f"{command[0]} does not end: {_GET_IT}") from exc
        if done.returncode:
            words = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            reason = (words or done.stderr.splitlines() or ["it gives no reason"])[0]
            raise GraphUnavailableError(
                f"{command[0]} cannot build {_SOURCE.name}: {reason.strip()}; {_GET_IT}"
            )
        manifest = {
            "file_format_version": "1.1.2",
            "layer": {
                "name": _LAYER,
                "type": "GLOBAL",
                "library_path": str(folder / _LIBRARY),
                "api_version": "1.3.0",
                "implementation_version": "1",
                "description": "Counts the compute shaders that are run",
            },
        }
        (made / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        for file in (_LIBRARY, _MANIFEST):  # others may build it at the same time
            (made / file).replace(folder / file)


def layer_environment(library: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process whose Vulkan loader is to load the layer.

    Args:
        library: From ``built_layer``.
        environment: What it has otherwise; layers that it names stay.
    """
    layers = {"VK_LAYER_PATH": str(library.parent), "VK_INSTANCE_LAYERS": _LAYER}
    return {
        **environment,
        **{
            name: os.pathsep.join(filter(None, (environment.get(name), value)))
            for name, value in layers.items()
        },
    }


class DispatchCounter:
    """The layer of this process.

    Args:
        library: From ``built_layer``; the environment of this process named it from the start.

    Raises:
        GraphUnavailableError: It cannot be loaded.
    """

    def __init__(self, library: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(library))
            self._library.nn_meter_devices.restype = ctypes.c_uint64
            self._library.nn_meter_stop.restype = ctypes.c_int64
            self._library.nn_meter_stop.argtypes = (ctypes.c_void_p, ctypes.c_uint64)
        except (OSError, AttributeError) as exc:
            raise GraphUnavailableError(
                f"{library}: the layer that counts what a GPU runs cannot be loaded: {exc}"
            ) from exc

    @contextmanager
    def counting(self) -> Iterator[list[int]]:
        """Count what is submitted while the block runs.

        Yields:
            Filled when the block ends: a hash of each shader that was run, in order; 0 where it
            is not known which.

        Raises:
            GraphUnavailableError: Not all was counted, or the layer is not in the way.
        """
        hashes: list[int] = []
        room = (ctypes.c_uint64 * _ROOM)()
        self._library.nn_meter_start()
        try:
            yield hashes
        except BaseException:
            self._library.nn_meter_stop(None, 0)
            raise
        count = self._library.nn_meter_stop(room, _ROOM)
        if not self._library.nn_meter_devices():
            raise GraphUnavailableError(
                "the runtime made its Vulkan device without asking the Vulkan loader for layers: "
                "what it runs cannot be counted"
            )
        if not 0 <= count <= _ROOM:
            raise GraphUnavailableError("more shaders were run than can be counted")
        hashes += room[:count]
