"""The parts of measuring on many devices, without a cluster: the real one is in tests/e2e."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from nn_meter.builder.profiling.cluster import device, fleet, link
from nn_meter.builder.profiling.cluster.content import Shelf, read_files, write_files
from nn_meter.builder.profiling.cluster.elsewhere import RemoteWorker, Station
from nn_meter.builder.profiling.cluster.fleet import Fleet, StoppedError
from nn_meter.builder.profiling.cluster.link import ClusterLostError, Offer
from nn_meter.builder.profiling.cluster.measuring import CaseResult, differences, measure_there
from nn_meter.builder.profiling.cluster.run import ClusterRun
from nn_meter.builder.profiling.cluster.settings import Scheduler, check_kind
from nn_meter.builder.profiling.cluster.travel import arrived, travelling
from nn_meter.builder.profiling.process import Worker
from nn_meter.builder.profiling.store import Failure
from nn_meter.errors import (
    BackendError,
    ConfigError,
    DeviceError,
    ModelRejectedError,
    WorkerCrashedError,
)

# --- where the scheduler is ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["", "host:8786", "http://host:8786", "tcp://host", "tcp://host:0", "tcp://h:70000", 7],
)
def test_what_is_no_address(address):
    with pytest.raises(ConfigError, match="address"):
        Scheduler.of(address)


@pytest.mark.parametrize("address", ["tcp://host:8786", "tcp://127.0.0.1:1", "tcp://[::1]:8786"])
def test_addresses(address):
    assert Scheduler.of(address).address == address


def test_tls_takes_three_files(tmp_path):
    file = tmp_path / "file.pem"
    file.touch()
    files = dict.fromkeys(("tls_ca_file", "tls_cert", "tls_key"), str(file))
    assert Scheduler(address="tls://host:8786", **files).encrypted
    with pytest.raises(ConfigError, match="needs --tls-key, too"):
        Scheduler(address="tls://host:8786", **{**files, "tls_key": None})
    with pytest.raises(ConfigError, match="is not encrypted"):
        Scheduler(address="tcp://host:8786", **files)
    with pytest.raises(ConfigError, match=r"--tls-cert: gone\.pem: there is no such file"):
        Scheduler(address="tls://host:8786", **{**files, "tls_cert": "gone.pem"})


def test_how_long_a_device_is_waited_for(monkeypatch):
    assert Scheduler.of("tcp://h:1").device_wait_s < 60
    monkeypatch.setenv("NN_METER_DEVICE_WAIT", "7.5")
    assert Scheduler.of("tcp://h:1").device_wait_s == 7.5
    for text in ("soon", "nan", "-1"):
        monkeypatch.setenv("NN_METER_DEVICE_WAIT", text)
        with pytest.raises(ConfigError, match="number of seconds"):
            Scheduler.of("tcp://h:1")


def test_how_long_a_device_is_waited_for_does_not_limit_connecting(monkeypatch):
    limits = []

    def client(address, *, timeout, **options):
        limits.append(timeout)
        raise OSError("nobody listens")

    monkeypatch.setattr(link, "_distributed", lambda: SimpleNamespace(Client=client))
    for asked in ({}, {"connect_s": 3.0}):
        with pytest.raises(BackendError, match="cannot be reached: nobody listens"):
            link.Link(Scheduler(address="tcp://h:1", device_wait_s=0.5, **asked))
    assert limits == [15.0, 3.0]
    with pytest.raises(ConfigError, match="connect_s must be a number of seconds above 0"):
        Scheduler(address="tcp://h:1", connect_s=0)


@pytest.mark.parametrize(
    "kind", ["", "../up", "a b", "a=1", "-a", "a" * 65, "samples/", "ä", "samples.db"]
)
def test_names_that_no_kind_has(kind):
    with pytest.raises(ConfigError, match="name of a kind of device"):
        check_kind(kind)


# --- model files ---------------------------------------------------------------------------------


def test_a_model_is_known_by_its_content_whatever_its_name(tmp_path):
    shelf = Shelf(tmp_path / "shelf")
    for name in ("one.onnx", "two.onnx"):
        (tmp_path / name).write_bytes(b"model")
    (one, files), (two, _) = (read_files(tmp_path / n) for n in ("one.onnx", "two.onnx"))
    assert one.digest == two.digest
    shelf.put(one.digest, files)
    shelf.put(one.digest, files)
    assert shelf.digests == [one.digest]
    places = [shelf.path(content.to_json()) for content in (one, two)]
    assert [place.name for place in places] == ["one.onnx", "two.onnx"]
    assert [place.read_bytes() for place in places] == [b"model", b"model"]


def test_a_folder_is_a_model(tmp_path):
    model = tmp_path / "saved"
    (model / "variables").mkdir(parents=True)
    (model / "saved_model.pb").write_bytes(b"graph")
    (model / "variables" / "data").write_bytes(b"weights")
    content, files = read_files(model)
    shelf = Shelf(tmp_path / "shelf")
    shelf.put(content.digest, files)
    place = shelf.path(content.to_json())
    assert place.name == "saved"
    assert (place / "variables" / "data").read_bytes() == b"weights"


def test_what_belongs_to_a_converted_model_goes_with_it(tmp_path):
    (tmp_path / "converted.json").touch()
    (tmp_path / "model.xml").write_bytes(b"graph")
    (tmp_path / "model.bin").write_bytes(b"weights")
    (tmp_path / "other").write_bytes(b"something")
    message, contents = travelling(
        "open", {"key": "k", "converted": str(tmp_path / "model.xml"), "shapes": [[1]]}
    )
    ((digest, files),) = contents.items()
    assert sorted(files) == ["model.bin", "model.xml", "other"]
    shelf = Shelf(tmp_path / "shelf")
    shelf.put(digest, files)
    place = shelf.path(message["converted"]["$content"])
    assert place.name == "model.xml"
    assert place.with_name("model.bin").read_bytes() == b"weights"


def test_of_a_users_model_what_is_called_as_it_goes_with_it(tmp_path):
    for name in ("model.xml", "model.bin", "model2.bin"):
        (tmp_path / name).write_bytes(name.encode())
    _, contents = travelling("open", {"converted": str(tmp_path / "model.xml"), "check": False})
    assert sorted(next(iter(contents.values()))) == ["model.bin", "model.xml"]
    (tmp_path / ".info").mkdir()  # but one that nn-Meter made is alone
    _, contents = travelling("open", {"converted": str(tmp_path / "model.xml"), "check": False})
    assert list(contents.values()) == [{"model": b"model.xml"}]


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", ""])
def test_files_stay_in_their_folder(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(BackendError, match="no path inside"):
        write_files(folder, {name: b""})
    assert sorted(tmp_path.rglob("*")) == [folder]


def test_what_was_converted_comes_back(tmp_path):
    arguments = {"model": "here/model.onnx", "save_path": str(tmp_path), "shapes": []}
    found = arrived("convert", arguments, {"inside": "m/model.xml", "files": {"m/model.xml": b"x"}})
    assert found == str(tmp_path / "m" / "model.xml")
    assert Path(found).read_bytes() == b"x"
    assert arrived("convert", arguments, {"inside": None, "files": {}}) == "here/model.onnx"


# --- devices -------------------------------------------------------------------------------------


class Future:
    def __init__(self, answer) -> None:
        self.answer = answer
        self.released = False

    @property
    def status(self) -> str:
        return "pending" if self.answer is None else "finished"

    def add_done_callback(self, told) -> None:
        if self.answer is not None:
            told(self)

    def result(self, timeout):
        return self.answer

    def release(self) -> None:
        self.released = True


class Link:
    """Stands for the scheduler: what a worker answers, a test says."""

    address, run = "tcp://scheduler:1", "run"
    made_condition = threading.Condition

    def __init__(self, **workers: float) -> None:
        self.condition = self.made_condition()
        self.workers = {
            f"tcp://{name}": Offer(address=f"tcp://{name}", identity=name, resources={"phone": n})
            for name, n in workers.items()
        }
        self.jobs: list[tuple[str, dict]] = []
        self.interrupted: list[tuple[str, str, int]] = []
        self.answer: Callable = lambda job, name: {"ok": None}

    def check(self) -> None:
        pass

    def submit(self, job, address):
        name = address.removeprefix("tcp://")
        self.jobs.append((name, job))
        answer = self.answer(job, name)
        if answer == "dies":
            self.workers = {a: o for a, o in self.workers.items() if a != address}
            return Future(None)
        return Future(answer)

    def interrupt(self, address, kind, slot) -> None:
        self.interrupted.append((address, kind, slot))


STATION = Station(backend="b", configs={"RUNS": 5}, config_file="ws/configs/backend_config.yaml")


def worker_on(link: Link, wait_s: float = 0.3) -> RemoteWorker:
    return RemoteWorker(Fleet(link, "phone", wait_s), STATION)


@pytest.fixture
def model(tmp_path) -> str:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"model")
    return str(path)


def convert(worker: RemoteWorker, model: str):
    return worker.call("graph", 5, converted=model, shapes=[[1]])


def test_a_model_is_sent_to_each_machine_once(model):
    link = Link(a=1, b=1)
    link.answer = lambda job, name: {"ok": name}
    worker = worker_on(link)
    assert {convert(worker, model) for _ in range(6)} == {"a", "b"}  # one after the other
    for name in ("a", "b"):
        sent = [bool(job["contents"]) for at, job in link.jobs if at == name]
        assert sent == [True, False, False]
    assert all(len(job["needs"]) == 1 for _, job in link.jobs)


def test_a_model_that_a_machine_has_lost_is_sent_again(model):
    link = Link(a=1)
    there: set[str] = set()

    def answer(job, name):
        there.update(job["contents"])
        missing = [digest for digest in job["needs"] if digest not in there]
        return {"missing": missing} if missing else {"ok": "done"}

    link.answer = answer
    worker = worker_on(link)
    assert convert(worker, model) == "done"
    there.clear()
    assert convert(worker, model) == "done"
    assert [bool(job["contents"]) for _, job in link.jobs] == [True, False, True]


def test_another_device_takes_over_from_one_that_died(model, caplog):
    link = Link(a=1, b=1)
    link.answer = lambda job, name: "dies" if name == "a" else {"ok": name}
    worker = worker_on(link)
    assert convert(worker, model) == "b"
    assert "the Dask worker tcp://a died" in caplog.text


def test_what_kills_one_worker_after_the_other_is_given_up(model):
    link = Link(a=1, b=1, c=1, d=1)
    link.answer = lambda job, name: "dies"
    with pytest.raises(WorkerCrashedError, match="3 Dask workers died while they did it: tcp://"):
        convert(worker_on(link), model)
    assert len(link.workers) == 1


def test_a_device_that_cannot_is_left_out(model, caplog):
    link = Link(a=1, b=1)
    link.answer = lambda job, name: (
        {"unfit": {"type": "", "message": "its runtime is older"}} if name == "a" else {"ok": name}
    )
    worker = worker_on(link)
    assert [convert(worker, model) for _ in range(3)] == ["b", "b", "b"]
    assert "the device at tcp://a takes no part: its runtime is older" in caplog.text
    link.workers.pop("tcp://b")
    with pytest.raises(ClusterLostError, match="can be used: its runtime is older"):
        convert(worker, model)


AWAY = {"unfit": {"type": "DeviceError", "message": "unplugged"}, "passing": True}


@pytest.fixture
def clock(monkeypatch) -> Callable[[float], None]:
    """The time of fleets passes only while somebody waits, and by whatever a test says."""
    now = [1000.0]

    def passes(seconds: float) -> None:
        now[0] += seconds

    class Waited(threading.Condition):
        def wait(self, timeout=None):
            passes(timeout)
            return True

    monkeypatch.setattr(fleet, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Link, "made_condition", Waited)
    return passes


def test_a_run_ends_while_its_only_device_is_away(model, caplog, clock):
    link = Link(a=1)
    link.answer = lambda job, name: AWAY
    worker = worker_on(link, 45)
    with pytest.raises(DeviceError, match=r"3 times .* device at tcp://a: unplugged"):
        convert(worker, model)
    assert len(link.jobs) == 3
    with pytest.raises(ClusterLostError, match="can be used: unplugged"):
        convert(worker, model)
    assert len(link.jobs) == 5
    assert caplog.text.count("the device at tcp://a takes no part: unplugged") == 1


def test_a_device_that_is_away_is_waited_for_from_when_it_was_there(model, clock):
    link = Link(a=1)
    away = [True, True, False, True, False]

    def answer(job, name):
        clock(300)  # longer than a device is waited for
        return AWAY if away.pop(0) else {"ok": name}

    link.answer = answer
    worker = worker_on(link, 45)
    with pytest.raises(ClusterLostError, match="can be used: unplugged"):  # away for 300 s
        convert(worker, model)
    clock(10)
    assert [convert(worker, model) for _ in range(2)] == ["a", "a"]
    assert not away


def test_a_device_that_left_while_nobody_asked_for_one_is_waited_for_from_then_on(clock):
    """The phase before was this machine's own, and longer than a device is waited for."""
    link = Link(a=1)
    phones = Fleet(link, "phone", 45)
    phones.release(phones.lease(lambda: True))
    here = link.workers
    link.workers = {}
    for back in (True, False):
        clock(300)
        looks = iter(range(1000))

        def until_it_is_back(seconds: float, back=back, looks=looks) -> None:
            clock(1)
            link.workers = here if back and next(looks) == 30 else link.workers

        link.condition.wait = until_it_is_back
        if back:
            phones.release(phones.lease(lambda: True))
            link.workers = {}
        else:
            with pytest.raises(ClusterLostError, match="has offered the device 'phone' for 45 s"):
                phones.lease(lambda: True)


