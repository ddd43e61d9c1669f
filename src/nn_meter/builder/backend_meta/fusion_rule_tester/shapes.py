"""Which chains of operators can be built, and in which shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nn_meter import registry
from nn_meter.builder.nn_modules.base import BaseOperator
from nn_meter.builder.nn_modules.frameworks import layout_of
from nn_meter.errors import NNMeterError, OddSizeError, OperatorError, ShapeError

__all__ = [
    "INPUT_SHAPE",
    "Chain",
    "ChainPlan",
    "Operand",
    "make_operators",
    "model_config",
    "plan_chain",
]

INPUT_SHAPE = "INPUT_SHAPE"
"""A key that gives the shape of the first input, in the layout of the models, instead of HW, CIN
and SHAPE_1D."""

_LARGEST = 2**27  # values in one tensor: 0.5 GB of float32

# Keys that no model depends on: changing them builds nothing anew.
_NOT_FOR_MODELS = frozenset(
    {
        "BASIC_TESTCASES",
        "CONFIDENCE",
        "DETAIL",
        "EPS_ALPHA",
        "EVIDENCE",
        "LAYERS_1D",
        "MODEL_DIR",
        "OTHER_TESTCASES",
        "TIME_BUDGET",
    }
)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A model of operators in a row: what it takes to build it, anywhere.

    Attributes:
        implement: The framework.
        ops: Names of the operators.
        input_shape: Shape that reaches the first, without the batch dimension.
        config: The keys that models depend on.
        overrides: For each operator the keys that differ for it; empty: for none.
        operands: For each operator where its second operand comes from, if it takes two: None: a
            graph input; a chain: what that gives, on a graph input of its own; a number: the tensor
            that reaches the operator of that position. Empty: graph inputs.
        replicas: How often the model holds all this, each time with graph inputs of its own.
    """

    implement: str
    ops: tuple[str, ...]
    input_shape: tuple[int, ...]
    config: Mapping[str, Any]
    overrides: tuple[Mapping[str, Any], ...] = ()
    operands: tuple[Operand, ...] = ()
    replicas: int = 1

    def configs(self) -> list[Mapping[str, Any]]:
        """The keys of each operator."""
        return [{**self.config, **own} for own in self.overrides or ({},) * len(self.ops)]

    def output_shape(self) -> list[int]:
        """Shape of what the last operator gives, by its own word."""
        return list(self.shapes()[-1])

    def shapes(self) -> list[tuple[int, ...]]:
        """The shape before each op, and after the last."""
        return [self.input_shape, *(after for _, after in _flow(self))]

    def to_json(self) -> dict[str, Any]:
        """As plain values, for a worker process."""
        data: dict[str, Any] = {
            "implement": self.implement,
            "ops": list(self.ops),
            "input_shape": list(self.input_shape),
            "config": dict(self.config),
        }
        if any(self.overrides):
            data["overrides"] = [dict(own) for own in self.overrides]
        if any(operand is not None for operand in self.operands):
            data["operands"] = [
                operand.to_json() if isinstance(operand, Chain) else operand
                for operand in self.operands
            ]
        if self.replicas > 1:
            data["replicas"] = self.replicas
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Chain:
        """Read ``to_json`` back."""
        return cls(
            implement=data["implement"],
            ops=tuple(data["ops"]),
            input_shape=tuple(data["input_shape"]),
            config=data["config"],
            overrides=tuple(data.get("overrides", ())),
            operands=tuple(
                cls.from_json(operand) if isinstance(operand, Mapping) else operand
                for operand in data.get("operands", ())
            ),
            replicas=data.get("replicas", 1),
        )


Operand = Chain | int | None


@dataclass(frozen=True, kw_only=True)
class ChainPlan:
    """A chain that can be built: the shape that reaches each op.

    Attributes:
        block: The whole of it.
        shapes: The shape before each op.
    """

    block: Chain
    shapes: tuple[tuple[int, ...], ...]

    def part(self, first: int, end: int) -> Chain:
        """The ops from ``first`` to before ``end`` alone, in the shape that reaches them here."""
        return replace(self.block, ops=self.block.ops[first:end], input_shape=self.shapes[first])

    def chains(self, aliases: Sequence[str]) -> dict[str, Chain]:
        """The models of a test case: each op alone, shorter chains of three and more, the block.

        Args:
            aliases: A name for each op; a shorter chain has those of its ops, joined by ``_``.
        """
        n = len(self.block.ops)
        found = {
            "_".join(aliases[first : first + length]): self.part(first, first + length)
            for length in range(1, n)
            for first in range(n - length + 1)
        }
        return {**found, "block": self.block}


