"""The sample store: rounds are whole or absent, and samples count where they belong only."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing

import numpy as np
import pytest

from nn_meter.builder.backends.base import Environment
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode, ModelOp
from nn_meter.builder.profiling.store import (
    Failure,
    Store,
    StoredGraph,
    graph_reference,
    read_graph_reference,
)
from nn_meter.errors import ResultFileError

CPU = Environment(runtime="r", version="1", host="h")
CPU_2 = Environment(runtime="r", version="1", host="h", threads=2)
HASHES = {"a": "hash-a", "b": "hash-b"}


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "results" / "samples.db") as store:
        yield store


def visits(*values: int, hashes: dict[str, str] = HASHES):
    return [(model, digest, np.array(values, dtype=np.int64)) for model, digest in hashes.items()]


def listed(samples):
    return {model: [visit.tolist() for visit in visits] for model, visits in samples.items()}


def new_campaign(store: Store, backend: str = "cpu", environment: Environment = CPU) -> int:
    return store.campaign(store.environment(backend, environment))


def test_samples_come_back_round_by_round(store, tmp_path):
    campaign = new_campaign(store)
    load = store.load(campaign)
    store.add_round(load, "T", visits(1, 2))
    store.add_round(load, "T", list(reversed(visits(3, 2**62))))
    store.add_round(store.load(campaign), "T", visits(5))
    store.add_round(load, "other", visits(9))
    store.close()
    with Store(tmp_path / "results" / "samples.db") as again:
        found = again.samples(campaign, "T", HASHES)
    rounds = [[1, 2], [3, 2**62], [5]]
    assert listed(found) == {"a": rounds, "b": rounds}
    assert all(visit.dtype == np.int64 for visit in found["a"])


def test_metrics_come_back_and_are_no_samples(store):
    campaign = new_campaign(store)
    store.add_round(store.load(campaign), "T", [("a", "hash-a", {"latency": "1.0 +- 0.0"})])
    assert store.metrics(campaign, "T", HASHES) == {"a": [{"latency": "1.0 +- 0.0"}], "b": []}
    assert store.samples(campaign, "T", HASHES) == {"a": [], "b": []}


def test_samples_of_another_content_do_not_count(store):
    campaign = new_campaign(store)
    store.add_round(store.load(campaign), "T", visits(1))
    changed = {"a": "hash-a", "b": "another"}
    assert listed(store.samples(campaign, "T", changed)) == {"a": [[1]], "b": []}
    assert listed(store.samples(campaign, "T", {"a": "hash-a"})) == {"a": [[1]]}


def test_what_is_put_aside_no_longer_counts_and_is_not_deleted(store):
    environment = store.environment("cpu", CPU)
    campaign = store.campaign(environment)
    store.add_round(store.load(campaign), "T", visits(1))
    store.add_round(store.load(campaign), "other", visits(2))
    store.add_failure(campaign, "T", "a", "hash-a", Failure(kind="failed", reason="no"))
    store.retire(campaign, ["T"])
    assert store.campaign(environment) == campaign
    assert listed(store.samples(campaign, "T", HASHES)) == {"a": [], "b": []}
    assert store.failures(campaign, "T", HASHES) == {}
    assert listed(store.samples(campaign, "other", HASHES)) == {"a": [[2]], "b": [[2]]}
    assert listed(store.samples(campaign + 1, "T", HASHES)) == {"a": [[1]], "b": [[1]]}


def test_environments_are_kept_apart(store):
    same_key = Environment(runtime="r", version="1", host="h")
    numbers = [
        store.environment("cpu", CPU),
        store.environment("cpu", CPU_2),
        store.environment("another_cpu", same_key),
    ]
    assert same_key.key == CPU.key != CPU_2.key
    assert len(set(numbers)) == 3
    assert numbers[0] == store.environment("cpu", CPU)
    campaigns = [store.campaign(number) for number in numbers]
    for value, campaign in enumerate(campaigns):
        store.add_round(store.load(campaign), "T", visits(value + 1))
        store.add_failure(campaign, "F", "a", "hash-a", Failure(kind="failed", reason=str(value)))
    for value, campaign in enumerate(campaigns):
        assert listed(store.samples(campaign, "T", {"a": "hash-a"})) == {"a": [[value + 1]]}
        assert store.failures(campaign, "F", HASHES)["a"].reason == str(value)


def test_failures_are_of_a_content_and_can_be_forgotten(store):
    campaign = new_campaign(store)
    failure = Failure(kind="crashed", reason="it ended by SIGSEGV")
    store.add_failure(campaign, "T", "a", "hash-a", Failure(kind="failed", reason="first"))
    store.add_failure(campaign, "T", "a", "hash-a", failure)
    assert store.failures(campaign, "T", HASHES) == {"a": failure}
    assert store.failures(campaign, "T", {"a": "another"}) == {}
    assert store.failures(campaign, "other", HASHES) == {}
    store.forget_failures(campaign)
    assert store.failures(campaign, "T", HASHES) == {}


def test_a_check_counts_once_it_has_passed(store):
    number, other = store.environment("cpu", CPU), store.environment("cpu", CPU_2)
    assert not store.checked(number, "h")
    store.add_check(number, "h", "output 1 differs")
    assert not store.checked(number, "h")
    store.add_check(number, "h", None)
    assert store.checked(number, "h")
    assert not store.checked(other, "h")


# --- where a latency comes from -------------------------------------------------------------------


def test_provenance(store):
    number = store.environment("cpu", CPU)
    store.add_reported(number, "T", {"a": "1.0 +- 0.1"})
    found = store.provenance("T", "a", "1.0 +- 0.1")
    assert (found.backend, found.key) == ("cpu", CPU.key)
    assert Environment(**found.environment) == CPU
    assert store.provenance("T", "a", "1.0 +- 0.2") is None
    assert store.provenance("T", "b", "1.0 +- 0.1") is None
    assert store.provenance("U", "a", "1.0 +- 0.1") is None


def test_a_latency_found_in_two_environments_belongs_to_the_latest_run(store):
    first, second = store.environment("cpu", CPU), store.environment("cpu", CPU_2)
    for number, key in ((first, CPU.key), (second, CPU_2.key), (first, CPU.key)):
        store.add_reported(number, "T", {"a": "1.0 +- 0.1"})
        assert store.provenance("T", "a", "1.0 +- 0.1").key == key


# --- whole or absent ------------------------------------------------------------------------------

KILLED_WRITERS = """
    import os, random, signal, sys, time
    from pathlib import Path
    import numpy as np
    from nn_meter.builder.backends.base import Environment
    from nn_meter.builder.profiling.store import Store

    path, models = Path(sys.argv[1]), ["a", "b", "c"]
    hashes = {model: f"hash-{model}" for model in models}
    environment = Environment(runtime="r", version="1", host="h")
    counts = []
    for writer in range(12):
        pid = os.fork()
        if not pid:
            with Store(path) as store:
                load = store.load(store.campaign(store.environment("cpu", environment)))
                for value in range(100000):
                    samples = np.full(50, value, dtype=np.int64)
                    store.add_round(load, "T", [(m, hashes[m], samples) for m in models])
        time.sleep(random.uniform(0.02, 0.06))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with Store(path) as store:
            campaign = store.campaign(store.environment("cpu", environment))
            found = store.samples(campaign, "T", hashes)
        rounds = [[visit.tolist() for visit in visits] for visits in found.values()]
        assert rounds[0] == rounds[1] == rounds[2], "a round is torn"
        assert all(len(visit) == 50 for visit in rounds[0])
        counts.append(len(rounds[0]))
    assert counts == sorted(counts), "rounds were lost"
    print(counts[-1])
