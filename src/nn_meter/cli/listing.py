"""``nn-meter --list-backends``, ``--list-operators``, ``--list-testcases``."""

from __future__ import annotations

from typing import cast

from nn_meter import registry
from nn_meter.cli.console import log_to_stderr, say

__all__ = ["print_list"]


def print_list(kind: str) -> None:
    """Print names as the guide does, those that users added behind a ``*``."""
    log_to_stderr()
    say(f"Supported {kind}s: ('*' indicates customized {kind}s)")
    for entry in registry.entries(cast(registry.Kind, kind)):
        customized = "" if entry.origin == "builtin" else "* "
        implement = f" ({entry.implement})" if customized and entry.implement else ""
        say(f"[{kind.capitalize()}] {customized}{entry.name}{implement}")
