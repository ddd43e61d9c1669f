"""A runtime asked what it makes of a model in a process of its own, whose crash is not ours."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import BaseBackend
from nn_meter.builder.backends.spec import BackendSpec, spec_of
from nn_meter.builder.profiling.process import Worker
from nn_meter.errors import ConversionError
from nn_meter.kernel_detector.check.truth import Truth, executed_together
from nn_meter.kernel_detector.graph import Graph
from nn_meter.kernel_detector.readers import file_of_graph, read_model

__all__ = ["CheckJobs", "told_apart"]

HANDLER = f"{__name__}:CheckJobs"


class CheckJobs:
    """The operation of that process. What comes in and goes out is plain JSON values."""

    def tell(
        self, model: str, name: str, shapes: Mapping[str, Sequence[int]], spec: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Ask a backend which ops it executes together.

        Args:
            model: The file that graphs are read from.
            name: The model's, for messages.
            shapes: Shapes of inputs, batch included, where they are others than the file's.
            spec: Of the backend.
        """
        graph = replace(read_model(Path(model), shapes=shapes), name=name)
        backend = BackendSpec.from_json(spec).make()
        truth = executed_together(Path(model), graph, backend, shapes)
        return {
            "ops": [op.name for op in graph.ops],
            "groups": dict(truth.groups),
            "untold": sorted(truth.untold),
            "idle": sorted(truth.idle),
        }


def told_apart(
    model_path: Path,
    graph: Graph,
    backend: BaseBackend,
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    time_limit_s: float | None = None,
) -> Truth:
    """Ask a runtime what it makes of a model.

    Args:
        model_path: The model.
        graph: What was read of it.
        backend: A backend; one that was made without connecting is asked in this process.
        shapes: Shapes of inputs, batch included, where they are others than the graph's.
        time_limit_s: After which it is given up; None: no limit.

    Raises:
        BackendError: The backend cannot tell, or refuses the model.
        WorkerCrashedError: The runtime crashed.
        TimeLimitError: It took longer.
        ConversionError: The file is not the one that the graph was read from.
    """
    spec = spec_of(backend)
    if spec is None:
        return executed_together(model_path, graph, backend, shapes)
    with (
        tempfile.TemporaryDirectory(prefix="nn-meter-check-") as folder,
        Worker(HANDLER, what=spec.name) as worker,
    ):
        file = file_of_graph(model_path, Path(folder), shapes=shapes)
        if file != model_path and graph.format == "tflite":
            shapes = None  # what was made of the model has them, and other names for its inputs
        told = worker.call(
            "tell",
            time_limit_s,
            model=str(file.absolute()),
            name=graph.name,
            shapes={name: list(shape) for name, shape in (shapes or {}).items()},
            spec=spec.to_json(),
        )
    if told["ops"] != [op.name for op in graph.ops]:
        raise ConversionError(f"{graph.name}: its ops are not those of the graph read before")
    return Truth(
        groups=told["groups"], untold=frozenset(told["untold"]), idle=frozenset(told["idle"])
    )
