"""The device itself, driven by the real adb client; and what stands in for ``benchmark_model``."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nn_meter.builder.backends.tflite import recorded
from nn_meter.builder.backends.tflite.adb import Adb, Shelled, quoted
from nn_meter.builder.backends.tflite.benchmark_output import read
from nn_meter.errors import BackendError

from . import FEATURES, AdbServer, Phone

pytestmark = pytest.mark.skipif(shutil.which("adb") is None, reason="needs adb (Debian: adb)")

LONG_S = 120.0


def run(phone: Phone, *words: str | Path, fine: bool = True) -> bytes:
    done = subprocess.run(
        ["adb", "-s", phone.serial, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LONG_S,
        check=False,
    )
    assert (done.returncode == 0) is fine, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=[FEATURES, ("shell_v2", "cmd"), ()], ids=["14", "7", "6"])
def phone(request):
    with Phone(features=request.param) as phone:
        yield phone


# --- the protocol --------------------------------------------------------------------------------


def test_files_go_there_and_back(phone, tmp_path):
    there, back = tmp_path / "there", tmp_path / "back"
    there.mkdir()
    contents = {"empty": b"", "one": b"1", "big": os.urandom(5_000_000), "ä b": b"x" * 65_536}
    for name, content in contents.items():
        (there / name).write_bytes(content)
    run(phone, "push", there, f"{phone.folder}/pushed")
    run(phone, "pull", f"{phone.folder}/pushed", back)
    assert {path.name: path.read_bytes() for path in back.iterdir()} == contents
    run(phone, "shell", f"rm -rf {phone.folder}/pushed")
    assert phone.files() == set()


def test_times_and_modes_of_files_stay(phone, tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho it runs\n")
    program.chmod(0o755)
    os.utime(program, (1_000_000_000, 1_000_000_000))
    run(phone, "push", program, f"{phone.folder}/program")
    assert run(phone, "shell", f"{phone.folder}/program").strip() == b"it runs"
    assert (phone.root / "data/local/tmp/program").stat().st_mtime == 1_000_000_000
    run(phone, "shell", "rm", f"{phone.folder}/program")


def test_what_is_not_there_cannot_be_pulled(phone, tmp_path):
    run(phone, "pull", f"{phone.folder}/absent", tmp_path / "x", fine=False)
    run(phone, "pull", "/../../../etc/hostname", tmp_path / "x", fine=False)
    assert not (tmp_path / "x").exists()


def test_nothing_is_written_outside_of_the_root(phone, tmp_path):
    (tmp_path / "x").write_text("x")
    outside = phone.root.parent / f"{phone.root.name}-outside"
    run(phone, "push", tmp_path / "x", f"/../{outside.name}", fine=False)
    assert not outside.exists()


def test_many_streams_at_once(phone):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sizes = [number * 100_000 for number in range(8)]
        found = list(pool.map(lambda n: run(phone, "exec-out", f"head -c {n} /dev/zero"), sizes))
    assert list(map(len, found)) == sizes


def test_input_reaches_a_command(phone):
    done = subprocess.run(
        ["adb", "-s", phone.serial, "shell", "head -n 2"],
        input=b"one\ntwo\nthree\n",
        capture_output=True,
        timeout=LONG_S,
        check=True,
    )
    assert done.stdout.split() == [b"one", b"two"]


def test_a_client_that_leaves_hangs_up_on_its_command(phone):
    pid = phone.root / "data/local/tmp/pid"
    client = subprocess.Popen(
        ["adb", "-s", phone.serial, "shell", f"echo $$ > {phone.folder}/pid; exec sleep 600"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    end_s = time.monotonic() + LONG_S
    while not (pid.exists() and pid.read_text()):
        assert time.monotonic() < end_s
        time.sleep(0.02)
    client.kill()
    client.wait()
    number = int(pid.read_text())
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end_s:
            os.kill(number, 0)
            time.sleep(0.02)
        pytest.fail("it lives on")
    pid.unlink()


def test_it_serves_from_the_command_line(tmp_path):
    server = subprocess.Popen(
        [sys.executable, "-m", "device", "--root", tmp_path / "root"],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with AdbServer():
            found = Adb(f"127.0.0.1:{port}")
            done = found.shell("cd /data/local/tmp && pwd", timeout_s=LONG_S)
            assert done.stdout == f"{tmp_path}/root/data/local/tmp\n"
        server.terminate()
        assert server.wait(LONG_S) == 0
    finally:
        server.kill()
        server.communicate()


# --- the stand-in --------------------------------------------------------------------------------


def two_ops() -> bytes:
    """A model of a sigmoid and a tanh, which take far longer than the microsecond of a clock."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [0], [2]
    model = schema.ModelT()
    model.version, model.buffers, model.subgraphs = 3, [schema.BufferT()], [graph]
    model.operatorCodes = []
    for name in ("x", "h", "y"):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name.encode(), [1, 64, 64, 32], 0
        tensor.type = schema.TensorType.FLOAT32
        graph.tensors.append(tensor)
    for number, kind in enumerate((schema.BuiltinOperator.LOGISTIC, schema.BuiltinOperator.TANH)):
        code, op = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        op.opcodeIndex, op.inputs, op.outputs = number, [number], [number + 1]
        model.operatorCodes.append(code)
        graph.operators.append(op)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.fixture(scope="module")
