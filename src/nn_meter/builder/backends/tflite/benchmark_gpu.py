"""What ``benchmark_model`` tells of the GPU: what became of a delegate, and which kernels ran.

Kernels come in three forms::

    Per kernel timing(84 kernels):
      convolution_2d 7 linked : add 8 linked : relu 9 - 0.182040 ms
      convolution_2d 0 -> prelu 1; 0.012032 ms; 45.726452 Gb/s
        the delegate's own profile: github.com/tensorflow/tensorflow/issues/58379
    kernel_name[0]=convolution_2d 0 linked : relu 1
    …[0]avg_ms=… …[0]std_ms=… …[0]min_ms=… …[0]max_ms=…
        nn-Meter's own build, as its parser reads it: nn_meter/builder/backends/tflite/gpu.py there

A ``benchmark_model`` as it is built by default prints none of these: its op profile has one line,
``TfLiteGpuDelegateV2``, for all that the GPU ran (github.com/tensorflow/tensorflow/issues/53138).

What delegates took is told in the words of benchmark_tflite_model.cc since 2019, and of TensorFlow
Lite's own log: github.com/tensorflow/tensorflow/issues/43541, 56301.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode

__all__ = [
    "NUMBER",
    "Delegation",
    "GpuKernel",
    "delegations",
    "graph_of_kernels",
    "kernels",
    "means",
]

Share = Literal["all", "part", "none", "some"]
"""How much of a model a delegate took; ``some``: not told."""

NUMBER = r"[-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,3})?"
"""A finite number, as C++ prints it."""

_MOST_KERNELS = 100_000
_LONGEST_LINE = 20_000
_WHOLLY = re.compile(r"Explicitly applied (\S{1,80}) delegate, and the model graph will be compl")
_PARTLY = re.compile(r"Explicitly applied (\S{1,80}) delegate, and the model graph will be part")
_NOT_AT_ALL = re.compile(
    r"Though (\S{1,80}) delegate is explicitly applied, the model(?: graph)? will not be executed"
)
_APPLIED = re.compile(r"(?:^|[\s:])Applied (\S{1,80}) delegate\.")
_FAILED = re.compile(r"Failed to apply (?:the )?(\S{1,80}) delegate")
_REPLACING = re.compile(
    r"Replacing ([0-9]{1,9}) out of ([0-9]{1,9}) node\(s\) with delegate \(([^)]{1,200})\)"
)
_SPLIT = re.compile(r"([0-9]{1,9}) operations will run on the GPU, and the remaining ([0-9]{1,9}) ")
_UNSUPPORTED = "GPU acceleration is unsupported on this platform"
_SAYINGS: tuple[tuple[re.Pattern[str], Share], ...] = (
    (_WHOLLY, "all"),
    (_PARTLY, "part"),
    (_NOT_AT_ALL, "none"),
    (_FAILED, "none"),
    (_APPLIED, "some"),
)
_FALLBACK = "Disallowed CPU fallback detected"
_ACCELERATED = re.compile(r"Fully accelerated:\s{0,99}(True|False)")
_GPU_NAMES = re.compile(r"gpu|opencl|vulkan|metal|ml.?drift", re.IGNORECASE)

_LOG = re.compile(r"\A(?:[A-Z]{4,7}: |[0-9-]{5,10} [0-9:.]{8,18} [^:]{1,60}: )")
_KERNELS = "Per kernel timing("
_KERNEL = re.compile(rf"\s*+(?P<name>\S.*?)(?: - |; )(?P<ms>{NUMBER}) ?ms\b")
_KERNEL_NAME = re.compile(r"kernel_name\[([0-9]{1,6})\]=(.{1,2000})")
_KERNEL_TIME = re.compile(rf"\[([0-9]{{1,6}})\]avg_ms=({NUMBER})")
_LINKED = re.compile(r" linked : |->")
# to and from the GPU's own layout, and what only moves data
_MOVES = {
    "bhwc_to_tensor",
    "reshape",
    "tensor_to_bhwc",
    "to/from tensor",
    "transpose",
}
_OP_NUMBER = re.compile(r" [0-9]{1,9}$")


@dataclass(frozen=True, kw_only=True)
class GpuKernel:
    """A kernel that the GPU delegate ran.

    Attributes:
        name: As it is printed: ``convolution_2d 7 linked : add 8 linked : relu 9``.
        ops: The operators in it: ``("convolution_2d", "add", "relu")``.
        us: How long it took, in µs; None: not told.
    """

    name: str
    ops: tuple[str, ...]
    us: float | None


@dataclass(frozen=True, kw_only=True)
class Delegation:
    """Something that the tool says of a delegate.

    Attributes:
        name: ``GPU``, or the delegate's own, such as ``TfLiteXNNPackDelegate``.
        share: How much of the model it took: ``all``, ``part``, ``none``, or ``some``: not told.
        said: The line, shortened.
    """

    name: str
    share: Share
    said: str


def means(one: str, name: str) -> bool:
    """Whether two names are the same delegate's: ``TfLiteGpuDelegateV2`` and ``GPU``."""
    if name == "GPU":
        return bool(_GPU_NAMES.search(one))
    return name.lower() in one.lower()


