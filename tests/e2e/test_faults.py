"""A runtime that does its worst costs a test case, and no neighbour's; a disk does not cost that.

The faults are real, in a process that runs ONNX Runtime: faulty_backend.py has them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from driving import SMALL, User, all_json_files, edit, results, rounds, visits

LIMIT_S = 15

HERE = Path(__file__).parent


@pytest.fixture
def faulty(user) -> User:
    """A user who has registered faulty_backend.py and made a workspace for it."""
    package = user.folder / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(HERE / "faulty_backend.py", package)
    meta = user.folder / "meta.yaml"
    meta.write_text(
        f"builtin_name: faulty\npackage_location: {package}\n"
        "class_module: faulty_backend\nclass_name: FaultyBackend\n"
    )
    user.succeed("register", "--backend", meta)
    user.succeed("create", "--customized-workspace", "ws", "--backend", "faulty")
    return user


def ask(user: User, cases: list[str], faults: dict[str, Any], evidence: str, **keys: Any) -> Path:
    """Say what is asked of the workspace, and what happens to whom."""
    place = user.folder / "ws"
    asked = {"BASIC_TESTCASES": cases, "OTHER_TESTCASES": [], "EVIDENCE": evidence}
    edit(place, **SMALL | {"IMPLEMENT": "onnx"} | asked | keys)
    edit(place, "backend_config.yaml", FAULTS=faults, RUNS=10, WARMUPS=1)
    return place


def left_over(user: User) -> list[psutil.Process]:
    """Processes that run on behalf of a user."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("NN_METER_HOME") == str(user.home):
                found.append(process)
        except psutil.Error:  # another's, gone, or a zombie that nobody has waited for yet
            continue
    return found


def failures(place: Path) -> dict[str, str]:
    """What the log of errors says of each test case: one line of one model."""
    path = place / "fusion_rule_test" / "results" / "profile_error.log"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = dict(line.split(": ", 1) for line in lines)
    assert len(found) == len(lines)
    return found


ENDS = {
    "segfault": "crashed: faulty was ended by SIGSEGV",
    "exit": "crashed: faulty ended with exit code 3: the last words",
    "killed": "crashed: faulty was ended by SIGKILL",
    "kill_group": "crashed: faulty was ended by SIGTERM",
    "out_of_memory": "crashed: faulty ended with exit code 1: MemoryError",
    "hang": f"time limit: faulty took longer than its time limit of {LIMIT_S} s",
    "flood_and_crash": "crashed: faulty ended with exit code 4: the [2Jend",
    "threads": "crashed: faulty ended with exit code 1: no more",
    "closes_all": "crashed: faulty ended with exit code 1",
    "system_exit": "crashed: faulty ended with exit code 9",
    "interrupt": "failed: KeyboardInterrupt",
    "unspeakable": "failed: UnspeakableError: (it cannot say what: its str() raises ValueError)",
    "endless": "failed: RuntimeError: words and lines words and lines",
    "nan": "failed: ValueError: cannot convert float NaN to integer",
    "negative": "failed: 1 samples were asked for, but the backend gave",
    "empty": "failed: 1 samples were asked for, but the backend gave",
    "too_many": "failed: 1 samples were asked for, but the backend gave",
    "huge": "failed: 1 samples were asked for, but the backend gave",
    "zero": "failed: 1 samples were asked for, but the backend gave",
    "nothing": "failed: TypeError: 'NoneType' object is not iterable",
}
GOES_ON = ["stray", "flood", "threads_left", "closes_streams", "talks_json", "fork"]
OPS = ["relu", "sigmoid", "hswish", "relu6", "avgpool", "maxpool"]
PAIRS = [f"{first}_{second}" for first in OPS for second in OPS]


