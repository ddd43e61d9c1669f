"""One model being split: kernels that grow as rules say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nn_meter.kernel_detector.customized import Customized, find_blocks
from nn_meter.kernel_detector.pair_rules import Answer, Place, Rulebook, find_chains
from nn_meter.kernel_detector.recognition import Node, Recognized
from nn_meter.kernel_detector.rule_source import FIRST_READER
from nn_meter.kernel_detector.sizes import sizes_of

__all__ = ["Decision", "Group", "Split"]

_MOST_OPERANDS = 64
"""Of an op that reads more, it is not asked for each where all the others come from."""

_OPERAND = "conv"
"""The operator whose output is a second operand in the situations ``/conv``."""

_WORDS = {
    "fused": "the rule says so",
    "separate": "the rule says so",
    "free": "one of the two executes nothing",
    "undecided": "the rule cannot tell",
    "missing": "there is no rule",
}


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided of two neighbours.

    Attributes:
        edge: Names of the nodes: the one that writes, the one that reads.
        operators: Their operators.
        rule: The rule that decided; of a missing one the name that was looked for; empty: none was
            asked.
        situation: Where the rule's finding was made, e.g. ``context/conv``.
        fused: They ended in one kernel.
        why: In words.
        asked: The operators that a rule was looked for, in their order; empty: none was.
        speaks: Name of the node whose sizes count; empty: no rule was looked for.
    """

    edge: tuple[str, str]
    operators: tuple[str, str]
    fused: bool
    why: str
    rule: str = ""
    situation: str = ""
    asked: tuple[str, ...] = ()
    speaks: str = ""


@dataclass(slots=True)
class Group:
    """A kernel that grows.

    Attributes:
        nodes: Places of its nodes.
        tail: The one behind which others may join.
        last: The same, views aside.
        anchor: The first that is heavy.
        merge: The last that joined and reads something else besides.
        folds: Behind the anchor stand only linear ops, which end in its weights.
        leaks: A node that is not its last is read from outside. Then what joins may read nothing
            else from outside: no cycle arises as long as all that enters a kernel leads to all that
            leaves it.
        is_closed: A customized rule says what is in it.
    """

    nodes: list[int]
    tail: int
    last: int
    anchor: int | None = None
    merge: int | None = None
    folds: bool = True
    leaks: bool = False
    is_closed: bool = False


@dataclass(frozen=True, slots=True)
class _Verdict:
    fused: bool
    why: str
    answer: Answer | None = None


