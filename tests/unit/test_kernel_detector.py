"""From a model and rules to kernels in one call."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hand_graphs import Builder, rules

from nn_meter.errors import NNMeterError
from nn_meter.kernel_detector import KernelDetector, readers
from nn_meter.kernel_detector.graph import Graph


def _graph() -> Graph:
    b = Builder()
    x = b.relu(b.bn(b.conv(b.input())))
    return b.graph(b.op("my.Op", b.op("Identity", b.relu(b.conv(x, group=16)))))


def test_kernels_and_summary_of_a_graph() -> None:
    detector = KernelDetector(rules(conv_bn=True, conv_relu=True, dwconv_relu=True))
    kernels = detector.detect(_graph())
    assert [kernel.name for kernel in kernels] == ["conv-bn-relu#1", "dwconv-relu#1", "my.Op#1"]
    assert kernels[1].ops == ("op3", "op4", "op5")
    assert detector.summary.to_json() == {
        "ops": 7,
        "recognized": 6,
        "unrecognized": {"my.Op": 1},
        "kernels": {"conv-bn-relu": 1, "dwconv-relu": 1, "my.Op": 1},
    }
    assert detector.rules.fuses("conv", "relu") is True


def test_attributes_for_a_latency_predictor() -> None:
    kernel = KernelDetector(rules(conv_bn=True, conv_relu=True)).detect(_graph())[0]
    assert kernel.to_json()["attributes"] == {
        "input_shapes": [[1, 16, 8, 8]],
        "output_shapes": [[1, 16, 8, 8]],
        "kernel_size": [3, 3],
        "strides": [1, 1],
        "in_channels": 16,
        "out_channels": 16,
        "groups": 1,
    }


def test_a_file_is_read_with_its_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def read(path: str, *, shapes: Any) -> Graph:
        asked.append((path, shapes))
        return _graph()

    monkeypatch.setattr(readers, "read_model", read)
    kernels = KernelDetector({}).detect("model.onnx", shapes={"x": [1, 3]})
    assert len(kernels) == 6
    assert asked == [("model.onnx", {"x": [1, 3]})]


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(NNMeterError):
        KernelDetector({}).detect("no/such/model.onnx")


def test_an_empty_model_has_no_kernels() -> None:
    detector = KernelDetector(rules(conv_relu=True))
    assert detector.detect(Builder().graph()) == []
    assert detector.summary.ops == 0


def test_nothing_heavy_is_loaded_to_split_a_graph() -> None:
    code = (
        "import sys; import nn_meter.kernel_detector.detector; "
        "sys.exit(any(m in sys.modules for m in ('onnx', 'torch', 'tensorflow', 'openvino')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
