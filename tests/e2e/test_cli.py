"""The command ``nn-meter``: what it prints, what it refuses, and in which words."""

from __future__ import annotations

import json
import os
import pty
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from driving import (
    NN_METER,
    SMALL,
    User,
    all_json_files,
    edit,
    milliseconds,
    results,
    rounds,
    visits,
)

FRAMEWORKS = ("ai_edge_litert", "keras", "onnx", "onnxruntime", "openvino", "tensorflow", "torch")
COMMANDS = (
    "run",
    "ruletest",
    "ask",
    "import-graph",
    "diff",
    "validate",
    "kernels",
    "map",
    "create",
    "connect",
    "register",
    "unregister",
)


@pytest.fixture
def small(user) -> User:
    """A user with a workspace ``ws`` for ONNX Runtime in which nothing takes long."""
    user.succeed("create", "--onnxruntime-workspace", "ws")
    edit(user.folder / "ws", **SMALL, BASIC_TESTCASES=["conv_relu"], OTHER_TESTCASES=[])
    edit(user.folder / "ws", "backend_config.yaml", RUNS=10, WARMUPS=1)
    return user


def ruletest_file(user: User) -> Path:
    return user.folder / "ws" / "configs" / "ruletest_config.yaml"


# --- help, version, lists ------------------------------------------------------------------------


def test_help(user):
    top = user.succeed("--help")
    assert top == user.succeed()
    helps = user.succeed_each(*([command, "--help"] for command in COMMANDS))
    for command, printed in zip(COMMANDS, helps, strict=True):
        assert f"\n  {command} " in top
        assert printed.startswith(f"Usage: nn-meter {command} ")
    run = helps[COMMANDS.index("run")]
    for option in ("--backend", "--workspace", "--testcases", "--json", "--debug"):
        assert option in run
    steps = ("generate", "profile", "detect")
    for printed in user.succeed_each(*(["ruletest", step, "--help"] for step in steps)):
        assert "--workspace" in printed


def test_version(user):
    assert user.succeed("--version") == f"nn-meter, version {metadata.version('nn-meter')}\n"


def test_lists(user):
    backends = user.succeed("--list-backends").splitlines()
    assert backends == [
        "(nn-Meter) Supported backends: ('*' indicates customized backends)",
        *(
            f"(nn-Meter) [Backend] {name}"
            for name in (
                *("tflite_cpu", "tflite_gpu", "openvino_vpu"),
                *("onnxruntime_cpu", "onnxruntime_providers", "openvino_cpu", "openvino_gpu"),
                *("ncnn_cpu", "ncnn_vulkan", "mnn_cpu", "iree_cpu", "debug_backend"),
            )
        ),
    ]
    operators = user.succeed("--list-operators").splitlines()
    assert operators[0] == "(nn-Meter) Supported operators: ('*' indicates customized operators)"
    assert len(operators) == 1 + 41
    assert user.succeed("--list-testcases").splitlines() == [
        "(nn-Meter) Supported testcases: ('*' indicates customized testcases)",
        *(
            f"(nn-Meter) [Testcase] {name}"
            for name in ("MON", "MIN", "MINRELU", "MONELTWISE", "MINELTWISE")
        ),
    ]


# --- what is imported ----------------------------------------------------------------------------


def imported(user: User, code: str) -> set[str]:
    """Top-level names of the modules that are there after some code ran."""
    report = f"{code}\nimport sys\nprint(*sorted(sys.modules), file=sys.stderr)\n"
    done = user.run(sys.executable, "-c", report)
    assert done.code == 0, done.err
    return {name.partition(".")[0] for name in done.err.split()}


def test_importing_it_loads_no_framework(user):
    modules = imported(user, "import nn_meter")
    assert "nn_meter" in modules
    assert modules.isdisjoint({*FRAMEWORKS, "numpy", "pydantic", "yaml", "click", "rich"})
    modules = imported(
        user,
        "from nn_meter.builder import builder_config, fill_latency\n"
        "from nn_meter.builder import convert_models, profile_models\n"
        "from nn_meter.builder.backends import connect_backend\n"
        "from nn_meter.builder.nn_modules import BaseOperator\n"
        "from nn_meter.builder.backend_meta.utils import Latency\n"
        "from nn_meter.builder.backend_meta.fusion_rule_tester import (\n"
        "    BaseTestCase, detect_fusion_rule, generate_testcases)\n",
    )
    assert modules.isdisjoint(FRAMEWORKS)


