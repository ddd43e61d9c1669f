"""A backend that runs on many devices, as profiling sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from nn_meter.builder.backends.base import BaseBackend, Environment
from nn_meter.builder.backends.spec import BackendSpec
from nn_meter.builder.profiling.cluster.elsewhere import RemoteWorker, Station
from nn_meter.builder.profiling.cluster.fleet import Fleet
from nn_meter.builder.profiling.connection import Connection, settings_of, warn_if_never_tried
from nn_meter.builder.profiling.device_log import DeviceLog
from nn_meter.builder.profiling.jobs import unknown_environment
from nn_meter.builder.profiling.measure import Caller
from nn_meter.errors import BackendError

__all__ = ["ClusterConnection", "check_one_of_ours"]

_MOST_AT_ONCE = 50
_TO_COME = 8
"""So many devices that come later are used, too."""


class ClusterConnection(Connection):
    """A backend on many devices of a kind: what profiling knows of it, as of one on this machine.

    Args:
        fleet: The devices, of which one was asked what it is.
        backend: As it was connected here.
        station: What runs on the devices.
        facts: What a device said of the backend.
        options: What else belongs to the environment of what is measured.
    """

    def __init__(
        self,
        fleet: Fleet,
        backend: BaseBackend,
        spec: BackendSpec,
        station: Station,
        facts: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        self._backend, self._fleet, self._station = backend, fleet, station
        self.spec = spec
        self.name = fleet.kind
        self.settings = settings_of(spec.configs, spec.name)
        self._run = ""  # what is put on a device, its own machine removes
        self.measuring: Caller = RemoteWorker(fleet, station)
        environment = (
            Environment(**facts["environment"])
            if facts["environment"]
            else unknown_environment(spec.name, spec.configs)
        )
        warn_if_never_tried(backend, environment)
        self.environment = replace(environment, options={**environment.options, **options})
        self.device_log = DeviceLog(None, self.name)
        self.sessions = facts["sessions"]
        self.in_turn = facts["in_turn"]
        self.averages = facts["averages"]
        self.gated = facts["gated"]
        self.shows_graph = facts["graph"] or facts["graphs"]
        self.shows_graphs = facts["graphs"]
        self.converts_many = True  # by one task, if not by one call
        self.own_file_method = facts["own_file_method"]

    @property
    def cores(self) -> int:
        """How many models may be timed at a time: one on each device."""
        return max(1, self._fleet.count)

    def workers(self, tasks: int, *, few: int) -> dict[str, Any]:
        """As many as there are devices, and some that wait for one that is to come."""
        return {"opened": self.another, "most": self._fleet.count + _TO_COME}

    def batch(self, models: int) -> int:
        """So many that every device has some, and a task is worth its way."""
        return max(1, min(_MOST_AT_ONCE, -(-models // (2 * self.cores))))

    @contextmanager
    def another(self) -> Iterator[RemoteWorker]:
        """A further process on some device."""
        with RemoteWorker(self._fleet, self._station) as worker:
            yield worker


def check_one_of_ours(spec: BackendSpec | None) -> BackendSpec:
    """Refuse a backend that nobody can make elsewhere.

    Raises:
        BackendError: It was made by hand.
    """
    if spec is None:
        raise BackendError(
            "a backend that was made without connect_backend cannot be made on another machine; "
            "register its class, there too, and connect to it"
        )
    return spec
