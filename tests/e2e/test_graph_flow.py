"""Verdicts by executed graphs through the command line, on every backend that shows them.

Whatever a model calls its nodes and tensors, the verdicts are the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from driving import User, edit, results, visits

NEEDS = {
    "onnxruntime_cpu": ("onnxruntime",),
    "openvino_cpu": ("openvino",),
    "tflite_cpu": ("ai_edge_litert",),
    "mnn_cpu": ("MNN",),
    "ncnn_cpu": ("ncnn", "pnnx"),
    "iree_cpu": ("iree.compiler", "iree.runtime"),
    **{"onnx": (), "torch": ("torch", "onnxscript"), "tensorflow": ("tensorflow",)},
}
TAKE_ONNX = ("onnxruntime_cpu", "openvino_cpu", "mnn_cpu", "ncnn_cpu", "iree_cpu")
FLOWS = [
    *((backend, "onnx") for backend in TAKE_ONNX),
    ("openvino_cpu", "torch"),
    ("openvino_cpu", "tensorflow"),
    ("tflite_cpu", "tensorflow"),
]
SMALL = {"HW": 8, "CIN": 8, "COUT": 16, "SHAPE_1D": 8, "TIME_BUDGET": 0.01}
BASIC = [
    *("conv_relu", "conv_add", "conv_hswish", "relu_relu", "conv_reshape", "concat_relu"),
    *("relu_relu6", "conv_bn_relu", "dwconv_relu"),
]
OTHERS = ["MON", "MIN", "MINRELU"]
FEWER = [name for name in BASIC if name not in ("relu_relu6", "concat_relu", "dwconv_relu")]
"""In frameworks that take long to build models."""
TWO_INPUTS = {"conv_add", "concat_relu"}

# What holds on all of them, and what is known of some: the words of the matrix of pairs.
EVERYWHERE = {
    "BF_conv_relu": "fused",
    "BF_dwconv_relu": "fused",
    "BF_conv_bn_relu": "fused",
    "BF_conv_reshape": "free",
}
KNOWN = {
    "onnxruntime_cpu": {
        **{"BF_conv_add": "separate", "BF_conv_hswish": "separate", "MIN": "case2"},
        "BF_relu_relu6": "fused",  # the relu is left out
    },
    "openvino_cpu": {"BF_conv_add": "fused", "BF_conv_hswish": "fused"},
    "tflite_cpu": {"BF_conv_add": "separate", "BF_conv_hswish": "separate", "MIN": "case1"},
    "mnn_cpu": {"BF_conv_add": "separate", "BF_conv_hswish": "separate", "MIN": "case1"},
    "ncnn_cpu": {"BF_conv_add": "separate", "BF_conv_hswish": "separate", "MIN": "case1"},
    "iree_cpu": {"BF_conv_add": "fused", "BF_conv_hswish": "fused"},
}


def needs(*names: str) -> None:
    for module in (module for name in names for module in NEEDS[name]):
        if not _there(module):
            pytest.skip(f"needs {module}, which is not installed")


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def user_in(folder: Path) -> User:
    folder.mkdir(parents=True, exist_ok=True)
    return User(folder=folder, home=folder / "home")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str], Path]:
    """Workspaces in small shapes that have the models of all test cases, by IMPLEMENT; to be
    copied."""
    there: dict[str, Path] = {}

    def _made(implement: str) -> Path:
        if implement not in there:
            user = user_in(tmp_path_factory.mktemp("made"))
            user.succeed("create", "--onnxruntime-workspace", "ws")
            workspace = there[implement] = user.folder / "ws"
            edit(workspace, **SMALL, IMPLEMENT=implement)
            if implement == "onnx":
                edit(workspace, BASIC_TESTCASES=BASIC, OTHER_TESTCASES=OTHERS)
            else:
                edit(workspace, BASIC_TESTCASES=FEWER, OTHER_TESTCASES=["MIN"])
            user.succeed("ruletest", "generate", "--workspace", "ws")
        return there[implement]

    return _made


@pytest.fixture(scope="module", params=FLOWS, ids=["-".join(flow) for flow in FLOWS])
def flow(request, tmp_path_factory, made) -> dict[str, Any]:
    """``nn-meter run --evidence graph --json`` on a backend, and what it printed."""
    backend, implement = request.param
    needs(backend, implement)
    user = user_in(tmp_path_factory.mktemp("flow"))
    workspace = Path(shutil.copytree(made(implement), user.folder / "ws"))
    if backend == "tflite_cpu":
        edit(workspace, "backend_config.yaml", TARGET="host")
    asked = ("--workspace", "ws", "--backend", backend, "--evidence", "graph", "--json")
    done = user.nn_meter("run", *asked)
    return {
        **{"done": done, "user": user, "workspace": workspace, "backend": backend, "asked": asked},
        "basic": BASIC if implement == "onnx" else FEWER,
        "others": OTHERS if implement == "onnx" else ["MIN"],
    }


def verdicts(flow: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(flow["done"].out)["verdicts"]
    return found


def test_standard_output_is_one_json_object(flow):
    done = flow["done"]
    assert (done.code, done.complaints) == (0, [])
    data = json.loads(done.out)
    assert data["backend"] == flow["backend"]
    assert list(data["verdicts"]) == [*(f"BF_{name}" for name in flow["basic"]), *flow["others"]]
    assert "refused" not in data


def test_every_rule_is_decided_by_the_graph(flow):
    for rule, verdict in verdicts(flow).items():
        assert verdict["evidence"] == "graph", rule
        assert verdict["kernels"] or verdict["verdict"] == "free", rule
        for situation, told in verdict.get("when", {"": verdict}).items():
            where = f"{rule} {situation}: {told}"
            if rule in OTHERS:
                assert told["verdict"] in ("case1", "case2", "case3"), where
            else:
                assert told["verdict"] in ("fused", "separate", "free"), where
    assert visits(flow["workspace"]) == []


def test_verdicts_that_are_known(flow):
    words = {rule: verdict["verdict"] for rule, verdict in verdicts(flow).items()}
    asked = EVERYWHERE | KNOWN[flow["backend"]]
    known = {rule: word for rule, word in asked.items() if rule in words}
    assert {rule: words[rule] for rule in known} == known
    assert verdicts(flow)["BF_conv_reshape"]["free"] == ["reshape"]
    edges = verdicts(flow)["BF_conv_bn_relu"]["edges"]
    assert [(edge["ops"], edge["verdict"]) for edge in edges] == [
        (["conv", "bn"], "fused"),
        (["bn", "relu"], "fused"),
    ]


def test_every_situation_is_asked(flow):
    for name in flow["basic"]:
        expected = {"alone", "context"}
        if name in TWO_INPUTS:
            expected |= {"alone/conv", "context/conv"}
        when = verdicts(flow)[f"BF_{name}"]["when"]
        optional = {"alone/own", "context/own", "context/passed", "context/again"}
        if name not in TWO_INPUTS:
            optional = set()
        if name == "conv_reshape":
            optional = {"context"}  # none where a reshape makes its input flat
        assert expected - optional <= set(when) <= expected | optional, name
        assert when["alone"]["kernels"] == verdicts(flow)[f"BF_{name}"]["kernels"]


def test_rules_say_where_they_hold(flow):
    rules = results(flow["workspace"], "detected_fusion_rule.json")
    assert {rule["environment"]["backend"] for rule in rules.values()} == {flow["backend"]}
    for rule, told in rules.items():
        assert told["when"] == verdicts(flow)[rule].get("when", {})


def once(backend: str) -> pytest.MarkDecorator:
    """A test for one backend only, of those that ``flow`` runs on."""
    return pytest.mark.parametrize("flow", [(backend, "onnx")], indirect=True, ids=[backend])


@once("onnxruntime_cpu")
def test_a_second_run_asks_nothing_again(flow):
    again = flow["user"].nn_meter("run", *flow["asked"])
    assert (again.code, again.complaints) == (0, [])
    assert "graph: " not in again.err
    assert json.loads(again.out)["verdicts"] == verdicts(flow)


def test_without_a_workspace_one_is_made_for_the_backend(user):
    needs("onnxruntime_cpu", "openvino_cpu")
    asked = ("run", "--evidence", "graph", "--testcases", "conv_relu,conv_hswish", "--json")
    found = {}
    for backend, name in (("openvino_cpu", "ws_ov"), ("onnxruntime_cpu", "ws_ort")):
        done = user.nn_meter(*asked, "--backend", backend, "--workspace", name)
        assert (done.code, done.complaints) == (0, [])
        found[name] = json.loads(done.out)["verdicts"]
        config = yaml.safe_load((user.folder / name / "configs/ruletest_config.yaml").read_text())
        assert (config["IMPLEMENT"], config["EVIDENCE"]) == ("onnx", "auto")
    assert sorted(path.name for path in user.folder.iterdir()) == ["ws_ort", "ws_ov"]
    different = json.loads(user.succeed("diff", "ws_ort", "ws_ov", "--json"))["differences"]
    told = {(d["rule"], d["situation"]): (d["a"]["verdict"], d["b"]["verdict"]) for d in different}
    assert told[("BF_conv_hswish", "alone")] == ("separate", "fused")
    assert not any(rule == "BF_conv_relu" for rule, _ in told)


HOSTILE = [
    {"HW": 13, "CIN": 6, "COUT": 10, "KERNEL_SIZE": 5, "STRIDES": 2, "PADDING": "same"},
    {"HW": 7, "CIN": 3, "COUT": 5, "KERNEL_SIZE": 1, "STRIDES": 1, "PADDING": "valid"},
]
ODD = ["conv_relu", "conv_add", "relu_relu", "concat_relu", "conv_bn_relu", "dwconv_relu"]


@pytest.mark.parametrize("keys", HOSTILE, ids=lambda keys: f"{keys['HW']}-{keys['PADDING']}")
def test_odd_shapes_leave_nothing_open(user, keys):
    user.succeed("create", "--onnxruntime-workspace", "ws")
    edit(user.folder / "ws", **keys, BASIC_TESTCASES=ODD, OTHER_TESTCASES=OTHERS)
    for backend in ("onnxruntime_cpu", "mnn_cpu"):
        if not all(_there(module) for module in NEEDS[backend]):
            continue
        asked = ("--workspace", "ws", "--backend", backend, "--evidence", "graph", "--json")
        done = user.nn_meter("run", *asked)
        assert done.code == 0, done.err
        found = json.loads(done.out)["verdicts"]
        assert list(found) == [*(f"BF_{name}" for name in ODD), *OTHERS]
        for rule, verdict in found.items():
            for situation, inner in verdict.get("when", {"": verdict}).items():
                word = inner["verdict"]
                decided = ("fused", "separate", "free", "case1", "case2", "case3")
                assert word in decided, (backend, rule, situation, inner)
        assert found["BF_conv_bn_relu"]["verdict"] == "fused"


# --- names ---------------------------------------------------------------------------------------

NAMES = [
    *("0", "1", "7", "-1", "_raster_0", "x_raster_0", "a/b/c", "/", "//relu", "Größe✓", "名前"),
    *("Conv", "Relu", "relu", "reorder_token_0", "t_nchwc", "input", "output", "in0", "out0"),
    *("x:0", "y,z", "main", "true", "None", "conv.bias", "Add_1", "node_0", "a" * 120, "%0"),
]


def renamed(path: Path, seed: int) -> None:
    """Give every node, tensor, initializer and the graph of a model another name.

    Half of the tensors take names that other tensors of the model had, the rest strange ones.
    """
    model = onnx.load(path)
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    tensors = dict.fromkeys(
        [
            *(value.name for value in values),
            *(tensor.name for tensor in graph.initializer),
            *(name for node in graph.node for name in (*node.input, *node.output)),
        ]
    )
    tensors.pop("", None)
    old = list(tensors)
    fresh = _names(seed)
    new = [*old[1::2], *(next(fresh) for _ in old[::2])]
    new = new[seed % len(new) :] + new[: seed % len(new)]
    names = {"": "", **dict(zip(old, dict.fromkeys(new), strict=True))}
    for value in values:
        value.name = names[value.name]
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.name = next(fresh)
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    graph.name = next(fresh)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _names(seed: int) -> Iterator[str]:
    number = seed
    while True:
        number += 1
        name = NAMES[number % len(NAMES)]
        yield f"{name}_{number}" if number > len(NAMES) + seed else f"{name}~{seed}"


def told(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict, what ran in no order."""
    found = dict(verdict)
    for key in ("kernels", "moves"):
        found[key] = sorted(found.get(key, ()))
    if "when" in found:
        found["when"] = {situation: told(inner) for situation, inner in found["when"].items()}
    return found


