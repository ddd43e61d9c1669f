"""How long it takes to split a model into kernels, and whether that grows with its size alone.

    python benchmarks/split_kernels.py            # 1,000 to 100,000 ops
    python benchmarks/split_kernels.py 5000       # other sizes

Two kinds of models, made up in memory, so that no file is read: blocks of a residual network
(convolution, batch normalization, relu, addition, a hard swish by steps), and the same with a
squeeze and excite in each block. Rules are those that ship for a runtime. The time is that of
``RuleSplitter.split``: recognition, splitting and the kernels; the median of several runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np

from nn_meter.kernel_detector import RuleSplitter
from nn_meter.kernel_detector.graph import Graph, Op, Tensor

SIZES = (1_000, 10_000, 100_000)
LIMITS_S = {1_000: 0.2, 100_000: 20.0}
RULES = ("onnxruntime-1.31", "openvino-2026.4")
IMAGE = (1, 64, 56, 56)
SQUEEZED = (1, 64, 1, 1)


class Model:
    """A model that grows op by op."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.tensors = {"x": Tensor(name="x", shape=IMAGE)}
        for name, value in (("three", 3.0), ("zero", 0.0), ("six", 6.0)):
            array = np.array(value, np.float32)
            self.tensors[name] = Tensor(name=name, shape=(), value=array, is_constant=True)
        for name, shape in (("w", (64, 64, 3, 3)), ("v", (64,))):
            self.tensors[name] = Tensor(name=name, shape=shape, is_constant=True)

    def op(self, op_type: str, *inputs: str, shape: Sequence[int] = IMAGE) -> str:
        number = len(self.ops)
        output = f"t{number}"
        self.tensors[output] = Tensor(name=output, shape=tuple(shape))
        self.ops.append(Op(name=f"n{number}", type=op_type, inputs=inputs, outputs=(output,)))
        return output

    def block(self, x: str, *, squeeze: bool) -> str:
        y = self.op("Conv", x, "w")
        y = self.op("Relu", self.op("BatchNormalization", y, "v", "v", "v", "v"))
        y = self.op("BatchNormalization", self.op("Conv", y, "w"), "v", "v", "v", "v")
        if squeeze:
            gate = self.op("GlobalAveragePool", y, shape=SQUEEZED)
            gate = self.op("Relu", self.op("Conv", gate, "w", shape=SQUEEZED), shape=SQUEEZED)
            gate = self.op("Conv", gate, "w", shape=SQUEEZED)
            y = self.op("Mul", y, self.op("Sigmoid", gate, shape=SQUEEZED))
        y = self.op("Add", y, x)
        clipped = self.op("Clip", self.op("Add", y, "three"), "zero", "six")
        return self.op("Div", self.op("Mul", y, clipped), "six")


def model_of(size: int, *, squeeze: bool) -> Graph:
    """A model of at least so many ops."""
    model, x = Model(), "x"
    while len(model.ops) < size:
        x = model.block(x, squeeze=squeeze)
    return Graph(
        name="made up",
        format="onnx",
        layout="channels_first",
        ops=model.ops,
        inputs=("x",),
        outputs=(x,),
        tensors=model.tensors,
    )


def seconds(size: int, rules: str, *, squeeze: bool) -> tuple[float, int]:
    """The median time of several runs, and how many kernels there are."""
    splitter, taken, kernels = RuleSplitter(rules), [], 0
    for _ in range(max(1, min(7, 20_000 // size))):
        graph = model_of(size, squeeze=squeeze)  # anew, as a graph remembers who reads what
        start = time.perf_counter()
        kernels = len(splitter.split(graph))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), kernels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=int, help="numbers of ops")
    sizes = parser.parse_args().sizes or SIZES
    missed = False
    print(f"{'ops':>8} {'blocks':<10} {'rules':<18} {'kernels':>8} {'time':>10} {'per op':>9}")
    for size in sizes:
        for squeeze in (False, True):
            for rules in RULES:
                taken_s, kernels = seconds(size, rules, squeeze=squeeze)
                late = taken_s > LIMITS_S.get(size, float("inf"))
                missed |= late
                print(
                    f"{size:>8} {'with se' if squeeze else 'residual':<10} {rules:<18} "
                    f"{kernels:>8} {taken_s:>8.3f} s {1e6 * taken_s / size:>6.1f} us"
                    + ("  MISSED" if late else "")
                )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
