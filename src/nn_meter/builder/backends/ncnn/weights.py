"""Whose bytes are which in a ``.bin`` file: no file tells, so ncnn is asked.

The file holds what the layers read, one after the other in the order of the ``.param`` file, and a
layer knows from its parameters and from what it reads how much that is.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from nn_meter.builder.backends.ncnn.graph import Layer, param_text

__all__ = ["layer_weights"]


def layer_weights(
    layers: Sequence[Layer], weights: bytes, *, net: Any, ncnn: ModuleType
) -> list[bytes] | None:
    """Deal out weights to layers.

    Args:
        layers: Of one file. A type that ncnn does not have is taken to have no weights.
        weights: Of the same.
        net: An ``ncnn.Net`` that is used for nothing else.
        ncnn: The module.

    Returns:
        For each layer its weights: together they are all of them, each byte once. None if ncnn
        reads more or fewer, or does not take the layers.
    """
    known = [number for number, layer in enumerate(layers) if ncnn.layer_to_index(layer.type) >= 0]
    if net.load_param_mem(param_text([layers[number] for number in known])):
        return None
    loaded = net.layers()
    if [layer.name for layer in loaded] != [layers[number].name for number in known]:
        return None
    reader = _reader_class(ncnn)(weights)
    source = ncnn.ModelBinFromDataReader(reader)
    found = [b""] * len(layers)
    for number, layer in zip(known, loaded, strict=True):
        start = reader.position
        if layer.load_model(source):
            return None
        found[number] = weights[start : reader.position]
    return found if reader.position == len(weights) and not reader.ran_out else None


@functools.cache
def _reader_class(ncnn: ModuleType) -> Any:
    address_of = ctypes.pythonapi.PyCapsule_GetPointer
    address_of.restype = ctypes.c_void_p
    address_of.argtypes = [ctypes.py_object, ctypes.c_char_p]

    class Reader(ncnn.DataReader):  # type: ignore[misc, name-defined]
        """Hands out bytes, and knows how many it did."""

        def __init__(self, content: bytes) -> None:
            super().__init__()
            self._content = content
            self.position = 0
            self.ran_out = False

        def read(self, buffer: Any, size: int) -> int:
            """Fill a buffer of ncnn's, which comes as a capsule; gives the number of bytes."""
            part = self._content[self.position : self.position + size]
            ctypes.memmove(address_of(buffer, None), part, len(part))
            self.position += len(part)
            self.ran_out = self.ran_out or len(part) < size
            return len(part)

    return Reader
