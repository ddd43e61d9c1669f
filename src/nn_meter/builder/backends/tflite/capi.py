"""LiteRT's C API through ctypes: runs a model once under LiteRT's profiler and reads the events.

LiteRT's Python API has no profiler; the C API of ``libLiteRt`` in the same wheel has one. What is
known of it comes from its public headers, which do not belong to one version of the wheel. So
nothing is taken on trust: memory that LiteRT fills has room to spare and a pattern behind it, every
field is checked before a pointer in it is followed, and ``calibrate`` runs a model whose events are
known before any other.

Worker processes and short-lived children import this module: it needs the standard library only.
"""

from __future__ import annotations

import base64
import ctypes
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = [
    "BUILTIN_OP",
    "DELEGATE_OP",
    "CApiError",
    "Event",
    "Input",
    "Library",
    "calibrate",
    "find_library",
    "profile",
    "read_events",
]

BUILTIN_OP: Final = 2
"""Type of an event: LiteRT ran an op by a kernel of its own."""

DELEGATE_OP: Final = 8
"""Type of an event: a delegate, XNNPACK, ran one of its operators."""

_TELEMETRY: Final = range(32, 257)  # of such events "elapsed" is not a time
_TYPES: Final = frozenset(1 << bit for bit in range(9))
_SOURCES: Final = frozenset({0, 1, 2})
_LIBRARIES: Final = ("libLiteRt.so", "libLiteRt.dylib")

_CPU: Final = 1
_ONLY_ACCELERATORS: Final = 24  # else every environment loads the GPU's library, 19 MB
_LEAST_SEVERITY: Final = 25
_ERROR: Final = 3
_INT: Final = 2
_WRITE: Final = 1

_CANARY: Final = 0xA5
_SPARE: Final = 3  # times the room that is needed
_SLACK_US: Final = 1000
_LONGEST_TAG: Final = 200


class CApiError(Exception):
    """The C API lacks a function, refuses a call, or answers something else than expected."""


Input = tuple[tuple[int, ...], bytes]
"""The shape and the content of an input."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that the profiler saw.

    Attributes:
        tag: What it calls it; of an op, its type.
        type: A power of two, ``BUILTIN_OP`` or ``DELEGATE_OP`` for an op.
        index: Of an op, its number in the model or, in a delegate, in its part of the model.
        elapsed_us: How long it took; telemetry keeps other things there.
    """

    tag: str
    type: int
    index: int
    elapsed_us: int


# --- what LiteRT's headers say -------------------------------------------------------------------


