"""Which ops a runtime executed together, held against the graph that it executed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from nn_meter.builder.backends.base import Array, ShowsGraph
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.values import TracedGraph
from nn_meter.errors import GraphUnavailableError
from nn_meter.kernel_detector.check.claims import Claims, by_sources, by_values
from nn_meter.kernel_detector.check.prepare import Copy, prepare
from nn_meter.kernel_detector.graph import Graph

__all__ = ["TracesGraph", "Truth", "executed_together"]

# Ops that compute nothing, whatever a runtime makes of them.
_VIEWS_AND_MOVES = frozenset(
    {
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Transpose"),
        *("Cast", "Shape", "Size"),
        *("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "CAST", "SHAPE"),
    }
)


@runtime_checkable
class TracesGraph(Protocol):
    """A backend whose runtime lets what its nodes hold be looked at."""

    def traced_graph(self, converted_model: str, feeds: Mapping[str, Array]) -> TracedGraph:
        """Read what is executed of a model, and what tensors hold on these inputs.

        Raises:
            ModelRejectedError: The runtime refuses the model; its own words are kept.
            GraphUnavailableError: This runtime, or this version of it, cannot tell.
        """


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Which ops of a model a runtime executed together.

    Attributes:
        groups: Op -> number of what it was executed in, for ops that compute; equal: as one.
        untold: Names of ops that compute, of which it cannot be told.
        idle: Names of ops that compute nothing: views, moves, and what the runtime left out.
    """

    groups: Mapping[str, int]
    untold: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()


