"""Workspaces: made once, never overwritten, read anew at each init, held by one run at a time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import NoReturn

import pytest
import yaml
from filelock import FileLock

from nn_meter import registry
from nn_meter.builder import builder_config
from nn_meter.builder.backends.interface import PLATFORMS, backend_spec, create_workspace
from nn_meter.builder.workspace import atomic_write, open_workspace, read_json, write_json
from nn_meter.errors import BackendError, ConfigError, ResultFileError, WorkspaceError

FILES = {"workspace.json", "configs/ruletest_config.yaml", "configs/backend_config.yaml"}


def files_in(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )


# --- making and opening --------------------------------------------------------------------------


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_workspace_is_made_and_opened(tmp_path, platform):
    made = create_workspace(tmp_path / "a" / "ws", platform=platform)
    assert made == tmp_path / "a" / "ws"
    assert files_in(made) == FILES
    workspace = open_workspace(made)
    assert (workspace.path, workspace.platform) == (made, platform)


def test_paths_of_a_workspace(workspace):
    ws = workspace()
    results = ws.path / "fusion_rule_test" / "results"
    assert (ws.results_dir, ws.store_file) == (results, results / "samples.db")
    model = ws.path / "fusion_rule_test" / "models" / "BF_conv_relu_block.onnx"
    assert ws.relative(model) == "./fusion_rule_test/models/BF_conv_relu_block.onnx"
    assert ws.resolve(ws.relative(model)) == model
    assert ws.resolve("/elsewhere/m.onnx") == Path("/elsewhere/m.onnx")


def test_relative_paths_and_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert create_workspace("ws", platform="debug") == tmp_path / "ws"
    assert create_workspace("~/ws", platform="debug") == tmp_path / "home" / "ws"
    builder_config.init("ws")
    monkeypatch.chdir("/")
    assert builder_config.workspace.path == tmp_path / "ws"


@pytest.mark.parametrize("there", ["workspace", "folder", "file"])
def test_what_is_there_is_never_overwritten(tmp_path, there):
    path = tmp_path / "ws"
    if there == "workspace":
        create_workspace(path, platform="onnxruntime")
        (path / "configs" / "ruletest_config.yaml").write_text("HW: 7\n")
    elif there == "folder":
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    else:
        path.write_text("mine")
    before = (
        path.read_text() if path.is_file() else {f: (path / f).read_text() for f in files_in(path)}
    )
    with pytest.raises(WorkspaceError, match=f"^{path}: there is .* already.*never overwritten"):
        create_workspace(path, platform="tflite")
    after = (
        path.read_text() if path.is_file() else {f: (path / f).read_text() for f in files_in(path)}
    )
    assert after == before


def test_an_empty_folder_is_taken(tmp_path):
    assert files_in(create_workspace(tmp_path, platform="onnxruntime")) == FILES


@pytest.mark.parametrize("there", [False, True], ids=["new folder", "empty folder"])
def test_a_workspace_that_cannot_be_written_leaves_nothing(tmp_path, there):
    """The first file fits, the second is too large for the limit."""
    code = """
        import resource, sys
        from nn_meter.builder.workspace import create_workspace
        from nn_meter.errors import WorkspaceError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        try:
            create_workspace(
                sys.argv[1], platform="x", ruletest_config="HW: 1", backend_config="#" * 2000)
        except WorkspaceError as exc:
            print(exc)
    """
    path = tmp_path / "ws"
    if there:
        path.mkdir()
    done = run_python(code, path)
    assert f"{path}/configs/backend_config.yaml: cannot be written: File too large" in done.stdout
    assert path.exists() == there
    assert files_in(tmp_path) == set()
    create_workspace(path, platform="onnxruntime")


@pytest.mark.parametrize(
    "path", ["", "gone", "file", "file/ws", "x" * 300, "~nobody-of-this-name", "nul\0"]
)
def test_where_there_is_no_workspace(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError) as caught:
        open_workspace(path)
    assert path.strip("\0") in str(caught.value)
    assert files_in(tmp_path) == {"file"}


@pytest.mark.parametrize("path", ["file/ws", "x" * 300, "~nobody-of-this-name", "nul\0"])
def test_where_no_workspace_can_be_made(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError):
        create_workspace(path, platform="debug")
    assert files_in(tmp_path) == {"file"}


@pytest.mark.parametrize("version", [True, False, 0, -1, 1.0, "1", None])
def test_a_format_that_cannot_be_is_refused(tmp_path, version):
    path = create_workspace(tmp_path / "ws", platform="debug")
    write_json(path / "workspace.json", {"version": version, "platform": "debug"})
    with pytest.raises(WorkspaceError, match=rf"workspace\.json.*format {version!r};"):
        open_workspace(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
@pytest.mark.parametrize("name", ["ruletest_config.yaml", "backend_config.yaml"])
def test_a_pipe_in_place_of_a_configuration_is_refused(tmp_path, name):
    file = create_workspace(tmp_path / "ws", platform="debug") / "configs" / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ConfigError, match=rf"^{file}: cannot be read: .*no regular file"):
        open_workspace(tmp_path / "ws")


def test_the_key_that_tells_where_models_are_is_not_the_users(tmp_path):
    path = create_workspace(tmp_path / "ws", platform="debug")
    file = path / "configs" / "ruletest_config.yaml"
    file.write_text("MODEL_DIR: /mine\n")
    with pytest.raises(ConfigError, match=f"^{file}: MODEL_DIR cannot be set"):
        open_workspace(path)


def test_a_newer_format_is_refused(tmp_path):
    path = create_workspace(tmp_path / "ws", platform="debug")
    write_json(path / "workspace.json", {"version": 2, "platform": "debug"})
    with pytest.raises(WorkspaceError, match=r"workspace\.json.*format 2.*up to 1"):
        open_workspace(path)
    (path / "workspace.json").write_text('{"version"')
    with pytest.raises(WorkspaceError, match=r"workspace\.json"):
        open_workspace(path)
    (path / "workspace.json").unlink()
    assert open_workspace(path).platform == ""


# --- builder_config ------------------------------------------------------------------------------


def test_init_takes_the_values_of_an_edit(tmp_path):
    path = create_workspace(tmp_path / "ws", platform="onnxruntime")
    file = path / "configs" / "ruletest_config.yaml"
    builder_config.init(workspace_path=str(path))
    before = builder_config.workspace
    text = file.read_text()
    file.write_text(text.replace("HW: 28", "HW: 14") + "\nMINE: [1, 2]\n")
    assert builder_config.get("HW") == 28
    builder_config.init(str(path))
    assert (builder_config.get("HW"), builder_config.get("MINE")) == (14, [1, 2])
    assert builder_config.get_module("ruletest")["MODEL_DIR"] == str(path / "fusion_rule_test")
    assert builder_config.get("THREADS", "backend") == 1
    assert builder_config.get("GONE") is None
    assert before.ruletest.HW == 28
    file.write_text(text.replace("HW: 28", "HW: 0"))
    with pytest.raises(ConfigError, match="HW must be"):
        builder_config.init(path)
    assert builder_config.get("HW") == 14
    with pytest.raises(WorkspaceError):
        builder_config.init(tmp_path / "gone")
    assert builder_config.workspace.path == path


def test_without_init_there_is_no_workspace():
    with pytest.raises(WorkspaceError, match=r"builder_config\.init\(workspace_path"):
        _ = builder_config.workspace


def test_a_module_that_there_is_not(workspace):
    workspace()
    with pytest.raises(WorkspaceError, match=r"'predictor'.*ruletest and backend"):
        builder_config.get_module("predictor")


# --- the lock ------------------------------------------------------------------------------------

HOLD = """
    import os, sys
    from nn_meter.builder.workspace import open_workspace
    with open_workspace(sys.argv[1]).lock():
        print(os.getpid(), flush=True)
        sys.stdin.read()
