"""The pairs of operators that networks are made of and that a runtime may put together.

More than a new workspace asks: rule files that ship hold them, too.
"""

from __future__ import annotations

from itertools import product

__all__ = ["ordinary_cases", "ordinary_pairs"]

_ACTIVATIONS = (
    *("relu", "relu6", "sigmoid", "hswish", "swish"),
    *("gelu", "leakyrelu", "prelu", "hardsigmoid", "tanh"),
)
_BEFORE_ACTIVATIONS = ("conv", "dwconv", "convtrans", "fc", "bn", "add", "mul")
_CONVOLUTIONS = ("conv", "dwconv", "convtrans")
_CONSTANTS = ("bias", "center", "scale", "addscalar", "mulscalar", "mulone")
"""With a constant as the other operand: what weights could take in."""

_CHAINS = (
    "concat_bn_relu",  # of densenets: the layout is that of what is joined
    "center_scale_conv",  # an input made normal: the convolution's weights could take in both
    "bias_scale_conv",
    "scale_bias_conv",
    # of attention
    "bmm_rowsoftmax_bmm",
    "bmm_mulscalar_rowsoftmax",
    "bmm_mulone_rowsoftmax",
    "bmm_add_rowsoftmax",
)
_OTHERS = {
    # where weights, or the end of a kernel, could take in what follows
    "fc": ("add", "mul", "layernorm", "softmax"),
    "add": ("mul", "softmax", "rowsoftmax", "layernorm", "bmm"),
    "mul": ("add", "mul", "softmax", "rowsoftmax", "layernorm", "conv", "fc", "bmm"),
    "bn": ("bn", "add", "mul", "maxpool", "avgpool"),
    # gates
    "sigmoid": ("mul",),
    "hardsigmoid": ("mul",),
    "tanh": ("mul",),
    "gelu": ("mul", "fc"),
    "softmax": ("mul",),
    # attention
    "bmm": ("bmm", "mulscalar", "mulone", "add", "mul", "softmax", "rowsoftmax", *_ACTIVATIONS),
    "rowsoftmax": ("bmm", "mul", "mulscalar", "mulone"),
    # normalization
    "layernorm": ("fc", "add", "mul", "gelu"),
    "concat": ("bn",),
    "maxpool": ("bn",),
    "avgpool": ("bn", *_CONSTANTS, "mul", "square", "relu6"),
    # in parts: constants, powers and means
    "bias": ("bias", "center", "scale", "relu", "relu6", "add", "mul", "square", "conv"),
    "center": ("bias", "scale", "mulscalar", "square", "relu"),
    "scale": ("bias", "center", "scale", "add", "mul", "relu", "conv"),
    "addscalar": ("relu6", "mulscalar", "square", "scale"),
    "mulscalar": ("addscalar", "bias", "add", "tanh", "softmax", "rowsoftmax", "bmm"),
    "mulone": ("add", "softmax", "rowsoftmax", "bmm"),
    "relu": ("scale", "bias", "mulscalar"),
    "relu6": ("scale", "mulscalar"),
    "square": ("mulscalar", "scale", "mul", "add", "mean"),
    "mean": ("square", "mul", "add", "relu"),
    # what moves data, before and behind
    "pad": (*_CONVOLUTIONS, "maxpool", "avgpool"),
    "resize": ("conv", "add", "concat"),
    "channelshuffle": ("conv", "dwconv", "split"),
    "split": ("channelshuffle",),
}


def ordinary_pairs() -> list[str]:
    """Names of test cases, each once: pairs, and a few chains that no pair speaks for."""
    pairs = [
        *product(_BEFORE_ACTIVATIONS, _ACTIVATIONS),
        *product(_CONVOLUTIONS, ("bn", "add", "mul")),
        *product((*_CONVOLUTIONS, "fc", "mean"), _CONSTANTS),
        *((first, second) for first, behind in _OTHERS.items() for second in behind),
    ]
    return list(dict.fromkeys([*("_".join(pair) for pair in pairs), *_CHAINS]))


def ordinary_cases() -> list[str]:
    """Names of test cases of cases that are asked besides: of element-wise operators."""
    return ["MONELTWISE", "MINELTWISE"]
