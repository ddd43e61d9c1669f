"""Calling a function in a process of its own, below the layer that counts dispatches.

A process's Vulkan loader reads once which layers to load, and what is timed should have none in
between. So counting has a process of its own; when the GPU's driver crashes there, that is all.

Worker processes of other virtual environments import this module: the standard library only.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from nn_meter import errors
from nn_meter.builder.backends.vulkan.counter import (
    DispatchCounter,
    built_layer,
    layer_environment,
)
from nn_meter.errors import BackendError, NNMeterError, WorkerCrashedError

__all__ = ["call_watched", "decoded", "encoded", "serve"]

# As for worker processes: this package by its place, and nothing from the folder the user is in.
_CHILD = """\
import importlib.util, sys
sys.path = [place for place in sys.path if place]
root, library, target = sys.argv[1:4]
spec = importlib.util.spec_from_file_location(
    "nn_meter", root + "/__init__.py", submodule_search_locations=[root])
package = importlib.util.module_from_spec(spec)
sys.modules["nn_meter"] = package
spec.loader.exec_module(package)
from nn_meter.builder.backends.vulkan.watched import serve
serve(library, target)
"""


def call_watched(target: str, **arguments: Any) -> Any:
    """Call a function in a process of its own, where dispatches can be counted.

    Args:
        target: ``module:function``; it is given a ``DispatchCounter`` first.
        **arguments: JSON-able arguments.

    Returns:
        What it returns, as plain JSON values.

    Raises:
        GraphUnavailableError: The layer cannot be built.
        WorkerCrashedError: The process ended before it answered; its last words are kept.
        NNMeterError: What the function raised, as the same class.
    """
    library = built_layer()
    root = str(Path(errors.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, root, str(library), target],
        input=json.dumps(arguments).encode(),
        capture_output=True,
        env=layer_environment(library, os.environ),
        check=False,
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = None
    if done.returncode or not isinstance(answer, dict):
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise WorkerCrashedError(
            f"the process that counts what the GPU runs {_how(done.returncode)}"
            + (f": {words[-1]}" if words else "")
        )
    if "error" in answer:
        raise decoded(answer["error"])
    return answer["ok"]


def _how(code: int) -> str:
    names = {int(number): number.name for number in signal.Signals}
    return (
        f"was ended by {names.get(-code, f'signal {-code}')}"
        if code < 0
        else f"ended with exit code {code}"
    )


def serve(library: str, target: str) -> None:
    """The child's end: read arguments, call, write the answer, and leave at once."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a runtime prints
    module, _, name = target.partition(":")
    try:
        arguments = json.loads(sys.stdin.buffer.read())
        counter = DispatchCounter(Path(library))
        answer = {"ok": getattr(importlib.import_module(module), name)(counter, **arguments)}
    except Exception as exc:  # noqa: BLE001 - all that goes wrong here is the parent's to judge
        answer = {"error": encoded(exc)}
    json.dump(answer, answers)
    answers.flush()
    # A GPU's driver may crash when an interpreter takes its modules down one by one.
    os._exit(0)


def encoded(exc: Exception) -> dict[str, str]:
    """An error as plain values: the name of its class if it is one of ours."""
    if isinstance(exc, NNMeterError):
        kind = next(cls for cls in type(exc).__mro__ if cls.__module__ == errors.__name__)
        return {"type": kind.__name__, "message": str(exc)}
    return {"type": "", "message": f"{type(exc).__name__}: {exc}"}


def decoded(data: dict[str, str]) -> NNMeterError:
    """The error that ``encoded`` made plain values of."""
    kind = getattr(errors, data["type"], None) if data["type"] else None
    if isinstance(kind, type) and issubclass(kind, NNMeterError):
        return kind(data["message"])
    return BackendError(data["message"])
