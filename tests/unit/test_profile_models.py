"""profile_models and convert_models: nothing measured twice, nothing lost, nothing mixed up."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import sqlite3
import textwrap
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import yaml

from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester import detect_fusion_rule, generate_testcases
from nn_meter.builder.backends import BaseBackend, BaseParser, BaseProfiler, connect_backend
from nn_meter.builder.backends.base import Environment, SessionBackend
from nn_meter.builder.backends.onnxruntime.backend import OnnxRuntimeCPUBackend
from nn_meter.builder.nn_modules.info import info_file
from nn_meter.builder.profiling.interface import convert_models, profile_models
from nn_meter.builder.profiling.measure import identity
from nn_meter.builder.profiling.run import ProfileSummary
from nn_meter.builder.workspace import read_json
from nn_meter.errors import (
    BackendError,
    ConfigError,
    ConversionError,
    ModelRejectedError,
    ResultFileError,
    WorkspaceError,
)
from nn_meter.latency import Latency, ProfiledResults

CASES = ["BF_conv_relu", "BF_dwconv_relu", "BF_relu_relu"]
MODELS = 9
VISIT_NS = [1_000_000, 1_000_000, 2_000_000, 3_000_000, 3_000_000]
LATENCY = "2.0 +- 0.894427"  # of that, however often


class Timed:
    """A session that computes what the model does, and takes the same few times each visit."""

    def __init__(self, session, backend, model: str) -> None:
        self._session, self._backend, self._model = session, backend, model

    def time(self, n: int) -> np.ndarray:
        self._backend.calls.append((self._model, n))
        if (fault := self._backend.faults.get(("time", self._model))) is not None:
            raise fault
        return np.array(VISIT_NS * n, dtype=np.int64)[:n]

    def outputs(self, feeds):
        return self._session.outputs(feeds)

    def close(self) -> None:
        self._session.close()


class Fake(OnnxRuntimeCPUBackend):
    """A backend made by hand, so it runs in this process. Its clock is not a clock."""

    def __init__(self, configs=None, faults=None) -> None:
        super().__init__(configs)
        self.faults = faults or {}
        self.calls: list[tuple[str, int]] = []
        self.converted: list[str] = []
        self.opened: list[str] = []

    def describe(self) -> Environment:
        return Environment(runtime="fake", version="1", threads=self.threads, host="here")

    def convert_model(self, model_path, save_path, input_shape=None):
        self.converted.append(Path(model_path).stem)
        if (fault := self.faults.get(("convert", Path(model_path).stem))) is not None:
            raise fault
        return shutil.copy(model_path, Path(save_path) / "converted.onnx")

    def open(self, converted_model, shapes):
        digest = Path(converted_model).parent.name
        model = self.names.get(digest, Path(converted_model).stem)
        self.opened.append(model)
        if (fault := self.faults.get(("open", model))) is not None:
            raise fault
        return Timed(super().open(converted_model, shapes), self, model)

    names: dict[str, str]


@pytest.fixture
def fake(generated):
    """Make backends that know a model at hand by name, the first of those of one content."""
    ws, origin = generated
    names = {}
    for case, models in origin.items():
        for name, entry in models.items():
            info = json.loads(info_file(ws.resolve(entry["model"])).read_text())
            names.setdefault(identity(info["sha256"], info["shapes"])[:20], f"{case}_{name}")

    def _fake(configs=None, **faults):
        """Faults by operation and model, joined by two underscores."""
        backend = Fake(configs, {tuple(key.split("__")): value for key, value in faults.items()})
        backend.names = names
        return backend

    return _fake


def runs_of(backend: Fake, warmups: int = 10) -> dict[str, int]:
    """Measured runs of each content at each of its loads."""
    total: dict[str, int] = {}
    for model, n in backend.calls:
        total[model] = total.get(model, 0) + n
    return {model: n // backend.opened.count(model) - warmups for model, n in total.items()}


def count(ws, table: str) -> int:
    with closing(sqlite3.connect(ws.store_file)) as db:
        return db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def latencies(testcases) -> dict[str, dict[str, str]]:
    return {
        case: {name: entry["latency"] for name, entry in models.items() if "latency" in entry}
        for case, models in testcases.items()
    }


# --- what comes out ------------------------------------------------------------------------------


def test_latencies_are_the_average_and_deviation_of_all_runs(generated, fake):
    ws, origin = generated
    given = copy.deepcopy(origin)
    summary, told = ProfileSummary(), []
    backend = fake()
    found = profile_models(
        backend, origin, summary=summary, progress=lambda *step: told.append(step)
    )
    assert origin == given
    assert list(found) == CASES
    for case, models in found.items():
        for name, entry in models.items():
            assert entry == {**origin[case][name], "latency": LATENCY}
    assert set(runs_of(backend).values()) == {50}
    assert (summary.measured, summary.kept, summary.failed) == (CASES, [], {})
    assert summary.runtime_s == pytest.approx(MODELS * 50 * 2e-3)
    assert summary.environment == "fake 1 on CPU, 1 thread, float32"
    assert [step for step in told if step[0] == "profile"] == [
        *(("profile", done, 3, name) for done, name in enumerate(CASES)),
        ("profile", 3, 3, ""),
    ]
    assert count(ws, "rounds") == 30


def without_shapes(testcases):
    """What a file of results holds unless DETAIL is set."""
    return {
        case: {
            name: {key: value for key, value in entry.items() if key != "shapes"}
            for name, entry in models.items()
        }
        for case, models in testcases.items()
    }


def test_detail_attaches_the_shapes(workspace, fake):
    ws = workspace(DETAIL=True, BASIC_TESTCASES=["conv_relu"], OTHER_TESTCASES=[])
    found = profile_models(fake(), generate_testcases())
    assert found["BF_conv_relu"]["block"]["shapes"] == [[4, 8, 8]]
    assert read_json(ws.results_dir / "profiled_results.json", "results") == found


def test_a_file_without_shapes_can_be_profiled_again(generated, fake):
    ws, origin = generated
    found = profile_models(fake(), origin)
    assert profile_models(fake(), ws.results_dir / "profiled_results.json") == found


def test_a_foreign_model_without_shapes_is_refused(generated, fake):
    ws, origin = generated
    source = ws.resolve(origin["BF_conv_relu"]["conv"]["model"])
    (ws.path / "foreign.onnx").write_bytes(source.read_bytes())
    with pytest.raises(ResultFileError, match=r"BF_conv_relu: conv: it has no shapes"):
        profile_models(fake(), {"BF_conv_relu": {"conv": {"model": "foreign.onnx"}}})


def test_a_model_in_other_shapes_is_measured_anew(generated, tmp_path):
    ws, _ = generated
    dynamic = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]>'
        "g (float[1, N] x) => (float[1, N] y) { y = Relu(x) }"
    )
    onnx.save(dynamic, ws.path / "dynamic.onnx")
    backend = connect_backend("onnxruntime_cpu")
    latency = []
    for size in (16, 2**20):
        case = {"BF_conv_relu": {"block": {"model": "dynamic.onnx", "shapes": [[size]]}}}
        found = profile_models(backend, case)
        latency.append(Latency(found["BF_conv_relu"]["block"]["latency"]))
    assert latency[1].avg > 3 * latency[0].avg


def test_files_of_a_run(generated, fake):
    ws, origin = generated
    found = profile_models(fake(), origin)
    for folder in (ws.results_dir, ws.results_dir / "Fake"):
        assert read_json(folder / "profiled_results.json", "results") == without_shapes(found)
    environment = read_json(ws.results_dir / "Fake" / "environment.json", "environment")
    assert environment["options"]["models"]["HW"] == 8
    assert (environment["runtime"], environment["threads"]) == ("fake", 1)
    assert not (ws.results_dir / "profile_error.log").exists()


def test_the_path_does_as_the_dict(generated, fake):
    ws, origin = generated
    by_dict = profile_models(fake(), origin)
    for path in (ws.results_dir / "origin_testcases.json", str(ws.results_dir / "Fake.json")):
        shutil.copy(ws.results_dir / "origin_testcases.json", ws.results_dir / "Fake.json")
        assert profile_models(fake(), path) == by_dict


def test_another_name_for_the_file(generated, fake):
    ws, origin = generated
    profile_models(fake(), origin, save_name="mine.json")
    for folder in (ws.results_dir, ws.results_dir / "Fake"):
        assert (folder / "mine.json").exists()
        assert not (folder / "profiled_results.json").exists()


# --- nothing twice -------------------------------------------------------------------------------


def test_a_finished_test_case_is_not_measured_again(generated, fake):
    _, origin = generated
    first = profile_models(fake(), dict(list(origin.items())[:2]))
    again, summary = fake(), ProfileSummary()
    found = profile_models(again, origin, summary=summary)
    assert (summary.kept, summary.measured) == (CASES[:2], CASES[2:])
    relu = "BF_dwconv_relu_relu"  # of the same content as both of relu_relu
    assert again.opened == [relu, relu, "BF_relu_relu_block"]
    assert dict(list(found.items())[:2]) == first
    third = fake()
    assert profile_models(third, found) == found
    assert (third.calls, third.opened, third.converted) == ([], [], [])


def test_a_model_that_changed_is_measured_again(generated, fake):
    ws, origin = generated
    profile_models(fake(), origin)
    path = ws.resolve(origin["BF_relu_relu"]["block"]["model"])
    model = onnx.load(path)
    model.doc_string = "another content that computes the same"
    onnx.save(model, path)
    summary = ProfileSummary()
    profile_models(fake(), origin, summary=summary)
    assert (summary.kept, summary.measured) == (CASES[:2], CASES[2:])


def test_fresh_measures_everything_again_and_keeps_what_was(generated, fake):
    ws, origin = generated
    profile_models(fake(), origin)
    again, summary = fake(), ProfileSummary()
    profile_models(again, origin, fresh=True, summary=summary)
    assert summary.measured == CASES
    assert set(runs_of(again).values()) == {50}
    assert count(ws, "rounds") == 60
    summary = ProfileSummary()
    profile_models(fake(), origin, summary=summary)
    assert summary.kept == CASES


def test_fresh_puts_aside_only_what_it_asks(generated, fake):
    _, origin = generated
    profile_models(fake(), origin)
    profile_models(fake(), {CASES[0]: origin[CASES[0]]}, fresh=True)
    summary = ProfileSummary()
    profile_models(fake(), origin, summary=summary)
    assert summary.kept == CASES


def test_broken_point_mode_skips_what_has_a_latency(generated, fake):
    _, origin = generated
    origin["BF_conv_relu"]["conv"]["latency"] = 7
    for model in origin["BF_dwconv_relu"].values():
        model["latency"] = "8 +- 1"
    backend, summary = fake(), ProfileSummary()
    found = profile_models(backend, origin, broken_point_mode=True, summary=summary)
    assert latencies(found) == {
        "BF_conv_relu": {"conv": "7.0 +- 0.0", "relu": LATENCY, "block": LATENCY},
        "BF_dwconv_relu": dict.fromkeys(("dwconv", "relu", "block"), "8.0 +- 1.0"),
        "BF_relu_relu": dict.fromkeys(("relu_1", "relu_2", "block"), LATENCY),
    }
    assert (summary.kept, summary.measured) == (
        ["BF_dwconv_relu"],
        ["BF_conv_relu", "BF_relu_relu"],
    )
    assert "BF_conv_relu_conv" not in backend.opened
    found = profile_models(fake(), origin)
    assert {text for models in latencies(found).values() for text in models.values()} == {LATENCY}


def test_more_runs_go_on_from_those_that_are_there(generated, workspace):
    ws, origin = generated
    origin = {"BF_relu_relu": origin["BF_relu_relu"]}
    for runs, total in ((4, 4), (7, 7), (5, 7)):
        workspace(backend={"RUNS": runs, "WARMUPS": 0})
        profile_models(connect_backend("onnxruntime_cpu"), origin)
        with closing(sqlite3.connect(ws.store_file)) as db:
            query = "SELECT model, sum(length(samples)) / 8 FROM visits GROUP BY model"
            sizes = dict(db.execute(query).fetchall())
        assert sizes == dict.fromkeys(("relu_1", "relu_2", "block"), total)


def test_a_backend_made_by_hand_keeps_its_runs_and_warmups(generated, fake):
    _, origin = generated
    backend = fake({"RUNS": 7, "WARMUPS": 0})
    profile_models(backend, origin)
    assert set(runs_of(backend, warmups=0).values()) == {7}


@pytest.mark.parametrize(("key", "value"), [("RUNS", 0), ("RUNS", "ten"), ("WARMUPS", -1)])
def test_runs_of_a_backend_made_by_hand_that_cannot_be(generated, fake, key, value):
    _, origin = generated
    backend = fake({key: value})
    with pytest.raises(ConfigError, match=f"^Fake: {key} must be a whole number"):
        profile_models(backend, origin)
    assert backend.opened == []


# --- Ctrl-C --------------------------------------------------------------------------------------


def interrupt_at(name: str):
    def progress(stage: str, done: int, total: int, at_hand: str) -> None:
        if (stage, at_hand) == ("profile", name):
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_run_leaves_what_it_has_and_goes_on(generated, fake):
    ws, origin = generated
    with pytest.raises(KeyboardInterrupt):
        profile_models(fake(), origin, progress=interrupt_at(CASES[1]))
    left = read_json(ws.results_dir / "profiled_results.json", "results")
    assert {case: len(found) for case, found in latencies(left).items()} == dict(
        zip(CASES, (3, 0, 0), strict=True)
    )
    summary = ProfileSummary()
    profile_models(fake(), origin, summary=summary)
    assert (summary.kept, summary.measured) == (CASES[:1], CASES[1:])


def test_a_run_interrupted_in_a_round_loses_that_round_only(generated, fake):
    ws, origin = generated
    origin = {"BF_dwconv_relu": origin["BF_dwconv_relu"]}
    backend = fake()
    visits = 3 + 3 * 4 + 1  # warm-ups, four rounds, and one visit of the fifth

    class Interrupts(list):
        def append(self, call):
            super().append(call)
            if len(self) > visits:
                raise KeyboardInterrupt

    backend.calls = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        profile_models(backend, origin)
    assert count(ws, "rounds") == 4
    again = fake()
    profile_models(again, origin)
    assert set(runs_of(again).values()) == {30}
    assert count(ws, "rounds") == 10


def test_an_interrupt_while_converting(generated, fake):
    ws, origin = generated

    def progress(stage: str, done: int, total: int, name: str) -> None:
        if stage == "convert" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_models(fake(), origin, progress=progress)
    assert latencies(read_json(ws.results_dir / "profiled_results.json", "results")) == {
        case: {} for case in CASES
    }
    profile_models(fake(), origin)


def test_latencies_of_elsewhere_are_not_taken_for_this_runs(generated, fake):
    ws, origin = generated
    for models in origin.values():
        for model in models.values():
            model["latency"] = "99.0 +- 9.0"
    with pytest.raises(KeyboardInterrupt):
        profile_models(fake(), origin, progress=interrupt_at(CASES[1]))
    left = latencies(read_json(ws.results_dir / "profiled_results.json", "results"))
    assert set(left["BF_conv_relu"].values()) == {LATENCY}
    assert (left["BF_dwconv_relu"], left["BF_relu_relu"]) == ({}, {})


# --- one model that fails ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ({"open": ModelRejectedError("no such op")}, "refused", "no such op"),
        ({"open": ValueError("odd \udc80")}, "failed", "ValueError: odd ?"),
        ({"time": RuntimeError("out of memory")}, "failed", "RuntimeError: out of memory"),
        ({"convert": ConversionError("no way")}, "refused", "no way"),
        ({"convert": KeyError("Conv")}, "failed", "KeyError: 'Conv'"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
def test_one_model_that_fails_costs_its_test_case(generated, fake, fault, kind, reason):
    ws, origin = generated
    ((op, error),) = fault.items()
    summary = ProfileSummary()
    faults = {f"{op}__BF_conv_relu_block": error}
    found = profile_models(fake(**faults), origin, summary=summary)
    assert found["BF_conv_relu"]["block"]["error"] == {"kind": kind, "reason": reason}
    assert "latency" not in found["BF_conv_relu"]["block"]
    for case in CASES[1:]:
        assert set(latencies(found)[case].values()) == {LATENCY}
    assert list(summary.failed) == ["BF_conv_relu: block"]
    log = (ws.results_dir / "profile_error.log").read_text()
    assert log == f"BF_conv_relu: block: {kind}: {reason}\n"
    assert read_json(ws.results_dir / "profiled_results.json", "results") == without_shapes(found)

    # it is not tried again, and named again, unless that is asked for
    again, summary = fake(), ProfileSummary()
    assert profile_models(again, found, summary=summary) == found
    assert (summary.kept, again.opened) == (CASES, [])
    assert list(summary.failed) == ["BF_conv_relu: block"]
    summary = ProfileSummary()
    mended = profile_models(fake(), found, retry_failed=True, summary=summary)
    assert (summary.measured, summary.kept) == (CASES[:1], CASES[1:])
    assert "error" not in mended["BF_conv_relu"]["block"]
    assert set(latencies(mended)["BF_conv_relu"].values()) == {LATENCY}
    assert not (ws.results_dir / "profile_error.log").exists()


@pytest.mark.parametrize(
    "answer", [[], [1, 2, 3], [0] * 5, [-1] * 5, [[1] * 5]], ids=lambda answer: str(answer)
)
def test_samples_that_cannot_be_are_no_measurement(generated, fake, monkeypatch, answer):
    _, origin = generated
    origin = {"BF_relu_relu": origin["BF_relu_relu"]}
    monkeypatch.setattr(Timed, "time", lambda self, n: answer)
    found = profile_models(fake(), origin)["BF_relu_relu"]
    assert not any("latency" in entry for entry in found.values())
    reason = found["relu_1"]["error"]["reason"]
    assert "5 samples were asked for" in reason or "not 'list'" in reason


FRAGILE = """
    import os, time
    from pathlib import Path
    from nn_meter.builder.backends.onnxruntime.backend import OnnxRuntimeCPUBackend

    class Fragile(OnnxRuntimeCPUBackend):
        def open(self, converted_model, shapes):
            name = Path(converted_model).stem
            if name == self.configs["CRASHES"]:
                print("the last words of", name, flush=True)
                os._exit(3)
            if name == self.configs["HANGS"]:
                time.sleep(1000)
            return super().open(converted_model, shapes)

    class Unwell(OnnxRuntimeCPUBackend):
        def describe(self):
            raise OSError("the device is gone")
