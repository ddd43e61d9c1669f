"""Model files as what travels: their content, by its hash.

A model is a file, a folder, or files that belong together (``model.xml`` and ``model.bin``). What a
device has of them it keeps by the hash of their content, whatever they are called.

This module runs on both sides.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nn_meter.errors import BackendError, ResultFileError

__all__ = ["Content", "Files", "Shelf", "read_files", "read_folder", "write_files"]

Files = dict[str, bytes]
"""Path within a folder -> what the file holds."""

_ONE = "model"
"""What the file of a model of one file is called while it travels: its name is no content."""

_NOT_OURS = ("converted.json",)
"""Files beside a converted model that are no part of it."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """A model as it is told of: its files go only where they are not yet.

    Attributes:
        digest: Hash of its files.
        name: What the model is called.
        inside: Its file, of several that belong together; empty: it is one file, or a folder.
        is_file: Whether it is a single file.
    """

    digest: str
    name: str
    inside: str
    is_file: bool

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        return {
            "digest": self.digest,
            "name": self.name,
            "inside": self.inside,
            "is_file": self.is_file,
        }


def read_files(
    model: Path, *, root: Path | None = None, beside: bool = False
) -> tuple[Content, Files]:
    """Read a model.

    Args:
        model: The file or folder.
        root: The folder of all that belongs to it; None: there is none.
        beside: Whether the files beside it whose names begin as its does belong to it, too:
            ``model.bin`` to ``model.xml``.

    Raises:
        ResultFileError: It cannot be read.
    """
    inside, is_file = "", False
    try:
        if root is not None:
            files = {
                name: data for name, data in read_folder(root).items() if name not in _NOT_OURS
            }
            inside = model.relative_to(root).as_posix()
            is_file = list(files) == [inside]
        elif model.is_dir():
            files = read_folder(model)
        else:
            family = _beside(model) if beside else [model]
            files = {path.name: path.read_bytes() for path in family}
            inside, is_file = model.name, len(files) == 1
        if is_file:
            inside, files = "", {_ONE: next(iter(files.values()))}
    except OSError as exc:
        raise ResultFileError(f"{model}: cannot be read: {exc.strerror or exc}") from exc
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{len(name)} {name} {len(data)} ".encode())
        digest.update(data)
    content = Content(digest=digest.hexdigest(), name=model.name, inside=inside, is_file=is_file)
    return content, files


def _beside(model: Path) -> list[Path]:
    return sorted(
        path
        for path in model.parent.iterdir()
        if path.name.startswith(f"{model.stem}.") and path.is_file()
    )


def read_folder(folder: Path) -> Files:
    """All files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder that is there.

    Raises:
        BackendError: One of them would lie elsewhere.
        OSError: They cannot be written.
    """
    for name, data in files.items():
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or not inside.parts:
            raise BackendError(f"{name!r:.200} is no path inside a folder")
        path = folder / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class Shelf:
    """The contents that a machine has.

    Args:
        folder: Where they lie; made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._contents, self._named = folder / "contents", folder / "named"
        for each in (self._contents, self._named):
            each.mkdir(parents=True, exist_ok=True)

    @property
    def digests(self) -> list[str]:
        """What there is."""
        return [path.name for path in self._contents.iterdir() if not path.name.startswith(".")]

    def put(self, digest: str, files: Mapping[str, bytes]) -> None:
        """Keep a content; if it is there, that one stays."""
        if (self._contents / digest).is_dir():
            return
        made = Path(tempfile.mkdtemp(prefix=".", dir=self._contents))
        try:
            write_files(made, files)
            made.rename(self._contents / digest)
        except OSError:
            if not (self._contents / digest).is_dir():  # else another one was quicker
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def has(self, digest: str) -> bool:
        """Whether a content is there."""
        return (self._contents / digest).is_dir()

    def path(self, content: Mapping[str, object]) -> Path:
        """Where a model lies, under its own name."""
        digest, name = str(content["digest"]), PurePosixPath(str(content["name"])).name
        folder = self._contents / digest
        if content["inside"]:
            return folder / PurePosixPath(str(content["inside"]))
        place = self._named / digest / name
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            temporary = place.with_name(f".{name}.{os.getpid()}.{os.urandom(4).hex()}")
            if content["is_file"]:
                try:
                    os.link(folder / _ONE, temporary)
                except OSError:  # a file system that has none
                    shutil.copyfile(folder / _ONE, temporary)
            else:
                temporary.symlink_to(folder, target_is_directory=True)
            temporary.replace(place)
        return place
