"""The real adb client against the device daemon: what comes through, and what is refused."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

from device import AdbServer, Fault, Phone
from nn_meter.builder.backends.tflite.adb import (
    Adb,
    DeviceGoneError,
    DeviceTimeoutError,
    quoted,
)
from nn_meter.builder.backends.tflite.programs import TimeUpError, TooMuchError, run_bounded
from nn_meter.errors import BackendError, DeviceError, NotInstalledError

pytestmark = pytest.mark.skipif(shutil.which("adb") is None, reason="needs adb (Debian: adb)")

LONG_S = 60.0
WORDS = [
    "a b",
    "it's",
    'say "hi"',
    "a;touch marker;b",
    "$(touch marker)",
    "`touch marker`",
    "${PATH}",
    "back\\slash\\n",
    "two\nlines\n",
    "tab\there",
    "-rf",
    "--graph=x",
    "*",
    "~",
    "a&b|c>d<e",
    "#no comment",
    "!1",
    "äöü 漢字 🙂",
    "%s%n",
    "'",
    "''\"'\"'",
    "%d\r",
]


@pytest.fixture(scope="module")
def phone():
    with Phone() as phone:
        yield phone


@pytest.fixture
def adb(phone):
    yield Adb(phone.serial, wait_s=LONG_S)
    phone.device.faults.clear()
    phone.device.kill_commands()
    assert phone.files() == set(), "each test removes what it puts there"


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(os.urandom(300_000))
    return path


# --- scripts -------------------------------------------------------------------------------------


def test_a_script_gives_both_streams_and_its_code(adb):
    done = adb.shell("echo out; echo err >&2; exit 7", timeout_s=LONG_S)
    assert (done.stdout, done.stderr, done.code) == ("out\n", "err\n", 7)


@pytest.mark.parametrize(
    ("script", "code"),
    [("", 0), ("printf 'no end of line'", 0), ("if", 2), ("false", 1), ("kill -9 $$", 137)],
)
def test_a_script_ends_in_any_way(adb, script, code):
    assert adb.shell(script, timeout_s=LONG_S).code == code


@pytest.mark.parametrize("word", WORDS)
def test_words_mean_nothing_but_themselves(adb, phone, word):
    done = adb.shell(f"printf '<%s>' {quoted(word, word)}", timeout_s=LONG_S)
    assert done.stdout == f"<{word}><{word}>"
    assert not list(phone.root.rglob("marker"))


def test_a_word_with_nul_is_refused(adb):
    with pytest.raises(BackendError, match="NUL"):
        quoted("a\0b")
    with pytest.raises(BackendError, match="NUL"):
        adb.shell("echo a\0b", timeout_s=LONG_S)


def test_bytes_that_are_no_text_are_replaced(adb):
    done = adb.shell(r"printf 'a\377\376b\000c'", timeout_s=LONG_S)
    assert done.stdout == "a\ufffd\ufffdb\0c"


def test_a_script_that_is_too_long_is_refused(adb):
    longest = "echo " + "x" * 29_000
    assert len(adb.shell(longest, timeout_s=LONG_S).stdout) == 29_001
    with pytest.raises(BackendError, match="put it on the device as a file"):
        adb.shell("echo " + "x" * 31_000, timeout_s=LONG_S)


def test_megabytes_come_whole(adb):
    done = adb.shell("head -c 5000000 /dev/zero; head -c 3000000 /dev/zero >&2", timeout_s=LONG_S)
    assert (len(done.stdout), len(done.stderr)) == (5_000_000, 3_000_000)


def test_a_device_before_android_7():
    with Phone(features=()) as old:
        done = Adb(old.serial).shell("echo out; echo err >&2; exit 7", timeout_s=LONG_S)
        assert (done.stdout, done.stderr, done.code) == ("out\nerr\n", "", 7)


def test_properties(adb, phone):
    found = adb.properties()
    assert found["ro.product.model"] == "Stand-in"
    assert found["ro.build.version.sdk"] == "34"
    path = phone.root / "properties"
    before = path.read_text()
    path.write_text("[a.b]: [two\nlines] of it]\n[c]: []\nnoise\n[d]: [[x]: [y]]\n")
    try:
        assert adb.properties() == {"a.b": "two\nlines] of it", "c": "", "d": "[x]: [y]"}
    finally:
        path.write_text(before)


def test_thermal_zones_and_frequencies_can_be_read(adb, phone):
    phone.set_temperature(55.5, 7)
    phone.set_frequency(300_000, 7)
    done = adb.shell(
        "cat /sys/class/thermal/thermal_zone7/temp; dumpsys thermalservice | grep Status:; "
        "cat /sys/devices/system/cpu/cpu7/cpufreq/scaling_cur_freq",
        timeout_s=LONG_S,
    )
    assert done.stdout == "55500\nThermal Status: 0\n300000\n"


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", WORDS)
def test_files_of_any_name(adb, phone, file, word):
    local = file.with_name(word)
    file.rename(local)
    remote = f"{phone.folder}/{word}/{word}"
    adb.push(local, remote, timeout_s=LONG_S)
    assert (phone.root / remote[1:]).read_bytes() == local.read_bytes()
    seen = adb.shell(f"wc -c < {quoted(remote)}", timeout_s=LONG_S)
    assert seen.stdout.strip() == "300000"
    adb.remove([f"{phone.folder}/{word}"])
    assert phone.files() == set()
    assert not list(phone.root.rglob("marker"))


def test_many_files_are_removed_and_no_other(adb, phone):
    names = [f"it's number {number} {'x' * 60}" for number in range(600)]
    for name in [*names, "kept"]:
        (phone.root / "data/local/tmp" / name).touch()
    adb.remove([f"{phone.folder}/{name}" for name in names])
    assert phone.files() == {"kept"}
    adb.remove([f"{phone.folder}/kept", f"{phone.folder}/never there"])
    adb.remove([])


@pytest.mark.parametrize(
    "remote",
    ["", "/", "//", "/data", "/data/", "/./data", "data/local/x", "/data/local/../..", "-"],
)
def test_what_is_never_removed(adb, phone, remote):
    before = len(phone.device.commands)
    with pytest.raises(BackendError, match="is not removed from the device"):
        adb.remove([f"{phone.folder}/x", remote])
    assert len(phone.device.commands) == before


def test_what_cannot_be_pushed(adb, tmp_path, file):
    with pytest.raises(BackendError, match=r"absent\.tflite is no file"):
        adb.push(tmp_path / "absent.tflite", "/data/local/tmp/x", timeout_s=LONG_S)
    for remote in ("data/local/tmp/x", "", "/data/local/tmp/x\0y"):
        with pytest.raises(BackendError, match="no absolute path"):
            adb.push(file, remote, timeout_s=LONG_S)


# --- which device --------------------------------------------------------------------------------


def test_the_only_device_is_found_and_kept(phone):
    found = Adb()
    assert found.serial == phone.serial
    with Phone() as other:
        assert sorted(found.devices()) == sorted(
            [(phone.serial, "device"), (other.serial, "device")]
        )
        assert found.shell("echo $PWD", timeout_s=LONG_S).stdout == f"{phone.root}\n"
        with pytest.raises(DeviceError, match=rf"several devices.*{other.serial}"):
            Adb().shell("true", timeout_s=LONG_S)
        chosen = Adb(other.serial)
        assert chosen.shell("echo $PWD", timeout_s=LONG_S).stdout == f"{other.root}\n"


def test_adb_names_a_device_by_its_own_variable(phone, monkeypatch):
    with Phone() as other:
        monkeypatch.setenv("ANDROID_SERIAL", other.serial)
        assert Adb().serial == other.serial
        assert Adb(phone.serial).serial == phone.serial


@pytest.mark.parametrize("serial", [*WORDS, "127.0.0.1:1"])
def test_a_serial_that_is_not_there(phone, serial):
    with pytest.raises(DeviceError, match=rf"there is no device .*; adb finds {phone.serial}"):
        Adb(serial).shell("true", timeout_s=LONG_S)


def test_no_device():
    with AdbServer():
        with pytest.raises(DeviceError, match="adb finds no device: plug the phone in"):
            Adb().shell("true", timeout_s=LONG_S)
        with pytest.raises(DeviceError, match=r"no device 'x'; adb finds none.*waited 0\.1 s"):
            Adb("x", wait_s=0.1).wait()


def test_a_device_on_the_network_is_connected_to():
    with AdbServer(), Phone(connected=False) as phone:
        found = Adb(phone.serial)
        assert found.shell("echo hi", timeout_s=LONG_S).stdout == "hi\n"
        assert found.devices() == [(phone.serial, "device")]


def test_a_device_that_does_not_know_this_computer():
    with AdbServer(), Phone(connected=False) as phone:
        phone.device.authorized = False
        with pytest.raises(DeviceError, match="is unauthorized: accept this computer's key"):
            Adb(phone.serial).shell("true", timeout_s=LONG_S)
        with pytest.raises(DeviceError, match="is unauthorized: accept this computer's key"):
            Adb().serial  # noqa: B018


def test_adb_is_not_installed(tmp_path):
    with pytest.raises(NotInstalledError, match=r"Debian's package adb.*Platform-Tools"):
        Adb(adb=str(tmp_path / "adb")).devices()
    (tmp_path / "adb").touch()
    with pytest.raises(NotInstalledError, match=r"cannot be run: .*denied"):
        Adb(adb=str(tmp_path / "adb")).devices()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("true", "gives no list of devices"),
        ("exec yes", "start-server' prints endlessly: *y y y"),
        ("[ $1 = start-server ] || exec yes", "devices' prints endlessly: *y y y"),
        ("[ $1 = start-server ] || exit 3", "gives no list of devices"),
        ("[ $1 != start-server ] || { echo no port >&2; exit 1; }", "does not start.*no port"),
        ("[ $1 = start-server ] || head -c 9999 /dev/urandom", "gives no list of devices"),
    ],
)
def test_a_program_that_is_no_adb(tmp_path, text, words):
    program = tmp_path / "adb"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    with pytest.raises(BackendError, match=words):
        Adb(adb=str(program)).devices()


def end_server(port: int) -> None:
    """Kill an adb server: "adb kill-server" now and then hangs when it has just begun."""
    ended = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if {f"tcp:{port}", "fork-server"} <= set(process.cmdline()):
                process.kill()
                ended.append(process)
    assert ended
    psutil.wait_procs(ended, LONG_S)


def test_a_server_that_adb_starts_is_not_waited_for(monkeypatch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("ADB_LOCAL_TRANSPORT_MAX_PORT", "5554")
    adb = Adb(wait_s=0)
    try:
        assert adb.devices() == []
    finally:
        end_server(port)
    # adb's client starts it again when it was ended meanwhile
    try:
        assert adb.devices() == []
    finally:
        end_server(port)


# --- faults --------------------------------------------------------------------------------------


def fails(adb: Adb, script: str, error: type[BackendError], words: str, **limits) -> None:
    with pytest.raises(error, match=words) as caught:
        adb.shell(script, **{"timeout_s": LONG_S, **limits})
    assert type(caught.value) is error
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("after_bytes", [0, 3, 100_000])
def test_a_device_that_leaves_in_mid_call_is_no_success(adb, phone, after_bytes):
    phone.device.faults.add(Fault(what="drop", when="leave", after_bytes=after_bytes))
    fails(adb, "head -c 100000 /dev/zero; sleep 60 # leave", DeviceGoneError, phone.serial)
    adb.wait()
    assert adb.shell("echo hi # leave", timeout_s=LONG_S).stdout == "hi\n"


def test_a_device_that_comes_back_later_is_waited_for(adb, phone):
    phone.device.faults.add(Fault(what="drop", when="leave", absent_s=1.0))
    fails(adb, "sleep 60 # leave", DeviceGoneError, "it was there before")
    adb.wait()
    assert adb.shell("echo hi", timeout_s=LONG_S).stdout == "hi\n"


def test_a_device_that_stays_away_is_reported(phone):
    gone = Adb(phone.serial, wait_s=0.5)
    gone.wait()
    phone.device.leave()
    try:
        with Phone() as other:
            with pytest.raises(DeviceError, match=rf"{phone.serial}.*waited 0\.5 s") as caught:
                gone.wait()
            assert "offline" in str(caught.value) or other.serial in str(caught.value)
            fails(gone, "true", DeviceGoneError, "it was there before")
    finally:
        phone.device.come_back()
        Adb(phone.serial, wait_s=LONG_S).wait()


def test_a_call_that_hangs_is_ended(adb, phone):
    phone.device.faults.add(Fault(what="hang", when="hang"))
    fails(adb, "true # hang", DeviceTimeoutError, "longer than 0.5 s", timeout_s=0.5)
    fails(adb, "sleep 60", DeviceTimeoutError, "longer than 0.5 s for the script", timeout_s=0.5)


def test_an_endless_answer_is_refused(adb, phone):
    phone.device.faults.add(Fault(what="endless", when="endless", times=2))
    words = "printed more than 1000000 bytes.*all work and no play"
    fails(adb, "true # endless", BackendError, words, max_bytes=1_000_000)
    fails(adb, "echo $0 # endless", BackendError, "more than 16777216 bytes")
    fails(adb, "yes >&2", BackendError, "printed more than 5000 bytes", max_bytes=5000)


def test_garbage_is_refused(adb, phone):
    phone.device.faults.add(Fault(what="garbage", when="odd"))
    fails(adb, "true # odd", DeviceGoneError, "has answered without an end")
    phone.device.faults.add(Fault(what="break", when="odd"))
    fails(adb, "true # odd", DeviceGoneError, phone.serial)
    adb.wait()


def test_a_script_cannot_forge_its_end(adb):
    done = adb.shell("echo nn-meter-0123456789abcdef01234567:0; exit 3", timeout_s=LONG_S)
    assert (done.stdout, done.code) == ("nn-meter-0123456789abcdef01234567:0\n", 3)


def test_a_full_device_is_no_lost_device(adb, phone, file):
    remote = f"{phone.folder}/a remote b"
    phone.device.faults.add(Fault(what="full", push=True, after_bytes=100_000))
    with pytest.raises(BackendError, match=r"model\.tflite cannot be put.*No space left") as caught:
        adb.push(file, remote, timeout_s=LONG_S)
    assert not isinstance(caught.value, DeviceError)
    adb.remove([remote])


def test_a_folder_that_refuses_files(adb, phone, file):
    (phone.root / "data/local/tmp/x").touch()
    with pytest.raises(BackendError, match="cannot be put on device") as caught:
        adb.push(file, f"{phone.folder}/x/y", timeout_s=LONG_S)
    assert not isinstance(caught.value, DeviceError)
    adb.remove([f"{phone.folder}/x"])


def test_a_device_that_leaves_in_mid_push(adb, phone, file):
    phone.device.faults.add(Fault(what="drop", push=True, after_bytes=100_000, absent_s=0.5))
    with pytest.raises(DeviceGoneError):
        adb.push(file, f"{phone.folder}/x remote y", timeout_s=LONG_S)
    adb.wait()
    adb.push(file, f"{phone.folder}/x", timeout_s=LONG_S)
    assert (phone.root / "data/local/tmp/x").read_bytes() == file.read_bytes()
    adb.remove([f"{phone.folder}/x", f"{phone.folder}/x remote y"])


def test_a_push_that_hangs_is_ended(adb, phone, file):
    phone.device.faults.add(Fault(what="hang", push=True, after_bytes=100_000))
    with pytest.raises(DeviceTimeoutError, match=r"0\.5 s for putting model\.tflite on it"):
        adb.push(file, f"{phone.folder}/x", timeout_s=0.5)
    adb.remove([f"{phone.folder}/x"])


# --- children ------------------------------------------------------------------------------------


def gone(pid: int) -> bool:
    """Whether a process has ended, or only waits to be counted by its parent."""
    end_s = time.monotonic() + LONG_S
    while time.monotonic() < end_s:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("script", "limits", "error"),
    [
        ("sleep 600 & echo $! > pid; wait", (2.0, 1000), TimeUpError),
        ("sleep 600 & echo $! > pid; exec >&- 2>&-; wait", (2.0, 1000), TimeUpError),
        ("sleep 600 & echo $! > pid; exec yes", (LONG_S, 1000), TooMuchError),
    ],
)
def test_children_are_killed_with_their_parent(tmp_path, monkeypatch, script, limits, error):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        run_bounded(["sh", "-c", script], *limits)
    assert gone(int(Path("pid").read_text()))


def test_a_stream_that_somebody_holds_open_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        ended = run_bounded(["sh", "-c", "sleep 600 & echo $! > pid; echo done"], LONG_S, 1000)
        assert (ended.stdout, ended.code) == (b"done\n", 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(Path("pid").read_text()), 9)


def test_nothing_remains_of_a_phone():
    before = set(threading.enumerate())
    with AdbServer() as server, Phone() as phone:
        port, root = server.port, phone.root
        Adb(phone.serial).shell("sleep 600 & echo hi", timeout_s=LONG_S)
        groups = list(phone.device._groups)
        device = phone.device.port
    assert set(threading.enumerate()) == before
    assert not root.exists()
    for closed in (port, device):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", closed), timeout=LONG_S).close()
    assert all(gone(group) for group in groups)
