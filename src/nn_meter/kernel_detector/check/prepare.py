"""A copy of a model by which a runtime's work can be traced: constants folded, weights drawn anew.

The copy has the ops of the graph and no others, each under a name of its own that says which it is.
Weights are drawn anew, as equal ones make a runtime merge ops, and make tensors equal that are not
the same; sizes, bounds and whatever else is no weight stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nn_meter.kernel_detector.check.drawing import Array, Drawing
from nn_meter.kernel_detector.graph import Graph, Op
from nn_meter.kernel_detector.readers import file_of_graph

__all__ = ["Copy", "op_named", "prepare"]

_NAME = re.compile(r"op([0-9]+)\.")


@dataclass(frozen=True, kw_only=True)
class Copy:
    """The copy of a model.

    Attributes:
        path: Its file, of the graph's format; large weights of an ONNX model lie beside it.
        ops: The graph's ops, in its order: ``op_named`` gives places in it.
        inputs: For each of the copy's inputs an array to run it on, in the graph's order.
        tensors: The graph's tensors that are computed -> their names in the copy. An ONNX one has
            no ``Dropout`` and no ``Identity``: what these give has the name of what they are given.
    """

    path: Path
    ops: Sequence[Op]
    inputs: Mapping[str, Array]
    tensors: Mapping[str, str]

    @property
    def shapes(self) -> list[list[int]]:
        """Shapes of the inputs without the batch dimension, as backends take them.

        None at all where a batch is not 1: then the file's shapes hold.
        """
        shapes = [array.shape for array in self.inputs.values()]
        if any(shape[:1] != (1,) for shape in shapes):
            return []
        return [list(shape[1:]) for shape in shapes]


def op_named(name: str) -> int | None:
    """The place of the op after which something in a runtime's graph is named; None: of none."""
    found = _NAME.search(name)
    return int(found[1]) if found else None


def prepare(
    model_path: Path,
    graph: Graph,
    folder: Path,
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    seed: int = 0,
) -> Copy:
    """Write the copy.

    Args:
        model_path: The model. One that is converted before it is read is converted again.
        graph: What was read of it.
        folder: Where the copy goes; it exists and is empty.
        shapes: Shapes of inputs, batch included, where they are others than the graph's.
        seed: What weights and inputs are drawn with.

    Raises:
        ModelRejectedError: The file cannot be copied, or an input has no fixed shape.
        ConversionError: It is not the file that the graph was read from.
    """
    file = file_of_graph(model_path, folder, shapes=shapes)
    drawing = Drawing(seed)
    inputs = {
        f"in{number}": drawing.input(graph, name, (shapes or {}).get(name))
        for number, name in enumerate(graph.inputs)
    }
    tensors = dict(zip(graph.inputs, inputs, strict=True))
    if graph.format == "tflite":
        from nn_meter.kernel_detector.check.tflite_copy import write_tflite_copy

        _name_all(graph, tensors)
        path = write_tflite_copy(file, graph, folder, tensors, drawing)
    else:
        from nn_meter.kernel_detector.check.onnx_copy import is_left_out, write_onnx_copy

        for place, op in enumerate(graph.ops):
            if is_left_out(op, graph):
                tensors[op.outputs[0]] = tensors[op.inputs[0]]
            else:
                tensors |= _named(place, op)
        path = write_onnx_copy(file, graph, folder, inputs, tensors, drawing)
    return Copy(path=path, ops=graph.ops, inputs=inputs, tensors=tensors)


def _name_all(graph: Graph, tensors: dict[str, str]) -> None:
    for place, op in enumerate(graph.ops):
        tensors |= _named(place, op)


def _named(place: int, op: Op) -> dict[str, str]:
    """Names in the copy of what an op gives."""
    return {name: f"op{place}.{i}" for i, name in enumerate(op.outputs) if name}
