"""A graph as patterns see it: without no-ops, and ops parted from their own activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nn_meter.kernel_detector.graph import Graph, Op
from nn_meter.kernel_detector.patterns import Patterns

__all__ = ["Step", "Steps", "groups_of", "shape_of"]

_BEFORE = ":before "


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that an op does.

    Attributes:
        index: Its place among the steps, which are in a topological order.
        op: The op.
        type: Its type; of an activation that the op has of its own the activation's.
        inputs: What it reads; what a no-op gives is replaced by what the no-op reads.
        outputs: What it writes.
        attributes: The op's; of an activation of its own none.
        is_extra: It is the activation that the op has of its own.
    """

    index: int
    op: Op
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    is_extra: bool = False


class Steps:
    """The steps of a graph, and who reads what.

    Args:
        graph: The graph.
        patterns: Say what a no-op is, and which attributes hold activations.

    Attributes:
        steps: In a topological order.
        noops: No-op -> the step whose output it hands on.
        maker: Tensor -> place of the step that writes it.
        readers: Tensor -> places of the steps that read it, each once.
        kept: Tensors that the model gives.
    """

    def __init__(self, graph: Graph, patterns: Patterns) -> None:
        self.graph = graph
        self.patterns = patterns
        self.steps: list[Step] = []
        self.noops: dict[str, int] = {}
        self.maker: dict[str, int] = {}
        self.readers: dict[str, list[int]] = {}
        self._same: dict[str, str] = {}
        self._numbers: dict[str, float | None] = {}
        for op in graph.ops:
            self._add(op)
        for step in self.steps:
            for tensor in dict.fromkeys(step.inputs):
                if tensor:
                    self.readers.setdefault(tensor, []).append(step.index)
        self.kept = frozenset(self._same.get(tensor, tensor) for tensor in graph.outputs)
        self._operators = [self._operator(step) for step in self.steps]

    def _add(self, op: Op) -> None:
        inputs = tuple(self._same.get(tensor, tensor) for tensor in op.inputs)
        if op.type in self.patterns.noops and inputs and inputs[0] in self.maker:
            self._same[op.outputs[0]] = inputs[0]
            self.noops[op.name] = self.maker[inputs[0]]
            return
        activation = self._activation(op)
        if activation is None:
            self._append(op, op.type, inputs, op.outputs, op.attributes)
            return
        before = f"{op.outputs[0]}{_BEFORE}{activation}"
        self._append(op, op.type, inputs, (before, *op.outputs[1:]), op.attributes)
        self._append(op, activation, (before,), op.outputs[:1], {}, is_extra=True)

    def _activation(self, op: Op) -> str | None:
        for attribute, types in self.patterns.activations.items():
            if attribute in op.attributes:
                return types.get(str(op.attributes[attribute]))
        return None

    def _append(
        self,
        op: Op,
        op_type: str,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        attributes: Mapping[str, Any],
        *,
        is_extra: bool = False,
    ) -> None:
        step = Step(
            index=len(self.steps),
            op=op,
            type=op_type,
            inputs=inputs,
            outputs=tuple(filter(None, outputs)),
            attributes=attributes,
            is_extra=is_extra,
        )
        self.steps.append(step)
        for tensor in step.outputs:
            self.maker[tensor] = step.index

    # --- what is asked of a step -----------------------------------------------------------------

    def operator(self, index: int) -> str | None:
        """The operator that a step is by itself; None: none that is known."""
        return self._operators[index]

    def _operator(self, step: Step) -> str | None:
        if not step.inputs:
            return None  # all operators read something; a damaged model may have one that does not
        for operator, condition in self.patterns.operators.get(step.type, ()):
            if not condition or self._holds(condition, step):
                return operator
        return None

    def _holds(self, condition: str, step: Step) -> bool:
        try:
            return _CONDITIONS[condition](self, step)
        except (LookupError, TypeError, ValueError, ArithmeticError):
            return False  # it lacks inputs or attributes that ops of its type have: no operator

    def data(self, step: Step) -> list[str]:
        """What a step reads and is no constant, in its order, a tensor as often as it is read."""
        return [name for name in step.inputs if name and not self.graph.is_constant(name)]

    def constants(self, step: Step) -> list[str]:
        """The constants that a step reads."""
        return [name for name in step.inputs if name and self.graph.is_constant(name)]

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """A tensor's shape; None: not known."""
        return shape_of(self.graph, tensor)

    def number(self, tensor: str) -> float | None:
        """The number that a constant tensor holds, in all its elements; None: not known."""
        if tensor not in self._numbers:
            self._numbers[tensor] = self._number(tensor)
        return self._numbers[tensor]

    def _number(self, tensor: str) -> float | None:
        found = self.graph.tensors.get(tensor)
        if found is None or not found.is_constant or found.value is None or not found.value.size:
            return None
        values = np.asarray(found.value)
        if values.dtype.kind not in "fiu" or values.min() != values.max():
            return None
        return float(values.flat[0])

    def is_vector(self, tensor: str) -> bool:
        """Whether a constant has at most one axis that is longer than 1."""
        shape = self.shape(tensor)
        return (
            self.graph.is_constant(tensor)
            and shape is not None
            and sum(size != 1 for size in shape) <= 1
        )

    def bounds(self, step: Step) -> tuple[float, float] | None:
        """Between what a step clips its input; None: it does not, or it is not known."""
        if step.type in ("Relu", "RELU"):
            return 0.0, np.inf
        if step.type == "RELU6":
            return 0.0, 6.0
        if step.type != "Clip":
            return None
        found = []
        for position, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
            tensor = step.inputs[position] if len(step.inputs) > position else ""
            value = self.number(tensor) if tensor else step.attributes.get(name, default)
            if value is None:
                return None
            found.append(float(value))
        return found[0], found[1]

    def integers(self, step: Step, name: str, position: int) -> tuple[int, ...] | None:
        """A list of integers that is an attribute in one version and an input in another."""
        if name in step.attributes:
            return tuple(int(value) for value in np.ravel(step.attributes[name]))
        tensor = step.inputs[position] if len(step.inputs) > position else ""
        found = self.graph.tensors.get(tensor)
        if found is None or found.value is None:
            return None
        return tuple(int(value) for value in np.ravel(found.value))

    def shuffles(self, steps: list[Step]) -> bool:
        """Whether reshape, transpose, reshape give the shape back, channels in another order."""
        first, move, last = steps
        shape, split = self.shape(first.inputs[0]), self.shape(first.outputs[0])
        order = self.integers(move, "perm", 1)
        if shape is None or split is None or order is None or shape != self.shape(last.outputs[0]):
            return False
        swapped = [axis for axis, place in enumerate(order) if axis != place]
        return (
            len(split) == len(shape) + 1 == len(order)
            and len(swapped) == 2
            and swapped[0] + 1 == swapped[1]
            and swapped[0] > 0
        )


