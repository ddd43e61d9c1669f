"""WHERE models run: the contract of a backend, and a folder per runtime, alike inside.

Who lives here: `base` (contract and values), `interface` (finding and connecting a backend, making
a workspace for one), `spec` (making one again in another process), `inputs` (which input is which),
and per runtime `backend` (the only module that imports it) and `settings` (its keys of
``backend_config.yaml``). Prints of executed graphs from elsewhere are read by `recorded`, here and
in the folders of the runtimes that print them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nn_meter.builder.backends.base import BaseBackend, BaseParser, BaseProfiler

if TYPE_CHECKING:
    from nn_meter.builder.backends.interface import connect_backend, list_backends
    from nn_meter.builder.backends.openvino.backend import OpenVINOBackend, OpenVINOProfiler
    from nn_meter.builder.backends.tflite.backend import TFLiteBackend, TFLiteProfiler

__all__ = [
    "BaseBackend",
    "BaseParser",
    "BaseProfiler",
    "OpenVINOBackend",
    "OpenVINOProfiler",
    "TFLiteBackend",
    "TFLiteProfiler",
    "connect_backend",
    "list_backends",
]

_LAZY = {
    "connect_backend": "interface",
    "list_backends": "interface",
    "OpenVINOBackend": "openvino.backend",
    "OpenVINOProfiler": "openvino.backend",
    "TFLiteBackend": "tflite.backend",
    "TFLiteProfiler": "tflite.backend",
}


def __getattr__(name: str) -> Any:
    # lazily: a worker process imports this package with numpy and one runtime only
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
