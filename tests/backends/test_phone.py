"""TFLite on a phone: adb's own client, a device of the tests' own, and two tools that run there.

Where a latency or a graph matters, the tool is the stand-in that really runs the model with LiteRT.
Where it matters what is made of a tool's behaviour, it is a script that does what the model's file
says; starting it takes no time.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tflite_models import Model

from device import Fault, Phone
from nn_meter.builder.backends.base import (
    BaseParser,
    HoldsFiles,
    SessionBackend,
    TimesInTurn,
    host_description,
)
from nn_meter.builder.backends.tflite import phone as phone_module
from nn_meter.builder.backends.tflite import phone_files
from nn_meter.builder.backends.tflite.backend import (
    TFLiteBackend,
    TFLiteCPUBackend,
    TFLiteProfiler,
)
from nn_meter.builder.backends.tflite.gpu import TFLiteGPUBackend
from nn_meter.builder.backends.tflite.phone_script import read_turn
from nn_meter.builder.profiling.jobs import BackendJobs
from nn_meter.errors import (
    BackendError,
    ConfigError,
    DeviceError,
    GraphUnavailableError,
    ModelRejectedError,
    NNMeterError,
    TimeLimitError,
    WorkerCrashedError,
)
from nn_meter.latency import Latency, ProfiledResults

TOOL = """\
#!/bin/sh
for word in "$@"; do case "$word" in --graph=*) graph=${word#--graph=};; esac; done
case "$(head -n 1 "$graph" | head -c 9)" in
  crash) kill -SEGV $$ ;;
  hang) exec sleep 1000 ;;
  garbage) head -c 3000 /dev/urandom; exit 0 ;;
  endless) exec yes "nothing that means anything" ;;
  silent) echo "Running benchmark"; exit 0 ;;
  refuse) echo "ERROR: it is no model"; echo "Benchmarking failed."; exit 1 ;;
  notool) exit 126 ;;
  *) echo "count=50 first=1 curr=1 min=1 max=999999 avg=$(cat "$graph") std=1" ;;
esac
"""
HOSTILE = "a b'c\"d; touch CANARY; $(touch CANARY) `touch CANARY` * \\ {x,y} #é"
WAIT_S = 180.0


@pytest.fixture(scope="module")
def shared():
    with Phone() as phone:
        tool = phone.root / "data/local/tmp/benchmark_model"
        yield phone, tool.read_bytes()


@pytest.fixture
def phone(shared):
    """A phone as if nobody had used it; tests that change what it is take a ``new_phone``."""
    phone, tool = shared
    top = phone.root / "data/local/tmp"
    for path in top.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (top / "benchmark_model").write_bytes(tool)
    (top / "benchmark_model").chmod(0o755)
    phone.device.commands.clear()
    phone.device.faults.happened.clear()
    yield phone
    phone.device.faults.clear()


@pytest.fixture
def new_phone():
    with Phone() as phone:
        yield phone


def keys(phone: Phone, **others):
    return {
        "TARGET": "android",
        "REMOTE_MODEL_DIR": f"{phone.folder}/models",
        "BENCHMARK_MODEL_PATH": phone.benchmark_model,
        "DEVICE_SERIAL": phone.serial,
        **{"RUNS": 5, "WARMUPS": 1, **others},
    }


@pytest.fixture
def scripted(phone, tmp_path):
    """A backend whose tool does what the model's file says; and a maker of such files."""
    tool = phone.root / "data/local/tmp/benchmark_model_script"
    tool.write_text(TOOL)
    tool.chmod(0o755)
    path = f"{phone.folder}/{tool.name}"
    backend = TFLiteCPUBackend(keys(phone, BENCHMARK_MODEL_PATH=path))

    def opened(*does: str):
        found = []
        for word in does:
            file = tmp_path / f"{word[:20]}.tflite"
            file.write_text(word)
            found.append(backend.open(str(file), [[4]]))
        return found

    return backend, opened


