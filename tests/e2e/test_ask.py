"""``nn-meter ask``: one chain, which of its edges fuse, what ran, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from driving import NN_METER, User, edit

SMALL = ("--set", "HW=8", "--set", "CIN=4", "--set", "COUT=8")


@dataclass(frozen=True, kw_only=True)
class Asker(User):
    """A user whose temporary files lie in a folder of their own."""

    temporary: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "TMPDIR": str(self.temporary)}

    def ask(self, *arguments: str) -> dict[str, Any]:
        """Ask with ``--json``, which is one object on standard output and nothing else."""
        data: dict[str, Any] = json.loads(self.succeed("ask", *arguments, "--json"))
        return data


@pytest.fixture
def asker(user, tmp_path) -> Iterator[Asker]:
    """Somebody who asks; nothing is left behind."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    yield Asker(folder=user.folder, home=user.home, temporary=temporary)
    assert list(temporary.iterdir()) == []
    assert {path.name for path in user.folder.iterdir()} <= {"ws", "mine"}


def test_a_pair(asker):
    printed = asker.succeed("ask", "conv+relu", *SMALL)
    version = metadata.version("onnxruntime")
    *lines, last = printed.splitlines()
    assert lines == [
        f"conv+relu on onnxruntime {version}, input 4x8x8",
        "  conv + relu: fused",
        "ran: Conv[activation=Relu]",
        "moved data: ReorderOutput",
        "evidence: graph",
        "elsewhere:",
        "  context: conv + relu fused (ran: Conv, AveragePool, Conv[activation=Relu], AveragePool)",
    ]
    assert last.endswith(" s")


def test_a_pair_as_json(asker):
    found = asker.ask("conv+relu", *SMALL)
    assert list(found)[:4] == ["chain", "backend", "environment", "inputs"]
    assert (found["chain"], found["backend"]) == (["conv", "relu"], "onnxruntime_cpu")
    assert found["environment"]["version"] == metadata.version("onnxruntime")
    assert found["inputs"] == [[4, 8, 8]]
    assert (found["obey"], found["verdict"], found["evidence"]) == (True, "fused", "graph")
    assert found["kernels"] == ["Conv[activation=Relu]"]
    assert found["edges"] == [{"ops": ["conv", "relu"], "verdict": "fused"}]
    assert set(found["when"]) == {"alone", "context"}
    assert 0 < found["wall_s"] < 60


def test_a_longer_chain(asker):
    found = asker.ask(" conv + bn+relu +add", *SMALL, "--alone")
    assert found["chain"] == ["conv", "bn", "relu", "add"]
    assert [edge["verdict"] for edge in found["edges"]] == ["fused", "fused", "separate"]
    assert (found["verdict"], list(found["when"])) == ("separate", ["alone"])
    assert found["kernels"] == ["Conv[activation=Relu]", "Add"]
    lines = asker.succeed("ask", "conv+bn+relu+add", *SMALL, "--alone").splitlines()
    assert lines[1:4] == ["  conv + bn: fused", "  bn + relu: fused", "  relu + add: separate"]
    assert "elsewhere:" not in lines


def test_what_computes_nothing_is_named(asker):
    lines = asker.succeed("ask", "conv+reshape", *SMALL, "--alone").splitlines()
    assert lines[1] == "  conv + reshape: free (reshape: nothing that computes)"
    assert "reason: reshape executes nothing that computes" in lines


def test_where_the_second_operand_comes_from(asker):
    when = asker.ask("conv+add", *SMALL)["when"]
    operands = ("", "/conv", "/own")
    everywhere = {place + operand for place in ("alone", "context") for operand in operands}
    assert set(when) == everywhere | {"context/passed", "context/again"}


# --- shapes and keys -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chain", "shape", "inputs"),
    [
        ("conv+relu", "5x17x9", [[5, 17, 9]]),
        ("conv+add", "3,6,7", [[3, 6, 7], [8, 6, 7]]),
        ("fc+relu", "33", [[33]]),
        ("relu+add", "1X1X1", [[1, 1, 1], [1, 1, 1]]),
    ],
)
def test_a_shape(asker, chain, shape, inputs):
    found = asker.ask(chain, *SMALL, "--shape", shape, "--alone")
    assert found["inputs"] == inputs
    assert found["evidence"] == "graph"


