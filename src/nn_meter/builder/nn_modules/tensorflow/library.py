"""TensorFlow and Keras: imported quietly, and made to take the guide's functions of tensors.

Importing this module imports them. It is the only one here that does, and is imported late.
"""

from __future__ import annotations

import os
from typing import Any

from nn_meter.errors import ConfigError, NotInstalledError

# Read when TensorFlow is imported. oneDNN announces itself, and rounds as the machine does; Keras
# takes its backend from a file in the home directory unless told.
for _variable, _value in {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "KERAS_BACKEND": "tensorflow",
}.items():
    os.environ.setdefault(_variable, _value)


def _refuse_another_backend(backend: str) -> None:
    if backend != "tensorflow":
        raise ConfigError(
            f"IMPLEMENT: tensorflow needs Keras on tensorflow, but here it runs on {backend}; "
            "set the environment variable KERAS_BACKEND=tensorflow"
        )


_refuse_another_backend(os.environ["KERAS_BACKEND"])
try:
    import keras
    import tensorflow as tf
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    from tensorflow.lite.python.convert_phase import ConverterError
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
except ImportError as exc:
    raise NotInstalledError.for_extra("tensorflow", "tensorflow") from exc
_refuse_another_backend(keras.backend.backend())  # it may have been imported before

__all__ = [
    "ConverterError",
    "FunctionNode",
    "PerChannel",
    "SavedModel",
    "convert_variables_to_constants_v2",
    "dense",
    "keras",
    "tf",
]


class FunctionNode(keras.Operation):  # type: ignore[misc]  # Keras has no types
    """A function of tensors as a node of a Keras model."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = keras.tree.map_structure(_as_dense, (args, kwargs))
        return super().compute_output_spec(*args, **kwargs)


class PerChannel(keras.layers.Layer):  # type: ignore[misc]
    """What a function of two tensors gives of the input and a number for each channel.

    Args:
        function: The function, e.g. ``tf.add``.
        initializer: Gives the numbers.
    """

    def __init__(self, function: Any, initializer: Any) -> None:
        super().__init__()
        self.function = function
        self.initializer = initializer

    def build(self, shape: Any) -> None:
        self.constant = self.add_weight(shape=shape[-1:], initializer=self.initializer)

    def call(self, inputs: Any) -> Any:
        return self.function(inputs, self.constant)


def dense(tensor: Any) -> Any:
    """Take back what Keras says of a symbolic tensor times a Python number: that it is sparse.

    A layer of the user's would be tried on a sparse tensor, and fail.
    """
    return FunctionNode(tf.identity)(tensor) if _as_dense(tensor) is not tensor else tensor


def _as_dense(value: Any) -> Any:
    if isinstance(value, keras.KerasTensor) and value.sparse:
        return keras.KerasTensor(value.shape, value.dtype)
    return value


class _Dispatcher(tf.__internal__.dispatch.GlobalOpDispatcher):  # type: ignore[misc]
    """Lets ``tf.nn.relu6(x)`` and its like take a Keras tensor, as they did in Keras 2.

    The guide's operators and test cases count on that. TensorFlow asks a dispatcher only where it
    would raise an error otherwise.
    """

    def handle(self, op: Any, args: Any, kwargs: Any) -> Any:
        if any(isinstance(x, keras.KerasTensor) for x in tf.nest.flatten([args, kwargs])):
            return FunctionNode(op)(*args, **kwargs)
        return self.NOT_SUPPORTED


_Dispatcher().register()