class _Event(ctypes.Structure):
    # litert_profiler_event.h. Older headers have two words for each of the two memory usages, not
    # the three that LiteRT 2.2 and 2.3 write.
    _fields_ = (
        ("tag", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", ctypes.c_int64 * 6),
        ("index", ctypes.c_int64),
        ("extra", ctypes.c_int64),
        ("source", ctypes.c_int),
    )


class _Any(ctypes.Structure):
    # litert_any.h; only numbers are passed here.
    _fields_ = (("type", ctypes.c_int), ("value", ctypes.c_int64))


class _Option(ctypes.Structure):
    # litert_environment_options.h
    _fields_ = (("tag", ctypes.c_int), ("any", _Any))


class _Layout(ctypes.Structure):
    # litert_layout.h: rank and a flag, sizes, strides. Only LiteRT looks inside.
    _fields_ = (("words", ctypes.c_uint32 * 17),)


class _TensorType(ctypes.Structure):
    # litert_model_types.h
    _fields_ = (("element", ctypes.c_int), ("layout", _Layout))


_HANDLE = ctypes.c_void_p
_OUT = ctypes.c_void_p  # a pointer to whatever is filled
_TEXT = ctypes.c_char_p
_SIZE = ctypes.c_size_t

_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "LiteRtCreateEnvironment": (ctypes.c_int, _OUT, _OUT),
    "LiteRtCreateModelFromFile": (_HANDLE, _TEXT, _OUT),
    "LiteRtCreateOptions": (_OUT,),
    "LiteRtSetOptionsHardwareAccelerators": (_HANDLE, ctypes.c_int),
    "LiteRtCreateOpaqueOptions": (_TEXT, _HANDLE, _HANDLE, _OUT),
    "LiteRtAddOpaqueOptions": (_HANDLE, _HANDLE),
    "LiteRtCreateCompiledModel": (_HANDLE, _HANDLE, _HANDLE, _OUT),
    "LiteRtGetNumModelSignatures": (_HANDLE, _OUT),
    "LiteRtGetModelSignature": (_HANDLE, _SIZE, _OUT),
    "LiteRtGetNumSignatureInputs": (_HANDLE, _OUT),
    "LiteRtGetNumSignatureOutputs": (_HANDLE, _OUT),
    "LiteRtGetSignatureInputTensorByIndex": (_HANDLE, _SIZE, _OUT),
    "LiteRtGetSignatureOutputTensorByIndex": (_HANDLE, _SIZE, _OUT),
    "LiteRtGetTensorIndex": (_HANDLE, _OUT),
    "LiteRtGetRankedTensorType": (_HANDLE, _OUT),
    "LiteRtCompiledModelResizeInputTensor": (_HANDLE, _SIZE, _SIZE, _OUT, _SIZE),
    "LiteRtGetCompiledModelInputTensorLayout": (_HANDLE, _SIZE, _SIZE, _OUT),
    "LiteRtGetCompiledModelOutputTensorLayouts": (_HANDLE, _SIZE, _SIZE, _OUT, ctypes.c_bool),
    "LiteRtGetCompiledModelInputBufferRequirements": (_HANDLE, _SIZE, _SIZE, _OUT),
    "LiteRtGetCompiledModelOutputBufferRequirements": (_HANDLE, _SIZE, _SIZE, _OUT),
    "LiteRtCreateManagedTensorBufferFromRequirements": (_HANDLE, _OUT, _HANDLE, _OUT),
    "LiteRtGetTensorBufferPackedSize": (_HANDLE, _OUT),
    "LiteRtLockTensorBuffer": (_HANDLE, _OUT, ctypes.c_int),
    "LiteRtUnlockTensorBuffer": (_HANDLE,),
    "LiteRtRunCompiledModel": (_HANDLE, _SIZE, _SIZE, _OUT, _SIZE, _OUT),
    "LiteRtCompiledModelGetProfiler": (_HANDLE, _OUT),
    "LiteRtStartProfiler": (_HANDLE,),
    "LiteRtStopProfiler": (_HANDLE,),
    "LiteRtGetNumProfilerEvents": (_HANDLE, _OUT),
    "LiteRtGetProfilerEvents": (_HANDLE, ctypes.c_int, _OUT),
}
_DESTROY = (
    "LiteRtDestroyEnvironment",
    "LiteRtDestroyModel",
    "LiteRtDestroyOptions",
    "LiteRtDestroyOpaqueOptions",
    "LiteRtDestroyCompiledModel",
    "LiteRtDestroyTensorBuffer",
)


# --- calls ---------------------------------------------------------------------------------------


def find_library() -> Path:
    """Find the shared library in the wheel of ai-edge-litert, without importing it.

    Raises:
        CApiError: There is none; wheels before 2.1 and those of some systems have none.
    """
    spec = importlib.util.find_spec("ai_edge_litert")
    for folder in (spec and spec.submodule_search_locations) or ():
        for name in _LIBRARIES:
            if (Path(folder) / name).is_file():
                return Path(folder) / name
    raise CApiError(f"its wheel has no {' or '.join(_LIBRARIES)}")


