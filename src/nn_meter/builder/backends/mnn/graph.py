"""What MNN executes: its own report of a run, explained by the ops of the model.

A run tells each command that it carries out: its name, its type, and the memory that it reads and
writes. Commands are in the order of the ops that they come from. An op's own command has the op's
name; others that are made for an op at load are named after it, ``<op>_raster_<n>``.

Ops that only say where data lies (a concat, a slice, a pad, a reshape, a change of layout) have no
kernel: a ``Raster`` in front of the next op that needs the data, or at the model's output, does in
one pass what several of them ask for. Which ones it does follows from the ops that lie between
what it reads and what it is made for.

What is not reported: copies between MNN's two sets of CPU kernels, with and without AVX, which lay
out channels in blocks of 8 and 4. So memory alone does not tell what a command reads; it decides
only between the tensors that can reach the command's op.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode, Kind
from nn_meter.errors import GraphUnavailableError, ModelRejectedError

__all__ = ["Command", "Memory", "executed_graph"]

_RASTER = "Raster"
_SUFFIX = "_raster_"

_LAYOUT = frozenset(
    {
        "ConvertTensor",
        "DepthToSpace",
        "ExpandDims",
        "Flatten",
        "Identity",
        "Permute",
        "Reshape",
        "SpaceToDepth",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Types of ops after which the same values lie elsewhere, or have another shape."""

_NO_DATA = frozenset({"Const", "Input", "Rank", "Shape", "Size", "TrainableParam"})
"""Types of ops that do not hand on the data that they are given."""

_ACTIVATIONS = {1: "relu", 2: "relu6"}
"""MNN's numbers of what a BinaryOp does behind itself."""


