"""The guide's basic test case: are two ops in a row one kernel?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nn_meter.builder.backend_meta.fusion_rule_tester import build
from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import PairPlan, plan_pair
from nn_meter.builder.backend_meta.fusion_rule_tester.testcase import BaseTestCase, TestModels

__all__ = ["BasicFusion", "aliases"]


def aliases(op1: str, op2: str) -> tuple[str, str]:
    """Names of the two single models; an op that stands twice is numbered."""
    return (f"{op1}_1", f"{op2}_2") if op1 == op2 else (op1, op2)


class BasicFusion(BaseTestCase):
    """Two ops and the block of both. One class serves every pair.

    Args:
        config: All keys of ``ruletest_config.yaml``.
        op1: Name of the first operator.
        op2: Name of the second.
    """

    false_case = "ops"

    def __init__(self, config: Mapping[str, Any], op1: str, op2: str) -> None:
        self.op1, self.op2 = op1, op2
        self.name = f"BF_{op1}_{op2}"
        self.cases = {self.false_case: aliases(op1, op2)}
        super().__init__(config)
        self.eps = float(self.config["EPS_ALPHA"])

    @property
    def plan(self) -> PairPlan:
        """Shapes of the three models."""
        return plan_pair(self.op1, self.op2, self.config)

    def generate_testcase(self) -> TestModels:
        models = {}
        for name, chain in self.plan.chains(*aliases(self.op1, self.op2)).items():
            model, shapes = build.chain_model(chain)
            models[name] = {"model": model, "shapes": shapes}
        return models

    def test(self) -> bool:
        """The guide's inequality.

        ``T(op1) + T(op2) - T(block) > EPS_ALPHA * min(T(op1), T(op2))``.
        """
        ops = [self.latency[name].avg for name in self.cases[self.false_case]]
        return sum(ops) - self.latency["block"].avg > self.eps * min(ops)