"""


def test_killing_the_writer_at_any_moment_leaves_whole_rounds(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_WRITERS), tmp_path / "samples.db"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert int(done.stdout) > 0


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, RuntimeError])
def test_a_round_that_is_interrupted_is_absent_and_the_next_is_written(store, interrupt):
    campaign = new_campaign(store)
    load = store.load(campaign)

    def interrupted():
        yield visits(1)[0]
        raise interrupt

    with pytest.raises(interrupt):
        store.add_round(load, "T", interrupted())
    store.add_round(load, "T", visits(2))
    assert listed(store.samples(campaign, "T", HASHES)) == {"a": [[2]], "b": [[2]]}


# --- bad files ------------------------------------------------------------------------------------


def sound_store(path, *, rounds: int = 50) -> bytes:
    """A store with some pages; gives its bytes."""
    with Store(path) as store:
        load = store.load(new_campaign(store))
        for value in range(1, rounds):
            store.add_round(load, "T", visits(*range(value, value + 50)))
    return path.read_bytes()


def damaged(path, sound: bytes, how: str) -> bytes:
    """Damage a file in a way; gives its bytes."""
    if how == "another database":
        path.unlink()
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE visits (mine)")
        return path.read_bytes()
    if how in ("a table is missing", "a column is missing"):
        with closing(sqlite3.connect(path)) as db:
            db.execute("DROP TABLE visits")
            if how == "a column is missing":
                db.execute("CREATE TABLE visits (round, position, model, hash, samples)")
            db.commit()
        return path.read_bytes()
    content = {
        "garbage": b"garbage, not a database" * 100,
        "a header only": b"SQLite format 3\0" * 300,
        "cut off": sound[: len(sound) // 2 // 4096 * 4096],
        "cut off in a page": sound[: len(sound) // 2 + 99],
        "zeros at the end": sound[:16384] + bytes(len(sound) - 16384),
        "overwritten": sound[:16384] + b"\xab" * (len(sound) - 16384),
    }[how]
    path.write_bytes(content)
    return content


DAMAGES = [
    *("garbage", "a header only", "cut off", "cut off in a page", "zeros at the end"),
    *("overwritten", "another database", "a table is missing", "a column is missing"),
]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_store_is_moved_aside_and_a_new_one_starts(tmp_path, caplog, how):
    path = tmp_path / "samples.db"
    content = damaged(path, sound_store(path), how)
    with Store(path) as store:
        campaign = new_campaign(store)
        store.add_round(store.load(campaign), "T", visits(7))
        assert listed(store.samples(campaign, "T", HASHES)) == {"a": [[7]], "b": [[7]]}
    aside = tmp_path / "samples.db.damaged"
    assert aside.read_bytes() == content
    assert f"{path}: the sample store is damaged: " in caplog.text
    assert f"it was moved to {aside}" in caplog.text


def test_what_was_moved_aside_is_never_replaced(tmp_path):
    path = tmp_path / "samples.db"
    for content in (b"first" * 99, b"second" * 99, b"third" * 99):
        path.write_bytes(content)
        Store(path).close()
    kept = [tmp_path / f"samples.db.damaged{number}" for number in ("", "-2", "-3")]
    assert [path.read_bytes()[:5] for path in kept] == [b"first", b"secon", b"third"]


def test_the_log_of_a_damaged_store_goes_with_it(tmp_path):
    path = tmp_path / "samples.db"
    path.write_bytes(b"garbage" * 99)
    path.with_name("samples.db-wal").write_bytes(b"log")
    Store(path).close()
    assert (tmp_path / "samples.db.damaged-wal").read_bytes() == b"log"
    assert not path.with_name("samples.db-wal").exists()


def test_an_empty_file_is_a_new_store(tmp_path, caplog):
    path = tmp_path / "samples.db"
    path.touch()
    with Store(path) as store:
        assert new_campaign(store) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["samples.db"]
    assert not caplog.text


def test_a_store_that_another_one_makes_meanwhile_is_no_damaged_one(tmp_path, monkeypatch, caplog):
    path = tmp_path / "samples.db"
    with closing(sqlite3.connect(path)) as db:  # as far as the other one is
        db.execute("PRAGMA journal_mode = WAL")
    version = Store._version
    made = []

    def then_it_is_made(self):
        found = version(self)
        if not made:
            made.append(None)
            made[0] = Store(path)
        return found

    monkeypatch.setattr(Store, "_version", then_it_is_made)
    with Store(path) as store:
        assert made[0] is not None
        with made[0] as other:
            assert new_campaign(other) == new_campaign(store)
    assert list(tmp_path.glob("*damaged*")) == []
    assert not caplog.text


def test_garbage_in_the_log_is_no_damage(tmp_path, caplog):
    path = tmp_path / "samples.db"
    sound_store(path)
    path.with_name("samples.db-wal").write_bytes(b"garbage" * 9999)
    with Store(path) as store:
        assert len(store.samples(1, "T", HASHES)["a"]) == 49
    assert not caplog.text


@pytest.mark.parametrize("version", [3, 2**31 - 1, -1])
def test_another_version_is_refused_and_left_as_it_is(tmp_path, version):
    path = tmp_path / "samples.db"
    Store(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(
        ResultFileError, match=rf"has version {version}; this nn-Meter knows up to 2; use the nn-M"
    ):
        Store(path)
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".db"] == ["samples.db"]


# As nn-Meter wrote it before it knew of executed graphs.
VERSION_1 = """
CREATE TABLE environments (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, backend TEXT NOT NULL, data TEXT NOT NULL,
    UNIQUE (key, backend));
