"""Asking a runtime what it executes of models: each content once, on all cores."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nn_meter.builder import backends
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.convert import convert_all
from nn_meter.builder.profiling.measure import (
    DEVICE,
    PATIENCE_S,
    Caller,
    Model,
    failure_of,
)
from nn_meter.builder.profiling.pool import spread
from nn_meter.builder.profiling.process import decode_error
from nn_meter.builder.profiling.store import Failure, Store
from nn_meter.builder.workspace import Workspace, make_folder
from nn_meter.errors import GraphUnavailableError, NNMeterError, NotInstalledError
from nn_meter.progress import Progress

__all__ = ["collect_graphs", "is_known", "outputs_digest"]

log = logging.getLogger(__name__)

_BATCH = 32
_ENOUGH_VALUES = 24  # whether a relu changes them: a toss of a coin each
_FEW = 32
_CODE = (".py", ".c")

Outcome = ExecutedGraph | Failure


def collect_graphs(
    connection: Connection,
    workspace: Workspace,
    store: Store,
    environment: int,
    models: Mapping[str, Model],
    *,
    fresh: bool = False,
    time_limit_s: float,
    progress: Progress,
) -> None:
    """Store the executed graphs of models, those that are not there yet.

    Args:
        connection: A backend that shows graphs.
        workspace: Where converted models are kept.
        store: Where graphs go, as they come: a run that is killed goes on from there.
        environment: Number of the environment.
        models: By hash; one that has ``converted`` is asked as that, not converted again.
        fresh: Ask again for those that are there, too.
        time_limit_s: For one model, or one batch of them.
        progress: Told of each.

    Raises:
        GraphUnavailableError: The runtime, or this version of it, cannot tell.
    """
    missing = {
        digest: model
        for digest, model in models.items()
        if fresh or not is_known(store, environment, digest)
    }
    done = 0
    lost: list[str] = []
    limit_s = time_limit_s + (PATIENCE_S if connection.in_turn else 0.0)

    def keep(found: Mapping[str, Outcome]) -> None:
        nonlocal done
        for digest, outcome in found.items():
            if isinstance(outcome, Failure) and outcome.kind == DEVICE:
                lost.append(outcome.reason)  # says nothing about the model: the next run asks again
            else:
                store.add_graph(
                    environment, digest, outcome, outputs_digest(missing[digest]), _reader()
                )
            done += 1
            progress("graph", done, len(missing), missing[digest].path.name)

    if connection.shows_graphs:
        folder = workspace.converted_dir / connection.name
        make_folder(folder)
        batches = dict(enumerate(_batches(list(missing.values()))))
        spread(
            batches,
            **connection.workers(len(batches), few=1),
            carry_out=lambda caller, batch: _many(caller, batch, folder, limit_s),
            done=lambda number, name, found: keep(found),
        )
        _say_lost(lost)
        return
    given = {digest: model for digest, model in missing.items() if model.converted is not None}
    rest = {digest: model for digest, model in missing.items() if model.converted is None}
    converted = given | convert_all(
        connection, workspace, rest, time_limit_s=time_limit_s, progress=progress
    )
    keep({digest: found for digest, found in converted.items() if isinstance(found, Failure)})
    ready = {digest: model for digest, model in converted.items() if isinstance(model, Model)}
    spread(
        ready,
        **connection.workers(len(ready), few=_FEW),
        carry_out=lambda caller, model: _one(caller, model, limit_s),
        done=lambda number, digest, found: keep({digest: found}),
    )
    _say_lost(lost)


def _say_lost(reasons: Sequence[str]) -> None:
    if reasons:
        log.warning(
            "the graphs of %d models were not read, as the device was away (%s); the next run asks "
            "for them again",
            len(reasons),
            reasons[0],
        )


def is_known(store: Store, environment: int, digest: str) -> bool:
    """Whether there is a graph that today's readers read, or a reason why there is none."""
    stored = store.graph(environment, digest)
    return stored is not None and (isinstance(stored.graph, Failure) or stored.reader == _reader())


@functools.cache
def _reader() -> str:
    """The version of the code that reads graphs: what an older one read is read anew."""
    digest = hashlib.sha256()
    for file in sorted(Path(backends.__file__).parent.rglob("*")):
        if file.suffix in _CODE:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _batches(models: Sequence[Model]) -> list[Sequence[Model]]:
    return [models[start : start + _BATCH] for start in range(0, len(models), _BATCH)]


def _one(caller: Caller, model: Model, time_limit_s: float) -> Outcome:
    try:
        answer = caller.call(
            "graph",
            time_limit_s,
            converted=model.converted,
            shapes=[list(shape) for shape in model.shapes],
        )
    except NNMeterError as exc:
        return _failure(exc)
    return _read(answer)


def _many(
    caller: Caller, batch: Sequence[Model], folder: Path, time_limit_s: float
) -> dict[str, Outcome]:
    """Ask for many at once; when that crashes or takes too long, for each half of them."""
    try:
        answers: list[dict[str, Any]] = caller.call(
            "graphs",
            time_limit_s,
            models=[(str(m.path), [list(shape) for shape in m.shapes]) for m in batch],
            save_path=str(folder),
        )
    except NNMeterError as exc:
        if len(batch) == 1:
            return {batch[0].hash: _failure(exc)}
        if isinstance(exc, GraphUnavailableError | NotInstalledError):
            raise
        half = len(batch) // 2
        return {
            digest: outcome
            for part in (batch[:half], batch[half:])
            for digest, outcome in _many(caller, part, folder, time_limit_s).items()
        }
    return {
        model.hash: (
            _failure(decode_error(answer["error"])) if "error" in answer else _read(answer["ok"])
        )
        for model, answer in zip(batch, answers, strict=True)
    }


def _read(answer: Any) -> Outcome:
    """A graph as a backend gave it; one of the user's may give anything."""
    try:
        return ExecutedGraph.from_json(answer)
    except (TypeError, ValueError, LookupError, AttributeError) as exc:
        reason = f"the backend gave what is no executed graph: {type(exc).__name__}: {exc}"
        return Failure(kind="failed", reason=reason)


def _failure(error: NNMeterError) -> Failure:
    if isinstance(error, GraphUnavailableError | NotInstalledError):
        raise error  # it says nothing about the model
    return failure_of(error)


def outputs_digest(model: Model) -> str | None:
    """A digest of a model's reference outputs: equal ones compute the same.

    None if they are not known, or so few that they may be equal by chance.
    """
    if model.reference is None:
        return None
    if sum(len(output["values"]) for output in model.reference) < _ENOUGH_VALUES:
        return None
    text = json.dumps(list(model.reference), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
