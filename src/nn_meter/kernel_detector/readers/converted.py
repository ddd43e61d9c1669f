"""Models that are converted first: Keras and SavedModels to TFLite, exported programs to ONNX.

The frameworks are imported in a worker process that ends with the conversion. What of a file is
code is not run: pickles, compiled kernels and lambdas are refused. A SavedModel is a program for
TensorFlow, which may run parts of it to load it: that is for files that one trusts.
"""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nn_meter.builder.profiling.process import Worker
from nn_meter.errors import ConversionError, ModelFileError, NNMeterError
from nn_meter.kernel_detector.graph import Graph
from nn_meter.kernel_detector.readers.common import input_shapes, plain

__all__ = [
    "ConversionJobs",
    "convert",
    "read_exported_program",
    "read_keras",
    "read_saved_model",
]

_TIME_LIMIT_S = 1800.0
_IMAGE = (1, 224, 224, 3)
_INSIDE = Path("assets.extra") / "model.tflite"  # where SavedModels of ours hold it
_SIGNATURE = "serving_default"

# Suffix -> the job that converts such a file, and the suffix of what that makes.
_JOBS = {
    ".keras": ("keras", ".tflite"),
    ".h5": ("keras", ".tflite"),
    ".pt2": ("exported_program", ".onnx"),
}
_FOLDERS = ("saved_model", ".tflite")
_ARCHIVES = (".keras", ".pt2")  # zip files, which hold weights as they are
_MOST_INFLATED, _ALWAYS_INFLATED_BYTES = 100, 2**28
_COMPILED = "/aotinductor/"
_FIRST_SAFE_KERAS = (3, 11, 3)  # older ones run code that stands in a file

Shapes = Mapping[str, Sequence[int]]


def read_keras(path: Path, shapes: Shapes) -> Graph:
    """Read a ``.keras`` or ``.h5`` file as TensorFlow converts it to TFLite, for batch 1.

    Raises:
        ModelFileError: Keras cannot load the file, the shapes do not fit, or an input needs one.
        ConversionError: TensorFlow cannot convert it.
        NotInstalledError: TensorFlow is missing.
    """
    return _read(path, shapes)


def read_saved_model(path: Path, shapes: Shapes) -> Graph:
    """Read a SavedModel folder; as `read_keras`."""
    if (path / _INSIDE).is_file():
        from nn_meter.kernel_detector.readers.tflite import read_tflite

        return replace(read_tflite(path / _INSIDE, shapes), name=path.name)
    return _read(path, shapes)


def read_exported_program(path: Path, shapes: Shapes) -> Graph:
    """Read a ``.pt2`` file, a program of ``torch.export``, as torch exports it to ONNX.

    Its inputs are called ``input_1``, … and have the shapes of the program's example inputs.

    Raises:
        ModelFileError: torch cannot load the file, or the shapes are others.
        ConversionError: torch cannot export it.
        NotInstalledError: torch is missing.
    """
    return _read(path, shapes)


def convert(path: Path, shapes: Shapes, folder: Path) -> Path:
    """Make the file that a model's graph is read from; a SavedModel may have it inside.

    Args:
        path: A model of a kind that this module reads.
        shapes: Shapes of inputs by name.
        folder: Where the file goes.

    Raises:
        NNMeterError: As the reader of such models.
    """
    if (path / _INSIDE).is_file():
        return path / _INSIDE
    _check(path)
    job, suffix = _FOLDERS if path.is_dir() else _JOBS[path.suffix.lower()]
    target = folder / f"model{suffix}"
    with Worker(f"{__name__}:ConversionJobs", what=f"the conversion of {path.name}") as worker:
        worker.call(
            job,
            _TIME_LIMIT_S,
            path=str(path.absolute()),
            target=str(target),
            shapes={name: list(shape) for name, shape in shapes.items()},
        )
    return target


def _check(path: Path) -> None:
    """Refuse what a framework would wait for, or fill the memory with.

    Raises:
        ModelFileError: There is a pipe or a device, or an archive of almost nothing but zeros.
    """
    try:
        for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
            if not file.is_file() and not file.is_dir():
                raise ModelFileError(f"{path}: {file.name} is no regular file")
        if path.suffix.lower() in _ARCHIVES and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inflated = sum(member.file_size for member in archive.infolist())
                names = archive.namelist()
            if inflated > max(_ALWAYS_INFLATED_BYTES, _MOST_INFLATED * path.stat().st_size):
                raise ModelFileError(
                    f"{path}: it would have {inflated} bytes once unpacked, which no model packs "
                    "into so few"
                )
            if any(_COMPILED in f"/{name}" for name in names):
                raise ModelFileError(
                    f"{path}: it holds compiled kernels, which are not run; export the program "
                    "with torch.export.save alone"
                )
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as exc:
        raise ModelFileError(f"{path}: it cannot be read: {plain(exc)}") from exc


def _read(path: Path, shapes: Shapes) -> Graph:
    with tempfile.TemporaryDirectory(prefix="nn-meter-") as folder:
        target = convert(path, shapes, Path(folder))
        if target.suffix == ".onnx":
            from nn_meter.kernel_detector.readers.onnx import read_onnx

            graph = read_onnx(target, shapes)
        else:
            from nn_meter.kernel_detector.readers.tflite import read_tflite

            graph = read_tflite(target, {})
    return replace(graph, name=path.name)


