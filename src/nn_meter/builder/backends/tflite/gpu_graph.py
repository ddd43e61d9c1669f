"""What LiteRT's GPU accelerator executes: the compute shaders that one run dispatches.

LiteRT's profiler does not see the GPU. Vulkan does: each kernel of ML Drift is one dispatch of one
shader, known by its code. Around the kernels stand conversions of the model's inputs and outputs
into the GPU's layout and back. Which dispatches these are is not guessed: a model of one RELU and a
model of one ABS, of the same shape as the input or output in question, are run in the same process.
A shader that both run computes neither of the two, for both give right outputs: so it only
converts. Their own shader, one in each, is the op. In the model, every input and output must be
converted by just such a shader; whatever else it dispatches is a kernel. An op that only moves
values (a reshape) has a kernel here, too; that is known by running the op by itself.

Outputs are compared with those of LiteRT's kernels for the CPU.

This module runs in the process that ``vulkan.watched`` starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import Shapes
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode, Kind
from nn_meter.builder.backends.tflite.backend import open_session
from nn_meter.builder.backends.tflite.gpu import Accelerator, TFLiteGPUSession
from nn_meter.builder.backends.tflite.gpu_models import has_ops, layout_models, one_op
from nn_meter.builder.backends.vulkan.counter import DispatchCounter
from nn_meter.builder.backends.vulkan.watched import encoded
from nn_meter.errors import (
    BackendError,
    DeviceError,
    GraphUnavailableError,
    ModelRejectedError,
    NotInstalledError,
)
from nn_meter.reference import compare_outputs, reference_inputs, sample_outputs

__all__ = ["GraphReader", "check_ends", "read_graphs"]

_OPS = ("RELU", "ABS")
_TIMES = 3

Shape = tuple[int, ...]


def read_graphs(
    counter: DispatchCounter, models: Sequence[tuple[str, Shapes]], threads: int
) -> list[dict[str, Any]]:
    """Read the executed graphs of ``.tflite`` files.

    Args:
        counter: The layer of this process.
        models: Paths, each with the shapes of its inputs without the batch dimension.
        threads: For the CPU's kernels.

    Returns:
        For each ``{"ok": graph}`` or ``{"error": {"type", "message"}}``, as plain values.

    Raises:
        GraphUnavailableError, DeviceError, NotInstalledError: None of them can be read here.
    """
    reader = GraphReader(counter, threads)
    answers: list[dict[str, Any]] = []
    for path, shapes in models:
        try:
            answers.append({"ok": reader.read(Path(path), shapes).to_json()})
        except (GraphUnavailableError, DeviceError, NotInstalledError):
            raise
        except Exception as exc:  # noqa: BLE001 - one model's error is that model's answer
            answers.append({"error": encoded(exc)})
    return answers


@dataclass(kw_only=True)
class _Known:
    """Shaders that are known to convert: each with the words for it."""

    into: dict[Shape, int] = field(default_factory=dict)
    out_of: dict[Shape, int] = field(default_factory=dict)
    layout: dict[bytes, frozenset[int]] = field(default_factory=dict)


class GraphReader:
    """Reads graphs, one after the other; what it learns of conversions it keeps.

    Args:
        counter: The layer of this process.
        threads: For the CPU's kernels.
    """

    def __init__(self, counter: DispatchCounter, threads: int = 1) -> None:
        self._counter, self._threads = counter, threads
        self._accelerator = Accelerator()
        self._known = _Known()

    def read(self, path: Path, shapes: Shapes) -> ExecutedGraph:
        """Run a model and tell what its dispatches are.

        Raises:
            ModelRejectedError: LiteRT refuses the model.
            BackendError: What is dispatched cannot be told apart, or outputs are wrong.
        """
        session = self._open(path, shapes)
        if not has_ops(path):
            session.close()
            return ExecutedGraph(nodes=())
        try:
            feeds = reference_inputs([shape[1:] for shape in session.input_shapes])
            found = sample_outputs(session.outputs(feeds))
            hashes = self._dispatched(session)
            inputs, outputs = session.input_shapes, session.output_shapes
        finally:
            session.close()
        on_cpu = open_session(str(path), shapes, threads=self._threads)
        try:
            difference = compare_outputs(found, sample_outputs(on_cpu.outputs(feeds)))
        finally:
            on_cpu.close()
        if difference is not None:
            raise BackendError(
                f"{path.name}: on the GPU it computes something else than on the CPU: {difference}"
            )
        into = [self._conversions(shape)[0] for shape in inputs]
        out_of = [self._conversions(shape)[1] for shape in outputs]
        check_ends(path.name, hashes, into, out_of)
        moved = {shader for alone in layout_models(path) for shader in self._layout(alone)}
        return _graph(hashes[len(into) : -len(out_of)], into, out_of, moved)

    def _open(self, model: Path | bytes, shapes: Shapes = ()) -> TFLiteGPUSession:
        loaded = self._accelerator.load(model)
        try:
            return TFLiteGPUSession(loaded, shapes)
        except Exception as exc:
            self._accelerator.reset()
            raise ModelRejectedError(f"LiteRT's GPU accelerator refuses the model: {exc}") from exc

    def _dispatched(self, session: TFLiteGPUSession) -> list[int]:
        """What one run dispatches; each run must dispatch the same."""
        runs = []
        for _ in range(_TIMES):
            with self._counter.counting() as hashes:
                session.run()
            runs.append(list(hashes))
        if any(run != runs[0] for run in runs):
            raise BackendError("its runs differ in what they dispatch")
        if not runs[0] or 0 in runs[0]:
            raise BackendError("it dispatches what cannot be told by its code")
        return runs[0]

    def _conversions(self, shape: Shape) -> tuple[int, int]:
        """The shaders that take a tensor of this shape to the GPU's layout, and back."""
        if shape not in self._known.into:
            runs = []
            for op in _OPS:
                session = self._open(one_op(op, shape))
                runs.append(self._dispatched(session))
                session.close()
            (first, one, last), (same_first, other, same_last) = (
                run if len(run) == 3 else (0, 0, 0) for run in runs
            )
            if (first, last) != (same_first, same_last) or one == other or not first:
                raise BackendError(
                    f"which dispatches only convert a tensor of the shape {list(shape)} cannot be "
                    f"told: {_OPS[0]} dispatches {_names(runs[0])}, {_OPS[1]} {_names(runs[1])}"
                )
            self._known.into[shape], self._known.out_of[shape] = first, last
        return self._known.into[shape], self._known.out_of[shape]

    def _layout(self, alone: bytes) -> frozenset[int]:
        """The shaders of an op that only moves values, by itself; none if it cannot be told."""
        if alone not in self._known.layout:
            self._known.layout[alone] = frozenset()
            try:
                session = self._open(alone)
            except ModelRejectedError:
                return frozenset()
            try:
                run = self._dispatched(session)
                ends = (session.input_shapes[0], session.output_shapes[0])
            finally:
                session.close()
            into, out_of = self._conversions(ends[0])[0], self._conversions(ends[1])[1]
            if len(run) >= 2 and (run[0], run[-1]) == (into, out_of):
                self._known.layout[alone] = frozenset(run[1:-1])
        return self._known.layout[alone]


