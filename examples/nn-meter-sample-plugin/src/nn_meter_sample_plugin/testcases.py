"""A test case in ONNX: a block, and the ways in which it may fall apart."""

from __future__ import annotations

from typing import Any, ClassVar

from nn_meter.builder.backend_meta.fusion_rule_tester import BaseTestCase
from nn_meter.builder.nn_modules.onnx.models import Graph


class Residual(BaseTestCase):
    """With which neighbour does the addition in ``relu(dwconv(x) + x)`` fuse, if with one?

    Models named in ``cases`` without a ``_model_…`` here (dwconv, add, relu) are the operators of
    these names.
    """

    name = "Residual"
    cases: ClassVar[dict[str, list[str]]] = {
        "with_dwconv": ["dwconv_add", "relu"],
        "with_relu": ["dwconv", "add_relu"],
        "with_none": ["dwconv", "add", "relu"],
    }
    true_case = "with_dwconv"
    deps: ClassVar[dict[str, Any]] = {}

    def _model_block(self) -> tuple[Any, list[list[int]]]:
        graph = Graph()
        x = graph.input(self.input_shape)
        added = graph.op("Add", [self._dwconv(graph, x), x])
        return graph.model([graph.op("Relu", [added])]), graph.shapes

    def _model_dwconv_add(self) -> tuple[Any, list[list[int]]]:
        graph = Graph()
        x = graph.input(self.input_shape)
        return graph.model([graph.op("Add", [self._dwconv(graph, x), x])]), graph.shapes

    def _model_add_relu(self) -> tuple[Any, list[list[int]]]:
        graph = Graph()
        x, y = graph.input(self.input_shape), graph.input(self.input_shape)
        return graph.model([graph.op("Relu", [graph.op("Add", [x, y])])]), graph.shapes

    def _dwconv(self, graph: Graph, x: str) -> str:
        channels, kernel = self.input_shape[0], self.kernel_size
        weight, bias = graph.weight(channels, 1, kernel, kernel), graph.bias(channels)
        return str(graph.op("Conv", [x, weight, bias], group=channels, auto_pad="SAME_UPPER"))
