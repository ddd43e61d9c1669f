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

__all__ = ["IMPLEMENTS", "Framework", "get_framework", "layout_of", "suffix_of"]

Array = npt.NDArray[np.float32]

IMPLEMENTS = ("tensorflow", "torch", "onnx")


class Framework(Protocol):
    """What a framework can do for test cases. Models and layers are the framework's own."""

    def seed_weights(self, seed: int) -> None:
        """Make the weights of the models built from here on reproducible."""

    def chain_model(self, operators: Sequence[BaseOperator]) -> tuple[Any, list[list[int]]]:
        """Build a model in which each operator takes what the one before it gives.

        The first operator takes one graph input, or two of the same shape. A later operator with
        two inputs takes the tensor that flows and a graph input of its own of the same shape. Where
        an operator gives several tensors the first flows on; the others are outputs of the model.
        Inputs are named ``input_1``, ``input_2``, … in that order.

        Returns:
            The model, and the shapes of its inputs without the batch dimension.
        """

    def save_model(
        self, model: Any, path: Path, shapes: Sequence[Sequence[int]]
    ) -> Sequence[Array]:
        """Write a model file (or folder) that ``run_model`` and the backends read.

        Args:
            model: What ``chain_model`` or a test case's ``_model_…`` returned.
            path: Where to; its parent exists. A framework with a suffix expects it in the path.
            shapes: Shapes of the inputs without the batch dimension.

        Returns:
            What the model itself, not the file, computes on ``reference_inputs(shapes)``.
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
