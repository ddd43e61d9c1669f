"""Folders as packages: nothing shadows anything, and the code inside imports as it is used to."""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from nn_meter import errors
from nn_meter.user_packages import find_module, load_module, module_names


def package(folder: Path, **modules: str | dict[str, str]) -> Path:
    """Make a package folder of modules, and of folders of modules."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").touch()
    for name, content in modules.items():
        if isinstance(content, dict):
            package(folder / name, **content)
        else:
            (folder / f"{name}.py").write_text(textwrap.dedent(content))
    return folder


@pytest.fixture(autouse=True)
def _leave_no_trace():
    before, finders, path = set(sys.modules), list(sys.meta_path), list(sys.path)
    yield
    assert sys.path == path, "sys.path was touched"
    sys.meta_path[:] = finders
    for name in set(sys.modules) - before:
        if name.startswith("nn_meter_user_"):
            del sys.modules[name]


def test_modules_of_one_name_do_not_shadow_one_another(tmp_path):
    a = package(tmp_path / "a", script="from helper import x", helper="x = 'a'")
    b = package(tmp_path / "b", script="from helper import x", helper="x = 'b'")
    assert [load_module(folder, "script").x for folder in (a, b, a)] == ["a", "b", "a"]
    assert "script" not in sys.modules
    assert "helper" not in sys.modules


def test_folders_of_one_name_do_not_shadow_one_another(tmp_path, monkeypatch):
    script = """
        import ops
        import ops.helper
        from ops import VALUE
        from ops.helper import x
        found = ops.VALUE, ops.helper.x, VALUE, x
    """
    for parent in ("a", "b"):
        package(
            tmp_path / parent / "ops",
            __init__=f"VALUE = {parent!r}",
            script=script,
            helper=f"x = {parent!r}",
        )
    monkeypatch.chdir(tmp_path / "a")
    monkeypatch.syspath_prepend("")  # as a script's folder is: not what the code in b means
    for parent in ("b", "a"):
        assert load_module(tmp_path / parent / "ops", "script").found == (parent,) * 4
    assert "ops" not in sys.modules
    sys.path.remove("")


IMPORTS = [
    ("import helper", "helper.x"),
    ("import helper as h", "h.x"),
    ("from helper import x", "x"),
    ("from helper import *", "x"),
    ("import sub.deep", "sub.deep.x"),
    ("import sub.deep as d", "d.x"),
    ("from sub import deep", "deep.x"),
    ("from sub.deep import x", "x"),
    ("from . import helper", "helper.x"),
    ("from .sub.deep import x", "x"),
    ("import mine", "mine.helper.x"),
    ("import mine.helper", "mine.helper.x"),
    ("import mine.sub.deep as d", "d.x"),
    ("from mine import helper", "helper.x"),
    ("from mine.sub import deep", "deep.x"),
    ("from mine import VERSION as v", "v and 42"),
    ("helper = __import__('helper')", "helper.x"),
    ("exec('import helper', globals())", "helper.x"),
    ("import importlib; h = importlib.import_module('.helper', __package__)", "h.x"),
]


@pytest.mark.parametrize(
    ("where", "statement", "expression"),
    [
        (where, statement, expression)
        for where in ("at import", "in a function, later")
        for statement, expression in IMPORTS
        if where == "at import" or "*" not in statement  # Python has no star in a function
    ],
)
def test_every_way_to_import_a_module_of_the_folder(tmp_path, statement, expression, where):
    if where == "at import":
        script = f"{statement}\ndef answer(): return {expression}\n"
    else:
        script = f"def answer():\n    {statement}\n    return {expression}\n"
    folder = package(
        tmp_path / "mine",
        __init__="from . import helper\nVERSION = 1",
        script=script,
        helper="x = 42",
        sub={"deep": "import helper\nx = helper.x"},
    )
    assert load_module(folder, "script").answer() == 42


def test_one_helper_however_it_is_imported(tmp_path):
    folder = package(
        tmp_path / "mine",
        script="import helper, mine.helper\nfrom . import helper as third\nn = helper.loads",
        helper="import sys\nloads = sys.__dict__.setdefault('_test_loads', [])\nloads.append(1)",
    )
    module = load_module(folder, "script")
    del sys._test_loads
    assert module.n == [1]
    assert module.helper is module.third


def test_what_is_installed_is_found_beside_the_folder(tmp_path):
    folder = package(
        tmp_path / "mine", script="import yaml, json.decoder\nfrom nn_meter import errors"
    )
    import yaml

    module = load_module(folder, "script")
    assert module.yaml is yaml
    assert module.errors is importlib.import_module("nn_meter.errors")
    assert module.json is importlib.import_module("json")


def test_the_folders_own_module_comes_before_an_installed_one(tmp_path):
    folder = package(tmp_path / "mine", script="import yaml\nx = yaml.x", yaml="x = 'own'")
    import yaml

    assert load_module(folder, "script").x == "own"
    assert sys.modules["yaml"] is yaml


def test_the_standard_library_comes_first(tmp_path):
    folder = package(tmp_path / "mine", script="import json\nx = json.dumps(1)", json="x = 'own'")
    assert load_module(folder, "script").x == "1"


def test_nn_meter_comes_first(tmp_path):
    folder = package(
        tmp_path / "mine", script="from nn_meter.errors import NNMeterError", nn_meter="1 / 0"
    )
    assert load_module(folder, "script").NNMeterError is errors.NNMeterError


def test_a_package_in_the_folder_imports_its_own_modules_by_its_name(tmp_path):
    own = {"__init__": "from yaml.helper import x", "helper": "x = 42"}
    folder = package(tmp_path / "mine", script="from yaml import x", yaml=own)
    assert load_module(folder, "script").x == 42


def test_a_module_may_import_the_installed_one_of_its_own_name(tmp_path):
    folder = package(tmp_path / "mine", yaml="import yaml\nfrom yaml import safe_load")
    import yaml

    assert load_module(folder, "yaml").safe_load is yaml.safe_load


@pytest.mark.parametrize(
    "statement",
    ["import yaml", "from yaml import nodes", "import yaml.nodes", "import yaml.nodes as n"],
)
def test_a_folder_may_have_the_name_of_an_installed_package(tmp_path, statement):
    script = f"{statement}\nfrom yaml import helper, VERSION\nfrom yaml.helper import x"
    folder = package(tmp_path / "yaml", __init__="VERSION = 1", script=script, helper="x = 42")
    module = load_module(folder, "script")
    assert (module.x, module.helper.x, module.VERSION) == (42, 42, 1)


def test_a_folder_named_as_an_installed_package_imports_that_package(tmp_path):
    import yaml

    folder = package(tmp_path / "yaml", script="import yaml\nfrom yaml import safe_load")
    assert load_module(folder, "script").safe_load is yaml.safe_load
    assert load_module(folder, "script").yaml is yaml


def test_a_folder_without_python_files_is_no_module(tmp_path):
    folder = package(tmp_path / "mine", script="import yaml\nload = yaml.safe_load")
    (folder / "yaml").mkdir()
    import yaml

    assert load_module(folder, "script").load is yaml.safe_load


def test_a_subfolder_without_init_works_as_elsewhere(tmp_path):
    folder = package(tmp_path / "mine", script="import tools.deep\nx = tools.deep.x")
    (folder / "tools").mkdir()
    (folder / "tools" / "deep.py").write_text("import helper\nx = helper.x")
    (folder / "helper.py").write_text("x = 42")
    assert load_module(folder, "script").x == 42
    assert find_module(folder, "tools.deep") == folder / "tools" / "deep.py"


def test_a_name_that_is_not_there_is_an_ordinary_import_error(tmp_path):
    folder = package(tmp_path / "mine", script="import nowhere_at_all")
    with pytest.raises(ModuleNotFoundError, match="No module named 'nowhere_at_all'"):
        load_module(folder, "script")


def test_a_package_is_not_importable_from_outside(tmp_path):
    load_module(package(tmp_path / "mine", script="x = 1"), "script")
    for name in ("mine", "script", "mine.script"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


def test_loading_again_gives_the_same_class(tmp_path, monkeypatch):
    folder = package(tmp_path / "mine", script="class Op: ...")
    (tmp_path / "link").symlink_to(folder)
    first = load_module(folder, "script").Op
    finders = list(sys.meta_path)
    monkeypatch.chdir(tmp_path)
    assert load_module(folder, "script").Op is first
    assert load_module(Path("mine"), "script").Op is first
    assert load_module(tmp_path / "link", "script").Op is first
    assert sys.meta_path == finders


def test_modules_look_like_modules(tmp_path):
    folder = package(
        tmp_path / "my-ops 2", script="class Op:\n    def f(self):\n        return __file__\n"
    )
    module = load_module(folder, "script")
    assert module.Op().f() == str(folder / "script.py")
    assert inspect.getsource(module.Op).startswith("class Op:")
    assert pickle.loads(pickle.dumps(module.Op)) is module.Op
    assert module.__package__ in sys.modules


def test_nothing_stays_of_an_import_that_fails(tmp_path):
    folder = package(
        tmp_path / "mine",
        script="import helper\n1 / 0",
        helper="x = 1",
        other="from . import helper",
    )
    before = set(sys.modules)
    with pytest.raises(ZeroDivisionError):
        load_module(folder, "script")
    assert set(sys.modules) == before
    (folder / "script.py").write_text("import helper\nx = helper.x")  # the user mends it
    (folder / "helper.py").write_text("x = 2")
    assert load_module(folder, "script").x == 2


def test_a_failure_takes_nothing_from_what_loaded_before(tmp_path):
    folder = package(
        tmp_path / "mine",
        good="class Op: ...",
        script="import helper\n1 / 0",
        helper="x = 1",
        late="from . import helper\nx = helper.x",
    )
    op = load_module(folder, "good").Op
    with pytest.raises(ZeroDivisionError):
        load_module(folder, "script")
    assert load_module(folder, "good").Op is op
    (folder / "helper.py").write_text("x = 2")
    assert load_module(folder, "late").x == 2  # not the helper of the import that failed


def test_what_was_not_there_at_first_is_found_later(tmp_path):
    """Also within one tick of the file system's clock."""
    folder = package(tmp_path / "mine", script="import tools.deep\nx = tools.deep.x")
    before = folder.stat()
    with pytest.raises(ModuleNotFoundError):
        load_module(folder, "script")
    (folder / "tools").mkdir()
    (folder / "tools" / "deep.py").write_text("x = 42")
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_module(folder, "script").x == 42