def test_nobody_that_waits_takes_a_device_that_is_away_for_one_that_is_there(clock):
    link = Link(a=1)
    phones = Fleet(link, "phone", 45)
    for _ in range(5):
        lease = phones.lease(lambda: True)
        with pytest.raises(StoppedError):  # another one waits for it meanwhile
            phones.lease(iter([True, False]).__next__)
        phones.leave_out(lease, "unplugged", passing=True)
        phones.release(lease)
    with pytest.raises(ClusterLostError, match="can be used: unplugged"):
        phones.lease(lambda: True)


def test_what_one_device_could_not_do_waits_for_another_one_that_works(model, clock):
    """It does not ask the same one again and again while the other is busy for long."""
    link = Link(a=1, b=1)
    link.answer = lambda job, name: AWAY if name == "a" else {"ok": name}
    worker = worker_on(link, 45)
    phones = worker._fleet
    assert phones.lease(lambda: True).place == ("a", 0)
    busy = phones.lease(lambda: True)
    phones.release(phones._usable()[0])  # now b is busy, and a free
    looks = iter(range(100))

    def until_b_is_free(seconds: float) -> None:
        clock(1)
        if next(looks, None) == 99:
            phones.release(busy)

    link.condition.wait = until_b_is_free
    assert convert(worker, model) == "b"
    assert [name for name, _ in link.jobs] == ["a", "b"]


