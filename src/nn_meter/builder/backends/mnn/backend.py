"""MNN: the backend."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nn_meter.builder.backends.base import (
    Array,
    Environment,
    Samples,
    SessionBackend,
    Shapes,
    model_format,
)
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.inputs import natural_key
from nn_meter.builder.backends.mnn.convert import convert, read_ops
from nn_meter.builder.backends.mnn.graph import Command, Memory, executed_graph
from nn_meter.builder.backends.mnn.native import heard, mnn, mnn_converter
from nn_meter.errors import ModelRejectedError
from nn_meter.reference import reference_inputs

__all__ = ["MNNCPUBackend", "MNNSession"]


class MNNSession:
    """A model loaded by MNN.

    MNN plans memory so that an input's place is used again once the input has been read: whoever
    runs fills the inputs first, every time.

    Args:
        path: The MNN file.
        threads: That it may use.
        shapes: Of the inputs, without the batch dimension; empty: those of the file.

    Raises:
        ValueError: The file's inputs have other shapes, or a type other than float32.
        RuntimeError: MNN refuses the file.
    """

    def __init__(self, path: Path, threads: int, shapes: Shapes) -> None:
        module = mnn()
        self._interpreter = module.Interpreter(str(path))
        self._session = self._interpreter.createSession(
            {"backend": "CPU", "numThread": threads, "precision": "high"}
        )
        self._inputs = _in_order(self._interpreter.getSessionInputAll(self._session))
        self._outputs = _in_order(self._interpreter.getSessionOutputAll(self._session))
        for name, tensor in self._inputs.items():
            if tensor.getDataType() != module.Halide_Type_Float:
                raise ValueError(f"its {name} is not of the type float32")
        found = [list(tensor.getShape()) for tensor in self._inputs.values()]
        if shapes and found != [[1, *shape] for shape in shapes]:
            raise ValueError(
                f"its inputs have the shapes {_text(found)}, but should have "
                f"{_text([[1, *shape] for shape in shapes])}"
            )
        self._timed = self._held(reference_inputs([shape[1:] for shape in found]))
        self._fill(self._timed)
        self._run()

    def _held(self, feeds: Sequence[Array]) -> list[tuple[Any, Any]]:
        """Each input, with a tensor that holds what is to be copied there."""
        return [
            (tensor, _host_tensor(tensor, np.array(feed, dtype=np.float32)))
            for tensor, feed in zip(self._inputs.values(), feeds, strict=True)
        ]

    @staticmethod
    def _fill(held: Sequence[tuple[Any, Any]]) -> None:
        for tensor, host in held:
            tensor.copyFrom(host)

    def _run(self) -> None:
        if code := self._interpreter.runSession(self._session):
            raise RuntimeError(f"running it ends with MNN's error code {code}")

    def time(self, n: int) -> Samples:
        # Not base.time_calls: the inputs are filled before each run, outside of the time taken.
        # On what the last run left in their place kernels would compute on ever larger numbers.
        clock, run, session = time.perf_counter_ns, self._interpreter.runSession, self._session
        samples = np.empty(n, dtype=np.int64)
        for i in range(n):
            self._fill(self._timed)
            start = clock()
            run(session)
            samples[i] = clock() - start
        return samples

    def outputs(self, feeds: Sequence[Array]) -> list[Array]:
        self._fill(self._held(feeds))
        self._run()
        return [_values(tensor) for tensor in self._outputs.values()]

    def inputs(self) -> dict[str, Memory]:
        """The inputs in the model's order, and where they are."""
        return {name: _memory(tensor) for name, tensor in self._inputs.items()}

    def commands(self) -> list[Command]:
        """Run once, and tell what was carried out."""
        found: list[Command] = []
        read: list[Any] = []

        def before(tensors: Sequence[Any], info: Any) -> bool:
            read[:] = tensors
            return True  # do carry it out

        def after(tensors: Sequence[Any], info: Any) -> bool:
            found.append(
                Command(
                    name=info.getName(),
                    type=info.getType(),
                    reads=tuple(map(_memory, read)),
                    writes=tuple(map(_memory, tensors)),
                )
            )
            return True  # and go on

        self._fill(self._timed)
        self._interpreter.runSessionWithCallBackInfo(self._session, before, after)
        return found

    def close(self) -> None:
        self._timed.clear()
        self._inputs.clear()
        self._outputs.clear()
        del self._session, self._interpreter


class MNNCPUBackend(SessionBackend):
    """MNN's CPU kernels, in float32; converts ``.onnx`` files to its own format."""

    runs_here = True
    takes = ("onnx", "torch")
    tried = ("mnn 3.6",)

    def convert_model(
        self, model_path: str, save_path: str, input_shape: Shapes | None = None
    ) -> str:
        """Make an ``.mnn`` file, named as the model."""
        path = Path(model_path)
        if model_format(path) != "onnx":
            raise self.refuse(model_path)
        target = Path(save_path) / f"{path.stem}.mnn"
        convert(path, target, input_shape)
        return str(target)

    def describe(self) -> Environment:
        return Environment(
            runtime="mnn", version=str(mnn().version()), device="CPU", threads=self.threads
        )

    def open(self, converted_model: str, shapes: Shapes) -> MNNSession:
        mnn()
        try:
            with heard() as words:
                return MNNSession(Path(converted_model), self.threads, shapes)
        except Exception as exc:
            said = " ".join(filter(None, [str(words), str(exc)]))
            raise ModelRejectedError(f"MNN refuses the model: {said}") from exc

    def executed_graph(self, converted_model: str, shapes: Shapes) -> ExecutedGraph:
        session = self.open(converted_model, shapes)
        try:
            with heard():
                commands = session.commands()
            return executed_graph(read_ops(Path(converted_model)), commands, session.inputs())
        finally:
            session.close()

    def test_connection(self) -> str:
        mnn()
        mnn_converter()
        return super().test_connection()


def _in_order(tensors: dict[str, Any]) -> dict[str, Any]:
    """MNN gives tensors in no order; the converter numbered their names."""
    return {name: tensors[name] for name in sorted(tensors, key=natural_key)}


def _host_tensor(tensor: Any, values: Array) -> Any:
    """A tensor of the same layout in memory of our own."""
    module = mnn()
    layout = tensor.getDimensionType()
    if layout == module.Tensor_DimensionType_Caffe_C4:  # blocks of 4 channels: MNN's own layout
        layout = module.Tensor_DimensionType_Caffe
    shape = tensor.getShape()
    if values.shape != tuple(shape):
        raise ValueError(f"an input should have the shape {list(shape)}, not {list(values.shape)}")
    return module.Tensor(shape, module.Halide_Type_Float, values, layout)


def _values(tensor: Any) -> Array:
    host = _host_tensor(tensor, np.zeros(tensor.getShape(), dtype=np.float32))
    if not tensor.copyToHostTensor(host):
        raise RuntimeError("MNN does not give out what it computed")
    return np.array(host.getNumpyData(), dtype=np.float32)


def _memory(tensor: Any) -> Memory:
    """Where a tensor is. MNN wraps the address in a capsule without a name."""
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return Memory(int(address(tensor.getHost(), None) or 0), tuple(tensor.getShape()))


def _text(shapes: Sequence[Sequence[int]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "none"