def test_help_loads_little_more_than_click(user):
    modules = imported(
        user,
        "from nn_meter.cli.main import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as exc:\n"
        "    assert exc.code == 0\n",
    )
    assert "click" in modules
    heavy = {*FRAMEWORKS, "numpy", "pydantic", "yaml", "rich", "filelock", "sqlite3"}
    assert modules.isdisjoint(heavy)


def test_help_is_quick(user):
    """0.3 s beyond Python itself are promised; a busy machine gets a second."""

    def best_s(*command: object, limit_s: float = 0.0) -> float:
        """The shortest of five times, or the first one that is within the limit."""
        taken: list[float] = []
        while len(taken) < 5 and not (taken and min(taken) < limit_s):
            start = time.monotonic()
            assert user.run(*command).code == 0
            taken.append(time.monotonic() - start)
        return min(taken)

    limit_s = best_s(sys.executable, "-c", "pass") + 1
    assert best_s(sys.executable, "-c", "import nn_meter", limit_s=limit_s) < limit_s
    assert best_s(NN_METER, "--help", limit_s=limit_s) < limit_s


# --- create and connect --------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["tflite", "openvino", "onnxruntime", "debug"])
def test_create(user, platform):
    printed = user.succeed("create", f"--{platform}-workspace", "some/ws/")
    assert printed == (
        f"(nn-Meter) Workspace some/ws/ for {platform} platform has been created. Users could edit "
        "experiment config in some/ws/configs/.\n"
    )
    configs = user.folder / "some" / "ws" / "configs"
    assert sorted(path.name for path in configs.iterdir()) == [
        "backend_config.yaml",
        "ruletest_config.yaml",
    ]
    for path in configs.iterdir():
        assert path.read_text().startswith("# ")
    config = yaml.safe_load((configs / "ruletest_config.yaml").read_text())
    own = {"tflite": "tensorflow", "openvino": "tensorflow"}
    assert config["IMPLEMENT"] == own.get(platform, "onnx")


def test_an_existing_workspace_is_never_overwritten(small):
    before = {path: path.read_bytes() for path in small.folder.rglob("*.yaml")}
    assert before
    for option in ("--onnxruntime-workspace", "--tflite-workspace"):
        line = small.fail(4, "create", option, "ws")
        assert str(small.folder / "ws") in line
        assert "there is a workspace already, and it is never overwritten" in line
    assert {path: path.read_bytes() for path in small.folder.rglob("*.yaml")} == before


def test_create_refuses_what_is_no_place_for_it(user):
    (user.folder / "file").write_text("mine")
    for place in ("file", "file/ws"):
        assert str(user.folder / "file") in user.fail(4, "create", "--tflite-workspace", place)
    (user.folder / "full").mkdir()
    (user.folder / "full" / "mine").touch()
    assert "there is something already" in user.fail(4, "create", "--tflite-workspace", "full")
    assert sorted(path.name for path in user.folder.rglob("*")) == ["file", "full", "mine"]
    (user.folder / "empty").mkdir()
    user.succeed("create", "--tflite-workspace", "empty")


WRONG = [
    (["create"], "give one of --tflite-workspace, --openvino-workspace"),
    (["create", "--tflite-workspace", "a", "--openvino-workspace", "b"], "give one of"),
    (["create", "--tflite-workspace"], "requires an argument"),
    (["create", "--tflite-workspace", "a", "--backend", "b"], "go together"),
    (["create", "--customized-workspace", "a"], "go together"),
    (["connect", "--backend", "tflite_cpu"], "--workspace"),
    (["register"], "give one of --operator, --testcase and --backend"),
    (["unregister", "--operator", "op1"], "2 arguments"),
    (["run", "--time-limit", "0"], "--time-limit"),
    (["run", "--tescases", "conv_relu"], "--testcases"),
    (["rum"], "rum"),
    (["ruletest", "detetc"], "detetc"),
]


