"""Optimized models that ONNX Runtime wrote elsewhere (``optimized_model_filepath``)."""

from __future__ import annotations

from pathlib import Path

from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.onnxruntime.graph import import_onnx, read_graph
from nn_meter.errors import GraphUnavailableError

__all__ = ["read_recorded", "recognises"]


def recognises(text: str) -> bool:
    """An ONNX model is no text."""
    return False


def read_recorded(path: Path, model: Path | None) -> ExecutedGraph:
    """Read an optimized model.

    Args:
        path: The file.
        model: Not needed.

    Raises:
        GraphUnavailableError: It is no ONNX model, or one that ONNX Runtime did not write.
    """
    onnx = import_onnx()
    graph = read_graph(path)
    # It writes down every operator set that it knows; other tools those that a model uses.
    opsets = onnx.load(str(path), load_external_data=False).opset_import
    if not any(opset.domain.startswith("com.microsoft") for opset in opsets):
        raise GraphUnavailableError(
            "is an ONNX model, but none that ONNX Runtime optimized; set "
            "SessionOptions.optimized_model_filepath, load the model, and give the file that this "
            "writes"
        )
    return graph
