"""The built-in operators as ONNX nodes, one class each.

``get_model`` returns a function ``(graph, inputs)``: it adds nodes to a ``models.Graph`` and
returns the tensor, or the list of tensors, that they give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nn_meter.builder.nn_modules import shapes
from nn_meter.builder.nn_modules.shapes import same_padding, transposed_padding

if TYPE_CHECKING:
    from nn_meter.builder.nn_modules.onnx.models import Graph

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

Model = Callable[["Graph", Any], Any]


class _Onnx:
    """What all operators here have in common."""

    implement: ClassVar[str] = "onnx"
    layout: ClassVar[shapes.Layout] = "channels_first"


class _OneNode(_Onnx):
    """An operator that is one ONNX node with no weights and no attributes."""

    op_type: ClassVar[str]

    def get_model(self) -> Model:
        return lambda graph, x: graph.op(self.op_type, [x])


class Conv(_Onnx, shapes.Conv):
    """2-D convolution with a bias."""

    @property
    def groups(self) -> int:
        """Groups of channels that the convolution keeps apart."""
        return 1

    def get_model(self) -> Model:
        def func(graph: Graph, x: str) -> str:
            weight = graph.weight(
                self.cout, self.channels // self.groups, self.kernel_size, self.kernel_size
            )
            return str(
                graph.op(
                    "Conv",
                    [x, weight, graph.bias(self.cout)],
                    group=self.groups,
                    **window(self, self.kernel_size, self.stride),
                )
            )

        return func


class DwConv(Conv, shapes.DwConv):
    """Depthwise 2-D convolution with a bias."""

    @property
    def groups(self) -> int:
        return self.channels


class ConvTrans(_Onnx, shapes.ConvTrans):
    """Transposed 2-D convolution with a bias."""

    def get_model(self) -> Model:
        kernel, stride = self.kernel_size, self.stride
        before, after, appended = transposed_padding(kernel, stride, self.padding)

        def func(graph: Graph, x: str) -> str:
            weight = graph.weight(
                self.channels, self.cout, kernel, kernel, fan_in=self.channels * kernel * kernel
            )
            return str(
                graph.op(
                    "ConvTranspose",
                    [x, weight, graph.bias(self.cout)],
                    kernel_shape=[kernel] * 2,
                    strides=[stride] * 2,
                    pads=[before] * 2 + [after] * 2,
                    output_padding=[appended] * 2,
                )
            )

        return func


class BatchNorm(_Onnx, shapes.BatchNorm):
    """Batch normalization with the statistics of training kept."""

    def get_model(self) -> Model:
        def func(graph: Graph, x: str) -> str:
            scale, bias = graph.positive(self.channels), graph.bias(self.channels)
            mean, variance = graph.bias(self.channels), graph.positive(self.channels)
            return str(graph.op("BatchNormalization", [x, scale, bias, mean, variance]))

        return func


class MaxPool(_Onnx, shapes.MaxPool):
    """Max pooling."""

    def get_model(self) -> Model:
        pool = window(self, self.kernel_size, self.stride)
        return lambda graph, x: graph.op("MaxPool", [x], **pool)


class AvgPool(_Onnx, shapes.AvgPool):
    """Average pooling; padding does not count."""

    def get_model(self) -> Model:
        pool = window(self, self.kernel_size, self.stride)
        return lambda graph, x: graph.op("AveragePool", [x], count_include_pad=0, **pool)


class GlobalAvgPool(_Onnx, shapes.GlobalAvgPool):
    """Average over height and width; gives a 1-D tensor."""

    def get_model(self) -> Model:
        return lambda graph, x: graph.op("Flatten", [graph.op("GlobalAveragePool", [x])])


class SE(_Onnx, shapes.SE):
    """Squeeze and excite with a hard sigmoid, as in MobileNetV3 (Howard et al., 2019)."""

    def get_model(self) -> Model:
        channels, squeezed = self.channels, self.squeezed

        def conv(graph: Graph, x: str, cin: int, cout: int) -> str:
            return str(graph.op("Conv", [x, graph.weight(cout, cin, 1, 1), graph.bias(cout)]))

        def func(graph: Graph, x: str) -> str:
            gate = graph.op("GlobalAveragePool", [x])
            gate = graph.op("Relu", [conv(graph, gate, channels, squeezed)])
            gate = conv(graph, gate, squeezed, channels)
            gate = graph.op("HardSigmoid", [gate], alpha=1 / 6, beta=0.5)
            return str(graph.op("Mul", [x, gate]))

        return func


class FC(_Onnx, shapes.FC):
    """Fully connected layer over the last axis."""

    def get_model(self) -> Model:
        def func(graph: Graph, x: str) -> str:
            weight = graph.weight(self.cin, self.cout, fan_in=self.cin)
            bias = graph.bias(self.cout)
            if len(self.input_shape) == 1:
                return str(graph.op("Gemm", [x, weight, bias]))
            return str(graph.op("Add", [graph.op("MatMul", [x, weight]), bias]))

        return func


class MatMul(_Onnx, shapes.MatMul):
    """Product with a constant matrix over the last axis."""

    def get_model(self) -> Model:
        def func(graph: Graph, x: str) -> str:
            weight = graph.weight(self.cin, self.cout, fan_in=self.cin)
            return str(graph.op("MatMul", [x, weight]))

        return func


class LayerNorm(_Onnx, shapes.LayerNorm):
    """Layer normalization over the last axis."""

    def get_model(self) -> Model:
        size = int(self.input_shape[-1])

        def func(graph: Graph, x: str) -> str:
            inputs = [x, graph.positive(size), graph.bias(size)]
            return str(
                graph.op("LayerNormalization", inputs, axis=-1, epsilon=shapes.LAYER_NORM_EPSILON)
            )

        return func


class Relu(_OneNode, shapes.Relu):
    """max(x, 0)."""

    op_type = "Relu"


class Relu6(_Onnx, shapes.Relu6):
    """min(max(x, 0), 6)."""

    def get_model(self) -> Model:
        def func(graph: Graph, x: str) -> str:
            low, high = graph.constant(np.float32(0)), graph.constant(np.float32(6))
            return str(graph.op("Clip", [x, low, high]))

        return func


class Sigmoid(_OneNode, shapes.Sigmoid):
    """1 / (1 + exp(-x))."""

    op_type = "Sigmoid"


class Hswish(_OneNode, shapes.Hswish):
    """x * relu6(x + 3) / 6."""

    op_type = "HardSwish"


class Swish(_Onnx, shapes.Swish):
    """x * sigmoid(x), in the two nodes that exporters write."""

    def get_model(self) -> Model:
        return lambda graph, x: graph.op("Mul", [x, graph.op("Sigmoid", [x])])


class Gelu(_Onnx, shapes.Gelu):
    """x * (1 + erf(x / sqrt(2))) / 2, in the five nodes that exporters write.

    ONNX has a `Gelu` from opset 20 on, later than what exporters write by default; runtimes know
    the five nodes as well.
    """

    def get_model(self) -> Model:
        def func(graph: Graph, x: str) -> str:
            root, one, half = (graph.constant(np.float32(value)) for value in (2**0.5, 1, 0.5))
            erf = graph.op("Erf", [graph.op("Div", [x, root])])
            return str(graph.op("Mul", [graph.op("Mul", [x, graph.op("Add", [erf, one])]), half]))

        return func


class LeakyRelu(_Onnx, shapes.LeakyRelu):
    """x, and where it is negative a tenth of it."""

    def get_model(self) -> Model:
        return lambda graph, x: graph.op("LeakyRelu", [x], alpha=shapes.LEAKY_SLOPE)


class PRelu(_Onnx, shapes.PRelu):
    """x, and where it is negative x times its channel's slope."""

    def get_model(self) -> Model:
        # deviation 1 / 4, which is where training starts
        return lambda graph, x: graph.op("PRelu", [x, graph.weight(*per_channel(self), fan_in=16)])


