"""Which pairs of operators can be built, and in which shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nn_meter import registry
from nn_meter.builder.nn_modules.base import BaseOperator
from nn_meter.builder.nn_modules.frameworks import layout_of
from nn_meter.errors import NNMeterError, OddSizeError, OperatorError, ShapeError

__all__ = ["Chain", "PairPlan", "make_operators", "model_config", "plan_pair"]

_LARGEST = 2**27  # values in one tensor: 0.5 GB of float32

# Keys that no model depends on: changing them builds nothing anew.
_NOT_FOR_MODELS = frozenset(
    {
        "BASIC_TESTCASES",
        "DETAIL",
        "EPS_ALPHA",
        "EVIDENCE",
        "LAYERS_1D",
        "MODEL_DIR",
        "OTHER_TESTCASES",
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
    """

    implement: str
    ops: tuple[str, ...]
    input_shape: tuple[int, ...]
    config: Mapping[str, Any]

    def output_shape(self) -> list[int]:
        """Shape of what the last operator gives, by its own word."""
        return list(_walk(self.ops, self.input_shape, self.config)[-1])

    def to_json(self) -> dict[str, Any]:
        """As plain values, for a worker process."""
        return {
            "implement": self.implement,
            "ops": list(self.ops),
            "input_shape": list(self.input_shape),
            "config": dict(self.config),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Chain:
        """Read ``to_json`` back."""
        return cls(
            implement=data["implement"],
            ops=tuple(data["ops"]),
            input_shape=tuple(data["input_shape"]),
            config=data["config"],
        )


@dataclass(frozen=True, kw_only=True)
class PairPlan:
    """A pair that can be built: the shape that reaches each op."""

    block: Chain
    second_input: tuple[int, ...]

    def chains(self, alias1: str, alias2: str) -> dict[str, Chain]:
        """The three models, under the guide's names."""
        op1, op2 = self.block.ops
        shared: dict[str, Any] = {"implement": self.block.implement, "config": self.block.config}
        return {
            alias1: Chain(ops=(op1,), input_shape=self.block.input_shape, **shared),
            alias2: Chain(ops=(op2,), input_shape=self.second_input, **shared),
            "block": self.block,
        }


def plan_pair(op1: str, op2: str, config: Mapping[str, Any]) -> PairPlan:
    """Find the shapes of a pair, op by op.

    The input is 1-D if the first op is in LAYERS_1D; if only the second is, a 1-D input is tried
    first, then a 3-D one from which the first op must make a 1-D tensor.

    Raises:
        OddSizeError: An op would have to halve an odd size.
        OperatorError: The pair cannot be built; says why.
    """
    one_d: tuple[int, ...] = (config["SHAPE_1D"],)
    three_d = _three_d(config)
    layers_1d = config.get("LAYERS_1D") or ()
    if op1 in layers_1d:
        tries = [one_d]
    elif op2 in layers_1d:
        tries = [one_d, three_d]
    else:
        tries = [three_d]
    reasons: list[OperatorError] = []
    for shape in tries:
        try:
            middle = _walk((op1, op2), shape, config)[1]
            if op2 in layers_1d and shape is three_d and len(middle) != 1:
                raise ShapeError(
                    f"{op2} takes a 1-D tensor (LAYERS_1D), but {op1} gives {list(middle)}"
                )
        except OperatorError as exc:
            reasons.append(exc)
            continue
        block = Chain(
            implement=config["IMPLEMENT"],
            ops=(op1, op2),
            input_shape=shape,
            config=model_config(config),
        )
        return PairPlan(block=block, second_input=tuple(middle))
    odd = next((reason for reason in reasons if isinstance(reason, OddSizeError)), None)
    raise odd or reasons[-1]


def model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that models depend on."""
    return {key: config[key] for key in config if key not in _NOT_FOR_MODELS}


def _three_d(config: Mapping[str, Any]) -> tuple[int, ...]:
    spatial, channels = (config["HW"], config["HW"]), (config["CIN"],)
    last = layout_of(config["IMPLEMENT"]) == "channels_last"
    return spatial + channels if last else channels + spatial


def _walk(
    ops: Sequence[str], shape: Sequence[int], config: Mapping[str, Any]
) -> list[tuple[int, ...]]:
    """The shape before each op, and after the last."""
    return [tuple(shape), *(after for _, after in _flow(ops, shape, config))]


def make_operators(
    ops: Sequence[str], shape: Sequence[int], config: Mapping[str, Any]
) -> list[BaseOperator]:
    """Make the operators of a chain, each for the shape that the one before it gives.

    Raises:
        OperatorError: One cannot be made for its shape, or does not say what comes out.
    """
    return [operator for operator, _ in _flow(ops, shape, config)]


def _flow(
    ops: Sequence[str], shape: Sequence[int], config: Mapping[str, Any]
) -> list[tuple[BaseOperator, tuple[int, ...]]]:
    """The operators of a chain, each with the shape that flows on from it."""
    found: list[tuple[BaseOperator, tuple[int, ...]]] = []
    flowing = list(shape)
    for name in ops:
        _check_size(name, flowing)
        cls = registry.load(registry.find("operator", name, config["IMPLEMENT"]))
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
    _check_size(ops[-1], flowing)
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
