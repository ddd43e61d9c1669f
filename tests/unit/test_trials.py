"""Trials: models loaded afresh and timed in turn; what comes of each is stored, whole or not."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import closing, contextmanager, nullcontext
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import psutil
import pytest

from nn_meter.builder.backends.base import Environment
from nn_meter.builder.profiling.measure import Model
from nn_meter.builder.profiling.process import Worker
from nn_meter.builder.profiling.store import Failure, Store
from nn_meter.builder.profiling.trials import Trial, TrialRunner
from nn_meter.errors import (
    BackendError,
    ModelRejectedError,
    ResultFileError,
    TimeLimitError,
    WorkerCrashedError,
)

HANDLER = "worker_handlers:SlowBackend"


class FakeProcess:
    """What a worker process does, and how it ends. A model is known by its hash."""

    def __init__(self, connection: FakeConnection) -> None:
        self._connection = connection
        self.running = False
        self.loaded: list[str] = []
        self.starts = 0

    def call(self, op, timeout_s=None, **arguments):
        if not self.running:
            self.running, self.loaded = True, []
            self.starts += 1
        key = arguments.get("key", op)
        self._connection.calls.append((op, arguments.get("keys", key)))
        self._connection.limits.append((op, timeout_s))
        fault = self._connection.faults.get(key)
        if callable(fault):
            fault = fault()
        if fault is not None:
            if isinstance(fault, WorkerCrashedError | TimeLimitError):
                self.running, self.loaded = False, []
            raise fault
        return getattr(self, op)(**arguments)

    def open(self, key, converted, shapes, check):
        assert (converted, check) == (f"/converted/{key}", False)
        assert key not in self.loaded, "loaded twice"
        self.loaded.append(key)

    def race(self, keys, **asked):
        assert set(keys) <= set(self.loaded)
        self._connection.races.append({"keys": keys, **asked})
        failing = self._connection.failing
        failed = {key: failing[key] for key in keys if key in failing}
        visits = {key: [[1000 + n] * 2 for n in range(3)] for key in keys if key not in failed}
        return {
            **{"visits": visits, "failed": failed, "level_ns": 2000.4},
            **{"runs": 9 * len(keys), "counted": 6 * len(visits)},
        }

    def drop(self, keys):
        for key in keys:
            self.loaded.remove(key)


class FakeConnection:
    """A connection to that."""

    def __init__(self, cores: int = 1) -> None:
        self.cores, self.gated = cores, True
        self.in_turn = self.averages = False
        self.faults: dict[str, object] = {}
        self.failing: dict[str, dict[str, str]] = {}
        self.calls: list[tuple[str, object]] = []
        self.limits: list[tuple[str, float]] = []
        self.races: list[dict[str, object]] = []
        self.measuring = FakeProcess(self)

    def another(self):
        return nullcontext(FakeProcess(self))


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "samples.db") as store:
        yield store


@pytest.fixture
def campaign(store) -> int:
    return store.campaign(store.environment("fake", Environment(runtime="fake", version="1")))


@pytest.fixture
def connection():
    return FakeConnection()


def model(key: str) -> Model:
    return Model(name=key, path=Path(key), hash=key, shapes=[[4]], converted=f"/converted/{key}")


def trial(name: str, **models: str) -> Trial:
    """A trial of models by part: ``head="conv"``."""
    return Trial(
        name=name,
        models={part: model(key) for part, key in models.items()},
        digests={part: f"digest of {key}" for part, key in models.items()},
        notes={"asked": "why"},
    )


@contextmanager
def runner(connection, store, campaign, **changes):
    asked = {"visits": 3, "runs": 2, "share": 0.5, "most_s": 4.0, "time_limit_s": 60.0}
    with TrialRunner(connection, store, campaign, **asked | changes) as found:
        yield found


@pytest.fixture
def run(connection, store, campaign):
    """Run groups of trials; gives what was taken, by name."""

    def _run(groups, goes_on=lambda: True, **changes):
        taken = []
        with runner(connection, store, campaign, **changes) as trials:
            trials.run(groups, take=lambda *found: taken.append(found), goes_on=goes_on)
        return {each.name: loaded for each, loaded in taken}

    return _run


def stored(store, campaign, names="") -> dict[str, int]:
    return {name: len(rounds) for name, rounds in store.trials(campaign, names).items()}


# --- what is loaded when -------------------------------------------------------------------------


def test_a_trial_is_loaded_timed_stored_and_told_of(run, connection, store, campaign):
    taken = run([[trial("one", head="conv", block="conv_relu")]])
    loaded = taken["one"]
    assert [op for op, _ in connection.calls] == ["open", "open", "race", "drop"]
    assert set(loaded.visits) == {"head", "block"}
    assert loaded.visits["head"][2].tolist() == [1002, 1002]
    assert loaded.visits["head"][2].dtype == np.int64
    assert (loaded.level_ns, loaded.runs, loaded.counted) == (2000, 18, 12)
    assert loaded.runtime_s == pytest.approx(2 * 2 * (1000 + 1001 + 1002) * 1e-9)
    assert loaded.failures == {}
    (found,) = store.trials(campaign, "one")["one"]
    assert (found.level_ns, found.notes) == (2000, {"asked": "why"})
    assert [(part, digest, ns.tolist()) for part, digest, ns in found.visits] == [
        *[("head", "digest of conv", [1000 + n] * 2) for n in range(3)],
        *[("block", "digest of conv_relu", [1000 + n] * 2) for n in range(3)],
    ]


def test_what_a_race_is_asked_for(run, connection):
    run([[trial("one", head="a"), trial("two", head="a")], [trial("three", head="a")]])
    for asked in connection.races:
        assert (asked["visits"], asked["runs"], asked["most_s"]) == (3, 2, 4.0)
        assert asked["gated"] is True
        assert asked["least_s"] >= 0
    assert len({asked["seed"] for asked in connection.races}) == 3
    assert set(connection.limits) == {("open", 60.0), ("race", 64.0), ("drop", 60.0)}


def test_timing_takes_a_share_of_what_loading_took(run, connection):
    connection.faults["slow"] = lambda: time.sleep(0.2)
    start = time.monotonic()
    run([[trial("one", head="slow")]], share=3.0)
    wall_s = time.monotonic() - start
    assert 3.0 * 0.2 <= connection.races[0]["least_s"] < 3.0 * wall_s


def test_trials_of_a_group_share_their_models(run, connection):
    group = [
        trial("conv_relu", head="conv", block="conv_relu", control="conv_tanh"),
        trial("conv_tanh", head="conv", block="conv_tanh", control="conv_tanh"),
        trial("conv_add", head="conv", block="conv_add"),
    ]
    run([group])
    opened = [key for op, key in connection.calls if op == "open"]
    assert opened == ["conv", "conv_relu", "conv_tanh", "conv_add"]
    assert [asked["keys"] for asked in connection.races] == [
        ["conv", "conv_relu", "conv_tanh"],
        ["conv", "conv_tanh"],  # two parts are one model: it is timed once
        ["conv", "conv_add"],
    ]
    assert connection.measuring.loaded == []


def test_what_is_not_needed_any_more_is_dropped_at_once(run, connection):
    run([[trial("one", a="x", b="y"), trial("two", a="x", b="z"), trial("three", a="w")]])
    assert connection.calls == [
        ("open", "x"),
        ("open", "y"),
        ("race", ["x", "y"]),
        ("drop", ["y"]),
        ("open", "z"),
        ("race", ["x", "z"]),
        ("drop", ["x", "z"]),
        ("open", "w"),
        ("race", ["w"]),
        ("drop", ["w"]),
    ]


def test_each_group_loads_its_models_anew(run, connection, store, campaign):
    run([[trial("one", head="conv")]] * 3)
    assert connection.calls.count(("open", "conv")) == 3
    assert stored(store, campaign) == {"one": 3}


def test_as_many_groups_at_a_time_as_there_are_cores(store, campaign):
    connection = FakeConnection(cores=3)
    barrier = threading.Barrier(3)

    def meet():
        barrier.wait(timeout=10)  # breaks unless three are under way

    connection.faults["a"] = meet
    with runner(connection, store, campaign) as trials:
        trials.run(
            [[trial(f"{n}", head="a")] for n in range(9)],
            take=lambda *found: None,
            goes_on=lambda: True,
        )
    assert len(stored(store, campaign)) == 9


# --- models that fail ----------------------------------------------------------------------------


def test_a_model_that_cannot_be_opened_costs_its_part(run, connection, store, campaign):
    connection.faults["bad"] = ModelRejectedError("no kernel")
    taken = run([[trial("one", head="a", block="bad", control="c")]])
    loaded = taken["one"]
    assert loaded.failures == {"block": Failure(kind="refused", reason="no kernel")}
    assert set(loaded.visits) == {"head", "control"}
    assert store.failures(campaign, "one", {"block": "digest of bad"}) == loaded.failures
    assert connection.measuring.loaded == []


def test_a_trial_of_which_no_model_can_be_opened(run, connection, store, campaign):
    connection.faults["bad"] = ModelRejectedError("no kernel")
    taken = run([[trial("one", head="bad"), trial("two", head="a")]])
    assert (taken["one"].visits, taken["one"].runs) == ({}, 0)
    assert connection.races[0]["keys"] == ["a"]
    assert stored(store, campaign) == {"two": 1}


def test_a_model_that_cannot_be_run_costs_its_part(run, connection, store, campaign):
    connection.failing["bad"] = {"type": "BackendError", "message": "4 samples were asked for"}
    taken = run([[trial("one", head="a", block="bad"), trial("two", head="bad", block="b")]])
    failure = Failure(kind="failed", reason="4 samples were asked for")
    assert taken["one"].failures == {"block": failure}
    assert taken["two"].failures == {"head": failure}
    assert set(taken["one"].visits) == {"head"}
    assert stored(store, campaign) == {"one": 1, "two": 1}
    assert connection.calls.count(("open", "bad")) == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (WorkerCrashedError("ended by SIGSEGV"), "crashed"),
        (TimeLimitError("took longer"), "time limit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
class TestWhatEndsTheProcess:
    def test_as_a_model_is_opened(self, run, connection, store, campaign, error, kind):
        connection.faults["bad"] = error
        group = [
            trial("one", head="a", block="b"),
            trial("two", head="a", block="bad", control="c"),
            trial("three", head="a", block="d"),
        ]
        taken = run([group])
        failure = Failure(kind=kind, reason=str(error))
        assert taken["two"].failures == {"block": failure}
        assert taken["two"].visits == {}
        assert store.failures(campaign, "two", {"block": "digest of bad"}) == {"block": failure}
        assert set(taken["three"].visits) == {"head", "block"}
        assert stored(store, campaign) == {"one": 1, "three": 1}
        assert connection.calls.count(("open", "a")) == 2  # once before, once behind it
        assert connection.measuring.starts == 2

    def test_as_they_are_timed(self, run, connection, store, campaign, error, kind):
        faults = iter([None, error])
        connection.faults["race"] = lambda: next(faults, None)
        group = [trial(f"{n}", head="a", block=f"b{n}") for n in range(3)]
        taken = run([group])
        failure = Failure(kind=kind, reason=str(error))
        assert (taken["1"].failures, taken["1"].visits) == ({}, {})
        assert taken["1"].lost == {"head": failure, "block": failure}
        assert stored(store, campaign) == {"0": 1, "2": 1}
        assert connection.calls.count(("open", "a")) == 2

    def test_as_models_are_dropped(self, run, connection, store, campaign, error, kind):
        connection.faults["drop"] = error
        run([[trial("one", head="a")], [trial("two", head="a")]])
        assert stored(store, campaign) == {"one": 1, "two": 1}
        assert kind in ("crashed", "time limit")


def test_a_race_that_fails_leaves_the_process_as_it_is(run, connection, store, campaign):
    """Its models are still loaded: another time they need not be, and then they are dropped."""
    faults = iter([BackendError("odd")])
    connection.faults["race"] = lambda: next(faults, None)
    taken = run([[trial("one", head="a"), trial("two", head="a", block="b")]])
    assert taken["one"].lost == {"head": Failure(kind="failed", reason="odd")}
    assert set(taken["two"].visits) == {"head", "block"}
    assert connection.calls.count(("open", "a")) == 1
    assert connection.measuring.loaded == []


# --- how it ends ---------------------------------------------------------------------------------


def test_no_further_trial_is_begun_when_it_does_not_go_on(run, connection, store, campaign):
    answers = chain([True] * 3, repeat(False))
    groups = [[trial(f"{n}a", head="a"), trial(f"{n}b", head="a")] for n in range(4)]
    taken = run(groups, goes_on=lambda: next(answers))
    assert list(taken) == ["0a", "0b", "1a"]
    assert list(stored(store, campaign)) == ["0a", "0b", "1a"]


def test_nothing_to_do(run, connection):
    assert run([]) == {}
    assert run([[trial("one", head="a")]], goes_on=lambda: False) == {}
    assert connection.calls == []


@pytest.mark.parametrize("cores", [1, 2])
def test_ctrl_c_ends_it_and_what_is_finished_is_stored(store, campaign, cores):
    connection = FakeConnection(cores)
    reached = threading.Event()

    def interrupted():
        reached.wait(10)  # another trial is under way
        raise KeyboardInterrupt

    def block():
        reached.set()
        time.sleep(0.3)

    connection.faults["slow"] = block
    group = [trial("one", head="a"), trial("two", head="slow"), trial("three", head="a")]
    threads = threading.active_count()
    with (
        pytest.raises(KeyboardInterrupt),
        runner(connection, store, campaign) as trials,
    ):
        trials.run([group] * 4, take=lambda *found: interrupted(), goes_on=lambda: True)
    assert threading.active_count() == threads
    found = stored(store, campaign)
    assert found["one"] >= 1
    assert "three" not in found
    for name in found:
        for each in store.trials(campaign, name)[name]:
            assert [part for part, _, _ in each.visits] == ["head"] * 3
    assert store.failures(campaign, "two", {"head": "digest of slow"}) == {}


def test_an_error_of_whoever_is_told_ends_it(connection, store, campaign):
    def take(*found):
        raise ZeroDivisionError

    with (
        pytest.raises(ZeroDivisionError),
        runner(connection, store, campaign) as trials,
    ):
        trials.run([[trial("one", head="a")]] * 3, take=take, goes_on=lambda: True)
    assert stored(store, campaign)["one"] >= 1


def test_a_store_that_cannot_be_written_ends_it(connection, store, campaign, monkeypatch):
    def full(*arguments):
        raise ResultFileError("the disk is full")

    monkeypatch.setattr(store, "add_round", full)
    with (
        pytest.raises(ResultFileError, match="the disk is full"),
        runner(connection, store, campaign) as trials,
    ):
        trials.run([[trial("one", head="a")]], take=lambda *found: None, goes_on=lambda: True)


def test_an_error_of_our_own_is_not_swallowed(connection, store, campaign):
    connection.faults["race"] = KeyError("visits")
    with (
        pytest.raises(KeyError, match="visits"),
        runner(connection, store, campaign) as trials,
    ):
        trials.run([[trial("one", head="a")]], take=lambda *found: None, goes_on=lambda: True)


class RealConnection(FakeConnection):
    """A connection to real processes, in which a race takes a minute."""

    def __init__(self, cores: int) -> None:
        super().__init__(cores)
        self.measuring = Worker(HANDLER)

    def another(self):
        return Worker(HANDLER)


def test_ctrl_c_does_not_wait_for_a_race_and_leaves_no_process(
    store, campaign, tmp_path, monkeypatch
):
    places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))
    connection = RealConnection(cores=2)
    slow = Model(name="a", path=tmp_path, hash="a", shapes=[], converted=str(tmp_path / "racing"))
    group = [
        Trial(name=name, models={"head": slow}, digests={"head": "digest of a"})
        for name in ("quick", "slow", "never")
    ]

    def take_and_interrupt(each, loaded):
        assert (each.name, loaded.failures) == ("quick", {})
        limit = time.monotonic() + 60
        while len(list(tmp_path.glob("racing*"))) < 2:
            assert time.monotonic() < limit, "they never came to it"
            time.sleep(0.01)
        raise KeyboardInterrupt

    before = set(psutil.Process().children(recursive=True))
    with connection.measuring, runner(connection, store, campaign) as trials:
        start_s = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            trials.run([group, group], take=take_and_interrupt, goes_on=lambda: True)
    assert time.monotonic() - start_s < 30
    assert set(psutil.Process().children(recursive=True)) <= before
    assert stored(store, campaign) == {"quick": 2}
    for name in ("slow", "never"):
        assert store.failures(campaign, name, {"head": "digest of a"}) == {}


# --- the store -----------------------------------------------------------------------------------

NAMES = [
    "clock:BF_conv:1",
    "clock:BF_conv_relu:1",
    "clock:BF_conv_relu:2",
    "clock:BF_convXrelu:1",
    "clock:BF%relu:1",
    "clock:BF_ä\U0001f600:1",
    "clockwork",
    "CLOCK:BF_conv:1",
]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("clock:", NAMES[:6]),
        ("clock:BF_conv_relu:", NAMES[1:3]),
        ("clock:BF_conv", NAMES[:4]),
        ("clock:BF_conv:", NAMES[:1]),
        ("clock:BF_conv_", NAMES[1:3]),
        ("clock:BF%", NAMES[4:5]),
        ("clock:BF_ä", NAMES[5:6]),
        ("%", []),
        ("clock:BF_conv_relu:3", []),
        ("", NAMES),
    ],
)
def test_trials_are_found_by_what_their_names_begin_with(run, store, campaign, prefix, expected):
    run([[trial(name, head="a", block="b") for name in NAMES]])
    found = store.trials(campaign, prefix)
    assert sorted(found) == sorted(expected)
    for rounds in found.values():
        assert [[part for part, _, _ in each.visits] for each in rounds] == [
            [*["head"] * 3, *["block"] * 3]
        ]


def test_trials_come_oldest_first_and_of_their_campaign_only(run, store, campaign):
    run([[trial("one", head="a")]])
    run([[trial("one", head="b")]])
    found = [each.visits[0][1] for each in store.trials(campaign, "one")["one"]]
    assert found == ["digest of a", "digest of b"]
    store.retire(campaign, ["one"])
    assert store.trials(campaign, "") == {}
    run([[trial("one", head="c")]])
    assert [each.visits[0][1] for each in store.trials(campaign, "one")["one"]] == ["digest of c"]
    with closing(sqlite3.connect(store._path)) as db:
        assert db.execute("SELECT count(*) FROM rounds").fetchone() == (3,)


def test_a_test_cases_rounds_and_trials_do_not_mix(run, store, campaign):
    run([[trial("clock:BF_conv_relu:1", head="a")]])
    store.add_round(
        store.load(campaign), "BF_conv_relu", [("conv", "digest", np.array([5], dtype=np.int64))]
    )
    store.add_round(store.load(campaign), "clock:metrics", [("conv", "digest", {"latency": "1"})])
    assert list(store.trials(campaign, "clock:")) == ["clock:BF_conv_relu:1"]
    assert store.samples(campaign, "BF_conv_relu", {"conv": "digest"})["conv"][0].tolist() == [5]
