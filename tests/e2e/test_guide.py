"""The guide, block by block, in its order, in one workspace.

What the guide prints (code, meta files, commands, what commands answer) stands in
``guide/blocks.txt``, character by character. Paths are put in where the guide has placeholders; any
other change is said where it is made. Each step is a fixture that needs the one before it, so the
tests can be run one at a time.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from driving import REPOSITORY, SMALL, Prompt, User, edit, milliseconds, results, without_clock

pytest.importorskip("tensorflow")
pytest.importorskip("ai_edge_litert")

_TEXT = (Path(__file__).parent / "guide" / "blocks.txt").read_text(encoding="utf-8")
_PARTS = re.split(r"^==== (\S+)\n", _TEXT, flags=re.MULTILINE)[1:]
BLOCKS = dict(zip(_PARTS[::2], _PARTS[1::2], strict=True))

CONFIG = {
    **{"DETAIL": False, "HW": 28, "CIN": 16, "SHAPE_1D": 428, "COUT": 256, "KERNEL_SIZE": 3},
    **{"PADDING": "same", "STRIDES": 1, "POOL_STRIDES": 2, "EPS_ALPHA": 0.5},
}
"""The guide's keys and their defaults; of those below it prints none."""
LISTS = ("BASIC_TESTCASES", "OTHER_TESTCASES", "LAYERS_1D")

RULES = ["BF_conv_avgpool", "BF_conv_relu", "BF_dwconv_relu", "MON"]


def filled(block: str, **places: object) -> str:
    """A block with the guide's placeholders replaced; each must be there."""
    text = BLOCKS[block]
    for placeholder, value in places.items():
        found = PLACES[placeholder]
        assert found in text, (block, found)
        text = text.replace(found, str(value))
    return text


PLACES = {
    "init": "path/to/workspace/folder",
    "demo": "/path/to/workspace/",
    "meta": "path/to/meta/file",
    "operator_package": "/home/{USERNAME}/working/customized_operator",
    "testcase_package": "/home/{USERNAME}/working/customized_testcase",
    "backend_package": "/home/USER/working/customized_backend",
    "path": "PATH",
    "name": "NAME",
    "backend_meta": "META",
}


def in_console(user: User, text: str) -> None:
    """Type the commands of a console block; each must answer what stands below it."""
    commands = re.split(r"^(nn-meter .*)\n", text, flags=re.MULTILINE)[1:]
    assert commands
    for command, answer in zip(commands[::2], commands[1::2], strict=True):
        assert user.succeed(*command.split()[1:]) == answer


def yaml_of(block: str) -> dict[str, Any]:
    """Keys of a piece of a configuration file; "..." stands for the keys that are left out."""
    data: dict[str, Any] = yaml.safe_load(BLOCKS[block].replace("...\n", ""))
    return data


# --- prepare a backend and a workspace -----------------------------------------------------------


@pytest.fixture(scope="module")
def user(tmp_path_factory) -> User:
    folder = tmp_path_factory.mktemp("guide")
    return User(folder=folder, home=folder / "home")


@pytest.fixture(scope="module")
def created(user) -> Path:
    """``nn-meter create --tflite-workspace PATH``."""
    command = BLOCKS["backends-create"].splitlines()[0].replace("PATH", "ws")
    in_console(user, f"{command}\n{filled('backends-created', path='ws')}")
    return user.folder / "ws"


def test_a_new_workspace_has_the_guides_keys_and_defaults(created):
    config = yaml.safe_load((created / "configs" / "ruletest_config.yaml").read_text())

    assert {key: config[key] for key in CONFIG} == CONFIG
    assert config["IMPLEMENT"] in ("tensorflow", "torch")
    assert config["OTHER_TESTCASES"] == ["MON"]
    assert "fc" in config["LAYERS_1D"]
    assert {"conv_avgpool", "conv_relu", "dwconv_relu", "se_relu"} <= set(config["BASIC_TESTCASES"])
    ours = {"EVIDENCE", "CONFIDENCE", "TIME_BUDGET"}
    assert set(CONFIG) | {"IMPLEMENT", *ours, *LISTS} == set(config)


