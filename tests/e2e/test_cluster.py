"""Many devices: a real Dask scheduler and workers, some of which are killed."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from driving import NN_METER, edit, milliseconds, results
from farm import Farm, Process, wait_until, write_backend

from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester import detect_fusion_rule, generate_testcases
from nn_meter.builder.backends import connect_backend
from nn_meter.builder.profiling.cluster.settings import Scheduler
from nn_meter.builder.profiling.interface import profile_models
from nn_meter.builder.profiling.run import ProfileSummary
from nn_meter.builder.workspace import Workspace, create_workspace, open_workspace
from nn_meter.errors import BackendError, DeviceError

CASES = ["conv_relu", "add_relu", "relu_relu", "dwconv_relu"]
NAMES = [f"BF_{name}" for name in CASES]
SMALL = {"HW": 8, "CIN": 4, "COUT": 8, "SHAPE_1D": 8, "TIME_BUDGET": 0.01, "OTHER_TESTCASES": []}


# --- a cluster, and what is measured on it -------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Where `fixed` is registered, as on the machines of the devices."""
    folder = tmp_path_factory.mktemp("farm")
    meta = write_backend(folder / "package")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NN_METER_HOME", str(folder / "home"))
        registry.register("backend", meta)
    return folder / "home"


@pytest.fixture(scope="module")
def farm(home) -> Iterator[Farm]:
    """Two workers, each with a device of the kinds `fixed` and `onnxruntime_cpu`."""
    farm = Farm(home.parent / "cluster", home)
    try:
        farm.up(*[farm.worker("fixed=1 onnxruntime_cpu=1") for _ in range(2)])
        yield farm
    finally:
        farm.close()


@pytest.fixture(scope="module")
def made(home) -> Path:
    """A workspace whose models are there."""
    path = create_workspace(
        home.parent / "made",
        platform="customized:fixed",
        ruletest_config=yaml.safe_dump(
            {**SMALL, "IMPLEMENT": "onnx", "EVIDENCE": "formula", "BASIC_TESTCASES": CASES}
        ),
        backend_config=yaml.safe_dump({"RUNS": 20, "WARMUPS": 2}),
    )
    generate_testcases(open_workspace(path), with_situations=True)
    return path


class Bench:
    """A copy of the workspace, and what is measured in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.play = path / "play"
        self.play.mkdir()
        edit(path, "backend_config.yaml", PLAY=str(self.play))

    @property
    def workspace(self) -> Workspace:
        return open_workspace(self.path)

    def tell(self, what: str, *words: object) -> None:
        (self.play / what).write_text(" ".join(map(str, words)))

    @property
    def log(self) -> list[str]:
        """Models, and the device that each was loaded on, in the order that they were."""
        file = self.play / "log"
        return file.read_text().splitlines() if file.exists() else []

    def profile(self, scheduler: str | Scheduler | None, **options: Any) -> ProfileSummary:
        summary = ProfileSummary()
        workspace = self.workspace
        self.found = profile_models(
            connect_backend("fixed", workspace),
            workspace.results_dir / "origin_testcases.json",
            workspace=workspace,
            scheduler=scheduler,
            summary=summary,
            **options,
        )
        return summary

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.workspace.store_file)) as db:
            return db.execute(statement).fetchall()

    @property
    def measured(self) -> dict[str, list[tuple[Any, ...]]]:
        """Test case to what was measured of it, round by round."""
        found: dict[str, list[tuple[Any, ...]]] = {}
        for case, *visit in self.rows(
            "SELECT testcase, position, model, hash, samples, metrics FROM visits "
            "JOIN rounds ON rounds.id = visits.round ORDER BY rounds.id, position"
        ):
            found.setdefault(case, []).append(tuple(visit))
        return found

    @property
    def graphs(self) -> dict[str, list[tuple[Any, ...]]]:
        """Model to what is executed of it; ONNX Runtime numbers its nodes now so, now so."""
        found = {}
        for digest, data in self.rows("SELECT hash, data FROM graphs"):
            nodes = json.loads(data)["nodes"]
            found[digest] = [(n["type"], n["inputs"], n["outputs"], n["kind"]) for n in nodes]
        return found


@pytest.fixture
def bench(made, home, tmp_path, monkeypatch) -> Callable[..., Bench]:
    monkeypatch.setenv("NN_METER_HOME", str(home))
    count = iter(range(100))

    def _bench(**keys: object) -> Bench:
        path = tmp_path / f"ws{next(count)}"
        shutil.copytree(made, path)
        edit(path, **keys)
        return Bench(path)

    return _bench


@pytest.fixture
def further(farm) -> Iterator[Callable[..., Process]]:
    """Start further workers; they do not outlive the test."""
    workers: list[Process] = []

    def _further(*arguments: Any, **options: Any) -> Process:
        workers.append(farm.worker(*arguments, **options))
        return workers[-1]

    yield _further
    for worker in workers:
        worker.kill()


def at(farm: Farm, wait_s: float = 60.0) -> Scheduler:
    return Scheduler(address=farm.address, device_wait_s=wait_s)


class Running:
    """Profiling in a thread, while the test does something to the cluster."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.error: BaseException | None = None

        def run() -> None:
            try:
                work()
            except BaseException as exc:  # noqa: BLE001 - the test looks at it
                self.error = exc

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def end(self) -> BaseException | None:
        self._thread.join(timeout=120)
        assert not self._thread.is_alive()
        return self.error


