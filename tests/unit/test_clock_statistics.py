"""The clock's statistics promise error rates. Here the truth is known, and they are held to them.

Rates are compared within binomial error, at 3.3 standard deviations. What is promised:

* ``Contrast.bounds(e)`` leaves the truth out with ``e`` on each side, exactly, if the spreads of
  questions are as the prior has them.
* ``decide`` chooses by the data which control the block is held against, so its interval cannot be
  exact: of two controls it takes the one that says less, and then the upper bound is too low when
  that of either is, so with up to ``2 e``; the lower bound is too high with ``e`` still.
* A verdict is wrong with less than ``1 - confidence``, however often it was looked at.

Each of these tests has teeth: the mutations at the end break a piece on purpose, and assert that
the same criterion is then violated.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from synthetic_runtime import (
    METHOD,
    REFERENCES,
    TAIL,
    Disturbance,
    Machine,
    Truth,
    Worker,
    first_parts,
    load_of,
    reference_parts,
    settle,
    visits_of,
)

from nn_meter.builder.backend_meta.fusion_rule_tester.clock import plan, statistics
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.decision import decide
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.design import (
    BARRIERS,
    BLOCK,
    HEAD,
    between,
    without_head,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.plan import Bench, Question
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.statistics import (
    Contrast,
    Spread,
    fit_spread,
    time_of,
    times_of,
)

EACH = 0.05  # the error rate on each side that coverage is tested at
ALPHA = 0.5
THRESHOLD = 0.3  # what has to be saved for "fused", as a share: 0.6 of EPS_ALPHA

SIGNS = {HEAD: 1, between("tanh", tail=True): 1, BLOCK: -1, between("tanh"): -1}

RUNTIMES = {
    "one layout": Truth(),
    "an elementwise tail": Truth(elementwise=True),
    "a head cheaper than the tail": Truth(head=0.6, tail=1.5),
    "a head in the library's layout": Truth(head_layout="own", reorder=0.8),
    "a tail in the library's layout": Truth(
        head_layout="plain", tail_layout="own", reorder=0.8, head=2.5
    ),
    "a costly call": Truth(call=25.0),
}
DISTURBANCES = {
    "loads": Disturbance(load=0.015),
    "loads far apart": Disturbance(load=0.04),
    "noisy runs": Disturbance(run=0.05),
    "outliers": Disturbance(outliers=0.1),
    "drift": Disturbance(drift=0.15),
    "loads at other speeds": Disturbance(wander=0.03),
    "all of it": Disturbance(load=0.02, run=0.03, outliers=0.05, drift=0.05, wander=0.02),
}
SAVINGS = [0.0, 0.5, 1.0]


def limit(rate: float, n: int) -> float:
    """How often something with this rate may happen in n cases."""
    return rate + 3.3 * math.sqrt(rate * (1 - rate) / n)


@dataclass
class Missed:
    """How often an interval lay wholly below the truth, and wholly above."""

    n: int = 0
    below: int = 0
    above: int = 0

    def count(self, low: float, high: float, truth: float) -> None:
        self.n += 1
        self.below += high < truth
        self.above += low > truth

    @property
    def share(self) -> float:
        return (self.below + self.above) / self.n


# --- intervals of a sum of times -----------------------------------------------------------------

Loads = Callable[[Truth, list[str], Disturbance, np.random.Generator], dict[str, float]]


def contrasts(
    how: Disturbance,
    n: int,
    *,
    loads: int = 3,
    saved: float = 1.0,
    prior: float = 8.0,
    each: float = EACH,
    load: Loads = load_of,
) -> Missed:
    """Intervals of what is saved, of questions whose spreads come from the prior."""
    rng = np.random.default_rng(7)
    truth = Truth(saved=saved)
    parts = list(SIGNS)
    found = Missed()
    spread = Spread(variance=how.load**2, freedom=prior)
    for _ in range(n):
        of_question = replace(how, load=how.load * math.sqrt(prior / rng.chisquare(prior)))
        contrast = Contrast.of(
            [load(truth, parts, of_question, rng) for _ in range(loads)], SIGNS, spread
        )
        assert contrast is not None
        found.count(*contrast.bounds(each), saved * truth.scale)
    return found


@pytest.mark.parametrize("loads", [1, 3])
@pytest.mark.parametrize("saved", SAVINGS)
def test_an_interval_covers_exactly_as_often_as_it_promises(saved, loads):
    n = 800
    missed = contrasts(Disturbance(load=0.02, run=0.0), n, saved=saved, loads=loads)
    for side in (missed.below, missed.above):
        assert abs(side / n - EACH) <= limit(EACH, n) - EACH


def test_it_covers_at_the_rate_of_a_single_look():
    each = 0.05 / len(METHOD.looks)
    missed = contrasts(Disturbance(load=0.02, run=0.0), 1600, each=each)
    assert missed.share <= limit(2 * each, 1600)


@pytest.mark.parametrize("how", DISTURBANCES.values(), ids=list(DISTURBANCES))
def test_it_covers_under_each_disturbance(how):
    missed = contrasts(how, 400)
    assert missed.share <= limit(2 * EACH, missed.n)


# --- intervals of a share, and the choice of a control -------------------------------------------


def opinions(truth: Truth, how: Disturbance, n: int, load: Loads = load_of) -> Missed:
    """Intervals of the share that a question of three loads saves."""
    rng = np.random.default_rng(11)
    design, spread = truth.design(), Spread(variance=how.load**2, freedom=40)
    found = Missed()
    for _ in range(n):
        opinion = decide(
            design,
            [load(truth, first_parts(), how, rng) for _ in range(3)],
            [load(truth, reference_parts(), how, rng) for _ in range(3)],
            spread,
            alpha=ALPHA,
            error_rate=EACH,
        )
        assert opinion.saving is not None, opinion
        found.count(opinion.low, opinion.high, truth.saved)
    return found


@pytest.mark.parametrize("saved", SAVINGS)
@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=list(RUNTIMES))
def test_without_noise_the_share_is_the_truth(runtime, saved):
    truth = replace(runtime, saved=saved)
    rng = np.random.default_rng(0)
    still = Disturbance(load=0.0, run=0.0)
    opinion = decide(
        truth.design(),
        [load_of(truth, first_parts(), still, rng)],
        [load_of(truth, reference_parts(), still, rng)],
        Spread(variance=1e-10, freedom=40),
        alpha=ALPHA,
        error_rate=EACH,
    )
    assert opinion.saving == pytest.approx(saved, abs=0.01)
    assert opinion.verdict == ("fused" if saved else "separate")


@pytest.mark.parametrize("saved", SAVINGS)
@pytest.mark.parametrize(
    ("runtime", "how"),
    [
        *[("one layout", name) for name in DISTURBANCES if name != "loads at other speeds"],
        *[(name, "all of it") for name in RUNTIMES if "cheaper" not in name],
        ("a head cheaper than the tail", "loads"),
    ],
)
def test_the_interval_of_a_share_covers_as_the_choice_of_a_control_allows(runtime, how, saved):
    n = 180
    missed = opinions(replace(RUNTIMES[runtime], saved=saved), DISTURBANCES[how], n)
    assert missed.below / n <= limit(2 * EACH, n)
    assert missed.above / n <= limit(EACH, n)


# --- verdicts when looking often -----------------------------------------------------------------


def verdicts(
    truth: Truth, how: Disturbance, n: int, *, size: int = 40, confidence: float = 0.95
) -> tuple[Counter[str], Missed]:
    """What becomes of questions that are asked until they are settled; and their intervals."""
    rng = np.random.default_rng(13)
    found: Counter[str] = Counter()
    missed = Missed()
    while found.total() < n:
        bench = settle([truth] * size, how, rng, confidence=confidence, alpha=ALPHA)
        for question in bench.questions.values():
            found[question.opinion.verdict] += 1
            if question.opinion.low is not None and question.opinion.high is not None:
                missed.count(question.opinion.low, question.opinion.high, truth.saved)
    return found, missed


def wrong_of(truth: Truth) -> str:
    return "separate" if truth.saved > THRESHOLD else "fused"


@pytest.mark.parametrize("saved", [0.0, 0.5 * THRESHOLD, 1.5 * THRESHOLD, 1.0])
@pytest.mark.parametrize(
    ("runtime", "how"),
    [
        ("one layout", "loads"),
        ("an elementwise tail", "outliers"),
        ("a head in the library's layout", "all of it"),
        ("a tail in the library's layout", "loads"),
        ("a head cheaper than the tail", "loads"),
    ],
)
def test_verdicts_are_wrong_less_often_than_promised(runtime, how, saved):
    truth = replace(RUNTIMES[runtime], saved=saved)
    found, missed = verdicts(truth, DISTURBANCES[how], 60, size=30)
    assert found["free"] == 0
    assert found[wrong_of(truth)] / 60 <= limit(0.05, 60)
    assert missed.below / missed.n <= limit(0.05, missed.n)
    assert missed.above / missed.n <= limit(0.05, missed.n)


@pytest.mark.parametrize("saved", [0.0, 1.0])
def test_a_clear_case_is_decided_and_never_wrongly(saved):
    truth = Truth(saved=saved)
    found, _ = verdicts(truth, DISTURBANCES["loads"], 80)
    assert found == {"fused" if saved else "separate": 80}


@pytest.mark.parametrize("saved", [THRESHOLD - 1e-3, THRESHOLD + 1e-3])
def test_at_the_threshold_itself_the_error_rate_holds(saved):
    truth = Truth(saved=saved, elementwise=True)
    found, missed = verdicts(truth, DISTURBANCES["loads"], 120)
    assert found[wrong_of(truth)] / 120 <= limit(0.05, 120)
    assert missed.share <= limit(0.1, missed.n)


def test_verdicts_hold_where_loads_are_far_further_apart_than_usual():
    truth = Truth(saved=0.0, head_layout="own", reorder=0.8)
    found, missed = verdicts(truth, Disturbance(load=0.06), 120)
    assert found["fused"] / 120 <= limit(0.05, 120)
    assert missed.share <= limit(0.1, missed.n)


def one_question(truth, *, missing=()):
    """A bench with one question that has its references and no loads."""
    question = Question(name="1", rule="1", design=truth.design(), reference=REFERENCES)
    question.missing.update(dict.fromkeys(missing, "refused"))
    rng = np.random.default_rng(3)
    how = Disturbance(load=0.002)
    references = [load_of(truth, reference_parts(), how, rng) for _ in range(3)]
    bench = Bench(
        questions={"1": question},
        references={REFERENCES: references},
        method=METHOD,
        alpha=0.5,
        confidence=0.95,
    )

    def load():
        question.loads.append(load_of(truth, question.parts(), how, rng))
        bench.look(question)
        return question.opinion

    return bench, question, load


def test_what_seems_to_fuse_is_open_until_the_tail_was_measured_without_the_head():
    bench, question, load = one_question(Truth(saved=1.0))
    load()
    opinion = load()
    assert (opinion.verdict, bench.is_settled(question)) == ("undecided", False)
    assert "without the head was not measured yet" in opinion.reason
    assert without_head("tanh", TAIL) in question.parts()
    opinion = load()
    assert (opinion.verdict, bench.is_settled(question)) == ("fused", True)


def test_where_the_tail_cannot_be_measured_without_the_head_the_rest_decides():
    missing = [without_head(name, TAIL) for name in BARRIERS]
    bench, question, load = one_question(Truth(saved=1.0), missing=missing)
    load()
    assert load().verdict == "fused"
    assert bench.is_settled(question)


def test_a_tail_that_is_dearer_without_the_head_is_measured_once_and_no_more():
    """Its costs there are too far apart to compare, however often it is loaded."""
    truth = Truth(saved=1.0, head_layout="plain", tail_layout="plain", reorder=0.0)
    bench, question, load = one_question(truth)
    load(), load()
    for times in question.loads:
        assert without_head("tanh", TAIL) not in times
    question.loads.append(load_of(truth, question.parts(), Disturbance(), np.random.default_rng(1)))
    for name in BARRIERS:
        if without_head(name, TAIL) in question.loads[-1]:
            question.loads[-1][without_head(name, TAIL)] += 10.0
    bench.look(question)
    assert (question.opinion.verdict, question.opinion.more) == ("fused", False)


def test_what_was_decided_is_decided_alike_when_it_is_read_again():
    how = Disturbance(load=0.02)
    truths = [Truth(saved=saved) for saved in np.random.default_rng(5).uniform(-0.2, 1.2, 120)]
    seen: dict[str, list] = {}
    bench = settle(truths, how, np.random.default_rng(6), seen=seen)

    again = Bench(
        questions={
            name: Question(name=name, rule=name, design=q.design, reference=q.reference)
            for name, q in bench.questions.items()
        },
        references=bench.references,
        method=bench.method,
        alpha=bench.alpha,
        confidence=bench.confidence,
    )
    for name, question in again.questions.items():
        again.replay(question, seen[name])

    assert len({q.opinion.verdict for q in bench.questions.values()}) > 2
    for name, question in bench.questions.items():
        assert again.questions[name].opinion == question.opinion
        assert again.is_settled(again.questions[name])


def test_the_spread_is_learnt_whichever_control_counts():
    rng = np.random.default_rng(17)
    truth = replace(RUNTIMES["a tail in the library's layout"], saved=THRESHOLD)
    bench = settle([truth] * 20, Disturbance(load=0.04), rng)
    assert math.sqrt(bench.spread.variance) == pytest.approx(0.04, rel=0.25)
    assert bench.spread.freedom > 8  # so it is learnt from more than the references


# --- the real race, on clocks that are not what they should be -----------------------------------


CLOCKS = {
    "steady": {},
    "two speeds": {"fast_ms": 4.0, "slow_ms": 6.0},
    "slow most of the time": {"fast_ms": 3.0, "slow_ms": 12.0},
    "stopped in a calibration": {"stops": [(0.0001, 3.0)]},
    "stopped in a race": {"stops": [(0.153, 3.0)]},
    "twice as slow for good": {"changes": [(0.153, 2.0)]},
    "calibrated in a slow spell": {"changes": [(0.0, 1.8), (0.153, 1.0)]},
    "slow from the start": {"changes": [(0.0, 2.0)]},
}
RECALIBRATED = {"calibrated in a slow spell"}


@pytest.mark.parametrize("name", CLOCKS)
def test_a_race_finds_the_times_whatever_the_clock_does(monkeypatch, name):
    rng, truth = np.random.default_rng(19), Truth(saved=0.5)
    worker = Worker(monkeypatch, Machine(rng, **CLOCKS[name]), Disturbance(load=0.0), rng)
    for number in range(3):
        times = worker.load(truth, first_parts())
        shares = np.array([times[p] * METHOD.replicas / truth.cost(p) for p in first_parts()])
        assert shares.std() < 0.005, number
        if name not in RECALIBRATED:  # that is what the next test is about
            assert shares == pytest.approx(1, abs=0.02), number


def test_a_gate_that_found_full_speed_anew_scales_as_others_do(monkeypatch):
    rng, truth = np.random.default_rng(19), Truth()
    machine = Machine(rng, **CLOCKS["calibrated in a slow spell"])
    worker = Worker(monkeypatch, machine, Disturbance(load=0.0), rng)
    times = worker.load(truth, first_parts())
    assert worker.gate.calibrations > 1
    assert times[HEAD] * METHOD.replicas == pytest.approx(truth.cost(HEAD), rel=0.03)


@pytest.mark.parametrize("saved", [0.0, 1.0])
@pytest.mark.parametrize(
    "clock", [CLOCKS["two speeds"], CLOCKS["slow most of the time"]], ids=["two", "mostly slow"]
)
def test_shares_are_covered_on_a_clock_of_two_speeds(monkeypatch, clock, saved):
    truth, how, n = Truth(saved=saved), Disturbance(run=0.02), 30
    worker_rng = np.random.default_rng(23)
    worker = Worker(monkeypatch, Machine(worker_rng, **clock), how, worker_rng)
    missed = opinions(truth, how, n, load=lambda truth, parts, *_: worker.load(truth, parts))
    assert missed.below / n <= limit(2 * EACH, n)
    assert missed.above / n <= limit(EACH, n)


def test_what_runs_at_half_speed_takes_the_same_once_scaled(monkeypatch):
    truth, found = Truth(saved=0.3), []
    for factor in (1.0, 2.0):
        rng = np.random.default_rng(29)
        machine = Machine(rng, changes=[(0.0, factor)])
        worker = Worker(monkeypatch, machine, Disturbance(load=0.0), rng)
        found.append(worker.load(truth, first_parts()))
        assert worker.gate.level_ns == pytest.approx(factor * Machine.PROBE_NS, rel=0.01)
    assert found[0] == pytest.approx(found[1], rel=0.005)


# --- what many small samples say of the spread ---------------------------------------------------


@pytest.mark.parametrize("freedom", [6.0, 12.0, 30.0])
@pytest.mark.parametrize("dof", [2, 5])
def test_variance_and_freedom_of_many_samples_are_recovered(freedom, dof):
    rng, true = np.random.default_rng(31), 0.02**2
    n = 4000
    own = true * freedom / rng.chisquare(freedom, n)
    found = fit_spread([(v, dof) for v in own * rng.chisquare(dof, n) / dof])
    assert found.variance == pytest.approx(true, rel=0.1)
    assert found.freedom == pytest.approx(freedom, rel=0.35)


def test_equal_spreads_are_worth_the_most():
    rng = np.random.default_rng(37)
    found = [fit_spread([(v, 3) for v in 4.0 * rng.chisquare(3, 400) / 3]) for _ in range(20)]
    assert np.mean([spread.variance for spread in found]) == pytest.approx(4.0, rel=0.05)
    assert np.median([spread.freedom for spread in found]) >= 30


def test_a_spread_is_worth_no_more_than_the_samples_that_it_is_of():
    for n in (4, 5, 8):
        assert fit_spread([(1.0, 1)] * n).freedom <= n
    few = fit_spread([(1.0, 2)] * 3 + [(0.0, 2), (1.0, 0)])
    assert (
        few.variance == 0.015**2
    )  # nothing known: a variance of 0, or of no freedom, says nothing


@pytest.mark.parametrize(("n", "dof"), [(5, 1), (5, 2), (12, 1), (40, 2)])
def test_intervals_cover_with_a_spread_of_few_samples(n, dof):
    rng, each, count = np.random.default_rng(41), 0.05 / 8, 1500
    missed = 0
    for _ in range(count):
        spread = fit_spread([(v, dof) for v in rng.chisquare(dof, n) / dof])
        contrast = Contrast.of([{"a": 1 + 1e-3 * rng.standard_normal()}], {"a": 1}, spread)
        assert contrast is not None
        wide = replace(contrast, variance=contrast.variance * 1e-6 / contrast.weight)
        low, high = wide.bounds(each)
        missed += not low <= 1 <= high
    # the variance is estimated by its logarithm, which makes few samples a bit too sure
    assert missed / count <= limit(1.6 * 2 * each, count)


# --- mutations: each criterion above fails for an estimator that is broken on purpose ------------


def _mean_time(visits):
    seen = [visit for visit in visits if visit.size]
    return float(np.concatenate(seen).mean()) if len(seen) >= 3 else None


@pytest.mark.parametrize("mutated", [False, True], ids=["as it is", "mean of all runs"])
def test_a_mean_would_let_outliers_in(monkeypatch, mutated):
    """Its own noise is more than the spread of loads that the interval knows of."""
    if mutated:
        monkeypatch.setattr(statistics, "time_of", _mean_time)
    how = DISTURBANCES["outliers"]
    missed = contrasts(how, 400, prior=40.0)
    assert (missed.share > limit(2 * EACH, 400)) == mutated
    rng, truth = np.random.default_rng(43), Truth()
    of_load = [load_of(truth, [HEAD], replace(how, load=0.0), rng)[HEAD] for _ in range(50)]
    off = np.abs(np.array(of_load) * METHOD.replicas / truth.cost(HEAD) - 1).mean()
    assert (off > 0.01) == mutated


def _within_a_load(rng):
    """``Contrast.of`` with the variance of visits within a load for that of loads."""
    of = Contrast.of.__func__

    def broken(cls, loads, signs, spread):
        seen = visits_of(Truth(), [HEAD], Disturbance(), rng)[HEAD]
        least = np.array([visit.min() for visit in seen])
        within = float(least.var(ddof=1) / least.mean() ** 2 / len(least))
        return of(cls, loads, signs, Spread(variance=within, freedom=1e3))

    return classmethod(broken)


@pytest.mark.parametrize("mutated", [False, True], ids=["as it is", "visits as independent"])
def test_without_the_level_of_loads_intervals_are_too_narrow(monkeypatch, mutated):
    if mutated:
        monkeypatch.setattr(Contrast, "of", _within_a_load(np.random.default_rng(47)))
    missed = contrasts(DISTURBANCES["loads"], 300)
    assert (missed.share > limit(2 * EACH, 300)) == mutated
    shares = opinions(Truth(saved=1.0), DISTURBANCES["loads"], 150)
    assert (shares.share > limit(3 * EACH, 150)) == mutated


@pytest.mark.parametrize("mutated", [False, True], ids=["as it is", "peeking uncorrected"])
def test_looking_often_without_sharing_the_error_makes_more_verdicts_wrong(monkeypatch, mutated):
    if mutated:
        monkeypatch.setattr(Bench, "error_rate", property(lambda bench: 1 - bench.confidence))
    truth = replace(RUNTIMES["a head cheaper than the tail"], saved=THRESHOLD + 1e-3)
    found, missed = verdicts(truth, DISTURBANCES["loads"], 160)
    assert mutated or found["separate"] / 160 <= limit(0.05, 160)
    assert (missed.share > limit(0.1, missed.n)) == mutated


@pytest.mark.parametrize("mutated", [False, True], ids=["as it is", "nothing learnt"])
def test_without_learning_the_spread_noisy_machines_make_verdicts_wrong(monkeypatch, mutated):
    if mutated:
        quiet = Spread(variance=0.002**2, freedom=40.0)
        monkeypatch.setattr(plan, "fit_spread", lambda variances: quiet)
    truth = replace(RUNTIMES["a head in the library's layout"], saved=0.0)
    found, missed = verdicts(truth, Disturbance(load=0.08), 120)
    assert (found["fused"] / 120 > limit(0.05, 120)) == mutated
    assert (missed.share > limit(0.1, missed.n)) == mutated


# --- small properties ----------------------------------------------------------------------------

contrasts_ = st.builds(
    lambda value, variance, freedom, weight: Contrast(
        value=value, variance=variance, freedom=freedom, weight=weight, own=(0.0, 0)
    ),
    st.floats(-10, 10),
    st.floats(1e-4, 1e2),
    st.floats(2, 60),
    st.floats(1e-3, 1e3),
)
factors = st.floats(-3, 3).filter(lambda f: abs(f) > 1e-3)
samples = st.lists(st.integers(1, 10**9), min_size=1, max_size=5).map(np.array)


@given(one=contrasts_, other=contrasts_, factor=factors)
def test_a_sum_adds_values_and_variances(one, other, factor):
    both = one.plus(other, factor)
    assert both.value == pytest.approx(one.value + factor * other.value)
    assert both.variance == pytest.approx(one.variance + factor**2 * other.variance)
    assert both.weight == pytest.approx(one.weight + factor**2 * other.weight)
    assert both.error >= one.error


@given(one=contrasts_, other=contrasts_, factor=factors)
def test_a_sum_has_the_freedom_of_the_poorer_at_least_and_of_both_at_most(one, other, factor):
    freedom = one.plus(other, factor).freedom
    assert min(one.freedom, other.freedom) * (1 - 1e-9) <= freedom
    assert freedom <= (one.freedom + other.freedom) * (1 + 1e-9)


@given(one=contrasts_, other=contrasts_, factor=factors)
def test_taking_a_sum_away_again_leaves_the_value_but_not_the_certainty(one, other, factor):
    back = one.plus(other, factor).plus(other, -factor)
    assert back.value == pytest.approx(one.value, abs=1e-6)
    assert back.variance > one.variance


@given(contrast=contrasts_, each=st.floats(1e-3, 0.4))
def test_bounds_stand_around_the_value_and_widen_with_what_they_promise(contrast, each):
    low, high = contrast.bounds(each)
    assert low < contrast.value < high
    wider = contrast.bounds(each / 2)
    assert wider[0] < low < high < wider[1]


@given(visits=st.lists(samples, min_size=3, max_size=20))
def test_a_time_is_a_low_one_of_those_that_were_seen(visits):
    least = sorted(int(visit.min()) for visit in visits)
    found = time_of(visits)
    assert found is not None
    assert least[0] * (1 - 1e-12) <= found <= least[max(1, round(len(least) / 3) - 1)] * (1 + 1e-12)


@given(visits=st.lists(samples, min_size=6, max_size=20), later=st.integers(10**9, 10**12))
def test_a_run_that_was_held_up_changes_no_time(visits, later):
    longest = max(range(len(visits)), key=lambda i: visits[i].min())
    held_up = [*visits]
    held_up[longest] = visits[longest] + later
    assert time_of(held_up) == time_of(visits)


@given(visits=st.lists(samples, max_size=2), empty=st.integers(0, 9))
def test_too_few_visits_make_no_time(visits, empty):
    visits = [*visits, *[np.array([], dtype=np.int64)] * empty]
    assert time_of(visits) is None
    assert times_of({"a": visits, "b": [np.array([2000])] * 3}, 0.0, 1) == {"b": 2.0}


@given(
    visits=st.lists(samples, min_size=3, max_size=12),
    slower=st.integers(1, 50),
    level=st.floats(500, 5000),
    replicas=st.integers(1, 16),
)
def test_times_are_at_the_speed_of_the_reference_and_of_one_replica(
    visits, slower, level, replicas
):
    at_speed = times_of({"a": visits}, level, replicas)
    at_another = times_of({"a": [visit * slower for visit in visits]}, level * slower, replicas)
    assert at_another["a"] == pytest.approx(at_speed["a"])
    assert at_speed["a"] * replicas == pytest.approx(times_of({"a": visits}, level, 1)["a"])
    ungated = times_of({"a": visits}, 0.0, replicas)["a"]
    assert ungated * 2000 / level == pytest.approx(at_speed["a"])


@given(
    times=st.lists(
        st.fixed_dictionaries({"a": st.floats(0.1, 100), "b": st.floats(0.1, 100)}),
        min_size=2,
        max_size=8,
    ),
    factor=st.floats(0.1, 10),
)
def test_a_contrast_has_the_unit_of_its_times(times, factor):
    spread = Spread(variance=1e-4, freedom=5.0)
    one = Contrast.of(times, {"a": 1, "b": -1}, spread)
    other = Contrast.of(
        [{part: t * factor for part, t in load.items()} for load in times],
        {"a": 1, "b": -1},
        spread,
    )
    assert one is not None
    assert other is not None
    assume(one.variance > 1e-9)
    assert other.value == pytest.approx(factor * one.value, abs=1e-6)
    assert other.error == pytest.approx(factor * one.error)
    assert other.freedom == one.freedom == 5 + len(times) - 1


def test_a_load_that_lacks_a_part_does_not_count():
    spread = Spread(variance=1e-4, freedom=5.0)
    whole = [{"a": 2.0, "b": 1.0}, {"a": 2.1, "b": 1.0}]
    assert Contrast.of([*whole, {"a": 9.0}], {"a": 1, "b": -1}, spread) == Contrast.of(
        whole, {"a": 1, "b": -1}, spread
    )
    assert Contrast.of([{"a": 9.0}], {"a": 1, "b": -1}, spread) is None