def visits(backend, sessions, limit_s=30.0):
    found = backend.time_in_turn(sessions, limit_s).visits
    return [each if isinstance(each, NNMeterError) else each.tolist() for each in found]


@pytest.fixture
def model(tmp_path) -> Path:
    return Model(1, 8, 8, 16).conv().unary("RELU").write(tmp_path / "conv_relu.tflite")


# --- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["REMOTE_MODEL_DIR", "BENCHMARK_MODEL_PATH"])
@pytest.mark.parametrize("value", [None, "", "models", 7])
def test_a_key_that_it_takes_is_asked_for_by_name(key, value):
    found = {"REMOTE_MODEL_DIR": "/data/m", "BENCHMARK_MODEL_PATH": "/data/b", key: value}
    backend = TFLiteCPUBackend({"TARGET": "android", **found})
    with pytest.raises(ConfigError, match=rf"backend_config.yaml: {key} must be an absolute path"):
        backend.describe()


def test_what_runs_where():
    host, phone = (TFLiteCPUBackend({"TARGET": target}) for target in ("host", "android"))
    assert (host.runs_here, host.in_turn) == (True, False)
    assert (phone.runs_here, phone.in_turn) == (False, True)
    assert isinstance(phone, TimesInTurn)
    assert isinstance(phone, HoldsFiles)
    assert (host.begin_run(), host.end_run()) == ("", None)  # nothing is kept anywhere


# --- connecting -----------------------------------------------------------------------------------


def test_connecting_says_what_is_missing_and_how_to_bring_it(phone):
    def refusal(**others):
        with pytest.raises(BackendError) as found:
            TFLiteCPUBackend(keys(phone, **others)).test_connection()
        return str(found.value)

    place = phone.root / "data/local/tmp"
    assert TFLiteCPUBackend(keys(phone)).test_connection() == "hello backend !"
    words = refusal(BENCHMARK_MODEL_PATH="/data/local/tmp/my tool")
    assert "has no file /data/local/tmp/my tool (BENCHMARK_MODEL_PATH)" in words
    assert f"adb -s {phone.serial} push benchmark_model '/data/local/tmp/my tool'" in words
    assert "chmod +x" in words
    (place / "plain").write_text("#!/bin/sh\n")
    words = refusal(BENCHMARK_MODEL_PATH="/data/local/tmp/plain")
    assert "may not run /data/local/tmp/plain" in words
    assert f"adb -s {phone.serial} shell 'chmod +x /data/local/tmp/plain'" in words
    (place / "other").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(100))
    (place / "other").chmod(0o755)
    words = refusal(BENCHMARK_MODEL_PATH="/data/local/tmp/other")
    assert "built for this phone's processor" in words
    words = refusal(REMOTE_MODEL_DIR="/data/local/tmp/plain/models")
    assert "no folder /data/local/tmp/plain/models (REMOTE_MODEL_DIR) to write to" in words
    words = refusal(DEVICE_SERIAL=HOSTILE)
    assert f"there is no device {HOSTILE!r}" in words
    assert phone.serial in words


def test_the_environment_is_the_phones(new_phone):
    phone = new_phone
    phone.set_properties(
        ro__product__manufacturer="Maker",
        ro__product__model="Maker 9\x1b[1m",
        ro__soc__model="SM1",
        ro__product__cpu__abi="arm64-v8a",
        ro__build__version__release="15",
    )
    found = TFLiteCPUBackend(keys(phone, THREADS=2, TASKSET="f0")).describe()
    assert (found.runtime, found.device, found.threads) == (
        "benchmark_model",
        "CPU of Maker 9[1m",
        2,
    )
    assert found.host == "SM1, arm64-v8a, Android 15"
    assert found.host != host_description()
    assert found.options["taskset"] == "f0"
    gpu = TFLiteGPUBackend(keys(phone)).describe()
    assert (gpu.device, gpu.dtype) == ("GPU of Maker 9[1m", "float16")
    tool = phone.root / "data/local/tmp/benchmark_model"
    tool.write_text(f"{tool.read_text()}# another build\n")
    other = TFLiteCPUBackend(keys(phone, THREADS=2, TASKSET="f0")).describe()
    assert other.version != found.version
    assert other.key != found.key


