"""Worker processes: what happens in one costs one call, and none outlives whoever needed it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from nn_meter import errors
from nn_meter.builder.profiling import process
from nn_meter.builder.profiling.process import Worker
from nn_meter.errors import (
    BackendError,
    ConfigError,
    NNMeterError,
    NotInstalledError,
    TimeLimitError,
    WorkerCrashedError,
    WorkerError,
    WorkspaceError,
)

HANDLER = "worker_handlers:Handler"
ERRORS = [getattr(errors, name) for name in errors.__all__]


PLACES = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))


@pytest.fixture(autouse=True)
def _handlers(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PLACES)


@pytest.fixture
def worker():
    with Worker(HANDLER, setup=("set_up", {"value": "ready"}), what="my_backend") as worker:
        yield worker


def gone(pid: int, within_s: float = 5.0) -> bool:
    """Whether a process ends in time. A zombie has ended; whoever adopted it may not collect it."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


# --- asking --------------------------------------------------------------------------------------


def test_one_process_serves_all_calls(worker):
    assert not worker.running
    first, second = worker.call("state"), worker.call("state")
    assert first == [first[0], "ready", 1]
    assert second == [first[0], "ready", 2]
    assert first[0] != os.getpid()
    assert worker.running
    worker.stop()
    assert not worker.running
    assert gone(first[0])


@pytest.mark.parametrize("value", [None, [1, 2.5, "ä\n\u2028", {"a": None}], "x" * 3_000_000])
def test_values_come_back_as_they_went(worker, value):
    assert worker.call("echo", 30, value=value) == value


def test_megabytes_of_chatter_do_not_disturb(worker):
    assert worker.call("chatter", 30, size=5_000_000) == "done"
    assert worker.call("echo", 10, value="next") == "next"


def test_there_is_nothing_to_read(worker):
    assert worker.call("read", 10) == ["", ""]
    assert worker.call("echo", 10, value="next") == "next"


def test_nothing_is_imported_from_the_folder_one_stands_in(worker, tmp_path, monkeypatch):
    for name in ("json.py", "traceback.py", "nn_meter.py"):
        (tmp_path / name).write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    assert worker.call("echo", 10, value=1) == 1


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_of_ours_comes_back_as_its_class(request, kind):
    worker = request.getfixturevalue("shared")
    with pytest.raises(NNMeterError) as caught:
        worker.call("fail", 10, name=kind.__name__, message="ö \udc80")
    assert type(caught.value) is kind
    assert str(caught.value) == "ö \udc80"


@pytest.fixture(scope="module")
def shared():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PLACES)
        with Worker(HANDLER) as worker:
            worker.call("echo", value=1)
            yield worker


def test_an_error_derived_from_ours_comes_back_as_ours(shared):
    with pytest.raises(ConfigError) as caught:
        shared.call("fail_as_derived")
    assert (type(caught.value), str(caught.value)) == (ConfigError, "odd")


@pytest.mark.parametrize(
    ("op", "words"),
    [
        ("fail_foreign", "KeyError: 'conv'"),
        ("unspeakable", "TypeError: .*not JSON serializable"),
        ("no_such_operation", "AttributeError: .*no_such_operation"),
    ],
)
def test_another_error_is_one_of_the_backend_and_the_process_lives(shared, op, words):
    before = shared.call("state")[0]
    with pytest.raises(BackendError, match=words) as caught:
        shared.call(op)
    assert type(caught.value) is BackendError
    assert shared.call("state")[0] == before


def test_a_handler_that_cannot_be_imported():
    with Worker("no_such_module:Handler") as worker, pytest.raises(BackendError, match="no_such"):
        worker.call("echo", value=1)


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "arguments", "words"),
    [
        (
            "last_words",
            {"words": "a\nlast words\n", "code": 3},
            "ended with exit code 3: last words",
        ),
        ("last_words", {"words": "", "code": 0}, "ended with exit code 0"),
        ("leave", {}, "ended with exit code 1: no more"),
        ("signalled", {"number": int(signal.SIGSEGV)}, "was ended by SIGSEGV"),
        (
            "signalled",
            {"number": int(signal.SIGKILL)},
            r"was ended by SIGKILL \(by somebody, or by the system for want of memory\)",
        ),
        ("signalled", {"number": 40}, "was ended by signal 40"),
        ("segmentation_fault", {}, "was ended by SIGSEGV"),
    ],
)
def test_a_crash_is_told_and_the_next_call_has_a_new_process(worker, op, arguments, words):
    before = worker.call("state")
    with pytest.raises(WorkerCrashedError, match=f"^my_backend {words}$"):
        worker.call(op, 30, **arguments)
    assert not worker.running
    after = worker.call("state")
    assert after == [after[0], "ready", 1]
    assert after[0] != before[0]


