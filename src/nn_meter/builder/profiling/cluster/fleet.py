"""The devices of one kind: which there are, who has which, which are left out."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from nn_meter.builder.profiling.cluster.link import ClusterLostError, Link, Offer

__all__ = ["Fleet", "Lease", "StoppedError"]

log = logging.getLogger(__name__)

_REST_S = 10.0

Place = tuple[str, int]
"""Identity of a Dask worker, and which of its devices of the kind."""


class StoppedError(Exception):
    """Nobody waits for it any more. Never leaves this folder."""


@dataclass(eq=False, kw_only=True)
class Lease:
    """A device that somebody has.

    Attributes:
        worker: The Dask worker that offers it.
        slot: Which of the worker's devices of the kind.
        anew: Whether the process there is to be replaced first.
    """

    worker: Offer
    slot: int
    anew: bool = False

    @property
    def place(self) -> Place:
        return self.worker.identity, self.slot

    def __str__(self) -> str:
        return f"the device at {self.worker.address}"


class Fleet:
    """The devices of one kind.

    Args:
        link: To the scheduler.
        kind: The name of the resource.
        wait_s: Seconds that it is waited for one while there is none.

    Attributes:
        expected: The environment that a device has to have, as its backend describes it; None: any.
    """

    def __init__(self, link: Link, kind: str, wait_s: float) -> None:
        self.link, self.kind = link, kind
        self.expected: dict[str, Any] | None = None
        self._wait_s = wait_s
        self._seen_s = self._asked_s = time.monotonic()
        self._busy: set[Place] = set()
        self._used_s: dict[Place, float] = {}
        self._left_out: dict[Place, str] = {}
        self._resting: dict[Place, tuple[float, str]] = {}
        self._anew: set[Place] = set()
        self._has: dict[str, set[str]] = {}
        self._given_up = False

    def give_up(self) -> None:
        """Have all that wait for a device of the kind, or for what one does, end."""
        with self.link.condition:
            self._given_up = True
            self.link.condition.notify_all()

    @property
    def is_given_up(self) -> bool:
        """Whether nobody waits for anything any more."""
        return self._given_up

    # --- who has which ---------------------------------------------------------------------------

    def lease(self, goes_on: Callable[[], bool], avoided: Collection[Place] = ()) -> Lease:
        """Wait for a free device.

        Args:
            goes_on: Asked again and again whether anybody still waits.
            avoided: Devices that are taken only if no other one is known to work.

        Raises:
            StoppedError: Nobody does.
            ClusterLostError: There has been none for long, or the scheduler is lost.
        """
        with self.link.condition:
            if not self._busy:  # while nobody asked, nobody saw whether there was one
                self._seen_s += time.monotonic() - self._asked_s
            while True:
                self._asked_s = time.monotonic()
                self.link.check()
                if self._given_up or not goes_on():
                    raise StoppedError
                usable = self._usable()
                sound = [each for each in usable if each.place not in self._resting]
                others = any(each.place not in avoided for each in sound)
                free = [
                    each
                    for each in usable
                    if each.place not in self._busy and not (others and each.place in avoided)
                ]
                if free:
                    chosen = min(free, key=lambda each: self._used_s.get(each.place, 0.0))
                    self._busy.add(chosen.place)
                    chosen.anew = chosen.place in self._anew
                    self._anew.discard(chosen.place)
                    return chosen
                if sound:
                    self._seen_s = time.monotonic()
                elif not usable and time.monotonic() - self._seen_s > self._wait_s:
                    raise ClusterLostError(self._absent())
                self.link.condition.wait(0.2)

    def lease_all(self) -> list[Lease]:
        """Wait for a free device, and take all that are free.

        Raises:
            ClusterLostError: As ``lease``.
        """
        leases = [self.lease(lambda: True)]
        with self.link.condition:
            for each in self._usable():
                if each.place not in self._busy:
                    self._busy.add(each.place)
                    leases.append(each)
        return leases

    def release(self, lease: Lease, *, anew: bool = False) -> None:
        """Give a device back; ``anew``: whoever has it next is to replace the process there."""
        with self.link.condition:
            self._busy.discard(lease.place)
            self._used_s[lease.place] = self._asked_s = now = time.monotonic()
            if self._resting.get(lease.place, (0.0, ""))[0] <= now:  # else it was just found unfit
                self._resting.pop(lease.place, None)
                self._seen_s = now
            if anew:
                self._anew.add(lease.place)
            self.link.condition.notify_all()

    def is_gone(self, lease: Lease) -> bool:
        """Whether the Dask worker of a device is gone."""
        now = self.link.workers.get(lease.worker.address)
        return now is None or now.identity != lease.worker.identity

    def leave_out(self, lease: Lease, reason: str, *, passing: bool = False) -> None:
        """Have a device take no part: ``passing``, for a while, and before it is given back."""
        with self.link.condition:
            if passing:
                known = self._resting.get(lease.place)
                now = time.monotonic()
                self._resting[lease.place] = now + _REST_S, reason
                if known is None:  # until now it was there
                    self._seen_s = now
                if known is not None and known[1] == reason:
                    return
            else:
                self._left_out[lease.place] = reason
        log.warning("%s: %s takes no part: %s", self.kind, lease, reason)

    @property
    def count(self) -> int:
        """How many devices there are now."""
        with self.link.condition:
            return len(self._usable())

    def _usable(self) -> list[Lease]:
        now = time.monotonic()
        return [
            lease
            for offer in self.link.workers.values()
            if offer.ready
            for slot in range(int(offer.resources.get(self.kind, 0)))
            if (lease := Lease(worker=offer, slot=slot)).place not in self._left_out
            and self._resting.get(lease.place, (0.0, ""))[0] <= now
        ]

    def _absent(self) -> str:
        """That there is no device of the kind, what there is, and what to do."""
        link, kind = self.link, self.kind
        there = [offer for offer in link.workers.values() if offer.resources.get(kind, 0) >= 1]
        if there:
            reasons = [
                *self._left_out.values(),
                *(reason for _, reason in self._resting.values()),
            ]
            told = dict.fromkeys(reasons) or ["its workers are paused"]
            return f"no device {kind!r} of {link.address} can be used: {'; '.join(told)}"
        offered = Counter(
            name for offer in link.workers.values() for name in offer.resources if name != kind
        )
        others = ", ".join(
            f"{name} ({count} worker{'s' if count > 1 else ''})"
            for name, count in sorted(offered.items())
        )
        return (
            f"no worker of {link.address} has offered the device {kind!r} for {self._wait_s:g} s; "
            f"offered are: {others or 'none'}; start one with 'dask worker {link.address} "
            f'--resources "{kind}=1"\''
        )

    # --- what travelled --------------------------------------------------------------------------

    def lacks(self, lease: Lease, digests: Collection[str]) -> list[str]:
        """Which contents have to be sent to a device's machine."""
        with self.link.condition:
            known = self._has.get(lease.worker.identity, set())
            return [digest for digest in digests if digest not in known]

    def has(self, lease: Lease, digests: Collection[str]) -> None:
        """Note what a device's machine has."""
        with self.link.condition:
            self._has.setdefault(lease.worker.identity, set()).update(digests)

    def has_not(self, lease: Lease, digests: Collection[str]) -> None:
        """Note what it has no more."""
        with self.link.condition:
            self._has.get(lease.worker.identity, set()).difference_update(digests)
