"""A model as a graph of ops and tensors, whatever file it was read from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy.typing as npt

__all__ = ["Graph", "Op", "Tensor"]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """What is known of a tensor.

    Attributes:
        name: Unique in its graph.
        shape: Its sizes, batch included, in the file's own layout; None: not known.
        dtype: Type of its elements in numpy's words, e.g. ``float32``; empty: not known.
        value: What a constant holds, if it is small enough to be kept (``readers`` say how small);
            None: it is too large, or it is computed.
        is_constant: It does not depend on the model's inputs.
    """

    name: str
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    value: npt.NDArray[Any] | None = field(default=None, compare=False, repr=False)
    is_constant: bool = False


@dataclass(frozen=True, kw_only=True)
class Op:
    """One op of a model, constants folded.

    Attributes:
        name: Its name in the file; unique, made up from its type and place where there is none.
        type: Its type in the file's words, e.g. ``Conv``, ``CONV_2D``; of an op that is not of the
            format's own set ``domain.Type``.
        inputs: Names of the tensors that it reads, constants included, in its order; an optional
            one that is absent is ``""``.
        outputs: Names of the tensors that it writes.
        attributes: Its attributes by the file's names: numbers, strings, and lists of these.
    """

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A model.

    Attributes:
        name: For messages and pictures: the file's, without its folder.
        format: ``onnx`` or ``tflite``: in whose words types and attributes are.
        layout: ``channels_first`` or ``channels_last``: where image tensors have their channels.
        ops: In a topological order. Ops whose inputs are all constant were folded away.
        inputs: Names of the tensors that are given at run time, in the model's order.
        outputs: Names of the tensors that the model gives, in its order.
        tensors: By name, all that are read or written.
    """

    name: str
    format: str
    layout: str
    ops: Sequence[Op]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Tensor]

    @cached_property
    def makers(self) -> Mapping[str, Op]:
        """Tensor -> the op that writes it."""
        return {tensor: op for op in self.ops for tensor in op.outputs}

    @cached_property
    def readers(self) -> Mapping[str, Sequence[Op]]:
        """Tensor -> the ops that read it, each once, in the graph's order."""
        found: dict[str, dict[str, Op]] = {}
        for op in self.ops:
            for tensor in op.inputs:
                if tensor:
                    found.setdefault(tensor, {})[op.name] = op
        return {tensor: tuple(ops.values()) for tensor, ops in found.items()}

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor does not depend on the model's inputs."""
        return tensor in self.tensors and self.tensors[tensor].is_constant

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """The shape of a tensor; None: not known."""
        found = self.tensors.get(tensor)
        return found.shape if found is not None else None

    def data_inputs(self, op: Op) -> tuple[str, ...]:
        """The tensors that an op reads and that are no constants."""
        return tuple(name for name in op.inputs if name and not self.is_constant(name))

    def edges(self) -> Iterator[tuple[Op, Op, str]]:
        """Maker, reader and tensor, for each op that reads what another one writes."""
        for op in self.ops:
            for tensor in op.outputs:
                for reader in self.readers.get(tensor, ()):
                    yield op, reader, tensor
