"""The keys of ``backend_config.yaml`` for ncnn."""

from __future__ import annotations

from nn_meter.builder.config import BackendSettings

__all__ = ["NcnnSettings"]


class NcnnSettings(BackendSettings):
    """Those that every backend has."""
