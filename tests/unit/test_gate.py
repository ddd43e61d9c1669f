"""The speed gate, on a machine whose clock and speed are known."""

from __future__ import annotations

import random

import pytest
from fake_machine import FULL_NS, SECOND_NS, Machine

from nn_meter.builder.profiling import gate
from nn_meter.builder.profiling.gate import SpeedGate

CALIBRATION_NS = gate._CALIBRATION_NS


def spells(now_ns: int) -> float:
    """Full speed for 7 ms, then 1.6 times as slow for 3 ms, and so on."""
    return 1.0 if now_ns % 10_000_000 < 7_000_000 else 1.6


def test_what_the_work_takes_at_full_speed_is_found():
    machine = Machine()
    speed_gate = machine.gate()
    assert speed_gate.level_ns == pytest.approx(FULL_NS, rel=0.03)
    assert speed_gate.calibrations == 1
    assert machine.now_ns >= 123_456_789 + CALIBRATION_NS


def test_at_full_speed_nearly_all_runs_count():
    machine = Machine()
    counted = machine.busy(machine.gate(), 0.2)
    assert sum(counted) > 0.99 * len(counted)


def test_fast_and_slow_spells_are_told_apart():
    machine = Machine(spells)
    speed_gate = machine.gate()
    right = wrong = missed = 0
    for _ in range(20_000):
        machine.now_ns += 5_000
        before = spells(machine.now_ns)
        fast = speed_gate.fast()
        if before != spells(machine.now_ns):
            continue  # it changed under way
        right += fast == (before == 1.0)
        wrong += fast and before != 1.0
        missed += not fast and before == 1.0
    assert wrong == 0
    assert missed < 0.001 * right
    assert speed_gate.calibrations == 1


def test_of_spells_only_the_runs_at_full_speed_count():
    machine = Machine(spells)
    speed_gate = machine.gate()
    for _ in range(5_000):
        was_fast = speed_gate.fast()
        start = spells(machine.now_ns)
        machine.now_ns += 20_000
        end = spells(machine.now_ns)
        if was_fast and speed_gate.fast():
            assert start == end == 1.0


def test_slow_for_all_but_a_little_of_the_calibration_is_enough():
    machine = Machine(lambda now_ns: 1.0 if now_ns % 10_000_000 < 500_000 else 1.6)
    assert machine.gate().level_ns == pytest.approx(FULL_NS, rel=0.05)


def test_a_calibration_in_a_slow_spell_is_noticed_and_corrected():
    machine = Machine()
    until_ns = machine.now_ns + CALIBRATION_NS + 5_000_000
    machine.speed = lambda now_ns: 1.8 if now_ns < until_ns else 1.0
    speed_gate = machine.gate()
    assert speed_gate.level_ns == pytest.approx(1.8 * FULL_NS, rel=0.05)
    assert all(machine.runs(speed_gate, 4))  # it cannot be known yet

    machine.now_ns = until_ns
    counted = machine.busy(speed_gate, 0.4)  # finding it anew takes 0.15

    assert speed_gate.calibrations == 2
    assert speed_gate.level_ns == pytest.approx(FULL_NS, rel=0.05)
    assert sum(counted[-100:]) > 95


def test_what_is_faster_than_known_does_not_count_while_it_is_not_known():
    """Else runs at two speeds would stand side by side until it is."""
    machine = Machine(lambda now_ns: 1.8)
    speed_gate = machine.gate()
    machine.speed = lambda now_ns: 1.0
    while speed_gate.calibrations == 1:
        assert not speed_gate.fast() or speed_gate.calibrations == 2


def test_a_fast_probe_now_and_then_changes_nothing():
    """A clock that ticks oddly, a burst of turbo: rare, however often in all."""
    rng = random.Random(2)
    machine = Machine(lambda now_ns: 0.6 if rng.random() < 0.005 else 1.0)
    speed_gate = machine.gate()
    level_ns = speed_gate.level_ns
    counted = machine.busy(speed_gate, 3.0)
    assert (speed_gate.calibrations, speed_gate.level_ns) == (1, level_ns)
    assert sum(counted) > 0.97 * len(counted)


def test_what_is_faster_for_a_while_is_full_speed_from_then_on():
    machine = Machine()
    speed_gate = machine.gate()
    machine.speed = lambda now_ns: 0.6
    machine.busy(speed_gate, 0.05)
    assert (speed_gate.calibrations, round(speed_gate.level_ns / FULL_NS, 1)) == (2, 0.6)


