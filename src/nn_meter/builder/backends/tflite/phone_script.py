"""The script that runs models in turn on a phone, and reading what it prints.

It is put there once in a run; one call of adb starts it, with the models as its arguments. It runs
``benchmark_model`` on one model after the other and puts lines between their outputs that no model
can know, so that whatever a tool prints is put down to the model that it ran. A second process,
asleep but for a moment each second, ends a model that takes too long, and all of it when the script
itself is ended.

The script is written for POSIX shells, as mksh with toybox is, which Android has had since 6.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nn_meter.builder.backends.tflite.adb import quoted

__all__ = ["SCRIPT", "Printed", "Visited", "read_turn", "turn_command"]

SCRIPT = """\
# nn-Meter: runs benchmark_model on models in turn, and removes nothing but its own notes.
# MARK LIMIT FOLDER NOTES SYS COUNT model... tool argument...
mark=$1; limit=$2; folder=$3; notes=$4; sys=$5; count=$6
shift 6
models=
while [ "$count" -gt 0 ]; do
  models="$models $1"
  shift
  count=$((count - 1))
done
pids=$notes.pids; now=$notes.now; late=$notes.late
echo $$ > "$pids"
: > "$now"
rm -f "$late"
touch "$folder" 2>/dev/null
facts() {
  printf '\\n%s facts\\n' "$mark"
  ( cd "$sys" && grep -H . devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq \\
    class/thermal/thermal_zone*/type class/thermal/thermal_zone*/temp ) 2>/dev/null
  command -v dumpsys >/dev/null 2>&1 && dumpsys thermalservice 2>/dev/null | grep 'Thermal Status'
  printf '\\n%s told\\n' "$mark"
}
(
  trap '' HUP
  last=; n=0
  while kill -0 $$ 2>/dev/null; do
    sleep 1
    p=
    read -r p < "$now"
    [ "$p" = "$last" ] || n=0
    last=$p
    n=$((n + 1))
    if [ -n "$p" ] && [ $n -gt "$limit" ]; then
      : > "$late"
      kill -9 "$p"
      n=0
    fi
  done
  p=
  read -r p < "$now"
  [ -n "$p" ] && kill -9 "$p"
) < /dev/null > /dev/null 2>&1 &
watch=$!
facts
number=0
for model in $models; do
  printf '\\n%s begin %s\\n' "$mark" "$number"
  if [ -f "$folder/$model" ]; then
    "$@" --graph="$folder/$model" < /dev/null 2>&1 &
    p=$!
    echo $p >> "$pids"
    echo $p > "$now"
    wait $p
    code=$?
    : > "$now"
    if [ -f "$late" ]; then
      rm -f "$late"
      code=late
    fi
  else
    code=missing
  fi
  printf '\\n%s end %s %s\\n' "$mark" "$number" "$code"
  number=$((number + 1))
