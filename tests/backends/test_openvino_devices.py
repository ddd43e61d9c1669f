"""OpenVINO's devices: the one asked for runs, or it is an error that names those that are there.

No NPU and no GPU of Intel's is here. All paths are walked on the CPU, asked for as a device.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("openvino")

from nn_meter.builder.backend_meta.fusion_rule_tester import generate_testcases
from nn_meter.builder.backend_meta.fusion_rule_tester.interface import (
    detect_fusion_rule,
    profile_models,
)
from nn_meter.builder.backends.interface import connect_backend
from nn_meter.builder.backends.openvino.backend import (
    OpenVINOBackend,
    OpenVINOCPUBackend,
    OpenVINOGPUBackend,
    OpenVINOVPUBackend,
)
from nn_meter.builder.backends.openvino.devices import (
    AskedDevice,
    check_devices,
    execution_devices,
    is_processor,
)
from nn_meter.builder.backends.openvino.models import import_openvino
from nn_meter.builder.nn_modules.frameworks import get_framework
from nn_meter.builder.nn_modules.onnx.operators import Conv, Relu
from nn_meter.builder.profiling.connection import Connection, greet
from nn_meter.builder.profiling.store import Store
from nn_meter.errors import (
    ConfigError,
    DeviceError,
    GraphUnavailableError,
    ModelRejectedError,
)
from nn_meter.reference import reference_inputs

openvino = import_openvino()
_THERE = openvino.Core().available_devices
only_a_cpu = pytest.mark.skipif(_THERE != ["CPU"], reason=f"here are {', '.join(_THERE)}")
OTHERS = [OpenVINOVPUBackend, OpenVINOGPUBackend]
CONFIG = {"COUT": 6, "KERNEL_SIZE": 3, "PADDING": "same", "STRIDES": 1, "POOL_STRIDES": 2}
SHAPES = [[4, 7, 6]]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """conv -> relu."""
    framework = get_framework("onnx")
    framework.seed_weights(1)
    conv = Conv(SHAPES[0], CONFIG)
    built, shapes = framework.chain_model([conv, Relu(conv.get_output_shape(), CONFIG)])
    assert shapes == SHAPES
    path = tmp_path_factory.mktemp("devices") / "model.onnx"
    framework.save_model(built, path, shapes)
    return str(path)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mode", "names", "without"),
    [
        ("NPU", "", ("NPU",), ()),
        ("GPU.1", "", ("GPU.1",), ()),
        ("NPU.3720", "", ("NPU.3720",), ()),
        ("AUTO", "AUTO", (), ()),
        ("AUTO:GPU,CPU", "AUTO", ("GPU", "CPU"), ()),
        ("AUTO:-GPU", "AUTO", (), ("GPU",)),
        ("HETERO:NPU, CPU", "HETERO", ("NPU", "CPU"), ()),
    ],
)
def test_names_of_devices(text, mode, names, without):
    asked = AskedDevice.read(text)
    assert (asked.text, asked.mode, asked.names, asked.without) == (text, mode, names, without)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cpu", "is no name of an OpenVINO device"),
        ("", "should name one device"),
        ("NPU,CPU", "should name one device"),
        ("-NPU", "should name one device"),
        ("NPU:CPU", "is no name of an OpenVINO device"),
        ("$(reboot)", "is no name of an OpenVINO device"),
        ("HETERO", "should name devices behind the colon"),
        ("HETERO:", "should name devices behind the colon"),
        ("HETERO:-CPU", "should name devices behind the colon"),
        ("MULTI:NPU,CPU", "nobody could say which of them a latency is of"),
        ("BATCH:GPU(4)", "latencies would be of that waiting"),
    ],
)
def test_what_is_no_name_of_a_device(text, words):
    with pytest.raises(ConfigError, match=f"DEVICE.*{words}"):
        AskedDevice.read(text)


@pytest.mark.parametrize(
    ("asked", "available"),
    [
        ("GPU", ["CPU", "GPU.0", "GPU.1"]),
        ("GPU.0", ["CPU", "GPU"]),
        ("GPU.1", ["CPU", "GPU.0", "GPU.1"]),
        ("HETERO:NPU,CPU", ["CPU", "NPU"]),
        ("AUTO:-GPU", ["CPU"]),
    ],
)
def test_a_device_that_is_there(asked, available):
    check_devices(AskedDevice.read(asked), available)


@pytest.mark.parametrize(
    ("asked", "available", "missing"),
    [
        ("GPU.1", ["CPU", "GPU"], "GPU.1"),
        ("GPU.2", ["CPU", "GPU.0", "GPU.1"], "GPU.2"),
        ("HETERO:NPU,CPU", ["CPU"], "NPU (of HETERO:NPU,CPU)"),
        ("AUTO:NPU,CPU", ["CPU"], "NPU (of AUTO:NPU,CPU)"),
        ("NPU", [], "NPU"),
    ],
)
def test_a_device_that_is_not_there(asked, available, missing):
    with pytest.raises(DeviceError) as refusal:
        check_devices(AskedDevice.read(asked), available)
    message = str(refusal.value)
    assert f"no device {missing} here; there is: {', '.join(available) or 'none'}" in message
    assert "an Intel" in message  # how to get it


@pytest.mark.parametrize(
    ("asked", "ran", "usual", "words"),
    [
        ("NPU", ["CPU"], ["CPU"], "runs it on CPU, though NPU was asked for"),
        ("GPU.1", ["GPU.0"], ["GPU.0"], r"runs it on GPU\.0, though GPU\.1 was asked for"),
        ("HETERO:NPU,GPU", ["NPU", "CPU"], ["NPU"], "though HETERO:NPU,GPU was asked for"),
        ("AUTO", ["CPU"], ["GPU"], "runs it on CPU, and other models on GPU; name the device"),
        ("AUTO", [], [], "does not say which device of AUTO runs it"),
    ],
)
def test_another_device_than_asked_is_an_error(asked, ran, usual, words):
    with pytest.raises(ModelRejectedError, match=words):
        AskedDevice.read(asked).check(ran, usual)


@pytest.mark.parametrize(
    ("asked", "ran", "usual"),
    [
        ("GPU", ["GPU.0"], ["GPU.0"]),
        ("GPU.0", ["GPU"], ["GPU"]),
        ("HETERO:NPU,CPU", ["NPU"], ["NPU", "CPU"]),
        ("AUTO", ["CPU"], ["CPU"]),
    ],
)
def test_the_device_that_was_asked_for(asked, ran, usual):
    AskedDevice.read(asked).check(ran, usual)


def test_only_a_cpu_is_this_processor():
    assert is_processor(("CPU",))
    assert not is_processor(("NPU", "CPU"))
    assert not is_processor(())


@only_a_cpu
def test_openvino_itself_falls_back_without_a_word():
    """Why a device that is not there is looked for before, and what ran asked for behind."""
    from openvino import opset13

    parameter = opset13.parameter([1, 8], np.float32)
    model = openvino.Model([opset13.relu(parameter)], [parameter])
    compiled = openvino.Core().compile_model(model, "MULTI:NPU,CPU")
    assert execution_devices(compiled) == ("CPU",)


# --- devices that are not there ------------------------------------------------------------------


@only_a_cpu
@pytest.mark.parametrize(
    ("cls", "device"), [(OpenVINOVPUBackend, "NPU"), (OpenVINOGPUBackend, "GPU")]
)
def test_a_backend_says_what_there_is_instead(cls, device, model):
    backend = cls({})
    assert backend.device == device
    assert not backend.runs_here
    for call in (
        backend.test_connection,
        backend.describe,
        lambda: backend.open(model, SHAPES),
        lambda: backend.profile(model, input_shape=SHAPES),
        lambda: backend.executed_graph(model, SHAPES),
    ):
        with pytest.raises(
            DeviceError,
            match=f"no device {device} here; there is: .*CPU.*; an Intel {device} needs",
        ):
            call()


def test_a_device_that_runs_nothing_is_an_error():
    with pytest.raises(DeviceError, match=r"cannot run a model of one op on CPU\.0: .*CPU plugin"):
        OpenVINOVPUBackend({"DEVICE": "CPU.0"}).test_connection()


@only_a_cpu
def test_connecting_names_the_device_that_is_missing(workspace):
    workspace({"DEVICE": None})
    for name, device in (("openvino_vpu", "NPU"), ("openvino_gpu", "GPU")):
        backend = connect_backend(name)
        for connect in (greet, Connection):
            with pytest.raises(DeviceError, match=f"no device {device} here; there is: .*CPU"):
                connect(backend)


# --- the CPU, asked for as a device --------------------------------------------------------------


@only_a_cpu
@pytest.mark.parametrize("device", ["CPU", "AUTO", "AUTO:CPU", "HETERO:CPU"])
def test_outputs_times_and_graphs_are_as_on_the_cpu(device, model):
    cpu, backend = OpenVINOCPUBackend(), OpenVINOVPUBackend({"DEVICE": device, "THREADS": 1})
    sessions = [each.open(model, SHAPES) for each in (backend, cpu)]
    feeds = reference_inputs(SHAPES)
    found, wanted = (session.outputs(feeds) for session in sessions)
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-6)
    assert (sessions[0].time(3) > 0).all()
    for session in sessions:
        session.close()
    graph, other = (each.executed_graph(model, SHAPES) for each in (backend, cpu))
    assert [node.type for node in graph.nodes] == [node.type for node in other.nodes]
    assert [node.sources for node in graph.nodes] == [node.sources for node in other.nodes]


@only_a_cpu
@pytest.mark.parametrize("cls", [OpenVINOBackend, *OTHERS])
@pytest.mark.parametrize("device", ["CPU", "AUTO", "HETERO:CPU"])
def test_the_environment_says_what_ran(cls, device):
    backend = cls({"DEVICE": device, "THREADS": 2})
    found = backend.describe()
    assert (found.runtime, found.device, found.threads) == ("openvino", device, 2)
    assert found.dtype == "float32"
    assert found.options["device_name"]
    assert found.options.get("execution_devices") == (None if device == "CPU" else ["CPU"])
    assert backend.runs_here
    assert backend.test_connection() == "hello backend !"


def test_a_model_that_is_refused(tmp_path, model):
    path = tmp_path / "garbage.onnx"
    path.write_bytes(b"no model at all")
    backend = OpenVINOGPUBackend({"DEVICE": "CPU"})
    with pytest.raises(ModelRejectedError, match=r"OpenVINO refuses the model: ."):
        backend.open(str(path), SHAPES)
    with pytest.raises(ModelRejectedError, match=r"OpenVINO refuses the model: ."):
        backend.open(model, [[5, 5, 5]])


def test_what_another_plugin_executes_is_not_told(model):
    """The NPU's and the GPU's runtime models were never held against what those execute."""
    backend = OpenVINOVPUBackend({"DEVICE": "CPU"})
    backend._probed = replace(backend._probe(), ran=("NPU",))  # as if that ran the first model
    with pytest.raises(GraphUnavailableError, match="from its CPU plugin only, and CPU runs mod"):
        backend.executed_graph(model, SHAPES)
    with pytest.raises(ModelRejectedError, match="runs it on CPU, and other models on NPU"):
        backend.open(model, SHAPES)


class Elsewhere(OpenVINOVPUBackend):
    """A device that is not this processor, as far as nn-Meter is told."""

    runs_here = False

    def executed_graph(self, converted_model, shapes):
        raise GraphUnavailableError("read from the CPU plugin only")


def test_a_run_by_executed_graphs(workspace):
    workspace(
        {"DEVICE": "CPU", "RUNS": 4, "WARMUPS": 1},
        **{"EVIDENCE": "auto", "TIME_BUDGET": 0.01, "BASIC_TESTCASES": ["conv_relu", "conv_conv"]},
    )
    profiled = profile_models(connect_backend("openvino_vpu"), generate_testcases())
    found = detect_fusion_rule(profiled)
    assert {name: (v["verdict"], v["evidence"]) for name, v in found.items()} == {
        "BF_conv_relu": ("fused", "graph"),
        "BF_conv_conv": ("separate", "graph"),
    }


def test_what_is_not_told_the_clock_is_asked_without_a_gate(workspace):
    """On a device that is not this processor: one process, and all runs count."""
    ws = workspace(EVIDENCE="auto", TIME_BUDGET=60)
    backend = Elsewhere({"DEVICE": "CPU", "RUNS": 4, "WARMUPS": 1})
    with Connection(backend) as connection:
        assert (connection.gated, connection.cores) == (False, 1)

    profiled = profile_models(backend, generate_testcases())
    (verdict,) = detect_fusion_rule(profiled).values()

    assert verdict["evidence"] == "latency"
    with Store(ws.store_file) as store:
        trials = store.trials(store.campaign(1), "clock:BF_conv_relu")
    loads = [load for found in trials.values() for load in found]
    assert loads
    assert {load.level_ns for load in loads} == {0}
