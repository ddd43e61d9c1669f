"""Importing the class that an entry names, and saying well what went wrong."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nn_meter import user_packages
from nn_meter.errors import NNMeterError, RegistrationError
from nn_meter.registry.entry import IMPLEMENTS, Entry, Kind, nearest
from nn_meter.registry.files import check_package

__all__ = ["load"]

# A base class is known by its name, not imported: it belongs to a layer above this one.
_BASES: dict[Kind, tuple[str, str]] = {  # where it is defined, and where users find it
    "operator": (
        "nn_meter.builder.nn_modules.base.BaseOperator",
        "nn_meter.builder.nn_modules.BaseOperator",
    ),
    "testcase": (
        "nn_meter.builder.backend_meta.fusion_rule_tester.testcase.BaseTestCase",
        "nn_meter.builder.backend_meta.fusion_rule_tester.BaseTestCase",
    ),
    "backend": (
        "nn_meter.builder.backends.base.BaseBackend",
        "nn_meter.builder.backends.BaseBackend",
    ),
}

_EXTRAS = {
    "tensorflow": "tensorflow",
    "keras": "tensorflow",
    "torch": "torch",
    "openvino": "openvino",
    "ai_edge_litert": "litert",
}
"""Which extra of nn-meter brings a module that an import did not find."""


def load(entry: Entry) -> type[Any]:
    """Import the class of an entry: the same class every time in one process.

    Raises:
        RegistrationError: The folder, module or class is not there, importing it fails, or it is
            not a class of the right kind. The cause is chained.
    """
    file, found = _module(entry)
    with _explained(entry, file):
        if not entry.class_name:
            raise RegistrationError("it names no class; write 'module:Class'")
        for name in entry.class_name.split("."):  # an entry point may name a class in a class
            if not hasattr(found, name):
                classes = [n for n, value in vars(found).items() if isinstance(value, type)]
                raise RegistrationError(f"there is no class {name!r}{nearest(name, classes)}")
            found = getattr(found, name)
        return _checked_class(entry.kind, entry.class_name, found)


def _module(entry: Entry) -> tuple[str, Any]:
    """Import the module of an entry; return what to call it in messages, and itself."""
    module = entry.class_module
    if entry.package_location is None:
        if not module:
            raise RegistrationError(f"{entry} exists for {', '.join(IMPLEMENTS)}: say for which")
        with _explained(entry, module):
            return module, importlib.import_module(module)
    folder = Path(entry.package_location)
    check_package(folder, f"{entry} cannot be loaded: its package_location ")
    with _explained(entry, str(folder)):
        file = user_packages.find_module(folder, module)
        if file is None:
            hint = nearest(module, user_packages.module_names(folder))
            raise RegistrationError(f"there is no module {module!r}{hint}")
    with _explained(entry, str(file), folder):
        return str(file), user_packages.load_module(folder, module)


@contextmanager
def _explained(entry: Entry, file: str, folder: Path | None = None) -> Iterator[None]:
    """Turn whatever user code raises, a call of ``sys.exit`` included, into our error."""
    try:
        yield
    except (Exception, SystemExit) as exc:
        reason = str(exc) if isinstance(exc, NNMeterError) else _reason(exc, folder)
        raise RegistrationError(f"{entry} cannot be loaded from {file}: {reason}") from exc


def _reason(exc: BaseException, folder: Path | None) -> str:
    """Say in one line what was raised, where in the user's folder, and what would help."""
    lines = traceback.format_exception_only(exc)
    reason = " ".join(next(line for line in lines if not line.startswith(" ")).split())
    frames = traceback.walk_tb(exc.__traceback__)
    places = [(Path(frame.f_code.co_filename), line) for frame, line in frames]
    if isinstance(exc, SyntaxError) and exc.filename:
        places.append((Path(exc.filename), exc.lineno or 0))
    if folder is not None:
        places = [place for place in places if place[0].is_relative_to(folder.resolve())]
        if places:
            reason += f" ({places[-1][0].name}, line {places[-1][1]})"
    if isinstance(exc, ModuleNotFoundError) and exc.name:
        extra = _EXTRAS.get(exc.name.partition(".")[0])
        if extra:
            reason += f"; pip install 'nn-meter[{extra}]' brings it"
    return reason


def _checked_class(kind: Kind, name: str, found: object) -> type[Any]:
    """Refuse what is not a class derived from the base of its kind."""
    base, public_base = _BASES[kind]
    if inspect.isfunction(found):
        signature = f"{name}({base.rpartition('.')[2]})"
        raise RegistrationError(
            f"{name} is a function, not a class; write 'class {signature}:', not 'def {signature}:'"
        )
    if not isinstance(found, type):
        raise RegistrationError(f"{name} is {found!r:.80}, not a class")
    if base not in [f"{each.__module__}.{each.__qualname__}" for each in found.__mro__[1:]]:
        raise RegistrationError(f"the class {name} does not derive from {public_base}")
    return found
