"""Finding and connecting a backend, and making a workspace for one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nn_meter import registry
from nn_meter.builder.backends.base import BaseBackend
from nn_meter.builder.backends.spec import BackendSpec
from nn_meter.builder.config import (
    BackendSettings,
    RuletestConfig,
    Settings,
    read_yaml,
    render_template,
    validate,
)
from nn_meter.builder.workspace import Workspace, builder_config
from nn_meter.builder.workspace import create_workspace as _create
from nn_meter.errors import BackendError, ConfigError, RegistrationError

__all__ = [
    "PLATFORMS",
    "Platform",
    "connect_backend",
    "create_workspace",
    "list_backends",
    "platform_of",
    "quickest_implement",
]


@dataclass(frozen=True, kw_only=True)
class Platform:
    """A runtime's family of built-in backends, which share a kind of workspace.

    Attributes:
        name: As in ``nn-meter create --<name>-workspace``.
        backends: The backends of the family; the first is its default.
        settings: ``module:Class`` of the keys of ``backend_config.yaml``.
        implement: IMPLEMENT of a new workspace.
        template: Values that a new ``backend_config.yaml`` has other than the defaults.
    """

    name: str
    backends: tuple[str, ...]
    settings: str
    implement: str
    template: Mapping[str, Any]


def _platform(
    name: str, *backends: str, settings: str, implement: str, **template: Any
) -> Platform:
    return Platform(
        name=name,
        backends=backends,
        settings=f"{__package__}.{settings}",
        implement=implement,
        template=template,
    )


PLATFORMS = {
    platform.name: platform
    for platform in (
        _platform(
            "tflite",
            "tflite_cpu",
            "tflite_gpu",
            settings="tflite.settings:TFLiteSettings",
            implement="tensorflow",
            TARGET="host",
        ),
        _platform(
            "openvino",
            "openvino_cpu",
            "openvino_vpu",
            "openvino_gpu",
            settings="openvino.settings:OpenVINOSettings",
            implement="tensorflow",
        ),
        _platform(
            "onnxruntime",
            "onnxruntime_cpu",
            "onnxruntime_providers",
            settings="onnxruntime.settings:OnnxRuntimeSettings",
            implement="onnx",
        ),
        _platform(
            "ncnn",
            "ncnn_cpu",
            "ncnn_vulkan",
            settings="ncnn.settings:NcnnSettings",
            implement="onnx",
        ),
        _platform("mnn", "mnn_cpu", settings="mnn.settings:MNNSettings", implement="onnx"),
        _platform("iree", "iree_cpu", settings="iree.settings:IREESettings", implement="onnx"),
        _platform(
            "debug", "debug_backend", settings="debug.settings:DebugSettings", implement="onnx"
        ),
    )
}


def platform_of(backend_name: str) -> Platform | None:
    """The platform of a built-in backend; None for one of the user's."""
    return next((p for p in PLATFORMS.values() if backend_name in p.backends), None)


def list_backends() -> list[str]:
    """Names of all backends, built-in ones first."""
    return [entry.name for entry in registry.entries("backend")]


def backend_spec(backend_name: str, workspace: Workspace) -> BackendSpec:
    """Find a backend and check the workspace's ``backend_config.yaml`` for it.

    Raises:
        BackendError: There is no backend of that name.
        ConfigError: A key is missing, misspelt or has an impossible value.
    """
    try:
        entry = registry.find("backend", backend_name)
    except RegistrationError as exc:
        raise BackendError(str(exc)) from exc
    platform = platform_of(backend_name)
    configs, source = workspace.backend_config, str(workspace.backend_file)
    if platform is not None:
        module, _, name = platform.settings.partition(":")
        cls: type[BackendSettings] = getattr(importlib.import_module(module), name)
        configs = validate(cls, configs, source).as_dict()
    else:
        # a user's backend has keys of its own, except for those that measuring reads itself
        ours: dict[str, Any] = {
            key: configs[key] for key in ("PYTHON", "RUNS", "WARMUPS", "ROUNDS") if key in configs
        }
        validate(BackendSettings, ours, source)
        configs = validate(Settings, configs, source).as_dict()
    return BackendSpec(entry=entry, configs=configs)


def connect_backend(backend_name: str, workspace: Workspace | None = None) -> BaseBackend:
    """Connect to a backend with the configuration of a workspace.

    Args:
        backend_name: As ``nn-meter --list-backends`` has it.
        workspace: Default: the one of ``builder_config.init``.

    Raises:
        WorkspaceError: No workspace is in use.
        BackendError: There is no such backend, or it cannot be made.
        ConfigError: ``backend_config.yaml`` does not do for it.
    """
    spec = backend_spec(backend_name, workspace or builder_config.workspace)
    backend = spec.make()
    backend.spec = spec  # type: ignore[attr-defined]
    return backend


def quickest_implement(backend_name: str) -> str:
    """The value of IMPLEMENT whose models are built soonest of those that a backend takes.

    Raises:
        BackendError: There is no such backend.
    """
    try:
        takes = registry.load(registry.find("backend", backend_name)).takes
    except RegistrationError as exc:
        raise BackendError(str(exc)) from exc
    return "onnx" if "onnx" in takes or not takes else str(takes[0])


def create_workspace(
    path: Path | str, *, platform: str = "", backend: str = "", implement: str = ""
) -> Path:
    """Make a workspace with commented configuration files.

    Args:
        path: A folder that does not exist yet, or is empty.
        platform: One of ``PLATFORMS``; or
        backend: a backend's name: its platform's files, or its own default file.
        implement: IMPLEMENT of the workspace; default: the platform's.

    Raises:
        WorkspaceError: There is something at that path already.
        BackendError: There is no such platform or backend.
        ConfigError: The backend's own default file is bad.
    """
    chosen = PLATFORMS.get(platform) if platform else platform_of(backend)
    if platform and chosen is None:
        raise BackendError(f"there is no platform {platform!r}; known: {', '.join(PLATFORMS)}")
    if chosen is None:
        return _create_customized(path, backend, implement or "tensorflow")
    module, _, name = chosen.settings.partition(":")
    cls: type[BackendSettings] = getattr(importlib.import_module(module), name)
    return _create(
        path,
        platform=chosen.name,
        ruletest_config=_ruletest_template(implement or chosen.implement),
        backend_config=render_template(
            cls, f"Where and how test cases are measured: {chosen.name}.", **chosen.template
        ),
    )


def _create_customized(path: Path | str, backend: str, implement: str) -> Path:
    try:
        entry = registry.find("backend", backend)
    except RegistrationError as exc:
        raise BackendError(str(exc)) from exc
    text = f"# Keys of the backend {backend}.\n"
    if entry.default_config_file:
        default = Path(entry.default_config_file)
        read_yaml(default)
        try:
            text = default.read_text(encoding="utf-8")
        except OSError as exc:
            raise ConfigError(f"{default}: cannot be read: {exc}") from exc
    return _create(
        path,
        platform=f"customized:{backend}",
        ruletest_config=_ruletest_template(implement),
        backend_config=text,
    )


def _ruletest_template(implement: str) -> str:
    return render_template(
        RuletestConfig,
        "What is asked: which operators fuse, in which shapes, and how it is decided.",
        IMPLEMENT=implement,
    )
