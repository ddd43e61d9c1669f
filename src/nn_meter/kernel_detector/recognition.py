"""The project's operators in a graph, whatever way a framework writes them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

from nn_meter.kernel_detector.graph import Graph
from nn_meter.kernel_detector.patterns import (
    Any_,
    Call,
    Composite,
    Expression,
    Number,
    Patterns,
    Variable,
    patterns,
)
from nn_meter.kernel_detector.steps import Step, Steps, groups_of, shape_of

__all__ = ["Node", "Recognized", "recognize"]

_COMMUTE = frozenset({"add", "mul", "minimum", "maximum"})
_INVERSE = {"add": "sub", "mul": "div"}
_TOLERANCE = 2e-3  # of a number: float16 has 1/6 as 0.16663, and papers round


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator of a model.

    Attributes:
        name: Of the op that writes its output; of an activation that an op has of its own with the
            activation's type behind it.
        operator: The project's operator, or one of ``patterns``; the op's type if it is none.
        ops: Names of the ops that it covers, no-ops behind it included, in the graph's order.
        inputs: Tensors that it reads and that are no constants, each once, in its order.
        outputs: Tensors that it writes and that are read by others, or that the model gives.
        attributes: Of a convolution, pool or fully connected layer ``kernel_size``, ``strides``,
            ``in_channels``, ``out_channels``, ``groups``, as far as it has them.
        is_known: It is an operator, not just an op's type.
        is_kept: One of its outputs is given by the model.
        steps: How many things it does; more than one: a composite.
        parts: Of a composite whose steps stand in a row, each the only reader of the one before,
            their operators, if each is one; else empty.
        inside: Place of the node of the op whose own activation it is; None: it is no such thing.
    """

    name: str
    operator: str
    ops: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    is_known: bool = True
    is_kept: bool = False
    steps: int = 1
    parts: tuple[str, ...] = ()
    inside: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """A graph as operators.

    Attributes:
        graph: The graph.
        nodes: In a topological order; each op of the graph is in at least one of them, and in two
            only if it has an activation of its own.
        patterns: What they were recognized by.
    """

    graph: Graph
    nodes: Sequence[Node]
    patterns: Patterns

    @cached_property
    def makers(self) -> Mapping[str, int]:
        """Tensor -> place of the node that writes it."""
        return {tensor: i for i, node in enumerate(self.nodes) for tensor in node.outputs}

    @cached_property
    def readers(self) -> Sequence[Sequence[int]]:
        """Of each node the places of the nodes that read what it writes, each once."""
        found: list[dict[int, None]] = [{} for _ in self.nodes]
        for i, node in enumerate(self.nodes):
            for tensor in node.inputs:
                if tensor in self.makers:
                    found[self.makers[tensor]][i] = None
        return [tuple(each) for each in found]

    @cached_property
    def tensor_readers(self) -> Mapping[str, Sequence[int]]:
        """Tensor -> places of the nodes that read it."""
        found: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for tensor in node.inputs:
                found.setdefault(tensor, []).append(i)
        return found

    @property
    def unknown(self) -> Counter[str]:
        """Types of the ops that are no operator, and how many there are."""
        return Counter(node.operator for node in self.nodes if not node.is_known)

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """A tensor's shape; None: not known."""
        return shape_of(self.graph, tensor)


def recognize(
    graph: Graph,
    *,
    apart: AbstractSet[tuple[str, str]] = frozenset(),
    without: AbstractSet[str] = frozenset(),
    by: Patterns | None = None,
) -> Recognized:
    """Recognize the operators of a graph.

    Args:
        graph: The graph.
        apart: Node name and operator of composites that are to be left in their parts.
        without: Operators that are to be left in their parts wherever several ops make them up.
        by: The patterns; None: those that ship with the package.
    """
    known = by or patterns()
    steps = Steps(graph, known)
    groups = _Matcher(steps, known, apart).groups(without)
    return Recognized(graph=graph, nodes=_nodes(steps, groups), patterns=known)


# --- composites ----------------------------------------------------------------------------------

_Env = dict[str, str]
_Match = tuple[_Env, tuple[int, ...]]