def executed_together(
    model_path: Path,
    graph: Graph,
    backend: Any,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Truth:
    """Ask a runtime what it makes of a model.

    Args:
        model_path: The model.
        graph: What was read of it.
        backend: A backend, connected.
        shapes: Shapes of inputs, batch included, where they are others than the graph's.

    Raises:
        BackendError: The backend cannot tell, or refuses the model.
    """
    if not isinstance(backend, TracesGraph | ShowsGraph):
        raise GraphUnavailableError(
            f"{type(backend).__name__} does not tell what it executes, so nothing can be checked "
            "with it"
        )
    truth = _told(model_path, graph, backend, shapes)
    if truth.untold and not truth.groups:
        raise GraphUnavailableError(
            f"{graph.name}: of none of its ops {type(backend).__name__} tells what it is executed "
            "with, so nothing can be checked with it"
        )
    return truth


def _told(
    model_path: Path,
    graph: Graph,
    backend: ShowsGraph | TracesGraph,
    shapes: Mapping[str, Sequence[int]] | None,
) -> Truth:
    if not isinstance(backend, TracesGraph):
        return _by_sources(model_path, graph, backend, shapes)
    truth = _by_values(model_path, graph, backend, shapes, seed=0)
    if truth.untold:  # some tensor may be zero by chance, behind a relu: draw again
        again = _by_values(model_path, graph, backend, shapes, seed=1)
        return min(truth, again, key=lambda found: len(found.untold))
    return truth


def _by_values(
    model_path: Path,
    graph: Graph,
    backend: Any,
    shapes: Mapping[str, Sequence[int]] | None,
    *,
    seed: int,
) -> Truth:
    with tempfile.TemporaryDirectory(prefix="nn-meter-check-") as folder:
        copy = prepare(model_path, graph, Path(folder), shapes, seed=seed)
        converted = _converted(copy, Path(folder), backend)
        traced = backend.traced_graph(converted, copy.inputs)
    return _checked(graph, traced.graph, by_values(traced, copy))


def _by_sources(
    model_path: Path, graph: Graph, backend: Any, shapes: Mapping[str, Sequence[int]] | None
) -> Truth:
    with tempfile.TemporaryDirectory(prefix="nn-meter-check-") as folder:
        copy = prepare(model_path, graph, Path(folder), shapes)
        converted = _converted(copy, Path(folder), backend)
        executed = backend.executed_graph(converted, copy.shapes)
    if executed.ops is None or executed.inputs is None:
        raise GraphUnavailableError(
            f"{type(backend).__name__} does not tell which of a model's ops it executes together, "
            "so nothing can be checked with it"
        )
    return _checked(graph, executed, by_sources(executed))


def _converted(copy: Copy, folder: Path, backend: Any) -> str:
    """The copy as the backend converts it, which refuses what it cannot take."""
    converted = folder / "converted"
    converted.mkdir()
    return str(backend.convert_model(str(copy.path), str(converted), copy.shapes))


def _checked(graph: Graph, executed: ExecutedGraph, claims: Claims) -> Truth:
    """Keep the claims by which the graph, contracted, has the executed graph's connections."""
    groups = _Groups(graph, executed, claims)
    bad = groups.unlike()
    told, untold, idle = {}, set(), set()
    for place, op in enumerate(graph.ops):
        group = groups.of_op[place]
        if op.type in _VIEWS_AND_MOVES or group == _IDLE:
            idle.add(op.name)
        elif group == _OPEN or group in bad:
            untold.add(op.name)
        else:
            told[op.name] = group
    return Truth(groups=told, untold=frozenset(untold), idle=frozenset(idle))


_IDLE, _OPEN, _INPUT = -1, -2, -3  # numbers of no group


class _Groups:
    """Nodes and ops by group.

    Attributes:
        of_op: For each op its group.
        of_node: For each node its group.
    """

    def __init__(self, graph: Graph, executed: ExecutedGraph, claims: Claims) -> None:
        self._graph, self._executed = graph, executed
        nowhere = claims.idle | _covered_by(claims, claims.passing)
        self.of_op = [
            _IDLE if place in nowhere or op.type in _VIEWS_AND_MOVES else _OPEN
            for place, op in enumerate(graph.ops)
        ]
        self.of_node = [
            _OPEN if covers is None and i not in claims.passing else _IDLE
            for i, covers in enumerate(claims.covers)
        ]
        self._name(claims)

    def _name(self, claims: Claims) -> None:
        """Give a number to what nodes that compute cover."""
        covering: dict[int, list[int]] = {}
        for i, covers in enumerate(claims.covers):
            if i not in claims.passing:
                for place in covers or ():
                    covering.setdefault(place, []).append(i)
        doubtful: set[int] = set()
        for place, nodes in covering.items():
            if len(nodes) > 1 and any(claims.covers[i] != frozenset({place}) for i in nodes):
                doubtful.update(nodes)  # a part of it is executed with others, and a part is not
            for i in nodes:
                self.of_op[place] = self.of_node[i] = nodes[0]
        for i in doubtful:
            self.of_node[i] = _OPEN
            for place in claims.covers[i] or ():
                self.of_op[place] = _OPEN

    def unlike(self) -> set[int]:
        """Groups whose connections are others in the graph than in what was executed.

        Where something open stands between two groups, either may hold it: then they need only be
        connected through it.
        """
        graph, executed = self._graph, self._executed
        written = [
            (self.of_op[place], graph.data_inputs(op), op.outputs)
            for place, op in enumerate(graph.ops)
        ]
        ran = [
            (group, node.inputs, node.outputs)
            for group, node in zip(self.of_node, executed.nodes, strict=True)
        ]
        near = [_before(written, graph.inputs), _before(ran, executed.inputs or ())]
        far = [
            _before(written, graph.inputs, through_open=True),
            _before(ran, executed.inputs or (), through_open=True),
        ]
        bad: set[int] = set()
        for group in (set(near[0]) | set(near[1])) - {_OPEN}:
            for one, other in ((0, 1), (1, 0)):
                reads = near[one].get(group, set()) - {_OPEN}
                if missing := reads - far[other].get(group, set()):
                    bad |= {group} | missing
        return bad - {_INPUT}


def _covered_by(claims: Claims, nodes: Iterable[int]) -> set[int]:
    return {place for i in nodes for place in claims.covers[i] or ()}


def _before(
    steps: Iterable[tuple[int, Sequence[str], Sequence[str]]],
    inputs: Sequence[str],
    *,
    through_open: bool = False,
) -> dict[int, set[int]]:
    """For each group those that it reads from, through what computes nothing."""
    source: dict[str, set[int]] = {tensor: {_INPUT} for tensor in inputs}
    found: dict[int, set[int]] = {}
    for group, reads, gives in steps:
        before = set().union(*(source.get(tensor, set()) for tensor in reads))
        if group != _IDLE:
            found.setdefault(group, set()).update(before - {group})
            before = before | {_OPEN} if group == _OPEN and through_open else {group}
        for tensor in gives:
            source[tensor] = before
    return found
