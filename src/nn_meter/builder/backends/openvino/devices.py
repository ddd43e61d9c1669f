"""OpenVINO's names of devices: what is asked for, what there is, and what really ran.

A name is a device (``CPU``, ``NPU``, ``GPU.1``) or a way to choose among several (``AUTO``,
``HETERO:NPU,CPU``, ``MULTI:``, ``BATCH:``). OpenVINO goes on without complaint where one of these
is not there; a compiled model tells which devices run it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from nn_meter.errors import BackendError, ConfigError, DeviceError, ModelRejectedError

__all__ = ["AskedDevice", "check_devices", "execution_devices", "is_processor"]

_CPU = "CPU"
_REFUSED = {
    "BATCH": "waits for further runs to put together with a single one, and latencies would be of "
    "that waiting",
    "MULTI": "spreads runs over devices, and nobody could say which of them a latency is of",
}
_CHOOSING = ("AUTO", "HETERO", *_REFUSED)
_HOW_TO_GET = {
    "NPU": "an Intel NPU needs its Linux driver and firmware (intel-driver-compiler-npu, "
    "intel-fw-npu, intel-level-zero-npu) and a user who may open /dev/accel",
    "GPU": "an Intel GPU needs its compute runtime (intel-opencl-icd) and a user who may open "
    "/dev/dri",
}


@dataclass(frozen=True, kw_only=True)
class AskedDevice:
    """What the key DEVICE asks for.

    Attributes:
        text: The name.
        mode: How devices are chosen, e.g. ``AUTO``; empty: it is a device.
        names: The devices that it names; AUTO may name none.
        without: Those that AUTO may not choose.
    """

    text: str
    mode: str
    names: tuple[str, ...]
    without: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Self:
        """Read a name.

        Raises:
            ConfigError: It is none, or one that leaves open what would run.
        """
        mode, _, listed = text.partition(":")
        if mode not in _CHOOSING:
            mode, listed = "", text
        names = [name.strip() for name in listed.split(",") if name]
        where = f"backend_config.yaml: DEVICE: {text!r}"
        if mode in _REFUSED:
            raise ConfigError(f"{where} {_REFUSED[mode]}; name the device itself")
        if not all(re.fullmatch(r"-?[A-Z][A-Z0-9_]*(\.[\w.]+)?", name) for name in names):
            raise ConfigError(
                f"{where} is no name of an OpenVINO device; write NPU, GPU, GPU.1, CPU, "
                "HETERO:NPU,CPU or the like"
            )
        without = tuple(name[1:] for name in names if name.startswith("-"))
        wanted = tuple(name for name in names if not name.startswith("-"))
        if (not mode and len(names) != 1) or (mode != "AUTO" and (without or not wanted)):
            raise ConfigError(
                f"{where} should name {'devices behind the colon' if mode else 'one device'}"
            )
        return cls(text=text, mode=mode, names=wanted, without=without)

    def among(self, available: Sequence[str]) -> tuple[str, ...]:
        """The devices that may run a model."""
        left = [name for name in available if not any(_is(name, other) for other in self.without)]
        return self.names or tuple(left)

    def check(
        self,
        ran: Sequence[str],
        usual: Sequence[str],
        error: type[BackendError] = ModelRejectedError,
    ) -> None:
        """Refuse another device than the one asked for.

        Args:
            ran: What runs a model.
            usual: What ran the first one: latencies of models that run on unlike devices cannot be
                compared, unless HETERO asks for just that.
            error: What to raise.

        Raises:
            BackendError: Of the kind ``error``.
        """
        if self.names and not all(any(_is(name, asked) for asked in self.names) for name in ran):
            raise error(
                f"OpenVINO runs it on {', '.join(ran)}, though {self.text} was asked for; nothing "
                "is measured on another device than asked"
            )
        if not ran:
            raise error(f"OpenVINO does not say which device of {self.text} runs it")
        if self.mode != "HETERO" and tuple(ran) != tuple(usual):
            raise error(
                f"OpenVINO runs it on {', '.join(ran)}, and other models on {', '.join(usual)}; "
                f"name the device instead of {self.text}"
            )


def check_devices(asked: AskedDevice, available: Sequence[str]) -> None:
    """Refuse a device that is not there.

    Args:
        asked: What is asked for.
        available: The devices that OpenVINO finds.

    Raises:
        DeviceError: Names those that are there, and how to get the other.
    """
    for name in asked.names:
        if any(_is(found, name) for found in available):
            continue
        hint = _HOW_TO_GET.get(_kind(name), "")
        of = f" (of {asked.text})" if asked.mode else ""
        raise DeviceError(
            f"OpenVINO finds no device {name}{of} here; there is: "
            f"{', '.join(available) or 'none'}{f'; {hint}' if hint else ''}"
        )


def execution_devices(compiled: Any) -> tuple[str, ...]:
    """The devices that run a compiled model, in its own words."""
    told = compiled.get_property("EXECUTION_DEVICES")
    names = told.split(",") if isinstance(told, str) else told
    return tuple(str(name).strip() for name in names if str(name).strip())


def is_processor(names: Sequence[str]) -> bool:
    """Whether devices are this processor, and nothing else."""
    return bool(names) and all(name == _CPU for name in names)


def _is(found: str, asked: str) -> bool:
    """Whether a device is one that was asked for: a name without a number stands for any."""
    if _kind(found) != _kind(asked):
        return False
    number, wanted = found.partition(".")[2], asked.partition(".")[2]
    if not number and wanted.isdigit():
        number = "0"  # where there is one of a kind it has no number
    return not wanted or wanted == number


def _kind(name: str) -> str:
    return name.partition(".")[0]
