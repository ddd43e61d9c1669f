"""What ONNX gives to build `MON` with."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from nn_meter.builder.nn_modules.onnx.models import Graph
from nn_meter.builder.nn_modules.onnx.operators import DwConv

__all__ = ["Parts"]


class Parts:
    """See ``fusion_rule_tester.mon.Parts``; a tensor is its name.

    Args:
        kernel_size: Of the depthwise convolutions.
        padding: ``same`` or ``valid``.
    """

    def __init__(self, kernel_size: int, padding: str) -> None:
        self._graph = Graph()
        self._config = {"KERNEL_SIZE": kernel_size, "PADDING": padding, "STRIDES": 1}
        self._shapes: dict[str, list[int]] = {}

    def input(self, shape: Sequence[int]) -> str:
        """Add a graph input."""
        name = self._graph.input(shape)
        self._shapes[name] = list(shape)
        return name

    def dwconv(self, x: str) -> str:
        """Add a depthwise convolution."""
        operator = DwConv(self._shapes[x], self._config)
        y = str(operator.get_model()(self._graph, x))
        self._shapes[y] = operator.get_output_shape()
        return y

    def relu(self, x: str, negative_slope: float = 0.0) -> str:
        """Add a relu, or with a slope a LeakyRelu."""
        if negative_slope:
            y = str(self._graph.op("LeakyRelu", [x], alpha=negative_slope))
        else:
            y = str(self._graph.op("Relu", [x]))
        self._shapes[y] = self._shapes[x]
        return y

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        """Finish the model."""
        return self._graph.model(outputs)