def test_what_a_runtime_does_while_it_is_timed_costs_its_test_case_alone(faulty):
    """Each test case has a fault of its own in its block, all in one run."""
    of = dict(zip([*ENDS, *GOES_ON], PAIRS[: len(ENDS) + len(GOES_ON)], strict=True))
    healthy = ["conv_relu", "add_relu"]
    faults = {"time": {f"BF_{pair}_block": fault for fault, pair in of.items()}}
    place = ask(faulty, [*of.values(), *healthy], faults, "formula")

    done = faulty.nn_meter("run", "--workspace", "ws", "--time-limit", LIMIT_S)

    assert done.code == 0, done.err
    found = failures(place)
    expected = {fault: f"block: {words}" for fault, words in ENDS.items()}
    told = {fault: found.pop(f"BF_{of[fault]}", "") for fault in ENDS}
    assert {fault: line[: len(expected[fault])] for fault, line in told.items()} == expected
    assert not found
    rules = results(place, "detected_fusion_rule.json")
    for fault, words in ENDS.items():
        rule = rules[f"BF_{of[fault]}"]
        assert (rule["verdict"], rule["obey"]) == ("undecided", None), fault
        assert words.split(": ", 1)[1] in " ".join(rule["reason"].split()), fault
    well = [*(of[fault] for fault in GOES_ON), *healthy]
    assert {rules[f"BF_{pair}"]["verdict"] for pair in well} <= {"fused", "separate"}
    assert {f"BF_{pair}" for pair in well} == set(rounds(visits(place)))
    assert "\x1b" not in done.err
    assert not left_over(faulty)


STEPS = {
    "convert": ("segfault", "crashed: faulty was ended by SIGSEGV"),
    "open": ("exit", "crashed: faulty ended with exit code 3: the last words"),
    "graph": ("flood_and_crash", "crashed: faulty ended with exit code 4: the [2Jend"),
}


def test_a_model_that_crashes_conversion_loading_or_its_graph_costs_its_test_case(faulty):
    """By what ops a model has, so it crashes in every situation; the neighbours go on."""
    of = {"convert": "sigmoid", "open": "hswish", "graph": "maxpool"}
    types = {"sigmoid": "Sigmoid", "hswish": "HardSwish", "maxpool": "MaxPool"}
    faults = {step: {types[op]: STEPS[step][0]} for step, op in of.items()}
    cases = ["relu_relu", *(f"{op}_relu" for op in of.values())]
    place = ask(faulty, cases, faults, "auto", TIME_BUDGET=0.01)

    done = faulty.nn_meter("run", "--workspace", "ws", "--time-limit", 60)

    assert done.code == 0, done.err
    rules = results(place, "detected_fusion_rule.json")
    assert set(rules) == {f"BF_{case}" for case in cases}
    assert (rules["BF_relu_relu"]["verdict"], rules["BF_relu_relu"]["evidence"]) == (
        "separate",
        "graph",
    )
    assert rules["BF_sigmoid_relu"]["verdict"] == "undecided"
    assert "was ended by SIGSEGV" in rules["BF_sigmoid_relu"]["reason"]
    # it cannot be timed, but what it executes is known; and the other way round
    assert rules["BF_hswish_relu"]["evidence"] == "graph"
    assert rules["BF_maxpool_relu"]["evidence"] != "graph"
    log = place / "fusion_rule_test" / "results" / "profile_error.log"
    assert sorted(log.read_text().splitlines()) == [
        f"BF_hswish_relu: hswish: {STEPS['open'][1]}",
        f"BF_sigmoid_relu: block: {STEPS['convert'][1]}",
        f"BF_sigmoid_relu: sigmoid: {STEPS['convert'][1]}",
    ]
    assert not left_over(faulty)


