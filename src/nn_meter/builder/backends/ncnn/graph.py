"""What ncnn executes: its ``.param`` file, layer by layer.

ncnn runs the layers that stand in the file, one by one, and adds none when it loads them. What no
file tells: between two layers it changes how channels are packed (4, 8 or 16 together) where the
second wants it otherwise, and a layer's fused activation may be a pass of its own over the output
(by the processor, and by the algorithm chosen for a convolution).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode, Kind

__all__ = [
    "Layer",
    "activated_types",
    "executed",
    "param_text",
    "read_layers",
    "without_activations",
]

_MAGIC = "7767517"

# Numbers in the file are indices into these tables of ncnn's (its operators.md, the sources of its
# layers).
_ACTIVATIONS = ("", "relu", "leakyrelu", "clip", "sigmoid", "mish", "hardswish")
_BINARY = (
    "add", "sub", "mul", "div", "max", "min", "pow", "rsub", "rdiv", "rpow", "atan2", "ratan2",
)  # fmt: skip
_UNARY = (
    "abs", "neg", "floor", "ceil", "square", "sqrt", "rsqrt", "exp", "log", "sin", "cos", "tan",
    "asin", "acos", "atan", "reciprocal", "tanh", "log10", "round", "trunc",
)  # fmt: skip
_REDUCTIONS = (
    "sum", "asum", "sumsq", "mean", "max", "min", "prod", "l1", "l2", "logsum", "logsumexp",
)  # fmt: skip

_ACTIVATED = {
    f"{family}{variant}{rank}": 9
    for family in ("Convolution", "Deconvolution")
    for variant in ("", "DepthWise")
    for rank in ("", "1D", "3D")
} | {"InnerProduct": 9, "DeformableConv2D": 9, "Requantize": 3}
"""Layers with an activation, and the number of its parameter."""

_CHOICES: Mapping[str, tuple[int, Sequence[str]]] = {
    "BinaryOp": (0, _BINARY),
    "UnaryOp": (0, _UNARY),
    "Reduction": (0, _REDUCTIONS),
    "Eltwise": (0, ("prod", "sum", "max")),
    "Pooling": (0, ("max", "avg")),
    "Pooling1D": (0, ("max", "avg")),
    "Pooling3D": (0, ("max", "avg")),
    "Padding": (4, ("constant", "replicate", "reflect")),
    "Interp": (0, ("", "nearest", "bilinear", "bicubic")),
}
"""Layers that are several operators in one, the number of the parameter that says which, and their
names."""

_FLAGS: Mapping[str, Mapping[int, str]] = {
    "BinaryOp": {1: "scalar"},
    "Pooling": {4: "global", 7: "adaptive"},
    "Pooling1D": {4: "global", 7: "adaptive"},
    "Pooling3D": {4: "global", 7: "adaptive"},
    "GELU": {0: "fast"},
    "ReLU": {0: "leaky"},
}

# Split hands out one tensor several times; Noop nothing else. A reshape is more than a view: it
# copies where rows of channels are padded or channels are packed, which they are behind most
# layers.
_KINDS: Mapping[str, Kind] = {
    "Split": "view",
    "Noop": "view",
    "Reshape": "move",
    "Flatten": "move",
    "Squeeze": "move",
    "ExpandDims": "move",
    "Permute": "move",
    "ShuffleChannel": "move",  # the transpose that other runtimes execute for it
    "Packing": "move",
    "Cast": "move",
    "MemoryData": "const",
}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A line of the file.

    Attributes:
        type: Its type, as ncnn or, where it was not converted, pnnx calls it.
        name: Its name.
        inputs: The tensors that it reads.
        outputs: The tensors that it writes.
        params: Its parameters by number, as they are written; an array with its length first.
        line: All of it.
    """

    type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: Mapping[int, str]
    line: str

    def number(self, key: int) -> float:
        """A parameter that is a number; 0, which is their default, where it is not given."""
        try:
            return float(self.params.get(key, 0))
        except ValueError:
            return 0.0