def test_a_new_workspace_has_the_keys_of_its_backend(created):
    config = yaml.safe_load((created / "configs" / "backend_config.yaml").read_text())

    phone = ("REMOTE_MODEL_DIR", "BENCHMARK_MODEL_PATH", "DEVICE_SERIAL", "KERNEL_PATH")
    assert {key: config[key] for key in phone} == dict.fromkeys(phone)
    assert config["TARGET"] == "host"


def test_the_backend_says_hello(user, created):
    in_console(user, filled("backends-connect", name="tflite_cpu", path="ws"))


# --- steps 1 to 4, at one prompt -----------------------------------------------------------------


@pytest.fixture(scope="module")
def prompt(user) -> Iterator[Prompt]:
    prompt = Prompt(user)
    yield prompt
    prompt.close()


@pytest.fixture(scope="module")
def configured(created, prompt) -> Path:
    """The guide's list of test cases, and dwconv_relu, which MON depends on.

    The guide has no clock, so it is hardly asked.
    """
    lists = yaml_of("basic-testcases")
    edit(created, BASIC_TESTCASES=[*lists["BASIC_TESTCASES"], "dwconv_relu"])
    edit(created, TIME_BUDGET=SMALL["TIME_BUDGET"])
    prompt.run(filled("init", init=created))
    return created


@pytest.fixture(scope="module")
def origin(configured, prompt) -> dict[str, Any]:
    prompt.run(BLOCKS["generate"])
    found: dict[str, Any] = prompt.value("origin_testcases")
    return found


@pytest.fixture(scope="module")
def profiled(origin, prompt) -> dict[str, Any]:
    prompt.run(BLOCKS["profile"])
    found: dict[str, Any] = prompt.value("profiled_results")
    return found


@pytest.fixture(scope="module")
def detected(profiled, prompt) -> dict[str, Any]:
    prompt.run(BLOCKS["detect"])
    found: dict[str, Any] = prompt.value("detected_results")
    return found


def test_an_edited_configuration_counts_after_init(configured, prompt):
    now = "builder_config.get('EPS_ALPHA')"
    assert prompt.value(now) == 0.5
    edit(configured, EPS_ALPHA=0.25)
    assert prompt.value(now) == 0.5
    prompt.run(filled("init", init=configured))
    assert prompt.value(now) == 0.25
    edit(configured, EPS_ALPHA=0.5)
    prompt.run(filled("init", init=configured))


def test_generate_testcases(configured, origin):
    assert list(origin) == RULES
    assert origin == results(configured, "origin_testcases.json")
    # As the guide prints it, but for the latencies, which come later, and for the key's prefix.
    printed = json.loads(BLOCKS["data-structure"].replace(",\n    ...", ""))["dwconv_relu"]
    for model in printed.values():
        del model["latency"]
    assert origin["BF_dwconv_relu"] == printed
    for case, models in origin.items():
        for name, model in models.items():
            assert model["model"] == f"./fusion_rule_test/models/{case}_{name}"
            assert (configured / model["model"] / "saved_model.pb").is_file()


def test_profile_models(configured, origin, profiled):
    assert list(profiled) == list(origin)
    for case, models in profiled.items():
        assert list(models) == list(origin[case])
        for name, model in models.items():
            assert milliseconds(model["latency"]) > 0
            # beyond what the guide prints, and behind it: where the executed graph lies
            added = {"latency": model["latency"], "graph": model["graph"]}
            assert list(model.items()) == list({**origin[case][name], **added}.items())
    # The file has the shapes with DETAIL only.
    assert results(configured, "profiled_results.json") == {
        case: {
            name: {key: value for key, value in model.items() if key != "shapes"}
            for name, model in models.items()
        }
        for case, models in profiled.items()
    }


