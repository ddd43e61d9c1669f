"""What users add: refused with the reason before anything is written, and found again as it was."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester import generate
from nn_meter.cli.listing import print_list
from nn_meter.errors import ConfigError, RegistrationError
from nn_meter.registry import Entry, catalogue, files, plugins
from nn_meter.registry.loading import _BASES

OPERATORS = [
    # the guide's
    *("conv", "dwconv", "convtrans", "bn", "globalavgpool", "maxpool", "avgpool", "se", "fc"),
    *("relu", "relu6", "sigmoid", "hswish", "reshape", "add", "concat", "flatten", "split"),
    # ours
    *("swish", "gelu", "leakyrelu", "prelu", "hardsigmoid", "tanh", "layernorm", "softmax"),
    *("matmul", "mul", "pad", "resize", "channelshuffle"),
    *(
        "bias",
        "center",
        "scale",
        "addscalar",
        "mulscalar",
        "mulone",
        "square",
        "mean",
        "bmm",
        "rowsoftmax",
    ),
]
OPERATOR = """
    from nn_meter.builder.nn_modules import BaseOperator

    class Op1(BaseOperator):
        def get_model(self):
            return None
"""
# what the class of the layer above is to the registry: its name, and where it is defined
TESTCASE = """
    BaseTestCase = type("BaseTestCase", (), {
        "__module__": "nn_meter.builder.backend_meta.fusion_rule_tester.testcase"})

    class MyTestCase(BaseTestCase): ...
"""
BACKEND = """
    BaseBackend = type("BaseBackend", (), {"__module__": "nn_meter.builder.backends.base"})

    class MyBackend(BaseBackend): ...
