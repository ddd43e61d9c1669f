"""Holding the clock's verdicts against the graph's: what counts, and as what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nn_meter.builder.backend_meta.fusion_rule_tester.clock.decision import Opinion
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.validation import (
    CurvePoint,
    History,
    Judged,
    Report,
    Score,
    repeatability,
)

WORDS = ("fused", "separate", "free", "undecided", "unsupported", "unmet")
said = st.sampled_from(WORDS)


def question(name: str, latency: str, graph: str, formula: str = "fused") -> Judged:
    return Judged(name=name, opinion=Opinion(verdict=latency), graph=graph, formula=formula)


def report(*words: tuple[str, str]) -> Report:
    """Questions named by their place, for each what the clock says and what the graph says."""
    return Report(questions=[question(str(n), *pair) for n, pair in enumerate(words)])


# --- scores --------------------------------------------------------------------------------------


def test_what_counts():
    score = Score.of(
        [
            ("fused", "fused"),
            ("separate", "fused"),
            ("undecided", "fused"),
            ("separate", "separate"),
            ("separate", "separate"),
            ("fused", "separate"),
            ("free", "separate"),
            *[
                (word, no_case)
                for word in WORDS
                for no_case in ("free", "undecided", "unsupported")
            ],
        ]
    )
    assert score == Score(cases=7, decided=5, right=3, fused=3, found=1, false_fused=1)
    assert score.separate == 4
    assert (score.coverage, score.accuracy) == (5 / 7, 3 / 5)


@pytest.mark.parametrize(
    ("words", "coverage", "accuracy"),
    [
        ([], None, None),
        ([("fused", "free"), ("separate", "unsupported")], None, None),
        ([("undecided", "fused"), ("free", "separate")], 0.0, None),
        ([("separate", "fused")], 1.0, 0.0),
    ],
)
def test_shares_of_nothing_are_not_known(words, coverage, accuracy):
    score = Score.of(words)
    assert (score.coverage, score.accuracy) == (coverage, accuracy)


@given(words=st.lists(st.tuples(said, said)))
def test_scores_add_up(words):
    score = Score.of(words)
    missed = words.count(("separate", "fused"))
    assert 0 <= score.right <= score.decided <= score.cases <= len(words)
    assert score.found <= score.fused <= score.cases
    assert score.decided == score.right + score.false_fused + missed


# --- reports -------------------------------------------------------------------------------------


def test_questions_that_are_no_cases_are_counted_apart():
    found = report(
        ("fused", "fused"),
        ("fused", "free"),
        ("free", "free"),
        ("undecided", "unsupported"),
        ("separate", "undecided"),
        ("separate", "unmet"),
    )
    assert (found.clock.cases, found.empty, found.unsupported, found.untold) == (1, 2, 1, 2)
    assert found.wrong == []
    assert found.open == []


def test_what_is_wrong_and_what_is_open():
    found = report(
        ("fused", "fused"),
        ("fused", "separate"),
        ("separate", "fused"),
        ("free", "separate"),
        ("undecided", "fused"),
        ("undecided", "free"),
    )
    assert [each.name for each in found.wrong] == ["1", "2"]
    assert [each.name for each in found.open] == ["3", "4"]
    assert (found.clock.right, found.clock.decided, found.clock.cases) == (1, 3, 5)


@given(words=st.lists(st.tuples(said, said)))
def test_every_question_is_one_thing(words):
    found = report(*words)
    cases = found.clock.cases
    assert cases + found.empty + found.unsupported + found.untold == len(words)
    assert cases == found.clock.right + len(found.wrong) + len(found.open)
    counts = found.confusion
    assert sum(sum(row.values()) for row in counts.values()) == len(words)
    assert all(counts[a].get(b, 0) == words.count((a, b)) for a in counts for b in WORDS)
    assert all(list(row)[:2] == ["fused", "separate"] for row in counts.values())
    assert list(counts)[:2] == ["fused", "separate"]


def test_the_formula_is_scored_on_the_same_cases():
    found = Report(
        questions=[
            question("a", "fused", "fused", formula="fused"),
            question("b", "undecided", "separate", formula="fused"),
            question("c", "separate", "separate", formula="undecided"),
            question("d", "separate", "free", formula="separate"),
        ]
    )
    assert found.formula == Score(cases=3, decided=2, right=1, fused=1, found=1, false_fused=1)
    assert found.formula.cases == found.clock.cases


# --- over time -----------------------------------------------------------------------------------


def test_a_curve_shows_what_stopping_then_would_have_given():
    graph = {"a": "fused", "b": "separate", "c": "separate", "d": "free"}
    history = History()
    history.see(0.4, {"a": "separate", "b": "undecided", "c": "undecided", "d": "fused"})
    history.see(1.5, {"a": "fused", "b": "separate", "c": "undecided", "d": "fused"})
    history.see(4.0, {"a": "fused", "b": "undecided", "c": "fused", "d": "fused"})
    assert history.curve(graph, 7.3) == [
        CurvePoint(s=1, decided=1, right=0),
        CurvePoint(s=2, decided=2, right=2),
        CurvePoint(s=5, decided=2, right=1),
        CurvePoint(s=7.3, decided=2, right=1),
    ]


def test_only_changes_are_kept():
    history = History()
    for at_s in range(100):
        history.see(at_s, {"a": "undecided", "b": "fused" if at_s > 50 else "undecided"})
    assert history.changes == [(0, "a", "undecided"), (0, "b", "undecided"), (51, "b", "fused")]


def test_the_last_point_has_the_verdicts_as_they_are():
    history = History()
    history.see(3.0, {"a": "fused"})
    history.see(3.1, {"a": "undecided"})  # a last look, after the measuring
    assert history.curve({"a": "fused"}, 3.05)[-1] == CurvePoint(s=3.05, decided=0, right=0)


@pytest.mark.parametrize(
    ("end_s", "times"),
    [
        (0.0, []),
        (1.0, []),
        (1.2, [1]),
        (50.0, [1, 2, 5, 10, 20, 40]),
        (100, [1, 2, 5, 10, 20, 40, 80]),
    ],
)
def test_the_times_of_a_curve(end_s, times):
    assert [point.s for point in History().curve({}, end_s)] == [*times, end_s]


# --- runs ----------------------------------------------------------------------------------------


def test_repeatability():
    first = {"a": "fused", "b": "separate", "c": "undecided", "d": "fused"}
    second = {"a": "fused", "b": "undecided", "c": "fused", "d": "separate"}
    third = {"a": "fused", "b": "separate", "c": "separate", "d": "undecided"}
    two = repeatability([first, second])
    assert (two.flips, two.equal) == (["d"], 1 / 4)
    three = repeatability([first, second, third])
    assert (three.flips, three.equal) == (["c", "d"], 1 / 4)


def test_repeatability_of_nothing():
    assert repeatability([{}, {}]).equal is None
    assert repeatability([{"a": "free"}]).equal == 1.0
