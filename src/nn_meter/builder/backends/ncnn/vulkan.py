"""Ncnn on a GPU, by Vulkan."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import Environment, Shapes
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.ncnn.backend import NcnnCPUBackend, NcnnSession, ncnn_module
from nn_meter.builder.backends.ncnn.convert import bin_of
from nn_meter.builder.backends.ncnn.graph import Layer, activated_types, without_activations
from nn_meter.builder.backends.ncnn.weights import layer_weights
from nn_meter.builder.backends.vulkan.devices import IN_SOFTWARE, drivers_text
from nn_meter.builder.backends.vulkan.watched import call_watched
from nn_meter.builder.backends.words import native_words
from nn_meter.errors import (
    BackendError,
    DeviceError,
    GraphUnavailableError,
    ModelRejectedError,
    NNMeterError,
)

__all__ = ["NcnnVulkanBackend"]

log = logging.getLogger(__name__)

_CPU = 3  # what ncnn calls a device that is the processor
_COUNTS = "nn_meter.builder.backends.ncnn.vulkan_counts:count_dispatches"
_NOTHING_TO_RUN = ("Input", "MemoryData", "Split", "Noop")


class NcnnVulkanBackend(NcnnCPUBackend):
    """Ncnn's Vulkan kernels, all of a model on the GPU, with arithmetic in float32."""

    runs_here = False

    def __init__(self, configs: Mapping[str, Any] | None = None) -> None:
        super().__init__(configs)
        self._counted: set[str] = set()

    def describe(self) -> Environment:
        environment = super().describe()
        return Environment(
            runtime=environment.runtime,
            version=environment.version,
            device=_device(),
            threads=self.threads,
            options=environment.options,
        )

    def test_connection(self) -> str:
        greeting = super().test_connection()
        _device()
        return greeting

    def _net(self) -> Any:
        _device()  # without one, ncnn computes on the CPU and says nothing
        net = super()._net()
        net.opt.use_vulkan_compute = True
        return net

    def _shares(self, layers: Sequence[Layer], weights: bytes) -> list[bytes] | None:
        with native_words():  # where weights end does not take a GPU
            return layer_weights(layers, weights, net=super()._net(), ncnn=ncnn_module())

    def _accept(self, net: Any) -> None:
        missing = dict.fromkeys(
            layer.type
            for layer in net.layers()
            if layer.type not in _NOTHING_TO_RUN and not layer.support_vulkan
        )
        if missing:
            raise ModelRejectedError(
                f"ncnn refuses the model: it has no Vulkan code for {', '.join(missing)} as it "
                "stands there, and would run that on the CPU"
            )

    def open(self, converted_model: str, shapes: Shapes) -> NcnnSession:
        _device()
        return super().open(converted_model, shapes)

    def executed_graph(self, converted_model: str, shapes: Shapes) -> ExecutedGraph:
        """Read the layers, and check by counting dispatches that each is what it says.

        Raises:
            ModelRejectedError: ncnn refuses the model, or has no Vulkan code for a layer.
            BackendError: What is dispatched is not what the layers say.
        """
        graph = super().executed_graph(converted_model, shapes)
        self._check(graph, Path(converted_model))
        return graph

    def executed_graphs(
        self, models: Sequence[tuple[str, Shapes]], save_path: str
    ) -> list[ExecutedGraph | NNMeterError]:
        """Read the graphs of models; the first with a kind of fused layer is run to check it."""
        found = super().executed_graphs(models, save_path)
        for number, ((path, shapes), graph) in enumerate(zip(models, found, strict=True)):
            if isinstance(graph, ExecutedGraph) and activated_types(graph) - self._counted:
                with tempfile.TemporaryDirectory(prefix=".count-", dir=save_path) as folder:
                    try:
                        converted = self.convert_model(path, folder, shapes)
                        self._check(graph, Path(converted))
                    except NNMeterError as exc:
                        found[number] = exc
        return found

    def _check(self, graph: ExecutedGraph, param: Path) -> None:
        """Check that activations inside of layers cost no dispatch, and that layers cost one.

        Where dispatches cannot be counted, what the layers say stands.
        """
        kinds = activated_types(graph)
        if not kinds - self._counted:
            return
        with tempfile.TemporaryDirectory(prefix="nn-meter-") as name:
            bare = Path(name) / param.name
            bare.write_text(without_activations(param.read_text(encoding="utf-8")), "utf-8")
            shutil.copyfile(bin_of(param), bin_of(bare))
            shutil.copyfile(param.with_suffix(".json"), bare.with_suffix(".json"))
            try:
                full, less = call_watched(_COUNTS, params=[str(param), str(bare)])
            except GraphUnavailableError as exc:
                log.warning(
                    "what ncnn runs on the GPU cannot be counted, so verdicts rest on its files "
                    "alone: %s",
                    exc,
                )
                self._counted |= kinds
                return
        layers = len(graph.compute())
        if full != less or full < layers:
            raise BackendError(
                f"{param.name}: it has {layers} layers that compute, with activations inside of "
                f"some, and is run in {full} dispatches; without these activations in {less}: "
                "which of them share a kernel cannot be told"
            )
        self._counted |= kinds


def _device() -> str:
    """The name of the device that ncnn runs on.

    Raises:
        DeviceError: There is none; says what there is.
    """
    ncnn = ncnn_module()
    with native_words() as words:
        count = ncnn.get_gpu_count()
        info = ncnn.get_gpu_info(ncnn.get_default_gpu_index()) if count > 0 else None
    if info is None:
        said = "; ".join(words)
        raise DeviceError(
            f"ncnn finds no Vulkan device{f' ({said})' if said else ''}; {drivers_text()}"
        )
    name = str(info.device_name())
    return f"{name}, {IN_SOFTWARE}" if info.type() == _CPU else name
