"""ONNX models: the graph that operators write into, and how a model is made, saved and run."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from nn_meter.builder.nn_modules.base import BaseOperator
from nn_meter.builder.nn_modules.frameworks import Operand
from nn_meter.builder.nn_modules.onnx.evaluator import evaluate
from nn_meter.builder.nn_modules.wiring import join
from nn_meter.errors import OperatorError
from nn_meter.reference import reference_inputs

__all__ = [
    "Graph",
    "chain_model",
    "output_shape",
    "run_model",
    "save_model",
    "seed_weights",
    "version",
]

Array = npt.NDArray[np.float32]

_OPSET = 18
_IR_VERSION = 9
_seed = 0


class Graph:
    """An ONNX graph under construction. A tensor is its name.

    Attributes:
        shapes: Shapes of the inputs so far, without the batch dimension.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(_seed)
        self._count = 0
        self.shapes: list[list[int]] = []

    def input(self, shape: Sequence[int]) -> str:
        """Add a graph input of a shape without the batch dimension, which is 1."""
        self.shapes.append([int(size) for size in shape])
        return f"input_{len(self.shapes)}"

    def op(self, op_type: str, inputs: Sequence[str], n_outputs: int = 1, **attributes: Any) -> Any:
        """Add a node.

        Args:
            op_type: ONNX operator of the default domain, e.g. ``Conv``.
            inputs: The tensors that it takes.
            n_outputs: How many it gives.
            **attributes: Its ONNX attributes.

        Returns:
            The tensor that it gives, or a list of them if there are several.
        """
        self._count += 1
        outputs = [
            f"{op_type.lower()}_{self._count}" + (f"_{i}" if n_outputs > 1 else "")
            for i in range(n_outputs)
        ]
        self._nodes.append(
            helper.make_node(
                op_type, list(inputs), outputs, f"{op_type}_{self._count}", **attributes
            )
        )
        return outputs[0] if n_outputs == 1 else outputs

    def constant(self, value: npt.ArrayLike) -> str:
        """Add an initializer."""
        self._count += 1
        name = f"constant_{self._count}"
        self._initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, *shape: int, fan_in: int | None = None) -> str:
        """Add random weights that keep the scale of the data: deviation ``fan_in ** -0.5``.

        Args:
            *shape: Shape of the tensor.
            fan_in: Terms in the sum that gives one output; default: the product of all axes but
                the first.
        """
        scale = (fan_in or max(1, math.prod(shape[1:]))) ** -0.5
        return self.constant((self._rng.standard_normal(shape) * scale).astype(np.float32))

    def bias(self, *shape: int) -> str:
        """Add small random numbers, none of them 0."""
        signs = self._rng.choice([-1.0, 1.0], shape)
        return self.constant((signs * self._rng.uniform(0.05, 0.5, shape)).astype(np.float32))

    def positive(self, *shape: int) -> str:
        """Add random numbers between 0.5 and 1.5."""
        return self.constant(self._rng.uniform(0.5, 1.5, shape).astype(np.float32))

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        """Finish: a checked model with the given outputs, every shape in it known.

        Raises:
            OperatorError: It is no valid ONNX model; the checker's words are kept.
        """
        graph = helper.make_graph(
            self._nodes,
            "nn_meter",
            [
                helper.make_tensor_value_info(f"input_{i}", TensorProto.FLOAT, [1, *shape])
                for i, shape in enumerate(self.shapes, start=1)
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self._initializers,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
        )
        model.producer_name = "nn-meter"
        try:
            model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
            raise OperatorError(f"the graph is no valid ONNX model: {exc}") from exc
        return model


def seed_weights(seed: int) -> None:
    """Seed the weights of the graphs made from here on, each from the start."""
    global _seed
    _seed = seed


def chain_model(
    operators: Sequence[BaseOperator],
    operands: Sequence[Operand] | None = None,
    *,
    replicas: int = 1,
) -> tuple[onnx.ModelProto, list[list[int]]]:
    """Build a chain of operators; see ``frameworks.Framework.chain_model``."""
    graph = Graph()

    def apply(operator: BaseOperator, inputs: str | list[str]) -> Sequence[str]:
        outputs = operator.get_model()(graph, inputs)
        return outputs if isinstance(outputs, list | tuple) else [outputs]

    outputs = join(operators, operands, graph_input=graph.input, apply=apply, replicas=replicas)
    return graph.model(outputs), graph.shapes


def save_model(
    model: onnx.ModelProto,
    path: Path,
    shapes: Sequence[Sequence[int]],
    *,
    outputs: bool = True,
) -> list[Array]:
    """Write ``path``, an ``.onnx`` file; see ``frameworks.Framework.save_model``."""
    if not isinstance(model, onnx.ModelProto):
        raise OperatorError(f"an onnx model is an onnx.ModelProto, not a {type(model).__name__}")
    expected = evaluate(model, reference_inputs(shapes)) if outputs else []
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        onnx.save(model, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return expected


def run_model(path: Path, feeds: Sequence[Array]) -> list[Array]:
    """Run a model by ONNX's own reference evaluator, independent of any runtime."""
    return evaluate(onnx.load(path), feeds)


def output_shape(operator: BaseOperator) -> list[int]:
    """Shape of an operator's first output, by running the operator alone."""
    model, shapes = chain_model([operator])
    return [int(size) for size in evaluate(model, reference_inputs(shapes))[0].shape[1:]]


def version() -> str:
    """Name and version."""
    return f"onnx {onnx.__version__}"
