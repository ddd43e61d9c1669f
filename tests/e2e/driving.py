"""Driving nn-meter as a user does: its command and Python code, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
NN_METER = str(Path(sys.executable).with_name("nn-meter"))
TIMEOUT_S = 300

SMALL = {"HW": 8, "CIN": 4, "COUT": 8, "SHAPE_1D": 8, "TIME_BUDGET": 0.01}
"""Shapes in which every operator works and nothing takes long; the clock is hardly asked."""


# --- commands and scripts ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Done:
    """A process that ended."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """Lines on standard error that tell no progress."""
        return [line for line in self.err.splitlines() if not _PROGRESS.fullmatch(line)]


_PROGRESS = re.compile(r"\(nn-Meter\) \w+: \d+ of \d+( \S+)?")


@dataclass(frozen=True, kw_only=True)
class User:
    """Somebody at a prompt: the folder they stand in, and where what they register is kept."""

    folder: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "NN_METER_HOME": str(self.home)}

    def run(self, *command: object, **options: Any) -> Done:
        """Run a command to its end, whatever it is."""
        done = subprocess.run(
            [str(word) for word in command],
            **{"cwd": self.folder, "env": self.environment, "timeout": TIMEOUT_S} | options,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return Done(code=done.returncode, out=done.stdout, err=done.stderr)

    def nn_meter(self, *arguments: object) -> Done:
        """Run ``nn-meter``, which never shows a traceback without being asked to."""
        done = self.run(NN_METER, *arguments)
        assert "Traceback" not in done.err or "--debug" in arguments, done.err
        return done

    def succeed(self, *arguments: object) -> str:
        """Run ``nn-meter``, which does it and complains of nothing; what it printed."""
        return _succeeded(self.nn_meter(*arguments))

    def fail(self, code: int, *arguments: object) -> str:
        """Run ``nn-meter``, which refuses in one line on standard error; that line."""
        return _failed(code, self.nn_meter(*arguments))

    def succeed_each(self, *commands: Sequence[object]) -> list[str]:
        """``succeed`` with each of some commands that hardly do anything, all in one process."""
        return [_succeeded(done) for done in self._each(commands)]

    def fail_each(self, *commands: Sequence[object]) -> list[str]:
        """``fail`` with each of some commands, which the code stands before, all in one process."""
        codes = [int(str(code)) for code, *_ in commands]
        done = self._each([arguments for _, *arguments in commands])
        return [_failed(code, each) for code, each in zip(codes, done, strict=True)]

    def _each(self, commands: Sequence[Sequence[object]]) -> list[Done]:
        given = json.dumps([[str(word) for word in command] for command in commands])
        done = self.run(sys.executable, "-c", _EACH, given)
        assert (done.code, done.err) == (0, ""), done
        found = [Done(code=code, out=out, err=err) for code, out, err in json.loads(done.out)]
        assert len(found) == len(commands)
        for each in found:
            assert "Traceback" not in each.err, each.err
        return found

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """Start ``nn-meter`` and leave it running, open to Ctrl-C wherever the tests run."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [NN_METER, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            text=True,
            preexec_fn=_heed_interrupts,
            **{"cwd": self.folder, "env": self.environment, **pipes} | options,
        )

    def python(self, code: str, *arguments: object) -> str:
        """Run Python code as a script, word for word; what it printed."""
        script = self.folder / "script.py"
        script.write_text(code, encoding="utf-8")
        done = self.run(sys.executable, script, *arguments)
        assert done.code == 0, done.err
        return done.out


def _succeeded(done: Done) -> str:
    assert (done.code, done.complaints) == (0, []), done
    return done.out


def _failed(code: int, done: Done) -> str:
    assert done.code == code, done
    assert done.out == ""
    errors = [line for line in done.complaints if not line.startswith("(nn-Meter) warning: ")]
    assert len(errors) == 1, done.err
    line = errors[0]
    assert done.err.endswith(line + "\n"), done.err
    assert line.startswith("nn-meter: error: "), line
    return line.removeprefix("nn-meter: error: ")


