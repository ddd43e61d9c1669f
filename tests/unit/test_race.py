"""Races: loaded models timed in turn, on a machine whose clock and speed are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from fake_machine import FULL_NS, SECOND_NS, Machine

from nn_meter.builder.profiling import jobs, race
from nn_meter.builder.profiling.jobs import BackendJobs
from nn_meter.errors import ModelRejectedError

TIMES = {"a": 20_000, "b": 30_000, "c": 50_000}


class FakeSession:
    """Takes as long as it is told, by the machine's speed; or gives what it is told to."""

    def __init__(self, bench: Bench, key: str) -> None:
        self._bench, self._key = bench, key

    def time(self, n: int) -> object:
        self._bench.asked.append((self._key, n))
        if (gives := self._bench.gives.get(self._key)) is not None:
            return gives(n)
        machine = self._bench.machine
        found = [round(TIMES[self._key] * machine.speed(machine.now_ns)) for _ in range(n)]
        machine.now_ns += sum(found)
        return np.array(found, dtype=np.int64)

    def close(self) -> None:
        self._bench.closed.append(self._key)
        if self._key in self._bench.stuck:
            raise OSError("cannot be closed")


class Bench:
    """A backend with three models loaded, as a worker process has it."""

    def __init__(self, monkeypatch) -> None:
        self.machine = Machine()
        self.asked: list[tuple[str, int]] = []
        self.closed: list[str] = []
        self.gives = {}
        self.stuck = ()
        clock = SimpleNamespace(monotonic=lambda: self.machine.clock() / SECOND_NS)
        monkeypatch.setattr(race, "time", clock)
        monkeypatch.setattr(jobs, "SpeedGate", self.machine.gate)
        opens = SimpleNamespace(open=lambda converted, shapes: FakeSession(self, converted))
        self.jobs = BackendJobs(opens)
        for key in TIMES:
            self.jobs.open(key, key, [], check=False)

    def race(self, **changes):
        asked = {
            **{"keys": list(TIMES), "visits": 8, "least_s": 0.0, "runs": 4, "seed": 1},
            **{"most_s": 4.0, "gated": True},
        }
        start_ns = self.machine.now_ns
        answer = self.jobs.race(**asked | changes)
        self.took_s = (self.machine.now_ns - start_ns) / SECOND_NS
        return answer

    @property
    def order(self) -> list[str]:
        """The visits, in the order that they came in."""
        return [key for n, (key, _) in enumerate(self.asked) if not n % self.calls]

    calls = 5  # of a session in a visit: four runs, and one before them


@pytest.fixture
def bench(monkeypatch):
    return Bench(monkeypatch)


def numbers(answer) -> dict[str, int]:
    return {key: len(visits) for key, visits in answer["visits"].items()}


# --- what comes out ------------------------------------------------------------------------------


def test_every_model_gets_its_visits(bench):
    answer = bench.race()
    assert all(8 <= number <= 9 for number in numbers(answer).values())
    for key, visits in answer["visits"].items():
        assert {ns for visit in visits for ns in visit} == {TIMES[key]}
        assert {len(visit) for visit in visits} <= {1, 2, 3, 4}
    assert answer["failed"] == {}
    assert answer["level_ns"] == pytest.approx(FULL_NS, rel=0.03)
    assert answer["runs"] == len(bench.order) * 4
    found = [ns for visits in answer["visits"].values() for visit in visits for ns in visit]
    assert answer["counted"] == len(found)


def test_a_visit_is_a_run_that_does_not_count_and_those_that_do(bench):
    bench.race(gated=False, visits=1)
    assert [n for _, n in bench.asked] == [1, 4] * 3


def test_of_each_round_every_model_gets_one_visit_in_random_order(bench):
    bench.race(visits=50)
    rounds = [tuple(bench.order[i : i + 3]) for i in range(0, len(bench.order), 3)]
    assert all(set(found) == set(TIMES) for found in rounds)
    assert len(set(rounds)) == 6  # all that there are


