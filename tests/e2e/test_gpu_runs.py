"""GPUs by the command line: what LiteRT and ncnn fuse there, by counting what the GPU is given.

The driver is SwiftShader where the environment names no other: see ``gpu_driver``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from driving import SMALL, User, edit, results

from gpu_driver import driver_environment

SMALL_ASK = ("--set", "HW=8", "--set", "CIN=4", "--set", "COUT=8")
FAST = {"RUNS": 5, "WARMUPS": 1, "ROUNDS": 2}
NOWHERE = {"VK_DRIVER_FILES": "/no/driver.json", "VK_ICD_FILENAMES": "/no/driver.json"}

# On the GPU, ML Drift puts all of these into one kernel; on the CPU, XNNPACK puts into a
# convolution what it can say as a range of values.
VERDICTS = {
    "BF_conv_relu": ("fused", "fused"),
    "BF_conv_hswish": ("fused", "separate"),
    "BF_conv_swish": ("fused", "separate"),
    "BF_conv_gelu": ("fused", "separate"),
    "BF_add_relu": ("fused", "separate"),
    "BF_conv_conv": ("separate", "separate"),
    "BF_conv_maxpool": ("separate", "separate"),
}
TESTCASES = ",".join(name.removeprefix("BF_") for name in VERDICTS)

UNLUCKY = """\
import os
import signal

from nn_meter.builder.backends.tflite.gpu import TFLiteGPUBackend


