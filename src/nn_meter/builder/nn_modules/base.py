"""The contract of an operator, as the guide has it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nn_meter.errors import ShapeError

__all__ = ["BaseOperator", "input_shapes"]


class BaseOperator:
    """One operator of a test case. Derive from it to add your own.

    Args:
        input_shape: Shape of the input tensor without the batch dimension: ``[H, W, C]`` for
            TensorFlow, ``[C, H, W]`` for torch and onnx, ``[N]`` for a 1-D tensor. An operator with
            two inputs gets the shape of one of them.
        config: All keys of ``ruletest_config.yaml``, those of the user's own included.

    Attributes:
        input_shape: As given, a list of its own.
        config: As given, a plain dict of its own.
    """

    elementwise: ClassVar[bool] = False
    """Whether a value of the output depends on that value of the input (or inputs) alone, and on
    constants: then what a kernel saves that it fuses into is a pass over the tensor, and not its
    arithmetic. Of an operator that does not say, it is taken that it is otherwise."""

    implement: ClassVar[str] = ""
    """The framework of a built-in operator. A user's operator is told by ``IMPLEMENT``."""

    def __init__(self, input_shape: Sequence[Any], config: Mapping[str, Any] | None = None) -> None:
        self.input_shape: list[Any] = copy.deepcopy(list(input_shape))
        self.config: dict[str, Any] = copy.deepcopy(dict(config or {}))

    def get_model(self) -> Any:
        """Return what computes the operator.

        Returns:
            TensorFlow: a Keras layer or a function of tensors. torch: a module or a function of
            tensors. onnx: a function ``(graph, inputs)`` that adds nodes to a
            ``nn_modules.onnx.models.Graph``. An operator with two inputs gets a list of two.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define get_model")

    def get_output_shape(self) -> list[Any]:
        """Return the shape of the output without the batch dimension, by default the input's.

        An operator with several outputs (split) returns the shape of the first.
        """
        return self.input_shape

    def get_is_two_inputs(self) -> bool:
        """Tell whether the operator takes two tensors, by default not."""
        return False

    def test_operator(self) -> None:
        """Build the operator alone, run it on random input, and compare shapes.

        Raises:
            ShapeError: The output has another shape than ``get_output_shape`` says.
            OperatorError: The operator cannot be built or run; the reason is chained.
        """
        from nn_meter.builder.nn_modules.frameworks import get_framework

        framework = get_framework(self.implement or self.config.get("IMPLEMENT", "tensorflow"))
        expected = [int(size) for size in self.get_output_shape()]
        found = framework.output_shape(self)
        if found != expected:
            raise ShapeError(
                f"{type(self).__name__} on {self.input_shape}: get_output_shape says {expected}, "
                f"but the model's output has the shape {found}"
            )


def input_shapes(operator: BaseOperator) -> list[list[int]]:
    """The shape of each of an operator's inputs, without the batch dimension.

    An operator with two inputs may have been given the shape of one, which both then have, or a
    list of two.
    """
    given = getattr(operator, "operand_shapes", operator.input_shape)
    if given and isinstance(given[0], list | tuple):
        return [[int(size) for size in shape] for shape in given]
    count = 2 if operator.get_is_two_inputs() else 1
    return [[int(size) for size in given] for _ in range(count)]
