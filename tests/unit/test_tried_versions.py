"""A runtime whose version nobody has tried: a warning, once, and its name in what was found."""

from __future__ import annotations

import logging

import pytest

from nn_meter.builder.backend_meta.fusion_rule_tester import detect_fusion_rule
from nn_meter.builder.backends.base import Environment
from nn_meter.builder.backends.onnxruntime.backend import OnnxRuntimeCPUBackend
from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.interface import profile_models
from nn_meter.builder.workspace import read_json


def backend(version: str, runtime: str = "onnxruntime", tried=("onnxruntime 1.31", "other 2")):
    class Versioned(OnnxRuntimeCPUBackend):
        def describe(self) -> Environment:
            return Environment(runtime=runtime, version=version, host="here")

    Versioned.tried = tried
    return Versioned({"RUNS": 1, "WARMUPS": 0})


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("version", ["1.31", "1.31.0", "1.31.1", "1.31-5-gabc", "1.31.1+cpu"])
def test_a_version_that_was_tried(caplog, version):
    with Connection(backend(version)):
        assert warnings(caplog) == []


@pytest.mark.parametrize("version", ["1.32.0", "1.310", "1.3", "11.31.0", "1.31rc1", "2", "?"])
def test_a_version_that_was_not(caplog, version):
    with Connection(backend(version)):
        assert warnings(caplog) == [
            f"nn-Meter was never tried with onnxruntime {version}, only with onnxruntime 1.31: "
            "check by hand what it finds"
        ]


def test_a_class_that_describes_another_runtime_or_says_nothing(caplog):
    for made in (backend("9", runtime="mine"), backend("9", tried=())):
        with Connection(made):
            assert warnings(caplog) == []


def test_a_run_warns_once_and_results_have_the_version(generated, caplog):
    ws, origin = generated
    with caplog.at_level(logging.WARNING):
        found = profile_models(backend("1.99.0"), origin)
        detect_fusion_rule(found)
    assert len(warnings(caplog)) == 1
    rules = read_json(ws.results_dir / "detected_fusion_rule.json", "rules")
    assert {rule["environment"]["version"] for rule in rules.values()} == {"1.99.0"}
