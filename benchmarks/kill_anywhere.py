"""Kills a run at many moments, spread evenly over its time, and looks at what is left.

    python benchmarks/kill_anywhere.py --moments 200 --folder /tmp/kills

Of each two moments the first is at a share of the time that a whole run takes, the second at a
share of its rounds and while a model is being timed. The shares are spread evenly.

Each time a new workspace, `nn-meter run` on ONNX Runtime, a signal: by turns SIGKILL to the
process, SIGKILL to it and all that it started, SIGTERM, SIGINT. By turns it asks with EVIDENCE:
auto, and by the clock alone (EVIDENCE: latency). Then, in this order:

* all processes must be gone within 30 s;
* every JSON and YAML file must parse, and SQLite must find samples.db sound;
* each round that was in the store when the signal was sent must be there, sample by sample;
* the same command must end well, and keep each of those rounds;
* it must have the rules that a run that nobody killed has: by graphs the same verdicts, by the
  clock the same test cases, each of them decided or `undecided`, which are counted apart;
* nothing temporary may be left, in the workspace or in the folder for temporary files.

A moment at which the run is over already is taken again, a little earlier.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

NN_METER = str(Path(sys.executable).with_name("nn-meter"))
TELLING_ALL = """\
import sys
import nn_meter.cli.console as console
from nn_meter.builder.profiling.process import Worker
from nn_meter.cli.main import main

asks = Worker._ask

def tell(worker, op, *rest):
    print("begins", op, file=sys.stderr, flush=True)
    try:
        return asks(worker, op, *rest)
    finally:
        print("ends", op, file=sys.stderr, flush=True)

