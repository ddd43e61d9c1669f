"""What the tensors of an ONNX model hold when ONNX Runtime runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import Array
from nn_meter.builder.backends.onnxruntime.graph import import_onnx
from nn_meter.builder.backends.values import Fingerprint, fingerprint

__all__ = ["tensor_values"]

_AT_ONCE = 64  # outputs of one run: all of a large model's need not fit into memory


def tensor_values(
    path: Path, feeds: Mapping[str, Array], load: Callable[[str], Any]
) -> dict[str, Fingerprint]:
    """Run a model as it is written, and sum up what each of its tensors holds.

    Args:
        path: The model; beside it another one is written, that gives all tensors.
        feeds: An array for each of its inputs.
        load: Makes an ``onnxruntime.InferenceSession`` of a file, nothing optimized.

    Returns:
        By name; left out is what holds no finite numbers.
    """
    onnx = import_onnx()
    model = onnx.load(str(path), load_external_data=False)
    given = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name]
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in given
    )
    probed = path.with_name(f"{path.stem}-probed.onnx")
    onnx.save(model, str(probed))
    session = load(str(probed))
    found = {name: fingerprint(array) for name, array in feeds.items()}
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        for name, array in zip(some, session.run(some, dict(feeds)), strict=True):
            found[name] = fingerprint(array)
    return {name: values for name, values in found.items() if values is not None}