def test_the_order_is_the_seeds(monkeypatch):
    def order(seed: int) -> list[str]:
        bench = Bench(monkeypatch)
        bench.race(seed=seed)
        return bench.order[:24]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_without_a_gate_all_runs_count(bench):
    bench.calls = 2
    bench.machine.speed = lambda now_ns: 1.0 if now_ns % 2_000_000 < 1_000_000 else 1.6
    answer = bench.race(gated=False, visits=20)
    assert numbers(answer) == {"a": 20, "b": 20, "c": 20}
    assert answer["level_ns"] == 0.0
    assert answer["runs"] == answer["counted"] == 3 * 20 * 4
    assert {round(1.6 * TIMES["a"]), TIMES["a"]} == {
        ns for visit in answer["visits"]["a"] for ns in visit
    }


def test_only_runs_at_full_speed_count(bench):
    bench.machine.speed = lambda now_ns: 1.0 if now_ns % 2_000_000 < 1_000_000 else 1.6
    answer = bench.race(visits=20)
    assert min(numbers(answer).values()) >= 20
    for key, visits in answer["visits"].items():
        assert {ns for visit in visits for ns in visit} == {TIMES[key]}
    assert answer["counted"] < 0.7 * answer["runs"]


def test_the_gate_is_set_once_for_all_races(bench):
    bench.race()
    assert bench.took_s > 0.15
    bench.race()
    assert bench.took_s < 0.02


# --- how long ------------------------------------------------------------------------------------


def test_it_takes_least_s_though_all_have_their_visits(bench):
    answer = bench.race(least_s=0.1, gated=False)
    assert 0.1 <= bench.took_s < 0.11
    assert min(numbers(answer).values()) > 100


@pytest.mark.parametrize("gated", [True, False])
def test_most_s_ends_it_with_what_there_is(bench, gated):
    answer = bench.race(visits=10**6, most_s=0.05, gated=gated)
    assert 0.05 <= bench.took_s < 0.05 + 0.001 + 0.155 * gated
    assert min(numbers(answer).values()) > 30


def test_most_s_is_kept_by_models_that_take_long(bench, monkeypatch):
    """No visit is begun behind it, in the middle of a round either."""
    for key in TIMES:
        monkeypatch.setitem(TIMES, key, 300_000_000)
    answer = bench.race(gated=False, most_s=1.0)
    assert bench.took_s < 1.0 + 5 * 0.3
    assert sum(numbers(answer).values()) == 1
    assert set(answer["visits"]) == set(TIMES)


def test_most_s_goes_before_least_s(bench):
    bench.race(gated=False, least_s=9.0, most_s=0.01)
    assert bench.took_s < 0.011


def test_a_machine_that_is_never_at_full_speed_gives_nothing_in_its_time(bench):
    bench.race()
    bench.machine.speed = lambda now_ns: 1.6
    answer = bench.race(most_s=0.5)
    assert numbers(answer) == dict.fromkeys(TIMES, 0)
    assert answer["counted"] == 0 < answer["runs"]
    assert 0.5 <= bench.took_s < 0.51


# --- a speed that changes ------------------------------------------------------------------------


def test_a_machine_slower_for_good_is_timed_at_its_new_speed_only(bench):
    slow_from_ns = bench.machine.now_ns + 150_000_000 + 3_000_000
    bench.machine.speed = lambda now_ns: 1.6 if now_ns > slow_from_ns else 1.0
    answer = bench.race(visits=20)
    assert bench.machine.now_ns > slow_from_ns
    assert bench.took_s < 1.6
    assert min(numbers(answer).values()) >= 20
    for key, visits in answer["visits"].items():
        assert {ns for visit in visits for ns in visit} == {round(1.6 * TIMES[key])}
    assert answer["level_ns"] == pytest.approx(1.6 * FULL_NS, rel=0.05)
    assert answer["counted"] == sum(
        len(visit) for visits in answer["visits"].values() for visit in visits
    )