"""


def test_a_workspace_that_another_process_holds_is_refused_by_its_number(workspace):
    ws = workspace()
    with ws.lock():
        pass
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(ws.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        number = holder.stdout.readline().strip()
        assert number, "it could not take what nobody holds any more"
        with (
            pytest.raises(
                WorkspaceError, match=rf"{ws.path}: another run \(process {number}: python\S* -c "
            ),
            ws.lock(),
        ):
            pass
        holder.kill()  # however it ends, what it held is free
        holder.wait(10)
        with ws.lock():
            pass
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize("said", ["", "soon", "0x1 run", "4194305 gone", "9" * 30, None])
def test_a_holder_that_has_not_said_its_number(workspace, said):
    ws = workspace()
    holder = ws.ruletest_dir / ".lock-holder"
    ws.ruletest_dir.mkdir()
    if said is not None:
        holder.write_text(said)
    other = FileLock(ws.ruletest_dir / ".lock")
    with (
        other,
        pytest.raises(WorkspaceError, match=f"^{ws.path}: another run is using this workspace"),
        ws.lock(),
    ):
        pass


def test_the_lock_of_one_run_is_taken_more_than_once(workspace):
    ws = workspace()
    with ws.lock(), open_workspace(ws.path).lock():
        pass
    with ws.lock():
        pass


LEFT = {
    "models/.BF_relu_relu_block.123.new/saved_model.pb",
    "models/.BF_relu_relu_block.onnx.01234567",
    "models/.info/.BF_relu_relu_block.json.ab_12xyz",
    "situations/.situations.json.ab_12xyz",
    "results/.profiled_results.json.ab_12xyz",
    "results/cpu/.environment.json.ab_12xyz",
    "converted/cpu/0123456789ab/01234567890123456789/.converted.json.ab_12xyz",
    "converted/cpu/0123456789ab/01234567890123456789/.mnn-ab_12xyz/model.mnn",
    "converted/cpu/.openvino-ab_12xyz/model.xml",
}
OTHERS = {
    *("models/.info/BF_relu_relu_block.json", "models/a.b.01234567", "results/.gitignore"),
    *("results/samples.db", "results/cpu/.profiled_results.json.backup", ".DS_Store"),
}


def test_what_a_killed_run_left_half_written_is_cleared_away_and_nothing_else(workspace):
    ws = workspace()
    for name in LEFT | OTHERS:
        path = ws.ruletest_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{")
    with ws.lock():
        now = ws.results_dir / ".now.json.ab_12xyz"
        now.touch()
        with ws.lock():  # a step of the same run
            assert now.exists()
        now.unlink()
    kept = {
        path.relative_to(ws.ruletest_dir).as_posix()
        for path in ws.ruletest_dir.rglob("*")
        if path.is_file()
    }
    assert kept - {".lock", ".lock-holder"} == OTHERS


def test_a_workspace_that_cannot_be_locked(workspace):
    ws = workspace()
    ws.ruletest_dir.write_text("a file in place of the folder")
    with pytest.raises(WorkspaceError, match="cannot be written"), ws.lock():
        pass


# --- files ---------------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "r.json"
    write_json(path, {"a": "ö"})
    assert path.read_text(encoding="utf-8") == '{\n    "a": "ö"\n}\n'
    assert path.stat().st_mode & 0o777 == 0o644

    def fail_halfway() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text('{"a"')
            raise KeyError("halfway")

    with pytest.raises(KeyError):
        fail_halfway()
    assert read_json(path, "letters") == {"a": "ö"}
    assert os.listdir(path.parent) == ["r.json"]  # noqa: PTH208


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_what_is_no_ordinary_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WorkspaceError, match="no ordinary file"):
        write_json(tmp_path / "pipe", {"a": 1})
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"No space left on device: make room on the disk at /.* MB are free\)"),
        (errno.EDQUOT, "quota exceeded: make room on the disk at /"),
        (errno.EROFS, r"Read-only file system: make the disk at /.* writable, or use a workspace"),
        (errno.EACCES, r"Permission denied: make /.* writable, or use a workspace elsewhere$"),
    ],
)
def test_a_disk_that_takes_nothing_is_named(tmp_path, monkeypatch, number, words):
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkstemp", fail)
    with pytest.raises(WorkspaceError, match=rf"(?i)file.json: cannot be written: .*{words}"):
        write_json(tmp_path / "file.json", {})


@pytest.mark.parametrize("data", [{"a": float("nan")}, {"a": object()}])
def test_what_json_does_not_have_is_not_written(tmp_path, data):
    write_json(tmp_path / "r.json", {"a": 1})
    with pytest.raises((TypeError, ValueError)):
        write_json(tmp_path / "r.json", data)
    assert read_json(tmp_path / "r.json", "numbers") == {"a": 1}
    assert files_in(tmp_path) == {"r.json"}


def test_a_full_disk_leaves_the_old_file(tmp_path):
    code = """
        import resource, sys
        from pathlib import Path
        from nn_meter.builder.workspace import write_json
        from nn_meter.errors import WorkspaceError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        try:
            write_json(Path(sys.argv[1]), {"a": "x" * 5000})
        except WorkspaceError as exc:
            print(exc)
    """
    path = tmp_path / "r.json"
    write_json(path, {"a": 1})
    assert f"{path}: cannot be written: File too large" in run_python(code, path).stdout
    assert read_json(path, "numbers") == {"a": 1}
    assert files_in(tmp_path) == {"r.json"}


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(WorkspaceError, match=r"results/r\.json: cannot be written"):
        write_json(tmp_path / "results" / "r.json", {})
    (tmp_path / "r.json").mkdir()
    with pytest.raises(WorkspaceError, match=r"r\.json: cannot be written"):
        write_json(tmp_path / "r.json", {})
    assert files_in(tmp_path) == {"results"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"a": ',
        b"[]",
        b"3",
        b"null",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b"\xff\xfe",
        b"[" * 5000,
    ],
    ids=lambda content: str(content[:15]),
)
def test_a_damaged_json_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(ResultFileError, match=rf"^{path}: .*test cases"):
        read_json(path, "test cases")


def test_a_json_file_that_is_not_there(tmp_path):
    with pytest.raises(ResultFileError, match=r"gone\.json: there is no such file of test cases"):
        read_json(tmp_path / "gone.json", "test cases")
    with pytest.raises(ResultFileError):
        read_json(tmp_path, "test cases")
    with pytest.raises(ResultFileError):
        read_json(Path("nul\0"), "test cases")


# --- for a backend -------------------------------------------------------------------------------


@pytest.fixture
def my_backend(tmp_path):
    """A registered backend with a default file of the given text."""

    def _my_backend(text: str | None) -> None:
        package = tmp_path / "package"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "mine.py").write_text(
            "from nn_meter.builder.backends import BaseBackend\nclass Mine(BaseBackend): pass\n"
        )
        meta = {"builtin_name": "my_backend", "package_location": str(package)}
        meta |= {"class_module": "mine", "class_name": "Mine"}
        if text is not None:
            (tmp_path / "default.yaml").write_text(text)
            meta["defaultConfigFile"] = str(tmp_path / "default.yaml")
        (tmp_path / "meta.yaml").write_text(yaml.safe_dump(meta))
        registry.register("backend", tmp_path / "meta.yaml")

    return _my_backend


def test_a_customized_workspace_has_the_backends_own_file(tmp_path, my_backend):
    my_backend("# mine\nREMOTE: 3\nTHREAD: four\n")
    ws = open_workspace(create_workspace(tmp_path / "ws", backend="my_backend"))
    assert ws.backend_file.read_text() == "# mine\nREMOTE: 3\nTHREAD: four\n"
    assert ws.ruletest.IMPLEMENT == "tensorflow"
    assert backend_spec("my_backend", ws).configs == {"REMOTE": 3, "THREAD": "four"}


def test_a_backend_without_a_file_of_its_own(tmp_path, my_backend):
    my_backend(None)
    ws = open_workspace(create_workspace(tmp_path / "ws", backend="my_backend"))
    assert backend_spec("my_backend", ws).configs == {}


def test_a_bad_default_file_makes_no_workspace(tmp_path, my_backend):
    my_backend("REMOTE: {")
    with pytest.raises(ConfigError, match=r"default\.yaml"):
        create_workspace(tmp_path / "ws", backend="my_backend")
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("PYTHON: 3", "PYTHON must be a path, or empty, but found 3"),
        ("RUNS: 0", "RUNS must be a whole number of at least 1"),
        ("WARMUPS: few", "WARMUPS must be a whole number of at least 0"),
        ("REMOTE: 2022-06-14", "REMOTE must be text, numbers"),
    ],
)
def test_keys_of_a_users_backend_that_cannot_be(tmp_path, my_backend, line, words):
    my_backend("REMOTE: 3\n")
    path = create_workspace(tmp_path / "ws", backend="my_backend")
    (path / "configs" / "backend_config.yaml").write_text(line + "\n")
    with pytest.raises(ConfigError, match=f"backend_config.yaml: {words}"):
        backend_spec("my_backend", open_workspace(path))


def test_a_built_in_backend_has_its_platforms_files(tmp_path):
    path = create_workspace(tmp_path / "ws", backend="onnxruntime_cpu")
    assert open_workspace(path).platform == "onnxruntime"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"platform": "tflight"}, "no platform 'tflight'; known: tflite, openvino"),
        ({"backend": "onnxruntime_gpu"}, "'onnxruntime_gpu'; did you mean 'onnxruntime_cpu'"),
        ({}, "no backend ''"),
    ],
)
def test_a_platform_or_backend_that_there_is_not(tmp_path, asked, words):
    with pytest.raises(BackendError, match=words):
        create_workspace(tmp_path / "ws", **asked)
    assert not (tmp_path / "ws").exists()
