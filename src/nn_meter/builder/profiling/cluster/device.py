"""What a Dask worker carries out: the calls of a worker process that stands on its machine.

Every device that the worker offers has a process of ours, in which the runtime runs: a model that
crashes it, or hangs, costs its own test case.

What tells one device of a kind from the others, a phone's serial number say, only this machine
knows: the file that the environment variable NN_METER_DEVICES names holds it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nn_meter
from nn_meter.builder.backends.interface import connect_backend
from nn_meter.builder.config import RuletestConfig, read_yaml
from nn_meter.builder.profiling.cluster.content import Shelf, read_folder
from nn_meter.builder.profiling.cluster.measuring import (
    NOT_THE_MODELS_FAULT,
    differences,
    measure_there,
)
from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.process import Worker
from nn_meter.builder.profiling.worker import encode_error
from nn_meter.builder.workspace import Workspace
from nn_meter.errors import (
    BackendError,
    ConfigError,
    NNMeterError,
    NotInstalledError,
    TimeLimitError,
    WorkerCrashedError,
)

__all__ = ["DEVICES_VARIABLE", "carry_out", "interrupt", "leave"]

DEVICES_VARIABLE = "NN_METER_DEVICES"
"""Names a YAML file: kind of device -> keys of backend_config.yaml; or a list of these."""

_CONNECT_LIMIT_S = 120.0
_IDLE_S = 300.0
_LOOK_S = 5.0


@dataclass
class _Place:
    """A device, and the process of a run that holds it."""

    connection: Connection
    facts: dict[str, Any]
    busy: int = 0
    interrupted: bool = False
    used_s: float = field(default_factory=time.monotonic)

    @property
    def process(self) -> Worker:
        """The process in which the runtime is."""
        assert isinstance(self.connection.measuring, Worker)
        return self.connection.measuring

    @property
    def is_forgotten(self) -> bool:
        """Whether nobody has asked for long."""
        return not self.busy and time.monotonic() - self.used_s > _IDLE_S

    def leave(self) -> None:
        """End the process, and remove what it has put on the device."""
        self.interrupted = True
        self.connection.__exit__()


class _Devices:
    """The devices of this Dask worker."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[tuple[str, str, int], _Place] = {}
        self._turns: dict[tuple[str, int], threading.Lock] = {}
        self._watched = False

    @contextmanager
    def held(self, job: Mapping[str, Any]) -> Iterator[_Place]:
        """Hold the device that a job is for: one measurement at a time."""
        kind, slot, run = str(job["kind"]), int(job["slot"]), str(job["run"])
        with self._lock:
            turn = self._turns.setdefault((kind, slot), threading.Lock())
        with turn:
            place = self._place(job, (run, kind, slot))
            try:
                yield place
            finally:
                with self._lock:
                    place.busy -= 1
                    place.used_s = time.monotonic()

    def _place(self, job: Mapping[str, Any], key: tuple[str, str, int]) -> _Place:
        with self._lock:
            place = self._places.get(key)
        if place is None:
            place = _connected(job)
        with self._lock:
            place = self._places.setdefault(key, place)
            place.busy += 1
            place.interrupted = False  # that was what it did before
            if not self._watched:
                threading.Thread(target=self._watch, daemon=True, name="nn-meter-idle").start()
                self._watched = True
        return place

    def _watch(self) -> None:
        """End processes that nobody asks any more: whoever started them is gone."""
        while True:
            time.sleep(_LOOK_S)
            for place in self._taken(lambda key, place: place.is_forgotten):
                place.leave()

    def _taken(self, wanted: Any) -> list[_Place]:
        with self._lock:
            keys = [key for key, place in self._places.items() if wanted(key, place)]
            return [self._places.pop(key) for key in keys]

    def interrupt(self, run: str, kind: str, slot: int) -> None:
        """End the process of a run on a device, in the middle of what it does."""
        with self._lock:
            place = self._places.get((run, kind, slot))
            if place is not None:
                place.interrupted = True
        if place is not None:
            place.process.stop()

    def leave(self, run: str) -> None:
        """End all processes of a run."""
        for place in self._taken(lambda key, place: key[0] == run):
            place.leave()


_devices = _Devices()


# --- what is called through Dask -----------------------------------------------------------------


