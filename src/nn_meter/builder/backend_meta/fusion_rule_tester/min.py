"""MIN, the counterpart of MON: an op that reads what two others give."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from nn_meter.builder.backend_meta.fusion_rule_tester.mon import make_parts
from nn_meter.builder.backend_meta.fusion_rule_tester.testcase import BaseTestCase
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode, ModelOp

__all__ = ["MultipleInElementwise", "MultipleInNodes", "MultipleInNodesRelu"]

log = logging.getLogger(__name__)

_SLOPE = 2.0  # of one of two relus, which are no twins then

Answer = Literal["case1", "case2", "case3", "none of them"]


class MultipleInNodes(BaseTestCase):
    """Two convolutions into an addition: which of them takes it?

    ``case1``: none, it is a kernel of its own, as the guide says of multiple inbounds; ``case2``:
    the first; ``case3``: the second. The convolutions have inputs of the same shape and weights of
    their own.

    Latencies tell ``case1`` from the others only: the sums of ``case2`` and ``case3`` are equal but
    for noise, so when ``test`` answers with one of them it may as well be the other. ``grouping``
    tells them apart.
    """

    name = "MIN"
    cases: Mapping[str, Sequence[str]] = {
        "case1": ["conv_1", "conv_2", "add"],
        "case2": ["conv_1_add", "conv_2"],
        "case3": ["conv_1", "conv_2_add"],
    }
    true_case = "case1"

    def grouping(self, graphs: Mapping[str, ExecutedGraph]) -> str | None:
        """Tell the case that the runtime's executed graph shows.

        Nodes that only the first input leads to are the first convolution's, and likewise the
        second's. A convolution alone shows how many nodes it takes; where fewer are its own, its
        last has become that of the addition. Where nodes tell the ops that they cover, the node of
        the addition covers a convolution's, or does not; both ways must agree. Where neither is
        told, as many nodes as in the models of ``case1`` mean ``case1``.

        Args:
            graphs: What was executed of ``block`` and of each model in ``cases``.

        Returns:
            A case; None if it cannot be told, or is none of them (one kernel for everything).
        """
        block = graphs["block"]
        told = {
            "tensors": _by_tensors(block, graphs["conv_1"], graphs["conv_2"]),
            "source ops": _by_sources(block),
        }
        answers = {answer for answer in told.values() if answer is not None}
        if len(answers) > 1:
            ways = " and ".join(f"{answer} by its nodes' {way}" for way, answer in told.items())
            log.warning("%s: the executed graph shows %s", self.name, ways)
            return None
        if answers:
            answer = answers.pop()
            return None if answer == "none of them" else answer
        alone = sum(len(graphs[model].compute()) for model in self.cases["case1"])
        return "case1" if len(block.compute()) == alone else None

    def _model_block(self) -> tuple[Any, list[list[int]]]:
        return self._sum(conv_1=True, conv_2=True)

    def _model_conv_1(self) -> tuple[Any, list[list[int]]]:
        return self._conv()

    def _model_conv_2(self) -> tuple[Any, list[list[int]]]:
        return self._conv()

    def _model_add(self) -> tuple[Any, list[list[int]]]:
        return self._sum()

    def _model_conv_1_add(self) -> tuple[Any, list[list[int]]]:
        return self._sum(conv_1=True)

    def _model_conv_2_add(self) -> tuple[Any, list[list[int]]]:
        return self._sum(conv_2=True)

    def _conv(self) -> tuple[Any, list[list[int]]]:
        parts, shape = make_parts(self), list(self.input_shape or ())
        return parts.model([parts.conv(parts.input(shape))]), [shape]

    def _sum(
        self, *, conv_1: bool = False, conv_2: bool = False, relu: bool = False
    ) -> tuple[Any, list[list[int]]]:
        """The sum of two inputs, either behind a convolution or in the shape that one gives."""
        parts, shape = make_parts(self), list(self.input_shape or ())
        behind_conv = (conv_1, conv_2)
        shapes = [shape if behind else parts.conv_shape(shape) for behind in behind_conv]
        inputs = [parts.input(each) for each in shapes]
        operands = [
            parts.conv(x) if behind else x for x, behind in zip(inputs, behind_conv, strict=True)
        ]
        y = parts.add(*operands)
        return parts.model([parts.relu(y) if relu else y]), shapes


class MultipleInNodesRelu(MultipleInNodes):
    """As ``MultipleInNodes``, with a relu behind the addition."""

    name = "MINRELU"
    cases: Mapping[str, Sequence[str]] = {
        "case1": ["conv_1", "conv_2", "add_relu"],
        "case2": ["conv_1_add_relu", "conv_2"],
        "case3": ["conv_1", "conv_2_add_relu"],
    }

    def _model_block(self) -> tuple[Any, list[list[int]]]:
        return self._sum(conv_1=True, conv_2=True, relu=True)

    def _model_add_relu(self) -> tuple[Any, list[list[int]]]:
        return self._sum(relu=True)

    def _model_conv_1_add_relu(self) -> tuple[Any, list[list[int]]]:
        return self._sum(conv_1=True, relu=True)

    def _model_conv_2_add_relu(self) -> tuple[Any, list[list[int]]]:
        return self._sum(conv_2=True, relu=True)


class MultipleInElementwise(BaseTestCase):
    """Two relus into an addition: which of them takes it?

    ``case1``: none; ``case2``: the first; ``case3``: the second; ``case4``: all three are one.
    By latencies ``case4`` is what one kernel takes that reads as much.
    """

    name = "MINELTWISE"
    cases: Mapping[str, Sequence[str]] = {
        "case1": ["relu_1", "relu_2", "add"],
        "case2": ["relu_1_add", "relu_2"],
        "case3": ["relu_1", "relu_2_add"],
        "case4": ["relu_1_add"],
    }
    true_case = "case1"

    def grouping(self, graphs: Mapping[str, ExecutedGraph]) -> str | None:
        """Tell the case that the runtime's executed graph shows.

        Args:
            graphs: What was executed of ``block`` and of each model in ``cases``.

        Returns:
            A case; None if it cannot be told.
        """
        block = graphs["block"]
        one, other, alone = (len(graphs[m].compute()) for m in self.cases["case1"])
        executed = len(block.compute())
        if not one or not other or not alone:
            return None  # what executes nothing joins nothing
        if executed >= one + other + alone:
            return "case1"
        if executed == 1:
            return "case4"
        told = _by_tensors(block, graphs["relu_1"], graphs["relu_2"]) or _by_sources(block)
        return told if told in ("case2", "case3") else None

    def _model_block(self) -> tuple[Any, list[list[int]]]:
        return self._sum(relu_1=True, relu_2=True)

    def _model_relu_1(self) -> tuple[Any, list[list[int]]]:
        return self._relu()

    def _model_relu_2(self) -> tuple[Any, list[list[int]]]:
        return self._relu(_SLOPE)

    def _model_add(self) -> tuple[Any, list[list[int]]]:
        return self._sum()

    def _model_relu_1_add(self) -> tuple[Any, list[list[int]]]:
        return self._sum(relu_1=True)

    def _model_relu_2_add(self) -> tuple[Any, list[list[int]]]:
        return self._sum(relu_2=True)

    def _relu(self, slope: float = 0.0) -> tuple[Any, list[list[int]]]:
        parts, shape = make_parts(self), list(self.input_shape or ())
        return parts.model([parts.relu(parts.input(shape), slope)]), [shape]

    def _sum(self, *, relu_1: bool = False, relu_2: bool = False) -> tuple[Any, list[list[int]]]:
        parts, shape = make_parts(self), list(self.input_shape or ())
        x, y = parts.input(shape), parts.input(shape)
        x, y = parts.relu(x) if relu_1 else x, parts.relu(y, _SLOPE) if relu_2 else y
        return parts.model([parts.add(x, y)]), [shape, shape]


def _by_tensors(
    block: ExecutedGraph, conv_1: ExecutedGraph, conv_2: ExecutedGraph
) -> Answer | None:
    """What the nodes' tensors show; None where the runtime does not tell them."""
    if block.inputs is None or len(block.inputs) < 2:
        return None
    first, second = (_compute_behind(block, tensor) for tensor in block.inputs[:2])
    if not first & second:
        return "none of them"  # nothing adds: these cannot be all nodes
    return _answer(
        first_took=len(first - second) < len(conv_1.compute()),
        second_took=len(second - first) < len(conv_2.compute()),
    )


