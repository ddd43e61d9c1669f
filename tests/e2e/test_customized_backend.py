"""A user's backend, line by line as the guide's page on customized backends asks for it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from driving import REPOSITORY, SMALL, User, edit, milliseconds, results, visits

from nn_meter.builder.backend_meta.fusion_rule_tester import generate_testcases
from nn_meter.builder.backend_meta.fusion_rule_tester.interface import profile_models
from nn_meter.builder.backend_meta.utils import Latency, ProfiledResults
from nn_meter.builder.backends import BaseBackend, BaseParser, BaseProfiler
from nn_meter.builder.profiling.averages import PROFILE_ROUNDS, pooled
from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.store import Store
from nn_meter.errors import BackendError, ConfigError

# --- the contract --------------------------------------------------------------------------------


class Runner(BaseProfiler):
    def __init__(self, board, runs=2):
        self.board, self.runs = board, runs

    def profile(self, converted_model, **kwargs):
        return f"{self.board}: {Path(converted_model).name} {self.runs} runs, 1.5 ms 0.25 ms 3 mJ"


class Reader(BaseParser):
    def __init__(self, scale=1.0):
        self.scale = scale

    def parse(self, content):
        *_, average, _ms, deviation, _, energy, _ = content.split()
        latency = Latency(float(average) * self.scale, float(deviation))
        self._results = ProfiledResults({"latency": latency, "energy": float(energy)})
        return self

    @property
    def results(self):
        return self._results


class Board(BaseBackend):
    profiler_class = Runner
    parser_class = Reader

    def update_configs(self):
        self.profiler_kwargs = {"board": self.configs["BOARD"]}
        self.parser_kwargs = {"scale": self.configs.get("SCALE", 1.0)}

    def convert_model(self, model_path, save_path, input_shape=None):
        converted = Path(save_path) / f"{Path(model_path).stem}.board"
        converted.write_text(f"{model_path} {input_shape}")
        return str(converted)


def test_profiler_and_parser_are_made_with_what_update_configs_fills():
    backend = Board({"BOARD": "b1", "SCALE": 2.0})
    assert backend.configs == {"BOARD": "b1", "SCALE": 2.0}
    assert isinstance(backend.profiler, Runner)
    assert (backend.profiler.board, backend.profiler.runs) == ("b1", 2)
    assert isinstance(backend.parser, Reader)
    assert backend.parser.scale == 2.0


def test_profile_is_the_parsers_results_of_what_the_profiler_returns():
    backend = Board({"BOARD": "b1", "SCALE": 2.0})
    found = backend.profile("model.board")
    assert isinstance(found, ProfiledResults)
    assert found["latency"] == Latency(3.0, 0.25)
    assert list(found) == ["latency"]
    both = backend.profile("model.board", metrics=["latency", "energy"], input_shape=[[4]])
    assert dict(both) == {"latency": Latency(3.0, 0.25), "energy": 3.0}


def test_profile_model_file_converts_then_profiles(tmp_path):
    backend = Board({"BOARD": "b1"})
    saves = tmp_path / "not" / "there" / "yet"
    found = backend.profile_model_file("a/model.onnx", str(saves), input_shape=[[4, 4]])
    assert found["latency"] == Latency(1.5, 0.25)
    assert (saves / "model.board").read_text() == "a/model.onnx [[4, 4]]"


def test_what_a_backend_need_not_say():
    class Least(BaseBackend):
        pass

    backend = Least({})
    assert backend.convert_model("model.onnx", "saves") == "model.onnx"
    assert backend.test_connection() == "hello backend !"
    assert (backend.profiler_kwargs, backend.parser_kwargs) == ({}, {})
    with pytest.raises(BackendError, match="Least has no profiler_class; a backend needs both"):
        backend.profile("model.onnx")


def test_latencies_as_the_guide_writes_them():
    assert Latency("1.2 +- 0.1") == Latency(1.2, 0.1)
    assert Latency("1.2 +- 0.3") + Latency(2, 0.4) == Latency(3.2, 0.5)
    assert str(sum([Latency(1, 3), Latency(2, 4)])) == "3.0 +- 5.0"
    assert ProfiledResults({"latency": Latency(1, 0)}).get("latency") == Latency(1, 0)


# --- rounds --------------------------------------------------------------------------------------


class Slowing(BaseBackend):
    """Answers at once, each time with a higher latency; writes down what it was asked for."""

    def __init__(self, configs=None, *, stop_at=None):
        super().__init__(configs)
        self.asked: list[str] = []
        self.stop_at = stop_at

    def profile(self, converted_model, metrics=("latency",), input_shape=None, **kwargs):
        if len(self.asked) == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(Path(converted_model).stem)
        return ProfiledResults({"latency": Latency(float(len(self.asked)), 0.5)})


@pytest.fixture
def asked_for(workspace) -> Callable[..., tuple[Slowing, dict[str, Any]]]:
    workspace(BASIC_TESTCASES=["conv_relu"])
    cases = generate_testcases()

    def ask(**options: Any) -> tuple[Slowing, dict[str, Any]]:
        keys = {key: options.pop(key) for key in list(options) if key.isupper()}
        backend = Slowing(keys, **options)
        return backend, profile_models(backend, cases)["BF_conv_relu"]

    return ask


def test_a_drift_is_in_all_models_alike(asked_for):
    """Asked one after the other, models that are alike would differ by as much as it slowed."""
    backend, models = asked_for()
    order = ["conv", "relu", "block"]
    assert backend.asked == [f"BF_conv_relu_{name}" for name in [*order, *reversed(order)]]
    assert PROFILE_ROUNDS == 2
    assert {milliseconds(model["latency"]) for model in models.values()} == {3.5}
    # Within a visit 0.5; between the two 2.5, 1.5 and 0.5 to either side.
    assert [float(models[name]["latency"].split()[2]) for name in order] == pytest.approx(
        [(0.25 + between**2) ** 0.5 for between in (2.5, 1.5, 0.5)], abs=1e-6
    )


@pytest.mark.parametrize("rounds", [1, 3])
def test_rounds_are_as_many_as_one_asks_for(asked_for, rounds):
    backend, models = asked_for(ROUNDS=rounds)
    assert len(backend.asked) == 3 * rounds
    if rounds == 1:  # the guide's: what it answered, word for word
        assert [model["latency"] for model in models.values()] == [
            "1.0 +- 0.5",
            "2.0 +- 0.5",
            "3.0 +- 0.5",
        ]


def test_rounds_that_are_finished_are_not_asked_again(asked_for):
    with pytest.raises(KeyboardInterrupt):
        asked_for(ROUNDS=4, stop_at=7)  # in the third
    backend, models = asked_for(ROUNDS=4)
    assert len(backend.asked) == 2 * 3
    assert all(model["latency"] for model in models.values())
    assert asked_for(ROUNDS=4)[0].asked == []
    assert len(asked_for(ROUNDS=5)[0].asked) == 3  # and one more is one more


def test_what_comes_of_answers():
    rows = [
        {"latency": "2.0 +- 0.3", "energy": 3, "word": "a"},
        {"latency": "4.0 +- 0.4", "energy": 5, "word": "b"},
    ]
    found = pooled(rows)
    assert (found["energy"], found["word"]) == (4, "b")
    latency = Latency(found["latency"])
    assert latency.avg == 3.0
    assert latency.std == pytest.approx(((0.09 + 0.16) / 2 + 1) ** 0.5, abs=1e-6)
    assert pooled(rows[:1]) == rows[0]
    assert Latency(pooled([{"latency": "1e-8 +- 0"}] * 2)["latency"]).avg == pytest.approx(1e-8)


@pytest.mark.parametrize("rounds", [0, -1, "2", 1.5, True])
def test_what_is_no_number_of_rounds(workspace, rounds):
    with pytest.raises(ConfigError, match="ROUNDS must be a whole number of at least 1"):
        Connection(Slowing({"ROUNDS": rounds}))


def test_a_model_that_fails_leaves_the_others(workspace):
    workspace(BASIC_TESTCASES=["conv_relu", "relu_relu"])

    class Failing(Slowing):
        def profile(self, converted_model, *args, **kwargs):
            if Path(converted_model).stem == "BF_conv_relu_relu" and len(self.asked) > 3:
                raise ValueError("the board is hot")
            return super().profile(converted_model, *args, **kwargs)

    found = profile_models(Failing(), generate_testcases())
    assert found["BF_conv_relu"]["relu"]["error"]["reason"] == "ValueError: the board is hot"
    assert all(entry["latency"] for entry in found["BF_relu_relu"].values())


# --- the clock -----------------------------------------------------------------------------------

_SIMULATED = '''
import random
from pathlib import Path
import onnx
from nn_meter.builder.backend_meta.utils import Latency, ProfiledResults
from nn_meter.builder.backends import BaseBackend

US = {{"Conv": 9.0, "Relu": 3.0, "Tanh": 4.0, "AveragePool": 5.0, "CumSum": 5.0, "Add": 3.0}}

class Simulated(BaseBackend):
    """A board that folds a relu into the convolution before it, and drifts."""

    takes = ("onnx",)

    def __init__(self, configs=None):
        super().__init__(configs)
        self.random = random.Random(7)
        self.drift = 0.0

    def profile(self, converted_model, metrics=("latency",), input_shape=None, **kwargs):
        graph = onnx.load(converted_model).graph
        by = {{name: node for node in graph.node for name in node.output}}
        us = 20.0
        for node in graph.node:
            before = [by[name].op_type for name in node.input if name in by]
            if not (node.op_type == "Relu" and before == ["Conv"]):
                us += US.get(node.op_type, 1.0)
        self.drift += 1e-4
        us *= 1 + self.drift + self.random.gauss(0, 0.002)
        return ProfiledResults({{"latency": Latency(us / 1e3, us / 1e5)}})
'''


def package(user: User, name: str, script: str) -> Path:
    folder = user.folder / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "backend.py").write_text(script, encoding="utf-8")
    return folder


def meta(user: User, name: str, cls: str, **keys: Any) -> Path:
    """The guide's meta file, for the package folder of that name."""
    path = user.folder / f"{name}.yaml"
    lines = {
        "builtin_name": name,
        "package_location": str(user.folder / name),
        "class_module": "backend",
        "class_name": cls,
        "defaultConfigFile": None,
    }
    path.write_text(yaml.safe_dump(lines | keys))
    return path