def test_a_case_whose_devices_are_away_is_tried_again_by_the_next_run(clock):
    link = Link(a=1, b=1, c=1)
    link.answer = lambda job, name: AWAY
    worker = worker_on(link, 45)
    job = {**case(), "models": [], "with_models": False}
    found = ClusterRun._result(SimpleNamespace(time_limit_s=5), worker, "BF_x", job)
    assert found.failed is not None
    which, failure = found.failed
    assert (which, failure.kind) == (None, "device")
    assert "unplugged" in failure.reason


def test_there_is_no_device(model):
    link = Link(a=1)
    link.workers["tcp://z"] = Offer(address="tcp://z", identity="z", resources={"tablet": 2})
    worker = RemoteWorker(Fleet(link, "watch", 0.2), STATION)
    with pytest.raises(ClusterLostError) as told:
        convert(worker, model)
    assert "no worker of tcp://scheduler:1 has offered the device 'watch' for 0.2 s" in str(
        told.value
    )
    assert "offered are: phone (1 worker), tablet (1 worker)" in str(told.value)
    assert 'dask worker tcp://scheduler:1 --resources "watch=1"' in str(told.value)


def test_an_error_of_the_operation_is_the_callers(model):
    link = Link(a=1)
    error = {"type": "ModelRejectedError", "message": "no such op"}
    link.answer = lambda job, name: {"error": error}
    with pytest.raises(ModelRejectedError, match="no such op"):
        convert(worker_on(link), model)


