"""Execution providers that come as plug-ins: a library that is registered, and offers devices."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.onnxruntime.asked import Provider
from nn_meter.errors import ConfigError, DeviceError, NotInstalledError

__all__ = ["add_plugin", "chosen", "plugin_version", "register_plugin"]

_LIBRARY = "get_library_path"
_registered: set[str] = set()


def register_plugin(ort: Any, asked: Provider) -> None:
    """Register a plug-in's library, once in a process.

    Args:
        ort: The package onnxruntime.
        asked: The provider; ``plugin`` is a library's path, or a package that says where it is.

    Raises:
        NotInstalledError: The package is not there.
        ConfigError: It is no plug-in.
        DeviceError: ONNX Runtime cannot load it, or is too old for plug-ins.
    """
    if asked.plugin in _registered:
        return
    if not hasattr(ort, "register_execution_provider_library"):
        raise DeviceError(
            f"ONNX Runtime {ort.__version__} loads no plug-ins, so that it cannot have {asked.name}"
        )
    library = asked.plugin if Path(asked.plugin).is_file() else _library_of(asked)
    try:
        ort.register_execution_provider_library(asked.plugin, library)
    except Exception as exc:
        words = " ".join(str(exc).split())
        raise DeviceError(f"ONNX Runtime cannot load the plug-in {library}: {words}") from exc
    _registered.add(asked.plugin)


def add_plugin(ort: Any, options: Any, asked: Provider) -> None:
    """Have a session run on the device of a plug-in that was registered.

    Raises:
        DeviceError: The plug-in offers no such device here.
        ConfigError: It offers several.
    """
    device = chosen(asked, ort.get_ep_devices())
    options.add_provider_for_devices([device], dict(asked.options))


def chosen(asked: Provider, offered: Sequence[Any]) -> Any:
    """The one device of a provider, as it is asked for.

    Args:
        asked: The provider; ``device`` is CPU, GPU or NPU, or empty.
        offered: The ``OrtEpDevice`` of all providers.
    """
    own = [each for each in offered if each.ep_name == asked.name]
    kinds = [str(each.device.type.name) for each in own]
    fit = [d for d, kind in zip(own, kinds, strict=True) if asked.device in ("", kind)]
    if len(fit) == 1:
        return fit[0]
    if fit:
        raise ConfigError(
            f"backend_config.yaml: PROVIDERS: {asked.name} offers {', '.join(kinds)}; say which by "
            "its option device"
        )
    there = ", ".join(kinds) or "none"
    others = ", ".join(dict.fromkeys(each.ep_name for each in offered)) or "no provider"
    raise DeviceError(
        f"{asked.name} offers no device{f' {asked.device}' if asked.device else ''} here (it "
        f"offers: {there}); there are devices of {others}"
    )


def plugin_version(asked: Provider) -> str:
    """A plug-in by its name and what its library holds: results of two are not one's.

    Raises:
        NotInstalledError: The package is not there.
        ConfigError: It is no plug-in.
    """
    library = asked.plugin if Path(asked.plugin).is_file() else _library_of(asked)
    digest = hashlib.sha256(Path(library).read_bytes()).hexdigest()
    return f"{Path(library).name} {digest[:12]}"


def _library_of(asked: Provider) -> str:
    """Where a package says that its library is."""
    try:
        package = importlib.import_module(asked.plugin)
    except (ImportError, ValueError) as exc:
        raise NotInstalledError(
            f"the plug-in of {asked.name} is neither a file nor a package that can be imported: "
            f"{asked.plugin} ({exc})"
        ) from exc
    if not hasattr(package, _LIBRARY):
        raise ConfigError(
            f"backend_config.yaml: PROVIDERS: {asked.plugin} is no plug-in of ONNX Runtime: it has "
            f"no {_LIBRARY}"
        )
    return str(getattr(package, _LIBRARY)())