BAD_SHAPES = [
    ("16x28", "has 2 sizes; give one or three, without the batch"),
    ("0x8x8", "should be sizes of at least 1, like 16x28x28 or 428"),
    ("9999999999", "should be sizes of at least 1"),
]


def test_a_shape_that_cannot_be(asker):
    asked = [(3, "ask", "conv+relu", f"--shape={shape}") for shape, _ in BAD_SHAPES]
    for (_, words), line in zip(BAD_SHAPES, asker.fail_each(*asked), strict=True):
        assert line.startswith("--shape: ")
        assert words in line


def test_keys_of_the_question_and_of_the_backend(asker):
    keys = ("KERNEL_SIZE=1", "COUT=6", "THREADS=2", "MINE=[1, 2]")
    found = asker.ask("conv+relu", *SMALL, "--alone", *(w for key in keys for w in ("--set", key)))
    environment = found["environment"]
    models = environment["options"]["models"]
    assert environment["threads"] == 2
    assert (models["KERNEL_SIZE"], models["COUT"]) == (1, 6)
    assert "THREADS" not in models


BAD_KEYS = [
    ("KERNL_SIZE=1", "--set: unknown key KERNL_SIZE; did you mean KERNEL_SIZE?"),
    ("THREAD=2", "--set: unknown key THREAD; did you mean THREADS?"),
    ("KERNEL_SIZE=0", "--set: KERNEL_SIZE must be a whole number of at least 1"),
    ("THREADS=many", "--set: THREADS must be a whole number"),
    ("HW=[1", "--set: 'HW=[1': the value is no valid YAML"),
    ("HW", "--set: 'HW' should be KEY=VALUE, like KERNEL_SIZE=1"),
    ("=1", "--set: '=1' should be KEY=VALUE"),
]


def test_a_key_that_cannot_be(asker):
    asked = [(3, "ask", "conv+relu", "--set", key) for key, _ in BAD_KEYS]
    for (_, words), line in zip(BAD_KEYS, asker.fail_each(*asked), strict=True):
        assert words in line


def test_by_latencies_when_that_is_asked_for(asker):
    printed = asker.succeed("ask", "conv+relu", *SMALL, "--set", "EVIDENCE=formula")
    assert "evidence: formula\nEvidence 'formula' is the guide's inequality" in printed
    assert "ran: " not in printed


def test_by_the_clock_when_that_is_asked_for(asker):
    printed = asker.succeed("ask", "conv+relu", *SMALL, "--set", "EVIDENCE=latency")
    assert "evidence: latency\n" in printed
    assert "conv + relu: fused" in printed or "undecided" in printed  # under a neighbour's load
    assert "ran: " not in printed
    assert "saves " in printed


def test_the_configuration_of_a_workspace(asker):
    asker.succeed("create", "--onnxruntime-workspace", "ws")
    edit(asker.folder / "ws", HW=6, CIN=2, COUT=3)
    edit(asker.folder / "ws", "backend_config.yaml", THREADS=2)
    before = {path: path.stat().st_mtime_ns for path in (asker.folder / "ws").rglob("*")}
    found = asker.ask("conv+add", "--workspace", "ws", "--set", "CIN=4", "--alone")
    assert found["inputs"] == [[4, 6, 6], [3, 6, 6]]
    assert found["environment"]["threads"] == 2
    assert {path: path.stat().st_mtime_ns for path in (asker.folder / "ws").rglob("*")} == before
    line = asker.fail(4, "ask", "conv+relu", "--workspace", "nowhere")
    assert f"{asker.folder / 'nowhere'}: there is no workspace here" in line


# --- other backends and models -------------------------------------------------------------------


def test_models_of_another_framework(asker):
    pytest.importorskip("torch")
    found = asker.ask("conv+relu", *SMALL, "--implement", "torch", "--alone")
    assert found["environment"]["options"]["models"]["IMPLEMENT"] == "torch"
    assert found["verdict"] == "fused"


