"""A run that is killed, at any moment: nothing is lost but the round under way.

ONNX Runtime measures for real. The process alone gets the signal; its workers have to notice that
it is gone. Then the same command goes on.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from driving import SMALL, User, all_json_files, edit, milliseconds, results, rounds, visits

from nn_meter.builder.config import default_testcases

RUNS, ROUNDS = 2000, 10
FIRST, SECOND, THIRD = "BF_relu_relu", "BF_conv_relu", "BF_dwconv_relu"
SIGNALS = [signal.SIGKILL, signal.SIGINT, signal.SIGTERM]

Moment = Callable[[], bool]


class Run:
    """``nn-meter run --workspace ws`` as it goes."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.workspace = user.folder / "ws"
        self._printed = user.folder / "stderr.txt"
        with self._printed.open("w") as stderr:
            self.process = user.start(
                *("run", "--workspace", "ws"), stdout=subprocess.DEVNULL, stderr=stderr
            )

    @property
    def printed(self) -> str:
        return self._printed.read_text()

    @property
    def rounds(self) -> dict[str, int]:
        return {case: len(numbers) for case, numbers in rounds(visits(self.workspace)).items()}

    def wait_for(self, moment: Moment) -> None:
        """Wait for a moment; the run has to reach it."""
        limit = time.monotonic() + 120
        while not moment():
            assert self.process.poll() is None, self.printed
            assert time.monotonic() < limit, self.printed
            time.sleep(0.002)

    def kill(self, number: signal.Signals) -> int:
        """Send a signal to this process alone; when all its workers are gone, how it ended."""
        assert workers(self.user, but=self.process.pid), "nobody works"
        os.kill(self.process.pid, number)
        code = self.process.wait(timeout=60)
        limit = time.monotonic() + 30
        while left := workers(self.user):
            assert time.monotonic() < limit, left
            time.sleep(0.01)
        return code


@pytest.fixture
def start(user) -> Iterator[Callable[[], Run]]:
    """Start a run; whatever comes of the test, it does not outlive it."""
    runs: list[Run] = []

    def _start() -> Run:
        runs.append(Run(user))
        return runs[-1]

    yield _start
    for run in runs:
        run.process.kill()
        run.process.wait(timeout=60)


