"""Which models it takes to ask by the clock whether an op fuses with what stands before it.

The block is a head (an op, or several that stand before the edge in question) and a tail (the op
behind it). A *control* has a barrier between the two, an op that stands there so that they cannot
fuse. All models are as small as the operators allow, so that what a fusion saves, a dispatch and a
pass over a tensor, is as large a part of the time as can be; and each holds several replicas, so
that it is a larger part of what one call costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import (
    INPUT_SHAPE,
    Chain,
    ChainPlan,
    make_operators,
    plan_chain,
)
from nn_meter.builder.nn_modules.frameworks import layout_of
from nn_meter.errors import OperatorError

__all__ = [
    "BARRIERS",
    "BLOCK",
    "HEAD",
    "REFERENCE",
    "TAIL",
    "Design",
    "Method",
    "between",
    "design_edge",
    "reference_design",
    "small_config",
    "without_head",
]

HEAD, TAIL, BLOCK = "head", "tail", "block"
"""Parts of the models of the head alone, of the tail alone, and of both."""

REFERENCE = "relu"
"""The operator whose pass over a tensor is the least that an elementwise op can save."""


@dataclass(frozen=True, kw_only=True)
class Barrier:
    """An op that keeps its neighbours apart, and the shape that it is given.

    Attributes:
        op: Its operator.
        keys: Keys that differ for it.
        ranks: Ranks of the tensors that it takes.
        layout: It ``keeps`` that of what comes in, and on a graph input has the model's; is at home
            in the library's ``own``, whatever comes in; or works on a ``plain`` tensor only.
        least: The last size at which it computes something.
    """

    op: str
    keys: Mapping[str, Any]
    ranks: tuple[int, ...]
    layout: str
    least: int = 1

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether it is a barrier for a tensor, and no identity."""
        return len(shape) in self.ranks and shape[-1] >= self.least


_POOL = {"KERNEL_SIZE": 3, "POOL_STRIDES": 1, "PADDING": "same"}
BARRIERS: Mapping[str, Barrier] = {
    "avgpool": Barrier(op="avgpool", keys=_POOL, ranks=(3,), layout="own"),
    "tanh": Barrier(op="tanh", keys={}, ranks=(1, 3), layout="keeps"),
    "sum": Barrier(op="running_sum", keys={}, ranks=(1, 3), layout="plain", least=2),
}
"""Unlike one another: what makes one of them no barrier on some runtime, is not in the next."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """The constants of the method; ``docs/method.md`` has the measurement behind each.

    Attributes:
        spatial: Height and width that a question is asked in, if the operators allow.
        channels: Channels; more than these keep their remainder, as libraries work in blocks.
        features: Size of a 1-D tensor, and channels that come out behind one.
        replicas: How often each model holds what is asked about.
        visits: Visits to each model in one load, at the least.
        runs: Runs of a visit.
        share: What timing the models of a load is to take at the least, of what loading them took.
        first_loads: Loads of the references.
        looks: The numbers of loads at which a question is looked at; they share the error.
    """

    spatial: int = 4
    channels: int = 16
    features: int = 256
    replicas: int = 4
    visits: int = 16
    runs: int = 4
    share: float = 0.2
    first_loads: int = 3
    looks: tuple[int, ...] = (2, 3, 4, 6, 9, 13, 18, 26, 38)


@dataclass(frozen=True, kw_only=True)
class Design:
    """The models of one question.

    Attributes:
        head, tail: The ops before the edge, and the one behind it.
        shape: Of the tensor that passes the edge.
        models: By part: see ``between`` and ``without_head``.
        elementwise: Whether the tail is: then it saves a pass over the tensor at the most.
    """

    head: tuple[str, ...]
    tail: str
    shape: tuple[int, ...]
    models: Mapping[str, Chain]
    elementwise: bool

    @property
    def barriers(self) -> list[str]:
        """Names of the barriers that there are controls of."""
        return [name for name in BARRIERS if between(name) in self.models]

    def to_json(self) -> dict[str, Any]:
        """As plain values, from a worker process."""
        return {
            "head": list(self.head),
            "tail": self.tail,
            "shape": list(self.shape),
            "models": {part: chain.to_json() for part, chain in self.models.items()},
            "elementwise": self.elementwise,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Design:
        """Read ``to_json`` back."""
        return cls(
            head=tuple(data["head"]),
            tail=data["tail"],
            shape=tuple(data["shape"]),
            models={part: Chain.from_json(chain) for part, chain in data["models"].items()},
            elementwise=data["elementwise"],
        )


def between(barrier: str, tail: bool = False) -> str:
    """Name of the part: head and barrier, with ``tail`` the tail behind them."""
    return f"{HEAD}|{barrier}" + ("|tail" if tail else "")


def without_head(barrier: str, behind: str = "") -> str:
    """Name of the part: the barrier in the head's place, and an op or barrier behind it."""
    return f"|{barrier}" + (f"|{behind}" if behind else "")


