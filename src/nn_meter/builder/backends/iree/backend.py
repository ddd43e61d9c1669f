"""IREE: compiling models for this host's CPU, running them, and reading what would run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from nn_meter.builder.backends.base import (
    Array,
    Environment,
    Samples,
    SessionBackend,
    Shapes,
    model_format,
    time_calls,
)
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.iree import convert, graph
from nn_meter.errors import (
    BackendError,
    ConversionError,
    ModelRejectedError,
    NNMeterError,
    NotInstalledError,
)
from nn_meter.reference import reference_inputs

__all__ = ["IREECPUBackend", "IREESession"]

_COMPILER, _RUNTIME = "iree-base-compiler", "iree-base-runtime"
_FUNCTION = "main"
_IMPORTED = ".mlirbc"
_threads: int | None = None  # of the device local-task, once there is one


def _runtime() -> ModuleType:
    try:
        import iree.runtime
    except ImportError as exc:
        raise NotInstalledError.for_extra("IREE's runtime", "iree") from exc
    module: ModuleType = iree.runtime
    return module


def _version(package: str) -> str:
    try:
        return package_version(package)
    except PackageNotFoundError as exc:
        raise NotInstalledError.for_extra(package, "iree") from exc


class IREESession:
    """A model loaded by IREE, with its inputs on the device once.

    Args:
        device: The ``iree.runtime.HalDevice``.
        path: A compiled module.
        feeds: What is timed: an array for each input, batch included.
    """

    def __init__(self, device: Any, path: Path, feeds: Sequence[Array]) -> None:
        rt = _runtime()
        instance = rt.VmInstance()
        # Read, not mapped: the file may be replaced by a newer one while this stays loaded.
        module = rt.VmModule.copy_buffer(instance, path.read_bytes())
        self._device = device
        self._function = module.lookup_function(_FUNCTION)
        if self._function is None:
            raise ValueError(f"it has no function {_FUNCTION}; convert the model with nn-meter")
        self._context = rt.VmContext(instance, [rt.create_hal_module(instance, device), module])
        self._inputs = self._bound(feeds)
        self._invoke()

    def _bound(self, feeds: Sequence[Array]) -> Any:
        rt = _runtime()
        inputs = rt.VmVariantList(len(feeds))
        for feed in feeds:
            inputs.push_ref(
                self._device.allocator.allocate_buffer_copy(
                    memory_type=rt.MemoryType.DEVICE_LOCAL,
                    allowed_usage=rt.BufferUsage.DEFAULT | rt.BufferUsage.MAPPING,
                    device=self._device,
                    buffer=np.ascontiguousarray(feed),
                    element_type=rt.HalElementType.FLOAT_32,
                )
            )
        return inputs

    def _invoke(self) -> Any:
        outputs = _runtime().VmVariantList(1)
        self._context.invoke(self._function, self._inputs, outputs)
        return outputs

    def time(self, n: int) -> Samples:
        rt = _runtime()
        # Making the list for the outputs costs less than 1 µs; a list used twice would grow.
        make = partial(rt.VmVariantList, 1)
        invoke, function, inputs = self._context.invoke, self._function, self._inputs
        return time_calls(lambda: invoke(function, inputs, make()), n)

    def outputs(self, feeds: Sequence[Array]) -> list[Array]:
        rt = _runtime()
        if len(feeds) != len(self._inputs):
            raise ValueError(f"the model has {len(self._inputs)} inputs, but got {len(feeds)}")
        found = rt.VmVariantList(1)
        self._context.invoke(self._function, self._bound(feeds), found)
        views = [found.get_as_object(i, rt.HalBufferView) for i in range(len(found))]
        return [np.array(rt.DeviceArray(self._device, view).to_host()) for view in views]

    def close(self) -> None:
        del self._inputs, self._function, self._context


class IREECPUBackend(SessionBackend):
    """IREE's ``llvm-cpu`` for this host, run in this process by one thread or by ``THREADS``."""

    runs_here = True
    takes = ("onnx", "torch")
    tried = ("iree 3.13",)

    @property
    def device(self) -> str:
        """IREE's name of the device: one that runs in the calling thread, or one with workers."""
        return "local-sync" if self.threads == 1 else "local-task"

    def convert_model(
        self, model_path: str, save_path: str, input_shape: Shapes | None = None
    ) -> str:
        """Make a ``.vmfb`` of a model, and beside it what ``executed_graph`` reads (``.mlirbc``).

        Compiling takes 0.3 s and more for each model.
        """
        path = Path(model_path)
        if model_format(path) != "onnx":
            raise self.refuse(model_path)
        target = Path(save_path) / f"{path.stem}.vmfb"
        with tempfile.TemporaryDirectory(prefix=".iree-", dir=save_path) as folder:
            imported, compiled = Path(folder) / "model.mlirbc", Path(folder) / "model.vmfb"
            module = convert.import_model(path, _FUNCTION, input_shape, graph.new_context())
            convert.write_module(module, imported)
            try:
                convert.compile_module(imported, compiled)
            except convert.CompileError as exc:
                raise ConversionError(f"{path.name}: IREE cannot compile it: {exc}") from exc
            # The .vmfb comes last and goes first: where there is one, both files are whole.
            target.unlink(missing_ok=True)
            imported.replace(target.with_suffix(_IMPORTED))
            compiled.replace(target)
        return str(target)

    def describe(self) -> Environment:
        compiler, runtime = _version(_COMPILER), _version(_RUNTIME)
        return Environment(
            runtime="iree",
            version=compiler,
            device=self.device,
            threads=self.threads,
            options={} if runtime == compiler else {"runtime_version": runtime},
        )

    def open(self, converted_model: str, shapes: Shapes) -> IREESession:
        device = self._device()
        try:
            return IREESession(device, Path(converted_model), reference_inputs(shapes))
        except Exception as exc:
            raise ModelRejectedError(f"IREE refuses the model: {_words(exc)}") from exc

    def executed_graph(self, converted_model: str, shapes: Shapes) -> ExecutedGraph:
        """Read the dispatches of a model that ``convert_model`` made."""
        imported = Path(converted_model).with_suffix(_IMPORTED)
        with tempfile.TemporaryDirectory(prefix=".iree-", dir=imported.parent) as folder:
            return graph.read_imported(imported, _FUNCTION, Path(folder))

    def executed_graphs(
        self, models: Sequence[tuple[str, Shapes]], save_path: str
    ) -> list[ExecutedGraph | NNMeterError]:
        """Read the graphs of many model files by few runs of the compiler."""
        read = [(Path(path), shapes) for path, shapes in models if model_format(path) == "onnx"]
        with tempfile.TemporaryDirectory(prefix=".iree-", dir=save_path) as folder:
            graphs = iter(graph.read_models(read, Path(folder)))
        return [
            next(graphs) if model_format(path) == "onnx" else self.refuse(path)
            for path, _ in models
        ]

    def test_connection(self) -> str:
        _version(_COMPILER)
        self._device()
        return super().test_connection()

    def _device(self) -> Any:
        global _threads
        rt = _runtime()
        if self.device == "local-task":
            # The number is read when the first device is made, and that one is kept: IREE crashes
            # where a local-task driver is let go of.
            if _threads not in (None, self.threads):
                raise BackendError(
                    f"IREE runs with {_threads} threads in this process already, not with "
                    f"{self.threads}; use one number, or a process for each"
                )
            _threads = self.threads
            rt.flags.parse_flags(f"--task_topology_group_count={self.threads}")
        return rt.get_device(self.device)


def _words(exc: Exception) -> str:
    """What IREE says, in one line, without the places in its source and in the module."""
    first = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
    return first.strip().rstrip(";")
