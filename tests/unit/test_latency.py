"""Latencies as values: written, read, added, compared, and refused."""

from __future__ import annotations

import copy
import math
import operator
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nn_meter.errors import ResultFileError
from nn_meter.latency import Latency, ProfiledResults

NUMBERS = st.floats(0, 1e9, allow_nan=False)
LATENCIES = st.builds(Latency, NUMBERS, NUMBERS)


# --- writing and reading -------------------------------------------------------------------------


@given(LATENCIES)
def test_a_latency_reads_back_as_it_was_written(latency):
    assert Latency(str(latency)) == latency
    assert Latency(latency) == latency
    assert hash(Latency(str(latency))) == hash(latency)


@given(LATENCIES)
def test_a_latency_survives_copying_and_processes(latency):
    assert pickle.loads(pickle.dumps(latency)) == latency
    assert copy.deepcopy(latency) == latency


@pytest.mark.parametrize(
    ("text", "avg", "std"),
    [
        ("41.781 +- 1.0", 41.781, 1.0),
        ("23.1404 +- 2.23606797749979", 23.1404, 2.23606797749979),
        ("41.781", 41.781, 0.0),
        (" 41.781+-1 ", 41.781, 1.0),
        ("1e-3 +- 5E-4", 1e-3, 5e-4),
        (".5 +- 1.", 0.5, 1.0),
        ("+2 +- +1", 2.0, 1.0),
        ("0 +- 0.0", 0.0, 0.0),
    ],
)
def test_strings_of_result_files_are_read(text, avg, std):
    latency = Latency(text)
    assert (latency.avg, latency.std) == (avg, std)


def test_it_is_written_as_the_guide_has_it():
    assert str(Latency(41.781, 1)) == "41.781 +- 1.0"
    assert repr(Latency(41.781, 1)) == "Latency(41.781, 1.0)"
    assert eval(repr(Latency(0.1, 0.2))) == Latency(0.1, 0.2)


def test_numbers_of_numpy_are_taken():
    latency = Latency(np.float32(0.5), np.float64(0.25))
    assert (latency.avg, latency.std) == (0.5, 0.25)
    assert type(latency.avg) is type(latency.std) is float
    assert Latency(np.int64(3)) == Latency(3)


def test_without_arguments_it_is_the_start_of_a_sum():
    assert Latency() == Latency(0.0, 0.0)


@pytest.mark.parametrize(
    "text",
    ["", "fast", "1,5 +- 0.1", "1 +- ", "+- 1", "1 +- 2 +- 3", "1 ± 2", "1 ms", "0x10", "1_000",
     "nan +- 1", "inf", "1 - 2", "1 2"],
)  # fmt: skip
def test_other_strings_are_refused_with_what_they_are(text):
    with pytest.raises(ResultFileError) as refusal:
        Latency(text)
    assert f'"{text}" is no latency' in str(refusal.value)


def test_a_long_string_is_cut_in_the_message():
    with pytest.raises(ResultFileError) as refusal:
        Latency("x" * 10_000)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
    "value", [None, True, False, [1.0], {"avg": 1.0}, (1, 2), np.ones(2), 1j, 10**400]
)
def test_other_things_are_refused(value):
    with pytest.raises(ResultFileError, match="is no latency"):
        Latency(value)
    with pytest.raises(ResultFileError, match="is no latency"):
        Latency(1.0, value)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1.0, -1e-12])
def test_what_no_clock_can_give_is_refused(number):
    with pytest.raises(ResultFileError, match="finite and not negative"):
        Latency(number)
    with pytest.raises(ResultFileError, match="finite and not negative"):
        Latency(1.0, number)


@pytest.mark.parametrize("text", ["-1 +- 1", "1 +- -1", "1e999", "1 +- 1e999"])
def test_what_no_clock_can_give_is_refused_in_strings(text):
    with pytest.raises(ResultFileError, match="finite and not negative"):
        Latency(text)


