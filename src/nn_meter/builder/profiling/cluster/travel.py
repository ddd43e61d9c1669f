"""What travels with a call: models as their content, and back what was converted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nn_meter.builder.profiling.cluster.content import Files, read_files, write_files

__all__ = ["arrived", "travelling"]

_LEVELS = 4

_IN = {
    "open": ("converted",),
    "convert": ("model",),
    "graph": ("converted",),
    "profile": ("model", "converted"),
}
"""Arguments of operations that are the path of a model."""


def travelling(op: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Files]]:
    """Arguments without paths of this machine, and the models that they name."""
    contents: dict[str, Files] = {}

    def content(path: str) -> dict[str, Any]:
        found, files = read_files(Path(path), root=_root(Path(path)), beside=_is_foreign(path))
        contents[found.digest] = files
        return {"$content": found.to_json()}

    told = dict(arguments)
    for name in _IN.get(op, ()):
        if told[name] is not None:
            told[name] = content(told[name])
    if op in ("convert_many", "graphs"):
        told["models"] = [(content(path), shapes) for path, shapes in told["models"]]
    if op in ("convert", "graphs", "profile", "measure"):
        told["save_path"] = {"$folder": 0}
    if op == "convert_many":
        told["save_paths"] = [{"$folder": n} for n in range(len(told["save_paths"]))]
    if op == "measure":
        told["models"] = [
            {
                **each,
                "path": content(each["path"]) if told["with_models"] else Path(each["path"]).name,
                "converted": content(each["converted"]) if each["converted"] is not None else None,
            }
            for each in told["models"]
        ]
    return told, contents


def _root(path: Path) -> Path | None:
    """The folder of all that a conversion made, if the model is one that nn-Meter converted."""
    return next(
        (folder for folder in path.parents[:_LEVELS] if (folder / "converted.json").is_file()), None
    )


def _is_foreign(path: str) -> bool:
    """Whether somebody else put the model where it is: what lies beside it may belong to it."""
    return not (Path(path).parent / ".info").is_dir()


def arrived(op: str, arguments: Mapping[str, Any], found: Any) -> Any:
    """The answer with paths of this machine; what was converted is written here."""
    if op == "convert":
        return _written(found, arguments["model"], arguments["save_path"])
    if op == "convert_many":
        return [
            {"ok": _written(each["ok"], model, folder)} if "ok" in each else each
            for each, (model, _), folder in zip(
                found, arguments["models"], arguments["save_paths"], strict=True
            )
        ]
    return found


def _written(found: Mapping[str, Any], model: str, folder: str) -> str:
    if found["inside"] is None:
        return model
    write_files(Path(folder), found["files"])
    return str(Path(folder) / found["inside"])
