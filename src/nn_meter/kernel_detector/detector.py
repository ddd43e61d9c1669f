"""From a model and rules to kernels, in one call."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nn_meter.fusion_rules.rules import RuleSet
from nn_meter.kernel_detector.graph import Graph
from nn_meter.kernel_detector.kernels import Kernel
from nn_meter.kernel_detector.rule_source import RuleSource
from nn_meter.kernel_detector.rule_splitter import RuleSplitter

__all__ = ["KernelDetector", "Summary"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What came of a model.

    Attributes:
        ops: How many ops it has.
        recognized: How many of them are operators, or part of one.
        unrecognized: Types of the others, and how many there are of each, the most first.
        kernels: Types of kernels, and how many there are of each, the most first.
    """

    ops: int
    recognized: int
    unrecognized: Mapping[str, int]
    kernels: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "ops": self.ops,
            "recognized": self.recognized,
            "unrecognized": dict(self.unrecognized),
            "kernels": dict(self.kernels),
        }


class KernelDetector:
    """Tells the kernels of models by rules.

    Args:
        rules: As ``RuleSplitter`` takes them.
        testcases: As ``RuleSplitter`` takes them.

    Attributes:
        splitter: Splits, and says of the last model what was decided and why.
        graph: The last model.
        summary: What came of the last model.
    """

    def __init__(self, rules: RuleSource, *, testcases: Sequence[type[Any]] | None = None) -> None:
        self.splitter = RuleSplitter(rules, testcases=testcases)
        self.graph: Graph | None = None
        self.summary = Summary(ops=0, recognized=0, unrecognized={}, kernels={})

    @property
    def rules(self) -> RuleSet:
        """The rules."""
        return self.splitter.rules

    def detect(
        self, model: Graph | str | Path, *, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> list[Kernel]:
        """Tell the kernels of a model.

        Args:
            model: A graph, or the path of a model that ``readers.read_model`` takes.
            shapes: Input -> its shape, for inputs that are dynamic.

        Returns:
            Its kernels, in a topological order. Each op is in exactly one.

        Raises:
            NNMeterError: The model cannot be read; says why.
        """
        graph = model if isinstance(model, Graph) else _read(model, shapes)
        kernels = self.splitter.split(graph)
        recognized = self.splitter.recognized
        unknown = recognized.unknown if recognized is not None else Counter[str]()
        self.graph = graph
        self.summary = Summary(
            ops=len(graph.ops),
            recognized=len(graph.ops) - unknown.total(),
            unrecognized=dict(unknown.most_common()),
            kernels=dict(Counter(kernel.type for kernel in kernels).most_common()),
        )
        if unknown:
            log.info(
                "%s: no operators, each a kernel of its own: %s",
                graph.name,
                ", ".join(f"{count} {name}" for name, count in unknown.most_common()),
            )
        return kernels


def _read(model: str | Path, shapes: Mapping[str, Sequence[int]] | None) -> Graph:
    from nn_meter.kernel_detector.readers import read_model  # loads onnx

    return read_model(model, shapes=shapes)
