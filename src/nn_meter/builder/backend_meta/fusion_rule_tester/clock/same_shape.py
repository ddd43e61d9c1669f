"""Whether a pair runs in the size that it is timed in as it does in the size asked for.

The clock asks in a small size and with replicas. Where the runtime tells what it executes, that is
checked: the executed graphs of the models timed are judged like those of the guide's.
"""

from __future__ import annotations

from collections.abc import Iterable

from nn_meter.builder.backend_meta.fusion_rule_tester.clock.design import BLOCK, HEAD, TAIL, Design
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.plan import Question
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.shelf import Shelf, find_model
from nn_meter.builder.backend_meta.fusion_rule_tester.graph_evidence import judge_chain
from nn_meter.builder.backend_meta.fusion_rule_tester.situations import part_name
from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.graphs import collect_graphs
from nn_meter.builder.profiling.measure import Model
from nn_meter.builder.profiling.store import Store, StoredGraph
from nn_meter.builder.workspace import Workspace
from nn_meter.progress import Progress

__all__ = ["collect_small_graphs", "read_small_verdict"]

_PARTS = {HEAD: part_name(0, 1), TAIL: part_name(1, 2), BLOCK: part_name(0, 2)}


def collect_small_graphs(
    workspace: Workspace,
    connection: Connection,
    store: Store,
    environment: int,
    questions: Iterable[Question],
    *,
    time_limit_s: float,
    progress: Progress,
) -> None:
    """Ask the runtime what it executes of the models that questions are timed in.

    Args:
        workspace: Where the models are, or are made.
        connection: A backend that shows graphs.
        store: Where the graphs go.
        environment: Number of the environment.
        questions: Those of test cases of cases are timed in the size asked for, and left out.
        time_limit_s: For one model.
        progress: Told how far it is.
    """
    shelf = Shelf(workspace, connection, time_limit_s=time_limit_s, progress=progress)
    models = [q.design.models for q in questions if q.design is not None]
    wanted = [chains[part] for chains in models for part in _PARTS]
    shelf.fetch(wanted)
    found = (shelf.find_chain(chain) for chain in wanted)
    ready = {model.hash: model for model in found if isinstance(model, Model)}
    collect_graphs(
        connection,
        workspace,
        store,
        environment,
        ready,
        time_limit_s=time_limit_s,
        progress=progress,
    )


def read_small_verdict(
    workspace: Workspace, store: Store, environment: int, design: Design
) -> str | None:
    """What the executed graphs of an edge's small models say: a verdict's word; None: not known."""
    parts: dict[str, StoredGraph] = {}
    for part, name in _PARTS.items():
        model = find_model(workspace, design.models[part])
        graph = store.graph(environment, model.hash) if model is not None else None
        if graph is None:
            return None
        parts[name] = graph
    ops = ("_".join(design.head), design.tail)
    return judge_chain(ops, parts, rule="_".join(ops)).verdict