def check_ends(
    name: str, hashes: Sequence[int], into: Sequence[int], out_of: Sequence[int]
) -> None:
    """Check that the run begins with the conversions of all inputs, and ends with the outputs'."""
    first, last = hashes[: len(into)], hashes[len(hashes) - len(out_of) :]
    if (
        len(hashes) < len(into) + len(out_of)
        or Counter(first) != Counter(into)
        or Counter(last) != Counter(out_of)
    ):
        raise BackendError(
            f"{name}: which of its dispatches are kernels cannot be told: it dispatches "
            f"{_names(hashes)}; its inputs should be converted by {_names(into)} and its outputs "
            f"by {_names(out_of)}"
        )


def _graph(
    kernels: Sequence[int], into: Sequence[int], out_of: Sequence[int], moved: set[int]
) -> ExecutedGraph:
    conversions = {*into, *out_of}
    nodes: list[ExecutedNode] = []

    def add(shader: int, word: str, kind: Kind) -> None:
        kind_name = f"{word}[{shader:016x}]"
        nodes.append(ExecutedNode(name=f"dispatch #{len(nodes) + 1}", type=kind_name, kind=kind))

    for shader in into:
        add(shader, "Convert", "move")
    for shader in kernels:
        if shader in moved:
            add(shader, "Layout", "move")
        elif shader in conversions:
            add(shader, "Convert", "move")
        else:
            add(shader, "Kernel", "compute")
    for shader in out_of:
        add(shader, "Convert", "move")
    return ExecutedGraph(nodes=tuple(nodes))


def _names(hashes: Sequence[int]) -> str:
    return ", ".join(f"{shader:016x}" for shader in hashes) or "nothing"
