"""The built-in operators as torch modules, one class each.

``get_model`` returns a module or a function of tensors, in which every layer has random weights.
torch is imported when a model is made, not with this file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from nn_meter.builder.nn_modules import shapes
from nn_meter.builder.nn_modules.shapes import conv_output, transposed_padding
from nn_meter.errors import NotInstalledError

__all__ = [
    "BMM",
    "FC",
    "SE",
    "Add",
    "AddScalar",
    "AvgPool",
    "BatchNorm",
    "Bias",
    "Center",
    "ChannelShuffle",
    "Concat",
    "Conv",
    "ConvTrans",
    "DwConv",
    "Flatten",
    "Gelu",
    "GlobalAvgPool",
    "HardSigmoid",
    "Hswish",
    "LayerNorm",
    "LeakyRelu",
    "MatMul",
    "MaxPool",
    "Mean",
    "Mul",
    "MulOne",
    "MulScalar",
    "PRelu",
    "Pad",
    "Relu",
    "Relu6",
    "Reshape",
    "Resize",
    "RowSoftmax",
    "RunningSum",
    "Scale",
    "Sigmoid",
    "Softmax",
    "Split",
    "Square",
    "Swish",
    "Tanh",
]


class _Torch:
    """What all operators here have in common."""

    implement: ClassVar[str] = "torch"
    layout: ClassVar[shapes.Layout] = "channels_first"


class _OneModule(_Torch):
    """An operator that is one module of ``torch.nn`` with no weights and no arguments."""

    module: ClassVar[str]

    def get_model(self) -> Any:
        return getattr(_import("torch.nn"), self.module)()


class Conv(_Torch, shapes.Conv):
    """2-D convolution with a bias."""

    @property
    def groups(self) -> int:
        """Groups of channels that the convolution keeps apart."""
        return 1

    def get_model(self) -> Any:
        padding = symmetric_padding(self)
        return _import(".layers").randomize(
            _import("torch.nn").Conv2d(
                self.channels,
                self.cout,
                self.kernel_size,
                stride=self.stride,
                padding="same" if padding is None else padding,
                groups=self.groups,
            )
        )


class DwConv(Conv, shapes.DwConv):
    """Depthwise 2-D convolution with a bias."""

    @property
    def groups(self) -> int:
        return self.channels


class ConvTrans(_Torch, shapes.ConvTrans):
    """Transposed 2-D convolution with a bias."""

    def get_model(self) -> Any:
        nn, layers = _import("torch.nn"), _import(".layers")
        kernel, stride = self.kernel_size, self.stride
        before, after, appended = transposed_padding(kernel, stride, self.padding)
        # Padding crops both sides alike; output_padding gives rows back, but fewer than the stride.
        uneven = after > before
        layer = nn.ConvTranspose2d(
            self.channels,
            self.cout,
            kernel,
            stride=stride,
            padding=after if stride > 1 else before,
            output_padding=1 if uneven and stride > 1 else appended,
        )
        layers.randomize(layer)
        return nn.Sequential(layer, layers.Crop(0, 1)) if uneven and stride == 1 else layer


class BatchNorm(_Torch, shapes.BatchNorm):
    """Batch normalization with the statistics of training kept."""

    def get_model(self) -> Any:
        return _import(".layers").randomize(_import("torch.nn").BatchNorm2d(self.channels))


class MaxPool(_Torch, shapes.MaxPool):
    """Max pooling."""

    def get_model(self) -> Any:
        return pool(self, _import("torch.nn").MaxPool2d)


class AvgPool(_Torch, shapes.AvgPool):
    """Average pooling; padding does not count."""

    def get_model(self) -> Any:
        return pool(self, _import("torch.nn").AvgPool2d, count_include_pad=False)


class GlobalAvgPool(_Torch, shapes.GlobalAvgPool):
    """Average over height and width; gives a 1-D tensor."""

    def get_model(self) -> Any:
        nn = _import("torch.nn")
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


class SE(_Torch, shapes.SE):
    """Squeeze and excite with a hard sigmoid, as in MobileNetV3 (Howard et al., 2019)."""

    def get_model(self) -> Any:
        return _import(".layers").SqueezeExcite(self.channels, self.squeezed)


class FC(_Torch, shapes.FC):
    """Fully connected layer over the last axis."""

    def get_model(self) -> Any:
        return _import(".layers").randomize(_import("torch.nn").Linear(self.cin, self.cout))


class MatMul(_Torch, shapes.MatMul):
    """Product with a constant matrix over the last axis."""

    def get_model(self) -> Any:
        return _import(".layers").MatMul(self.cin, self.cout)


class LayerNorm(_Torch, shapes.LayerNorm):
    """Layer normalization over the last axis."""

    def get_model(self) -> Any:
        layer = _import("torch.nn").LayerNorm(
            int(self.input_shape[-1]), eps=shapes.LAYER_NORM_EPSILON
        )
        return _import(".layers").randomize(layer)


class Relu(_OneModule, shapes.Relu):
    """max(x, 0)."""

    module = "ReLU"


class Relu6(_OneModule, shapes.Relu6):
    """min(max(x, 0), 6)."""

    module = "ReLU6"


class Sigmoid(_OneModule, shapes.Sigmoid):
    """1 / (1 + exp(-x))."""

    module = "Sigmoid"


class Hswish(_Torch, shapes.Hswish):
    """x * relu6(x + 3) / 6."""

    def get_model(self) -> Callable[[Any], Any]:
        relu6 = _import("torch.nn.functional").relu6
        return lambda x: x * relu6(x + 3) / 6


class Swish(_OneModule, shapes.Swish):
    """x * sigmoid(x)."""

    module = "SiLU"


class Gelu(_OneModule, shapes.Gelu):
    """x * (1 + erf(x / sqrt(2))) / 2."""

    module = "GELU"


class LeakyRelu(_Torch, shapes.LeakyRelu):
    """x, and where it is negative a tenth of it."""

    def get_model(self) -> Any:
        return _import("torch.nn").LeakyReLU(shapes.LEAKY_SLOPE)


class PRelu(_Torch, shapes.PRelu):
    """x, and where it is negative x times its channel's slope."""

    def get_model(self) -> Any:
        return _import(".layers").randomize(_import("torch.nn").PReLU(self.channels))


