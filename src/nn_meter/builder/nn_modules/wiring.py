"""How the operators of a chain are joined: the same in every framework.

A framework says how a graph input is added and how an operator is put on tensors; which tensor goes
where, and in which order inputs are added, stands here once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from nn_meter.builder.nn_modules.base import BaseOperator, input_shapes
from nn_meter.builder.nn_modules.frameworks import Operand
from nn_meter.errors import OperatorError, ShapeError

__all__ = ["join"]

Tensor = TypeVar("Tensor")


def join(
    operators: Sequence[BaseOperator],
    operands: Sequence[Operand] | None,
    *,
    graph_input: Callable[[Sequence[int]], Tensor],
    apply: Callable[[BaseOperator, Tensor | list[Tensor]], Sequence[Tensor]],
    replicas: int = 1,
) -> list[Tensor]:
    """Join operators as ``frameworks.Framework.chain_model`` says.

    Args:
        operators: The chain.
        operands: Where second operands come from; None: from graph inputs, all of them.
        graph_input: Adds a graph input of a shape without the batch dimension.
        apply: Puts an operator on one tensor, or on a list of two; gives its outputs.
        replicas: How often, each time with graph inputs of its own.

    Returns:
        The model's outputs, one replica's after the other's: what the last operator gives, then
        all that did not flow on.

    Raises:
        OperatorError: An operand cannot be what ``operands`` says; nothing was added then.
    """
    origins = _checked(operators, operands)
    return [
        tensor
        for _ in range(replicas)
        for tensor in _joined(operators, origins, graph_input, apply)
    ]


def _joined(
    operators: Sequence[BaseOperator],
    origins: Sequence[Operand],
    graph_input: Callable[[Sequence[int]], Tensor],
    apply: Callable[[BaseOperator, Tensor | list[Tensor]], Sequence[Tensor]],
) -> list[Tensor]:
    reaching: list[Tensor] = []
    kept: list[Tensor] = []
    flowing = graph_input(input_shapes(operators[0])[0])
    for operator, origin in zip(operators, origins, strict=True):
        reaching.append(flowing)
        taken: Tensor | list[Tensor] = flowing
        if operator.get_is_two_inputs():
            if origin is None:
                other = graph_input(input_shapes(operator)[1])
            elif isinstance(origin, BaseOperator):
                other, *rest = apply(origin, graph_input(input_shapes(origin)[0]))
                kept += rest
            else:
                other = reaching[origin]
            taken = [flowing, other]
        flowing, *rest = apply(operator, taken)
        kept += rest
    return [flowing, *kept]


def _checked(
    operators: Sequence[BaseOperator], operands: Sequence[Operand] | None
) -> Sequence[Operand]:
    """The origin of each operator's second operand, all of them possible."""
    if operands is None:
        return [None] * len(operators)
    if len(operands) != len(operators):
        raise OperatorError(
            f"operands has {len(operands)} entries for {len(operators)} operators; "
            "it should have one for each, None where there is nothing to say"
        )
    for position, (operator, operand) in enumerate(zip(operators, operands, strict=True)):
        if operand is not None and operator.get_is_two_inputs():
            where = f"operands[{position}], the second operand of {type(operator).__name__},"
            shape, giver = _origin(operators, position, operand, where)
            wanted = input_shapes(operator)[1]
            if shape != wanted:
                raise ShapeError(f"{where} should have the shape {wanted}, but {giver} {shape}")
    return operands


def _origin(
    operators: Sequence[BaseOperator], position: int, operand: BaseOperator | int, where: str
) -> tuple[list[int], str]:
    """The shape that an operand has, and words for where it comes from."""
    if isinstance(operand, BaseOperator):
        name = type(operand).__name__
        if operand.get_is_two_inputs():
            raise OperatorError(
                f"{where} is {name}, which takes two inputs itself; "
                "an operator there should take one"
            )
        given = operand.get_output_shape()
        first = given[0] if given and isinstance(given[0], list | tuple) else given
        return [int(size) for size in first], f"{name} gives"
    if isinstance(operand, bool) or not isinstance(operand, int):
        raise OperatorError(
            f"{where} should be None, an operator or a position in the chain, not {operand!r}"
        )
    if not 0 <= operand <= position:
        raise OperatorError(
            f"{where} is {operand}, but only what reaches the operators 0 to {position} of the "
            "chain is there by then"
        )
    return input_shapes(operators[operand])[0], f"what reaches operator {operand} has"