def test_a_latency_does_not_change():
    latency = Latency(1.0, 0.1)
    with pytest.raises(AttributeError, match="does not change"):
        latency.avg = 2.0
    with pytest.raises(AttributeError, match="does not change"):
        latency.other = 2.0
    assert latency == Latency(1.0, 0.1)


# --- arithmetic and order ------------------------------------------------------------------------


def test_a_sum_adds_averages_and_combines_deviations_as_in_the_guide():
    total = Latency("20.521 +- 1.0") + Latency("2.6194 +- 2.0")
    assert total.avg == pytest.approx(23.1404)
    assert total.std == pytest.approx(2.23606797749979)


@given(st.lists(LATENCIES, min_size=1, max_size=6))
def test_sum_works_on_latencies(latencies):
    total = sum(latencies)
    assert total.avg == pytest.approx(math.fsum(x.avg for x in latencies))
    assert total.std == pytest.approx(math.sqrt(math.fsum(x.std**2 for x in latencies)))


@given(LATENCIES, LATENCIES)
def test_addition_does_not_care_for_order(one, other):
    assert one + other == other + one


def test_a_plain_number_adds_to_the_average():
    assert 1.5 + Latency(2.0, 0.5) == Latency(2.0, 0.5) + 1.5 == Latency(3.5, 0.5)


@pytest.mark.parametrize("other", ["1", None, True, [1]])
def test_nothing_else_can_be_added(other):
    with pytest.raises(TypeError):
        Latency(1.0) + other


@given(LATENCIES, LATENCIES)
def test_the_order_is_that_of_the_averages(one, other):
    assert (one < other) == (one.avg < other.avg)
    assert (one <= other) == (one.avg <= other.avg)
    assert (one > other) == (one.avg > other.avg)
    assert (one >= other) == (one.avg >= other.avg)


def test_it_has_no_order_with_anything_else():
    for compare in (operator.lt, operator.le, operator.gt, operator.ge):
        with pytest.raises(TypeError):
            compare(Latency(1.0), 2.0)


def test_equality_is_that_of_both_numbers_and_of_the_type():
    assert Latency(1.0, 0.1) != Latency(1.0, 0.2)
    assert Latency(1.0) != 1.0
    assert Latency(1.0) != "1.0 +- 0.0"
    assert len({Latency(1.0, 0.1), Latency("1.0 +- 0.1"), Latency(1.0)}) == 2


# --- profiled results ----------------------------------------------------------------------------


@pytest.fixture
def results():
    return ProfiledResults({"latency": Latency(1.2, 0.1), "power": 3.0, "peak": 7})


def test_results_are_a_mapping(results):
    assert dict(results) == {"latency": Latency(1.2, 0.1), "power": 3.0, "peak": 7}
    assert results["power"] == 3.0
    assert "energy" not in results
    with pytest.raises(KeyError):
        results["energy"]
    assert dict(ProfiledResults()) == {}


def test_get_gives_a_value_for_a_name_and_results_for_names(results):
    assert results.get("latency") == Latency(1.2, 0.1)
    assert results.get("energy") is None
    assert results.get("energy", 0) == 0
    some = results.get(["peak", "latency"])
    assert isinstance(some, ProfiledResults)
    assert list(some) == ["peak", "latency"]


def test_a_metric_that_was_not_profiled_is_named(results):
    with pytest.raises(ResultFileError, match=r"'energy' was not.*latency, power, peak"):
        results.get(["latency", "energy"])
    with pytest.raises(ResultFileError, match="profiled: none"):
        ProfiledResults().select(["energy"])


def test_results_do_not_share_the_dict_that_they_were_made_from():
    given_ = {"latency": Latency(1.0)}
    results = ProfiledResults(given_)
    given_["latency"] = Latency(2.0)
    assert results["latency"] == Latency(1.0)
    assert "Latency(1.0, 0.0)" in repr(results)


def test_the_module_needs_neither_numpy_nor_a_framework():
    code = "import sys, nn_meter.latency; print('numpy' in sys.modules, 'yaml' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