"""
CODE = {"operator": OPERATOR, "testcase": TESTCASE, "backend": BACKEND}
CLASSES = {"operator": "Op1", "testcase": "MyTestCase", "backend": "MyBackend"}
NAMES = {"operator": "op1", "testcase": "MyTC", "backend": "my_backend"}
KINDS = list(CODE)
ITEM = (
    "- {builtin_name: op1, implement: torch, package_location: /x, "
    "class_module: m, class_name: C}\n"
)


def meta_keys(kind: str, folder: Path, **changed: object) -> dict[str, object]:
    keys: dict[str, object] = {"builtin_name": NAMES[kind], "implement": "tensorflow"}
    if kind == "backend":
        del keys["implement"]
    keys |= {"package_location": str(folder), "class_module": "script", "class_name": CLASSES[kind]}
    return keys | changed


def package(folder: Path, **modules: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").touch()
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


def meta_file(kind: str, folder: Path, **changed: object) -> Path:
    """Write a package with a class of the kind, unless it is there, and a meta file beside it."""
    if not folder.exists():
        package(folder, script=CODE[kind])
    path = folder.parent / "meta.yaml"
    path.write_text(yaml.safe_dump(meta_keys(kind, folder, **changed)))
    return path


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """A home of the registry that does not exist yet, and warnings not yet given."""
    home = tmp_path_factory.mktemp("home") / "of" / "registry"
    monkeypatch.setenv("NN_METER_HOME", str(home))
    plugins.warn_once.cache_clear()
    finders, modules = list(sys.meta_path), set(sys.modules)
    yield home
    sys.meta_path[:] = finders
    for name in set(sys.modules) - modules:
        if name.startswith("nn_meter_user_"):
            del sys.modules[name]


# --- what is built in -----------------------------------------------------------------------------


def test_built_ins_come_in_the_guides_order():
    assert [e.name for e in registry.entries("operator")] == OPERATORS
    assert [e.name for e in registry.entries("testcase")] == [
        *("MON", "MIN", "MINRELU"),
        *("MONELTWISE", "MINELTWISE"),
    ]
    assert [e.name for e in registry.entries("backend")] == [
        "tflite_cpu",
        "tflite_gpu",
        "openvino_vpu",
        "onnxruntime_cpu",
        "onnxruntime_providers",
        "openvino_cpu",
        "openvino_gpu",
        "ncnn_cpu",
        "ncnn_vulkan",
        "mnn_cpu",
        "iree_cpu",
        "debug_backend",
    ]
    for kind in KINDS:
        assert {(e.kind, e.origin, e.implement) for e in registry.entries(kind)} == {
            (kind, "builtin", None)
        }


@pytest.mark.parametrize("implement", registry.IMPLEMENTS)
def test_a_built_in_operator_has_a_class_in_each_framework(implement):
    entry = registry.find("operator", "bn", implement)
    assert entry.implement == implement
    assert entry.class_module == f"nn_meter.builder.nn_modules.{implement}.operators"
    assert entry.class_name == "BatchNorm"
    assert entry.package_location is None


def test_every_built_in_onnx_operator_loads():
    from nn_meter.builder.nn_modules import BaseOperator

    classes = [registry.load(registry.find("operator", n, "onnx")) for n in OPERATORS]
    assert len(set(classes)) == len(OPERATORS)
    assert all(issubclass(cls, BaseOperator) for cls in classes)


@pytest.mark.parametrize("implement", registry.IMPLEMENTS)
def test_an_operator_of_controls_has_a_class_in_each_framework(implement):
    entry = registry.find("operator", "running_sum", implement)
    assert (entry.origin, entry.implement, entry.class_name) == ("builtin", implement, "RunningSum")
    assert entry.class_module == f"nn_meter.builder.nn_modules.{implement}.operators"
    assert registry.find("operator", "running_sum").implement is None


def test_an_operator_of_controls_stands_in_no_list(capsys):
    print_list("operator")
    listed = "".join(capsys.readouterr())
    assert "relu" in listed
    assert "sum" not in listed
    for kind in KINDS:
        assert "running_sum" not in {entry.name for entry in registry.entries(kind)}
        for name in ("runningsum", "running-sum", "running_sums", "zzz"):
            with pytest.raises(RegistrationError) as caught:
                registry.find(kind, name)
            assert "running_sum" not in str(caught.value).replace(repr(name), "")
    with pytest.raises(RegistrationError, match="no test case 'running_sum'"):
        registry.find("testcase", "running_sum")
    with pytest.raises(RegistrationError, match="no operator 'running_sum'"):
        registry.unregister("operator", "running_sum")


def test_nobody_is_asked_for_pairs_of_an_operator_of_controls(workspace):
    ws = workspace(BASIC_TESTCASES="all")
    plans = generate._plan(ws, ws.operator_config(), generate.Generated(), 60.0)
    assert len(plans) > 900
    assert not [name for name in plans if "sum" in name]
    with pytest.raises(ConfigError) as caught:
        workspace(BASIC_TESTCASES=["running_sum_relu"])
    assert "running_sum" not in str(caught.value).replace("running_sum_relu", "")


def test_a_built_in_test_case_is_the_same_in_each_framework():
    entry = registry.find("testcase", "MON", "torch")
    assert (entry.class_module, entry.class_name) == (
        "nn_meter.builder.backend_meta.fusion_rule_tester.mon",
        "MultipleOutNodes",
    )
    assert registry.find("testcase", "MON").implement is None


def test_an_operator_of_no_framework_cannot_be_loaded():
    with pytest.raises(RegistrationError, match=r"conv exists for tensorflow, torch, onnx: say"):
        registry.load(registry.find("operator", "conv"))


def test_a_built_in_whose_framework_is_missing_says_what_to_install():
    with (
        mock.patch.dict(sys.modules, {"nn_meter.builder.nn_modules.tensorflow.operators": None}),
        pytest.raises(RegistrationError, match=r"conv \(tensorflow\) cannot be loaded") as caught,
    ):
        registry.load(registry.find("operator", "conv", "tensorflow"))
    assert isinstance(caught.value.__cause__, ImportError)


@pytest.mark.parametrize(
    ("kind", "name", "implement", "message"),
    [
        ("operator", "Conv2", None, r"no operator 'Conv2'; did you mean 'conv'\?; known: conv, dw"),
        ("operator", "zzz", None, r"no operator 'zzz'; known: conv"),
        ("testcase", "MONN", "onnx", r"no test case 'MONN'; did you mean 'MON'\?"),
        ("backend", "onnxruntime", None, r"did you mean 'onnxruntime_cpu'\?"),
        ("operator", "conv", "tenserflow", r"'tenserflow'; did you mean 'tensorflow'\?; choose"),
        ("backend", "tflite_cpu", "onnx", r"a backend has no implement"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(kind, name, implement, message):
    with pytest.raises(RegistrationError, match=message):
        registry.find(kind, name, implement)


def test_the_bases_are_where_the_registry_looks_for_them():
    for defined, public in _BASES.values():
        module, _, name = public.rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        assert defined == f"{cls.__module__}.{cls.__qualname__}"


# --- home -----------------------------------------------------------------------------------------


def test_home_is_in_the_users_home_unless_told(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in (None, ""):
        monkeypatch.setenv("NN_METER_HOME", "") if unset == "" else monkeypatch.delenv(
            "NN_METER_HOME"
        )
        assert registry.home() == tmp_path / ".nn_meter"
    monkeypatch.setenv("NN_METER_HOME", "~/elsewhere")
    assert registry.registry_path() == tmp_path / "elsewhere" / "registry.yaml"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NN_METER_HOME", "here")
    assert registry.home() == tmp_path / "here"


# --- registering ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_register_list_find_load_unregister(kind, tmp_path, home):
    before = registry.entries(kind)
    registered = registry.register(kind, meta_file(kind, tmp_path / "pkg"))
    assert registered == Entry(
        kind=kind,
        name=NAMES[kind],
        origin="registered",
        implement=None if kind == "backend" else "tensorflow",
        package_location=str(tmp_path / "pkg"),
        class_module="script",
        class_name=CLASSES[kind],
    )
    assert registry.entries(kind) == [*before, registered]
    assert registry.find(kind, NAMES[kind]) == registered
    assert registry.find(kind, NAMES[kind], registered.implement) == registered
    assert registry.load(registered).__name__ == CLASSES[kind]
    assert registry.load(registry.find(kind, NAMES[kind])) is registry.load(registered)
    for other in set(KINDS) - {kind}:
        assert NAMES[kind] not in [e.name for e in registry.entries(other)]
    assert registry.unregister(kind, NAMES[kind], registered.implement) == registered
    assert registry.entries(kind) == before
    assert sorted(p.name for p in home.iterdir() if p.suffix != ".lock") == ["registry.yaml"]
    assert (tmp_path / "pkg" / "script.py").is_file()


def test_the_registry_is_yaml_with_the_keys_of_the_meta_files(tmp_path, home):
    registry.register("operator", meta_file("operator", tmp_path / "a"))
    config = tmp_path / "config.yaml"
    config.touch()
    registry.register(
        "backend", meta_file("backend", tmp_path / "b", defaultConfigFile=str(config))
    )
    assert yaml.safe_load((home / "registry.yaml").read_text()) == {
        "version": 1,
        "operators": [meta_keys("operator", tmp_path / "a")],
        "testcases": [],
        "backends": [meta_keys("backend", tmp_path / "b", defaultConfigFile=str(config))],
    }


def test_one_name_in_two_frameworks(tmp_path):
    for implement in ("tensorflow", "torch"):
        registry.register("operator", meta_file("operator", tmp_path / "a", implement=implement))
    assert registry.find("operator", "op1", "torch").implement == "torch"
    with pytest.raises(RegistrationError, match=r"op1 exists for tensorflow and torch: say for"):
        registry.find("operator", "op1")
    with pytest.raises(RegistrationError, match=r"for tensorflow and torch, but not for onnx"):
        registry.find("operator", "op1", "onnx")
    with pytest.raises(RegistrationError, match=r"op1 exists for tensorflow and torch: say for"):
        registry.unregister("operator", "op1")
    registry.unregister("operator", "op1", "tensorflow")
    assert registry.find("operator", "op1").implement == "torch"


def test_two_folders_with_modules_of_one_name(tmp_path):
    for name in ("op1", "op2"):
        folder = package(tmp_path / name / "ops", script=OPERATOR + f"        mark = {name!r}\n")
        registry.register("operator", meta_file("operator", folder, builtin_name=name))
    marks = [registry.load(registry.find("operator", n)).mark for n in ("op1", "op2")]
    assert marks == ["op1", "op2"]


@pytest.mark.parametrize("location", ["pkg", "./pkg", "../x/pkg", "~/x/pkg", "{tmp}/x/pkg"])
def test_locations_count_from_the_meta_file(location, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").mkdir()
    (tmp_path / "elsewhere").mkdir()
    location = location.format(tmp=tmp_path)
    meta_file(
        "backend", tmp_path / "x" / "pkg", package_location=location, defaultConfigFile="c.yaml"
    )
    (tmp_path / "x" / "c.yaml").touch()
    monkeypatch.chdir(tmp_path / "x")
    entry = registry.register("backend", "meta.yaml")
    assert entry.package_location == str(tmp_path / "x" / "pkg")
    assert entry.default_config_file == str(tmp_path / "x" / "c.yaml")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert registry.load(registry.find("backend", "my_backend")).__name__ == "MyBackend"


def test_a_meta_file_in_its_own_package(tmp_path):
    folder = package(tmp_path / "ops", script=OPERATOR)
    (folder / "meta.yaml").write_text(yaml.safe_dump(meta_keys("operator", Path())))
    assert registry.register("operator", folder / "meta.yaml").package_location == str(folder)


@pytest.mark.parametrize("value", ["", "null", "''"])
def test_a_backend_need_not_have_a_default_config(value, tmp_path):
    path = meta_file("backend", tmp_path / "pkg")
    path.write_text(path.read_text() + f"defaultConfigFile: {value}\n")
    assert registry.register("backend", path).default_config_file is None


def test_meta_file_as_the_guide_has_it(tmp_path):
    package(tmp_path / "customized_operator", operator_script=OPERATOR)
    meta = tmp_path / "meta.yaml"
    meta.write_text(
        "builtin_name: op1\n"
        "implement: tensorflow\n"
        f"package_location: {tmp_path}/customized_operator\n"
        "class_module: operator_script\n"
        "class_name: Op1\n"
    )
    assert str(registry.register("operator", meta)) == "operator op1 (tensorflow)"


REFUSED = [
    ({"builtin_name": "op_1"}, r"builtin_name: the name 'op_1' has a '_', which joins"),
    ({"builtin_name": ""}, r"builtin_name is empty"),
    ({"builtin_name": "  "}, r"builtin_name is empty"),
    ({"builtin_name": None}, r"builtin_name is empty"),
    ({"builtin_name": "op 1"}, r"'op 1' cannot be the name of an operator"),
    ({"builtin_name": "../op"}, r"cannot be the name"),
    ({"builtin_name": "op/1"}, r"cannot be the name"),
    ({"builtin_name": "op\\1"}, r"cannot be the name"),
    ({"builtin_name": "-op"}, r"cannot be the name"),
    ({"builtin_name": "op-"}, r"cannot be the name"),
    ({"builtin_name": "op\n"}, r"cannot be the name"),
    ({"builtin_name": "o" * 65}, r"at most 64"),
    ({"builtin_name": "op.torch"}, r"cannot be the name"),
    ({"builtin_name": "block"}, r"'block' means something else"),
    ({"builtin_name": "ops"}, r"'ops' means something else"),
    ({"builtin_name": "BF"}, r"'BF' means something else"),
    ({"builtin_name": "conv"}, r"operator conv is built in: choose another builtin_name"),
    ({"builtin_name": 1}, r"builtin_name should be text, but YAML takes 1 for a number; put it in"),
    ({"builtin_name": True}, r"takes true for a truth value; put it in quotes"),
    ({"builtin_name": ["op1"]}, r"builtin_name should be text, but is a list"),
    ({"class_name": {"a": "b"}}, r"class_name should be text, but is a mapping"),
    ({"implement": "tensorfow"}, r"'tensorfow'; did you mean 'tensorflow'\?; choose from tensorfl"),
    ({"implement": "jax"}, r"implement is 'jax'; choose from tensorflow, torch, onnx"),
    ({"implement": None}, r"implement is empty"),
    ({"package_location": "nowhere"}, r"package_location .*nowhere is no folder"),
    ({"package_location": "meta.yaml"}, r"meta.yaml is no folder"),
    ({"package_location": "."}, r"is no package: put an __init__.py there"),
    ({"package_location": "a\0b"}, r"is no folder"),
    ({"package_location": "a" * 5000}, r"package_location has more than 1024 characters"),
    ({"package_location": "~nobody-of-that-name/x"}, r"is no path"),
    ({"class_module": "script.py"}, r"class_module is 'script.py': leave out the '.py'"),
    ({"class_module": "../script"}, r"class_module: '../script' cannot be the name of a module"),
    ({"class_module": "scirpt"}, r"there is no module 'scirpt'; did you mean 'script'\?"),
    ({"class_module": "sub.script"}, r"there is no module 'sub.script'"),
    ({"class_name": "Op 1"}, r"class_name: 'Op 1' cannot be the name of a class"),
    ({"class_name": "op1"}, r"script.py: there is no class 'op1'; did you mean 'Op1'\?"),
    ({"class_name": "BaseOperator"}, r"the class BaseOperator does not derive from nn_meter\.bu"),
    ({"class_nmae": "Op1"}, r"unknown key 'class_nmae' in line \d; did you mean 'class_name'\?"),
    ({"defaultConfigFile": "x"}, r"unknown key 'defaultConfigFile' in line \d; known keys"),
    ({"package_locaton": "."}, r"did you mean 'package_location'\?"),
    ({1: "x"}, r"unknown key '1'"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=[str(c)[:40] for c, _ in REFUSED])
def test_bad_meta_files_are_refused_before_anything_is_written(changed, message, tmp_path, home):
    path = meta_file("operator", tmp_path / "pkg", **{str(k): v for k, v in changed.items()})
    if 1 in changed:
        path.write_text(path.read_text().replace("'1'", "1"))
    with pytest.raises(RegistrationError, match=message) as caught:
        registry.register("operator", path)
    assert "\n" not in str(caught.value)
    assert not home.exists()


@pytest.mark.parametrize("key", meta_keys("operator", Path()))
def test_every_missing_key_is_named(key, tmp_path):
    path = meta_file("operator", tmp_path / "pkg")
    keys = {k: v for k, v in meta_keys("operator", tmp_path / "pkg").items() if k != key}
    path.write_text(yaml.safe_dump(keys))
    with pytest.raises(RegistrationError, match=rf"meta\.yaml: the key '{key}' is missing"):
        registry.register("operator", path)


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("testcase", {"builtin_name": "My_TC"}, r"'My_TC' has a '_'"),
        ("testcase", {"builtin_name": "MON"}, r"test case MON is built in"),
        ("backend", {"builtin_name": "tflite_cpu"}, r"backend tflite_cpu is built in"),
        ("backend", {"builtin_name": "my/backend"}, r"cannot be the name of a backend"),
        ("backend", {"builtin_name": "my."}, r"cannot be the name of a backend"),
        ("backend", {"builtin_name": ".."}, r"cannot be the name of a backend"),
        ("backend", {"implement": "onnx"}, r"unknown key 'implement'"),
        (
            "backend",
            {"defaultConfigFile": "none.yaml"},
            r"defaultConfigFile .*none.yaml is no file",
        ),
        ("backend", {"defaultConfigFile": 1}, r"defaultConfigFile should be text"),
        ("backend", {"defaultconfigfile": "x"}, r"did you mean 'defaultConfigFile'\?"),
    ],
)
def test_bad_meta_files_of_other_kinds(kind, changed, message, tmp_path, home):
    path = meta_file(kind, tmp_path / "pkg", **changed)
    with pytest.raises(RegistrationError, match=message):
        registry.register(kind, path)
    assert not home.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"meta.yaml: should hold 'key: value' lines"),
        ("just words", r"should hold 'key: value' lines"),
        ("- a\n- b", r"should hold 'key: value' lines"),
        ("a: b: c", r"is no valid YAML: mapping values are not allowed"),
        ("builtin_name: a\nbuiltin_name: b", r"the key 'builtin_name' is given again in line 2"),
        ("? [a]\n: b", r"unknown key 'list' in line 1"),
        ("builtin_name: !!python/object:os.system x", r"should be text, but YAML takes x for a"),
        ('a: "\\UFFFFFFFF"', r"is no valid YAML"),
        ("[" * 5000, r"is no valid YAML"),
        ("%YAML 1.2\n---\na: b\n...\n---\n", r"is no valid YAML"),
        ("&a [*a]", r"should hold"),
    ],
)
def test_files_that_hold_something_else(text, message, tmp_path, home):
    (tmp_path / "meta.yaml").write_text(text)
    with pytest.raises(RegistrationError, match=message):
        registry.register("operator", tmp_path / "meta.yaml")
    assert not home.exists()


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin1").write_bytes(b"builtin_name: \xe9")
    for name, message in [
        ("none", "cannot be read: No such"),
        ("", "cannot be read"),
        ("latin1", "no valid YAML"),
        ("a\0b", "null"),
    ]:
        with pytest.raises(RegistrationError, match=message):
            registry.register("operator", tmp_path / name)


def test_a_name_is_registered_once(tmp_path, home):
    path = meta_file("operator", tmp_path / "pkg")
    registry.register("operator", path)
    before = (home / "registry.yaml").read_bytes()
    with pytest.raises(RegistrationError, match=r"op1 \(tensorflow\) is registered already"):
        registry.register("operator", path)
    assert (home / "registry.yaml").read_bytes() == before
    registry.unregister("operator", "op1")
    registry.register("operator", path)


def test_a_name_that_another_process_registers_meanwhile(tmp_path, home):
    path = meta_file("operator", tmp_path / "pkg")

    def be_slow(entry: Entry) -> None:
        home.mkdir(parents=True)
        quick = ITEM.replace("torch", "tensorflow")
        (home / "registry.yaml").write_text("version: 1\noperators:\n" + quick)

    with (
        mock.patch.object(catalogue, "load", be_slow),
        pytest.raises(RegistrationError, match=r"op1 \(tensorflow\) is registered already"),
    ):
        registry.register("operator", path)
    assert registry.find("operator", "op1").class_module == "m"


def test_read_meta_file_checks_the_folder(tmp_path):
    path = meta_file("operator", tmp_path / "pkg", package_location="nowhere")
    with pytest.raises(
        RegistrationError, match=r"meta\.yaml: package_location .*/nowhere is no fo"
    ):
        registry.read_meta_file("operator", path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_meta_files_of_windows(encoding, tmp_path):
    path = meta_file("operator", tmp_path / "Größe")
    text = yaml.safe_dump(meta_keys("operator", tmp_path / "Größe"), allow_unicode=True)
    path.write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert registry.read_meta_file("operator", path).package_location == str(tmp_path / "Größe")


BROKEN = [
    ("def f(:\n", r"script\.py: SyntaxError: invalid syntax \(script\.py, line 1\)"),
    (
        "import os\nimport not_installed\n",
        r"ModuleNotFoundError: No module named 'not_installed' \(scr",
    ),
    ("from os import nothing\n", r"ImportError: cannot import name 'nothing' from 'os'"),
    ("x = 1\n1 / 0\n", r"ZeroDivisionError: division by zero \(script\.py, line 2\)"),
    ("import helper\n", r"ValueError: two lines \(helper\.py, line 2\)"),
    ("import sys\nsys.exit(3)\n", r"SystemExit: 3 \(script\.py, line 2\)"),
    ("def f(): f()\nf()\n", r"RecursionError: maximum recursion depth"),
    ("raise AssertionError\n", r"AssertionError \(script\.py, line 1\)"),
    ("class E(Exception):\n    def __str__(self): 1/0\nraise E\n", r"<exception str\(\) failed>"),
    (
        "def Op1(BaseOperator):\n    def get_model(self): ...\n",
        r"Op1 is a function, not a class; write 'class Op1\(BaseOperator\):', not 'def Op1\(BaseOp",
    ),
    ("Op1 = 3\n", r"Op1 is 3, not a class"),
    (
        "class Op1: ...\n",
        r"class Op1 does not derive from nn_meter\.builder\.nn_modules\.BaseOperator",
    ),
    ("class Op1(type('BaseOperator', (), {})): ...\n", r"does not derive from"),
    ("class Op2: ...\n", r"no class 'Op1'; did you mean 'Op2'\?"),
    ("def __getattr__(name): raise ValueError(name)\n", r"ValueError: Op1"),
    ("import torch_is_not_here\n", r"No module named"),
    ("import tensorflow\n", r"pip install 'nn-meter\[tensorflow\]' brings it"),
    ("from keras import layers\n", r"pip install 'nn-meter\[tensorflow\]' brings it"),
]


@pytest.mark.parametrize(("code", "message"), BROKEN, ids=[c[:30] for c, _ in BROKEN])
def test_a_class_that_does_not_load_is_not_registered(code, message, tmp_path, home, monkeypatch):
    for framework in ("tensorflow", "keras"):  # also where it is installed
        monkeypatch.setitem(sys.modules, framework, None)
        del sys.modules[framework]
        monkeypatch.setattr(sys, "meta_path", [_Missing(framework), *sys.meta_path])
    folder = package(tmp_path / "pkg", script=code, helper="\nraise ValueError('two\\nlines')")
    before = set(sys.modules)
    with pytest.raises(RegistrationError, match=message) as caught:
        registry.register("operator", meta_file("operator", folder))
    assert str(caught.value).startswith(
        "operator op1 (tensorflow) cannot be loaded from " + str(folder)
    )
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None
    assert not home.exists()
    if "class" not in code and "Op1" not in code and "__getattr__" not in code:
        assert set(sys.modules) == before


class _Missing:
    """A finder by which a module is not installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == self.name:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def test_a_keyboard_interrupt_is_none_of_our_business(tmp_path, home):
    folder = package(tmp_path / "pkg", script="raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        registry.register("operator", meta_file("operator", folder))
    assert not home.exists()


def test_an_init_that_fails_is_named(tmp_path):
    folder = package(tmp_path / "pkg", script=OPERATOR, __init__="1 / 0")
    with pytest.raises(RegistrationError, match=r"division by zero \(__init__\.py, line 1\)"):
        registry.register("operator", meta_file("operator", folder))


def test_a_package_that_went_away(tmp_path):
    entry = registry.register("operator", meta_file("operator", tmp_path / "pkg"))
    (tmp_path / "pkg" / "script.py").rename(tmp_path / "pkg" / "scripts.py")
    with pytest.raises(RegistrationError, match=r"no module 'script'; did you mean 'scripts'\?"):
        registry.load(entry)
    (tmp_path / "pkg").rename(tmp_path / "moved")
    assert entry in registry.entries("operator")
    with pytest.raises(
        RegistrationError, match=r"op1 \(tensorflow\) cannot be loaded: its package_l"
    ):
        registry.load(entry)
    registry.unregister("operator", "op1", "tensorflow")


# --- unregistering --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "implement", "message"),
    [
        ("conv", None, r"operator conv is built in and cannot be unregistered"),
        ("conv", "torch", r"operator conv is built in"),
        ("op2", None, r"no operator 'op2'; did you mean 'op1'\?; known: op1 \(tensorflow\)"),
        ("op1", "torch", r"op1 exists for tensorflow, but not for torch"),
        ("op1", "tensor", r"implement is 'tensor'"),
    ],
)
def test_what_cannot_be_unregistered(name, implement, message, tmp_path, home):
    registry.register("operator", meta_file("operator", tmp_path / "pkg"))
    before = (home / "registry.yaml").read_bytes()
    with pytest.raises(RegistrationError, match=message):
        registry.unregister("operator", name, implement)
    assert (home / "registry.yaml").read_bytes() == before