def small_config(config: Mapping[str, Any], method: Method, spatial: int) -> dict[str, Any]:
    """The keys of the configuration, with the sizes that the question is asked in.

    Sizes that are smaller as they are stay. Others keep their remainder by the number of channels
    that a vector holds, since that decides which kernels a library has for them.
    """

    def small(size: int, least: int) -> int:
        rest = size % method.channels
        return min(size, least + rest) if size > least else size

    found = dict(config)
    found["HW"] = min(config["HW"], spatial)
    found["CIN"] = small(config["CIN"], method.channels)
    found["COUT"] = small(config["COUT"], method.channels)
    found["SHAPE_1D"] = small(config["SHAPE_1D"], method.features // 4)
    return found


def design_edge(
    head: Sequence[str], tail: str, config: Mapping[str, Any], method: Method
) -> Design:
    """Plan the models of a question, as small as can be built.

    Where the configuration gives the shape of the input, all sizes stay as they are.

    Raises:
        OperatorError: The block cannot be built in any size up to that of the configuration.
    """
    ops = (*head, tail)
    if config.get(INPUT_SHAPE):
        return _design(plan_chain(ops, config), method)
    largest = int(config["HW"])
    tried = sorted({min(size, largest) for size in (method.spatial, 6, 8, 12, 16, 24, largest)})
    plans: list[ChainPlan] = []
    failure: OperatorError | None = None
    for spatial in tried:
        try:
            plans.append(_small_plan(ops, config, method, spatial))
        except OperatorError as exc:
            failure = exc
            continue
        if _has_extent(plans[-1]):
            return _design(plans[-1], method)
    if not plans:
        assert failure is not None
        raise failure
    return _design(plans[0], method)


def _small_plan(
    ops: Sequence[str], config: Mapping[str, Any], method: Method, spatial: int
) -> ChainPlan:
    sizes = small_config(config, method, spatial)
    plan = plan_chain(ops, sizes)
    if len(plan.block.input_shape) > 1:
        return plan
    # channels do not stand beside a width there
    wide = method.features + config["COUT"] % method.channels
    return plan_chain(ops, {**sizes, "COUT": min(config["COUT"], wide)})


def _has_extent(plan: ChainPlan) -> bool:
    """Whether the tensor at the edge has a width: to a pool of one pixel there is nothing to do."""
    shape = plan.shapes[-1]
    last = layout_of(plan.block.implement) == "channels_last"
    return len(shape) != 3 or min(shape[:2] if last else shape[1:]) > 1


def _design(plan: ChainPlan, method: Method) -> Design:
    *head, tail = plan.block.ops
    block = replace(plan.block, replicas=method.replicas, overrides=({},) * (len(head) + 1))
    shape = plan.shapes[-1]
    front = replace(block, ops=tuple(head), overrides=({},) * len(head))
    alone = replace(block, ops=(tail,), overrides=({},), input_shape=shape)
    models = {HEAD: front, TAIL: alone, BLOCK: block}
    for name, barrier in BARRIERS.items():
        if not barrier.takes(shape):
            continue
        control = _and(front, barrier)
        models[between(name)] = control
        models[between(name, tail=True)] = replace(
            control, ops=(*control.ops, tail), overrides=(*control.overrides, {})
        )
    operators = make_operators(block)
    for name, barrier in BARRIERS.items():
        if barrier.takes(shape):
            models[without_head(name)] = _behind(alone, barrier)
            models[without_head(name, tail)] = _behind(alone, barrier, tail)
    return Design(
        head=tuple(head),
        tail=tail,
        shape=shape,
        models=models,
        elementwise=bool(operators[-1].elementwise),
    )


def _and(front: Chain, barrier: Barrier) -> Chain:
    return replace(
        front, ops=(*front.ops, barrier.op), overrides=(*front.overrides, dict(barrier.keys))
    )


def _behind(like: Chain, barrier: Barrier, *ops: str) -> Chain:
    """A barrier on a graph input, and ops behind it."""
    return replace(like, ops=(barrier.op, *ops), overrides=(dict(barrier.keys), *[{}] * len(ops)))


def reference_design(like: Design) -> dict[str, Chain]:
    """The models that all questions with an equal tensor at the edge share.

    Each barrier alone and with a relu behind; and how much a pool costs behind another one, and
    behind an op that keeps the layout of the graph's input: whether the runtime has layouts.
    """
    found: dict[str, Chain] = {}
    block = like.models[BLOCK]
    alone = replace(block, ops=(REFERENCE,), overrides=({},), input_shape=like.shape)
    names = [name for name, barrier in BARRIERS.items() if barrier.takes(like.shape)]
    for name in names:
        found[without_head(name)] = _behind(alone, BARRIERS[name])
        found[without_head(name, REFERENCE)] = _behind(alone, BARRIERS[name], REFERENCE)
    for own in _of_layout(names, "own"):
        for before in [own, *_of_layout(names, "keeps")[:1]]:
            found[without_head(before, own)] = _and(_behind(alone, BARRIERS[before]), BARRIERS[own])
    return found


def _of_layout(names: Sequence[str], layout: str) -> list[str]:
    return [name for name in names if BARRIERS[name].layout == layout]
