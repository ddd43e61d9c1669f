"""Models that are converted before they are read; each framework in a process of its own.

Tests that need the same framework but for the first share one process: it takes long to start.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec

import pytest

from nn_meter.builder.backends.onnxruntime.backend import OnnxRuntimeCPUBackend
from nn_meter.builder.backends.openvino.backend import OpenVINOCPUBackend
from nn_meter.builder.profiling.process import Worker
from nn_meter.errors import ModelFileError
from nn_meter.kernel_detector.check import executed_together
from nn_meter.kernel_detector.readers import converted, read_model

needs_tensorflow = pytest.mark.skipif(find_spec("tensorflow") is None, reason="no tensorflow")
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="no openvino")
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="no torch")

KERAS = """
import sys, keras
image = keras.Input((None, None, 3), name="image")
x = keras.layers.Conv2D(4, 3, activation="relu6")(image)
model = keras.Model(image, keras.layers.MaxPooling2D()(x))
model.save(sys.argv[1] + "/model.keras")
model.save(sys.argv[1] + "/model.h5")
model.export(sys.argv[1] + "/saved", verbose=False)
"""
TORCH = """
import sys, torch
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
program = torch.export.export(model.eval(), (torch.zeros(1, 3, 8, 8),))
torch.export.save(program, sys.argv[1] + "/model.pt2")
"""


def run(code, folder):
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def keras_models(tmp_path_factory):
    return run(KERAS, tmp_path_factory.mktemp("keras"))


@pytest.fixture(scope="module")
def tensorflow_worker():
    with Worker(f"{converted.__name__}:ConversionJobs") as worker:
        yield worker


@pytest.fixture
def one_tensorflow(tensorflow_worker, monkeypatch):
    """The process that converts is the same in all tests that ask for this."""
    monkeypatch.setattr(converted, "Worker", lambda handler, what: nullcontext(tensorflow_worker))


@pytest.fixture(scope="module")
def torch_worker():
    with Worker(f"{converted.__name__}:ConversionJobs") as worker:
        yield worker


@pytest.fixture
def one_torch(torch_worker, monkeypatch):
    """As ``one_tensorflow``."""
    monkeypatch.setattr(converted, "Worker", lambda handler, what: nullcontext(torch_worker))


@needs_tensorflow
@pytest.mark.parametrize("name", ["model.keras", "model.h5", "saved"])
def test_keras_models_and_saved_models(keras_models, name, request):
    if name != "model.keras":
        request.getfixturevalue("one_tensorflow")
    graph = read_model(keras_models / name, shapes={"image": (1, 10, 10, 3)})
    assert graph.name == name
    assert [op.type for op in graph.ops] == ["CONV_2D", "MAX_POOL_2D"]
    assert graph.ops[0].attributes["fused_activation_function"] == "RELU6"
    assert graph.shape(graph.outputs[0]) == (1, 4, 4, 4)


@needs_tensorflow
@pytest.mark.usefixtures("one_tensorflow")
@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({}, "input 'image'.*--shape image=1,224,224,3"),
        ({"image": (2, 10, 10, 3)}, "does not fit"),
        ({"other": (1, 10, 10, 3)}, "no input 'other'"),
    ],
)
def test_shapes_are_asked_for_and_looked_at(keras_models, shapes, words):
    with pytest.raises(ModelFileError, match=words):
        read_model(keras_models / "saved", shapes=shapes)


@pytest.fixture(scope="module")
def exported_program(tmp_path_factory):
    return run(TORCH, tmp_path_factory.mktemp("torch")) / "model.pt2"


@needs_torch
def test_exported_programs(exported_program):
    graph = read_model(exported_program)
    assert [op.type for op in graph.ops] == ["Conv", "BatchNormalization", "Relu"]
    assert (graph.name, graph.shape(graph.outputs[0])) == ("model.pt2", (1, 4, 6, 6))


@needs_tensorflow
@needs_openvino
@pytest.mark.usefixtures("one_tensorflow")
@pytest.mark.parametrize("name", ["model.keras", "saved"])
def test_what_is_executed_of_keras_models_and_saved_models(keras_models, name):
    shapes = {"image": (1, 10, 10, 3)}
    graph = read_model(keras_models / name, shapes=shapes)
    truth = executed_together(keras_models / name, graph, OpenVINOCPUBackend(), shapes)
    assert set(truth.groups) == {"CONV_2D_0", "MAX_POOL_2D_1"}
    assert truth.groups["CONV_2D_0"] != truth.groups["MAX_POOL_2D_1"]


@needs_torch
@pytest.mark.usefixtures("one_torch")
@pytest.mark.parametrize(
    "backend",
    [OnnxRuntimeCPUBackend, pytest.param(OpenVINOCPUBackend, marks=needs_openvino)],
)
def test_what_is_executed_of_exported_programs(exported_program, backend):
    graph = read_model(exported_program)
    truth = executed_together(exported_program, graph, backend())
    assert len(truth.groups) == 3
    assert len(set(truth.groups.values())) == 1


@needs_tensorflow
@pytest.mark.usefixtures("one_tensorflow")
@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_file_that_is_no_keras_model_is_refused(tmp_path, name):
    assert_refused(tmp_path / name)


@needs_torch
@pytest.mark.usefixtures("one_torch")
def test_a_file_that_is_no_exported_program_is_refused(tmp_path):
    assert_refused(tmp_path / "model.pt2")


def assert_refused(path):
    path.write_bytes(b"no model")
    with pytest.raises(ModelFileError, match=path.name):
        read_model(path)