def test_models_that_the_backend_does_not_take(asker):
    asked = ("ask", "conv+relu", "--implement")
    line = asker.fail(3, *asked, "tensorflow")
    assert line == "IMPLEMENT is tensorflow, but onnxruntime_cpu takes models of onnx or torch"
    assert "'caffe' is not one of" in asker.fail(2, *asked, "caffe")


def test_a_backend_that_shows_no_graph_has_the_formula(asker):
    found = asker.ask("conv+relu", *SMALL, "--backend", "debug_backend")
    assert (found["evidence"], "kernels" in found, "when" in found) == ("formula", False, False)
    assert found["edges"] == [{"ops": ["conv", "relu"], "verdict": found["verdict"]}]
    asked = ("ask", "conv+relu", "--backend", "debug_backend", "--set", "EVIDENCE=graph")
    line = asker.fail(7, *asked)
    assert line.startswith("EVIDENCE is graph, but debug_backend cannot tell what it executes")


def test_backends_that_cannot_be_reached(asker):
    line = asker.fail(7, "ask", "conv+relu", "--backend", "onnxruntime")
    assert "did you mean 'onnxruntime_cpu'?" in line
    line = asker.fail(7, "ask", "conv+relu", "--set", "PYTHON=/nowhere/python")
    assert line.startswith("PYTHON: '/nowhere/python' cannot be run")


def test_a_runtime_that_is_not_installed_is_named_with_its_extra(asker, tmp_path):
    """As in a Python in which the package cannot be imported."""
    (tmp_path / "MNN.py").write_text("raise ImportError('not here')")
    done = asker.run(
        *(NN_METER, "ask", "conv+relu", *SMALL, "--backend", "mnn_cpu"),
        env={**asker.environment, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.code, done.out) == (7, "")
    (line,) = done.complaints
    assert "pip install 'nn-meter[mnn]'" in line


# --- chains that cannot be -----------------------------------------------------------------------


BAD_CHAINS = [
    ("conv+rleu", 3, "there is no operator 'rleu'; did you mean 'relu'?"),
    ("conv+bn_relu", 3, "there is no operator 'bn_relu'"),
    ("conv", 3, "'conv' is no chain; join two or more operators by +, like conv+bn+relu"),
    ("conv+", 3, "'conv+' is no chain"),
    ("", 3, "'' is no chain"),
    ("conv+fc", 6, "conv+fc cannot be built: fc takes a 1-D tensor"),
]


def test_a_chain_that_cannot_be(asker):
    asked = [(code, "ask", chain) for chain, code, _ in BAD_CHAINS]
    for (_, _, words), line in zip(BAD_CHAINS, asker.fail_each(*asked), strict=True):
        assert line.startswith(words)


def test_sizes_that_an_operator_cannot_halve(asker):
    line = asker.fail(3, "ask", "split+relu", "--shape", "5x8x8")
    assert "their number must be even, but 5 reach it" in line
    assert "nn-meter-ask" not in line


# --- an operator of one's own --------------------------------------------------------------------


def test_an_operator_of_ones_own(asker):
    mine = asker.folder / "mine"
    mine.mkdir()
    (mine / "__init__.py").touch()
    (mine / "script.py").write_text(
        "from nn_meter.builder.nn_modules import BaseOperator\n"
        "from nn_meter.builder.nn_modules.onnx.operators import Relu\n"
        "class Softsign(Relu):\n"
        "    op_type = 'Softsign'\n"
    )
    (mine / "meta.yaml").write_text(
        "builtin_name: softsign\nimplement: onnx\npackage_location: .\n"
        "class_module: script\nclass_name: Softsign\n"
    )
    asker.succeed("register", "--operator", mine / "meta.yaml")
    found = asker.ask("conv+softsign", *SMALL, "--alone")
    assert (found["verdict"], found["kernels"]) == ("separate", ["Conv", "Softsign"])


def test_nothing_is_left_when_it_is_interrupted(asker):
    process = asker.start("ask", "conv+relu", *SMALL)
    while not glob(str(asker.temporary / "**" / "*.onnx"), recursive=True):  # noqa: PTH207 - folders come and go
        assert process.poll() is None
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
