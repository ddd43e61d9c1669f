"""Verdicts as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Obey", "Verdict"]

Obey = bool | str | None


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
    """

    obey: Obey
    verdict: str
    evidence: str
    reason: str = ""
    latency: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, answer: bool | str, evidence: str, **rest: Any) -> Verdict:
        """The verdict of an answer: a truth, or the name of a case."""
        words = {True: "fused", False: "separate"}
        word = answer if isinstance(answer, str) else words[answer]
        return cls(obey=answer, verdict=word, evidence=evidence, **rest)

    @classmethod
    def none(
        cls, word: Literal["free", "undecided", "unsupported", "unmet"], reason: str
    ) -> Verdict:
        """A verdict that nothing can be told, and why."""
        return cls(obey=None, verdict=word, evidence="", reason=reason)

    def to_json(self, *, detail: bool) -> dict[str, Any]:
        """As ``detected_results.json`` has it; with ``detail`` the latencies first."""
        found: dict[str, Any] = {"latency": dict(self.latency)} if detail and self.latency else {}
        found |= {"obey": self.obey, "verdict": self.verdict, "evidence": self.evidence}
        if self.reason:
            found["reason"] = self.reason
        return found