CREATE TABLE campaigns (
    id INTEGER PRIMARY KEY, environment INTEGER NOT NULL REFERENCES environments, started REAL);
CREATE TABLE loads (
    id INTEGER PRIMARY KEY, campaign INTEGER NOT NULL REFERENCES campaigns, started REAL NOT NULL);
CREATE TABLE rounds (
    id INTEGER PRIMARY KEY, load INTEGER NOT NULL REFERENCES loads, testcase TEXT NOT NULL);
CREATE TABLE visits (
    round INTEGER NOT NULL REFERENCES rounds, position INTEGER NOT NULL, model TEXT NOT NULL,
    hash TEXT NOT NULL, samples BLOB, metrics TEXT, PRIMARY KEY (round, position));
CREATE TABLE failures (
    campaign INTEGER NOT NULL REFERENCES campaigns, testcase TEXT NOT NULL, model TEXT NOT NULL,
    hash TEXT NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (campaign, testcase, model, hash));
CREATE TABLE checks (
    environment INTEGER NOT NULL REFERENCES environments, hash TEXT NOT NULL, finding TEXT,
    PRIMARY KEY (environment, hash));
CREATE TABLE reported (
    testcase TEXT NOT NULL, model TEXT NOT NULL, latency TEXT NOT NULL,
    environment INTEGER NOT NULL REFERENCES environments,
    PRIMARY KEY (testcase, model, latency, environment));
