"""How long work tells how far it is: a function that whoever shows it hands in."""

from __future__ import annotations

import logging
from collections.abc import Callable

__all__ = ["Progress", "logged"]

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int, str], None]
"""Called with the stage (``profile``), how many are done, of how many, and the one at hand."""


def logged(stage: str, done: int, total: int, name: str) -> None:
    """Tell the log, at level INFO: ``logging.basicConfig(level=logging.INFO)`` shows it."""
    log.info("%s: %d of %d %s", stage, done, total, name)
