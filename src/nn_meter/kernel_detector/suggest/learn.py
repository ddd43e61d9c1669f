"""Going round: cut, propose, ask, take over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nn_meter.fusion_rules.read import parse_rules
from nn_meter.fusion_rules.rules import ALONE, Rule
from nn_meter.kernel_detector.rule_source import load_rules
from nn_meter.kernel_detector.sizes import sizes_of
from nn_meter.kernel_detector.suggest.asking import Answers, Asks, begins_with_image
from nn_meter.kernel_detector.suggest.borders import find_border
from nn_meter.kernel_detector.suggest.cut import Cut, Known, WrongEdge, cut
from nn_meter.kernel_detector.suggest.proposals import (
    LONGEST,
    Proposal,
    Unasked,
    chains_around,
    proposals,
)

__all__ = ["Asked", "Learned", "Left", "learn"]

_COMPARED = (ALONE, "context")
_MOST_ROUNDS = 12
_MOST_AT_ONCE = 48
_MOST_BORDERS = 8


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A test case that was proposed and asked.

    Attributes:
        proposal: The test case, and why it was proposed.
        verdict: What came out; of one that cannot be built ``cannot be built``.
        when: Situation -> what came out there.
        reason: Why it cannot be told, or was not taken over.
        is_kept: It is among the rules now.
    """

    proposal: Proposal
    verdict: str
    when: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    is_kept: bool = False

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        found: dict[str, Any] = {
            "name": self.proposal.name,
            "kind": self.proposal.kind,
            "why": self.proposal.why,
            "edges": self.proposal.edges,
            "verdict": self.verdict,
            "when": dict(self.when),
            "kept": self.is_kept,
        }
        return {**found, "reason": self.reason} if self.reason else found