def test_unregistering_takes_the_kind_by_its_word(tmp_path):
    registry.register("operator", meta_file("operator", tmp_path / "pkg"))
    with pytest.raises(RegistrationError, match="no test case 'op1'; known: none"):
        registry.unregister("testcase", "op1")


def test_unregistering_where_nothing_is_registered(home):
    with pytest.raises(RegistrationError, match=r"no backend 'my_backend'; known: none"):
        registry.unregister("backend", "my_backend")
    assert not home.exists()


# --- the registry's file --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"should hold"),
        ("[]", r"should hold"),
        ("operators: []", r"version should be 1"),
        ("version: 2\noperators: []", r"version should be 1"),
        ("version: [1]", r"version should be 1"),
        (
            "version: 1\noperator: []",
            r"unknown key 'operator' in line 2; did you mean 'operators'\?",
        ),
        ("version: 1\noperators: {}", r"operators should be a list, but is a mapping"),
        ("version: 1\noperators:\n- op1\n", r"operators, item 1: should hold"),
        ("version: 1\noperators:\n" + ITEM * 2, r"item 2: operator op1 \(torch\) is there already"),
        ("version: 1\noperators:\n" + ITEM.replace("/x", "x"), r"item 1: x is no absolute path"),
        ("version: 1\noperators:\n" + ITEM.replace("op1", "op_1"), r"'op_1' has a '_'"),
        ("version: 1\nbackends:\n" + ITEM, r"backends, item 1: unknown key 'implement'"),
        ("version: 1\n\0", r"no valid YAML"),
        ("version: 1\noperators: [", r"no valid YAML"),
    ],
)
def test_a_damaged_registry_is_named_and_left_alone(text, message, tmp_path, home):
    home.mkdir(parents=True)
    path = home / "registry.yaml"
    path.write_text(text)
    meta = meta_file("operator", tmp_path / "pkg")
    for action in (
        lambda: registry.entries("operator"),
        lambda: registry.find("operator", "op1"),
        lambda: registry.register("operator", meta),
        lambda: registry.unregister("operator", "op1"),
    ):
        with pytest.raises(RegistrationError, match=message) as caught:
            action()
        assert str(path) in str(caught.value)
        assert "mend the file, or move it away" in str(caught.value)
    assert path.read_text() == text
    assert [p.name for p in home.iterdir()] == ["registry.yaml"]
    assert registry.find("operator", "conv", "onnx").name == "conv"  # what needs no registry works


