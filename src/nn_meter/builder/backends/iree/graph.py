"""IREE's executed graph: the dispatches that its compiler forms of a model.

Many models are read by one run of the compiler, as functions of one module: most of a run is the
same whatever is in the module. Functions do not call each other, so what is formed of one does not
depend on the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import Shapes
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode, Kind, ModelOp
from nn_meter.builder.backends.iree import bodies, convert
from nn_meter.errors import (
    GraphUnavailableError,
    ModelRejectedError,
    NNMeterError,
    NotInstalledError,
)

__all__ = ["new_context", "read_imported", "read_models"]

_MOST_MODELS, _MOST_BYTES = 200, 2**26  # of model files in a run of the compiler
_DISPATCH = "flow.dispatch.workgroups"
_VIEWS = frozenset(
    {
        "flow.tensor.bitcast",
        "flow.tensor.reshape",
        "tensor.bitcast",
        "tensor.cast",
        "tensor.collapse_shape",
        "tensor.expand_shape",
    }
)
_MOVES = frozenset(
    {
        "flow.tensor.clone",
        "flow.tensor.slice",
        "flow.tensor.splat",  # at every run: it is not done at load
        "flow.tensor.transfer",
        "flow.tensor.update",
        "tensor.concat",
        "tensor.extract_slice",
        "tensor.insert_slice",
        "tensor.pad",
    }
)
_EMPTY = frozenset({"flow.tensor.alloca", "flow.tensor.empty", "tensor.empty"})


@dataclass(frozen=True)
class _Job:
    """A model to read: where it is in the answer, its function there, its file, its shapes."""

    number: int
    path: Path
    shapes: Shapes

    @property
    def name(self) -> str:
        return f"model_{self.number}"


Found = ExecutedGraph | NNMeterError


def new_context() -> Any:
    """A context to import models in, of type ``iree.compiler.ir.Context``."""
    return _ir().Context()


def _ir() -> Any:
    try:
        from iree.compiler import ir
    except ImportError as exc:
        raise NotInstalledError.for_extra("IREE's compiler", "iree") from exc
    return ir


# --- models --------------------------------------------------------------------------------------


def read_imported(path: Path, name: str, folder: Path) -> ExecutedGraph:
    """Read the graph of one model.

    Args:
        path: A module that ``convert.write_module`` wrote.
        name: Of the function in it.
        folder: For what has to be made on the way.

    Raises:
        GraphUnavailableError: There is no such file, or what the compiler made of it is no graph.
        ModelRejectedError: The compiler refuses it.
    """
    try:
        imported = _ir().Module.parse(path.read_bytes(), new_context()).operation
    except (OSError, ValueError) as exc:
        raise GraphUnavailableError(
            f"{path.name} cannot be read ({exc}); converting the model writes it beside the .vmfb, "
            "for IREE's graph"
        ) from exc
    try:
        return _compiled(path, _model_ops(imported), folder)[name]
    except convert.CompileError as exc:
        raise ModelRejectedError(f"IREE refuses the model: {exc}") from exc


def read_models(models: Sequence[tuple[Path, Shapes]], folder: Path) -> list[Found]:
    """Read the graphs of many ``.onnx`` files.

    Args:
        models: Paths, each with the shapes of its inputs without the batch dimension.
        folder: For what has to be made on the way.

    Returns:
        For each model its graph, or the error that it alone has.
    """
    found: dict[int, Found] = {}
    jobs = [_Job(number, path, shapes) for number, (path, shapes) in enumerate(models)]
    for batch in _batches(jobs):
        found |= _read_batch(batch, folder)
    return [found[job.number] for job in jobs]


def _batches(jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
    batch: list[_Job] = []
    size = 0
    for job in jobs:
        added = job.path.stat().st_size if job.path.is_file() else 0
        if batch and (len(batch) == _MOST_MODELS or size + added > _MOST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(job)
        size += added
    if batch:
        yield batch


def _read_batch(jobs: Sequence[_Job], folder: Path) -> dict[int, Found]:
    """Read models by one run of the compiler; by more where it refuses one of them."""
    found: dict[int, Found] = {}
    context, modules, read = new_context(), [], []
    for job in jobs:
        try:
            modules.append(convert.import_model(job.path, job.name, job.shapes, context))
            read.append(job)
        except NNMeterError as exc:
            found[job.number] = exc
    if not read:
        return found
    joined = convert.join_modules(modules)
    source = folder / "joined.mlirbc"
    convert.write_module(joined, source)
    try:
        graphs = _compiled(source, _model_ops(joined), folder)
    except convert.CompileError as exc:
        if len(read) == 1:
            error = ModelRejectedError(f"{read[0].path.name}: IREE refuses the model: {exc}")
            error.__cause__ = exc
            return found | {read[0].number: error}
        for part in _parts(read, exc.blamed):
            found |= _read_batch(part, folder)
        return found
    return found | {job.number: graphs[job.name] for job in read}


def _parts(jobs: Sequence[_Job], blamed: frozenset[str]) -> list[list[_Job]]:
    """What to read instead of a batch that was refused: those blamed alone, or the halves."""
    guilty = [job for job in jobs if job.name in blamed]
    rest = [job for job in jobs if job.name not in blamed]
    if guilty and rest:
        return [*([job] for job in guilty), rest]
    middle = len(jobs) // 2
    return [list(jobs[:middle]), list(jobs[middle:])]


def _compiled(
    source: Path, ops: dict[str, tuple[ModelOp | None, ...]], folder: Path
) -> dict[str, ExecutedGraph]:
    """Compile a module up to its dispatches and read the graph of each function."""
    target = folder / "dispatches.mlirbc"
    convert.compile_graphs(source, target)
    module = _ir().Module.parse(target.read_bytes(), new_context()).operation
    functions = {}
    for op in _block(module).operations:
        if op.operation.name == "util.func":
            name = _string(op.attributes["sym_name"]).partition("$")[0]
            if any(
                inner.operation.name.startswith("hal.tensor.") for inner in _block(op).operations
            ):
                functions[name] = op.operation
    if missing := sorted(ops.keys() - functions.keys()):
        raise GraphUnavailableError(
            f"IREE's compiler made nothing of {missing[0]} that can be read; nn-meter reads what "
            "version 3.13 writes"
        )
    return {name: _graph(functions[name], ops[name]) for name in ops}


# --- one function --------------------------------------------------------------------------------


def _model_ops(module: Any) -> dict[str, tuple[ModelOp | None, ...]]:
    """The ops of each imported model by position; None for constants."""
    return {
        _string(op.attributes["sym_name"]): _ops_of(op)
        for op in _block(module).operations
        if op.operation.name == "func.func" and "sym_visibility" not in op.attributes
    }


def _ops_of(function: Any) -> tuple[ModelOp | None, ...]:
    block = _block(function)
    tensors = {value: _input(number) for number, value in enumerate(block.arguments)}
    ops: dict[int, ModelOp] = {}
    for op in (it.operation for it in block.operations):
        position = next(iter(bodies.positions(op.location)), None)
        if position is None or op.name != "torch.operator":
            continue
        kind = _string(op.attributes["name"]).removeprefix("onnx.")
        if kind == "Constant":
            continue
        inputs = tuple(tensors[value] for value in op.operands if value in tensors)
        outputs = tuple(f"{position}:{number}" for number in range(len(op.results)))
        tensors.update(zip(op.results, outputs, strict=True))
        ops[position] = ModelOp(
            name=f"{kind}_{position}", type=kind, inputs=inputs, outputs=outputs
        )
    return tuple(ops.get(position) for position in range(max(ops, default=-1) + 1))


def _graph(function: Any, ops: tuple[ModelOp | None, ...]) -> ExecutedGraph:
    ir, block = _ir(), _block(function)
    tensors: dict[Any, str] = {}
    nodes: list[tuple[ExecutedNode, bodies.Work]] = []
    arguments = {value: number for number, value in enumerate(block.arguments)}
    for op in (it.operation for it in block.operations):
        if op.name == "hal.tensor.import":
            tensors[op.results[0]] = _input(arguments[op.operands[0]])
        elif op.name == "hal.tensor.barrier":
            for result, operand in zip(op.results, op.operands, strict=False):
                if operand in tensors:
                    tensors[result] = tensors[operand]
        elif _gives_data(op):
            inputs = dict.fromkeys(tensors[value] for value in op.operands if value in tensors)
            outputs = [f"%{len(nodes)}:{number}" for number in range(len(op.results))]
            tensors.update(zip(op.results, outputs, strict=True))
            kind, type_, work = _work(op)
            if "insert" in work.words:  # in a tensor that is there for what takes it
                made = (value.owner for value in op.operands if isinstance(value, ir.OpResult))
                work.moves.update(*(bodies.positions(it.location) for it in made if _is_bare(it)))
            node = ExecutedNode(
                name=f"{op.name.rpartition('.')[2]}_{len(nodes)}"
                if op.name != _DISPATCH
                else f"dispatch_{len(nodes)}",
                type=type_,
                inputs=tuple(inputs),
                outputs=tuple(outputs),
                kind=kind,
            )
            nodes.append((node, work))
    count = sum("hal.buffer_view" in str(value.type) for value in block.arguments)
    inputs_ = tuple(_input(number) for number in range(count))
    found = _settled(nodes)
    if not all(work.traced for _, work in found):
        return ExecutedGraph(nodes=tuple(node for node, _ in found), inputs=inputs_)
    return ExecutedGraph(
        nodes=tuple(replace(node, sources=_sources(work, ops)) for node, work in found),
        inputs=inputs_,
        ops=tuple(op for op in ops if op is not None),
        op_inputs=inputs_,
    )


def _gives_data(op: Any) -> bool:
    """Whether an op of a function gives a tensor that is no constant."""
    dialect = op.name.partition(".")[0]
    return (
        dialect not in ("arith", "hal", "util")
        and op.name not in _EMPTY
        and op.name != "flow.tensor.constant"
        and any(str(result.type).startswith("tensor<") for result in op.results)
    )


def _is_bare(op: Any) -> bool:
    """Whether an op gives a tensor that others write their data into."""
    return op.operation.name in _EMPTY or op.operation.name == "flow.tensor.splat"


def _work(op: Any) -> tuple[Kind, str, bodies.Work]:
    """Kind and type of an op of a function, and what it does."""
    if op.name == _DISPATCH:
        work = bodies.read_body(op)
        return ("compute" if work.computing else "move"), f"dispatch({', '.join(work.words)})", work
    found = set(bodies.positions(op.location))
    if op.name in _VIEWS:
        return "view", op.name, bodies.Work(moves=found)
    if op.name in _MOVES:
        return "move", op.name, bodies.Work(moves=found)
    return "compute", op.name, bodies.Work(computes=found, computing=True, traced=bool(found))


def _settled(
    nodes: Sequence[tuple[ExecutedNode, bodies.Work]],
) -> list[tuple[ExecutedNode, bodies.Work]]:
    """Settle which node covers an op that several have a part in.

    A copy may be all there is of an op (concat, split, pad), or be on the way: IREE puts a border
    around a convolution's input by the same copy that a pad of its own would be. What an op copies
    is its own work if nothing computes for it; otherwise it is a move, and a node that computes
    something else besides does not cover the op.

    An op that multiplies tensors is covered where it does: IREE may leave the sum with its bias to
    the next kernel, which saves none.
    """
    computed: set[int] = set().union(*(work.computes for _, work in nodes))
    products: set[int] = set().union(*(work.products for _, work in nodes))
    found = []
    for node, work in nodes:
        own = work.moves - computed
        kind = node.kind
        if kind == "move" and own and node.inputs and not work.reorders:
            kind = "compute"
        moves = own if kind == "compute" else work.moves
        computes = work.computes - (products - work.products) or work.computes
        found.append((replace(node, kind=kind), replace(work, moves=moves, computes=computes)))
    return found


def _sources(work: bodies.Work, ops: tuple[ModelOp | None, ...]) -> tuple[str, ...]:
    covered = (ops[position] for position in sorted(work.computes | work.moves))
    return tuple(op.name for op in covered if op is not None)


def _input(number: int) -> str:
    return f"input_{number + 1}"


def _block(op: Any) -> Any:
    return op.regions[0].blocks[0]


def _string(attribute: Any) -> str:
    return str(attribute.value)
