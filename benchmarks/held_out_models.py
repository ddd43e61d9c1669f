"""Models that neither the kernel detector nor the lists of test cases were made with.

    python benchmarks/held_out_models.py FOLDER

Small networks in torch, weights drawn at random, exported to ONNX: what rules are worth that were
learned, or that ship, is shown on these (``nn-meter kernels … --suggest FILE --against …``). Needs
torch.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from kernel_models import Activation, Dense, Residual, SqueezeExcite, conv, head
from torch import Tensor, nn


def dense(growth: int, start: int, layers: int) -> nn.Module:
    """Two dense blocks that grow by so many channels a layer."""
    middle = start + layers * growth
    end = middle // 2 + layers * growth
    return nn.Sequential(
        *(conv(3, start, stride=2), Dense(start, growth, layers)),
        *(nn.BatchNorm2d(middle), nn.ReLU(), nn.Conv2d(middle, middle // 2, 1), nn.AvgPool2d(2)),
        *(Dense(middle // 2, growth, layers), nn.BatchNorm2d(end), nn.ReLU(), *head(end)),
    )


def activated(act: Activation) -> nn.Module:
    """Residual blocks, plain and with a gate, with one activation all through."""
    plain = nn.Sequential(conv(32, 32, 1, act=act), conv(32, 32, act=act))
    gated = nn.Sequential(
        *(conv(24, 48, 1, act=act), conv(48, 48, groups=48, act=act)),
        *(SqueezeExcite(48, nn.ReLU, nn.Hardsigmoid), conv(48, 24, 1, act=None)),
    )
    return nn.Sequential(
        *(conv(3, 16, stride=2, act=act), conv(16, 32, act=act), Residual(plain)),
        *(nn.MaxPool2d(2), conv(32, 24, act=act), Residual(gated), *head(24)),
    )


def preactivated(channels: int) -> nn.Module:
    """Residual blocks that begin with normalization and PReLU."""

    def layers() -> nn.Module:
        each = [
            (nn.BatchNorm2d(channels), nn.PReLU(channels), nn.Conv2d(channels, channels, 3, 1, 1))
            for _ in range(2)
        ]
        return nn.Sequential(*each[0], *each[1])

    return nn.Sequential(conv(3, channels), Residual(layers()), Residual(layers()), *head(channels))


class _Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def mixer(channels: int = 48) -> nn.Module:
    """Patches, and fully connected layers over their channels."""

    def layers() -> nn.Module:
        inner = 4 * channels
        wide = (nn.Linear(channels, inner), nn.GELU(), nn.Linear(inner, channels))
        return nn.Sequential(nn.LayerNorm(channels), *wide)

    return nn.Sequential(
        *(nn.Conv2d(3, channels, 8, stride=8), _Tokens()),
        *(Residual(layers()), Residual(layers())),
        *(nn.LayerNorm(channels), _Mean(), nn.Linear(channels, 10)),
    )


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "dense12": lambda: dense(12, 24, 4),
    "dense16": lambda: dense(16, 32, 4),
    "dense32": lambda: dense(32, 64, 3),
    "leaky": lambda: activated(lambda: nn.LeakyReLU(0.1)),
    "silu": lambda: activated(nn.SiLU),
    "gelu": lambda: activated(nn.GELU),
    "tanh": lambda: activated(nn.Tanh),
    "prelu": lambda: activated(nn.PReLU),
    "hardsigmoid": lambda: activated(nn.Hardsigmoid),
    "preact20": lambda: preactivated(20),
    "preact32": lambda: preactivated(32),
    "mixer": mixer,
}


def main() -> None:
    """Write the models."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    for name, make in MODELS.items():
        torch.manual_seed(0)
        image = torch.randn(1, 3, 64, 64)
        file = folder / f"{name}.onnx"
        torch.onnx.export(make().eval(), (image,), str(file), dynamo=False, opset_version=17)
        sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main()