class ConversionJobs:
    """Runs in a worker process, which may import a framework."""

    def keras(self, path: str, target: str, shapes: Shapes) -> None:
        """Write a Keras model as a ``.tflite`` file."""
        from nn_meter.builder.nn_modules.tensorflow.library import keras
        from nn_meter.builder.nn_modules.tensorflow.models import save_model

        file = Path(path)
        _refuse_old_keras(file, keras.__version__)
        with _blaming(file, "Keras cannot load it", ModelFileError):
            model = keras.models.load_model(file, compile=False)
            declared = {tensor.name: _batch_1(tensor.shape) for tensor in model.inputs}
        found = input_shapes(file, declared, shapes, usual=_IMAGE)
        folder = Path(target).with_suffix("")
        with _blaming(file, "TensorFlow cannot convert it"):
            save_model(model, folder, [shape[1:] for shape in found.values()], outputs=False)
        if not (folder / _INSIDE).is_file():
            raise ConversionError(
                f"{file}: TensorFlow cannot convert it: TFLite lacks an operator that it has"
            )
        (folder / _INSIDE).replace(target)

    def saved_model(self, path: str, target: str, shapes: Shapes) -> None:
        """Write a SavedModel as a ``.tflite`` file."""
        from nn_meter.builder.nn_modules.tensorflow.library import tf

        folder = Path(path)
        with _blaming(folder, "TensorFlow cannot load it", ModelFileError):
            loaded = tf.saved_model.load(path)
            signature = _signature(folder, loaded.signatures)
            specs = signature.structured_input_signature[1]
            declared = {name: _batch_1(spec.shape) for name, spec in specs.items()}
        found = input_shapes(folder, declared, shapes, usual=_IMAGE)
        with _blaming(folder, "TensorFlow cannot convert it"):
            names = list(found)
            traced = tf.function(
                lambda *tensors: signature(**dict(zip(names, tensors, strict=True))),
                autograph=False,
            )
            concrete = traced.get_concrete_function(
                *(tf.TensorSpec(found[name], specs[name].dtype, name=name) for name in names)
            )
            converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], loaded)
            # By default it goes through another SavedModel: slower, and inputs lose their order.
            converter.experimental_lower_to_saved_model = False
            Path(target).write_bytes(converter.convert())

    def exported_program(self, path: str, target: str, shapes: Shapes) -> None:
        """Write a program of ``torch.export`` as an ``.onnx`` file, with its own shapes."""
        from nn_meter.builder.nn_modules.torch.exporting import by_torch_export
        from nn_meter.builder.nn_modules.torch.models import torch  # type: ignore[attr-defined]

        file = Path(path)
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # torch tries pickles where that fails
        with _blaming(file, "torch cannot load it", ModelFileError), _no_pickles():
            program = torch.export.load(path)
        if program.example_inputs is None or program.example_inputs[1]:
            raise ModelFileError(f"{file}: it keeps no example inputs, or keeps them by name")
        inputs = program.example_inputs[0]
        with _blaming(file, "torch cannot export it to ONNX"):
            outputs = len(program.graph_signature.user_outputs)
            model = by_torch_export(program.module(), inputs, outputs, opset=None)
            data = model.SerializeToString()
        Path(target).write_bytes(data)


_refusing: list[str] = []
"""Not empty while pickles are refused. A hook cannot be taken away again."""


def _refuse_classes(event: str, arguments: tuple[Any, ...]) -> None:
    if _refusing and event == "pickle.find_class":
        raise ValueError(
            f"it holds a pickle that asks for {'.'.join(map(str, arguments))}; what a pickle asks "
            "for is run, so none is read"
        )


@contextmanager
def _no_pickles() -> Iterator[None]:
    """Refuse pickles that name any class or function: loading them may run anything."""
    sys.addaudithook(_refuse_classes)
    _refusing.append("pickles")
    try:
        yield
    finally:
        _refusing.clear()


def _refuse_old_keras(path: Path, version: str) -> None:
    found = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if found < _FIRST_SAFE_KERAS:
        raise ConversionError(
            f"{path}: Keras {version} runs code that stands in a file; pip install 'keras>="
            f"{'.'.join(map(str, _FIRST_SAFE_KERAS))}'"
        )


@contextmanager
def _blaming(path: Path, what: str, error: type[NNMeterError] = ConversionError) -> Iterator[None]:
    try:
        yield
    except NNMeterError:
        raise
    except Exception as exc:
        words = plain(exc)
        raise error(f"{path}: {what}: {words or type(exc).__name__}") from exc


def _batch_1(sizes: Any) -> tuple[int | None, ...] | None:
    """The sizes of an input; an open batch is 1."""
    rank = getattr(sizes, "rank", 0)  # TensorFlow's shapes may have none
    if sizes is None or rank is None:
        return None
    found = tuple(sizes)
    return (1, *found[1:]) if found and found[0] is None else found


def _signature(path: Path, signatures: Mapping[str, Any]) -> Any:
    if _SIGNATURE in signatures:
        return signatures[_SIGNATURE]
    if len(signatures) != 1:
        raise ModelFileError(
            f"{path}: it should have one signature, or one named {_SIGNATURE}, but has: "
            f"{', '.join(signatures) or 'none'}"
        )
    return next(iter(signatures.values()))