def test_a_wrong_command_line_is_refused_in_one_line(user):
    lines = user.fail_each(*((2, *arguments) for arguments, _ in WRONG))
    for (arguments, words), line in zip(WRONG, lines, strict=True):
        assert words in line, arguments
    assert list(user.folder.iterdir()) == []


def test_create_for_an_unknown_backend(user):
    line = user.fail(7, "create", "--customized-workspace", "ws", "--backend", "my_backend")
    assert "there is no backend 'my_backend'" in line
    assert list(user.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("backend", "platform", "words"),
    [
        ("onnxruntime_gpu", "onnxruntime", "did you mean 'onnxruntime_cpu'?"),
        ("openvino_vpu", "openvino", "OpenVINO finds no device NPU here; there is: CPU"),
        ("openvino_gpu", "openvino", "OpenVINO finds no device GPU here; there is: CPU"),
    ],
)
def test_connect_refuses(user, backend, platform, words):
    user.succeed("create", f"--{platform}-workspace", "ws")
    assert words in user.fail(7, "connect", "--backend", backend, "--workspace", "ws")


@pytest.mark.parametrize("backend", ["onnxruntime_cpu", "debug_backend"])
def test_connect(small, backend):
    printed = small.succeed("connect", "--backend", backend, "--workspace", "ws")
    assert printed == "(nn-Meter) hello backend !\n"


def test_connect_without_a_workspace(user):
    line = user.fail(4, "connect", "--backend", "onnxruntime_cpu", "--workspace", "ws")
    assert f"{user.folder / 'ws'}: there is no workspace here" in line
    assert "nn-meter create" in line


def test_where_tflite_runs_is_never_guessed(user):
    user.succeed("create", "--tflite-workspace", "ws")
    file = user.folder / "ws" / "configs" / "backend_config.yaml"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("TARGET")))
    for arguments in (["connect", "--backend", "tflite_cpu"], ["run"]):
        line = user.fail(3, *arguments, "--workspace", "ws")
        assert f"{file}: TARGET must be host" in line
        assert "android" in line
    edit(user.folder / "ws", "backend_config.yaml", TARGET="android")
    for arguments in (["connect", "--backend", "tflite_cpu"], ["run"]):
        line = user.fail(3, *arguments, "--workspace", "ws")
        assert f"{file}: REMOTE_MODEL_DIR" in line
    assert not (user.folder / "ws" / "fusion_rule_test").exists()


def test_a_missing_interpreter_is_named(small):
    edit(small.folder / "ws", "backend_config.yaml", PYTHON="/nowhere/python")
    line = small.fail(7, "connect", "--backend", "onnxruntime_cpu", "--workspace", "ws")
    assert "PYTHON" in line
    assert "/nowhere/python" in line


# --- run -----------------------------------------------------------------------------------------


def test_run_with_defaults_in_an_empty_folder(user):
    """The one command of the README."""
    start = time.monotonic()
    done = user.nn_meter("run", "--json")
    wall_s = time.monotonic() - start

    assert (done.code, done.complaints) == (0, [])
    data = json.loads(done.out)
    assert set(data) == {"backend", "workspace", "wall_s", "verdicts", "more"}
    assert data["backend"] == "onnxruntime_cpu"
    assert Path(data["workspace"]) == user.folder / "nn-meter-workspace"
    assert 0 < data["wall_s"] <= wall_s
    verdicts = data["verdicts"]
    config = yaml.safe_load(
        (user.folder / "nn-meter-workspace/configs/ruletest_config.yaml").read_text()
    )
    assert list(verdicts) == [*(f"BF_{pair}" for pair in config["BASIC_TESTCASES"]), "MON"]
    assert len(verdicts) >= 80
    for rule, verdict in verdicts.items():
        assert verdict["evidence"] == "graph"
        assert type(verdict["kernels"]) is list
        if rule != "MON":
            word = {True: "fused", False: "separate", None: "free"}[verdict["obey"]]
            assert verdict["verdict"] == word
            beside = ("when", "others", "clock", "saves")
            alone = {key: value for key, value in verdict.items() if key not in beside}
            assert verdict["when"]["alone"] == alone
    assert {verdict["verdict"] for verdict in verdicts.values()} >= {"fused", "separate", "free"}
    more = data["more"]
    assert not set(more) & set(verdicts)
    assert more["BF_conv_hardsigmoid"] == "fused"
    rules = results(user.folder / "nn-meter-workspace", "detected_fusion_rule.json")
    assert set(rules) == {*verdicts, *more}
    assert all(rules[rule]["verdict"] == word for rule, word in more.items())
    assert {rules[rule]["evidence"] for rule in more} == {"graph"}
    assert [path.name for path in user.folder.iterdir()] == ["nn-meter-workspace"]
    all_json_files(user.folder)


