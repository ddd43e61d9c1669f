"""How a device was while it measured: a line for each call to it, in ``results/device_log.jsonl``.

Temperatures, frequencies and what the device was waited for explain a latency; no verdict reads
them. A line is written whole, by one call, so a run that is killed leaves whole lines.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["DEVICE_LOG", "DeviceLog"]

log = logging.getLogger(__name__)

DEVICE_LOG = "device_log.jsonl"
"""Its name, in the results."""

_LONGEST_LINE = 20_000
_NOTES = "notes"


class DeviceLog:
    """The log of one workspace.

    Args:
        path: The file; None: nothing is written.
        backend: Its name.
    """

    def __init__(self, path: Path | None, backend: str) -> None:
        self._path, self._backend = path, backend

    def add(self, what: str, conditions: Mapping[str, Any]) -> None:
        """Write down how the device was; say what it has to say.

        Args:
            what: The test case or the trial that was measured.
            conditions: Plain values; ``notes`` are sentences for whoever runs it.
        """
        for note in conditions.get(_NOTES) or ():
            log.warning("%s: %s: %s", self._backend, what, note)
        told = {key: value for key, value in conditions.items() if value}
        if self._path is None or not told:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "backend": self._backend, "measured": what, **told}) + "\n"
        if len(line) > _LONGEST_LINE:
            return
        try:
            place = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(place, line.encode())
            finally:
                os.close(place)
        except OSError as exc:
            log.warning("%s: cannot be written, so nothing more is: %s", self._path, exc.strerror)
            self._path = None
