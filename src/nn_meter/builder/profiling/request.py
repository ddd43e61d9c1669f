"""One request to profile, once a backend is there: what it takes, and how it is carried out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from nn_meter.builder.profiling import results
from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.device_log import DEVICE_LOG, DeviceLog
from nn_meter.builder.profiling.results import TestCases
from nn_meter.builder.profiling.run import ProfileRun, ProfileSummary
from nn_meter.builder.profiling.store import Store
from nn_meter.builder.workspace import Workspace
from nn_meter.errors import BackendError
from nn_meter.progress import Progress

__all__ = ["Bed", "Request", "check_needs_no_graph", "model_settings"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Bed:
    """What an experiment is carried out on: a backend that opens sessions, and where samples go.

    ``graphs``: the runtime was asked what it executes, and told.
    """

    workspace: Workspace
    connection: Connection
    store: Store
    environment: int
    campaign: int
    testcases: TestCases
    time_limit_s: float
    progress: Progress
    summary: ProfileSummary
    graphs: bool
    fresh: bool


@dataclass(frozen=True, kw_only=True)
class Request:
    """What ``profile_models`` was asked, but for the backend and the test cases.

    Attributes:
        metrics, save_name, have_converted, broken_point_mode, fresh, retry_failed, progress,
            experiment: As there.
        latest: Whether the results are those of the latest run, too, and not of a backend alone.
    """

    workspace: Workspace
    metrics: tuple[str, ...]
    save_name: str
    have_converted: bool
    broken_point_mode: bool
    time_limit_s: float
    fresh: bool
    retry_failed: bool
    progress: Progress
    experiment: Callable[[Bed], None] | None
    latest: bool = True

    def carry_out(
        self,
        connection: Connection,
        testcases: TestCases,
        summary: ProfileSummary,
        run_class: type[ProfileRun] = ProfileRun,
    ) -> None:
        """Measure test cases on a backend; the caller holds the workspace.

        Args:
            connection: The backend.
            testcases: Filled with what was measured.
            summary: Filled with what was done.
            run_class: What measures.

        Raises:
            BackendError: The backend cannot do what is asked.
        """
        workspace = self.workspace
        evidence = workspace.ruletest.EVIDENCE
        if connection.sessions and set(self.metrics) != {"latency"}:
            raise BackendError(
                f"metrics: {connection.name} measures latency, and nothing else; found "
                f"{', '.join(self.metrics)}"
            )
        if not connection.shows_graph:
            check_needs_no_graph(workspace, connection.name)
        if evidence == "latency" and not (connection.sessions or connection.averages):
            raise BackendError(
                f"{workspace.ruletest_file}: EVIDENCE is latency, but {connection.name} has a "
                "profile_model_file of its own, so that converted models cannot be timed in turn; "
                "choose formula"
            )
        summary.environment = str(connection.environment)
        connection.device_log = DeviceLog(workspace.results_dir / DEVICE_LOG, connection.name)
        with closing(Store(workspace.store_file)) as store:
            number = store.environment(connection.name, connection.environment)
            run = run_class(
                workspace=workspace,
                connection=connection,
                store=store,
                environment=number,
                campaign=store.campaign(number),
                testcases=testcases,
                metrics=self.metrics,
                time_limit_s=self.time_limit_s,
                save_name=self.save_name,
                summary=summary,
                timed=evidence != "graph",
                asked_for_graphs=evidence in ("auto", "graph") and connection.shows_graph,
                latest=self.latest,
            )
            if self.fresh:
                store.retire(run.campaign, testcases)
            if self.retry_failed:
                store.forget_failures(run.campaign)
                store.forget_graph_failures(number)
            run.profile(
                self.have_converted, self.broken_point_mode, self.progress, fresh=self.fresh
            )
            # Each visit of a backend with profile() alone may take seconds: only if asked for.
            wanted = evidence == "latency" or (evidence == "auto" and connection.sessions)
            if self.experiment is not None and wanted:
                self.experiment(
                    Bed(
                        workspace=workspace,
                        connection=connection,
                        store=store,
                        environment=number,
                        campaign=run.campaign,
                        testcases=testcases,
                        time_limit_s=self.time_limit_s,
                        progress=self.progress,
                        summary=summary,
                        graphs=run.asked_for_graphs and summary.graphs > 0,
                        fresh=self.fresh,
                    )
                )


def check_needs_no_graph(workspace: Workspace, backend: str) -> None:
    """Refuse ``EVIDENCE: graph`` on a backend that does not show graphs.

    Raises:
        BackendError: That is what the workspace asks for.
    """
    if workspace.ruletest.EVIDENCE == "graph":
        raise BackendError(
            f"{workspace.ruletest_file}: EVIDENCE is graph, but {backend} cannot tell what it "
            "executes; choose auto, or a backend that can"
        )


def model_settings(workspace: Workspace) -> dict[str, Any]:
    """What of the configuration belongs to the environment of a result: the models' shapes.

    Those that the models were generated with, should the configuration have changed since.
    """
    now = workspace.ruletest.model_settings()
    made = results.read_view(workspace.settings_file, "what models were generated with")
    if made and made != now:
        differ = [
            f"{key} {made.get(key)}, not {now[key]}" for key in now if made.get(key) != now[key]
        ]
        log.warning(
            "%s has changed since the models were generated: they have %s; "
            "generate them again to ask for what it says now",
            workspace.ruletest_file,
            ", ".join(differ),
        )
        return {"models": made}
    return {"models": now}
