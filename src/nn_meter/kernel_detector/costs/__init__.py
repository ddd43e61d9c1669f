"""What kernels cost: each cut out of its model and timed as inside it.

``parts`` takes the model apart, ``cutting`` makes models of the parts, ``timing`` loads and times
them pass by pass, ``estimate`` tells from that what each kernel takes, and how sure that is. No
part of it names a runtime, and no figure is fitted to the time of the whole model, so that
comparing with it says something.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import BaseBackend
from nn_meter.builder.profiling.connection import Connection
from nn_meter.errors import BackendError, ModelRejectedError, NNMeterError
from nn_meter.kernel_detector.check.prepare import prepare
from nn_meter.kernel_detector.costs.cutting import Cut, Cutter, Excerpt
from nn_meter.kernel_detector.costs.estimate import Cost, cost_of, costs_of, warm_ns
from nn_meter.kernel_detector.costs.timing import Timed, time_excerpts
from nn_meter.kernel_detector.graph import Graph
from nn_meter.kernel_detector.kernels import Kernel
from nn_meter.progress import Progress, logged

__all__ = ["Cost", "Costs", "time_kernels"]

_MS = 1e-6
_COLD = 12  # kernels of each kind that tell what it costs if caches do not hold weights


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the kernels of a model cost, and the model.

    Attributes:
        kernels: Kernel -> what it costs.
        whole: What the model takes, without what a call takes.
        alone_ns: The sum over kernels, each cut out by itself, its call taken off: in that regime
            a kernel is given, and converts, what it would find as it needs it.
        ops_alone_ns: In the same regime the sum over single ops, which cannot fuse.
        failed: Kernel or op -> why it could not be timed.
        models: How many models were timed: equal ones once.
        passes: How often each was loaded.
        full_speed: Share of the runs that counted, as the processor was at full speed.
    """

    kernels: Mapping[str, Cost]
    whole: Cost
    alone_ns: float | None
    ops_alone_ns: float | None
    failed: Mapping[str, str] = field(default_factory=dict)
    models: int = 0
    passes: int = 0
    full_speed: float = 1.0

    @property
    def sum(self) -> Cost:
        """Of all kernels that could be timed; equal ones are wrong together."""
        ns = math.fsum(cost.ns for cost in self.kernels.values())
        same = Counter((cost.ns, cost.high) for cost in self.kernels.values())
        half = math.sqrt(
            math.fsum((count * (high - ns)) ** 2 for (ns, high), count in same.items())
        )
        return Cost(ns=ns, low=ns - half, high=ns + half)

    def share(self, kernel: str) -> float:
        """A kernel's part of the sum."""
        return self.kernels[kernel].ns / self.sum.ns

    def to_json(self) -> dict[str, Any]:
        """As plain values, times in ms."""
        return {
            "whole_ms": _told(self.whole),
            "sum_ms": _told(self.sum),
            "ratio": _rounded(self.sum.ns / self.whole.ns),
            "alone": {
                "kernels_ms": None if self.alone_ns is None else _rounded(self.alone_ns * _MS),
                "single_ops_ms": (
                    None if self.ops_alone_ns is None else _rounded(self.ops_alone_ns * _MS)
                ),
            },
            "kernels": {
                name: {**_told(cost), "share": _rounded(self.share(name))}
                for name, cost in self.kernels.items()
            },
            "failed": dict(self.failed),
            "models": self.models,
            "passes": self.passes,
            "full_speed": _rounded(self.full_speed),
        }