def test_last_words_are_not_lost_and_not_endless(worker):
    for number in range(10):
        words = "x" * 1_000_000 + f"\nthe end {number}"
        with pytest.raises(WorkerCrashedError, match=f": the end {number}$"):
            worker.call("last_words", words=words, code=1)
    with pytest.raises(WorkerCrashedError) as caught:
        worker.call("last_words", words="x" * 1_000_000, code=1)
    assert len(str(caught.value)) < 5000


def test_words_of_an_earlier_call_explain_no_crash(worker):
    worker.call("say", words="of the first call\n")
    worker.call("echo", value=1)
    with pytest.raises(WorkerCrashedError, match=r"^my_backend was ended by SIGSEGV$"):
        worker.call("signalled", 30, number=int(signal.SIGSEGV))


def test_last_words_are_waited_for(worker, monkeypatch):
    read = process._keep_tail

    def late(*arguments: object) -> None:
        time.sleep(0.3)
        read(*arguments)

    monkeypatch.setattr(process, "_keep_tail", late)
    with pytest.raises(WorkerCrashedError, match=r": the end$"):
        worker.call("last_words", words="the end", code=1)


def test_a_process_that_dies_while_one_it_forked_lives(worker, monkeypatch):
    monkeypatch.setattr(process, "_LOOK_S", 0.2)
    started = time.monotonic()
    with pytest.raises(WorkerCrashedError, match="ended with exit code 7"):
        worker.call("fork_and_die")
    assert time.monotonic() - started < 20
    assert worker.call("echo", value=1) == 1


def test_a_hang_is_ended_with_all_that_was_started(worker):
    pid, child = worker.call("state")[0], worker.call("start")
    started = time.monotonic()
    with pytest.raises(
        TimeLimitError, match=r"^my_backend took longer than its time limit of 0\.3"
    ):
        worker.call("sleep", 0.3, seconds=60)
    assert time.monotonic() - started < 30
    assert gone(pid)
    assert gone(child)
    assert worker.call("state")[1:] == ["ready", 1]


def test_the_time_limit_is_of_one_call(worker, monkeypatch):
    monkeypatch.setattr(process, "_LOOK_S", 0.1)
    for _ in range(3):
        assert worker.call("sleep", 2, seconds=0.05) == "slept"
    assert worker.call("sleep", seconds=0.3) == "slept"


