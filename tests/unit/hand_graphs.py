"""Graphs built by hand, an op a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nn_meter.kernel_detector.graph import Graph, Op, Tensor

IMAGE = (1, 16, 8, 8)


class Builder:
    """Each call adds an op and gives the name of its output."""

    def __init__(self, format: str = "onnx", layout: str = "channels_first") -> None:
        self.format, self.layout = format, layout
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = {}
        self.inputs: list[str] = []

    def input(self, shape: Sequence[int] = IMAGE) -> str:
        name = f"in{len(self.inputs)}"
        self.inputs.append(name)
        self.tensors[name] = Tensor(name=name, shape=tuple(shape), dtype="float32")
        return name

    def constant(self, value: Any = None, shape: Sequence[int] | None = None) -> str:
        """A constant that holds a value, or one of a shape whose values are not known."""
        name = f"c{len(self.tensors)}"
        array = None if value is None else np.asarray(value, dtype=np.float32)
        if array is not None and isinstance(value, list) and isinstance(value[0], int):
            array = np.asarray(value)
        found = tuple(shape or ()) if array is None else array.shape
        self.tensors[name] = Tensor(name=name, shape=found, value=array, is_constant=True)
        return name

    def op(
        self, type: str, *inputs: str, shape: Sequence[int] | None = None, **attributes: Any
    ) -> str:
        return self.ops_of(type, *inputs, shapes=[shape], **attributes)[0]

    def ops_of(
        self, type: str, *inputs: str, shapes: Sequence[Sequence[int] | None], **attributes: Any
    ) -> list[str]:
        """As ``op``, of several outputs."""
        number = len(self.ops)
        outputs = [f"t{number}_{i}" for i in range(len(shapes))]
        for name, shape in zip(outputs, shapes, strict=True):
            known = tuple(shape) if shape is not None else self.tensors[inputs[0]].shape
            self.tensors[name] = Tensor(name=name, shape=known, dtype="float32")
        self.ops.append(
            Op(
                name=f"op{number}",
                type=type,
                inputs=inputs,
                outputs=tuple(outputs),
                attributes=attributes,
            )
        )
        return outputs

    def conv(self, x: str, kernel: int = 3, channels: int = 16, group: int = 1) -> str:
        shape = self.tensors[x].shape
        assert shape is not None
        weight = self.constant(shape=(channels, shape[1] // group, kernel, kernel))
        after = (shape[0], channels, *shape[2:])
        more = {"group": group} if group > 1 else {}
        return self.op(
            "Conv", x, weight, shape=after, kernel_shape=[kernel, kernel], strides=[1, 1], **more
        )

    def bn(self, x: str) -> str:
        return self.op("BatchNormalization", x, *(self.constant(shape=(16,)) for _ in range(4)))

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def number(self, type: str, x: str, value: float) -> str:
        return self.op(type, x, self.constant(value))

    def graph(self, *outputs: str) -> Graph:
        return Graph(
            name="hand",
            format=self.format,
            layout=self.layout,
            ops=tuple(self.ops),
            inputs=tuple(self.inputs),
            outputs=outputs,
            tensors=self.tensors,
        )


def rules(**obeys: Any) -> Mapping[str, Any]:
    """Rules as a file holds them: ``conv_relu=True``; of a test case ``MON="case1"``."""
    return {
        name if name.isupper() or name[0].isupper() else f"BF_{name}": (
            obey if isinstance(obey, dict) else {"obey": obey}
        )
        for name, obey in obeys.items()
    }
