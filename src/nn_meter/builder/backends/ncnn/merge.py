"""Many models through one run of pnnx.

Starting pnnx takes 0.2 s, converting a small model a few milliseconds. So models are put side by
side into one file, as parts of one graph that share nothing, and the layers that come out are dealt
out again by what hangs together with a model's inputs and outputs. Pnnx matches patterns of
connected operators and knows nothing wider, so a part becomes what it would become alone; a test
compares the two.

Which bytes of the weights are a layer's stands nowhere: ``weights`` asks ncnn.

A run that fails, and models that cannot be told apart after one, are done again in two halves, down
to single models: one that pnnx chokes on costs itself only.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nn_meter.builder.backends.base import Shapes
from nn_meter.builder.backends.ncnn.convert import (
    Made,
    Ports,
    ports_of,
    require_converted,
    run_pnnx,
)
from nn_meter.builder.backends.ncnn.graph import Layer
from nn_meter.errors import ConversionError

__all__ = ["Part", "convert_many"]

_MOST_MODELS = 50  # a failed run is halved: with more in it that costs more than runs saved
_MOST_BYTES = 200_000_000  # protobuf ends at 2 GB
_RUNS_AT_A_TIME = 2

_PARTS = ("input", "output", "initializer", "value_info", "node")
_PREFIX = "part{}_"


@dataclass(frozen=True, kw_only=True)
class Part:
    """What became of one model.

    Attributes:
        layers: Its layers, in the order of execution.
        inputs: Names of its inputs among their tensors, in the model's order.
        weights: Of the layers, one after the other.
        ports: Its inputs and outputs; with the weights, what makes a model of the layers. None
            where only layers were asked for.
    """

    layers: tuple[Layer, ...]
    inputs: tuple[str, ...]
    weights: bytes = b""
    ports: Ports | None = None


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A model to convert; ``proto`` is None where it has to be converted alone."""

    position: int
    path: Path
    shapes: Shapes
    proto: Any = None
    key: str = ""
    size: int = 0


