"""MON, the guide's multiple-outbounds test case: one op's output is read by two others."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, cast

from nn_meter.builder.backend_meta.fusion_rule_tester.testcase import BaseTestCase

__all__ = ["MultipleOutElementwise", "MultipleOutNodes", "Parts", "make_parts"]


class Parts(Protocol):
    """What a framework gives to build MON and MIN with: ``nn_modules.<framework>.parts``.

    A tensor is the framework's own. A relu has a slope for negative inputs, as the guide's block:
    0, or 2 on the branch that a convolution follows.
    """

    def input(self, shape: list[int]) -> Any:
        """Add a graph input; all of them before anything else."""

    def dwconv(self, x: Any) -> Any:
        """Add a depthwise convolution of stride 1."""

    def conv(self, x: Any) -> Any:
        """Add a convolution."""

    def conv_shape(self, shape: list[int]) -> list[int]:
        """The shape that a convolution makes of a shape."""

    def add(self, x: Any, y: Any) -> Any:
        """Add the sum of two tensors of the same shape."""

    def relu(self, x: Any, negative_slope: float = 0.0) -> Any:
        """Add a relu."""

    def model(self, outputs: list[Any]) -> Any:
        """Finish the model."""


def make_parts(case: BaseTestCase) -> Parts:
    """Start a model of a test case in its framework."""
    module = importlib.import_module(f"nn_meter.builder.nn_modules.{case.implement}.parts")
    parts = module.Parts(
        kernel_size=case.kernel_size,
        padding=case.padding,
        cout=case.cout,
        strides=case.config.get("STRIDES", 1),
    )
    return cast(Parts, parts)


class MultipleOutNodes(BaseTestCase):
    """A depthwise convolution whose output two relus read: with which of them does it fuse?

    ``case1``: with none; ``case2``: with the one that another relu follows; ``case3``: with the one
    that a convolution follows. The models of the cases have the relus of the block's branches.
    """

    name = "MON"
    cases: Mapping[str, Sequence[str]] = {
        "case1": ["relu_relu", "relu_dwconv", "dwconv"],
        "case2": ["dwconv_relu_relu", "relu_dwconv"],
        "case3": ["dwconv_relu", "dwconv", "relu_relu"],
    }
    true_case = "case1"
    deps: ClassVar[dict[str, Any]] = {"BF_dwconv_relu": True}

    def _model_block(self) -> tuple[Any, list[list[int]]]:
        parts, x = self._start()
        x = parts.dwconv(x)
        branch_1 = parts.relu(parts.relu(x))
        branch_2 = parts.dwconv(parts.relu(x, negative_slope=2.0))
        return self._finish(parts, branch_1, branch_2)

    def _model_relu_relu(self) -> tuple[Any, list[list[int]]]:
        parts, x = self._start()
        return self._finish(parts, parts.relu(parts.relu(x)))

    def _model_relu_dwconv(self) -> tuple[Any, list[list[int]]]:
        parts, x = self._start()
        return self._finish(parts, parts.dwconv(parts.relu(x, negative_slope=2.0)))

    def _model_dwconv_relu(self) -> tuple[Any, list[list[int]]]:
        parts, x = self._start()
        return self._finish(parts, parts.relu(parts.dwconv(x), negative_slope=2.0))

    def _model_dwconv_relu_relu(self) -> tuple[Any, list[list[int]]]:
        parts, x = self._start()
        return self._finish(parts, parts.relu(parts.relu(parts.dwconv(x))))

    def _model_dwconv(self) -> tuple[Any, list[list[int]]]:
        parts, x = self._start()
        return self._finish(parts, parts.dwconv(x))

    def _start(self) -> tuple[Parts, Any]:
        parts = make_parts(self)
        return parts, parts.input(self._shape)

    def _finish(self, parts: Parts, *outputs: Any) -> tuple[Any, list[list[int]]]:
        return parts.model(list(outputs)), [self._shape]

    @property
    def _shape(self) -> list[int]:
        return list(self.input_shape or ())


class MultipleOutElementwise(BaseTestCase):
    """A sum that a relu and a depthwise convolution read: does it fuse with the relu?

    ``case1``: it does not; ``case2``: it does, and is written out besides.
    """

    name = "MONELTWISE"
    cases: Mapping[str, Sequence[str]] = {
        "case1": ["add", "relu", "dwconv"],
        "case2": ["add_relu", "dwconv"],
    }
    true_case = "case1"

    def _model_block(self) -> tuple[Any, list[list[int]]]:
        parts, y = self._sum()
        return parts.model([parts.relu(y), parts.dwconv(y)]), self._shapes

    def _model_add(self) -> tuple[Any, list[list[int]]]:
        parts, y = self._sum()
        return parts.model([y]), self._shapes

    def _model_add_relu(self) -> tuple[Any, list[list[int]]]:
        parts, y = self._sum()
        return parts.model([parts.relu(y)]), self._shapes

    def _model_relu(self) -> tuple[Any, list[list[int]]]:
        parts = make_parts(self)
        return parts.model([parts.relu(parts.input(self._shapes[0]))]), self._shapes[:1]

    def _model_dwconv(self) -> tuple[Any, list[list[int]]]:
        parts = make_parts(self)
        return parts.model([parts.dwconv(parts.input(self._shapes[0]))]), self._shapes[:1]

    def _sum(self) -> tuple[Parts, Any]:
        parts = make_parts(self)
        x, y = (parts.input(shape) for shape in self._shapes)
        return parts, parts.add(x, y)

    @property
    def _shapes(self) -> list[list[int]]:
        return [list(self.input_shape or ()), list(self.input_shape or ())]
