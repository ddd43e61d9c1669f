"""Models that the kernel detector was not written with, as ONNX files.

    python benchmarks/kernel_models.py FOLDER [NAME ...]

Small versions of known architectures, written in torch, weights drawn at random, exported by both
of torch's exporters: ``NAME.onnx`` by the newer one, ``NAME-script.onnx`` by the older one. Needs
torch and onnxscript. (``keras_models.py`` makes those of ``keras.applications``, and
``kernel_table.py`` holds them all against the runtimes.)
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Callable[[], nn.Module]


def conv(
    before: int, after: int, size: int = 3, *, act: Activation | None = nn.ReLU, **how: int
) -> nn.Sequential:
    """Convolution, batch normalization, activation."""
    layers = [
        nn.Conv2d(before, after, size, padding=size // 2, bias=False, **how),
        nn.BatchNorm2d(after),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class HardSwishParts(nn.Module):
    """hswish as add, clip, mul, div."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return x * functional.relu6(x + 3) / 6


class SqueezeExcite(nn.Module):
    """A gate for each channel."""

    def __init__(self, channels: int, act: Activation, gate: Activation) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            *(nn.Conv2d(channels, channels // 4, 1), act()),
            *(nn.Conv2d(channels // 4, channels, 1), gate()),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return x * self.layers(x)


class Residual(nn.Module):
    """Layers, their input added; ``act`` behind the sum."""

    def __init__(
        self,
        layers: nn.Module,
        shortcut: nn.Module | None = None,
        before: nn.Module | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.layers = layers
        self.shortcut, self.before, self.act = (
            each or nn.Identity() for each in (shortcut, before, act)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        x = self.before(x)
        return self.act(self.layers(x) + self.shortcut(x))


class Inverted(nn.Module):
    """An inverted residual of MobileNets and EfficientNets."""

    def __init__(
        self, before: int, after: int, stride: int, act: Activation, gate: Activation | None
    ) -> None:
        super().__init__()
        wide = before * 4
        self.adds = stride == 1 and before == after
        self.layers = nn.Sequential(
            conv(before, wide, 1, act=act),
            conv(wide, wide, stride=stride, groups=wide, act=act),
            *(
                [SqueezeExcite(wide, nn.ReLU if gate is nn.Hardsigmoid else act, gate)]
                if gate
                else []
            ),
            conv(wide, after, 1, act=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return x + self.layers(x) if self.adds else self.layers(x)


def head(channels: int, classes: int = 100) -> list[nn.Module]:
    """From a picture to classes."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def mobile(act: Activation, gate: Activation | None) -> nn.Module:
    """MobileNets and EfficientNets."""
    plan = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 40, 1)]
    return nn.Sequential(
        conv(3, 16, stride=2, act=act),
        *(Inverted(*each, act, gate) for each in plan),
        conv(40, 160, 1, act=act),
        *head(160),
    )


def resnet_v1() -> nn.Module:
    """ResNet18."""
    blocks = []
    for before, after, stride in [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2)]:
        shortcut = None if before == after else conv(before, after, 1, stride=stride, act=None)
        layers = nn.Sequential(conv(before, after, stride=stride), conv(after, after, act=None))
        blocks.append(Residual(layers, shortcut, act=nn.ReLU()))
    return nn.Sequential(conv(3, 16, 7, stride=2), nn.MaxPool2d(3, 2, 1), *blocks, *head(64))


def resnet_v2() -> nn.Module:
    """ResNet18 with activations first."""
    blocks: list[nn.Module] = []
    for before, after, stride in [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2)]:
        first = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        layers = nn.Sequential(
            conv(before, after, stride=stride), nn.Conv2d(after, after, 3, padding=1, bias=False)
        )
        if before == after:
            blocks.append(Residual(nn.Sequential(first, layers)))
        else:
            shortcut = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            blocks.append(Residual(layers, shortcut, first))
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 7, stride=2, padding=3), nn.MaxPool2d(3, 2, 1)),
        *(*blocks, nn.BatchNorm2d(64), nn.ReLU(), *head(64)),
    )


class LayerNorm2d(nn.LayerNorm):
    """Of the channels of a picture."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Permute(nn.Module):
    """Axes in another order."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return x.permute(self.order)


class Scale(nn.Module):
    """A factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return x * self.factor


def convnext() -> nn.Module:
    """ConvNeXt."""

    def block(channels: int) -> nn.Module:
        return Residual(
            nn.Sequential(
                nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
                Permute(0, 2, 3, 1),
                nn.LayerNorm(channels),
                nn.Linear(channels, channels * 4),
                nn.GELU(),
                nn.Linear(channels * 4, channels),
                Scale(channels),
                Permute(0, 3, 1, 2),
            )
        )

    return nn.Sequential(
        *(nn.Conv2d(3, 32, 4, stride=4), LayerNorm2d(32), block(32), block(32)),
        *(LayerNorm2d(32), nn.Conv2d(32, 64, 2, stride=2), block(64), block(64)),
        *(nn.AdaptiveAvgPool2d(1), LayerNorm2d(64), nn.Flatten(), nn.Linear(64, 100)),
    )


class Attention(nn.Module):
    """Self-attention by matmul and softmax."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        batch, tokens, width = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)) * (width // self.heads) ** -0.5
        y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))


class ViT(nn.Module):
    """A vision transformer."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 65, width))
        blocks = []
        for _ in range(3):
            blocks.append(Residual(nn.Sequential(nn.LayerNorm(width), Attention(width, 4))))
            mlp = (nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            blocks.append(Residual(nn.Sequential(nn.LayerNorm(width), *mlp)))
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.head = nn.Linear(width, 100)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.blocks(x)[:, 0])


class UNet(nn.Module):
    """A U-Net that comes up by a transposed convolution and by a resize."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (
            nn.Sequential(conv(3, 16), conv(16, 16)),
            nn.Sequential(conv(16, 32), conv(32, 32)),
        )
        self.c = nn.Sequential(conv(32, 64), conv(64, 64))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.d, self.e = (
            nn.Sequential(conv(64, 32), conv(32, 32)),
            nn.Sequential(conv(48, 16), conv(16, 16)),
        )
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        a = self.a(x)
        b = self.b(self.pool(a))
        y = self.up(self.c(self.pool(b)))
        y = self.d(torch.cat([y, b], 1))
        y = functional.interpolate(y, scale_factor=2.0, mode="bilinear")
        return torch.sigmoid(self.out(self.e(torch.cat([y, a], 1))))


class Dense(nn.Module):
    """A dense block."""

    def __init__(self, before: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                *(nn.BatchNorm2d(before + i * growth), nn.ReLU()),
                conv(before + i * growth, 4 * growth, 1),
                nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


def densenet() -> nn.Module:
    """DenseNet."""
    return nn.Sequential(
        *(conv(3, 16, stride=2), Dense(16, 8, 4), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.Conv2d(48, 24, 1), nn.AvgPool2d(2), Dense(24, 8, 4), nn.BatchNorm2d(56), nn.ReLU()),
        *head(56),
    )


class Shuffle(nn.Module):
    """A block of ShuffleNet v2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.layers = nn.Sequential(
            conv(half, half, 1), conv(half, half, groups=half, act=None), conv(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        a, b = x.chunk(2, 1)
        x = torch.cat([a, self.layers(b)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet_v2() -> nn.Module:
    """ShuffleNet v2."""
    stem = (conv(3, 24, stride=2), nn.MaxPool2d(3, 2, 1), conv(24, 48, 1))
    return nn.Sequential(*stem, *(Shuffle(48) for _ in range(4)), conv(48, 96, 1), *head(96))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mobilenet_v2": (lambda: mobile(nn.ReLU6, None), 96),
    "mobilenet_v3": (lambda: mobile(nn.Hardswish, nn.Hardsigmoid), 96),
    "mobilenet_v3_parts": (lambda: mobile(HardSwishParts, nn.Hardsigmoid), 96),
    "efficientnet": (lambda: mobile(nn.SiLU, nn.Sigmoid), 96),
    "resnet18_v1": (resnet_v1, 64),
    "resnet18_v2": (resnet_v2, 64),
    "convnext": (convnext, 64),
    "vit": (ViT, 64),
    "unet": (UNet, 64),
    "densenet": (densenet, 64),
    "shufflenet_v2": (shufflenet_v2, 64),
}


def export(name: str, folder: Path) -> None:
    """Write one model, by both exporters."""
    make, size = MODELS[name]
    torch.manual_seed(0)
    model, image = make().eval(), torch.randn(1, 3, size, size)
    for module in model.modules():  # else a folded normalization does nothing
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    torch.onnx.export(
        model,
        (image,),
        str(folder / f"{name}.onnx"),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    torch.onnx.export(
        model, (image,), str(folder / f"{name}-script.onnx"), dynamo=False, opset_version=17
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for chosen in sys.argv[2:] or MODELS:
        export(chosen, target)