def test_detect_fusion_rule(configured, detected):
    assert list(detected) == RULES
    assert detected == results(configured, "detected_results.json")
    basic = [detected[rule] for rule in RULES[:-1]]
    assert all(type(rule["obey"]) is bool for rule in basic)
    if detected["BF_dwconv_relu"]["obey"]:
        assert detected["MON"]["obey"] in ("case1", "case2", "case3")
    else:
        assert (detected["MON"]["obey"], detected["MON"]["verdict"]) == (None, "unmet")
    assert not any("latency" in rule for rule in detected.values())


def test_the_rules_are_ready_for_kernel_detection(configured, detected):
    rules = results(configured, "detected_fusion_rule.json")
    assert {name: rule["obey"] for name, rule in rules.items()} == {
        name: rule["obey"] for name, rule in detected.items()
    }


def test_detail_attaches_shapes_and_latencies(configured, detected, prompt):
    edit(configured, DETAIL=True)
    prompt.run(filled("init", init=configured))
    prompt.run(BLOCKS["profile"])
    prompt.run(BLOCKS["detect"])
    edit(configured, DETAIL=False)

    found = prompt.value("detected_results")
    measured = results(configured, "profiled_results.json")
    assert measured == prompt.value("profiled_results")
    printed = json.loads(BLOCKS["data-structure"].replace(",\n    ...", ""))["dwconv_relu"]
    for name, model in measured["BF_dwconv_relu"].items():
        assert list(model) == [*printed[name], "graph"]
        as_printed = {key: model[key] for key in printed[name]}
        assert {**as_printed, "latency": printed[name]["latency"]} == printed[name]
    for rule in RULES[:-1]:
        latency = found[rule]["latency"]
        op1, op2 = rule.split("_")[1:]
        assert list(latency) == ["block", op1, op2, "ops"]
        ops = milliseconds(latency[op1]) + milliseconds(latency[op2])
        saved = ops - milliseconds(latency["block"])
        threshold = 0.5 * min(milliseconds(latency[op1]), milliseconds(latency[op2]))
        assert milliseconds(latency["ops"]) == pytest.approx(ops)
        assert found[rule]["evidence"] == "graph"
        assert found[rule]["others"]["formula"] is (saved > threshold)
        for model in ("block", op1, op2):
            assert latency[model] == measured[rule][model]["latency"]


def test_each_step_takes_the_path_of_the_file_before_it(configured, detected, prompt):
    where = configured / "fusion_rule_test" / "results"
    prompt.run(filled("init", init=configured))
    prompt.run(
        f"again = profile_models(backend, {str(where / 'origin_testcases.json')!r})\n"
        f"rules = detect_fusion_rule({str(where / 'profiled_results.json')!r})\n"
    )
    assert prompt.value("again") == prompt.value("profiled_results")
    assert without_clock(prompt.value("rules")) == without_clock(detected)


def test_models_are_converted_before_they_are_profiled(configured, detected, prompt):
    prompt.run(
        "from nn_meter.builder import convert_models\n"
        "converted = convert_models(backend, origin_testcases)\n"
        "afterwards = profile_models(backend, converted, have_converted=True)\n"
    )
    profiled = prompt.value("profiled_results")
    for case, models in prompt.value("afterwards").items():
        for name, model in models.items():
            assert Path(model.pop("converted_model")).is_file()
            assert model == profiled[case][name]


def test_models_that_have_a_latency_can_be_skipped(configured, detected, prompt):
    prompt.run(
        "import copy\n"
        "partly = copy.deepcopy(origin_testcases)\n"
        "partly['BF_conv_relu']['relu']['latency'] = '123.0 +- 4.0'\n"
        "all_of_them = profile_models(backend, partly)\n"
        "the_rest = profile_models(backend, partly, broken_point_mode=True)\n"
    )
    profiled = prompt.value("profiled_results")
    assert prompt.value("all_of_them") == profiled
    profiled["BF_conv_relu"]["relu"]["latency"] = "123.0 +- 4.0"
    del profiled["BF_conv_relu"]["relu"]["graph"]  # it was skipped altogether
    assert prompt.value("the_rest") == profiled