# --- the same as here ----------------------------------------------------------------------------


def test_results_are_those_of_a_local_run(farm, bench):
    here, there = bench(EVIDENCE="auto"), bench(EVIDENCE="auto")
    here.profile(None)
    told = there.profile(at(farm))

    assert sorted(told.measured) == sorted(NAMES)
    assert there.found == here.found
    assert there.measured == here.measured
    assert all(len(visits) == 30 for visits in there.measured.values())
    for table in ("environments", "failures", "checks"):
        wanted = here.rows(f"SELECT * FROM {table} ORDER BY 1, 2")
        assert there.rows(f"SELECT * FROM {table} ORDER BY 1, 2") == wanted
        assert wanted or table == "failures"
    assert there.graphs == here.graphs
    for name in ("profiled_results.json", "fixed/profiled_results.json", "fixed/environment.json"):
        assert results(there.path, name) == results(here.path, name)
    rules = [detect_fusion_rule(each.found, each.workspace) for each in (here, there)]
    assert rules[0] == rules[1]
    assert {rule["evidence"] for rule in rules[1].values()} == {"graph"}

    before = there.log
    again = there.profile(at(farm))
    assert (sorted(again.kept), again.measured) == (sorted(NAMES), [])
    assert there.log == before
    kept_here = there.profile(None)  # the two know of each other's results
    assert sorted(kept_here.kept) == sorted(NAMES)


def test_the_clock_is_asked_on_the_devices(farm, bench):
    there = bench(EVIDENCE="latency", BASIC_TESTCASES=["conv_relu"])
    testcases = {"BF_conv_relu": results(there.path, "origin_testcases.json")["BF_conv_relu"]}
    from nn_meter.builder.backend_meta.fusion_rule_tester import interface

    found = interface.profile_models(
        connect_backend("fixed", there.workspace),
        testcases,
        workspace=there.workspace,
        scheduler=at(farm),
    )
    trials = [name for name in there.measured if name.startswith("clock:")]
    assert any(name.startswith("clock:BF_conv_relu:") for name in trials)
    assert any(name.startswith("clock:reference:") for name in trials)
    rule = detect_fusion_rule(found, there.workspace)["BF_conv_relu"]
    assert rule["evidence"] == "latency"
    assert rule["cost"]["loads"] >= 2


def test_onnxruntime_by_the_command_line(farm, bench, user):
    """Executed graphs of the real runtime, read there, decide as here."""
    asked = (
        "--backend",
        "onnxruntime_cpu",
        "--evidence",
        "graph",
        "--testcases",
        "conv_relu,add_relu",
    )
    rules = []
    for cluster in ((), ("--scheduler", farm.address)):
        place = bench()
        command = ("ruletest", "profile", "--workspace", place.path, *asked, *cluster, "--json")
        told = json.loads(user.succeed(*command))
        assert (told["graphs"], told["backend"], told["failed"]) == (6, "onnxruntime_cpu", {})
        view = results(place.path, "onnxruntime_cpu/profiled_results.json")
        rules.append(detect_fusion_rule(view, graphs_only(place.workspace)))
    assert rules[0] == rules[1]
    assert {name: rule["verdict"] for name, rule in rules[1].items()} == {
        "BF_conv_relu": "fused",
        "BF_add_relu": "separate",
    }


def graphs_only(workspace: Workspace) -> Workspace:
    ruletest = workspace.ruletest.model_copy(update={"EVIDENCE": "graph"})
    return dataclasses.replace(workspace, ruletest=ruletest)


# --- what goes down ------------------------------------------------------------------------------


