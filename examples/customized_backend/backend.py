"""The smallest backend that measures something: a runner that prints text, and its parser.

Here the runner is ONNX Runtime in this process. Put your own in its place: a command on a phone, a
board's vendor tool, a simulator. What the runner prints is between the profiler and the parser.
"""

import re
import statistics
import time

import numpy as np

from nn_meter.builder.backend_meta.utils import Latency, ProfiledResults
from nn_meter.builder.backends import BaseBackend, BaseParser, BaseProfiler
from nn_meter.errors import BackendError, ConversionError


class MyProfiler(BaseProfiler):
    """Runs a model, and reports in the format of its own."""

    def __init__(self, runs, warmups, threads):
        self.runs, self.warmups, self.threads = runs, warmups, threads

    def profile(self, converted_model, **kwargs):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = onnxruntime.InferenceSession(
            converted_model, options, providers=["CPUExecutionProvider"]
        )
        rng = np.random.default_rng(0)
        feeds = {
            tensor.name: rng.standard_normal(tensor.shape).astype(np.float32)
            for tensor in session.get_inputs()
        }
        for _ in range(self.warmups):
            session.run(None, feeds)
        times_us = []
        for _ in range(self.runs):
            start = time.perf_counter()
            session.run(None, feeds)
            times_us.append((time.perf_counter() - start) * 1e6)
        mean, deviation = statistics.mean(times_us), statistics.pstdev(times_us)
        return f"my-runner: {self.runs} runs\nmean {mean:.3f} us, deviation {deviation:.3f} us\n"


class MyParser(BaseParser):
    """Reads that format."""

    def parse(self, content):
        found = re.search(r"^mean (\S+) us, deviation (\S+) us$", content, re.MULTILINE)
        if found is None:  # never take what cannot be read for a latency of 0
            raise BackendError(f"the runner reported no latency, but: {content!r}")
        mean_us, deviation_us = map(float, found.groups())
        self._results = ProfiledResults({"latency": Latency(mean_us / 1e3, deviation_us / 1e3)})
        return self

    @property
    def results(self):
        return self._results


class MyBackend(BaseBackend):
    """Takes ONNX models as they are: IMPLEMENT onnx or torch."""

    profiler_class = MyProfiler
    parser_class = MyParser
    takes = ("onnx", "torch")

    def update_configs(self):
        self.profiler_kwargs = {
            "runs": self.configs.get("RUNS", 50),
            "warmups": self.configs.get("WARMUPS", 10),
            "threads": self.configs.get("THREADS", 1),
        }

    def convert_model(self, model_path, save_path, input_shape=None):
        if not str(model_path).endswith(".onnx"):
            raise ConversionError(f"{model_path}: my_backend takes ONNX models only")
        return str(model_path)