# --- measuring, with the stand-in that runs the model ---------------------------------------------


def test_one_model_is_profiled_and_nothing_stays(phone, model):
    found = TFLiteCPUBackend(keys(phone)).profile(str(model), input_shape=[[8, 8, 16]])
    latency = found.get("latency")
    assert isinstance(latency, Latency)
    assert 0 < latency.avg < 1000
    (turn,) = [c for c in phone.device.commands if "--num_runs" in c]
    assert turn.count(".tflite ") == phone_module.VISITS
    assert "--num_threads=1 --warmup_runs=1 --warmup_min_secs=0.1 --num_runs=5 " in turn
    assert " --min_secs=0.02" in turn
    assert phone.files() == {"models"}


def test_a_model_of_less_than_the_tools_microsecond_has_a_latency(phone, tmp_path):
    tiny = Model(1, 2, 2, 4).unary("RELU").write(tmp_path / "relu.tflite")
    backend = TFLiteCPUBackend(keys(phone, RUNS=1))
    session = backend.open(str(tiny), [[2, 2, 4]])
    assert session.time(1).min() > 0
    session.close()


def test_paths_and_names_mean_nothing_to_any_shell(phone, model, tmp_path):
    top = phone.root / "data/local/tmp"
    place = top / HOSTILE
    place.mkdir()
    tool = place / "tool 'x' $(touch CANARY)"
    shutil.copy(top / "benchmark_model", tool)
    named = tmp_path / f"{HOSTILE}.tflite"
    named.write_bytes(model.read_bytes())
    folder = f"{phone.folder}/{HOSTILE}"
    backend = TFLiteCPUBackend(
        keys(phone, REMOTE_MODEL_DIR=f"{folder}/m $x", BENCHMARK_MODEL_PATH=f"{folder}/{tool.name}")
    )
    assert backend.test_connection() == "hello backend !"
    assert backend.describe().version.startswith("sha256:")
    run = backend.begin_run()
    session = backend.open(str(named), [[8, 8, 16]])
    assert session.time(2).min() > 0
    assert phone.files() > {f"{HOSTILE}/m $x/{run}"}
    backend.end_run()
    assert phone.files() == {HOSTILE, f"{HOSTILE}/{tool.name}", f"{HOSTILE}/m $x"}
    places = [tmp_path, Path.cwd(), Path("/"), *(p for p in phone.root.rglob("*") if p.is_dir())]
    assert not [place for place in places if list(place.glob("CANARY*"))]


def test_what_ran_on_the_cpu_is_what_runs_here(phone, model):
    shapes = [[8, 8, 16]]
    backend = TFLiteCPUBackend(keys(phone))
    here = TFLiteCPUBackend({"TARGET": "host"}).executed_graph(str(model), shapes)
    there = backend.executed_graph(str(model), shapes)
    assert [(n.type, n.kind) for n in there.nodes] == [(n.type, n.kind) for n in here.nodes]
    assert phone.files() == {"models"}
    phone.benchmark(format="guide", silent=".tflite")
    with pytest.raises(GraphUnavailableError, match="Run Order"):
        backend.executed_graph(str(model), shapes)


def test_the_gpu_has_to_take_all_of_a_model(phone, model):
    backend = TFLiteGPUBackend(keys(phone, KERNEL_PATH="/data/local/tmp/my kernels"))
    backend.begin_run()
    session = backend.open(str(model), [[8, 8, 16]])
    phone.benchmark(gpu="all", kernels="linked")
    assert session.time(1).min() > 0
    assert (
        "--use_gpu=true '\"'\"'--kernel_path=/data/local/tmp/my kernels"
        in (phone.device.commands[-1])
    )
    kernels = backend.executed_graph(str(model), [])
    assert kernels.compute()
    phone.benchmark(gpu="part")
    with pytest.raises(ModelRejectedError, match="GPU delegate took a part of the model"):
        session.time(1)
    phone.benchmark(gpu="all")
    with pytest.raises(GraphUnavailableError, match="lists no kernels"):
        backend.executed_graph(str(model), [])
    backend.end_run()
    assert phone.files() == {"models"}


