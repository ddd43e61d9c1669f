"""Where blocks stand in a model that is being split: what is around them, and whose operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from nn_meter.kernel_detector.groups import Group
from nn_meter.kernel_detector.pair_rules import Place, Rulebook
from nn_meter.kernel_detector.recognition import Recognized
from nn_meter.kernel_detector.sizes import sizes_of

__all__ = ["Standing"]

_MOST_OPERANDS = 64
"""Of an op that reads more, it is not asked for each where all the others come from."""

_MOST_BETWEEN = 256
"""Nodes that are looked at for a way from one to another; of one that is longer there is one."""

_OPERAND = "conv"
"""The operator whose output is a second operand in the situations ``/conv``."""


class Standing:
    """Where blocks stand in a model that is being split.

    Args:
        model: The model.
        book: The rules.

    Attributes:
        model: The model.
        group_of: Of each node the kernel that it is in; None: it is not settled yet.
    """

    def __init__(self, model: Recognized, book: Rulebook) -> None:
        self.model = model
        self.group_of: list[Group | None] = [None] * len(model.nodes)
        self._nodes = model.nodes
        self._known = model.patterns
        self._book = book
        self._is_from_conv = self._from_convolutions()
        self._layouts: list[bool] = []

    def place_of(self, group: Group, place: int) -> Place:
        """Where the block of a kernel and a node that may join it stands."""
        node, first = self._nodes[place], self._nodes[group.nodes[0]]
        operand = ""
        if 1 < len(node.inputs) <= _MOST_OPERANDS:
            others = [
                t
                for t in node.inputs
                if t not in self.model.makers or self.group_of[self.model.makers[t]] is not group
            ]
            operand = self._operand(others, first.inputs)
        elif group.anchor is None and len(self._nodes[group.last].inputs) > 1:
            operand = self._unclaimed(group.last)
        speaks = group.last if group.anchor is None else group.anchor
        last = self._nodes[group.last].operator
        is_free = group.is_elementwise and self._book.is_taken_in_context(last)
        return Place(
            alone=is_free or self.is_alone(group.nodes[0], place),
            operand=operand,
            speaks=speaks,
            sizes=self.sizes(speaks),
            is_read_again=(
                self._book.by_reading_again and not is_free and self._is_read_again(group, place)
            ),
        )

    def sizes(self, place: int) -> Mapping[str, Sequence[int]] | None:
        """The sizes of a node, if a rule asks for any."""
        return sizes_of(self.model, place) if self._book.by_size else None

    def is_alone(self, first: int, last: int) -> bool:
        """Whether nothing is before a node, and nothing behind another one."""
        before = any(tensor in self.model.makers for tensor in self._nodes[first].inputs)
        return not before and not self.model.readers[last]

    def _is_read_again(self, group: Group, place: int) -> bool:
        """Whether a second operand is read by, or is, something that the kernel does not need."""
        inputs = self._nodes[place].inputs
        for tensor in inputs if 1 < len(inputs) <= _MOST_OPERANDS else ():
            maker = self.model.makers.get(tensor)
            if maker is None or self.group_of[maker] is group:
                continue
            if self._nodes[maker].is_kept:
                return True
            readers = self.model.tensor_readers[tensor]
            if readers[-1] > place:
                return True
            for reader in readers[-_MOST_OPERANDS:]:
                if reader != place and not self._leads(reader, group.last):
                    return True
        return False

    def _leads(self, first: int, last: int) -> bool:
        """Whether one node leads to another, as far as can be told within some steps."""
        waiting, seen = [last], {last}
        while waiting and len(seen) < _MOST_BETWEEN:
            place = waiting.pop()
            if place == first:
                return True
            for tensor in self._nodes[place].inputs:
                maker = self.model.makers.get(tensor, -1)
                if maker >= first and maker not in seen:
                    seen.add(maker)
                    waiting.append(maker)
        return bool(waiting)

    def _operand(
        self, others: Sequence[str], own: Sequence[str]
    ) -> Literal["", "/own", "/conv", "/passed"]:
        """Where a second operand comes from: the block's own input, or a convolution."""
        if any(tensor in own for tensor in others):
            return "/own"
        makers = [self.model.makers[tensor] for tensor in others if tensor in self.model.makers]
        if any(self._has_conv_layout(maker) for maker in makers):
            return "/conv"
        return "/passed" if any(self._is_from_conv[maker] for maker in makers) else ""

    def settled(self, place: int) -> None:
        """Note that it is decided which kernel a node is in; called of each in their order."""
        self._layouts.append(self._comes_as_conv(place))
        for tensor in self._nodes[place].inputs:
            maker = self.model.makers.get(tensor)
            group = self.group_of[maker] if maker is not None else None
            if group is not None and group is not self.group_of[place]:
                group.is_read_before = True

    def _has_conv_layout(self, place: int) -> bool:
        if place < len(self._layouts):
            return self._layouts[place]
        return self._is_from_conv[place]  # it is not settled yet

    def _comes_as_conv(self, place: int) -> bool:
        """Whether a convolution's kernel gives what a node does, or an op that takes its layout.

        An activation takes it if convolutions take the activation.
        """
        group, node = self.group_of[place], self._nodes[place]
        anchor = group.anchor if group is not None else None
        if anchor is not None:
            return self._nodes[anchor].operator in self._known.convolutions
        if not (self.is_elementwise(place) and node.operator in self._known.passing):
            return False
        makers = self.model.makers
        if not all(t in makers and self._has_conv_layout(makers[t]) for t in node.inputs):
            return False
        inside = Place(alone=False, speaks=place, sizes=self.sizes(place))
        return (
            node.operator not in self._known.nonlinear
            or self._book.pair(_OPERAND, node.operator, inside).verdict == "fused"
        )

    def _unclaimed(self, place: int) -> Literal["", "/conv"]:
        """Where the operands come from of an op that no kernel took.

        Where rules say that a convolution takes such an op, what was found with one as operand is
        about that kernel, and does not fit here, where none did.
        """
        node = self._nodes[place]
        taken = self._book.pair(_OPERAND, node.operator, Place(alone=False, operand="/conv"))
        if taken.verdict != "separate":
            return ""
        return "/conv" if self.reads_conv(place) else ""

    def reads_conv(self, place: int) -> bool:
        """Whether a node reads what lies as a convolution's output."""
        makers = (self.model.makers.get(tensor) for tensor in self._nodes[place].inputs)
        return any(maker is not None and self._is_from_conv[maker] for maker in makers)

    def operand_of_chain(self, nodes: Sequence[int]) -> str:
        """Where the second operand of the first in a row comes from that has one."""
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
                folds[maker] and self.is_only_reader(maker, place) for maker in makers
            )
            passes = node.operator in self._known.passing and any(found[m] for m in makers)
            folds.append(is_conv or behind)
            found.append(is_conv or behind or passes)
        return found

    def spoken_by(self, place: int, around: Place) -> Place:
        """The same place, by the sizes of another node."""
        if place == around.speaks:
            return around
        return replace(around, speaks=place, sizes=self.sizes(place))

    def is_only_reader(self, source: int, place: int) -> bool:
        """Whether nothing else reads what a node gives."""
        readers = self.model.readers[source]
        return not self._nodes[source].is_kept and len(readers) == 1 and readers[0] == place

    def is_view(self, place: int) -> bool:
        """Whether a node only says a shape otherwise."""
        return self._nodes[place].operator in self._known.views

    def is_elementwise(self, place: int) -> bool:
        """Whether a node goes element by element."""
        return self._nodes[place].operator in self._known.elementwise

    def is_heavy(self, place: int) -> bool:
        """Whether a node is what others join."""
        return self._nodes[place].operator in self._known.heavy
