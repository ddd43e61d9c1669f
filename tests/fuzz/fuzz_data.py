"""Configurations, registrations, rules, results and sample stores: valid ones and hostile ones."""

from __future__ import annotations

import copy
import importlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
from fuzz_mutation import HOSTILE_INTS, damage, damaged_json, hostile_value

from nn_meter import registry
from nn_meter.builder.backends.base import Environment
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode
from nn_meter.builder.backends.interface import PLATFORMS
from nn_meter.builder.config import RuletestConfig, read_yaml, render_template, validate
from nn_meter.builder.profiling.results import read_testcases
from nn_meter.builder.profiling.store import Failure, Store, StoredTrial
from nn_meter.builder.workspace import Workspace, create_workspace, open_workspace, read_json
from nn_meter.fusion_rules import read
from nn_meter.registry import files

__all__ = [
    "configurations",
    "make_configuration",
    "make_registration",
    "make_results",
    "make_rules",
    "make_store",
    "read_configuration",
    "read_store",
    "registration_reader",
    "registrations",
    "result_files",
    "results_reader",
    "rule_files",
    "stores",
]

# --- YAML ----------------------------------------------------------------------------------------

_YAML_VALUES = (
    *map(str, HOSTILE_INTS),
    *("1e400", "-1e400", ".nan", ".inf", "-.inf", "0x" + "f" * 9000, "0b" + "1" * 9000),
    *("1" + ":1" * 5000, "1" * 5000, "1.0", "yes", "off", "~", "", "''", '"\\ud800"', "'\\0'"),
    *("2022-02-30", "2022-01-01", "2022-01-01 25:00:00", "!!binary 'a'", "!!set {a, b}"),
    *("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!bool maybe"),
    *("!!int 'a'", "!!float 'a'", "!!timestamp 'a'", "!!omap [a: 1]", "!!null 5", "!x 1"),
    *("*a", "&a [1, *a]", "&a {<<: *a}", "{<<: [*a, *a]}", "[" * 300, "{" * 300, "- - - -"),
    *("[1, 2]", "{a: 1}", "{a: 1, a: 2}", "{[1]: 2}", "{1: 2}", "? x", "|\n a\n b", ">-\n a"),
    *("text", "conv_relu", "torch", "true", "'x' 'y'", "%TAG", "@", "`", "\u2028", "\x1b[31m"),
    *("x" * 3000, "[" + "1, " * 3000 + "1]", "[" + "a, " * 300 + "b]"),
)
_LAUGHS = "\n".join(
    ["a0: &a0 [lol]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
)


def _yaml_text(chance: Random, keys: list[str], lines: list[str]) -> str:
    """Lines of a valid file, some of them with other values, twice, or in another place."""
    lines = list(lines)
    for _ in range(chance.choice((1, 1, 2, 4))):
        key, value = chance.choice(keys), chance.choice(_YAML_VALUES)
        at = chance.randrange(len(lines) + 1)
        kind = chance.randrange(8)
        if kind < 5:
            old = next((place for place, line in enumerate(lines) if line.startswith(key)), at)
            lines[old : old + 1] = [f"{key}: {value}"]
        elif kind == 5:
            indent = " " * chance.choice((0, 1, 4, 500))
            lines.insert(at, f"{indent}{chance.choice(_YAML_VALUES)}: {value}")
        elif kind == 6:
            lines.insert(at, chance.choice((_LAUGHS, "---", "...", "%YAML 9.9", "\t", "- a", "#")))
        elif lines:
            lines.append(chance.choice(lines))
    return "\n".join(lines)


@cache
def configurations() -> list[tuple[str, bytes]]:
    """What new workspaces have."""
    made = [("ruletest.yaml", render_template(RuletestConfig, "title").encode())]
    for name, platform in PLATFORMS.items():
        text = render_template(_settings(name), "title", **platform.template)
        made.append((f"{name}.yaml", text.encode()))
    return made


def _settings(platform: str) -> Any:
    module, _, name = PLATFORMS[platform].settings.partition(":")
    return getattr(importlib.import_module(module), name)


def make_configuration(chance: Random) -> tuple[str, bytes]:
    """A configuration with hostile values."""
    name, _ = chance.choice(configurations())
    cls = RuletestConfig if name == "ruletest.yaml" else _settings(name.removesuffix(".yaml"))
    keys = [*cls.model_fields, "MY_KEY"]
    lines = [f"{key}: {_default(cls, key)}" for key in keys]
    text = _yaml_text(chance, keys, lines).encode("utf-8", "surrogatepass")
    return name, damage(chance, text) if chance.random() < 0.2 else text


def _default(cls: Any, key: str) -> str:
    field = cls.model_fields.get(key)
    value = field.get_default(call_default_factory=True) if field is not None else "mine"
    return json.dumps(value, default=lambda _: "host")


def read_configuration(path: Path) -> object:
    """Read and check a configuration as a workspace does."""
    if path.name == "ruletest.yaml":
        names = {
            kind: [e.name for e in registry.entries(kind)] for kind in ("operator", "testcase")
        }
        return RuletestConfig.load(path, operators=names["operator"], testcases=names["testcase"])
    return validate(_settings(path.stem), read_yaml(path), str(path))


_ITEM = {
    "builtin_name": "op1",
    "implement": "torch",
    "package_location": "../package",
    "class_module": "script",
    "class_name": "Op1",
}


@cache
def registrations() -> list[tuple[str, bytes]]:
    """A meta file of each kind, and a registry."""
    backend = {key: value for key, value in _ITEM.items() if key != "implement"}
    place = {"package_location": "/somewhere"}
    whole = {
        "version": 1,
        "operators": [_ITEM | place],
        "testcases": [{**_ITEM, **place, "builtin_name": "MyTC"}],
        "backends": [{**backend, **place, "defaultConfigFile": "/somewhere/c.yaml"}],
    }
    return [
        ("operator.yaml", yaml.safe_dump(_ITEM).encode()),
        ("testcase.yaml", yaml.safe_dump({**_ITEM, "builtin_name": "MyTC"}).encode()),
        ("backend.yaml", yaml.safe_dump(backend).encode()),
        ("registry.yaml", yaml.safe_dump(whole).encode()),
    ]


def make_registration(chance: Random) -> tuple[str, bytes]:
    """A registration with hostile values."""
    name, data = chance.choice(registrations())
    keys = [*_ITEM, "defaultConfigFile", "version", "operators", "own"]
    text = _yaml_text(chance, keys, data.decode().splitlines())
    return name, text.encode("utf-8", "surrogatepass")


def registration_reader(folder: Path) -> Callable[[Path], object]:
    """Reads a meta file; a registry where the home folder has it."""
    (folder / "package").mkdir(exist_ok=True)
    (folder / "package" / "__init__.py").touch()

    def _read(path: Path) -> object:
        if path.name != "registry.yaml":
            return files.read_meta_file(path.stem, path)  # type: ignore[arg-type]
        before = os.environ.get("NN_METER_HOME")
        os.environ["NN_METER_HOME"] = str(path.parent)
        try:
            return files.read_registry()
        finally:
            os.environ.pop("NN_METER_HOME")
            if before is not None:
                os.environ["NN_METER_HOME"] = before

    return _read


# --- rules ---------------------------------------------------------------------------------------


@cache
def _rules() -> dict[str, Any]:
    data, _ = read.read_data("onnxruntime-1.31")
    names = ["BF_conv_relu", "BF_add_relu", "BF_relu_conv", "MON", "MIN"]
    rules = {name: data[name] for name in names if name in data}
    sized = copy.deepcopy(data["BF_conv_relu"])
    sized["sizes"] = [{"where": {"channels": {"least": 8}}, "obey": False, "verdict": "separate"}]
    return {**rules, "BF_conv_bn_relu": sized, "BF_dwconv_relu": {"obey": True}}


_ORIGINAL = {"BF_conv_relu": {"obey": 1}, "BF_relu_conv": {"obey": 0}, "MON": {"obey": 2}}


@cache
def rule_files() -> list[tuple[str, bytes]]:
    """Some rules of those that ship; and a file of the original program."""
    return [
        ("rules.json", json.dumps(_rules()).encode()),
        ("original.json", json.dumps(_ORIGINAL).encode()),
    ]


def make_rules(chance: Random) -> tuple[str, bytes]:
    """Rules with hostile values."""
    return "rules.json", damaged_json(chance, chance.choice((_rules(), _ORIGINAL)))


# --- results -------------------------------------------------------------------------------------


def _workspace(folder: Path) -> Workspace:
    keys = {
        **{"HW": 8, "CIN": 4, "COUT": 8, "SHAPE_1D": 8, "EVIDENCE": "auto"},
        **{"BASIC_TESTCASES": ["conv_relu"], "OTHER_TESTCASES": []},
    }
    create_workspace(
        folder, platform="onnxruntime", ruletest_config=yaml.safe_dump(keys), backend_config=""
    )
    return open_workspace(folder)


def _profiled() -> dict[str, Any]:
    def models(name: str, *ops: str) -> dict[str, Any]:
        return {
            model: {
                "model": f"./fusion_rule_test/models/{name}_{model}.onnx",
                "shapes": [[8, 8, 4]],
                "latency": f"{1.5 + len(model)} +- 0.25",
                "graph": "1:" + "ab" * 32,
            }
            for model in (*ops, "block")
        }

    result = {"BF_conv_relu": models("BF_conv_relu", "conv", "relu")}
    result["BF_conv_relu_bn"] = models("BF_conv_relu_bn", "conv", "relu", "bn")
    result["MON"] = models("MON", "case1", "case2", "case3")
    failed = models("BF_add_relu", "add", "relu")
    failed["add"] = {"model": "x.onnx", "error": {"kind": "refused", "reason": "no"}}
    return {**result, "BF_add_relu": failed}


@cache
def result_files() -> list[tuple[str, bytes]]:
    """Profiled results as a run writes them."""
    return [("profiled_results.json", json.dumps(_profiled()).encode())]


def make_results(chance: Random) -> tuple[str, bytes]:
    """Results that were edited by hand."""
    return "profiled_results.json", damaged_json(chance, _profiled())


def results_reader(folder: Path) -> Callable[[Path], object]:
    """Reads results in a workspace, and detects rules of them."""
    from nn_meter.builder.backend_meta.fusion_rule_tester import detect_fusion_rule

    workspace = _workspace(Path(tempfile.mkdtemp(dir=folder)))

    def _read(path: Path) -> object:
        read_json(path, "test cases")
        testcases = read_testcases(path, latency_only=True)
        read_testcases(path)
        return detect_fusion_rule(testcases, workspace)

    return _read


# --- the sample store ----------------------------------------------------------------------------

_CASE, _HASH = "BF_conv_relu", "ab" * 32
_TEXT_COLUMNS = {
    "environments": ("id", "key", "backend", "data"),
    "campaigns": ("id", "environment", "started"),
    "loads": ("id", "campaign", "started"),
    "rounds": ("load", "testcase"),
    "visits": ("position", "model", "hash", "samples", "metrics"),
    "failures": ("testcase", "model", "hash", "kind", "reason"),
    "checks": ("hash", "finding"),
    "reported": ("testcase", "model", "latency", "environment"),
    "graphs": ("environment", "hash", "data", "outputs", "kind", "reason"),
}
_STATEMENTS = (
    "DROP TABLE graphs",
    "DROP TABLE rounds",
    "ALTER TABLE visits RENAME COLUMN samples TO other",
    "CREATE TRIGGER t AFTER INSERT ON campaigns BEGIN DELETE FROM visits; END",
    "CREATE TRIGGER t BEFORE INSERT ON loads BEGIN INSERT INTO loads VALUES "
    "((WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT max(x) FROM c), 1, 1);"
    " END",
    "DROP TABLE graphs; CREATE VIEW graphs AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT "
    "x+1 FROM c) SELECT x environment, x hash, x data, x outputs, x kind, x reason FROM c",
    "PRAGMA user_version = 1",
    "PRAGMA user_version = 77",
    "PRAGMA user_version = 0",
    "PRAGMA journal_mode = DELETE",
    "INSERT INTO environments VALUES (9223372036854775807, 'k', 'b', '{}')",
)


@cache
def stores() -> list[tuple[str, bytes]]:
    """A store in which something of everything is kept."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.db"
        with Store(path) as store:
            number = store.environment("b", Environment(runtime="r", version="1", host="h"))
            campaign = store.campaign(number)
            samples = np.arange(1, 50, dtype=np.int64)
            visits: list[Any] = [("conv", _HASH, samples), ("block", _HASH, {"latency": 1.5})]
            store.add_round(store.load(campaign), _CASE, visits)
            trial = StoredTrial(visits=[("a", _HASH, samples)], level_ns=5, notes={"n": [1]})
            store.add_trial(campaign, "clock:x", trial)
            failure = Failure(kind="refused", reason="no")
            store.add_failure(campaign, _CASE, "relu", _HASH, failure)
            store.add_check(number, _HASH, None)
            nodes = (ExecutedNode(name="n", type="Conv", inputs=("x",), outputs=("y",)),)
            graph = ExecutedGraph(nodes=nodes, inputs=("x",))
            store.add_graph(number, _HASH, graph, "digest", "1")
            store.add_graph(number, "cd" * 32, failure, None)
            store.add_reported(number, _CASE, {"conv": "1.0 +- 0.5"})
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA journal_mode = DELETE")
        return [("samples.db", path.read_bytes())]


def make_store(chance: Random) -> tuple[str, bytes]:
    """A store that is sound for SQLite and holds what nobody wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.db"
        path.write_bytes(stores()[0][1])
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA foreign_keys = OFF")
            for _ in range(chance.choice((1, 1, 2, 4))):
                try:
                    if _spoil(chance, db):
                        break  # a view or a trigger may run for ever in what follows
                except (sqlite3.Error, OverflowError, UnicodeEncodeError):
                    continue  # SQLite has its limits, too
        return "samples.db", path.read_bytes()


def _spoil(chance: Random, db: sqlite3.Connection) -> bool:
    """Change something; whether it was the schema."""
    if chance.random() < 0.3:
        db.executescript(chance.choice(_STATEMENTS))
        return True
    table = chance.choice(list(_TEXT_COLUMNS))
    column = chance.choice(_TEXT_COLUMNS[table])
    value = hostile_value(chance)
    if column in ("data", "metrics", "samples") and chance.random() < 0.7:
        known = db.execute(f"SELECT {column} FROM {table}").fetchall()
        texts = [text for (text,) in known if isinstance(text, str)]
        if texts:
            value = damaged_json(chance, json.loads(chance.choice(texts))).decode(
                "utf-8", "replace"
            )
    elif isinstance(value, dict | list):
        value = json.dumps(value)
    if chance.random() < 0.1:
        db.execute(f"UPDATE {table} SET {column} = CAST(? AS TEXT)", (b"\xff\xfe\x80",))
    else:
        db.execute(f"UPDATE {table} SET {column} = ?", (value,))
    return False


def read_store(path: Path) -> object:
    """Ask a store all that a run and a detection ask."""
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / path.name  # opening writes beside it
        copied.write_bytes(path.read_bytes())
        hashes = {"conv": _HASH, "block": _HASH, "relu": _HASH}
        with Store(copied) as store:
            number = store.environment("b", Environment(runtime="r", version="1", host="h"))
            campaign = store.campaign(number)
            found = [
                *(store.samples(campaign, _CASE, hashes), store.metrics(campaign, _CASE, hashes)),
                *(store.failures(campaign, _CASE, hashes), store.trials(campaign, "clock:")),
                *(store.checked(number, _HASH), store.graph(number, _HASH), store.place(number)),
                *(store.graph(number, "cd" * 32), store.provenance(_CASE, "conv", "1.0 +- 0.5")),
            ]
            store.load(campaign)
            store.retire(campaign, [_CASE])
            return found
