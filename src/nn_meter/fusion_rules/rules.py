"""Rules as a file holds them, read and found good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

__all__ = [
    "ALONE",
    "Bound",
    "Edge",
    "Environment",
    "Finding",
    "Obey",
    "Rule",
    "RuleSet",
    "Sized",
]

Obey = bool | str | None
Environment = Mapping[str, Any]

ALONE = "alone"
"""The situation of the guide's question; what stands in a rule beside its ``obey``."""

_OPEN = frozenset({"undecided", "unsupported", "unmet"})
_SIGNS = {"fused": "+", "separate": " | ", "free": " · "}


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What holds of two neighbours in a chain.

    Attributes:
        ops: Their names.
        verdict: ``fused``, ``separate``, ``free`` or ``undecided``.
    """

    ops: tuple[str, str]
    verdict: str

    @property
    def is_open(self) -> bool:
        return self.verdict in _OPEN


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What holds in one situation.

    Attributes:
        obey: True or False; the name of a case; None: it cannot be told.
        verdict: ``fused``, ``separate``, ``free``, ``undecided``, ``unsupported``, ``unmet``, or
            the name of a case.
        evidence: What it rests on; empty: the file does not say.
        kernels: Types of what the runtime executed; None: not known.
        edges: Of a chain of three and more ops, each two neighbours.
        free: Names of the ops that execute nothing that computes.
        eliminated: The runtime dropped one of the ops.
        reason: Why it cannot be told.
    """

    obey: Obey
    verdict: str
    evidence: str = ""
    kernels: tuple[str, ...] | None = None
    edges: tuple[Edge, ...] = ()
    free: tuple[str, ...] = ()
    eliminated: bool = False
    reason: str = ""

    @property
    def is_open(self) -> bool:
        """Whether the question has no answer."""
        return self.verdict in _OPEN

    @property
    def groups(self) -> str:
        """How a chain falls apart, e.g. ``conv+bn | relu``; of anything else, nothing."""
        if not self.edges:
            return ""
        text = self.edges[0].ops[0]
        for edge in self.edges:
            text += _SIGNS.get(edge.verdict, " ? ") + edge.ops[1]
        return text

    @property
    def answer(self) -> str:
        """The verdict; of a chain that falls apart, with its groups."""
        if self.groups and self.verdict != "fused":
            return f"{self.verdict}: {self.groups}"
        return self.verdict

    def __str__(self) -> str:
        """The answer, with what a person wants to know besides."""
        if self.eliminated:
            return f"{self.answer} (one dropped)"
        return f"{self.answer} ({', '.join(self.free)})" if self.free else self.answer

    def to_json(self) -> dict[str, Any]:
        """As plain values, what is empty left out."""
        found: dict[str, Any] = {"obey": self.obey, "verdict": self.verdict}
        if self.evidence:
            found["evidence"] = self.evidence
        if self.kernels is not None:
            found["kernels"] = list(self.kernels)
        if self.edges:
            found["edges"] = [{"ops": list(e.ops), "verdict": e.verdict} for e in self.edges]
        if self.free:
            found["free"] = list(self.free)
        if self.eliminated:
            found["eliminated"] = True
        if self.reason:
            found["reason"] = self.reason
        return found


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Which sizes something holds of; all that is given must be so.

    Attributes:
        least: The smallest.
        most: The largest.
        multiple_of: They can be divided by it.
        no_multiple_of: They cannot.
    """

    least: int | None = None
    most: int | None = None
    multiple_of: int | None = None
    no_multiple_of: int | None = None

    KINDS: ClassVar[tuple[str, ...]] = ("least", "most", "multiple_of", "no_multiple_of")

    def holds(self, size: int) -> bool:
        """Whether a size is one of them."""
        return (
            (self.least is None or size >= self.least)
            and (self.most is None or size <= self.most)
            and (self.multiple_of is None or size % self.multiple_of == 0)
            and (self.no_multiple_of is None or size % self.no_multiple_of != 0)
        )

    def __str__(self) -> str:
        """In words."""
        words = {
            "least": "at least {}",
            "most": "at most {}",
            "multiple_of": "a multiple of {}",
            "no_multiple_of": "no multiple of {}",
        }
        return ", ".join(words[kind].format(size) for kind, size in self.to_json().items())

    def to_json(self) -> dict[str, int]:
        """As plain values, what is not given left out."""
        found = {kind: getattr(self, kind) for kind in self.KINDS}
        return {kind: size for kind, size in found.items() if size is not None}


@dataclass(frozen=True, kw_only=True)
class Sized:
    """What holds of a test case in other sizes than those that its rule was found in.

    Attributes:
        where: Name of a size -> which it is about. ``channels``: of each tensor that the first
            operator reads; ``spatial``: their height and width; ``out_channels``,
            ``kernel_size``, ``strides``: of the first operator.
        findings: Situation -> what holds there; ``alone`` always, and first.
    """

    where: Mapping[str, Bound]
    findings: Mapping[str, Finding]

    def holds(self, sizes: Mapping[str, Sequence[int]]) -> bool:
        """Whether it is about a place: of each size named, one there is such."""
        return all(
            any(bound.holds(size) for size in sizes.get(name, ()))
            for name, bound in self.where.items()
        )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What holds of one test case.

    Attributes:
        name: E.g. ``BF_conv_relu``.
        findings: Situation -> what holds there; ``alone`` always, and first.
        environment: Where it was found; None: not known.
        sizes: What holds in other sizes; the first that is about a place counts there.
    """

    name: str
    findings: Mapping[str, Finding]
    environment: Environment | None = None
    sizes: tuple[Sized, ...] = ()

    @property
    def alone(self) -> Finding:
        """The answer to the guide's question."""
        return self.findings[ALONE]

    @property
    def questions(self) -> dict[str, Finding]:
        """All that was found: by situation, and in other sizes by situation and sizes."""
        found = dict(self.findings)
        for sized in self.sizes:
            where = " and ".join(f"{size} is {bound}" for size, bound in sized.where.items())
            for situation, finding in sized.findings.items():
                found[f"{situation}, where {where}"] = finding
        return found


