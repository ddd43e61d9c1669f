"""Asking a runtime test cases by their executed graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester.generate import Generated
from nn_meter.builder.backend_meta.fusion_rule_tester.interface import (
    detect_fusion_rule,
    generate_testcases,
    profile_models,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import plan_chain
from nn_meter.builder.backends.base import BaseBackend
from nn_meter.builder.workspace import Workspace, read_json
from nn_meter.errors import NNMeterError, OperatorError
from nn_meter.fusion_rules.read import RULE_FILE
from nn_meter.fusion_rules.write import portable
from nn_meter.progress import Progress, logged

__all__ = ["Answers", "Asker", "Asks", "begins_with_image"]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What came of test cases.

    Attributes:
        rules: Name -> the rule, as a rule file has it.
        refused: Name -> why it cannot be built.
    """

    rules: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


class Asks(Protocol):
    """What can be asked test cases (``Asker``)."""

    @property
    def operators(self) -> frozenset[str]:
        """The operators that test cases can be made of."""

    @property
    def sizes(self) -> Mapping[str, Any]:
        """The keys of the configuration."""

    def ask(self, names: Sequence[str], sizes: Mapping[str, int] | None = None) -> Answers:
        """Ask test cases."""


class Asker:
    """Asks a runtime.

    Args:
        backend: A backend, connected, that shows what it executes.
        workspace: Where models are made; nothing else should be in it.
        progress: Told how far it is.
        time_limit_s: For building one model, or one operation on it.
    """

    def __init__(
        self,
        backend: BaseBackend,
        workspace: Workspace,
        progress: Progress = logged,
        time_limit_s: float = 300,
    ) -> None:
        self._backend = backend
        keys = workspace.ruletest.model_copy(update={"EVIDENCE": "graph", "DETAIL": False})
        self._workspace = replace(workspace, ruletest=keys)
        self._progress = progress
        self._time_limit_s = time_limit_s

    @property
    def operators(self) -> frozenset[str]:
        """The operators that test cases can be made of."""
        implement = self._workspace.ruletest.IMPLEMENT
        entries = registry.entries("operator")
        return frozenset(e.name for e in entries if e.implement in (None, implement))

    @property
    def sizes(self) -> Mapping[str, Any]:
        """The keys of the configuration."""
        return self._workspace.operator_config()

    def ask(self, names: Sequence[str], sizes: Mapping[str, int] | None = None) -> Answers:
        """Ask test cases in all situations.

        Args:
            names: Names of rules: ``BF_conv_relu``, ``MON``.
            sizes: Keys of the configuration that are others than the workspace's.

        Raises:
            NNMeterError: The backend is gone, a file cannot be written, …
        """
        workspace = self._in_sizes(sizes or {})
        config = workspace.operator_config()
        refused: dict[str, str] = {}
        chains = []
        for name in names:
            if not name.startswith("BF_"):
                continue
            try:
                begins_with_image(name, config)
            except NNMeterError as exc:
                refused[name] = str(exc)
                continue
            chains.append(name.removeprefix("BF_"))
        keys = {
            "BASIC_TESTCASES": chains,
            "OTHER_TESTCASES": [name for name in names if not name.startswith("BF_")],
        }
        if not any(keys.values()):
            return Answers(refused=refused)
        workspace = replace(workspace, ruletest=workspace.ruletest.model_copy(update=keys))
        found = Generated()
        try:
            generated = generate_testcases(
                workspace,
                time_threshold=self._time_limit_s,
                progress=self._progress,
                summary=found,
                with_situations=True,
            )
        except OperatorError:
            if not found.refused:
                raise
            return Answers(refused={**refused, **found.refused})
        profiled = profile_models(
            self._backend,
            generated,
            time_threshold=self._time_limit_s,
            workspace=workspace,
            progress=self._progress,
        )
        detected = detect_fusion_rule(profiled, workspace)
        rules = read_json(workspace.results_dir / RULE_FILE, "fusion rules")
        return Answers(
            rules={name: portable(rules[name]) for name in names if name in detected},
            refused={**refused, **found.refused},
        )

    def _in_sizes(self, sizes: Mapping[str, int]) -> Workspace:
        """A workspace for models of some sizes: each has a folder of its own."""
        if not sizes:
            return self._workspace
        folder = "-".join(f"{key}_{size}" for key, size in sorted(sizes.items()))
        return replace(
            self._workspace,
            path=self._workspace.path / "sizes" / folder,
            ruletest=self._workspace.ruletest.model_copy(update=sizes),
        )


def begins_with_image(name: str, config: Mapping[str, Any]) -> bool:
    """Whether the models of a rule of operators in a row are given an image, and no vector.

    Args:
        name: The rule.
        config: The keys of the configuration.

    Raises:
        OperatorError: They cannot be built; says why. (Of operators of the user's own it is not
            known here: they would have to be loaded.)
    """
    ops = name.split("_")[1:]
    builtin = {entry.name for entry in registry.entries("operator") if entry.origin == "builtin"}
    if not builtin.issuperset(ops):
        return not set(ops) & set(config.get("LAYERS_1D") or ())
    return len(plan_chain(ops, config).block.input_shape) > 1