def test_the_clock_is_asked_by_profile_alone_if_one_asks_for_that(user):
    """By EVIDENCE: latency, controls are profiled in turn, too; else the guide's formula decides"""
    package(user, "simulated", _SIMULATED.format())
    user.succeed("register", "--backend", meta(user, "simulated", "Simulated"))
    user.succeed("create", "--customized-workspace", "ws", "--backend", "simulated")
    workspace = user.folder / "ws"
    asked = {"IMPLEMENT": "onnx", "BASIC_TESTCASES": ["conv_relu", "relu_add"]}
    edit(workspace, **SMALL, **asked, OTHER_TESTCASES=[])
    answer = json.loads(user.succeed("run", "--workspace", "ws", "--json"))
    assert {rule["evidence"] for rule in answer["verdicts"].values()} == {"formula"}
    assert not visits(workspace, clock=True)

    edit(workspace, EVIDENCE="latency", TIME_BUDGET=120)
    answer = json.loads(user.succeed("run", "--workspace", "ws", "--json"))
    found = {name: (rule["verdict"], rule["evidence"]) for name, rule in answer["verdicts"].items()}
    assert found == {
        "BF_conv_relu": ("fused", "latency"),
        "BF_relu_add": ("separate", "latency"),
    }
    assert visits(workspace, clock=True)


