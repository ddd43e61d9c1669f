"""What rules say of two neighbours, and of chains, where they stand in a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from nn_meter.fusion_rules.rules import ALONE, Finding, Rule, RuleSet
from nn_meter.kernel_detector.patterns import Patterns
from nn_meter.kernel_detector.recognition import Node, Recognized

__all__ = ["Answer", "Chain", "Place", "Rulebook", "find_chains"]

_CONTEXT = "context"
_AGAIN = "context/again"
_BEFORE = "avgpool"
"""What stands right before a block in ``context``."""
_KERNELS_AROUND = 3  # of what stands around a block: a convolution and a pool, and a pool


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a rule says.

    Attributes:
        verdict: ``fused``, ``separate``, ``free``; ``undecided``: it cannot be told; ``missing``:
            there is no such rule.
        rule: Its name; of a missing one the name that was looked for.
        situation: Where its finding was made.
        asked: The operators that were looked for.
        speaks: Place of the node whose sizes count.
        is_free: Two that are alike are fused, as one of them executes nothing.
    """

    verdict: str
    rule: str
    situation: str = ""
    asked: tuple[str, ...] = ()
    speaks: int | None = None
    is_free: bool = False


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a block stands.

    Attributes:
        alone: Nothing is before it and nothing behind.
        operand: Where a second operand comes from: ``/conv``, ``/passed`` on from one, ``/own``, or
            empty.
        speaks: Place of the node whose sizes count.
        sizes: Its sizes, by the names that rules have for them (``Sized``); None: no rule asks.
        is_read_again: A second operand is there before the block, and something reads it that is
            not.
    """

    alone: bool
    operand: str = ""
    speaks: int | None = None
    sizes: Mapping[str, Sequence[int]] | None = None
    is_read_again: bool = False

    @property
    def situations(self) -> tuple[str, ...]:
        """The situations to look for, the best first: an operand's origin before what is around."""
        around = (ALONE, _CONTEXT) if self.alone else (_CONTEXT, ALONE)
        operands = [self.operand, *(["/conv"] if self.operand == "/passed" else []), ""]
        return tuple(dict.fromkeys(place + operand for operand in operands for place in around))