@dataclass(frozen=True)
class Memory:
    """A tensor as a run sees it; the same place is used for one tensor after another."""

    address: int
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that a run carried out.

    Attributes:
        name: MNN's name of it.
        type: Its type.
        reads: What it reads, constants among it.
        writes: What it writes.
    """

    name: str
    type: str
    reads: tuple[Memory, ...]
    writes: tuple[Memory, ...]

    def feeds(self, other: Command) -> bool:
        """Whether another one reads what this one writes, if nothing is written in between."""
        return not set(self.writes).isdisjoint(other.reads)

    @property
    def resizes(self) -> bool:
        """Whether it reads more or less values than it writes."""
        read, written = (
            sum(math.prod(memory.shape) for memory in set(memories))
            for memories in (self.reads, self.writes)
        )
        return read != written


@dataclass(eq=False)
class _Op:
    """An op of the model as MNN's converter left it; tensors are numbers."""

    name: str
    type: str
    main: Mapping[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    commands: list[Command] = field(default_factory=list)

    @property
    def computes(self) -> bool:
        """Whether it has commands that are more than a Raster."""
        return any(command.type != _RASTER for command in self.commands)

    @property
    def own(self) -> Command | None:
        """The command that is the op itself, and reads what the op does."""
        for command in self.commands:
            if command.name == self.name and command.type != _RASTER:
                return command if len(command.reads) == len(self.inputs) else None
        return None

    def after(self, command: Command) -> list[Command]:
        """Its commands after one of them."""
        return self.commands[self.commands.index(command) + 1 :]


def executed_graph(
    model: Mapping[str, Any], commands: Sequence[Command], inputs: Mapping[str, Memory]
) -> ExecutedGraph:
    """Explain the commands of a run.

    Args:
        model: MNN's JSON of the model.
        commands: In the order in which they were carried out.
        inputs: The model's inputs by name, in its order.

    Raises:
        ModelRejectedError: An output of the model got lost.
        GraphUnavailableError: A command belongs to no op.
    """
    lost = [name for name in model["outputName"] if name not in model["tensorName"]]
    if lost:
        # Seen where an add's sum is an output, and so is the relu behind it: the sum is forgotten.
        raise ModelRejectedError(
            f"MNN refuses the model: its optimizer lost {', '.join(lost)} (counted from 0)"
        )
    ops = [_op(data) for data in model["oplists"]]
    origins = _assign(ops, commands)
    flow = _Flow(ops, model, inputs)
    nodes = [flow.node(command, op) for command, op in zip(commands, origins, strict=True)]
    return ExecutedGraph(nodes=tuple(nodes), inputs=tuple(inputs))


def _op(data: Mapping[str, Any]) -> _Op:
    main = data.get("main")
    return _Op(
        name=str(data.get("name", "")),
        type=str(data["type"]),
        main=main if isinstance(main, Mapping) else {},
        inputs=tuple(data.get("inputIndexes") or ()),
        outputs=tuple(data.get("outputIndexes") or ()),
    )


def _assign(ops: Sequence[_Op], commands: Sequence[Command]) -> list[_Op]:
    """Find the op that each command comes from. Both are in the same order."""
    origins, position = [], 0
    for command in commands:
        made_for, suffix, number = command.name.rpartition(_SUFFIX)
        wanted = {command.name} | ({made_for} if suffix and number.isdigit() else set())
        while position < len(ops) and ops[position].name not in wanted:
            position += 1
        if position == len(ops):
            raise GraphUnavailableError(
                f"MNN executed {command.type} {command.name}, which belongs to no op of the model "
                "as its converter left it; this version of MNN reports other than those that "
                "nn-meter knows (tried: 3.6.1)"
            )
        ops[position].commands.append(command)
        origins.append(ops[position])
    return origins


class _Flow:
    """Follows the data, command by command.

    Tensors of the model are numbers. A tensor that is in memory, whether the model has it or not,
    has a name.
    """

    def __init__(
        self, ops: Sequence[_Op], model: Mapping[str, Any], inputs: Mapping[str, Memory]
    ) -> None:
        names = [str(name) for name in model["tensorName"]]
        self._names = names
        self._results = {names.index(name) for name in model["outputName"]}
        self._makers = {tensor: op for op in ops for tensor in op.outputs}
        self._written = {memory.address: name for name, memory in inputs.items()}
        self._shapes = {name: memory.shape for name, memory in inputs.items()}
        # Where a tensor of the model is in memory.
        self._made = {names.index(name): name for name in inputs}
        # The tensors of the model whose data one in memory has. What is made on the way to a
        # tensor of the model, and is none itself, has those that it is made from.
        self._holds = {name: {names.index(name)} for name in inputs}
        # What the commands of an op have made so far.
        self._inside: dict[_Op, list[str]] = {op: [] for op in ops}

    def node(self, command: Command, op: _Op) -> ExecutedNode:
        """The node of the next command, which comes from ``op``."""
        reads = self._reads(command, op)
        sources = {tensor for name in reads for tensor in self._holds[name]}
        made = set(op.outputs)
        kind: Kind = "compute"
        if command.type == _RASTER:
            wanted, made = self._wanted(command, op)
            done = self._done(command, op, self._between(sources, wanted))
            type_, kind = _bracketed(_RASTER, done), _kind(done)
        elif command.name == op.name:
            type_, kind = _bracketed(op.type, _attributes(op)), _kind([op.type])
        else:  # one of several that MNN makes of the op
            type_ = _bracketed(command.type, [op.type])
        names = self._outputs(command, op)
        for place, (memory, name) in enumerate(zip(command.writes, names, strict=True)):
            self._written[memory.address] = name
            self._shapes[name] = memory.shape
            self._inside[op].append(name)
            single = command.type != _RASTER and len(names) == len(op.outputs)
            own = {op.outputs[place]} if single else made
            self._holds[name] = own or sources
            self._made |= dict.fromkeys(own, name)  # of several commands the last has the result
        return ExecutedNode(name=command.name, type=type_, inputs=reads, outputs=names, kind=kind)

    def _outputs(self, command: Command, op: _Op) -> tuple[str, ...]:
        count = len(command.writes)
        if command.name == op.name and count == len(op.outputs):
            return tuple(self._names[tensor] for tensor in op.outputs)
        return (command.name,) if count == 1 else tuple(f"{command.name}:{i}" for i in range(count))

    # --- what a command reads

    def _reads(self, command: Command, op: _Op) -> tuple[str, ...]:
        inside = self._inside[op]
        found: list[str] = []
        if command is op.own:
            for memory, tensor in zip(command.reads, op.inputs, strict=True):
                found += self._pick(memory, inside) or self._pick_any(
                    memory, self._reaching(tensor)
                )
        else:
            outside = [name for tensor in op.inputs for name in self._reaching(tensor)]
            candidates = [*inside, *outside]
            for memory in command.reads:
                found += self._pick(memory, candidates)
            for memory in command.reads:
                if not self._pick(memory, candidates):
                    left = [name for name in candidates if name not in found]
                    found += [name for name in left if self._shapes[name] == memory.shape]
        return tuple(dict.fromkeys(found))

    def _pick(self, memory: Memory, candidates: Sequence[str]) -> list[str]:
        """The candidate that is in this memory."""
        name = self._written.get(memory.address, "")
        return [name] if name in candidates and self._shapes[name] == memory.shape else []

    def _pick_any(self, memory: Memory, candidates: Sequence[str]) -> list[str]:
        """The candidate that is in this memory, or all: it has been copied there."""
        return self._pick(memory, candidates) or list(candidates)

    def _reaching(self, tensor: int) -> list[str]:
        """What is in memory of a tensor of the model, or else of those that it is laid out from."""
        if tensor in self._made:
            return [self._made[tensor]]
        op = self._makers.get(tensor)
        if op is None or op.type in _NO_DATA:
            return []
        return [name for before in op.inputs for name in self._reaching(before)]

    # --- what a Raster does

    def _wanted(self, command: Command, op: _Op) -> tuple[set[int], set[int]]:
        """What a Raster is made for, as tensors of the model, and those that it has made then."""
        end = set(op.inputs if op.computes else op.outputs)
        if any(user.type == _RASTER and command.feeds(user) for user in op.after(command)):
            return end, set()
        if not op.computes:
            # It is carried out where it stands because it gives outputs of the model.
            left = [t for t in op.outputs if t in self._results and t not in self._made]
            made = set(left[:1]) or end
            return made, made
        if op.own is not None:
            new = [
                (memory, tensor)
                for memory, tensor in zip(op.own.reads, op.inputs, strict=True)
                if tensor not in self._made
            ]
            for fitting in (
                [tensor for memory, tensor in new if memory in command.writes],
                [tensor for memory, tensor in new if memory.shape == command.writes[0].shape],
            ):
                if fitting:
                    return {fitting[0]}, {fitting[0]}
        return end, set()

    def _done(self, command: Command, op: _Op, between: Sequence[_Op]) -> list[str]:
        """Types of the ops whose work a Raster does."""
        done = sorted(found.type for found in between)
        working = [type_ for type_ in done if type_ not in _LAYOUT]
        if working and not command.resizes and _passes_resize(command, op):
            # MNN does not tell which of several passes does what, but the others change the number
            # of values, as work does that is more than to lay them out anew.
            return [type_ for type_ in done if type_ in _LAYOUT]
        return working or done

    def _between(self, sources: set[int], wanted: set[int]) -> list[_Op]:
        """Ops without a kernel through which data gets from these tensors to those."""
        passed: dict[int, bool] = {}
        found: list[_Op] = []

        def reaches(tensor: int) -> bool:
            if tensor not in passed:
                op = self._makers.get(tensor)
                passed[tensor] = tensor in sources
                if not passed[tensor] and op and not op.computes and op.type not in _NO_DATA:
                    passed[tensor] = any([reaches(before) for before in op.inputs])
                    if passed[tensor] and op not in found:
                        found.append(op)
            return passed[tensor]

        for tensor in wanted:
            reaches(tensor)
        return found


def _passes_resize(command: Command, op: _Op) -> bool:
    """Whether a Raster feeds, or is fed by, another one of its op that changes a size."""
    rasters = [other for other in op.commands if other.type == _RASTER]
    return any(
        command in (first, second) and first.feeds(second) and (first.resizes or second.resizes)
        for first in rasters
        for second in op.after(first)
        if second.type == _RASTER
    )


def _kind(types: Sequence[str]) -> Kind:
    return "move" if _LAYOUT.issuperset(types) else "compute"


def _bracketed(type_: str, inside: Sequence[str]) -> str:
    return f"{type_}[{'+'.join(inside)}]" if inside else type_


def _attributes(op: _Op) -> list[str]:
    """What of an op's parameters tells what its kernel does, and what it does behind itself."""
    common = op.main.get("common")
    places = [op.main, common if isinstance(common, Mapping) else {}]
    found = [
        str(place[key])
        for place in places
        for key in ("opType", "operation", "type")
        if isinstance(place.get(key), str)
    ]
    found += [key for place in places for key in ("relu", "relu6") if place.get(key) is True]
    if number := op.main.get("activationType"):
        found.append(_ACTIVATIONS.get(number, f"activation {number}"))
    if op.type == "ReLU" and op.main.get("slope"):
        found.append("slope")
    return found
