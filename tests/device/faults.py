"""What can go wrong with a device, on demand."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

__all__ = ["Fault", "Faults"]

What = Literal["drop", "hang", "garbage", "endless", "break", "full"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        what: ``drop``: the connection breaks. ``hang``: no answer. ``garbage``: the command is not
            run, and random bytes are what it printed. ``endless``: it is not run and prints for
            ever. ``break``: random bytes where the protocol's messages should be. ``full``: no
            space is left for a file that is pushed.
        when: Text in the shell command, or in the path of a pushed file; empty: any.
        push: Whether it is pushed files that this is about, and not commands.
        after_bytes: How much of the command's output, or of the file, passes before it.
        times: How often it happens; -1: always.
        absent_s: After a drop, seconds until the device can be connected to again.
    """

    what: What
    when: str = ""
    push: bool = False
    after_bytes: int = 0
    times: int = 1
    absent_s: float = 0.0


class Faults:
    """Those that are still to happen, and those that did."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[Fault, int]] = []
        self.happened: list[Fault] = []

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._waiting.append((fault, fault.times))

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()

    def of(self, text: str, *, push: bool) -> Fault | None:
        """The first that a command or a file sets off; it has happened from here on."""
        with self._lock:
            for position, (fault, left) in enumerate(self._waiting):
                if fault.push == push and fault.when in text:
                    if left == 1:
                        del self._waiting[position]
                    else:
                        self._waiting[position] = (fault, left - 1)
                    self.happened.append(fault)
                    return fault
        return None