class HardSigmoid(_OneModule, shapes.HardSigmoid):
    """relu6(x + 3) / 6."""

    module = "Hardsigmoid"


class Tanh(_OneModule, shapes.Tanh):
    """The hyperbolic tangent."""

    module = "Tanh"


class Bias(_Torch, shapes.Bias):
    """x plus a constant for each channel."""

    def get_model(self) -> Any:
        return _import(".layers").PerChannel(_import("torch").add, _per_channel(self))


class Center(_Torch, shapes.Center):
    """x minus a constant for each channel."""

    def get_model(self) -> Any:
        return _import(".layers").PerChannel(_import("torch").sub, _per_channel(self))


class Scale(_Torch, shapes.Scale):
    """x times a constant for each channel."""

    def get_model(self) -> Any:
        multiply = _import("torch").mul
        return _import(".layers").PerChannel(multiply, _per_channel(self), positive=True)


class AddScalar(_Torch, shapes.AddScalar):
    """x plus a number."""

    def get_model(self) -> Callable[[Any], Any]:
        return lambda x: x + shapes.SCALAR


class MulScalar(_Torch, shapes.MulScalar):
    """x times a number."""

    def get_model(self) -> Callable[[Any], Any]:
        return lambda x: x * shapes.SCALAR


class MulOne(_Torch, shapes.MulOne):
    """x times a number that has an axis."""

    def get_model(self) -> Callable[[Any], Any]:
        number = _import("torch").tensor([shapes.SCALAR])
        return lambda x: x * number


class Square(_Torch, shapes.Square):
    """x * x, as a power."""

    def get_model(self) -> Callable[[Any], Any]:
        return lambda x: x**2


class Mean(_Torch, shapes.Mean):
    """The mean along the last axis."""

    def get_model(self) -> Callable[[Any], Any]:
        return lambda x: x.mean(dim=-1, keepdim=True)


class RunningSum(_Torch, shapes.RunningSum):
    """The running sum along the last axis."""

    def get_model(self) -> Any:
        torch = _import("torch")
        return lambda x: torch.cumsum(x, dim=-1)


class Softmax(_Torch, shapes.Softmax):
    """Softmax over the channels."""

    def get_model(self) -> Any:
        return _import("torch.nn").Softmax(dim=1)


