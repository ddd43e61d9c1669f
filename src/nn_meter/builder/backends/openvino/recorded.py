"""Runtime models that OpenVINO wrote elsewhere as XML (``benchmark_app -exec_graph_path``).

The XML names the model's ops that a layer came from, and nothing else of them. With the model (an
ONNX file) and OpenVINO at hand, OpenVINO's own reader tells which ops these are, and the graph is
the one that the backend gives. Without, sources stay None, and of a layer's ops only their number
is told: ``Convolution[3 ops]``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from nn_meter.builder.backends.base import model_format
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.openvino.graph import (
    KEYS,
    Layer,
    ModelOps,
    executed,
    model_ops,
)
from nn_meter.builder.backends.openvino.models import import_openvino
from nn_meter.builder.backends.recorded import read_print_text
from nn_meter.errors import GraphUnavailableError, NotInstalledError

__all__ = ["read_recorded", "recognises"]

log = logging.getLogger(__name__)

_HOW = (
    "write ov.serialize(compiled_model.get_runtime_model(), …), or benchmark_app -exec_graph_path"
)


def recognises(text: str) -> bool:
    """Whether a text is surely a runtime model."""
    return "<net" in text and "originalLayersNames" in text


def read_recorded(path: Path, model: Path | None) -> ExecutedGraph:
    """Read a runtime model.

    Args:
        path: The XML; the .bin beside it is not needed.
        model: The model that it is of, an ONNX file; None: not known.

    Raises:
        GraphUnavailableError: It is no runtime model, or one of another model.
    """
    text = read_print_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise GraphUnavailableError(
            f"has a document type, which OpenVINO does not write; {_HOW} again"
        )
    try:
        net = ElementTree.fromstring(text)
        layers = list(_layers(net))
        found = [layer for layer in layers if layer.facts["layerType"] == "Input"]
        inputs = [tensor for layer in found for tensor in layer.outputs]
        own = _own(model)
        if own is not None:
            if sorted(own.inputs) != sorted(inputs):
                raise GraphUnavailableError(
                    f"is of another model: it reads {', '.join(inputs)}, and {model} "
                    f"{', '.join(own.inputs)}"
                )
            inputs = list(own.inputs)
        return executed(layers, inputs, own)
    except (ElementTree.ParseError, LookupError, ValueError) as exc:
        raise GraphUnavailableError(
            f"is no runtime model of OpenVINO ({type(exc).__name__}: {exc}); {_HOW}"
        ) from exc


def _layers(net: ElementTree.Element) -> Iterator[Layer]:
    """The layers of a file, their tensors named as OpenVINO names outputs."""
    sources: dict[tuple[str, str], str] = {}
    elements = net.findall("./layers/layer")
    for element in elements:
        name = element.attrib["name"]
        for index, port in enumerate(element.findall("./output/port")):
            sources[element.attrib["id"], port.attrib["id"]] = f"{name}:{index}"
    wires = {
        (edge.attrib["to-layer"], edge.attrib["to-port"]): sources[
            edge.attrib["from-layer"], edge.attrib["from-port"]
        ]
        for edge in net.findall("./edges/edge")
    }
    for element in elements:
        number = element.attrib["id"]
        data = element.find("./data")
        yield Layer(
            name=element.attrib["name"],
            facts=_facts(element.attrib["type"], {} if data is None else data.attrib),
            inputs=_tensors(number, element.findall("./input/port"), wires),
            outputs=_tensors(number, element.findall("./output/port"), sources),
        )


def _facts(kind: str, attributes: dict[str, str]) -> dict[str, str]:
    """What a layer says of itself; its type stands outside of its data."""
    facts = {"layerType": kind, **attributes}
    return {key: facts[key] for key in KEYS}


def _tensors(
    layer: str, ports: Sequence[ElementTree.Element], names: dict[tuple[str, str], str]
) -> tuple[str, ...]:
    return tuple(names[layer, port.attrib["id"]] for port in ports)


def _own(model: Path | None) -> ModelOps | None:
    """The model's ops as OpenVINO reads them; None where it cannot be asked, or not by name."""
    if model is None or model_format(model) != "onnx":
        return None
    core = _core()
    if core is None:
        return None
    read = core.read_model(str(model))
    ops = read.get_ordered_ops()
    for number, op in enumerate(ops):
        # A name that OpenVINO made up counts the ops of that process, so elsewhere it is another.
        if op.friendly_name == op.get_name():
            op.friendly_name = f"#{number}"
    names = [op.friendly_name for op in ops]
    if len(set(names)) < len(names) or any("," in name for name in names):
        log.warning(
            "%s: ops of it share a name, or have a comma in it, so that the runtime model does not "
            "tell them apart",
            model,
        )
        return None
    return model_ops(read)


@cache
def _core() -> Any:
    try:
        return import_openvino().Core()
    except NotInstalledError:
        log.warning(
            "OpenVINO is not installed here; without it, of the ops in a layer only their number "
            "is told, and verdicts rest on counting; pip install 'nn-meter[openvino]' brings it"
        )
        return None
