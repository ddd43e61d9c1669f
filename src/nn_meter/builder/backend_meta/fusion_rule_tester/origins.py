"""Where profiled results come from, and what the store knows beyond them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from nn_meter.builder.backend_meta.fusion_rule_tester.clock.ask import asked_of
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.design import Method
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.measure import (
    Asked,
    bench_of,
    was_asked,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.plan import Bench
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.same_shape import read_small_verdict
from nn_meter.builder.backend_meta.fusion_rule_tester.find import canonical, testcase_named
from nn_meter.builder.backend_meta.fusion_rule_tester.graph_evidence import CaseGraphs
from nn_meter.builder.nn_modules.info import hash_model, read_info
from nn_meter.builder.profiling.measure import identity
from nn_meter.builder.profiling.results import TestCases, read_situations
from nn_meter.builder.profiling.store import (
    Provenance,
    Store,
    StoredGraph,
    read_graph_reference,
)
from nn_meter.builder.workspace import Workspace
from nn_meter.errors import ResultFileError

__all__ = ["Origins", "read_origins"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Origins:
    """Where profiled results come from.

    Attributes:
        origin: The backend and environment of all of them; None: of several, or filled in by hand.
        graphs: Rule -> its executed graphs, of rules none of whose latencies were filled in.
        benches: Rule -> what the clock was asked, of the same rules.
    """

    origin: Provenance | None = None
    graphs: Mapping[str, CaseGraphs] = field(default_factory=dict)
    benches: Mapping[str, Bench] = field(default_factory=dict)

    def environment(self) -> dict[str, Any] | None:
        """As rules have it."""
        if self.origin is None:
            return None
        return {"backend": self.origin.backend, **self.origin.environment}


def read_origins(workspace: Workspace, profiled: TestCases, config: Mapping[str, Any]) -> Origins:
    """Look profiled results up in the workspace's store; one that is not there knows nothing."""
    if not workspace.store_file.is_file():
        return Origins()
    with closing(Store(workspace.store_file)) as store:
        return _read(workspace, store, profiled, config)


def _read(
    workspace: Workspace, store: Store, profiled: TestCases, config: Mapping[str, Any]
) -> Origins:
    places: dict[tuple[str, str] | None, Provenance | None] = {}
    graphs: dict[str, CaseGraphs] = {}
    measured: dict[int, list[Asked]] = {}
    around = read_situations(workspace)
    for given, models in profiled.items():
        rule = canonical(given, config)
        by_hand = False
        found: dict[str, StoredGraph] = {}
        environments = set()
        timed = set()
        for model, entry in models.items():
            if entry.get("latency") is not None:
                place = store.provenance(rule, model, str(entry["latency"]))
                by_hand |= place is None
                timed |= {place.number} if place is not None else set()
                places[_key(place)] = place
            reference = read_graph_reference(entry.get("graph"))
            if reference is not None and not _is_of(workspace, entry, reference[1]):
                log.warning(
                    "%s: %s: its graph is that of another model, and does not count", given, model
                )
                reference = None
            stored = store.graph(*reference) if reference is not None else None
            if reference is not None and stored is not None:
                environments.add(reference[0])
                found[model] = stored
        if not by_hand and len(timed | environments) == 1:
            asked = asked_of(workspace, testcase_named(rule, config), models)
            measured.setdefault(next(iter(timed | environments)), []).append(asked)
        if by_hand or len(environments) != 1:
            continue
        (environment,) = environments
        place = store.place(environment)
        places[_key(place)] = place
        graphs[rule] = CaseGraphs(
            models=found,
            situations=_situations(workspace, store, environment, around.get(rule, {})),
        )
    origin = next(iter(places.values())) if len(places) == 1 else None
    benches = {}
    for number, questions in measured.items():
        campaign = store.campaign(number)
        if not was_asked(store, campaign):
            continue
        bench, _ = bench_of(
            questions,
            store,
            campaign,
            method=Method(),
            alpha=config["EPS_ALPHA"],
            confidence=config["CONFIDENCE"],
        )
        for question in bench.questions.values():
            if question.design is not None and question.rule in graphs:
                word = read_small_verdict(workspace, store, number, question.design)
                question.timed = word or ""
        benches.update(dict.fromkeys([each.rule for each in questions], bench))
    return Origins(origin=origin, graphs=graphs, benches=benches)


def _is_of(workspace: Workspace, entry: Mapping[str, Any], digest: str) -> bool:
    """Whether a graph is that of the entry's model, as far as the model is there to be asked."""
    try:
        path = workspace.resolve(entry["model"])
        content = hash_model(path)
    except (ResultFileError, KeyError, TypeError, ValueError, OSError):
        return True  # it has gone, or was never here
    info = read_info(path)
    shapes = entry.get("shapes") or (info.shapes if info is not None else None)
    return shapes is None or identity(content, shapes) == digest


def _key(place: Provenance | None) -> tuple[str, str] | None:
    return (place.backend, place.key) if place is not None else None


def _situations(
    workspace: Workspace, store: Store, environment: int, around: Mapping[str, Any]
) -> dict[str, dict[str, StoredGraph]]:
    """The graphs of the situations of which every model was asked for."""
    found: dict[str, dict[str, StoredGraph]] = {}
    for situation, models in around.items():
        graphs: dict[str, StoredGraph] = {}
        for name, entry in models.items():
            digest = identity(hash_model(workspace.resolve(entry["model"])), entry["shapes"])
            stored = store.graph(environment, digest)
            if stored is None:
                break
            graphs[name] = stored
        else:
            found[situation] = graphs
    return found