def test_a_derived_backend_measures_there_by_its_own_classes(phone, model):
    class Profiler(TFLiteProfiler):
        def __init__(self, tag: str, **kwargs) -> None:
            super().__init__(**kwargs)
            self.tag = tag

        def profile(self, converted_model, **kwargs):
            return self.tag, super().profile(converted_model, **kwargs)

    class Parser(BaseParser):
        def parse(self, content):
            self.tag, self.samples = content
            return self

        @property
        def results(self):
            return ProfiledResults({"latency": Latency(self.samples.mean() * 1e-6, 0.0)})

    class Mine(TFLiteBackend):
        profiler_class = Profiler
        parser_class = Parser

        def update_configs(self) -> None:
            super().update_configs()
            self.profiler_kwargs |= {"tag": "mine", "runs": 2}

    backend = Mine(keys(phone))
    assert backend.profile(str(model), input_shape=[[8, 8, 16]]).get("latency").avg > 0
    assert backend.parser.tag == "mine"
    assert backend.parser.samples.shape == (2,)
    assert phone.files() == {"models"}


def test_a_phone_before_android_7(model):
    with Phone(features=()) as phone:
        backend = TFLiteCPUBackend(keys(phone))
        assert backend.test_connection() == "hello backend !"
        assert backend.profile(str(model), input_shape=[[8, 8, 16]]).get("latency").avg > 0
        assert phone.files() == {"models"}


# --- many models by one call ----------------------------------------------------------------------


def test_one_call_visits_many_models_in_the_order_that_was_asked(phone, scripted):
    backend, opened = scripted
    a, b, c = opened("10.5", "20", "1.5e+03")
    before = len(phone.device.commands)
    assert visits(backend, [c, a, b, a]) == [[1_500_000], [10_500], [20_000], [10_500]]
    made = phone.device.commands[before:]
    assert [("turn.sh" in c, "--num_runs" in c) for c in made] == [(True, False), (True, True)]
    assert visits(backend, [b]) == [[20_000]]
    assert len(phone.device.commands) == before + 3  # the script is there by now
    for session in (a, b, c):
        session.close()
    assert phone.files() == {"models"}


def test_a_model_is_put_there_once_in_a_run(phone, scripted, tmp_path):
    backend, opened = scripted
    backend.begin_run()
    sessions = [*opened("1", "2"), *opened("1")]
    (tmp_path / "same.tflite").write_text("1")
    sessions.append(backend.open(str(tmp_path / "same.tflite"), [[4]]))
    assert visits(backend, sessions) == [[1000], [2000], [1000], [1000]]
    for session in sessions:
        session.close()
    assert visits(backend, opened("1")) == [[1000]]
    assert sum("mv -f" in command for command in phone.device.commands) == 3  # the script is one
    backend.end_run()
    assert phone.files() == {"models"}


def test_models_that_somebody_has_tidied_away_are_put_there_again(phone, scripted):
    backend, opened = scripted
    backend.begin_run()
    sessions = opened("1", "2")
    assert visits(backend, sessions) == [[1000], [2000]]
    for file in (phone.root / "data/local/tmp/models").rglob("*.tflite"):
        file.unlink()
    assert visits(backend, sessions) == [[1000], [2000]]
    backend.end_run()


