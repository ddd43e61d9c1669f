"""What the frameworks' twins of an operator share: padding arithmetic, ranks and output shapes.

Each class here is one operator without its framework: it knows which shapes the
operator takes and what comes out, in the layout of the framework that derives from it. Nothing here
imports a framework, so shapes can be worked out, and bad pairs refused, without one.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from nn_meter.builder.nn_modules.base import BaseOperator
from nn_meter.errors import OddSizeError, ShapeError

__all__ = [
    "BMM",
    "FC",
    "LAYER_NORM_EPSILON",
    "LEAKY_SLOPE",
    "SCALAR",
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
    "conv_output",
    "same_padding",
    "transposed_output",
    "transposed_padding",
]

Layout = Literal["channels_last", "channels_first"]

# The frameworks' defaults differ, so each is told.
LEAKY_SLOPE = 0.1
LAYER_NORM_EPSILON = 1e-5
SCALAR = 0.7


def conv_output(size: int, kernel: int, stride: int, padding: str) -> int:
    """Output size along one axis of a convolution or pooling.

    Args:
        size: Input size along the axis.
        kernel: Kernel size.
        stride: Stride.
        padding: ``same`` (output is ``ceil(size / stride)``) or ``valid`` (no padding).

    Raises:
        ShapeError: Nothing is left: the kernel is larger than the input.
    """
    if padding == "same":
        return -(-size // stride)
    out = (size - kernel) // stride + 1
    if out < 1:
        raise ShapeError(f"a kernel of {kernel} does not fit an input of {size} without padding")
    return out


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after one axis that give ``same``; an odd one goes behind.

    The convention is TensorFlow's and that of ONNX's ``SAME_UPPER``.
    """
    total = max((conv_output(size, kernel, stride, "same") - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def transposed_output(size: int, kernel: int, stride: int, padding: str) -> int:
    """Output size along one axis of a transposed convolution.

    ``same`` gives ``size * stride``; ``valid`` keeps all that the kernel reaches.
    """
    return size * stride + (0 if padding == "same" else max(kernel - stride, 0))


def transposed_padding(kernel: int, stride: int, padding: str) -> tuple[int, int, int]:
    """Crop before, crop after, and rows to append to a transposed convolution's full output.

    The full output has ``(size - 1) * stride + kernel`` rows; with a kernel smaller than the stride
    rows of zeros are appended instead of cropped.
    """
    total = max(kernel - stride, 0) if padding == "same" else 0
    return total // 2, total - total // 2, max(stride - kernel, 0)


class _Shaped(BaseOperator):
    """A built-in operator: checks the shape that reaches it when it is made."""

    layout: ClassVar[Layout] = "channels_last"
    ranks: ClassVar[tuple[int, ...]] = (3,)

    def __init__(self, input_shape: Any, config: Any = None) -> None:
        super().__init__(input_shape, config)
        self.check_shape()

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def check_shape(self) -> None:
        """Refuse a shape that the operator cannot take.

        Raises:
            ShapeError: The rank or a size is wrong; says which are right.
        """
        if len(self.input_shape) not in self.ranks:
            allowed = " or ".join(f"{rank}-D" for rank in self.ranks)
            raise ShapeError(
                f"{self.name} takes a {allowed} tensor, but {self.input_shape} "
                f"({len(self.input_shape)}-D) reaches it"
            )

    @property
    def channels(self) -> int:
        """Channels of the input: its last axis, or its first, by layout."""
        return int(self.input_shape[self.channel_axis])

    @property
    def channel_axis(self) -> int:
        return -1 if self.layout == "channels_last" or len(self.input_shape) == 1 else 0

    @property
    def spatial(self) -> list[int]:
        """Height and width of a 3-D input."""
        shape = self.input_shape
        return list(shape[:2] if self.layout == "channels_last" else shape[1:])

    def shaped(self, spatial: list[int], channels: int) -> list[int]:
        """A 3-D shape in this operator's layout."""
        if self.layout == "channels_last":
            return [*spatial, channels]
        return [channels, *spatial]

    def with_channels(self, channels: int) -> list[int]:
        """The input's shape with another number of channels."""
        shape = [int(size) for size in self.input_shape]
        shape[self.channel_axis] = channels
        return shape

    @property
    def kernel_size(self) -> int:
        return int(self.config["KERNEL_SIZE"])

    @property
    def padding(self) -> str:
        return str(self.config.get("PADDING", "same"))


class Conv(_Shaped):
    """A 2-D convolution to ``COUT`` channels."""

    @property
    def stride(self) -> int:
        return int(self.config["STRIDES"])

    @property
    def cout(self) -> int:
        return int(self.config.get("COUT", self.channels))

    def get_output_shape(self) -> list[int]:
        return self.shaped(
            [
                conv_output(size, self.kernel_size, self.stride, self.padding)
                for size in self.spatial
            ],
            self.cout,
        )


class DwConv(Conv):
    """A depthwise convolution: as many channels out as in."""

    @property
    def cout(self) -> int:
        return self.channels


class ConvTrans(Conv):
    """A transposed convolution to ``COUT`` channels."""

    def get_output_shape(self) -> list[int]:
        return self.shaped(
            [
                transposed_output(size, self.kernel_size, self.stride, self.padding)
                for size in self.spatial
            ],
            self.cout,
        )


class _Pool(DwConv):
    @property
    def stride(self) -> int:
        return int(self.config.get("POOL_STRIDES", self.config.get("STRIDES", 1)))


class MaxPool(_Pool):
    """Max pooling."""


class AvgPool(_Pool):
    """Average pooling; padding does not count."""


class GlobalAvgPool(_Shaped):
    """The average over height and width; gives a 1-D tensor."""

    def get_output_shape(self) -> list[int]:
        return [self.channels]


class BatchNorm(_Shaped):
    """Batch normalization."""

    elementwise = True


class SE(_Shaped):
    """Squeeze and excite; a quarter of the channels between its convolutions, as MobileNetV3."""

    @property
    def squeezed(self) -> int:
        return max(1, self.channels // 4)


class FC(_Shaped):
    """A fully connected layer over the last axis: on a 1-D tensor, all of it."""

    ranks = (1, 3)

    @property
    def cin(self) -> int:
        return int(self.input_shape[-1])

    @property
    def cout(self) -> int:
        return int(self.config.get("COUT", self.cin))

    def get_output_shape(self) -> list[int]:
        return [*(int(size) for size in self.input_shape[:-1]), self.cout]


class MatMul(FC):
    """A product with a constant matrix over the last axis: a fully connected layer without bias."""


class _SameShape(_Shaped):
    ranks = (1, 3)


class _Elementwise(_SameShape):
    elementwise = True


class Relu(_Elementwise):
    """max(x, 0)."""


class Relu6(_Elementwise):
    """min(max(x, 0), 6)."""


class Sigmoid(_Elementwise):
    """1 / (1 + exp(-x))."""


class Hswish(_Elementwise):
    """x * relu6(x + 3) / 6."""


class Swish(_Elementwise):
    """x * sigmoid(x), also called SiLU."""


class Gelu(_Elementwise):
    """x * (1 + erf(x / sqrt(2))) / 2: the exact form, not one of its approximations."""


class LeakyRelu(_Elementwise):
    """x, and where it is negative x * ``LEAKY_SLOPE``."""


class PRelu(_Elementwise):
    """x, and where it is negative x times a slope that each channel has of its own."""


class HardSigmoid(_Elementwise):
    """relu6(x + 3) / 6."""


class Tanh(_Elementwise):
    """The hyperbolic tangent."""


class Square(_Elementwise):
    """x * x, as a power: what a library's own kernels have no activation for."""


class Bias(_Elementwise):
    """x plus a constant that each channel has of its own."""


class Center(_Elementwise):
    """x minus a constant that each channel has of its own, as what takes a mean off."""


class Scale(_Elementwise):
    """x times a constant that each channel has of its own."""


class AddScalar(_Elementwise):
    """x plus ``SCALAR``: one number for all channels."""


class MulScalar(_Elementwise):
    """x times ``SCALAR``: one number for all channels."""


class MulOne(_Elementwise):
    """x times ``[SCALAR]``: one number with an axis of its own, which not all runtimes fold."""


class Mean(_SameShape):
    """The mean along the last axis, which stays, as layer normalization takes it."""

    def get_output_shape(self) -> list[int]:
        return [*(int(size) for size in self.input_shape[:-1]), 1]


class LayerNorm(_SameShape):
    """Layer normalization over the last axis, with a scale and a bias."""


class Softmax(_SameShape):
    """Softmax over the channels."""


class RowSoftmax(_SameShape):
    """Softmax over the last axis, whichever that is, as attention takes it."""


class RunningSum(_SameShape):
    """The running sum along the last axis, whichever that is."""


class Reshape(_Shaped):
    """``[H, W, C]`` to ``[C, H, W]`` (onnx, torch: ``[C, H, W]`` to ``[H, W, C]``), data in place.

    A 1-D tensor ``[N]`` becomes ``[1, 2, N / 2]``.
    """

    ranks = (1, 3)

    def check_shape(self) -> None:
        super().check_shape()
        if len(self.input_shape) == 1 and self.input_shape[0] % 2:
            raise OddSizeError(
                f"reshape halves a 1-D tensor: its size must be even, but {self.input_shape[0]} "
                "reaches it (SHAPE_1D, or the output of the op before)"
            )

    def get_output_shape(self) -> list[int]:
        if len(self.input_shape) == 1:
            return [1, 2, self.input_shape[0] // 2]
        if self.layout == "channels_last":
            return [self.channels, *self.spatial]
        return [*self.spatial, self.channels]


class _TwoInputs(_Shaped):
    ranks: ClassVar[tuple[int, ...]] = (1, 3)

    def check_shape(self) -> None:
        if self.input_shape and isinstance(self.input_shape[0], list | tuple):
            self.operand_shapes = [[int(size) for size in shape] for shape in self.input_shape]
            self.input_shape = list(self.operand_shapes[0])
        else:
            self.operand_shapes = [list(self.input_shape)] * 2
        super().check_shape()

    def get_is_two_inputs(self) -> bool:
        return True


class Add(_TwoInputs):
    """The sum of two tensors."""

    elementwise = True


class Mul(_TwoInputs):
    """The product of two tensors, element by element."""

    elementwise = True


class BMM(_TwoInputs):
    """The matrix product of two tensors over height and width, for each channel, as of attention.

    The second one is square, so that the product has the shape of the first.
    """

    ranks = (3,)

    def check_shape(self) -> None:
        alone = not (self.input_shape and isinstance(self.input_shape[0], list | tuple))
        super().check_shape()
        width = self.spatial[1]
        square = self.shaped([width, width], self.channels)
        if alone:
            self.operand_shapes[1] = square
        elif self.operand_shapes[1] != square:
            raise ShapeError(
                f"{self.name} multiplies {self.input_shape} by {square}, but the second tensor "
                f"that reaches it has the shape {self.operand_shapes[1]}"
            )


class Concat(_TwoInputs):
    """Joins two tensors along the channels."""

    def get_output_shape(self) -> list[int]:
        return self.with_channels(sum(shape[self.channel_axis] for shape in self.operand_shapes))


class Flatten(_Shaped):
    """All axes in one."""

    def get_output_shape(self) -> list[int]:
        return [math.prod(int(size) for size in self.input_shape)]


class _Halves(_Shaped):
    """An operator that cuts the channels in two."""

    def check_shape(self) -> None:
        super().check_shape()
        if self.channels % 2:
            raise OddSizeError(
                f"{self.name} halves the channels: their number must be even, but {self.channels} "
                "reach it (CIN, or COUT of the op before)"
            )


class Split(_Halves):
    """Cuts the channels into two halves; what follows takes the first."""

    def get_output_shape(self) -> list[int]:
        return self.with_channels(self.channels // 2)


class ChannelShuffle(_Halves):
    """Takes channels from the two halves in turn, as ShuffleNet (Zhang et al., 2018) does."""


class Pad(_Shaped):
    """Zeros around height and width: half a kernel on each side, at least one."""

    @property
    def margin(self) -> int:
        """Rows or columns of zeros on each side."""
        return max(1, self.kernel_size // 2)

    def get_output_shape(self) -> list[int]:
        return self.shaped([size + 2 * self.margin for size in self.spatial], self.channels)


class Resize(_Shaped):
    """Height and width doubled, each value standing where its nearest neighbour was."""

    def get_output_shape(self) -> list[int]:
        return self.shaped([size * 2 for size in self.spatial], self.channels)
