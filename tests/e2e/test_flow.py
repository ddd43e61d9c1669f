"""The same flow through the command line, on every backend with models of every framework."""

from __future__ import annotations

import importlib.util
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from driving import (
    SMALL,
    User,
    all_json_files,
    edit,
    milliseconds,
    results,
    rounds,
    visits,
    without_clock,
)

NEEDS = {
    "onnxruntime_cpu": ("onnxruntime",),
    "openvino_cpu": ("openvino",),
    "tflite_cpu": ("ai_edge_litert",),
    "ncnn_cpu": ("ncnn", "pnnx"),
    "mnn_cpu": ("MNN",),
    "iree_cpu": ("iree",),
    "debug_backend": (),
    "onnx": ("onnx",),
    "torch": ("torch", "onnxscript"),
    "tensorflow": ("tensorflow",),
}
RUNTIMES = {
    "onnxruntime_cpu": ("onnxruntime", "onnxruntime"),
    "openvino_cpu": ("openvino", "openvino"),
    "tflite_cpu": ("litert", "ai-edge-litert"),
    "ncnn_cpu": ("ncnn", "ncnn"),
    "mnn_cpu": ("mnn", "mnn"),
    "iree_cpu": ("iree", "iree-base-runtime"),
}
"""What a result calls the runtime, and the distribution that it comes in."""

FLOWS = [
    ("onnxruntime_cpu", "onnx"),
    ("onnxruntime_cpu", "torch"),
    ("openvino_cpu", "onnx"),
    ("openvino_cpu", "torch"),
    ("openvino_cpu", "tensorflow"),
    ("tflite_cpu", "tensorflow"),
    ("ncnn_cpu", "onnx"),
    ("mnn_cpu", "onnx"),
    ("iree_cpu", "onnx"),
    ("debug_backend", "onnx"),
]

PAIRS = {
    "conv_relu": {"conv": ["image"], "relu": ["features"], "block": ["image"]},
    "dwconv_relu": {"dwconv": ["image"], "relu": ["image"], "block": ["image"]},
    "add_relu": {"add": ["image"] * 2, "relu": ["image"], "block": ["image"] * 2},
    "relu_relu": {"relu_1": ["image"], "relu_2": ["image"], "block": ["image"]},
    "split_relu": {"split": ["image"], "relu": ["half"], "block": ["image"]},
    "fc_relu": {"fc": ["vector"], "relu": ["long"], "block": ["vector"]},
    "globalavgpool_fc": {"globalavgpool": ["image"], "fc": ["pooled"], "block": ["image"]},
}
"""Models of each pair, and what they take: two inputs, 1-D ones, a part of a split, ..."""

SHAPES = {"image": [4, 8, 8], "features": [8, 8, 8], "half": [2, 8, 8]} | {
    "vector": [6],
    "long": [8],
    "pooled": [4],
}
"""Channels first; the vector is unlike all others."""

SLOW = [("openvino_cpu", "tensorflow"), ("iree_cpu", "onnx")]
"""Models take so long to make that pairs are left out that take what other pairs take."""
LEFT_OUT = {"relu_relu", "globalavgpool_fc"}


@pytest.fixture(scope="module", params=FLOWS, ids=["-".join(flow) for flow in FLOWS])
def flow(request, tmp_path_factory) -> dict[str, Any]:
    """Generate, profile and detect; what each step printed, and where."""
    backend, implement = request.param
    for module in (*NEEDS[backend], *NEEDS[implement]):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    folder = tmp_path_factory.mktemp("flow")
    user = User(folder=folder, home=folder / "home")
    platform = backend.partition("_")[0]
    user.succeed("create", f"--{platform}-workspace", "ws")
    workspace = folder / "ws"
    edit(workspace, **SMALL | {"SHAPE_1D": 6}, IMPLEMENT=implement)
    # enough for the references and a load of the first pair, on a busy machine, too
    edit(workspace, TIME_BUDGET=1 if request.param in SLOW else 0.5)
    pairs = [pair for pair in PAIRS if request.param not in SLOW or pair not in LEFT_OUT]
    edit(workspace, BASIC_TESTCASES=pairs, OTHER_TESTCASES=["MON"])
    steps = {
        step: user.nn_meter("ruletest", step, "--workspace", "ws", "--json")
        for step in ("generate", "profile", "detect")
    }
    return {
        "user": user,
        "workspace": workspace,
        "backend": backend,
        "implement": implement,
        "rules": [*(f"BF_{pair}" for pair in pairs), "MON"],
        **steps,
    }