def test_a_hand_written_registry_with_one_section_is_fine(home):
    home.mkdir(parents=True)
    (home / "registry.yaml").write_text("version: 1\noperators:\n" + ITEM)
    assert registry.find("operator", "op1").package_location == "/x"


def test_a_registered_name_that_nn_meter_brings_later_is_ignored(home, caplog):
    home.mkdir(parents=True)
    (home / "registry.yaml").write_text("version: 1\noperators:\n" + ITEM.replace("op1", "relu"))
    assert [e.name for e in registry.entries("operator")] == OPERATORS
    assert "the registered operator relu (torch) is ignored" in caplog.text
    assert registry.find("operator", "relu", "torch").origin == "builtin"
    registry.unregister("operator", "relu", "torch")
    caplog.clear()
    assert [e.name for e in registry.entries("operator")] == OPERATORS
    assert not caplog.text


def test_home_where_there_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NN_METER_HOME", str(tmp_path / "file"))
    with pytest.raises(RegistrationError, match=r"file/registry\.yaml: cannot be read: Not a dir"):
        registry.register("operator", meta_file("operator", tmp_path / "pkg"))


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_disk_that_fails_leaves_the_old_file(step, tmp_path, home):
    registry.register("operator", meta_file("operator", tmp_path / "pkg"))
    before = {p.name: p.read_bytes() for p in home.iterdir()}
    meta = meta_file("operator", tmp_path / "pkg", builtin_name="op2")
    with (
        mock.patch(step, side_effect=OSError(28, "No space left on device")),
        pytest.raises(
            RegistrationError, match=r"registry\.yaml: cannot be written: .*No space left"
        ),
    ):
        registry.register("operator", meta)
    assert {p.name: p.read_bytes() for p in home.iterdir()} == before


