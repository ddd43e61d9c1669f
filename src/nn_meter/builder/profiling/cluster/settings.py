"""Where the scheduler is, and how long a device is waited for."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nn_meter.errors import ConfigError

__all__ = ["WAIT_VARIABLE", "Scheduler", "check_kind"]

WAIT_VARIABLE = "NN_METER_DEVICE_WAIT"
_WAIT_S = 45.0
_CONNECT_S = 15.0
_ADDRESS = re.compile(r"(tcp|tls)://(\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]]+):(\d{1,5})/?")
_KIND = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")

_FILES = (".json", ".jsonl", ".db", ".log")
"""What lies beside the folders of results ends so."""


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """A Dask scheduler.

    Attributes:
        address: ``tcp://host:8786``, or ``tls://…``.
        tls_ca_file: Certificates (PEM) that those of the scheduler and the workers are checked by.
        tls_cert: Certificate (PEM) that the scheduler checks this side by.
        tls_key: Its private key (PEM).
        device_wait_s: Seconds that a kind of device is waited for while no worker offers it.
        connect_s: Seconds that connecting to the scheduler may take.

    Raises:
        ConfigError: The address is none, or TLS is asked for and a file of it is missing.
    """

    address: str
    tls_ca_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    device_wait_s: float = _WAIT_S
    connect_s: float = _CONNECT_S

    def __post_init__(self) -> None:
        match = _ADDRESS.fullmatch(self.address) if isinstance(self.address, str) else None
        if match is None or not 0 < int(match[3]) < 65536:
            raise ConfigError(
                f"scheduler: {self.address!r:.200} is no address; give one like "
                "tcp://host:8786, as 'dask scheduler' prints it"
            )
        files = {
            "--tls-ca-file": self.tls_ca_file,
            "--tls-cert": self.tls_cert,
            "--tls-key": self.tls_key,
        }
        given = [name for name, file in files.items() if file]
        if match[1] == "tls" and len(given) < len(files):
            lacking = ", ".join(name for name in files if name not in given)
            raise ConfigError(f"scheduler: {self.address} needs {lacking}, too")
        if match[1] == "tcp" and given:
            raise ConfigError(
                f"scheduler: {given[0]} is given, but {self.address} is not encrypted; a scheduler "
                "that is has an address like tls://host:8786"
            )
        for name, file in files.items():
            if file and not Path(file).is_file():
                raise ConfigError(f"{name}: {file}: there is no such file")
        for name in ("device_wait_s", "connect_s"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds > 0):
                raise ConfigError(f"{name} must be a number of seconds above 0, not {seconds!r}")

    @property
    def encrypted(self) -> bool:
        """Whether the wire is."""
        return self.address.startswith("tls://")

    @classmethod
    def of(cls, given: str | Self) -> Self:
        """The scheduler of an address; one that is one already stays as it is.

        The environment variable NN_METER_DEVICE_WAIT says how long a device is waited for.

        Raises:
            ConfigError: It is none.
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, str):
            raise ConfigError(f"scheduler: {given!r:.200} is no address, and no Scheduler")
        return cls(address=given, device_wait_s=default_wait_s())


def default_wait_s() -> float:
    """Seconds that a kind of device is waited for, unless it is said.

    Raises:
        ConfigError: The environment variable holds no number.
    """
    text = os.environ.get(WAIT_VARIABLE)
    if not text:
        return _WAIT_S
    try:
        return float(text)
    except ValueError as exc:
        raise ConfigError(f"{WAIT_VARIABLE}: {text!r} is no number of seconds") from exc


def check_kind(kind: str) -> None:
    """Refuse a name of a kind of device that can be no name of a resource and of a folder.

    Raises:
        ConfigError: As said.
    """
    if not _KIND.fullmatch(kind) or kind.lower().endswith(_FILES):
        raise ConfigError(
            f"device: {kind!r:.200} cannot be the name of a kind of device: choose at most 64 "
            "letters and digits of ASCII, with '.', '_' or '-' between them, and no name of a file"
        )
