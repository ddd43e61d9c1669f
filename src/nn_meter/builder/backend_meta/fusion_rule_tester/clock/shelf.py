"""The models of the clock's questions: made and converted once, and found again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from nn_meter.builder.backend_meta.fusion_rule_tester import build
from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import Chain
from nn_meter.builder.nn_modules.frameworks import suffix_of
from nn_meter.builder.nn_modules.info import ModelInfo, read_info
from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.convert import convert_all
from nn_meter.builder.profiling.measure import Model, identity
from nn_meter.builder.profiling.store import Failure
from nn_meter.builder.workspace import Workspace, make_folder
from nn_meter.errors import NNMeterError
from nn_meter.progress import Progress

__all__ = ["Shelf", "find_model"]


class Shelf:
    """The models that were made and converted so far, by the key of their chain.

    Attributes:
        build_s, convert_s: Seconds that each took.
    """

    def __init__(
        self,
        workspace: Workspace,
        connection: Connection,
        *,
        time_limit_s: float,
        progress: Progress,
    ) -> None:
        self._workspace, self._connection = workspace, connection
        self._time_limit_s, self._progress = time_limit_s, progress
        self._models: dict[str, Model | Failure] = {}
        self.build_s = 0.0
        self.convert_s = 0.0

    def fetch(self, chains: Iterable[Chain]) -> None:
        """Make and convert the models that are not there yet."""
        wanted = {
            key: chain for chain in chains if (key := build.chain_key(chain)) not in self._models
        }
        if not wanted:
            return
        start = time.monotonic()
        built = self._build(wanted)
        self.build_s += time.monotonic() - start
        converted = self._convert({model.hash: model for model in built.values()})
        for key, model in built.items():
            self._models[key] = converted[model.hash]

    def put(self, files: Mapping[str, Model]) -> None:
        """Convert models that are there already; they are found by their hash."""
        fresh = {m.hash: m for m in files.values() if m.hash not in self._models}
        self._models |= self._convert(fresh)

    def find(self, key: str) -> Model | Failure | None:
        """A model by the key of its chain, or why there is none; None: nobody asked for it."""
        return self._models.get(key)

    def find_chain(self, chain: Chain) -> Model | Failure | None:
        """The model of a chain."""
        return self.find(build.chain_key(chain))

    def _convert(self, models: Mapping[str, Model]) -> dict[str, Model | Failure]:
        start = time.monotonic()
        found = convert_all(
            self._connection,
            self._workspace,
            models,
            time_limit_s=self._time_limit_s,
            progress=self._progress,
        )
        self.convert_s += time.monotonic() - start
        return dict(found)

    def _build(self, wanted: Mapping[str, Chain]) -> dict[str, Model]:
        make_folder(self._workspace.controls_dir)
        paths = {key: _path(self._workspace, key, chain) for key, chain in wanted.items()}
        tasks: dict[str, build.Task] = {
            key: (
                "build_chain",
                {
                    "chain": chain.to_json(),
                    "stem": str(paths[key].with_suffix("")),
                    "key": key,
                    "outputs": False,
                },
            )
            for key, chain in wanted.items()
            if build.is_current(paths[key], key) is None
        }
        outcomes = build.run_tasks(
            tasks,
            implement=next(iter(wanted.values())).implement,
            time_limit_s=self._time_limit_s,
            done=lambda number, key: self._progress(
                "controls", number, len(tasks), "_".join(wanted[key].ops)
            ),
        )
        found = {}
        for key, path in paths.items():
            outcome = outcomes.get(key)
            info = read_info(path)
            if isinstance(outcome, NNMeterError) or info is None:
                reason = str(outcome or f"{path.name} has gone")
                self._models[key] = Failure(kind="failed", reason=reason)
                continue
            found[key] = _model(path, info)
        return found


def find_model(workspace: Workspace, chain: Chain) -> Model | None:
    """The model of a chain as an earlier run has made it; None: it is not there."""
    key = build.chain_key(chain)
    path = _path(workspace, key, chain)
    info = read_info(path)
    return _model(path, info) if info is not None and info.key == key else None


def _path(workspace: Workspace, key: str, chain: Chain) -> Path:
    return workspace.controls_dir / f"{key[-20:]}{suffix_of(chain.implement)}"


def _model(path: Path, info: ModelInfo) -> Model:
    return Model(
        name=path.name, path=path, hash=identity(info.sha256, info.shapes), shapes=info.shapes
    )
