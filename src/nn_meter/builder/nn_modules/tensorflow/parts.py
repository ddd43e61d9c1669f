"""What TensorFlow gives to build `MON` with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nn_meter.builder.nn_modules.tensorflow.library import keras
from nn_meter.builder.nn_modules.tensorflow.operators import DwConv

__all__ = ["Parts"]


class Parts:
    """See ``fusion_rule_tester.mon.Parts``; a tensor is a ``KerasTensor``.

    Args:
        kernel_size: Of the depthwise convolutions.
        padding: ``same`` or ``valid``.
    """

    def __init__(self, kernel_size: int, padding: str) -> None:
        self._config = {"KERNEL_SIZE": kernel_size, "PADDING": padding, "STRIDES": 1}
        self._inputs: list[Any] = []

    def input(self, shape: Sequence[int]) -> Any:
        """Add a graph input."""
        name = f"input_{len(self._inputs) + 1}"
        self._inputs.append(keras.Input(tuple(shape), batch_size=1, name=name))
        return self._inputs[-1]

    def dwconv(self, x: Any) -> Any:
        """Add a depthwise convolution."""
        return DwConv(list(x.shape[1:]), self._config).get_model()(x)

    def relu(self, x: Any, negative_slope: float = 0.0) -> Any:
        """Add a relu."""
        return keras.layers.ReLU(negative_slope=negative_slope)(x)

    def model(self, outputs: Sequence[Any]) -> Any:
        """Finish the model."""
        return keras.Model(self._inputs, list(outputs), name="model")
