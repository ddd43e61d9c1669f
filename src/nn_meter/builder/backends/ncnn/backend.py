"""Ncnn: the only module that imports it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
from nn_meter.builder.backends.ncnn.convert import (
    Ports,
    bin_of,
    convert,
    param_of,
    pnnx_program,
    pnnx_version,
    read_ports,
    write_converted,
)
from nn_meter.builder.backends.ncnn.graph import Layer, executed, param_text, read_layers
from nn_meter.builder.backends.ncnn.merge import Part, Shares, convert_many
from nn_meter.builder.backends.ncnn.weights import layer_weights
from nn_meter.builder.backends.words import native_words
from nn_meter.errors import (
    ConversionError,
    GraphUnavailableError,
    ModelRejectedError,
    NNMeterError,
    NotInstalledError,
)
from nn_meter.reference import reference_inputs

__all__ = ["NcnnCPUBackend", "NcnnSession", "ncnn_module"]

# Arithmetic in float32 with weights and tensors kept as such, so that outputs can be compared.
_OFF = (
    "use_fp16_packed",
    "use_fp16_storage",
    "use_fp16_arithmetic",
    "use_bf16_packed",
    "use_bf16_storage",
    "use_vulkan_compute",
)


def ncnn_module() -> ModuleType:
    """Ncnn.

    Raises:
        NotInstalledError: It cannot be imported.
    """
    try:
        import ncnn
    except ImportError as exc:
        raise NotInstalledError.for_extra("ncnn", "ncnn") from exc
    module: ModuleType = ncnn
    return module


def _has_layer(layer_type: str) -> bool:
    return int(ncnn_module().layer_to_index(layer_type)) >= 0


class NcnnSession:
    """A model loaded by ncnn.

    Args:
        net: The ``ncnn.Net``.
        ports: Its inputs and outputs.
        feeds: What is timed: an array for each input, batch included.

    Raises:
        RuntimeError: ncnn cannot run it.
    """

    def __init__(self, net: Any, ports: Ports, feeds: Sequence[Array]) -> None:
        self._net, self._ports = net, ports
        indices = {blob.name: index for index, blob in enumerate(net.blobs())}
        try:
            self._inputs = [indices[port.name] for port in ports.inputs]
            self._outputs = [indices[port.name] for port in ports.outputs]
        except KeyError as exc:
            raise RuntimeError(f"it has no tensor {exc.args[0]}") from exc
        self._mats = self._filled(feeds)
        self.outputs(feeds)

    def time(self, n: int) -> Samples:
        return time_calls(partial(self._run, self._mats), n)

    def _run(self, mats: Sequence[Any]) -> None:
        # A run is an extractor: it keeps what it computed, and would not compute it again.
        extractor = self._net.create_extractor()
        for index, mat in zip(self._inputs, mats, strict=True):
            extractor.input(index, mat)
        for index in self._outputs:
            extractor.extract(index)

    def outputs(self, feeds: Sequence[Array]) -> list[Array]:
        extractor = self._net.create_extractor()
        for index, mat in zip(self._inputs, self._filled(feeds), strict=True):
            extractor.input(index, mat)
        outputs = []
        for index, port in zip(self._outputs, self._ports.outputs, strict=True):
            code, mat = extractor.extract(index)
            if code:
                raise RuntimeError(f"ncnn cannot compute {port.name}: error {code}")
            # Rows of channels may be padded, and the memory is ncnn's: copy by strides.
            array = np.array(mat, copy=True)
            if port.batch_axis is not None and port.batch_axis <= array.ndim:
                array = np.expand_dims(array, port.batch_axis)
            outputs.append(array)
        return outputs

    def _filled(self, feeds: Sequence[Array]) -> list[Any]:
        mat = ncnn_module().Mat
        mats = []
        for feed, port in zip(feeds, self._ports.inputs, strict=True):
            array = np.asarray(feed, dtype=np.float32)
            if port.batch_axis is not None:
                array = array.squeeze(port.batch_axis)
            # A clone owns its memory; the array's would be written to by layers that work in place.
            mats.append(mat(np.ascontiguousarray(array)).clone())
        return mats

    def close(self) -> None:
        self._mats.clear()
        del self._net


class NcnnCPUBackend(SessionBackend):
    """Ncnn's CPU kernels. ONNX models are converted by pnnx."""

    runs_here = True
    takes = ("onnx", "torch")
    tried = ("ncnn 1.0.20261020",)

    def convert_model(
        self, model_path: str, save_path: str, input_shape: Shapes | None = None
    ) -> str:
        """Make ``<model>.ncnn.param``, with ``.bin`` and ``.json`` beside it."""
        if model_format(model_path) != "onnx":
            raise self.refuse(model_path)
        param = convert(Path(model_path), Path(save_path), input_shape or (), known=_has_layer)
        return str(param)

    def convert_models(
        self, models: Sequence[tuple[str, Shapes]], save_paths: Sequence[str]
    ) -> list[str | NNMeterError]:
        """Convert models by few runs of pnnx; see ``merge``."""
        if not models:
            return []
        return [
            part if isinstance(part, NNMeterError) else _written(part, Path(path), Path(save_path))
            for part, (path, _), save_path in zip(
                self._parts(models, save_paths[0], self._shares), models, save_paths, strict=True
            )
        ]

    def _shares(self, layers: Sequence[Layer], weights: bytes) -> list[bytes] | None:
        with native_words():
            return layer_weights(layers, weights, net=self._net(), ncnn=ncnn_module())

    def describe(self) -> Environment:
        return Environment(
            runtime="ncnn",
            version=str(ncnn_module().__version__),
            device="CPU",
            threads=self.threads,
            options={"pnnx": pnnx_version()},
        )

    def _net(self) -> Any:
        net = ncnn_module().Net()
        net.opt.num_threads = self.threads
        for option in _OFF:
            if hasattr(net.opt, option):
                setattr(net.opt, option, False)
        return net

    def _loaded(self, converted_model: str) -> Any:
        param = Path(converted_model)
        net = self._net()
        with native_words() as words:
            loaded = net.load_param(str(param)) == 0 and net.load_model(str(bin_of(param))) == 0
        if not loaded:
            raise RuntimeError("; ".join(words) or "it gives no reason")
        self._accept(net)
        return net

    def _accept(self, net: Any) -> None:
        """Refuse a model whose layers ncnn has loaded; here none is.

        Raises:
            ModelRejectedError: It is not run as this backend should run it.
        """

    def open(self, converted_model: str, shapes: Shapes) -> NcnnSession:
        words: list[str] = []
        try:
            net = self._loaded(converted_model)
            ports = read_ports(Path(converted_model))
            wanted = [(1, *(int(size) for size in shape)) for shape in shapes]
            found = [port.shape for port in ports.inputs]
            if shapes and found != wanted:
                raise RuntimeError(f"its inputs are {found}, but should be {wanted}")
            feeds = reference_inputs([shape[1:] for shape in found])
            with native_words() as words:
                return NcnnSession(net, ports, feeds)
        except (OSError, ValueError, RuntimeError) as exc:
            reason = "; ".join([str(exc), *words])
            raise ModelRejectedError(f"ncnn refuses the model: {reason}") from exc

    def executed_graph(self, converted_model: str, shapes: Shapes) -> ExecutedGraph:
        try:
            net = self._loaded(converted_model)
            inputs = [port.name for port in read_ports(Path(converted_model)).inputs]
            layers = read_layers(Path(converted_model).read_text(encoding="utf-8"))
        except (OSError, ValueError, RuntimeError) as exc:
            raise ModelRejectedError(f"ncnn refuses the model: {exc}") from exc
        return _shown(net, layers, inputs)

    def executed_graphs(
        self, models: Sequence[tuple[str, Shapes]], save_path: str
    ) -> list[ExecutedGraph | NNMeterError]:
        """Read the graphs of models by few runs of pnnx; see ``merge``.

        ncnn reads the layers of each model, but no weights: a model that it refuses for these is
        not noticed here.
        """
        return [self._graph_of(part) for part in self._parts(models, save_path)]

    def _parts(
        self, models: Sequence[tuple[str, Shapes]], save_path: str, shares: Shares | None = None
    ) -> list[Part | ConversionError]:
        pnnx_program()
        ncnn_module()
        wrong = {path for path, _ in models if model_format(path) != "onnx"}
        parts = iter(
            convert_many(
                [(Path(path), shapes) for path, shapes in models if path not in wrong],
                Path(save_path),
                known=_has_layer,
                shares=shares,
            )
        )
        return [self.refuse(path) if path in wrong else next(parts) for path, _ in models]

    def _graph_of(self, part: Part | ConversionError) -> ExecutedGraph | NNMeterError:
        if isinstance(part, ConversionError):
            return part
        net = self._net()
        with native_words() as words:
            code = net.load_param_mem(param_text(part.layers))
        if code:
            reason = "; ".join(words) or "it gives no reason"
            return ModelRejectedError(f"ncnn refuses the model: {reason}")
        try:
            self._accept(net)
            return _shown(net, part.layers, part.inputs)
        except (GraphUnavailableError, ModelRejectedError) as exc:
            return exc

    def test_connection(self) -> str:
        ncnn_module()
        pnnx_version()
        return super().test_connection()


def _written(part: Part, model: Path, save_path: Path) -> str:
    assert part.ports is not None
    param = param_of(model, save_path)
    write_converted(param, part.layers, part.weights, part.ports)
    return str(param)


def _shown(net: Any, layers: Sequence[Layer], inputs: Sequence[str]) -> ExecutedGraph:
    """The graph of layers that ncnn has loaded.

    Raises:
        GraphUnavailableError: It loaded others than the file has.
    """
    found = [(layer.type, layer.name) for layer in net.layers()]
    written = [(layer.type, layer.name) for layer in layers]
    if found != written:
        raise GraphUnavailableError(
            f"ncnn {ncnn_module().__version__} does not execute the layers of its file as they "
            f"stand: there are {len(written)}, and it has {len(found)} when loaded; nn-meter knows "
            "no other way to tell what it executes"
        )
    return executed(layers, inputs)
