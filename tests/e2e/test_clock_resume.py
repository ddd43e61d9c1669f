"""A measurement by the clock that is killed, at any moment: no finished trial is lost.

ONNX Runtime measures for real. The process alone gets the signal; its workers have to notice that
it is gone. Then the same goes on, and what was settled is not measured again.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from driving import User, rounds, visits

SCRIPT = Path(__file__).with_name("measure_by_clock.py")
CHAINS = [
    *("conv_relu", "conv_bn", "conv_add", "dwconv_relu", "relu_relu", "maxpool_relu"),
    *("fc_relu", "relu_sigmoid", "add_relu", "conv_bn_relu"),
]
QUESTIONS = {
    *(f"clock:BF_{chain}:1" for chain in CHAINS),
    "clock:BF_conv_bn_relu:2",
}


class Measurement:
    """The script as it goes, and what it has left behind."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.workspace = user.folder / "ws"
        self._journal = user.folder / "journal.jsonl"
        self._process: subprocess.Popen[bytes] | None = None
        self._printed = user.folder / "stderr.txt"
        self._begun_at = 0

    def start(self) -> None:
        self._begun_at = len(self._lines())
        with self._printed.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, SCRIPT, self.workspace, self._journal, *CHAINS],
                cwd=self.user.folder,
                env=self.user.environment,
                stdin=subprocess.DEVNULL,
                stderr=stderr,
            )

    def wait_for(self, moment: Callable[[Measurement], bool]) -> None:
        limit = time.monotonic() + 120
        while not moment(self):
            assert self._process is not None
            assert self._process.poll() is None, self._printed.read_text()
            assert time.monotonic() < limit, self._printed.read_text()
            time.sleep(0.002)

    def kill(self) -> None:
        """Kill this process alone; its workers end by themselves."""
        assert self._process is not None
        self._process.kill()
        assert self._process.wait(timeout=60) == -signal.SIGKILL, "it was over already"
        limit = time.monotonic() + 30
        while left := self._workers():
            assert time.monotonic() < limit, left
            time.sleep(0.01)

    def end(self) -> None:
        assert self._process is not None
        assert self._process.wait(timeout=300) == 0, self._printed.read_text()

    def clean_up(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=60)

    @property
    def journal(self) -> list[dict[str, Any]]:
        """What the process that was started last has written."""
        return self._lines()[self._begun_at :]

    @property
    def trials(self) -> dict[str, int]:
        return {
            name: len(numbers)
            for name, numbers in rounds(visits(self.workspace, clock=True)).items()
        }

    def told(self) -> Counter[str]:
        """Trials that it was told of, by question."""
        return Counter(f"clock:{line['name']}" for line in self.journal if line["stage"] == "clock")

    def _lines(self) -> list[dict[str, Any]]:
        if not self._journal.exists():
            return []
        text = self._journal.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def _workers(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("NN_METER_HOME") == str(self.user.home):
                    found.append(process)
            except psutil.Error:  # another's, gone, or a zombie that nobody has waited for yet
                continue
        return found


@pytest.fixture
def measurement(user) -> Iterator[Measurement]:
    user.succeed("create", "--onnxruntime-workspace", "ws")
    found = Measurement(user)
    yield found
    found.clean_up()


def clocked(measurement: Measurement) -> int:
    return sum(measurement.told().values())


MOMENTS: dict[str, Callable[[Measurement], bool]] = {
    "as controls are built": lambda m: any(line["stage"] == "controls" for line in m.journal),
    "as references are measured": lambda m: bool(m.trials),
    "at the first trial": lambda m: clocked(m) >= 1,
    "in the first pass": lambda m: clocked(m) >= 5,
    "in the second pass": lambda m: clocked(m) >= 15,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_begun_again(measurement, moment):
    measurement.start()
    measurement.wait_for(MOMENTS[moment])
    measurement.kill()

    store = measurement.workspace / "fusion_rule_test" / "results" / "samples.db"
    with closing(sqlite3.connect(store)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    before, trials = visits(measurement.workspace, clock=True), measurement.trials
    for name, count in measurement.told().items():
        assert trials[name] >= count, "a trial was lost"
    assert_whole(before)

    measurement.start()
    measurement.end()

    begun, ended = measurement.journal[0], measurement.journal[-1]
    assert (begun["stage"], begun["refused"], set(begun["questions"])) == ("begun", {}, QUESTIONS)
    assert ended["stage"] == "ended"
    assert set(ended["settled"]) == QUESTIONS
    after = visits(measurement.workspace, clock=True)
    assert after[: len(before)] == before
    assert_whole(after)
    for name in begun["settled"]:
        assert measurement.trials[name] == trials[name], f"{name} was settled already"
    for name in set(QUESTIONS) - set(begun["settled"]):
        known = trials.get(name, 0)
        assert known < measurement.trials[name] <= known + measurement.told()[name]


def test_what_is_settled_stays_settled(measurement):
    measurement.start()
    measurement.end()
    ended, everything = measurement.journal[-1], measurement.trials
    measurement.start()
    measurement.end()

    assert set(measurement.journal[0]["settled"]) == set(ended["settled"])
    assert measurement.journal[-1]["verdicts"] == ended["verdicts"]
    assert measurement.trials == everything, "it was measured again"


def assert_whole(found: list[Any]) -> None:
    """Each round begins with the gate's sample, and has the visits of some models."""
    by_round: dict[int, list[Any]] = {}
    for visit in found:
        by_round.setdefault(visit[0], []).append(visit)
    for each in by_round.values():
        assert [position for _, _, _, position, *_ in each] == list(range(len(each)))
        assert each[0][4] == "gate"
        assert len({model for _, _, _, _, model, *_ in each}) > 3
