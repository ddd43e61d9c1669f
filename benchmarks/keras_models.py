"""Architectures of ``keras.applications`` with random weights, as TFLite and ONNX files.

    python benchmarks/keras_models.py FOLDER [NAME ...]

``NAME.tflite`` is what ``nn-meter kernels NAME.keras`` reads of the Keras model. ``NAME.onnx`` is
what tf2onnx makes of it, where that can be imported: nn-Meter does not need it, so install it
elsewhere (``pip install --no-deps --target FOLDER tf2onnx``, 1.17.0, and set ``PYTHONPATH``).
``NAME-torch.onnx`` is written by torch: Keras runs on torch then, with channels first if the
architecture can have them so, and torch exports what Keras calls, a batch normalization by steps.
Needs TensorFlow, torch and onnxscript; nothing else is downloaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SIZES = {
    "MobileNet": 96,
    "MobileNetV2": 96,
    "MobileNetV3Small": 96,
    "EfficientNetB0": 96,
    "EfficientNetV2B0": 96,
    "DenseNet121": 96,
    "Xception": 96,
    "ResNet50": 96,
    "ResNet50V2": 96,
    "InceptionV3": 128,  # with 96 its last pools have one pixel to look at
    "NASNetMobile": 96,
    "ConvNeXtTiny": 96,
    "VGG16": 96,
}
"""Name -> height and width of the input."""
_CHANNELS_LAST = frozenset({"ConvNeXtTiny", "DenseNet121"})  # Keras has them in no other way


def made(name: str, channels_last: bool) -> Any:
    """The model; none of its vectors is all zeros or ones, which converters would leave out."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    keras.config.set_image_data_format("channels_last" if channels_last else "channels_first")
    size = SIZES[name]
    shape = (size, size, 3) if channels_last else (3, size, size)
    model = getattr(keras.applications, name)(weights=None, input_shape=shape)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights(
            [
                rng.uniform(0.5, 1.5, each.shape).astype(each.dtype) if each.ndim == 1 else each
                for each in layer.get_weights()
            ]
        )
    return model


def write_by_tensorflow(name: str, folder: Path) -> None:
    """Write ``NAME.tflite``, and ``NAME.onnx`` if tf2onnx is there."""
    from nn_meter.kernel_detector.readers.converted import ConversionJobs

    model = made(name, channels_last=True)
    with tempfile.TemporaryDirectory() as made_in:
        file = Path(made_in) / f"{name}.keras"
        model.save(file)
        target = file.with_suffix(".tflite")
        ConversionJobs().keras(str(file), str(target), {})
        shutil.copyfile(target, folder / target.name)
    if find_spec("tf2onnx") is not None:
        write_by_tf2onnx(model, folder / f"{name}.onnx")


def write_by_tf2onnx(model: Any, file: Path) -> None:
    """Write ``NAME.onnx``, with channels first."""
    import tensorflow as tf
    import tf2onnx

    spec = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32, name="x")
    traced = tf.function(lambda x: model(x, training=False), input_signature=[spec])
    tf2onnx.convert.from_function(
        traced, [spec], opset=17, inputs_as_nchw=["x"], output_path=str(file)
    )


def write_by_torch(name: str, folder: Path) -> None:
    """Write ``NAME-torch.onnx``."""
    import torch

    model = made(name, channels_last=name in _CHANNELS_LAST)
    image = torch.randn(1, *model.input_shape[1:])
    torch.onnx.export(
        model.eval(),
        (image,),
        str(folder / f"{name}-torch.onnx"),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


_WRITERS = {"tensorflow": write_by_tensorflow, "torch": write_by_torch}


def write(name: str, folder: Path) -> list[str]:
    """Write the files of a model, by each framework in a process of its own.

    Returns:
        For each framework that cannot, why.
    """
    failed = []
    for backend in _WRITERS:
        done = subprocess.run(
            [sys.executable, __file__, "--one", backend, name, str(folder)],
            env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            failed.append(f"{name}, by {backend}: {done.stderr.strip().splitlines()[-1]}")
    return failed


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        _WRITERS[sys.argv[2]](sys.argv[3], Path(sys.argv[4]))
    else:
        target = Path(sys.argv[1])
        target.mkdir(parents=True, exist_ok=True)
        for chosen in sys.argv[2:] or SIZES:
            for words in write(chosen, target):
                print(words, file=sys.stderr)
