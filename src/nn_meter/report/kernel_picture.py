"""A model as a page: its kernels as boxes, and what passes between them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from statistics import fmean
from typing import Any

from nn_meter.kernel_detector.kernels import Kernel

__all__ = ["kernel_page"]

_CHARACTER, _LINE, _PADDING = 6.8, 15, 8  # of the text, px
_ACROSS, _DOWN = 28, 36  # between boxes, px
_MOST_DRAWN = 2000  # kernels; what is larger is no picture any more
_MOST_LINES = 9


@dataclass(frozen=True, kw_only=True)
class Box:
    """A kernel where it is drawn; px."""

    kernel: Kernel
    lines: Sequence[str]
    hue: int
    x: float
    y: float
    width: float
    height: float

    @property
    def centre(self) -> float:
        return self.x + self.width / 2


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The kernels of one type.

    Attributes:
        type: Of all.
        count: How many they are.
        ms: What those that were timed take together; None: none was.
        share: Their part of all that was timed.
    """

    type: str
    count: int
    ms: float | None
    share: float | None


@dataclass(frozen=True, kw_only=True)
class Line:
    """An edge between two boxes, as an SVG path."""

    path: str
    tensor: str


def kernel_page(
    kernels: Sequence[Kernel],
    *,
    model: str,
    rules: str,
    facts: Mapping[str, Any],
    types_of: Mapping[str, str],
) -> str:
    """The page, as HTML that needs nothing else.

    Kernels that were timed have ``ms``, ``low_ms``, ``high_ms`` and ``share`` as attributes.

    Args:
        kernels: Of the model, in its order.
        model: Its name.
        rules: Name of the rules that it was cut by.
        facts: What else the head of the page says: words -> value.
        types_of: The type of each op of the model by its name.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("nn_meter.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    drawn = len(kernels) <= _MOST_DRAWN
    boxes, lines = _draw(kernels, types_of) if drawn else ([], [])
    return environment.get_template("kernels.html.j2").render(
        model=model,
        rules=rules,
        facts=facts,
        kernels=kernels,
        kinds=_kinds(kernels),
        timed=any(kernel.attributes.get("ms") is not None for kernel in kernels),
        boxes=boxes,
        lines=lines,
        drawn=drawn,
        width=max((box.x + box.width for box in boxes), default=0) + _ACROSS,
        height=max((box.y + box.height for box in boxes), default=0) + _DOWN,
    )


def _kinds(kernels: Sequence[Kernel]) -> list[Kind]:
    """The types, by what they take together, else by how many they are."""
    counts = Counter(kernel.type for kernel in kernels)
    found = [
        Kind(
            type=kind,
            count=count,
            ms=_sum(kernels, kind, "ms"),
            share=_sum(kernels, kind, "share"),
        )
        for kind, count in counts.most_common()
    ]
    return sorted(found, key=lambda kind: -math.inf if kind.ms is None else kind.ms, reverse=True)


def _sum(kernels: Sequence[Kernel], kind: str, attribute: str) -> float | None:
    values = [kernel.attributes.get(attribute) for kernel in kernels if kernel.type == kind]
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None


def _draw(kernels: Sequence[Kernel], types_of: Mapping[str, str]) -> tuple[list[Box], list[Line]]:
    """Place boxes in rows, each below all that it reads from, and join them."""
    makers = {tensor: kernel.name for kernel in kernels for tensor in kernel.outputs}
    before = {
        kernel.name: [makers[t] for t in kernel.inputs if makers.get(t, kernel.name) != kernel.name]
        for kernel in kernels
    }
    boxes: dict[str, Box] = {}
    y = float(_DOWN)
    for row in _rows(kernels, before):
        placed = _place(row, before, boxes, types_of, y)
        boxes |= {box.kernel.name: box for box in placed}
        y = max(box.y + box.height for box in placed) + _DOWN
    least = min((box.x for box in boxes.values()), default=0.0)
    shifted = {name: _moved(box, _ACROSS - least) for name, box in boxes.items()}
    lines = [
        _line(shifted[makers[tensor]], shifted[kernel.name], tensor)
        for kernel in kernels
        for tensor in kernel.inputs
        if makers.get(tensor, kernel.name) != kernel.name
    ]
    return list(shifted.values()), lines


def _rows(kernels: Sequence[Kernel], before: Mapping[str, Sequence[str]]) -> list[list[Kernel]]:
    sorter = TopologicalSorter(before)
    sorter.prepare()
    by_name = {kernel.name: kernel for kernel in kernels}
    rows = []
    while sorter.is_active():
        names = sorter.get_ready()
        rows.append([by_name[name] for name in names])
        sorter.done(*names)
    return rows


def _place(
    row: Sequence[Kernel],
    before: Mapping[str, Sequence[str]],
    above: Mapping[str, Box],
    types_of: Mapping[str, str],
    y: float,
) -> list[Box]:
    """The boxes of a row, in the order of what they read, around the middle."""

    def wish(kernel: Kernel) -> float:
        return fmean([above[name].centre for name in before[kernel.name]] or [0.0])

    texts = {kernel.name: _text(kernel, types_of) for kernel in row}
    widths = {
        name: max(len(line) for line in lines) * _CHARACTER + 2 * _PADDING
        for name, lines in texts.items()
    }
    order = sorted(row, key=wish)
    whole = sum(widths.values()) + _ACROSS * (len(row) - 1)
    x = fmean([wish(kernel) for kernel in row]) - whole / 2
    found = []
    for kernel in order:
        lines = texts[kernel.name]
        found.append(
            Box(
                kernel=kernel,
                lines=lines,
                hue=_hue(kernel.type),
                x=x,
                y=y,
                width=widths[kernel.name],
                height=len(lines) * _LINE + 2 * _PADDING,
            )
        )
        x += widths[kernel.name] + _ACROSS
    return found


def _text(kernel: Kernel, types_of: Mapping[str, str]) -> list[str]:
    ops = [f"{types_of.get(op, '?')}  {_short(op)}" for op in kernel.ops]
    if len(ops) > _MOST_LINES:
        ops = [*ops[: _MOST_LINES - 1], f"and {len(ops) - _MOST_LINES + 1} more"]
    ms, share = kernel.attributes.get("ms"), kernel.attributes.get("share")
    time = [f"{ms:.3f} ms, {share:.1%}"] if ms is not None and share is not None else []
    return [kernel.type, *ops, *time]


def _short(name: str) -> str:
    return name if len(name) <= 30 else "…" + name[-29:]


def _hue(kind: str) -> int:
    """A colour for each kind, the same in all pages."""
    found = 0
    for character in kind.partition("-")[0]:
        found = (found * 31 + ord(character)) % 360
    return found


def _moved(box: Box, by: float) -> Box:
    return replace(box, x=box.x + by)


def _line(one: Box, other: Box, tensor: str) -> Line:
    x0, y0, x1, y1 = one.centre, one.y + one.height, other.centre, other.y
    bend = min((y1 - y0) / 2, 60.0)
    aside = 0.0
    if y1 - y0 > 3 * _DOWN and abs(x1 - x0) < other.width / 2:  # past what stands between
        aside = max(one.width, other.width) / 2 + _ACROSS
    path = (
        f"M{x0:.1f},{y0:.1f} C{x0 + aside:.1f},{y0 + bend:.1f} "
        f"{x1 + aside:.1f},{y1 - bend:.1f} {x1:.1f},{y1:.1f}"
    )
    return Line(path=path, tensor=tensor)
