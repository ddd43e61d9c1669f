"""What speaks for a verdict: each kind of evidence judges a test case in its own way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from nn_meter.builder.backend_meta.fusion_rule_tester.basic import BasicFusion
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.evidence import LatencyEvidence
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.plan import Bench
from nn_meter.builder.backend_meta.fusion_rule_tester.graph_evidence import (
    CaseGraphs,
    GraphEvidence,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.testcase import BaseTestCase
from nn_meter.builder.backend_meta.fusion_rule_tester.verdict import Edge, Verdict
from nn_meter.errors import DetectionError, NNMeterError

__all__ = ["Formula", "Judges"]


class Formula:
    """The guide's way: the test case's own ``load_latency`` and ``test``, on average latencies.

    A basic test case has the guide's inequality, others the case whose sum comes nearest.
    """

    name = "formula"

    def judge(self, case: BaseTestCase, models: Mapping[str, Mapping[str, Any]]) -> Verdict | None:
        """Judge a test case by its entry in profiled results; None: a latency is missing."""
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
        edges: tuple[Edge, ...] = ()
        if isinstance(case, BasicFusion) and len(case.ops) > 2:
            edges = tuple(
                Edge(ops=pair, verdict="fused" if fused else "separate")
                for pair, fused in zip(pairwise(case.ops), case.edges_by_latency(), strict=True)
            )
        return Verdict.of(_checked(case, answer), self.name, latency=latency, edges=edges)


def _checked(case: BaseTestCase, answer: Any) -> bool | str:
    if isinstance(answer, bool | np.bool_):
        return bool(answer)
    if isinstance(answer, str) and answer in case.cases:
        return answer
    raise DetectionError(
        f"{case.name}: its test answered {answer!r}; it should be True, False or one of the cases "
        f"{', '.join(case.cases)}"
    )


class Judges:
    """The kinds of evidence that a test case is judged by.

    Args:
        choice: The value of ``EVIDENCE``.
        graphs: What is known of executed graphs: rule -> its graphs.
        benches: What the clock was asked: rule -> the bench that has its questions.
    """

    def __init__(
        self,
        choice: str,
        graphs: Mapping[str, CaseGraphs],
        benches: Mapping[str, Bench] | None = None,
    ) -> None:
        self._choice = choice
        self._graph, self._formula = GraphEvidence(graphs), Formula()
        self._latency = LatencyEvidence(benches or {})

    def judge(self, case: BaseTestCase, models: Mapping[str, Mapping[str, Any]]) -> Verdict | None:
        """Judge a test case by the best kind that has something to go by.

        With ``auto`` a ``test`` or ``load_latency`` of the user's own decides, else the graph, else
        the clock, else the formula; what the other kinds say is recorded beside it.
        """
        graph = self._graph.judge(case, models) if self._choice in ("auto", "graph") else None
        if self._choice == "graph":
            return graph
        if self._choice == "formula":
            return self._formula.judge(case, models)
        latency = self._latency.judge(case, models, graph)
        formula = self._by_formula(case, models)
        order = [latency]
        if self._choice == "auto":
            order = [graph, latency, formula]
            if _decides_itself(case):
                order = [formula, graph, latency]
            elif latency is not None and latency.clock is not None and not latency.clock.loads:
                order = [graph, formula, latency]  # its turn did not come: nothing speaks for it
        found = [verdict for verdict in order if verdict is not None]
        if not found:
            return None
        first, others = found[0], found[1:]
        if self._choice == "latency" and formula is not None:
            others = [formula]
        return replace(
            first,
            others={other.evidence: other.obey for other in others},
            latency=first.latency or (formula.latency if formula is not None else {}),  # for DETAIL
            clock=latency.clock if latency is not None else None,
        )

    def _by_formula(
        self, case: BaseTestCase, models: Mapping[str, Mapping[str, Any]]
    ) -> Verdict | None:
        try:
            return self._formula.judge(case, models)
        except NNMeterError as exc:
            return Verdict.none("undecided", str(exc), evidence=self._formula.name)


def _decides_itself(case: BaseTestCase) -> bool:
    """Whether a class of the user's says how latencies are to be read."""
    cls = type(case)
    return not isinstance(case, BasicFusion) and (
        cls.test is not BaseTestCase.test or cls.load_latency is not BaseTestCase.load_latency
    )
