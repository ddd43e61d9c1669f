"""The guide's flow on a phone: the command line, adb's own client, and a device of the tests' own.

The tool on it really runs the models, with LiteRT; no latency of it is a phone's.
"""

from __future__ import annotations

import json
import signal
import time

import pytest
from driving import edit

from device import Phone

WAIT_S = 180.0


@pytest.fixture
def phone():
    with Phone() as phone:
        yield phone


@pytest.fixture
def workspace(user, phone):
    """A workspace for one pair on the phone; nothing of it was done yet."""
    user.succeed("create", "--tflite-workspace", "ws")
    edit(
        user.folder / "ws",
        "backend_config.yaml",
        TARGET="android",
        REMOTE_MODEL_DIR=f"{phone.folder}/it's my models",
        BENCHMARK_MODEL_PATH=phone.benchmark_model,
        DEVICE_SERIAL=phone.serial,
        **{"RUNS": 20, "WARMUPS": 1, "ROUNDS": 1},
    )
    edit(
        user.folder / "ws",
        BASIC_TESTCASES=["conv_relu"],
        OTHER_TESTCASES=[],
        # the tool counts in µs: what takes less than one, it may find to take none
        **{"HW": 28, "CIN": 16, "COUT": 16, "EVIDENCE": "formula", "DETAIL": True},
    )
    return user.folder / "ws"


def turns(phone: Phone) -> int:
    return sum("--num_runs" in command for command in phone.device.commands)


def stopped(user, phone: Phone, command, number: int) -> int:
    """Start a command, send it a signal once the phone runs a model; its exit code."""
    before = turns(phone)
    with user.start(*command) as process:
        deadline = time.monotonic() + WAIT_S
        while turns(phone) == before:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=WAIT_S)
    return process.returncode


def test_the_guides_flow(user, phone, workspace):
    printed = user.succeed("connect", "--backend", "tflite_cpu", "--workspace", "ws")
    assert printed == "(nn-Meter) hello backend !\n"
    user.succeed("ruletest", "generate", "--workspace", "ws")
    profile = ("ruletest", "profile", "--backend", "tflite_cpu", "--workspace", "ws")

    results = workspace / "fusion_rule_test/results"
    assert stopped(user, phone, profile, signal.SIGKILL) == -signal.SIGKILL
    assert len(phone.files()) > 1
    assert stopped(user, phone, profile, signal.SIGINT) == 130
    assert phone.files() == {"it's my models"}  # of the killed run, too

    printed = user.succeed(*profile)
    assert "benchmark_model sha256:" in printed
    assert "on CPU of nn-Meter Stand-in, 1 thread, float32: 1 test cases measured" in printed
    assert phone.files() == {"it's my models"}
    case = json.loads((results / "profiled_results.json").read_text())["BF_conv_relu"]
    for model in case.values():
        average, _, deviation = model["latency"].split()
        assert 0 < float(average) < 60_000
        assert float(deviation) >= 0
    told = [json.loads(line) for line in (results / "device_log.jsonl").read_text().splitlines()]
    assert [line["measured"] for line in told][:1] == ["BF_conv_relu"]
    assert told[-1]["after"]["frequencies_khz"] == [1_803_000, 2_802_000]
    user.succeed("ruletest", "detect", "--workspace", "ws")
    rule = json.loads((results / "detected_fusion_rule.json").read_text())["BF_conv_relu"]
    assert (rule["evidence"], rule["environment"]["runtime"]) == ("formula", "benchmark_model")

    before = turns(phone)
    assert "0 test cases measured, 1 kept from before" in user.succeed(*profile)
    assert turns(phone) == before


def test_what_ran_there_decides_and_what_is_missing_is_said(user, phone, workspace):
    found = json.loads(
        user.succeed(
            *(
                "ask",
                "conv+relu",
                "--alone",
                "--backend",
                "tflite_cpu",
                "--workspace",
                "ws",
                "--json",
            ),
            *("--set", "EVIDENCE=graph"),
        )
    )
    assert "fused" in json.dumps(found)
    assert "Convolution (NHWC, F32) IGEMM" in json.dumps(found)
    assert phone.files() == {"it's my models"}

    edit(workspace, "backend_config.yaml", BENCHMARK_MODEL_PATH="/data/local/tmp/none")
    line = user.fail(7, "connect", "--backend", "tflite_cpu", "--workspace", "ws")
    assert "has no file /data/local/tmp/none (BENCHMARK_MODEL_PATH)" in line
    edit(workspace, "backend_config.yaml", REMOTE_MODEL_DIR=None)
    line = user.fail(3, "connect", "--backend", "tflite_cpu", "--workspace", "ws")
    assert "backend_config.yaml: REMOTE_MODEL_DIR must be the absolute path of a folder" in line