class Rulebook:
    """Rules to look things up in.

    Args:
        rules: The rules.
        patterns: Say which operators stand for others.
    """

    def __init__(self, rules: RuleSet, patterns: Patterns) -> None:
        self._rules = rules.rules
        self._folds_as = patterns.folds_as
        self._stands_for = patterns.stands_for
        self.chains: Mapping[tuple[str, ...], Rule] = {
            ops: rule
            for name, rule in rules.rules.items()
            if name.startswith("BF_") and len(ops := tuple(name.split("_")[1:])) > 2
        }
        self._spread = _spread(rules)
        self._one_op = _one_op(rules, patterns)
        self._taken: dict[str, bool] = {}
        self._joined = _joined(rules)
        self.by_reading_again = any(_AGAIN in rule.findings for rule in rules.rules.values())
        self.by_size = any(rule.sizes for rule in rules.rules.values())

    def pair(self, a: str, b: str, place: Place) -> Answer:
        """What is said of ``b`` behind ``a``.

        Where there is no rule of an op with a constant operand, one of the like op with two
        operands stands in, as found alone: a second operand from elsewhere may come in a layout
        that does not fit, and a constant fits any.
        """
        name = f"BF_{a}_{b}"
        rule = self._rules.get(name)
        if rule is not None:
            return self._answer(rule, place, (a, b))
        for first in (a, *self._stands_for.get(a, ())):
            for second in (b, *self._stands_for.get(b, ())):
                rule = self._rules.get(f"BF_{first}_{second}")
                if rule is not None:
                    alone = Place(alone=True, speaks=place.speaks, sizes=place.sizes)
                    return self._answer(rule, alone, (a, b))
        return Answer(verdict="missing", rule=name, asked=(a, b), speaks=place.speaks)

    def fold(self, a: str, b: str, place: Place) -> Answer:
        """What is said of ``b`` right behind a heavy op, whose weights could take it in."""
        answer = self.pair(a, b, place)
        stand_in = self._folds_as.get(b)
        if stand_in is None or f"BF_{a}_{b}" in self._rules:
            return answer
        folded = self.pair(a, stand_in, place)
        return answer if folded.verdict == "missing" != answer.verdict else folded

    def edge(self, chain: Chain, position: int, place: Place) -> Answer | None:
        """What a chain says of two neighbours in it; None: nothing."""
        situation, found = _finding(chain.rule, place, or_less_fitting=False)
        if found is None:
            return None
        if len(found.edges) == len(chain.nodes) - 1:
            verdict = found.edges[position].verdict
        elif found.obey is True:
            verdict = "fused"
        else:
            return None
        if verdict not in ("fused", "separate", "free"):
            return None
        return Answer(
            verdict=verdict,
            rule=chain.rule.name,
            situation=situation,
            asked=tuple(chain.rule.name.split("_")[1:]),
            speaks=place.speaks,
        )

    def is_taken_in_context(self, operator: str) -> bool:
        """Whether what stands before a block in ``context`` takes an operator.

        Then what was found there of the one that follows is about that kernel.
        """
        if operator not in self._taken:
            rule = self._rules.get(f"BF_{_BEFORE}_{operator}")
            self._taken[operator] = rule is not None and rule.alone.verdict == "fused"
        return self._taken[operator]

    def knows(self, operators: Sequence[str]) -> bool:
        """Whether there is something to say of each two neighbours in a row."""
        anywhere = Place(alone=True)
        return all(
            self.pair(a, b, anywhere).verdict in ("fused", "separate")
            for a, b in pairwise(operators)
        )

    def case(self, name: str) -> str | bool | None:
        """How a test case of cases came out; None: it cannot be told, or there is none."""
        return self._rules[name].alone.obey if name in self._rules else None

    def is_spread(self, operator: str) -> bool:
        """Whether an operator by itself was seen to execute as more than one kernel."""
        return self._spread.get(operator, 1) > 1

    def is_written_otherwise(self, node: Node) -> bool:
        """Whether a composite is written in other steps than what rules were found with.

        A runtime that executes an operator as several kernels goes by its steps, and does not know
        it by another way to write it. One that was asked about the operator as one op was not asked
        about its steps; where rules tell of these, one by one, they count.
        """
        if node.operator in self._one_op and node.parts and self.knows(node.parts):
            return True
        return (
            node.steps > 1
            and self.is_spread(node.operator)
            and self._spread[node.operator] not in (node.steps, len(node.ops))
        )

    @property
    def never_one(self) -> frozenset[str]:
        """Operators seen to execute as several kernels, whatever they stand next to."""
        return frozenset(op for op in self._spread if self.is_spread(op) and op not in self._joined)

    def _answer(self, rule: Rule, place: Place, asked: tuple[str, ...]) -> Answer:
        situation, found = _finding(rule, place)
        verdict = "undecided" if found is None else found.verdict
        again = rule.findings.get(_AGAIN) if place.is_read_again else None
        if verdict == "fused" and again is not None and again.verdict == "separate":
            situation, verdict = _AGAIN, "separate"
        # one of two that are alike executes nothing: both are in one kernel
        is_free = verdict == "free" and len(set(asked)) == 1
        return Answer(
            verdict="fused" if is_free else verdict,
            rule=rule.name,
            situation=situation,
            asked=asked,
            speaks=place.speaks,
            is_free=is_free,
        )


def _finding(
    rule: Rule, place: Place, *, or_less_fitting: bool = True
) -> tuple[str, Finding | None]:
    """The finding that fits best, in sizes of its own if there are such.

    One that is open gives way to the next that is decided, unless only the best will do.
    """
    findings = rule.findings
    if rule.sizes and place.sizes is not None:
        sized = (sized.findings for sized in rule.sizes if sized.holds(place.sizes))
        findings = next(sized, findings)
    for situation in place.situations:
        found = findings.get(situation)
        if found is None:
            continue
        if not found.is_open:
            return situation, found
        if not or_less_fitting:
            break
    return "", None