def read_layers(text: str) -> list[Layer]:
    """Read a ``.param`` file.

    Raises:
        ValueError: It is none.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2 or lines[0].strip() != _MAGIC:
        raise ValueError(f"a .param file begins with {_MAGIC}")
    layers = [_layer(line) for line in lines[2:]]
    count = lines[1].split()[0]
    if count != str(len(layers)):
        raise ValueError(f"{count} layers should follow, but there are {len(layers)}")
    return layers


def _layer(line: str) -> Layer:
    words = line.split()
    try:
        n_inputs, n_outputs = int(words[2]), int(words[3])
        tensors, rest = words[4 : 4 + n_inputs + n_outputs], words[4 + n_inputs + n_outputs :]
        params = {int(key): value for key, _, value in (word.partition("=") for word in rest)}
    except (IndexError, ValueError) as exc:
        raise ValueError(f"no layer: {line:.100}") from exc
    if len(tensors) < n_inputs + n_outputs:
        raise ValueError(f"a layer with too few tensors: {line:.100}")
    return Layer(
        type=words[0],
        name=words[1],
        inputs=tuple(tensors[:n_inputs]),
        outputs=tuple(tensors[n_inputs:]),
        params=params,
        line=line,
    )


def param_text(layers: Sequence[Layer]) -> str:
    """Write layers as a ``.param`` file."""
    tensors = {tensor for layer in layers for tensor in (*layer.inputs, *layer.outputs)}
    return "\n".join(
        [_MAGIC, f"{len(layers)} {len(tensors)}", *(layer.line for layer in layers), ""]
    )


def executed(layers: Sequence[Layer], inputs: Sequence[str]) -> ExecutedGraph:
    """What ncnn makes of layers: all of them, as they stand, in their order.

    Args:
        layers: Of one model.
        inputs: Names of its inputs, in the source model's order.
    """
    constants: set[str] = set()
    nodes = []
    for layer in layers:
        if layer.type == "Input":
            continue
        kind = _kind(layer)
        if kind == "view" and constants.issuperset(layer.inputs):
            kind = "const"
        if kind == "const":
            constants.update(layer.outputs)
        nodes.append(
            ExecutedNode(
                name=layer.name,
                type=_type(layer),
                inputs=_without(layer.inputs, constants),
                outputs=layer.outputs,
                kind=kind,
            )
        )
    return ExecutedGraph(nodes=tuple(nodes), inputs=tuple(inputs))


def _without(tensors: Iterable[str], constants: set[str]) -> tuple[str, ...]:
    return tuple(tensor for tensor in tensors if tensor not in constants)


def _kind(layer: Layer) -> Kind:
    if layer.type == "Dropout":  # in inference it scales, by 1 unless told otherwise
        return "view" if float(layer.params.get(0, 1)) == 1 else "compute"
    return _KINDS.get(layer.type, "compute")


def _type(layer: Layer) -> str:
    told = []
    if layer.type in _CHOICES:
        key, names = _CHOICES[layer.type]
        told.append(_named(names, int(layer.number(key))))
    told += [word for key, word in _FLAGS.get(layer.type, {}).items() if layer.number(key)]
    if layer.type in _ACTIVATED:
        told.append(_named(_ACTIVATIONS, int(layer.number(_ACTIVATED[layer.type]))))
    told = [word for word in told if word]
    return f"{layer.type}[{','.join(told)}]" if told else layer.type


def _named(names: Sequence[str], number: int) -> str:
    """A name by its number; one that a newer ncnn has, and this table lacks, by the number."""
    return names[number] if 0 <= number < len(names) else f"#{number}"


def activated_types(graph: ExecutedGraph) -> set[str]:
    """Types of the nodes that say that an activation is part of them."""
    return {
        node.type
        for node in graph.nodes
        if node.type.partition("[")[0] in _ACTIVATED and "[" in node.type
    }


def without_activations(text: str) -> str:
    """A ``.param`` file without the activations that are part of other layers."""
    lines = []
    for line in text.splitlines():
        words = line.split()
        if words and words[0] in _ACTIVATED:
            key = _ACTIVATED[words[0]]
            words = [
                word for word in words if not word.startswith((f"{key}=", f"-233{key + 1:02}="))
            ]
        lines.append(" ".join(words))
    return "\n".join([*lines, ""])
