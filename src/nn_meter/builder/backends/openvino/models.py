"""OpenVINO's Python package, and models as it reads them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from nn_meter.builder.backends.base import Shapes, model_format
from nn_meter.builder.backends.inputs import match_inputs, natural_key
from nn_meter.errors import NotInstalledError

__all__ = ["import_openvino", "read_model", "static_shapes", "words_of"]

_TELEMETRY = "openvino_telemetry"
_SIGNATURE_PREFIX = "serving_default_"


def import_openvino() -> ModuleType:
    """The package openvino, which reports nothing to its vendor.

    Raises:
        NotInstalledError: It is not installed.
    """
    try:
        with _without_telemetry():
            import openvino
    except ImportError as exc:
        raise NotInstalledError.for_extra("openvino", "openvino") from exc
    module: ModuleType = openvino
    return module


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep OpenVINO from reporting to its vendor, which it does as soon as it is imported.

    Where the package ``openvino_telemetry`` cannot be imported OpenVINO puts a stub in its place.
    """
    missing = object()
    before = sys.modules.get(_TELEMETRY, missing)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # "cannot be imported"
    try:
        yield
    finally:
        if before is missing:
            del sys.modules[_TELEMETRY]
        else:
            sys.modules[_TELEMETRY] = before  # type: ignore[assignment]


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Undo what a conversion that fails leaves behind: a root logger that is nearly mute."""
    root = logging.getLogger()
    level, handlers, filters = root.level, list(root.handlers), list(root.filters)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:], root.filters[:] = handlers, filters


def read_model(ov: ModuleType, core: Any, path: Path, shapes: Shapes) -> Any:
    """Read a model of any format, with static shapes and its inputs and outputs in order.

    ``shapes`` are the inputs', without the batch dimension; empty: those of the file.

    Raises:
        ValueError: The file's inputs have other shapes.
        RuntimeError: OpenVINO cannot read it.
    """
    if model_format(path) == "saved_model":
        # What OpenVINO's users are told to call for TensorFlow. It simplifies the graph beyond
        # reading it, which changes what is executed (fc after reshape).
        with _root_logger_kept():
            model, by_name = ov.convert_model(str(path)), True
    else:
        model = core.read_model(str(path))
        by_name = any(_name(port).startswith(_SIGNATURE_PREFIX) for port in model.inputs)
    order = list(range(len(model.inputs)))
    if shapes or by_name:
        found = [_shape(port) for port in model.inputs]
        order = match_inputs(
            [_name(port) for port in model.inputs],
            found,
            shapes or [(shape or ())[1:] for shape in found],
            by_name=by_name,
        )
    if by_name or order != sorted(order):
        parameters, results = model.get_parameters(), model.get_results()
        outputs = list(range(len(results)))
        if by_name:
            outputs.sort(key=lambda i: natural_key(_name(model.outputs[i])))
        model = ov.Model(
            [results[i] for i in outputs],
            [parameters[i] for i in order],
            model.get_friendly_name(),
        )
    if shapes and any(port.partial_shape.is_dynamic for port in model.inputs):
        model.reshape(
            {
                port: ov.PartialShape([1, *shape])
                for port, shape in zip(model.inputs, shapes, strict=True)
            }
        )
    return model


def _name(port: Any) -> str:
    return str(min(port.names, default=port.node.friendly_name))


def _shape(port: Any) -> list[int] | None:
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        return None
    return [-1 if size.is_dynamic else size.get_length() for size in shape]


def static_shapes(model: Any) -> list[list[int]]:
    """Shapes of the inputs, without the batch dimension."""
    if any(port.partial_shape.is_dynamic for port in model.inputs):
        raise ValueError("its inputs have no fixed shapes; give input_shape")
    return [list(port.shape)[1:] for port in model.inputs]


def words_of(exc: Exception | None) -> str:
    """What OpenVINO says, in one line, without the places in its source."""
    lines = [line.strip() for line in str(exc).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("Exception from "))
