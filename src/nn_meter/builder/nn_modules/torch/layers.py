"""Modules that torch lacks, and weights in which nothing is 0 or 1 by default."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Crop", "MatMul", "PerChannel", "SqueezeExcite", "randomize"]


class Crop(nn.Module):  # type: ignore[misc]
    """Cuts rows and columns off.

    Args:
        before: How many at the top and at the left.
        after: How many at the bottom and at the right.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.kept = slice(before, -after if after else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, self.kept, self.kept]


class MatMul(nn.Module):  # type: ignore[misc]
    """A product with a matrix over the last axis.

    A linear layer without bias computes the same, but one of torch's exporters writes another
    operator for it.

    Args:
        cin: Size of the last axis.
        cout: What it becomes.
    """

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cin, cout) * cin**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class PerChannel(nn.Module):  # type: ignore[misc]
    """What a function of two tensors gives of the input and a number for each channel.

    Args:
        function: The function, e.g. ``torch.add``.
        shape: Of the numbers: [C, 1, 1], or [C] for a 1-D tensor.
        positive: They are within [0.5, 1.5), else within ±[0.05, 0.5).
    """

    def __init__(self, function: Any, shape: list[int], *, positive: bool = False) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.empty(shape))
        with torch.no_grad():
            if positive:
                self.weight.uniform_(0.5, 1.5)
            else:
                _away_from_zero(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.weight)


class SqueezeExcite(nn.Module):  # type: ignore[misc]
    """Squeeze and excite with a hard sigmoid, as in MobileNetV3 (Howard et al., 2019).

    Args:
        channels: Channels that come and go.
        squeezed: Channels between the two convolutions.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            randomize(nn.Conv2d(channels, squeezed, 1)),
            nn.ReLU(),
            randomize(nn.Conv2d(squeezed, channels, 1)),
            nn.Hardsigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x)


def randomize(layer: Any) -> Any:
    """Give a layer a bias in which nothing is near 0; to one that starts out plain all it has.

    Weights of convolutions are random already. Biases, means and slopes are within ±[0.05, 0.5),
    scales and variances within [0.5, 1.5).

    Returns:
        The layer.
    """
    with torch.no_grad():
        if isinstance(layer, nn.PReLU):
            _away_from_zero(layer.weight)
            return layer
        _away_from_zero(layer.bias)
        if isinstance(layer, nn.LayerNorm):
            layer.weight.uniform_(0.5, 1.5)
        if isinstance(layer, nn.BatchNorm2d):
            _away_from_zero(layer.running_mean)
            layer.weight.uniform_(0.5, 1.5)
            layer.running_var.uniform_(0.5, 1.5)
    return layer


def _away_from_zero(values: torch.Tensor) -> None:
    signs = torch.randint(0, 2, values.shape) * 2 - 1
    values.uniform_(0.05, 0.5).mul_(signs)
