"""Converting many models: by the batch where the backend can, and one by one where that fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nn_meter.builder.backends.base import BaseBackend
from nn_meter.builder.profiling import convert
from nn_meter.builder.profiling.convert import convert_all
from nn_meter.builder.profiling.jobs import BackendJobs
from nn_meter.builder.profiling.measure import Model
from nn_meter.builder.profiling.store import Failure
from nn_meter.errors import (
    BackendError,
    ConversionError,
    NNMeterError,
    TimeLimitError,
    WorkerCrashedError,
    WorkspaceError,
)

LIMIT_S = 7.0


class Takes(BaseBackend):
    """Copies a model; one whose text names an error is refused."""

    def convert_model(self, model_path, save_path, input_shape=None) -> str:
        text = Path(model_path).read_text()
        if text == "refused":
            raise ConversionError(f"{Path(model_path).name}: no such layer")
        made = Path(save_path) / "made"
        made.write_text(f"{text} {input_shape}")
        return str(made)


class TakesMany(Takes):
    """Does that for many at once."""

    def convert_models(self, models, save_paths) -> list[str | NNMeterError]:
        return [
            self._outcome(path, save, shapes)
            for (path, shapes), save in zip(models, save_paths, strict=True)
        ]

    def _outcome(self, path, save, shapes):
        try:
            return Takes.convert_model(self, path, save, shapes)
        except NNMeterError as exc:
            return exc


class Process:
    """Carries out a backend's jobs, but for models that break the process.

    Attributes:
        calls: Each operation, with the number of models and the limit in time.
    """

    def __init__(self, backend: BaseBackend, breaking: Mapping[str, NNMeterError]) -> None:
        self._jobs, self._breaking = BackendJobs(backend), breaking
        self.calls: list[tuple[str, int, float | None]] = []

    def call(self, op: str, timeout_s: float | None = None, **arguments: Any) -> Any:
        models = [arguments["model"]] if op == "convert" else [m for m, _ in arguments["models"]]
        self.calls.append((op, len(models), timeout_s))
        for name, error in self._breaking.items():
            if any(Path(model).name == name for model in models):
                raise error
        return getattr(self._jobs, op)(**arguments)


@pytest.fixture
def run(tmp_path) -> Callable[..., Any]:
    """Convert files by their text; gives what came out by name, the calls and the progress."""
    workspace = SimpleNamespace(converted_dir=tmp_path / "converted")

    def _run(texts: Mapping[str, str], breaking=None, backend=None):
        backend = backend or TakesMany()
        process = Process(backend, breaking or {})
        models = {}
        for name, text in texts.items():
            path = tmp_path / name
            path.write_text(text)
            models[name * 20] = Model(name=name, path=path, hash=name * 20, shapes=[[2, 3]])
        connection = SimpleNamespace(
            name="takes",
            environment=SimpleNamespace(key="here"),
            converts_many=BackendJobs(backend).describe()["converts_many"],
            batch=lambda models: 3,
            workers=lambda tasks, few: {"opened": lambda: nullcontext(process), "most": 1},
        )
        told: list[tuple[int, int]] = []
        found = convert_all(
            connection,
            workspace,
            models,
            time_limit_s=LIMIT_S,
            progress=lambda step, done, total, what: told.append((done, total)),
        )
        assert set(found) == set(models)
        return {digest[: len(digest) // 20]: o for digest, o in found.items()}, process.calls, told

    return _run


def texts(outcomes: Mapping[str, Model | Failure]) -> dict[str, str]:
    return {
        name: Path(outcome.converted).read_text() if isinstance(outcome, Model) else outcome.kind
        for name, outcome in outcomes.items()
    }


SEVEN = {name: f"text of {name}" for name in "abcdefg"}
MADE = {name: f"{text} [[2, 3]]" for name, text in SEVEN.items()}


def test_models_are_converted_by_the_batch(run):
    found, calls, told = run(SEVEN)
    assert texts(found) == MADE
    many = "convert_many"
    assert calls == [(many, 3, LIMIT_S), (many, 3, LIMIT_S), (many, 1, LIMIT_S)]
    assert told == [(number, 7) for number in range(1, 8)]


def test_batches_of_large_models_are_small(run, monkeypatch):
    monkeypatch.setattr(convert, "_BATCH_BYTES", 2 * len(SEVEN["a"]))
    found, calls, _ = run({**SEVEN, "c": "larger than " * 9})
    assert texts(found) == {**MADE, "c": f"{'larger than ' * 9} [[2, 3]]"}
    assert [count for _, count, _ in calls] == [2, 1, 2, 2]


def test_what_is_there_is_not_converted_again(run):
    run({name: SEVEN[name] for name in "abc"})
    found, calls, told = run(SEVEN)
    assert texts(found) == MADE
    assert [count for _, count, _ in calls] == [3, 1]
    assert told[-1] == (4, 4)
    assert run(SEVEN)[1:] == ([], [])


def test_a_refused_model_is_told_in_the_batch(run):
    found, calls, _ = run({**SEVEN, "b": "refused"})
    assert texts(found) == {**MADE, "b": "refused"}
    assert found["b"].reason == "b: no such layer"
    assert {op for op, *_ in calls} == {"convert_many"}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (WorkerCrashedError("it crashed: SIGSEGV"), "crashed"),
        (TimeLimitError("it took too long"), "time limit"),
        (BackendError("pnnx cannot be started"), "failed"),
    ],
)
def test_the_models_of_a_batch_that_fails_are_converted_one_by_one(run, error, kind):
    found, calls, told = run(SEVEN, {"e": error})
    assert texts(found) == {**MADE, "e": kind}
    assert found["e"].reason == str(error)
    assert [(op, count) for op, count, _ in calls] == [
        *[("convert_many", 3), ("convert_many", 3), ("convert_many", 1)],
        *[("convert", 1)] * 3,  # d, e and f
    ]
    assert {limit for op, _, limit in calls if op == "convert"} == {LIMIT_S}
    assert told == [(number, 7) for number in range(1, 8)]


def test_a_full_disk_says_nothing_of_the_models(run, monkeypatch):
    def full(path):
        raise WorkspaceError("no space left")

    monkeypatch.setattr(convert, "make_folder", full)
    with pytest.raises(WorkspaceError):
        run(SEVEN)


class Otherwise(TakesMany):
    """A user's: converts in another way, and knows nothing of many."""

    def convert_model(self, model_path, save_path, input_shape=None) -> str:
        made = Path(save_path) / "made"
        made.write_text("otherwise")
        return str(made)


def test_a_class_that_converts_otherwise_is_asked_model_by_model(run):
    found, calls, _ = run(SEVEN, backend=Otherwise())
    assert set(texts(found).values()) == {"otherwise"}
    assert {op for op, *_ in calls} == {"convert"}
    assert run({"z": "z"}, backend=Takes())[1] == [("convert", 1, LIMIT_S)]


class Forgets(TakesMany):
    """Gives what is not there, or too few."""

    gives: Any = None

    def convert_models(self, models, save_paths):
        return [self.gives] if self.gives else []


def test_what_was_not_made_is_an_error_of_the_backend(tmp_path):
    backend = Forgets()
    jobs = BackendJobs(backend)
    asked = {"models": [("m", [[2]])], "save_paths": [str(tmp_path)]}
    with pytest.raises(BackendError, match="asked for 1 models and gave 0"):
        jobs.convert_many(**asked)
    backend.gives = str(tmp_path / "gone")
    (answer,) = jobs.convert_many(**asked)
    assert answer["error"]["type"] == "BackendError"
    assert "Forgets.convert_models should return the path" in answer["error"]["message"]
