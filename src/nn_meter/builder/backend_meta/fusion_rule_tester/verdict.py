"""Verdicts as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Edge", "Obey", "Saving", "Verdict"]

Obey = bool | str | None


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What was found of two neighbours in a chain.

    Attributes:
        ops: Their names.
        verdict: ``fused``, ``separate``, ``free`` or ``undecided``.
        free: Names of those of them that execute nothing that computes.
        reason: Why it is undecided, if it is.
    """

    ops: tuple[str, str]
    verdict: Literal["fused", "separate", "free", "undecided"]
    free: tuple[str, ...] = ()
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """As results have it."""
        found: dict[str, Any] = {"ops": list(self.ops), "verdict": self.verdict}
        if self.free:
            found["free"] = list(self.free)
        if self.reason:
            found["reason"] = self.reason
        return found


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What a controlled experiment by the clock says of a test case.

    Attributes:
        verdict: As in ``Verdict``.
        confidence: With which the verdict holds, and the truth lies in the interval.
        saving: What running the ops together saves, as a share of what the cheaper side costs in
            the graph; of a test case of cases: by how much the case named fits better than the
            next, as a share of the block; None: not known.
        low, high: The interval of ``saving``.
        loads: How often its models were loaded and timed.
        runtime_s: Seconds that the runtime took for the runs that count.
        control: The op that stood between the two in the control that it was held against.
        reason: Why it cannot be told, if it cannot.
    """

    verdict: str
    confidence: float
    saving: float | None = None
    low: float | None = None
    high: float | None = None
    loads: int = 0
    runtime_s: float = 0.0
    control: str = ""
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """As results have it, without the verdict."""
        found: dict[str, Any] = {}
        if self.saving is not None and self.low is not None and self.high is not None:
            found = {
                "saving": round(self.saving, 4),
                "low": round(self.low, 4),
                "high": round(self.high, 4),
            }
        found |= {
            "confidence": self.confidence,
            "cost": {"loads": self.loads, "runtime_s": round(self.runtime_s, 6)},
        }
        if self.control:
            found["control"] = self.control
        return found


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found of a test case.

    Attributes:
        obey: True or False; the name of a case; None: it cannot be told.
        verdict: ``fused``, ``separate``, ``free``, ``undecided``, ``unsupported``, ``unmet``, or
            the name of a case.
        evidence: What it rests on: ``graph``, ``latency``, ``formula``; empty: on nothing.
        reason: Why it cannot be told, if it cannot.
        latency: The latencies behind it, as ``"avg +- std"`` in ms.
        kernels: Types of the compute nodes that the runtime executed for the block, in order; None:
            not known.
        moves: Types of the nodes that it executed besides and that only move data.
        eliminated: The runtime dropped one of the ops, since it changes nothing there.
        free: Names of the ops that execute nothing that computes.
        edges: Of a chain of three and more ops, each two neighbours.
        when: The same question in other situations: name of the situation -> its verdict.
        others: What other kinds of evidence say: their name -> obey.
        clock: What the controlled experiment found, if there was one.
    """

    obey: Obey
    verdict: str
    evidence: str
    reason: str = ""
    latency: Mapping[str, str] = field(default_factory=dict)
    kernels: tuple[str, ...] | None = None
    moves: tuple[str, ...] = ()
    eliminated: bool = False
    free: tuple[str, ...] = ()
    edges: Sequence[Edge] = ()
    when: Mapping[str, Verdict] = field(default_factory=dict)
    others: Mapping[str, Obey] = field(default_factory=dict)
    clock: Saving | None = None

    @classmethod
    def of(cls, answer: bool | str, evidence: str, **rest: Any) -> Verdict:
        """The verdict of an answer: a truth, or the name of a case."""
        words = {True: "fused", False: "separate"}
        word = answer if isinstance(answer, str) else words[answer]
        return cls(obey=answer, verdict=word, evidence=evidence, **rest)

    @classmethod
    def none(
        cls,
        word: Literal["free", "undecided", "unsupported", "unmet"],
        reason: str,
        *,
        evidence: str = "",
        **rest: Any,
    ) -> Verdict:
        """A verdict that nothing can be told, and why."""
        return cls(obey=None, verdict=word, evidence=evidence, reason=reason, **rest)

    def to_json(self, *, detail: bool) -> dict[str, Any]:
        """As ``detected_results.json`` has it; with ``detail`` the latencies first."""
        found: dict[str, Any] = {"latency": dict(self.latency)} if detail and self.latency else {}
        found |= {"obey": self.obey, "verdict": self.verdict, "evidence": self.evidence}
        if self.reason:
            found["reason"] = self.reason
        if self.kernels is not None:
            found["kernels"] = list(self.kernels)
        if self.moves:
            found["moves"] = list(self.moves)
        if self.eliminated:
            found["eliminated"] = True
        if self.free:
            found["free"] = list(self.free)
        if self.edges:
            found["edges"] = [edge.to_json() for edge in self.edges]
        if self.when:
            found["when"] = {
                situation: verdict.to_json(detail=detail)
                for situation, verdict in self.when.items()
            }
        if self.others:
            found["others"] = dict(self.others)
        if self.clock is not None and self.evidence == "latency":
            found |= self.clock.to_json()
        elif self.clock is not None:
            if self.obey is True and self.clock.verdict in ("fused", "separate"):
                found["saves"] = self.clock.verdict == "fused"
            found["clock"] = {"verdict": self.clock.verdict, **self.clock.to_json()}
            if self.clock.reason:
                found["clock"]["reason"] = self.clock.reason
        return found
