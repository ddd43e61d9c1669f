"""Folders and files of a workspace, and `builder_config`, the workspace that is in use.

::

    <workspace>/
      workspace.json                     which platform it was made for; the format's version
      configs/ruletest_config.yaml       what is asked
      configs/backend_config.yaml        where and how it is measured
      fusion_rule_test/models/           model files; in .info/ what is known of each
      fusion_rule_test/converted/        what backends made of them, by backend and content
      fusion_rule_test/results/          the latest run; a folder per backend; samples.db

What a killed run left half written there has a hidden, temporary name, and is cleared away by the
next one. A damaged file is moved aside under a name that says so, never deleted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nn_meter import registry
from nn_meter.bounded import parse_json, read_file
from nn_meter.builder.config import RuletestConfig, read_yaml
from nn_meter.builder.disk import reason_of
from nn_meter.errors import ConfigError, ResultFileError, WorkspaceError

__all__ = [
    "BuilderConfig",
    "Workspace",
    "builder_config",
    "create_workspace",
    "make_folder",
    "move_aside",
    "open_workspace",
    "read_json",
    "write_json",
]

log = logging.getLogger(__name__)

_VERSION = 1
_MARK = "workspace.json"
_MODEL_DIR = "MODEL_DIR"
_MOST_JSON_BYTES = 2**26


# --- files ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it takes its place when all is written and synced.

    Raises:
        WorkspaceError: The disk is full, the folder is read-only, ``path`` is a device, …; ``path``
            is as it was.
    """
    if path.exists() and not path.is_file():  # a device would be replaced, by whoever may do so
        raise WorkspaceError(f"{path}: cannot be written: it is no ordinary file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as exc:
        raise WorkspaceError(f"{path}: cannot be written: {reason_of(exc, path)}") from exc
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as exc:
        raise WorkspaceError(f"{path}: cannot be written: {reason_of(exc, path)}") from exc
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        WorkspaceError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        reason = reason_of(exc, path)
        raise WorkspaceError(f"{path}: cannot be made a folder: {reason}") from exc


def move_aside(path: Path, *, with_suffixes: Collection[str] = ()) -> Path:
    """Rename a damaged file to ``<name>.damaged``, or ``<name>.damaged-2`` and so on.

    Args:
        path: The file.
        with_suffixes: What the names of files that belong to it end with, beyond its own.

    Returns:
        Its new path. No file that is there already is replaced.

    Raises:
        OSError: It cannot be renamed.
    """
    names = (f"{path.name}.damaged{number}" for number in ("", *map("-{}".format, range(2, 1000))))
    aside = next(found for name in names if not (found := path.with_name(name)).exists())
    path.rename(aside)
    for suffix in with_suffixes:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        WorkspaceError: It cannot be written.
    """
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        # piece by piece: all of it at once takes ten times the memory that the text has
        json.dump(data, file, indent=4, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: The file.
        what: What it should be, for messages.

    Raises:
        ResultFileError: It is missing, damaged, or holds something else.
    """
    try:
        data = parse_json(read_file(path, _MOST_JSON_BYTES).decode("utf-8"))
    except FileNotFoundError as exc:
        raise ResultFileError(f"{path}: there is no such file of {what}") from exc
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise ResultFileError(f"{path}: is no valid JSON file of {what}: {why}") from exc
    if not isinstance(data, dict):
        raise ResultFileError(f"{path}: should hold an object of {what}")
    return data


# --- a workspace ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A workspace whose files were read and found good. Reading them again makes a new one.

    Attributes:
        path: Its folder, absolute.
        platform: What it was made for, e.g. ``onnxruntime``; empty if it does not say.
        ruletest: ``ruletest_config.yaml``.
        backend_config: ``backend_config.yaml`` as it stands; the backend that is used checks it.
    """

    path: Path
    platform: str
    ruletest: RuletestConfig
    backend_config: dict[str, Any]

    @property
    def ruletest_file(self) -> Path:
        return self.path / "configs" / "ruletest_config.yaml"

    @property
    def backend_file(self) -> Path:
        return self.path / "configs" / "backend_config.yaml"

    @property
    def ruletest_dir(self) -> Path:
        return self.path / "fusion_rule_test"

    @property
    def models_dir(self) -> Path:
        return self.ruletest_dir / "models"

    @property
    def settings_file(self) -> Path:
        """The keys of the configuration that the models were generated with."""
        return self.models_dir / ".info" / "settings.json"

    @property
    def situations_dir(self) -> Path:
        """Models of blocks inside other models, of which only the executed graph is read."""
        return self.ruletest_dir / "situations"

    @property
    def situations_file(self) -> Path:
        """The list of them: rule -> situation -> model -> ``{"model", "shapes"}``."""
        return self.situations_dir / "situations.json"

    @property
    def controls_dir(self) -> Path:
        """Models that the clock asks by: blocks in small, and what they are held against."""
        return self.ruletest_dir / "controls"

    @property
    def converted_dir(self) -> Path:
        return self.ruletest_dir / "converted"

    @property
    def results_dir(self) -> Path:
        return self.ruletest_dir / "results"

    @property
    def store_file(self) -> Path:
        return self.results_dir / "samples.db"

    def resolve(self, model: str) -> Path:
        """The file of a model path that stands in a dict of test cases, relative or absolute."""
        return self.path / model

    def relative(self, path: Path) -> str:
        """How a path in the workspace is written in a dict of test cases."""
        return f"./{path.relative_to(self.path).as_posix()}"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the workspace, so that no other run writes into it meanwhile.

        Raises:
            WorkspaceError: Another process holds it (the message names it), or it is read-only.
        """
        path = self.ruletest_dir / ".lock"
        holder = self.ruletest_dir / ".lock-holder"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, timeout=0, is_singleton=True)
            lock.acquire()
        except Timeout as exc:
            raise WorkspaceError(
                f"{self.path}: another run{_told(holder)} is using this workspace; wait for it, "
                "or use another workspace"
            ) from exc
        except OSError as exc:
            raise WorkspaceError(f"{path}: cannot be written: {reason_of(exc, path)}") from exc
        try:
            if lock.lock_counter == 1:  # not for a step of a run that holds it already
                with contextlib.suppress(OSError):
                    holder.write_text(f"{os.getpid()} {_command()}", encoding="utf-8")
                _clear_away(self.ruletest_dir)
            yield
        finally:
            lock.release()

    def operator_config(self) -> dict[str, Any]:
        """The plain dict that operators and test cases get: all keys, and where models go."""
        return {**self.ruletest.as_dict(), _MODEL_DIR: str(self.ruletest_dir)}


