"""Profiling on several kinds of devices, side by side."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

from nn_meter.builder.backends.base import BaseBackend
from nn_meter.builder.backends.interface import list_backends
from nn_meter.builder.backends.spec import BackendSpec, spec_of
from nn_meter.builder.profiling import results
from nn_meter.builder.profiling.cluster.connection import ClusterConnection, check_one_of_ours
from nn_meter.builder.profiling.cluster.elsewhere import Station
from nn_meter.builder.profiling.cluster.fleet import Fleet, StoppedError
from nn_meter.builder.profiling.cluster.link import ClusterLostError, Link
from nn_meter.builder.profiling.cluster.run import ClusterRun
from nn_meter.builder.profiling.cluster.settings import Scheduler, check_kind
from nn_meter.builder.profiling.cluster.survey import survey
from nn_meter.builder.profiling.request import Bed, Request, model_settings
from nn_meter.builder.profiling.results import ENVIRONMENT_FILE, TestCases
from nn_meter.builder.profiling.run import ProfileSummary
from nn_meter.errors import ConfigError, DeviceError, NNMeterError
from nn_meter.progress import Progress

__all__ = ["profile_kinds"]

log = logging.getLogger(__name__)

_LOOK_S = 0.5


def profile_kinds(
    backends: Mapping[str, BaseBackend],
    testcases: Mapping[str, TestCases],
    summaries: Mapping[str, ProfileSummary],
    scheduler: Scheduler,
    request: Request,
) -> None:
    """Measure test cases on all devices of each kind.

    Args:
        backends: Kind of device -> the backend that runs there.
        testcases: For each kind; filled with what was measured.
        summaries: For each kind; filled with what was done.
        scheduler: Where the devices are to be had.
        request: What is asked.

    Raises:
        ConfigError: A kind cannot be called so.
        BackendError: A backend was made by hand, or cannot do what is asked; the scheduler cannot
            be reached.
        DeviceError: The scheduler was lost, or there is no device of a kind. What was measured is
            kept, and the other kinds are measured to the end.
    """
    specs = {kind: check_one_of_ours(spec_of(backend)) for kind, backend in backends.items()}
    for kind, spec in specs.items():
        _check_name(kind, spec, request)
    with request.workspace.lock(), Link(scheduler) as link:
        turn = threading.Lock()
        kinds = [
            _Kind(
                kind,
                backend,
                specs[kind],
                Fleet(link, kind, scheduler.device_wait_s),
                turn,
                several=len(specs) > 1,
            )
            for kind, backend in backends.items()
        ]
        _side_by_side(kinds, testcases, summaries, request)


def _check_name(kind: str, spec: BackendSpec, request: Request) -> None:
    check_kind(kind)
    if kind != spec.name and kind in list_backends():
        raise ConfigError(
            f"device: {kind!r} is the name of another backend than {spec.name}; choose another"
        )
    taken = request.workspace.results_dir / kind
    if taken.exists() and not taken.is_dir():
        raise ConfigError(f"device: {taken} is a file; choose another name")


class _Kind:
    """A kind of device in one run."""

    def __init__(
        self,
        name: str,
        backend: BaseBackend,
        spec: BackendSpec,
        fleet: Fleet,
        turn: threading.Lock,
        *,
        several: bool,
    ) -> None:
        self.name, self.backend, self.spec = name, backend, spec
        self.fleet, self.turn, self.several = fleet, turn, several

    def carry_out(self, request: Request, testcases: TestCases, summary: ProfileSummary) -> None:
        """Measure the test cases.

        Raises:
            DeviceError: The scheduler, or the last device, was lost.
            NNMeterError: Whatever else ends a run.
        """
        workspace = request.workspace
        station = Station(
            backend=self.spec.name,
            configs=self.spec.configs,
            config_file=str(workspace.backend_file),
        )
        options = model_settings(workspace)
        mark = workspace.results_dir / self.name / ENVIRONMENT_FILE
        try:
            facts = survey(
                self.fleet,
                station,
                earlier=str(results.read_view(mark, "an environment").get("key", "")),
                options=options,
            )
            with ExitStack() as stack:
                connection = ClusterConnection(
                    self.fleet, self.backend, self.spec, station, facts, options
                )
                stack.callback(connection.__exit__)
                asked = replace(
                    request,
                    progress=self._progress(request.progress),
                    experiment=self._in_turn(request.experiment),
                )
                asked.carry_out(connection, testcases, summary, ClusterRun)
        except ClusterLostError as exc:
            raise DeviceError(
                f"{exc}; what was measured is kept, and the same command goes on from there"
            ) from exc

    def _in_turn(self, experiment: Callable[[Bed], None] | None) -> Callable[[Bed], None] | None:
        """Have kinds carry experiments out one after the other: the models are made in one place.

        Two that made the same one at the same time would take it from under each other.
        """
        if experiment is None or not self.several:
            return experiment

        def in_turn(bed: Bed) -> None:
            while not self.turn.acquire(timeout=_LOOK_S):
                if self.fleet.is_given_up:
                    raise StoppedError
            try:
                experiment(bed)
            finally:
                self.turn.release()

        return in_turn

    def _progress(self, told: Progress) -> Progress:
        if not self.several:
            return told

        def progress(stage: str, done: int, total: int, name: str) -> None:
            told(f"{stage} {self.name}", done, total, name)

        return progress


def _side_by_side(
    kinds: list[_Kind],
    testcases: Mapping[str, TestCases],
    summaries: Mapping[str, ProfileSummary],
    request: Request,
) -> None:
    """Carry kinds out, each in a thread of its own if there are several."""
    if len(kinds) == 1:
        (kind,) = kinds
        kind.carry_out(request, testcases[kind.name], summaries[kind.name])
        return
    ended = threading.Condition()
    errors: dict[str, BaseException] = {}
    left = {kind.name for kind in kinds}

    def run(kind: _Kind) -> None:
        try:
            asked = replace(request, latest=kind is kinds[0])
            kind.carry_out(asked, testcases[kind.name], summaries[kind.name])
        except (NNMeterError, StoppedError) as exc:
            if isinstance(exc, NNMeterError):
                log.warning("%s: %s", kind.name, exc)
            errors[kind.name] = exc
        finally:
            with ended:
                left.discard(kind.name)
                ended.notify_all()

    with ThreadPoolExecutor(len(kinds)) as pool:
        running = [pool.submit(run, kind) for kind in kinds]
        try:
            with ended:
                while left:
                    ended.wait(_LOOK_S)
        except BaseException:  # Ctrl-C comes to this thread only
            for kind in kinds:
                kind.fleet.give_up()
            raise
        for future in running:
            future.result()  # a bug of ours is no kind's failure
    results.write_errors(
        request.workspace,
        [
            f"{kind.name}: {model}: {failure.kind}: {failure.reason}"
            for kind in kinds
            for model, failure in summaries[kind.name].failed.items()
        ],
    )
    failed = [exc for exc in errors.values() if isinstance(exc, NNMeterError)]
    if failed:
        told = "; ".join(f"{name}: {exc}" for name, exc in errors.items())
        raise type(failed[0])(told) from failed[0]
