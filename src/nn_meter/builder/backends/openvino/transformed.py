"""What OpenVINO made of a model before its plugin took it over, and of which ops each came.

A compiled model is exported as that model and its weights. Where encryption is asked for, the
plugin hands the model to it as text, in which each layer has its name and the names of all ops
that transformations made it of: more than the runtime model says, which names one of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any
from xml.etree import ElementTree

__all__ = ["compile_and_show"]

log = logging.getLogger(__name__)

_PROPERTY = "CACHE_ENCRYPTION_CALLBACKS"
_ATTRIBUTE = "fused_names"
_BETWEEN = ", "
_END = b"</net>"


def compile_and_show(
    core: Any, model: Any, device: str, properties: Mapping[str, Any]
) -> tuple[Any, Callable[[], dict[str, frozenset[str]]]]:
    """Compile a model.

    Args:
        core: An ``openvino.Core``.
        model: An ``openvino.Model`` whose ops' names are apart.
        device: The device.
        properties: How it is compiled.

    Returns:
        The compiled model; and what shows, for each layer, the names of the ops that it was made
        of, a superset where transformations passed names on with constants. That takes as long as
        an export; nothing is shown where this version of OpenVINO does not tell.
    """
    shown: list[bytes] = []

    def keep(text: bytes) -> bytes:
        shown.append(text)
        return text

    try:
        compiled = core.compile_model(model, device, {**properties, _PROPERTY: [keep, keep]})
    except (RuntimeError, TypeError) as exc:  # it is this property, or it will be raised again
        log.debug("OpenVINO does not show what it makes of the model: %s", exc)
        return core.compile_model(model, device, dict(properties)), dict

    def show() -> dict[str, frozenset[str]]:
        try:
            compiled.export_model()
            return _layers(shown[-1]) if shown else {}
        except (RuntimeError, ElementTree.ParseError) as exc:
            log.debug("OpenVINO does not show what it made of the model: %s", exc)
            return {}

    return compiled, show


def _layers(text: bytes) -> dict[str, frozenset[str]]:
    start, end = text.find(b"<net"), text.rfind(_END)
    if start < 0 or end < 0:
        return {}
    found: dict[str, frozenset[str]] = {}
    for layer in ElementTree.fromstring(text[start : end + len(_END)]).iterfind("./layers/layer"):
        for attribute in layer.iterfind("./rt_info/attribute"):
            if attribute.get("name") == _ATTRIBUTE:
                names = attribute.get("value", "").split(_BETWEEN)
                found[layer.get("name", "")] = frozenset(names)
    return found