# --- latencies of one's own ----------------------------------------------------------------------


def test_the_guides_printed_latencies_give_the_guides_printed_result(detected, user, prompt):
    """Latencies typed into a dict by hand, with no file of a model behind them."""
    printed = json.loads("{" + BLOCKS["detected-instance"].replace(",\n...", "") + "}")
    typed = {
        "BF_se_relu": {
            model: {"model": f"./{model}", "shapes": [[28, 28, 16]], "latency": latency}
            for model, latency in printed["BF_se_relu"]["latency"].items()
            if model != "ops"
        }
    }
    workspace = _fresh(user, "by-hand", DETAIL=True)
    prompt.run(f"{filled('init', init=workspace)}\nby_hand = detect_fusion_rule({typed!r})")

    found = prompt.value("by_hand")["BF_se_relu"]
    assert {key: found[key] for key in ("latency", "obey")} == printed["BF_se_relu"]
    assert list(found)[:2] == ["latency", "obey"]
    assert list(found["latency"]) == list(printed["BF_se_relu"]["latency"])


def test_the_guides_printed_test_case_can_be_judged(user, prompt, detected):
    workspace = _fresh(user, "printed")
    text = BLOCKS["data-structure"].replace(",\n    ...", "")  # the dots stand for more of these
    file = user.folder / "printed.json"
    file.write_text(text)
    prompt.run(f"{filled('init', init=workspace)}\nprinted = detect_fusion_rule({str(file)!r})")

    assert prompt.value("printed")["BF_dwconv_relu"]["obey"] is True


def test_latencies_of_other_tools_are_filled_in(configured, origin, prompt):
    mine = {model["model"]: 1.5 for case in origin.values() for model in case.values()}
    mine["./fusion_rule_test/models/BF_conv_relu_block"] = 2.9
    prompt.run(
        f"{filled('init', init=configured)}\n"
        "from nn_meter.builder import fill_latency\n"
        f"filled = fill_latency(origin_testcases, {mine!r})\n"
        "judged = detect_fusion_rule(filled)\n"
    )
    judged = prompt.value("judged")
    assert prompt.value("filled")["BF_conv_relu"]["block"]["latency"] == "2.9 +- 0.0"
    assert judged["BF_conv_relu"]["obey"] is False  # 1.5 + 1.5 - 2.9 < 0.5 * 1.5
    assert judged["BF_dwconv_relu"]["obey"] is True
    assert judged["MON"]["obey"] == "case2"  # two models, the nearest sum to one
    # What was found by hand says so, and leaves alone what was measured.
    rules = results(configured, "detected_fusion_rule.json")
    assert rules["BF_conv_relu"]["environment"] is None
    of_backend = results(configured, "tflite_cpu/detected_fusion_rule.json")
    assert of_backend["BF_conv_relu"]["environment"]["runtime"] == "litert"


def _fresh(user: User, name: str, **keys: Any) -> Path:
    user.succeed("create", "--tflite-workspace", name)
    edit(user.folder / name, **keys)
    return user.folder / name


# --- the end-to-end demo -------------------------------------------------------------------------


def test_the_demo_is_a_script(user, configured, detected):
    """Word for word, with no ``if __name__ == "__main__"`` around it."""
    user.python(filled("demo", demo=configured))

    found = results(configured, "detected_results.json")
    assert without_clock(found) == without_clock(detected)


def test_the_example_of_the_demo(user, configured, detected):
    example = (REPOSITORY / "examples" / "guide_demo.py").read_text(encoding="utf-8")
    printed = BLOCKS["demo"].replace('"/path/to/workspace/"', "workspace")
    assert printed in example

    done = user.run(sys.executable, REPOSITORY / "examples" / "guide_demo.py", configured)

    assert done.code == 0, done.err
    assert [line.split() for line in done.out.splitlines()] == [
        [name, rule["verdict"]] for name, rule in detected.items()
    ]


