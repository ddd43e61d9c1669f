"""OpenVINO: the only module that imports its Python interface."""

from __future__ import annotations

import ctypes
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from nn_meter.builder.backends.base import (
    Array,
    Environment,
    Samples,
    Session,
    SessionBackend,
    SessionProfiler,
    Shapes,
    model_format,
    time_calls,
)
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.openvino.devices import (
    AskedDevice,
    check_devices,
    execution_devices,
    is_processor,
)
from nn_meter.builder.backends.openvino.graph import name_apart, read_graph
from nn_meter.builder.backends.openvino.models import (
    import_openvino,
    read_model,
    static_shapes,
    words_of,
)
from nn_meter.builder.backends.openvino.native import NativeCore, Port, load_library
from nn_meter.builder.backends.openvino.transformed import compile_and_show
from nn_meter.builder.backends.openvino.written import name_as_written
from nn_meter.errors import (
    ConversionError,
    DeviceError,
    GraphUnavailableError,
    ModelRejectedError,
    NNMeterError,
)
from nn_meter.reference import reference_inputs

__all__ = [
    "OpenVINOBackend",
    "OpenVINOCPUBackend",
    "OpenVINOGPUBackend",
    "OpenVINOProfiler",
    "OpenVINOSession",
    "OpenVINOVPUBackend",
]

log = logging.getLogger(__name__)

