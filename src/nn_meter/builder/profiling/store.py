"""Raw samples and environments in SQLite: the one place that nothing measured is lost from.

A round is one transaction, so killing the process loses at most the round under way. A file that is
no sound database of ours is moved aside when it is opened, and a new one starts. Samples are
kept by test case, model, content of the model file, environment and load; asking for them by the
content's hash means that a model that changed is measured anew, and one that did not, not.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from nn_meter.builder.backends.base import Environment, Samples
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.disk import check_room, full_disk, read_only_disk, reason_of
from nn_meter.builder.workspace import move_aside
from nn_meter.errors import ResultFileError

__all__ = [
    "Failure",
    "Provenance",
    "Store",
    "StoredGraph",
    "StoredTrial",
    "graph_reference",
    "read_graph_reference",
]

log = logging.getLogger(__name__)

T = TypeVar("T")

_GATE = "gate"
"""Stands for a model in the rounds of trials; its one sample is what the speed gate's work took."""

_NOTES = "notes"
"""Stands for a model in the rounds of trials; its metrics are the notes."""

_MOST_VALUE_BYTES = 2**27

_BEGIN = b"SQLite format 3\0"
_VERSION = 2
_WITH_GRAPHS = 2  # the version since which
# there are graphs; one that could not be read has the reason instead of data
_GRAPHS = """\
CREATE TABLE graphs (
    environment INTEGER NOT NULL REFERENCES environments, hash TEXT NOT NULL, data TEXT,
    outputs TEXT, kind TEXT, reason TEXT, PRIMARY KEY (environment, hash));
"""
_SCHEMA = f"""
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
{_GRAPHS}CREATE INDEX rounds_by_testcase ON rounds (testcase, load);
CREATE INDEX loads_by_campaign ON loads (campaign);
"""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a model has no latency.

    Attributes:
        kind: ``refused`` (by the runtime or the conversion), ``wrong output`` (the converted model
            computes something else than its source), ``crashed``, ``time limit`` or ``failed``
            (anything else).
        reason: In the words of whoever said it.
    """

    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a latency that stands in a result was measured."""

    backend: str
    environment: dict[str, Any]
    key: str
    number: int


@dataclass(frozen=True, kw_only=True)
class StoredGraph:
    """What is known of what a runtime executes of a model.

    Attributes:
        graph: The executed graph, or why it cannot be told.
        outputs: A digest of what the model computes on the reference inputs; None: not known.
        reader: The version of the code that read it; empty: not known.
    """

    graph: ExecutedGraph | Failure
    outputs: str | None
    reader: str = ""


@dataclass(frozen=True, kw_only=True)
class StoredTrial:
    """One load of the models of a question, and what timing them in turn gave.

    Attributes:
        visits: Part, hash of its model, ns of the runs that count; in order.
        level_ns: What the speed gate's work took at full speed; 0: there was no gate.
        notes: What whoever asked for it wants to know again when the trial is read.
    """

    visits: Sequence[tuple[str, str, Samples]]
    level_ns: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)


class _DamagedError(Exception):
    """A file is no sound sample store. Never leaves this module."""