def benchmark():
    """Run the stand-in on a model of two operators; several times in one call of adb."""
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert, which is not installed")
    with Phone() as phone:
        adb = Adb(phone.serial)
        (phone.root / "data/local/tmp/two ops.tflite").write_bytes(two_ops())

        def _benchmark(*flags: str, model: str = "two ops.tflite", **settings: str) -> Shelled:
            phone.benchmark(**settings)
            graph = f"--graph={phone.folder}/{model}"
            few = ("--num_runs=20", "--warmup_runs=2", "--min_secs=0", "--warmup_min_secs=0")
            command = quoted(phone.benchmark_model, graph, "--num_threads=1", *few, *flags)
            return adb.shell(command, timeout_s=LONG_S)

        yield _benchmark


@pytest.mark.parametrize("form", ["guide", "old", "new", "newest", "litert"])
def test_the_stand_in_prints_what_it_measures(benchmark, form):
    done = benchmark("--enable_op_profiling=true", format=form)
    assert done.code == 0
    found = read(done.stdout + done.stderr)
    assert found.count == 20
    assert found.min_us is not None
    assert found.max_us is not None
    assert 0 < found.min_us <= found.avg_us <= found.max_us
    graph = recorded.graph_in(done.stdout + done.stderr)
    assert len(graph.nodes) == 2
    assert [node.type for node in graph.nodes] == [node.type for node in found.nodes]


@pytest.mark.parametrize(
    ("kernels", "count"), [("nn-meter", 2), ("linked", 2), ("arrow", 2), ("", 0)]
)
def test_the_stand_in_says_what_a_delegate_took(benchmark, kernels, count):
    settings = {"kernels": kernels} if kernels else {}
    done = benchmark("--use_gpu=true", "--enable_op_profiling=true", **settings)
    found = read(done.stdout + done.stderr)
    found.require_delegate("GPU")
    assert [node.type for node in found.nodes] == ["TfLiteGpuDelegateV2"]
    assert len(found.kernels) == count
    assert "stand-in without a GPU" in done.stdout


@pytest.mark.parametrize(("gpu", "words"), [("part", "took a part"), ("none", "took nothing")])
def test_the_stand_in_falls_back(benchmark, gpu, words):
    found = read(benchmark("--use_gpu=true", gpu=gpu, format="newest").stderr)
    with pytest.raises(BackendError, match=words):
        found.require_delegate("GPU")


@pytest.mark.parametrize(
    ("flags", "settings", "model", "code", "words"),
    [
        ((), {}, "absent.tflite", 1, "Failed to mmap model"),
        ((), {}, "benchmark_model", 1, "Failed to load model"),
        (("--use_gpu=true",), {"gpu": "fails"}, "two ops.tflite", 1, "Failed to apply GPU"),
        (
            ("--use_gpu=true", "--require_full_delegation=true"),
            {"gpu": "part"},
            *("two ops.tflite", 1, "Disallowed CPU fallback"),
        ),
        ((), {"crash": "two"}, "two ops.tflite", 139, "STARTING"),
        ((), {"silent": "two"}, "two ops.tflite", 0, "Initialized session"),
    ],
)
def test_the_stand_in_fails(benchmark, flags, settings, model, code, words):
    done = benchmark(*flags, model=model, **settings)
    assert done.code == code
    assert words in done.stdout + done.stderr
    with pytest.raises(BackendError, match="holds no latency"):
        read(done.stdout + done.stderr)