def _command() -> str:
    """How this process was started, as far as a message needs it."""
    known = sys.argv if sys.argv and not sys.argv[0].startswith("-") else sys.orig_argv
    first, *rest = known or [""]
    return shlex.join([Path(first).name, *rest])[:200]


def _told(holder: Path) -> str:
    """Which process holds a workspace; nothing while it has not said so yet."""
    try:
        number, _, command = holder.read_text(encoding="utf-8").partition(" ")
    except (OSError, ValueError):
        return ""
    if not (number.isdecimal() and _lives(int(number))):
        return ""
    words = "".join(c for c in command if c.isprintable()).strip()
    return f" (process {number}: {words})" if words else f" (process {number})"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # somebody else's
        return True
    except (OSError, OverflowError):
        return False
    return True


_PLACES = ("*", "*/.info", "results/*", "results/*/*", *("converted" + "/*" * n for n in (1, 2, 3)))
"""Folders of ``fusion_rule_test/`` in which something is written under a temporary name first."""

_TEMPORARY = re.compile(
    r"\..+\.[0-9a-z_]{8}"  # of atomic_write, and of a model that is put at another path
    r"|\..+\.\d+\.new"  # of a model that its framework saves
    r"|\.(openvino|iree|mnn)-[0-9a-z_]{8}"  # of a conversion
)


def _clear_away(folder: Path) -> None:
    """Remove what runs that were killed left half written; to be called with the lock held."""
    left = [
        path
        for place in _PLACES
        for path in folder.glob(f"{place}/.*")
        if _TEMPORARY.fullmatch(path.name)
    ]
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    if left:
        log.info("%s: %d temporary files of a run that was killed are removed", folder, len(left))


