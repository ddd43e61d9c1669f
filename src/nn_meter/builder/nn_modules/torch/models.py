"""torch models: how one is made of operators, saved and run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from nn_meter.builder.nn_modules.base import BaseOperator
from nn_meter.builder.nn_modules.frameworks import Operand
from nn_meter.builder.nn_modules.onnx.evaluator import evaluate
from nn_meter.builder.nn_modules.onnx.models import run_model
from nn_meter.builder.nn_modules.wiring import join
from nn_meter.errors import NotInstalledError, OperatorError
from nn_meter.reference import compare_outputs, reference_inputs, sample_outputs

try:
    import torch
    from torch import nn
except ModuleNotFoundError as exc:
    raise NotInstalledError.for_extra("torch", "torch") from exc

from nn_meter.builder.nn_modules.torch.exporting import EXPORTERS

__all__ = [
    "Chain",
    "chain_model",
    "output_shape",
    "run_model",
    "save_model",
    "seed_weights",
    "version",
]


class Chain(nn.Module):  # type: ignore[misc]
    """Operators one after the other. It takes the graph's inputs, in their order.

    Args:
        operators: Each takes what the one before it gives; see ``frameworks.Framework``.
        operands: Where second operands come from.
        replicas: How many such chains, side by side.

    Attributes:
        shapes: Shapes of the inputs without the batch dimension.
        steps: What comes next: an input (None), or what computes with the numbers of the tensors
            that it takes. Each gives the tensor of the next number, from 0.
        ends: The last step of each replica.
    """

    def __init__(
        self,
        operators: Sequence[BaseOperator],
        operands: Sequence[Operand] | None = None,
        *,
        replicas: int = 1,
    ) -> None:
        super().__init__()
        self.shapes: list[list[int]] = []
        self.steps: list[tuple[Callable[..., Any], int | list[int]] | None] = []
        self.ends = join(
            operators,
            operands,
            graph_input=self._add_input,
            apply=self._add_step,
            replicas=replicas,
        )

    def _add_input(self, shape: Sequence[int]) -> int:
        self.shapes.append(list(shape))
        self.steps.append(None)
        return len(self.steps) - 1

    def _add_step(self, operator: BaseOperator, inputs: int | list[int]) -> list[int]:
        step = operator.get_model()
        self.steps.append((step, inputs))
        if isinstance(step, nn.Module):
            number = len(self.steps) - len(self.shapes)
            self.add_module(f"{type(operator).__name__.lower()}_{number}", step)
        return [len(self.steps) - 1]  # how many more it gives is known when it runs

    def forward(self, *inputs: torch.Tensor) -> Any:
        waiting = iter(inputs)
        tensors: list[Any] = []
        kept: list[Any] = []
        given: list[Any] = []
        for entry in self.steps:
            if entry is None:
                tensors.append(next(waiting))
                continue
            step, sources = entry
            outputs = step(
                tensors[sources]
                if isinstance(sources, int)
                else [tensors[source] for source in sources]
            )
            first, *rest = outputs if isinstance(outputs, list | tuple) else [outputs]
            tensors.append(first)
            kept += rest
            if len(tensors) - 1 in self.ends:
                given += [first, *kept]
                kept = []
        return tuple(given) if len(given) > 1 else given[0]


def seed_weights(seed: int) -> None:
    """Seed torch's random numbers, and with them the weights of the layers made from here on."""
    torch.manual_seed(seed)


def chain_model(
    operators: Sequence[BaseOperator],
    operands: Sequence[Operand] | None = None,
    *,
    replicas: int = 1,
) -> tuple[nn.Module, list[list[int]]]:
    """Build a chain of operators; see ``frameworks.Framework.chain_model``."""
    chain = Chain(operators, operands, replicas=replicas)
    return chain, chain.shapes


