"""Prints of executed graphs: what a runtime wrote on another device, without this program.

Each runtime's folder has a module ``recorded`` that reads the runtime's own print into the graph
that its backend would have given. Formats are found by name here, and by what a file holds.

This is no part of the backends themselves: a print is read in the parent process, and may be of a
runtime that there is no backend for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nn_meter.bounded import parse_json, read_file
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.errors import BackendError, ResultFileError

__all__ = ["FORMATS", "Format", "guess_format", "read_print", "read_print_json", "read_print_text"]

_MOST_BYTES = 8 * 2**20
_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # how PowerShell redirects output


class _Reader(Protocol):
    def recognises(self, text: str) -> bool:
        """Whether a text is surely such a print."""

    def read_recorded(self, path: Path, model: Path | None) -> ExecutedGraph:
        """Read a print.

        Args:
            path: The print.
            model: The model that it is of; None: not known.

        Raises:
            NNMeterError: It is none, or does not tell what it must.
        """


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of print.

    Attributes:
        name: Its runtime, as in ``--format``.
        suffixes: That its files have.
        what: What it is, for messages.
        folder: Where its reader lies.
    """

    name: str
    suffixes: tuple[str, ...]
    what: str
    folder: str

    @property
    def reader(self) -> _Reader:
        """The module that reads it."""
        module: Any = importlib.import_module(f"{__package__}.{self.folder}.recorded")
        reader: _Reader = module
        return reader


FORMATS: Mapping[str, Format] = {
    found.name: found
    for found in (
        Format(
            name="onnxruntime",
            suffixes=(".onnx",),
            what="an optimized model of ONNX Runtime",
            folder="onnxruntime",
        ),
        Format(
            name="openvino",
            suffixes=(".xml",),
            what="a runtime model of OpenVINO",
            folder="openvino",
        ),
        Format(
            name="litert",
            suffixes=(".txt", ".log", ".csv"),
            what="an op profile of LiteRT",
            folder="tflite",
        ),
        Format(
            name="tensorrt",
            suffixes=(".json",),
            what="layer information of TensorRT",
            folder="tensorrt",
        ),
    )
}


def guess_format(path: Path) -> Format | None:
    """The format that a file is surely of; None: it cannot be told.

    Raises:
        ResultFileError: The file cannot be read.
    """
    suffix = path.suffix.lower()
    found = next((known for known in FORMATS.values() if suffix in known.suffixes), None)
    if found is None or suffix == ".onnx":  # no text; of what else, its reader finds out
        return found
    return found if found.reader.recognises(read_print_text(path)) else None


def read_print(path: Path, kind: Format, model: Path | None = None) -> ExecutedGraph:
    """Read a print.

    Args:
        path: The file.
        kind: Its format.
        model: The model that it is of, where that is known: a format may tell more with it.

    Raises:
        ResultFileError: It is none of this format, or does not tell what it must; names the file.
    """
    try:
        graph = kind.reader.read_recorded(path, model)
    except BackendError as exc:
        raise ResultFileError(f"{path}: {exc}") from exc
    if not graph.nodes:
        raise ResultFileError(f"{path}: {kind.what} in which nothing is executed")
    return graph


def read_print_text(path: Path) -> str:
    """The text of a print.

    Raises:
        ResultFileError: It cannot be read, is no text, or is too large to be a print.
    """
    try:
        content = read_file(path, _MOST_BYTES)
    except OSError as exc:
        raise ResultFileError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    encoding = _BOMS.get(content[:2], "utf-8-sig")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as exc:
        raise ResultFileError(
            f"{path}: is no text in UTF-8 or UTF-16 ({exc.reason} at byte {exc.start}); write the "
            "print again, and copy it as it is"
        ) from exc


def read_print_json(path: Path) -> Any:
    """The value that a print in JSON holds.

    Raises:
        ResultFileError: As ``read_print_text``; or it is no JSON.
    """
    try:
        return parse_json(read_print_text(path))
    except ValueError as exc:
        raise ResultFileError(f"{path}: is no valid JSON: {exc}; was it copied whole?") from exc
