"""Reference outputs of models that nn-Meter did not make: run once in their own framework."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import Shapes, model_format
from nn_meter.builder.profiling.measure import Model
from nn_meter.builder.profiling.process import Worker
from nn_meter.errors import NNMeterError

__all__ = ["ReferenceJobs", "fill_references"]

log = logging.getLogger(__name__)

_FRAMEWORKS = {"onnx": "onnx", "saved_model": "tensorflow"}


class ReferenceJobs:
    """Runs in a worker process, which may import a framework."""

    def run(self, implement: str, model: str, shapes: Shapes) -> list[dict[str, Any]]:
        """A sample of a model's outputs on the reference inputs, in its own framework."""
        from nn_meter.builder.nn_modules.frameworks import get_framework
        from nn_meter.reference import reference_inputs, sample_outputs

        outputs = get_framework(implement).run_model(Path(model), reference_inputs(shapes))
        return sample_outputs(outputs)


def fill_references(
    models: Iterable[Model], *, time_limit_s: float
) -> dict[str, Sequence[dict[str, Any]]]:
    """Run models in their own framework.

    Args:
        models: Files in the formats that a framework here reads; others are left out.
        time_limit_s: For each.

    Returns:
        A sample of the outputs by hash. A model that its framework cannot run is left out, and the
        log says that its conversion is not checked.
    """
    found: dict[str, Sequence[dict[str, Any]]] = {}
    with Worker(f"{__name__}:ReferenceJobs", what="the framework") as worker:
        for model in models:
            implement = _FRAMEWORKS.get(model_format(model.path))
            if implement is None:
                continue
            try:
                found[model.hash] = worker.call(
                    "run",
                    time_limit_s,
                    implement=implement,
                    model=str(model.path),
                    shapes=[list(shape) for shape in model.shapes],
                )
            except NNMeterError as exc:
                log.warning(
                    "%s: its conversion is not checked, since %s cannot run it: %s",
                    model.path.name,
                    implement,
                    exc,
                )
    return found
