"""Kernels while they grow, and what was decided of two neighbours."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Decision", "Group"]


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
        nodes: Places of its nodes, the first one first.
        tail: The one behind which others may join.
        last: The same, views aside.
        anchor: The first that is heavy.
        merge: The last that joined and reads something else besides.
        folds: Behind the anchor stand only linear ops, which end in its weights.
        leaks: A node that is not its last is read from outside. Then what joins may read nothing
            else from outside: no cycle arises as long as all that enters a kernel leads to all that
            leaves it.
        is_closed: A customized rule says what is in it.
        is_elementwise: All of it is element by element.
        is_read_before: A node that is settled reads it and is not in it, and may lead to what
            joins it later.
    """

    nodes: list[int]
    tail: int
    last: int
    anchor: int | None = None
    merge: int | None = None
    folds: bool = True
    leaks: bool = False
    is_closed: bool = False
    is_elementwise: bool = True
    is_read_before: bool = False

    def take(self, other: Group) -> None:
        """Take over the nodes of another kernel."""
        start = len(self.nodes)
        self.nodes += other.nodes
        if self.nodes[start] < self.nodes[0]:  # the first of each comes first
            self.nodes[0], self.nodes[start] = self.nodes[start], self.nodes[0]
        self.leaks = self.leaks or other.leaks
        self.is_elementwise = self.is_elementwise and other.is_elementwise
        self.is_read_before = self.is_read_before or other.is_read_before
