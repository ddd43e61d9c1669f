"""Installed packages: what they bring is found, and a bad one costs itself and nothing else."""

from __future__ import annotations

import importlib
import logging
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from nn_meter import registry
from nn_meter.errors import BackendError, RegistrationError
from nn_meter.registry import plugins

OPERATOR = """
    from nn_meter.builder.nn_modules import BaseOperator

    class Op1(BaseOperator): ...
"""
TESTCASE = """
    BaseTestCase = type("BaseTestCase", (), {
        "__module__": "nn_meter.builder.backend_meta.fusion_rule_tester.testcase"})

    class MyTestCase(BaseTestCase): ...
"""
BACKEND = """
    from nn_meter.builder.backends import BaseBackend

    class MyBackend(BaseBackend): ...
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of the registry of this test's own, and warnings not yet given."""
    monkeypatch.setenv("NN_METER_HOME", str(tmp_path / "home"))
    plugins.warn_once.cache_clear()
    return tmp_path / "home"


def meta_file(folder: Path, implement: str) -> Path:
    """Write the package of an operator, and its meta file into it."""
    (folder / "__init__.py").touch()
    (folder / "script.py").write_text(textwrap.dedent(OPERATOR))
    keys = f"implement: {implement}\npackage_location: .\nclass_module: script\nclass_name: Op1\n"
    (folder / "meta.yaml").write_text("builtin_name: op1\n" + keys)
    return folder / "meta.yaml"


