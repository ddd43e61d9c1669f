"""What speaks for a verdict: each kind of evidence judges a test case in its own way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nn_meter.builder.backend_meta.fusion_rule_tester.testcase import BaseTestCase
from nn_meter.builder.backend_meta.fusion_rule_tester.verdict import Verdict
from nn_meter.errors import ConfigError, DetectionError, NNMeterError

__all__ = ["EVIDENCE", "Evidence", "Formula", "chosen_evidence"]


class Evidence(Protocol):
    """One kind of evidence."""

    name: str

    def judge(self, case: BaseTestCase, models: Mapping[str, Mapping[str, Any]]) -> Verdict | None:
        """Judge a test case by its entry in profiled results; None: it has nothing to go by."""


class Formula:
    """The guide's way: the test case's own ``load_latency`` and ``test``, on average latencies.

    A basic test case has the guide's inequality, others the case whose sum comes nearest.
    """

    name = "formula"

    def judge(self, case: BaseTestCase, models: Mapping[str, Mapping[str, Any]]) -> Verdict | None:
        """See ``Evidence.judge``."""
        missing = [name for name, entry in models.items() if entry.get("latency") is None]
        if missing:
            return None
        try:
            case.load_latency(models)
            answer = case.test()
            latency = {name: str(latency) for name, latency in case.latency.items()}
        except NNMeterError:
            raise
        except (Exception, SystemExit) as exc:
            raise DetectionError(
                f"{case.name}: its test failed: {type(exc).__name__}: {exc}"
            ) from exc
        return Verdict.of(_checked(case, answer), self.name, latency=latency)


def _checked(case: BaseTestCase, answer: Any) -> bool | str:
    if isinstance(answer, bool | np.bool_):
        return bool(answer)
    if isinstance(answer, str) and answer in case.cases:
        return answer
    raise DetectionError(
        f"{case.name}: its test answered {answer!r}; it should be True, False or one of the cases "
        f"{', '.join(case.cases)}"
    )


EVIDENCE: Mapping[str, Evidence] = {"formula": Formula()}
"""Kinds of evidence, the best first."""


def chosen_evidence(choice: str, source: Path) -> list[Evidence]:
    """The kinds to ask in order.

    Args:
        choice: The value of ``EVIDENCE``.
        source: The ``ruletest_config.yaml`` that has it, for messages.

    Raises:
        ConfigError: That kind is not there.
    """
    if choice == "auto":
        return list(EVIDENCE.values())
    if choice not in EVIDENCE:
        raise ConfigError(
            f"{source}: EVIDENCE: {choice} comes with a later release; this one has auto and "
            f"{', '.join(EVIDENCE)}"
        )
    return [EVIDENCE[choice]]
