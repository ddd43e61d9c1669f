"""Listing, finding, registering and unregistering: what the commands of the same names do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nn_meter.errors import RegistrationError
from nn_meter.registry.builtin import builtin_entries, control_entries, for_implement
from nn_meter.registry.entry import NOUNS, Entry, Kind, check_implement, nearest
from nn_meter.registry.files import (
    locked,
    read_meta_file,
    read_registry,
    registry_path,
    write_registry,
)
from nn_meter.registry.loading import load
from nn_meter.registry.plugins import plugged_in, warn_once

__all__ = ["entries", "find", "register", "unregister"]


def entries(kind: Kind) -> list[Entry]:
    """List what there is of a kind: built-ins, then what is registered, then plug-ins'.

    Raises:
        RegistrationError: ``registry.yaml`` cannot be read.
    """
    return [*builtin_entries(kind), *_added(kind)]


def find(kind: Kind, name: str, implement: str | None = None) -> Entry:
    """Find an entry by its name.

    Args:
        kind: What it is.
        name: Its name.
        implement: The framework; None where there is only one, or for a built-in in general.

    Raises:
        RegistrationError: There is none of this name, or not for this framework.
    """
    check_implement(kind, implement)
    for entry in [*builtin_entries(kind), *(control_entries() if kind == "operator" else [])]:
        if entry.name == name:
            return entry if implement is None else for_implement(entry, implement)
    return _pick(kind, name, implement, entries(kind))


def register(kind: Kind, meta_path: str | Path) -> Entry:
    """Add what a meta file describes; it must import, or nothing is written.

    Raises:
        RegistrationError: The meta file cannot be used, its name exists, its class cannot be
            loaded, or the registry cannot be written.
    """
    entry = read_meta_file(kind, meta_path)
    _refuse_taken(entry)
    load(entry)
    with locked():
        _refuse_taken(entry)  # another process may have been quicker
        write_registry([*read_registry(), entry])
    return entry


def unregister(kind: Kind, name: str, implement: str | None = None) -> Entry:
    """Take out what was registered under a name. Its package folder is not touched.

    Args:
        kind: What it is.
        name: Its name.
        implement: The framework; may be left out where there is only one.

    Raises:
        RegistrationError: Nothing of this name is registered, or the registry cannot be written.
    """
    check_implement(kind, implement)
    _registered(kind, name, implement)  # before the lock, which makes a folder
    with locked():
        entry = _registered(kind, name, implement)
        write_registry([other for other in read_registry() if other != entry])
    return entry


def _added(kind: Kind) -> list[Entry]:
    """List what users and plug-ins added, without what clashes with something before it."""
    accepted = builtin_entries(kind)
    n_builtin = len(accepted)
    for entry in [*(e for e in read_registry() if e.kind == kind), *plugged_in(kind)]:
        if (other := _same_name(entry, accepted)) is None:
            accepted.append(entry)
        elif entry.origin == "registered":
            warn_once(
                f"the registered {entry} is ignored, as nn-meter brings one of that name by now: "
                f"unregister yours and register it under another name ({registry_path()})"
            )
        else:
            warn_once(
                f"the {entry} of an installed package ({entry.class_module}) is ignored, as there "
                f"is another one of that name ({other.origin})"
            )
    return accepted[n_builtin:]


def _same_name(entry: Entry, others: Sequence[Entry]) -> Entry | None:
    """Return the entry that has the name already, for this framework or for all."""
    for other in others:
        if other.name == entry.name and other.implement in (None, entry.implement):
            return other
    return None


def _refuse_taken(entry: Entry) -> None:
    other = _same_name(entry, entries(entry.kind))
    if other is not None:
        reason = {
            "builtin": "is built in: choose another builtin_name",
            "registered": "is registered already: unregister it first, or choose another "
            "builtin_name",
            "entry point": f"comes with an installed package ({other.class_module}): choose "
            "another builtin_name",
        }[other.origin]
        raise RegistrationError(f"{other} {reason}")


def _registered(kind: Kind, name: str, implement: str | None) -> Entry:
    registered = [entry for entry in read_registry() if entry.kind == kind]
    if not any(entry.name == name for entry in registered):
        for entry in [*builtin_entries(kind), *plugged_in(kind)]:
            if entry.name == name and entry.origin == "builtin":
                raise RegistrationError(f"{entry} is built in and cannot be unregistered")
            if entry.name == name:
                raise RegistrationError(
                    f"{entry} comes with an installed package ({entry.class_module}): uninstall "
                    "that package to be rid of it"
                )
    return _pick(kind, name, implement, registered)


def _pick(kind: Kind, name: str, implement: str | None, known: Sequence[Entry]) -> Entry:
    """Pick by name and framework, or say what there is instead."""
    named = [entry for entry in known if entry.name == name]
    matching = [entry for entry in named if implement in (None, entry.implement)]
    if len(matching) == 1:
        return matching[0]
    exists_for = " and ".join(entry.implement or "" for entry in named)
    if matching:
        raise RegistrationError(f"{NOUNS[kind]} {name} exists for {exists_for}: say for which")
    if named:
        raise RegistrationError(
            f"{NOUNS[kind]} {name} exists for {exists_for}, but not for {implement}: register a "
            f"class for {implement}, or set IMPLEMENT in the configuration"
        )
    listed = ", ".join(entry.called for entry in known) or "none"
    raise RegistrationError(
        f"there is no {NOUNS[kind]} {name!r}{nearest(name, [entry.name for entry in known])}"
        f"; known: {listed}"
    )
