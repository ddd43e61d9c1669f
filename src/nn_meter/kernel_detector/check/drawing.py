"""Weights and inputs drawn at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nn_meter.errors import ModelRejectedError
from nn_meter.kernel_detector.graph import Graph

__all__ = ["FACTOR", "OFFSET", "SPREAD", "Array", "Drawing", "is_weight"]

Array = npt.NDArray[Any]

SPREAD, FACTOR, OFFSET = "spread", "factor", "offset"
"""How a weight is drawn: about zero, by how much it sums up; about one; about zero."""

_FLOATS = frozenset({"float16", "float32", "float64"})


def is_weight(value: Array) -> bool:
    """Whether a constant can be a weight: a single number may be a bound or an exponent."""
    return value.size > 1 and value.dtype.name in _FLOATS


class Drawing:
    """Draws weights and inputs.

    Args:
        seed: What they are drawn with.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rng = np.random.default_rng(seed)

    def like(self, value: Array, how: str, fan_in: int) -> Array:
        """Random values of the same shape that neither blow up what they meet nor silence it.

        Args:
            value: A weight.
            how: ``SPREAD``, ``FACTOR`` or ``OFFSET``.
            fan_in: How many of a ``SPREAD`` weight's values are summed up to one.
        """
        if how == FACTOR:
            return self._rng.uniform(0.5, 1.5, value.shape).astype(value.dtype)
        if how == OFFSET:
            return self._rng.uniform(-0.5, 0.5, value.shape).astype(value.dtype)
        drawn = self._rng.standard_normal(value.shape, dtype=np.float32)
        drawn *= np.float32(math.sqrt(2 / fan_in))
        return drawn.astype(value.dtype, copy=False)

    def input(self, graph: Graph, name: str, shape: Sequence[int] | None) -> Array:
        """An input of a model; inputs of one shape are equal.

        Raises:
            ModelRejectedError: Its shape is open.
        """
        sizes = shape or graph.shape(name)
        if sizes is None or any(size < 1 for size in sizes):
            raise ModelRejectedError(f"{graph.name}: input {name} has no fixed shape; give --shape")
        rng = np.random.default_rng(self._seed)
        dtype = np.dtype(graph.tensors[name].dtype or "float32")
        if dtype.kind == "f":
            return rng.standard_normal(tuple(sizes)).astype(dtype)
        return rng.integers(0, 2, tuple(sizes)).astype(dtype)