# --- registering ---------------------------------------------------------------------------------


MINE = "from nn_meter.builder.backends import BaseBackend\nclass Mine(BaseBackend):\n    pass\n"


def test_registering_and_taking_back(user):
    package(user, "mine", MINE)
    file = meta(user, "mine", "Mine")
    registered, listed, created, greeting = user.succeed_each(
        ("register", "--backend", file),
        ("--list-backends",),
        ("create", "--customized-workspace", "ws", "--backend", "mine"),
        ("connect", "--backend", "mine", "--workspace", "ws"),
    )
    assert registered == "(nn-Meter) Successfully register backend mine.\n"
    assert listed.splitlines()[-1] == "(nn-Meter) [Backend] * mine"
    assert created == (
        "(nn-Meter) Workspace ws for customized platform has been created. Users could edit "
        "experiment config in ws/configs/.\n"
    )
    assert sorted(path.name for path in (user.folder / "ws" / "configs").iterdir()) == [
        "backend_config.yaml",
        "ruletest_config.yaml",
    ]
    assert greeting == "(nn-Meter) hello backend !\n"
    assert "mine is registered already" in user.fail(5, "register", "--backend", file)
    printed, left = user.succeed_each(("unregister", "--backend", "mine"), ("--list-backends",))
    assert printed == "(nn-Meter) Successfully unregister mine.\n"
    assert "*" not in left.partition("\n")[2]


