"""What installed packages bring by entry point.

A package's ``pyproject.toml`` says, for instance::

    [project.entry-points."nn_meter.operators"]
    "softsign.onnx" = "my_package.operators:Softsign"

    [project.entry-points."nn_meter.testcases"]
    "ReluTwice.onnx" = "my_package.testcases:ReluTwice"

    [project.entry-points."nn_meter.backends"]
    my_backend = "my_package.backend:MyBackend"

A backend's entry point has the backend's name; that of an operator or a test case has its name, a
dot, and the framework that it is written for (``implement`` in a meta file).
"""

from __future__ import annotations

import functools
import logging
import sys
from typing import TYPE_CHECKING

from nn_meter.errors import RegistrationError
from nn_meter.registry.entry import IMPLEMENTS, Entry, Kind, check_implement, check_name

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["plugged_in", "warn_once"]

log = logging.getLogger(__name__)

_DAMAGED = (AttributeError, KeyError, OSError, TypeError, ValueError)
"""What ``importlib.metadata`` lets out when the metadata of an installed package is damaged."""


def plugged_in(kind: Kind) -> list[Entry]:
    """List the entry points of a kind. One that cannot be used is left out, with a warning."""
    result = []
    for point in _entry_points(f"nn_meter.{kind}s", tuple(sys.path)):
        try:
            result.append(_entry(kind, point))
        except RegistrationError as exc:
            warn_once(f"{exc}; this entry point is ignored")
    return result


@functools.cache
def _entry_points(group: str, places: tuple[str, ...]) -> list[EntryPoint]:
    """Read a group from as many packages as can be read, in an order that stays the same.

    Reading takes some 10 ms, and a run asks hundreds of times; what is installed is taken not to
    change meanwhile. ``places`` is where Python looks for packages.
    """
    from importlib import metadata

    found: set[EntryPoint] = set()
    try:
        found.update(metadata.entry_points(group=group))
    except _DAMAGED:  # one package's fault fails the call, so ask one after the other
        for distribution in metadata.distributions():
            try:
                found.update(distribution.entry_points.select(group=group))
            except _DAMAGED as exc:
                place = getattr(distribution, "_path", "an installed package")
                warn_once(f"the entry points of {place} cannot be read and are ignored: {exc!r}")
    return sorted(found, key=lambda point: (point.name, point.value))


def _entry(kind: Kind, point: EntryPoint) -> Entry:
    where = f"entry point {point.name!r} of {point.group} ({point.value}): "
    name, implement = point.name, None
    if kind != "backend":
        name, dot, implement = point.name.rpartition(".")
        if not dot:
            raise RegistrationError(
                f"{where}the name lacks the framework; call it {point.name}.IMPLEMENT, with one "
                f"of {', '.join(IMPLEMENTS)}"
            )
    check_name(kind, name, where)
    check_implement(kind, implement, where)
    module, _, class_name = point.value.partition("[")[0].partition(":")
    return Entry(
        kind=kind,
        name=name,
        origin="entry point",
        implement=implement,
        class_module=module.strip(),
        class_name=class_name.strip(),
    )


@functools.cache
def warn_once(text: str) -> None:
    """Warn, once a process for each text."""
    log.warning(text)