def test_run_ends_with_a_table(small):
    out = small.succeed("run", "--workspace", "ws")
    version = metadata.version("onnxruntime")
    assert out.startswith(f"onnxruntime {version} on CPU, 1 thread, float32")
    (row,) = [line for line in out.splitlines() if "BF_conv_relu" in line]
    verdict = results(small.folder / "ws", "detected_results.json")["BF_conv_relu"]["verdict"]
    assert [cell.strip() for cell in row.strip("│").split("│")][:4] == [
        *("BF_conv_relu", verdict, "graph", "Conv[activation=Relu]")
    ]
    for name in ("origin_testcases", "profiled_results", "detected_results"):
        assert str(small.folder / f"ws/fusion_rule_test/results/{name}.json") in out
    assert str(small.folder / "ws/fusion_rule_test/results/detected_fusion_rule.json") in out
    last = out.splitlines()[-1]
    assert last.startswith(
        "1 test cases measured, 0 kept from before, executed graphs of 3 models; "
    )
    assert " s, " in last
    assert "\x1b" not in out

    again = small.succeed("run", "--workspace", "ws").splitlines()
    assert again[-1].startswith("0 test cases measured, 1 kept from before, executed graphs of 3 ")
    assert again[-1].endswith(" s, 0.0 s of measured runs in the runtime")
    (row_again,) = [line for line in again if "BF_conv_relu" in line]
    assert row_again.split("│")[:5] == row.split("│")[:5]  # what is saved may be known better


def test_run_asks_what_testcases_names(user):
    printed = json.loads(
        user.nn_meter("run", "--testcases", "BF_dwconv_relu, MON,split_relu", "--json").out
    )
    rules = ["BF_dwconv_relu", "BF_split_relu", "MON"]
    assert list(printed["verdicts"]) == rules
    place = user.folder / "nn-meter-workspace"
    assert list(results(place, "origin_testcases.json")) == rules
    # The configuration is left alone, and other test cases come on top.
    config = yaml.safe_load((place / "configs" / "ruletest_config.yaml").read_text())
    assert len(config["BASIC_TESTCASES"]) >= 79
    printed = json.loads(user.nn_meter("run", "--testcases", "relu_relu", "--json").out)
    assert list(printed["verdicts"]) == ["BF_relu_relu"]
    assert list(results(place, "detected_fusion_rule.json")) == [*rules, "BF_relu_relu"]


def test_fresh_measures_again_and_keeps_what_was_measured(small):
    small.succeed("run", "--workspace", "ws")
    before = visits(small.folder / "ws")
    out = small.succeed("run", "--workspace", "ws", "--fresh")
    assert "1 test cases measured, 0 kept from before" in out
    after = visits(small.folder / "ws")
    assert after[: len(before)] == before
    assert len(after) == 2 * len(before)
    new = {visit[0] for visit in after} - {visit[0] for visit in before}
    profiled = results(small.folder / "ws", "profiled_results.json")["BF_conv_relu"]
    for name, model in profiled.items():
        ns = [
            value
            for number, _, _, _, visited, _, samples in after
            if number in new and visited == name
            for value in memoryview(samples).cast("q")
        ]
        assert milliseconds(model["latency"]) == pytest.approx(sum(ns) / len(ns) / 1e6, abs=1e-6)


