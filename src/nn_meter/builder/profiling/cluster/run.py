"""A run of profiling on the devices of one kind: test cases side by side, each one task."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from queue import Empty, SimpleQueue
from typing import Any

from nn_meter.builder.profiling.cluster.elsewhere import RemoteWorker
from nn_meter.builder.profiling.cluster.measuring import CaseResult
from nn_meter.builder.profiling.measure import Model, failure_of
from nn_meter.builder.profiling.pool import spread
from nn_meter.builder.profiling.run import ProfileRun
from nn_meter.errors import DeviceError, WorkerCrashedError
from nn_meter.progress import Progress

__all__ = ["ClusterRun"]

log = logging.getLogger(__name__)


class ClusterRun(ProfileRun):
    """One call of ``profile_models``, on a ``ClusterConnection``."""

    def _measure_all(self, ready: Mapping[str, Sequence[Model]], progress: Progress) -> None:
        if not ready:
            return
        found: SimpleQueue[tuple[str, CaseResult]] = SimpleQueue()

        def carry_out(worker: RemoteWorker, name: str) -> None:
            found.put((name, self._result(worker, name, jobs[name])))

        def keep(done: int, last: str, _: None) -> None:
            self._keep_all(found, ready)
            progress("profile", done, len(ready), last)

        jobs = {name: self._job(name, models) for name, models in ready.items()}
        progress("profile", 0, len(ready), "")
        try:
            spread(
                {name: name for name in ready},
                **self.connection.workers(len(ready), few=0),
                carry_out=carry_out,
                done=keep,
            )
        finally:
            self._keep_all(found, ready)  # what was measured is kept, whatever ends the rest

    def _job(self, name: str, models: Sequence[Model]) -> dict[str, Any]:
        """What measuring a test case takes; of its samples so far, how many there are."""
        hashes = {model.name: model.hash for model in models}
        samples = self.store.samples(self.campaign, name, hashes)
        return {
            "testcase": name,
            "models": [
                {
                    "name": model.name,
                    "path": str(model.path),
                    "hash": model.hash,
                    "shapes": [list(shape) for shape in model.shapes],
                    "converted": model.converted,
                    "reference": None
                    if self.store.checked(self.environment, model.hash)
                    else model.reference,
                }
                for model in models
            ],
            # one that is taken as it was converted is not needed as it was
            "with_models": any(model.converted is None for model in models),
            "settings": asdict(self._settings),
            "runs": {model: [len(visit) for visit in visits] for model, visits in samples.items()},
            "done": self._visits_done(name, models),
        }

    def _result(self, worker: RemoteWorker, name: str, job: Mapping[str, Any]) -> CaseResult:
        try:
            return CaseResult.from_json(worker.call("measure", self.time_limit_s, **job))
        except (WorkerCrashedError, DeviceError) as exc:  # no runtime's process: what holds it
            return CaseResult(failed=(None, failure_of(exc)))

    def _keep_all(
        self,
        found: SimpleQueue[tuple[str, CaseResult]],
        ready: Mapping[str, Sequence[Model]],
    ) -> None:
        while True:
            try:
                name, result = found.get_nowait()
            except Empty:
                return
            self._keep(name, ready[name], result)

    def _keep(self, name: str, models: Sequence[Model], result: CaseResult) -> None:
        for digest, difference in result.checks.items():
            self.store.add_check(self.environment, digest, difference)
        load = self.store.load(self.campaign) if result.rounds else 0
        for visits in result.rounds:
            self.store.add_round(load, name, visits)
        if result.failed is not None:
            which, failure = result.failed
            for model in models:
                if which in (None, model.name):
                    self._fail(name, model, failure)
        for conditions in result.conditions:
            self.connection.device_log.add(name, conditions)
        self.summary.runtime_s += result.runtime_s
        self._measured(name, models)