@pytest.mark.parametrize("fault", ["killed", "hang"])
def test_what_happens_once_while_the_clock_is_asked_costs_no_question(faulty, fault):
    """All that the process had loaded goes with it, and is loaded again."""
    once = faulty.folder / "once"
    place = ask(faulty, ["conv_relu", "relu_relu"], {}, "formula")
    faulty.succeed("run", "--workspace", "ws")
    faults = {"time": {"Relu": fault}}
    edit(place, "backend_config.yaml", FAULTS=faults, ONCE=str(once))

    done = faulty.nn_meter(
        "run", "--workspace", "ws", "--evidence", "latency", "--time-limit", LIMIT_S
    )

    assert done.code == 0, done.err
    assert once.exists()
    rules = results(place, "detected_fusion_rule.json")
    assert set(rules) == {"BF_conv_relu", "BF_relu_relu"}
    for rule in rules.values():  # open at most because the machine was slow
        assert rule["evidence"] == "latency"
        assert rule["verdict"] != "undecided" or not re.search(
            "ended|longer|crash", rule["reason"]
        ), rule["reason"]
    assert not left_over(faulty)


def test_a_model_that_always_hangs_under_the_clock_costs_its_test_case(faulty):
    faults = {"time": {"Sigmoid": "hang"}}
    place = ask(faulty, ["conv_relu", "relu_sigmoid"], faults, "latency")

    done = faulty.nn_meter("run", "--workspace", "ws", "--time-limit", 5)

    assert done.code == 0, done.err
    rules = results(place, "detected_fusion_rule.json")
    assert rules["BF_relu_sigmoid"]["verdict"] == "undecided"
    assert "longer than its time limit of 5 s" in rules["BF_relu_sigmoid"]["reason"]
    assert not re.search("ended|longer|crash", rules["BF_conv_relu"].get("reason", ""))
    assert set(failures(place)) == {"BF_relu_sigmoid"}
    assert not left_over(faulty)


OPERATORS = """
import ctypes, os
from nn_meter.builder.nn_modules.onnx.operators import Relu

class Exits(Relu):
    def get_model(self):
        os._exit(3)

class Segfaults(Relu):
    def get_model(self):
        ctypes.string_at(0)

class Hangs(Relu):
    def get_model(self):
        ctypes.PyDLL(None).sleep(1000)

class Raises(Relu):
    def get_model(self):
        raise SystemExit("no model today")
"""


def test_operators_that_end_or_hang_the_process_that_makes_models_cost_their_test_cases(user):
    package = user.folder / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "script.py").write_text(OPERATORS)
    names = ("exits", "segfaults", "hangs", "raises")
    for name in names:
        (user.folder / "meta.yaml").write_text(
            f"builtin_name: {name}\nimplement: onnx\npackage_location: {package}\n"
            f"class_module: script\nclass_name: {name.capitalize()}\n"
        )
        user.succeed("register", "--operator", "meta.yaml")
    user.succeed("create", "--onnxruntime-workspace", "ws")
    place = user.folder / "ws"
    cases = ["conv_relu", *(f"conv_{name}" for name in names)]
    asked = {"BASIC_TESTCASES": cases, "OTHER_TESTCASES": []}
    edit(place, **SMALL | {"IMPLEMENT": "onnx"} | asked, EVIDENCE="auto")
    edit(place, "backend_config.yaml", RUNS=10, WARMUPS=1)

    done = user.nn_meter("run", "--workspace", "ws", "--time-limit", 5)

    assert done.code == 0, done.err
    rules = results(place, "detected_fusion_rule.json")
    assert {name: rule["verdict"] for name, rule in rules.items()} == {"BF_conv_relu": "fused"}
    for told in (
        "BF_conv_exits left out: exits: building it ended with exit code 3",
        "BF_conv_segfaults left out: segfaults: building it was ended by SIGSEGV",
        "BF_conv_hangs left out: hangs: building it took longer than its time limit of 5 s",
        "BF_conv_raises left out: raises: building it ended with exit code 1: no model today",
    ):
        assert told in done.out
    assert not left_over(user)


# --- disks ---------------------------------------------------------------------------------------


@pytest.fixture
def disk(user) -> Iterator[Path]:
    """A disk of a few megabytes of its own."""
    place = user.folder / "disk"
    place.mkdir()
    mounted = user.run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place)
    if mounted.code:
        pytest.skip(f"no disk can be made here: {mounted.err}")
    yield place
    user.run("umount", "-l", place)