def save_model(
    model: nn.Module,
    path: Path,
    shapes: Sequence[Sequence[int]],
    *,
    outputs: bool = True,
) -> list[npt.NDArray[Any]]:
    """Write ``path``, an ``.onnx`` file, of a module that takes tensors and gives tensors.

    The module is put into evaluation mode. The file holds the graph as the module states it:
    nothing is fused, nothing left out but what is constant. That it computes what the module
    computes is checked before it is written, unless ``outputs`` is False: then the module runs only
    to tell that it does, and how many tensors it gives.

    Returns:
        What the module gives on the reference inputs; nothing without ``outputs``.

    Raises:
        OperatorError: It is no module, it does not run on these shapes, or neither of torch's
            exporters makes an ONNX model of it that does the same.
    """
    if not isinstance(model, nn.Module):
        raise OperatorError(f"a torch model is a torch.nn.Module, not a {type(model).__name__}")
    feeds = reference_inputs(shapes)
    inputs = tuple(torch.from_numpy(feed) for feed in feeds)
    expected = _run(model, inputs)
    refusals = []
    failure = None
    for name, export in EXPORTERS.items():
        try:
            exported = export(model, inputs, len(expected))
            found = evaluate(exported, feeds) if outputs else []
        except Exception as exc:  # noqa: BLE001 - torch's, onnx's, the user's own; raised below
            failure = exc
            refusals.append(f"{name}: {_reason(exc)}")
            continue
        if outputs and (difference := _difference(found, expected)):
            refusals.append(f"{name}: the exported model is another: {difference}")
            continue
        _write(exported, path)
        return expected if outputs else []
    raise OperatorError(
        f"{path.name}: {type(model).__name__} cannot be saved as ONNX. " + "; ".join(refusals)
    ) from failure


def output_shape(operator: BaseOperator) -> list[int]:
    """Shape of an operator's first output, by running the operator alone."""
    model, shapes = chain_model([operator])
    inputs = tuple(torch.from_numpy(feed) for feed in reference_inputs(shapes))
    return [int(size) for size in _run(model, inputs)[0].shape[1:]]


def version() -> str:
    """Name and version."""
    return f"torch {torch.__version__}"


def _run(model: nn.Module, inputs: Sequence[torch.Tensor]) -> list[npt.NDArray[Any]]:
    """Run a module once, in evaluation mode, and flatten its outputs."""
    model.eval()
    try:
        with torch.no_grad(), _settled(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = list(_tensors(model(*inputs)))
    except OperatorError:
        raise
    except Exception as exc:
        shapes = ", ".join(str(list(tensor.shape[1:])) for tensor in inputs)
        raise OperatorError(
            f"{type(model).__name__} does not run on {shapes}: {_reason(exc)}"
        ) from exc
    if not outputs:
        raise OperatorError(f"{type(model).__name__} gives no output")
    return [output.detach().numpy() for output in outputs]


@contextmanager
def _settled(model: nn.Module) -> Iterator[None]:
    """Put layers that a model runs, but does not own, into evaluation mode, their weights fixed.

    A function that an operator returns may hold such a layer; the exporters take a weight that
    nobody owns for a constant, if it is not to be trained.
    """
    own = set(model.modules())

    def settle(module: nn.Module, _: Any) -> None:
        if module not in own:
            module.eval().requires_grad_(False)

    hook = nn.modules.module.register_module_forward_pre_hook(settle)
    try:
        yield
    finally:
        hook.remove()


def _difference(
    found: Sequence[npt.NDArray[Any]], expected: Sequence[npt.NDArray[Any]]
) -> str | None:
    """What differs, output by output: an exporter keeps their order."""
    if len(found) != len(expected):
        return f"it has {len(found)} outputs instead of {len(expected)}"
    for got, want in zip(found, expected, strict=True):
        if difference := compare_outputs(sample_outputs([got]), sample_outputs([want])):
            return difference
    return None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    else:
        raise OperatorError(
            f"a torch model gives tensors, or lists or tuples of them, not a {type(value).__name__}"
        )


def _write(model: onnx.ModelProto, path: Path) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(model.SerializeToString(deterministic=True))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _reason(exc: BaseException) -> str:
    """The first line of what went wrong first."""
    while exc.__cause__:
        exc = exc.__cause__
    return f"{type(exc).__name__}: {str(exc).strip()}".splitlines()[0]
