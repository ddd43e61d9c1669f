"""OpenVINO's C interface: models run by it without what Python adds to a call.

The Python interface wraps every output of every call, 1.4 µs each on the machine where this was
measured: more than most of the ops that are to be told apart. A model of one, two, four and eight
relus behind a tanh took 11.8, 13.9, 18.3 and 27.0 µs a call by Python, 7.4, 8.1, 9.6 and 13.0 by C,
with half of the noise. The library comes with the same package and is loaded beside it; a model
passes from one to the other as OpenVINO exports it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nn_meter.builder.backends.base import Array, Samples, time_calls

__all__ = ["NativeCore", "NativeSession", "Port", "load_library"]

_LINE, _PAGE = 64, 4096  # bytes
_NAMES = ("libopenvino_c.so*", "libopenvino_c*.dylib", "openvino_c.dll")

Port = tuple[str, tuple[int, ...]]
"""Type (in numpy's words) and shape of an input or an output."""


@functools.cache
def load_library(package: Path) -> ctypes.CDLL | None:
    """The C library of an installed OpenVINO; None: it has none, or none that can be loaded."""
    found = [file for name in _NAMES for file in sorted((package / "libs").glob(name))]
    try:
        library = ctypes.CDLL(str(found[0])) if found else None
    except OSError:
        return None
    if library is None or any(not hasattr(library, name) for name in _FUNCTIONS):
        return None
    for name, arguments in _FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = None if name.endswith("_free") else ctypes.c_int
    library.ov_get_last_err_msg.restype = ctypes.c_char_p
    return library


_POINTER = ctypes.c_void_p
_OUT = ctypes.POINTER(ctypes.c_void_p)
_FUNCTIONS: dict[str, list[Any]] = {
    "ov_core_create": [_OUT],
    "ov_core_set_property": [_POINTER, ctypes.c_char_p],  # and pairs of strings
    "ov_core_import_model": [_POINTER, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, _OUT],
    "ov_core_free": [_POINTER],
    "ov_compiled_model_create_infer_request": [_POINTER, _OUT],
    "ov_compiled_model_free": [_POINTER],
    "ov_infer_request_get_input_tensor_by_index": [_POINTER, ctypes.c_size_t, _OUT],
    "ov_infer_request_get_output_tensor_by_index": [_POINTER, ctypes.c_size_t, _OUT],
    "ov_infer_request_infer": [_POINTER],
    "ov_infer_request_free": [_POINTER],
    "ov_tensor_data": [_POINTER, _OUT],
    "ov_tensor_get_byte_size": [_POINTER, ctypes.POINTER(ctypes.c_size_t)],
    "ov_tensor_free": [_POINTER],
    "ov_get_last_err_msg": [],
}


class _Library:
    """The C library, with errors raised."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; RuntimeError: it failed, in OpenVINO's words."""
        if getattr(self._library, name)(*arguments):
            raise RuntimeError(
                (self._library.ov_get_last_err_msg() or b"").decode(errors="replace")
            )

    def make(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """Call a function that gives an object."""
        found = ctypes.c_void_p()
        self.call(name, *arguments, ctypes.byref(found))
        return found

    def free(self, what: str, handle: ctypes.c_void_p) -> None:
        """Let an object go."""
        getattr(self._library, f"ov_{what}_free")(handle)

    def function(self, name: str) -> Any:
        """A function as it is: nothing but its address between the caller and it."""
        return getattr(self._library, name)


class NativeCore:
    """OpenVINO's core, of the C interface.

    Args:
        library: From ``load_library``.
        device: What models run on, e.g. ``CPU``.
        properties: Of the device.

    Raises:
        RuntimeError: OpenVINO refuses a property.
    """

    def __init__(self, library: ctypes.CDLL, device: str, properties: Mapping[str, object]) -> None:
        self._library, self._device = _Library(library), device.encode()
        self._core = self._library.make("ov_core_create")
        for key, value in properties.items():
            text = ("YES" if value else "NO") if isinstance(value, bool) else str(value)
            self._library.call(
                "ov_core_set_property", self._core, self._device, key.encode(), text.encode()
            )

    def load(
        self, blob: bytes, inputs: Sequence[Port], outputs: Sequence[Port], feeds: Sequence[Array]
    ) -> NativeSession:
        """Load an exported model.

        Args:
            blob: What OpenVINO exported.
            inputs: Of the model, in its order.
            outputs: The same.
            feeds: What is timed: an array for each input, batch included.

        Raises:
            RuntimeError, ValueError: It cannot be loaded, or takes other inputs.
        """
        memory = mmap.mmap(-1, len(blob) + _PAGE)  # see NativeSession
        start = _LINE * random.randrange(_PAGE // _LINE)
        memory[start : start + len(blob)] = blob
        place = (ctypes.c_char * len(blob)).from_buffer(memory, start)
        compiled = self._library.make(
            "ov_core_import_model", self._core, place, len(blob), self._device
        )
        return NativeSession(self._library, compiled, place, inputs, outputs, feeds)


class NativeSession:
    """A model loaded by OpenVINO's C interface, its inputs filled once.

    OpenVINO uses weights where they stand in what was imported. So that memory has to stay as long
    as the model, and has to be aligned: kernels crash on weights that are not. Where in a page it
    begins is chance, anew for each load, as where weights are allocated would be; the same place
    each time would be an error that no number of loads shows.
    """

    def __init__(
        self,
        library: _Library,
        compiled: ctypes.c_void_p,
        imported: ctypes.Array[ctypes.c_char],
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        feeds: Sequence[Array],
    ) -> None:
        self._library, self._compiled, self._imported = library, compiled, imported
        self._inputs, self._outputs = inputs, outputs
        self._request = ctypes.c_void_p()
        try:
            self._request = self._filled(feeds)
            self._library.call("ov_infer_request_infer", self._request)
        except BaseException:
            self.close()
            raise

    def time(self, n: int) -> Samples:
        infer, request = self._library.function("ov_infer_request_infer"), self._request
        failed: list[int] = []
        samples = time_calls(lambda: failed.append(infer(request)), n)
        if any(failed):
            self._library.call("ov_infer_request_infer", request)  # says what went wrong
            raise RuntimeError("a run failed, and the next one did not")
        return samples

    def outputs(self, feeds: Sequence[Array]) -> list[Array]:
        request = self._filled(feeds)
        try:
            self._library.call("ov_infer_request_infer", request)
            return [
                np.array(self._tensor(request, "output", position, port))
                for position, port in enumerate(self._outputs)
            ]
        finally:
            self._library.free("infer_request", request)

    def close(self) -> None:
        for what, handle in (("infer_request", self._request), ("compiled_model", self._compiled)):
            if handle.value is not None:
                self._library.free(what, handle)
                handle.value = None

    def _filled(self, feeds: Sequence[Array]) -> ctypes.c_void_p:
        """A request whose inputs are filled."""
        if len(feeds) != len(self._inputs):
            raise ValueError(f"the model has {len(self._inputs)} inputs, but got {len(feeds)}")
        request = self._library.make("ov_compiled_model_create_infer_request", self._compiled)
        try:
            for position, (port, feed) in enumerate(zip(self._inputs, feeds, strict=True)):
                if (str(feed.dtype), feed.shape) != port:
                    raise ValueError(
                        f"input {position} is {port[0]} of shape {list(port[1])}, not {feed.dtype} "
                        f"of shape {list(feed.shape)}"
                    )
                self._tensor(request, "input", position, port)[...] = feed
        except BaseException:
            self._library.free("infer_request", request)
            raise
        return request

    def _tensor(self, request: ctypes.c_void_p, side: str, position: int, port: Port) -> Array:
        """The memory of a request's own tensor; it goes with the request."""
        dtype, shape = np.dtype(port[0]), port[1]
        tensor = self._library.make(
            f"ov_infer_request_get_{side}_tensor_by_index", request, position
        )
        try:
            size = ctypes.c_size_t()
            self._library.call("ov_tensor_get_byte_size", tensor, ctypes.byref(size))
            if size.value != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
                raise ValueError(f"{side} {position} holds {size.value} bytes")
            place = self._library.make("ov_tensor_data", tensor)
        finally:
            self._library.free("tensor", tensor)
        if not size.value:
            return np.empty(shape, dtype)
        memory = (ctypes.c_ubyte * size.value).from_address(place.value or 0)
        return np.ndarray(shape, dtype, buffer=memoryview(memory))
