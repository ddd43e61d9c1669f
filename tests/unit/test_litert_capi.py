"""Reading what LiteRT's profiler wrote to memory, and what its events mean; without LiteRT."""

from __future__ import annotations

import ctypes

import pytest

from nn_meter.builder.backends.tflite import capi, graph
from nn_meter.errors import GraphUnavailableError

SIZE = 104  # of an event, as LiteRT 2.3.0 writes it
WALL_US = 500.0
CONV = {"tag": b"Convolution (NHWC, F32) IGEMM", "type": 8, "elapsed_us": 90}
CUMSUM = {"tag": b"CUMSUM", "type": 2, "elapsed_us": 3, "index": 1}
NOT_A_TIME = {"tag": b"Invoke", "type": 32, "elapsed_us": 2**32}


class Written:
    """Memory as LiteRT leaves it: its events, word by word, and the pattern behind them."""

    def __init__(self, *events: dict, size: int = SIZE) -> None:
        self.count = len(events)
        self.memory = (ctypes.c_ubyte * (3 * SIZE * self.count))()
        ctypes.memset(self.memory, 0xA5, len(self.memory))
        self.kept = []
        for number, event in enumerate(events):
            tag = event.get("tag")
            text = None if tag is None else ctypes.create_string_buffer(tag)
            self.kept.append(text)
            words = [0] * (size // 8)
            words[0] = event.get("address", 0 if text is None else ctypes.addressof(text))
            words[1], words[2], words[3] = event["type"], 12_345, event["elapsed_us"]
            words[-3], words[-2], words[-1] = event.get("index", 0), 0, event.get("source", 0)
            part = (ctypes.c_uint64 * len(words))(*words)
            ctypes.memmove(ctypes.byref(self.memory, number * size), part, size)

    def read(self) -> list[capi.Event]:
        return capi.read_events(self.memory, self.count, WALL_US)


def test_reads_every_event():
    found = Written(CONV, CUMSUM, NOT_A_TIME).read()
    assert [(e.tag, e.type, e.index, e.elapsed_us) for e in found] == [
        ("Convolution (NHWC, F32) IGEMM", 8, 0, 90),
        ("CUMSUM", 2, 1, 3),
        ("Invoke", 32, 0, 2**32),
    ]


@pytest.mark.parametrize("size", [SIZE - 16, SIZE - 8, SIZE + 8, SIZE + 16])
def test_events_of_another_size_are_an_error(size):
    with pytest.raises(capi.CApiError, match=r"event of its profiler"):
        Written(CONV, CUMSUM, CONV, size=size).read()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": 3}, "is of type 3"),
        ({"type": 512}, "is of type 512"),
        ({"source": 3}, "from source 3"),
        ({"elapsed_us": 2_000_000}, "took 2000000 µs in a run of 500 µs"),
        ({"elapsed_us": 1_450}, r"ops took 1540 µs .* in a run of 500 µs"),
        ({"tag": None}, "no tag"),
        ({"address": 17}, "no tag"),
        ({"tag": b""}, "tag ''"),
        ({"tag": b"\xff\xfe\x01"}, "has the tag"),
        ({"tag": b"x" * 1000}, "has the tag"),
    ],
)
def test_events_that_cannot_be_are_an_error(change, words):
    with pytest.raises(capi.CApiError, match=words):
        Written(CONV, {**CONV, **change}).read()


def test_anything_written_behind_the_events_is_an_error():
    written = Written(CONV, CUMSUM)
    ctypes.memset(ctypes.byref(written.memory, 2 * SIZE), 0, 8)
    with pytest.raises(capi.CApiError, match=f"is larger than {SIZE} bytes"):
        written.read()


def test_a_field_that_was_not_written_is_an_error():
    written = Written(CONV)
    ctypes.memset(ctypes.byref(written.memory, SIZE - 8), 0xA5, 8)
    with pytest.raises(capi.CApiError, match="the field source is not filled"):
        written.read()


def test_a_library_without_the_functions_is_an_error(tmp_path):
    with pytest.raises(capi.CApiError, match=r"libc\S* lacks a function: .*LiteRtCreate"):
        capi.Library(next(_libc()))
    with pytest.raises(capi.CApiError, match=r"nothing\.so cannot be loaded"):
        capi.Library(tmp_path / "nothing.so")


def _libc():
    from ctypes.util import find_library
    from pathlib import Path

    name = find_library("c")
    if name is None:
        pytest.skip("needs a C library that can be found")
    yield Path(name)


# --- what events mean ----------------------------------------------------------------------------


def event(tag: str, type: int = capi.DELEGATE_OP) -> capi.Event:
    return capi.Event(tag=tag, type=type, index=0, elapsed_us=0)


def test_ops_are_nodes_in_the_order_of_execution():
    found = graph.graph_of(
        [
            event("LiteRT::Run[buffer registration]", 1),
            event("invoke", 16),
            event("Clamp (NC)"),
            event("CUMSUM", capi.BUILTIN_OP),
            event("Clamp (NC)"),
            event("Invoke", 32),
        ]
    )
    assert [node.type for node in found.nodes] == ["Clamp (NC)", "CUMSUM", "Clamp (NC)"]
    assert len({node.name for node in found.nodes}) == 3
    assert found.inputs is None
    assert found.ops is None


@pytest.mark.parametrize(
    ("tag", "type", "kind"),
    [
        ("Static Reshape (NC)", capi.DELEGATE_OP, "move"),
        ("Transpose (ND, X32) Transpose", capi.DELEGATE_OP, "move"),
        ("Depth To Space (NHWC, X32) Transpose", capi.DELEGATE_OP, "compute"),
        ("Copy (NC, X32)", capi.DELEGATE_OP, "compute"),  # a concatenation or a split
        ("Constant Pad (ND, X32)", capi.DELEGATE_OP, "compute"),
        ("RESHAPE", capi.BUILTIN_OP, "move"),
        ("CONCATENATION", capi.BUILTIN_OP, "compute"),
        ("Transpose", capi.BUILTIN_OP, "compute"),  # a user's own op, of whatever meaning
    ],
)
def test_what_only_moves_data(tag, type, kind):
    (node,) = graph.graph_of([event(tag, type)]).nodes
    assert node.kind == kind


def test_a_delegate_counts_by_its_operators():
    whole = event("TfLiteXNNPackDelegate", capi.BUILTIN_OP)
    found = graph.graph_of([event("Clamp (NC)"), whole])
    assert [node.type for node in found.nodes] == ["Clamp (NC)"]
    with pytest.raises(GraphUnavailableError, match=r"does not report its operators.*2\.3\.0"):
        graph.graph_of([whole])
