"""Reference outputs: how a converted model is checked against the model that it came from.

The framework that makes a model runs it once on fixed inputs and keeps a few values of each output;
whoever converts the model runs the result on the same inputs and compares. Inputs are made by
integer arithmetic, so every process and every version of numpy makes the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TOLERANCE", "compare_outputs", "reference_inputs", "sample_outputs", "tolerance_of"]

Array = npt.NDArray[Any]

_SAMPLES = 64
_KNUTH = 2654435761  # multiplicative hashing, Knuth, TAOCP vol. 3, 6.4
TOLERANCE = 1e-3
"""By how much outputs may differ, as a share of their scale."""

_COARSE = ("float16", "bfloat16")
_COARSE_TOLERANCE = 1e-2


def reference_inputs(shapes: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
    """Make the fixed inputs of a model.

    Args:
        shapes: Shape of each input, without the batch dimension.

    Returns:
        One float32 array for each, shape ``(1, *shape)``, values spread over [-2, 2). No two
        inputs are alike, so that swapped inputs show.
    """
    feeds = []
    for position, shape in enumerate(shapes, start=1):
        index = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) + np.uint64(position * 7919)
        hashed = (index * np.uint64(_KNUTH)) % np.uint64(2**32)
        values = hashed.astype(np.float64) / 2.0**30 - 2.0
        feeds.append(values.astype(np.float32).reshape(1, *shape))
    return feeds


def sample_outputs(outputs: Sequence[Array]) -> list[dict[str, Any]]:
    """Keep of each output its shape, its scale and up to 64 values from all over it.

    Returns:
        JSON-able: ``{"shape", "scale", "not_finite", "values"}`` for each output: scale is the
            largest finite magnitude, not_finite counts NaN and infinity.
    """
    kept = []
    for output in outputs:
        flat = np.asarray(output, dtype=np.float64).ravel()
        finite = np.isfinite(flat)
        kept.append(
            {
                "shape": [int(size) for size in np.shape(output)],
                "scale": float(np.abs(flat[finite]).max(initial=0.0)),
                "not_finite": int(flat.size - finite.sum()),
                "values": [float(value) for value in flat[_indices(flat.size)]],
            }
        )
    return kept


def compare_outputs(
    found: Sequence[dict[str, Any]],
    expected: Sequence[dict[str, Any]],
    tolerance: float = TOLERANCE,
) -> str | None:
    """Compare two samples of outputs.

    Outputs may come in another order: a runtime need not keep it. Each expected one must have a
    counterpart of its shape whose values differ by at most ``tolerance`` of its scale.

    Returns:
        None when they agree, else what differs.
    """
    if len(found) != len(expected):
        return f"it has {len(found)} outputs instead of {len(expected)}"
    left = list(found)
    for number, want in enumerate(expected, start=1):
        candidates = [got for got in left if got["shape"] == want["shape"]]
        if not candidates:
            shapes = ", ".join(str(got["shape"]) for got in left)
            return f"output {number} should have the shape {want['shape']}; there is {shapes}"
        errors = [_error(got, want) for got in candidates]
        best = min(range(len(candidates)), key=lambda i: errors[i])
        if not errors[best] <= tolerance:
            return (
                f"output {number} differs by {errors[best]:.1e} of its scale "
                f"(allowed: {tolerance:.0e})"
            )
        left.remove(candidates[best])
    return None


def tolerance_of(dtype: str) -> float:
    """By how much outputs may differ that a device computed with numbers of a type.

    Args:
        dtype: As an environment has it; that of several devices names them all.
    """
    coarse = any(name.strip() in _COARSE for name in dtype.split(","))
    return _COARSE_TOLERANCE if coarse else TOLERANCE


def _error(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference as a share of the scale.

    NaN stands for NaN, and infinity for infinity; how many there are of them counts, too, so that
    one that the sample does not hold shows. The scale is of all values, and is compared as they
    are.
    """
    if found["not_finite"] != expected["not_finite"]:
        return math.inf
    got, want = (
        np.asarray([sample["scale"], *sample["values"]], dtype=np.float64)
        for sample in (found, expected)
    )
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    difference = np.abs(got[~same] - want[~same])
    if not np.all(np.isfinite(difference)):
        return math.inf
    return float(difference.max(initial=0.0)) / max(float(expected["scale"]), 1e-6)


def _indices(size: int) -> npt.NDArray[np.int64]:
    if size <= _SAMPLES:
        return np.arange(size, dtype=np.int64)
    spread = np.arange(_SAMPLES, dtype=np.uint64) * np.uint64(_KNUTH) % np.uint64(size)
    return np.unique(spread).astype(np.int64)