class HardSigmoid(_Onnx, shapes.HardSigmoid):
    """relu6(x + 3) / 6."""

    def get_model(self) -> Model:
        return lambda graph, x: graph.op("HardSigmoid", [x], alpha=1 / 6, beta=0.5)


class Tanh(_OneNode, shapes.Tanh):
    """The hyperbolic tangent."""

    op_type = "Tanh"


class Bias(_Onnx, shapes.Bias):
    """x plus a constant for each channel."""

    def get_model(self) -> Model:
        return lambda graph, x: graph.op("Add", [x, graph.bias(*per_channel(self))])


class Center(_Onnx, shapes.Center):
    """x minus a constant for each channel."""

    def get_model(self) -> Model:
        return lambda graph, x: graph.op("Sub", [x, graph.bias(*per_channel(self))])


class Scale(_Onnx, shapes.Scale):
    """x times a constant for each channel."""

    def get_model(self) -> Model:
        return lambda graph, x: graph.op("Mul", [x, graph.positive(*per_channel(self))])


class AddScalar(_Onnx, shapes.AddScalar):
    """x plus a number."""

    def get_model(self) -> Model:
        return lambda graph, x: graph.op("Add", [x, graph.constant(np.float32(shapes.SCALAR))])


class MulScalar(_Onnx, shapes.MulScalar):
    """x times a number."""

    def get_model(self) -> Model:
        return lambda graph, x: graph.op("Mul", [x, graph.constant(np.float32(shapes.SCALAR))])


class MulOne(_Onnx, shapes.MulOne):
    """x times a number that has an axis, as exporters write the scale of attention."""

    def get_model(self) -> Model:
        return lambda graph, x: graph.op(
            "Mul", [x, graph.constant(np.full(1, shapes.SCALAR, np.float32))]
        )


