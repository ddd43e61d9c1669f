"""Knowing a tensor by what it holds, where names do not tell which tensor it is.

A runtime gives the tensors of an optimized model names of its own, stores them in another layout,
padded with zeros, and rounds in other places. What stays is summed up here, independent of order.
Needs numpy only: it is imported in worker processes of other virtual environments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nn_meter.builder.backends.executed import ExecutedGraph

__all__ = ["Fingerprint", "TracedGraph", "fingerprint", "same_values"]

Fingerprint = tuple[float, ...]

_TOLERANCE = 2e-5
_TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class TracedGraph:
    """What a runtime executes of a model, with what its tensors hold on one set of inputs.

    Attributes:
        graph: What is executed.
        executed: For the tensors of its nodes, the model's inputs included, what they held.
        written: The same for the tensors of the model as it is written, nothing optimized.
    """

    graph: ExecutedGraph
    executed: Mapping[str, Fingerprint]
    written: Mapping[str, Fingerprint]


def fingerprint(values: npt.NDArray[Any]) -> Fingerprint | None:
    """Sum up what a tensor holds, whatever the order of its values and however many zeros.

    Returns:
        How many values it has; the sums of the magnitudes, of the values, of the squares and of
        the signed squares; the largest and the smallest value. None: these say nothing, as it
        holds no numbers, zeros only, or what is not finite.
    """
    flat = np.asarray(values)
    if flat.size == 0 or flat.dtype.kind not in "fiub":
        return None
    flat = flat.reshape(-1).astype(np.float64)
    magnitudes = np.abs(flat)
    squares = float(magnitudes @ magnitudes)
    if not np.isfinite(squares) or not squares:
        return None
    return (
        float(flat.size),
        float(magnitudes.sum()),
        float(flat.sum()),
        squares,
        float(flat @ magnitudes),
        max(float(flat.max()), 0.0),
        min(float(flat.min()), 0.0),
    )


def same_values(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two tensors hold the same values, but for rounding, order and zeros."""
    _, total, _, squares, _, most, least = one
    largest = max(most, -least)
    scales = (total, total, squares, squares, largest, largest)
    return all(
        abs(a - b) <= _TOLERANCE * scale + _TINY
        for a, b, scale in zip(one[1:], other[1:], scales, strict=True)
    )
