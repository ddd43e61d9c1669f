"""The keys of ``backend_config.yaml`` for ONNX Runtime."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from nn_meter.builder.config import BackendSettings, _key, _lower

__all__ = ["OnnxRuntimeSettings"]


class OnnxRuntimeSettings(BackendSettings):
    """Those that every backend has, how much a model's graph may be changed, and where it runs."""

    GRAPH_OPTIMIZATION: Annotated[
        Literal["disabled", "basic", "extended", "all"], BeforeValidator(_lower)
    ] = _key(
        "all",
        "How much ONNX Runtime may change a model's graph: disabled, basic, extended or all, which "
        "is its own default. With disabled nothing is fused.",
        "disabled, basic, extended or all",
    )
    PROVIDERS: list[str | dict[str, dict[str, Any] | None]] | None = _key(
        None,
        "Execution providers that onnxruntime_providers runs on, most wanted first, such as "
        "[CUDAExecutionProvider]; one with options is a mapping: - QNNExecutionProvider: "
        "{plugin: onnxruntime_qnn, backend_path: libQnnHtp.so}. The CPU runs what they do not take "
        "only if CPUExecutionProvider is named last. onnxruntime_cpu runs on the CPU.",
        "a list of execution providers, such as [CUDAExecutionProvider], or empty",
    )