_EACH = """\
import contextlib, io, json, sys
from nn_meter.cli.main import main
found = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


def _heed_interrupts() -> None:
    """Shells start what is in the background deaf to Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


_PROMPT = """\
import json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
names = {"__name__": "__main__"}
for line in sys.stdin:
    kind, code = json.loads(line)
    try:
        answer = {"ok": eval(code, names) if kind == "eval" else exec(code, names)}
    except BaseException as exc:
        traceback.print_exc()
        answer = {"error": f"{type(exc).__name__}: {exc}"}
    print(json.dumps(answer), file=answers, flush=True)
"""


class Prompt:
    """A Python prompt: code that is given one piece after the other shares its names."""

    def __init__(self, user: User) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROMPT],
            cwd=user.folder,
            env=user.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str) -> None:
        """Carry out statements."""
        self._ask("exec", code)

    def value(self, expression: str) -> Any:
        """The value of an expression that JSON can hold."""
        return self._ask("eval", expression)

    def _ask(self, kind: str, code: str) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([kind, code]) + "\n")
        stdin.flush()
        answer = json.loads(stdout.readline())
        assert "error" not in answer, f"{answer['error']}\n{code}"
        return answer["ok"]

    def close(self) -> None:
        self._process.communicate(timeout=TIMEOUT_S)


# --- workspaces ----------------------------------------------------------------------------------


def edit(workspace: Path, file: str = "ruletest_config.yaml", /, **keys: Any) -> None:
    """Change keys of a workspace's configuration."""
    path = workspace / "configs" / file
    data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    path.write_text(yaml.safe_dump(data | keys, sort_keys=False), encoding="utf-8")


def results(workspace: Path, name: str) -> dict[str, Any]:
    """A JSON file of a workspace's results."""
    path = workspace / "fusion_rule_test" / "results" / name
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def all_json_files(workspace: Path) -> dict[str, Any]:
    """Every JSON file of a workspace by its path there; each must be readable."""
    return {
        str(path.relative_to(workspace)): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(workspace.rglob("*.json"))
    }


Visit = tuple[int, str, int, int, str, str, bytes]
"""Round, test case, load, position, model, hash of its file, samples (int64 ns)."""


def visits(workspace: Path, *, clock: bool = False) -> list[Visit]:
    """All that was measured of the guide's models in a workspace, oldest first.

    Nothing if there is no store yet. With ``clock`` what the clock measured instead.
    """
    path = workspace / "fusion_rule_test" / "results" / "samples.db"
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
            return db.execute(
                "SELECT rounds.id, testcase, load, position, model, hash, samples FROM visits "
                "JOIN rounds ON rounds.id = visits.round WHERE (testcase LIKE 'clock:%') = ? "
                "ORDER BY rounds.id, position",
                (clock,),
            ).fetchall()
    except sqlite3.OperationalError:  # not there yet
        return []


def without_clock(rules: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rules without what the clock says beside them, which a later run may know better."""
    beside = ("clock", "others", "saves")
    return {
        name: {key: told for key, told in rule.items() if key not in beside}
        for name, rule in rules.items()
    }


def rounds(found: list[Visit]) -> Mapping[str, list[int]]:
    """Numbers of the rounds of each test case, in order."""
    by_case: dict[str, dict[int, None]] = {}
    for number, testcase, *_ in found:
        by_case.setdefault(testcase, {})[number] = None
    return {testcase: list(numbers) for testcase, numbers in by_case.items()}


def milliseconds(latency: str) -> float:
    """The average of ``"avg +- std"``, which is what the text must be."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e-?\d+)?) \+- (\d+(?:\.\d+)?(?:e-?\d+)?)", latency)
    assert match, latency
    return float(match[1])