# --- test cases and operators --------------------------------------------------------------------


def test_the_block_of_mon(user):
    """As printed, inside a function: it returns a model, and takes its sizes from around it."""
    body = "".join(f"    {line}\n" for line in BLOCKS["mon-block"].splitlines())
    printed = user.python(
        "from tensorflow import keras\n"
        "def mon(input_shape, kernel_size, padding):\n"
        f"{body}\n"
        "model = mon((28, 28, 16), 3, 'same')\n"
        "print(model.count_params(), [tuple(y.shape) for y in model.outputs])\n"
        f"{BLOCKS['mon-cases']}"
        "from nn_meter.builder.backend_meta.fusion_rule_tester.mon import MultipleOutNodes\n"
        "assert MultipleOutNodes.cases == cases, MultipleOutNodes.cases\n"
    )
    weights = 2 * (3 * 3 * 16 + 16)
    assert printed == f"{weights} [(None, 28, 28, 16), (None, 28, 28, 16)]\n"


def test_mon_answers_one_of_the_printed_cases(detected, origin):
    names: dict[str, Any] = {}
    exec(BLOCKS["mon-cases"], names)
    models = {op for ops in names["cases"].values() for op in ops}
    assert set(origin["MON"]) == {"block", *models}
    assert detected["MON"]["obey"] in (*names["cases"], None)


def test_the_three_printed_operators(user):
    """As printed, with ``import tensorflow as tf``: the second one uses it without importing it."""
    printed = user.python(
        "import tensorflow as tf\n"
        f"{BLOCKS['operator-conv']}\n{BLOCKS['operator-sigmoid']}\n{BLOCKS['operator-add']}\n"
        """
import numpy as np

config = {"COUT": 8, "KERNEL_SIZE": 3, "STRIDES": 2}
for operator in (
    Conv([9, 9, 4], config), Conv([9, 9, 4], {"KERNEL_SIZE": 3, "STRIDES": 1}),
    Sigmoid([9, 9, 4], config), Sigmoid([5], config),
    Add([9, 9, 4], config), Add([5], config),
):
    assert isinstance(operator, BaseOperator)
    operator.test_operator()
    print(type(operator).__name__, operator.get_output_shape(), operator.get_is_two_inputs())
assert Add([[9, 9, 4], [9, 9, 4]], config).get_output_shape() == [9, 9, 4]
x = np.linspace(-2, 2, 5, dtype=np.float32)[None]
np.testing.assert_allclose(Sigmoid([5], config).get_model()(x), 1 / (1 + np.exp(-x)), rtol=1e-5)
np.testing.assert_allclose(Add([5], config).get_model()([x, x]), 2 * x)

class Wrong(Sigmoid):
    def get_output_shape(self):
        return [1]

from nn_meter.errors import ShapeError
try:
    Wrong([5], config).test_operator()
except ShapeError as exc:
    print(exc)
"""
    )
    assert printed.splitlines() == [
        "Conv [5, 5, 8] False",
        "Conv [9, 9, 4] False",
        "Sigmoid [9, 9, 4] False",
        "Sigmoid [5] False",
        "Add [9, 9, 4] True",
        "Add [5] True",
        "Wrong on [5]: get_output_shape says [1], but the model's output has the shape [5]",
    ]


# --- a customized operator -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def op1_meta(user) -> Path:
    """The package and the meta file as printed; the operator is a ``def``, as printed, too."""
    package = _package(user, "customized_operator", operator_script=BLOCKS["op1-script"])
    meta = user.folder / "op1.yaml"
    meta.write_text(filled("op1-meta", operator_package=package))
    return meta