CREATE INDEX rounds_by_testcase ON rounds (testcase, load);
CREATE INDEX loads_by_campaign ON loads (campaign);
PRAGMA user_version = 1;
"""


@pytest.mark.parametrize("wal", [False, True])
def test_a_store_of_the_version_before_is_brought_up_to_date_with_all_that_it_holds(tmp_path, wal):
    path = tmp_path / "samples.db"
    with closing(sqlite3.connect(path)) as db:
        if wal:
            db.execute("PRAGMA journal_mode = WAL")
        db.executescript(VERSION_1)
        db.execute(
            "INSERT INTO environments VALUES (7, ?, 'cpu', ?)",
            [CPU.key, json.dumps(CPU.to_json())],
        )
        db.execute("INSERT INTO campaigns VALUES (5, 7, 0)")
        db.execute("INSERT INTO loads VALUES (3, 5, 0)")
        db.execute("INSERT INTO rounds VALUES (2, 3, 'T')")
        for position, model in enumerate(HASHES):
            samples = np.array([11, 12], dtype="<i8").tobytes()
            db.execute(
                "INSERT INTO visits VALUES (2, ?, ?, ?, ?, NULL)",
                [position, model, HASHES[model], samples],
            )
        db.execute("INSERT INTO failures VALUES (5, 'F', 'a', 'hash-a', 'crashed', 'alas')")
        db.execute("INSERT INTO checks VALUES (7, 'hash-a', NULL)")
        db.execute("INSERT INTO reported VALUES ('T', 'a', '1.0 +- 0.0', 7)")
        db.commit()
    for _ in range(2):  # and the second time nothing is left to do
        with Store(path) as store:
            assert store.environment("cpu", CPU) == 7
            assert store.campaign(7) == 5
            assert listed(store.samples(5, "T", HASHES)) == {"a": [[11, 12]], "b": [[11, 12]]}
            assert store.failures(5, "F", HASHES)["a"].reason == "alas"
            assert store.checked(7, "hash-a")
            assert store.provenance("T", "a", "1.0 +- 0.0").key == CPU.key
            assert store.graph(7, "hash-a") is None or store.graph(7, "hash-a").outputs == "same"
            store.add_graph(7, "hash-a", GRAPH, "same")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        fresh = tmp_path / "fresh.db"
        Store(fresh).close()
        with closing(sqlite3.connect(fresh)) as other:
            tables = "SELECT name, sql FROM sqlite_master ORDER BY name"
            assert db.execute(tables).fetchall() == other.execute(tables).fetchall()


# --- executed graphs ------------------------------------------------------------------------------

GRAPH = ExecutedGraph(
    nodes=(
        ExecutedNode(
            name="größe/0", type="Conv[relu]", inputs=("x",), outputs=("y",), sources=("c", "r")
        ),
        ExecutedNode(name="", type="Reorder", kind="move"),
    ),
    inputs=("x",),
    ops=(ModelOp(name="c", type="Conv", inputs=("x",), outputs=("t",)),),
    op_inputs=("x",),
)


def test_graphs_come_back_as_they_were(store, tmp_path):
    number, other = store.environment("cpu", CPU), store.environment("cpu", CPU_2)
    bare = ExecutedGraph(nodes=())
    failure = Failure(kind="refused", reason="no such op")
    store.add_graph(number, "g", GRAPH, "digest")
    store.add_graph(number, "b", bare, None)
    store.add_graph(number, "f", failure, None)
    store.close()
    with Store(tmp_path / "results" / "samples.db") as again:
        assert again.graph(number, "g") == StoredGraph(graph=GRAPH, outputs="digest")
        assert again.graph(number, "b") == StoredGraph(graph=bare, outputs=None)
        assert again.graph(number, "f") == StoredGraph(graph=failure, outputs=None)
        assert again.graph(number, "other") is again.graph(other, "g") is None
        again.forget_graph_failures(other)
        assert again.graph(number, "f") is not None
        again.forget_graph_failures(number)
        assert again.graph(number, "f") is None
        assert again.graph(number, "g") is not None


def test_a_graph_that_is_read_again_takes_the_place_of_the_first(store):
    number = store.environment("cpu", CPU)
    store.add_graph(number, "g", Failure(kind="crashed", reason="alas"), None)
    store.add_graph(number, "g", GRAPH, "digest")
    assert store.graph(number, "g") == StoredGraph(graph=GRAPH, outputs="digest")


def test_whether_there_is_anything_of_a_kind(store):
    campaign, other = new_campaign(store), new_campaign(store, environment=CPU_2)
    store.add_round(store.load(campaign), "T", visits(1))
    assert [store.has_any(campaign, name) for name in ("T", "clock:")] == [True, False]
    store.add_failure(campaign, "clock:T:1", "a", "hash-a", Failure(kind="crashed", reason="r"))
    assert store.has_any(campaign, "clock:")
    assert not store.has_any(other, "clock:")


def test_places_of_graphs(store):
    number = store.environment("cpu", CPU)
    found = store.place(number)
    assert (found.backend, found.key) == ("cpu", CPU.key)
    assert store.place(number + 1) is None
    digest = "0123456789abcdef" * 4
    assert read_graph_reference(graph_reference(number, digest)) == (number, digest)
    for text in ("", "1", f"{number}:{digest}0", f"-1:{digest}", f"1:{digest.upper()}", None, 3):
        assert read_graph_reference(text) is None


def test_a_store_that_is_damaged_while_it_is_open_is_refused_when_read(tmp_path):
    path = tmp_path / "samples.db"
    sound = sound_store(path)

    def use() -> None:
        with Store(path) as store:
            with path.open("rb+") as file:
                file.seek(16384)
                file.write(b"\xab" * (len(sound) - 16384))
            store._db.execute("PRAGMA shrink_memory")  # what it has read is not known any more
            store.samples(1, "T", HASHES)

    with pytest.raises(ResultFileError, match=rf"{path}: the sample store cannot be used"):
        use()


def test_a_schema_that_is_no_text_is_refused_by_file(tmp_path):
    path = tmp_path / "samples.db"
    data = sound_store(path)
    path.write_bytes(
        data.replace(
            b"load INTEGER NOT NULL REFERENCES loads", b"load INTEGER NOT NULL REFERENCES lo\x80ds"
        )
    )
    with (
        pytest.raises(ResultFileError, match=rf"{path}: the sample store cannot be used"),
        Store(path) as store,
    ):
        store.add_round(store.load(1), "T", visits(1))


@pytest.mark.parametrize(
    ("column", "value", "read"),
    [
        ("visits SET samples", b"1234567", lambda s, c: s.samples(c, "T", HASHES)),
        ("visits SET samples", "text", lambda s, c: s.samples(c, "T", HASHES)),
        ("visits SET metrics", "{", lambda s, c: s.metrics(c, "T", HASHES)),
        ("visits SET metrics", "[]", lambda s, c: s.metrics(c, "T", HASHES)),
        ("visits SET metrics", b"\xff", lambda s, c: s.metrics(c, "T", HASHES)),
        ("environments SET data", "", lambda s, c: s.provenance("T", "a", "1.0 +- 0.1")),
        ("graphs SET data", "{", lambda s, c: s.graph(1, "g")),
        ("graphs SET data", '{"nodes": [1]}', lambda s, c: s.graph(1, "g")),
        ("graphs SET data", b"\xff", lambda s, c: s.graph(1, "g")),
        ("environments SET data", "3", lambda s, c: s.place(1)),
        ("environments SET data", "3", lambda s, c: s.provenance("T", "a", "1.0 +- 0.1")),
    ],
)
def test_columns_that_hold_something_else_are_refused_by_file(store, column, value, read):
    campaign = new_campaign(store)
    store.add_round(store.load(campaign), "T", visits(1))
    store.add_reported(store.environment("cpu", CPU), "T", {"a": "1.0 +- 0.1"})
    store.add_graph(1, "g", GRAPH, None)
    read(store, campaign)
    store._db.execute(f"UPDATE {column} = ?", [value])
    with pytest.raises(ResultFileError, match=r"samples\.db: the sample store cannot be used"):
        read(store, campaign)


@pytest.mark.parametrize("there", ["folder", "file in place of its folder"])
def test_a_store_that_cannot_be_opened(tmp_path, there):
    path = tmp_path / "results" / "samples.db"
    if there == "folder":
        path.mkdir(parents=True)
    else:
        path.parent.write_text("")
    with pytest.raises(ResultFileError, match=str(path)):
        Store(path)


def test_a_full_disk_is_our_error(store):
    campaign = new_campaign(store)
    load = store.load(campaign)
    store._db.execute("PRAGMA max_page_count = 1")  # SQLite's own way of being full
    with pytest.raises(ResultFileError, match=r"samples\.db.*is full; make room on the disk at /"):
        store.add_round(load, "T", visits(*range(100000)))
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.add_round(load, "T", visits(7))
    found = listed(store.samples(campaign, "T", HASHES))
    assert found["a"][-1] == [7]
    assert len(found["a"]) == len(found["b"])