def added(kind: str) -> list[registry.Entry]:
    return [entry for entry in registry.entries(kind) if entry.origin != "builtin"]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution made of modules and the text of its entry points."""

    def _install(name: str, entry_points: str, **modules: str) -> None:
        site = tmp_path / f"site-{name}"
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))
        for module, text in modules.items():
            (site / f"{module}.py").write_text(textwrap.dedent(text))
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(str(site))

    return _install


def test_entry_points_of_each_kind(install):
    install(
        "plugin",
        """
        [nn_meter.operators]
        op1.tensorflow = plug_op:Op1
        op1.onnx = plug_op:Op1
        [nn_meter.testcases]
        MyTC.torch = plug_tc:MyTestCase
        [nn_meter.backends]
        my_backend = plug_be:MyBackend
        """,
        plug_op=OPERATOR,
        plug_tc=TESTCASE,
        plug_be=BACKEND,
    )
    assert [str(e) for e in added("operator")] == [
        "operator op1 (onnx)",
        "operator op1 (tensorflow)",
    ]
    entry = registry.find("operator", "op1", "tensorflow")
    assert entry.origin == "entry point"
    assert (entry.class_module, entry.class_name) == ("plug_op", "Op1")
    assert registry.load(entry) is registry.load(registry.find("operator", "op1", "onnx"))
    assert registry.load(registry.find("testcase", "MyTC")).__name__ == "MyTestCase"
    assert registry.load(registry.find("backend", "my_backend")).__name__ == "MyBackend"
    with pytest.raises(RegistrationError, match=r"comes with an installed package \(plug_be\)"):
        registry.unregister("backend", "my_backend")


def test_a_bad_entry_point_costs_itself_and_nothing_else(install, caplog):
    install(
        "plugin",
        """
        [nn_meter.operators]
        good.onnx = plug_op:Op1
        noimplement = plug_op:Op1
        under_score.onnx = plug_op:Op1
        odd.jax = plug_op:Op1
        conv.onnx = plug_op:Op1
        broken.onnx = plug_broken:Op1
        noclass.onnx = plug_op
        absent.onnx = plug_absent:Op1
        inner.onnx = plug_op:Outer.Op1
        """,
        plug_op=OPERATOR + "\n    class Outer:\n        Op1 = Op1\n",
        plug_broken="1 / 0",
    )
    names = [e.name for e in added("operator")]
    assert names == ["absent", "broken", "good", "inner", "noclass"]
    for text in (
        "entry point 'noimplement' of nn_meter.operators (plug_op:Op1): the name lacks the framew",
        "'under_score' has a '_'",
        "implement is 'jax'",
        "the operator conv (onnx) of an installed package (plug_op) is ignored",
    ):
        assert text in caplog.text
    assert registry.load(registry.find("operator", "good")).__name__ == "Op1"
    assert registry.load(registry.find("operator", "inner")).__name__ == "Op1"
    assert registry.find("operator", "conv", "onnx").origin == "builtin"
    for name, message in (
        ("broken", r"broken \(onnx\) cannot be loaded from plug_broken: ZeroDivisionError"),
        ("noclass", r"cannot be loaded from plug_op: it names no class"),
        ("absent", r"cannot be loaded from plug_absent: ModuleNotFoundError: No module named"),
    ):
        with pytest.raises(RegistrationError, match=message):
            registry.load(registry.find("operator", name))
    caplog.clear()
    registry.entries("operator")
    assert not caplog.text, "a warning is given once"


def test_a_package_with_damaged_metadata_costs_itself_and_nothing_else(install, caplog):
    install("good", "[nn_meter.backends]\nmy_backend = plug_be:MyBackend\n", plug_be=BACKEND)
    install("damaged", "[nn_meter.backends]\nthis line has no equals sign\n")
    assert "my_backend" in [e.name for e in registry.entries("backend")]
    assert "damaged-1.0.dist-info cannot be read and are ignored" in caplog.text


def test_what_is_registered_comes_before_an_entry_point(install, tmp_path, caplog):
    registry.register("operator", meta_file(tmp_path, "onnx"))
    install("plugin", "[nn_meter.operators]\nop1.onnx = p:Op1\nop1.torch = p:Op1\n", p=OPERATOR)
    assert registry.find("operator", "op1", "onnx").origin == "registered"
    assert registry.find("operator", "op1", "torch").origin == "entry point"
    assert "op1 (onnx) of an installed package (p) is ignored" in caplog.text
    assert "torch" not in caplog.text
    with pytest.raises(
        RegistrationError, match=r"op1 \(torch\) comes with an installed package \(p\)"
    ):
        registry.register("operator", meta_file(tmp_path, "torch"))


def test_built_ins_are_found_without_reading_entry_points_or_files(home):
    home.mkdir(parents=True)
    (home / "registry.yaml").write_text("damaged")
    with mock.patch.object(plugins, "_entry_points", side_effect=AssertionError):
        assert registry.find("backend", "debug_backend").origin == "builtin"


def test_warnings_go_to_the_log_of_the_project(install, caplog):
    install("plugin", "[nn_meter.backends]\na/b = plug_be:MyBackend\n")
    registry.entries("backend")
    assert [(r.name, r.levelno) for r in caplog.records] == [
        ("nn_meter.registry.plugins", logging.WARNING)
    ]


# --- the examples that lie in the repository ------------------------------------------------------

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPES = [[4, 8, 8]]


@pytest.fixture(scope="session")
def sample_plugin(tmp_path_factory):
    """The sample plug-in, built and installed as pip does it, into a folder of its own."""
    source = tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(EXAMPLES / "nn-meter-sample-plugin", source)  # setuptools leaves files there
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--no-compile", "--target", str(target), str(source)]
    subprocess.run(command, check=True)
    return target


@pytest.fixture
def installed(sample_plugin, monkeypatch):
    monkeypatch.syspath_prepend(str(sample_plugin))
    yield
    for name in [name for name in sys.modules if name.startswith("nn_meter_sample_plugin")]:
        del sys.modules[name]


@pytest.fixture
def model(tmp_path):
    """A small ONNX model."""
    models = importlib.import_module("nn_meter.builder.nn_modules.onnx.models")
    graph = models.Graph()
    x = graph.input(SHAPES[0])
    models.save_model(graph.model([graph.op("Relu", [x])]), tmp_path / "relu.onnx", SHAPES)
    return tmp_path / "relu.onnx"


@pytest.mark.usefixtures("installed")
def test_the_sample_plugin_is_listed():
    listed = [str(e) for kind in ("operator", "testcase", "backend") for e in added(kind)]
    assert listed == [
        "operator softsign (onnx)",
        "test case Residual (onnx)",
        "backend onnx_reference",
    ]


@pytest.mark.usefixtures("installed")
def test_the_sample_plugins_operator_computes_softsign(tmp_path):
    models = importlib.import_module("nn_meter.builder.nn_modules.onnx.models")
    softsign = registry.load(registry.find("operator", "softsign", "onnx"))
    operator = softsign([4, 8, 8], {"IMPLEMENT": "onnx"})
    operator.test_operator()
    built, shapes = models.chain_model([operator])
    models.save_model(built, tmp_path / "softsign.onnx", shapes)
    x = np.linspace(-3, 3, 256, dtype=np.float32).reshape(1, 4, 8, 8)
    (y,) = models.run_model(tmp_path / "softsign.onnx", [x])
    np.testing.assert_allclose(y, x / (1 + np.abs(x)), rtol=1e-6)


@pytest.mark.usefixtures("installed")
def test_the_sample_plugins_test_case_builds_every_model_of_its_cases(tmp_path):
    config = {
        **{"IMPLEMENT": "onnx", "HW": 8, "CIN": 4, "KERNEL_SIZE": 3, "COUT": 16, "STRIDES": 1},
        **{"PADDING": "same", "MODEL_DIR": str(tmp_path)},
    }
    testcase = registry.load(registry.find("testcase", "Residual", "onnx"))(config)
    models = testcase.generate_testcase()
    nodes = {name: [n.op_type for n in built["model"].graph.node] for name, built in models.items()}
    assert nodes == {
        "block": ["Conv", "Add", "Relu"],
        "dwconv_add": ["Conv", "Add"],
        "add_relu": ["Add", "Relu"],
        "dwconv": ["Conv"],
        "add": ["Add"],
        "relu": ["Relu"],
    }


@pytest.mark.usefixtures("installed")
def test_the_sample_plugins_backend_measures(model, tmp_path):
    backend = registry.load(registry.find("backend", "onnx_reference"))({"RUNS": 3})
    assert backend.profiler.profile(str(model)).shape == (3,)
    latency = backend.profile_model_file(str(model), str(tmp_path), SHAPES)["latency"]
    assert 0 < latency.avg < 1000


def test_the_customized_backend_measures(model, tmp_path, home):
    entry = registry.register("backend", EXAMPLES / "customized_backend" / "meta.yaml")
    assert entry.default_config_file == str(EXAMPLES / "customized_backend" / "default_config.yaml")
    backend = registry.load(registry.find("backend", "my_backend"))({"RUNS": 5})
    latency = backend.profile_model_file(str(model), str(tmp_path), SHAPES)["latency"]
    assert 0 < latency.avg < 1000
    latency = backend.parser.parse("my-runner: 1 runs\nmean 1500 us, deviation 20 us\n").results
    assert str(latency["latency"]) == "1.5 +- 0.02"
    with pytest.raises(BackendError, match="reported no latency, but: 'Segmentation fault'"):
        backend.parser.parse("Segmentation fault")


@pytest.mark.parametrize(
    ("kind", "folder", "expected"),
    [
        ("operator", "customized_operator", "operator op1 (tensorflow)"),
        ("testcase", "customized_testcase", "test case MyTC (tensorflow)"),
    ],
)
def test_the_meta_files_of_the_tensorflow_examples(kind, folder, expected):
    entry = registry.read_meta_file(kind, EXAMPLES / folder / "meta.yaml")
    assert str(entry) == expected
    assert entry.package_location == str(EXAMPLES / folder)
    source = (EXAMPLES / folder / f"{entry.class_module}.py").read_text()
    assert f"class {entry.class_name}(" in source
