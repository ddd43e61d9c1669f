"""The built-in operators as Keras layers, or as functions of tensors, one class each.

Nothing here needs TensorFlow before ``get_model`` is called. Weights come from initializers without
a seed of their own, so that two of a kind in one model differ, and ``models.seed_weights`` decides
them all. None is trivial: a bias of 0, or a normalization that changes nothing, could be dropped
by a converter, or broken by one, and nobody would see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from nn_meter.builder.nn_modules import shapes

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

Function = Callable[[Any], Any]
"""From a tensor, or a list of two, to a tensor, or a list of them."""


class _TensorFlow:
    """What all operators here have in common."""

    implement: ClassVar[str] = "tensorflow"
    layout: ClassVar[shapes.Layout] = "channels_last"


class Conv(_TensorFlow, shapes.Conv):
    """2-D convolution with a bias."""

    def get_model(self) -> Any:
        return _keras().layers.Conv2D(
            self.cout,
            **_window(self),
            kernel_initializer=_kernel("fan_in"),
            bias_initializer=_bias(),
        )


class DwConv(_TensorFlow, shapes.DwConv):
    """Depthwise 2-D convolution with a bias."""

    def get_model(self) -> Any:
        # Keras counts a depthwise kernel's fans the other way round: what it calls "out" goes in.
        return _keras().layers.DepthwiseConv2D(
            **_window(self), depthwise_initializer=_kernel("fan_out"), bias_initializer=_bias()
        )


class ConvTrans(_TensorFlow, shapes.ConvTrans):
    """Transposed 2-D convolution with a bias: Keras' layer around ``tf.nn.conv2d_transpose``."""

    def get_model(self) -> Any:
        return _keras().layers.Conv2DTranspose(
            self.cout,
            **_window(self),
            kernel_initializer=_kernel("fan_out"),
            bias_initializer=_bias(),
        )


class BatchNorm(_TensorFlow, shapes.BatchNorm):
    """Batch normalization with the statistics of training kept."""

    def get_model(self) -> Any:
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        return _keras().layers.BatchNormalization(
            **{f"{name}_initializer": _between(0.5, 1.5) for name in names}
        )


class MaxPool(_TensorFlow, shapes.MaxPool):
    """Max pooling."""

    def get_model(self) -> Any:
        return _keras().layers.MaxPool2D(self.kernel_size, self.stride, self.padding)


class AvgPool(_TensorFlow, shapes.AvgPool):
    """Average pooling; padding does not count."""

    def get_model(self) -> Any:
        return _keras().layers.AveragePooling2D(self.kernel_size, self.stride, self.padding)


class GlobalAvgPool(_TensorFlow, shapes.GlobalAvgPool):
    """Average over height and width; gives a 1-D tensor."""

    def get_model(self) -> Any:
        return _keras().layers.GlobalAveragePooling2D()


class SE(_TensorFlow, shapes.SE):
    """Squeeze and excite with a hard sigmoid, as in MobileNetV3 (Howard et al., 2019)."""

    def get_model(self) -> Function:
        tf, layers = _tensorflow(), _keras().layers

        def conv(cout: int) -> Any:
            return layers.Conv2D(
                cout, 1, kernel_initializer=_kernel("fan_in"), bias_initializer=_bias()
            )

        pool, relu = layers.GlobalAveragePooling2D(keepdims=True), layers.ReLU()
        squeeze, excite = conv(self.squeezed), conv(self.channels)

        def func(inputs: Any) -> Any:
            gate = excite(relu(squeeze(pool(inputs))))
            return inputs * (tf.nn.relu6(gate + 3.0) / 6.0)

        return func


class FC(_TensorFlow, shapes.FC):
    """Fully connected layer over the last axis."""

    def get_model(self) -> Any:
        return _keras().layers.Dense(
            self.cout, kernel_initializer=_kernel("fan_in"), bias_initializer=_bias()
        )


class MatMul(_TensorFlow, shapes.MatMul):
    """Product with a constant matrix over the last axis."""

    def get_model(self) -> Any:
        return _keras().layers.Dense(
            self.cout, use_bias=False, kernel_initializer=_kernel("fan_in")
        )


class LayerNorm(_TensorFlow, shapes.LayerNorm):
    """Layer normalization over the last axis."""

    def get_model(self) -> Any:
        return _keras().layers.LayerNormalization(
            epsilon=shapes.LAYER_NORM_EPSILON,
            gamma_initializer=_between(0.5, 1.5),
            beta_initializer=_bias(),
        )


class Relu(_TensorFlow, shapes.Relu):
    """max(x, 0)."""

    def get_model(self) -> Any:
        return _keras().layers.ReLU()


class Relu6(_TensorFlow, shapes.Relu6):
    """min(max(x, 0), 6)."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.nn.relu6(inputs)


class Sigmoid(_TensorFlow, shapes.Sigmoid):
    """1 / (1 + exp(-x))."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.nn.sigmoid(inputs)


class Hswish(_TensorFlow, shapes.Hswish):
    """x * relu6(x + 3) / 6."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: inputs * tf.nn.relu6(inputs + 3.0) / 6.0


class Swish(_TensorFlow, shapes.Swish):
    """x * sigmoid(x)."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.nn.silu(inputs)


class Gelu(_TensorFlow, shapes.Gelu):
    """x * (1 + erf(x / sqrt(2))) / 2."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.nn.gelu(inputs, approximate=False)


class LeakyRelu(_TensorFlow, shapes.LeakyRelu):
    """x, and where it is negative a tenth of it."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.nn.leaky_relu(inputs, shapes.LEAKY_SLOPE)