REFUSED = [
    ("import no_such_thing\n", {}, "No module named 'no_such_thing' (backend.py, line 1)"),
    ("class Mine(:\n", {}, "SyntaxError"),
    ("raise RuntimeError('the board is gone')\n", {}, "the board is gone (backend.py, line 1)"),
    ("class Mine:\n    pass\n", {}, "Mine does not derive from nn_meter.builder.backends.Base"),
    ("def Mine(BaseBackend):\n    pass\n", {}, "Mine is a function, not a class"),
    ("class Mime:\n    pass\n", {}, "there is no class 'Mine'; did you mean"),
    ("", {"class_module": "backends"}, "there is no module 'backends'"),
    ("", {"class_name": None}, "class_name"),
    ("", {"package_location": "/no/such/folder"}, "/no/such/folder"),
    ("", {"defaultConfigFile": "no_such.yaml"}, "no_such.yaml"),
]


def test_registering_is_refused_with_the_reason(user):
    commands = []
    for number, (script, keys, _) in enumerate(REFUSED):
        name = f"mine{number}"
        package(user, name, script)
        commands.append((5, "register", "--backend", meta(user, name, "Mine", **keys)))
    for line, (_, _, words) in zip(user.fail_each(*commands), REFUSED, strict=True):
        assert words in line
    assert "*" not in user.succeed("--list-backends").partition("\n")[2]


# --- deriving from ours --------------------------------------------------------------------------

_DERIVED_TFLITE = """
from pathlib import Path
from nn_meter.builder.backend_meta.utils import Latency, ProfiledResults
from nn_meter.builder.backends import BaseParser, TFLiteBackend, TFLiteProfiler

class Seconds(BaseParser):
    def parse(self, content):  # int64 ns
        self.ms = content.mean() / 1e6
        self.count = len(content)
        return self

    @property
    def results(self):
        return ProfiledResults({"latency": Latency(1000 + self.ms, 0.0), "count": self.count})

class Twice(TFLiteProfiler):
    def profile(self, converted_model, **kwargs):
        assert Path(converted_model).name.startswith("mine_")
        super().profile(converted_model, **kwargs)
        return super().profile(converted_model, **kwargs)

class Mine(TFLiteBackend):
    profiler_class = Twice
    parser_class = Seconds

    def convert_model(self, model_path, save_path, input_shape=None):
        made = Path(super().convert_model(model_path, save_path, input_shape))
        return str(made.rename(made.with_name(f"mine_{made.name}")))
"""