class Unlucky(TFLiteGPUBackend):
    \"\"\"A driver that crashes at one model.\"\"\"

    def open_here(self, converted_model, shapes):
        if "maxpool" in converted_model.rpartition("/")[2]:
            os.write(2, b"vkQueueSubmit: device lost\\n")
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().open_here(converted_model, shapes)
"""


@dataclass(frozen=True, kw_only=True)
class OnGPU(User):
    """A user whose environment names the driver."""

    driver: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.driver}


def needs(*modules: str) -> None:
    for module in modules:
        if find_spec(module) is None:
            pytest.skip(f"needs {module}, which is not installed")


@pytest.fixture(scope="module")
def somebody(tmp_path_factory) -> OnGPU:
    """One user for all: models that were built once are there for the next."""
    driver = driver_environment()
    folder = tmp_path_factory.mktemp("gpu")
    return OnGPU(folder=folder, home=folder / "home", driver=driver)


@pytest.fixture(scope="module")
def workspace(somebody) -> Path:
    needs("ai_edge_litert", "tensorflow")
    somebody.succeed("create", "--tflite-workspace", "ws")
    path = somebody.folder / "ws"
    edit(path, **SMALL)
    edit(path, "backend_config.yaml", **FAST)
    return path


@pytest.fixture(scope="module")
def rules(somebody, workspace) -> dict[str, dict[str, Any]]:
    """What both backends find by executed graphs, in one workspace."""
    found = {}
    for backend in ("tflite_gpu", "tflite_cpu"):
        done = somebody.nn_meter(
            *("run", "--backend", backend, "--workspace", "ws", "--testcases", TESTCASES),
            *("--evidence", "graph", "--json"),
        )
        assert done.code == 0, done
        found[backend] = results(workspace, f"{backend}/detected_fusion_rule.json")
    return found


@pytest.mark.parametrize("name", VERDICTS)
def test_the_gpu_fuses_what_it_fuses(rules, name):
    """And the CPU, with the same files, what it does."""
    found = tuple(rules[backend][name]["verdict"] for backend in ("tflite_gpu", "tflite_cpu"))
    assert found == VERDICTS[name]
    assert {rules[backend][name]["evidence"] for backend in rules} == {"graph"}


def test_the_two_are_two_environments(rules):
    gpu, cpu = (rules[backend]["BF_conv_relu"]["environment"] for backend in rules)
    assert (gpu["runtime"], cpu["runtime"]) == ("litert", "litert")
    assert gpu["version"] == cpu["version"]
    assert gpu["device"] != cpu["device"] == "CPU"


def test_where_they_differ_is_shown(somebody, rules, workspace):
    files = [
        workspace / "fusion_rule_test" / "results" / backend / "detected_fusion_rule.json"
        for backend in rules
    ]
    shown = json.loads(somebody.succeed("diff", *files, "--json"))
    text = json.dumps(shown)
    for name, (gpu, cpu) in VERDICTS.items():
        if gpu != cpu:
            assert name in text


def test_a_driver_that_crashes_costs_one_test_case(somebody, workspace, rules):
    package = somebody.folder / "mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "unlucky.py").write_text(UNLUCKY)
    (package / "meta.yaml").write_text(
        f"builtin_name: unlucky_gpu\npackage_location: {package}\nclass_module: unlucky\n"
        "class_name: Unlucky\n"
    )
    somebody.succeed("register", "--backend", package / "meta.yaml")
    done = somebody.nn_meter(
        *("run", "--backend", "unlucky_gpu", "--workspace", "ws"),
        *("--testcases", "conv_maxpool,conv_relu", "--evidence", "formula", "--json"),
    )
    assert done.code == 0, done
    found = results(workspace, "unlucky_gpu/detected_results.json")
    assert found["BF_conv_maxpool"]["verdict"] == "undecided"
    assert "SIGSEGV: vkQueueSubmit: device lost" in found["BF_conv_maxpool"]["reason"]
    assert found["BF_conv_relu"]["evidence"] == "formula"
    profiled = results(workspace, "unlucky_gpu/profiled_results.json")["BF_conv_relu"]
    assert all(float(model["latency"].split()[0]) > 0 for model in profiled.values())


def test_connect(somebody, workspace):
    printed = somebody.succeed("connect", "--backend", "tflite_gpu", "--workspace", "ws")
    assert printed == "(nn-Meter) hello backend !\n"


def test_connect_without_a_device(somebody, workspace):
    user = OnGPU(folder=somebody.folder, home=somebody.home, driver=NOWHERE)
    line = user.fail(7, "connect", "--backend", "tflite_gpu", "--workspace", "ws")
    assert "LiteRT's GPU accelerator finds no device that it can use" in line
    assert "VK_DRIVER_FILES=/no/driver.json: none" in line


def test_ncnn_fuses_there_what_its_files_say(somebody):
    needs("ncnn", "pnnx")
    found = json.loads(
        somebody.succeed(
            *("ask", "dwconv+relu6+hswish", "--backend", "ncnn_vulkan", "--alone"),
            *(*SMALL_ASK, "--json"),
        )
    )
    assert [edge["verdict"] for edge in found["edges"]] == ["fused", "separate"]
    assert found["kernels"] == ["ConvolutionDepthWise[clip]", "HardSwish"]
    assert found["evidence"] == "graph"
    assert found["environment"]["device"] not in ("CPU", "")


def test_ncnn_connects_where_there_is_a_device(somebody):
    needs("ncnn", "pnnx")
    somebody.succeed("create", "--ncnn-workspace", "ws-ncnn")
    connect = ("connect", "--backend", "ncnn_vulkan", "--workspace", "ws-ncnn")
    assert somebody.succeed(*connect) == "(nn-Meter) hello backend !\n"
    user = OnGPU(folder=somebody.folder, home=somebody.home, driver=NOWHERE)
    assert "ncnn finds no Vulkan device" in user.fail(7, *connect)


@pytest.mark.parametrize(
    ("backend", "package", "words"),
    [
        ("tflite_gpu", "ai_edge_litert", "tflite_gpu does not tell what it executes, so the clock"),
        ("ncnn_vulkan", "pnnx", "cannot be counted, so verdicts rest on its files alone"),
    ],
)
def test_without_a_compiler_it_says_what_is_missing(somebody, tmp_path, backend, package, words):
    needs(package)
    driver = {**somebody.driver, "CC": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)}
    user = OnGPU(folder=tmp_path, home=somebody.home, driver=driver)
    done = user.nn_meter("ask", "conv+relu", "--backend", backend, "--alone", *SMALL_ASK)
    assert done.code == 0, done
    (warning,) = [line for line in done.err.splitlines() if "warning" in line]
    assert words in warning
    assert "there is no C compiler (no-such-compiler)" in warning
    assert "apt-get install" in warning
