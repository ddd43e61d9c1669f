"""The built-in operators in plain numpy, float64, one number after the other.

Written from their definitions, to check the frameworks' twins against. Nothing here is shared with
`nn_meter`. Weights come in one form for all frameworks:

    Conv        kernel [cout, cin, kh, kw], bias [cout]
    DwConv      kernel [channels, kh, kw], bias [channels]
    ConvTrans   kernel [cin, cout, kh, kw], bias [cout]
    BatchNorm   scale, offset, mean, variance, each [channels]
    SE          kernel [squeezed, channels], bias, kernel [channels, squeezed], bias
    FC          kernel [cin, cout], bias [cout]
    MatMul      kernel [cin, cout]
    PRelu       a slope for each channel, with any axes of size 1
    LayerNorm   scale, offset, each as long as the last axis
    Bias, Center, Scale   a number for each channel, with any axes of size 1
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["OPERATORS", "Setting", "compute"]

Array = npt.NDArray[np.float64]
Taps = list[list[tuple[int, int]]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How an operator is set.

    Attributes:
        kernel: Size of the kernel.
        stride: Stride, of a convolution or a pooling.
        padding: ``same`` or ``valid``.
        symmetric: Whether ``same`` pads both sides alike where it can, as torch's modules, or puts
            what is odd behind, as TensorFlow and ONNX's SAME_UPPER.
        channels_last: Whether a 3-D tensor is [H, W, C] or [C, H, W].
        epsilon: What batch normalization adds to the variance.
    """

    kernel: int = 1
    stride: int = 1
    padding: str = "same"
    symmetric: bool = False
    channels_last: bool = False
    epsilon: float = 1e-5


def compute(
    name: str, inputs: Sequence[Any], weights: Sequence[Any], setting: Setting
) -> list[Array]:
    """Run an operator.

    Args:
        name: Its class.
        inputs: Its one or two tensors, without the batch dimension.
        weights: As the docstring of this module has them.
        setting: How it is set.

    Returns:
        Its outputs, without the batch dimension.
    """
    tensors = [np.asarray(tensor, dtype=np.float64) for tensor in inputs]
    parameters = [np.asarray(weight, dtype=np.float64) for weight in weights]
    outputs = OPERATORS[name](tensors, parameters, setting)
    return outputs if isinstance(outputs, list) else [outputs]


# --- windows -------------------------------------------------------------------------------------


def taps(size: int, setting: Setting) -> Taps:
    """For each output along an axis: which elements of the kernel meet which inputs."""
    kernel, stride = setting.kernel, setting.stride
    if setting.padding == "valid":
        starts = list(range(0, size - kernel + 1, stride))
    else:
        count = math.ceil(size / stride)
        starts = [i * stride - zeros_before(size, count, setting) for i in range(count)]
    return [[(k, start + k) for k in range(kernel) if 0 <= start + k < size] for start in starts]


def zeros_before(size: int, count: int, setting: Setting) -> int:
    kernel, stride = setting.kernel, setting.stride
    if not setting.symmetric:
        return max((count - 1) * stride + kernel - size, 0) // 2
    before = (kernel - 1) // 2
    if stride > 1 and len(range(0, size + 2 * before - kernel + 1, stride)) < count:
        before += 1  # an even kernel, and an input of which one row is left over
    return before


def windows(x: Array, setting: Setting) -> Iterator[tuple[int, int, list[tuple[int, int, Array]]]]:
    """For each output (row, column): the kernel's elements with the input's channels there."""
    for row, vertical in enumerate(taps(x.shape[1], setting)):
        for column, horizontal in enumerate(taps(x.shape[2], setting)):
            met = [(i, j, x[:, h, w]) for i, h in vertical for j, w in horizontal]
            yield row, column, met


def slide(x: Array, setting: Setting, channels: int, one: Callable[..., Array]) -> Array:
    """An output of that many channels, each (row, column) of it made by ``one`` of a window."""
    out = np.full(
        (channels, len(taps(x.shape[1], setting)), len(taps(x.shape[2], setting))), np.nan
    )
    for row, column, met in windows(x, setting):
        out[:, row, column] = one(met)
    return out


