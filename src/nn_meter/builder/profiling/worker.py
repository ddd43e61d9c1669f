"""The child's end of a worker process: one handler, JSON lines on the standard streams.

A request is one line ``{"id": number, "op": name, …arguments}``, the answer one line
``{"id": number, "ok": result}`` or ``{"id", "error": {"type", "message"}}``. Warnings of nn-Meter's
own loggers go with it, as ``"said": [words]``: the parent logs them. What a runtime prints goes to
standard error, and what it reads is nothing, whatever it does: the streams of answers and
requests are moved away from the file descriptors 1 and 0 first. When nn-Meter goes away the worker
ends at once, even in the middle of its work, and all that it started with it: ``guard`` sees to it.

An operation may raise what it likes: an exception is its answer. But one that is meant to end the
process ends it, and so does want of memory, behind which nobody knows what is whole.

This module needs the standard library only, and runs in other virtual environments too.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import logging
import os
import queue
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from nn_meter import errors
from nn_meter.builder.disk import full_disk, is_full, room
from nn_meter.builder.profiling.guard import become_guarded

__all__ = ["NEW_CALL", "encode_error", "main"]

_OUT_OF_THE_WAY = 100
_WORDS = 10_000
_MOST_SAID = 20  # warnings of one call

NEW_CALL = b"\x1e"
"""Stands in standard error before what a call prints: an earlier call's words explain no crash."""


def main(handler: str) -> None:
    """Serve requests until standard input ends.

    Args:
        handler: ``module:Class``; its public methods are the operations.
    """
    become_guarded()
    answers = os.fdopen(_moved(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    said = _moved(2)
    asked = os.fdopen(_moved(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(asked, requests), daemon=True).start()
    serving = os.getpid()
    warnings = _Warnings()
    logging.getLogger("nn_meter").addHandler(warnings)
    module, _, name = handler.partition(":")
    served: Any = None
    while True:
        request = json.loads(requests.get())
        number = request.pop("id", None)
        places: list[str] = []
        _reopen(said)
        os.write(2, NEW_CALL)
        try:
            if served is None:
                served = getattr(importlib.import_module(module), name)()
            operation = request.pop("op")
            places = [value for value in request.values() if isinstance(value, str)]
            ok = getattr(served, operation)(**request)
            answer = json.dumps({"id": number, "ok": ok, **warnings.taken()})
        except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001 - the parent judges
            traceback.print_exc()
            if isinstance(exc, MemoryError):
                _end(1)
            error = encode_error(exc, places)
            answer = json.dumps({"id": number, "error": error, **warnings.taken()})
        except BaseException as exc:  # noqa: BLE001 - SystemExit, or another that means an end
            _end(_exit_code(exc))
        if os.getpid() != serving:  # the operation forked, and this is the copy
            os._exit(0)
        _write(answers, answer)


class _Warnings(logging.Handler):
    """Keeps warnings until they are taken."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._said) < _MOST_SAID:
            self._said.append(record.getMessage()[:_WORDS])

    def taken(self) -> dict[str, list[str]]:
        said, self._said = self._said, []
        return {"said": said} if said else {}


def _moved(descriptor: int) -> int:
    """Another number for a file: not one that whoever closes the first few would close, too."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)


def _reopen(said: int) -> None:
    """Open standard streams again that an operation closed: the next may be another model's.

    Args:
        said: A copy of standard error.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            source = said if descriptor else os.open(os.devnull, os.O_RDONLY)
            if source != descriptor:
                os.dup2(source, descriptor)
                if not descriptor:
                    os.close(source)
    for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(getattr(sys, name), "closed", True):
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def _read(asked: TextIO, requests: queue.SimpleQueue[str]) -> None:
    with contextlib.suppress(OSError, ValueError):  # the runtime closed it: nobody can ask
        for line in asked:
            requests.put(line)
    os._exit(0)


def _write(answers: TextIO, answer: str) -> None:
    try:
        answers.write(answer + "\n")
        answers.flush()
    except OSError:  # nobody listens any more, or the runtime closed it
        os._exit(1)


def _exit_code(exc: BaseException) -> int:
    """What Python would end with, and what it would print."""
    code = getattr(exc, "code", 1) if isinstance(exc, SystemExit) else 1
    if code is None or isinstance(code, int):
        if not isinstance(exc, SystemExit):
            traceback.print_exc()
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)  # noqa: T201
    return 1


def _end(code: int) -> NoReturn:
    """End at once: threads that a runtime left behind would be waited for."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def encode_error(exc: BaseException, places: Iterable[str] = ()) -> dict[str, str]:
    """An error as plain values: the name of its class if it is one of ours.

    A full disk says nothing about a model, whatever became of the error on its way here.

    Args:
        exc: The error.
        places: What may be paths of files that were to be written.
    """
    for cause in _causes(exc):
        if is_full(cause):
            named = getattr(cause, "filename", None)
            known = [os.fsdecode(named)] if named else [p for p in places if Path(p).is_absolute()]
            place = min((*map(Path, known), Path(tempfile.gettempdir())), key=room)
            message = f"{place}: {_words(exc)}: {full_disk(place)}"
            return {"type": errors.WorkspaceError.__name__, "message": message}
    if isinstance(exc, errors.NNMeterError):
        kind = next(c for c in type(exc).__mro__ if c.__module__ == errors.__name__)
        return {"type": kind.__name__, "message": _words(exc)}
    return {"type": "", "message": f"{type(exc).__name__}: {_words(exc)}"}


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it came of."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        exc = exc.__cause__ or exc.__context__


def _words(exc: BaseException) -> str:
    """What an exception says, which may be endless, or raise in its turn."""
    try:
        text = str(exc)
    except Exception as failed:  # noqa: BLE001 - it is the user's code
        return f"(it cannot say what: its str() raises {type(failed).__name__})"
    if len(text) <= _WORDS:
        return text
    half = _WORDS // 2
    return f"{text[:half]} … {text[-half:]}"
