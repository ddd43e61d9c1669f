"""``nn-meter kernels``: real models cut into kernels, and held against what runtimes execute."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
RULES = {"onnxruntime_cpu": "onnxruntime-1.31", "openvino_cpu": "openvino-2026.4"}
NEEDS = {"onnxruntime_cpu": "onnxruntime", "openvino_cpu": "openvino"}
LEAST_F1 = 0.95


def light(name: str) -> str:
    return str(LIGHT / f"light_{name}.onnx")


def of_json(text: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(text)
    return data


def test_a_table_of_kernels(user):
    printed = user.succeed("kernels", light("squeezenet"), "--rules", "onnxruntime-1.31")
    assert "conv-relu" in printed
    assert "66 ops in " in printed
    assert "by the rules of onnxruntime-1.31" in printed


def test_every_op_is_in_one_kernel_and_files_agree(user):
    asked = ("kernels", light("resnet50"), "--rules", "openvino-2026.4")
    files = ("--json", "out/k.json", "--csv", "out/k.csv", "--html", "out/k.html")
    user.succeed(*asked, *files)
    data = of_json((user.folder / "out" / "k.json").read_text())
    ops = [op for kernel in data["kernels"] for op in kernel["ops"]]
    assert len(ops) == len(set(ops)) == data["summary"]["ops"] == 176
    names = [kernel["name"] for kernel in data["kernels"]]
    assert len(set(names)) == len(names)
    keys = {"name", "type", "ops", "inputs", "outputs", "attributes"}
    assert all(keys <= set(kernel) for kernel in data["kernels"])
    assert data == of_json(user.succeed(*asked, "--json", "-"))

    with (user.folder / "out" / "k.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == names
    assert [row["ops"].split() for row in rows] == [kernel["ops"] for kernel in data["kernels"]]
    assert rows[0]["kernel_size"]

    page = (user.folder / "out" / "k.html").read_text(encoding="utf-8")
    drawn = _Drawn()
    drawn.feed(page)
    assert len(drawn.boxes) == len(names)
    assert drawn.lines >= len(names) - 1
    assert drawn.outside == []


class _Drawn(HTMLParser):
    """What is in a picture, and what it would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes: list[str] = []
        self.lines = 0
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "rect":
            self.boxes.append(str(dict(attrs)))
        self.lines += tag == "path" and "marker-end" in dict(attrs)
        self.outside += [f"{key}={value}" for key, value in attrs if key in ("src", "href")]


@pytest.mark.parametrize("backend", RULES)
@pytest.mark.parametrize("name", ["squeezenet", "resnet50", "shufflenet"])
def test_held_against_what_is_executed(user, backend, name):
    if importlib.util.find_spec(NEEDS[backend]) is None:
        pytest.skip(f"{NEEDS[backend]} is not installed")
    asked = ("kernels", light(name), "--rules", RULES[backend], "--check", backend, "--json", "-")
    done = user.nn_meter(*asked)  # warns where the rules are of another version
    assert done.code == 0, done.err
    check = of_json(done.out)["check"]
    assert check["backend"] == backend
    assert check["edges"] > 50
    assert check["untold"] == 0
    assert check["f1"] >= LEAST_F1, check["differ"]


def test_rules_of_another_runtime_are_checked_with_a_warning(user):
    asked = ("kernels", light("squeezenet"), "--rules", "openvino-2026.4")
    done = user.nn_meter(*asked, "--check", "onnxruntime_cpu")
    assert done.code == 0
    assert "openvino" in done.err
    assert "onnxruntime" in done.err


def test_a_workspaces_own_rules(user):
    user.succeed("create", "--onnxruntime-workspace", "ws")
    user.succeed("run", "--workspace", "ws", "--testcases", "conv_relu", "--evidence", "graph")
    data = of_json(user.succeed("kernels", light("squeezenet"), "--rules", "ws", "--json", "-"))
    assert {"conv-relu"} == {k["type"] for k in data["kernels"] if k["operators"][0] == "conv"}


@pytest.mark.parametrize(
    ("model", "rules", "words"),
    [
        ("gone.onnx", "onnxruntime-1.31", "gone.onnx"),
        ("text.onnx", "onnxruntime-1.31", "text.onnx"),
        ("model.docx", "onnxruntime-1.31", ".onnx"),
        (light("squeezenet"), "no-such-rules", "no-such-rules"),
        (light("squeezenet"), "text.onnx", "text.onnx"),
    ],
)
def test_bad_input_is_named(user, model, rules, words):
    for name in ("text.onnx", "model.docx"):
        (user.folder / name).write_text("no model\n")
    done = user.nn_meter("kernels", model, "--rules", rules)
    assert done.code not in (0, 1)
    assert words in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("shape", ["data", "data=", "data=1,x", "=1,3", "data=0,3"])
def test_a_shape_that_is_none(user, shape):
    asked = ("kernels", light("squeezenet"), "--rules", "onnxruntime-1.31", "--shape", shape)
    done = user.nn_meter(*asked)
    assert done.code not in (0, 1)
    assert "--shape" in done.err