class Square(_Onnx, shapes.Square):
    """x * x, as exporters write a power."""

    def get_model(self) -> Model:
        return lambda graph, x: graph.op("Pow", [x, graph.constant(np.float32(2))])


class Mean(_Onnx, shapes.Mean):
    """The mean along the last axis."""

    def get_model(self) -> Model:
        axis = np.array([-1], dtype=np.int64)
        return lambda graph, x: graph.op("ReduceMean", [x, graph.constant(axis)], keepdims=1)


class RunningSum(_Onnx, shapes.RunningSum):
    """The running sum along the last axis."""

    def get_model(self) -> Model:
        axis = np.array(len(self.input_shape), dtype=np.int64)
        return lambda graph, x: graph.op("CumSum", [x, graph.constant(axis)])


class Softmax(_Onnx, shapes.Softmax):
    """Softmax over the channels."""

    def get_model(self) -> Model:
        return lambda graph, x: graph.op("Softmax", [x], axis=1)


class RowSoftmax(_Onnx, shapes.RowSoftmax):
    """Softmax over the last axis."""

    def get_model(self) -> Model:
        return lambda graph, x: graph.op("Softmax", [x], axis=-1)


class Reshape(_Onnx, shapes.Reshape):
    """New sizes, the data in its place."""

    def get_model(self) -> Model:
        shape = np.array([1, *self.get_output_shape()], dtype=np.int64)
        return lambda graph, x: graph.op("Reshape", [x, graph.constant(shape)])


class Add(_Onnx, shapes.Add):
    """Elementwise sum of two tensors."""

    def get_model(self) -> Model:
        return lambda graph, inputs: graph.op("Add", inputs)


class Mul(_Onnx, shapes.Mul):
    """Product of two tensors, element by element."""

    def get_model(self) -> Model:
        return lambda graph, inputs: graph.op("Mul", inputs)


class BMM(_Onnx, shapes.BMM):
    """Matrix product of two tensors over height and width."""

    def get_model(self) -> Model:
        return lambda graph, inputs: graph.op("MatMul", inputs)


class Concat(_Onnx, shapes.Concat):
    """Two tensors joined along the channels."""

    def get_model(self) -> Model:
        return lambda graph, inputs: graph.op("Concat", inputs, axis=1)


class Flatten(_Onnx, shapes.Flatten):
    """All axes in one."""

    def get_model(self) -> Model:
        return lambda graph, x: graph.op("Flatten", [x])


class Split(_Onnx, shapes.Split):
    """Two halves of the channels."""

    def get_model(self) -> Model:
        sizes = np.array([self.channels // 2] * 2, dtype=np.int64)
        return lambda graph, x: graph.op("Split", [x, graph.constant(sizes)], n_outputs=2, axis=1)


class ChannelShuffle(_Onnx, shapes.ChannelShuffle):
    """Channels from the two halves in turn."""

    def get_model(self) -> Model:
        channels, height, width = self.input_shape
        apart = np.array([1, 2, channels // 2, height, width], dtype=np.int64)
        together = np.array([1, channels, height, width], dtype=np.int64)

        def func(graph: Graph, x: str) -> str:
            halves = graph.op("Reshape", [x, graph.constant(apart)])
            mixed = graph.op("Transpose", [halves], perm=[0, 2, 1, 3, 4])
            return str(graph.op("Reshape", [mixed, graph.constant(together)]))

        return func


class Pad(_Onnx, shapes.Pad):
    """Zeros around height and width."""

    def get_model(self) -> Model:
        pads = np.array([0, 0, self.margin, self.margin] * 2, dtype=np.int64)

        def func(graph: Graph, x: str) -> str:
            zero = graph.constant(np.float32(0))  # the default, but exporters write it
            return str(graph.op("Pad", [x, graph.constant(pads), zero], mode="constant"))

        return func


class Resize(_Onnx, shapes.Resize):
    """Height and width doubled by nearest neighbours, as exporters write it."""

    def get_model(self) -> Model:
        scales = np.array([1, 1, 2, 2], dtype=np.float32)
        return lambda graph, x: graph.op(
            "Resize",
            [x, "", graph.constant(scales)],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )


def per_channel(operator: Any) -> list[int]:
    """Shape of a constant with a number for each channel: [C, 1, 1], or [C] for a 1-D tensor."""
    return [operator.channels, *[1] * (len(operator.input_shape) - 1)]


def window(operator: shapes.Conv, kernel: int, stride: int) -> dict[str, Any]:
    """Kernel, strides and pads of a convolution or pooling as ONNX attributes."""
    pads = [(0, 0)] * 2
    if operator.padding == "same":
        pads = [same_padding(size, kernel, stride) for size in operator.spatial]
    (top, bottom), (left, right) = pads
    return {
        "kernel_shape": [kernel] * 2,
        "strides": [stride] * 2,
        "pads": [top, left, bottom, right],
    }