def workers(user: User, but: int = 0) -> list[psutil.Process]:
    """Processes that run on behalf of a user, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            theirs = process.environ().get("NN_METER_HOME") == str(user.home)
        except psutil.Error:  # another's, gone, or a zombie that nobody has waited for yet
            continue
        if theirs and process.pid != but:
            found.append(process)
    return found


def workspace(user: User, runs: int, **keys: object) -> Path:
    user.succeed("create", "--onnxruntime-workspace", "ws")
    edit(user.folder / "ws", **keys)
    edit(user.folder / "ws", "backend_config.yaml", RUNS=runs, WARMUPS=1)
    return user.folder / "ws"


def assert_readable(place: Path) -> None:
    """All that was written is whole."""
    all_json_files(place)
    store = place / "fusion_rule_test" / "results" / "samples.db"
    if store.exists():
        with closing(sqlite3.connect(store)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def assert_ended_as_told(run: Run, number: signal.Signals, code: int) -> None:
    if number is signal.SIGKILL:
        assert code == -signal.SIGKILL
        return
    assert code == 130
    last = run.printed.splitlines()[-1]
    assert last == "nn-meter: interrupted; the same command goes on from here"
    assert "Traceback" not in run.printed
    assert "error" not in run.printed


@pytest.mark.parametrize("number", SIGNALS, ids=[number.name for number in SIGNALS])
def test_killed_inside_a_test_case_while_the_runtime_measures(user, start, number):
    place = workspace(
        user,
        RUNS,
        BASIC_TESTCASES=[name.removeprefix("BF_") for name in (FIRST, SECOND, THIRD)],
        OTHER_TESTCASES=[],
    )
    run = start()
    run.wait_for(lambda: run.rounds.get(SECOND, 0) >= 3)
    code = run.kill(number)

    assert_ended_as_told(run, number, code)
    assert_readable(place)
    before = visits(place)
    assert run.rounds[FIRST] == ROUNDS
    assert 3 <= run.rounds[SECOND] < ROUNDS, "the test case was over before the signal came"
    assert THIRD not in run.rounds
    if number is not signal.SIGKILL:  # there was time to write down what is finished
        profiled = results(place, "profiled_results.json")
        assert all(milliseconds(model["latency"]) > 0 for model in profiled[FIRST].values())
        assert not any("latency" in model for model in profiled[THIRD].values())

    again = user.succeed("run", "--workspace", "ws")

    assert "2 test cases measured, 1 kept from before" in again
    after = visits(place)
    assert after[: len(before)] == before
    numbers_before, numbers = rounds(before), rounds(after)
    assert {case: len(found) for case, found in numbers.items()} == dict.fromkeys(
        (FIRST, SECOND, THIRD), ROUNDS
    )
    assert numbers[FIRST] == numbers_before[FIRST]
    loads = {
        case: [load for load in dict.fromkeys(visit[2] for visit in after if visit[1] == case)]
        for case in numbers
    }
    assert [len(loads[case]) for case in (FIRST, SECOND, THIRD)] == [1, 2, 1]
    resumed = [visit for visit in after[len(before) :] if visit[1] == SECOND]
    assert {visit[2] for visit in resumed} == {loads[SECOND][1]}
    assert_every_latency_is_of_all_runs(place)
    assert_readable(place)
    assert list(results(place, "detected_fusion_rule.json")) == [FIRST, SECOND, THIRD]


def graphs(place: Path) -> list[tuple[object, ...]]:
    """The executed graphs that are known, in the order that they came."""
    store = place / "fusion_rule_test" / "results" / "samples.db"
    if not store.exists():
        return []
    with closing(sqlite3.connect(store)) as db:
        return db.execute("SELECT hash, data FROM graphs ORDER BY rowid").fetchall()


def assert_every_latency_is_of_all_runs(place: Path) -> None:
    found = visits(place)
    for case, models in results(place, "profiled_results.json").items():
        for name, model in models.items():
            ns = [
                value
                for _, testcase, _, _, visited, _, samples in found
                if (testcase, visited) == (case, name)
                for value in memoryview(samples).cast("q")
            ]
            assert len(ns) == RUNS
            mean_ms = sum(ns) / len(ns) / 1e6
            assert milliseconds(model["latency"]) == pytest.approx(mean_ms, abs=1e-6)


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("generate", signal.SIGKILL),
        ("generate", signal.SIGINT),
        ("convert", signal.SIGKILL),
        ("convert", signal.SIGTERM),
        ("graph", signal.SIGKILL),
        ("graph", signal.SIGINT),
        ("profile", signal.SIGKILL),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_killed_in_a_stage(user, start, stage, number):
    """So many test cases that each stage takes a while; the signal comes as it begins.

    dwconv_relu is among them, on which MON depends.
    """
    place = workspace(user, 10, **SMALL, BASIC_TESTCASES=default_testcases()[2::3])
    run = start()
    run.wait_for(lambda: f"(nn-Meter) {stage}: " in run.printed)
    code = run.kill(number)

    assert_ended_as_told(run, number, code)
    begun, total = run.printed.rpartition(f"{stage}: ")[2].split()[:3:2]
    assert int(begun) < int(total), "the stage was over before the signal came"
    assert_readable(place)
    before, graphs_before = visits(place), graphs(place)

    user.succeed("run", "--workspace", "ws")

    after, graphs_after = visits(place), graphs(place)
    assert after[: len(before)] == before
    assert graphs_after[: len(graphs_before)] == graphs_before
    assert len(graphs_before) < len(graphs_after) or stage == "profile"
    assert set(map(len, rounds(after).values())) == {ROUNDS}
    assert_readable(place)
    rules = results(place, "detected_fusion_rule.json")
    assert len(rules) > 45
    assert set(rules) == set(rounds(after)) == set(results(place, "origin_testcases.json"))
    assert {rule["evidence"] for rule in rules.values()} == {"graph"}
    assert {rule["verdict"] for rule in rules.values()} <= {
        *("fused", "separate", "free", "case1", "case2", "case3")
    }


def test_what_a_killed_run_left_half_written_is_cleared_away(user):
    """A model is written under a hidden name first; SIGKILL leaves that behind."""
    place = workspace(user, 10, **SMALL, BASIC_TESTCASES=["relu_relu"], OTHER_TESTCASES=[])
    models = place / "fusion_rule_test" / "models"
    (models / ".BF_relu_relu_block.123.new").mkdir(parents=True)
    (models / ".BF_relu_relu_block.123.new" / "saved_model.pb").touch()
    (models / ".BF_relu_relu_relu_1.onnx.01234567").touch()

    user.succeed("run", "--workspace", "ws")

    assert sorted(path.name for path in models.iterdir()) == [
        ".info",
        *(f"BF_relu_relu_{model}.onnx" for model in ("block", "relu_1", "relu_2")),
    ]


def test_a_worker_that_dies_costs_its_test_case(user, start):
    """As when a model crashes the runtime: the rest goes on, and the model can be tried again."""
    asked = {"BASIC_TESTCASES": ["conv_relu", "dwconv_relu"], "OTHER_TESTCASES": []}
    place = workspace(user, RUNS, **asked, EVIDENCE="formula")  # by its graph it would be decided
    run = start()
    run.wait_for(lambda: run.rounds.get(SECOND, 0) >= 3)
    guard, worker = sorted(
        workers(user, but=run.process.pid), key=lambda process: process.ppid() != run.process.pid
    )
    assert worker.ppid() == guard.pid
    worker.kill()
    assert run.process.wait(timeout=120) == 0, run.printed

    before = visits(place)
    assert 3 <= run.rounds[SECOND] < ROUNDS
    assert run.rounds[THIRD] == ROUNDS
    (line,) = (place / "fusion_rule_test/results/profile_error.log").read_text().splitlines()
    assert line.startswith(f"{SECOND}: ")
    assert ": crashed: onnxruntime_cpu" in line
    assert f"(nn-Meter) warning: {line}" in run.printed.splitlines()
    rules = results(place, "detected_fusion_rule.json")
    assert (rules[SECOND]["obey"], rules[SECOND]["verdict"]) == (None, "undecided")
    assert "crashed" in rules[SECOND]["reason"]
    assert type(rules[THIRD]["obey"]) is bool

    # What failed is not tried again and again, unless it is asked for.
    again = user.nn_meter("run", "--workspace", "ws")
    assert (again.code, visits(place)) == (0, before)
    user.succeed("run", "--workspace", "ws", "--retry-failed")
    after = visits(place)
    assert after[: len(before)] == before
    assert run.rounds == {SECOND: ROUNDS, THIRD: ROUNDS}
    assert_every_latency_is_of_all_runs(place)
    assert not (place / "fusion_rule_test/results/profile_error.log").exists()


def test_two_runs_do_not_write_into_one_workspace(user, start):
    workspace(user, RUNS, BASIC_TESTCASES=["conv_relu"], OTHER_TESTCASES=[])
    run = start()
    run.wait_for(lambda: run.rounds.get(SECOND, 0) >= 1)

    run.process.send_signal(signal.SIGSTOP)  # so that it holds the workspace for long enough
    line = user.fail(4, "run", "--workspace", "ws")
    run.process.send_signal(signal.SIGCONT)

    said = f"another run (process {run.process.pid}: nn-meter run --workspace ws)"
    assert f"{said} is using this workspace" in line
    assert run.process.wait(timeout=120) == 0
    assert run.rounds == {SECOND: ROUNDS}
