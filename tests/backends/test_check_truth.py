"""What runtimes execute together of whole models, found in one way for all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nn_meter.builder.backends.onnxruntime.backend import OnnxRuntimeCPUBackend
from nn_meter.builder.backends.openvino.backend import OpenVINOCPUBackend
from nn_meter.errors import ModelRejectedError
from nn_meter.kernel_detector.check import Truth, executed_together, score
from nn_meter.kernel_detector.graph import Graph
from nn_meter.kernel_detector.readers import read_model

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
C, HW = 16, 8


class Model:
    """An ONNX model in the making; all weights are equal, as in the light models."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._count: Iterator[int] = iter(range(1000))

    def op(self, op_type: str, *inputs: str, n: int = 1, **attributes: Any) -> Any:
        outputs = [f"t{next(self._count)}" for _ in range(n)]
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name=name, **attributes))
        return outputs if n > 1 else outputs[0]

    def const(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"w{next(self._count)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def conv(self, x: str) -> str:
        weight = self.const(np.full((C, C, 3, 3), 0.02))
        return str(self.op("Conv", x, weight, pads=[1, 1, 1, 1]))

    def bn(self, x: str) -> str:
        return str(self.op("BatchNormalization", x, *(self.const(np.ones(C)) for _ in range(4))))

    def reshape(self, x: str, *sizes: int) -> str:
        return str(self.op("Reshape", x, self.const(sizes, np.int64)))

    def save(self, path: Path, *outputs: str) -> Path:
        def value(name: str, shape: Any) -> Any:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        graph = helper.make_graph(
            self.nodes,
            "g",
            [value("x", [1, C, HW, HW])],
            [value(name, None) for name in outputs],
            self.weights,
        )
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
            str(path),
        )
        return path


