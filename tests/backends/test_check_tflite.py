"""What runtimes execute together of TFLite models, and of those that are read by way of them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn_meter.builder.backends.onnxruntime.backend import OnnxRuntimeCPUBackend
from nn_meter.builder.backends.openvino.backend import OpenVINOCPUBackend
from nn_meter.errors import ConversionError
from nn_meter.kernel_detector.check import Truth, executed_together
from nn_meter.kernel_detector.check.prepare import prepare
from nn_meter.kernel_detector.readers import read_model

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
from test_read_tflite import OPS, TYPES, Made  # noqa: E402  (it skips without the schema)

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")
KINDS = schema.ActivationFunctionType
C, HW = 16, 8
IMAGE = [1, HW, HW, C]


class Model(Made):
    """A model with one input; all its weights are zeros, and are one constant where they can be."""

    def __init__(self) -> None:
        super().__init__()
        self.x = self.tensor("x", IMAGE)
        self._zeros: dict[tuple[int, ...], int] = {}

    def zeros(self, *shape: int) -> int:
        if shape not in self._zeros:
            data = np.zeros(shape, np.float32)
            self._zeros[shape] = self.tensor("arith.constant", shape, data=data)
        return self._zeros[shape]

    def add_op(self, kind: int, *inputs: int, options: Any = None, shape: Any = None) -> int:
        y = self.tensor("", shape or self.graph.tensors[inputs[0]].shape)
        self.op(kind, list(inputs), [y], options)
        return y

    def conv(self, x: int, activation: int = KINDS.NONE) -> int:
        options = schema.Conv2DOptionsT()
        options.strideH = options.strideW = 1
        options.dilationHFactor = options.dilationWFactor = 1
        options.fusedActivationFunction = activation
        return self.add_op(OPS.CONV_2D, x, self.zeros(C, 3, 3, C), self.zeros(C), options=options)

    def up(self, x: int, activation: int) -> int:
        options = schema.TransposeConvOptionsT()
        options.strideH = options.strideW = 2
        options.fusedActivationFunction = activation
        wide = [1, 2 * HW, 2 * HW, C]
        size = self.tensor("size", [4], TYPES.INT32, np.int32(wide))
        weight = self.zeros(C, 2, 2, C)
        return self.add_op(OPS.TRANSPOSE_CONV, size, weight, x, options=options, shape=wide)

    def add(self, x: int, y: int, activation: int = KINDS.NONE) -> int:
        options = schema.AddOptionsT()
        options.fusedActivationFunction = activation
        return self.add_op(OPS.ADD, x, y, options=options)

    def pool(self, x: int) -> int:
        options = schema.Pool2DOptionsT()
        options.strideH = options.strideW = options.filterHeight = options.filterWidth = 2
        size = self.graph.tensors[x].shape[1] // 2
        return self.add_op(OPS.MAX_POOL_2D, x, options=options, shape=[1, size, size, C])

    def save(self, path: Path, *outputs: int) -> Path:
        self.graph.inputs, self.graph.outputs = [self.x], list(outputs)
        path.write_bytes(self.bytes())
        return path


def residual(model: Model) -> int:
    """Convolutions alike, the last with a sum and an activation behind it."""
    x = model.pool(model.conv(model.x, KINDS.RELU6))
    return model.pool(model.add(model.conv(model.conv(x, KINDS.RELU)), x, KINDS.RELU))


def swish(model: Model) -> int:
    y = model.conv(model.x)
    gate = model.add_op(OPS.LOGISTIC, y)
    return model.conv(model.add_op(OPS.MUL, y, gate, options=schema.MulOptionsT()))


def transposed(model: Model) -> int:
    """Transposes of the file's own are no ops, and no bar."""
    order = model.tensor("order", [4], TYPES.INT32, np.int32([0, 2, 1, 3]))
    y = model.add_op(OPS.TRANSPOSE, model.conv(model.x), order)
    return model.pool(model.conv(model.add_op(OPS.RELU, y)))


def told(build: Any, folder: Path) -> tuple[list[set[str]], Truth]:
    model = Model()
    path = model.save(folder / "model.tflite", build(model))
    truth = executed_together(path, read_model(path), OpenVINOCPUBackend())
    groups: dict[int, set[str]] = {}
    for op, group in truth.groups.items():
        groups.setdefault(group, set()).add(op)
    return [group for group in groups.values() if len(group) > 1], truth


@needs_openvino
@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (residual, [{"CONV_2D_3", "ADD_4"}]),
        (swish, [{"CONV_2D_0", "LOGISTIC_1", "MUL_2"}]),
        (transposed, [{"CONV_2D_0", "RELU_2"}]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_small_models_are_told(build, expected, tmp_path):
    groups, truth = told(build, tmp_path)
    assert groups == expected
    assert truth.untold == set()
    assert {name.rpartition("_")[0] for name in truth.idle} <= {"TRANSPOSE"}


@needs_openvino
def test_an_activation_of_a_transposed_convolution_is_not_overlooked(tmp_path):
    """OpenVINO's reader leaves it out, so the copy has it as an op of its own."""
    model = Model()
    path = model.save(tmp_path / "up.tflite", model.pool(model.up(model.x, KINDS.RELU6)))
    graph = read_model(path)
    folder = tmp_path / "copy"
    folder.mkdir()
    copied = read_model(prepare(path, graph, folder).path)
    assert [op.type for op in copied.ops] == ["TRANSPOSE_CONV", "RELU6", "MAX_POOL_2D"]
    assert copied.ops[0].attributes["fused_activation_function"] == "NONE"
    truth = executed_together(path, graph, OpenVINOCPUBackend())
    assert truth.untold == set()
    assert set(truth.groups) == {"TRANSPOSE_CONV_0", "MAX_POOL_2D_1"}


def test_the_copy_has_the_ops_and_weights_of_its_own(tmp_path):
    model = Model()
    path = model.save(tmp_path / "model.tflite", residual(model))
    graph = read_model(path)
    folder = tmp_path / "copy"
    folder.mkdir()
    copy = prepare(path, graph, folder)
    copied = read_model(copy.path)
    assert [(op.type, op.attributes) for op in copied.ops] == [
        (op.type, op.attributes) for op in graph.ops
    ]
    assert copied.inputs == ("in0",)
    assert [op.outputs for op in copied.ops] == [(f"op{place}.0",) for place in range(6)]
    weights = [copied.tensors[copied.ops[place].inputs[1]].value for place in (0, 2)]
    assert all(weight.all() for weight in weights)
    assert not np.array_equal(*weights)
    weight_bytes = 4 * C * C * 3 * 3
    assert len(copy.path.read_bytes()) < 4 * weight_bytes  # three, and not what was there before


def test_a_file_of_other_ops_is_no_model_of_the_graph(tmp_path):
    model, other = Model(), Model()
    path = model.save(tmp_path / "model.tflite", residual(model))
    graph = read_model(path)
    other.save(path, swish(other))
    with pytest.raises(ConversionError, match=r"model\.tflite: its ops are not those"):
        prepare(path, graph, tmp_path)


def test_a_runtime_that_takes_no_such_files_refuses_them(tmp_path):
    model = Model()
    path = model.save(tmp_path / "model.tflite", residual(model))
    with pytest.raises(ConversionError, match="OnnxRuntimeCPUBackend cannot take"):
        executed_together(path, read_model(path), OnnxRuntimeCPUBackend())
