"""The keys of ``backend_config.yaml`` for TFLite."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from nn_meter.builder.config import BackendSettings, _key, _lower

__all__ = ["TFLiteSettings"]

_TEXT = "text (in quotes if it is a number), or empty"
_PLACE = "the absolute path of a {} on the phone, without '..'; TARGET: android needs it"
_MASK = "a hexadecimal number in quotes, such as 'f0', or empty"


def _place(value: str | None, info: ValidationInfo) -> str | None:
    """An absolute path on the phone, which ``TARGET: android`` needs, and nothing else reads."""
    if info.data.get("TARGET") != "android":
        return value
    if not value:
        raise ValueError("is missing")
    if not value.startswith("/") or ".." in value.split("/") or "\0" in value:
        raise ValueError("is no absolute path")
    return value


def _mask(value: str | None) -> str | None:
    if value and not re.fullmatch(r"(0x)?[0-9A-Fa-f]{1,32}", value):
        raise ValueError("is no mask")
    return value or None


class TFLiteSettings(BackendSettings):
    """Those that every backend has; where to run; and the phone's, for ``TARGET: android``."""

    TARGET: Annotated[Literal["host", "android"], BeforeValidator(_lower)] = _key(
        ...,
        "Where models run: host (LiteRT on this computer) or android (a phone, through adb). There "
        "is no default: a phone's latencies and this computer's are not alike.",
        "host (LiteRT on this computer) or android (a phone, through adb); it is never guessed",
    )
    REMOTE_MODEL_DIR: Annotated[
        str | None, AfterValidator(_place), Field(validate_default=True)
    ] = _key(
        None,
        "android: folder on the phone for models, such as /data/local/tmp/models.",
        _PLACE.format("folder"),
    )
    BENCHMARK_MODEL_PATH: Annotated[
        str | None, AfterValidator(_place), Field(validate_default=True)
    ] = _key(
        None,
        "android: where the benchmark_model binary lies on the phone, such as "
        "/data/local/tmp/benchmark_model.",
        _PLACE.format("program"),
    )
    DEVICE_SERIAL: str | None = _key(
        None, "android: serial number of the phone; empty: the only one.", _TEXT
    )
    KERNEL_PATH: str | None = _key(
        None, "android: folder on the phone for kernel dumps, of builds that write them.", _TEXT
    )
    TASKSET: Annotated[str | None, AfterValidator(_mask)] = _key(
        None,
        "android: mask of the cores that benchmark_model runs on, such as 'f0', the upper four of "
        "eight; empty: whichever Android chooses.",
        _MASK,
    )
