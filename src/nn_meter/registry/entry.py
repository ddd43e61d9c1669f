"""An entry: what one operator, test case or backend is called and where its class is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from nn_meter.errors import RegistrationError

__all__ = [
    "IMPLEMENTS",
    "NOUNS",
    "Entry",
    "Kind",
    "check_implement",
    "check_name",
    "nearest",
    "with_article",
]

Kind = Literal["operator", "testcase", "backend"]
IMPLEMENTS = ("tensorflow", "torch", "onnx")

NOUNS: dict[Kind, str] = {"operator": "operator", "testcase": "test case", "backend": "backend"}

_NOT_FOR_OPERATORS = {"block", "ops", "BF"}
"""The words that stand beside operators' names in a test case's models, latencies and name."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where the class of an operator, test case or backend is.

    Attributes:
        kind: What it is.
        name: What configuration files and commands call it.
        origin: Who brings it.
        implement: The framework of an operator or test case. None for a backend, and for a built-in
            as it is listed, which exists in every one.
        package_location: Absolute path of the package folder that holds the module. None: the
            module is imported by its name.
        class_module: The module's name; in a package folder, counted from that folder. Empty for a
            built-in operator without ``implement``.
        class_name: The class's name in the module.
        default_config_file: Absolute path of the configuration template that a registered backend
            brings, if it does.
    """

    kind: Kind
    name: str
    origin: Literal["builtin", "registered", "entry point"]
    implement: str | None = None
    package_location: str | None = None
    class_module: str = ""
    class_name: str = ""
    default_config_file: str | None = None

    def __str__(self) -> str:
        return f"{NOUNS[self.kind]} {self.called}"

    @property
    def called(self) -> str:
        """The name with the framework, e.g. ``op1 (tensorflow)``."""
        return f"{self.name} ({self.implement})" if self.implement else self.name

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dict that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Make an entry from what ``to_json`` returned.

        Raises:
            RegistrationError: It is something else.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != known or data["kind"] not in NOUNS:
            raise RegistrationError(f"{data!r} is no entry of the registry")
        return cls(**data)


def check_name(kind: Kind, name: str, where: str) -> None:
    """Refuse a name that would mean something else in a configuration, a file name or a command.

    Args:
        kind: What the name is for.
        name: The name.
        where: What the error message starts with, e.g. ``"meta.yaml: "``.

    Raises:
        RegistrationError: The name cannot be used; says why.
    """
    if kind != "backend" and "_" in name:
        raise RegistrationError(
            f"{where}the name {name!r} has a '_', which joins the operators of a test case in its "
            f"name (conv_relu); choose a name for the {NOUNS[kind]} without it"
        )
    between = "-_." if kind == "backend" else "-"
    if not re.fullmatch(rf"[A-Za-z0-9](?:[A-Za-z0-9{between[::-1]}]{{0,62}}[A-Za-z0-9])?", name):
        raise RegistrationError(
            f"{where}{name!r} cannot be the name of {with_article(NOUNS[kind])}: choose at most 64 "
            f"letters and digits of ASCII, with {' or '.join(map(repr, between))} between them"
        )
    if kind == "operator" and name in _NOT_FOR_OPERATORS:
        raise RegistrationError(
            f"{where}the name {name!r} means something else in test cases; choose another"
        )


def check_implement(kind: Kind, implement: str | None, where: str = "") -> None:
    """Refuse a framework that is none of ours, or that a backend is given.

    Raises:
        RegistrationError: As said; with the nearest spelling.
    """
    if implement is None:
        return
    if kind == "backend":
        raise RegistrationError(f"{where}a backend has no implement, but {implement!r} is given")
    if implement not in IMPLEMENTS:
        raise RegistrationError(
            f"{where}implement is {implement!r}{nearest(implement, IMPLEMENTS)}; "
            f"choose from {', '.join(IMPLEMENTS)}"
        )


def nearest(found: str, known: Iterable[str]) -> str:
    """Return the words ``; did you mean 'x'?`` when a known name is near, else none."""
    names = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(found.casefold(), names, n=1)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def with_article(noun: str) -> str:
    """Put ``a`` or ``an`` before a noun."""
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"
