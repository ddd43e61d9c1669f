"""Layer information of TensorRT engines from elsewhere (``trtexec --exportLayerInfo``).

Written from TensorRT's documentation and never tried with a print of its own making: whoever uses
it is told so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode, Kind
from nn_meter.builder.backends.recorded import read_print_json
from nn_meter.errors import GraphUnavailableError

__all__ = ["read_recorded", "recognises"]

log = logging.getLogger(__name__)

_TO_DO = "run trtexec with --profilingVerbosity=detailed --exportLayerInfo=FILE, and give that file"
_SYNCHRONIZES = frozenset({"signal", "wait"})  # streams; in lower case
_VIEWS = frozenset({"NoOp"})
_MOVES = frozenset({"Reformat", "DeviceToShapeHostCopy", "ShapeHostToDeviceCopy"})
_SHUFFLE = "Shuffle"
_CONSTANT = "Constant"
_OPAQUE = "Myelin"  # a part of the model in one layer, compiled to kernels that are not listed
_OTHER_PROFILE = re.compile(r"\[profile [1-9][0-9]*\]$")
# What a layer says of what became part of it, and what that is when nothing did.
_TELLING: Mapping[str, tuple[Any, ...]] = {
    "ParameterSubType": (),
    "Operation": (),
    "Activation": ("NONE",),
    "NbOperations": (0, 1),
    "NbInstructions": (0, 1),
}


def recognises(text: str) -> bool:
    """Whether a text is surely layer information."""
    return text.lstrip().startswith("{") and '"Layers"' in text


def read_recorded(path: Path, model: Path | None) -> ExecutedGraph:
    """Read the layer information of an engine, without ``sources``.

    Args:
        path: The JSON file.
        model: Not needed.

    Raises:
        GraphUnavailableError: It is no layer information, is not detailed, or a layer hides what it
            runs.
    """
    data = read_print_json(path)
    layers = data.get("Layers") if isinstance(data, dict) else None
    if not isinstance(layers, list):
        raise GraphUnavailableError(f"has no list of 'Layers'; {_TO_DO}")
    if any(isinstance(layer, str) for layer in layers):
        raise GraphUnavailableError(f"holds names of layers only; {_TO_DO}")
    _say_untried()
    constant: set[str] = set()
    nodes = []
    try:
        for layer in layers:
            # Each further optimization profile has all layers once more.
            if layer["LayerType"].lower() in _SYNCHRONIZES or _OTHER_PROFILE.search(layer["Name"]):
                continue
            node = _node(layer, constant)
            if node.kind == "const":
                constant.update(node.outputs)
            nodes.append(node)
        inputs = _inputs(data, nodes)
    except (LookupError, TypeError, ValueError, AttributeError) as exc:
        raise GraphUnavailableError(
            f"a layer does not say what it does in TensorRT's documentation "
            f"({type(exc).__name__}: {exc}); {_TO_DO}"
        ) from exc
    return ExecutedGraph(nodes=tuple(nodes), inputs=inputs)


def _node(layer: Mapping[str, Any], constant: set[str]) -> ExecutedNode:
    name, kind = str(layer["Name"]), str(layer["LayerType"])
    if kind == _OPAQUE:
        raise GraphUnavailableError(
            f"the layer {name:.80} is of type {kind}: TensorRT compiled a part of the model as "
            "one, and does not list what it runs there, so nothing follows from this print"
        )
    reads = tuple(tensor for tensor in _tensors(layer["Inputs"]) if tensor not in constant)
    return ExecutedNode(
        name=name,
        type=_label(kind, layer, reads),
        inputs=reads,
        outputs=_tensors(layer["Outputs"]),
        kind="const" if kind == _CONSTANT or not reads else _kind(kind, layer),
    )


def _kind(layer_type: str, layer: Mapping[str, Any]) -> Kind:
    types = {layer_type, layer.get("ParameterType")}
    if types & _VIEWS:
        return "view"
    if _SHUFFLE in types:
        orders = [layer.get(key) or [] for key in ("FirstTranspose", "SecondTranspose")]
        return "view" if all(order == sorted(order) for order in orders) else "move"
    return "move" if types & _MOVES else "compute"


def _label(layer_type: str, layer: Mapping[str, Any], reads: tuple[str, ...]) -> str:
    """Layer type, and in brackets what was fused into it: ``CaskConvolution[Activation=RELU]``."""
    told = []
    if layer.get("ParameterType") == "Convolution" and len(reads) > 1:
        told.append("sum")  # its weights are no inputs
    for key, usual in _TELLING.items():
        if (value := layer.get(key)) is not None and value not in usual:
            told.append(f"{key}={value}")
    if "Activation" not in layer and layer.get("HasReLU") == 1:
        told.append("HasReLU=1")
    return f"{layer_type}[{', '.join(told)}]" if told else layer_type


def _tensors(tensors: list[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(str(tensor["Name"]) for tensor in tensors)


def _inputs(data: Mapping[str, Any], nodes: list[ExecutedNode]) -> tuple[str, ...]:
    """The engine's inputs: bindings that no layer writes, in the order of the bindings.

    Older versions list no bindings; then in the order in which they are read.
    """
    read = list(dict.fromkeys(tensor for node in nodes for tensor in node.inputs))
    written = {tensor for node in nodes for tensor in node.outputs}
    free = dict.fromkeys(tensor for tensor in read if tensor not in written)
    bindings = [name for name in data.get("Bindings") or [] if name in free]
    return tuple(bindings) if bindings else tuple(free)


@cache
def _say_untried() -> None:
    log.warning(
        "reading TensorRT's layer information is untried: it was written from the documentation; "
        "check by hand what is found"
    )
