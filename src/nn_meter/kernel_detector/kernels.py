"""Kernels: the ops of a model that rules put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Kernel"]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A group of ops that a runtime executes as one.

    Attributes:
        name: Unique among a model's kernels: its type and number.
        type: Its operators, joined as in the names of nn-Meter's kernels: ``conv-bn-relu``.
        operators: Names of the project's operators in it, in order; an op that is not recognized
            stands under its own type.
        ops: Names of the model's ops in it, in the order of the graph.
        inputs: Names of the tensors that it reads and that are no constants.
        outputs: Names of the tensors that others read, or that the model gives.
        attributes: What a latency predictor asks for: ``input_shapes``, ``output_shapes``, and of
            its heavy operator ``kernel_size``, ``strides``, ``in_channels``, ``out_channels``,
            ``groups``, as far as it has them.
    """

    name: str
    type: str
    operators: tuple[str, ...]
    ops: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "name": self.name,
            "type": self.type,
            "operators": list(self.operators),
            "ops": list(self.ops),
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "attributes": dict(self.attributes),
        }
