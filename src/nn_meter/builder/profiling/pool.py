"""Spreading tasks over all cores, each core with a process of its own."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from typing import TypeVar

__all__ = ["spread"]

K = TypeVar("K")
T = TypeVar("T")
C = TypeVar("C")
R = TypeVar("R")


def spread(
    tasks: Mapping[K, T],
    *,
    opened: Callable[[], AbstractContextManager[C]],
    carry_out: Callable[[C, T], R],
    done: Callable[[int, K, R], None],
    most: int | None = None,
) -> None:
    """Carry out tasks on all cores.

    Args:
        tasks: By a name of their own.
        opened: Opens what a core works with, a worker process; closed when all is done.
        carry_out: Carries out a task with it. What it raises ends everything.
        done: Told of each task that ended: how many have, its name, and what it gave, which is
            kept nowhere else: there may be more of it than fits into memory.
        most: How many to open at the most; default: one for each core.
    """
    if not tasks:
        return
    local = threading.local()
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(min(len(tasks), most or os.cpu_count() or 1)))

        def run(task: T) -> R:
            if not hasattr(local, "opened"):
                local.opened = stack.enter_context(opened())
            return carry_out(local.opened, task)

        futures = {pool.submit(run, task): name for name, task in tasks.items()}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                done(number, futures.pop(future), future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
