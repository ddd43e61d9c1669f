"""What the devices of a kind are: a run has one environment; those of another take no part."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import nn_meter
from nn_meter.builder.backends.base import Environment
from nn_meter.builder.profiling.cluster.elsewhere import Station, UnfitError, result_of
from nn_meter.builder.profiling.cluster.fleet import Fleet, Lease, StoppedError
from nn_meter.builder.profiling.cluster.measuring import differences
from nn_meter.builder.profiling.process import decode_error
from nn_meter.errors import DeviceError, NNMeterError

__all__ = ["survey"]

log = logging.getLogger(__name__)

_OTHERS_S = 20.0
_LOOK_S = 0.05


@dataclass(frozen=True, kw_only=True)
class _Found:
    lease: Lease
    facts: Mapping[str, Any]

    @property
    def environment(self) -> str:
        return json.dumps(self.facts["environment"], sort_keys=True)


def survey(
    fleet: Fleet, station: Station, *, earlier: str, options: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Ask the devices of a kind what they are, and settle the environment of a run.

    It is the one that the kind's results have, if a device has it, else the one of most devices.
    Those of another take no part, which the log says; later ones are asked when they come.

    Args:
        fleet: The devices; told the environment.
        station: What runs there.
        earlier: The key of the environment of the results that are there; empty: there are none.
        options: What else belongs to the environment of what is measured.

    Returns:
        What the backend's ``describe`` tells of it.

    Raises:
        ClusterLostError: There is no device.
        NNMeterError: What a device said, if none can be used.
    """
    found: list[_Found] = []
    while not found:
        leases = fleet.lease_all()
        errors: list[NNMeterError] = []
        try:
            found = _asked(fleet, station, leases, errors)
        finally:
            for lease in leases:
                fleet.release(lease)
        if not found and errors:
            raise errors[0]
    counted = Counter(each.environment for each in found)
    chosen = next(
        (each for each in found if earlier and _key(each.facts, options) == earlier),
        max(found, key=lambda each: counted[each.environment]),
    )
    fleet.expected = chosen.facts["environment"]
    for each in found:
        if each.environment != chosen.environment:
            reason = differences(each.facts["environment"], chosen.facts["environment"])
            fleet.leave_out(each.lease, reason)
    return chosen.facts


def _asked(
    fleet: Fleet, station: Station, leases: list[Lease], errors: list[NNMeterError]
) -> list[_Found]:
    link = fleet.link
    waiting = {
        lease: link.submit(station.job(fleet, lease, "describe"), lease.worker.address)
        for lease in leases
    }
    found: list[_Found] = []
    end_s = float("inf")
    try:
        while waiting and time.monotonic() < end_s:
            time.sleep(_LOOK_S)
            link.check()
            if fleet.is_given_up:
                raise StoppedError
            for lease, future in list(waiting.items()):
                answer: dict[str, Any] | None = None
                if future.status != "pending":
                    try:
                        answer = result_of(future)
                    except UnfitError as exc:
                        answer = {"unfit": {"type": DeviceError.__name__, "message": str(exc)}}
                if answer is None:
                    if fleet.is_gone(lease) or future.status in ("error", "cancelled"):
                        del waiting[lease]
                    continue
                del waiting[lease]
                error = _error_of(answer)
                if error is None:
                    fleet.has(lease, answer["ok"]["contents"])
                    found.append(_Found(lease=lease, facts=answer["ok"]["facts"]))
                    end_s = min(end_s, time.monotonic() + _OTHERS_S)
                else:
                    fleet.leave_out(lease, str(error), passing=bool(answer.get("passing")))
                    errors.append(_placed(error, fleet, lease))
    finally:
        for future in waiting.values():
            future.release()
    return found


def _error_of(answer: Mapping[str, Any]) -> NNMeterError | None:
    if "ok" not in answer:
        return decode_error(answer["unfit"])
    theirs = answer["ok"]["version"]
    if theirs == nn_meter.__version__:
        return None
    return DeviceError(
        f"nn-meter is {theirs} there, and {nn_meter.__version__} here; install the same one"
    )


def _placed(error: NNMeterError, fleet: Fleet, lease: Lease) -> NNMeterError:
    return type(error)(f"{fleet.kind}: {lease}: {error}")


def _key(facts: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """The key that the environment of results has."""
    if facts["environment"] is None:
        return ""
    environment = Environment(**facts["environment"])
    return replace(environment, options={**environment.options, **options}).key
