"""Optimized models that ONNX Runtime wrote elsewhere (``optimized_model_filepath``)."""

from __future__ import annotations

from pathlib import Path

from nn_meter.bounded import read_file
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.onnxruntime.graph import graph_of, import_onnx
from nn_meter.errors import GraphUnavailableError

__all__ = ["read_recorded", "recognises"]

_MOST_BYTES = 2**28  # it has the weights of the model


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
    try:
        found = onnx.ModelProto()
        found.ParseFromString(read_file(path, _MOST_BYTES))
        graph = graph_of(found)
    except OSError as exc:
        raise GraphUnavailableError(f"cannot be read: {exc.strerror or exc}") from exc
    except Exception as exc:
        words = " ".join(str(exc).split())
        raise GraphUnavailableError(
            f"is no ONNX model that can be read ({type(exc).__name__}: {words:.200})"
        ) from exc
    # It writes down every operator set that it knows; other tools those that a model uses.
    opsets = found.opset_import
    if not any(opset.domain.startswith("com.microsoft") for opset in opsets):
        raise GraphUnavailableError(
            "is an ONNX model, but none that ONNX Runtime optimized; set "
            "SessionOptions.optimized_model_filepath, load the model, and give the file that this "
            "writes"
        )
    return graph