@pytest.fixture(scope="module")
def op1(user, op1_meta) -> None:
    """What is registered: ``class`` instead of ``def``, and a layer instead of the dots."""
    script = BLOCKS["op1-script"].replace("def Op1(BaseOperator)", "class Op1(BaseOperator)")
    script = script.replace("return ...", "return keras.layers.Dense(self.input_shape[0])")
    _package(user, "customized_operator", operator_script=script)
    in_console(user, filled("op1-register", meta=op1_meta))


def test_an_operator_that_is_no_class_is_refused(user, op1_meta):
    line = user.fail(5, *filled("op1-register", meta=op1_meta).split("\n")[0].split()[1:])

    assert "Op1 is a function, not a class; write 'class Op1(BaseOperator):'" in line
    assert "op1" not in user.succeed("--list-operators")


def test_an_operator_is_registered_and_listed(user, op1):
    printed = BLOCKS["op1-list"].splitlines()
    listed = user.succeed(*printed[0].split()[1:]).splitlines()
    # Further operators of ours stand between the guide's and the user's.
    assert listed[: len(printed) - 2] == printed[1:-1]
    assert listed[-1] == printed[-1]
    assert not any("*" in line for line in listed[1:-1])


def test_an_operator_is_registered_once(user, op1, op1_meta):
    line = user.fail(5, "register", "--operator", op1_meta)
    assert "registered already" in line


@pytest.fixture(scope="module")
def op1_results(configured, detected, op1, prompt) -> dict[str, Any]:
    """The printed piece of configuration, and the steps again."""
    edit(configured, **yaml_of("op1-config"))
    _all_steps(prompt, configured)
    found: dict[str, Any] = prompt.value("detected_results")
    return found


def test_an_operator_in_use(op1_results, prompt):
    assert list(op1_results) == ["BF_op1_relu", "MON"]
    assert type(op1_results["BF_op1_relu"]["obey"]) is bool
    profiled = prompt.value("profiled_results")["BF_op1_relu"]
    assert {name: model["shapes"] for name, model in profiled.items()} == {
        "op1": [[428]],
        "relu": [[428]],
        "block": [[428]],
    }
    assert all(milliseconds(model["latency"]) > 0 for model in profiled.values())


def test_rules_found_earlier_stay(configured, op1_results):
    rules = results(configured, "detected_fusion_rule.json")
    assert set(rules) == {*RULES, "BF_op1_relu"}


# --- a customized test case ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def mytc(user, op1_results) -> None:
    """The printed class as it is. Its ``_model_dwconv_relu`` cannot run (Keras has no layer
    ``Relu``); no case names it, so nobody may call it: what is built is said below."""
    package = _package(user, "customized_testcase", testcase_script=BLOCKS["mytc-script"])
    meta = user.folder / "mytc.yaml"
    meta.write_text(filled("mytc-meta", testcase_package=package))
    in_console(user, filled("mytc-register", meta=meta))


@pytest.fixture(scope="module")
def mytc_results(configured, mytc, prompt) -> dict[str, Any]:
    """Alone in OTHER_TESTCASES, as printed: what it depends on was tested before."""
    edit(configured, **yaml_of("mytc-config"), BASIC_TESTCASES=["dwconv_relu"])
    _all_steps(prompt, configured)
    found: dict[str, Any] = prompt.value("detected_results")
    return found


def test_a_testcase_is_listed(user, mytc):
    assert user.succeed("--list-testcases").splitlines() == [
        "(nn-Meter) Supported testcases: ('*' indicates customized testcases)",
        *(
            f"(nn-Meter) [Testcase] {name}"
            for name in ("MON", "MIN", "MINRELU", "MONELTWISE", "MINELTWISE")
        ),
        "(nn-Meter) [Testcase] * MyTC (tensorflow)",
    ]


