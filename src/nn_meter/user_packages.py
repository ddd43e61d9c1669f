"""Importing a user's package by where it lies, without ``sys.path``.

A folder becomes a package under a name that no other folder can have, made from its path. So two
folders may hold modules of the same name, or be named the same, and neither shadows the other,
nor anything installed. What the code inside expects still works: relative imports, ``import
helper`` for a module beside it, and ``from my_folder.helper import x`` by the folder's own name,
at import time or later inside a function.

How: a finder per folder on ``sys.meta_path`` answers for the folder's made-up name alone, and each
module loaded through it gets ``__builtins__`` whose ``__import__`` (which is what an import
statement calls) first looks into the folder. Only ``importlib.import_module("helper")`` cannot be
told from anybody else's call; write ``importlib.import_module(".helper", __package__)``.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

__all__ = ["find_module", "load_module", "module_names"]

_NEVER_FROM_A_FOLDER = sys.stdlib_module_names | {"nn_meter"}


def load_module(folder: Path, module: str) -> ModuleType:
    """Import a module of a package folder; once a process, as imports go.

    The folder's ``__init__.py`` runs first. When anything fails, no module that this call added
    stays in ``sys.modules``.

    Args:
        folder: A folder with an ``__init__.py``.
        module: The module's name inside the folder; dotted for one in a folder of its own.

    Raises:
        BaseException: Whatever the user's code raises, unchanged.
    """
    package = _package(folder)
    before = package.loaded()
    importlib.invalidate_caches()
    try:
        return importlib.import_module(f"{package.name}.{module}")
    except BaseException:
        package.forget(package.loaded() - before)
        raise


def find_module(folder: Path, module: str) -> Path | None:
    """Return the file of a module of a package folder, without importing anything."""
    *parents, last = module.split(".")
    for parent in parents:
        folder = folder / parent
    if source := _source(folder, last):
        return source
    importlib.invalidate_caches()
    spec = PathFinder.find_spec(last, [str(folder)])
    return Path(spec.origin) if spec and spec.origin else None


def module_names(folder: Path) -> list[str]:
    """List the modules and packages of a folder, to suggest a spelling."""
    found = [*folder.glob("*.py"), *(init.parent for init in folder.glob("*/__init__.py"))]
    return sorted(path.stem for path in found if path.stem.isidentifier())


def _source(folder: str | Path, name: str) -> Path | None:
    """Return the source file of a module or package, a package first, as Python has it."""
    for path in (Path(folder, name, "__init__.py"), Path(folder, f"{name}.py")):
        if path.is_file():
            return path
    return None


def _installed(name: str) -> bool:
    """Whether a package is installed (and not merely reachable from where Python was started)."""
    places = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    return PathFinder.find_spec(name, places) is not None


def _package(folder: Path) -> _UserPackage:
    """Return the finder of a folder, the same one every time."""
    wanted = _UserPackage(folder)
    for finder in sys.meta_path:
        if isinstance(finder, _UserPackage) and finder.name == wanted.name:
            return finder
    sys.meta_path.insert(0, wanted)  # before PathFinder, which would use its own loader
    return wanted


class _Loader(SourceFileLoader):
    """Loads one module of a user's package."""

    def __init__(self, package: _UserPackage, name: str, path: str) -> None:
        super().__init__(name, path)
        self._package = package

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source, never a cached ``.pyc``.

        A ``.pyc`` is taken for fresh when the source has the same size and the same second, which
        an edit between two runs can meet; and the user's folder stays free of our files.
        """
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = self._package.builtins
        super().exec_module(module)


class _UserPackage:
    """A folder as a package: finds its modules, and resolves what they import.

    Attributes:
        folder: The folder, symbolic links resolved.
        name: The made-up name under which its modules lie in ``sys.modules``.
        builtins: The ``__builtins__`` of its modules.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        readable = re.sub(r"\W", "_", self.folder.name, flags=re.ASCII)
        digest = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        self.name = f"nn_meter_user_{readable}_{digest}"
        self.builtins: dict[str, Any] = {**vars(builtins), "__import__": self.import_}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a source module of this package; other kinds of modules are left to Python."""
        if fullname == self.name:
            return self._spec(fullname, self.folder / "__init__.py")
        if not fullname.startswith(self.name + "."):
            return None
        for folder in path or ():
            if source := _source(folder, fullname.rpartition(".")[2]):
                return self._spec(fullname, source)
        return None

    def _spec(self, fullname: str, source: Path) -> ModuleSpec | None:
        is_package = source.name == "__init__.py"
        return spec_from_file_location(
            fullname,
            source,
            loader=_Loader(self, fullname, str(source)),
            submodule_search_locations=[str(source.parent)] if is_package else None,
        )

    def import_(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Do what ``__import__`` does, with the folder's own modules before installed ones."""
        top = None if level else self._own(name, globals or {}, fromlist or ())
        if top is None:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        inside = top + name.removeprefix(name.partition(".")[0])
        if fromlist:
            return builtins.__import__(inside, globals, locals, fromlist, 0)
        importlib.import_module(inside)
        return sys.modules[top]  # ``import a.b`` binds a

    def _own(
        self, name: str, importer: Mapping[str, object], fromlist: Sequence[str]
    ) -> str | None:
        """Return what the first part of an absolute name is called in here; None: not ours."""
        head, _, rest = name.partition(".")
        if head in _NEVER_FROM_A_FOLDER:
            return None
        own = f"{self.name}.{head}"
        itself = importer.get("__name__") == own and "__path__" not in importer
        if self._holds(head) and not itself:  # onnx.py in the folder may import the real onnx
            return own
        if head == self.folder.name and (self._offers(rest, fromlist) or not _installed(head)):
            return self.name
        return None

    def _holds(self, name: str) -> bool:
        """Whether a module lies in the folder; a folder without Python files is none."""
        if _source(self.folder, name):
            return True
        spec = PathFinder.find_spec(name, [str(self.folder)])
        return spec is not None and (spec.origin is not None or not _installed(name))

    def _offers(self, rest: str, fromlist: Sequence[str]) -> bool:
        """Whether what is asked of the folder's own name is there.

        A folder may be called ``torch`` and say ``import torch`` or ``from torch import nn``.
        """
        if rest:
            return self._holds(rest.partition(".")[0])
        package = sys.modules.get(self.name)
        return bool(fromlist) and all(hasattr(package, n) or self._holds(n) for n in fromlist)

    def loaded(self) -> set[str]:
        """Return the names of this package's modules that are in ``sys.modules`` now."""
        return {n for n in list(sys.modules) if n == self.name or n.startswith(self.name + ".")}

    def forget(self, names: set[str]) -> None:
        """Take modules out of ``sys.modules`` and out of their parents."""
        for name in names:
            sys.modules.pop(name, None)
            parent, _, last = name.rpartition(".")
            if parent in sys.modules:
                vars(sys.modules[parent]).pop(last, None)
