"""The keys of ``backend_config.yaml`` for TFLite."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from nn_meter.builder.config import BackendSettings, _key, _lower

__all__ = ["TFLiteSettings"]

_TEXT = "text (in quotes if it is a number), or empty"


class TFLiteSettings(BackendSettings):
    """Those that every backend has; where to run; and the phone's, for ``TARGET: android``."""

    TARGET: Annotated[Literal["host", "android"], BeforeValidator(_lower)] = _key(
        ...,
        "Where models run: host (LiteRT on this computer) or android (a phone, through adb). There "
        "is no default: a phone's latencies and this computer's are not alike.",
        "host (LiteRT on this computer) or android (a phone, through adb); it is never guessed",
    )
    REMOTE_MODEL_DIR: str | None = _key(None, "android: folder on the phone for models.", _TEXT)
    BENCHMARK_MODEL_PATH: str | None = _key(
        None, "android: where the benchmark_model binary lies on the phone.", _TEXT
    )
    DEVICE_SERIAL: str | None = _key(
        None, "android: serial number of the phone; empty: the only one.", _TEXT
    )
    KERNEL_PATH: str | None = _key(None, "android: folder on the phone for kernel dumps.", _TEXT)
