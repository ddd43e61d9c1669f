"""Measuring on the devices of a Dask cluster: options, and what they ask for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from nn_meter.builder.backend_meta.fusion_rule_tester.clock.ask import ask_the_clock
from nn_meter.builder.profiling.cluster.settings import Scheduler, check_kind, default_wait_s
from nn_meter.builder.profiling.interface import profile_devices
from nn_meter.builder.profiling.results import TestCases
from nn_meter.builder.profiling.run import ProfileSummary
from nn_meter.builder.workspace import Workspace
from nn_meter.cli import steps
from nn_meter.cli.console import progress_shown
from nn_meter.cli.options import Seconds
from nn_meter.errors import ConfigError

__all__ = ["Cluster", "cluster_options", "profile_on"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where to measure, and on what.

    Attributes:
        scheduler: Of the cluster.
        devices: Kind of device -> its backend; None: the command's own. Empty: one kind, called
            as that backend is.
    """

    scheduler: Scheduler
    devices: Mapping[str, str | None]


def cluster_options(command: F) -> F:
    """Add the options of a command that measures on a cluster; it gets ``cluster``."""

    @functools.wraps(command)
    def with_cluster(
        *args: Any,
        scheduler: str | None,
        device: tuple[str, ...],
        tls_ca_file: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        device_wait: float | None,
        **kwargs: Any,
    ) -> Any:
        if scheduler is None:
            given = {
                "--device": device,
                "--tls-ca-file": tls_ca_file,
                "--tls-cert": tls_cert,
                "--tls-key": tls_key,
                "--device-wait": device_wait,
            }
            for name, value in given.items():
                if value:
                    raise ConfigError(f"{name} is of a cluster; give --scheduler, too")
            return command(*args, cluster=None, **kwargs)
        cluster = Cluster(
            scheduler=Scheduler(
                address=scheduler,
                tls_ca_file=tls_ca_file,
                tls_cert=tls_cert,
                tls_key=tls_key,
                device_wait_s=device_wait if device_wait is not None else default_wait_s(),
            ),
            devices=_devices(device),
        )
        return command(*args, cluster=cluster, **kwargs)

    found: Any = with_cluster
    for option in reversed(_OPTIONS):
        found = option(found)
    return found  # type: ignore[no-any-return]


_OPTIONS = (
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Measure on the devices of a Dask cluster: tcp://host:8786, or tls://….",
    ),
    click.option(
        "--device",
        metavar="KIND[=BACKEND]",
        multiple=True,
        help="Of the cluster: a kind of device, by the name of the resource that its workers "
        "offer, and what runs there; its results lie in results/KIND/. May be given more than "
        "once. Default: the backend's name.",
    ),
    click.option(
        "--device-wait",
        type=Seconds(),
        metavar="SECONDS",
        help="How long a kind of device is waited for while no worker offers it.  [default: 45]",
    ),
    click.option(
        "--tls-ca-file", metavar="FILE", help="TLS: who signs the cluster's certificates."
    ),
    click.option("--tls-cert", metavar="FILE", help="TLS: the certificate of this side."),
    click.option("--tls-key", metavar="FILE", help="TLS: its private key."),
)


def _devices(given: tuple[str, ...]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for text in given:
        kind, equals, backend = text.partition("=")
        check_kind(kind)
        if equals and not backend:
            raise ConfigError(f"--device {text}: names no backend behind the '='")
        if kind in found:
            raise ConfigError(f"--device {kind}: is given twice")
        found[kind] = backend or None
    return found


def profile_on(
    cluster: Cluster, workspace: Workspace, backend: str, testcases: TestCases, **options: Any
) -> dict[str, tuple[str, ProfileSummary]]:
    """Measure test cases on a cluster, with progress shown.

    Args:
        cluster: Where, and on what.
        workspace: Whose test cases they are.
        backend: What runs on kinds of devices that name none.
        testcases: The test cases.
        **options: As ``profile_devices`` has them.

    Returns:
        Kind of device -> its backend, and what was done.
    """
    names = {kind: own or backend for kind, own in cluster.devices.items()} or {backend: backend}
    summaries: dict[str, ProfileSummary] = {}
    with progress_shown() as progress:
        profile_devices(
            {kind: steps.connect(name, workspace) for kind, name in names.items()},
            testcases,
            scheduler=cluster.scheduler,
            workspace=workspace,
            progress=progress,
            summaries=summaries,
            experiment=ask_the_clock,
            **options,
        )
    return {kind: (names[kind], summaries[kind]) for kind in names}