def test_results_of_another_environment_are_kept_apart(small):
    small.succeed("run", "--workspace", "ws")
    first = results(small.folder / "ws", "onnxruntime_cpu/profiled_results.json")
    key = results(small.folder / "ws", "onnxruntime_cpu/environment.json")["key"]
    edit(small.folder / "ws", "backend_config.yaml", THREADS=2)
    done = small.nn_meter("run", "--workspace", "ws")

    assert done.code == 0
    (warning,) = done.complaints
    assert "results of another environment (threads: 1 -> 2) are kept in" in warning
    assert results(small.folder / "ws", f"onnxruntime_cpu/{key}/profiled_results.json") == first
    assert len(rounds(visits(small.folder / "ws"))["BF_conv_relu"]) == 20
    rules = results(small.folder / "ws", "detected_fusion_rule.json")
    assert [rule["environment"]["threads"] for rule in rules.values()] == [2]


def test_a_pair_that_cannot_be_built_is_left_out_with_the_reason(small):
    done = small.nn_meter("run", "--workspace", "ws", "--testcases", "conv_fc,conv_relu", "--json")
    assert done.code == 0
    data = json.loads(done.out)
    assert list(data["verdicts"]) == ["BF_conv_relu"]
    assert list(data["refused"]) == ["BF_conv_fc"]
    (warning,) = done.complaints
    assert warning == (
        "(nn-Meter) warning: BF_conv_fc cannot be built and is left out: "
        + data["refused"]["BF_conv_fc"]
    )
    line = small.fail(6, "run", "--workspace", "ws", "--testcases", "conv_fc")
    assert "no test case can be built" in line
    assert "fc takes a 1-D tensor" in line


def test_a_model_that_is_refused_is_named_and_the_rest_goes_on(small):
    edit(small.folder / "ws", BASIC_TESTCASES=["conv_relu", "add_relu"])
    small.succeed("ruletest", "generate", "--workspace", "ws")
    model = small.folder / "ws/fusion_rule_test/models/BF_conv_relu_block.onnx"
    model.write_bytes(b"no model")
    done = small.nn_meter("ruletest", "profile", "--workspace", "ws", "--json")

    assert done.code == 0
    data = json.loads(done.out)
    assert list(data["failed"]) == ["BF_conv_relu: block"]
    reason = data["failed"]["BF_conv_relu: block"]
    assert reason.startswith("ONNX Runtime refuses the model: ")
    log = small.folder / "ws/fusion_rule_test/results/profile_error.log"
    assert log.read_text() == f"BF_conv_relu: block: refused: {reason}\n"
    profiled = results(small.folder / "ws", "profiled_results.json")
    assert all(milliseconds(model["latency"]) > 0 for model in profiled["BF_add_relu"].values())
    assert "latency" not in profiled["BF_conv_relu"]["block"]

    verdicts = json.loads(small.succeed("ruletest", "detect", "--workspace", "ws", "--json"))
    found = verdicts["verdicts"]["BF_conv_relu"]
    assert (found["obey"], found["verdict"], found["evidence"]) == (None, "unsupported", "")
    assert reason in found["reason"]
    assert type(verdicts["verdicts"]["BF_add_relu"]["obey"]) is bool


def test_a_converted_model_is_what_is_profiled(small):
    """In Python: what ``convert_models`` says is taken at its word."""
    printed = small.python(
        "from nn_meter.builder import builder_config, convert_models, profile_models\n"
        "from nn_meter.builder.backends import connect_backend\n"
        "from nn_meter.builder.backend_meta.fusion_rule_tester import generate_testcases\n"
        "from nn_meter.errors import NNMeterError\n"
        "builder_config.init('ws')\n"
        "backend = connect_backend('onnxruntime_cpu')\n"
        "origin = generate_testcases()\n"
        "try:\n"
        "    profile_models(backend, origin, have_converted=True)\n"
        "except NNMeterError as exc:\n"
        "    print(exc)\n"
        "converted = convert_models(backend, origin)\n"
        "converted['BF_conv_relu']['block']['converted_model'] = '/nowhere/block.onnx'\n"
        "profiled = profile_models(backend, converted, have_converted=True)\n"
        "print(profiled['BF_conv_relu']['block']['error']['reason'])\n"
    )
    bare, missing = printed.splitlines()
    assert "no converted_model; run convert_models first" in bare
    assert "/nowhere/block.onnx" in missing