def plan_chain(ops: Sequence[str], config: Mapping[str, Any]) -> ChainPlan:
    """Find the shapes of a chain, op by op.

    The input is 1-D if the first op is in LAYERS_1D; if only a later one is, a 1-D input is tried
    first, then a 3-D one from which the ops before it must make a 1-D tensor.

    Raises:
        OddSizeError: An op would have to halve an odd size.
        OperatorError: The chain cannot be built; says why.
    """
    one_d: tuple[int, ...] = (config["SHAPE_1D"],)
    three_d = _three_d(config)
    layers_1d = config.get("LAYERS_1D") or ()
    if given := config.get(INPUT_SHAPE):
        tries = [tuple(given)]
    elif ops[0] in layers_1d:
        tries = [one_d]
    elif any(op in layers_1d for op in ops):
        tries = [one_d, three_d]
    else:
        tries = [three_d]
    reasons: list[OperatorError] = []
    for shape in tries:
        block = Chain(
            implement=config["IMPLEMENT"],
            ops=tuple(ops),
            input_shape=shape,
            config=model_config(config),
        )
        try:
            shapes = block.shapes()
            for before, op, found in zip(ops, ops[1:], shapes[1:], strict=False):
                if op in layers_1d and shape is three_d and len(found) != 1:
                    raise ShapeError(
                        f"{op} takes a 1-D tensor (LAYERS_1D), but {before} gives {list(found)}"
                    )
        except OperatorError as exc:
            reasons.append(exc)
            continue
        return ChainPlan(block=block, shapes=tuple(shapes[:-1]))
    odd = next((reason for reason in reasons if isinstance(reason, OddSizeError)), None)
    raise odd or reasons[-1]


def model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that models depend on."""
    return {key: config[key] for key in config if key not in _NOT_FOR_MODELS}


def _three_d(config: Mapping[str, Any]) -> tuple[int, ...]:
    spatial, channels = (config["HW"], config["HW"]), (config["CIN"],)
    last = layout_of(config["IMPLEMENT"]) == "channels_last"
    return spatial + channels if last else channels + spatial


def make_operators(chain: Chain) -> list[BaseOperator]:
    """Make the operators of a chain, each for the shape that the one before it gives.

    Raises:
        OperatorError: One cannot be made for its shape, or does not say what comes out.
    """
    return [operator for operator, _ in _flow(chain)]


def _flow(chain: Chain) -> list[tuple[BaseOperator, tuple[int, ...]]]:
    """The operators of a chain, each with the shape that flows on from it."""
    found: list[tuple[BaseOperator, tuple[int, ...]]] = []
    flowing = list(chain.input_shape)
    for name, config in zip(chain.ops, chain.configs(), strict=True):
        _check_size(name, flowing)
        cls = registry.load(registry.find("operator", name, chain.implement))
        try:
            operator: BaseOperator = cls(flowing, dict(config))
            out = operator.get_output_shape()
            flowing = [int(size) for size in (out[0] if _is_list_of_shapes(out) else out)]
        except NNMeterError:
            raise
        except Exception as exc:
            raise ShapeError(
                f"{name} cannot be made for the shape {flowing}: {type(exc).__name__}: {exc}"
            ) from exc
        found.append((operator, tuple(flowing)))
    _check_size(chain.ops[-1], flowing)
    return found


def _is_list_of_shapes(shape: Sequence[Any]) -> bool:
    return bool(shape) and isinstance(shape[0], list | tuple)


def _check_size(name: str, shape: Sequence[int]) -> None:
    if not shape or min(shape) < 1:
        raise ShapeError(f"the shape {list(shape)} at {name} is empty")
    if math.prod(shape) > _LARGEST:
        raise ShapeError(
            f"the tensor {list(shape)} at {name} has more than {_LARGEST} values; "
            "make HW, CIN, COUT or SHAPE_1D smaller"
        )
