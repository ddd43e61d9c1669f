"""What the readers share: names, order, sizes, and how their errors speak."""

from __future__ import annotations

import errno
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from nn_meter.bounded import read_file
from nn_meter.errors import ModelFileError, NNMeterError
from nn_meter.kernel_detector.graph import Op

__all__ = [
    "KEPT_ELEMENTS",
    "Names",
    "blaming",
    "check_size",
    "holds",
    "input_shapes",
    "needed",
    "plain",
    "read_bytes",
    "shown",
    "topological",
]

KEPT_ELEMENTS = 4096
"""Constants of up to so many elements keep their values."""

_MOST_ELEMENTS = 2**40  # of one tensor: more than any memory holds
_MOST_DIMENSIONS = 64  # numpy's limit
_MOST_BYTES = 2**31 - 1  # of a file: what protobuf and flatbuffers address
_SHOWN = 80
_SHOWN_NODES = 8
_WORDS = 500

Sizes = tuple[int | None, ...]


def shown(name: str) -> str:
    """A name from a file in a message: quoted, and never longer than a line."""
    return repr(name if len(name) <= _SHOWN else name[: _SHOWN - 3] + "...")


def plain(said: object) -> str:
    """What a library says of a file, as a line that can be printed: it may quote the file."""
    text = " ".join(str(said)[:_WORDS].split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Turn whatever a library says of a file into an error of ours that names the file."""
    try:
        yield
    except NNMeterError:
        raise
    except Exception as exc:
        words = plain(exc)
        raise ModelFileError(
            f"{path}: it cannot be read: {words or type(exc).__name__} ({type(exc).__name__})"
        ) from exc


def read_bytes(path: Path) -> bytes:
    """What a model file holds.

    Raises:
        ModelFileError: It is no file, is empty, too large, or may not be read.
    """
    try:
        data = read_file(path, _MOST_BYTES)
    except OSError as exc:
        hint = "; an ONNX model can keep its weights in files beside it"
        raise ModelFileError(
            f"{path}: it cannot be read: {exc.strerror or exc}"
            f"{hint if exc.errno == errno.EFBIG else ''}"
        ) from exc
    if not data:
        raise ModelFileError(f"{path}: the file is empty")
    return data


class Names:
    """Gives names that are unique.

    Args:
        taken: Names that are not to be given.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._numbers: dict[str, int] = {}

    def unique(self, wanted: str) -> str:
        """The name itself, or the name with the first number that makes it unique."""
        name, number = wanted, self._numbers.get(wanted, 0)
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._numbers[wanted] = number
        self._taken.add(name)
        return name


def holds(shape: Sequence[int]) -> int:
    """How many elements a shape has where a size of 0 counts as 1.

    A shape of 0 elements may have sizes beyond all memory beside the 0.
    """
    return math.prod(max(size, 1) for size in shape)


def check_size(path: Path, tensor: str, shape: Sequence[int]) -> None:
    """Refuse a shape that no memory holds."""
    if len(shape) > _MOST_DIMENSIONS:
        raise ModelFileError(f"{path}: tensor {shown(tensor)} has {len(shape)} dimensions")
    if holds(shape) > _MOST_ELEMENTS:
        sizes = ",".join(map(str, shape))[:_SHOWN]
        raise ModelFileError(f"{path}: tensor {shown(tensor)} has the shape {sizes}: too large")


def topological(
    path: Path,
    nodes: Sequence[tuple[str, Sequence[str], Sequence[str]]],
    given: Iterable[str],
    wanted: Iterable[str],
) -> list[int]:
    """Put nodes in an order in which each comes after those whose tensors it reads.

    Args:
        path: For messages.
        nodes: For each its name, the tensors that it reads, and those that it writes; ``""`` is
            none. An order that is right already is kept.
        given: Tensors that no node has to write: inputs and constants.
        wanted: Tensors that must be there at the end: the model's outputs.

    Returns:
        Positions in ``nodes``. Takes time in proportion to all tensors read and written.

    Raises:
        ModelFileError: A tensor is read that nobody writes, or written twice; or there is a cycle.
    """
    given = set(given)
    writers: dict[str, int] = {}
    for place, (name, _, writes) in enumerate(nodes):
        for tensor in writes:
            if not tensor:
                continue
            if tensor in writers or tensor in given:
                other = shown(nodes[writers[tensor]][0]) if tensor in writers else "the model"
                raise ModelFileError(
                    f"{path}: tensor {shown(tensor)} is written by {other} and by {shown(name)}"
                )
            writers[tensor] = place
    for tensor in wanted:
        if tensor not in writers and tensor not in given:
            raise ModelFileError(f"{path}: nobody writes the model's output {shown(tensor)}")
    followers: list[list[int]] = [[] for _ in nodes]
    waiting = [0] * len(nodes)
    in_order = True
    for place, (name, reads, _) in enumerate(nodes):
        for tensor in reads:
            if not tensor or tensor in given:
                continue
            writer = writers.get(tensor)
            if writer is None:
                raise ModelFileError(
                    f"{path}: {shown(name)} reads the tensor {shown(tensor)}, which nobody writes"
                )
            followers[writer].append(place)
            waiting[place] += 1
            in_order = in_order and writer < place
    if in_order:
        return list(range(len(nodes)))
    ready = deque(place for place, count in enumerate(waiting) if count == 0)
    order = []
    while ready:
        place = ready.popleft()
        order.append(place)
        for follower in followers[place]:
            waiting[follower] -= 1
            if waiting[follower] == 0:
                ready.append(follower)
    if len(order) < len(nodes):
        names = " -> ".join(_cycle(nodes, waiting, writers))
        raise ModelFileError(f"{path}: its nodes form a cycle: {names}")
    return order


def _cycle(
    nodes: Sequence[tuple[str, Sequence[str], Sequence[str]]],
    waiting: Sequence[int],
    writers: Mapping[str, int],
) -> list[str]:
    """Names along one cycle; whatever still waits, waits for something that waits."""
    place = next(place for place, count in enumerate(waiting) if count)
    seen: dict[int, int] = {}
    while place not in seen:
        seen[place] = len(seen)
        place = next(
            writers[tensor]
            for tensor in nodes[place][1]
            if tensor in writers and waiting[writers[tensor]]
        )
    around = [at for at, step in seen.items() if step >= seen[place]]
    around.reverse()
    first = around.index(min(around))
    around = [*around[first:], *around[:first]]
    names = [shown(nodes[at][0]) for at in [*around, around[0]]]
    return names if len(names) <= _SHOWN_NODES else [*names[: _SHOWN_NODES - 1], "...", names[-1]]


def needed(ops: Sequence[Op], outputs: Iterable[str]) -> list[Op]:
    """The ops, in a topological order, without those that no output of the model depends on."""
    wanted = set(outputs)
    kept = []
    for op in reversed(ops):
        if not wanted.isdisjoint(op.outputs):
            kept.append(op)
            wanted.update(op.inputs)
    kept.reverse()
    return kept


def input_shapes(
    path: Path,
    declared: Mapping[str, Sizes | None],
    shapes: Mapping[str, Sequence[int]],
    *,
    usual: Sequence[int] = (1, 3, 224, 224),
) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's inputs.

    Args:
        path: For messages.
        declared: What the model says of each input: its sizes, None where one is open; None
            instead of sizes: not even how many.
        shapes: What the user says.
        usual: An image's shape in the model's layout, for the example in a message.

    Raises:
        ModelFileError: The two do not fit, or a size is said by neither.
    """
    for name in shapes:
        if name not in declared:
            known = ", ".join(shown(known) for known in declared) or "none"
            raise ModelFileError(f"{path}: there is no input {shown(name)}; its inputs: {known}")
    found: dict[str, tuple[int, ...]] = {}
    open_inputs = []
    for name, sizes in declared.items():
        if name in shapes:
            found[name] = _fitting(path, name, sizes, shapes[name])
        elif sizes is None or None in sizes:
            open_inputs.append((name, sizes))
        else:
            found[name] = tuple(size for size in sizes if size is not None)
        if name in found:
            check_size(path, name, found[name])
    if open_inputs:
        says = "; ".join(
            f"input {shown(name)} has the shape {_sizes_text(sizes)}" for name, sizes in open_inputs
        )
        options = " ".join(
            f"--shape {name}={_example(sizes, usual)}" for name, sizes in open_inputs
        )
        raise ModelFileError(f"{path}: {says}: say which, e.g. {options}")
    return found


def _fitting(path: Path, name: str, sizes: Sizes | None, shape: Sequence[int]) -> tuple[int, ...]:
    text = ",".join(map(str, shape))
    if any(not isinstance(size, int) or isinstance(size, bool) or size < 1 for size in shape):
        raise ModelFileError(
            f"{path}: the shape {text} for input {shown(name)} is none: sizes are whole numbers "
            "above 0"
        )
    if sizes is not None and len(sizes) != len(shape):
        raise ModelFileError(
            f"{path}: input {shown(name)} has {len(sizes)} dimensions, {_sizes_text(sizes)}, but "
            f"the shape {text} has {len(shape)}"
        )
    if sizes is not None and any(
        size is not None and size != given for size, given in zip(sizes, shape, strict=True)
    ):
        raise ModelFileError(
            f"{path}: input {shown(name)} has the shape {_sizes_text(sizes)}, which the shape "
            f"{text} does not fit"
        )
    return tuple(shape)


def _sizes_text(sizes: Sizes | None) -> str:
    if sizes is None:
        return "of any rank"
    return ",".join("?" if size is None else str(size) for size in sizes)


def _example(sizes: Sizes | None, usual: Sequence[int]) -> str:
    """A shape as images have it; what the model says of it stays."""
    if sizes is None:
        return ",".join(map(str, usual))
    return ",".join(
        str(size if size is not None else usual[min(place, len(usual) - 1)])
        for place, size in enumerate(sizes)
    )