def printed(flow: dict[str, Any], step: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(flow[step].out)
    assert Path(data["workspace"]) == flow["workspace"]
    assert 0 < data["wall_s"] < 300
    return data


def shows_graphs(flow: dict[str, Any]) -> bool:
    return flow["backend"] != "debug_backend"


def shape(name: str, implement: str) -> list[int]:
    channels_first = SHAPES[name]
    last = implement == "tensorflow" and len(channels_first) == 3
    return [*channels_first[1:], channels_first[0]] if last else channels_first


def test_no_step_complains(flow):
    for step in ("generate", "profile", "detect"):
        assert flow[step].code == 0, flow[step].err
        assert flow[step].complaints == []
    assert "(nn-Meter) generate: " in flow["generate"].err
    count = len(flow["rules"])
    assert f"(nn-Meter) profile: {count} of {count}\n" in flow["profile"].err
    assert flow["detect"].err == ""


def test_generate(flow):
    data = printed(flow, "generate")
    assert set(data) == {"workspace", "wall_s", "testcases", "refused"}
    assert (data["testcases"], data["refused"]) == (flow["rules"], {})
    origin = results(flow["workspace"], "origin_testcases.json")
    assert list(origin) == flow["rules"]
    suffix = "" if flow["implement"] == "tensorflow" else ".onnx"
    for rule in flow["rules"][:-1]:
        case, models = origin[rule], PAIRS[rule.removeprefix("BF_")]
        assert list(case) == list(models)
        for name, inputs in models.items():
            assert set(case[name]) == {"model", "shapes"}
            assert case[name]["model"] == f"./fusion_rule_test/models/{rule}_{name}{suffix}"
            assert (flow["workspace"] / case[name]["model"]).exists()
            assert case[name]["shapes"] == [shape(size, flow["implement"]) for size in inputs]


def test_profile(flow):
    data = printed(flow, "profile")
    documented = {"backend", "workspace", "wall_s", "environment", "measured", "kept"}
    assert set(data) == {*documented, "graphs", "failed", "results"}
    assert data["backend"] == flow["backend"]
    assert (data["measured"], data["kept"], data["failed"]) == (len(flow["rules"]), 0, {})
    profiled = results(flow["workspace"], "profiled_results.json")
    assert Path(data["results"]).read_text() == json.dumps(profiled, indent=4) + "\n"
    origin = results(flow["workspace"], "origin_testcases.json")
    # without DETAIL no shapes
    keys = ["model", "latency", *(["graph"] if shows_graphs(flow) else [])]
    models = [model for case in profiled.values() for model in case.values()]
    assert data["graphs"] == (len(models) if shows_graphs(flow) else 0)
    for case, models in profiled.items():
        for name, model in models.items():
            assert milliseconds(model["latency"]) > 0
            assert list(model) == keys
            assert model["model"] == origin[case][name]["model"]
    assert profiled == results(flow["workspace"], f"{flow['backend']}/profiled_results.json")
    assert not (flow["workspace"] / "fusion_rule_test/results/profile_error.log").exists()


def test_every_measured_run_is_in_the_store(flow):
    found = visits(flow["workspace"])
    assert {case: len(numbers) for case, numbers in rounds(found).items()} == dict.fromkeys(
        flow["rules"], 2 if flow["backend"] == "debug_backend" else 10
    )
    if flow["backend"] == "debug_backend":
        assert all(samples is None for *_, samples in found)
        return
    profiled = results(flow["workspace"], "profiled_results.json")
    for case, models in profiled.items():
        for name, model in models.items():
            ns: list[int] = []
            for _, testcase, _, _, visited, _, samples in found:
                if (testcase, visited) == (case, name):
                    values = memoryview(samples).cast("q")
                    assert min(values) > 0
                    ns += values
            assert len(ns) == 50
            assert milliseconds(model["latency"]) == pytest.approx(sum(ns) / 50e6, abs=1e-6)


def test_detect(flow):
    data = printed(flow, "detect")
    assert set(data) == {"backend", "workspace", "wall_s", "verdicts"}
    assert data["backend"] == flow["backend"]
    verdicts = data["verdicts"]
    assert list(verdicts) == flow["rules"]
    if shows_graphs(flow):
        for rule, verdict in verdicts.items():
            assert verdict["evidence"] == "graph"
            assert verdict["kernels"] or verdict["verdict"] == "free"
            assert "alone" in verdict.get("when", {}) or rule == "MON"
        assert verdicts["BF_dwconv_relu"]["verdict"] == "fused"
        assert verdicts["MON"]["verdict"] in ("case1", "case2", "case3")
        return
    for rule in flow["rules"][:-1]:
        obey = verdicts[rule]["obey"]
        assert type(obey) is bool
        word = "fused" if obey else "separate"
        assert verdicts[rule] == {"obey": obey, "verdict": word, "evidence": "formula"}
    mon = verdicts["MON"]
    if verdicts["BF_dwconv_relu"]["obey"]:
        assert mon["obey"] in ("case1", "case2", "case3")
        assert mon == {"obey": mon["obey"], "verdict": mon["obey"], "evidence": "formula"}
    else:
        assert set(mon) == {"obey", "verdict", "evidence", "reason"}
        assert (mon["obey"], mon["verdict"], mon["evidence"]) == (None, "unmet", "")
        assert "BF_dwconv_relu" in mon["reason"]


def test_every_file_tells_the_same(flow):
    files = all_json_files(flow["workspace"])
    where = "fusion_rule_test/results"
    verdicts = printed(flow, "detect")["verdicts"]
    detected = files[f"{where}/detected_results.json"]
    assert detected == verdicts
    if shows_graphs(flow):  # the clock and the guide's inequality are recorded beside it
        assert all("formula" in found["others"] for found in detected.values())
        assert all("latency" in detected[rule]["others"] for rule in flow["rules"][:-1])
        clock = detected["BF_conv_relu"]["clock"]
        assert clock["verdict"] in ("fused", "separate", "undecided", "free")
        assert clock["cost"]["loads"] > 0, clock
    for name in ("detected_results", "detected_fusion_rule", "profiled_results"):
        latest = files[f"{where}/{name}.json"]
        assert latest == files[f"{where}/{flow['backend']}/{name}.json"]
    rules = files[f"{where}/detected_fusion_rule.json"]
    assert list(rules) == flow["rules"]
    environments = []
    for name, rule in rules.items():
        environments.append(rule.pop("environment"))
        when = rule.pop("when")
        assert rule | ({"when": when} if when else {}) == detected[name]
    assert all(environment == environments[0] for environment in environments)


def test_a_rule_says_where_it_holds(flow):
    rules = results(flow["workspace"], "detected_fusion_rule.json")
    environment = rules["BF_conv_relu"]["environment"]
    assert environment["backend"] == flow["backend"]
    models = environment["options"]["models"]
    assert (models["IMPLEMENT"], models["HW"], models["CIN"]) == (flow["implement"], 8, 4)
    stored = results(flow["workspace"], f"{flow['backend']}/environment.json")
    assert len(stored.pop("key")) == 12
    assert environment == {"backend": flow["backend"], **stored}
    if flow["backend"] in RUNTIMES:
        runtime, distribution = RUNTIMES[flow["backend"]]
        assert environment["runtime"] == runtime
        assert environment["version"].startswith(metadata.version(distribution))
        device = "local-sync" if flow["backend"] == "iree_cpu" else "CPU"
        assert (environment["device"], environment["threads"]) == (device, 1)
        assert environment["dtype"] == "float32"
        assert environment["host"]


def test_the_steps_at_once_find_it_all_done(flow):
    before = visits(flow["workspace"])
    done = flow["user"].nn_meter("run", "--workspace", "ws", "--json")
    assert (done.code, done.complaints) == (0, [])
    data = json.loads(done.out)
    assert set(data) == {"backend", "workspace", "wall_s", "verdicts"}
    assert without_clock(data["verdicts"]) == without_clock(printed(flow, "detect")["verdicts"])
    assert visits(flow["workspace"]) == before
