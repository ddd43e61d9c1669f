"""Every reader of outside data, on some hundred hostile files; `benchmarks/fuzz.py` takes more."""

from __future__ import annotations

import pytest
from fuzz_readers import READERS
from fuzz_running import limited_memory, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FILES = 60
LONG_S = 30.0  # a test says nothing of speed, only that there is an end


@pytest.mark.parametrize("name", READERS)
def test_a_hostile_file_is_refused_or_read_within_limits(tmp_path, name):
    reader = READERS[name]
    (tmp_path / "in").mkdir()
    read = reader.prepare(tmp_path)
    said = set()

    @settings(
        max_examples=FILES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(chance=st.randoms(use_true_random=False))
    def check(chance):
        file, data = reader.file(chance)
        path = tmp_path / "in" / file
        path.write_bytes(data)
        outcome = run(read, path, names_file=reader.names_file, most_s=LONG_S)
        assert not outcome.finding, outcome
        said.add(outcome.refused)

    with limited_memory():
        check()
    assert True in said or name == "store"  # which moves a damaged one aside


@pytest.mark.parametrize("name", READERS)
def test_the_files_that_are_damaged_are_good_before(tmp_path, name):
    reader = READERS[name]
    (tmp_path / "in").mkdir()
    read = reader.prepare(tmp_path)
    found = []
    for file, data in reader.corpus():
        path = tmp_path / "in" / file
        path.write_bytes(data)
        found.append(run(read, path, names_file=reader.names_file, most_s=LONG_S))
    assert not any(outcome.finding for outcome in found)
    assert any(not outcome.refused for outcome in found)