# --- the workspace and its configuration ---------------------------------------------------------


BAD_FILES = [
    ("ruletest_config.yaml", "HW: [", "is no valid YAML"),
    ("backend_config.yaml", "RUNS: [", "is no valid YAML"),
    ("ruletest_config.yaml", "KERNEL_SIZE: 0", "KERNEL_SIZE must be a whole number"),
    ("ruletest_config.yaml", "PADDING: full", "PADDING must be same or valid"),
    ("ruletest_config.yaml", "KERNEL_SIZ: 3", "did you mean KERNEL_SIZE?"),
    ("ruletest_config.yaml", "BASIC_TESTCASES: [conv_]", "'conv_' is no chain"),
    ("ruletest_config.yaml", "BASIC_TESTCASES: [conv_rellu]", "did you mean 'relu'?"),
    ("ruletest_config.yaml", "OTHER_TESTCASES: [MOM]", "did you mean 'MON'?"),
    ("ruletest_config.yaml", "CIN: 5\nBASIC_TESTCASES: [split_relu]", "must be even"),
    ("ruletest_config.yaml", "EVIDENCE: graphs", "EVIDENCE must be auto, graph"),
    ("backend_config.yaml", "THREADS: many", "THREADS must be a whole number"),
    ("backend_config.yaml", "THREAD: 2", "did you mean THREADS?"),
]


def test_a_bad_configuration_is_refused_before_anything_is_done(user):
    names = [f"ws{number}" for number in range(len(BAD_FILES))]
    user.succeed_each(*(["create", "--onnxruntime-workspace", name] for name in names))
    for name, (file, text, _) in zip(names, BAD_FILES, strict=True):
        (user.folder / name / "configs" / file).write_text(text)
    lines = user.fail_each(*((3, "run", "--workspace", name) for name in names))
    for name, (file, _, words), line in zip(names, BAD_FILES, lines, strict=True):
        assert words in line
        assert str(user.folder / name / "configs" / file) in line
        assert not (user.folder / name / "fusion_rule_test").exists()


UNKNOWN = [
    ("conv_rellu", "did you mean 'relu'?"),
    ("cnv_relu", "did you mean 'conv'?"),
    ("MOM", "did you mean 'MON'?"),
    ("conv_relu_", "is no chain"),
    (" , ", "names none"),
]


def test_an_unknown_test_case_leaves_no_workspace_behind(user):
    lines = user.fail_each(*((3, "run", "--testcases", asked) for asked, _ in UNKNOWN))
    for (_, words), line in zip(UNKNOWN, lines, strict=True):
        assert line.startswith("--testcases: ")
        assert words in line
    assert list(user.folder.iterdir()) == []


def test_models_that_the_backend_does_not_take_are_not_even_built(small):
    for implement, backend, takes in (
        ("tensorflow", "onnxruntime_cpu", "onnx or torch"),
        ("onnx", "tflite_cpu", "tensorflow"),
    ):
        edit(small.folder / "ws", IMPLEMENT=implement)
        edit(small.folder / "ws", "backend_config.yaml", TARGET="host")
        line = small.fail(3, "run", "--workspace", "ws", "--backend", backend)
        assert line == (
            f"{ruletest_file(small)}: IMPLEMENT is {implement}, but {backend} takes models of "
            f"{takes}"
        )
    assert not (small.folder / "ws" / "fusion_rule_test").exists()


def test_an_unknown_backend_leaves_no_workspace_behind(user):
    line = user.fail(7, "run", "--backend", "onnxruntime")
    assert "there is no backend 'onnxruntime'; did you mean 'onnxruntime_cpu'?" in line
    assert list(user.folder.iterdir()) == []


def test_steps_in_the_wrong_order(small):
    line = small.fail(9, "ruletest", "profile", "--workspace", "ws")
    assert "origin_testcases.json" in line
    assert "run 'nn-meter ruletest generate' first" in line
    line = small.fail(9, "ruletest", "detect", "--workspace", "ws")
    assert "profiled_results.json" in line
    assert "run 'nn-meter ruletest profile' first" in line
    small.succeed("ruletest", "generate", "--workspace", "ws")
    asked = ["ruletest", "profile", "--workspace", "ws", "--testcases", "add_relu"]
    assert "BF_add_relu was not generated" in small.fail(3, *asked)