def test_how_the_phone_was_is_told(new_phone, tmp_path):
    phone = new_phone
    backend = TFLiteCPUBackend(keys(phone))
    file = Model(1, 8, 8, 16).conv().write(tmp_path / "conv.tflite")
    phone.set_temperature(51.25, 0, kind="cpu big")
    phone.set_temperature(-273.0, 1, kind="off")
    phone.set_frequency(1_234_000, 0)
    phone.set_thermal_status(2)
    session = backend.open(str(file), [[8, 8, 16]])
    told = backend.time_in_turn([session], 60).conditions
    assert told["before"] == told["after"]
    assert told["before"] == {
        "thermal_status": 2,
        "frequencies_khz": [1_234_000, 2_802_000],
        "temperatures_c": {"0 cpu big": 51.2},
    }
    assert told["notes"] == []
    session.close()


def test_facts_that_are_none_are_left_out():
    lines = ["M facts", "class/thermal/thermal_zone0/temp:nan", "Thermal Status: x", "junk:"]
    lines += ["devices/system/cpu/cpu0/cpufreq/scaling_cur_freq:<unsupported>"]
    lines += [f"class/thermal/thermal_zone{9**99}/temp:1", "M told"]
    found = read_turn("\n".join(lines), "M")
    assert (found.before, found.after, found.visits) == ({}, {}, {})


# --- models that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("does", "error", "words"),
    [
        ("crash", WorkerCrashedError, "ended by SIGSEGV on the phone"),
        ("hang", TimeLimitError, "took longer than 2 s on the phone and was stopped"),
        ("garbage", BackendError, "holds no latency"),
        ("silent", BackendError, "holds no latency"),
        ("refuse", ModelRejectedError, "exit code 1: ERROR: it is no model; Benchmarking failed"),
        ("endless", BackendError, "printed more than"),
        ("-5", BackendError, "avg"),
        ("nan", BackendError, "avg"),
        ("9" * 400, BackendError, "avg"),
    ],
)
def test_a_model_that_fails_costs_its_own_visits_only(phone, scripted, does, error, words):
    backend, opened = scripted
    backend.begin_run()
    good, bad, last = opened("7", does, "8")
    first, second, third, fourth = visits(backend, [good, bad, last, bad], limit_s=2)
    assert (first, third) == ([7000], [8000])
    for found in (second, fourth):
        assert isinstance(found, error)
        assert not isinstance(found, DeviceError)
        assert words in str(found)
        assert len(str(found)) < 5000
    backend.end_run()
    assert phone.files() == {"models"}
    assert_nothing_runs(phone)


def test_a_tool_that_cannot_be_started_is_no_models_fault(scripted):
    backend, opened = scripted
    with pytest.raises(DeviceError, match=r"cannot run .*BENCHMARK_MODEL_PATH"):
        backend.time_in_turn(opened("7", "notool"), 30)


def test_what_a_worker_answers_of_a_race(scripted, tmp_path):
    backend, _ = scripted
    jobs = BackendJobs(backend)
    facts = jobs.describe()
    assert (facts["sessions"], facts["in_turn"], facts["gated"]) == (True, True, False)
    for word in ("3", "4", "crash"):
        (tmp_path / word).write_text(word)
        jobs.open(word, str(tmp_path / word), [[4]], check=False)
    answer = jobs.race(["3", "4", "crash"], 4, 0.0, 9, 1, 60.0, gated=False)
    assert answer["visits"] == {"3": [[3000]] * 4, "4": [[4000]] * 4}
    assert answer["failed"]["crash"]["type"] == "WorkerCrashedError"
    assert (answer["runs"], answer["counted"], answer["level_ns"]) == (8, 8, 0.0)
    assert answer["conditions"]
    visit = jobs.visit(["4", "crash", "3"], 30)
    assert visit["samples"] == {"4": [4000], "3": [3000]}
    assert set(visit["failed"]) == {"crash"}
    with pytest.raises(BackendError, match="loads each model afresh"):
        jobs.time_behind("3", ["4"], 2, 1, 10.0, gated=False)
    jobs.close()


# --- devices that fail ----------------------------------------------------------------------------