class Store:
    """An open ``samples.db``.

    Args:
        path: The file; made if it is missing. A damaged one is moved aside, which the log says.

    Raises:
        ResultFileError: It is of a newer version, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open()
            except _DamagedError as exc:
                aside = move_aside(path, with_suffixes=("-wal", "-shm"))
                log.warning(
                    "%s: the sample store is damaged: %s; it was moved to %s, and a new one starts "
                    "here: what it knew is measured again",
                    *(path, exc, aside),
                )
                self._open()
        except (sqlite3.Error, OSError, _DamagedError) as exc:
            raise self._unusable(exc) from exc

    def _open(self) -> None:
        if self._path.is_file():
            with self._path.open("rb") as file:
                begin = file.read(len(_BEGIN))
            if begin and begin != _BEGIN:  # SQLite would delete a log that lies beside it
                raise _DamagedError("it does not begin as a database")
        self._db = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        """Find the file sound, and of this version, or make it so."""
        execute = self._db.execute
        try:
            self._check()
            execute("PRAGMA journal_mode = WAL")
            execute("PRAGMA synchronous = NORMAL")
            execute("PRAGMA foreign_keys = ON")
            execute("BEGIN IMMEDIATE")
            version = self._version()  # another process may have been quicker
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    execute(statement)
            elif version == 1:
                execute(_GRAPHS.rstrip().rstrip(";"))
            if version != _VERSION:
                execute(f"PRAGMA user_version = {_VERSION}")
            execute("COMMIT")
        except sqlite3.DatabaseError as exc:
            if _code(exc) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise _DamagedError(str(exc)) from exc
            raise
        except UnicodeDecodeError as exc:
            raise _DamagedError(f"it holds what is no text: {exc.reason}") from exc

    def _check(self) -> None:
        """Look at the file, and change nothing.

        By one transaction: another process may be about to make the tables.
        """
        self._db.execute("BEGIN")
        _refuse_programs(self._db)
        found = self._db.execute("PRAGMA quick_check(1)").fetchall()
        if found != [("ok",)]:
            raise _DamagedError(" ".join(str(found[0][0]).split()))
        version = self._version()
        if not 0 <= version <= _VERSION:
            raise ResultFileError(
                f"{self._path}: the sample store has version {version}; this nn-Meter knows up to "
                f"{_VERSION}; use the nn-Meter that made it, or move it away to start a new one"
            )
        columns = _columns(self._db)
        sound = not columns if version == 0 else columns >= _known_columns(version)
        if not sound:
            raise _DamagedError(f"its tables are not those of version {version}")
        self._db.execute("COMMIT")

    def _version(self) -> int:
        ((version,),) = self._db.execute("PRAGMA user_version")
        return int(version)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # --- writing ---------------------------------------------------------------------------------

    def environment(self, backend: str, environment: Environment) -> int:
        """The number of an environment; a new one is written down."""
        self._rows(
            "INSERT OR IGNORE INTO environments (key, backend, data) VALUES (?, ?, ?)",
            environment.key,
            backend,
            json.dumps(environment.to_json()),
        )
        ((number,),) = self._rows(
            "SELECT id FROM environments WHERE key = ? AND backend = ?", environment.key, backend
        )
        return int(number)

    def campaign(self, environment: int) -> int:
        """The campaign of an environment: the loads that count."""
        rows = self._rows("SELECT min(id) FROM campaigns WHERE environment = ?", environment)
        number = rows[0][0]
        return int(number) if number is not None else self._new_campaign(environment)

    def retire(self, campaign: int, testcases: Iterable[str]) -> None:
        """Put what was measured of test cases aside, so that it no longer counts.

        Nothing is deleted: their loads move to a campaign of their own.
        """
        names = list(testcases)
        with self._transaction():
            ((environment,),) = self._rows(
                "SELECT environment FROM campaigns WHERE id = ?", campaign
            )
            retired = self._new_campaign(environment)
            for name in names:
                self._rows(
                    "UPDATE loads SET campaign = ? WHERE campaign = ? "
                    "AND id IN (SELECT load FROM rounds WHERE testcase = ?)",
                    *(retired, campaign, name),
                )
                self._rows(
                    "UPDATE failures SET campaign = ? WHERE campaign = ? AND testcase = ?",
                    *(retired, campaign, name),
                )

    def _new_campaign(self, environment: int) -> int:
        return self._insert(
            "INSERT INTO campaigns (environment, started) VALUES (?, ?)", environment, time.time()
        )

    def load(self, campaign: int) -> int:
        """Number a new load: the models of a test case were just loaded."""
        return self._insert(
            "INSERT INTO loads (campaign, started) VALUES (?, ?)", campaign, time.time()
        )

    def add_round(
        self,
        load: int,
        testcase: str,
        visits: list[tuple[str, str, Samples | Mapping[str, Any]]],
    ) -> None:
        """Write one round, whole or not at all.

        Args:
            load: Number of the load.
            testcase: Name of the test case.
            visits: Model, hash of its file, and samples (int64 ns) or metrics, in order.
        """
        with self._transaction():
            number = self._insert(
                "INSERT INTO rounds (load, testcase) VALUES (?, ?)", load, testcase
            )
            for position, (model, digest, found) in enumerate(visits):
                samples, metrics = None, None
                if isinstance(found, np.ndarray):
                    samples = np.ascontiguousarray(found, dtype="<i8").tobytes()
                else:
                    metrics = json.dumps(dict(found))
                self._insert(
                    "INSERT INTO visits VALUES (?, ?, ?, ?, ?, ?)",
                    *(number, position, model, digest, samples, metrics),
                )

    def add_trial(self, campaign: int, name: str, trial: StoredTrial) -> None:
        """Write a trial, a load of its own, whole or not at all."""
        level = np.array([trial.level_ns], dtype=np.int64)
        self.add_round(
            self.load(campaign),
            name,
            [(_GATE, "", level), (_NOTES, "", trial.notes), *trial.visits],
        )

    def add_failure(
        self, campaign: int, testcase: str, model: str, digest: str, failure: Failure
    ) -> None:
        """Write down why a model has no latency.

        Raises:
            WorkspaceError: The disk is full: nobody knows whether it is the model's fault.
        """
        check_room(self._path)
        self._insert(
            "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?)",
            *(campaign, testcase, model, digest, failure.kind, failure.reason),
        )

    def forget_failures(self, campaign: int) -> None:
        """Let failed models be tried again."""
        self._rows("DELETE FROM failures WHERE campaign = ?", campaign)

    def add_check(self, environment: int, digest: str, finding: str | None) -> None:
        """Write down how a converted model compared with its source: None, or what differs."""
        self._insert("INSERT OR REPLACE INTO checks VALUES (?, ?, ?)", environment, digest, finding)

    def add_graph(
        self,
        environment: int,
        digest: str,
        graph: ExecutedGraph | Failure,
        outputs: str | None,
        reader: str = "",
    ) -> None:
        """Write down what a runtime executes of a model, or why that cannot be told.

        Args:
            environment: Number of the environment.
            digest: The model's identity.
            graph: The executed graph.
            outputs: A digest of what the model computes on the reference inputs, if it is known.
            reader: The version of the code that read it.

        Raises:
            WorkspaceError: It is a failure, and the disk is full.
        """
        if isinstance(graph, Failure):
            check_room(self._path)
        found: tuple[str | None, str | None, str | None] = (
            (None, graph.kind, graph.reason)
            if isinstance(graph, Failure)
            else (json.dumps({**graph.to_json(), "reader": reader}), None, None)
        )
        data, kind, reason = found
        self._insert(
            "INSERT OR REPLACE INTO graphs VALUES (?, ?, ?, ?, ?, ?)",
            *(environment, digest, data, outputs, kind, reason),
        )

    def forget_graph_failures(self, environment: int) -> None:
        """Let graphs that could not be read be tried again."""
        self._rows("DELETE FROM graphs WHERE environment = ? AND data IS NULL", environment)

    def add_reported(self, environment: int, testcase: str, latencies: Mapping[str, str]) -> None:
        """Write down the latencies of a test case as they stand in a result, the latest last."""
        with self._transaction():
            for model, text in latencies.items():
                self._insert(
                    "INSERT OR REPLACE INTO reported VALUES (?, ?, ?, ?)",
                    *(testcase, model, text, environment),
                )

    # --- statements ------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Write all of the block, or nothing of it."""
        self._rows("BEGIN IMMEDIATE")
        try:
            yield
            self._rows("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # not after a COMMIT that Ctrl-C came right behind
                self._rows("ROLLBACK")
            raise

    def _rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(statement, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as exc:  # the latter: SQLite's own words too
            raise self._unusable(exc) from exc

    def _insert(self, statement: str, *values: Any) -> int:
        try:
            return self._db.execute(statement, values).lastrowid or 0
        except (sqlite3.Error, UnicodeDecodeError) as exc:
            raise self._unusable(exc) from exc

    def _read(self, reader: Callable[[Any], T], value: Any) -> T:
        """Read what stands in a column; a file may be sound for SQLite, and damaged for us."""
        try:
            return reader(value)
        except (TypeError, ValueError, LookupError, RecursionError) as exc:
            raise self._unusable(exc) from exc

    def _unusable(self, exc: Exception) -> ResultFileError:
        code = _code(exc)
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            advice = full_disk(self._path)
        elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            advice = f"it has to be a file that may be written; {read_only_disk(self._path)}"
        elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            advice = "another program has it open; wait for it"
        elif isinstance(exc, OSError):
            advice = reason_of(exc, self._path)
        else:
            advice = "move it away to start a new one"
        return ResultFileError(f"{self._path}: the sample store cannot be used: {exc}; {advice}")

    # --- reading ---------------------------------------------------------------------------------

    def samples(
        self, campaign: int, testcase: str, hashes: Mapping[str, str]
    ) -> dict[str, list[Samples]]:
        """Samples of a test case's models, a list entry a round, oldest first.

        Args:
            campaign: Number of the campaign.
            testcase: Name of the test case.
            hashes: Hash of each model's file; samples of another content do not count.
        """
        found: dict[str, list[Samples]] = {model: [] for model in hashes}
        for model, blob in self._visits(campaign, testcase, hashes, "samples"):
            found[model].append(self._read(_samples, blob))
        return found

    def trials(self, campaign: int, names: str) -> dict[str, list[StoredTrial]]:
        """Trials, oldest first.

        Args:
            campaign: Number of the campaign.
            names: What their names begin with.

        Returns:
            By name.
        """
        rows = self._rows(
            "SELECT rounds.testcase, rounds.id, model, hash, samples, metrics FROM visits "
            "JOIN rounds ON rounds.id = visits.round JOIN loads ON loads.id = rounds.load "
            "WHERE rounds.testcase >= ? AND rounds.testcase < ? AND loads.campaign = ? "
            "ORDER BY rounds.id, position",
            *(names, names + "\U0010ffff", campaign),
        )
        found: dict[str, list[StoredTrial]] = {}
        for (name, _), of_round in groupby(rows, key=lambda row: row[:2]):
            notes: dict[str, Any] = {}
            visits: list[tuple[str, str, Samples]] = []
            for _, _, model, digest, blob, text in of_round:
                if model == _NOTES:
                    notes = self._read(_mapping, text)
                elif blob is not None:
                    visits.append((model, digest, self._read(_samples, blob)))
            if visits and visits[0][0] == _GATE:
                gate = visits.pop(0)[2]
                if not len(gate):
                    continue  # nobody knows at what speed it was
                level_ns = int(gate[0])
                found.setdefault(name, []).append(
                    StoredTrial(visits=visits, level_ns=level_ns, notes=notes)
                )
        return found

    def metrics(
        self, campaign: int, testcase: str, hashes: Mapping[str, str]
    ) -> dict[str, list[dict[str, Any]]]:
        """As ``samples``, of a backend that gives metrics and no samples."""
        found: dict[str, list[dict[str, Any]]] = {model: [] for model in hashes}
        for model, text in self._visits(campaign, testcase, hashes, "metrics"):
            found[model].append(self._read(_mapping, text))
        return found

    def _visits(
        self, campaign: int, testcase: str, hashes: Mapping[str, str], column: str
    ) -> list[tuple[str, Any]]:
        rows = self._rows(
            f"SELECT model, hash, {column} FROM visits JOIN rounds ON rounds.id = visits.round "
            "JOIN loads ON loads.id = rounds.load "
            f"WHERE rounds.testcase = ? AND loads.campaign = ? AND {column} IS NOT NULL "
            "ORDER BY rounds.id, position",
            *(testcase, campaign),
        )
        return [(model, data) for model, digest, data in rows if hashes.get(model) == digest]

    def has_any(self, campaign: int, names: str) -> bool:
        """Whether there are rounds or failures of anything whose name begins so."""
        bounds = names, names + "\U0010ffff"
        ((found,),) = self._rows(
            "SELECT EXISTS (SELECT 1 FROM rounds JOIN loads ON loads.id = rounds.load "
            "WHERE testcase >= ? AND testcase < ? AND campaign = ?) "
            "OR EXISTS (SELECT 1 FROM failures "
            "WHERE testcase >= ? AND testcase < ? AND campaign = ?)",
            *(*bounds, campaign, *bounds, campaign),
        )
        return bool(found)

    def failures(
        self, campaign: int, testcase: str, hashes: Mapping[str, str]
    ) -> dict[str, Failure]:
        """Failures of a test case's models, as they are now."""
        rows = self._rows(
            "SELECT model, hash, kind, reason FROM failures WHERE campaign = ? AND testcase = ?",
            *(campaign, testcase),
        )
        return {
            model: Failure(kind=kind, reason=reason)
            for model, digest, kind, reason in rows
            if hashes.get(model) == digest
        }

    def checked(self, environment: int, digest: str) -> bool:
        """Whether a model's conversion was compared with its source, and found equal."""
        rows = self._rows(
            "SELECT finding FROM checks WHERE environment = ? AND hash = ?", environment, digest
        )
        return rows == [(None,)]

    def graph(self, environment: int, digest: str) -> StoredGraph | None:
        """What is known of a model's executed graph; None: it was never asked for."""
        rows = self._rows(
            "SELECT data, outputs, kind, reason FROM graphs WHERE environment = ? AND hash = ?",
            environment,
            digest,
        )
        if not rows:
            return None
        ((data, outputs, kind, reason),) = rows
        if data is None and kind is None:
            return None  # somebody emptied it: nothing is known
        if data is None:
            return StoredGraph(
                graph=Failure(kind=str(kind), reason=str(reason)), outputs=outputs, reader=""
            )
        graph, reader = self._read(_graph, data)
        return StoredGraph(graph=graph, outputs=outputs, reader=reader)

    def place(self, environment: int) -> Provenance | None:
        """The environment of a number."""
        rows = self._rows("SELECT backend, data, key FROM environments WHERE id = ?", environment)
        if not rows:
            return None
        ((backend, data, key),) = rows
        return Provenance(
            backend=backend, environment=self._read(_mapping, data), key=key, number=environment
        )

    def provenance(self, testcase: str, model: str, latency: str) -> Provenance | None:
        """Where a latency was measured; None: not here, so somebody filled it in."""
        rows = self._rows(
            "SELECT backend, data, key, environments.id FROM reported JOIN environments "
            "ON environments.id = reported.environment "
            "WHERE testcase = ? AND model = ? AND latency = ? ORDER BY reported.rowid DESC LIMIT 1",
            *(testcase, model, latency),
        )
        if not rows:
            return None
        ((backend, data, key, number),) = rows
        return Provenance(
            backend=backend, environment=self._read(_mapping, data), key=key, number=number
        )


def _code(exc: Exception) -> int:
    """SQLite's primary error code; 0: it is none of SQLite's."""
    return int(getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF


def _refuse_programs(db: sqlite3.Connection) -> None:
    """Refuse what no store of ours has, and what runs when it is used: it may never end.

    Raises:
        _DamagedError: There is a view, a trigger or a virtual table.
    """
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_VALUE_BYTES)
    db.execute("PRAGMA trusted_schema = OFF")
    for (name,) in db.execute(
        "SELECT name FROM sqlite_master WHERE type NOT IN ('table', 'index') "
        "OR sql LIKE 'CREATE VIRTUAL%'"
    ):
        raise _DamagedError(f"it has {name!r:.80}, which is no table")


def _columns(db: sqlite3.Connection) -> set[tuple[str, str]]:
    """Tables and their columns."""
    return set(
        db.execute(
            "SELECT tables.name, columns.name FROM sqlite_master AS tables "
            "JOIN pragma_table_info(tables.name) AS columns WHERE tables.type = 'table'"
        )
    )


@functools.cache
def _known_columns(version: int) -> frozenset[tuple[str, str]]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(_SCHEMA)
        return frozenset(
            column for column in _columns(db) if column[0] != "graphs" or version >= _WITH_GRAPHS
        )


def graph_reference(environment: int, digest: str) -> str:
    """What a result says of where a model's executed graph lies in the store."""
    return f"{environment}:{digest}"


def read_graph_reference(text: Any) -> tuple[int, str] | None:
    """Environment and model of a ``graph_reference``; None: it is none."""
    match = re.fullmatch(r"(\d{1,9}):([0-9a-f]{64})", text) if isinstance(text, str) else None
    return (int(match[1]), match[2]) if match else None


def _graph(text: Any) -> tuple[ExecutedGraph, str]:
    data = _mapping(text)
    return ExecutedGraph.from_json(data), str(data.get("reader", ""))


def _samples(blob: Any) -> Samples:
    return np.frombuffer(blob, dtype="<i8").astype(np.int64)


def _mapping(text: Any) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise TypeError(f"{text!r:.80} should be a JSON object")
    return found
