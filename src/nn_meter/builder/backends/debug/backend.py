"""Random latencies. Nothing is run, and nothing here is a measurement."""

from __future__ import annotations

import random
from typing import Any

from nn_meter.builder.backends.base import BaseBackend, BaseParser, BaseProfiler, Environment
from nn_meter.latency import Latency, ProfiledResults

__all__ = ["DebugBackend"]


class _RandomProfiler(BaseProfiler):
    def profile(self, converted_model: str, **kwargs: Any) -> Latency:
        return Latency(round(random.uniform(1, 50), 4), round(random.uniform(0, 1), 4))


class _Parser(BaseParser):
    def __init__(self) -> None:
        self._results = ProfiledResults()

    def parse(self, content: Latency) -> _Parser:
        self._results = ProfiledResults({"latency": content})
        return self

    @property
    def results(self) -> ProfiledResults:
        return self._results


class DebugBackend(BaseBackend):
    """Answers a random latency for every model, of whatever kind."""

    profiler_class = _RandomProfiler
    parser_class = _Parser
    takes = ("tensorflow", "torch", "onnx")

    def describe(self) -> Environment:
        return Environment(runtime="debug", version="0", device="none", dtype="none")