done
facts
kill "$watch" 2>/dev/null
rm -f "$pids" "$now" "$late"
"""
"""What is put on the phone; its arguments stand in its head."""

_PER_LINE = re.compile(r"(?P<path>(?:devices|class)/[^:]+):(?P<value>.*)")
_FREQUENCY = re.compile(r"devices/system/cpu/cpu([0-9]{1,4})/cpufreq/scaling_cur_freq")
_ZONE = re.compile(r"class/thermal/thermal_zone([0-9]{1,4})/(type|temp)")
_STATUS = re.compile(r"\s*Thermal Status:\s*([0-9]{1,3})")
_MOST_FACTS = 2000
_HOTTEST = 12
_COLDEST_C, _HOTTEST_C = -40.0, 150.0  # others are no temperatures: zones that are off say so


@dataclass(frozen=True, kw_only=True)
class Visited:
    """What came of one model.

    Attributes:
        output: What was printed.
        end: The tool's exit code; ``late``, it was stopped; ``missing``, the model is not there;
            None: there is no end of it.
    """

    output: str
    end: str | None


@dataclass(kw_only=True)
class Printed:
    """What a script printed.

    Attributes:
        visits: By their numbers.
        before, after: How the phone was: ``thermal_status`` (Android's, 0 is none),
            ``frequencies_khz`` (of each core), ``temperatures_c`` (of the hottest sensors);
            whatever of it the phone tells.
    """

    visits: dict[int, Visited] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)


def turn_command(
    script: str,
    models: Sequence[str],
    *,
    notes: str,
    mark: str,
    tool: str,
    arguments: Sequence[str],
    limit_s: float,
    mask: str = "",
) -> str:
    """The command that starts the script.

    Args:
        script: Where it lies on the phone, in the folder of the models.
        models: Names of files in that folder, of letters, digits and dots, in the order of their
            visits.
        notes: A path that its notes about processes begin with, of this call alone: what an
            earlier one, whose connection broke, still does must not meet this one's processes.
        mark: Letters and digits that nobody can guess, which begin the lines between outputs.
        tool: Path of ``benchmark_model``.
        arguments: Its arguments but for the model.
        limit_s: Seconds that one model may take.
        mask: Of the cores to run on, hexadecimal; empty: Android chooses.
    """
    limit = str(max(1, round(limit_s)))
    words = [mark, limit, posixpath.dirname(script), notes, "/sys", str(len(models)), *models]
    run = ["taskset", mask, tool] if mask else [tool]
    return f"sh {quoted(script, *words, *run, *arguments)}"


def read_turn(text: str, mark: str) -> Printed:
    """Read what the script printed, be it only a part."""
    found = Printed()
    pieces = re.split(rf"^{re.escape(mark)} (.*)$\n?", text, flags=re.MULTILINE)
    told: list[Mapping[str, Any]] = []
    for head, body in zip(pieces[1::2], pieces[2::2], strict=True):
        words = head.split()
        if words == ["facts"]:
            told.append(_conditions(body))
        elif len(words) == 2 and words[0] == "begin" and words[1].isdigit():
            found.visits[int(words[1])] = Visited(output=body, end=None)
        elif len(words) == 3 and words[0] == "end" and words[1].isdigit():
            begun = found.visits.get(int(words[1]))
            if begun is not None:
                found.visits[int(words[1])] = Visited(output=begun.output, end=words[2])
    if told:
        found.before = told[0]
        found.after = told[-1] if len(told) > 1 else {}
    return found


def _conditions(text: str) -> dict[str, Any]:
    """How a phone says it is."""
    found: dict[str, Any] = {}
    frequencies: dict[int, int] = {}
    zones: dict[int, dict[str, str]] = {}
    for line in text.splitlines()[:_MOST_FACTS]:
        if status := _STATUS.match(line):
            found["thermal_status"] = int(status[1])
        if not (match := _PER_LINE.fullmatch(line.strip())):
            continue
        value = match["value"].strip()[:60]
        if core := _FREQUENCY.fullmatch(match["path"]):
            if value.isdecimal():
                frequencies[int(core[1])] = int(value[:9])
        elif zone := _ZONE.fullmatch(match["path"]):
            zones.setdefault(int(zone[1]), {})[zone[2]] = value
    if frequencies:
        found["frequencies_khz"] = [frequencies[core] for core in sorted(frequencies)]
    hot = []
    for number, zone_of in zones.items():
        degrees = _degrees(zone_of.get("temp", ""))
        if degrees is not None:
            hot.append((degrees, f"{number} {zone_of.get('type', '')}".strip()))
    if hot:
        hottest = sorted(hot, reverse=True)[:_HOTTEST]
        found["temperatures_c"] = {name: degrees for degrees, name in hottest}
    return found


def _degrees(text: str) -> float | None:
    """A zone's temperature; the kernel says thousandths of a degree, some drivers whole ones."""
    try:
        value = float(text)
    except ValueError:
        return None
    if abs(value) > _HOTTEST_C:
        value /= 1000
    return round(value, 1) if _COLDEST_C < value < _HOTTEST_C and value else None