class Library:
    """The functions of LiteRT's C API that a profile needs.

    Args:
        path: The shared library.

    Raises:
        CApiError: It cannot be loaded, or lacks a function.
    """

    def __init__(self, path: Path) -> None:
        try:
            library, self._c = ctypes.CDLL(str(path)), ctypes.CDLL(None)
            self._functions = {name: getattr(library, name) for name in (*_FUNCTIONS, *_DESTROY)}
        except OSError as exc:
            raise CApiError(f"{path.name} cannot be loaded: {exc}") from exc
        except AttributeError as exc:
            raise CApiError(f"{path.name} lacks a function: {exc}") from exc
        for name, types in _FUNCTIONS.items():
            self._functions[name].argtypes, self._functions[name].restype = types, ctypes.c_int
        for name in _DESTROY:
            self._functions[name].argtypes, self._functions[name].restype = (_HANDLE,), None
        self._c.strdup.argtypes, self._c.strdup.restype = (_TEXT,), _HANDLE

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that answers with a status.

        Raises:
            CApiError: The status is an error.
        """
        status = self._functions[name](*arguments)
        if status:
            raise CApiError(f"{name} answers with status {status}")

    def get(self, name: str, *arguments: Any) -> Any:
        """Call a function whose last parameter is filled with a handle, and return that."""
        handle = _HANDLE()
        self.call(name, *arguments, ctypes.byref(handle))
        return handle

    def count(self, name: str, *arguments: Any) -> int:
        """Call a function whose last parameter is filled with a size, and return that."""
        number = _SIZE()
        self.call(name, *arguments, ctypes.byref(number))
        return number.value

    def made(self, stack: ExitStack, kind: str, name: str, *arguments: Any) -> Any:
        """Call a function that makes an object; the stack destroys it."""
        handle = self.get(name, *arguments)
        stack.callback(self._functions[f"LiteRtDestroy{kind}"], handle)
        return handle

    def set_option(self, options: Any, name: str, text: str) -> None:
        """Add to a model's options some of another kind, which LiteRT reads as TOML."""
        with ExitStack() as stack:
            # LiteRT frees the text when it destroys the options, so it must be C's own.
            free = ctypes.cast(self._c.free, _HANDLE)
            content = self._c.strdup(text.encode())
            opaque = self.made(
                stack,
                "OpaqueOptions",
                "LiteRtCreateOpaqueOptions",
                name.encode(),
                content,
                free,
            )
            self.call("LiteRtAddOpaqueOptions", options, opaque)
            stack.pop_all()  # they belong to the options from here on


# --- profiling -----------------------------------------------------------------------------------


def profile(
    library: Library, model: Path, inputs: Mapping[int, Input], threads: int
) -> list[Event]:
    """Load a model for the CPU, run it once, and destroy it.

    Its XNNPACK delegate has LiteRT's default flags, as the one of the Python API's interpreter.

    Args:
        library: From ``find_library``.
        model: The ``.tflite`` file.
        inputs: What runs, by the indices of the tensors in the file.
        threads: Threads that it may use.

    Returns:
        What the profiler saw, in the order of execution.

    Raises:
        CApiError: LiteRT refuses a call, or its events are not what they should be.
    """
    with ExitStack() as stack:
        options = (_Option * 2)(
            _Option(_ONLY_ACCELERATORS, _Any(_INT, _CPU)),
            _Option(_LEAST_SEVERITY, _Any(_INT, _ERROR)),
        )
        environment = library.made(
            stack, "Environment", "LiteRtCreateEnvironment", len(options), ctypes.byref(options)
        )
        loaded = library.made(
            stack, "Model", "LiteRtCreateModelFromFile", environment, os.fsencode(model)
        )
        settings = library.made(stack, "Options", "LiteRtCreateOptions")
        library.call("LiteRtSetOptionsHardwareAccelerators", settings, _CPU)
        library.set_option(settings, "runtime_options_string", "enable_profiling = true\n")
        library.set_option(settings, "xnnpack", f"num_threads = {threads}\n")
        compiled = library.made(
            stack, "CompiledModel", "LiteRtCreateCompiledModel", environment, loaded, settings
        )
        run = _prepare(stack, library, environment, loaded, compiled, inputs)
        profiler = library.get("LiteRtCompiledModelGetProfiler", compiled)
        library.call("LiteRtStartProfiler", profiler)
        start = time.perf_counter()
        run()
        wall_us = (time.perf_counter() - start) * 1e6
        library.call("LiteRtStopProfiler", profiler)
        return _events(library, profiler, wall_us)


