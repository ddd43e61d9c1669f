"""Which of a file's inputs is which of the model's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nn_meter.builder.backends.inputs import match_inputs, natural_key

SHAPE = st.lists(st.integers(1, 5), min_size=1, max_size=3)


def test_names_sort_as_people_count():
    names = ["input_10", "input_2", "input_1", "b2", "b", "²", "a10b2", "a10b10"]
    assert sorted(names, key=natural_key) == [
        "a10b2",
        "a10b10",
        "b",
        "b2",
        "input_1",
        "input_2",
        "input_10",
        "²",
    ]


@given(
    st.lists(SHAPE, min_size=1, max_size=12).flatmap(
        lambda s: st.tuples(st.just(s), st.permutations(range(len(s))))
    )
)
def test_names_tell_whatever_the_order_in_the_file(case):
    shapes, places = case
    names = [f"input_{i + 1}" for i in places]
    found = [[1, *shapes[i]] for i in places]
    order = match_inputs(names, found, shapes, by_name=True)
    assert [names[position] for position in order] == [f"input_{i + 1}" for i in range(len(shapes))]


@given(st.lists(SHAPE, min_size=1, max_size=6), st.data())
def test_the_files_order_stands_and_names_say_nothing(shapes, data):
    names = data.draw(st.lists(st.text(), min_size=len(shapes), max_size=len(shapes)))
    found = [[1, *shape] for shape in shapes]
    assert match_inputs(names, found, shapes, by_name=False) == list(range(len(shapes)))


def test_shapes_decide_where_the_order_cannot():
    found = [[1, 10], [1, 8, 8, 3]]
    assert match_inputs(["aux", "image"], found, [[8, 8, 3], [10]], by_name=True) == [1, 0]
    assert match_inputs(["aux", "image"], found, [[8, 8, 3], [10]], by_name=False) == [1, 0]


def test_open_sizes_and_unknown_shapes_fit():
    assert match_inputs(["a", "b"], [[-1, 4], None], [[4], [2, 2]], by_name=True) == [0, 1]


@pytest.mark.parametrize(
    ("found", "shapes"),
    [
        ([[1, 4]], [[5]]),
        ([[1, 4]], [[4], [4]]),
        ([[1, 4], [1, 4]], [[4]]),
        ([[1, 4, 1]], [[4]]),
        ([], [[4]]),
    ],
)
def test_other_shapes_are_refused_with_both(found, shapes):
    names = [f"in{i}" for i in range(len(found))]
    with pytest.raises(ValueError, match=r"its inputs are .* but should be of the shapes") as error:
        match_inputs(names, found, shapes, by_name=True)
    for name in names:
        assert name in str(error.value)
    for shape in shapes:
        assert str([1, *shape]) in str(error.value)
