"""The keys of ``backend_config.yaml`` for the debug backend."""

from __future__ import annotations

from nn_meter.builder.config import BackendSettings

__all__ = ["DebugSettings"]


class DebugSettings(BackendSettings):
    """Those that every backend has; none of them changes a random number."""