def test_detect_takes_a_file_of_ones_own(small):
    latencies = {"conv": 2.0, "relu": 1.0, "block": 2.1}
    case = {
        name: {"model": f"./{name}", "shapes": [[4]], "latency": f"{ms} +- 0.0"}
        for name, ms in latencies.items()
    }
    mine = small.folder / "mine.json"
    mine.write_text(json.dumps({"conv_relu": case}))
    detect = ["ruletest", "detect", "--workspace", "ws", "--results", "mine.json"]
    data = json.loads(small.succeed(*detect, "--json"))
    assert data["backend"] is None
    assert data["verdicts"] == {
        "BF_conv_relu": {"obey": True, "verdict": "fused", "evidence": "formula"}
    }
    assert "latencies filled in by hand" in small.succeed(*detect)
    mine.write_text("{")
    assert str(mine.name) in small.fail(9, *detect)
    case["relu"]["latency"] = "0.5 ms"
    mine.write_text(json.dumps({"conv_relu": case}))
    assert "conv_relu: relu: " in small.fail(9, *detect)
    for model in case.values():
        model.pop("latency")
    mine.write_text(json.dumps({"conv_relu": case}))
    assert "no model has a latency" in small.fail(10, *detect)


@pytest.mark.parametrize(
    ("in_the_way", "code"),
    [
        ("fusion_rule_test", 4),
        ("fusion_rule_test/models", 4),
        ("fusion_rule_test/converted", 4),
        ("fusion_rule_test/results", 4),
        ("fusion_rule_test/results/onnxruntime_cpu", 4),
    ],
)
def test_a_file_in_place_of_a_folder(small, in_the_way, code):
    path = small.folder / "ws" / in_the_way
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    line = small.fail(code, "run", "--workspace", "ws")
    assert str(path) in line
    assert path.read_text() == "mine"
    path.unlink()
    small.succeed("run", "--workspace", "ws")


def test_a_file_in_place_of_the_store_is_moved_aside(small):
    path = small.folder / "ws" / "fusion_rule_test" / "results" / "samples.db"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    done = small.nn_meter("run", "--workspace", "ws")
    assert done.code == 0
    assert "samples.db.damaged" in done.err
    assert path.with_name("samples.db.damaged").read_text() == "mine"


def test_a_workspace_that_cannot_be_written(small):
    plain = []
    if os.geteuid() == 0:  # root may write everywhere, unless that is taken from it
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed")
        plain = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    place = small.folder / "ws"
    before = sorted(place.rglob("*"))
    place.chmod(0o555)
    try:
        for command in ("run", "ruletest generate"):
            done = small.run(*plain, NN_METER, *command.split(), "--workspace", "ws")
            assert done.code == 4
            (line,) = done.complaints
            assert line.startswith(f"nn-meter: error: {place}")
            assert f"cannot be written: Permission denied: make {place}" in line
            assert line.endswith("writable, or use a workspace elsewhere")
    finally:
        place.chmod(0o755)
    assert sorted(place.rglob("*")) == before


def test_a_workspace_can_be_moved(small):
    small.succeed("run", "--workspace", "ws")
    before = visits(small.folder / "ws")
    shutil.move(small.folder / "ws", small.folder / "elsewhere")
    out = small.succeed("run", "--workspace", "elsewhere")
    assert "0 test cases measured, 1 kept from before" in out
    assert visits(small.folder / "elsewhere") == before


