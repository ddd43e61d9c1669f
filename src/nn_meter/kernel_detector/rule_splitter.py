"""Operators put together by rules: a graph as the kernels that a runtime would execute."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from nn_meter.fusion_rules.rules import RuleSet
from nn_meter.kernel_detector.assembly import kernels_of
from nn_meter.kernel_detector.customized import customized_rules
from nn_meter.kernel_detector.graph import Graph
from nn_meter.kernel_detector.groups import Decision
from nn_meter.kernel_detector.kernels import Kernel
from nn_meter.kernel_detector.pair_rules import Rulebook
from nn_meter.kernel_detector.patterns import patterns
from nn_meter.kernel_detector.recognition import Recognized, recognize
from nn_meter.kernel_detector.rule_source import RuleSource, load_rules
from nn_meter.kernel_detector.splitting import Split

__all__ = ["Decision", "RuleSplitter"]

log = logging.getLogger(__name__)

_MOST_NAMED = 20


class RuleSplitter:
    """Splits models by rules.

    A kernel grows along its last op. Whether the next op joins is asked of the kernel's heavy op
    (its anchor) where it has one, else of its last; a linear op joins an anchor only next to it. An
    op that reads two kernels joins one of them, the first if both could. Nothing joins across a
    tensor that the model gives; across one that several ops read only as MON says.

    Args:
        rules: A rule set; what ``detected_fusion_rule.json`` holds, as a dict; or a file, a
            workspace, or the name of a rule file that ships with the package. A file of the
            original nn-Meter will do.
        testcases: Classes of test cases whose ``pattern`` and ``kernels`` apply (``customized``);
            None: those that are registered.

    Attributes:
        rules: The rules.
        decisions: Of the last model, for each two neighbours.
        conflicts: Of the last model, in words: rules that gave way to others.
        recognized: The last model as operators.

    Raises:
        ResultFileError: There are no such rules.
        OperatorError: A test case's pattern means nothing.
    """

    def __init__(self, rules: RuleSource, *, testcases: Sequence[type[Any]] | None = None) -> None:
        self.rules: RuleSet = load_rules(rules)
        if not self.rules.rules:
            log.warning("%s: holds no rules; nothing will be put together", self.rules.name)
        self._patterns = patterns()
        if unknown := _operators_of(self.rules) - self._patterns.names:
            names, more = sorted(unknown)[:_MOST_NAMED], len(unknown) - _MOST_NAMED
            log.warning(
                "%s: rules of operators that no op of a model is recognized as: %s%s",
                *(self.rules.name, ", ".join(names), f" and {more} more" if more > 0 else ""),
            )
        self._book = Rulebook(self.rules, self._patterns)
        self._customized = customized_rules(self.rules, testcases)
        self._named = {op for rule in self._customized for op, *_ in rule.pattern.values()}
        self._without = self._book.never_one - self._named
        self.decisions: list[Decision] = []
        self.conflicts: list[str] = []
        self.recognized: Recognized | None = None

    def split(self, graph: Graph) -> list[Kernel]:
        """Split a model.

        An operator that several ops make up is left in its parts if the rules show that it executes
        as several kernels whatever it stands next to; and taken apart again if they show that by
        itself it does, and it ended by itself, or is written in another number of steps.

        Returns:
            Its kernels, in a topological order. Each op is in exactly one.
        """
        apart: set[tuple[str, str]] = set()
        while True:
            model = recognize(graph, apart=apart, without=self._without, by=self._patterns)
            otherwise = {
                (node.name, node.operator)
                for node in model.nodes
                if node.operator not in self._named and self._book.is_written_otherwise(node)
            }
            if otherwise:
                apart |= otherwise
                continue
            split = Split(model, self._book, self._customized)
            lonely = {
                (node.name, node.operator)
                for node in split.lonely()
                if node.steps > 1 and self._book.is_spread(node.operator)
            }
            if not lonely:
                break
            apart |= lonely
        self.recognized = model
        self.decisions = split.decisions
        self.conflicts = split.conflicts
        return list(kernels_of(model, split.groups()))


def _operators_of(rules: RuleSet) -> set[str]:
    """The operators that rules about neighbours name."""
    pairs = (name.split("_")[1:] for name in rules.rules if name.startswith("BF_"))
    return {operator for pair in pairs for operator in pair}
