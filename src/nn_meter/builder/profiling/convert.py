"""Converting models for a backend: each content once, on all cores, in processes of their own."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.measure import Caller, Model, failure_of
from nn_meter.builder.profiling.pool import spread
from nn_meter.builder.profiling.process import decode_error
from nn_meter.builder.profiling.store import Failure
from nn_meter.builder.workspace import Workspace, make_folder, write_json
from nn_meter.errors import NNMeterError, WorkspaceError
from nn_meter.progress import Progress

__all__ = ["convert_all"]

log = logging.getLogger(__name__)

_DONE = "converted.json"
_FEW = 16
_BATCH_BYTES = 100_000_000  # a batch is held in memory
_FEW_BATCHES = 1


def convert_all(
    connection: Connection,
    workspace: Workspace,
    models: Mapping[str, Model],
    *,
    time_limit_s: float,
    progress: Progress,
) -> dict[str, Model | Failure]:
    """Convert models, each content once; what was converted before stays.

    Args:
        connection: The backend.
        workspace: Where converted models are kept.
        models: By hash of their content.
        time_limit_s: For each model.
        progress: Told of each.

    Returns:
        For each hash the model with ``converted`` filled, or why there is none.

    Raises:
        WorkspaceError: What was converted cannot be written.
    """
    root = workspace.converted_dir / connection.name / connection.environment.key
    found: dict[str, Model | Failure] = {}
    missing: list[Model] = []
    for digest, model in models.items():
        known = _known(_folder(root, model), model)
        if known is None:
            missing.append(model)
        else:
            found[digest] = replace(model, converted=known)
    done = 0

    def keep(outcomes: Mapping[str, Model | Failure]) -> None:
        nonlocal done
        for digest, outcome in outcomes.items():
            found[digest] = outcome
            done += 1
            progress("convert", done, len(missing), models[digest].path.name)

    if connection.converts_many:
        batches = dict(enumerate(_batches(missing, connection.batch(len(missing)))))
        spread(
            batches,
            **connection.workers(len(batches), few=_FEW_BATCHES),
            carry_out=lambda caller, batch: _convert_many(caller, root, batch, time_limit_s),
            done=lambda number, name, outcomes: keep(outcomes),
        )
    rest = {model.hash: model for model in missing if model.hash not in found}
    spread(
        rest,
        **connection.workers(len(rest), few=_FEW),
        carry_out=lambda caller, model: _convert(caller, root, model, time_limit_s),
        done=lambda number, digest, outcome: keep({digest: outcome}),
    )
    return found


def _known(folder: Path, model: Model) -> str | None:
    """The converted model of an earlier run, if it is there."""
    try:
        converted = json.loads((folder / _DONE).read_text(encoding="utf-8"))["converted"]
        if converted is None:  # the backend takes the model as it is
            return str(model.path)
        inside = PurePath(converted)
        if inside.is_absolute() or ".." in inside.parts or not (folder / inside).exists():
            return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None  # not converted yet, or not to the end; or the file is damaged
    return str(folder / inside)


def _batches(models: Sequence[Model], most: int) -> Iterator[list[Model]]:
    batch: list[Model] = []
    total = 0
    for model in models:
        size = model.path.stat().st_size if model.path.is_file() else 0
        if batch and (len(batch) == most or total + size > _BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(model)
        total += size
    if batch:
        yield batch


def _convert_many(
    caller: Caller, root: Path, batch: Sequence[Model], time_limit_s: float
) -> dict[str, Model | Failure]:
    """Convert models at once; gives nothing where that crashes or takes too long."""
    folders = [_folder(root, model) for model in batch]
    for folder in folders:
        make_folder(folder)
    try:
        answers: list[dict[str, Any]] = caller.call(
            "convert_many",
            time_limit_s,  # as one model may take: a batch that hangs is done again one by one
            models=[(str(model.path), [list(shape) for shape in model.shapes]) for model in batch],
            save_paths=[str(folder) for folder in folders],
        )
    except NNMeterError as exc:
        log.debug("%d models cannot be converted at once: %s", len(batch), exc)
        return {}  # each by itself says why
    return {
        model.hash: (
            failure_of(decode_error(answer["error"]))
            if "error" in answer
            else _marked(folder, model, Path(answer["ok"]))
        )
        for model, folder, answer in zip(batch, folders, answers, strict=True)
    }


def _convert(caller: Caller, root: Path, model: Model, time_limit_s: float) -> Model | Failure:
    folder = _folder(root, model)
    try:
        make_folder(folder)
        converted = caller.call(
            "convert",
            time_limit_s,
            model=str(model.path),
            save_path=str(folder),
            shapes=[list(shape) for shape in model.shapes],
        )
        return _marked(folder, model, Path(converted))
    except WorkspaceError:
        raise  # a full disk says nothing about the model
    except NNMeterError as exc:
        return failure_of(exc)


def _marked(folder: Path, model: Model, converted: Path) -> Model:
    """Note what was made of a model, for later runs."""
    inside = converted.is_relative_to(folder)
    if inside or converted == model.path:
        kept = converted.relative_to(folder).as_posix() if inside else None
        write_json(folder / _DONE, {"converted": kept})
    return replace(model, converted=str(converted))


def _folder(root: Path, model: Model) -> Path:
    return root / model.hash[:20]