@dataclass(frozen=True, kw_only=True)
class Left:
    """Edges that differ all the same.

    Attributes:
        operators: Two neighbours; of one operator that several ops make up it alone, twice.
        fused: Whether the runtime executed them as one.
        why: Why the rules say something else, in words.
        edges: How many there are.
    """

    operators: tuple[str, str]
    fused: bool
    why: str
    edges: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "operators": list(self.operators),
            "executed": "fused" if self.fused else "separate",
            "why": self.why,
            "edges": self.edges,
        }


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What was learned of a model.

    Attributes:
        rules: All rules, as a rule file has them.
        asked: What was asked, in that order.
        unasked: What cannot be asked.
        before: The model cut by the rules as they were.
        after: The model cut by the rules as they are.
    """

    rules: Mapping[str, Any]
    asked: Sequence[Asked]
    unasked: Sequence[Unasked]
    before: Cut
    after: Cut

    @property
    def kept(self) -> list[str]:
        """Names of the rules that are new, or found anew."""
        return list(dict.fromkeys(a.proposal.name for a in self.asked if a.is_kept))

    @property
    def left(self) -> list[Left]:
        """What differs all the same, the most edges first."""
        counted = Counter(_left(self.after, edge) for edge in self.after.edges)
        return [
            Left(operators=operators, fused=fused, why=why, edges=edges)
            for (operators, fused, why), edges in counted.most_common()
        ]


def learn(known: Known, rules: Mapping[str, Any], asker: Asks) -> Learned:
    """Learn what rules lack to cut a model as a runtime does.

    A rule of a pair is taken over unless more edges of this model are wrong by it; one of a chain,
    or of some sizes, only if fewer are.

    Args:
        known: The model, and what the runtime executed of it.
        rules: The rules, as a rule file has them.
        asker: Asks the same runtime.
    """
    going = _Going(known, dict(rules), asker)
    before = going.now
    length = 2
    while length <= LONGEST:
        is_new = going.ask_what_is_missing(length) or going.ask_in_sizes(length)
        length = 2 if is_new else length + 1
    return Learned(
        rules=going.rules,
        asked=list(going.asked.values()),
        unasked=going.unasked(),
        before=before,
        after=going.now,
    )


def _left(found: Cut, edge: WrongEdge) -> tuple[tuple[str, str], bool, str]:
    a, b = (found.model.nodes[place].operator for place in edge.nodes)
    if edge.nodes[0] == edge.nodes[1]:
        why = "several ops that were taken for one operator"
    elif edge.decision is None:
        why = "no rule was asked"
    else:
        rule = f" ({edge.decision.rule})" if edge.decision.rule else ""
        why = edge.decision.why + rule
    return (a, b), edge.fused, why


class _Going:
    """The rules so far, and what was asked for them."""

    def __init__(self, known: Known, rules: dict[str, Any], asker: Asks) -> None:
        self.rules = rules
        self.asked: dict[str, Asked] = {}
        self._known = known
        self._asker = asker
        self._found: dict[str, dict[str, Any]] = {}  # whatever came out, taken over or not
        self._tried: set[tuple[str, str]] = set()
        self._rounds = self._borders = 0
        self.now = self._cut(rules)

    def _cut(self, rules: Mapping[str, Any]) -> Cut:
        return cut(self._known, load_rules(rules))

    def unasked(self) -> list[Unasked]:
        """What cannot be asked of the edges that still differ."""
        return self._propose()[1]

    def _propose(self, length: int = 2) -> tuple[list[Proposal], list[Unasked]]:
        operators = self._asker.operators
        return proposals(self.now, load_rules(self.rules), self.asked, operators, length)

    # --- test cases ------------------------------------------------------------------------------

    def ask_what_is_missing(self, length: int) -> bool:
        """Propose, ask and take over until nothing is proposed; True: rules were taken over."""
        is_new = False
        while self._rounds < _MOST_ROUNDS:
            proposed = self._propose(length)[0][:_MOST_AT_ONCE]
            if not proposed:
                break
            self._rounds += 1
            is_new = self._ask(proposed) or is_new
        return is_new

    def _ask(self, proposed: Sequence[Proposal]) -> bool:
        answers = self._asker.ask([proposal.name for proposal in proposed])
        for proposal in proposed:
            self.asked[proposal.name] = _asked(proposal, answers)
        told = {
            proposal.name: answers.rules[proposal.name]
            for proposal in proposed
            if _is_told(self.asked[proposal.name], answers)
        }
        self._found |= {
            proposal.name: answers.rules[proposal.name]
            for proposal in proposed
            if proposal.name in answers.rules
        }
        short = {p.name: told[p.name] for p in proposed if p.name in told and p.kind != "chain"}
        is_new = bool(short) and self._take(short)
        if not is_new:
            for name, rule in short.items():
                is_new = self._take({name: rule}) or is_new
        for proposal in proposed:
            if proposal.kind == "chain" and proposal.name in told:
                new = {proposal.name: told[proposal.name]}
                is_new = self._take(new, only_if_better=True) or is_new
        return is_new

    def _take(self, new: Mapping[str, Any], *, only_if_better: bool = False) -> bool:
        """Take rules over, unless the model is cut worse by them."""
        rules = {**self.rules, **new}
        found = self._cut(rules)
        reason = ""
        if found.wrong > self.now.wrong:
            reason = "edges are wrong by it that were right"
        elif only_if_better and found.wrong == self.now.wrong:
            reason = "no edge is right by it that was wrong"
        elif only_if_better and any(self._is_beside_the_point(name, found) for name in new):
            reason = "it could not be asked as the model has it, with something around"
        is_taken = not reason
        if is_taken:
            self.rules, self.now = rules, found
        for name in new:
            self.asked[name] = replace(self.asked[name], is_kept=is_taken, reason=reason)
        return is_taken

    def _is_beside_the_point(self, name: str, found: Cut) -> bool:
        """Whether a rule decides by what it says with nothing around, of images in a model.

        What a runtime does with an image's layout goes by what is around it.
        """
        return begins_with_image(name, self._asker.sizes) and any(
            decision.rule == name and decision.situation.startswith(ALONE)
            for decision in found.decisions.values()
        )

    # --- sizes -----------------------------------------------------------------------------------

    def ask_in_sizes(self, length: int) -> bool:
        """Ask rules in the sizes of edges that differ; True: one was taken over."""
        for edge in self.now.edges:
            for name, speaks in self._candidates(edge, length):
                here = (name, str(sizes_of(self.now.model, speaks)))
                if here in self._tried or self._borders == _MOST_BORDERS:
                    continue
                self._tried.add(here)
                self._borders += 1
                if self._is_otherwise(name) or self._ask_in_sizes(name, speaks, edge):
                    return True
        return False

    def _is_otherwise(self, name: str) -> bool:
        """Whether a rule of the file comes out otherwise here, in the usual sizes; then it goes."""
        if name in self._found:
            return False
        proposal = Proposal(kind="again", name=name, why="by its rule an edge is wrong")
        answers = self._asker.ask([name])
        if name in answers.rules:
            self._found[name] = answers.rules[name]
        asked = _asked(proposal, answers)
        if not _is_told(asked, answers) or _say_the_same(name, self._found, self.rules):
            return False
        self.asked[name] = asked
        return self._take({name: self._found[name]})

    def _ask_in_sizes(self, name: str, speaks: int, edge: WrongEdge) -> bool:
        rules = {name: self._found[name], **self.rules} if name in self._found else self.rules
        found = find_border(name, speaks, edge, known=self._known, rules=rules, asker=self._asker)
        after = self._cut({**rules, name: found.rule}) if found is not None else self.now
        if found is None or after.wrong >= self.now.wrong:
            if name not in self.asked:
                self.asked[name] = self._same(name)
            return False
        self.rules, self.now = {**rules, name: found.rule}, after
        earlier = self.asked.get(name)
        why = f"by its rule an edge is wrong whose {found.size} are others"
        proposal = (
            replace(earlier.proposal, kind="sizes", why=why)
            if earlier
            else Proposal(kind="sizes", name=name, why=why)
        )
        sizes = ", ".join(f"{size}: {words}" for size, words in found.verdicts.items())
        self.asked[name] = Asked(
            proposal=proposal,
            verdict=_rule(name, found.rule).alone.answer,
            when=_when(name, found.rule),
            reason=f"where {found.size} is {found.bound}, it is otherwise ({sizes})",
            is_kept=True,
        )
        return True

    def _same(self, name: str) -> Asked:
        """A rule that is not otherwise in the sizes of the model."""
        why = "by its rule an edge is wrong"
        return Asked(
            proposal=Proposal(kind="sizes", name=name, why=why),
            verdict=_rule(name, self.rules[name]).alone.answer,
            when=_when(name, self.rules[name]),
            reason="no condition on one size was found by which the edge is right",
        )

    def _candidates(self, edge: WrongEdge, length: int) -> Iterator[tuple[str, int]]:
        """Rules that could be otherwise in the sizes of an edge, and whose sizes count."""
        if length > 2:
            for name, first in chains_around(self.now.model, edge, length):
                if name in self._found:
                    yield name, first
            return
        decision, operators = edge.decision, self._asker.operators
        places = {node.name: place for place, node in enumerate(self.now.model.nodes)}
        if (
            decision is not None
            and decision.rule in self.rules
            and decision.speaks
            and decision.rule.startswith("BF_")
            and all(op in operators for op in decision.rule.split("_")[1:])
        ):
            yield decision.rule, places[decision.speaks]


def _is_told(asked: Asked, answers: Answers) -> bool:
    name = asked.proposal.name
    return name in answers.rules and not _rule(name, answers.rules[name]).alone.is_open


def _asked(proposal: Proposal, answers: Answers) -> Asked:
    name = proposal.name
    if name not in answers.rules:
        reason = answers.refused.get(name, "it was not built")
        return Asked(proposal=proposal, verdict="cannot be built", reason=reason)
    rule = _rule(name, answers.rules[name])
    return Asked(
        proposal=proposal,
        verdict=rule.alone.answer,
        when=_when(name, answers.rules[name]),
        reason=rule.alone.reason,
    )


def _rule(name: str, rule: Mapping[str, Any]) -> Rule:
    return parse_rules({name: rule}, "rules").rules[name]


def _say_the_same(name: str, some: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Whether two findings of a rule agree, with nothing around and in context."""
    one, other = (_rule(name, rules[name]).findings for rules in (some, others))
    return all(
        (one[place].groups or one[place].verdict) == (other[place].groups or other[place].verdict)
        for place in _COMPARED
        if place in one and place in other
    )


def _when(name: str, rule: Mapping[str, Any]) -> dict[str, str]:
    return {
        situation: finding.answer
        for situation, finding in _rule(name, rule).findings.items()
        if situation != ALONE
    }
