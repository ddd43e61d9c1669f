"""How right kernels are: held against what a runtime executes of the whole model.

``prepare`` writes a copy of the model by which the runtime's work can be traced, ``claims`` reads
what each executed node covers, ``truth`` holds that against the executed graph, ``apart`` has it
done in a process of its own, ``score`` compares.
No part of it names a runtime: what a backend can tell decides how it is asked. One that lets its
tensors be looked at (``TracesGraph``) is read by values, any other by the sources of its nodes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import Describes
from nn_meter.fusion_rules.rules import RuleSet
from nn_meter.kernel_detector.check.apart import told_apart
from nn_meter.kernel_detector.check.score import Check, Difference, score
from nn_meter.kernel_detector.check.truth import TracesGraph, Truth, executed_together
from nn_meter.kernel_detector.graph import Graph
from nn_meter.kernel_detector.kernels import Kernel

__all__ = [
    "Check",
    "Difference",
    "TracesGraph",
    "Truth",
    "check",
    "executed_together",
    "score",
    "told_apart",
    "warn_of_another_runtime",
]

log = logging.getLogger(__name__)


def check(
    model_path: Path | str,
    graph: Graph,
    kernels: Iterable[Kernel],
    backend: Any,
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    time_limit_s: float | None = None,
) -> Check:
    """Hold kernels against what a runtime executes.

    The runtime of a connected backend loads the model in a process of its own.

    Args:
        model_path: The model.
        graph: What was read of it.
        kernels: What rules made of that.
        backend: A backend, connected.
        shapes: Shapes of inputs, batch included, where they are others than the graph's.
        time_limit_s: After which the runtime is given up; None: no limit.

    Returns:
        What is right and what differs.

    Raises:
        BackendError: The backend does not tell what it executes, refuses the model, or crashes.
    """
    truth = told_apart(Path(model_path), graph, backend, shapes, time_limit_s=time_limit_s)
    return score(graph, kernels, truth)


def warn_of_another_runtime(rules: RuleSet, backend: Any) -> bool:
    """Log a warning if rules were found with another runtime, or another version of it.

    Args:
        rules: The rules; of such as do not say where they were found nothing is said.
        backend: The backend that kernels are checked with.

    Returns:
        Whether there was something to warn of.
    """
    if not rules.environments or not isinstance(backend, Describes):
        return False
    here = backend.describe()
    keys = ("runtime", "version", "device")
    unlike = [
        environment
        for environment in rules.environments
        if any(
            str(environment[key]) != str(getattr(here, key)) for key in keys if key in environment
        )
    ]
    if not unlike:
        return False
    found = "; ".join(
        " ".join(str(environment[key]) for key in keys if key in environment)
        for environment in unlike
    )
    log.warning(
        "the rules %s were found with %s, and are checked with %s %s on %s: what differs may be "
        "the runtimes' difference, and no fault of the rules",
        rules.name,
        found,
        here.runtime,
        here.version,
        here.device,
    )
    return True