def test_a_phone_that_leaves_is_waited_for_and_asked_again(phone, scripted):
    backend, opened = scripted
    backend.begin_run()
    sessions = opened("7", "8")
    phone.device.faults.add(Fault(what="drop", when="--num_runs", after_bytes=200, absent_s=0.5))
    turn = backend.time_in_turn(sessions, 30)
    assert [visit.tolist() for visit in turn.visits] == [[7000], [8000]]
    (note,) = turn.conditions["notes"]
    assert "waited for, and came back" in note
    assert len(phone.device.faults.happened) == 1
    backend.end_run()
    assert phone.files() == {"models"}


def test_a_phone_that_does_not_come_back_is_waited_for_once(phone, scripted, monkeypatch):
    backend, opened = scripted
    sessions = opened("7", "8")
    backend.phone._adb._wait_s = 1.0
    phone.device.leave()
    with pytest.raises(DeviceError, match="waited 1 s"):
        backend.time_in_turn(sessions, 30)
    monkeypatch.setattr(backend.phone._adb, "wait", lambda: pytest.fail("it was waited for again"))
    with pytest.raises(DeviceError):
        backend.time_in_turn(sessions, 30)
    phone.device.come_back()
    deadline = time.monotonic() + WAIT_S
    while True:  # adb needs a moment to notice
        try:
            assert visits(backend, sessions) == [[7000], [8000]]
            break
        except DeviceError:
            assert time.monotonic() < deadline
            subprocess.run(["adb", "connect", phone.serial], capture_output=True, check=False)
            time.sleep(0.1)
    for session in sessions:
        session.close()
    assert phone.files() == {"models"}


@pytest.mark.parametrize("what", ["garbage", "endless"])
def test_a_device_that_answers_nonsense_is_asked_for_each_model(phone, scripted, what):
    backend, opened = scripted
    backend.begin_run()
    sessions = opened("7", "8")
    visits(backend, sessions)
    phone.device.faults.add(Fault(what=what, when="--num_runs"))
    found = visits(backend, sessions)
    assert found == [[7000], [8000]] or isinstance(found[0], NNMeterError)
    phone.device.faults.add(Fault(what=what, when="--num_runs", times=-1))
    try:
        found = list(backend.time_in_turn(sessions, 30).visits)
    except DeviceError as exc:  # no end of the call: it cannot be told from one that broke
        found = [exc]
    assert all(isinstance(each, NNMeterError) for each in found)
    assert all(len(str(each)) < 5000 for each in found)
    phone.device.faults.clear()
    assert visits(backend, sessions) == [[7000], [8000]]
    backend.end_run()
    assert phone.files() == {"models"}


def test_a_full_phone_refuses_the_model(phone, scripted):
    backend, opened = scripted
    phone.device.faults.add(Fault(what="full", push=True))
    with pytest.raises(BackendError, match="cannot be put on device") as found:
        opened("7")
    assert not isinstance(found.value, DeviceError)
    assert phone.files() == {"models"}
    (session,) = opened("7")
    assert visits(backend, [session]) == [[7000]]
    session.close()


# --- what runs leave ------------------------------------------------------------------------------

KILLED = """\
import sys
from nn_meter.builder.backends.tflite.backend import TFLiteCPUBackend
serial, tool, folder, model = sys.argv[1:]
backend = TFLiteCPUBackend({"TARGET": "android", "REMOTE_MODEL_DIR": folder,
    "BENCHMARK_MODEL_PATH": tool, "DEVICE_SERIAL": serial})
print(backend.begin_run(), flush=True)
backend.time_in_turn([backend.open(model, [[4]])], 1000)
"""


def assert_nothing_runs(phone: Phone) -> None:
    """No process of a model on the phone is left, after a moment."""
    deadline = time.monotonic() + WAIT_S
    while running := _running(str(phone.root / "data/local/tmp/models")):
        assert time.monotonic() < deadline, running
        time.sleep(0.1)