def test_what_was_timed_by_a_wrong_calibration_is_forgotten(bench):
    fast_from_ns = bench.machine.now_ns + 150_000_000 + 3_000_000
    bench.machine.speed = lambda now_ns: 1.6 if now_ns < fast_from_ns else 1.0
    answer = bench.race(visits=20)
    assert min(numbers(answer).values()) >= 20
    for key, visits in answer["visits"].items():
        assert {ns for visit in visits for ns in visit} == {TIMES[key]}
    assert answer["level_ns"] == pytest.approx(FULL_NS, rel=0.05)


# --- models that fail ----------------------------------------------------------------------------


def test_a_session_that_raises_is_left_out_and_the_rest_goes_on(bench):
    calls = []

    def third_time_unlucky(n: int) -> list[int]:
        calls.append(n)
        if len(calls) > 12:
            raise ModelRejectedError("out of memory")
        return [20_000] * n

    bench.gives = {"b": third_time_unlucky}
    answer = bench.race()
    assert answer["failed"] == {
        "b": {"type": "ModelRejectedError", "message": "out of memory"},
    }
    assert set(answer["visits"]) == {"a", "c"}
    assert min(numbers(answer).values()) >= 8
    assert len(calls) == 13


def test_an_error_of_the_runtimes_own_is_told_in_its_words(bench):
    bench.gives = {"a": lambda n: [][0]}
    answer = bench.race()
    assert answer["failed"]["a"] == {"type": "", "message": "IndexError: list index out of range"}


def test_all_models_fail(bench):
    bench.gives = dict.fromkeys(TIMES, lambda n: 1 / 0)
    answer = bench.race(least_s=3.0)
    assert (answer["visits"], answer["counted"]) == ({}, 0)
    assert set(answer["failed"]) == set(TIMES)


NO_SAMPLES = {
    "zero": lambda n: [0] * n,
    "one zero": lambda n: [1000] * (n - 1) + [0],
    "negative": lambda n: [-5] * n,
    "too many": lambda n: [1000] * (n + 1),
    "too few": lambda n: [1000] * (n - 1),
    "nested": lambda n: [[1000]] * n,
    "one number": lambda n: 1000,
    "less than one ns": lambda n: np.array([0.5] * n),
}


@pytest.mark.parametrize("gives", NO_SAMPLES.values(), ids=NO_SAMPLES)
@pytest.mark.parametrize("gated", [True, False])
def test_what_cannot_be_samples_is_refused(bench, gives, gated):
    bench.gives = {"a": gives}
    answer = bench.race(gated=gated)
    error = answer["failed"]["a"]
    assert error["type"] == "BackendError"
    runs = 1 if gated else 4
    assert f"{runs} samples were asked for, but the backend gave " in error["message"]
    assert set(answer["visits"]) == {"b", "c"}


@pytest.mark.parametrize("gives", [lambda n: None, lambda n: ["fast"] * n])
def test_what_is_no_number_is_refused(bench, gives):
    bench.gives = {"a": gives}
    assert set(bench.race()["visits"]) == {"b", "c"}


# --- unloading -----------------------------------------------------------------------------------


def test_models_are_dropped_once(bench):
    bench.jobs.drop(["a", "c", "never loaded"])
    bench.jobs.drop(["a"])
    assert sorted(bench.closed) == ["a", "c"]
    assert set(bench.race(keys=["b"])["visits"]) == {"b"}


def test_one_that_cannot_be_closed_keeps_no_other_loaded(bench):
    bench.stuck = ("b",)
    with pytest.raises(OSError, match="cannot be closed"):
        bench.jobs.drop(list(TIMES))
    assert sorted(bench.closed) == ["a", "b", "c"]
    bench.jobs.close()
    assert len(bench.closed) == 3
