"""From rules to kernels: which ops of a real model a runtime puts together.

In the order in which a value passes: ``readers`` (model files as graphs), ``graph`` (what they
become), ``recognition`` (the project's operators in a graph, whatever way a framework writes them,
by the patterns in ``patterns``), ``rule_splitter`` (operators put together by rules), ``detector``
(all of it in one call), ``check`` (held against what a runtime executed).
"""

from __future__ import annotations

from typing import Any

__all__ = ["Kernel", "KernelDetector", "RuleSplitter"]

_PLACES = {
    "Kernel": "kernels",
    "KernelDetector": "detector",
    "RuleSplitter": "rule_splitter",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
