"""The child's end of a worker process: one handler, JSON lines on the standard streams.

A request is one line ``{"op": name, …arguments}``, the answer one line ``{"ok": result}`` or
``{"error": {"type", "message"}}``. What a runtime prints goes to standard error, and what it reads
is nothing, whatever it does: the streams of answers and requests are moved away from the file
descriptors 1 and 0 first. When the parent goes away the worker ends at once, even in the middle of
its work, and all that it started with it.

This module needs the standard library only, and runs in other virtual environments too.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import threading
import traceback
from typing import Any, TextIO

from nn_meter import errors

__all__ = ["NEW_CALL", "encode_error", "main"]

NEW_CALL = b"\x1e"
"""Stands in standard error before what a call prints: an earlier call's words explain no crash."""


def main(handler: str) -> None:
    """Serve requests until standard input ends.

    Args:
        handler: ``module:Class``; its public methods are the operations.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(asked, requests), daemon=True).start()
    module, _, name = handler.partition(":")
    served: Any = None
    while True:
        request = json.loads(requests.get())
        os.write(2, NEW_CALL)
        try:
            if served is None:
                served = getattr(importlib.import_module(module), name)()
            operation = request.pop("op")
            answer = json.dumps({"ok": getattr(served, operation)(**request)})
        except Exception as exc:  # noqa: BLE001 - all that goes wrong here is the parent's to judge
            traceback.print_exc()
            answer = json.dumps({"error": encode_error(exc)})
        _write(answers, answer)


def _read(asked: TextIO, requests: queue.SimpleQueue[str]) -> None:
    for line in asked:
        requests.put(line)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _write(answers: TextIO, answer: str) -> None:
    try:
        answers.write(answer + "\n")
        answers.flush()
    except BrokenPipeError:
        os._exit(0)


def encode_error(exc: Exception) -> dict[str, str]:
    """An error as plain values: the name of its class if it is one of ours."""
    if isinstance(exc, errors.NNMeterError):
        kind = next(c for c in type(exc).__mro__ if c.__module__ == errors.__name__)
        return {"type": kind.__name__, "message": str(exc)}
    return {"type": "", "message": f"{type(exc).__name__}: {exc}"}