def test_a_model_that_crashes_costs_its_own_test_case(farm, bench):
    there = bench()
    there.tell("exit", "BF_add_relu_block")
    summary = there.profile(at(farm))
    assert list(summary.failed) == ["BF_add_relu: block"]
    assert summary.failed["BF_add_relu: block"].kind == "crashed"
    assert "exit code 3" in summary.failed["BF_add_relu: block"].reason
    for name in set(NAMES) - {"BF_add_relu"}:
        assert all("latency" in model for model in there.found[name].values())
    assert all(worker.process.poll() is None for worker in farm.workers[:2])


def test_a_worker_that_dies_loses_nothing(farm, bench, further):
    """It is killed while it measures: another one takes its test case up."""
    here, there = bench(), bench()
    here.profile(None)
    doomed, other = further("mortal=1"), further("mortal=1")
    farm.up(doomed)
    there.tell("slow", 1)
    running = Running(lambda: there.profile(at(farm), device="mortal"))
    wait_until(lambda: len(there.log) >= 3)
    farm.up(other)
    doomed.kill()
    there.tell("slow", 0)
    assert running.end() is None
    assert there.found == here.found
    assert {c: sorted(v) for c, v in there.measured.items()} == {
        c: sorted(v) for c, v in here.measured.items()
    }
    assert len(there.log) > len(here.log)  # what the dead one had loaded was loaded again


def test_a_test_case_that_kills_workers_is_given_up(farm, bench, further, caplog):
    there = bench()
    farm.up(further("phoenix=1", nanny=True))
    there.tell("kill", "BF_relu_relu_block")
    summary = there.profile(at(farm), device="phoenix")
    failed = [f"BF_relu_relu: {model}" for model in there.found["BF_relu_relu"]]
    assert sorted(summary.failed) == sorted(failed)
    for failure in summary.failed.values():
        assert failure.kind == "crashed"
        assert "3 Dask workers died while they did it" in failure.reason
    assert [line.split()[0] for line in there.log].count("BF_relu_relu_block") == 3
    assert sum("died" in record.message for record in caplog.records) >= 3
    for name in set(NAMES) - {"BF_relu_relu"}:
        assert all("latency" in model for model in there.found[name].values())
    # it is decided: the next run does not kill three more
    assert there.profile(at(farm), device="phoenix").measured == []


def test_a_kind_without_a_worker_is_reported(farm, bench):
    there = bench()
    with pytest.raises(
        DeviceError, match=r"no worker of .* has offered the device 'pixel6'"
    ) as told:
        there.profile(at(farm, 1.0), device="pixel6")
    assert "offered are: fixed (2 workers), onnxruntime_cpu (2 workers)" in str(told.value)
    assert f'dask worker {farm.address} --resources "pixel6=1"' in str(told.value)


def test_the_last_worker_of_a_kind_dies(farm, bench, further):
    there = bench()
    last = further("lonely=1")
    farm.up(last)
    there.tell("slow", 1)
    running = Running(lambda: there.profile(at(farm, 2.0), device="lonely"))
    wait_until(lambda: len(there.log) >= 4)  # the first test case is over, or nearly
    there.tell("slow", 5)
    last.kill()
    error = running.end()
    assert isinstance(error, DeviceError), error
    assert "what was measured is kept, and the same command goes on from there" in str(error)
    done = there.measured
    assert 0 < len(done) < len(NAMES)
    view = results(there.path, "lonely/profiled_results.json")
    assert {name for name, case in view.items() if all("latency" in m for m in case.values())} == (
        set(done)
    )

    there.tell("slow", 0)
    farm.up(further("lonely=1"))
    again = there.profile(at(farm), device="lonely")
    assert set(again.kept) == set(done)
    assert set(again.measured) == set(NAMES) - set(done)
    assert {name: there.measured[name] for name in done} == done


def test_a_device_that_leaves_blames_no_model(farm, bench, further, tmp_path):
    """One of two, in the middle of a test case: the other does that, and the rest."""
    here, there = bench(), bench()
    here.profile(None)
    farm.up(further("twins=2", NN_METER_DEVICES=str(serials(tmp_path, "twins", "a", "b"))))
    there.tell("slow", 1)
    running = Running(lambda: there.profile(at(farm), device="twins"))
    wait_until(lambda: {line.split()[1] for line in there.log} == {"a", "b"})
    there.tell("gone", "b")
    there.tell("slow", 0)
    assert running.end() is None
    assert there.found == here.found
    assert there.rows("SELECT * FROM failures") == []