def create_workspace(
    path: Path | str, *, platform: str, ruletest_config: str, backend_config: str
) -> Path:
    """Make a workspace.

    Args:
        path: A folder that does not exist yet, or is empty.
        platform: What it is for, e.g. ``tflite``.
        ruletest_config: Text of ``ruletest_config.yaml``.
        backend_config: Text of ``backend_config.yaml``.

    Returns:
        Its absolute path.

    Raises:
        WorkspaceError: There is something at that path already, or it cannot be written.
    """
    target = _folder(path)
    try:
        there = target.exists()
        occupied = there and (not target.is_dir() or any(target.iterdir()))
    except OSError as exc:
        raise WorkspaceError(f"{target}: cannot be read: {exc.strerror or exc}") from exc
    if occupied:
        what = "a workspace" if (target / "configs").is_dir() else "something"
        raise WorkspaceError(
            f"{target}: there is {what} already, and it is never overwritten; choose another path "
            "or remove it"
        )
    files = {"ruletest_config.yaml": ruletest_config, "backend_config.yaml": backend_config}
    try:
        for name, text in files.items():
            with atomic_write(target / "configs" / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        write_json(target / _MARK, {"version": _VERSION, "platform": platform})
    except BaseException:  # what is left of it would be taken for a workspace
        shutil.rmtree(target / "configs" if there else target, ignore_errors=True)
        raise
    return target


def _folder(path: Path | str) -> Path:
    try:
        if "\0" in str(path):
            raise ValueError("it holds a NUL")
        return Path(path).expanduser().absolute()
    except (RuntimeError, ValueError) as exc:  # RuntimeError: ~nobody
        raise WorkspaceError(f"{path!r} is no path of a workspace: {exc}") from exc


def open_workspace(path: Path | str) -> Workspace:
    """Read a workspace's files.

    Raises:
        WorkspaceError: There is no workspace at that path.
        ConfigError: One of its files is bad.
    """
    folder = _folder(path)
    ruletest = folder / "configs" / "ruletest_config.yaml"
    try:
        ruletest.lstat()  # a pipe in its place is there, and refused when it is read
    except (FileNotFoundError, NotADirectoryError):
        raise WorkspaceError(
            f"{folder}: there is no workspace here (no configs/ruletest_config.yaml); "
            f"make one with 'nn-meter create --onnxruntime-workspace {path}' "
            "or another --…-workspace"
        ) from None
    except OSError as exc:
        raise WorkspaceError(f"{folder}: cannot be read: {exc.strerror or exc}") from exc
    backend = folder / "configs" / "backend_config.yaml"
    platform = _platform(folder / _MARK)
    config = RuletestConfig.load(
        ruletest, operators=_names("operator"), testcases=_names("testcase")
    )
    if _MODEL_DIR in config.as_dict():
        raise ConfigError(
            f"{ruletest}: {_MODEL_DIR} cannot be set: operators and test cases find there where "
            "this workspace keeps its models; choose another name for a key of your own"
        )
    return Workspace(
        path=folder,
        platform=platform,
        ruletest=config,
        backend_config=read_yaml(backend) if os.path.lexists(backend) else {},
    )


def _names(kind: registry.Kind) -> Collection[str]:
    return list(dict.fromkeys(entry.name for entry in registry.entries(kind)))


def _platform(mark: Path) -> str:
    if not mark.is_file():
        return ""
    try:
        data = read_json(mark, "what a workspace is for")
    except ResultFileError as exc:
        raise WorkspaceError(str(exc)) from exc
    version = data.get("version")
    if type(version) is not int or not 1 <= version <= _VERSION:
        raise WorkspaceError(
            f"{mark}: the workspace has the format {version!r}; "
            f"this nn-Meter knows up to {_VERSION}"
        )
    return str(data.get("platform", ""))


# --- the workspace in use ------------------------------------------------------------------------


class BuilderConfig:
    """Holds the workspace that calls without arguments use. The guide's ``builder_config``."""

    def __init__(self) -> None:
        self._workspace: Workspace | None = None

    def init(self, workspace_path: Path | str) -> None:
        """Read a workspace and use it from here on. Again after an edit: takes the new values.

        Raises:
            WorkspaceError: There is no workspace at that path.
            ConfigError: One of its files is bad; the workspace in use stays what it was.
        """
        self._workspace = open_workspace(workspace_path)

    @property
    def workspace(self) -> Workspace:
        """The workspace in use.

        Raises:
            WorkspaceError: ``init`` was not called.
        """
        if self._workspace is None:
            raise WorkspaceError(
                "no workspace is in use; call builder_config.init(workspace_path=…) first"
            )
        return self._workspace

    def get_module(self, module: str = "ruletest") -> dict[str, Any]:
        """All keys of ``ruletest`` or ``backend``."""
        if module == "ruletest":
            return self.workspace.operator_config()
        if module == "backend":
            return dict(self.workspace.backend_config)
        raise WorkspaceError(f"there is no configuration {module!r}; ruletest and backend are")

    def get(self, name: str, module: str = "ruletest") -> Any:
        """One key of ``ruletest`` or ``backend``; None if it is not there."""
        return self.get_module(module).get(name)


builder_config = BuilderConfig()
