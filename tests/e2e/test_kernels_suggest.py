"""``nn-meter kernels --suggest``: what rules lack, asked of the runtime, and what it is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime")

BACKEND = ("--check", "onnxruntime_cpu")


def model(path: Path, *activations: str, channels: int = 32) -> str:
    """Convolutions, each with an activation behind."""
    nodes, weights, x, before = [], [], "x", 3
    draw = np.random.default_rng(0)
    for number, activation in enumerate(activations):
        shape = (channels, before, 3, 3)
        weight = draw.standard_normal(shape).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        inner, outer = f"conv{number}", f"act{number}"
        nodes.append(helper.make_node("Conv", [x, f"w{number}"], [inner], name=inner, **pads))
        nodes.append(helper.make_node(activation, [inner], [outer], name=outer))
        x, before = outer, channels
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, channels, 12, 12])],
        weights,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path.name


def rules(path: Path, **obeys: Any) -> str:
    found = {f"BF_{name}": {"obey": obey} for name, obey in obeys.items()}
    path.write_text(json.dumps(found))
    return path.name


def test_rules_are_learned_and_held_against_other_models(user):
    learned_from = model(user.folder / "a.onnx", "HardSigmoid", "Relu", "HardSigmoid")
    other = model(user.folder / "b.onnx", "Relu", "HardSigmoid", "Softplus")
    given = rules(user.folder / "given.json", conv_relu=True, relu_conv=False)
    printed = user.succeed(
        *("kernels", learned_from, "--rules", given, *BACKEND, "--suggest", "out/new.json"),
        *("--against", other, "--json", "k.json"),
    )
    assert "+ BF_conv_hardsigmoid: fused" in printed
    assert "a.onnx (learned from)" in printed
    assert "b.onnx (not learned from)" in printed

    data = json.loads((user.folder / "k.json").read_text())
    told = data["suggest"]
    (asked,) = told["testcases"]
    assert (asked["name"], asked["edges"], asked["verdict"], asked["kept"]) == (
        "BF_conv_hardsigmoid",
        2,
        "fused",
        True,
    )
    assert asked["when"] == {"context": "fused"}
    first, second = told["models"]
    assert (first["model"], first["learned_from"]) == ("a.onnx", True)
    assert (second["model"], second["learned_from"]) == ("b.onnx", False)
    assert first["before"]["recall"] == pytest.approx(1 / 3)
    assert second["before"]["f1"] == pytest.approx(2 / 3)
    assert first["after"]["f1"] == second["after"]["f1"] == 1
    assert data["check"]["f1"] == first["before"]["f1"]  # the kernels shown are the old rules'

    written = json.loads((user.folder / "out" / "new.json").read_text())
    assert written.keys() == {"BF_conv_relu", "BF_relu_conv", "BF_conv_hardsigmoid"}
    assert written["BF_conv_relu"] == {"obey": True}
    again = user.succeed("kernels", other, "--rules", "out/new.json", *BACKEND, "--json", "-")
    assert json.loads(again)["check"]["f1"] == 1


def test_what_cannot_be_asked_is_said_and_nothing_to_learn_is_no_error(user):
    name = model(user.folder / "a.onnx", "Relu", "Relu")
    done = user.nn_meter(  # which warns if the runtime is of another version than the rules
        *("kernels", name, "--rules", "onnxruntime-1.31", *BACKEND, "--suggest", "same.json")
    )
    assert done.code == 0, done
    assert "0 test cases asked" in done.out
    assert user.succeed("diff", "same.json", "onnxruntime-1.31", "--json")


def test_options_that_do_not_go_together(user):
    model(user.folder / "a.onnx", "Relu")
    (user.folder / "folder").mkdir()
    asked = ("kernels", "a.onnx", "--rules", "onnxruntime-1.31")
    learning = (*asked, *BACKEND, "--suggest", "new.json", "--against")
    without, alone, folder, same, missing = user.fail_each(
        (3, *asked, "--suggest", "new.json"),
        (3, *asked, *BACKEND, "--against", "b.onnx"),
        (3, *asked, *BACKEND, "--suggest", "folder"),
        (3, *learning, "./a.onnx"),
        (11, *learning, "no.onnx"),
    )
    assert "--suggest: learns from what a runtime executes; give --check BACKEND" in without
    assert "--against" in alone
    assert "give --suggest FILE" in alone
    assert "folder: is a folder, so no rules can be written there" in folder
    assert "a.onnx is the model that rules are learned from" in same
    assert "no.onnx: there is no such file" in missing
    assert not (user.folder / "new.json").exists()
