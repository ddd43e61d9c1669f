"""ONNX Runtime's execution providers: the one asked for runs, or it is an error.

Where the wheel under test has the CPU's (and Azure's, which runs no node of an ordinary model),
these show what happens with one that is not there, one that runs nothing, and one that runs all.
Two more wheels are tried where variables name the interpreters of virtual environments that have
them: NN_METER_ONNXRUNTIME_OPENVINO, and NN_METER_ONNXRUNTIME_WEBGPU with a Vulkan driver.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from nn_meter.builder.backend_meta.fusion_rule_tester import generate_testcases
from nn_meter.builder.backend_meta.fusion_rule_tester.interface import (
    detect_fusion_rule,
    profile_models,
)
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode
from nn_meter.builder.backends.interface import connect_backend
from nn_meter.builder.backends.onnxruntime.asked import CPU, Provider, asked_providers
from nn_meter.builder.backends.onnxruntime.backend import OnnxRuntimeCPUBackend
from nn_meter.builder.backends.onnxruntime.plugins import chosen
from nn_meter.builder.backends.onnxruntime.providers import (
    OnnxRuntimeEPBackend,
    Ran,
    checked_graph,
)
from nn_meter.builder.backends.onnxruntime.settings import OnnxRuntimeSettings
from nn_meter.builder.config import render_template, validate
from nn_meter.builder.profiling.connection import Connection, greet
from nn_meter.errors import (
    ConfigError,
    DeviceError,
    GraphUnavailableError,
    ModelRejectedError,
    NotInstalledError,
)
from nn_meter.reference import reference_inputs

SHAPE = [4, 8, 8]
AZURE = "AzureExecutionProvider"
needs_azure = pytest.mark.skipif(
    AZURE not in onnxruntime.get_available_providers(),
    reason="this onnxruntime has no provider that takes no node",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """conv -> relu -> hardswish."""
    weights = np.linspace(-1, 1, 6 * 4 * 9, dtype=np.float32).reshape(6, 4, 3, 3)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("HardSwish", ["r"], ["y"], "hswish"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "model",
        [value("x", TensorProto.FLOAT, [1, *SHAPE])],
        [value("y", TensorProto.FLOAT, [1, 6, 8, 8])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path_factory.mktemp("providers") / "model.onnx"
    opsets = [helper.make_opsetid("", 14)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return str(path)


def ep(*providers: Any, **configs: Any) -> OnnxRuntimeEPBackend:
    return OnnxRuntimeEPBackend({"PROVIDERS": list(providers), **configs})


# --- what is asked for ---------------------------------------------------------------------------


def test_providers_are_names_or_have_options():
    given = ["CUDAExecutionProvider", {"QNNExecutionProvider": {"backend_path": "a.so", "fast": 1}}]
    assert asked_providers({"PROVIDERS": [*given, {CPU: None}]}) == (
        Provider("CUDAExecutionProvider"),
        Provider("QNNExecutionProvider", {"backend_path": "a.so", "fast": "1"}),
        Provider(CPU),
    )
    assert asked_providers({"PROVIDERS": [{"A": {"on": True, "off": False}}]}) == (
        Provider("A", {"on": "1", "off": "0"}),
    )
    assert asked_providers({}) == asked_providers({"PROVIDERS": None}) == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("CUDAExecutionProvider", "must be a list of execution providers"),
        ([3], "3 is no execution provider; write its name, or with options"),
        ([""], "'' is no execution provider"),
        ([{"A": {}, "B": {}}], "is no execution provider"),
        ([{"A": ["b"]}], "the options of A must be 'option: value' lines"),
        (["A", "A"], "names A twice"),
        ([CPU, "A"], "nothing behind it would run; name it last"),
    ],
)
def test_what_is_no_list_of_providers(given, words):
    for cls in (OnnxRuntimeEPBackend, OnnxRuntimeCPUBackend):
        with pytest.raises(ConfigError, match=f"PROVIDERS.*{words}"):
            cls({"PROVIDERS": given})


@pytest.mark.parametrize("given", [None, []])
def test_providers_are_never_guessed(given):
    with pytest.raises(ConfigError, match="PROVIDERS must name the execution providers"):
        OnnxRuntimeEPBackend({"PROVIDERS": given})


def test_the_cpu_backend_runs_on_the_cpu_only(model):
    with pytest.raises(ConfigError, match="names CUDAExecutionProvider, but onnxruntime_cpu runs"):
        OnnxRuntimeCPUBackend({"PROVIDERS": ["CUDAExecutionProvider"]})
    for providers in (None, [], [CPU]):
        OnnxRuntimeCPUBackend({"PROVIDERS": providers}).open(model, [SHAPE]).close()


def test_the_key_in_a_configuration():
    template = render_template(OnnxRuntimeSettings, "ONNX Runtime.")
    assert "\nPROVIDERS:\n" in template
    providers = ["AExecutionProvider", {"B": {"option": "value", "number": 2}}]
    found = validate(OnnxRuntimeSettings, {"PROVIDERS": providers}, "backend_config.yaml")
    assert found.as_dict()["PROVIDERS"] == providers
    for bad in ("A", 3, [3], [["A"]]):
        with pytest.raises(ConfigError, match=r"backend_config.yaml: PROVIDERS must be a list of"):
            validate(OnnxRuntimeSettings, {"PROVIDERS": bad}, "backend_config.yaml")


# --- what is there -------------------------------------------------------------------------------


def test_a_provider_that_is_not_there_is_named_beside_those_that_are(model):
    backend = ep("CUDAExecutionProvider", CPU)
    for call in (
        backend.test_connection,
        backend.describe,
        lambda: backend.open(model, [SHAPE]),
        lambda: backend.profile(model, input_shape=[SHAPE]),
        lambda: backend.executed_graph(model, [SHAPE]),
    ):
        with pytest.raises(DeviceError, match="no CUDAExecutionProvider here: ONNX R") as refusal:
            call()
        for name in (*onnxruntime.get_available_providers(), "pip install onnxruntime-gpu"):
            assert name in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CUDAExecutionProvder", "; did you mean CUDAExecutionProvider?"),
        ("Toaster", "no execution provider Toaster here: ONNX Runtime"),
    ],
)
def test_a_provider_that_nobody_knows(name, words):
    with pytest.raises(DeviceError) as refusal:
        ep(name).test_connection()
    assert words in str(refusal.value)


@needs_azure
@pytest.mark.parametrize("more", [[], [CPU]], ids=["alone", "mixed"])
def test_a_provider_that_runs_nothing_is_an_error(model, more):
    """ONNX Runtime itself would run all of it on the CPU, and say nothing."""
    session = onnxruntime.InferenceSession(model, providers=[AZURE])
    assert session.get_providers() == [AZURE, CPU]

    backend = ep(AZURE, *more)
    for call in (backend.test_connection, lambda: backend.open(model, [SHAPE])):
        with pytest.raises(DeviceError, match=rf"{AZURE}.* Conv.* on {CPU}"):
            call()


@needs_azure
def test_nodes_that_a_provider_leaves_to_the_cpu_are_named(model):
    backend = ep(AZURE)
    backend._works = True  # as if it had run the first model
    with pytest.raises(ModelRejectedError) as refusal:
        backend.open(model, [SHAPE])
    message = str(refusal.value)
    assert f"{AZURE} does not take all of the model: it would run Conv, " in message
    assert "HardSigmoid, Mul" in message
    assert f"{CPU}, named last in PROVIDERS, may run these" in message


def test_a_model_that_is_refused_is_so_in_onnx_runtimes_words(tmp_path, model):
    path = tmp_path / "garbage.onnx"
    path.write_bytes(b"no model at all")
    backend = ep(CPU)
    for call in (backend.open, backend.executed_graph):
        with pytest.raises(ModelRejectedError, match=r"refuses the model: .*Protobuf"):
            call(str(path), [SHAPE])
    with pytest.raises(ModelRejectedError, match="refuses the model"):
        backend.open(model, [SHAPE, SHAPE])


# --- plug-ins ------------------------------------------------------------------------------------


def offer(name: str, kind: str) -> Any:
    return SimpleNamespace(ep_name=name, device=SimpleNamespace(type=SimpleNamespace(name=kind)))


def plugin(**options: str) -> dict[str, dict[str, str]]:
    return {"QNNExecutionProvider": {"plugin": "onnxruntime_qnn", **options}}


def test_a_plug_in_is_asked_for_by_the_library_that_has_it():
    (asked,) = asked_providers({"PROVIDERS": [plugin(device="npu", backend_type="htp")]})
    assert (asked.plugin, asked.device) == ("onnxruntime_qnn", "NPU")
    assert asked.options == {"backend_type": "htp"}
    with pytest.raises(ConfigError, match="plug-ins or its own providers, not both"):
        asked_providers({"PROVIDERS": [plugin(), "CUDAExecutionProvider"]})
    assert len(asked_providers({"PROVIDERS": [plugin(), CPU]})) == 2


def test_which_of_a_plug_ins_devices():
    offered = [offer(CPU, "CPU"), offer("Q", "NPU"), offer("Q", "GPU")]
    assert chosen(Provider("Q", {}, "q", "GPU"), offered) is offered[2]
    assert chosen(Provider("Q", {}, "q"), offered[:2]) is offered[1]
    with pytest.raises(ConfigError, match="Q offers NPU, GPU; say which by its option device"):
        chosen(Provider("Q", {}, "q"), offered)
    with pytest.raises(DeviceError, match=r"Q offers no device CPU here \(it offers: NPU, GPU\)"):
        chosen(Provider("Q", {}, "q", "CPU"), offered)
    with pytest.raises(DeviceError, match=f"R offers no device here .*there are devices of {CPU}"):
        chosen(Provider("R", {}, "r"), offered[:1])


@pytest.mark.skipif(
    not hasattr(onnxruntime, "register_execution_provider_library"),
    reason="this onnxruntime loads no plug-ins",
)
def test_a_plug_in_that_cannot_be_had(tmp_path):
    library = tmp_path / "lib no library.so"
    library.write_bytes(b"no library")
    for name, error, words in (
        ("no_such_package", NotInstalledError, "neither a file nor a package that can be imported"),
        ("json", ConfigError, "json is no plug-in of ONNX Runtime"),
        (str(library), DeviceError, "ONNX Runtime cannot load the plug-in"),
    ):
        backend = ep(plugin(plugin=name))
        for call in (backend.test_connection, backend.describe):
            with pytest.raises(error, match=words):
                call()


# --- where all of it runs ------------------------------------------------------------------------


def test_the_cpu_by_its_name_is_as_the_cpu_backend(model):
    backend, cpu = ep(CPU, THREADS=2), OnnxRuntimeCPUBackend({"THREADS": 2})
    sessions = [each.open(model, [SHAPE]) for each in (backend, cpu)]
    feeds = reference_inputs([SHAPE])
    found, wanted = (session.outputs(feeds) for session in sessions)
    np.testing.assert_array_equal(found[0], wanted[0])
    assert (sessions[0].time(3) > 0).all()
    for session in sessions:
        session.close()
    assert backend.executed_graph(model, [SHAPE]) == cpu.executed_graph(model, [SHAPE])
    assert backend.runs_here
    environment = backend.describe()
    assert (environment.device, environment.threads) == (CPU, 2)
    assert backend.test_connection() == "hello backend !"


def test_options_belong_to_the_environment():
    found = ep({CPU: {"use_arena": 0}}, GRAPH_OPTIMIZATION="basic").describe()
    assert found.options["provider_options"] == {CPU: {"use_arena": "0"}}
    assert found.options["graph_optimization"] == "basic"


def test_other_providers_are_no_processor_of_ours():
    assert not ep("CUDAExecutionProvider").runs_here
    assert not ep("CUDAExecutionProvider", CPU).runs_here


# --- executed graphs -----------------------------------------------------------------------------


def node(name: str, op: str, reads: str, gives: str) -> ExecutedNode:
    return ExecutedNode(name=name, type=op, inputs=(reads,), outputs=(gives,), kind="compute")


WRITTEN = ExecutedGraph(
    nodes=(node("a", "Conv[activation=Relu]", "x", "c"), node("", "Mul", "c", "y")), inputs=("x",)
)
OPERATORS = [(("com.ms.internal.nhwc", "Conv"), True), (("", "Mul"), True)]


def test_what_ran_as_it_was_written_is_a_graph():
    ran = [Ran(name="a", op="Conv", provider="G"), Ran(name="Mul_1", op="Mul", provider="G")]
    assert checked_graph(WRITTEN, ran, OPERATORS) == WRITTEN


def test_where_several_providers_ran_each_node_says_on_which():
    ran = [Ran(name="a", op="Conv", provider="G"), Ran(name="Mul_1", op="Mul", provider=CPU)]
    found = checked_graph(WRITTEN, ran, OPERATORS)
    assert [each.type for each in found.nodes] == ["G:Conv[activation=Relu]", f"{CPU}:Mul"]


def test_a_node_that_may_have_run_on_either_is_not_told():
    nodes = (*WRITTEN.nodes, node("", "Mul", "y", "z"))
    ran = [
        Ran(name="a", op="Conv", provider="G"),
        Ran(name="Mul_1", op="Mul", provider="G"),
        Ran(name="Mul_2", op="Mul", provider=CPU),
    ]
    graph = ExecutedGraph(nodes=nodes, inputs=("x",))
    with pytest.raises(GraphUnavailableError, match="cannot be told which provider ran the Mul"):
        checked_graph(graph, ran, [*OPERATORS, OPERATORS[1]])


def test_a_part_of_the_model_as_one_node_of_the_providers_own_is_no_graph():
    """It would look as if all that is inside were one kernel."""
    whole = ExecutedGraph(nodes=(node("k", "Engine_0", "x", "y"),), inputs=("x",))
    ran = [Ran(name="k", op="Engine_0", provider="G")]
    with pytest.raises(GraphUnavailableError, match=r"made own.domain:Engine_0 of a part"):
        checked_graph(whole, ran, [(("own.domain", "Engine_0"), False)])


def test_what_ran_otherwise_than_it_was_written_is_no_graph():
    ran = [Ran(name="k", op="Engine_0", provider="G")]
    with pytest.raises(GraphUnavailableError, match="differ in Conv, Engine_0, Mul"):
        checked_graph(WRITTEN, ran, OPERATORS)


# --- runs ----------------------------------------------------------------------------------------


def test_a_run(workspace):
    """By evidence of executed graphs, through worker processes."""
    workspace(
        {"PROVIDERS": [CPU], "RUNS": 4, "WARMUPS": 1},
        **{"EVIDENCE": "auto", "TIME_BUDGET": 0.01, "BASIC_TESTCASES": ["conv_relu", "conv_add"]},
    )
    profiled = profile_models(connect_backend("onnxruntime_providers"), generate_testcases())
    found = detect_fusion_rule(profiled)
    assert {name: (v["verdict"], v["evidence"]) for name, v in found.items()} == {
        "BF_conv_relu": ("fused", "graph"),
        "BF_conv_add": ("separate", "graph"),
    }


def test_connecting_says_what_is_missing(workspace):
    workspace({"PROVIDERS": ["TensorrtExecutionProvider"]})
    backend = connect_backend("onnxruntime_providers")
    for connect in (greet, Connection):
        with pytest.raises(DeviceError, match="pip install onnxruntime-gpu brings it"):
            connect(backend)
    workspace({"PROVIDERS": None})
    with pytest.raises(ConfigError, match="PROVIDERS must name"):
        connect_backend("onnxruntime_providers")


# --- other wheels --------------------------------------------------------------------------------


def interpreter(variable: str) -> str:
    path = os.environ.get(variable, "")
    if not path:
        pytest.skip(f"{variable} names no interpreter that has this wheel")
    assert Path(path).is_file(), f"{variable}={path}"
    return path


def test_a_plug_in_that_offers_no_device_here(workspace):
    """The library is registered, and says itself what it has."""
    python = interpreter("NN_METER_ONNXRUNTIME_PLUGIN_WEBGPU")
    asked = {"WebGpuExecutionProvider": {"plugin": "onnxruntime_ep_webgpu"}}
    workspace({"PYTHON": python, "PROVIDERS": [asked]})
    with pytest.raises(DeviceError, match="WebGpuExecutionProvider offers no device here"):
        greet(connect_backend("onnxruntime_providers"))


OPENVINO = "OpenVINOExecutionProvider"


def test_a_provider_that_compiles_its_part_leaves_it_to_the_clock(workspace):
    python = interpreter("NN_METER_ONNXRUNTIME_OPENVINO")
    keys = {"PYTHON": python, "PROVIDERS": [{OPENVINO: {"device_type": "CPU"}}], "RUNS": 4}
    workspace(keys, EVIDENCE="auto", TIME_BUDGET=1)
    profiled = profile_models(connect_backend("onnxruntime_providers"), generate_testcases())
    (rule,) = detect_fusion_rule(profiled).values()
    assert rule["evidence"] == "latency"
    assert not any("graph" in entry for case in profiled.values() for entry in case.values())


def test_a_provider_that_cannot_start_is_an_error(workspace):
    python = interpreter("NN_METER_ONNXRUNTIME_OPENVINO")
    for providers in (
        [{OPENVINO: {"device_type": "GPU"}}],
        [{OPENVINO: {"device_type": "NPU"}}, CPU],
    ):
        workspace({"PYTHON": python, "PROVIDERS": providers})
        with pytest.raises(
            DeviceError, match=f"has {OPENVINO}, but cannot start it here, and took"
        ):
            greet(connect_backend("onnxruntime_providers"))


def test_a_provider_that_runs_node_by_node_tells_what_it_executes(workspace):
    python = interpreter("NN_METER_ONNXRUNTIME_WEBGPU")
    workspace(
        {"PYTHON": python, "PROVIDERS": ["WebGpuExecutionProvider"], "RUNS": 2, "WARMUPS": 1},
        **{"EVIDENCE": "graph", "BASIC_TESTCASES": ["conv_relu", "conv_hswish", "conv_add"]},
    )
    profiled = profile_models(connect_backend("onnxruntime_providers"), generate_testcases())
    found = detect_fusion_rule(profiled)
    assert {name: (v["verdict"], v["evidence"]) for name, v in found.items()} == {
        "BF_conv_relu": ("fused", "graph"),
        "BF_conv_hswish": ("separate", "graph"),
        "BF_conv_add": ("separate", "graph"),
    }