class Split:
    """One model being split.

    Args:
        model: The model.
        book: The rules.
        customized: Rules of users' own; they come first.

    Attributes:
        model: The model.
        decisions: For each two neighbours.
        conflicts: Rules that gave way to others, in words.
    """

    def __init__(self, model: Recognized, book: Rulebook, customized: Sequence[Customized]) -> None:
        self.model = model
        self.decisions: list[Decision] = []
        self.conflicts: list[str] = []
        self._nodes = model.nodes
        self._known = model.patterns
        self._book = book
        self._group_of: list[Group | None] = [None] * len(model.nodes)
        self._chosen: dict[int, int | None] = {}
        self._is_from_conv = self._from_convolutions()
        self._chains, gave_way = find_chains(model, book.chains)
        self.conflicts += [
            f"{chain.rule.name} at {self._nodes[chain.nodes[0]].name} gave way to "
            f"{other.rule.name} at {self._nodes[other.nodes[0]].name}"
            for chain, other in gave_way
        ]
        self._apply(customized)
        for place in range(len(self._nodes)):
            if self._group_of[place] is None:
                self._settle(place)

    def groups(self) -> Iterator[Group]:
        """Each kernel once, by its first node."""
        for place in range(len(self._nodes)):
            group = self._group(place)
            if group.nodes[0] == place:
                yield group

    def lonely(self) -> Iterator[Node]:
        """Nodes that are kernels by themselves, views aside."""
        for group in self.groups():
            found = [place for place in group.nodes if not self._is_view(place)]
            if len(found) == 1 and not group.is_closed:
                yield self._nodes[found[0]]

    # --- one node --------------------------------------------------------------------------------

    def _settle(self, place: int) -> None:
        node = self._nodes[place]
        if node.inside is not None:
            self._hang(node.inside, place, "one op does both")
            return
        sources = list(
            dict.fromkeys(self.model.makers[t] for t in node.inputs if t in self.model.makers)
        )
        if self._is_view(place) and sources:
            self._settle_view(place, sources)
            return
        verdicts = [self._asked(source, place) for source in sources]
        taken = self._taker(place, sources, verdicts)
        for source, verdict in zip(sources, verdicts, strict=True):
            why, fused = verdict.why, source == taken
            if verdict.fused and not fused:
                why = "another input took it" if taken is not None else "MIN: no input takes it"
            self._record(source, place, _Verdict(fused, why, verdict.answer))
        if taken is None:
            self._start(place)
        else:
            self._join(taken, place)

    def _taker(
        self, place: int, sources: Sequence[int], verdicts: Sequence[_Verdict]
    ) -> int | None:
        """Which of a node's inputs takes it, if several could: the first, unless MIN says else."""
        could = [source for source, v in zip(sources, verdicts, strict=True) if v.fused]
        if len(could) < 2:
            return could[0] if could else None
        readers = self.model.readers[place]
        behind = self._nodes[readers[0]].operator if len(readers) == 1 else ""
        for name in ("MINRELU", "MIN") if behind == "relu" else ("MIN",):
            case = self._book.case(name)
            if case == "case1":
                return None
            if case in ("case2", "case3"):
                return could[0 if case == "case2" else 1]
        return could[0]

    def _settle_view(self, place: int, sources: Sequence[int]) -> None:
        """A view goes with what makes its tensor, unless a rule says that it is a kernel."""
        source, group = sources[0], self._group(sources[0])
        node, maker = self._nodes[place], self._nodes[source]
        alone = self._is_alone(source, place)
        answer = self._book.pair(maker.operator, node.operator, Place(alone=alone))
        enters = len(sources) > 1 or len(node.inputs) > 1
        if answer.verdict == "separate" or enters:
            why = "a kernel of its own" if not enters else "it reads other tensors besides"
            self._record(source, place, _Verdict(False, why, answer))
            self._start(place)
        else:
            self._hang(source, place, "a view", answer)
            if self._is_only_reader(source, place) and group.tail == source:
                group.tail = place
            else:
                group.leaks = True
        for other in sources[1:]:
            self._record(other, place, _Verdict(False, "a view"))

    # --- kernels that grow -----------------------------------------------------------------------

    def _group(self, place: int) -> Group:
        group = self._group_of[place]
        if group is None:  # nodes are settled in a topological order
            raise AssertionError(f"{self._nodes[place].name} was read before it was settled")
        return group

    def _start(self, place: int) -> None:
        group = Group(nodes=[place], tail=place, last=place)
        self._count(group, place)
        self._group_of[place] = group

    def _count(self, group: Group, place: int) -> None:
        """Note what a new node means for those that join later."""
        if group.anchor is None:
            group.anchor = place if self._is_heavy(place) else None
        elif self._nodes[place].operator not in self._known.linear:
            group.folds = False

    def _hang(self, source: int, place: int, why: str, answer: Answer | None = None) -> None:
        """Put a node into the kernel of the only one that it reads."""
        group = self._group(source)
        group.nodes.append(place)
        self._group_of[place] = group
        if not self._is_view(place):
            self._count(group, place)
            if group.tail == source and self._is_only_reader(source, place):
                group.tail = group.last = place
            else:
                group.leaks = True
        self._record(source, place, _Verdict(True, why, answer))

    def _join(self, source: int, place: int) -> None:
        group = self._group(source)
        if len(self.model.readers[source]) > 1:
            group.leaks = True
        group.nodes.append(place)
        group.tail = group.last = place
        self._count(group, place)
        if len(self._nodes[place].inputs) > 1:
            group.merge = place
        self._group_of[place] = group

    # --- may it join -----------------------------------------------------------------------------

    def _asked(self, source: int, place: int) -> _Verdict:
        """Whether a node may join the kernel of one that it reads."""
        group = self._group(source)
        answer = self._answer(group, source, place)
        fused = answer.verdict == "fused"
        why = _WORDS.get(answer.verdict, answer.verdict)
        refusal = self._refusal(group, source, place) if fused else ""
        return _Verdict(fused and not refusal, refusal or why, answer)

    def _refusal(self, group: Group, source: int, place: int) -> str:
        """Why a node cannot join, whatever the pair's rule says; empty: it can."""
        if self._nodes[source].is_kept:
            return "the model gives the tensor between them"
        if group.is_closed:
            return "a customized rule says what is in its kernel"
        if group.tail != source:
            return "its kernel goes on elsewhere"
        if not self._is_only_reader(source, place):
            why = self._several(group, source, place)
            if why:
                return why
        if group.last != source and not self._is_undone(group, source, place):
            return "a view stands between"
        leaks = group.leaks or len(self.model.readers[source]) > 1
        if leaks and self._enters(group, place):
            return "it reads another kernel, which may need this one first"
        return ""

    def _answer(self, group: Group, source: int, place: int) -> Answer:
        around = self._place(group, place)
        chain = self._chains.get((source, place))
        if chain is not None:
            run, position = chain
            in_chain = replace(
                around,
                operand=self._operand_of_chain(run.nodes),
                speaks=run.nodes[0],
                sizes=self._sizes(run.nodes[0]),
            )
            answer = self._book.edge(run, position, in_chain)
            if answer is not None:
                return answer
        node, last = self._nodes[place].operator, self._nodes[group.last].operator
        if source != group.last:  # a rule may join across a view
            view = self._nodes[source].operator
            answer = self._book.pair(view, node, self._spoken_by(source, around))
            if answer.verdict == "fused":
                return answer
        if group.anchor is None:
            return self._book.pair(last, node, around)
        anchor = self._nodes[group.anchor].operator
        if node in self._known.linear or self._is_heavy(place):
            if group.folds:
                return self._book.fold(anchor, node, around)
            return self._book.pair(last, node, self._spoken_by(group.last, around))
        speaks = group.anchor
        if group.merge is not None and len(self._nodes[place].inputs) > 1:
            speaks = group.merge
        spoken = self._spoken_by(speaks, around)
        answer = self._book.pair(self._nodes[speaks].operator, node, spoken)
        if answer.verdict == "fused" and last in self._known.nonlinear:
            # the rule is about what has none so far
            return self._book.pair(last, node, self._spoken_by(group.last, around))
        return answer

    def _spoken_by(self, place: int, around: Place) -> Place:
        """The same place, by the sizes of another node."""
        if place == around.speaks:
            return around
        return Place(
            alone=around.alone, operand=around.operand, speaks=place, sizes=self._sizes(place)
        )

    # --- several readers -------------------------------------------------------------------------

    def _several(self, group: Group, source: int, place: int) -> str:
        """Why a node cannot take a tensor that others read too; empty: MON lets it."""
        case = self._book.case("MON")
        if case is True:
            case = FIRST_READER
        if case not in ("case2", "case3", FIRST_READER):
            return "several ops read the tensor" + (" (MON: case1)" if case == "case1" else "")
        if source not in self._chosen:
            fitting = (
                reader
                for reader in self.model.readers[source]
                if self._is_branch(reader, str(case))
                and self._answer(group, source, reader).verdict == "fused"
            )
            self._chosen[source] = next(fitting, None)
        chosen = self._chosen[source]
        return "" if chosen == place else f"several ops read the tensor (MON: {case})"

    def _is_branch(self, reader: int, case: str) -> bool:
        """Whether a reader's branch is the one of a case: what follows is heavy, or is not."""
        if case == FIRST_READER:
            return True
        behind = [self._is_heavy(place) for place in self.model.readers[reader]]
        return any(behind) if case == "case3" else bool(behind) and not any(behind)

    def _is_only_reader(self, source: int, place: int) -> bool:
        readers = self.model.readers[source]
        return not self._nodes[source].is_kept and len(readers) == 1 and readers[0] == place

    def _enters(self, group: Group, place: int) -> bool:
        """Whether a node reads what other kernels write, or the model is given."""
        return any(
            tensor not in self.model.makers
            or self._group_of[self.model.makers[tensor]] is not group
            for tensor in self._nodes[place].inputs
        )

    # --- where it stands -------------------------------------------------------------------------

    def _place(self, group: Group, place: int) -> Place:
        node, first = self._nodes[place], self._nodes[group.nodes[0]]
        operand = ""
        if 1 < len(node.inputs) <= _MOST_OPERANDS:
            others = [
                t
                for t in node.inputs
                if t not in self.model.makers or self._group_of[self.model.makers[t]] is not group
            ]
            operand = self._operand(others, first.inputs)
        elif group.anchor is None and len(self._nodes[group.last].inputs) > 1:
            operand = self._unclaimed(group.last)
        speaks = group.last if group.anchor is None else group.anchor
        return Place(
            alone=self._is_alone(group.nodes[0], place),
            operand=operand,
            speaks=speaks,
            sizes=self._sizes(speaks),
        )

    def _sizes(self, place: int) -> Mapping[str, Sequence[int]] | None:
        """The sizes of a node, if a rule asks for any."""
        return sizes_of(self.model, place) if self._book.by_size else None

    def _is_alone(self, first: int, last: int) -> bool:
        before = any(tensor in self.model.makers for tensor in self._nodes[first].inputs)
        return not before and not self.model.readers[last]

    def _operand(self, others: Sequence[str], own: Sequence[str]) -> Literal["", "/own", "/conv"]:
        """Where a second operand comes from: the block's own input, or a convolution."""
        if any(tensor in own for tensor in others):
            return "/own"
        makers = (self.model.makers.get(tensor) for tensor in others)
        if any(maker is not None and self._is_from_conv[maker] for maker in makers):
            return "/conv"
        return ""

    def _unclaimed(self, place: int) -> Literal["", "/conv"]:
        """Where the operands come from of an op that no kernel took.

        Where rules say that a convolution takes such an op, what was found with one as operand is
        about that kernel, and does not fit here, where none did.
        """
        node = self._nodes[place]
        taken = self._book.pair(_OPERAND, node.operator, Place(alone=False, operand="/conv"))
        if taken.verdict != "separate":
            return ""
        makers = (self.model.makers.get(tensor) for tensor in node.inputs)
        from_conv = any(maker is not None and self._is_from_conv[maker] for maker in makers)
        return "/conv" if from_conv else ""

    def _operand_of_chain(self, nodes: Sequence[int]) -> str:
        inside = set(nodes)
        own = self._nodes[nodes[0]].inputs
        if 1 < len(own) <= _MOST_OPERANDS:  # the first op's own second operand
            return self._operand(own[1:], own[:1])
        for place in nodes[1:]:
            others = [
                t for t in self._nodes[place].inputs if self.model.makers.get(t) not in inside
            ]
            if others:
                return self._operand(others, own)
        return ""

    def _from_convolutions(self) -> list[bool]:
        """Of each node whether its output lies as a convolution's: its own, or passed on."""
        found: list[bool] = []
        folds: list[bool] = []  # a convolution, or what its weights can take in
        for place, node in enumerate(self._nodes):
            is_conv = node.operator in self._known.convolutions
            makers = [self.model.makers[t] for t in node.inputs[:1] if t in self.model.makers]
            behind = node.operator in self._known.linear and any(
                folds[maker] and self._is_only_reader(maker, place) for maker in makers
            )
            passes = node.operator in self._known.passing and any(found[m] for m in makers)
            folds.append(is_conv or behind)
            found.append(is_conv or behind or passes)
        return found

    def _is_view(self, place: int) -> bool:
        return self._nodes[place].operator in self._known.views

    def _is_heavy(self, place: int) -> bool:
        return self._nodes[place].operator in self._known.heavy

    def _is_undone(self, group: Group, source: int, place: int) -> bool:
        """Whether the views at a kernel's end give the shape back, or a rule joins across them."""
        before = self.model.shape(self._nodes[group.last].outputs[0])
        after = self.model.shape(self._nodes[source].outputs[0])
        if before is not None and before == after:
            return True
        view, node = self._nodes[source].operator, self._nodes[place].operator
        return self._book.pair(view, node, self._place(group, place)).verdict == "fused"

    # --- what is settled beforehand, and written down

    def _apply(self, customized: Sequence[Customized]) -> None:
        blocks, refused = find_blocks(self.model, customized)
        for block, why in refused:
            first = self._nodes[min(block.nodes.values())].name
            self.conflicts.append(f"{block.rule.name} at {first} was not applied: {why}")
        for block in blocks:
            for names in block.rule.kernels:
                places = sorted(block.nodes[name] for name in names)
                group = Group(
                    nodes=places, tail=places[-1], last=places[-1], leaks=True, is_closed=True
                )
                group.anchor = next(filter(self._is_heavy, places), None)
                answer = Answer(verdict=block.rule.case, rule=block.rule.name)
                for place in places:
                    self._group_of[place] = group
                for place in places:
                    for tensor in self._nodes[place].inputs:
                        source = self.model.makers.get(tensor)
                        if source is not None:
                            fused = source in places
                            why = f"customized rule: {block.rule.case}"
                            self._record(source, place, _Verdict(fused, why, answer))

    def _record(self, source: int, place: int, verdict: _Verdict) -> None:
        a, b = self._nodes[source], self._nodes[place]
        speaks = verdict.answer.speaks if verdict.answer else None
        self.decisions.append(
            Decision(
                edge=(a.name, b.name),
                operators=(a.operator, b.operator),
                fused=verdict.fused,
                why=verdict.why,
                rule=verdict.answer.rule if verdict.answer else "",
                situation=verdict.answer.situation if verdict.answer else "",
                asked=verdict.answer.asked if verdict.answer else (),
                speaks=self._nodes[speaks].name if speaks is not None else "",
            )
        )