class RowSoftmax(_Torch, shapes.RowSoftmax):
    """Softmax over the last axis."""

    def get_model(self) -> Any:
        return _import("torch.nn").Softmax(dim=-1)


class Reshape(_Torch, shapes.Reshape):
    """New sizes, the data in its place."""

    def get_model(self) -> Callable[[Any], Any]:
        shape = self.get_output_shape()
        return lambda x: x.reshape(1, *shape)


class Add(_Torch, shapes.Add):
    """Elementwise sum of two tensors."""

    def get_model(self) -> Callable[[Sequence[Any]], Any]:
        return lambda inputs: inputs[0] + inputs[1]


class Mul(_Torch, shapes.Mul):
    """Product of two tensors, element by element."""

    def get_model(self) -> Callable[[Sequence[Any]], Any]:
        return lambda inputs: inputs[0] * inputs[1]


class BMM(_Torch, shapes.BMM):
    """Matrix product of two tensors over height and width."""

    def get_model(self) -> Callable[[Sequence[Any]], Any]:
        return lambda inputs: inputs[0] @ inputs[1]


class Concat(_Torch, shapes.Concat):
    """Two tensors joined along the channels."""

    def get_model(self) -> Callable[[Sequence[Any]], Any]:
        cat = _import("torch").cat
        return lambda inputs: cat(inputs, dim=1)


class Flatten(_OneModule, shapes.Flatten):
    """All axes in one."""

    module = "Flatten"


class Split(_Torch, shapes.Split):
    """Two halves of the channels."""

    def get_model(self) -> Callable[[Any], Any]:
        half = self.channels // 2
        return lambda x: x.split(half, dim=1)


class ChannelShuffle(_Torch, shapes.ChannelShuffle):
    """Channels from the two halves in turn.

    Not torch's own module: the quick one of its exporters lacks it.
    """

    def get_model(self) -> Callable[[Any], Any]:
        channels, height, width = self.input_shape

        def func(x: Any) -> Any:
            halves = x.reshape(1, 2, channels // 2, height, width)
            return halves.transpose(1, 2).reshape(1, channels, height, width)

        return func


class Pad(_Torch, shapes.Pad):
    """Zeros around height and width."""

    def get_model(self) -> Any:
        return _import("torch.nn").ZeroPad2d(self.margin)


class Resize(_Torch, shapes.Resize):
    """Height and width doubled by nearest neighbours."""

    def get_model(self) -> Any:
        return _import("torch.nn").Upsample(scale_factor=2, mode="nearest")


def _per_channel(operator: Any) -> list[int]:
    """Shape of a constant with a number for each channel: [C, 1, 1], or [C] for a 1-D tensor."""
    return [operator.channels, *[1] * (len(operator.input_shape) - 1)]


def symmetric_padding(operator: shapes.Conv) -> list[int] | None:
    """Padding for each spatial axis, alike on both sides, that gives the operator's output size.

    Returns:
        The padding; None if there is none: an even kernel with stride 1 needs one row more on one
        side than on the other.
    """
    if operator.padding != "same":
        return [0, 0]
    kernel, stride = operator.kernel_size, operator.stride
    found = []
    for size in operator.spatial:
        wanted = conv_output(size, kernel, stride, "same")
        fits = [
            padding
            for padding in ((kernel - 1) // 2, kernel // 2)
            if (size + 2 * padding - kernel) // stride + 1 == wanted
        ]
        found += fits[:1]
    return found if len(found) == 2 else None


def pool(operator: shapes.Conv, module: Callable[..., Any], **options: Any) -> Any:
    """A pooling module with the operator's kernel, stride and padding.

    Where no symmetric padding fits it is one too large, and the first row and column are cut off.
    Cropping leaves the averages right, which an explicit padding would not.
    """
    kernel, padding = operator.kernel_size, symmetric_padding(operator)
    if padding is not None:
        return module(kernel, operator.stride, padding=tuple(padding), **options)
    nn, layers = _import("torch.nn"), _import(".layers")
    return nn.Sequential(
        module(kernel, operator.stride, padding=kernel // 2, **options), layers.Crop(1, 0)
    )


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name, __package__)
    except ModuleNotFoundError as exc:
        raise NotInstalledError.for_extra("torch", "torch") from exc
