"""A worker process that stands where a device is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from nn_meter.builder.profiling.cluster.content import Files
from nn_meter.builder.profiling.cluster.fleet import Fleet, Lease, Place, StoppedError
from nn_meter.builder.profiling.cluster.travel import arrived, travelling
from nn_meter.builder.profiling.jobs import HANDLER
from nn_meter.builder.profiling.process import Worker, decode_error
from nn_meter.errors import DeviceError, TimeLimitError, WorkerCrashedError

__all__ = ["MOST_DEATHS", "RemoteWorker", "Station", "UnfitError", "result_of"]

log = logging.getLogger(__name__)

MOST_DEATHS = 3
"""So many Dask workers may die while they carry out the same: then it is given up."""

_MOST_UNFIT = 3
"""So often a device may be away, or its disk full, while it is to carry out the same."""

_LOOK_S = 0.2
_FETCH_S = 10.0


class _GoneError(Exception):
    """The Dask worker died. Never leaves this module."""


class UnfitError(Exception):
    """The device cannot. Never leaves this folder."""

    def __init__(self, reason: str, *, passing: bool) -> None:
        super().__init__(reason)
        self.passing = passing


@dataclass(frozen=True, kw_only=True)
class Station:
    """What every job of a run on a kind of device says.

    Attributes:
        backend: Name of the backend; it has to be known on the device's machine.
        configs: The keys of ``backend_config.yaml``, as they are here.
        config_file: Where they stand, for messages.
    """

    backend: str
    configs: Mapping[str, Any]
    config_file: str

    def job(
        self,
        fleet: Fleet,
        lease: Lease,
        op: str,
        timeout_s: float | None = None,
        arguments: Mapping[str, Any] | None = None,
        contents: Mapping[str, Files] | None = None,
    ) -> dict[str, Any]:
        """What ``device.carry_out`` takes; of the contents, those that are not there yet."""
        contents = contents or {}
        return {
            "run": fleet.link.run,
            "kind": fleet.kind,
            "slot": lease.slot,
            "backend": self.backend,
            "configs": dict(self.configs),
            "config_file": self.config_file,
            "expected": fleet.expected,
            "anew": lease.anew,
            "op": op,
            "timeout_s": timeout_s,
            "arguments": dict(arguments or {}),
            "needs": list(contents),
            "contents": {digest: contents[digest] for digest in fleet.lacks(lease, contents)},
        }


class RemoteWorker(Worker):
    """A worker process on some device of a kind.

    Which device it is may change from call to call, unless models are loaded. When a Dask worker
    dies, the models are loaded on another device, and the call is made there.

    Loading a model is put off until it is needed, so that all models of a trial are loaded and
    timed by one task; a model that cannot be loaded is then one of those that ``race`` says failed.

    Args:
        fleet: The devices.
        station: What runs there.
    """

    def __init__(self, fleet: Fleet, station: Station) -> None:
        self._name = f"{station.backend} on {fleet.kind}"
        super().__init__(HANDLER, what=self._name)
        self._fleet, self._station = fleet, station
        self._lease: Lease | None = None
        self._wanted: dict[str, dict[str, Any]] = {}
        self._refused: dict[str, dict[str, str]] = {}
        self._there: set[str] = set()
        self._stale: set[str] = set()
        self._avoided: set[Place] = set()
        self._stops = 0
        self._closed = False
        self._calling = threading.Lock()

    def __exit__(self, *exc_info: object) -> None:
        self._closed = True
        self.stop()

    @property
    def running(self) -> bool:
        """Whether it has models loaded."""
        return bool(self._wanted or self._refused)

    def stop(self) -> None:
        """End what it does, and forget what it has loaded."""
        self._stops += 1
        with self._calling:  # whoever is calling gives up soon
            self._forget()
            if self._lease is not None:
                self._give_back(anew=True)

    def call(self, op: str, timeout_s: float | None = None, **arguments: Any) -> Any:
        """See ``Worker.call``.

        Raises:
            WorkerCrashedError: The process there ended, or Dask workers died of it.
            DeviceError: Each device that was to do it was away, or its disk full.
            ClusterLostError: There is no device any more.
            StoppedError: ``stop`` was called meanwhile.
        """
        stops = self._stops
        with self._calling:
            if op == "open" and not arguments["check"]:
                self._wanted[arguments["key"]] = dict(arguments)
                return None
            if op in ("drop", "close"):
                self._drop(arguments.get("keys", [*self._wanted, *self._refused]))
                if self.running or self._lease is None:
                    return None
                op, arguments = "close", {}
            try:
                return self._carried_out(op, timeout_s, arguments, stops)
            finally:
                if self._lease is not None and not self._wanted:
                    self._give_back()

    def _drop(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._refused.pop(key, None)
            self._wanted.pop(key, None)
            if key in self._there:
                self._there.discard(key)
                self._stale.add(key)

    def _forget(self) -> None:
        for known in (self._wanted, self._refused, self._there, self._stale):
            known.clear()

    def _carried_out(
        self, op: str, timeout_s: float | None, arguments: Mapping[str, Any], stops: int
    ) -> Any:
        deaths: list[str] = []
        unfit = 0
        self._avoided.clear()
        try:
            while True:
                try:
                    if self._wanted:
                        return self._with_models(op, timeout_s, arguments, stops)
                    message = travelling(op, arguments)
                    found = self._put(self._leased(stops), op, timeout_s, message, stops)
                    return arrived(op, arguments, found)
                except _GoneError:
                    deaths.append(self._give_back().worker.address)
                    log.warning(
                        "%s: the Dask worker %s died; what it was doing is done by another one",
                        *(self._fleet.kind, deaths[-1]),
                    )
                    if len(deaths) == MOST_DEATHS:
                        raise WorkerCrashedError(
                            f"{self._name}: {MOST_DEATHS} Dask workers died while they did it: "
                            f"{', '.join(deaths)}"
                        ) from None
                except UnfitError as exc:
                    assert self._lease is not None
                    self._fleet.leave_out(self._lease, str(exc), passing=exc.passing)
                    lease = self._give_back(anew=True)
                    self._avoided.add(lease.place)
                    unfit += exc.passing
                    if unfit == _MOST_UNFIT:
                        raise DeviceError(
                            f"{self._name}: {_MOST_UNFIT} times a device could not do it, at last "
                            f"{lease}: {exc}"
                        ) from None
        except (WorkerCrashedError, TimeLimitError):
            self._there.clear()  # the process went down with it
            raise
        except StoppedError:
            self._forget()
            if self._lease is not None:
                lease = self._give_back(anew=True)
                self._fleet.link.interrupt(lease.worker.address, self._fleet.kind, lease.slot)
            raise

    def _with_models(
        self, op: str, timeout_s: float | None, arguments: Mapping[str, Any], stops: int
    ) -> Any:
        """Load what is to be loaded, and carry out an operation on that, by one task."""
        while True:
            lease = self._leased(stops)
            told: dict[str, Any] = {"op": op, "drop": sorted(self._stale), "opens": []}
            contents: dict[str, Files] = {}
            for key, given in self._wanted.items():
                if key not in self._there:
                    opened, files = travelling("open", given)
                    told["opens"].append(opened)
                    contents |= files
            told["arguments"] = dict(arguments)
            if op == "race":
                keys = [key for key in arguments["keys"] if key not in self._refused]
                told["arguments"]["keys"] = keys
            answer = self._put(lease, "batch", timeout_s, (told, contents), stops)
            self._stale.clear()
            self._there |= set(answer["opened"])
            self._refused |= answer["refused"]
            for key in answer["refused"]:
                self._wanted.pop(key, None)
            if answer["ended"]:  # with the model that it was loading
                self._there.clear()
                continue
            if "error" in answer:
                raise decode_error(answer["error"])
            if op == "race":
                refused = {k: told for k, told in self._refused.items() if k in arguments["keys"]}
                return {**answer["ok"], "failed": {**answer["ok"]["failed"], **refused}}
            for refused in answer["refused"].values():
                raise decode_error(refused)
            return answer["ok"]

    def _give_back(self, *, anew: bool = False) -> Lease:
        lease, self._lease = self._lease, None
        assert lease is not None
        self._there.clear()
        self._stale.clear()
        self._fleet.release(lease, anew=anew)
        return lease

    def _leased(self, stops: int) -> Lease:
        if self._lease is None:
            self._lease = self._fleet.lease(lambda: not self._is_stopped(stops), self._avoided)
        return self._lease

    def _is_stopped(self, stops: int) -> bool:
        return self._closed or self._fleet.is_given_up or self._stops != stops

    def _put(
        self,
        lease: Lease,
        op: str,
        timeout_s: float | None,
        message: tuple[Mapping[str, Any], Mapping[str, Files]],
        stops: int,
    ) -> Any:
        arguments, contents = message
        while True:
            job = self._station.job(self._fleet, lease, op, timeout_s, arguments, contents)
            future = self._fleet.link.submit(job, lease.worker.address)
            answer = self._answer_of(future, lease, stops)
            if "missing" in answer:
                self._fleet.has_not(lease, answer["missing"])
                continue
            lease.anew = False
            self._fleet.has(lease, contents)
            if "unfit" in answer:
                raise UnfitError(
                    answer["unfit"]["message"], passing=bool(answer.get("passing", False))
                )
            if "error" in answer:
                raise decode_error(answer["error"])
            return answer["ok"]

    def _answer_of(self, future: Any, lease: Lease, stops: int) -> dict[str, Any]:
        """Wait for a task's end; nobody waits for a worker that is gone."""
        ended = threading.Event()
        future.add_done_callback(lambda _: ended.set())
        try:
            while True:
                done = ended.wait(_LOOK_S)
                if self._is_stopped(stops):
                    raise StoppedError
                if done:
                    answer = result_of(future)
                    if answer is not None:
                        return answer
                self._fleet.link.check()
                if self._fleet.is_gone(lease) or future.status in ("error", "cancelled"):
                    raise _GoneError
        finally:
            future.release()


def result_of(future: Any) -> dict[str, Any] | None:
    """What a task that ended gave; None: it went down with its worker."""
    try:
        if future.status == "finished":
            answer: dict[str, Any] = future.result(timeout=_FETCH_S)
            return answer
        if future.status != "error":
            return None
        exc = future.exception(timeout=_FETCH_S)
    except (OSError, TimeoutError, CancelledError, RuntimeError):
        return None
    if type(exc).__name__ == "KilledWorker":
        return None
    raise UnfitError(
        f"its Dask worker cannot carry out tasks of nn-Meter ({type(exc).__name__}: {exc}); the "
        "same nn-meter has to be installed there, too",
        passing=False,
    )
