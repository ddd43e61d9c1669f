"""Which Vulkan devices there are, asked of the Vulkan loader itself.

Which drivers the loader looks at is the environment's affair: ``VK_DRIVER_FILES``, in loaders
before 1.3.207 ``VK_ICD_FILENAMES``, names them; else it looks where systems install them.

Worker processes of other virtual environments import this module: the standard library only.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["IN_SOFTWARE", "VulkanDevice", "cache_folder", "drivers_text", "vulkan_devices"]

IN_SOFTWARE: Final = "a GPU in software"
"""Stands behind the name of a device that is the processor: its speed says nothing of GPUs."""

_CPU: Final = 4  # VkPhysicalDeviceType
_INSTANCE_INFO: Final = 1  # VkStructureType
_NAME: Final = slice(20, 276)  # deviceName in VkPhysicalDeviceProperties, behind five words
_PROPERTIES_SIZE: Final = 824
_ROOM: Final = 4  # times the size: a later version may write more
_MOST: Final = 64
_LIBRARIES: Final = {"darwin": "libvulkan.1.dylib", "win32": "vulkan-1.dll"}
_DRIVERS: Final = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")


@dataclass(frozen=True, kw_only=True)
class VulkanDevice:
    """A device that the Vulkan loader offers.

    Attributes:
        name: As its driver calls it.
        software: Whether it is the processor.
    """

    name: str
    software: bool

    def __str__(self) -> str:
        return f"{self.name} ({IN_SOFTWARE})" if self.software else self.name


class _InstanceInfo(ctypes.Structure):
    # VkInstanceCreateInfo with nothing asked for
    _fields_ = (
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("layer_count", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("extension_count", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    )


def vulkan_devices() -> list[VulkanDevice]:
    """List the devices, in the loader's order; none, too, where there is no loader.

    It loads the drivers into this process.
    """
    library = _loader()
    if library is None:
        return []
    instance = ctypes.c_void_p()
    info = _InstanceInfo(type=_INSTANCE_INFO)
    if library.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance)):
        return []  # no driver at all, by the loader's rules
    try:
        count = ctypes.c_uint32(_MOST)
        handles = (ctypes.c_void_p * _MOST)()
        library.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
        return [_device(library, handle) for handle in handles[: count.value] if handle]
    finally:
        library.vkDestroyInstance(instance, None)


def _device(library: ctypes.CDLL, handle: int) -> VulkanDevice:
    room = ctypes.create_string_buffer(_ROOM * _PROPERTIES_SIZE)
    library.vkGetPhysicalDeviceProperties(ctypes.c_void_p(handle), room)
    kind = int.from_bytes(room.raw[16:20], sys.byteorder)
    name = room.raw[_NAME].partition(b"\0")[0].decode("utf-8", "replace")
    return VulkanDevice(name=name, software=kind == _CPU)


def _loader() -> Any:
    names = [_LIBRARIES.get(sys.platform, "libvulkan.so.1"), ctypes.util.find_library("vulkan")]
    for name in names:
        try:
            library = ctypes.CDLL(name) if name else None
        except OSError:
            continue
        if library is not None and hasattr(library, "vkCreateInstance"):
            return library
    return None


def cache_folder() -> Path:
    """The folder of this user's for what can be made again; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "nn-meter"


def drivers_text() -> str:
    """Say which devices there are, where drivers are looked for, and how to get a software one."""
    found = ", ".join(map(str, vulkan_devices()))
    chosen = next((name for name in _DRIVERS if name in os.environ), None)
    where = f" with {chosen}={os.environ[chosen]}" if chosen else ""
    driver = cache_folder() / "swiftshader" / "vk_swiftshader_icd.json"
    got = "" if driver.is_file() else "scripts/system-packages gets it, then "
    return (
        f"Vulkan devices here{where}: {found or 'none'}; SwiftShader is a driver in software that "
        f"does: {got}export {_DRIVERS[1]}={driver} (docs/devices/gpu.md)"
    )
