"""What is known of a model file: what it was built from, and what it computes.

Beside the models of a workspace lies ``.info/<model name>.json`` with the key that a model was
built from, the hash of its content, the shapes of its inputs and a sample of its outputs. It speaks
of a model only as long as the content is what it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nn_meter.bounded import parse_json, read_file
from nn_meter.errors import ResultFileError
from nn_meter.reference import compare_outputs

__all__ = ["ModelInfo", "hash_model", "info_file", "read_info", "write_info"]

_MOST_BYTES = 2**24


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is known of a model file.

    Attributes:
        key: Hash of all that it was built from.
        sha256: Hash of its content.
        shapes: Shapes of its inputs without the batch dimension.
        outputs: A sample of its outputs on the reference inputs; see ``nn_meter.reference``.
    """

    key: str
    sha256: str
    shapes: Sequence[Sequence[int]]
    outputs: Sequence[dict[str, Any]]


def info_file(model: Path) -> Path:
    """Where the info of a model lies."""
    return model.parent / ".info" / f"{model.name}.json"


def write_info(model: Path, info: ModelInfo) -> None:
    """Write the info of a model that was just written."""
    path = info_file(model)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(asdict(info)), encoding="utf-8")
    temporary.replace(path)


def read_info(model: Path) -> ModelInfo | None:
    """Read the info of a model; None if there is none that can be read."""
    try:
        data = parse_json(read_file(info_file(model), _MOST_BYTES).decode("utf-8"))
        info = ModelInfo(
            key=str(data["key"]),
            sha256=str(data["sha256"]),
            shapes=[[int(size) for size in shape] for shape in data["shapes"]],
            outputs=list(data["outputs"]),
        )
        sound = compare_outputs(info.outputs, info.outputs) is None
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return None  # not ours, of an older form, or damaged: then nothing is known of it
    return info if sound else None


def hash_model(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names, in hexadecimal.

    Raises:
        ResultFileError: There is no such file.
    """
    try:
        if not path.is_dir():
            return _hash_file(path).hex()
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
            digest.update(_hash_file(file))
        return digest.hexdigest()
    except OSError as exc:
        raise ResultFileError(
            f"{path}: the model cannot be read ({exc.strerror or exc}); generate it again"
        ) from exc


def _hash_file(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe would be waited for, a device has no end
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
