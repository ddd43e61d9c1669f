"""Model files as graphs.

Who lives here: `onnx` (an ONNX model as a `Graph`) with `onnx_file` (bytes as a model whose weights
are put aside) and `onnx_folding` (shapes and constants, node by node); `tflite` (a TFLite model as
a `Graph`); `converted` (what is turned into one of the two first); `common` (what they share:
names, order, sizes).

Whatever is wrong with a file is a `ModelFileError` that names the file. Constants of up to
`common.KEPT_ELEMENTS` elements keep their values, of larger ones shape and type are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from nn_meter.errors import ModelFileError
from nn_meter.kernel_detector.graph import Graph

__all__ = ["SUFFIXES", "file_of_graph", "read_model"]

_READERS = {
    ".onnx": "onnx:read_onnx",
    ".tflite": "tflite:read_tflite",
    ".keras": "converted:read_keras",
    ".h5": "converted:read_keras",
    ".pt2": "converted:read_exported_program",
}
_NOT_CONVERTED = (".onnx", ".tflite")
SUFFIXES = tuple(_READERS)
"""Of the files that can be read; a SavedModel, which is a folder, can be read too."""


def read_model(path: str | Path, *, shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """Read a model.

    Args:
        path: A file with one of `SUFFIXES`, or the folder of a SavedModel.
        shapes: Shapes of inputs by name, batch included, for inputs whose shapes the model leaves
            open.

    Raises:
        ModelFileError: The file cannot be read, is no model, or asks for what a graph cannot hold,
            such as control flow; or the shapes do not fit it.
        NotInstalledError: A package that reads such files is missing.
        ConversionError: A model that is converted first cannot be.
    """
    path = Path(path)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as exc:  # a name that is too long, or holds a NUL
        raise ModelFileError(f"{str(path)[:200]!r} is no path of a model: {exc}") from exc
    if not exists:
        raise ModelFileError(f"{path}: there is no such file")
    if is_folder:
        if not (path / "saved_model.pb").is_file():
            raise ModelFileError(
                f"{path}: a folder without saved_model.pb is no SavedModel; {_what_can_be_read()}"
            )
        place = "converted:read_saved_model"
    elif path.suffix.lower() in _READERS:
        place = _READERS[path.suffix.lower()]
    else:
        raise ModelFileError(
            f"{path}: {path.suffix or 'a file without a suffix'} cannot be read; "
            f"{_what_can_be_read()}"
        )
    module, _, function = place.partition(":")
    read: Callable[[Path, Mapping[str, Sequence[int]]], Graph] = getattr(
        import_module(f"{__name__}.{module}"), function
    )
    return read(path, shapes or {})


def file_of_graph(
    path: Path, folder: Path, *, shapes: Mapping[str, Sequence[int]] | None = None
) -> Path:
    """The ``.onnx`` or ``.tflite`` file that the graph of a model is read from.

    Args:
        path: A model that `read_model` has read.
        folder: Where the file goes that a model is converted to.
        shapes: As `read_model` takes them.

    Returns:
        The model itself, or what was made of it.

    Raises:
        NNMeterError: As `read_model`.
    """
    if path.suffix.lower() in _NOT_CONVERTED and not path.is_dir():
        return path
    from nn_meter.kernel_detector.readers.converted import convert

    return convert(path, shapes or {}, folder)


def _what_can_be_read() -> str:
    return f"what can be read: {', '.join(SUFFIXES)}, and SavedModel folders"