def time_kernels(
    model_path: Path | str,
    graph: Graph,
    kernels: Sequence[Kernel],
    backend: BaseBackend,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    budget_s: float = 120.0,
    time_limit_s: float = 60.0,
    progress: Progress = logged,
) -> Costs:
    """Time the kernels of a model, each as inside it.

    Args:
        model_path: The model.
        graph: What was read of it.
        kernels: What rules made of that.
        backend: A backend, connected.
        shapes: Shapes of inputs, batch included, where they are others than the graph's.
        budget_s: Seconds for timing. All is timed three times, even if that takes longer.
        time_limit_s: For one operation on one model.
        progress: Told how far it is.

    Raises:
        ModelRejectedError: It cannot be cut, or the backend refuses it as a whole.
        BackendError: The backend cannot time models in turn.
    """
    with (
        tempfile.TemporaryDirectory(prefix="nn-meter-") as name,
        Connection(backend) as connection,
    ):
        if not connection.sessions:
            raise BackendError(
                f"{connection.name} times whole files only, so kernels cannot be timed in turn"
            )
        folder = Path(name)
        (folder / "copy").mkdir()
        copy = prepare(Path(model_path), graph, folder / "copy", shapes)
        cutter = Cutter(copy, graph, kernels)
        cuts, failed = _cuts(cutter, kernels)
        ops = _ops(cutter, graph)
        whole, call = cutter.whole(), cutter.call()
        cold = [e for cut in _chosen(cuts) for e in (cut.behind, cut.feeding) if e is not None]
        warm = [excerpt for cut in cuts for excerpt in cut.excerpts()]
        warm += [excerpt for excerpt in ops.values() if excerpt is not None]
        timed = time_excerpts(
            connection,
            whole,
            [*_once(cold), call],
            _once(warm),
            folder,
            budget_s=budget_s,
            time_limit_s=time_limit_s,
            progress=progress,
        )
    return _costs(cutter, cuts, ops, timed, call, failed)


def _cuts(cutter: Cutter, kernels: Sequence[Kernel]) -> tuple[list[Cut], dict[str, str]]:
    found, failed = [], {}
    for kernel in kernels:
        try:
            cut = cutter.cut(kernel)
        except NNMeterError as exc:
            failed[kernel.name] = str(exc)
            continue
        if cut is not None:
            found.append(cut)
    return found, failed


def _chosen(cuts: Sequence[Cut]) -> list[Cut]:
    """Kernels that are timed behind the whole model, too: those with most weights, and any."""
    different = list({cut.key: cut for cut in cuts}.values())
    different.sort(key=lambda cut: cut.weights, reverse=True)
    heaviest, others = different[:_COLD], different[_COLD:]
    return heaviest + random.sample(others, min(_COLD, len(others)))


def _ops(cutter: Cutter, graph: Graph) -> dict[str, Excerpt | None]:
    """Op -> it alone as a model; None: its border is not known."""
    found: dict[str, Excerpt | None] = {}
    for op in graph.ops:
        try:
            excerpt = cutter.alone(op.name)
        except NNMeterError:
            found[op.name] = None
            continue
        if excerpt is not None:
            found[op.name] = excerpt
    return found


def _once(excerpts: Sequence[Excerpt]) -> list[Excerpt]:
    return list({excerpt.key: excerpt for excerpt in excerpts}.values())


def _costs(
    cutter: Cutter,
    cuts: Sequence[Cut],
    ops: Mapping[str, Excerpt | None],
    timed: Timed,
    call: Excerpt,
    failed: dict[str, str],
) -> Costs:
    call_ns, whole = warm_ns(timed.times.get(call.key)), cost_of(timed.whole, timed)
    if call_ns is None or whole is None:
        raise ModelRejectedError(
            "the whole model could not be timed at full speed within the time; give it more"
        )
    for cut in cuts:
        for excerpt in cut.excerpts():
            if excerpt.key in timed.failed:
                failed.setdefault(cut.kernel.name, timed.failed[excerpt.key])
    alone = [warm_ns(timed.times.get(cut.alone.key)) for cut in cuts]
    single = [warm_ns(timed.times.get(e.key)) if e is not None else None for e in ops.values()]
    kept = {cut.kernel.name: cutter.kept(cut.kernel) for cut in cuts}
    kernels = costs_of(cuts, timed, call.key, kept)
    for name in kept.keys() - kernels.keys() - failed.keys():
        failed[name] = "too few of its runs were at full speed within the time"
    return Costs(
        kernels=kernels,
        whole=Cost(ns=whole.ns - call_ns, low=whole.low - call_ns, high=whole.high - call_ns),
        alone_ns=_sum(alone, call_ns),
        ops_alone_ns=_sum(single, call_ns),
        failed=failed,
        models=len(timed.times),
        passes=timed.passes,
        full_speed=timed.counted / timed.runs if timed.runs else 1.0,
    )


def _sum(found: Sequence[float | None], call_ns: float) -> float | None:
    """The sum of times, without their calls; None: one of them is not known."""
    known = [ns for ns in found if ns is not None]
    return sum(known) - len(known) * call_ns if len(known) == len(found) else None


def _told(cost: Cost) -> dict[str, float | None]:
    return {
        key: _rounded(ns * _MS) if math.isfinite(ns) else None
        for key, ns in (("value", cost.ns), ("low", cost.low), ("high", cost.high))
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