def test_what_raises_base_exceptions_is_cleaned_up_too(tmp_path):
    folder = package(tmp_path / "mine", script="import sys\nsys.exit(3)")
    before = set(sys.modules)
    with pytest.raises(SystemExit):
        load_module(folder, "script")
    assert set(sys.modules) == before


def test_an_edit_is_seen_by_the_next_process(tmp_path):
    """Same size, same second: what a cached .pyc would miss."""
    folder = package(tmp_path / "mine", script="from helper import x", helper="x = 1")
    program = (
        "import sys; from pathlib import Path; from nn_meter.user_packages import load_module; "
        "print(load_module(Path(sys.argv[1]), 'script').x)"
    )

    def answer() -> str:
        os.utime(folder / "helper.py", (1e9, 1e9))
        command = [sys.executable, "-c", program, str(folder)]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert answer() == "1"
    (folder / "helper.py").write_text("x = 2")
    assert answer() == "2"
    assert not list(folder.rglob("__pycache__"))


def test_find_module_imports_nothing(tmp_path):
    folder = package(tmp_path / "mine", script="1 / 0", sub={"deep": "1 / 0"})
    before = set(sys.modules)
    assert find_module(folder, "script") == folder / "script.py"
    assert find_module(folder, "sub.deep") == folder / "sub" / "deep.py"
    assert find_module(folder, "sub") == folder / "sub" / "__init__.py"
    assert find_module(folder, "nothing") is None
    assert find_module(folder, "sub.nothing") is None
    assert find_module(folder, "json") is None
    assert set(sys.modules) == before
    assert module_names(folder) == ["__init__", "script", "sub"]
