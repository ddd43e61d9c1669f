"""What torch gives to build `MON` and `MIN` with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from nn_meter.builder.nn_modules.base import BaseOperator
from nn_meter.builder.nn_modules.torch.operators import Add, Conv, DwConv

__all__ = ["Parts", "Wired"]

Step = tuple[Callable[..., Any], int | Sequence[int]]


class Wired(nn.Module):  # type: ignore[misc]
    """Layers, and functions without weights, of one output, wired as they were recorded.

    Args:
        steps: Each with the number of the tensor that it takes, or the numbers of several. The
            inputs have the first numbers, from 0; what a step gives gets the next.
        outputs: Numbers of the tensors that the module gives.
    """

    def __init__(self, steps: Sequence[Step], outputs: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer for layer, _ in steps if isinstance(layer, nn.Module))
        self.steps = list(steps)
        self.outputs = list(outputs)

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        tensors = list(inputs)
        for layer, sources in self.steps:
            taken = tensors[sources] if isinstance(sources, int) else [tensors[n] for n in sources]
            tensors.append(layer(taken))
        return [tensors[number] for number in self.outputs]


class Parts:
    """See ``fusion_rule_tester.mon.Parts``; a tensor is its number. Inputs come first.

    Args:
        kernel_size: Of all convolutions.
        padding: ``same`` or ``valid``; of all convolutions.
        cout: Channels that a convolution gives.
        strides: Of a convolution; of a depthwise one 1, as in the guide.
    """

    def __init__(self, *, kernel_size: int, padding: str, cout: int = 1, strides: int = 1) -> None:
        self._config = {"KERNEL_SIZE": kernel_size, "PADDING": padding, "STRIDES": 1}
        self._conv_config = self._config | {"COUT": cout, "STRIDES": strides}
        self._steps: list[Step] = []
        self._shapes: list[list[int]] = []

    def input(self, shape: Sequence[int]) -> int:
        """Add an input."""
        return self._number(shape)

    def dwconv(self, x: int) -> int:
        """Add a depthwise convolution."""
        return self._put(DwConv(self._shapes[x], self._config), x)

    def conv(self, x: int) -> int:
        """Add a convolution."""
        return self._put(Conv(self._shapes[x], self._conv_config), x)

    def conv_shape(self, shape: Sequence[int]) -> list[int]:
        """The shape that a convolution makes of a shape."""
        return Conv(shape, self._conv_config).get_output_shape()

    def add(self, x: int, y: int) -> int:
        """Add the sum of two tensors."""
        return self._put(Add(self._shapes[x], self._config), [x, y])

    def relu(self, x: int, negative_slope: float = 0.0) -> int:
        """Add a relu, or with a slope a LeakyReLU."""
        self._steps.append((nn.LeakyReLU(negative_slope) if negative_slope else nn.ReLU(), x))
        return self._number(self._shapes[x])

    def model(self, outputs: Sequence[int]) -> Wired:
        """Finish the model."""
        return Wired(self._steps, outputs)

    def _put(self, operator: BaseOperator, inputs: int | list[int]) -> int:
        self._steps.append((operator.get_model(), inputs))
        return self._number(operator.get_output_shape())

    def _number(self, shape: Sequence[int]) -> int:
        self._shapes.append(list(shape))
        return len(self._shapes) - 1
