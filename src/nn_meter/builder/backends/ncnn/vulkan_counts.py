"""Counting what ncnn dispatches. Runs in the process that ``vulkan.watched`` starts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nn_meter.builder.backends.ncnn.vulkan import NcnnVulkanBackend
from nn_meter.builder.backends.vulkan.counter import DispatchCounter

__all__ = ["count_dispatches"]


def count_dispatches(counter: DispatchCounter, params: Sequence[str]) -> list[int]:
    """Run models, and say how many dispatches each one's second run takes.

    Args:
        counter: The layer of this process.
        params: Converted models.

    Raises:
        ModelRejectedError: ncnn refuses one.
    """
    backend = NcnnVulkanBackend({})
    counts = []
    for param in params:
        session = backend.open(param, [])
        run = partial(session.time, 1)
        run()
        with counter.counting() as hashes:
            run()
        counts.append(len(hashes))
        session.close()
    return counts