def test_graphs_alone_measure_nothing(small):
    done = small.nn_meter("run", "--workspace", "ws", "--evidence", "graph", "--json")
    assert (done.code, done.complaints) == (0, [])
    assert "profile" not in done.err
    assert json.loads(done.out)["verdicts"]["BF_conv_relu"]["verdict"] == "fused"
    assert visits(small.folder / "ws") == []
    out = small.succeed("run", "--workspace", "ws", "--evidence", "graph")
    assert out.splitlines()[-1].startswith("executed graphs of 3 models; ")
    assert "measured" not in out
    assert "ms" not in out.splitlines()[2]  # the head of the table
    step = json.loads(
        small.succeed("ruletest", "profile", "--workspace", "ws", "--evidence", "graph", "--json")
    )
    assert (step["measured"], step["kept"], step["graphs"]) == (0, 0, 3)
    # by latencies, when that is asked for
    data = json.loads(small.succeed("run", "--workspace", "ws", "--evidence", "formula", "--json"))
    assert data["verdicts"]["BF_conv_relu"]["evidence"] == "formula"
    assert "kernels" not in data["verdicts"]["BF_conv_relu"]
    assert len(rounds(visits(small.folder / "ws"))["BF_conv_relu"]) == 10


def test_graphs_of_a_backend_that_cannot_tell(small):
    asked = ["--workspace", "ws", "--backend", "debug_backend", "--evidence", "graph"]
    line = small.fail(7, "run", *asked)
    assert "EVIDENCE is graph, but debug_backend cannot tell what it executes" in line
    assert not (small.folder / "ws" / "fusion_rule_test").exists()
    small.fail(2, "run", "--evidence", "guess")


def test_latencies_still_decide_where_the_graph_cannot_be_told(small):
    data = json.loads(
        small.succeed("run", "--workspace", "ws", "--backend", "debug_backend", "--json")
    )
    assert data["verdicts"]["BF_conv_relu"]["evidence"] == "formula"


# --- terminals and pipes -------------------------------------------------------------------------


def test_progress_is_plain_lines_where_nobody_looks(small):
    done = small.nn_meter("run", "--workspace", "ws", "--json")
    lines = [line.split(" of ")[0] for line in done.err.splitlines()]
    assert "(nn-Meter) controls: 1" in lines
    assert lines[:8] == [
        "(nn-Meter) generate: 1",
        "(nn-Meter) generate: 8",
        "(nn-Meter) convert: 1",
        "(nn-Meter) convert: 8",
        "(nn-Meter) graph: 1",
        "(nn-Meter) graph: 8",
        "(nn-Meter) profile: 0",
        "(nn-Meter) profile: 1",
    ]
    assert json.loads(done.out)["verdicts"]


def test_progress_is_a_bar_on_a_terminal(small):
    terminal, end = pty.openpty()
    environment = {**small.environment, "TERM": "xterm", "COLUMNS": "100"}
    process = small.start("run", "--workspace", "ws", "--json", stderr=end, env=environment)
    os.close(end)
    shown = b""
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not block:
            break
        shown += block
    os.close(terminal)
    assert process.stdout is not None
    out = process.stdout.read()
    assert process.wait(timeout=60) == 0
    process.stdout.close()
    text = shown.decode()
    assert "\x1b[" in text
    assert "━" in text
    assert "8/8" in text
    assert "(nn-Meter) profile" not in text
    assert list(json.loads(out)["verdicts"]) == ["BF_conv_relu"]


def test_a_reader_that_goes_away(small):
    small.succeed("run", "--workspace", "ws")
    head = small.run("sh", "-c", f"'{NN_METER}' run --workspace ws | head -1")
    assert len(head.out.splitlines()) == 1
    assert (head.code, head.complaints) == (0, [])


@pytest.mark.parametrize("arguments", [["--list-operators"], ["run", "--workspace", "ws"]])
def test_nobody_reads(small, arguments):
    read, write = os.pipe()
    os.close(read)
    process = small.start(*arguments, stdout=write)
    os.close(write)
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert all(line.startswith("(nn-Meter) ") for line in err.splitlines()), err


# --- --debug -------------------------------------------------------------------------------------


def test_debug_shows_the_traceback(user):
    arguments = ["connect", "--backend", "onnxruntime_cpu", "--workspace", "ws"]
    line = user.fail(4, *arguments)
    done = user.nn_meter(*arguments, "--debug")
    assert done.code == 4
    assert done.err.startswith("Traceback (most recent call last):\n")
    assert done.err.endswith(f"\nnn-meter: error: {line}\n")
    assert "WorkspaceError" in done.err