def test_a_full_disk_is_named_and_the_same_command_goes_on(user, disk):
    asked = {"BASIC_TESTCASES": ["conv_relu", "relu_relu"]}
    user.succeed("create", "--onnxruntime-workspace", "disk/ws")
    place = disk / "ws"
    edit(place, **SMALL | asked | {"OTHER_TESTCASES": [], "EVIDENCE": "auto"})
    edit(place, "backend_config.yaml", RUNS=2000, WARMUPS=1)
    ballast = disk / "ballast"
    stopped = []
    for free_kb in (60, 300):  # in one step and in a later one there is no room
        ballast.unlink(missing_ok=True)
        room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        ballast.write_bytes(bytes(max(0, room - free_kb * 1024)))
        before = visits(place)
        done = user.nn_meter("run", "--workspace", "disk/ws")
        if done.code:
            last = done.err.splitlines()[-1]
            assert done.code in (4, 9), done.err
            assert f"{disk}" in last
            assert f"make room on the disk at {disk} (" in last
            assert last.endswith("MB are free), and the same command goes on"), last
            stopped.append(last)
        all_json_files(place)
        assert visits(place)[: len(before)] == before
    ballast.unlink()

    user.succeed("run", "--workspace", "disk/ws")

    assert stopped
    rules = results(place, "detected_fusion_rule.json")
    assert {rule["evidence"] for rule in rules.values()} == {"graph"}
    assert set(rules) == {f"BF_{case}" for case in asked["BASIC_TESTCASES"]}
    assert not failures(place)


def test_a_read_only_disk_is_refused(user, disk):
    user.succeed("create", "--onnxruntime-workspace", "disk/ws")
    edit(disk / "ws", **SMALL, BASIC_TESTCASES=["relu_relu"], OTHER_TESTCASES=[])
    remounted = user.run("mount", "-o", "remount,ro", disk)
    if remounted.code:
        pytest.skip(f"no disk can be made read-only here: {remounted.err}")
    for command in ("run", "ruletest generate"):
        line = user.fail(4, *command.split(), "--workspace", "disk/ws")
        assert f"{disk}/ws/fusion_rule_test" in line
        assert f"make the disk at {disk} (" in line
        assert "writable, or use a workspace elsewhere" in line


# --- damaged files -------------------------------------------------------------------------------


def test_damaged_files_are_moved_aside_and_the_run_goes_on(user):
    user.succeed("create", "--onnxruntime-workspace", "ws")
    place = user.folder / "ws"
    edit(place, **SMALL, BASIC_TESTCASES=["conv_relu", "relu_relu"], OTHER_TESTCASES=[])
    edit(place, "backend_config.yaml", RUNS=10, WARMUPS=1)
    user.succeed("run", "--workspace", "ws")
    rules = results(place, "detected_fusion_rule.json")
    folder = place / "fusion_rule_test"
    damaged = [path for path in folder.rglob("*") if path.suffix == ".json"]
    damaged.append(folder / "results" / "samples.db")
    for number, path in enumerate(damaged):
        content = path.read_bytes()
        path.write_bytes((content[: len(content) // 2], b"", b"\xff\x00{[", b"[]")[number % 4])

    done = user.nn_meter("run", "--workspace", "ws")

    assert done.code == 0, done.err
    assert {
        name: (rule["verdict"], rule["evidence"])
        for name, rule in results(place, "detected_fusion_rule.json").items()
    } == {name: (rule["verdict"], rule["evidence"]) for name, rule in rules.items()}
    assert set(all_json_files(place)) >= {str(p.relative_to(place)) for p in damaged[:-1]}
    aside = sorted(path.name for path in folder.rglob("*.damaged*"))
    assert len(aside) >= 3
    for name in aside:
        assert name in done.err, "it was moved, and not said"
    again = user.succeed("run", "--workspace", "ws")
    assert "2 kept from before" in again