def carry_out(job: dict[str, Any]) -> dict[str, Any]:
    """Carry out one operation on a device.

    Args:
        job: ``run``, ``kind`` and ``slot`` say which process; ``backend``, ``configs`` and
            ``config_file`` what runs in it, ``expected`` in which environment (None: in any);
            ``anew``, whether it is to be another process than before; ``op``, ``arguments`` and
            ``timeout_s`` what is asked; ``contents`` are models that were not sent before.

    Returns:
        ``{"ok": result}``, ``{"error": …}`` as ``encode_error`` has it, or ``{"unfit": error}``:
        it is the device that cannot, now (``"passing"``) or at all.
    """
    try:
        shelf = Shelf(_folder())
        for digest, files in job["contents"].items():
            shelf.put(digest, files)
        if missing := [digest for digest in job["needs"] if not shelf.has(digest)]:
            return {"missing": missing}
        with _devices.held(job) as place:
            if job["anew"]:
                place.process.stop()
            if job["op"] == "describe":
                return {"ok": _description(place.facts, shelf)}
            if job["expected"] is not None and place.facts["environment"] != job["expected"]:
                return {
                    "unfit": {
                        "type": "",
                        "message": differences(place.facts["environment"], job["expected"]),
                    }
                }
            return _carried_out(place, job, shelf)
    except NOT_THE_MODELS_FAULT as exc:
        return {
            "unfit": encode_error(exc),
            "passing": not isinstance(exc, NotInstalledError),
        }
    except (NNMeterError, OSError) as exc:  # a full disk, say
        return {"unfit": encode_error(exc)}


async def interrupt(run: str, kind: str, slot: int) -> None:
    """End what a run does on a device."""
    await asyncio.to_thread(_devices.interrupt, run, kind, slot)


async def leave(run: str) -> None:
    """End all that a run left here."""
    await asyncio.to_thread(_devices.leave, run)


# --- how -----------------------------------------------------------------------------------------


def _folder() -> Path:
    """Where contents are kept: Dask removes it with the worker."""
    from distributed import get_worker

    return Path(get_worker().local_directory) / "nn-meter"


def _connected(job: Mapping[str, Any]) -> _Place:
    """Connect to a job's device.

    Raises:
        BackendError: There is no such backend on this machine, or it cannot be reached.
        ConfigError: The keys of the device are none.
    """
    configs = {**job["configs"], **_details(str(job["kind"]), int(job["slot"]))}
    workspace = Workspace(
        path=Path(job["config_file"]).parent.parent,
        platform="",
        ruletest=RuletestConfig(),
        backend_config=configs,
    )
    connection = Connection(connect_backend(job["backend"], workspace))
    try:
        facts = connection.measuring.call("describe", _CONNECT_LIMIT_S)
    except BaseException:
        connection.__exit__()
        raise
    return _Place(connection=connection, facts=facts)


def _details(kind: str, slot: int) -> dict[str, Any]:
    """What this machine knows of its device of a kind: keys of ``backend_config.yaml``."""
    file = os.environ.get(DEVICES_VARIABLE)
    if not file:
        return {}
    found = read_yaml(Path(file)).get(kind, {})
    if isinstance(found, list):
        if slot >= len(found):
            raise ConfigError(
                f"{file}: {kind}: lists {len(found)} devices, but the worker offers more as its "
                "resource"
            )
        found = found[slot]
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigError(f"{file}: {kind}: should hold keys of backend_config.yaml")
    return dict(found)


def _description(facts: Mapping[str, Any], shelf: Shelf) -> dict[str, Any]:
    return {
        "version": nn_meter.__version__,
        "host": socket.gethostname(),
        "facts": dict(facts),
        "contents": shelf.digests,
    }


