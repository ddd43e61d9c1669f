"""How a model is checked against the one that it came from: what passes, and what does not."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nn_meter.reference import compare_outputs, reference_inputs, sample_outputs, tolerance_of

SHAPES = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=3), min_size=1, max_size=3)


def check(found, expected):
    return compare_outputs(sample_outputs(found), sample_outputs(expected))


def numbers(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * scale


# --- inputs --------------------------------------------------------------------------------------


@given(SHAPES)
def test_inputs_have_a_batch_of_one_and_are_spread_over_their_range(shapes):
    feeds = reference_inputs(shapes)
    assert [feed.shape for feed in feeds] == [(1, *shape) for shape in shapes]
    for feed in feeds:
        assert feed.dtype == np.float32
        assert np.abs(feed).max() <= 2.0


def test_many_inputs_fill_the_range_evenly():
    (feed,) = reference_inputs([[64, 64, 16]])
    counts, _ = np.histogram(feed, bins=16, range=(-2, 2))
    assert counts.min() > 0.95 * feed.size / 16
    assert counts.max() < 1.05 * feed.size / 16


def test_no_two_inputs_are_alike():
    first, second, third = reference_inputs([[10]] * 3)
    for one, other in ((first, second), (second, third), (first, third)):
        assert np.abs(one - other).min() > 1e-3


def test_inputs_are_the_same_in_every_process():
    code = (
        "from nn_meter.reference import reference_inputs as r;"
        "print(r([[3, 4], [5]])[0].tobytes().hex(), r([[3, 4], [5]])[1].tobytes().hex())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == [
        feed.tobytes().hex() for feed in reference_inputs([[3, 4], [5]])
    ]


def test_an_input_depends_on_its_place_and_its_size_only():
    long, short = reference_inputs([[3, 4]]), reference_inputs([[12]])
    np.testing.assert_array_equal(long[0].ravel(), short[0].ravel())


# --- what passes ---------------------------------------------------------------------------------


@given(SHAPES)
def test_equal_outputs_agree(shapes):
    outputs = reference_inputs(shapes)
    assert check(outputs, outputs) is None


def test_outputs_in_another_order_agree():
    outputs = [numbers(1, 9, seed=1), numbers(1, 9, seed=2), numbers(1, 3, 3, seed=3)]
    assert check([outputs[2], outputs[1], outputs[0]], outputs) is None


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_a_small_error_is_accepted_whatever_the_scale(scale):
    output = numbers(1, 500, scale=scale)
    noise = numbers(1, 500, seed=1)
    noise *= 0.0009 * np.abs(output).max() / np.abs(noise).max()
    assert check([output + noise], [output]) is None


def test_the_number_type_does_not_matter():
    output = numbers(1, 50)
    assert check([output.astype(np.float64)], [output]) is None


def test_outputs_of_zeros_agree():
    assert check([np.zeros((1, 5))], [np.zeros((1, 5))]) is None


def test_a_sample_survives_json():
    sample = sample_outputs([numbers(1, 4, 30, 30)])
    assert json.loads(json.dumps(sample)) == sample
    assert compare_outputs(json.loads(json.dumps(sample)), sample) is None


def test_a_sample_is_small_and_from_all_over_the_output():
    output = np.arange(100_000.0).reshape(1, 100, 1000)
    (sample,) = sample_outputs([output])
    assert sample["shape"] == [1, 100, 1000]
    assert sample["scale"] == 99_999.0
    assert 60 <= len(sample["values"]) <= 64
    assert np.diff([0.0, *sample["values"], 100_000.0]).max() < 10_000


# --- what does not -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [[7], [4, 9, 9]])
def test_swapped_inputs_are_noticed(shape):
    first, second = reference_inputs([shape, shape])
    assert "differs" in check([second - first], [first - second])
    assert "differs" in check([np.concatenate([second, first])], [np.concatenate([first, second])])


def test_wrong_values_are_refused_with_how_wrong_and_where():
    outputs = [numbers(1, 9), numbers(1, 4, seed=1)]
    wrong = [outputs[0], outputs[1] + np.float32(0.01) * np.abs(outputs[1]).max()]
    assert check(wrong, outputs) == ("output 2 differs by 1.0e-02 of its scale (allowed: 1e-03)")


def test_one_wrong_value_in_a_small_output_is_refused():
    output = numbers(1, 64)
    wrong = output.copy()
    wrong[0, 40] += 1.0
    assert "output 1 differs" in check([wrong], [output])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stands_for_the_same_only(value):
    output = numbers(1, 20)
    broken = output.copy()
    broken[0, 7] = value
    elsewhere = output.copy()
    elsewhere[0, 8] = value
    other = output.copy()
    other[0, 7] = np.inf if np.isnan(value) else -value
    assert check([broken], [broken]) is None
    for one, another in ((broken, output), (broken, elsewhere), (broken, other)):
        assert "differs by inf" in check([one], [another])
        assert "differs by inf" in check([another], [one])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e3])
def test_what_the_sample_does_not_hold_shows_in_the_scale(value):
    output = numbers(1, 5000)
    for place in range(0, 5000, 250):
        broken = output.copy()
        broken[0, place] = value
        assert "differs" in check([broken], [output])


def test_outputs_of_zeros_do_not_stand_in_for_others():
    output = numbers(1, 20)
    assert "differs by 1.0e+00" in check([np.zeros_like(output)], [output])
    assert check([output], [np.zeros_like(output)]) is not None


def test_another_shape_is_refused_with_both():
    found = check([numbers(1, 4, 5)], [numbers(1, 20)])
    assert found == "output 1 should have the shape [1, 20]; there is [1, 4, 5]"


def test_an_output_too_few_or_too_many_is_refused():
    outputs = [numbers(1, 5), numbers(1, 6)]
    assert check(outputs[:1], outputs) == "it has 1 outputs instead of 2"
    assert check(outputs, outputs[:1]) == "it has 2 outputs instead of 1"


def test_one_output_does_not_stand_in_for_two():
    one, other = numbers(1, 9, seed=1), numbers(1, 9, seed=2)
    assert check([one, one], [one, other]) is not None


def test_transposed_data_is_refused():
    output = numbers(1, 6, 6)
    assert "differs" in check([output.transpose(0, 2, 1)], [output])


@pytest.mark.parametrize(
    ("dtype", "allowed"),
    [
        ("float32", 1e-3),
        ("unknown", 1e-3),
        ("float16", 1e-2),
        ("bfloat16", 1e-2),
        ("float16, float32", 1e-2),
    ],
)
def test_a_device_of_16_bits_may_differ_by_more(dtype, allowed):
    want = sample_outputs([np.linspace(1, 2, 64)])
    for share, same in ((0.9, True), (1.1, False)):
        found = sample_outputs([np.linspace(1, 2, 64) + share * allowed * 2])
        assert (compare_outputs(found, want, tolerance_of(dtype)) is None) == same