def test_a_testcase_in_use(configured, mytc_results, prompt):
    profiled = prompt.value("profiled_results")["MyTestCase"]
    ops = ["dwconv_add", "dwconv", "add", "relu", "dwconv_add_add"]
    assert list(profiled) == ["block", *ops]
    for name, model in profiled.items():
        assert model["model"] == f"./fusion_rule_test/models/MyTestCase_{name}"
        assert (configured / model["model"] / "saved_model.pb").is_file()
        assert milliseconds(model["latency"]) > 0
    image = [28, 28, 16]
    assert profiled["dwconv_add_add"]["shapes"] == profiled["add"]["shapes"] == [image, image]


def test_a_testcase_answers_if_what_it_depends_on_holds(configured, mytc_results):
    rules = results(configured, "detected_fusion_rule.json")
    found = mytc_results["MyTestCase"]
    assert rules["MyTestCase"]["obey"] == found["obey"]
    if rules["BF_dwconv_relu"]["obey"] is True and rules["MON"]["obey"] == "case1":
        assert found["obey"] in ("case1", "case2")
        assert found["verdict"] == found["obey"]
    else:
        assert (found["obey"], found["verdict"]) == (None, "unmet")
        assert "depends on" in found["reason"]


@pytest.mark.parametrize(
    ("pair_ms", "mon_ms", "mine_ms", "mon", "mine"),
    [  # of the blocks; the sums are 2 for the pair, 6, 5, 12 for MON, and 9.5, 9 for MyTestCase
        (1.0, 6.0, 9.5, "case1", "case1"),
        (1.0, 6.0, 9.0, "case1", "case2"),
        (1.0, 5.0, 9.5, "case2", None),
        (2.0, 6.0, 9.5, None, None),
    ],
)
def test_a_testcase_by_hand(user, mytc_results, prompt, pair_ms, mon_ms, mine_ms, mon, mine):
    """MON and MyTestCase at latencies for which their answers are known."""
    ms = {
        "MON": {"block": mon_ms, "relu_relu": 2, "relu_dwconv": 3, "dwconv": 1}
        | {"dwconv_relu_relu": 2, "dwconv_relu": 9},
        "MyTestCase": {"block": mine_ms, "dwconv_add": 2.5, "dwconv": 1, "add": 1, "relu": 4}
        | {"dwconv_add_add": 3},
        "BF_dwconv_relu": {"dwconv": 1, "relu": 1, "block": pair_ms},
    }
    typed = {
        case: {
            name: {"model": f"./{case}_{name}", "shapes": [[1]], "latency": f"{value} +- 0.0"}
            for name, value in models.items()
        }
        for case, models in ms.items()
    }
    workspace = user.folder / "deps"
    if not workspace.exists():
        _fresh(user, "deps")
    prompt.run(f"{filled('init', init=workspace)}\ntyped = detect_fusion_rule({typed!r})")

    found = prompt.value("typed")
    assert list(found) == list(ms)
    for name, answer in (("MON", mon), ("MyTestCase", mine)):
        assert (found[name]["obey"], found[name]["verdict"]) == (answer, answer or "unmet")


# --- taking it back ------------------------------------------------------------------------------


def test_what_was_registered_is_taken_back(user, mytc_results):
    in_console(user, BLOCKS["op1-unregister"])
    in_console(user, BLOCKS["mytc-unregister"])

    assert "*" not in user.succeed("--list-operators").partition("\n")[2]
    assert "*" not in user.succeed("--list-testcases").partition("\n")[2]
    line = user.fail(5, *BLOCKS["op1-unregister"].split("\n")[0].split()[1:])
    assert "op1" in line
    # A configuration that still names it is refused, by file and key.
    edit(user.folder / "ws", **yaml_of("op1-config"))
    line = user.fail(3, "ruletest", "generate", "--workspace", "ws")
    assert "ruletest_config.yaml: BASIC_TESTCASES: 'op1_relu': there is no operator 'op1'" in line


# --- a customized backend ------------------------------------------------------------------------