def _carried_out(place: _Place, job: Mapping[str, Any], shelf: Shelf) -> dict[str, Any]:
    """Carry out an operation: models come from the shelf, folders made here go back as files."""
    process = place.process
    with tempfile.TemporaryDirectory(prefix="nn-meter-device-") as name:
        folder = Path(name)
        arguments = _placed(job["arguments"], shelf, folder)
        timeout_s = job["timeout_s"]
        try:
            if job["op"] == "measure":
                return {"ok": measure_there(process, arguments, timeout_s)}
            if job["op"] == "batch":
                return {"ok": _batch(process, arguments, timeout_s)}
            found: Any
            if job["op"] == "convert_many" and not place.facts["converts_many"]:
                found = _convert_each(place, arguments, timeout_s)
            else:
                found = process.call(job["op"], timeout_s, **arguments)
        except NOT_THE_MODELS_FAULT:
            raise
        except NNMeterError as exc:
            return {"error": encode_error(exc)}
        if job["op"] == "convert":
            return {"ok": _converted(found, arguments["model"], Path(arguments["save_path"]))}
        if job["op"] == "convert_many":
            folders = [Path(path) for path in arguments["save_paths"]]
            models = [model for model, _ in arguments["models"]]
            return {
                "ok": [
                    {"ok": _converted(each["ok"], model, where)} if "ok" in each else each
                    for each, model, where in zip(found, models, folders, strict=True)
                ]
            }
        return {"ok": found}


def _convert_each(
    place: _Place, arguments: Mapping[str, Any], timeout_s: float
) -> list[dict[str, Any]]:
    """Convert models one by one, by one task; gives what ``convert_many`` does.

    Raises:
        WorkerCrashedError: It was interrupted: nobody waits for the rest.
    """
    found: list[dict[str, Any]] = []
    for (model, shapes), folder in zip(arguments["models"], arguments["save_paths"], strict=True):
        if place.interrupted:  # asking would start the process anew
            raise WorkerCrashedError("it was interrupted")
        try:
            made = place.process.call(
                "convert", timeout_s, model=model, save_path=folder, shapes=shapes
            )
            found.append({"ok": made})
        except NOT_THE_MODELS_FAULT:
            raise
        except NNMeterError as exc:
            found.append({"error": encode_error(exc)})
    return found


def _batch(process: Worker, batch: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Load models, then carry out an operation on them.

    Returns:
        ``opened``: the keys of those that were loaded; ``refused``: of those that cannot be, and
        the errors; ``ended``: whether the process went down with the last of these, and all that
        was loaded; ``ok`` or ``error``: what came of the operation.
    """
    opened: list[str] = []
    refused: dict[str, dict[str, str]] = {}
    if batch["drop"]:
        process.call("drop", timeout_s, keys=batch["drop"])
    for each in batch["opens"]:
        try:
            process.call("open", timeout_s, **each)
            opened.append(each["key"])
        except NOT_THE_MODELS_FAULT:
            raise
        except NNMeterError as exc:
            refused[each["key"]] = encode_error(exc)
            if isinstance(exc, WorkerCrashedError | TimeLimitError):
                return {"opened": [], "refused": refused, "ended": True}
    arguments = dict(batch["arguments"])
    if batch["op"] == "race":
        arguments["keys"] = [key for key in arguments["keys"] if key not in refused]
    found: dict[str, Any] = {"opened": opened, "refused": refused, "ended": False}
    try:
        return {**found, "ok": process.call(batch["op"], timeout_s, **arguments)}
    except NOT_THE_MODELS_FAULT:
        raise
    except NNMeterError as exc:
        return {**found, "error": encode_error(exc)}


def _placed(value: Any, shelf: Shelf, folder: Path) -> Any:
    """Arguments with paths of this machine."""
    if isinstance(value, dict):
        if "$content" in value:
            return str(shelf.path(value["$content"]))
        if "$folder" in value:
            place = folder / str(int(value["$folder"]))
            place.mkdir(exist_ok=True)
            return str(place)
        return {key: _placed(each, shelf, folder) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_placed(each, shelf, folder) for each in value]
    return value


def _converted(found: str, model: str, folder: Path) -> dict[str, Any]:
    """What was converted, as files."""
    path = Path(found)
    if path == Path(model):
        return {"inside": None, "files": {}}
    if not path.is_relative_to(folder):  # somewhere else on this machine
        place = folder / path.name
        if path.is_dir():
            shutil.copytree(path, place)
        elif path.is_file():
            shutil.copyfile(path, place)
        else:
            raise BackendError(f"{path}: there is no such converted model")
        path = place
    return {"inside": path.relative_to(folder).as_posix(), "files": read_folder(folder)}
