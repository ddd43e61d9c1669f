"""What TensorFlow gives to build `MON` and `MIN` with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nn_meter.builder.nn_modules.tensorflow.library import keras
from nn_meter.builder.nn_modules.tensorflow.operators import Add, Conv, DwConv

__all__ = ["Parts"]


class Parts:
    """See ``fusion_rule_tester.mon.Parts``; a tensor is a ``KerasTensor``.

    Args:
        kernel_size: Of all convolutions.
        padding: ``same`` or ``valid``; of all convolutions.
        cout: Channels that a convolution gives.
        strides: Of a convolution; of a depthwise one 1, as in the guide.
    """

    def __init__(self, *, kernel_size: int, padding: str, cout: int = 1, strides: int = 1) -> None:
        self._config = {"KERNEL_SIZE": kernel_size, "PADDING": padding, "STRIDES": 1}
        self._conv_config = self._config | {"COUT": cout, "STRIDES": strides}
        self._inputs: list[Any] = []

    def input(self, shape: Sequence[int]) -> Any:
        """Add a graph input."""
        name = f"input_{len(self._inputs) + 1}"
        self._inputs.append(keras.Input(tuple(shape), batch_size=1, name=name))
        return self._inputs[-1]

    def dwconv(self, x: Any) -> Any:
        """Add a depthwise convolution."""
        return DwConv(list(x.shape[1:]), self._config).get_model()(x)

    def conv(self, x: Any) -> Any:
        """Add a convolution."""
        return Conv(list(x.shape[1:]), self._conv_config).get_model()(x)

    def conv_shape(self, shape: Sequence[int]) -> list[int]:
        """The shape that a convolution makes of a shape."""
        return Conv(shape, self._conv_config).get_output_shape()

    def add(self, x: Any, y: Any) -> Any:
        """Add the sum of two tensors."""
        return Add(list(x.shape[1:]), self._config).get_model()([x, y])

    def relu(self, x: Any, negative_slope: float = 0.0) -> Any:
        """Add a relu."""
        return keras.layers.ReLU(negative_slope=negative_slope)(x)

    def model(self, outputs: Sequence[Any]) -> Any:
        """Finish the model."""
        return keras.Model(self._inputs, list(outputs), name="model")
