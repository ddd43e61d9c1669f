"""What tests call in the process where dispatches are counted."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.vulkan.counter import DispatchCounter
from nn_meter.builder.backends.vulkan.devices import vulkan_devices
from nn_meter.errors import ModelRejectedError


def devices(counter: DispatchCounter) -> list[list[Any]]:
    sys.stdout.write("whatever a runtime prints is no answer\n")
    return [[device.name, device.software] for device in vulkan_devices()]


def refuse(counter: DispatchCounter, words: str) -> None:
    raise ModelRejectedError(words)


def fail(counter: DispatchCounter) -> None:
    raise KeyError("a key")


def crash(counter: DispatchCounter) -> None:
    os.write(2, b"the last words\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(counter: DispatchCounter) -> None:
    os._exit(3)


def count_nothing(counter: DispatchCounter) -> None:
    with counter.counting():
        pass


def read_against(counter: DispatchCounter, on_gpu: str, on_cpu: str) -> dict[str, Any]:
    """Read a graph, and compare outputs with those of another file."""
    from nn_meter.builder.backends.tflite import gpu_graph

    opened = gpu_graph.open_session
    gpu_graph.open_session = lambda path, *args, **keys: opened(on_cpu, *args, **keys)
    return gpu_graph.GraphReader(counter).read(Path(on_gpu), []).to_json()
