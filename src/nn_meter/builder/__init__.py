"""Building rules: workspaces, models of operators, backends, measuring, deciding.

Who lives here, lowest first: `config` and `workspace`; `nn_modules` (WHAT is tested) and `backends`
(WHERE it runs); `profiling` (HOW it is measured); `backend_meta.fusion_rule_tester` (WHAT FOLLOWS).
This module is a face: what the guide imports from it is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nn_meter.builder.backends.interface import create_workspace
    from nn_meter.builder.profiling.fill import fill_latency
    from nn_meter.builder.profiling.interface import convert_models, profile_models
    from nn_meter.builder.workspace import builder_config

__all__ = [
    "builder_config",
    "convert_models",
    "create_workspace",
    "fill_latency",
    "profile_models",
]

_LAZY = {
    "builder_config": "workspace",
    "convert_models": "profiling.interface",
    "create_workspace": "backends.interface",
    "fill_latency": "profiling.fill",
    "profile_models": "backend_meta.fusion_rule_tester.interface",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