def framed(build: Callable[[Model, str], str]) -> Callable[[Model], str]:
    """Behind a convolution and a pool, and before a pool: as in the middle of a model."""

    def whole(model: Model) -> str:
        x = model.op("MaxPool", model.conv("x"), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        y = build(model, x)
        return str(model.op("MaxPool", y, kernel_shape=[2, 2]))

    return whole


@framed
def conv_bn_relu(model: Model, x: str) -> str:
    return str(model.op("Relu", model.bn(model.conv(x))))


@framed
def residual(model: Model, x: str) -> str:
    y = model.op("Relu", model.conv(x))
    return str(model.op("Relu", model.op("Add", model.conv(y), x)))


@framed
def branches(model: Model, x: str) -> str:
    """Two equal convolutions of one tensor: with equal weights they would be merged."""
    left = model.op("Relu", model.conv(x))
    right = model.op("Relu", model.conv(x))
    return str(model.op("Concat", left, right, axis=1))


@framed
def two_readers(model: Model, x: str) -> str:
    """A convolution that a relu and a sigmoid read: neither can be a part of it alone."""
    y = model.conv(x)
    return str(model.op("Concat", model.op("Relu", y), model.op("Tanh", y), axis=1))


@framed
def shuffle(model: Model, x: str) -> str:
    y = model.op("Relu", model.conv(x))
    y = model.reshape(y, 1, 4, C // 4, HW, HW)
    y = model.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    return model.conv(model.reshape(y, 1, C, HW, HW))


@framed
def dropout(model: Model, x: str) -> str:
    return str(model.op("Dropout", model.op("Relu", model.conv(x))))


@framed
def padded(model: Model, x: str) -> str:
    """A padding that becomes a part of the convolution, though it adds nothing but zeros."""
    y = model.op("Pad", x, model.const([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    weight = model.const(np.ones((C, C, 3, 3)))
    return str(model.op("Relu", model.op("Conv", y, weight)))


def narrow(model: Model) -> str:
    """Fewer channels at the end than a layout holds; what fills it up is no zero."""
    x = conv_bn_relu(model)
    y = model.op("Conv", x, model.const(np.ones((2, C, 1, 1))))
    return str(model.op("Sigmoid", y))


def told(
    build: Callable[[Model], str], backend: Any, folder: Path
) -> tuple[list[set[str]], Truth, Graph]:
    """The groups of more than one op, the truth and the graph of a model."""
    model = Model()
    path = model.save(folder / "model.onnx", build(model))
    graph = read_model(path)
    truth = executed_together(path, graph, backend())
    groups: dict[int, set[str]] = {}
    for op, group in truth.groups.items():
        groups.setdefault(group, set()).add(op)
    return [group for group in groups.values() if len(group) > 1], truth, graph


every_backend = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(OnnxRuntimeCPUBackend, id="onnxruntime"),
        pytest.param(
            OpenVINOCPUBackend,
            marks=pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino"),
            id="openvino",
        ),
    ],
)


@every_backend
@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (conv_bn_relu, [{"conv2", "batchnormalization3", "relu4"}]),
        (residual, [{"conv2", "relu3"}, {"conv4", "add5", "relu6"}]),
        (branches, [{"conv2", "relu3"}, {"conv4", "relu5"}]),
        (two_readers, []),
        (shuffle, [{"conv2", "relu3"}]),
        (dropout, [{"conv2", "relu3"}]),
        (padded, [{"pad2", "conv3", "relu4"}]),
        (narrow, [{"conv2", "batchnormalization3", "relu4"}, {"conv6", "sigmoid7"}]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_small_models_are_told(backend, build, expected, tmp_path):
    groups, truth, graph = told(build, backend, tmp_path)
    assert groups == expected
    assert truth.untold == set()
    assert set(truth.groups) | truth.idle == {op.name for op in graph.ops}


@every_backend
def test_views_moves_and_no_ops_do_not_count(backend, tmp_path):
    _, truth, graph = told(shuffle, backend, tmp_path)
    kinds = {op.name: op.type for op in graph.ops}
    assert sorted(kinds[name] for name in truth.idle) == ["Reshape", "Reshape", "Transpose"]
    _, truth, graph = told(dropout, backend, tmp_path)
    assert truth.idle == {"dropout4"}


@every_backend
def test_a_dropped_relu_is_never_said_to_be_executed(backend, tmp_path):
    def twice(model: Model) -> str:
        y = model.op("Relu", model.conv("x"))
        return str(model.op("MaxPool", model.op("Relu", y), kernel_shape=[2, 2]))

    _, truth, _ = told(twice, backend, tmp_path)
    assert truth.groups["conv0"] == truth.groups["relu1"] != truth.groups["maxpool3"]
    assert truth.groups.get("relu2") in (None, truth.groups["conv0"])


@every_backend
def test_a_batch_that_is_not_one_is_told(backend, tmp_path):
    model = Model()
    path = model.save(tmp_path / "model.onnx", model.op("Relu", model.conv("x")))
    wide = onnx.load(str(path))
    wide.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(wide, str(path))
    truth = executed_together(path, read_model(path), backend())
    assert truth.groups["conv0"] == truth.groups["relu1"]


@every_backend
def test_a_refused_model_is_refused_by_name(backend, tmp_path):
    model = Model()
    path = model.save(tmp_path / "model.onnx", model.conv("x"))
    graph = read_model(path)
    broken = onnx.load(str(path))
    broken.graph.node[0].op_type = "NoSuchOp"
    onnx.save(broken, str(path))
    with pytest.raises(ModelRejectedError):
        executed_together(path, graph, backend())


@functools.cache
def _light(name: str) -> tuple[Path, Graph]:
    path = LIGHT / f"light_{name}.onnx"
    return path, read_model(path)


@every_backend
@pytest.mark.parametrize(
    ("name", "fused", "edges"), [("squeezenet", 26, 71), ("resnet50", 118, 189)]
)
def test_light_models_are_told_whole(backend, name, fused, edges):
    """Counts as found by another way of reading both runtimes' graphs."""
    path, graph = _light(name)
    truth = executed_together(path, graph, backend())
    found = score(graph, [], truth)
    assert (found.fn, found.edges, found.untold) == (fused, edges, 0)