def shape_of(graph: Graph, tensor: str) -> tuple[int, ...] | None:
    """A tensor's shape; of what stands before an op's own activation the op's output's."""
    return graph.shape(tensor if tensor in graph.tensors else tensor.partition(_BEFORE)[0])


def groups_of(steps: Steps, step: Step) -> int:
    """Into how many groups a convolution parts its channels."""
    groups = step.attributes.get("group", step.attributes.get("groups"))
    if groups is not None:
        return int(groups)
    if step.type != "CONV_2D":
        return 1
    shape = steps.shape(step.inputs[0])
    weight = steps.shape(step.inputs[1]) if len(step.inputs) > 1 else None
    if shape is None or weight is None or len(weight) != 4 or not weight[3]:
        return 1
    return max(1, shape[-1] // weight[3])


def _is_depthwise(steps: Steps, step: Step) -> bool:
    weight = steps.shape(step.inputs[1]) if len(step.inputs) > 1 else None
    return groups_of(steps, step) > 1 and weight is not None and len(weight) > 1 and weight[1] == 1


_MOST_BEHIND = 3  # of the constants that are added and multiplied behind a fully connected layer


def _is_of_fc(steps: Steps, tensor: str) -> bool:
    """Whether a tensor is a fully connected layer's, whose channels are last, constants aside."""
    types = steps.patterns.operators
    for _ in range(_MOST_BEHIND):
        place = steps.maker.get(tensor)
        if place is None:
            return False
        step = steps.steps[place]
        named = {operator for operator, _ in types.get(step.type, ())}
        if "fc" in named:
            return _CONDITIONS["constant_weights"](steps, step)
        if not named & {"bias", "scale"} or len(steps.data(step)) != 1:
            return False
        tensor = steps.data(step)[0]
    return False


def _is_channelwise(steps: Steps, step: Step) -> bool:
    """Whether the only other operand is a constant: one number, or a number for each channel."""
    constants = steps.constants(step)
    if len(constants) != 1 or len(step.inputs) != 2 or not steps.data(step):
        return False
    if step.type in ("Div", "DIV") and step.inputs[0] == constants[0]:
        return False
    shape, whole = steps.shape(constants[0]), steps.shape(steps.data(step)[0])
    if shape == ():
        return True
    if shape is None or whole is None or len(shape) > len(whole):
        return False
    long = [axis - len(shape) for axis, size in enumerate(shape) if size != 1]
    last = steps.graph.layout == "channels_last" or len(whole) < 3
    channel = -1 if last or _is_of_fc(steps, steps.data(step)[0]) else 1 - len(whole)
    if not long:  # a channel axis of its own, of a single channel
        return len(shape) == len(whole) and whole[channel] == 1
    return long == [channel] and shape[channel] == whole[channel]


def _is_of_one_number(steps: Steps, step: Step) -> bool:
    """Whether the only other operand is a constant of one number, without an axis."""
    return _is_channelwise(steps, step) and steps.shape(steps.constants(step)[0]) == ()


def _is_of_one_number_on_an_axis(steps: Steps, step: Step) -> bool:
    """Whether the only other operand is a constant of one number, with an axis or more."""
    constants, data = steps.constants(step), steps.data(step)
    if len(constants) != 1 or len(data) != 1:
        return False
    if step.type in ("Div", "DIV") and step.inputs[0] == constants[0]:
        return False
    shape, whole = steps.shape(constants[0]), steps.shape(data[0])
    if not shape or whole is None or len(shape) > len(whole):
        return False
    return all(size == 1 for size in shape)


def _pads_with_zeros(steps: Steps, step: Step) -> bool:
    if step.attributes.get("mode", "constant") not in ("constant", b"constant"):
        return False
    if len(step.inputs) > 2 and step.inputs[2]:
        return steps.number(step.inputs[2]) == 0.0
    return float(step.attributes.get("value", 0.0)) == 0.0


def _flattens(steps: Steps, step: Step) -> bool:
    before, after = steps.shape(step.inputs[0]), steps.shape(step.outputs[0])
    return before is not None and after is not None and len(after) == 2 < len(before)


def _is_over_space(steps: Steps, step: Step) -> bool:
    shape = steps.shape(step.inputs[0])
    axes = steps.integers(step, "axes", 1)
    if shape is None or axes is None or len(shape) < 3:
        return False
    first = 1 if steps.graph.layout == "channels_last" else 2
    space = set(range(first, first + len(shape) - 2))
    return {axis % len(shape) for axis in axes} == space


def _is_over_last(steps: Steps, step: Step) -> bool:
    before, after = steps.shape(step.inputs[0]), steps.shape(step.outputs[0])
    return (
        before is not None
        and after is not None
        and len(before) == len(after)
        and before[:-1] == after[:-1]
        and steps.integers(step, "axes", 1) in ((-1,), (len(before) - 1,))
    )


def _is_along_rows(steps: Steps, step: Step) -> bool:
    """Whether it goes along the last axis of three or more, and that one is no channel's."""
    shape = steps.shape(step.inputs[0])
    if shape is None or len(shape) < 3 or steps.graph.layout == "channels_last":
        return False
    return int(step.attributes.get("axis", -1)) in (-1, len(shape) - 1)


_CONDITIONS: dict[str, Callable[[Steps, Step], bool]] = {
    "depthwise": _is_depthwise,
    "grouped": lambda steps, step: groups_of(steps, step) > 1,
    "constant_weights": lambda steps, step: (
        len(step.inputs) > 1
        and steps.graph.is_constant(step.inputs[1])
        and not steps.graph.is_constant(step.inputs[0])
    ),
    "clips_0_6": lambda steps, step: steps.bounds(step) == (0.0, 6.0),
    "clips_0": lambda steps, step: steps.bounds(step) == (0.0, np.inf),
    "two_operands": lambda steps, step: len(steps.data(step)) > 1,
    "one_operand": lambda steps, step: len(steps.data(step)) == 1,
    "channelwise": _is_channelwise,
    "one_number": _is_of_one_number,
    "one_number_on_an_axis": _is_of_one_number_on_an_axis,
    "to_two": lambda steps, step: steps.number(step.inputs[1]) == 2.0,
    "with_zeros": _pads_with_zeros,
    "flattens": _flattens,
    "over_space": _is_over_space,
    "over_last": _is_over_last,
    "along_rows": _is_along_rows,
}