Worker._ask = tell
console._PLAIN_EVERY_S = 0.0
main()
"""  # the command itself, but it says what it asks of its workers: so one knows what was killed
CASES = ["conv_relu", "relu_relu"]
KEYS = {
    **{"HW": 16, "CIN": 8, "COUT": 16, "SHAPE_1D": 16, "TIME_BUDGET": 2},
    **{"BASIC_TESTCASES": CASES, "OTHER_TESTCASES": []},
}
RUNS = 20_000
MEASURES = ("time", "race")
HOWS = ("SIGKILL", "SIGKILL to all", "SIGTERM", "SIGINT")
GONE_S, END_S = 30, 300

Rounds = dict[int, list[tuple[object, ...]]]


@dataclass
class Tally:
    """What came of all moments."""

    phases: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    rounds: int = 0
    lost: int = 0
    by_clock: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Whole:
    """A run that nobody kills."""

    length_s: float
    rounds: int


class Run:
    """A workspace, and the command that is killed in it."""

    def __init__(self, folder: Path, evidence: str) -> None:
        self.folder, self.evidence = folder, evidence
        self.workspace = folder / "ws"
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.rounds_file = self.workspace / "fusion_rule_test" / "results" / "samples.db"
        self.printed = folder / "printed.txt"
        self.environment = {
            **os.environ,
            "NN_METER_HOME": str(folder / "home"),
            "TMPDIR": str(self.temporary),
        }
        create = [NN_METER, "create", "--onnxruntime-workspace", str(self.workspace)]
        subprocess.run(create, env=self.environment, check=True, stdout=subprocess.DEVNULL)
        self._edit("ruletest_config.yaml", {**KEYS, "EVIDENCE": evidence})
        self._edit("backend_config.yaml", {"RUNS": RUNS, "WARMUPS": 1})

    def _edit(self, name: str, keys: dict[str, object]) -> None:
        path = self.workspace / "configs" / name
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys))

    def start(self) -> subprocess.Popen[bytes]:
        with self.printed.open("wb") as stderr:
            return subprocess.Popen(
                [sys.executable, "-c", TELLING_ALL, "run", "--workspace", "ws"],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def processes(self) -> list[psutil.Process]:
        """All that runs on behalf of this run, whoever its parent is."""
        found = []
        for process in psutil.process_iter():
            try:
                theirs = process.environ().get("NN_METER_HOME")
            except psutil.Error:
                continue
            if theirs == self.environment["NN_METER_HOME"]:
                found.append(process)
        return found

    def phase(self) -> str:
        """What its workers are asked right now, or else the step that it is in."""
        lines = [line.split() for line in self.printed.read_text().splitlines()]
        asked = Counter(line[1] for line in lines if len(line) == 2 and line[0] == "begins")
        asked -= Counter(line[1] for line in lines if len(line) == 2 and line[0] == "ends")
        if asked:
            return next((op for op in MEASURES if asked[op]), min(asked))
        stages = [
            line[1].rstrip(":") for line in lines if line[:1] == ["(nn-Meter)"] and "of" in line
        ]
        return f"between: {stages[-1]}" if stages else "begin"

    def has_rounds(self, count: int) -> bool:
        if not self.rounds_file.exists():
            return count <= 0
        with closing(sqlite3.connect(f"file:{self.rounds_file}?mode=ro", uri=True)) as db:
            try:
                return int(db.execute("SELECT count(*) FROM rounds").fetchone()[0]) >= count
            except sqlite3.OperationalError:  # not ready yet
                return False

    def rounds(self) -> Rounds:
        path = self.rounds_file
        found: Rounds = {}
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20)) as db:
                for number, *rest in db.execute(
                    "SELECT rounds.id, testcase, load, position, model, hash, samples FROM visits "
                    "JOIN rounds ON rounds.id = visits.round ORDER BY rounds.id, position"
                ):
                    found.setdefault(number, []).append(tuple(rest))
        except sqlite3.OperationalError:  # not there yet
            return {}
        return found

    def unreadable(self) -> list[str]:
        found = []
        for path in self.workspace.rglob("*"):
            try:
                if path.suffix == ".json":
                    json.loads(path.read_text())
                elif path.suffix == ".yaml":
                    yaml.safe_load(path.read_text())
                elif path.name == "samples.db":
                    with closing(sqlite3.connect(path)) as db:
                        if db.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                            found.append(path.name)
            except (OSError, ValueError, yaml.YAMLError, sqlite3.Error) as exc:
                found.append(f"{path.name}: {exc}")
        return found

    def left_over(self) -> list[str]:
        """Temporary files: hidden ones that are none of those that a workspace has."""
        known = {".info", ".lock", ".lock-holder"}
        hidden = [
            str(path.relative_to(self.workspace))
            for path in self.workspace.rglob(".*")
            if path.name not in known
        ]
        wal = [path.name for path in self.workspace.rglob("samples.db-*")]
        return hidden + wal + [path.name for path in self.temporary.iterdir()]

    def verdicts(self) -> dict[str, tuple[str, str]]:
        path = self.workspace / "fusion_rule_test" / "results" / "detected_fusion_rule.json"
        rules = json.loads(path.read_text())
        return {name: (rule["evidence"], rule["verdict"]) for name, rule in rules.items()}


def send(run: Run, process: subprocess.Popen[bytes], how: str) -> None:
    if how == "SIGKILL to all":
        everyone = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in everyone:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
    else:
        process.send_signal(getattr(signal, how))


def wait_for(run: Run, process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> bool:
    """Wait for a moment; False: the run was over before."""
    while process.poll() is None:
        if reached():
            return True
        time.sleep(0.005)
    return False


def one(number: int, count: int, whole: dict[str, Whole], base: Path, tally: Tally) -> None:
    evidence = ("auto", "latency")[number // 2 % 2]
    how = HOWS[number // 4 % len(HOWS)]
    share = (number // 2 + 0.5) / (count / 2)
    wanted_s, rounds = share * whole[evidence].length_s, int(share * whole[evidence].rounds)
    folder = base / f"{number:03d}"
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        run = Run(folder, evidence)
        began_s = time.monotonic()
        process = run.start()

        before: Rounds = {}

        def reached(
            until_s: float = began_s + wanted_s, run: Run = run, least: int = rounds
        ) -> bool:
            nonlocal before
            if number % 2:
                if not run.has_rounds(least):
                    return False
                before = run.rounds()
                return run.phase() in MEASURES
            before = run.rounds() if time.monotonic() >= until_s else {}
            return time.monotonic() >= until_s

        if wait_for(run, process, reached):
            phase = run.phase()
            if process.poll() is None:
                break
        wanted_s *= 0.97  # this time it was quicker than the run that was timed
        rounds -= 1
    at_s = time.monotonic() - began_s
    send(run, process, how)
    process.wait(timeout=60)
    wrong = []
    until_s = time.monotonic() + GONE_S
    while (left := run.processes()) and time.monotonic() < until_s:
        time.sleep(0.02)
    if left:
        wrong.append(f"still run: {left}")
        for orphan in left:
            orphan.kill()
    wrong += [f"unreadable: {what}" for what in run.unreadable()]
    after = run.rounds()
    lost = sum(after.get(number) != visits for number, visits in before.items())
    again = run.start()
    code = again.wait(timeout=END_S)
    if code:
        wrong.append(f"the next run ended with {code}: {run.printed.read_text()[-500:]}")
    final = run.rounds()
    lost += sum(final.get(number) != visits for number, visits in after.items())
    if lost:
        wrong.append(f"{lost} rounds lost")
    wrong += [f"unreadable in the end: {what}" for what in run.unreadable()]
    wrong += [f"left over: {what}" for what in run.left_over()]
    found = run.verdicts() if not code else {}
    if set(found) != {f"BF_{case}" for case in CASES}:
        wrong.append(f"decided: {sorted(found)}")
    by_graph = {name: verdict for name, (by, verdict) in found.items() if by == "graph"}
    expected = {"BF_conv_relu": "fused", "BF_relu_relu": "separate"}
    if evidence == "auto" and by_graph != expected:
        wrong.append(f"verdicts by graph: {by_graph}")
    if evidence == "latency":
        tally.by_clock.update(
            "undecided" if verdict == "undecided" else "decided" for _, verdict in found.values()
        )
    tally.phases[phase] += 1
    tally.rounds += len(after)
    tally.lost += lost
    tally.faults += [f"moment {number}: {what}" for what in wrong]
    print(
        f"{number:4d}  {evidence:8}{how:15}{at_s:6.1f} s  {phase:20}"
        f"{len(before):5d} -> {len(after):5d} -> {len(final):5d} rounds  {lost} lost  "
        + ("; ".join(wrong) or "ok"),
        flush=True,
    )
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--folder", type=Path, required=True, help="where workspaces are made")
    parser.add_argument("--part", default="1/1", help="k/n: each n-th moment, from the k-th on")
    parser.add_argument("--first", type=int, default=0, help="number of the first moment")
    parser.add_argument("--last", type=int, help="number behind the last moment")
    given = parser.parse_args()
    part, parts = map(int, given.part.split("/"))
    base = given.folder / f"{given.first}-{part}"
    shutil.rmtree(base, ignore_errors=True)
    whole = {}
    for evidence in ("auto", "latency"):
        run = Run(base / evidence, evidence)
        began_s = time.monotonic()
        if run.start().wait(timeout=END_S):
            sys.exit(run.printed.read_text())
        whole[evidence] = Whole(time.monotonic() - began_s, len(run.rounds()))
        print(f"EVIDENCE: {evidence}: {whole[evidence]}, {run.verdicts()}", flush=True)
    tally = Tally()
    try:
        last = given.moments if given.last is None else given.last
        for number in range(given.first + part - 1, last, parts):
            one(number, given.moments, whole, base, tally)
    except KeyboardInterrupt:
        tally.faults.append("not all moments: interrupted")
    total = sum(tally.phases.values())
    measuring = sum(tally.phases[phase] for phase in MEASURES)
    print(
        f"\n{total} moments, {measuring} of them while the runtime measured: {dict(tally.phases)}"
    )
    print(f"{tally.rounds} rounds in the stores, {tally.lost} lost")
    print(f"rules by the clock after the next run: {dict(tally.by_clock)}")
    print("\n".join(tally.faults) or "no faults")
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