def _running(text: str) -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                dead = ") Z" in (process / "stat").read_text()
            except (OSError, ValueError):
                continue
            if text in words and not dead and int(process.name) != os.getpid():
                found.append(words)
    return found


def test_what_a_killed_run_left_is_removed_by_the_next(phone, scripted, tmp_path):
    backend, opened = scripted
    (tmp_path / "hang").write_text("hang")
    folder, tool = f"{phone.folder}/models", f"{phone.folder}/benchmark_model_script"
    words = [phone.serial, tool, folder, str(tmp_path / "hang")]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *words], stdout=subprocess.PIPE, text=True
    ) as killed:
        run = killed.stdout.readline().strip()
        deadline = time.monotonic() + WAIT_S
        pids = phone.root / f"data/local/tmp/models/{run}/{killed.pid}.1.pids"
        while not (pids.exists() and len(pids.read_text().split()) == 2):
            assert time.monotonic() < deadline
            assert killed.poll() is None
            time.sleep(0.05)
        other = "nn-meter.00000000.1.1.00000000"  # of another computer
        theirs = phone.root / f"data/local/tmp/models/{other}"
        theirs.mkdir()
        mine = backend.begin_run()
        (session,) = opened("7")
        assert f"models/{run}" in phone.files()  # its process lives
        backend.end_run()
        killed.send_signal(signal.SIGKILL)
        killed.wait(WAIT_S)
    assert f"models/{run}" in phone.files()
    mine = backend.begin_run()
    (session,) = opened("7")
    assert visits(backend, [session]) == [[7000]]
    found = {name.split("/")[1] for name in phone.files() if "/" in name}
    assert found == {mine, other}
    backend.end_run()
    assert phone.files() == {"models", f"models/{other}"}
    assert_nothing_runs(phone)
    old = time.time() - 4 * 24 * 3600
    os.utime(theirs, (old, old))
    visits(backend, opened("7"))
    assert f"models/{other}" not in phone.files()  # nobody has touched it for days
    backend.end_run()


def test_what_is_no_folder_of_a_run_is_never_removed(phone, scripted):
    _, opened = scripted
    top = phone.root / "data/local/tmp/models"
    old = time.time() - 99 * 24 * 3600
    names = ["mine", "nn-meter.mine", "nn-meter.00000000.1.1", "nn-meter.0000000g.1.1.00000000"]
    for name in names:
        (top / name).mkdir(parents=True)
        os.utime(top / name, (old, old))
    for session in opened("7"):
        session.close()
    assert phone.files() == {"models", *(f"models/{name}" for name in names)}


def test_a_process_of_a_run_that_was_replaced_leaves_nothing_running(phone, scripted, tmp_path):
    backend, opened = scripted
    run = backend.begin_run()
    (tmp_path / "hang").write_text("hang")
    code = KILLED.replace("print(backend.begin_run(), flush=True)", f"backend.join_run({run!r})")
    folder, tool = f"{phone.folder}/models", f"{phone.folder}/benchmark_model_script"
    words = [phone.serial, tool, folder, str(tmp_path / "hang")]
    with subprocess.Popen([sys.executable, "-c", code, *words]) as killed:
        pids = phone.root / f"data/local/tmp/models/{run}/{killed.pid}.1.pids"
        deadline = time.monotonic() + WAIT_S
        while not (pids.exists() and len(pids.read_text().split()) == 2):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        killed.kill()
    assert visits(backend, opened("7")) == [[7000]]
    assert_nothing_runs(phone)
    backend.end_run()
    assert phone.files() == {"models"}


def test_ctrl_c_removes_what_was_put_there(phone, scripted, monkeypatch):
    _, opened = scripted

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(phone_files.RunFolder, "_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened("7")
    assert phone.files() == {"models"}


def test_a_class_with_sessions_of_its_own_is_asked_for_each():
    class Mine(TFLiteBackend):
        def open(self, converted_model, shapes):
            return SessionBackend.open(self, converted_model, shapes)

    assert not Mine({"TARGET": "android"}).in_turn