def test_the_file_is_on_disk_before_it_takes_the_old_ones_place(tmp_path, home):
    calls = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(fd: int) -> None:
        calls.append(("fsync", os.fstat(fd).st_size))
        fsync(fd)

    def note_replace(self: Path, target: Path) -> Path:
        calls.append(("replace", self.stat().st_size))
        assert self.parent == target.parent
        return replace(self, target)

    with mock.patch("os.fsync", note_fsync), mock.patch("pathlib.Path.replace", note_replace):
        registry.register("operator", meta_file("operator", tmp_path / "pkg"))
    size = (home / "registry.yaml").stat().st_size
    assert calls == [("fsync", size), ("replace", size)]


def test_a_linked_registry_stays_a_link(tmp_path, home):
    home.mkdir(parents=True)
    (tmp_path / "dotfiles").mkdir()
    (home / "registry.yaml").symlink_to(tmp_path / "dotfiles" / "mine.yaml")
    registry.register("operator", meta_file("operator", tmp_path / "pkg"))
    assert (home / "registry.yaml").is_symlink()
    assert "op1" in (tmp_path / "dotfiles" / "mine.yaml").read_text()


@pytest.mark.parametrize("name", ["on", "1", "ä b", "a: b", "a'\"b", "#x", "{USERNAME}", "n\nl"])
def test_folders_of_any_name(name, tmp_path):
    entry = registry.register("operator", meta_file("operator", tmp_path / name))
    assert registry.find("operator", "op1") == entry
    assert entry.package_location == str(tmp_path / name)