def _prepare(
    stack: ExitStack,
    library: Library,
    environment: Any,
    loaded: Any,
    compiled: Any,
    inputs: Mapping[int, Input],
) -> Callable[[], None]:
    """Make and fill the tensors of the signature that has these inputs; returns what runs it."""
    number, signature, tensors = _signature(library, loaded, inputs)
    for position, tensor in enumerate(tensors):
        shape, _ = inputs[_index(library, tensor)]
        sizes = (ctypes.c_int * len(shape))(*shape)
        library.call(
            "LiteRtCompiledModelResizeInputTensor",
            *(compiled, number, position, ctypes.byref(sizes), len(sizes)),
        )

    outputs = library.count("LiteRtGetNumSignatureOutputs", signature)
    # With True, LiteRT allocates the tensors anew: the inputs may have other sizes now.
    layouts = (_Layout * max(outputs, 1))()
    library.call(
        "LiteRtGetCompiledModelOutputTensorLayouts",
        *(compiled, number, outputs, ctypes.byref(layouts), True),
    )
    made: dict[str, Any] = {}
    for side, count in (("Input", len(tensors)), ("Output", outputs)):
        made[side] = (_HANDLE * max(count, 1))()
        for position in range(count):
            tensor = library.get(f"LiteRtGetSignature{side}TensorByIndex", signature, position)
            kind = _TensorType()
            library.call("LiteRtGetRankedTensorType", tensor, ctypes.byref(kind))
            if side == "Input":
                library.call(
                    "LiteRtGetCompiledModelInputTensorLayout",
                    *(compiled, number, position, ctypes.byref(kind, _TensorType.layout.offset)),
                )
            else:
                kind.layout = layouts[position]
            needed = library.get(
                f"LiteRtGetCompiledModel{side}BufferRequirements", compiled, number, position
            )
            buffer = library.made(
                stack,
                "TensorBuffer",
                "LiteRtCreateManagedTensorBufferFromRequirements",
                *(environment, ctypes.byref(kind), needed),
            )
            made[side][position] = buffer
            if side == "Input":
                _fill(library, buffer, *inputs[_index(library, tensor)])

    def run() -> None:
        library.call(
            "LiteRtRunCompiledModel",
            *(compiled, number),
            *(len(tensors), ctypes.byref(made["Input"])),
            *(outputs, ctypes.byref(made["Output"])),
        )

    return run


def _signature(
    library: Library, loaded: Any, inputs: Mapping[int, Input]
) -> tuple[int, Any, Sequence[Any]]:
    """Number, handle and input tensors of the signature that has these inputs."""
    for number in range(library.count("LiteRtGetNumModelSignatures", loaded)):
        signature = library.get("LiteRtGetModelSignature", loaded, number)
        count = library.count("LiteRtGetNumSignatureInputs", signature)
        tensors = [
            library.get("LiteRtGetSignatureInputTensorByIndex", signature, position)
            for position in range(count)
        ]
        if {_index(library, tensor) for tensor in tensors} == set(inputs):
            return number, signature, tensors
    raise CApiError("none of its signatures has the inputs that the interpreter runs")


def _index(library: Library, tensor: Any) -> int:
    index = ctypes.c_uint32()
    library.call("LiteRtGetTensorIndex", tensor, ctypes.byref(index))
    return index.value


def _fill(library: Library, buffer: Any, shape: tuple[int, ...], content: bytes) -> None:
    size = library.count("LiteRtGetTensorBufferPackedSize", buffer)
    if size != len(content):
        raise CApiError(f"an input of shape {shape} has {len(content)} bytes, but takes {size}")
    place = _HANDLE()
    library.call("LiteRtLockTensorBuffer", buffer, ctypes.byref(place), _WRITE)
    try:
        ctypes.memmove(place, content, size)
    finally:
        library.call("LiteRtUnlockTensorBuffer", buffer)


# --- events --------------------------------------------------------------------------------------


def _events(library: Library, profiler: Any, wall_us: float) -> list[Event]:
    number = ctypes.c_int()
    library.call("LiteRtGetNumProfilerEvents", profiler, ctypes.byref(number))
    count = number.value
    if not 0 < count < 2**20:
        raise CApiError(f"its profiler says that there are {count} events")
    memory = (ctypes.c_ubyte * (_SPARE * count * ctypes.sizeof(_Event)))()
    ctypes.memset(memory, _CANARY, len(memory))
    library.call("LiteRtGetProfilerEvents", profiler, count, memory)
    return read_events(memory, count, wall_us)


def read_events(memory: ctypes.Array[ctypes.c_ubyte], count: int, wall_us: float) -> list[Event]:
    """Read the events that LiteRT wrote, if they are what they should be.

    Args:
        memory: What LiteRT wrote to; longer than needed, and filled with a pattern before.
        count: How many events it wrote.
        wall_us: How long the run took by our own clock, in µs.

    Returns:
        The events; nothing in them points to the memory.

    Raises:
        CApiError: The memory holds something else.
    """
    records = (_Event * count).from_buffer(memory)
    content = bytes(memory)
    used = ctypes.sizeof(records)
    pattern = bytes([_CANARY]) * max(len(content) - used, ctypes.sizeof(_Event))
    if content[used:] != pattern[: len(content) - used]:
        raise CApiError(f"an event of its profiler is larger than {ctypes.sizeof(_Event)} bytes")
    for number, record in enumerate(records):
        start = number * ctypes.sizeof(_Event)
        _check(record, content[start : start + ctypes.sizeof(_Event)], wall_us)
    ops_us = sum(r.elapsed_us for r in records if r.type in (BUILTIN_OP, DELEGATE_OP))
    if ops_us > wall_us + _SLACK_US:
        raise CApiError(f"its ops took {ops_us} µs by its profiler in a run of {wall_us:.0f} µs")
    return [
        Event(tag=_text(r.tag), type=r.type, index=r.index, elapsed_us=r.elapsed_us)
        for r in records
    ]