def test_a_device_is_had_by_one_at_a_time():
    link = Link(a=2)
    fleet = Fleet(link, "phone", 0.2)
    leases = [fleet.lease(lambda: True) for _ in range(2)]
    assert {lease.slot for lease in leases} == {0, 1}
    with pytest.raises(StoppedError):
        fleet.lease(iter([True, True, False]).__next__)
    fleet.release(leases[0], anew=True)
    again = fleet.lease(lambda: True)
    assert (again.slot, again.anew) == (leases[0].slot, True)


def test_stopping_ends_what_a_device_does(model):
    link = Link(a=1)
    link.answer = lambda job, name: None  # it never ends
    worker = worker_on(link)
    found: list[BaseException] = []

    def run() -> None:
        try:
            convert(worker, model)
        except StoppedError as exc:
            found.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    while not link.jobs:
        pass
    worker.stop()
    thread.join(timeout=30)
    assert len(found) == 1
    assert link.interrupted == [("tcp://a", "phone", 0)]
    link.answer = lambda job, name: {"ok": job["anew"]}
    assert convert(worker, model) is True  # in another process than that one


# --- models that stay loaded ---------------------------------------------------------------------


class Machine:
    """What `device` does with a batch, without a process."""

    def __init__(self) -> None:
        self.loaded: dict[str, list[str]] = {}
        self.refused: dict[str, str] = {}
        self.dies: set[str] = set()
        self.batches: list[tuple[str, list[str], list[str]]] = []

    def __call__(self, job, name):
        if job["op"] == "close":
            self.loaded[name] = []
            return {"ok": None}
        batch = job["arguments"]
        opens = [each["key"] for each in batch["opens"]]
        self.batches.append((name, opens, batch["drop"]))
        if name in self.dies:
            return "dies"
        here = [key for key in self.loaded.setdefault(name, []) if key not in batch["drop"]]
        refused = {}
        for key in opens:
            if key in self.refused:
                kind = self.refused[key]
                refused[key] = {"type": kind, "message": key}
                if kind == "WorkerCrashedError":
                    self.loaded[name] = []
                    return {"ok": {"opened": [], "refused": refused, "ended": True}}
            else:
                here.append(key)
        self.loaded[name] = here
        keys = [key for key in batch["arguments"]["keys"] if key not in refused]
        assert set(keys) <= set(here)
        answer = {"visits": {key: [[1]] for key in keys}, "failed": {}}
        return {
            "ok": {
                "opened": [key for key in opens if key not in refused],
                "refused": refused,
                "ended": False,
                "ok": answer,
            }
        }