def test_the_only_device_leaves_and_comes_back(farm, bench, further, tmp_path):
    there = bench()
    farm.up(further("single=1", NN_METER_DEVICES=str(serials(tmp_path, "single", "a"))))
    there.tell("slow", 1)
    running = Running(lambda: there.profile(at(farm, 2.0), device="single"))
    wait_until(lambda: len(there.log) >= 4)
    there.tell("gone", "a")
    error = running.end()
    assert isinstance(error, DeviceError), error
    assert "a has left" in str(error)
    assert there.rows("SELECT * FROM failures") == []
    done = there.measured

    (there.play / "gone").unlink()
    there.tell("slow", 0)
    summary = there.profile(at(farm), device="single")
    assert (summary.failed, set(summary.kept)) == ({}, set(done))
    assert set(there.measured) == set(NAMES)
    assert {name: there.measured[name] for name in done} == done


def serials(folder: Path, kind: str, *names: str) -> Path:
    """A worker's file of devices."""
    file = folder / f"{kind}.yaml"
    file.write_text(yaml.safe_dump({kind: [{"DEVICE_SERIAL": name} for name in names]}))
    return file


def test_the_scheduler_is_lost(home, bench):
    there = bench()
    farm = Farm(home.parent / "lost", home)
    try:
        farm.up(farm.worker("fixed=1"))
        there.tell("slow", 1)
        running = Running(lambda: there.profile(at(farm)))
        wait_until(lambda: len(there.log) >= 4)
        there.tell("slow", 5)
        farm.scheduler.kill()
        error = running.end()
        assert isinstance(error, DeviceError), error
        assert f"the scheduler {farm.address} was lost" in str(error)
        assert "the same command goes on from there" in str(error)
        done = there.measured
        assert 0 < len(done) < len(NAMES)

        there.tell("slow", 0)
        farm.restart_scheduler()
        farm.up(farm.worker("fixed=1"))
        again = there.profile(at(farm))
        assert set(again.kept) == set(done)
        assert set(again.measured) == set(NAMES) - set(done)
    finally:
        farm.close()


def test_control_c_cancels_what_the_cluster_does(farm, bench, home, user):
    there = bench()
    there.tell("slow", 600)  # nobody waits for that
    run = user.start(
        *("ruletest", "profile", "--workspace", there.path, "--scheduler", farm.address),
        env={**os.environ, "NN_METER_HOME": str(home)},
    )
    wait_until(lambda: len(there.log) >= 2)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert err.splitlines()[-1] == "nn-meter: interrupted; the same command goes on from here"
    assert "Traceback" not in err
    assert there.measured == {}
    # the devices are free at once, though what they did would have taken hours
    before = len(there.log)
    there.tell("slow", 0)
    assert sorted(there.profile(at(farm)).measured) == sorted(NAMES)
    assert len(there.log) == before + 3 * len(NAMES)


# --- several kinds, and unlike devices -----------------------------------------------------------


def test_a_device_in_another_environment_takes_no_part(farm, bench, further, tmp_path, caplog):
    """The same kind, but with another version of the runtime, as its machine's own file says."""
    there = bench()
    workers = []
    for serial, version in (("a", "1"), ("b", "1"), ("c", "2")):
        file = tmp_path / f"{serial}.yaml"
        file.write_text(yaml.safe_dump({"mixed": {"DEVICE_SERIAL": serial, "VERSION": version}}))
        workers.append(further("mixed=1", NN_METER_DEVICES=str(file)))
    farm.up(*workers)
    with caplog.at_level(logging.WARNING, logger="nn_meter"):
        there.profile(at(farm), device="mixed")
    assert {line.split()[1] for line in there.log} <= {"a", "b"}
    (told,) = [r.getMessage() for r in caplog.records if "takes no part" in r.getMessage()]
    assert "another environment than that of this run (version: 2, not 1)" in told
    ((data,),) = there.rows("SELECT data FROM environments")
    assert json.loads(data)["version"] == "1"
    assert set(there.measured) == set(NAMES)


def test_several_kinds_have_a_result_each(farm, bench, further, home, user, tmp_path):
    """Two kinds of a backend, one of another, and one that is not there, which holds up none."""
    there = bench()
    file = tmp_path / "devices.yaml"
    file.write_text(yaml.safe_dump({"left": [{"EXTRA_NS": 5000}, {"EXTRA_NS": 5000}]}))
    farm.up(further("left=2", NN_METER_DEVICES=str(file)))
    kinds = ("left", "fixed", "onnxruntime_cpu=onnxruntime_cpu", "absent")
    done = user.run(
        *(NN_METER, "ruletest", "profile", "--workspace", there.path, "--backend", "fixed"),
        *("--scheduler", farm.address, "--device-wait", "3"),
        *(word for kind in kinds for word in ("--device", kind)),
        env={**os.environ, "NN_METER_HOME": str(home)},
    )
    assert done.code == 7, done
    assert done.err.splitlines()[-1].startswith("nn-meter: error: absent: no worker of ")
    views = {kind: results(there.path, f"{kind}/profiled_results.json") for kind in RAN}
    for view in views.values():
        assert all("latency" in model for case in view.values() for model in case.values())
    assert results(there.path, "profiled_results.json") == views["left"]  # the first one named
    ns = {kind: view["BF_relu_relu"]["block"]["latency"] for kind, view in views.items()}
    assert milliseconds(ns["left"]) == pytest.approx(milliseconds(ns["fixed"]) + 5e-3)
    assert {name for (name,) in there.rows("SELECT backend FROM environments")} == set(RAN)
    for kind in ("left", "fixed"):
        path = there.workspace.results_dir / kind / "profiled_results.json"
        assert set(detect_fusion_rule(path, there.workspace)) == set(NAMES)
        stored = results(there.path, f"{kind}/detected_fusion_rule.json")
        assert {rule["environment"]["backend"] for rule in stored.values()} == {kind}


