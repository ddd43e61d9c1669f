"""The keys of ``backend_config.yaml`` for ONNX Runtime."""

from __future__ import annotations

from nn_meter.builder.config import BackendSettings

__all__ = ["OnnxRuntimeSettings"]


class OnnxRuntimeSettings(BackendSettings):
    """Those that every backend has."""
