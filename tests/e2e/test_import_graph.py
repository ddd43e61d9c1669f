"""``nn-meter import-graph``: prints that runtimes wrote by themselves are judged as a live run."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from driving import User, all_json_files, edit, results

SHAPES = {"HW": 8, "CIN": 16, "COUT": 16, "SHAPE_1D": 8}
PAIRS = (
    "conv_relu,conv_add,conv_hswish,conv_reshape,conv_avgpool,relu_relu6,"
    "conv_bn_relu,dwconv_relu,MON"
)

DUMPS = {
    "onnxruntime": """
import sys
from pathlib import Path
import onnxruntime as ort
for model in Path(sys.argv[1]).rglob("*.onnx"):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(Path(sys.argv[2]) / model.name)
    ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
""",
    "openvino": """
import sys
from pathlib import Path
import openvino as ov
core = ov.Core()
for model in sorted(Path(sys.argv[1]).rglob("*.onnx"), reverse=True):
    compiled = core.compile_model(str(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ov.serialize(compiled.get_runtime_model(), str(Path(sys.argv[2]) / (model.stem + ".xml")))
""",
}
SUFFIXES = {"onnxruntime": ".onnx", "openvino": ".xml"}


def made(user: User, name: str, testcases: str) -> Path:
    """A workspace whose models are generated."""
    user.succeed("create", "--onnxruntime-workspace", name)
    edit(user.folder / name, **SHAPES)
    user.succeed("ruletest", "generate", "--workspace", name, "--testcases", testcases)
    return user.folder / name


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> User:
    """A user who has the models of ``ws``, and the prints of each runtime that is installed."""
    folder = tmp_path_factory.mktemp("import")
    user = User(folder=folder, home=folder / "home")
    models = made(user, "ws", PAIRS) / "fusion_rule_test"
    for runtime, script in DUMPS.items():
        if find_spec(runtime) is not None:
            (folder / runtime).mkdir()
            user.python(script, models, folder / runtime)
    return user


@pytest.fixture
def user(elsewhere, tmp_path) -> User:
    """The same in a folder of each test's own; ``prints`` are in the folder above."""
    here = tmp_path / "here"
    here.mkdir()
    shutil.copytree(elsewhere.folder / "ws", here / "ws")
    return User(folder=here, home=tmp_path / "home")


def prints(elsewhere: User, runtime: str, *, of: str = "*") -> list[Path]:
    return sorted((elsewhere.folder / runtime).glob(f"{of}{SUFFIXES[runtime]}"))


@pytest.mark.parametrize("runtime", DUMPS)
def test_verdicts_are_those_of_a_live_run(elsewhere, user, runtime):
    if find_spec(runtime) is None:
        pytest.skip(f"needs {runtime}, which is not installed")
    told = json.loads(
        user.succeed("import-graph", elsewhere.folder / runtime, "--workspace", "ws", "--json")
    )
    live = ("run", "--workspace", "live", "--backend", f"{runtime}_cpu", "--evidence", "graph")
    made(user, "live", PAIRS)
    expected = json.loads(user.succeed(*live, "--testcases", PAIRS, "--json"))["verdicts"]
    assert unordered(told["verdicts"]) == unordered(expected)
    assert {rule["verdict"] for rule in expected.values()} >= {"fused", "separate", "free"}
    if runtime == "onnxruntime":
        assert expected["BF_relu_relu6"]["eliminated"]  # told by what the models compute
    assert all(len(expected[rule]["when"]) > 1 for rule in ("BF_conv_relu", "BF_conv_add"))
    assert (told["missing"], told["unmatched"]) == ({}, [])


def unordered(found: Any) -> Any:
    """Verdicts with kernels sorted: branches are executed in any order, from process to process."""
    if not isinstance(found, dict):
        return found
    return {
        key: sorted(value) if key == "kernels" else unordered(value) for key, value in found.items()
    }


def test_without_openvino_the_words_are_the_same(elsewhere, user, monkeypatch, capsys):
    if find_spec("openvino") is None:
        pytest.skip("needs openvino to make the prints, which is not installed")
    from nn_meter.builder.backends.openvino import recorded
    from nn_meter.cli.main import main

    def judged() -> dict[str, Any]:
        folder = str(elsewhere.folder / "openvino")
        with pytest.raises(SystemExit) as ended:
            main(["import-graph", folder, "--workspace", str(user.folder / "ws"), "--json"])
        assert ended.value.code == 0
        return json.loads(capsys.readouterr().out)["verdicts"]

    def words(verdicts: dict[str, Any]) -> dict[str, Any]:
        return {
            name: {key: value for key, value in rule.items() if key not in ("kernels", "when")}
            | {"when": {where: told["verdict"] for where, told in rule.get("when", {}).items()}}
            for name, rule in verdicts.items()
        }

    rich = judged()
    monkeypatch.setattr(recorded, "_core", lambda: None)
    bare = judged()
    assert words(bare) == words(rich)
    assert rich["BF_conv_relu"]["kernels"] == ["Convolution[Relu]"]
    assert bare["BF_conv_relu"]["kernels"] == ["Convolution[3 ops]"]


def test_what_is_missing_is_left_out_and_named(elsewhere, user):
    folder = user.folder / "phone"
    folder.mkdir()
    for print_ in prints(elsewhere, "onnxruntime", of="BF_conv_[ra]*"):
        shutil.copy(print_, folder)
    (folder / "BF_conv_add_block.onnx").unlink()
    (folder / "BF_conv_add_conv.onnx").unlink()  # the same model as that of conv_relu
    (folder / "BF_conv_relu_conv.onnx").rename(folder / "BF_conv_relu_conv.pixel.onnx")
    (folder / "BF_conv_relu_relu").mkdir()
    (folder / "BF_conv_relu_relu.onnx").rename(folder / "BF_conv_relu_relu" / "optimized.onnx")
    (folder / "BF_conv_relu_block.onnx").rename(folder / "BF_conv_relu_block.onnx.onnx")
    shutil.copy(prints(elsewhere, "onnxruntime")[-1], folder / "what_is_this.onnx")
    given = ("import-graph", folder, "--workspace", "ws", "--device", "[Pixel] 8")
    told = user.succeed(*given, "--runtime-version", "1.31")
    assert "onnxruntime, version 1.31, on device [Pixel] 8; recorded" in told
    rules = results(user.folder / "ws", "detected_fusion_rule.json")
    assert set(rules) == {"BF_conv_relu", "BF_conv_reshape", "BF_conv_avgpool"}
    rule = rules["BF_conv_relu"]
    assert (rule["verdict"], rule["kernels"]) == ("fused", ["Conv[activation=Relu]"])
    assert rule["environment"].pop("options")["recorded"] is True
    assert rule["environment"] == {
        "backend": "imported_onnxruntime",
        "runtime": "onnxruntime",
        "version": "1.31",
        "device": "[Pixel] 8",
    }
    assert "situations left out, of which prints are missing: 3 of 3" in told
    assert "\ntest cases left out, of which prints are missing: 6\n" in told
    assert "BF_conv_add (BF_conv_add_block.onnx)" in told
    assert (
        f"\nfiles named after no model of the workspace: 1\n  {folder}/what_is_this.onnx\n" in told
    )
    # the rest comes later, and joins what is there
    rest = prints(elsewhere, "onnxruntime", of="BF_conv_add_block")
    user.succeed("import-graph", *rest, *given[2:], "--runtime-version", "1.31")
    rules = results(user.folder / "ws", "detected_fusion_rule.json")
    assert "BF_conv_add" in rules
    # but not with prints of another device
    lacking = user.fail(10, "import-graph", *rest, "--workspace", "ws", "--device", "Pixel 9")
    assert "no test case has all of its prints yet; BF_conv_relu lacks BF_conv_relu_" in lacking


def test_the_nodes_of_one_print(elsewhere, user):
    (block,) = prints(elsewhere, "onnxruntime", of="BF_conv_relu_block")
    told = user.succeed("import-graph", block)
    assert "  compute Conv[activation=Relu]  " in told
    nodes = json.loads(user.succeed("import-graph", block, "--json"))["nodes"]
    assert [node["type"] for node in nodes if node["kind"] == "compute"] == [
        "Conv[activation=Relu]"
    ]
    assert "give one file" in user.fail(3, "import-graph", block, block)


def test_bad_prints_leave_everything_as_it_was(elsewhere, user):
    block = prints(elsewhere, "onnxruntime", of="BF_conv_relu_block")[0]
    conv = prints(elsewhere, "onnxruntime", of="BF_conv_relu_conv")[0]
    bad = user.folder / "BF_conv_relu_relu.onnx"
    bad.write_bytes(block.read_bytes()[:200])
    other = user.folder / "BF_conv_add_block.onnx"
    shutil.copy(block, other)
    source = user.folder / "ws" / "fusion_rule_test" / "models" / "BF_conv_relu_block.onnx"
    before = all_json_files(user.folder / "ws")
    refused = (
        (9, f"{bad}: is no ONNX model", [block, conv, bad]),
        (9, f"{other}: is of another model: it has 1 inputs", [block, other]),
        (9, f"{source}: is the model itself", [source]),
        (9, "is a print of the same model; leave one of them out", [block, copied(block, user)]),
        (9, "is named after no model of the workspace", [copied(block, user, name="x.onnx")]),
        (9, "is no text in UTF-8", ["--format", "openvino", block]),
        (9, "there is no such file or folder", ["nowhere"]),
        (9, "there is no print in this folder", [user.folder / "ws" / "configs"]),
        (3, "tell no format; give --format", [user.folder / "ws" / "workspace.json"]),
    )
    lines = user.fail_each(
        *((code, "import-graph", *given, "--workspace", "ws") for code, _, given in refused)
    )
    for (_, words, _), line in zip(refused, lines, strict=True):
        assert words in line
    assert all_json_files(user.folder / "ws") == before
    edit(user.folder / "ws", EVIDENCE="formula")
    told = user.fail(3, "import-graph", block, "--workspace", "ws")
    assert "EVIDENCE is formula, and prints tell executed graphs" in told


def copied(print_: Path, user: User, name: str = "BF_conv_relu_block.again.onnx") -> Path:
    """A copy of a print under another name."""
    return Path(shutil.copy(print_, user.folder / name))