class PRelu(_TensorFlow, shapes.PRelu):
    """x, and where it is negative x times its channel's slope."""

    def get_model(self) -> Any:
        shared = [1, 2] if len(self.input_shape) == 3 else None
        return _keras().layers.PReLU(alpha_initializer=_bias(), shared_axes=shared)


class HardSigmoid(_TensorFlow, shapes.HardSigmoid):
    """relu6(x + 3) / 6."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.nn.relu6(inputs + 3.0) / 6.0


class Tanh(_TensorFlow, shapes.Tanh):
    """The hyperbolic tangent."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.nn.tanh(inputs)


class Bias(_TensorFlow, shapes.Bias):
    """x plus a constant for each channel."""

    def get_model(self) -> Any:
        return _library().PerChannel(_tensorflow().add, _bias())


class Center(_TensorFlow, shapes.Center):
    """x minus a constant for each channel."""

    def get_model(self) -> Any:
        return _library().PerChannel(_tensorflow().subtract, _bias())


class Scale(_TensorFlow, shapes.Scale):
    """x times a constant for each channel."""

    def get_model(self) -> Any:
        return _library().PerChannel(_tensorflow().multiply, _between(0.5, 1.5))


class AddScalar(_TensorFlow, shapes.AddScalar):
    """x plus a number."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.add(inputs, shapes.SCALAR)


class MulScalar(_TensorFlow, shapes.MulScalar):
    """x times a number."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.multiply(inputs, shapes.SCALAR)


class MulOne(_TensorFlow, shapes.MulOne):
    """x times a number that has an axis."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.multiply(inputs, [shapes.SCALAR])


class Square(_TensorFlow, shapes.Square):
    """x * x."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.square(inputs)


class Mean(_TensorFlow, shapes.Mean):
    """The mean along the last axis."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.reduce_mean(inputs, axis=-1, keepdims=True)


class RunningSum(_TensorFlow, shapes.RunningSum):
    """The running sum along the channels."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.math.cumsum(inputs, axis=-1)


class Softmax(_TensorFlow, shapes.Softmax):
    """Softmax over the channels."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.nn.softmax(inputs)


class RowSoftmax(_TensorFlow, shapes.RowSoftmax):
    """Softmax over the last axis."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.nn.softmax(inputs)


class Reshape(_TensorFlow, shapes.Reshape):
    """New sizes, the data in its place."""

    def get_model(self) -> Function:
        tf, shape = _tensorflow(), [1, *self.get_output_shape()]
        return lambda inputs: tf.reshape(inputs, shape)


class Add(_TensorFlow, shapes.Add):
    """Elementwise sum of two tensors.

    Keras' own layer takes the second operand for a bias where only one of its axes is longer than
    1, as in a 1-D tensor of batch 1, and reshapes it: there would be two operators to measure.
    """

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.add(*inputs)


class Mul(_TensorFlow, shapes.Mul):
    """Product of two tensors, element by element."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.multiply(*inputs)


class BMM(_TensorFlow, shapes.BMM):
    """Matrix product of two tensors over height and width."""

    def get_model(self) -> Function:
        tf = _tensorflow()

        def func(inputs: Any) -> Any:
            a, b = (tf.transpose(x, [0, 3, 1, 2]) for x in inputs)
            return tf.transpose(tf.matmul(a, b), [0, 2, 3, 1])

        return func


class Concat(_TensorFlow, shapes.Concat):
    """Two tensors joined along the channels."""

    def get_model(self) -> Any:
        return _keras().layers.Concatenate()


class Flatten(_TensorFlow, shapes.Flatten):
    """All axes in one."""

    def get_model(self) -> Any:
        return _keras().layers.Flatten()


class Split(_TensorFlow, shapes.Split):
    """Two halves of the channels."""

    def get_model(self) -> Function:
        tf = _tensorflow()
        return lambda inputs: tf.split(inputs, 2, axis=-1)


class ChannelShuffle(_TensorFlow, shapes.ChannelShuffle):
    """Channels from the two halves in turn."""

    def get_model(self) -> Function:
        tf, (height, width, channels) = _tensorflow(), self.input_shape

        def func(inputs: Any) -> Any:
            halves = tf.reshape(inputs, [1, height, width, 2, channels // 2])
            mixed = tf.transpose(halves, [0, 1, 2, 4, 3])
            return tf.reshape(mixed, [1, height, width, channels])

        return func


class Pad(_TensorFlow, shapes.Pad):
    """Zeros around height and width."""

    def get_model(self) -> Any:
        return _keras().layers.ZeroPadding2D(self.margin)


class Resize(_TensorFlow, shapes.Resize):
    """Height and width doubled by nearest neighbours."""

    def get_model(self) -> Function:
        tf, size = _tensorflow(), [2 * size for size in self.spatial]
        return lambda inputs: tf.image.resize(inputs, size, method="nearest")


def _window(operator: shapes.Conv) -> dict[str, Any]:
    """Kernel, strides and padding of a convolution as Keras' arguments."""
    return {
        "kernel_size": operator.kernel_size,
        "strides": operator.stride,
        "padding": operator.padding,
    }


def _kernel(fan: str) -> Any:
    """Random weights that keep the scale of the data: deviation ``fan ** -0.5``."""
    return _keras().initializers.VarianceScaling(mode=fan)


def _bias() -> Any:
    """Small random numbers, none of them 0."""
    return _between(0.05, 0.5)


def _between(low: float, high: float) -> Any:
    return _keras().initializers.RandomUniform(low, high)


def _keras() -> Any:
    return _library().keras


def _tensorflow() -> Any:
    return _library().tf


def _library() -> Any:
    from nn_meter.builder.nn_modules.tensorflow import library

    return library
