"""The pairs of operators that networks are made of and that a runtime may put together.

More than a new workspace asks: rule files that ship hold them, too.
"""

from __future__ import annotations

from itertools import product

__all__ = ["ordinary_pairs"]

_ACTIVATIONS = (
    *("relu", "relu6", "sigmoid", "hswish", "swish"),
    *("gelu", "leakyrelu", "prelu", "hardsigmoid", "tanh"),
)
_BEFORE_ACTIVATIONS = ("conv", "dwconv", "convtrans", "fc", "bn", "add", "mul")
_CONVOLUTIONS = ("conv", "dwconv", "convtrans")
_OTHERS = {
    # where weights, or the end of a kernel, could take in what follows
    "fc": ("add", "mul", "layernorm", "softmax"),
    "add": ("mul", "softmax", "layernorm"),
    "mul": ("add", "mul", "softmax", "layernorm", "conv", "fc"),
    "bn": ("bn", "add", "mul", "maxpool", "avgpool"),
    # gates
    "sigmoid": ("mul",),
    "hardsigmoid": ("mul",),
    "tanh": ("mul",),
    "gelu": ("mul", "fc"),
    "softmax": ("mul",),
    # normalization
    "layernorm": ("fc", "add", "mul", "gelu"),
    "concat": ("bn",),
    "maxpool": ("bn",),
    "avgpool": ("bn",),
    # what moves data, before and behind
    "pad": (*_CONVOLUTIONS, "maxpool", "avgpool"),
    "resize": ("conv", "add", "concat"),
    "channelshuffle": ("conv", "dwconv", "split"),
    "split": ("channelshuffle",),
}


def ordinary_pairs() -> list[str]:
    """Names of test cases, each once."""
    pairs = [
        *product(_BEFORE_ACTIVATIONS, _ACTIVATIONS),
        *product(_CONVOLUTIONS, ("bn", "add", "mul")),
        *((first, second) for first, behind in _OTHERS.items() for second in behind),
    ]
    return list(dict.fromkeys("_".join(pair) for pair in pairs))