class _Matcher:
    """Finds composites: which steps make up one operator."""

    def __init__(self, steps: Steps, known: Patterns, apart: AbstractSet[tuple[str, str]]) -> None:
        self._steps = steps
        self._patterns = known
        self._apart = apart
        self._taken: set[int] = set()

    def groups(self, without: AbstractSet[str]) -> dict[int, tuple[str, tuple[int, ...]]]:
        """Last step of a composite -> its operator, and all its steps in order."""
        found: dict[int, tuple[str, tuple[int, ...]]] = {}
        for composite in self._patterns.composites:
            if composite.operator in without:
                continue
            heads = self._head_types(composite)
            for step in reversed(self._steps.steps):
                if step.type not in heads or step.index in self._taken:
                    continue
                if (_name(step), composite.operator) in self._apart:
                    continue
                group = self._composite(composite, step)
                if group is not None:
                    found[step.index] = (composite.operator, group)
                    self._taken.update(group)
        return found

    def _composite(self, composite: Composite, step: Step) -> tuple[int, ...] | None:
        for form in composite.forms:
            for _, matched in self._match(form, step.outputs[0], {}):
                group = tuple(sorted(set(matched)))
                if len(group) > 1 and self._is_closed(group) and self._holds(composite, group):
                    return group
        return None

    def _holds(self, composite: Composite, group: tuple[int, ...]) -> bool:
        if composite.condition == "shuffles":
            return self._steps.shuffles([self._steps.steps[i] for i in group])
        return True

    def _is_closed(self, group: tuple[int, ...]) -> bool:
        """Whether only the last step's output is seen from outside, and no step is taken."""
        inside = set(group)
        if inside & self._taken:
            return False
        for i in group[:-1]:
            for tensor in self._steps.steps[i].outputs:
                if tensor in self._steps.kept:
                    return False
                if not inside.issuperset(self._steps.readers.get(tensor, ())):
                    return False
        return True

    def _head_types(self, composite: Composite) -> set[str]:
        """Types of the ops that a composite can end with."""
        known = self._patterns
        found: set[str] = set()
        todo, seen = list(composite.forms), set[str]()
        while todo:
            form = todo.pop()
            if not isinstance(form, Call) or form.name in seen:
                continue
            seen.add(form.name)
            todo += known.forms.get(form.name, ())
            found |= known.arithmetic.get(form.name, frozenset())
            found |= known.arithmetic.get(_INVERSE.get(form.name, ""), frozenset())
            found |= {
                op_type
                for op_type, lines in known.operators.items()
                if any(operator == form.name for operator, _ in lines)
            }
            found.add(form.name)
        return found

    # --- expressions -----------------------------------------------------------------------------

    def _match(self, form: Expression, tensor: str, env: _Env) -> Iterator[_Match]:
        """All ways in which a tensor is what an expression says."""
        match form:
            case Variable(name):
                if name in env:
                    if env[name] == tensor:
                        yield env, ()
                elif not self._steps.graph.is_constant(tensor):
                    yield {**env, name: tensor}, ()
            case Number(value):
                if _is_near(self._steps.number(tensor), value):
                    yield env, ()
            case Any_(vector):
                fits = self._steps.is_vector if vector else self._steps.graph.is_constant
                if fits(tensor):
                    yield env, ()
            case Call():
                yield from self._match_call(form, tensor, env)

    def _match_call(self, form: Call, tensor: str, env: _Env) -> Iterator[_Match]:
        for inner in self._patterns.forms.get(form.name, ()):
            for found, matched in self._match(inner, tensor, {}):
                for outer, others in self._match(form.args[0], found["x"], env):
                    yield outer, (*matched, *others)
        place = self._steps.maker.get(tensor)
        if place is None or place in self._taken:
            return
        step = self._steps.steps[place]
        if tensor != step.outputs[0] or not _has(step, form.attributes):
            return
        for args, tensors in self._readings(form, step):
            pairs = sorted(zip(args, tensors, strict=True), key=_quickest_first)
            yield from self._match_all(pairs, env, (place,))

    def _readings(
        self, form: Call, step: Step
    ) -> Iterator[tuple[Sequence[Expression], Sequence[str]]]:
        """Which arguments stand for which inputs of a step, in every order that is the same."""
        types = self._patterns.arithmetic.get(form.name)
        if form.name == "clip":
            bounds = self._steps.bounds(step)
            if bounds is not None and _are_near(bounds, form.args[1:]):
                yield form.args[:1], step.inputs[:1]
        elif types is not None and len(form.args) == 2:
            yield from self._operands(form, step, types)
        elif (types is not None and step.type in types) or (
            types is None and form.name in (step.type, self._steps.operator(step.index))
        ):
            data = self._steps.data(step)
            if len(form.args) == len(data) == 1:
                yield form.args, data
            elif len(form.args) > 1 and len(step.inputs) >= len(form.args):
                yield form.args, step.inputs[: len(form.args)]

    def _operands(
        self, form: Call, step: Step, types: AbstractSet[str]
    ) -> Iterator[tuple[Sequence[Expression], Sequence[str]]]:
        if len(step.inputs) != 2:
            return
        if step.type in types:
            yield form.args, step.inputs
            if form.name in _COMMUTE:
                yield form.args, step.inputs[::-1]
            return
        inverse = self._patterns.arithmetic.get(_INVERSE.get(form.name, ""), frozenset())
        number = self._steps.number(step.inputs[1])
        if step.type not in inverse or number is None or not isinstance(form.args[1], Number):
            return
        if form.name == "add":
            value = -number
        elif number:
            value = 1 / number
        else:
            return
        if _is_near(value, form.args[1].value):
            yield form.args[:1], step.inputs[:1]

    def _match_all(
        self,
        pairs: Sequence[tuple[Expression, str]],
        env: _Env,
        matched: tuple[int, ...],
    ) -> Iterator[_Match]:
        if not pairs:
            yield env, matched
            return
        for found, more in self._match(*pairs[0], env):
            yield from self._match_all(pairs[1:], found, (*matched, *more))


