"""FixedPlan: as many runs as asked for, in a balanced order, from wherever the last call ended."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nn_meter.builder.profiling.plan import FixedPlan, Round

NAMES = "abcdefgh"
counts = st.integers(1, 8)
runs = st.integers(1, 200)
rounds = st.integers(1, 25)


def follow(plan: FixedPlan, samples: dict[str, list[np.ndarray]], at_most: int = 1000):
    """Measure what the plan asks for, into the samples; returns the rounds."""
    asked = []
    while len(asked) < at_most and (found := plan.next(samples)) is not None:
        asked.append(found)
        for name in found.models:
            samples[name].append(np.ones(found.runs, dtype=np.int64))
    return asked


def nothing_of(names: str) -> dict[str, list[np.ndarray]]:
    return {name: [] for name in names}


def total(samples: dict[str, list[np.ndarray]]) -> dict[str, int]:
    return {name: sum(map(len, visits)) for name, visits in samples.items()}


@given(n=counts, runs=runs, rounds=rounds)
def test_every_model_is_run_exactly_as_often_as_asked(n, runs, rounds):
    samples = nothing_of(NAMES[:n])
    asked = follow(FixedPlan(NAMES[:n], runs=runs, rounds=rounds), samples)
    assert total(samples) == dict.fromkeys(NAMES[:n], runs)
    assert len(asked) <= rounds
    assert all(sorted(each.models) == list(NAMES[:n]) for each in asked)
    assert max(each.runs for each in asked) - min(e.runs for e in asked[:-1] or asked) <= 0


@given(n=counts, runs=runs, rounds=rounds, data=st.data())
def test_it_goes_on_from_any_round_as_if_nothing_had_been(n, runs, rounds, data):
    names = NAMES[:n]
    whole = follow(FixedPlan(names, runs=runs, rounds=rounds), nothing_of(names))
    samples = nothing_of(names)
    done = data.draw(st.integers(0, len(whole)))
    first = follow(FixedPlan(names, runs=runs, rounds=rounds), samples, at_most=done)
    assert first + follow(FixedPlan(names, runs=runs, rounds=rounds), samples) == whole


@given(n=counts, before=runs, after=runs)
def test_more_runs_go_on_and_fewer_are_done(n, before, after):
    samples = nothing_of(NAMES[:n])
    follow(FixedPlan(NAMES[:n], runs=before), samples)
    asked = follow(FixedPlan(NAMES[:n], runs=after), samples)
    assert total(samples) == dict.fromkeys(NAMES[:n], max(before, after))
    assert bool(asked) == (after > before)


def test_the_guides_fifty_runs_are_ten_rounds_of_five():
    asked = follow(FixedPlan("ab", runs=50), nothing_of("ab"))
    assert [each.runs for each in asked] == [5] * 10
    assert asked[:2] == [Round(models=("a", "b"), runs=5), Round(models=("b", "a"), runs=5)]


@pytest.mark.parametrize("n", range(1, 8))
def test_each_model_has_each_place_equally_often(n):
    names = NAMES[:n]
    asked = follow(FixedPlan(names, runs=2 * n, rounds=2 * n), nothing_of(names))
    places = Counter((name, place) for each in asked for place, name in enumerate(each.models))
    assert set(places.values()) == {2}
    assert len(places) == n * n


@pytest.mark.parametrize("n", range(3, 8))
def test_no_model_always_comes_after_the_same_one(n):
    names = NAMES[:n]
    asked = follow(FixedPlan(names, runs=10, rounds=10), nothing_of(names))
    before = {name: set() for name in names}
    for each in asked:
        for earlier, later in zip(each.models, each.models[1:], strict=False):
            before[later].add(earlier)
    assert all(len(found) >= 2 for found in before.values())
