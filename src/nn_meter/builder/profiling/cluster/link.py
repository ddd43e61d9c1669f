"""The connection to a scheduler, and what it says of its workers."""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from nn_meter.builder.profiling.cluster import device
from nn_meter.builder.profiling.cluster.settings import Scheduler
from nn_meter.errors import BackendError, NotInstalledError

__all__ = ["ClusterLostError", "Link", "Offer"]

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_ANSWER_S = 10.0
_SILENT = 3  # looks without an answer: then the scheduler counts as lost
_LEAVE_S = 10.0


class ClusterLostError(Exception):
    """The scheduler, or the last device of a kind, is not to be had. Never leaves this folder.

    No error of ours: these are taken for a model's on their way up.
    """


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A Dask worker.

    Attributes:
        address: Where it listens.
        identity: What it has and no later worker at that address.
        resources: What it offers, and how much of it.
        ready: Whether it takes tasks.
    """

    address: str
    identity: str
    resources: Mapping[str, float] = field(default_factory=dict)
    ready: bool = True


class Link:
    """A client of a scheduler.

    Args:
        scheduler: Where it is.

    Raises:
        NotInstalledError: Dask Distributed is not installed.
        BackendError: There is no scheduler, or it refuses the certificate.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        distributed = _distributed()
        self.address = scheduler.address
        self.run = uuid.uuid4().hex
        self.condition = threading.Condition()
        self.workers: dict[str, Offer] = {}
        self._used: set[str] = set()
        self._lost = ""
        self._over = threading.Event()
        security = None
        if scheduler.encrypted:
            security = distributed.Security(
                tls_ca_file=scheduler.tls_ca_file,
                tls_client_cert=scheduler.tls_cert,
                tls_client_key=scheduler.tls_key,
                require_encryption=True,
            )
        try:
            self._client = distributed.Client(
                scheduler.address,
                security=security,
                timeout=scheduler.connect_s,
                set_as_default=False,
                name="nn-meter",
            )
        except (OSError, ValueError, RuntimeError) as exc:
            raise BackendError(
                f"scheduler: {scheduler.address} cannot be reached: {_last_line(exc)}; is 'dask "
                "scheduler' running there, and is the wire encrypted on both sides or on none?"
            ) from exc
        self._watcher = threading.Thread(target=self._watch, name="nn-meter-watch", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._look()
        except BaseException as exc:
            self._client.close(timeout=_LEAVE_S)
            if isinstance(exc, Exception):
                raise BackendError(
                    f"scheduler: {self.address} does not say which workers there are: "
                    f"{_last_line(exc)}"
                ) from exc
            raise
        self._watcher.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        if self._watcher.is_alive():
            self._watcher.join(timeout=_ANSWER_S + _LOOK_S)
        if not self._lost:
            there = [address for address in self._used if address in self.workers]
            self._tell(device.leave, self.run, workers=there)
        with contextlib.suppress(OSError, TimeoutError, RuntimeError):
            self._client.close(timeout=_LEAVE_S)

    def check(self) -> None:
        """Find out whether the scheduler is there.

        Raises:
            ClusterLostError: It is not.
        """
        if not self._lost and self._client.status != "running":
            self._lost = "the connection to it broke"
        if self._lost:
            raise ClusterLostError(f"the scheduler {self.address} was lost: {self._lost}")

    def submit(self, job: dict[str, Any], address: str) -> Any:
        """Have a worker carry a job out, as soon as the device is free.

        Returns:
            A ``distributed.Future``.

        Raises:
            ClusterLostError: The scheduler is lost.
        """
        self.check()
        self._used.add(address)
        try:
            return self._client.submit(
                device.carry_out,
                job,
                key=f"nn-meter-{job['kind']}-{job['op']}-{uuid.uuid4().hex}",
                workers=[address],
                allow_other_workers=False,
                resources={job["kind"]: 1},
                pure=False,
                retries=0,
            )
        except Exception:
            self.check()  # it was lost right now
            raise

    def interrupt(self, address: str, kind: str, slot: int) -> None:
        """End what this run does on a device."""
        if not self._lost and address in self.workers:
            self._tell(device.interrupt, self.run, kind, slot, workers=[address], wait=False)

    def _tell(self, function: Any, *arguments: Any, workers: list[str], wait: bool = True) -> None:
        """Have workers do something at once; one that cannot be told is not waited for."""
        if not workers:
            return

        def tell() -> None:
            with contextlib.suppress(Exception):  # it is going away, or has gone
                self._client.run(
                    function, *arguments, workers=workers, on_error="ignore", wait=wait
                )

        telling = threading.Thread(target=tell, daemon=True)
        telling.start()
        telling.join(timeout=_LEAVE_S)

    # --- watching --------------------------------------------------------------------------------

    def _watch(self) -> None:
        silent = 0
        while not self._over.wait(_LOOK_S):
            try:
                self._look()
                silent = 0
            except (OSError, TimeoutError, RuntimeError, AttributeError) as exc:
                silent += 1
                if silent == _SILENT:
                    self._lost = f"it does not answer ({_last_line(exc)})"
            if self._client.status != "running" and not self._lost:
                self._lost = "the connection to it broke"
            if self._lost:
                with self.condition:
                    self.condition.notify_all()
                return

    def _look(self) -> None:
        found = self._client.sync(
            self._client.scheduler.identity, n_workers=-1, callback_timeout=_ANSWER_S
        )
        workers = {
            address: Offer(
                address=address,
                identity=str(told["id"]),
                resources=dict(told.get("resources") or {}),
                ready=told.get("status", "running") == "running",
            )
            for address, told in found["workers"].items()
        }
        with self.condition:
            self.workers = workers
            self.condition.notify_all()


def _distributed() -> Any:
    try:
        import dask
        import distributed
    except ImportError as exc:
        raise NotInstalledError.for_extra("distributed", "distributed") from exc
    # a model's file goes with the first task that needs it
    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"})
    # what it says of a scheduler that is gone, our errors say
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    return distributed


def _last_line(exc: BaseException) -> str:
    lines = [line for line in str(exc).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(exc).__name__