def _quickest_first(pair: tuple[Expression, str]) -> int:
    """Constants are told at a glance, what is made of other ops is not."""
    return 2 if isinstance(pair[0], Call) else int(isinstance(pair[0], Variable))


def _is_near(found: float | None, value: float) -> bool:
    return found is not None and math.isclose(found, value, rel_tol=_TOLERANCE)


def _are_near(found: Sequence[float], args: Sequence[Expression]) -> bool:
    return all(
        isinstance(arg, Number) and (_is_near(value, arg.value) or value == arg.value)
        for value, arg in zip(found, args, strict=True)
    )


_DEFAULTS = {("HardSigmoid", "alpha"): 0.2, ("HardSigmoid", "beta"): 0.5}


def _has(step: Step, attributes: Sequence[tuple[str, float]]) -> bool:
    return all(
        _is_near(step.attributes.get(name, _DEFAULTS.get((step.type, name))), value)
        for name, value in attributes
    )


# --- nodes ---------------------------------------------------------------------------------------


def _name(step: Step) -> str:
    return f"{step.op.name}:{step.type}" if step.is_extra else step.op.name


def _nodes(steps: Steps, groups: Mapping[int, tuple[str, tuple[int, ...]]]) -> list[Node]:
    handed_on: dict[int, list[str]] = {}
    for noop, place in steps.noops.items():
        handed_on.setdefault(place, []).append(noop)
    inner = set(chain.from_iterable(group[:-1] for _, group in groups.values()))
    order = {op.name: i for i, op in enumerate(steps.graph.ops)} if handed_on else {}
    node_of: dict[int, int] = {}
    nodes: list[Node] = []
    for step in steps.steps:
        if step.index in inner:
            continue
        operator, group = groups.get(
            step.index, (steps.operator(step.index) or step.type, (step.index,))
        )
        for place in group:
            node_of[place] = len(nodes)
        ops = list(dict.fromkeys(steps.steps[place].op.name for place in group))
        if handed_on:
            ops += [noop for place in group for noop in handed_on.get(place, ())]
            ops.sort(key=order.__getitem__)
        first = steps.steps[group[0]]
        nodes.append(
            Node(
                name=_name(step),
                operator=operator,
                ops=tuple(ops),
                inputs=_outer_inputs(steps, group),
                outputs=tuple(
                    tensor
                    for tensor in step.outputs
                    if tensor in steps.readers or tensor in steps.kept
                ),
                attributes=_attributes(steps, operator, group),
                is_known=step.index in groups or steps.operator(step.index) is not None,
                is_kept=any(tensor in steps.kept for tensor in step.outputs),
                steps=len(group),
                parts=_parts(steps, group),
                inside=node_of[first.index - 1] if first.is_extra else None,
            )
        )
    return nodes


