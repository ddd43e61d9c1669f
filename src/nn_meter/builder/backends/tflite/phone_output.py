"""What a visit to a model on a phone comes to: a latency, a graph, or an error that says why."""

from __future__ import annotations

import signal
from collections.abc import Callable

from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.tflite import benchmark_output, recorded
from nn_meter.builder.backends.tflite.benchmark_gpu import graph_of_kernels
from nn_meter.builder.backends.tflite.phone_script import Visited
from nn_meter.errors import (
    BackendError,
    DeviceError,
    GraphUnavailableError,
    ModelRejectedError,
    NNMeterError,
    TimeLimitError,
    WorkerCrashedError,
)

__all__ = ["average_us", "graph", "judged", "shown"]

_NOT_RUN = ("126", "127")  # of a shell that cannot start a program
_SIGNALLED = range(129, 193)  # 128 and the signal
_TAIL = 500


def judged(
    visited: Visited, limit_s: float, cannot_run: Callable[[str], DeviceError]
) -> Visited | NNMeterError:
    """What a visit came to: itself if the tool ended well, else the error that says how it did.

    Args:
        visited: It has an end.
        limit_s: Seconds that it was given.
        cannot_run: Makes the error for a tool that the phone cannot start at all.

    Raises:
        DeviceError: The tool cannot be started: that says nothing about the model.
    """
    words, end = shown(visited.output), visited.end or ""
    if end == "0":
        return visited
    if end == "late":
        return TimeLimitError(
            f"benchmark_model took longer than {limit_s:g} s on the phone and was stopped"
        )
    if end == "missing":
        return BackendError("the model was put on the phone and is not there any more")
    if end in _NOT_RUN:
        raise cannot_run(visited.output)
    if end.isdecimal() and int(end[:4]) in _SIGNALLED:
        number = int(end[:4]) - 128
        names = {int(known): known.name for known in signal.Signals}
        return WorkerCrashedError(
            f"benchmark_model was ended by {names.get(number, f'signal {number}')} on the phone: "
            f"{words}"
        )
    return ModelRejectedError(f"benchmark_model ended with exit code {end[:20]}: {words}")


def average_us(output: str, *, gpu: bool) -> float:
    """The average latency that the tool printed, in µs.

    Args:
        output: What it printed.
        gpu: Whether it was told to run on the GPU: then it must say that it did.

    Raises:
        ModelRejectedError: The GPU does not take the model, or not all of it.
        BackendError: There is no latency, or it is not said that the GPU took the model.
    """
    return _read(output, gpu=gpu).avg_us


def _read(output: str, *, gpu: bool) -> benchmark_output.Benchmark:
    found = benchmark_output.read(output)
    if not gpu:
        return found
    try:
        found.require_delegate("GPU")
    except BackendError as exc:
        if any(one.share in ("part", "none") for one in found.delegations):
            raise ModelRejectedError(str(exc)) from exc
        raise
    return found


def graph(output: str, *, gpu: bool) -> ExecutedGraph:
    """What ran, as far as the tool tells.

    Raises:
        GraphUnavailableError: It does not tell, or not of all.
        BackendError: As ``average_us``.
    """
    if not gpu:
        return recorded.graph_in(output)
    found = _read(output, gpu=True)
    if not found.kernels:
        raise GraphUnavailableError(
            "benchmark_model took the model on the GPU, but lists no kernels that the GPU ran; "
            "few builds of it do. EVIDENCE: latency, with TIME_BUDGET: 60, asks the clock"
        )
    return graph_of_kernels(found.kernels)


def shown(words: str) -> str:
    """The last lines that a phone said, in one line that is fit to print."""
    found = ""
    for line in reversed(words[-8 * _TAIL :].splitlines()):
        text = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(line.split()))
        if found and len(found) + len(text) > _TAIL:
            break
        found = f"{text[-_TAIL:]}; {found}" if found and text else text[-_TAIL:] or found
    return found or "nothing"
