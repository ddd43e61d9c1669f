"""The keys of ``backend_config.yaml`` for ONNX Runtime."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from nn_meter.builder.config import BackendSettings, _key, _lower

__all__ = ["OnnxRuntimeSettings"]


class OnnxRuntimeSettings(BackendSettings):
    """Those that every backend has, and how much ONNX Runtime may change a model's graph."""

    GRAPH_OPTIMIZATION: Annotated[
        Literal["disabled", "basic", "extended", "all"], BeforeValidator(_lower)
    ] = _key(
        "all",
        "How much ONNX Runtime may change a model's graph: disabled, basic, extended or all, which "
        "is its own default. With disabled nothing is fused.",
        "disabled, basic, extended or all",
    )
