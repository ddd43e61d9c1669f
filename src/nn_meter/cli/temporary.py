"""A workspace for the length of one command: what `ask` and `validate` share, who keep nothing."""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import INPUT_SHAPE
from nn_meter.builder.backends.interface import create_workspace, platform_of, quickest_implement
from nn_meter.builder.config import BackendSettings, RuletestConfig, validate
from nn_meter.builder.workspace import Workspace, open_workspace
from nn_meter.errors import ConfigError, NNMeterError

__all__ = ["operator_names", "read_settings", "temporary_workspace"]


def operator_names() -> list[str]:
    """Names of all operators, each once."""
    return list(dict.fromkeys(entry.name for entry in registry.entries("operator")))


def read_settings(given: Sequence[str]) -> dict[str, Any]:
    """The keys and values of ``--set``.

    Raises:
        ConfigError: One of them is not KEY=VALUE, or its value no YAML.
    """
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set: {text!r} should be KEY=VALUE, like KERNEL_SIZE=1")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as exc:
            raise ConfigError(f"--set: {text!r}: the value is no valid YAML") from exc
    return found


@contextmanager
def temporary_workspace(
    backend: str,
    *,
    like: str | None,
    implement: str | None = None,
    given: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> Iterator[Workspace]:
    """A workspace in a temporary folder, which no message names.

    Args:
        backend: The backend that it is for.
        like: Path of a workspace whose configuration it takes over; None: the defaults.
        implement: IMPLEMENT; None: as ``like`` has it, or what the backend takes quickest.
        given: Keys of ``--set``, of either file.
        asked: Keys of ``ruletest_config.yaml`` that the command itself decides.

    Raises:
        WorkspaceError: There is no workspace ``like`` that.
        BackendError: There is no such backend.
        ConfigError: A key or a value cannot be.
    """
    with (
        tempfile.TemporaryDirectory(prefix="nn-meter-") as folder,
        _without_places_in(folder),
    ):
        path = Path(folder) / "ws"
        create_workspace(path, backend=backend, implement=implement or quickest_implement(backend))
        opened = open_workspace(path)
        keys, backend_keys = opened.ruletest.as_dict(), dict(opened.backend_config)
        if like is not None:
            known = open_workspace(like)
            keys, backend_keys = known.ruletest.as_dict(), dict(known.backend_config)
        if implement is not None:
            keys["IMPLEMENT"] = implement
        for key, value in given.items():
            if key in RuletestConfig.model_fields or key == INPUT_SHAPE:
                keys[key] = value
            elif key in _backend_keys(backend):
                backend_keys[key] = value
            else:  # of the user's own: an operator's or a backend's
                keys[key] = backend_keys[key] = value
        validate(
            BackendSettings,
            {k: v for k, v in given.items() if k not in RuletestConfig.model_fields},
            "--set",
        )
        ruletest = RuletestConfig.from_dict(
            {**keys, **asked}, source="--set", operators=operator_names(), testcases=[]
        )
        yield replace(opened, ruletest=ruletest, backend_config=backend_keys)


def _backend_keys(backend: str) -> Collection[str]:
    """Keys of ``backend_config.yaml`` that a backend is known to have."""
    platform = platform_of(backend)
    if platform is None:
        return BackendSettings.model_fields
    module, _, name = platform.settings.partition(":")
    settings: type[BackendSettings] = getattr(importlib.import_module(module), name)
    return settings.model_fields


@contextmanager
def _without_places_in(folder: str) -> Iterator[None]:
    """Leave the files of a temporary folder out of messages: nobody knows of them."""
    try:
        yield
    except NNMeterError as exc:
        raise type(exc)(re.sub(rf"{re.escape(folder)}\S*: ", "", str(exc))) from exc