def channels_first(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Let an operator on [C, H, W] take and give [H, W, C] where the setting says so."""

    def func(tensors: list[Array], weights: list[Array], setting: Setting) -> Any:
        last = setting.channels_last and tensors[0].ndim == 3
        if last:
            tensors = [tensor.transpose(2, 0, 1) for tensor in tensors]
        outputs = operator(tensors, weights, setting)
        if not last:
            return outputs
        several = outputs if isinstance(outputs, list) else [outputs]
        return [out.transpose(1, 2, 0) if out.ndim == 3 else out for out in several]

    return func


# --- operators -----------------------------------------------------------------------------------


@channels_first
def conv(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    kernel, bias = weights
    return slide(
        tensors[0],
        setting,
        len(bias),
        lambda met: bias + sum(kernel[:, :, i, j] @ x for i, j, x in met),
    )


@channels_first
def dwconv(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    kernel, bias = weights
    return slide(
        tensors[0],
        setting,
        len(bias),
        lambda met: bias + sum(kernel[:, i, j] * x for i, j, x in met),
    )


@channels_first
def convtrans(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    """Every input adds the kernel, times itself, to the outputs from ``stride`` times its place."""
    (x,), (kernel, bias) = tensors, weights
    size, stride = setting.kernel, setting.stride
    surplus = max(size - stride, 0)
    sizes = [n * stride + (surplus if setting.padding == "valid" else 0) for n in x.shape[1:]]
    before = 0
    if setting.padding == "same":
        before = math.ceil(surplus / 2) if setting.symmetric and stride > 1 else surplus // 2
    out = np.zeros((len(bias), *sizes)) + bias[:, None, None]
    for h, w, i, j in np.ndindex(*x.shape[1:], size, size):
        row, column = h * stride + i - before, w * stride + j - before
        if 0 <= row < sizes[0] and 0 <= column < sizes[1]:
            out[:, row, column] += kernel[:, :, i, j].T @ x[:, h, w]
    return out


@channels_first
def bn(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    scale, offset, mean, variance = (weight[:, None, None] for weight in weights)
    return (tensors[0] - mean) / np.sqrt(variance + setting.epsilon) * scale + offset


@channels_first
def maxpool(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    x = tensors[0]
    return slide(x, setting, len(x), lambda met: np.max([values for _, _, values in met], axis=0))


@channels_first
def avgpool(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    """Padding does not count: the sum is divided by the number of inputs in the window."""
    x = tensors[0]
    return slide(x, setting, len(x), lambda met: np.mean([values for _, _, values in met], axis=0))


@channels_first
def globalavgpool(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    x = tensors[0]
    return x.sum(axis=(1, 2)) / (x.shape[1] * x.shape[2])


@channels_first
def se(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    (x,), (squeeze, squeeze_bias, excite, excite_bias) = tensors, weights
    average = x.mean(axis=(1, 2))
    hidden = np.maximum(squeeze @ average + squeeze_bias, 0.0)
    gate = np.clip(excite @ hidden + excite_bias + 3.0, 0.0, 6.0) / 6.0
    return x * gate[:, None, None]


def fc(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    """Over the last axis, whatever it is."""
    kernel, bias = weights
    return tensors[0] @ kernel + bias


def relu(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return np.where(tensors[0] > 0.0, tensors[0], 0.0)


def relu6(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return np.minimum(np.maximum(tensors[0], 0.0), 6.0)


def sigmoid(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return 1.0 / (1.0 + np.exp(-tensors[0]))


def hswish(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return tensors[0] * np.minimum(np.maximum(tensors[0] + 3.0, 0.0), 6.0) / 6.0


def matmul(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    """Over the last axis, row by row."""
    rows = tensors[0].reshape(-1, tensors[0].shape[-1])
    products = np.stack([weights[0].T @ row for row in rows])
    return products.reshape(*tensors[0].shape[:-1], -1)


def layernorm(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    """Over the last axis; 1e-5 is added to the variance, whatever the framework's default."""
    scale, offset = weights
    x = tensors[0]
    rows = [
        (row - row.mean()) / math.sqrt(row.var() + 1e-5) * scale + offset
        for row in x.reshape(-1, x.shape[-1])
    ]
    return np.stack(rows).reshape(x.shape)


def swish(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return tensors[0] / (1.0 + np.exp(-tensors[0]))


def gelu(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    """x times the share of a normal distribution that lies below x."""
    below = [(1.0 + math.erf(x / math.sqrt(2.0))) / 2.0 for x in tensors[0].ravel()]
    return tensors[0] * np.reshape(below, tensors[0].shape)


def leakyrelu(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return np.where(tensors[0] < 0.0, 0.1 * tensors[0], tensors[0])


@channels_first
def prelu(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    pairs = zip(tensors[0], weights[0].ravel(), strict=True)
    return np.stack([np.where(x < 0.0, slope * x, x) for x, slope in pairs])


def hardsigmoid(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return np.minimum(np.maximum(tensors[0] + 3.0, 0.0), 6.0) / 6.0


def tanh(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return (np.exp(2.0 * tensors[0]) - 1.0) / (np.exp(2.0 * tensors[0]) + 1.0)


@channels_first
def bias(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return np.stack([x + w for x, w in zip(tensors[0], weights[0].ravel(), strict=True)])


@channels_first
def center(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return np.stack([x - w for x, w in zip(tensors[0], weights[0].ravel(), strict=True)])


@channels_first
def scale(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return np.stack([x * w for x, w in zip(tensors[0], weights[0].ravel(), strict=True)])


def addscalar(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return tensors[0] + 0.7


def mulscalar(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return tensors[0] * 0.7


def square(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return tensors[0] * tensors[0]


def mean(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    """Along the last axis, whichever that is in the framework's layout."""
    x = tensors[0]
    rows = [[sum(row) / len(row)] for row in x.reshape(-1, x.shape[-1])]
    return np.reshape(rows, (*x.shape[:-1], 1))


@channels_first
def softmax(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    powers = np.exp(tensors[0])
    return powers / sum(powers)


def rowsoftmax(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    """Over the last axis, whichever that is in the framework's layout."""
    powers = np.exp(tensors[0])
    return powers / powers.sum(axis=-1, keepdims=True)


@channels_first
def bmm(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    one, other = tensors
    return np.stack([np.dot(a, b) for a, b in zip(one, other, strict=True)])


def runningsum(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    """Along the last axis, whichever that is in the framework's layout."""
    out = tensors[0].copy()
    for i in range(1, out.shape[-1]):
        out[..., i] += out[..., i - 1]
    return out


def reshape(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    """[H, W, C] to [C, H, W], [C, H, W] to [H, W, C], [N] to [1, 2, N / 2]; data in place."""
    x = tensors[0]
    if x.ndim == 1:
        return x.reshape(1, 2, len(x) // 2)
    first, second, third = x.shape
    return (
        x.reshape(third, first, second)
        if setting.channels_last
        else x.reshape(second, third, first)
    )


def add(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return tensors[0] + tensors[1]


def mul(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return tensors[0] * tensors[1]


@channels_first
def concat(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return np.concatenate(tensors, axis=0)


def flatten(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    return tensors[0].reshape(-1)


@channels_first
def split(tensors: list[Array], weights: list[Array], setting: Setting) -> list[Array]:
    x = tensors[0]
    half = len(x) // 2
    return [x[:half], x[half:]]


@channels_first
def channelshuffle(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    """The first of either half, then the second of either, and so on."""
    x = tensors[0]
    half = len(x) // 2
    return np.stack([x[i // 2 + half * (i % 2)] for i in range(len(x))])


@channels_first
def pad(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    x, margin = tensors[0], max(1, setting.kernel // 2)
    channels, height, width = x.shape
    out = np.zeros((channels, height + 2 * margin, width + 2 * margin))
    out[:, margin : margin + height, margin : margin + width] = x
    return out


@channels_first
def resize(tensors: list[Array], weights: list[Array], setting: Setting) -> Array:
    x = tensors[0]
    out = np.full((x.shape[0], 2 * x.shape[1], 2 * x.shape[2]), np.nan)
    for h, w in np.ndindex(*out.shape[1:]):
        out[:, h, w] = x[:, h // 2, w // 2]
    return out


OPERATORS: dict[str, Callable[[list[Array], list[Array], Setting], Any]] = {
    "Conv": conv,
    "DwConv": dwconv,
    "ConvTrans": convtrans,
    "BatchNorm": bn,
    "MaxPool": maxpool,
    "AvgPool": avgpool,
    "GlobalAvgPool": globalavgpool,
    "SE": se,
    "FC": fc,
    "Relu": relu,
    "Relu6": relu6,
    "Sigmoid": sigmoid,
    "Hswish": hswish,
    "Reshape": reshape,
    "Add": add,
    "Concat": concat,
    "Flatten": flatten,
    "Split": split,
    "Swish": swish,
    "Gelu": gelu,
    "LeakyRelu": leakyrelu,
    "PRelu": prelu,
    "HardSigmoid": hardsigmoid,
    "Tanh": tanh,
    "LayerNorm": layernorm,
    "Softmax": softmax,
    "MatMul": matmul,
    "Mul": mul,
    "Pad": pad,
    "Resize": resize,
    "ChannelShuffle": channelshuffle,
    "RunningSum": runningsum,
    "Bias": bias,
    "Center": center,
    "Scale": scale,
    "AddScalar": addscalar,
    "MulScalar": mulscalar,
    "MulOne": mulscalar,
    "Square": square,
    "Mean": mean,
    "BMM": bmm,
    "RowSoftmax": rowsoftmax,
}