def _compute_behind(graph: ExecutedGraph, tensor: str) -> set[int]:
    nodes = graph.behind([tensor])
    return {id(node) for node in nodes if node.kind == "compute"}


def _by_sources(block: ExecutedGraph) -> Answer | None:
    """What the ops show that nodes cover; None where the runtime does not tell, or not of all."""
    nodes = block.compute()
    if block.ops is None or len(block.op_inputs) < 2 or any(n.sources is None for n in nodes):
        return None
    first, second = (_ops_behind(block.ops, tensor) for tensor in block.op_inputs[:2])
    add = next((op.name for op in block.ops if op.name in first & second), None)
    with_add = [covered for node in nodes if add in (covered := _covered(node))]
    if not with_add:
        return None
    return _answer(
        first_took=any(covered & (first - second) for covered in with_add),
        second_took=any(covered & (second - first) for covered in with_add),
    )


def _covered(node: ExecutedNode) -> set[str]:
    return set(node.sources or ())


def _ops_behind(ops: Sequence[ModelOp], tensor: str) -> set[str]:
    """Names of the ops that depend on a tensor; ``ops`` is in a topological order."""
    reached, found = {tensor}, set()
    for op in ops:
        if reached.intersection(op.inputs):
            found.add(op.name)
            reached.update(op.outputs)
    return found


def _answer(*, first_took: bool, second_took: bool) -> Answer:
    if first_took and second_took:
        return "none of them"
    if first_took:
        return "case2"
    return "case3" if second_took else "case1"