@pytest.fixture(scope="module")
def renamed_models(made, tmp_path_factory) -> Path:
    workspace = tmp_path_factory.mktemp("renamed") / "ws"
    shutil.copytree(made("onnx"), workspace)
    files = sorted((workspace / "fusion_rule_test").rglob("*.onnx"))
    assert len(files) > 60
    for seed, path in enumerate(files):
        mine = path.with_suffix(".mine")  # equal models are one file with many names
        mine.write_bytes(path.read_bytes())
        renamed(mine, seed)
        mine.replace(path)
    return workspace


@pytest.mark.parametrize("flow", [(b, "onnx") for b in TAKE_ONNX], indirect=True, ids=TAKE_ONNX)
def test_names_change_no_verdict(flow, renamed_models, tmp_path):
    user = user_in(tmp_path)
    shutil.copytree(renamed_models, user.folder / "ws")
    asked = ("--workspace", "ws", "--evidence", "graph", "--json")
    profiled = json.loads(user.succeed("ruletest", "profile", *asked, "--backend", flow["backend"]))
    assert profiled["failed"] == {}
    found = json.loads(user.succeed("ruletest", "detect", *asked))["verdicts"]
    before = verdicts(flow)
    if flow["backend"] == "onnxruntime_cpu":
        assert before["BF_relu_relu6"]["eliminated"] is True
    assert {rule: told(verdict) for rule, verdict in found.items()} == {
        rule: told(verdict) for rule, verdict in before.items()
    }
