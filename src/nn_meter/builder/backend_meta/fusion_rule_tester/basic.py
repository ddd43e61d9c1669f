"""The guide's basic test case: are ops in a row one kernel?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nn_meter.builder.backend_meta.fusion_rule_tester import build
from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import ChainPlan, plan_chain
from nn_meter.builder.backend_meta.fusion_rule_tester.testcase import (
    BaseTestCase,
    TestModels,
    model_latency,
)

__all__ = ["BasicFusion", "aliases"]


def aliases(ops: Sequence[str]) -> tuple[str, ...]:
    """Names of the single models; an op that stands more than once is numbered by its place."""
    counts = Counter(ops)
    return tuple(f"{op}_{place}" if counts[op] > 1 else op for place, op in enumerate(ops, start=1))


class BasicFusion(BaseTestCase):
    """Ops in a row, two in the guide, and the block of all. One class serves every chain.

    Args:
        config: All keys of ``ruletest_config.yaml``.
        *ops: Names of the operators.
    """

    false_case = "ops"

    def __init__(self, config: Mapping[str, Any], *ops: str) -> None:
        self.ops = ops
        self.name = "_".join(["BF", *ops])
        self.cases = {self.false_case: aliases(ops)}
        super().__init__(config)
        self.eps = float(self.config["EPS_ALPHA"])

    @property
    def plan(self) -> ChainPlan:
        """Shapes of the models."""
        return plan_chain(self.ops, self.config)

    def generate_testcase(self) -> TestModels:
        models = {}
        for name, chain in self.plan.chains(aliases(self.ops)).items():
            model, shapes = build.chain_model(chain)
            models[name] = {"model": model, "shapes": shapes}
        return models

    def load_latency(self, testcase: Mapping[str, Mapping[str, Any]]) -> None:
        super().load_latency(testcase)
        names = aliases(self.ops)
        for end in range(2, len(names)):
            head = "_".join(names[:end])
            self.latency[head] = model_latency(testcase, head)

    def test(self) -> bool:
        """The guide's inequality, for each op and all that stands before it.

        ``T(before) + T(op) - T(both) > EPS_ALPHA * min(T(before), T(op))``.
        """
        return all(self.edges_by_latency())

    def edges_by_latency(self) -> list[bool]:
        """For each two neighbours whether they fuse by the inequality."""
        names = aliases(self.ops)
        heads = [*("_".join(names[:end]) for end in range(1, len(names))), "block"]
        found = []
        for before, op, both in zip(heads, names[1:], heads[1:], strict=False):
            parts = [self.latency[before].avg, self.latency[op].avg]
            found.append(sum(parts) - self.latency[both].avg > self.eps * min(parts))
        return found