def delegations(lines: Iterable[str]) -> Iterator[Delegation]:
    """What lines of an output say of delegates."""
    for line in lines:
        if found := _delegation(line):
            name, share = found
            yield Delegation(name=name, share=share, said=line)


def _delegation(line: str) -> tuple[str, Share] | None:
    for pattern, share in _SAYINGS:
        if match := pattern.search(line):
            return match[1], share
    if match := _REPLACING.search(line):
        return match[3], _share(int(match[1]), int(match[2]) - int(match[1]))
    if "will run on the GPU" in line and (match := _SPLIT.search(line)):
        return "GPU", _share(int(match[1]), int(match[2]))
    if _UNSUPPORTED in line:
        return "GPU", "none"
    if _FALLBACK in line:
        return "GPU", "part"
    if match := _ACCELERATED.search(line):
        return "GPU", "all" if match[1] == "True" else "part"
    return None


def _share(taken: int, left: int) -> Share:
    if not taken:
        return "none"
    return "part" if left > 0 else "all"


def kernels(text: str, spots: Iterable[tuple[int, str]]) -> tuple[GpuKernel, ...]:
    """The kernels that an output lists.

    Args:
        text: The output.
        spots: Lines of it, each with the place where it ends.

    Raises:
        ValueError: There are more than a model has.
    """
    listed: list[GpuKernel] = []
    names: dict[int, str] = {}
    times_ms: dict[int, float] = {}
    for end, line in spots:
        if _KERNELS in line:
            listed = [_kernel(name, ms) for name, ms in _kernel_lines(text, end)]
        elif match := _KERNEL_NAME.search(line):
            names[int(match[1])] = match[2].strip()
        elif match := _KERNEL_TIME.search(line):
            times_ms[int(match[1])] = float(match[2])
    return tuple(listed or (_kernel(names[at], times_ms.get(at)) for at in sorted(names)))


def _kernel_lines(text: str, end: int) -> Iterator[tuple[str, float]]:
    """The kernels of a list that begins in the line that ends there."""
    for _ in range(_MOST_KERNELS):
        start, end = end + 1, text.find("\n", end + 1)
        if end < 0:
            return
        match = _KERNEL.match(_LOG.sub("", text[start : min(end, start + _LONGEST_LINE)], count=1))
        if match is None:
            return
        yield match["name"], float(match["ms"])
    raise ValueError(f"lists more than {_MOST_KERNELS} kernels")


def _kernel(name: str, ms: float | None) -> GpuKernel:
    ops = (_OP_NUMBER.sub("", part.strip()) for part in _LINKED.split(name))
    us = None if ms is None or not 0 <= ms < math.inf else ms * 1000
    return GpuKernel(name=name, ops=tuple(filter(None, ops)), us=us)


def graph_of_kernels(found: Sequence[GpuKernel]) -> ExecutedGraph:
    """The kernels as an executed graph: a node for each, its type the operators in it.

    Which tensors they read and write is not told.
    """
    seen: Counter[str] = Counter()
    nodes = []
    for kernel in found:
        kind = "+".join(kernel.ops) or kernel.name
        seen[kind] += 1
        nodes.append(
            ExecutedNode(
                name=f"{kind} #{seen[kind]}",
                type=kind,
                kind="move" if set(kernel.ops) <= _MOVES else "compute",
            )
        )
    return ExecutedGraph(nodes=tuple(nodes))