Outcome = Part | ConversionError
Shares = Callable[[Sequence[Layer], bytes], list[bytes] | None]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Where models are converted, and what is asked; see ``convert_many``."""

    root: Path
    known: Callable[[str], bool]
    shares: Shares | None


def convert_many(
    models: Sequence[tuple[Path, Shapes]],
    save_path: Path,
    *,
    known: Callable[[str], bool],
    shares: Shares | None = None,
) -> list[Outcome]:
    """Convert models.

    Args:
        models: ``.onnx`` files, each with the shapes of its inputs without the batch dimension.
        save_path: An existing folder for what is made on the way; nothing stays in it.
        known: Whether ncnn has a layer of a type.
        shares: Gives each layer of a file its weights, of those of the file; None where it cannot.
            Without it, parts have layers only.

    Returns:
        For each model its part, or why there is none.
    """
    sources = [_read(position, *model) for position, model in enumerate(models)]
    found: dict[int, Outcome] = {}
    with (
        TemporaryDirectory(dir=save_path, prefix=".pnnx-") as name,
        ThreadPoolExecutor(_RUNS_AT_A_TIME) as pool,
    ):
        job = _Job(root=Path(name), known=known, shares=shares)
        for outcomes in pool.map(lambda batch: _convert(batch, job), list(_batches(sources))):
            found |= outcomes
    return [found[source.position] for source in sources]


# --- what goes together --------------------------------------------------------------------------


def _read(position: int, path: Path, shapes: Shapes) -> _Source:
    alone = _Source(position=position, path=path, shapes=shapes)
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError:
        return alone  # a virtual environment with the runtime only
    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError):
        return alone  # pnnx says what is wrong with it
    if not _mergeable(proto, shapes):
        return alone
    opsets = sorted((opset.domain, opset.version) for opset in proto.opset_import)
    return replace(alone, proto=proto, key=f"{proto.ir_version} {opsets}", size=path.stat().st_size)


def _mergeable(proto: Any, shapes: Shapes) -> bool:
    """Whether a model is a plain graph: no functions, no subgraphs, no data elsewhere."""
    graph = proto.graph
    weights = {tensor.name for tensor in graph.initializer}
    return not (
        proto.functions
        or graph.sparse_initializer
        or graph.quantization_annotation
        or any(tensor.external_data for tensor in graph.initializer)
        or any(attribute.HasField("g") for node in graph.node for attribute in node.attribute)
        or any(attribute.graphs for node in graph.node for attribute in node.attribute)
        or any(tensor.name in weights for tensor in graph.input)
        or len(graph.input) != len(shapes)
        or not graph.output
    )


def _batches(sources: Sequence[_Source]) -> Iterator[list[_Source]]:
    groups: dict[str, list[_Source]] = defaultdict(list)
    for source in sources:
        if source.proto is None:
            yield [source]
        else:
            groups[source.key].append(source)
    for group in groups.values():
        batch: list[_Source] = []
        for source in group:
            full = len(batch) == _MOST_MODELS
            if batch and (full or sum(s.size for s in batch) + source.size > _MOST_BYTES):
                yield batch
                batch = []
            batch.append(source)
        yield batch


def _merged(sources: Sequence[_Source]) -> Any:
    """One model of several; no name in it is that of two of them."""
    import onnx
    from onnx import compose

    merged = onnx.ModelProto()
    merged.ir_version = sources[0].proto.ir_version
    merged.opset_import.extend(sources[0].proto.opset_import)
    merged.graph.name = "merged"
    for number, source in enumerate(sources):
        graph = compose.add_prefix(source.proto, _PREFIX.format(number)).graph
        for part in _PARTS:
            getattr(merged.graph, part).extend(getattr(graph, part))
    return merged


# --- runs ----------------------------------------------------------------------------------------


def _convert(batch: Sequence[_Source], job: _Job) -> dict[int, Outcome]:
    try:
        made = _run(batch, job.root)
    except ConversionError as exc:
        if len(batch) == 1:
            return {batch[0].position: exc}
        return _convert_in_two(batch, job)
    if len(batch) == 1:
        return {batch[0].position: _alone(batch[0], made, job)}
    shares = job.shares(made.layers, made.weights) if job.shares else None
    found: dict[int, Outcome] = {}
    left = []
    for source, piece in zip(batch, _deal_out(batch, made), strict=True):
        outcome = None if piece is None else _one_of_many(source, piece, made, shares, job)
        if outcome is None:
            left.append(source)
        else:
            found[source.position] = outcome
    return found | _convert_in_two(left, job)


def _convert_in_two(sources: Sequence[_Source], job: _Job) -> dict[int, Outcome]:
    """Convert models that did not go together; every other one, as neighbours are often alike."""
    found: dict[int, Outcome] = {}
    for half in (sources[::2], sources[1::2]):
        if half:
            found |= _convert(half, job)
    return found


def _run(batch: Sequence[_Source], root: Path) -> Made:
    folder = root / f"{batch[0].position}-{batch[-1].position}"
    folder.mkdir()
    label = batch[0].path.name if len(batch) == 1 else f"{len(batch)} models"
    model = batch[0].path
    if len(batch) > 1:
        model = folder / "model.onnx"
        model.write_bytes(_merged(batch).SerializeToString())
    shapes = [shape for source in batch for shape in source.shapes]
    try:
        return run_pnnx(model, shapes, folder, label=label)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _alone(source: _Source, made: Made, job: _Job) -> Outcome:
    label = source.path.name
    try:
        require_converted(made.layers, made.words, known=job.known, label=label)
        if job.shares is None:
            count = len(source.shapes) or len(made.inputs)
            return Part(layers=made.layers, inputs=_numbered("in", 0, count))
        ports = ports_of(made, source.shapes, label=label)
    except ConversionError as exc:
        return exc
    names = tuple(port.name for port in ports.inputs)
    return Part(layers=made.layers, inputs=names, weights=made.weights, ports=ports)


def _one_of_many(
    source: _Source, piece: _Piece, made: Made, shares: Sequence[bytes] | None, job: _Job
) -> Outcome | None:
    """What became of a model; None if that has to be found out in another run."""
    label = source.path.name
    layers = tuple(made.layers[number] for number in piece.layers)
    try:
        require_converted(layers, made.words, known=job.known, label=label)
    except ConversionError as exc:
        return exc
    if job.shares is None:
        return Part(layers=layers, inputs=piece.inputs)
    if shares is None:
        return None
    try:
        ports = ports_of(
            made, source.shapes, label=label, inputs=piece.inputs, outputs=piece.outputs
        )
    except ConversionError:
        return None  # it would name what is another's number; alone it names its own
    weights = b"".join(shares[number] for number in piece.layers)
    return Part(layers=layers, inputs=piece.inputs, weights=weights, ports=ports)


# --- dealing out ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """What is one model's of what was made of many: numbers of layers, names of tensors."""

    layers: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def _deal_out(batch: Sequence[_Source], made: Made) -> list[_Piece | None]:
    """Give each model its layers; None to one that cannot be told from others.

    Pnnx numbers the inputs and outputs of the whole, ``in0`` and on, ``out0`` and on, in its order.
    It makes one of constants that are equal: models that have such a one hang together by it.
    """
    islands = _islands(made.layers)
    owners: dict[int, set[int]] = {island: set() for island in islands.values()}
    ends: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    lacking: set[int] = set()
    n_in = n_out = 0
    for number, source in enumerate(batch):
        inputs = _numbered("in", n_in, len(source.shapes))
        outputs = _numbered("out", n_out, len(source.proto.graph.output))
        ends.append((inputs, outputs))
        n_in, n_out = n_in + len(inputs), n_out + len(outputs)
        for end in (*inputs, *outputs):
            if end in islands:
                owners[islands[end]].add(number)
            else:
                lacking.add(number)
    counted = (len(made.inputs), len(made.outputs)) == (n_in, n_out)
    if not all(owners.values()) or not counted:
        return [None] * len(batch)
    lacking.update(number for shared in owners.values() if len(shared) > 1 for number in shared)
    pieces: list[list[int]] = [[] for _ in batch]
    for position, layer in enumerate(made.layers):
        for owner in owners[islands[(*layer.outputs, *layer.inputs)[0]]]:
            pieces[owner].append(position)
    return [
        None
        if number in lacking
        else _Piece(layers=tuple(pieces[number]), inputs=inputs, outputs=outputs)
        for number, (inputs, outputs) in enumerate(ends)
    ]


def _numbered(word: str, first: int, count: int) -> tuple[str, ...]:
    return tuple(f"{word}{number}" for number in range(first, first + count))


def _islands(layers: Sequence[Layer]) -> dict[str, int]:
    """A number for each tensor; tensors that hang together by layers have the same."""
    islands: dict[str, int] = {}
    members: dict[int, list[str]] = {}
    for number, layer in enumerate(layers):
        members[number] = []
        for tensor in (*layer.inputs, *layer.outputs):
            old = islands.get(tensor)
            if old == number:
                continue
            moved = [tensor] if old is None else members.pop(old)
            members[number] += moved
            islands.update(dict.fromkeys(moved, number))
    return islands
