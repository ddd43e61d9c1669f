"""Models timed each behind a run of a larger one, on a machine whose speed is known."""

from __future__ import annotations

import numpy as np
import pytest
from fake_machine import SECOND_NS, Machine

from nn_meter.builder.profiling import behind
from nn_meter.builder.profiling.behind import Behind

TIMES = {"whole": 900_000, "a": 20_000, "b": 30_000}


class Loaded:
    """Takes as long as it is told, by the machine's speed, and more if it ran last itself."""

    def __init__(self, machine, asked, key, error=None):
        self.machine, self.asked, self.key, self.error = machine, asked, key, error

    def time(self, n):
        assert n == 1
        self.asked.append(self.key)
        if self.error is not None:
            raise self.error
        ns = round(TIMES[self.key] * self.machine.speed(self.machine.now_ns))
        self.machine.now_ns += ns
        return np.array([ns], dtype=np.int64)


@pytest.fixture
def machine(monkeypatch):
    found = Machine()
    monkeypatch.setattr(behind.time, "monotonic", lambda: found.clock() / SECOND_NS)
    return found


def timed(machine, *, gated=True, visits=5, most_s=10.0, errors=None):
    asked = []
    sessions = {
        key: Loaded(machine, asked, key, (errors or {}).get(key)) for key in TIMES if key != "whole"
    }
    found = Behind(
        Loaded(machine, asked, "whole"), sessions, seed=1, gate=machine.gate() if gated else None
    )
    found.run(visits=visits, most_s=most_s)
    return found, asked


@pytest.mark.parametrize("gated", [True, False])
def test_each_run_comes_right_behind_the_large_model(machine, gated):
    found, asked = timed(machine, gated=gated)
    assert set(asked[::2]) == {"whole"}
    assert sorted(set(asked[1::2])) == ["a", "b"]
    assert all(len(runs) >= 5 for runs in found.runs.values())
    assert {key: set(runs) for key, runs in found.runs.items()} == {"a": {20_000}, "b": {30_000}}
    assert set(found.ahead) == {900_000}


def test_runs_while_the_processor_is_slow_do_not_count(machine):
    begun_ns = machine.now_ns

    def speed(now_ns):
        return 1.7 if (now_ns - begun_ns) / SECOND_NS % 0.1 > 0.06 else 1.0

    machine.speed = speed
    found, asked = timed(machine, visits=300)
    assert len(found.runs["a"]) >= 300
    assert set(found.runs["a"]) == {20_000}
    assert set(found.ahead) == {900_000}
    assert asked.count("a") > 1.3 * len(found.runs["a"])


def test_a_model_that_cannot_be_run_costs_the_others_nothing(machine):
    found, asked = timed(machine, errors={"a": RuntimeError("no kernel")})
    assert found.failed["a"]["message"] == "RuntimeError: no kernel"
    assert asked.count("a") == 1
    assert list(found.runs) == ["b"]
    assert len(found.runs["b"]) >= 5


def test_it_ends_when_the_time_is_up(machine):
    found, _ = timed(machine, visits=10**6, most_s=0.1)
    assert 50 < len(found.runs["a"]) < 60
