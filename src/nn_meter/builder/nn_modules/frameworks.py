"""The contract of a framework, and how one is found.

A framework is a module ``nn_modules/<name>/models.py`` with the functions below: modules satisfy a
Protocol as classes do. It is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from nn_meter.builder.nn_modules.base import BaseOperator
from nn_meter.builder.nn_modules.shapes import Layout
from nn_meter.errors import ConfigError

__all__ = ["IMPLEMENTS", "Framework", "Operand", "get_framework", "layout_of", "suffix_of"]

Array = npt.NDArray[np.float32]

IMPLEMENTS = ("tensorflow", "torch", "onnx")

Operand = BaseOperator | int | None
"""Where the second operand of an operator with two inputs comes from.

``None``: a graph input of its own. An operator with one input, made for the shape of that input:
the (first) tensor that it gives, computed from a graph input of its own. A number k: the tensor
that reaches operator k of the chain, at most that of the operator itself; 0 is the model's first
input.
"""


class Framework(Protocol):
    """What a framework can do for test cases. Models and layers are the framework's own."""

    def seed_weights(self, seed: int) -> None:
        """Make the weights of the models built from here on reproducible."""

    def chain_model(
        self,
        operators: Sequence[BaseOperator],
        operands: Sequence[Operand] | None = None,
        *,
        replicas: int = 1,
    ) -> tuple[Any, list[list[int]]]:
        """Build a model in which each operator takes what the one before it gives.

        The first operator takes a graph input. An operator with two inputs takes the tensor that
        flows and a second one, by default a graph input of its own of the same shape. Where an
        operator gives several tensors the first flows on; the others are outputs of the model.
        Inputs are named ``input_1``, ``input_2``, … in the order in which they are needed.

        Args:
            operators: Each made for the shape that reaches it.
            operands: One for each operator: where its second operand comes from, if it takes two.
                Default: all from graph inputs.
            replicas: How many times the model holds all this side by side, each with inputs of
                its own.

        Returns:
            The model, and the shapes of its inputs without the batch dimension.

        Raises:
            OperatorError: An operand is not there or has another shape, or the model cannot be
                built; says why.
        """

    def save_model(
        self,
        model: Any,
        path: Path,
        shapes: Sequence[Sequence[int]],
        *,
        outputs: bool = True,
    ) -> Sequence[Array]:
        """Write a model file (or folder) that ``run_model`` and the backends read.

        Args:
            model: What ``chain_model`` or a test case's ``_model_…`` returned.
            path: Where to; its parent exists. A framework with a suffix expects it in the path.
            shapes: Shapes of the inputs without the batch dimension.
            outputs: False: the file alone is wanted. Then what it computes is neither told nor
                checked, which saves most of the time that a large convolution takes.

        Returns:
            What the model itself, not the file, computes on ``reference_inputs(shapes)``; nothing
            without ``outputs``.
        """

    def run_model(self, path: Path, feeds: Sequence[Array]) -> list[Array]:
        """Run a saved model in its own framework, on one array per input, batch included."""

    def output_shape(self, operator: BaseOperator) -> list[int]:
        """Build one operator, run it, and return the shape of its (first) output, no batch."""

    def version(self) -> str:
        """Name and version of the framework, e.g. ``torch 2.13.0``."""


def get_framework(implement: str) -> Framework:
    """Import a framework by its name in ``IMPLEMENT``.

    Raises:
        ConfigError: There is none of that name.
        NotInstalledError: It is not installed.
    """
    if implement not in IMPLEMENTS:
        raise ConfigError(f"IMPLEMENT: {implement!r} is unknown; choose {', '.join(IMPLEMENTS)}")
    return cast(Framework, importlib.import_module(f"{__package__}.{implement}.models"))


def suffix_of(implement: str) -> str:
    """Suffix of a model file: a TensorFlow model is a SavedModel folder and has none."""
    return "" if implement == "tensorflow" else ".onnx"


def layout_of(implement: str) -> Layout:
    """Where the channels are in a shape."""
    return "channels_last" if implement == "tensorflow" else "channels_first"
