"""What torch gives to build `MON` with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from nn_meter.builder.nn_modules.torch.operators import DwConv

__all__ = ["Parts", "Wired"]


class Wired(nn.Module):  # type: ignore[misc]
    """Layers of one input and one output, wired as they were recorded.

    Args:
        steps: Each layer with the number of the tensor that it takes. The inputs have the first
            numbers, from 0; what a layer gives gets the next.
        outputs: Numbers of the tensors that the module gives.
    """

    def __init__(self, steps: Sequence[tuple[nn.Module, int]], outputs: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer for layer, _ in steps)
        self.sources = [source for _, source in steps]
        self.outputs = list(outputs)

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        tensors = list(inputs)
        for layer, source in zip(self.layers, self.sources, strict=True):
            tensors.append(layer(tensors[source]))
        return [tensors[number] for number in self.outputs]


class Parts:
    """See ``fusion_rule_tester.mon.Parts``; a tensor is its number. Inputs come first.

    Args:
        kernel_size: Of the depthwise convolutions.
        padding: ``same`` or ``valid``.
    """

    def __init__(self, kernel_size: int, padding: str) -> None:
        self._config = {"KERNEL_SIZE": kernel_size, "PADDING": padding, "STRIDES": 1}
        self._steps: list[tuple[nn.Module, int]] = []
        self._shapes: list[list[int]] = []

    def input(self, shape: Sequence[int]) -> int:
        """Add an input."""
        return self._number(shape)

    def dwconv(self, x: int) -> int:
        """Add a depthwise convolution."""
        operator = DwConv(self._shapes[x], self._config)
        self._steps.append((operator.get_model(), x))
        return self._number(operator.get_output_shape())

    def relu(self, x: int, negative_slope: float = 0.0) -> int:
        """Add a relu, or with a slope a LeakyReLU."""
        self._steps.append((nn.LeakyReLU(negative_slope) if negative_slope else nn.ReLU(), x))
        return self._number(self._shapes[x])

    def model(self, outputs: Sequence[int]) -> Wired:
        """Finish the model."""
        return Wired(self._steps, outputs)

    def _number(self, shape: Sequence[int]) -> int:
        self._shapes.append(list(shape))
        return len(self._shapes) - 1
