"""Latencies as plain values: what a profile gives, and what a result file holds.

This module imports nothing of nn-Meter but its errors, and is safe to use in any process.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from nn_meter.errors import ResultFileError

__all__ = ["Latency", "ProfiledResults", "measured_latency"]

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_AVG_STD = re.compile(rf"\s*({_NUMBER})(?:\s*\+-\s*({_NUMBER}))?\s*")


class Latency:
    """An average latency and its standard deviation, both in milliseconds.

    Immutable. ``str(latency)`` is ``"avg +- std"``, as result files have it, and reads back to an
    equal value. Sums add the averages, and the standard deviations in quadrature (independent
    measurements).

    Args:
        avg: The average in ms; or the string ``"avg +- std"``, ``"avg"``; or a ``Latency``.
        std: The standard deviation in ms. Only with a number.

    Raises:
        ResultFileError: The value is no latency: not a number, negative, infinite, NaN.
    """

    __slots__ = ("avg", "std")

    avg: float
    std: float

    def __init__(self, avg: float | str | Latency = 0.0, std: float = 0.0) -> None:
        if isinstance(avg, Latency):
            std = avg.std
            avg = avg.avg
        elif isinstance(avg, str):
            match = _AVG_STD.fullmatch(avg)
            if match is None:
                raise ResultFileError(f'"{avg[:80]}" is no latency; write "avg +- std" in ms')
            avg, std = float(match[1]), float(match[2] or 0.0)
        values = _number(avg), _number(std)
        if not all(math.isfinite(v) and v >= 0 for v in values):
            raise ResultFileError(
                f"a latency of {values[0]} +- {values[1]} ms cannot be: both must be finite "
                "and not negative"
            )
        object.__setattr__(self, "avg", values[0])
        object.__setattr__(self, "std", values[1])

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Latency does not change; {name} stays as it is")

    def __reduce__(self) -> tuple[type[Latency], tuple[float, float]]:
        return type(self), (self.avg, self.std)

    def __str__(self) -> str:
        return f"{self.avg} +- {self.std}"

    def __repr__(self) -> str:
        return f"Latency({self.avg}, {self.std})"

    def __add__(self, other: object) -> Latency:
        if isinstance(other, int | float) and not isinstance(other, bool):
            other = Latency(other)
        if not isinstance(other, Latency):
            return NotImplemented
        return Latency(self.avg + other.avg, math.hypot(self.std, other.std))

    __radd__ = __add__  # sum() starts from 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Latency) and (self.avg, self.std) == (other.avg, other.std)

    def __lt__(self, other: object) -> bool:
        return self.avg < other.avg if isinstance(other, Latency) else NotImplemented

    def __le__(self, other: object) -> bool:
        return self.avg <= other.avg if isinstance(other, Latency) else NotImplemented

    def __gt__(self, other: object) -> bool:
        return self.avg > other.avg if isinstance(other, Latency) else NotImplemented

    def __ge__(self, other: object) -> bool:
        return self.avg >= other.avg if isinstance(other, Latency) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.avg, self.std))


def measured_latency(value: float | str | Latency) -> Latency:
    """A latency that somebody measured: as ``Latency`` takes it, and above 0.

    Raises:
        ResultFileError: The value is no latency, or its average is 0.
    """
    latency = Latency(value)
    if latency.avg == 0:
        raise ResultFileError(
            "a latency of 0 ms was not measured; leave it out where it is not known"
        )
    return latency


def _number(value: Any) -> float:
    """A number of Python's or numpy's as a float; nothing else, not even True."""
    if not isinstance(value, str | bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            return float(value)
    raise ResultFileError(f'{str(value)[:80]} is no latency; give a number of ms or "avg +- std"')


class ProfiledResults(Mapping[str, Any]):
    """What one profile of one model gave: a value per metric.

    Args:
        results: Metric name to value, e.g. ``{"latency": Latency(1.2, 0.1)}``.
    """

    def __init__(self, results: Mapping[str, Any] | None = None) -> None:
        self._data = dict(results or {})

    def __getitem__(self, metric: str) -> Any:
        return self._data[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return f"ProfiledResults({self._data!r})"

    def get(self, metrics: str | Sequence[str], default: Any = None) -> Any:
        """Pick metrics.

        Args:
            metrics: One name, or several.
            default: For one name: what to answer when it is not there.

        Returns:
            For one name its value; for several a ``ProfiledResults`` of just those.

        Raises:
            ResultFileError: One of several metrics was not profiled.
        """
        if isinstance(metrics, str):
            return self._data.get(metrics, default)
        return self.select(metrics)

    def select(self, metrics: Iterable[str]) -> Self:
        """Keep the named metrics, in their order."""
        names = list(metrics)
        if missing := [name for name in names if name not in self._data]:
            known = ", ".join(self._data) or "none"
            raise ResultFileError(f"metric {missing[0]!r} was not profiled; profiled: {known}")
        return type(self)({name: self._data[name] for name in names})