ENDINGS = {
    "stopped": lambda worker: worker.stop(),
    "hangs": lambda worker: worker.call("hold_the_lock", 1),
    "crashes": lambda worker: worker.call("signalled", number=int(signal.SIGSEGV)),
    "ends": lambda worker: worker.call("last_words", words="", code=0),
    "ends its group": lambda worker: worker.call("end_group"),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("how", ["child", "apart", "orphan"])
def test_nothing_that_was_started_outlives_the_worker(worker, how, ending):
    """Not even in a session of its own, or when its parent has gone."""
    started = worker.call("start", apart=how != "child", orphan=how == "orphan")
    try:
        with contextlib.suppress(WorkerError):
            ENDINGS[ending](worker)
        assert not worker.running
        assert gone(started)
        assert worker.call("echo", value=1) == 1
    finally:
        if not gone(started, 0.05):
            os.kill(started, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends it then")
def test_a_warning_is_logged_here_and_once(worker, caplog):
    for words in ("careful", "careful", "careful\x1b[2J, too"):
        assert worker.call("warn", 10, words=words) is None
    with pytest.raises(BackendError, match="and an error"):
        worker.call("warn", 10, words="last", error="and an error")
    assert [record.message for record in caplog.records] == [
        *("careful", "careful\x1b[2J, too", "last")
    ]


def test_a_worker_whose_guard_is_killed_goes_with_it(worker):
    pid = worker.call("state")[0]
    psutil.Process(pid).parent().kill()
    assert gone(pid)
    with pytest.raises(WorkerCrashedError, match="was ended by SIGKILL"):
        worker.call("echo", value=1)
    assert worker.call("echo", value=2) == 2


def test_temporary_files_go_with_the_worker(worker, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for ending in ("stop", "crash"):
        file = Path(worker.call("temporary"))
        assert file.exists()
        assert file.parent.parent == tmp_path
        if ending == "stop":
            worker.stop()
        else:
            with pytest.raises(WorkerCrashedError):
                worker.call("last_words", words="", code=1)
        assert not list(tmp_path.iterdir())


def test_temporary_files_of_a_guard_that_was_killed_go_with_the_next_worker(
    worker, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    mine = tmp_path / "nn-meter-worker"  # of somebody's, who chose the name by chance
    mine.mkdir()
    left = Path(worker.call("temporary"))
    pid = worker.call("state")[0]
    with Worker(HANDLER) as other:
        other.call("echo", value=1)
        assert left.exists(), "its guard lives"
        psutil.Process(pid).parent().kill()
        assert gone(pid)
        assert left.exists()
        with Worker(HANDLER) as third:
            third.call("echo", value=1)
            assert not left.parent.exists()
            assert len(list(tmp_path.iterdir())) == 3
    assert list(tmp_path.iterdir()) == [mine]


def test_stopping_twice_and_before_the_first_call():
    worker = Worker(HANDLER)
    worker.stop()
    worker.call("echo", value=1)
    worker.stop()
    worker.stop()
    assert worker.call("echo", value=2) == 2
    worker.stop()


def test_a_set_up_that_fails_leaves_no_process():
    arguments = {"name": "NotInstalledError", "message": "gone"}
    with Worker(HANDLER, setup=("fail", arguments)) as worker:
        for _ in range(2):
            with pytest.raises(NotInstalledError, match=r"^gone$"):
                worker.call("echo", value=1)
            assert not worker.running


def test_an_interrupted_call_leaves_no_answer_behind(worker, monkeypatch):
    worker.call("echo", value=1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "_answer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        worker.call("echo", value="late")
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", PLACES)
    assert worker.call("echo", value="next") == "next"


PARENT = """
    import sys
    from nn_meter.builder.profiling.process import Worker
    worker = Worker("worker_handlers:Handler")
    started = worker.call("start", apart=True, orphan=True)
    print(worker.call("state")[0], started, flush=True)
    worker.call(sys.argv[1], **({"seconds": 1000} if sys.argv[1] == "sleep" else {}))
"""


@pytest.mark.parametrize("op", ["sleep", "compute", "hold_the_lock"])
def test_nothing_outlives_a_parent_that_is_killed(op):
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), op], stdout=subprocess.PIPE, text=True
    )
    pid, child = map(int, parent.stdout.readline().split())
    time.sleep(0.1)  # it is in the middle of its work by now
    parent.kill()
    parent.communicate()
    assert gone(pid)
    assert gone(child)


# --- what a runtime may do to the protocol -------------------------------------------------------


def test_what_looks_like_an_answer_is_none(worker):
    assert worker.call("say_answers") == "the answer"
    assert worker.call("echo", value="next") == "next"


def test_a_copy_of_the_process_answers_nothing(worker):
    for number in range(3):
        parent, copy = worker.call("fork")
        assert parent == worker.call("state")[0]
        assert gone(copy)
        assert worker.call("echo", value=number) == number


def test_streams_that_an_operation_closed_are_open_again_for_the_next(worker):
    worker.call("close_streams")
    assert worker.call("chatter", 60, size=1_000_000) == "done"
    assert worker.call("read", 60) == ["", ""]
    with pytest.raises(WorkerCrashedError, match="ended with exit code 3: heard"):
        worker.call("last_words", words="heard\n", code=3)


def test_a_worker_that_closed_everything_is_replaced(worker):
    with pytest.raises(WorkerCrashedError, match="ended with exit code 1"):
        worker.call("close_everything")
    assert worker.call("echo", value=1) == 1


def test_threads_that_are_left_behind_keep_nobody(worker):
    worker.call("leave_threads")
    with pytest.raises(WorkerCrashedError, match="ended with exit code 1: no more"):
        worker.call("leave", 60)
    worker.call("leave_threads")
    worker.stop()
    assert worker.call("echo", value=1) == 1


@pytest.mark.parametrize(
    ("op", "words"),
    [
        ("interrupt", "KeyboardInterrupt"),
        ("unspeakable_error", r"UnspeakableError: \(it cannot say what: its str\(\) raises "),
        ("endless_error", "RuntimeError: x{5000} … x{5000}$"),
    ],
)
def test_whatever_is_raised_is_an_answer(shared, op, words):
    before = shared.call("state")[0]
    with pytest.raises(BackendError, match=words):
        shared.call(op)
    assert shared.call("state")[0] == before


def test_want_of_memory_ends_the_process(worker):
    with pytest.raises(WorkerCrashedError, match="ended with exit code 1: MemoryError"):
        worker.call("take_memory", 120)
    assert worker.call("echo", value=1) == 1


@pytest.mark.parametrize("ours", [False, True])
def test_a_full_disk_is_no_fault_of_a_model(shared, tmp_path, ours):
    path = tmp_path / "model"
    words = r"No space left on device.*make room on the disk at /.* MB are free\)"
    with pytest.raises(WorkspaceError, match=words):
        shared.call("fill_disk", path=str(path), ours=ours)


def test_an_answer_that_never_ends_is_cut_off(monkeypatch):
    monkeypatch.setattr(process, "_LONGEST", 1_000_000)
    with Worker(HANDLER) as worker:
        assert worker.call("echo", value="x" * 900_000) == "x" * 900_000
        with pytest.raises(WorkerCrashedError, match=r"answered what is no answer: b'.*x'"):
            worker.call("echo", value="x" * 2_000_000)
        assert worker.call("echo", value=1) == 1


def test_what_nests_too_deep_is_no_answer(worker):
    with pytest.raises(WorkerCrashedError, match="answered what is no answer"):
        worker.call("nest", depth=100_000)
    assert worker.call("echo", value=1) == 1


def test_a_request_that_nobody_takes_is_limited_in_time(worker):
    os.kill(worker.call("state")[0], signal.SIGSTOP)
    with pytest.raises(TimeLimitError):
        worker.call("echo", 1, value="x" * 10_000_000)
    assert worker.call("echo", value=1) == 1


def test_last_words_that_are_no_text_move_no_cursor(worker):
    with pytest.raises(WorkerCrashedError, match=r"exit code 1: a \[2Jb\ufffd c$"):
        worker.call("last_bytes", words=[*b"first\na\x1b[2Jb\xff\x07c"], code=1)


# --- another interpreter -------------------------------------------------------------------------


@pytest.mark.parametrize("python", ["/gone/python", "/tmp", "~nobody-of-this-name/python", "a\0b"])
def test_an_interpreter_that_cannot_be_run(python):
    with pytest.raises(NotInstalledError, match=r"PYTHON: .* cannot be run"):
        Worker(HANDLER, python=python).call("echo", value=1)


def test_a_program_that_is_no_interpreter(tmp_path):
    worker = Worker(HANDLER, python="/bin/true")
    with pytest.raises(WorkerCrashedError, match="ended with exit code 0"):
        worker.call("echo", value=1)
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho hello\nsleep 1000\n")
    script.chmod(0o755)
    with Worker(HANDLER, python=str(script)) as worker:
        with pytest.raises(WorkerCrashedError, match="answered what is no answer: b'hello"):
            worker.call("echo", value=1)
        assert not worker.running


@pytest.mark.parametrize("python", ["/bin/false", "/bin/ls", "/bin/echo"])
def test_what_answered_nothing_is_named_with_the_key(python):
    with (
        Worker(HANDLER, python=python, what="my_backend") as worker,
        pytest.raises(WorkerCrashedError, match=rf"^my_backend .*PYTHON: '{python}' has not answ"),
    ):
        worker.call("echo", value=1)


def test_an_interpreter_that_answered_is_none_to_doubt(tmp_path):
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    with Worker(HANDLER, python=str(script), what="my_backend") as worker:
        worker.call("echo", value=1)
        with pytest.raises(WorkerCrashedError, match=r"^my_backend ended with exit code 3: bye$"):
            worker.call("last_words", words="bye", code=3)


def test_an_interpreter_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nMARK=here exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    with Worker(HANDLER, python="~/python") as worker:
        environment = Path(f"/proc/{worker.call('state')[0]}/environ").read_bytes()
    assert b"MARK=here" in environment.split(b"\0")


def test_requests_and_answers_are_lines_of_json():
    """The protocol itself, as another program would speak it."""
    code = "from nn_meter.builder.profiling.worker import main; main('worker_handlers:Handler')"
    exchanged = [
        ({"id": 7, "op": "echo", "value": [1]}, {"id": 7, "ok": [1]}),
        (
            {"id": 8, "op": "fail_foreign"},
            {"id": 8, "error": {"type": "", "message": "KeyError: 'conv'"}},
        ),
        (
            {"id": 9, "op": "fail", "name": "ConfigError", "message": "no"},
            {"id": 9, "error": {"type": "ConfigError", "message": "no"}},
        ),
    ]
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for request, answer in exchanged:
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline()) == answer
    assert child.communicate(timeout=10) == ("", None)
