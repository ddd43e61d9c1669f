"""Devices that one call asks for many visits, each a sample: rounds, failures, and the clock."""

from __future__ import annotations

import json
import random

import numpy as np
import onnx
import pytest

from nn_meter.builder import profile_models
from nn_meter.builder.backend_meta.fusion_rule_tester import detect_fusion_rule
from nn_meter.builder.backends.base import Environment, SessionBackend, Turn
from nn_meter.builder.profiling.interface import profile_models as measure_only
from nn_meter.errors import DeviceError, ModelRejectedError, NotInstalledError

OVERHEAD_NS, CONV_NS, ANY_NS = 200_000, 40_000, 10_000
VIEWS = {"Constant", "Identity", "Reshape", "Flatten"}


class FarSession:
    def __init__(self, name: str, ns: int) -> None:
        self.name, self.ns = name, ns

    def time(self, n):
        pytest.fail("it is timed by calls to its device")

    def outputs(self, feeds):
        raise NotInstalledError("nothing here computes it")

    def close(self) -> None:
        pass


class Far(SessionBackend):
    """A device far away: an activation behind a convolution costs nothing, all else something."""

    takes = ("onnx",)

    def __init__(self, configs=None) -> None:
        super().__init__(configs)
        self.calls: list[list[str]] = []
        self.runs: list[str] = []
        self.faults: dict[str, Exception] = {}
        self.gone = False
        self.noise = random.Random(7)

    def describe(self) -> Environment:
        return Environment(runtime="far", version="1", host="there")

    def open(self, converted_model, shapes):
        nodes = onnx.load(converted_model).graph.node
        kinds = {out: node.op_type for node in nodes for out in node.output}
        ns = OVERHEAD_NS
        for node in nodes:
            fused = node.op_type == "Relu" and kinds.get(node.input[0]) == "Conv"
            if node.op_type not in VIEWS and not fused:
                ns += CONV_NS if node.op_type == "Conv" else ANY_NS
        return FarSession(converted_model, ns)

    @property
    def in_turn(self) -> bool:
        return True

    def time_in_turn(self, sessions, limit_s):
        if self.gone:
            raise DeviceError("it fell off the bus")
        self.calls.append([session.name for session in sessions])
        found = []
        for session in sessions:
            fault = next((f for name, f in self.faults.items() if name in session.name), None)
            ns = round(session.ns * self.noise.uniform(1, 1.001))
            found.append(fault or np.array([ns], dtype=np.int64))
        notes = ["it was away"] if len(self.calls) == 1 else []
        return Turn(visits=found, conditions={"before": {"thermal_status": 0}, "notes": notes})

    def begin_run(self) -> str:
        self.runs.append("begun")
        return "a run"

    def join_run(self, run: str) -> None:
        self.runs.append(run)

    def end_run(self) -> None:
        self.runs.append("ended")


def test_a_round_is_one_call_and_a_visit_one_sample(generated, caplog):
    ws, origin = generated
    backend = Far({"RUNS": 50, "WARMUPS": 10})
    found = measure_only(backend, origin, workspace=ws)
    assert len(backend.calls) == 3 * 5
    for case in range(3):
        rounds = backend.calls[5 * case : 5 * case + 5]
        assert len({frozenset(each) for each in rounds}) == 1
        assert {len(each) for each in rounds} == {3}
        assert len({tuple(each) for each in rounds}) > 2  # in a balanced order
    latency = float(found["BF_conv_relu"]["block"]["latency"].split()[0])
    assert latency == pytest.approx((OVERHEAD_NS + CONV_NS) * 1e-6, rel=1e-2)
    lines = (ws.results_dir / "device_log.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert [line["measured"] for line in told[::5]] == list(origin)
    assert {line["before"]["thermal_status"] for line in told} == {0}
    assert "BF_conv_relu: it was away" in caplog.text
    assert caplog.text.count("conversions are not checked") <= 1
    assert backend.runs == ["begun", "ended"]
    measure_only(backend, origin, workspace=ws)
    assert len(backend.calls) == 15  # all is known


def test_rounds_can_be_chosen(generated):
    ws, origin = generated
    backend = Far({"ROUNDS": 2})
    measure_only(backend, origin, workspace=ws)
    assert len(backend.calls) == 3 * 2


def test_a_model_that_fails_costs_its_test_case(generated):
    ws, origin = generated
    backend = Far({"ROUNDS": 2})
    backend.faults["dwconv_relu_dwconv"] = ModelRejectedError("no such operator")
    found = measure_only(backend, origin, workspace=ws)
    entry = found["BF_dwconv_relu"]["dwconv"]
    assert entry["error"] == {"kind": "refused", "reason": "no such operator"}
    assert "latency" in found["BF_relu_relu"]["block"]


def test_a_device_that_leaves_is_reported_and_no_model_is_blamed(generated):
    ws, origin = generated
    backend = Far({"ROUNDS": 2})
    backend.gone = True
    found = measure_only(backend, origin, workspace=ws)
    for case in found.values():
        errors = [entry["error"] for entry in case.values() if "error" in entry]
        assert errors == [{"kind": "device", "reason": "it fell off the bus"}]
        assert not any("latency" in entry for entry in case.values())
    assert "it fell off the bus" in (ws.results_dir / "profile_error.log").read_text()
    assert backend.runs == ["begun", "ended"]
    backend.gone = False
    found = measure_only(backend, origin, workspace=ws)
    assert all("latency" in entry for case in found.values() for entry in case.values())
    assert not any("error" in entry for case in found.values() for entry in case.values())


def test_the_clock_decides_on_such_a_device(generated, workspace):
    ws, origin = generated
    ws = workspace(EVIDENCE="latency", TIME_BUDGET=60)
    backend = Far({"ROUNDS": 2})
    detected = detect_fusion_rule(profile_models(backend, origin, workspace=ws), workspace=ws)
    assert {name: rule["verdict"] for name, rule in detected.items()} == {
        "BF_conv_relu": "fused",
        "BF_dwconv_relu": "fused",
        "BF_relu_relu": "separate",
    }
    assert {rule["evidence"] for rule in detected.values()} == {"latency"}
    trials = [call for call in backend.calls if len(call) > len(set(call))]
    assert trials  # rounds of several in one call
    log = (ws.results_dir / "device_log.jsonl").read_text()
    assert '"measured": "clock:' in log


def test_a_device_that_leaves_the_clock_leaves_it_undecided_until_it_is_back(generated, workspace):
    ws, origin = generated
    ws = workspace(EVIDENCE="latency", TIME_BUDGET=60, BASIC_TESTCASES=["conv_relu"])
    cases = {"BF_conv_relu": origin["BF_conv_relu"]}
    backend = Far({"ROUNDS": 2})
    backend.gone = True
    detected = detect_fusion_rule(profile_models(backend, cases, workspace=ws), workspace=ws)
    rule = detected["BF_conv_relu"]
    assert rule["verdict"] == "undecided"
    assert "it fell off the bus" in rule["reason"]
    backend.gone = False
    detected = detect_fusion_rule(profile_models(backend, cases, workspace=ws), workspace=ws)
    assert detected["BF_conv_relu"]["verdict"] == "fused"
