"""What it takes to make a backend again, in another process.

This module is also imported in worker processes of other virtual environments: it needs numpy and
the standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nn_meter import registry
from nn_meter.builder.backends.base import BaseBackend
from nn_meter.errors import BackendError, NNMeterError

__all__ = ["BackendSpec", "spec_of"]


@dataclass(frozen=True, kw_only=True)
class BackendSpec:
    """A backend as plain values.

    Attributes:
        entry: The registry's entry of its class.
        configs: The checked keys of ``backend_config.yaml``.
    """

    entry: registry.Entry
    configs: dict[str, Any]

    @property
    def name(self) -> str:
        return self.entry.name

    def make(self) -> BaseBackend:
        """Make the backend.

        Raises:
            RegistrationError: Its class cannot be loaded.
            BackendError: Its class raises something of its own.
        """
        cls = registry.load(self.entry)
        try:
            backend: BaseBackend = cls(dict(self.configs))
        except NNMeterError:
            raise
        except Exception as exc:
            raise BackendError(
                f"backend {self.name}: {cls.__name__} cannot be made of the keys of "
                f"backend_config.yaml: {type(exc).__name__}: {exc}"
            ) from exc
        return backend

    def to_json(self) -> dict[str, Any]:
        """As plain values, for a worker process."""
        return {"entry": self.entry.to_json(), "configs": self.configs}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BackendSpec:
        """Read ``to_json`` back."""
        return cls(entry=registry.Entry.from_json(data["entry"]), configs=dict(data["configs"]))


def spec_of(backend: BaseBackend) -> BackendSpec | None:
    """The spec of a connected backend; None for one that a user made without connecting."""
    spec = getattr(backend, "spec", None)
    return spec if isinstance(spec, BackendSpec) else None