def _pairs(rules: RuleSet, situation: str) -> Iterator[tuple[tuple[str, ...], Finding, int]]:
    """What is known of pairs: their ops, the finding, and how many kernels were executed."""
    for name, rule in rules.rules.items():
        ops, found = tuple(name.split("_")[1:]), rule.findings.get(situation)
        if len(ops) != 2 or not name.startswith("BF_") or found is None or found.kernels is None:
            continue
        yield ops, found, len(found.kernels)


def _spread(rules: RuleSet) -> dict[str, int]:
    """Operator -> how few kernels it takes by itself, as far as pairs tell.

    A pair whose two ops are separate executes the kernels of both, and each has one at least.
    """
    counted: dict[str, int] = {}
    for ops, found, kernels in _pairs(rules, ALONE):
        if found.verdict in ("fused", "separate"):
            most = kernels - (found.verdict == "separate")
            for op in ops:
                counted[op] = min(counted.get(op, most), most)
    return counted


def _one_op(rules: RuleSet, patterns: Patterns) -> frozenset[str]:
    """Operators that were one op in all the models that rules were found with."""
    options = [environment.get("options") or {} for environment in rules.environments]
    found = [
        frozenset(patterns.one_op.get(str((each.get("models") or {}).get("IMPLEMENT")), ()))
        for each in options
    ]
    return frozenset.intersection(*found) if found else frozenset()


def _joined(rules: RuleSet) -> frozenset[str]:
    """Operators that became one kernel with another one, in some situation."""
    return frozenset(
        op
        for situation, around in ((ALONE, 0), (_CONTEXT, _KERNELS_AROUND))
        for ops, found, kernels in _pairs(rules, situation)
        if found.verdict == "fused" and kernels - around <= 1
        for op in ops
    )


# --- chains --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A place in a model that a rule of three ops and more is about.

    Attributes:
        rule: The rule.
        nodes: Places of the nodes, each the only reader of the one before; of the first there may
            be others, then the chain says nothing of the edge behind it.
    """

    rule: Rule
    nodes: tuple[int, ...]


def find_chains(
    model: Recognized, rules: Mapping[tuple[str, ...], Rule]
) -> tuple[dict[tuple[int, int], tuple[Chain, int]], list[tuple[Chain, Chain]]]:
    """Find the edges that chains speak for: where several do the longest, then the first.

    Returns:
        Two neighbours -> the chain and their position in it; and the chains that gave way, each
        with the one that it gave way to.
    """
    runs: list[Chain] = []
    prefixes = {ops[:end] for ops in rules for end in range(1, len(ops) + 1)}
    for start in range(len(model.nodes)) if rules else ():
        first = model.nodes[start].operator
        if (first,) not in prefixes:
            continue
        for second in model.readers[start]:
            ops: tuple[str, ...] = (first,)
            path: list[int] = [start]
            place: int | None = second
            while place is not None:
                ops = (*ops, model.nodes[place].operator)
                if ops not in prefixes:
                    break
                path.append(place)
                if ops in rules:
                    runs.append(Chain(rule=rules[ops], nodes=tuple(path)))
                place = _only_reader(model, place)
    claimed: dict[tuple[int, int], tuple[Chain, int]] = {}
    gave_way: list[tuple[Chain, Chain]] = []
    for run in sorted(runs, key=lambda run: (-len(run.nodes), run.nodes)):
        edges = dict(enumerate(zip(run.nodes, run.nodes[1:], strict=False)))
        if _only_reader(model, run.nodes[0]) is None:
            del edges[0]  # what others read too is nobody's, whatever the chain says
        other = next((claimed[edge][0] for edge in edges.values() if edge in claimed), None)
        if other is not None:
            gave_way.append((run, other))
            continue
        claimed |= {edge: (run, position) for position, edge in edges.items()}
    return claimed, gave_way


def _only_reader(model: Recognized, place: int) -> int | None:
    readers: Sequence[int] = model.readers[place]
    return readers[0] if len(readers) == 1 and not model.nodes[place].is_kept else None
