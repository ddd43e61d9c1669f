"""From ONNX to MNN's format, and what an MNN file holds.

MNN forgets the order of inputs and outputs, and tells its own tensors from the model's by suffixes
that a model may use itself. So before it is converted a copy of the model gets names by place:
inputs and outputs are numbered, and whatever the names were, MNN reads the same file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import Shapes
from nn_meter.builder.backends.mnn.native import heard, mnn_converter
from nn_meter.errors import ConversionError, ModelRejectedError, NNMeterError, NotInstalledError

__all__ = ["convert", "read_ops"]

_OTHER = "t_"


def convert(path: Path, target: Path, shapes: Shapes | None) -> None:
    """Convert an ONNX model.

    Inputs are named ``input_0``, ``input_1``, … and outputs ``output_0``, … in the model's order.

    Args:
        path: The model; it is never touched.
        target: The MNN file; it is there when it is whole.
        shapes: Of the inputs, without the batch dimension; sizes that the model leaves open are
            taken from them.

    Raises:
        ConversionError: It is no ONNX model, or MNN cannot convert it; MNN's words are kept.
    """
    with tempfile.TemporaryDirectory(prefix=".mnn-", dir=target.parent.absolute()) as folder:
        renamed, made = Path(folder) / "model.onnx", Path(folder) / "model.mnn"
        _rename(path, renamed, shapes or ())
        words = _run("ONNX", renamed, made, "--MNNModel", str(made))
        if words is not None:
            raise ConversionError(f"{path.name}: MNN cannot convert it: {words}")
        made.replace(target)


def read_ops(path: Path) -> dict[str, Any]:
    """Read what MNN's optimizer left of a model: its ops, without their weights.

    Returns:
        MNN's own JSON of it: ``oplists`` (in the order of execution) and ``tensorName``.

    Raises:
        ModelRejectedError: MNN cannot read the file; MNN's words are kept.
    """
    path = path.absolute()
    with tempfile.TemporaryDirectory(prefix=".mnn-", dir=path.parent) as folder:
        light, found = Path(folder) / "model.mnn", Path(folder) / "model.json"
        # Weights in a file of their own first: as text they cost 15 s for 100 MB.
        apart = ("--MNNModel", str(light), "--saveExternalData", "--optimizeLevel", "0")
        words = _run("MNN", path, light, *apart)
        if words is None:
            words = _run("MNN", light, found, "--JsonFile", str(found))
        if words is not None:
            raise ModelRejectedError(f"MNN refuses the model: {words}")
        ops: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        return ops


def _run(source: str, path: Path, made: Path, *arguments: str) -> str | None:
    """Run MNN's converter in this process.

    It neither raises nor ends the process, and its answer is always True: what it was asked to
    make is there, or not.

    Returns:
        None when ``made`` is there, else what it said.
    """
    converter = mnn_converter()
    # It keeps weights in a file of one name in the working directory for a while: two conversions
    # side by side would mix theirs.
    with chdir(made.parent), heard() as words:
        # The first argument is a program's name; bizCode, a label in the file, is compulsory.
        converter.mnnconvert(
            ["", "-f", source, "--modelFile", str(path), "--bizCode", "nn-meter", *arguments]
        )
    return None if made.is_file() else str(words) or "it does not say why"


# --- names by place ------------------------------------------------------------------------------


def _rename(path: Path, renamed: Path, shapes: Shapes) -> None:
    try:
        import onnx
    except ImportError as exc:
        raise NotInstalledError("onnx is not installed; pip install onnx brings it") from exc
    try:
        model = onnx.load(path)
        _rename_graph(model, shapes)
        onnx.save(model, renamed)
    except NNMeterError:
        raise
    except Exception as exc:
        words = " ".join(str(exc).split())
        raise ConversionError(f"{path.name}: MNN cannot convert it: onnx says: {words}") from exc


def _rename_graph(model: Any, shapes: Shapes) -> None:
    """Number all names, in place; what only describes the model goes."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [tensor for tensor in graph.input if tensor.name not in weights]
    _close_shapes(inputs, shapes)
    names = {"": ""}
    for prefix, tensors in (("input_", inputs), ("output_", graph.output)):
        for number, tensor in enumerate(tensors):
            names.setdefault(tensor.name, f"{prefix}{number}")
    functions = [*model.functions]
    for holder, field, name in _names([graph, *functions]):
        new = names.setdefault(name, f"{_OTHER}{len(names)}")
        if isinstance(field, int):
            holder[field] = new
        else:
            setattr(holder, field, new)
    for holder in _graphs([graph, *functions]):
        del holder.value_info[:]
    model.producer_name = graph.name = "nn-meter"


def _close_shapes(inputs: Sequence[Any], shapes: Shapes) -> None:
    """Give sizes that the model leaves open the values asked for; ``open`` compares the others."""
    for tensor, shape in zip(inputs, shapes, strict=False):
        sizes = tensor.type.tensor_type.shape.dim
        if len(sizes) == 1 + len(shape):
            for size, wanted in zip(sizes, [1, *shape], strict=True):
                if not size.HasField("dim_value"):
                    size.dim_value = wanted


def _graphs(holders: Iterable[Any]) -> Iterator[Any]:
    """Graphs and functions, and the graphs in their nodes."""
    for holder in holders:
        yield holder
        for node in holder.node:
            for attribute in node.attribute:
                inside = [attribute.g] if attribute.HasField("g") else []
                yield from _graphs([*inside, *attribute.graphs])


def _names(holders: Iterable[Any]) -> Iterator[tuple[Any, int | str, str]]:
    """Every place where a name of a tensor or node stands: its holder, the field in it, the name.

    The order is that of the places, so numbers given in it do not depend on the names.
    """
    for holder in _graphs(holders):
        for tensors in (holder.input, holder.output):
            for place, tensor in enumerate(tensors):
                if isinstance(tensor, str):  # a function's
                    yield tensors, place, tensor
                else:
                    yield tensor, "name", tensor.name
        for node in holder.node:
            yield node, "name", ""
            for tensors in (node.input, node.output):
                yield from ((tensors, place, name) for place, name in enumerate(tensors))
        for tensor in getattr(holder, "initializer", ()):
            yield tensor, "name", tensor.name
        for sparse in getattr(holder, "sparse_initializer", ()):
            yield sparse.values, "name", sparse.values.name
