"""The contract of a test case, as the guide has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, ClassVar

from nn_meter.builder.backend_meta.fusion_rule_tester import build
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.nn_modules.frameworks import layout_of
from nn_meter.errors import DetectionError, OperatorError
from nn_meter.latency import Latency

__all__ = ["BaseTestCase", "TestModels", "model_latency"]

TestModels = dict[str, dict[str, Any]]
"""Model name -> ``{"model", "shapes"}``; "model" is a framework's model, or its file's path."""


class BaseTestCase:
    """A question about one block: into which kernels does the runtime cut it?

    Derive from it, give ``name``, ``cases`` and ``_model_block``, and a ``_model_<op>`` for each op
    in ``cases`` that is no operator's name.

    Args:
        config: All keys of ``ruletest_config.yaml``, those of the user's own included.

    Attributes:
        name: Name of the rule; its models are saved as ``<name>_<model>``.
        cases: The ways in which the block may be cut: case -> the ops whose latencies add up to it.
        true_case: The case that is meant when another rule's ``deps`` ask for True.
        deps: Rules that must have come out so before this one means anything.
        input_shape: Without the batch dimension; None: from HW and CIN.
        latency: Filled by ``load_latency``: of the block, of each op, and of each case.
    """

    name: str = ""
    cases: Mapping[str, Sequence[str]] = {}
    true_case: str = ""
    deps: ClassVar[Mapping[str, Any]] = {}
    input_shape: list[int] | None = None

    def __init__(self, config: Mapping[str, Any], **kwargs: Any) -> None:
        self._kwargs = kwargs
        self.config: dict[str, Any] = dict(config)
        self.latency: dict[str, Latency] = {}
        self.load_config()

    def check_contract(self) -> None:
        """Refuse a class whose attributes are not what they should be.

        Raises:
            OperatorError: Says which, and what it should be.
        """
        who = type(self).__name__
        if not isinstance(self.name, str) or PurePath(self.name).name != self.name or not self.name:
            raise OperatorError(
                f"{who}: name should be text that can stand in a file name, but is {self.name!r}"
            )
        if self.name.startswith("BF_"):
            raise OperatorError(
                f"{who}: name is {self.name!r}, but names that start with BF_ belong to the basic "
                "test cases"
            )
        if not isinstance(self.cases, Mapping) or not self.cases:
            raise OperatorError(f"{who}: cases should be a dict of cases, but is {self.cases!r}")
        for case, ops in self.cases.items():
            if not isinstance(ops, list | tuple) or not all(isinstance(op, str) for op in ops):
                raise OperatorError(f"{who}: {case} should be a list of models, but is {ops!r}")
        if not isinstance(self.deps, Mapping) or not all(isinstance(d, str) for d in self.deps):
            raise OperatorError(f"{who}: deps should be a dict of rules, but is {self.deps!r}")

    def load_config(self) -> None:
        """Load what is used of the configuration: shapes, kernel size, padding, where models go."""
        config = self.config
        self.implement = str(config.get("IMPLEMENT", "tensorflow"))
        if not self.input_shape:
            spatial, channels = [config["HW"], config["HW"]], [config["CIN"]]
            last = layout_of(self.implement) == "channels_last"
            self.input_shape = spatial + channels if last else channels + spatial
        self.kernel_size = config["KERNEL_SIZE"]
        self.cout = config["COUT"]
        self.padding = config["PADDING"]
        self.model_dir = str(Path(config["MODEL_DIR"]) / "models")

    # --- models ----------------------------------------------------------------------------------

    def generate_testcase(self) -> TestModels:
        """Build the block and every op that ``cases`` names.

        Raises:
            OperatorError: A model cannot be built; names which, and why.
        """
        models: TestModels = {"block": self._build("block")}
        for ops in self.cases.values():
            for op in ops:
                if op not in models:
                    models[op] = self._build(op)
        return models

    def save_testcase(self) -> TestModels:
        """Build the models and save them as ``<name>_<model>``; gives their paths and shapes."""
        return {
            op: build.save_model(
                self.implement,
                built["model"],
                built["shapes"],
                Path(self.model_dir) / f"{self.name}_{op}",
            )
            for op, built in self.generate_testcase().items()
        }

    def _build(self, op: str) -> dict[str, Any]:
        build.seed_weights(self.implement, self.name, op)
        method = getattr(self, f"_model_{op}", None)
        try:
            model, shapes = (
                method()
                if method is not None
                else build.operator_model(op, self.input_shape or (), self.config)
            )
            return {"model": model, "shapes": [list(shape) for shape in shapes]}
        except Exception as exc:
            raise OperatorError(
                f"{self.name}: the model {op!r} cannot be built: {type(exc).__name__}: {exc}"
            ) from exc

    def _model_block(self) -> tuple[Any, list[list[int]]]:
        """The block in question: a model of the framework, and the shapes of its inputs."""
        raise NotImplementedError(f"{type(self).__name__} does not define _model_block")

    # --- executed graphs -------------------------------------------------------------------------

    def grouping(self, graphs: Mapping[str, ExecutedGraph]) -> str | None:
        """Tell by executed graphs into which case the runtime cut the block.

        By default: the case whose models execute, all together, nodes of the same types as the
        block. Of several such cases the one that puts the fewest ops together, which is the one
        with the most models; then ``true_case``.

        Args:
            graphs: The executed graph of ``block``, and of each model that ``cases`` names.

        Returns:
            Name of the case; None: it cannot be told.
        """
        block = _types(graphs["block"])
        fitting = [
            case
            for case, ops in self.cases.items()
            if sum((_types(graphs[op]) for op in ops), Counter()) == block
        ]
        most = max((len(self.cases[case]) for case in fitting), default=0)
        finest = [case for case in fitting if len(self.cases[case]) == most]
        if self.true_case in finest:
            return self.true_case
        return finest[0] if len(finest) == 1 else None

    # --- latencies -------------------------------------------------------------------------------

    def load_latency(self, testcase: Mapping[str, Mapping[str, Any]]) -> None:
        """Load latencies from the test case's entry in profiled results, and add up each case."""
        self.latency["block"] = model_latency(testcase, "block")
        for case, ops in self.cases.items():
            for op in ops:
                self.latency[op] = model_latency(testcase, op)
            self.latency[case] = sum((self.latency[op] for op in ops), Latency())

    def test(self) -> Any:
        """Decide by the latencies that were loaded: the case whose sum is nearest to the block."""
        block = self.latency["block"].avg
        order = [self.true_case, *(case for case in self.cases if case != self.true_case)]
        known = [case for case in order if case in self.cases]
        return min(known, key=lambda case: abs(self.latency[case].avg - block))


def _types(graph: ExecutedGraph) -> Counter[str]:
    return Counter(node.type for node in graph.compute())


def model_latency(testcase: Mapping[str, Mapping[str, Any]], model: str) -> Latency:
    """The latency of a model in a test case's entry in profiled results.

    Raises:
        DetectionError: The model is not there, or has none.
    """
    entry = testcase.get(model)
    if entry is None:
        raise DetectionError(f"the model {model!r} is missing; generate the test case again")
    if entry.get("latency") is None:
        raise DetectionError(f"the model {model!r} has no latency")
    return Latency(entry["latency"])