RAN = ("left", "fixed", "onnxruntime_cpu")


# --- what is missing -----------------------------------------------------------------------------


def test_a_backend_that_the_workers_machine_does_not_know(farm, bench, further, tmp_path):
    there = bench()
    farm.up(further("stranger=1", NN_METER_HOME=str(tmp_path / "empty")))
    with pytest.raises(BackendError, match=r"stranger: the device at tcp://.*fixed"):
        there.profile(at(farm, 2.0), device="stranger")


_WITHOUT = """\
import sys
sys.modules["dask"] = sys.modules["distributed"] = None
from nn_meter.cli.main import main
for cluster in ([], ["--scheduler", "tcp://127.0.0.1:1"]):
    try:
        main(sys.argv[1:] + cluster)
    except SystemExit as ended:
        print("ended with", ended.code)
"""


def test_local_runs_need_none_of_it(bench, home, user):
    there = bench()
    done = user.run(
        *(sys.executable, "-c", _WITHOUT, "ruletest", "profile", "--workspace", there.path),
        *("--testcases", "relu_relu"),
        env={**os.environ, "NN_METER_HOME": str(home)},
    )
    assert [line for line in done.out.splitlines() if line.startswith("ended")] == [
        "ended with 0",
        "ended with 7",
    ]
    assert "distributed is not installed; pip install 'nn-meter[distributed]' brings it" in done.err


def test_nobody_listens(bench):
    there = bench()
    with pytest.raises(BackendError, match=r"tcp://127\.0\.0\.1:1 cannot be reached"):
        there.profile(Scheduler(address="tcp://127.0.0.1:1", connect_s=1))


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path) -> dict[str, str]:
    """An authority, and a certificate that it signed; and another one that it did not."""
    folder = tmp_path / "tls"
    folder.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for name in ("ca", "stranger"):
        openssl(
            *(
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                f"/CN={name}",
            ),
            *("-keyout", f"{name}.key", "-out", f"{name}.pem"),
        )
    openssl(
        *("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=farm"),
        *("-keyout", "farm.key", "-out", "farm.csr"),
    )
    openssl(
        *("x509", "-req", "-in", "farm.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2"),
        *("-CAcreateserial", "-out", "farm.pem"),
    )
    return {path.name: str(path) for path in folder.iterdir()}


def tls(certificates: dict[str, str], name: str = "farm") -> tuple[str, ...]:
    return (
        *("--tls-ca-file", certificates["ca.pem"]),
        *("--tls-cert", certificates[f"{name}.pem"]),
        *("--tls-key", certificates[f"{name}.key"]),
    )


def test_tls(home, bench, user, certificates):
    there = bench()
    farm = Farm(home.parent / "tls", home, "--protocol", "tls", *tls(certificates))
    try:
        farm.up(farm.worker("fixed=1"))
        assert farm.address.startswith("tls://")
        own = {"env": {**os.environ, "NN_METER_HOME": str(home)}}
        command = (
            *(NN_METER, "ruletest", "profile"),
            *("--workspace", there.path, "--scheduler", farm.address),
        )
        stranger = Scheduler(
            address=farm.address,
            tls_ca_file=certificates["ca.pem"],
            tls_cert=certificates["stranger.pem"],
            tls_key=certificates["stranger.key"],
            connect_s=2,
        )
        plain = Scheduler(address=farm.address.replace("tls", "tcp"), connect_s=2)
        for refused in (stranger, plain):
            with pytest.raises(BackendError, match="cannot be reached"):
                there.profile(refused)
        done = user.run(*command, *tls(certificates), **own)
        assert done.code == 0, done
        assert set(there.measured) == set(NAMES)
    finally:
        farm.close()
