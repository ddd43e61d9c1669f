"""Sizes of operators in a model, by the names that rules have for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nn_meter.kernel_detector.recognition import Recognized

__all__ = ["CHANNELS", "SPATIAL", "sizes_of"]

CHANNELS = "channels"
"""Channels of each tensor that an operator reads; of one that has no height and width its last
axis."""

SPATIAL = "spatial"
"""Height and width of what an operator reads."""
_IMAGE = 4  # axes, the batch included


def sizes_of(model: Recognized, place: int) -> Mapping[str, Sequence[int]]:
    """The sizes of an operator.

    Args:
        model: The model.
        place: Place of its node.

    Returns:
        Name -> the sizes that there are of it, as far as they are known.
    """
    node = model.nodes[place]
    last = model.graph.layout == "channels_last"
    channels: list[int] = []
    spatial: set[int] = set()
    for tensor in node.inputs:
        shape = model.shape(tensor)
        if shape is not None and len(shape) == _IMAGE:
            channels.append(shape[-1] if last else shape[1])
            spatial.update(shape[1:-1] if last else shape[2:])
        elif shape is not None and len(shape) > 1:
            channels.append(shape[-1])
    found: dict[str, Sequence[int]] = {CHANNELS: channels, SPATIAL: sorted(spatial)}
    if "out_channels" in node.attributes:
        found["out_channels"] = [node.attributes["out_channels"]]
    for name in ("kernel_size", "strides"):
        if name in node.attributes:
            found[name] = sorted(set(node.attributes[name]))
    return found