_DERIVED_OPENVINO = """
from nn_meter.builder.backends import OpenVINOBackend, OpenVINOProfiler

class Thrice(OpenVINOProfiler):
    def profile(self, converted_model, **kwargs):
        return super().profile(converted_model, **kwargs) + 3 * 10**9

class Mine(OpenVINOBackend):
    profiler_class = Thrice
    takes = ("onnx",)

    def update_configs(self):
        super().update_configs()
        self.profiler_kwargs["runs"] = 4
"""


@pytest.mark.parametrize(
    ("script", "module", "keys", "implement", "least_ms"),
    [
        (_DERIVED_TFLITE, "tensorflow", {"TARGET": "host"}, "tensorflow", 1000),
        (_DERIVED_OPENVINO, "openvino", {"DEVICE": "CPU"}, "onnx", 3000),
    ],
    ids=["tflite", "openvino"],
)
def test_a_backend_derived_from_ours(user, script, module, keys, implement, least_ms):
    """Its own profiler, parser and conversion are used; the rest is ours, and really runs."""
    pytest.importorskip(module)
    package(user, "mine", script)
    (user.folder / "default.yaml").write_text(yaml.safe_dump(keys | {"RUNS": 5, "WARMUPS": 1}))
    file = meta(user, "mine", "Mine", defaultConfigFile="default.yaml")
    user.succeed("register", "--backend", file)
    user.succeed("create", "--customized-workspace", "ws", "--backend", "mine")
    workspace = user.folder / "ws"
    keys = {**SMALL, "IMPLEMENT": implement, "BASIC_TESTCASES": ["relu_relu"]}
    edit(workspace, **keys, OTHER_TESTCASES=[])

    user.succeed("run", "--workspace", "ws", "--evidence", "formula")

    profiled = results(workspace, "profiled_results.json")["BF_relu_relu"]
    assert list(profiled) == ["relu_1", "relu_2", "block"]
    for entry in profiled.values():
        assert least_ms < milliseconds(entry["latency"]) < least_ms + 1000
    assert len(visits(workspace)) == 3 * PROFILE_ROUNDS


# --- the example ---------------------------------------------------------------------------------


def test_the_example_is_measured_in_rounds(user):
    example = REPOSITORY / "examples" / "customized_backend"
    user.succeed("register", "--backend", example / "meta.yaml")
    user.succeed("create", "--customized-workspace", "ws", "--backend", "my_backend")
    workspace = user.folder / "ws"
    default = (example / "default_config.yaml").read_text()
    assert (workspace / "configs" / "backend_config.yaml").read_text() == default
    edit(workspace, **SMALL, IMPLEMENT="onnx", BASIC_TESTCASES=["conv_relu"], OTHER_TESTCASES=[])
    edit(workspace, "backend_config.yaml", RUNS=5, ROUNDS=3)
    user.succeed("run", "--workspace", "ws")
    found = visits(workspace)
    assert len(found) == 3 * 3
    assert len({visit[2] for visit in found}) == 3  # each round loads its models anew
    orders = [
        [v[4] for v in found if v[0] == number] for number in dict.fromkeys(v[0] for v in found)
    ]
    assert orders[1] == orders[0][::-1]
    assert orders[2] == orders[0][1:] + orders[0][:1]
    entry = results(workspace, "profiled_results.json")["BF_conv_relu"]["conv"]
    with Store(workspace / "fusion_rule_test" / "results" / "samples.db") as store:
        rows = store.metrics(
            1, "BF_conv_relu", {"conv": next(v[5] for v in found if v[4] == "conv")}
        )
    averages = [Latency(row["latency"]).avg for row in rows["conv"]]
    assert milliseconds(entry["latency"]) == pytest.approx(statistics.fmean(averages), abs=1e-6)
