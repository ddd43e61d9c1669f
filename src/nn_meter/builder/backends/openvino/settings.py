"""The keys of ``backend_config.yaml`` for OpenVINO."""

from __future__ import annotations

import logging
from typing import Annotated, Self

from pydantic import Field, model_validator

from nn_meter.builder.config import BackendSettings, _key

__all__ = ["OpenVINOSettings"]

log = logging.getLogger(__name__)

_WITHOUT_EFFECT = (
    "OPENVINO_ENV",
    "OPTIMIZER_PATH",
    "OPENVINO_RUNTIME_DIR",
    "DEVICE_SERIAL",
    "DATA_TYPE",
)


class OpenVINOSettings(BackendSettings):
    """Those that every backend has, and the device."""

    DEVICE: Annotated[str, Field(min_length=1)] | None = _key(
        None,
        "OpenVINO's name of the device that openvino_vpu and openvino_gpu run on, such as GPU.1; "
        "empty: NPU for openvino_vpu, GPU for openvino_gpu. openvino_cpu runs on CPU.",
        "the name of a device, such as NPU, or empty",
    )

    @model_validator(mode="after")
    def _name_old_keys(self) -> Self:
        if old := [key for key in _WITHOUT_EFFECT if key in (self.model_extra or {})]:
            log.warning(
                "backend_config.yaml: without effect: %s; they were for the VPU stick of 2019, "
                "which OpenVINO supports no longer. DEVICE says where openvino_vpu runs",
                ", ".join(old),
            )
        return self
