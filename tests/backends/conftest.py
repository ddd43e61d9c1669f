"""What tests that run several runtimes in one process need."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from nn_meter.builder.backends.mnn.native import mnn_converter

# MNN's converter has to be loaded before TensorFlow: the other way round protobuf ends the process.
# (Runs of nn-Meter load each runtime in a process of its own.)
if find_spec("_tools") is not None and "tensorflow" not in sys.modules:
    mnn_converter()