@pytest.mark.parametrize("slower", [1.4, 2.0, 30.0])
def test_a_machine_that_gets_slower_for_good_counts_again(slower):
    machine = Machine()
    speed_gate = machine.gate()
    machine.busy(speed_gate, 0.1)
    machine.speed = lambda now_ns: slower

    while speed_gate.calibrations == 1:
        assert not any(machine.runs(speed_gate, 4))
        assert machine.now_ns < 3 * SECOND_NS
    counted = machine.busy(speed_gate, 0.1)

    assert speed_gate.calibrations == 2
    assert speed_gate.level_ns == pytest.approx(slower * FULL_NS, rel=0.05)
    assert sum(counted) > 0.95 * len(counted)


def test_a_slow_spell_of_half_a_second_is_waited_for():
    machine = Machine()
    speed_gate = machine.gate()
    until_ns = machine.now_ns + SECOND_NS // 2
    machine.speed = lambda now_ns: 1.6 if now_ns < until_ns else 1.0
    machine.busy(speed_gate, 1.0)
    assert speed_gate.calibrations == 1
    assert speed_gate.level_ns == pytest.approx(FULL_NS, rel=0.05)


def test_models_that_take_long_find_out_too_but_not_by_a_few_runs():
    machine = Machine()
    speed_gate = machine.gate()
    machine.speed = lambda now_ns: 2.0
    for _ in range(10):
        assert not any(machine.runs(speed_gate, 4, run_ns=300_000_000))
    assert speed_gate.calibrations == 1
    for _ in range(50):
        machine.runs(speed_gate, 4, run_ns=300_000_000)
    assert speed_gate.calibrations == 2


def test_a_gradual_change_loses_no_more_than_a_moment():
    """Down to two thirds of the speed within 4 s, and up again: within 1.3 it is full speed."""
    machine = Machine()
    start_ns = machine.now_ns

    def speed(now_ns: int) -> float:
        passed = min((now_ns - start_ns) / SECOND_NS, 8.0)
        return 1.0 + 0.5 * (passed / 4 if passed < 4 else (8 - passed) / 4)

    machine.speed = speed
    speed_gate = machine.gate()
    slower = machine.busy(speed_gate, 4.0)
    faster = machine.busy(speed_gate, 4.5)

    assert sum(slower) > 0.6 * len(slower)
    assert sum(faster) > 0.95 * len(faster)
    assert speed_gate.calibrations == 3  # once on the way down, once on the way up
    assert speed_gate.level_ns == pytest.approx(FULL_NS, rel=0.26)


@pytest.mark.parametrize("tick_ns", [100, 1000, 1500])
def test_a_coarse_clock_still_tells(tick_ns):
    machine = Machine(spells, tick_ns=tick_ns)
    speed_gate = machine.gate()
    fast, slow = [], []
    for _ in range(5_000):
        machine.now_ns += 20_000
        before = spells(machine.now_ns)
        found = speed_gate.fast()
        if before == spells(machine.now_ns):
            (fast if before == 1.0 else slow).append(found)
    assert sum(fast) > 0.8 * len(fast)
    assert sum(slow) < 0.05 * len(slow)


@pytest.mark.parametrize(
    ("work_ns", "tick_ns"), [(FULL_NS, 15_625_000), (FULL_NS, 10_000), (0, 1000)]
)
def test_a_clock_that_cannot_tell_slows_nothing_down(work_ns, tick_ns):
    machine = Machine(spells, work_ns=work_ns, tick_ns=tick_ns)
    speed_gate = machine.gate()
    assert speed_gate.level_ns == 0
    assert all(machine.busy(speed_gate, 0.02))
    assert speed_gate.calibrations == 1


def test_a_process_that_is_stopped_as_it_begins():
    machine = Machine()
    times = iter([0])

    def clock() -> int:
        machine.now_ns += 10 * SECOND_NS * next(times, 1)
        return machine.clock()

    assert SpeedGate(clock, machine.work).level_ns > 0


def test_the_real_one():
    speed_gate = SpeedGate()
    assert 200 < speed_gate.level_ns < 200_000
    assert any(speed_gate.fast() for _ in range(100_000))
