"""The keys of ``backend_config.yaml`` for IREE."""

from __future__ import annotations

from nn_meter.builder.config import BackendSettings

__all__ = ["IREESettings"]


class IREESettings(BackendSettings):
    """Those that every backend has."""
