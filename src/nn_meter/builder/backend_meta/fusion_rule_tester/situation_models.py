"""The model files of situations: where they lie, and the list of them that profiling reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nn_meter.builder.backend_meta.fusion_rule_tester import build
from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import Chain
from nn_meter.builder.backend_meta.fusion_rule_tester.situations import Plan
from nn_meter.builder.nn_modules.info import read_info
from nn_meter.builder.workspace import Workspace, write_json

__all__ = ["SituationModels", "situation_models"]


@dataclass(frozen=True, kw_only=True)
class SituationModels:
    """What is to be built for the situations of many test cases.

    Attributes:
        keys: Rule -> situation -> name of a model -> its key.
        chains: Key -> the file's path and what to build.
    """

    keys: Mapping[str, Mapping[str, Mapping[str, str]]]
    chains: Mapping[str, tuple[Path, Chain]]

    def files(self) -> Iterator[tuple[str, Path, Chain]]:
        """Each different model: its key, its path, what to build."""
        for key, (path, chain) in self.chains.items():
            yield key, path, chain

    def write(self, workspace: Workspace, broken: Collection[str]) -> None:
        """Write the list of what was built; a situation of which a model is missing is left out."""
        entries = {}
        for key, (path, _) in self.chains.items():
            info = None if key in broken else read_info(path)
            if info is not None:
                entries[key] = build.entry_of(path, info.shapes)
        found = {
            rule: {
                situation: {name: entries[key] for name, key in models.items()}
                for situation, models in situations.items()
                if all(key in entries for key in models.values())
            }
            for rule, situations in self.keys.items()
        }
        write_json(workspace.situations_file, found)


def situation_models(
    workspace: Workspace, plans: Mapping[str, Plan], suffix: str, timed: Collection[str]
) -> SituationModels:
    """List the models of all situations; one that several need is one file, named by its key.

    Args:
        workspace: Where they go.
        plans: By rule.
        suffix: Of a model's file.
        timed: Keys of the models that test cases have in the guide's dict. The others are never
            run, so their outputs are not worked out, and they have keys of their own.
    """
    chains: dict[str, tuple[Path, Chain]] = {}
    keys: dict[str, dict[str, dict[str, str]]] = {}
    for rule, planned in plans.items():
        for situation, models in planned.situations.items():
            for name, chain in models.items():
                key = build.chain_key(chain)
                key = key if key in timed else f"unrun-{key}"
                path = workspace.situations_dir / f"{key[-20:]}{suffix}"
                chains.setdefault(key, (path, chain))
                keys.setdefault(rule, {}).setdefault(situation, {})[name] = key
    return SituationModels(keys=keys, chains=chains)
