"""An operator in ONNX: nodes that a function adds to a graph. A tensor is its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nn_meter.builder.nn_modules import BaseOperator

if TYPE_CHECKING:
    from nn_meter.builder.nn_modules.onnx.models import Graph


class Softsign(BaseOperator):
    """``x / (1 + |x|)``, for tensors of any rank; the output has the input's shape."""

    def get_model(self) -> Callable[[Graph, str], str]:
        def func(graph: Graph, x: str) -> str:
            return str(graph.op("Softsign", [x]))

        return func
