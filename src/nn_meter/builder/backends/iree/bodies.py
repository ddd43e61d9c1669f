"""What a dispatch of IREE does: the words for it, and the ops of the model that it comes from.

A dispatch has no type of its own, and its symbol holds the model's name and shapes, so it is known
by the ops in its body: ``dispatch(conv, addf, cmpf, select)`` is a convolution, the sum with its
bias and a ReLU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Work", "positions", "read_body"]

_LOAD, _STORE = "iree_tensor_ext.dispatch.tensor.load", "iree_tensor_ext.dispatch.tensor.store"
_LAYOUT = frozenset({"transpose", "copy", "broadcast", "pack", "unpack"})  # of linalg
_GATHERED = -1  # in place of a tensor's number: a value looked up in any place
_PARTS = frozenset({"tensor.extract_slice", "tensor.insert_slice", "tensor.pad", "tensor.concat"})


@dataclass
class Work:
    """What a dispatch, or another op of a compiled function, does.

    Attributes:
        words: Its steps, in order.
        computes: Positions of the model's ops whose results it computes.
        products: Positions of those that multiply tensors here, as a convolution does.
        moves: Positions of those whose data it puts elsewhere: a part taken out or put in.
        reorders: Whether it changes the order of elements.
        computing: Whether it computes anything.
        traced: Whether all that it computes could be traced to ops of the model.
    """

    words: list[str] = field(default_factory=list)
    computes: set[int] = field(default_factory=set)
    products: set[int] = field(default_factory=set)
    moves: set[int] = field(default_factory=set)
    reorders: bool = False
    computing: bool = False
    traced: bool = True


def positions(location: Any) -> frozenset[int]:
    """Positions of the model's ops that a location names; see ``convert.import_model``."""
    return frozenset(int(found) for found in re.findall(r'"[^":]*:(\d+)"', str(location)))


def read_body(dispatch: Any) -> Work:
    """Read the body of a ``flow.dispatch.workgroups``."""
    work = Work()
    for op in _ops(dispatch.regions[0]):
        _read(op, work)
    return work


def _ops(region: Any) -> Iterator[Any]:
    """Ops of a region that are not inside a linalg op; loops are looked into."""
    for block in region.blocks:
        for op in block.operations:
            yield op.operation
            if not op.operation.name.startswith(("linalg.", "iree_linalg_ext.")):
                for inner in op.operation.regions:
                    yield from _ops(inner)


def _read(op: Any, work: Work) -> None:
    dialect, _, name = op.name.partition(".")
    if op.name in (_LOAD, _STORE):
        if _is_part(op):
            work.words.append("slice" if op.name == _LOAD else "insert")
            work.moves |= positions(op.location)
    elif op.name in _PARTS:
        work.words.append(name.removesuffix("_slice"))
        work.moves |= positions(op.location)
    elif op.name == "linalg.generic":
        _read_generic(op, work)
    elif dialect == "linalg" and name in _LAYOUT:
        work.words.append(name)
        work.moves |= positions(op.location)
        work.reorders = True
    elif dialect in ("linalg", "iree_linalg_ext") and name not in ("fill", "yield", "index"):
        work.words.append(name)
        work.products |= positions(op.location)
        _compute(op, frozenset(), work)


def _is_part(op: Any) -> bool:
    """Whether a load or store is of less than the whole tensor."""
    tensor, view = (op.results[0], op.operands[0]) if op.name == _LOAD else op.operands[:2]
    whole = re.search(r"tensor<[^<>]*>", str(view.type).partition("dispatch.tensor<")[2])
    return whole is not None and whole.group() != str(tensor.type)


def _read_generic(op: Any, work: Work) -> None:
    """Read a ``linalg.generic`` by what its scalar ops do to data.

    Arithmetic on indices is left out; a value is data if it comes from a tensor.
    """
    block = op.regions[0].blocks[0]
    maps = [_dimensions(it) for it in op.attributes["indexing_maps"]]
    origins = {value: frozenset({number}) for number, value in enumerate(block.arguments)}
    steps = []
    for scalar in (it.operation for it in block.operations):
        found = frozenset[int]().union(*(origins.get(it, frozenset()) for it in scalar.operands))
        if scalar.name == "tensor.extract":
            found |= {_GATHERED}
            work.moves |= positions(scalar.location)
        elif found and scalar.name != "linalg.yield":
            steps.append(scalar)
        origins.update(dict.fromkeys(scalar.results, found))
    around = positions(op.location)
    gathers = any(_GATHERED in found for found in origins.values())
    if gathers:
        work.words.append("gather")
    elif not steps:
        work.words.append("reorder")
        work.reorders = True
    if not steps:
        work.moves |= around
        return
    reduced = _reduced(op)
    results = set(range(len(op.operands) - len(op.results), len(op.operands)))
    combining = [it for it in steps if reduced and results & origins[it.results[0]]]
    first = [it for it in steps if it not in combining]
    kind = "window" if any("+" in text for text in maps[: min(results)]) else "reduce"
    word = "_".join([kind, *map(_word, combining)])
    if first and _is_product(first[-1], origins, maps, reduced):
        work.products |= positions(first.pop().location) or around
        word = "conv" if kind == "window" else "matmul"
    work.words += [_word(it) for it in first] + ([word] if reduced else [])
    for step in steps:
        _compute(step, around, work)


def _is_product(
    op: Any, origins: Mapping[Any, frozenset[int]], maps: Sequence[str], reduced: frozenset[str]
) -> bool:
    """Whether an op multiplies two tensors along the dimensions that are summed up."""
    if op.name not in ("arith.mulf", "arith.muli") or not reduced:
        return False
    sides = [origins.get(value, frozenset()) for value in op.operands]
    if not all(sides) or sides[0] & sides[1]:
        return False
    met = [
        frozenset(dim for number in side for dim in re.findall(r"d\d+", maps[number]))
        for side in sides
    ]
    texts = [{maps[number] for number in side} for side in sides]
    return texts[0] != texts[1] and all(reduced & dims for dims in met)


def _dimensions(indexing_map: Any) -> str:
    """What an indexing map makes of the loop's dimensions, e.g. ``(d0, d1 + d3)``."""
    return str(indexing_map).partition("->")[2]


def _reduced(op: Any) -> frozenset[str]:
    """The loop's dimensions that a generic op reduces."""
    kinds = enumerate(op.attributes["iterator_types"])
    return frozenset(f"d{number}" for number, kind in kinds if "reduction" in str(kind))


def _word(op: Any) -> str:
    return str(op.name).partition(".")[2]


def _compute(op: Any, around: frozenset[int], work: Work) -> None:
    """Note an op that computes, with the model's op that it comes from.

    ``around`` are those of the op around it, which tell if it is only one.
    """
    work.computing = True
    found = positions(op.location) or (around if len(around) == 1 else frozenset())
    work.computes |= found
    if not found:
        work.traced = False