def _check(record: _Event, content: bytes, wall_us: float) -> None:
    for name, *_ in _Event._fields_:
        field = getattr(_Event, name)
        part = content[field.offset : field.offset + field.size]
        if part == bytes([_CANARY]) * field.size:
            raise CApiError(f"an event of its profiler is smaller: the field {name} is not filled")
    if record.type not in _TYPES or record.source not in _SOURCES:
        raise CApiError(
            f"an event of its profiler is of type {record.type} from source {record.source}, "
            "which there are none of"
        )
    if record.type not in _TELEMETRY and record.elapsed_us > wall_us + _SLACK_US:
        raise CApiError(
            f"an event of its profiler took {record.elapsed_us} µs in a run of {wall_us:.0f} µs"
        )
    if not record.tag or record.tag < 4096:
        raise CApiError("an event of its profiler has no tag")


def _text(address: int) -> str:
    found = ctypes.string_at(address)
    tag = found.decode("ascii", errors="replace")
    if not tag or len(tag) > _LONGEST_TAG or not (tag.isascii() and tag.isprintable()):
        raise CApiError(f"an event of its profiler has the tag {tag!r:.80}")
    return tag


# --- calibration ---------------------------------------------------------------------------------

# A .tflite of two ops side by side: RELU on four floats, which XNNPACK runs, and LOGICAL_NOT on
# four booleans, which it does not.
_MODEL = """
GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAcAAAAJAEAAAMAAAABAAAACAAAAAQABAAEAAAAAQAAABAAAAAMABQA
EAAMAAgABAAMAAAAEAAAAGwAAAB0AAAAfAAAAAIAAABAAAAAEAAAAAAACgAQAAwACAAEAAoAAAAMAAAAEAAAAAEAAAABAAAA
AwAAAAEAAAACAAAAAAAKAAwAAAAIAAQACgAAAAgAAAAMAAAAAQAAAAEAAAABAAAAAAAAAAIAAAABAAAAAwAAAAIAAAAAAAAA
AgAAAAQAAABYAAAAPAAAACQAAAAEAAAA7P///wAAAAYEAAAAAQAAAAQAAAAIAAwACAAHAAgAAAAAAAAGBAAAAAEAAAAEAAAA
7v///wQAAAABAAAABAAAAAAABgAIAAQABgAAAAQAAAABAAAABAAAAAIAAAAgAAAABAAAAPT///9XAAAAAAAAVwwADAALAAAA
AAAEAAwAAAATAAAAAAAAEw==
"""
_INPUTS: dict[int, Input] = {0: ((4,), bytes(16)), 2: ((4,), bytes(4))}
_KNOWN = [(DELEGATE_OP, 0), (BUILTIN_OP, 1)]
_KNOWN_TAG = "LOGICAL_NOT"


def calibrate(library: Library) -> None:
    """Profile a model of one operator for XNNPACK and one for a kernel of LiteRT's own.

    Raises:
        CApiError: The events are not the ones that there must be.
    """
    with tempfile.TemporaryDirectory(prefix="nn-meter-") as folder:
        model = Path(folder) / "two_ops.tflite"
        model.write_bytes(base64.b64decode(_MODEL))
        events = profile(library, model, _INPUTS, threads=1)
    ops = [event for event in events if event.type in (BUILTIN_OP, DELEGATE_OP)]
    if sorted((op.type, op.index) for op in ops) != sorted(_KNOWN) or not any(
        op.tag == _KNOWN_TAG for op in ops if op.type == BUILTIN_OP
    ):
        seen = ", ".join(f"{e.tag} (type {e.type}, index {e.index})" for e in events)
        raise CApiError(
            f"its profiler should see a delegate's operator and {_KNOWN_TAG} when it runs these "
            f"two, but sees: {seen}"
        )