"""


@pytest.fixture
def fragile(tmp_path):
    """Register backends whose runtime does not survive some models."""
    package = tmp_path / "fragile"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "script.py").write_text(textwrap.dedent(FRAGILE))
    for name in ("Fragile", "Unwell"):
        meta = {"builtin_name": name.lower(), "package_location": str(package)}
        meta |= {"class_module": "script", "class_name": name}
        (tmp_path / "meta.yaml").write_text(yaml.safe_dump(meta))
        registry.register("backend", tmp_path / "meta.yaml")


def test_a_model_that_crashes_or_hangs_the_runtime_costs_its_test_case(
    generated, workspace, fragile
):
    ws, origin = generated
    hangs = {"HANGS": "BF_dwconv_relu_dwconv", "CRASHES": "BF_conv_relu_block", "RUNS": 5}
    workspace(backend=hangs)
    summary = ProfileSummary()
    backend = connect_backend("fragile")
    found = profile_models(backend, origin, time_threshold=2, summary=summary)
    failed = {name: (failure.kind, failure.reason) for name, failure in summary.failed.items()}
    words = "fragile ended with exit code 3: the last words of BF_conv_relu_block"
    limit = "fragile took longer than its time limit of 2 s and was stopped"
    assert failed == {
        "BF_conv_relu: block": ("crashed", words),
        "BF_dwconv_relu: dwconv": ("time limit", limit),
    }
    assert len(latencies(found)["BF_relu_relu"]) == 3
    assert (ws.results_dir / "profile_error.log").read_text().splitlines() == [
        f"BF_conv_relu: block: crashed: {words}",
        f"BF_dwconv_relu: dwconv: time limit: {limit}",
    ]
    assert not psutil.Process().children()


def test_a_backend_that_cannot_be_reached_leaves_no_process(generated, fragile):
    _, origin = generated
    with pytest.raises(BackendError, match="OSError: the device is gone"):
        profile_models(connect_backend("unwell"), origin)
    assert not psutil.Process().children()


# --- a conversion that computes something else ---------------------------------------------------


def test_a_conversion_to_another_model_is_refused(generated, fake, monkeypatch):
    ws, origin = generated
    relu = ws.resolve(origin["BF_relu_relu"]["relu_1"]["model"])

    def convert(self, model_path, save_path, input_shape=None):
        wrong = Path(model_path).stem == "BF_dwconv_relu_dwconv"
        return shutil.copy(relu if wrong else model_path, Path(save_path) / "converted.onnx")

    monkeypatch.setattr(Fake, "convert_model", convert)
    for _ in range(2):  # a check that failed is made again, not taken for passed
        found = profile_models(fake(), origin, retry_failed=True)
        error = found["BF_dwconv_relu"]["dwconv"]["error"]
        assert error["kind"] == "wrong output"
        assert detect_fusion_rule(found)["BF_dwconv_relu"]["verdict"] == "undecided"
        assert "computes something else than its source" in error["reason"]
        assert "latency" not in found["BF_dwconv_relu"]["dwconv"]
        assert len(latencies(found)["BF_conv_relu"]) == 3


def test_a_source_that_was_seen_to_compute_something_else(generated, fake):
    ws, origin = generated
    path = info_file(ws.resolve(origin["BF_conv_relu"]["block"]["model"]))
    info = json.loads(path.read_text())
    info["outputs"][0]["values"][3] += 0.1 * info["outputs"][0]["scale"]
    path.write_text(json.dumps(info))
    found = profile_models(fake(), origin)
    assert "output 1 differs by 1.0e-01" in found["BF_conv_relu"]["block"]["error"]["reason"]


def test_what_was_known_of_a_model_does_not_count_for_another_content(generated, fake):
    ws, origin = generated
    relu = ws.resolve(origin["BF_relu_relu"]["relu_1"]["model"])
    shutil.copy(relu, dwconv := ws.resolve(origin["BF_dwconv_relu"]["dwconv"]["model"]))
    assert info_file(dwconv).exists()
    assert len(latencies(profile_models(fake(), origin))["BF_dwconv_relu"]) == 3


def test_rules_know_where_their_latencies_were_measured(generated, fake):
    ws, origin = generated
    detect_fusion_rule(profile_models(fake(), origin))
    rules = read_json(ws.results_dir / "Fake" / "detected_fusion_rule.json", "rules")
    assert list(rules) == CASES
    assert {(r["environment"]["backend"], r["environment"]["runtime"]) for r in rules.values()} == {
        ("Fake", "fake")
    }


def test_a_model_of_another_maker_is_checked_by_its_own_framework(generated, fake, monkeypatch):
    ws, origin = generated
    origin = {"BF_relu_relu": origin["BF_relu_relu"]}
    relu = ws.resolve(origin["BF_relu_relu"]["relu_1"]["model"])
    for model in origin["BF_relu_relu"].values():
        info_file(ws.resolve(model["model"])).unlink()
    assert len(latencies(profile_models(fake(), origin))["BF_relu_relu"]) == 3
    negative = onnx.load(relu)
    negative.graph.node[0].op_type = "Neg"
    onnx.save(negative, ws.path / "negative.onnx")
    monkeypatch.setattr(
        Fake, "convert_model", lambda *args: str(shutil.copy(ws.path / "negative.onnx", args[2]))
    )
    shutil.rmtree(ws.converted_dir)
    ws.store_file.unlink()
    found = profile_models(fake(), origin)["BF_relu_relu"]
    assert "computes something else" in found["relu_1"]["error"]["reason"]


# --- environments --------------------------------------------------------------------------------


def test_another_environment_starts_new_files_and_the_first_comes_back(generated, fake, caplog):
    ws, origin = generated
    folder = ws.results_dir / "Fake"
    profile_models(fake({"THREADS": 1}), origin)
    (folder / "detected_fusion_rule.json").write_text('{"of": "one thread"}')
    first = {file.name: file.read_text() for file in folder.glob("*.json")}
    key = json.loads(first["environment.json"])["key"]

    summary = ProfileSummary()
    with caplog.at_level(logging.WARNING):
        profile_models(fake({"THREADS": 2}), origin, summary=summary)
    assert summary.measured == CASES
    assert "threads: 1 -> 2" in caplog.text
    assert str(folder / key) in caplog.text
    assert {file.name: file.read_text() for file in (folder / key).glob("*.json")} == first
    assert {file.name for file in folder.glob("*.json")} == {
        "origin_testcases.json",
        "profiled_results.json",
        "environment.json",
    }
    second = {file.name: file.read_text() for file in folder.glob("*.json")}

    summary = ProfileSummary()
    profile_models(fake({"THREADS": 1}), origin, summary=summary)
    assert summary.kept == CASES
    assert {file.name: file.read_text() for file in folder.glob("*.json")} == first
    other = folder / json.loads(second["environment.json"])["key"]
    assert {file.name: file.read_text() for file in other.glob("*.json")} == second


def test_other_shapes_are_another_environment(generated, fake, workspace):
    _, origin = generated
    profile_models(fake(), origin)
    for keys, measured in (({"EPS_ALPHA": 0.2}, []), ({"HW": 9}, CASES), ({"HW": 8}, [])):
        workspace(**keys)
        summary = ProfileSummary()
        profile_models(fake(), generate_testcases(), summary=summary)
        assert summary.measured == measured


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_mark_is_moved_aside_and_made_again(generated, fake, caplog, content):
    ws, origin = generated
    folder = ws.results_dir / "Fake"
    folder.mkdir()
    (folder / "environment.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        profile_models(fake(), origin)
    assert f"moved to {folder / 'environment.json.damaged'}" in caplog.text
    assert (folder / "environment.json.damaged").read_text() == content
    assert read_json(folder / "environment.json", "environment")["runtime"] == "fake"


def test_the_environment_of_a_backend_that_does_not_say(generated):
    ws, origin = generated
    profile_models(Own({"PLACE": Path("/phone"), "LIMIT": float("nan")}), origin)
    environment = read_json(ws.results_dir / "Own" / "environment.json", "environment")
    assert (environment["runtime"], environment["version"]) == ("Own", "unknown")
    options = environment["options"]
    assert (options["PLACE"], options["LIMIT"]) == ("/phone", "NaN")


# --- backends of other makes ---------------------------------------------------------------------


class OwnProfiler(BaseProfiler):
    def profile(self, converted_model, **kwargs):
        return f"{Path(converted_model).stem} took 5 ms, 7 J"


class OwnParser(BaseParser):
    def parse(self, content):
        self.content = content
        return self

    @property
    def results(self):
        words = self.content.split()
        return ProfiledResults({"latency": Latency(float(words[2]), 0.5), "energy": int(words[4])})


class Own(BaseBackend):
    """As the guide has it: a profiler and a parser."""

    profiler_class = OwnProfiler
    parser_class = OwnParser


class OwnFileMethod(Own):
    def profile_model_file(
        self, model_path, save_path, input_shape=None, metrics=("latency",), **_
    ):
        assert Path(save_path).is_dir()
        return ProfiledResults({"latency": Latency(float(len(input_shape)), 0)})


class OwnFileMethodAndSessions(SessionBackend):
    profile_model_file = OwnFileMethod.profile_model_file

    def open(self, converted_model, shapes):
        raise AssertionError("its own method decides")


def test_a_backend_with_profiler_and_parser(generated):
    _, origin = generated
    found = profile_models(Own(), origin)
    assert {text for models in latencies(found).values() for text in models.values()} == {
        "5.0 +- 0.5"
    }
    assert "energy" not in found["BF_conv_relu"]["conv"]
    summary = ProfileSummary()
    both = profile_models(Own(), origin, metrics=["latency", "energy"], summary=summary)
    assert summary.measured == CASES
    assert both["BF_conv_relu"]["conv"]["energy"] == 7
    summary = ProfileSummary()
    assert profile_models(Own(), origin, metrics=["latency", "energy"], summary=summary) == both
    assert summary.kept == CASES
    found = profile_models(Own(), origin, metrics=["latency", "power"])
    assert (
        "'power' was not profiled; profiled: latency, energy"
        in (found["BF_conv_relu"]["conv"]["error"]["reason"])
    )


@pytest.mark.parametrize("cls", [OwnFileMethod, OwnFileMethodAndSessions])
def test_a_backend_with_a_method_for_files(generated, cls):
    _, origin = generated
    found = profile_models(cls(), origin)
    assert {text for models in latencies(found).values() for text in models.values()} == {
        "1.0 +- 0.0"
    }


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (BaseBackend, "BaseBackend has no profiler_class"),
        (type("Mute", (Own,), {"profile": lambda *a, **k: None}), "Mute was asked for latency and"),
        (
            type("Negative", (Own,), {"profile": lambda *a, **k: {"latency": -1}}),
            "a latency of -1.0",
        ),
        (
            type("Zero", (Own,), {"profile": lambda *a, **k: {"latency": Latency(0, 0.1)}}),
            "a latency of 0 ms was not measured",
        ),
        (
            type("Lost", (Own,), {"convert_model": lambda *a: "/gone"}),
            "should return the path of the converted model, but returned '/gone'",
        ),
    ],
    ids=["no profiler", "no answer", "negative", "zero", "no model"],
)
def test_a_backend_that_does_not_keep_the_contract(generated, cls, words):
    _, origin = generated
    found = profile_models(cls(), origin)
    reasons = [e["error"]["reason"] for m in found.values() for e in m.values() if "error" in e]
    assert len(reasons) >= len(CASES)
    assert all(words in reason for reason in reasons)
    assert all(not given for given in latencies(found).values())


def test_metrics_that_sessions_do_not_give(generated, fake):
    _, origin = generated
    assert profile_models(fake(), origin, metrics="latency")
    with pytest.raises(BackendError, match="metrics: Fake measures latency, and nothing else"):
        profile_models(fake(), origin, metrics=["latency", "energy"])


# --- connected backends --------------------------------------------------------------------------


def test_onnxruntime_in_a_process_of_its_own(generated, workspace):
    ws, origin = generated
    workspace(backend={"RUNS": 20, "WARMUPS": 1})
    summary = ProfileSummary()
    found = profile_models(connect_backend("onnxruntime_cpu"), origin, summary=summary)
    assert summary.measured == CASES
    assert 0 < summary.runtime_s < 30
    for models in latencies(found).values():
        assert len(models) == 3
        assert all(Latency(text).avg > 0 for text in models.values())
    assert count(ws, "rounds") == 30
    environment = read_json(ws.results_dir / "onnxruntime_cpu" / "environment.json", "environment")
    assert environment["runtime"] == "onnxruntime"
    assert not psutil.Process().children()
    summary = ProfileSummary()
    again = profile_models(connect_backend("onnxruntime_cpu"), origin, summary=summary)
    assert again == found
    assert summary.kept == CASES
    workspace(backend={"THREADS": 2})
    summary = ProfileSummary()
    profile_models(connect_backend("onnxruntime_cpu"), origin, summary=summary)
    assert summary.measured == CASES


def test_the_debug_backend(generated):
    ws, origin = generated
    path = ws.results_dir / "origin_testcases.json"
    found = profile_models(connect_backend("debug_backend"), path)
    values = [Latency(text).avg for models in latencies(found).values() for text in models.values()]
    assert len(values) == MODELS
    assert len(set(values)) > 1
    assert all(1 <= value <= 50 for value in values)
    assert profile_models(connect_backend("debug_backend"), origin) == found
    assert profile_models(connect_backend("debug_backend"), origin, fresh=True) != found


def test_an_interpreter_that_is_not_there(generated, workspace):
    _, origin = generated
    workspace(backend={"PYTHON": "/gone/python"})
    with pytest.raises(BackendError, match="PYTHON: '/gone/python' cannot be run"):
        profile_models(connect_backend("onnxruntime_cpu"), origin)


# --- convert_models ------------------------------------------------------------------------------


def test_converting_first(generated, fake):
    ws, origin = generated
    with pytest.raises(ResultFileError, match="BF_conv_relu: conv: have_converted is set, but"):
        profile_models(fake(), origin, have_converted=True)
    backend = fake()
    converted = convert_models(backend, ws.results_dir / "origin_testcases.json")
    assert len(backend.converted) == len(set(backend.converted)) < MODELS  # equal content, once
    assert read_json(ws.results_dir / "converted_results.json", "results") == converted
    paths = {e["converted_model"] for models in converted.values() for e in models.values()}
    assert all(Path(path).is_file() for path in paths)
    assert backend.calls == []
    backend = fake()
    found = profile_models(backend, converted, have_converted=True)
    assert backend.converted == []
    assert all(len(given) == 3 for given in latencies(found).values())


@pytest.mark.parametrize(
    "content",
    [
        '{"converted": 5}',
        '{"converted": "/bin/sh"}',
        '{"converted": "../outside"}',
        "[]",
        "[" * 9999,
        '{"converted": "' + "x" * 999 + '"}',
        '{"converted": "a\\u0000"}',
        "{}",
    ],
    ids=lambda content: content[:25],
)
def test_a_damaged_note_of_what_was_converted_is_none(generated, fake, content):
    ws, origin = generated
    origin = {"BF_relu_relu": origin["BF_relu_relu"]}
    first = convert_models(fake(), origin)
    for note in ws.converted_dir.rglob("converted.json"):
        note.write_text(content)
        (note.parent.parent / "outside").touch()
    backend = fake()
    assert convert_models(backend, origin) == first
    assert len(backend.converted) == 2


def test_what_was_converted_before_stays(generated, fake):
    ws, origin = generated
    first = convert_models(fake(), origin)
    backend = fake()
    assert convert_models(backend, origin) == first
    assert backend.converted == []
    Path(first["BF_conv_relu"]["block"]["converted_model"]).unlink()
    assert convert_models(backend, origin) == first
    assert backend.converted == ["BF_conv_relu_block"]
    assert not list(ws.results_dir.glob("samples.db"))


def test_a_conversion_that_fails_costs_its_test_case(generated, fake):
    ws, origin = generated
    converted = convert_models(fake(convert__BF_conv_relu_conv=ConversionError("no way")), origin)
    assert converted["BF_conv_relu"]["conv"]["error"] == {"kind": "refused", "reason": "no way"}
    assert "converted_model" not in converted["BF_conv_relu"]["conv"]
    line = "BF_conv_relu: conv: refused: no way\n"
    assert (ws.results_dir / "profile_error.log").read_text() == line
    found = profile_models(fake(), converted, have_converted=True)
    assert found["BF_conv_relu"]["conv"]["error"] == {"kind": "refused", "reason": "no way"}
    assert [len(given) for given in latencies(found).values()] == [0, 3, 3]
    assert (ws.results_dir / "profile_error.log").read_text() == line


def test_converting_skips_what_has_a_latency(generated, fake):
    _, origin = generated
    for model in origin["BF_conv_relu"].values():
        model["latency"] = 1.0
    backend = fake()
    converted = convert_models(backend, origin, broken_point_mode=True)
    assert not any(name.startswith("BF_conv_relu_conv") for name in backend.converted)
    assert "converted_model" not in converted["BF_conv_relu"]["conv"]


# --- what cannot be asked ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "predbuild"}, "mode: 'predbuild' is unknown.*'ruletest'"),
        ({"metrics": []}, "'latency' has to be among them"),
        ({"metrics": ["energy"]}, "'latency' has to be among them"),
        ({"metrics": 3}, "metrics must be a list of names, not 3"),
        ({"metrics": None}, "metrics must be a list of names, not None"),
        ({"metrics": ["latency", 3]}, "metrics must be a list of names"),
        *(
            ({"save_name": name}, "save_name must be the plain name of a file that ends in .json")
            for name in ("samples.db", "../../x.json", "/tmp/x.json", "a/x.json", "", None, 3)
        ),
        *(
            ({"save_name": name}, "save_name must be the plain name")
            for name in (
                ".json",
                ".x.json",
                "x\0.json",
                "\ud800.json",
                "x" * 300 + ".json",
                "x.JSON",
            )
        ),
        *(
            ({"save_name": f"{name}.json"}, "save_name: .* is a file of another purpose")
            for name in ("origin_testcases", "detected_results", "detected_fusion_rule")
        ),
        ({"save_name": "environment.json"}, "save_name: .* is a file of another purpose"),
        ({"time_threshold": 0}, "time_threshold must be a number of seconds above 0, not 0"),
        ({"time_threshold": -1}, "time_threshold"),
        ({"time_threshold": "long"}, "time_threshold"),
        ({"time_threshold": float("nan")}, "time_threshold"),
    ],
)
def test_arguments_that_cannot_be(generated, fake, arguments, words):
    ws, origin = generated
    with pytest.raises(ConfigError, match=words):
        profile_models(fake(), origin, **arguments)
    assert os.listdir(ws.results_dir) == ["origin_testcases.json"]  # noqa: PTH208


@pytest.mark.parametrize("function", [profile_models, convert_models])
@pytest.mark.parametrize("backend", ["onnxruntime_cpu", None, Fake], ids=str)
def test_what_is_no_backend(generated, function, backend):
    ws, origin = generated
    with pytest.raises(BackendError, match="is no backend; give what connect_backend returned"):
        function(backend, origin)
    with pytest.raises(ConfigError, match="save_name must be"):
        function(Own(), origin, save_name="samples.db")
    assert os.listdir(ws.results_dir) == ["origin_testcases.json"]  # noqa: PTH208


@pytest.mark.parametrize("function", [profile_models, convert_models])
def test_a_model_that_is_not_there_is_named_before_anything_is_measured(generated, fake, function):
    ws, origin = generated
    ws.resolve(origin["BF_relu_relu"]["block"]["model"]).unlink()
    backend = fake()
    with pytest.raises(
        ResultFileError, match=r"BF_relu_relu_block\.onnx: the model cannot be read"
    ):
        function(backend, origin)
    assert (backend.opened, backend.converted) == ([], [])
    assert not (ws.results_dir / "profiled_results.json").exists()


def test_without_a_workspace(fake, monkeypatch):
    monkeypatch.setattr("nn_meter.builder.builder_config._workspace", None)
    with pytest.raises(WorkspaceError, match=r"builder_config\.init"):
        profile_models(fake(), {})
