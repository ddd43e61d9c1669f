"""How the readers of outside data bear hostile files.

    python benchmarks/fuzz.py --minutes 10                 # each reader for ten minutes
    python benchmarks/fuzz.py --minutes 1 --reader onnx    # one of them
    python benchmarks/fuzz.py --again FOLDER               # the files that were kept, once more

A reader gets files by Hypothesis, half of them well formed and hostile, half of them valid files
with damaged bytes. It has to answer with a value or with an error of nn-Meter's own that names the
file, in 5 s of processor time and 300 MiB of memory beyond what the process had, and to write
nothing. Each reader runs in a process of its own; the file under way lies on the disk, so that a
crash or a hang is a finding, too. What is found is printed, and the files are kept.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fuzz"))

from fuzz_readers import READERS
from fuzz_running import Outcome, limited_memory, run
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

BATCH = 400
HANGS_S = 60.0


def campaign(name: str, minutes: float, first_seed: int, folder: str, report: Any) -> None:
    """Runs in a process of its own: batches of files until the time is over."""
    reader, place = READERS[name], Path(folder)
    warnings.simplefilter("ignore")
    reader.corpus()
    (place / "home").mkdir()
    os.environ["NN_METER_HOME"] = str(place / "home")
    read = reader.prepare(place)
    (place / "in").mkdir()
    end = time.monotonic() + 60 * minutes

    def one(chance: Random) -> None:
        file, data = reader.file(chance)
        if time.monotonic() > end:  # drawn all the same: Hypothesis compares what is drawn
            return
        path = place / "in" / file
        path.write_bytes(data)
        report.put(("start", str(path)))
        outcome = run(read, path, names_file=reader.names_file)
        report.put(("done", outcome, data if outcome.finding else None, file))

    number = first_seed
    with limited_memory():
        while time.monotonic() < end:
            batch = given(chance=st.randoms(use_true_random=False))(one)
            batch = settings(
                max_examples=BATCH,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )(batch)
            seed(number)(batch)()
            number += 1
    report.put(("end",))


class Tally:
    """What came of one reader."""

    def __init__(self, name: str, kept: Path) -> None:
        self.name, self.kept = name, kept
        self.tried = self.refused = 0
        self.slowest_s = self.most_mib = 0.0
        self.findings: Counter[str] = Counter()

    def add(self, outcome: Outcome, data: bytes | None, file: str) -> None:
        self.tried += 1
        self.refused += outcome.refused
        self.slowest_s = max(self.slowest_s, outcome.cpu_s)
        self.most_mib = max(self.most_mib, outcome.grown_mib)
        if outcome.finding:
            self.found(f"{outcome.finding}; {outcome.said[:200]}", data or b"", file)

    def found(self, what: str, data: bytes, file: str) -> None:
        kind = what[:60]
        self.findings[kind] += 1
        if self.findings[kind] > 3:
            return
        folder = self.kept / self.name / f"{sum(self.findings.values()):04}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
        print(f"  {self.name}: {what!r}: {folder / file}", flush=True)

    def row(self) -> str:
        return (
            f"| {self.name} | {READERS[self.name].about} | {self.tried:,} | {self.refused:,} | "
            f"{sum(self.findings.values())} | {self.slowest_s:.1f} | {self.most_mib:.0f} |"
        )


def measure(name: str, minutes: float, first_seed: int, kept: Path) -> Tally:
    """Run campaigns of one reader until the time is over; one that crashes is begun anew."""
    tally = Tally(name, kept)
    end = time.monotonic() + 60 * minutes
    context = multiprocessing.get_context("spawn")
    while (left := end - time.monotonic()) > 1:
        with tempfile.TemporaryDirectory(prefix="nn-meter-fuzz-") as folder:
            report = context.Queue()
            arguments = (name, left / 60, first_seed, folder, report)
            process = context.Process(target=campaign, args=arguments, daemon=True)
            process.start()
            first_seed += 100_000
            if not watch(process, report, tally):
                break
    return tally


def watch(process: Any, report: Any, tally: Tally) -> bool:
    """Count what a campaign reports; whether it ended before its time."""
    path: Path | None = None
    while True:
        try:
            kind, *said = report.get(timeout=HANGS_S if path else 4 * HANGS_S)
        except Exception:  # noqa: BLE001 - the queue's Empty
            what = "it hangs" if process.is_alive() else f"it crashed ({process.exitcode})"
            process.kill()
            process.join()
            if path is not None:
                tally.found(what, path.read_bytes(), path.name)
            return path is not None
        if kind == "end":
            process.join()
            return False
        if kind == "start":
            path = Path(said[0])
        else:
            path = None  # what takes long from here on is the making of the next
            tally.add(*said)


def again(folder: Path) -> int:
    """Give the files that were kept to their readers once more."""
    bad = 0
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        reader = READERS[path.parts[-3]]
        with tempfile.TemporaryDirectory() as place:
            target = Path(place) / "in" / path.name
            target.parent.mkdir()
            shutil.copy(path, target)
            found = run(reader.prepare(Path(place)), target, names_file=reader.names_file)
        bad += bool(found.finding)
        print(f"{path}: {found.finding or 'sound'}: {found.said[:200]}")
    return bad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--reader", choices=READERS, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-findings")
    parser.add_argument("--again", type=Path)
    parser.add_argument("--json", type=Path)
    given_ = parser.parse_args()
    if given_.again is not None:
        sys.exit(1 if again(given_.again) else 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tallies = []
    for name in given_.reader or READERS:
        tallies.append(measure(name, given_.minutes, given_.seed, given_.keep))
        print(tallies[-1].row(), flush=True)
    print(
        "\n| reader | files | tried | refused | findings | slowest, s | most memory, MiB |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for tally in tallies:
        print(tally.row())
    if given_.json:
        found = {t.name: {**vars(t), "kept": str(t.kept), "findings": t.findings} for t in tallies}
        given_.json.write_text(json.dumps(found, indent=1))
    sys.exit(1 if any(tally.findings for tally in tallies) else 0)


if __name__ == "__main__":
    main()
