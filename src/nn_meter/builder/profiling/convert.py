"""Converting models for a backend: each content once, on all cores, in processes of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath

from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.measure import Caller, Model, failure_of
from nn_meter.builder.profiling.pool import spread
from nn_meter.builder.profiling.store import Failure
from nn_meter.builder.workspace import Workspace, make_folder, write_json
from nn_meter.errors import NNMeterError, WorkspaceError
from nn_meter.progress import Progress

__all__ = ["convert_all"]

_DONE = "converted.json"
_FEW = 16


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
        known = _known(root / digest[:20], model)
        if known is None:
            missing.append(model)
        else:
            found[digest] = replace(model, converted=known)
    outcomes = spread(
        {model.hash: model for model in missing},
        **connection.workers(len(missing), few=_FEW),
        carry_out=lambda caller, model: _convert(
            caller, root / model.hash[:20], model, time_limit_s
        ),
        done=lambda number, digest, _: progress(
            "convert", number, len(missing), models[digest].path.name
        ),
    )
    return {**found, **outcomes}


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


def _convert(caller: Caller, folder: Path, model: Model, time_limit_s: float) -> Model | Failure:
    try:
        make_folder(folder)
        converted = Path(
            caller.call(
                "convert",
                time_limit_s,
                model=str(model.path),
                save_path=str(folder),
                shapes=[list(shape) for shape in model.shapes],
            )
        )
        inside = converted.is_relative_to(folder)
        if inside or converted == model.path:
            kept = converted.relative_to(folder).as_posix() if inside else None
            write_json(folder / _DONE, {"converted": kept})
        return replace(model, converted=str(converted))
    except WorkspaceError:
        raise  # a full disk says nothing about the model
    except NNMeterError as exc:
        return failure_of(exc)
