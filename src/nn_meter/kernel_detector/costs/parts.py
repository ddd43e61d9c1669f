"""A model in parts, and new models put together of some of them, in the format that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nn_meter.kernel_detector.check.prepare import Copy
from nn_meter.kernel_detector.graph import Graph

__all__ = ["SMALL", "Border", "Constant", "Node", "Parts", "parts_of"]

SMALL = 64
"""Elements of a constant that a model is told by; of weights only the shape counts."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the file.

    Attributes:
        name: Its own.
        type: Of the op.
        inputs: Tensors; empty text is one that is not given.
        outputs: The same.
        told: What else it is told by, the same for nodes that compute the same.
        source: The format's own object.
    """

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    told: str = field(compare=False)
    source: Any = field(compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A tensor that is no node's to compute.

    Attributes:
        dims: Its shape.
        dtype: In numpy's words.
        size_bytes: What it takes.
        value: A small one's numbers; None: only its shape tells.
    """

    dims: tuple[int, ...]
    dtype: str
    size_bytes: int
    value: Any = None


@dataclass(frozen=True, kw_only=True)
class Border:
    """A tensor at which a model is cut: its name, its shape with the batch, numpy's type."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def behind_batch(self) -> tuple[int, ...]:
        """The shape without its batch dimension; with all of its dimensions if that is not 1."""
        return self.shape[1:] if self.shape[:1] == (1,) else self.shape


class Parts(Protocol):
    """The parts of one file."""

    @property
    def suffix(self) -> str:
        """Of files of the format."""

    @property
    def nodes(self) -> Sequence[Node]:
        """All that are executed, in an order in which they can be."""

    @property
    def of_op(self) -> Mapping[int, Sequence[Node]]:
        """Place of an op of the graph -> its nodes."""

    @property
    def constants(self) -> Mapping[str, Constant]:
        """By name."""

    @property
    def outputs(self) -> Sequence[str]:
        """The model's."""

    def made(
        self, nodes: Sequence[Node], inputs: Sequence[Border], outputs: Sequence[Border]
    ) -> Any:
        """Put nodes together: float inputs with a batch of one, as every backend feeds them.

        Raises:
            ModelRejectedError: The format has no way to say it.
        """

    def write(self, model: Any, path: Path, weights: int) -> None:
        """Write what ``made`` made, with so many bytes of weights."""

    def call(self) -> Any:
        """A model that costs no more than its call: one input of ``[1, 1]``."""


def parts_of(copy: Copy, graph: Graph) -> Parts:
    """Take the copy of a model apart."""
    if graph.format == "tflite":
        from nn_meter.kernel_detector.costs.tflite_parts import TFLiteParts

        return TFLiteParts(copy, graph.name)
    from nn_meter.kernel_detector.costs.onnx_parts import ONNXParts

    return ONNXParts(copy)
