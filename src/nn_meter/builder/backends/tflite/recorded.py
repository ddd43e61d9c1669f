"""Op profiles of LiteRT from elsewhere: what ``benchmark_model --enable_op_profiling`` prints.

The table "Run Order" has a line for each thing that was timed. Its last column tells what that was,
in several ways since 2020::

    node type                        name
    CONV_2D                          [output]:3                             an op of LiteRT's own
    Convolution (NHWC, F32) IGEMM    Delegate/Convolution (NHWC, F32) IGEMM:0   of a delegate
    DelegateOpInvoke                 Delegate/Convolution (NHWC, F32) IGEMM:0   the same
    Delegate/Clamp (NC)              [Delegate]:0                               the same
    AllocateTensors                  AllocateTensors/0                      no op

``--profiling_output_csv_file`` writes the same with commas, which types have, too, and quotes none.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.recorded import read_print_text
from nn_meter.builder.backends.tflite import capi
from nn_meter.builder.backends.tflite.graph import graph_of
from nn_meter.errors import GraphUnavailableError

__all__ = ["graph_in", "named_events", "read_recorded", "recognises"]

_RUN_ORDER = "Run Order"
_TITLE = re.compile(r"(?<!=)={5,}+ *+(?P<title>[^=\n]{1,200})={5,}+")
_LOADING = "Profiling Info for Benchmark Initialization"
_RUNNING = "Operator-wise Profiling Info"
# Nothing is tried in two ways, so that a line takes time by its length: "++" gives nothing back.
_GAP = r"[,\s]++"
_NUMBER = r"-?[0-9][-+.0-9e]*+"
_SHARE = r"-?(?:[0-9][-+.0-9e]*+|nan|inf)%"
# type, two or three times, two shares, memory, number of calls, name
_ROW = re.compile(
    rf"\s*+(?P<type>\S.*?)(?<![,\s])(?P<times>(?:{_GAP}{_NUMBER}){{2,3}})(?:{_GAP}{_SHARE}){{2}}"
    rf"{_GAP}{_NUMBER}{_GAP}(?P<calls>[0-9]{{1,9}}+){_GAP}(?P<name>\S.*)"
)
_HEAD = "[node type]"
_MOST_CALLS = 1000
_MOST_OPS = 100_000
_MOST_MS = 1e9
_LONGEST_LINE = 20_000
_DELEGATED = "Delegate/"
_OTHER_DELEGATE = re.compile(r"TfLite(?!XNNPack)\w*Delegate\w*")
_TO_DO = "run benchmark_model with --enable_op_profiling=true, and give all that it prints"


def recognises(text: str) -> bool:
    """Whether a text is surely an op profile."""
    return any(_title(line) == _RUN_ORDER for line in text.splitlines())


def read_recorded(path: Path, model: Path | None) -> ExecutedGraph:
    """Read an op profile: of the runs, not of loading.

    Args:
        path: The text or CSV file.
        model: Not needed.

    Raises:
        GraphUnavailableError: It has no such table, or a delegate hides what it ran.
    """
    return graph_in(read_print_text(path))


def graph_in(text: str) -> ExecutedGraph:
    """The graph that an op profile shows: of the runs, not of loading.

    Args:
        text: All that ``benchmark_model`` printed.

    Raises:
        GraphUnavailableError: It has no such table, or a delegate hides what it ran.
    """
    if not recognises(text):
        raise GraphUnavailableError(f"has no table '{_RUN_ORDER}'; {_TO_DO}")
    events = [event for _, event in named_events(text)]
    if not events:
        raise GraphUnavailableError(f"shows no op in the table '{_RUN_ORDER}'; {_TO_DO}")
    for event in events:
        if event.type == capi.BUILTIN_OP and _OTHER_DELEGATE.fullmatch(event.tag):
            raise GraphUnavailableError(
                f"shows that {event.tag} ran a part of the model, but not what it executed of it; "
                "only XNNPACK tells that"
            )
    return graph_of(events)


def named_events(text: str) -> list[tuple[str, capi.Event]]:
    """The ops in the tables of the runs with their names there, as often as each is called.

    Raises:
        GraphUnavailableError: There are more than a model has, or a line is too long.
    """
    events = list(itertools.islice(_events(text), _MOST_OPS + 1))
    if len(events) > _MOST_OPS:
        raise GraphUnavailableError(f"shows more than {_MOST_OPS} ops; a print is of one model")
    return events


def _events(text: str) -> Iterator[tuple[str, capi.Event]]:
    """The ops in the tables of the runs and their names, each as often as it is called in a run.

    What a delegate ran may stand in a table of its own; a table that comes once more is skipped.

    Raises:
        GraphUnavailableError: A line is too long to be one of a table.
    """
    before: set[str] = set()
    for table in _tables(text):
        if any(len(line) > _LONGEST_LINE for line in table):
            raise GraphUnavailableError(f"has a line of more than {_LONGEST_LINE} characters")
        found = [row for row in map(_ROW.fullmatch, table) if row]
        named = [(row["name"].rstrip(), row) for row in found]
        named = [(name, row) for name, row in named if name not in before]
        before.update(name for name, _ in named)
        for name, row in named:
            # Equal operators of two parts of the model are one line: two calls in a run.
            calls = min(max(int(row["calls"]), 1), _MOST_CALLS)
            event = _event(row["type"], name, _us(row["times"]) // calls)
            yield from [(name, event)] * calls if event is not None else []


def _tables(text: str) -> Iterator[list[str]]:
    """The lines of each table in the order of execution that is not of loading."""
    loading, wanted, tabs_first = False, False, False
    table: list[str] = []
    for line in text.splitlines():
        if _LOADING in line or _RUNNING in line:
            loading, wanted = _LOADING in line, False
        if title := _title(line):
            yield table
            table = []
            wanted = title == _RUN_ORDER and not loading
        elif _HEAD in line:
            tabs_first = True
        elif wanted:
            # Cells begin with a tab; what is before the first was put there by a log.
            _, tab, cells = line.partition("\t") if tabs_first else ("", "", "")
            table.append(cells if tab else line)
    yield table


def _title(line: str) -> str:
    """The title of a table; empty: the line is none."""
    found = _TITLE.search(line[:_LONGEST_LINE])
    return found["title"].rstrip() if found is not None else ""


def _us(times: str) -> int:
    """The average of a line's times, which are in milliseconds; it is the last of them."""
    try:
        average_ms = float(re.split(r"[,\s]+", times)[-1])
    except ValueError:  # such as 1.2.3
        return 0
    return round(average_ms * 1000) if 0 <= average_ms < _MOST_MS else 0


def _event(kind: str, name: str, elapsed_us: int) -> capi.Event | None:
    """What a line is about; None: no op."""
    if kind.startswith(_DELEGATED):
        tag, of = kind.removeprefix(_DELEGATED), capi.DELEGATE_OP
    elif name.startswith(_DELEGATED):
        # a comma in the name is written as a tab in CSV files
        tag = name.removeprefix(_DELEGATED).rpartition(":")[0].replace("\t ", ", ")
        of = capi.DELEGATE_OP
    elif name.startswith("["):
        tag, of = kind.partition("/")[0], capi.BUILTIN_OP  # a description may follow
    else:
        return None
    return capi.Event(tag=tag, type=of, index=0, elapsed_us=elapsed_us)