@pytest.mark.parametrize("option", ["--json", "--csv", "--html"])
def test_what_is_no_file_is_not_replaced(user, option):
    pipe = user.folder / "pipe"
    os.mkfifo(pipe)
    asked = ("kernels", light("squeezenet"), "--rules", "onnxruntime-1.31", option, str(pipe))
    done = user.nn_meter(*asked)
    assert done.code not in (0, 1)
    assert "no ordinary file" in done.err
    assert pipe.is_fifo()


CRASHING = """
import os
import signal

from nn_meter.builder.backends.onnxruntime.backend import OnnxRuntimeCPUBackend


class Crashing(OnnxRuntimeCPUBackend):
    def traced_graph(self, converted_model, feeds):
        os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_a_runtime_that_crashes_on_a_model_takes_nothing_with_it(user):
    package = user.folder / "crashing"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "backend.py").write_text(CRASHING)
    meta = {"builtin_name": "crashing", "package_location": str(package)}
    meta |= {"class_module": "backend", "class_name": "Crashing"}
    (user.folder / "meta.yaml").write_text(yaml.safe_dump(meta))
    user.succeed("register", "--backend", "meta.yaml")
    asked = ("kernels", light("squeezenet"), "--rules", "onnxruntime-1.31")
    found = user.nn_meter(*asked, "--check", "crashing", "--json", "k.json")
    assert found.code > 0
    assert "crashing was ended by SIGSEGV" in found.err
    assert not (user.folder / "k.json").exists()


# --- what kernels cost ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", RULES)
def test_kernels_are_timed(user, backend):
    if importlib.util.find_spec(NEEDS[backend]) is None:
        pytest.skip(f"{NEEDS[backend]} is not installed")
    model = small_model(user.folder / "small.onnx")
    asked = ("kernels", model, "--rules", RULES[backend], "--profile", backend, "--budget", "3")
    files = ("--json", "k.json", "--csv", "k.csv", "--html", "k.html")
    printed = user.succeed(*asked, *files)
    assert f"timed on {backend}: the sum of 5 kernels is " in printed
    assert "each cut out alone: kernels " in printed
    data = of_json((user.folder / "k.json").read_text())
    told = data["profile"]
    costs = told["kernels"]
    assert (told["backend"], told["failed"]) == (backend, {})
    assert told["passes"] >= 3
    assert set(costs) == {kernel["name"] for kernel in data["kernels"]}
    first, _, second, third, pool = (costs[kernel["name"]] for kernel in data["kernels"])
    assert all(cost["low"] <= cost["value"] <= cost["high"] for cost in costs.values())
    assert second == third  # timed once
    assert second["value"] > 10 * abs(pool["value"])  # 4.7 million products each, or 8192 sums
    assert first["value"] < second["value"]  # a tenth of the products
    assert sum(cost["share"] for cost in costs.values()) == pytest.approx(1, abs=1e-4)
    assert told["sum_ms"]["value"] == pytest.approx(sum(c["value"] for c in costs.values()), 1e-4)
    assert 0.3 < told["ratio"] < 3  # the machine of a test is busy
    for kernel in data["kernels"]:
        assert kernel["attributes"]["ms"] == costs[kernel["name"]]["value"]
    with (user.folder / "k.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["ms"]) for row in rows] == [c["value"] for c in costs.values()]
    assert f"time on {backend}" in (user.folder / "k.html").read_text(encoding="utf-8")


def test_kernels_of_a_tflite_model_are_timed(user):
    for package in ("ai_edge_litert", "tensorflow"):
        pytest.importorskip(package)
    user.succeed("create", "--tflite-workspace", "ws")
    user.succeed("ruletest", "generate", "--workspace", "ws", "--testcases", "conv_hswish")
    model = "ws/fusion_rule_test/models/BF_conv_hswish_block"
    asked = ("--rules", RULES["onnxruntime_cpu"], "--profile", "tflite_cpu", "--budget", "1")
    told = of_json(user.succeed("kernels", model, *asked, "--json", "-"))["profile"]
    assert told["failed"] == {}
    costs = told["kernels"]
    assert [name.partition("#")[0] for name in costs] == ["conv", "hswish"]
    conv, hswish = costs.values()
    assert conv["value"] > hswish["value"]  # 144 products for each number of the other


def small_model(path: Path) -> str:
    """Four convolutions, the last two alike and behind one like them, and a pool."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    before, channels = "x", 3
    for i in range(4):
        drawn = rng.normal(size=(32, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(drawn, f"w{i}"))
        nodes += [
            helper.make_node("Conv", [before, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"]),
        ]
        before, channels = f"r{i}", 32
    nodes.append(helper.make_node("GlobalAveragePool", [before], ["y"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 3, 16, 16]), ("y", [1, 32, 1, 1]))
    ]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path.name


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--budget", "5"), "--budget: is for timing; give --profile BACKEND, too"),
        (("--profile", "onnxruntime"), "did you mean 'onnxruntime_cpu'?"),
        (("--profile", "debug_backend"), "debug_backend times whole files only"),
    ],
)
def test_what_cannot_be_timed_is_said(user, asked, says):
    model = small_model(user.folder / "small.onnx")
    found = user.nn_meter("kernels", model, "--rules", "onnxruntime-1.31", *asked)
    assert found.code != 0
    assert says in found.err
    assert found.out == ""
