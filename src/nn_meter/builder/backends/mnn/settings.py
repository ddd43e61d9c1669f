"""The keys of ``backend_config.yaml`` for MNN."""

from __future__ import annotations

from nn_meter.builder.config import BackendSettings

__all__ = ["MNNSettings"]


class MNNSettings(BackendSettings):
    """Those that every backend has."""
