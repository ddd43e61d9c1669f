"""ONNX's own reference evaluator, made quick enough for models of real size.

The evaluator's pooling and transposed convolution loop over single numbers in Python: seconds for a
transposed convolution of 256 channels. So does its resizing in older versions of onnx. The four
here give the same by a few array operations, one for each element of a kernel, or each axis. They
stand in for the evaluator's own in models in which they are plain: two spatial axes, explicit
padding, no dilation; nearest neighbours by scales, rounded down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

__all__ = ["evaluate"]

Array = npt.NDArray[Any]


def evaluate(model: onnx.ModelProto, feeds: Sequence[Array]) -> list[Array]:
    """Run a model by onnx's reference evaluator, independent of any runtime.

    Args:
        model: The model.
        feeds: One array per input, in their order, batch included.

    Returns:
        Its outputs, in their order.
    """
    nodes: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        nodes.setdefault(node.op_type, []).append(node)
    quick = [
        op for op, is_plain in _QUICK.items() if all(map(is_plain, nodes.get(op.__name__, [])))
    ]
    evaluator = ReferenceEvaluator(model, new_ops=quick)
    with np.errstate(all="ignore"):  # NaN and infinity are values like others here
        outputs = evaluator.run(None, dict(zip(evaluator.input_names, feeds, strict=True)))
    return [np.asarray(output) for output in outputs]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _has_plain_window(node: onnx.NodeProto) -> bool:
    given = _attributes(node)
    return (
        given.get("auto_pad", b"NOTSET") == b"NOTSET"
        and not given.get("ceil_mode")
        and "output_shape" not in given
        and len(given.get("kernel_shape", ())) == 2
        and set(given.get("dilations", [1])) == {1}
        and len(node.output) == 1
    )


def _is_plain_resize(node: onnx.NodeProto) -> bool:
    given = _attributes(node)
    return (
        given.get("mode", b"nearest") == b"nearest"
        and given.get("coordinate_transformation_mode") == b"asymmetric"
        and given.get("nearest_mode") == b"floor"
        and not given.get("axes")
        and len(node.input) == 3  # scales, not sizes
    )


def _positions(
    kernel: Sequence[int], strides: Sequence[int], sizes: Sequence[int]
) -> Iterator[tuple[int, int, Any]]:
    """For each element of the kernel its place, and the index of the rows and columns it meets."""
    for i, j in np.ndindex(*kernel):
        rows, columns = (
            slice(start, start + (size - 1) * stride + 1, stride)
            for start, size, stride in zip((i, j), sizes, strides, strict=True)
        )
        yield i, j, (..., rows, columns)


def _pool(
    x: Array,
    combine: Callable[[Array, Array], Array],
    fill: float,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
) -> Array:
    spatial = zip(pads[:2], pads[2:], strict=True)
    padded = np.pad(x, [(0, 0), (0, 0), *spatial], constant_values=fill)
    sizes = [
        (size - k) // stride + 1
        for size, k, stride in zip(padded.shape[2:], kernel, strides, strict=True)
    ]
    result: Array = np.full((*x.shape[:2], *sizes), fill, dtype=x.dtype)
    for _, _, met in _positions(kernel, strides, sizes):
        result = combine(result, padded[met])
    return result


class MaxPool(OpRun):  # type: ignore[misc]
    op_domain: ClassVar[str] = ""

    def _run(self, x: Array, **given: Any) -> tuple[Array]:
        return (_pool(x, np.maximum, -np.inf, *_window(given)),)


class AveragePool(OpRun):  # type: ignore[misc]
    op_domain: ClassVar[str] = ""

    def _run(self, x: Array, **given: Any) -> tuple[Array]:
        kernel, strides, pads = _window(given)
        total = _pool(x, np.add, 0.0, kernel, strides, pads)
        if given.get("count_include_pad"):
            return (total / x.dtype.type(np.prod(kernel)),)
        return (total / _pool(np.ones_like(x), np.add, 0.0, kernel, strides, pads),)


class ConvTranspose(OpRun):  # type: ignore[misc]
    op_domain: ClassVar[str] = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **given: Any) -> tuple[Array]:
        kernel, strides, (top, left, bottom, right) = _window(given | {"kernel_shape": w.shape[2:]})
        appended = given.get("output_padding") or [0, 0]
        batch, channels, *sizes = x.shape
        groups = given.get("group") or 1
        full = [
            (size - 1) * stride + k + more
            for size, stride, k, more in zip(sizes, strides, kernel, appended, strict=True)
        ]
        flat = x.reshape(batch, groups, channels // groups, -1)
        weights = w.reshape(groups, channels // groups, *w.shape[1:])
        result = np.zeros((batch, groups * w.shape[1], *full), dtype=x.dtype)
        for i, j, met in _positions(kernel, strides, sizes):
            share = weights[:, :, :, i, j].swapaxes(1, 2) @ flat
            result[met] += share.reshape(batch, -1, *sizes)
        if b is not None:
            result += b[:, np.newaxis, np.newaxis]
        return (result[:, :, top : full[0] - bottom, left : full[1] - right],)


class Resize(OpRun):  # type: ignore[misc]
    op_domain: ClassVar[str] = ""

    def _run(self, x: Array, _roi: Array | None, scales: Array, **_: Any) -> tuple[Array]:
        for axis, scale in enumerate(scales.tolist()):
            size = int(x.shape[axis] * scale)
            nearest = np.floor(np.arange(size) / scale).astype(np.int64)
            x = np.take(x, np.minimum(nearest, x.shape[axis] - 1), axis)
        return (x,)


_QUICK = {
    MaxPool: _has_plain_window,
    AveragePool: _has_plain_window,
    ConvTranspose: _has_plain_window,
    Resize: _is_plain_resize,
}


def _window(given: dict[str, Any]) -> tuple[list[int], list[int], list[int]]:
    return (
        list(given["kernel_shape"]),
        list(given.get("strides") or [1, 1]),
        list(given.get("pads") or [0, 0, 0, 0]),
    )
