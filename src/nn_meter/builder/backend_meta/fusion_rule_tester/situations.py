"""Where a block stands: alone or inside a model, and where a second operand comes from.

Whether a runtime fuses two ops depends on what is around them (ONNX Runtime fuses residual sums
only inside its blocked layout), so graphs are asked for in several situations:

* ``alone``: the guide's test case; a second operand is a graph input;
* ``alone/conv``: the second operand is another convolution's output;
* ``alone/own``: the second operand is what the block itself starts from, as in a residual;
* ``context``, ``context/conv``, ``context/own``: the same with a convolution and a pool before the
  block, and a pool behind;
* ``context/passed``: the second operand is what a pool before the block makes of a convolution's
  output, so that it lies as a convolution's only if the pool's does;
* ``context/again``: the same, and it is read again behind the block: nothing can be added to it in
  place.

In each there are models of the block and of every shorter run of its ops. What is before the block
stands before every run that starts with its first op, and what is behind it behind every run that
ends with its last: cut at an edge, each half keeps its neighbours, so that an op that fuses with
what is around the block is not taken for one that fuses inside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import (
    Chain,
    ChainPlan,
    make_operators,
    plan_chain,
)
from nn_meter.builder.nn_modules.frameworks import layout_of
from nn_meter.errors import OperatorError

__all__ = ["ALONE", "BEFORE", "BEHIND", "Plan", "operand_name", "part_name", "plan"]

ALONE = "alone"
_CONTEXT = "context"
_KEEPS_SHAPE = {"PADDING": "same", "STRIDES": 1, "POOL_STRIDES": 1}
_KERNEL_SIZE = 3  # of what is around the block: with 1 a pool would be no pool
_OPS_BEFORE = ("conv", "avgpool")
_OPS_BEHIND = ("avgpool",)
_PASSED, _AGAIN = "/passed", "/again"
_OPS_BEFORE_OPERAND = ("conv", "maxpool", "maxpool")
_EARLIER = 2  # of them the operand is what the second pool reads
_READS_AGAIN = "add"
_OPS_BEHIND_AGAIN = ("avgpool", _READS_AGAIN)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A chain that can be built, and the situations that it is asked in besides ``alone``.

    Attributes:
        alone: The chain as the guide has it.
        situations: Situation -> name of a model -> what it is.
    """

    alone: ChainPlan
    situations: Mapping[str, Mapping[str, Chain]]

    def to_json(self) -> dict[str, Any]:
        """As plain values, from a worker process."""
        return {
            "block": self.alone.block.to_json(),
            "shapes": [list(shape) for shape in self.alone.shapes],
            "situations": {
                situation: {name: chain.to_json() for name, chain in models.items()}
                for situation, models in self.situations.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read ``to_json`` back."""
        return cls(
            alone=ChainPlan(
                block=Chain.from_json(data["block"]),
                shapes=tuple(tuple(shape) for shape in data["shapes"]),
            ),
            situations={
                situation: {name: Chain.from_json(chain) for name, chain in models.items()}
                for situation, models in data["situations"].items()
            },
        )


def part_name(first: int, end: int) -> str:
    """Name of the model of the ops from ``first`` to before ``end``."""
    return f"{first}-{end}"


BEFORE, BEHIND = "before", "behind"
"""Names of the models of what is before the block, and behind it, alone."""


def operand_name(position: int) -> str:
    """Name of the model of an op's second operand alone."""
    return f"operand-{position}"


def plan(ops: Sequence[str], config: Mapping[str, Any]) -> Plan:
    """Plan a chain in all situations that its shapes allow.

    Raises:
        OddSizeError: An op would have to halve an odd size.
        OperatorError: The chain cannot be built alone; says why.
    """
    alone = plan_chain(ops, config)
    return Plan(alone=alone, situations=_situations(alone))


def _situations(alone: ChainPlan) -> dict[str, dict[str, Chain]]:
    two = [
        position
        for position, operator in enumerate(make_operators(alone.block))
        if operator.get_is_two_inputs()
    ]
    found: dict[str, dict[str, Chain]] = {}
    blocks = {"": alone}
    if two:
        found_operands = {"/conv": _with_convs(alone, two), "/own": _with_own_input(alone, two)}
        blocks |= {name: block for name, block in found_operands.items() if block is not None}
    for name, block in blocks.items():
        if name:
            found[ALONE + name] = _models(block, context=False)
        if all(len(shape) == 3 for shape in [*block.shapes, block.block.output_shape()]):
            found[_CONTEXT + name] = _models(block, context=True)
    if two == [1] and len(alone.block.ops) == 2:
        found |= _with_earlier_operand(alone, two)
    return found


def _with_convs(alone: ChainPlan, two: Sequence[int]) -> ChainPlan | None:
    """The block with other convolutions' outputs as second operands."""
    if any(len(alone.shapes[position]) != 3 for position in two):
        return None
    operands: list[Chain | int | None] = [None] * len(alone.block.ops)
    for position in two:
        shape = alone.shapes[position]
        operands[position] = replace(
            alone.block,
            ops=("conv",),
            input_shape=shape,
            config={**alone.block.config, **_KEEPS_SHAPE, "COUT": _channels(alone.block, shape)},
        )
    return replace(alone, block=replace(alone.block, operands=tuple(operands)))


def _with_own_input(alone: ChainPlan, two: Sequence[int]) -> ChainPlan | None:
    """The block with its own input as second operand, with as many channels all through."""
    start = alone.block.input_shape
    keeps = {"COUT": _channels(alone.block, start)}
    block = replace(
        alone.block,
        overrides=(keeps,) * len(alone.block.ops),
        operands=tuple(0 if i in two else None for i in range(len(alone.block.ops))),
    )
    try:
        shapes = block.shapes()
    except OperatorError:
        return None  # it cannot be built with so many channels
    if any(shapes[position] != start for position in two):
        return None
    return ChainPlan(block=block, shapes=tuple(shapes[:-1]))


def _with_earlier_operand(alone: ChainPlan, two: Sequence[int]) -> dict[str, dict[str, Chain]]:
    """A pair with a second operand that is there before it: read there only, or behind it again.

    (Of more ops the parts that do not end the block would not have it read again.)
    """
    plan = _with_own_input(alone, two)
    if plan is None or len(plan.block.input_shape) != 3:
        return {}
    block = plan.block
    if list(block.output_shape()) != list(block.input_shape):
        return {}  # it could not be added to the operand
    found = {}
    for name, behind in ((_PASSED, _OPS_BEHIND), (_AGAIN, _OPS_BEHIND_AGAIN)):
        models = {
            BEFORE: _between(_bare(block), ahead=_OPS_BEFORE_OPERAND),
            BEHIND: _between(_bare(block), after=behind),
        }
        for first, end in ((0, 1), (1, 2), (0, 2)):
            models[part_name(first, end)] = _between(
                _part(plan, first, end),
                ahead=() if first else _OPS_BEFORE_OPERAND,
                after=behind if end == len(block.ops) else (),
            )
        found[_CONTEXT + name] = models
    return found


def _between(part: Chain, *, ahead: Sequence[str] = (), after: Sequence[str] = ()) -> Chain:
    """Some of the ops with what is before the block, which is an operand too, or behind it."""
    operand = _EARLIER if ahead else None
    operators = make_operators(part) if part.ops else []
    own = [operand if operator.get_is_two_inputs() else None for operator in operators]
    keys = {**_KEEPS_SHAPE, "KERNEL_SIZE": _KERNEL_SIZE, "COUT": _channels(part, part.input_shape)}
    return replace(
        part,
        ops=(*ahead, *part.ops, *after),
        overrides=(
            *[keys] * len(ahead),
            *(part.overrides or ({},) * len(part.ops)),
            *[keys] * len(after),
        ),
        operands=(
            *[None] * len(ahead),
            *own,
            *(operand if op == _READS_AGAIN else None for op in after),
        ),
    )


def _channels(chain: Chain, shape: Sequence[int]) -> int:
    last = layout_of(chain.implement) == "channels_last" or len(shape) == 1
    return shape[-1] if last else shape[0]


def _models(plan: ChainPlan, *, context: bool) -> dict[str, Chain]:
    n = len(plan.block.ops)
    found: dict[str, Chain] = {}
    if context:
        ends = (plan.block.input_shape, tuple(plan.block.output_shape()))
        before, behind = (replace(_bare(plan.block), input_shape=shape) for shape in ends)
        found = {BEFORE: _inside(before, before=True), BEHIND: _inside(behind, behind=True)}
    for first in range(n):
        for end in range(first + 1, n + 1):
            part = _part(plan, first, end)
            found[part_name(first, end)] = (
                _inside(part, before=first == 0, behind=end == n) if context else part
            )
    for position, operand in enumerate(plan.block.operands):
        if isinstance(operand, Chain):
            found[operand_name(position)] = operand
    return found


def _bare(chain: Chain) -> Chain:
    """The chain without its ops."""
    return replace(chain, ops=(), overrides=(), operands=())


def _part(plan: ChainPlan, first: int, end: int) -> Chain:
    """Some of the ops; an operand that comes from before them is a graph input."""
    block = plan.block
    operands: list[Chain | int | None] = [
        (operand - first if operand >= first else None) if isinstance(operand, int) else operand
        for operand in block.operands[first:end]
    ]
    return replace(
        block,
        ops=block.ops[first:end],
        input_shape=plan.shapes[first],
        overrides=block.overrides[first:end],
        operands=tuple(operands),
    )


def _inside(part: Chain, *, before: bool = False, behind: bool = False) -> Chain:
    """Some of the ops with what is before the block, or behind it."""
    n = len(part.ops)
    ahead = _OPS_BEFORE if before else ()
    after = _OPS_BEHIND if behind else ()
    operands = [
        operand + len(ahead) if isinstance(operand, int) else operand
        for operand in part.operands or (None,) * n
    ]
    own = part.overrides or ({},) * n
    channels = _channels(part, part.input_shape)
    keys = {**_KEEPS_SHAPE, "KERNEL_SIZE": _KERNEL_SIZE, "COUT": channels}
    return replace(
        part,
        ops=(*ahead, *part.ops, *after),
        overrides=(*[keys] * len(ahead), *own, *[keys] * len(after)),
        operands=(*[None] * len(ahead), *operands, *[None] * len(after)),
    )