_SMALL = 1_000_000  # bytes of a model file: what is compiled of it is kept in memory
_TRANSPOSED = "ConvolutionBackpropData"
_CPU = "CPU"
_PRECISION = "INFERENCE_PRECISION_HINT"


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn whatever goes wrong with a model into the refusal of it."""
    try:
        yield
    except NNMeterError:
        raise
    except Exception as exc:
        raise ModelRejectedError(f"OpenVINO refuses the model: {words_of(exc)}") from exc


class OpenVINOSession:
    """A model compiled by OpenVINO, with one infer request whose inputs are bound once.

    Args:
        compiled: The ``openvino.CompiledModel``; its inputs are in the model's order.
        feeds: What is timed: an array for each input, batch included.
    """

    def __init__(self, compiled: Any, feeds: Sequence[Array]) -> None:
        self._compiled = compiled
        self._request, self._kept = self._bound(feeds)
        self._request.infer()

    def _bound(self, feeds: Sequence[Array]) -> tuple[Any, list[Array]]:
        """An infer request on arrays, and these: the request does not keep them alive."""
        ov = import_openvino()
        request = self._compiled.create_infer_request()
        kept = [np.ascontiguousarray(feed) for feed in feeds]
        for position, feed in enumerate(kept):
            request.set_input_tensor(position, ov.Tensor(feed, shared_memory=True))
        return request, kept

    def time(self, n: int) -> Samples:
        # By default infer would copy every output.
        return time_calls(partial(self._request.infer, share_outputs=True), n)

    def outputs(self, feeds: Sequence[Array]) -> list[Array]:
        if len(feeds) != len(self._kept):
            raise ValueError(f"the model has {len(self._kept)} inputs, but got {len(feeds)}")
        request, _kept = self._bound(feeds)
        request.infer()
        return [np.array(tensor.data) for tensor in request.output_tensors]

    def close(self) -> None:
        del self._request, self._compiled
        self._kept.clear()


class OpenVINOProfiler(SessionProfiler):
    """Times one model in OpenVINO."""


class OpenVINOBackend(SessionBackend):
    """OpenVINO on ``DEVICE``; loads ``.onnx``, ``.tflite`` and its own IR as they are."""

    profiler_class = OpenVINOProfiler
    takes = ("onnx", "torch", "tensorflow")
    tried = ("openvino 2026.4",)
    usual_device: ClassVar[str] = "CPU"
    """Where it runs if ``DEVICE`` does not say."""
    _known_core: Any = None
    _probed: _Probed | None = None

    @property
    def device(self) -> str:
        """OpenVINO's name of the device, e.g. ``CPU``, ``GPU.1`` or ``HETERO:NPU,CPU``."""
        return str(self.configs.get("DEVICE") or self.usual_device)

    @property
    def runs_here(self) -> bool:  # type: ignore[override]  # it depends on the configuration
        """Whether models run on this processor. Where OpenVINO may choose, it is asked."""
        asked = AskedDevice.read(self.device)
        return is_processor(self._probe().ran if asked.mode == "AUTO" else asked.names)

    def convert_model(
        self, model_path: str, save_path: str, input_shape: Shapes | None = None
    ) -> str:
        """Make OpenVINO's IR, named as the model, of a SavedModel; other models stay as they are.

        The IR has static shapes, float32 weights, and the inputs in the model's order.
        """
        path = Path(model_path)
        if model_format(path) == "tflite" and self._overlooks_activations(path):
            log.warning(
                "%s: OpenVINO's reader of .tflite files is known to leave out an activation that "
                "is fused into a transposed convolution; better give it the SavedModel",
                path.name,
            )
        if model_format(path) in ("tflite", "onnx") or path.suffix == ".xml":
            return str(model_path)
        if model_format(path) != "saved_model":
            raise self.refuse(model_path)
        ov = import_openvino()
        target = Path(save_path) / f"{path.name}.xml"
        with tempfile.TemporaryDirectory(prefix=".openvino-", dir=save_path) as folder:
            made = Path(folder) / "model.xml"
            try:
                model = read_model(ov, ov.Core(), path, input_shape or ())
                ov.save_model(model, str(made), compress_to_fp16=False)
            except Exception as exc:
                raise ConversionError(
                    f"{path.name}: OpenVINO cannot convert it: {words_of(exc)}"
                ) from exc
            # The .xml comes last and goes first: where there is one, both files are whole.
            target.unlink(missing_ok=True)
            made.with_suffix(".bin").replace(target.with_name(f"{path.name}.bin"))
            made.replace(target)
        return str(target)

    def _overlooks_activations(self, path: Path) -> bool:
        """Whether a ``.tflite`` file has ops that may have lost their activation when read."""
        ov = import_openvino()
        try:
            ops = self._shared_core(ov).read_model(str(path)).get_ops()
        except RuntimeError:  # it is refused, in OpenVINO's words, when it is loaded
            return False
        return any(op.get_type_name() == _TRANSPOSED for op in ops)

    def describe(self) -> Environment:
        ov = import_openvino()
        probed = self._probe()
        names = {name: self._full_name(name) for name in probed.ran}
        options: dict[str, Any] = {"device_name": ", ".join(names.values())}
        if probed.ran != (self.device,):
            options["execution_devices"] = list(probed.ran)
        return Environment(
            runtime="openvino",
            version="-".join(ov.__version__.split("-")[:2]),  # release and build; a branch follows
            device=self.device,
            threads=self.threads,
            dtype=probed.dtype,
            options=options,
        )

    def _full_name(self, device: str) -> str:
        core = self._shared_core(import_openvino())
        try:
            return str(core.get_property(device, "FULL_DEVICE_NAME"))
        except RuntimeError:  # not every plugin has one
            return device

    def open(self, converted_model: str, shapes: Shapes) -> Session:
        ov = import_openvino()
        core = self._core(ov)
        with _refusals():
            compiled = self._compiled(ov, core, Path(converted_model), shapes)
            session = OpenVINOSession(compiled, reference_inputs(_feed_shapes(compiled)))
            self._check_where(compiled)  # once more: a run may move it elsewhere
            return session

    def executed_graph(self, converted_model: str, shapes: Shapes) -> ExecutedGraph:
        """Compile a model, and read what OpenVINO's CPU plugin executes of it.

        Raises:
            ModelRejectedError: OpenVINO refuses the model.
            GraphUnavailableError: Another plugin executes it: what those say was never held
                against what they execute.
        """
        ov = import_openvino()
        core = self._core(ov)
        with _refusals():
            model = read_model(ov, core, Path(converted_model), shapes)
            static_shapes(model)
        if not is_processor(ran := self._probe().ran):
            raise GraphUnavailableError(
                f"what OpenVINO executes is read from its CPU plugin only, and {self.device} runs "
                f"models on {', '.join(ran)}"
            )
        if model_format(converted_model) == "tflite":
            name_as_written(ov, model, Path(converted_model))
        name_apart(model)
        with _refusals():
            compiled, merged = compile_and_show(core, model, self.device, self._properties())
            self._check_where(compiled)
        return read_graph(model, compiled, merged)

    def _compiled(self, ov: ModuleType, core: Any, path: Path, shapes: Shapes) -> Any:
        model = read_model(ov, core, path, shapes)
        static_shapes(model)
        compiled = core.compile_model(model, self.device, self._properties())
        self._check_where(compiled)
        return compiled

    def _check_where(self, compiled: Any) -> None:
        """Refuse a model that runs elsewhere than it should."""
        AskedDevice.read(self.device).check(execution_devices(compiled), self._probe().ran)

    def test_connection(self) -> str:
        self._probe()
        return super().test_connection()

    def _core(self, ov: ModuleType) -> Any:
        """OpenVINO's core, once the device was seen to be there, and to run something."""
        self._probe()
        return self._shared_core(ov)

    def _probe(self) -> _Probed:
        """Once: see that the device is there, and what it runs a model of one op on, and how.

        Raises:
            DeviceError: It is not there, or OpenVINO runs the model elsewhere.
        """
        if self._probed is None:
            ov = import_openvino()
            core = self._shared_core(ov)
            asked = AskedDevice.read(self.device)
            check_devices(asked, core.available_devices)
            model = _one_op(ov)
            refused = None
            for properties in self._property_sets(core.available_devices):
                try:
                    compiled = core.compile_model(model, self.device, properties)
                    compiled.create_infer_request().infer()
                    break
                except RuntimeError as exc:
                    refused = refused or exc
            else:
                raise DeviceError(
                    f"OpenVINO cannot run a model of one op on {self.device}: {words_of(refused)}"
                ) from refused
            ran = execution_devices(compiled)
            asked.check(ran, ran, DeviceError)
            self._probed = _Probed(ran=ran, properties=properties, dtype=_dtype(compiled, ran))
        return self._probed

    def _shared_core(self, ov: ModuleType) -> Any:
        """One for all models: making one, and asking it for its devices, takes 5 ms."""
        if self._known_core is None:
            self._known_core = ov.Core()
        return self._known_core

    def _properties(self) -> dict[str, Any]:
        """How models are compiled."""
        return dict(self._probe().properties)

    def _property_sets(self, available: Sequence[str]) -> Iterator[dict[str, Any]]:
        """How models should be compiled, and what may do where a device does not know all of it."""
        asked = AskedDevice.read(self.device)
        names = asked.among(available)
        properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if asked.mode == "AUTO" and not is_processor(names):
            # or it would run on the CPU first, and wherever something fails
            properties |= {"ENABLE_STARTUP_FALLBACK": False, "ENABLE_RUNTIME_FALLBACK": False}
        one, exact = {"NUM_STREAMS": 1}, {_PRECISION: "f32"}
        # An NPU computes in f16 only.
        for wanted in ({**one, **exact}, exact, one, {}):
            each: dict[str, dict[str, Any]] = {name: dict(wanted) for name in names}
            if _CPU in each:
                each[_CPU] = {
                    **one,
                    **exact,
                    "INFERENCE_NUM_THREADS": self.threads,
                    # Pinning sets the thread's affinity three times a run, which is timed (2 µs).
                    "ENABLE_CPU_PINNING": False,
                }
            yield properties | ({"DEVICE_PROPERTIES": each} if asked.mode else each[self.device])