def test_a_customized_backend(user):
    package = user.folder / "customized_backend"
    shutil.copytree(REPOSITORY / "examples" / "customized_backend", package)
    meta = user.folder / "backend.yaml"
    meta.write_text(filled("backends-meta", backend_package=package))

    in_console(user, filled("backends-register", backend_meta=meta))
    # Further backends of ours stand between the guide's and the user's.
    listed = user.succeed(*BLOCKS["backends-list"].split("\n")[0].split()[1:]).splitlines()
    printed = BLOCKS["backends-list"].splitlines()[1:]
    assert listed[: len(printed) - 1] == printed[:-1]
    assert listed[-1] == printed[-1]
    assert not any("*" in line for line in listed[1:-1])

    command = BLOCKS["backends-create"].splitlines()[2]
    created = BLOCKS["backends-created"].replace("tflite", "customized")
    in_console(user, f"{command}\n{created}".replace("PATH", "own").replace("NAME", "my_backend"))
    in_console(user, filled("backends-connect", name="my_backend", path="own"))
    workspace = user.folder / "own"
    edit(workspace, **SMALL, IMPLEMENT="onnx", BASIC_TESTCASES=["conv_relu", "add_relu"])
    edit(workspace, OTHER_TESTCASES=[])
    edit(workspace, "backend_config.yaml", RUNS=5)
    answer = json.loads(user.succeed("run", "--workspace", "own", "--json"))
    assert answer["backend"] == "my_backend"
    assert list(answer["verdicts"]) == ["BF_conv_relu", "BF_add_relu"]
    profiled = results(workspace, "profiled_results.json")
    assert milliseconds(profiled["BF_conv_relu"]["block"]["latency"]) > 0

    in_console(user, BLOCKS["backends-unregister"])
    assert "my_backend" not in user.succeed("--list-backends")
    assert "no backend 'my_backend'" in user.fail(7, "run", "--workspace", "own")


def test_a_backend_derived_from_tflites(user):
    """With a profiler of its own, and a default file that becomes the workspace's configuration."""
    script = (
        "from nn_meter.builder.backends import TFLiteBackend, TFLiteProfiler\n"
        "class MyProfiler(TFLiteProfiler):\n"
        "    def profile(self, converted_model, **kwargs):\n"
        "        return super().profile(converted_model, **kwargs) * 10**6\n"
        "class MyBackend(TFLiteBackend):\n"
        "    profiler_class = MyProfiler\n"
    )
    package = _package(user, "derived_backend", backend=script)
    default = "# mine\nTARGET: host\nRUNS: 5\nWARMUPS: 1\n"
    (user.folder / "default.yaml").write_text(default)
    meta = user.folder / "derived.yaml"
    text = filled("backends-meta", backend_package=package).replace("my_backend", "derived")
    meta.write_text(text.replace("defaultConfigFile:", "defaultConfigFile: default.yaml"))
    user.succeed("register", "--backend", meta)
    user.succeed("create", "--customized-workspace", "derived", "--backend", "derived")
    workspace = user.folder / "derived"
    assert (workspace / "configs" / "backend_config.yaml").read_text() == default
    edit(workspace, **SMALL, BASIC_TESTCASES=["relu_relu"], OTHER_TESTCASES=[])

    user.succeed("run", "--workspace", "derived")

    profiled = results(workspace, "profiled_results.json")["BF_relu_relu"]
    assert list(profiled) == ["relu_1", "relu_2", "block"]
    for model in profiled.values():
        assert milliseconds(model["latency"]) > 100  # its own profiler's: the real one takes 1 µs
    user.succeed("unregister", "--backend", "derived")


def _package(user: User, name: str, **modules: str) -> Path:
    folder = user.folder / name
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").touch()
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text, encoding="utf-8")
    return folder


def _all_steps(prompt: Prompt, workspace: Path) -> None:
    """The printed steps again, as after an edit."""
    prompt.run(filled("init", init=workspace))
    for step in ("generate", "profile", "detect"):
        prompt.run(BLOCKS[step])
