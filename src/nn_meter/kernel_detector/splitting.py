"""One model being split: kernels that grow as rules say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nn_meter.fusion_rules.read import FIRST_READER
from nn_meter.kernel_detector.customized import Customized, find_blocks
from nn_meter.kernel_detector.groups import Decision, Group
from nn_meter.kernel_detector.pair_rules import Answer, Place, Rulebook, find_chains
from nn_meter.kernel_detector.recognition import Node, Recognized
from nn_meter.kernel_detector.standing import Standing

__all__ = ["Split"]

_WORDS = {
    "fused": "the rule says so",
    "separate": "the rule says so",
    "free": "one of the two executes nothing",
    "undecided": "the rule cannot tell",
    "missing": "there is no rule",
}


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
        self._standing = Standing(model, book)
        self._read_by_customized: set[int] = set()
        self._chosen: dict[int, int | None] = {}
        self._chains, gave_way = find_chains(model, book.chains)
        self.conflicts += [
            f"{chain.rule.name} at {self._nodes[chain.nodes[0]].name} gave way to "
            f"{other.rule.name} at {self._nodes[other.nodes[0]].name}"
            for chain, other in gave_way
        ]
        self._apply(customized)
        for place in range(len(self._nodes)):
            if self._standing.group_of[place] is None:
                self._settle(place)
            self._standing.settled(place)

    def groups(self) -> Iterator[Group]:
        """Each kernel once, by its first node."""
        for place in range(len(self._nodes)):
            group = self._group(place)
            if group.nodes[0] == place:
                yield group

    def lonely(self) -> Iterator[Node]:
        """Nodes that are kernels by themselves, views aside."""
        for group in self.groups():
            found = [place for place in group.nodes if not self._standing.is_view(place)]
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
        if self._standing.is_view(place) and sources:
            self._settle_view(place, sources)
            return
        verdicts = [self._asked(source, place) for source in sources]
        taken = self._taker(place, sources, verdicts)
        if taken is None:
            self._start(place)
        else:
            self._join(taken, place)
            for source, verdict in zip(sources, verdicts, strict=True):
                if verdict.fused:
                    self._merge(source, place, verdict)
        for source, verdict in zip(sources, verdicts, strict=True):
            why, fused = verdict.why, self._group(source) is self._group(place)
            if verdict.fused and not fused:
                why = "another input took it" if taken is not None else "MIN: no input takes it"
            self._record(source, place, _Verdict(fused, why, verdict.answer))

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
        alone = self._standing.is_alone(source, place)
        answer = self._book.pair(maker.operator, node.operator, Place(alone=alone))
        enters = len(sources) > 1 or len(node.inputs) > 1
        if answer.verdict == "separate" or enters:
            why = "a kernel of its own" if not enters else "it reads other tensors besides"
            self._record(source, place, _Verdict(False, why, answer))
            self._start(place)
        else:
            self._hang(source, place, "a view", answer)
            if self._standing.is_only_reader(source, place) and group.tail == source:
                group.tail = place
            else:
                group.leaks = True
        for other in sources[1:]:
            self._record(other, place, _Verdict(False, "a view"))

    # --- kernels that grow -----------------------------------------------------------------------

    def _group(self, place: int) -> Group:
        group = self._standing.group_of[place]
        if group is None:  # nodes are settled in a topological order
            raise AssertionError(f"{self._nodes[place].name} was read before it was settled")
        return group

    def _start(self, place: int) -> None:
        group = Group(nodes=[place], tail=place, last=place)
        self._count(group, place)
        self._standing.group_of[place] = group

    def _count(self, group: Group, place: int) -> None:
        """Note what a new node means for those that join later."""
        group.is_elementwise = group.is_elementwise and self._standing.is_elementwise(place)
        if place in self._read_by_customized:
            group.is_read_before = True
        if group.anchor is None:
            group.anchor = place if self._standing.is_heavy(place) else None
        elif self._nodes[place].operator not in self._known.linear:
            group.folds = False

    def _merge(self, source: int, place: int, verdict: _Verdict) -> None:
        """Put the kernel of another one that a node reads into its kernel, where rules say so."""
        group, other = self._group(place), self._group(source)
        if other is group:
            return
        answer = verdict.answer
        if answer is not None and answer.is_free:
            # where one of two executes nothing, nor do others like it that nothing else reads
            may = (
                other.tail == source
                and self._standing.is_only_reader(source, place)
                and not other.leaks
            )
        else:
            may = (
                group.is_elementwise
                and other.is_elementwise
                and self._book.case("MINELTWISE") == "case4"
                and not group.is_read_before
                and not other.is_read_before
            )
        if may:
            other.leaks = other.leaks or len(self.model.readers[source]) > 1
            self._put_together(group, other)

    def _put_together(self, group: Group, other: Group) -> None:
        """Put all of another kernel into one; time goes by the smaller of the two."""
        if len(other.nodes) > len(group.nodes):
            group, other = other, group
            group.tail, group.last, group.merge = other.tail, other.last, other.merge
        group.take(other)
        for place in other.nodes:
            self._standing.group_of[place] = group

    def _hang(self, source: int, place: int, why: str, answer: Answer | None = None) -> None:
        """Put a node into the kernel of the only one that it reads."""
        group = self._group(source)
        group.nodes.append(place)
        self._standing.group_of[place] = group
        if self._standing.is_view(place):
            group.is_elementwise = False
        else:
            self._count(group, place)
            if group.tail == source and self._standing.is_only_reader(source, place):
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
        self._standing.group_of[place] = group

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
        if (
            group.is_elementwise
            and self._standing.is_elementwise(place)
            and self._book.case("MONELTWISE") == "case2"
        ):
            return self._refusal_of_elementwise(group, source, place)
        if group.tail != source:
            return "its kernel goes on elsewhere"
        if not self._standing.is_only_reader(source, place):
            why = self._several(group, source, place)
            if why:
                return why
        if group.last != source and not self._is_undone(group, source, place):
            return "a view stands between"
        leaks = group.leaks or len(self.model.readers[source]) > 1
        if leaks and self._enters(group, place):
            return "it reads another kernel, which may need this one first"
        return ""

    def _refusal_of_elementwise(self, group: Group, source: int, place: int) -> str:
        """The same of element-wise kernels that may give several tensors."""
        is_last = group.tail == source and self._standing.is_only_reader(source, place)
        if (
            not is_last
            and len(self._nodes[source].inputs) > 1
            and self._standing.reads_conv(source)
        ):
            # a convolution could have taken it; then what is found with one counts
            one, other = self._nodes[source].operator, self._nodes[place].operator
            beside_conv = Place(alone=False, operand="/conv")
            if self._book.pair(one, other, beside_conv).verdict != "fused":
                return "a convolution could have taken what it reads"
        if group.is_read_before and self._enters(group, place):
            return "it reads another kernel, which may need this one first"
        return ""

    def _answer(self, group: Group, source: int, place: int) -> Answer:
        around = self._standing.place_of(group, place)
        chain = self._chains.get((source, place))
        if chain is not None and not around.is_read_again:  # chains are not asked that
            run, position = chain
            in_chain = replace(
                around,
                operand=self._standing.operand_of_chain(run.nodes),
                speaks=run.nodes[0],
                sizes=self._standing.sizes(run.nodes[0]),
            )
            answer = self._book.edge(run, position, in_chain)
            if answer is not None:
                return answer
        node, last = self._nodes[place].operator, self._nodes[group.last].operator
        if source != group.last:  # a rule may join across a view
            view = self._nodes[source].operator
            answer = self._book.pair(view, node, self._standing.spoken_by(source, around))
            if answer.verdict == "fused" or group.is_elementwise:
                return answer
        if group.anchor is None:
            return self._book.pair(last, node, around)
        anchor = self._nodes[group.anchor].operator
        if node in self._known.linear or self._standing.is_heavy(place):
            if group.folds:
                return self._book.fold(anchor, node, around)
            return self._book.pair(last, node, self._standing.spoken_by(group.last, around))
        speaks = group.anchor
        if group.merge is not None and len(self._nodes[place].inputs) > 1:
            speaks = group.merge
        spoken = self._standing.spoken_by(speaks, around)
        answer = self._book.pair(self._nodes[speaks].operator, node, spoken)
        if answer.verdict == "fused" and last in self._known.nonlinear:
            # the rule is about what has none so far
            return self._book.pair(last, node, self._standing.spoken_by(group.last, around))
        return answer

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
        behind = [self._standing.is_heavy(place) for place in self.model.readers[reader]]
        return any(behind) if case == "case3" else bool(behind) and not any(behind)

    def _enters(self, group: Group, place: int) -> bool:
        """Whether a node reads what other kernels write, or the model is given."""
        return any(
            tensor not in self.model.makers
            or self._standing.group_of[self.model.makers[tensor]] is not group
            for tensor in self._nodes[place].inputs
        )

    def _is_undone(self, group: Group, source: int, place: int) -> bool:
        """Whether the views at a kernel's end give the shape back, or a rule joins across them."""
        before = self.model.shape(self._nodes[group.last].outputs[0])
        after = self.model.shape(self._nodes[source].outputs[0])
        if before is not None and before == after:
            return True
        view, node = self._nodes[source].operator, self._nodes[place].operator
        return self._book.pair(view, node, self._standing.place_of(group, place)).verdict == "fused"

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
                group.anchor = next(filter(self._standing.is_heavy, places), None)
                answer = Answer(verdict=block.rule.case, rule=block.rule.name)
                for place in places:
                    self._standing.group_of[place] = group
                for place in places:
                    for tensor in self._nodes[place].inputs:
                        source = self.model.makers.get(tensor)
                        if source is not None:
                            fused = source in places
                            self._read_by_customized.add(source)
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