@dataclass(frozen=True, kw_only=True)
class _Probed:
    """What compiling a model of one op told.

    Attributes:
        ran: The devices that ran it.
        properties: How it was compiled.
        dtype: What it computed with.
    """

    ran: tuple[str, ...]
    properties: Mapping[str, Any]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class _Exported:
    """A compiled model as OpenVINO exports it."""

    blob: bytes
    inputs: Sequence[Port]
    outputs: Sequence[Port]


class OpenVINOCPUBackend(OpenVINOBackend):
    """OpenVINO on the CPU of this host, whatever ``DEVICE`` says.

    Models are compiled by way of Python and run by way of C, which is quicker (see ``native``). A
    small one that is loaded again is compiled once and then imported, which makes the same kernels
    and allocates anew, in a fifth of the time.
    """

    runs_here = True
    _native: NativeCore | None = None
    _exported: dict[tuple[Any, ...], _Exported] | None = None

    @property
    def device(self) -> str:
        return "CPU"

    def describe(self) -> Environment:
        found = super().describe()
        called = "C" if _library() is not None else "Python"
        return replace(found, options={**found.options, "called_from": called})

    def open(self, converted_model: str, shapes: Shapes) -> Session:
        library = _library()
        if library is None:
            return super().open(converted_model, shapes)
        with _refusals():
            exported = self._export(Path(converted_model), shapes)
            if exported is None:  # outputs without fixed shapes
                return super().open(converted_model, shapes)
            if self._native is None:
                self._native = NativeCore(library, self.device, self._properties())
            feeds = reference_inputs([shape[1:] for _, shape in exported.inputs])
            return self._native.load(exported.blob, exported.inputs, exported.outputs, feeds)

    def _export(self, path: Path, shapes: Shapes) -> _Exported | None:
        if self._exported is None:
            self._exported = {}
        state = path.stat()
        key = (str(path), state.st_mtime_ns, state.st_size, str([list(s) for s in shapes]))
        if (known := self._exported.get(key)) is not None:
            return known
        ov = import_openvino()
        compiled = self._compiled(ov, self._core(ov), path, shapes)
        if any(port.partial_shape.is_dynamic for port in compiled.outputs):
            return None
        found = _Exported(
            blob=compiled.export_model().getvalue(),
            inputs=[_port(port) for port in compiled.inputs],
            outputs=[_port(port) for port in compiled.outputs],
        )
        if state.st_size < _SMALL and model_format(path) != "other":  # it is all in this file
            self._exported[key] = found
        return found