def load(worker: RemoteWorker, model: str, *keys: str) -> None:
    for key in keys:
        worker.call("open", 5, key=key, converted=model, shapes=[[1]], check=False)


def test_models_are_loaded_and_timed_by_one_task(model):
    link = Link(a=1, b=1)
    link.answer = machine = Machine()
    worker = worker_on(link)
    load(worker, model, "x", "y")
    assert link.jobs == []
    answer = worker.call("race", 5, keys=["x", "y"])
    assert sorted(answer["visits"]) == ["x", "y"]
    worker.call("drop", 5, keys=["x"])
    load(worker, model, "z")
    worker.call("race", 5, keys=["y", "z"])
    assert machine.batches == [("a", ["x", "y"], []), ("a", ["z"], ["x"])]
    worker.call("drop", 5, keys=["y", "z"])
    assert machine.loaded == {"a": []}
    assert not worker.running


def test_models_are_loaded_again_where_another_device_takes_over(model):
    link = Link(a=1, b=1)
    link.answer = machine = Machine()
    worker = worker_on(link)
    load(worker, model, "x", "y")
    worker.call("race", 5, keys=["x", "y"])
    machine.dies.add("a")
    assert sorted(worker.call("race", 5, keys=["x", "y"])["visits"]) == ["x", "y"]
    assert machine.batches[1:] == [("a", [], []), ("b", ["x", "y"], [])]


@pytest.mark.parametrize("kind", ["ModelRejectedError", "WorkerCrashedError"])
def test_a_model_that_cannot_be_loaded_is_one_that_failed(model, kind):
    link = Link(a=1)
    link.answer = machine = Machine()
    machine.refused["y"] = kind
    worker = worker_on(link)
    load(worker, model, "x", "y", "z")
    for _ in range(2):
        answer = worker.call("race", 5, keys=["x", "y", "z"])
        assert sorted(answer["visits"]) == ["x", "z"]
        assert answer["failed"] == {"y": {"type": kind, "message": "y"}}
    assert sum("y" in opens for _, opens, _ in machine.batches) == 1


# --- on the device's machine ---------------------------------------------------------------------


