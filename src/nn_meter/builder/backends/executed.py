"""What a runtime really executed, as plain values.

This module is also imported in worker processes of other virtual environments: it needs the
standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

__all__ = ["ExecutedGraph", "ExecutedNode", "Kind", "ModelOp"]

Kind = Literal["compute", "view", "move", "const"]


@dataclass(frozen=True, kw_only=True)
class ExecutedNode:
    """One node that a runtime really executed.

    Attributes:
        name: The runtime's name of it.
        type: Its operator in the runtime's words, with the attributes that tell what was fused into
            it, e.g. ``Conv[activation=Relu]``; no name of the model's and no shape in it, so nodes
            that do the same have the same type.
        inputs: The tensors that it reads, constants left out, in the runtime's names.
        outputs: The tensors that it writes.
        kind: ``compute``; ``view`` (touches no data: a reshape, an identity), ``move`` (copies data
            or changes its layout and does nothing else: a reorder, a transpose, a copy) or
            ``const`` (done once, at load).
        sources: Names of the model's ops that it covers, out of ``ExecutedGraph.ops``; None where
            the runtime does not tell.
    """

    name: str
    type: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    kind: Kind = "compute"
    sources: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelOp:
    """An op of the model as the runtime read it, before it optimized; constants are none.

    Attributes:
        name: Its name there.
        type: Its operator.
        inputs: The tensors that it reads, constants left out.
        outputs: The tensors that it writes.
    """

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ExecutedGraph:
    """What a runtime made of a model.

    Attributes:
        nodes: In the order of execution.
        inputs: Names that the model's inputs have as tensors of the nodes, in the model's order;
            None where the runtime does not tell which tensors its nodes read and write.
        ops: The model's ops in a topological order, where nodes tell their ``sources``; else None.
        op_inputs: Names that the model's inputs have as tensors of ``ops``, in the model's order.
    """

    nodes: tuple[ExecutedNode, ...]
    inputs: tuple[str, ...] | None = None
    ops: tuple[ModelOp, ...] | None = None
    op_inputs: tuple[str, ...] = ()

    def compute(self) -> tuple[ExecutedNode, ...]:
        """The nodes that compute."""
        return tuple(node for node in self.nodes if node.kind == "compute")

    def behind(self, tensors: Iterable[str]) -> tuple[ExecutedNode, ...]:
        """The nodes that depend on any of these tensors, directly or through other nodes."""
        readers: dict[str, list[int]] = {}
        for number, node in enumerate(self.nodes):
            for tensor in node.inputs:
                readers.setdefault(tensor, []).append(number)
        reached: set[int] = set()
        waiting = list(dict.fromkeys(tensors))
        while waiting:
            for number in readers.pop(waiting.pop(), ()):
                if number not in reached:
                    reached.add(number)
                    waiting += self.nodes[number].outputs
        return tuple(self.nodes[number] for number in sorted(reached))

    def to_json(self) -> dict[str, Any]:
        """As plain values; ``from_json`` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ExecutedGraph:
        """Read ``to_json`` back.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        ops, inputs = data.get("ops"), data.get("inputs")
        return cls(
            nodes=tuple(_node(node) for node in data["nodes"]),
            inputs=None if inputs is None else _names(inputs),
            ops=None if ops is None else tuple(_op(op) for op in ops),
            op_inputs=_names(data.get("op_inputs", ())),
        )


def _node(data: Mapping[str, Any]) -> ExecutedNode:
    if data["kind"] not in get_args(Kind):
        raise ValueError(f"kind should be one of {', '.join(get_args(Kind))}, not {data['kind']!r}")
    sources = data.get("sources")
    return ExecutedNode(
        name=_text(data["name"]),
        type=_text(data["type"]),
        inputs=_names(data["inputs"]),
        outputs=_names(data["outputs"]),
        kind=data["kind"],
        sources=None if sources is None else _names(sources),
    )


def _op(data: Mapping[str, Any]) -> ModelOp:
    return ModelOp(
        name=_text(data["name"]),
        type=_text(data["type"]),
        inputs=_names(data["inputs"]),
        outputs=_names(data["outputs"]),
    )


def _names(names: Iterable[Any]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise TypeError(f"{names!r:.80} should be a list of names")
    return tuple(_text(name) for name in names)


def _text(value: Any) -> str:
    """A runtime's words as text that can be printed and stored."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(value))