@dataclass(frozen=True, kw_only=True)
class RuleSet:
    """The rules of one file.

    Attributes:
        name: What it is called when shown.
        rules: By name, in the order of the file.
        environments: Where they were found: each once; empty: not known.
    """

    name: str
    rules: Mapping[str, Rule] = field(default_factory=dict)
    environments: tuple[Environment, ...] = ()

    def fuses(self, a: str, b: str, situation: str = ALONE) -> bool | None:
        """Whether two operators become one kernel where ``b`` reads what ``a`` gives.

        Args:
            a: Name of the first operator.
            b: Name of the second.
            situation: Where they stand, e.g. ``context/conv``.

        Returns:
            None: there is no such rule, it was not asked in this situation, it cannot be told, or
            one of the two executes nothing.
        """
        rule = self.rules.get(f"BF_{a}_{b}")
        found = rule.findings.get(situation) if rule is not None else None
        return found.obey if found is not None and isinstance(found.obey, bool) else None

    def described(self) -> str:
        """Where the rules were found, in words."""
        return "; ".join(map(_words, self.environments)) or "environment not known"


def _words(environment: Environment) -> str:
    told = {key: str(environment[key]) for key in environment}
    parts = [" ".join(told[key] for key in ("runtime", "version") if key in told)]
    if "device" in told:
        parts[0] += f" on {told['device']}"
    if "threads" in told:
        parts.append(f"{told['threads']} thread" + ("s" if told["threads"] != "1" else ""))
    if "dtype" in told:
        parts.append(told["dtype"])
    models = environment.get("options", {}).get("models", {})
    if "IMPLEMENT" in models:
        parts.append(f"{models['IMPLEMENT']} models")
    return ", ".join(part for part in parts if part)
