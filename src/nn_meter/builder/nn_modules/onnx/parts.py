"""What ONNX gives to build `MON` and `MIN` with."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from nn_meter.builder.nn_modules.base import BaseOperator
from nn_meter.builder.nn_modules.onnx.models import Graph
from nn_meter.builder.nn_modules.onnx.operators import Add, Conv, DwConv

__all__ = ["Parts"]


class Parts:
    """See ``fusion_rule_tester.mon.Parts``; a tensor is its name.

    Args:
        kernel_size: Of all convolutions.
        padding: ``same`` or ``valid``; of all convolutions.
        cout: Channels that a convolution gives.
        strides: Of a convolution; of a depthwise one 1, as in the guide.
    """

    def __init__(self, *, kernel_size: int, padding: str, cout: int = 1, strides: int = 1) -> None:
        self._graph = Graph()
        self._config = {"KERNEL_SIZE": kernel_size, "PADDING": padding, "STRIDES": 1}
        self._conv_config = self._config | {"COUT": cout, "STRIDES": strides}
        self._shapes: dict[str, list[int]] = {}

    def input(self, shape: Sequence[int]) -> str:
        """Add a graph input."""
        name = self._graph.input(shape)
        self._shapes[name] = list(shape)
        return name

    def dwconv(self, x: str) -> str:
        """Add a depthwise convolution."""
        return self._put(DwConv(self._shapes[x], self._config), x)

    def conv(self, x: str) -> str:
        """Add a convolution."""
        return self._put(Conv(self._shapes[x], self._conv_config), x)

    def conv_shape(self, shape: Sequence[int]) -> list[int]:
        """The shape that a convolution makes of a shape."""
        return Conv(shape, self._conv_config).get_output_shape()

    def add(self, x: str, y: str) -> str:
        """Add the sum of two tensors."""
        return self._put(Add(self._shapes[x], self._config), [x, y])

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

    def _put(self, operator: BaseOperator, inputs: str | list[str]) -> str:
        y = str(operator.get_model()(self._graph, inputs))
        self._shapes[y] = operator.get_output_shape()
        return y
