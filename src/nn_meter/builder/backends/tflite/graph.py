"""What LiteRT executes on the CPU: the ops that its profiler sees in one run of the model.

XNNPACK reports the operators that it runs, not those of the file, so what it merged shows as fewer
of them: an activation in a convolution, a padding in front of one, the second of two activations.
Ops that it does not take are run, and reported, by LiteRT's own kernels. Neither tells which
tensors an op reads and writes, nor which ops of the file it covers.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import nn_meter
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode, Kind
from nn_meter.builder.backends.tflite import capi
from nn_meter.errors import GraphUnavailableError

__all__ = ["TESTED", "executed_graph", "graph_of"]

log = logging.getLogger(__name__)

TESTED = ("2.3.0",)
"""Versions of ai-edge-litert that this was tested with."""

# By their names without the data types. A reshape is done in place between two ops, and copies
# where the model's own inputs or outputs are concerned; the profile does not say which it was.
# "Copy" is not among them: it is how XNNPACK runs a concatenation and a split.
_MOVES = {
    capi.DELEGATE_OP: {
        "Convert",
        "Fuse Dims",
        "Pack LH",
        "Split Dims",
        "Static Expand Dims",
        "Static Reshape",
        "Transpose",
    },
    capi.BUILTIN_OP: {
        "DEQUANTIZE",
        "EXPAND_DIMS",
        "QUANTIZE",
        "RESHAPE",
        "SQUEEZE",
        "TRANSPOSE",
    },
}
_DELEGATE = "TfLiteXNNPackDelegate"  # as an op of the model, in LiteRT's words

_TIME_LIMIT_S = 60.0
_CHILD = """\
import sys
root, library = sys.argv[1:3]
sys.path.append(root)  # last: the rest comes from the interpreter's own packages
from pathlib import Path
from nn_meter.builder.backends.tflite import capi
try:
    capi.calibrate(capi.Library(Path(library)))
except capi.CApiError as exc:
    sys.exit(f"{exc}")
"""


def executed_graph(
    model: Path, inputs: Mapping[int, capi.Input], *, threads: int, version: str
) -> ExecutedGraph:
    """Run a model once under LiteRT's profiler and read what ran.

    Args:
        model: A ``.tflite`` file that LiteRT's interpreter takes.
        inputs: What runs, by the indices of the tensors in the file.
        threads: Threads that it may use.
        version: The version of ai-edge-litert.

    Raises:
        GraphUnavailableError: This version's profiler cannot be read, or not for this model.
    """
    library = _library(version)
    if isinstance(library, str):
        raise GraphUnavailableError(library)
    try:
        events = capi.profile(library, model, inputs, threads)
    except capi.CApiError as exc:
        raise GraphUnavailableError(
            f"LiteRT {version} takes the model, but cannot tell what it executes of it: {exc}"
        ) from exc
    return graph_of(events)


def graph_of(events: list[capi.Event]) -> ExecutedGraph:
    """Make a graph of the events of one run.

    Raises:
        GraphUnavailableError: A delegate ran, and did not report its operators.
    """
    told = any(event.type == capi.DELEGATE_OP for event in events)
    seen: Counter[str] = Counter()
    nodes = []
    for event in events:
        if event.type not in (capi.BUILTIN_OP, capi.DELEGATE_OP):
            continue
        if event.type == capi.BUILTIN_OP and event.tag == _DELEGATE:
            if told:
                continue  # the sum of operators that are there one by one
            raise GraphUnavailableError(
                "LiteRT's profiler shows that XNNPACK ran, but not what: this build of it does not "
                f"report its operators; tested: ai-edge-litert {', '.join(TESTED)}"
            )
        seen[event.tag] += 1
        nodes.append(
            ExecutedNode(name=f"{event.tag} #{seen[event.tag]}", type=event.tag, kind=_kind(event))
        )
    return ExecutedGraph(nodes=tuple(nodes))


def _kind(event: capi.Event) -> Kind:
    operator, _, _ = event.tag.partition(" (")
    return "move" if operator in _MOVES[event.type] else "compute"


@cache
def _library(version: str) -> capi.Library | str:
    """The library when its profiler can be read, else why not. Found out once in a process."""
    try:
        path = capi.find_library()
        if version not in TESTED:
            _calibrate_in_child(path)
        library = capi.Library(path)
        capi.calibrate(library)
    except capi.CApiError as exc:
        return (
            f"ai-edge-litert {version} cannot tell what it executes, as far as nn-Meter can read "
            f"it: {exc}; tested: {', '.join(TESTED)}"
        )
    if version not in TESTED:
        log.warning(
            "ai-edge-litert %s was never tried for what it executes; its profiler passes all "
            "checks. Tested: %s",
            version,
            ", ".join(TESTED),
        )
    return library


def _calibrate_in_child(library: Path) -> None:
    """Try a library of an unknown version where it can crash.

    Raises:
        CApiError: It did, or did not pass.
    """
    root = Path(nn_meter.__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD, str(root), str(library)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIME_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise capi.CApiError(f"its profiler cannot be tried: {exc}") from exc
    if done.returncode < 0:
        raise capi.CApiError(f"its profiler crashed when it was tried (signal {-done.returncode})")
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise capi.CApiError(words[-1] if words else "its profiler failed when it was tried")