def test_what_only_the_devices_machine_knows(tmp_path, monkeypatch):
    file = tmp_path / "devices.yaml"
    file.write_text(
        yaml.safe_dump({"one": {"DEVICE_SERIAL": "x"}, "two": [{"A": 1}, {"A": 2}], "bad": 3})
    )
    assert device._details("one", 0) == {}
    monkeypatch.setenv("NN_METER_DEVICES", str(file))
    assert device._details("one", 0) == {"DEVICE_SERIAL": "x"}
    assert [device._details("two", slot) for slot in (0, 1)] == [{"A": 1}, {"A": 2}]
    assert device._details("three", 0) == {}
    with pytest.raises(ConfigError, match="lists 2 devices"):
        device._details("two", 2)
    with pytest.raises(ConfigError, match="should hold keys"):
        device._details("bad", 0)


class Caller:
    """A process that times models by their name."""

    running = True

    def __init__(self, **faults: Exception) -> None:
        self.faults, self.calls = faults, []

    def call(self, op, timeout_s=None, **arguments):
        self.calls.append((op, arguments.get("key"), arguments.get("runs")))
        if (fault := self.faults.get(arguments.get("key"))) is not None:
            raise fault
        return [7] * arguments["runs"] if op == "time" else None


def case(**runs: list[int]) -> dict:
    return {
        "testcase": "BF_x",
        "models": [
            {
                "name": name,
                "path": f"{name}.onnx",
                "hash": name * 3,
                "shapes": [[1]],
                "converted": f"{name}.onnx",
                "reference": None,
            }
            for name in ("a", "b")
        ],
        "settings": {
            "backend": "b",
            "sessions": True,
            "own_file_method": False,
            "runs": 20,
            "warmups": 0,
            "metrics": ["latency"],
            "rounds": None,
            "in_turn": False,
        },
        "runs": {"a": [], "b": [], **runs},
        "done": {},
        "save_path": ".",
    }


def test_a_case_goes_on_from_the_rounds_that_there_are():
    whole = CaseResult.from_json(measure_there(Caller(), case(), 5))
    rest = CaseResult.from_json(measure_there(Caller(), case(a=[2] * 7, b=[2] * 7), 5))
    assert (len(whole.rounds), len(rest.rounds)) == (10, 3)
    orders = [[model for model, _, _ in visits] for visits in whole.rounds]
    assert [[model for model, _, _ in visits] for visits in rest.rounds] == orders[7:]
    (model, digest, samples) = whole.rounds[0][0]
    assert (model, digest, samples.dtype, samples.tolist()) == ("a", "aaa", np.int64, [7, 7])
    assert whole.runtime_s == pytest.approx(40 * 7e-9)


def test_a_model_that_fails_there_is_told_with_its_reason():
    found = CaseResult.from_json(measure_there(Caller(b=WorkerCrashedError("boom")), case(), 5))
    assert found.failed == ("b", Failure(kind="crashed", reason="boom"))
    assert found.rounds == []


def test_a_device_that_is_away_is_no_failure_of_the_model():
    with pytest.raises(DeviceError, match="unplugged"):
        measure_there(Caller(b=DeviceError("unplugged")), case(), 5)


def test_in_what_environments_differ():
    told = differences({"version": "2", "device": "CPU"}, {"version": "1", "device": "CPU"})
    assert told == "it is another environment than that of this run (version: 2, not 1)"


@pytest.mark.parametrize("how", ["interrupt", "leave"])
def test_an_interrupted_device_converts_no_further_models(how):
    places = device._Devices()
    end = {
        "interrupt": lambda: places.interrupt("run", "phone", 0),
        "leave": lambda: places.leave("run"),
    }[how]
    asked = []
    ends = [True]

    class Process(Worker):
        def call(self, op, timeout_s=None, **arguments):
            asked.append(arguments["model"])
            if ends:
                ends.pop()
                end()
                raise WorkerCrashedError("its process ended")
            return arguments["model"]

        def stop(self):
            pass

    class Held:
        measuring = Process("module:Class")

        def __exit__(self, *exc_info):
            pass

    job = {"run": "run", "kind": "phone", "slot": 0}
    batch = {"models": [(name, []) for name in "abc"], "save_paths": ["x", "y", "z"]}
    places._places["run", "phone", 0] = device._Place(connection=Held(), facts={})
    with places.held(job) as place, pytest.raises(WorkerCrashedError, match="interrupted"):
        device._convert_each(place, batch, 5)
    assert asked == ["a"]
    places._places["run", "phone", 0] = place
    with places.held(job) as place:  # what is asked of the device next is done
        assert device._convert_each(place, batch, 5) == [{"ok": name} for name in "abc"]
