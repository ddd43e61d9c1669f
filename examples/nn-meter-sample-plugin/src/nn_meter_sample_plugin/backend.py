"""A backend: ONNX's reference evaluator, which runs node by node in numpy and fuses nothing."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from nn_meter.builder.backend_meta.utils import Latency, ProfiledResults
from nn_meter.builder.backends import BaseBackend, BaseParser, BaseProfiler
from nn_meter.errors import ConversionError


class ReferenceProfiler(BaseProfiler):
    """Times one model; ``RUNS`` and ``WARMUPS`` are keys of ``backend_config.yaml``."""

    def __init__(self, runs: int, warmups: int) -> None:
        self._runs, self._warmups = runs, warmups

    def profile(self, converted_model: str, **kwargs: Any) -> npt.NDArray[np.int64]:
        """Return nanoseconds, shape ``(runs,)``."""
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(converted_model)
        rng = np.random.default_rng(0)
        feeds = {
            name: rng.standard_normal(
                [dim.dim_value for dim in tensor.tensor_type.shape.dim], dtype=np.float32
            )
            for name, tensor in zip(evaluator.input_names, evaluator.input_types, strict=True)
        }
        samples_ns = np.empty(self._runs, dtype=np.int64)
        for run in range(-self._warmups, self._runs):
            start = time.perf_counter_ns()
            evaluator.run(None, feeds)
            if run >= 0:
                samples_ns[run] = time.perf_counter_ns() - start
        return samples_ns


class ReferenceParser(BaseParser):
    """Sums up nanoseconds."""

    def __init__(self) -> None:
        self._results = ProfiledResults()

    def parse(self, content: npt.NDArray[np.int64]) -> ReferenceParser:
        ms = content / 1e6
        self._results = ProfiledResults({"latency": Latency(float(ms.mean()), float(ms.std()))})
        return self

    @property
    def results(self) -> ProfiledResults:
        return self._results


class ReferenceBackend(BaseBackend):
    """Runs ONNX models, those of IMPLEMENT onnx and torch, without a runtime."""

    profiler_class = ReferenceProfiler
    parser_class = ReferenceParser
    takes = ("onnx", "torch")

    def update_configs(self) -> None:
        self.profiler_kwargs = {
            "runs": self.configs.get("RUNS", 10),
            "warmups": self.configs.get("WARMUPS", 2),
        }

    def convert_model(self, model_path: str, save_path: str, input_shape: Any = None) -> str:
        if not str(model_path).endswith(".onnx"):
            raise ConversionError(f"{model_path}: onnx_reference takes ONNX models only")
        return str(model_path)
