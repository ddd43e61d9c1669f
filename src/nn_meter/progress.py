"""How long work tells how far it is: a function that whoever shows it hands in."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

Progress = Callable[[str, int, int, str], None]
"""Called with the stage (``profile``), how many are done, of how many, and the one at hand."""


def silent(stage: str, done: int, total: int, name: str) -> None:
    """Tell nobody."""