def test_the_registry_can_be_read_by_people(tmp_path, home):
    registry.register("operator", meta_file("operator", tmp_path / "Größe"))
    assert f"  package_location: {tmp_path}/Größe\n" in (home / "registry.yaml").read_text("utf-8")


def test_a_lock_that_is_held_is_waited_for_and_then_named(tmp_path, home, monkeypatch):
    monkeypatch.setattr(files, "_LOCK_TIMEOUT_S", 0.2)
    home.mkdir(parents=True)
    program = (
        "import sys, filelock\n"
        "with filelock.FileLock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(home / "registry.yaml.lock")]
    meta = meta_file("operator", tmp_path / "pkg")
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            RegistrationError, match=r"another nn-meter has been changing it for 0\.2 s"
        ):
            registry.register("operator", meta)
        (home / "registry.yaml").write_text("version: 1\noperators:\n" + ITEM)
        with pytest.raises(RegistrationError, match="another nn-meter has been changing it"):
            registry.unregister("operator", "op1")
        assert registry.find("operator", "op1").class_module == "m"
        holder.stdin.close()
    registry.unregister("operator", "op1")
    registry.register("operator", meta)


def test_registering_from_many_processes_loses_nothing(tmp_path):
    program = (
        "import sys\n"
        "from nn_meter import registry\n"
        "for path in sys.argv[1:]:\n"
        "    registry.register('operator', path)\n"
    )
    names = [f"op{i}" for i in range(12)]
    metas = []
    for name in names:
        path = meta_file("operator", tmp_path / "pkg", builtin_name=name)
        metas.append(str(path.rename(tmp_path / f"{name}.yaml")))
    workers = [subprocess.Popen([sys.executable, "-c", program, *metas[i::3]]) for i in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    added = registry.entries("operator")[len(OPERATORS) :]
    assert sorted(e.name for e in added) == sorted(names)


# --- damaged files, whatever the damage -----------------------------------------------------------

_junk = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.dates(), st.binary(),
    st.lists(st.text(max_size=3), max_size=2),
)  # fmt: skip
_fragments = st.one_of(
    st.binary(max_size=8),
    st.sampled_from(
        [b"\n", b": ", b"- ", b"{", b"]", b"'", b'"\\U', b"&a ", b"*a", b"!!int ", b"%", b"\t"]
    ),
)