class OpenVINOVPUBackend(OpenVINOBackend):
    """OpenVINO on ``DEVICE``, by default ``NPU``, the successor of the VPU stick."""

    usual_device = "NPU"


class OpenVINOGPUBackend(OpenVINOBackend):
    """OpenVINO on ``DEVICE``, by default ``GPU``."""

    usual_device = "GPU"


def _one_op(ov: ModuleType) -> Any:
    """An ``openvino.Model`` of one relu."""
    opset = import_module(f"{ov.__name__}.opset13")
    parameter = opset.parameter([1, 4, 8, 8], np.float32)
    return ov.Model([opset.relu(parameter)], [parameter], "probe")


def _dtype(compiled: Any, devices: Sequence[str]) -> str:
    """What a compiled model computes with on its devices, as far as it says."""
    told = {name: _property(compiled, "DEVICE_PROPERTIES") for name in devices}
    found = {
        (told[name] or {}).get(name, {}).get(_PRECISION) or _property(compiled, _PRECISION)
        for name in devices
    }
    names = {str(each.to_dtype().name) if each is not None else "unknown" for each in found}
    return ", ".join(sorted(names))


def _property(compiled: Any, name: str) -> Any:
    """A property of a compiled model; None: it has none of that name."""
    try:
        return compiled.get_property(name)
    except RuntimeError:
        return None


def _library() -> ctypes.CDLL | None:
    return load_library(Path(str(import_openvino().__file__)).parent)


def _port(port: Any) -> Port:
    return str(port.element_type.to_dtype().name), tuple(int(size) for size in port.shape)


def _feed_shapes(compiled: Any) -> list[list[int]]:
    """Shapes of the inputs of a compiled model, without the batch dimension."""
    return [[int(size) for size in port.shape][1:] for port in compiled.inputs]