def _parts(steps: Steps, group: Sequence[int]) -> tuple[str, ...]:
    """The operators of steps in a row; nothing if they are none, or no row."""
    if len(group) < 2:
        return ()
    for before, place in pairwise(group):
        if steps.data(steps.steps[place]) != list(steps.steps[before].outputs[:1]):
            return ()
    operators = [steps.operator(place) for place in group]
    return tuple(op for op in operators if op is not None) if all(operators) else ()


def _outer_inputs(steps: Steps, group: Sequence[int]) -> tuple[str, ...]:
    inside = {tensor for place in group for tensor in steps.steps[place].outputs}
    read = chain.from_iterable(steps.data(steps.steps[place]) for place in group)
    return tuple(tensor for tensor in dict.fromkeys(read) if tensor not in inside)


def _attributes(steps: Steps, operator: str, group: Sequence[int]) -> dict[str, Any]:
    try:
        return _told(steps, operator, group)
    except (LookupError, TypeError, ValueError):
        return {}  # shapes or attributes of the file that no op of its type can have


def _told(steps: Steps, operator: str, group: Sequence[int]) -> dict[str, Any]:
    if operator in ("fc", "bmm"):
        return _of_fc(steps, steps.steps[group[0]])
    if len(group) > 1:
        return {}
    step = steps.steps[group[0]]
    if operator in steps.patterns.convolutions:
        return _of_convolution(steps, step, operator)
    return _of_pool(step) if operator in ("maxpool", "avgpool") else {}


def _of_fc(steps: Steps, step: Step) -> dict[str, Any]:
    before, after = steps.shape(step.inputs[0]), steps.shape(step.outputs[0])
    found = {}
    if before:
        found["in_channels"] = before[-1]
    if after:
        found["out_channels"] = after[-1]
    return found


def _of_convolution(steps: Steps, step: Step, operator: str) -> dict[str, Any]:
    last = steps.graph.layout == "channels_last"
    data = steps.data(step)
    before = steps.shape(data[0]) if data else None
    after = steps.shape(step.outputs[0])
    weight = steps.shape(step.inputs[1]) if len(step.inputs) > 1 else None
    found: dict[str, Any] = {}
    if "kernel_shape" in step.attributes:
        found["kernel_size"] = list(step.attributes["kernel_shape"])
    elif weight is not None and len(weight) > 2:
        found["kernel_size"] = list(weight[1:-1] if last else weight[2:])
    found["strides"] = _strides(step, len(found.get("kernel_size", (1, 1))))
    if before:
        found["in_channels"] = before[-1 if last else 1]
    if after:
        found["out_channels"] = after[-1 if last else 1]
    groups = groups_of(steps, step)
    if operator == "dwconv" and groups == 1:
        groups = found.get("in_channels", groups)
    found["groups"] = groups
    return found


def _of_pool(step: Step) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "kernel_shape" in step.attributes:
        found["kernel_size"] = list(step.attributes["kernel_shape"])
    elif "filter_height" in step.attributes:
        found["kernel_size"] = [step.attributes["filter_height"], step.attributes["filter_width"]]
    found["strides"] = _strides(step, len(found.get("kernel_size", (1, 1))))
    return found


def _strides(step: Step, dimensions: int) -> list[int]:
    if "strides" in step.attributes:
        return list(step.attributes["strides"])
    if "stride_h" in step.attributes:
        return [step.attributes["stride_h"], step.attributes["stride_w"]]
    return [1] * dimensions