@st.composite
def _spliced(draw: st.DrawFn, whole: bytes) -> bytes:
    """A good file with a piece cut out and something else put there."""
    start = draw(st.integers(0, len(whole)))
    stop = draw(st.integers(start, min(len(whole), start + 40)))
    return whole[:start] + b"".join(draw(st.lists(_fragments, max_size=3))) + whole[stop:]


@contextmanager
def _place() -> Iterator[Path]:
    """A folder with a package and a home of its own, for one example."""
    with tempfile.TemporaryDirectory() as name:
        package(Path(name, "pkg"), script=OPERATOR)
        with mock.patch.dict(os.environ, {"NN_METER_HOME": str(Path(name, "home"))}):
            yield Path(name)


def _register_or_refuse(content: bytes, place: Path) -> None:
    (place / "meta.yaml").write_bytes(content)
    try:
        entry = registry.register("operator", place / "meta.yaml")
    except RegistrationError:
        assert not (place / "home").exists()
    else:
        assert registry.load(entry).__name__ == "Op1"
        assert registry.find("operator", entry.name) == entry


GOOD_META = yaml.safe_dump(meta_keys("operator", Path("pkg"))).encode()


@given(st.binary(max_size=60) | _spliced(GOOD_META))
@settings(deadline=None)
def test_any_meta_file_is_registered_whole_or_refused(content):
    with _place() as place:
        _register_or_refuse(content, place)


