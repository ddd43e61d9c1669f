"""The ops of a ``.tflite`` model, as OpenVINO reads it, by the names that the file has.

Reading such a file OpenVINO puts transposes around operators and moves them past others, which
takes names along: hardly an op keeps one. So the file is read once more with all its tensors as
outputs, which keep theirs, and both readings are gone through together: but for transposes they are
the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from nn_meter.errors import GraphUnavailableError

__all__ = ["name_as_written"]

_NO_OPS = ("Parameter", "Constant", "Result")
_TRANSPOSE = "Transpose"


def name_as_written(ov: ModuleType, model: Any, path: Path) -> None:
    """Name ops after the tensors of the file that they give.

    Of several tensors that one op gives, it has the name of the first; an op that is a part of one
    of the file's, and does not end it, keeps its name.

    Args:
        ov: The package ``openvino``.
        model: The ``openvino.Model``, as it was read.
        path: The file.

    Raises:
        GraphUnavailableError: It cannot be told which op is which.
    """
    frontend = import_module(f"{ov.__name__}.frontend").FrontEndManager()
    reader = frontend.load_by_framework("tflite")
    decoded = reader.decode(reader.load(str(path)))
    names = [
        str(name)
        for op in decoded.get_ordered_ops()
        if op.get_type_name() not in _NO_OPS
        for output in op.outputs()
        for name in sorted(output.names)
    ]
    written = reader.load(str(path))
    written.override_all_outputs([written.get_place_by_tensor_name(name) for name in names])
    probed = reader.convert(written)
    ends = {name: result.input(0) for name, result in zip(names, probed.get_results(), strict=True)}
    same = _paired(
        (ends[name], result.input(0)) for result in model.get_results() for name in _ends(result)
    )
    named: set[str] = set()
    for name, end in ends.items():
        op = same.get(_source(end).get_name())
        if op is not None and op.get_name() not in named:
            named.add(op.get_name())
            op.friendly_name = name


def _ends(result: Any) -> list[str]:
    """One name of the tensor that an output of the model is."""
    return sorted(str(name) for name in result.output(0).names)[:1]


def _paired(ends: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """Go through two readings of a file from their ends.

    Args:
        ends: Inputs of ops that read the same tensor, of both readings.

    Returns:
        Name of an op of the first -> the op of the second.
    """
    found: dict[str, Any] = {}
    waiting = list(ends)
    while waiting:
        one, other = (_source(port) for port in waiting.pop())
        if one.get_name() in found:
            continue
        kinds = one.get_type_name(), other.get_type_name()
        if kinds[0] != kinds[1] or one.get_input_size() != other.get_input_size():
            raise GraphUnavailableError(
                "OpenVINO reads the model otherwise if asked for its tensors: it has "
                f"{kinds[0]} where the model has {kinds[1]}"
            )
        found[one.get_name()] = other
        waiting += zip(one.inputs(), other.inputs(), strict=True)
    return {name: op for name, op in found.items() if op.get_type_name() not in _NO_OPS}


def _source(port: Any) -> Any:
    """The op that gives what is read, transposes aside."""
    op = port.get_source_output().get_node()
    while op.get_type_name() == _TRANSPOSE:
        op = op.input(0).get_source_output().get_node()
    return op