@given(st.sampled_from(sorted(meta_keys("operator", Path()))), _junk, st.booleans())
@settings(deadline=None)
def test_any_value_of_any_key_is_registered_whole_or_refused(key, value, remove):
    keys = meta_keys("operator", Path("pkg"), **{key: value})
    if remove:
        del keys[key]
    with _place() as place:
        _register_or_refuse(yaml.safe_dump(keys).encode("utf-8", "replace"), place)


@given(st.binary(max_size=60) | _spliced(b"version: 1\noperators:\n" + ITEM.encode()))
@settings(max_examples=150, deadline=None)
def test_any_registry_is_read_whole_or_refused_and_never_overwritten(content):
    with _place() as place:
        (place / "home").mkdir()
        path = place / "home" / "registry.yaml"
        path.write_bytes(content)
        try:
            before = registry.entries("operator")
        except RegistrationError as exc:
            assert str(path) in str(exc)  # noqa: PT017 - whether it is raised is for the data to say
            meta = meta_file("operator", place / "pkg", builtin_name="other")
            with pytest.raises(RegistrationError):
                registry.register("operator", meta)
            assert path.read_bytes() == content
            assert [p.name for p in path.parent.iterdir()] == ["registry.yaml"]
        else:
            assert len(before) <= len(OPERATORS) + 1
            for entry in before:
                assert Entry.from_json(json.loads(json.dumps(entry.to_json()))) == entry


# --- entries that travel --------------------------------------------------------------------------


def test_an_entry_travels_as_json(tmp_path):
    entry = registry.register("backend", meta_file("backend", tmp_path / "pkg"))
    assert Entry.from_json(json.loads(json.dumps(entry.to_json()))) == entry


@pytest.mark.parametrize("data", [{}, {"kind": "operator"}, [], None, {"kind": "x"}])
def test_what_is_no_entry_is_refused(data):
    with pytest.raises(RegistrationError, match="is no entry"):
        Entry.from_json(data)
    good = registry.find("operator", "conv").to_json()
    with pytest.raises(RegistrationError, match="is no entry"):
        Entry.from_json({**good, "kind": "backends"})
    with pytest.raises(RegistrationError, match="is no entry"):
        Entry.from_json({**good, "more": 1})


def test_workers_need_the_standard_library_only(tmp_path):
    """A worker runs in an environment of its own, with numpy and a runtime and no more."""
    entry = registry.register("operator", meta_file("operator", tmp_path / "pkg"))
    stub = OPERATOR.replace(
        "from nn_meter.builder.nn_modules import BaseOperator",
        "BaseOperator = type('BaseOperator', (), "
        "{'__module__': 'nn_meter.builder.nn_modules.base'})",
    )
    package(tmp_path / "pkg", script=stub)
    program = textwrap.dedent("""
        import json, sys
        allowed = sys.stdlib_module_names | {"nn_meter"}
        class Guard:
            def find_spec(self, name, path=None, target=None):
                top = name.partition(".")[0]
                if top not in allowed and not top.startswith("nn_meter_user_"):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Guard())
        from nn_meter import registry
        assert registry.find("backend", "onnxruntime_cpu").name == "onnxruntime_cpu"
        print(registry.load(registry.Entry.from_json(json.loads(sys.argv[1]))).__name__)
    """)
    command = [sys.executable, "-c", program, json.dumps(entry.to_json())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("Op1\n", "")
