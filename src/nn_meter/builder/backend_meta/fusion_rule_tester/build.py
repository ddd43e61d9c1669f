"""Model files: building and saving them, each different one once, on all cores.

Building runs in worker processes: a framework is loaded there and not here, and a user's operator
that crashes it costs its own test case.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nn_meter
from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester import shapes as chain_shapes
from nn_meter.builder.backend_meta.fusion_rule_tester import situations
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.design import (
    Design,
    Method,
    design_edge,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import Chain, make_operators
from nn_meter.builder.nn_modules.frameworks import get_framework, suffix_of
from nn_meter.builder.nn_modules.info import ModelInfo, hash_model, read_info, write_info
from nn_meter.builder.profiling.pool import spread
from nn_meter.builder.profiling.process import Worker
from nn_meter.errors import (
    NNMeterError,
    OperatorError,
    ResultFileError,
    ShapeError,
    WorkspaceError,
)
from nn_meter.reference import sample_outputs

__all__ = [
    "BuildJobs",
    "Task",
    "chain_key",
    "chain_model",
    "copy_model",
    "designs_elsewhere",
    "is_current",
    "operator_model",
    "plans_elsewhere",
    "run_tasks",
    "save_model",
    "seed_weights",
    "source_key",
]

HANDLER = f"{__name__}:BuildJobs"
_LOAD_LIMIT_S = 300.0  # for a framework; seconds are usual
_DISTRIBUTIONS = {
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-intel"),
    "torch": ("torch",),
    "onnx": ("onnx",),
}


# --- one model -----------------------------------------------------------------------------------


def seed_weights(implement: str, *names: str) -> None:
    """Seed the weights of the next model by what it is, so that it always gets the same."""
    digest = hashlib.sha256("/".join(names).encode()).digest()
    get_framework(implement).seed_weights(int.from_bytes(digest[:4], "little"))


def chain_model(chain: Chain) -> tuple[Any, list[list[int]]]:
    """Build a chain's model; gives it with the shapes of its inputs.

    Raises:
        OperatorError: It cannot be built; says why.
    """
    operators = make_operators(chain)
    operands = [
        make_operators(operand)[0] if isinstance(operand, Chain) else operand
        for operand in chain.operands
    ]
    # by nothing but the shape: the same op has the same weights alone and first in a block, so
    # that the outputs of both tell whether the second op changes anything
    seed_weights(chain.implement, str(chain.input_shape))
    try:
        return get_framework(chain.implement).chain_model(
            operators, operands or None, replicas=chain.replicas
        )
    except NNMeterError:
        raise
    except Exception as exc:
        raise OperatorError(
            f"the model of {' and '.join(chain.ops)} cannot be built: {type(exc).__name__}: {exc}"
        ) from exc


def operator_model(
    op: str, input_shape: Sequence[int], config: Mapping[str, Any]
) -> tuple[Any, list[list[int]]]:
    """Build the model of one operator by its name."""
    chain = Chain(
        implement=config["IMPLEMENT"], ops=(op,), input_shape=tuple(input_shape), config=config
    )
    return chain_model(chain)


def save_model(
    implement: str,
    model: Any,
    shapes: Sequence[Sequence[int]],
    stem: Path,
    key: str = "",
    check: Callable[[Sequence[Any]], None] | None = None,
    outputs: bool = True,
) -> dict[str, Any]:
    """Save a model of a framework, and what is known of it.

    Args:
        implement: The framework.
        model: Its model.
        shapes: Shapes of the inputs without the batch dimension.
        stem: Path of the file, without the framework's suffix.
        key: Hash of all that it was built from.
        check: Looks at the model's outputs, batch included, and refuses them by raising.
        outputs: Whether to run the model: then its conversions can be checked, too.

    Returns:
        ``{"model", "shapes"}`` as test cases have it, the path relative to the workspace.

    Raises:
        OperatorError: It cannot be saved or run; says why.
    """
    framework = get_framework(implement)
    path = stem.with_name(stem.name + suffix_of(implement))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = framework.save_model(model, path, shapes, outputs=outputs)
    except NNMeterError:
        raise
    except Exception as exc:
        raise OperatorError(
            f"{path.name} cannot be saved as a model: {type(exc).__name__}: {exc}"
        ) from exc
    if check is not None and outputs:
        check(found)
    info = ModelInfo(
        key=key,
        sha256=hash_model(path),
        shapes=[list(shape) for shape in shapes],
        outputs=sample_outputs(found),
    )
    write_info(path, info)
    return entry_of(path, info.shapes)


def entry_of(path: Path, shapes: Iterable[Sequence[int]]) -> dict[str, Any]:
    """A model's entry in a test case: ``./fusion_rule_test/models/<name>`` and its shapes."""
    folder = path.parent
    return {
        "model": f"./{folder.parent.name}/{folder.name}/{path.name}",
        "shapes": [list(shape) for shape in shapes],
    }


def copy_model(source: Path, target: Path) -> None:
    """Put an equal model at another path: by hard links where the disk has them."""
    info = read_info(source)
    if info is None:
        raise OperatorError(f"{source}: what was built has gone; generate again")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=_link)
            if target.is_dir():
                shutil.rmtree(target)
        else:
            _link(source, temporary)
        temporary.replace(target)
        write_info(target, info)
    except OSError as exc:
        raise OperatorError(f"{target}: cannot be written: {exc.strerror or exc}") from exc
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _link(source: Path | str, target: Path | str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


# --- what a model is built from ------------------------------------------------------------------


def chain_key(chain: Chain) -> str:
    """Hash of all that a chain's model is built from: equal keys, equal models."""
    operands = [operand for operand in chain.operands if isinstance(operand, Chain)]
    return _key(
        chain.to_json(),
        *(
            source_key(registry.find("operator", op, chain.implement), chain.implement)
            for op in [*chain.ops, *(op for operand in operands for op in operand.ops)]
        ),
    )


def testcase_key(entry: registry.Entry, config: Mapping[str, Any]) -> str:
    """Hash of all that the models of a test case's class are built from."""
    return _key(chain_shapes.model_config(config), source_key(entry, config["IMPLEMENT"]))


def _key(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def source_key(entry: registry.Entry, implement: str) -> str:
    """Hash of the code of a user's class; of a built-in one, and its framework's version."""
    parts = [nn_meter.__version__, _own_code(), _framework_version(implement)]
    if entry.package_location:
        parts.append(_hash_code(Path(entry.package_location)))
    elif entry.origin != "builtin":
        # its outermost package: finding what is inside would import it
        spec = importlib.util.find_spec(entry.class_module.partition(".")[0])
        if spec is not None:
            places = spec.submodule_search_locations or [spec.origin or ""]
            parts += [_hash_code(Path(place)) for place in places if Path(place).exists()]
    return _key(entry.to_json(), parts)


@functools.cache
def _own_code() -> str:
    return _hash_code(Path(nn_meter.__file__).parent / "builder")


def _hash_code(place: Path) -> str:
    """Hash of a module's file, or of all that are in a package's folder."""
    digest = hashlib.sha256()
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


@functools.cache
def _framework_version(implement: str) -> str:
    for name in _DISTRIBUTIONS[implement]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return ""


def is_current(path: Path, key: str) -> ModelInfo | None:
    """The info of a model that was built from the same, and is still what it was; else None."""
    info = read_info(path)
    return info if info is not None and info.key == key and is_whole(path, info) else None


def is_whole(path: Path, info: ModelInfo | None) -> bool:
    """Whether a model is still what its info says: there, and not a byte of it changed."""
    try:
        return info is not None and hash_model(path) == info.sha256
    except ResultFileError:
        return False


# --- all models, in worker processes -------------------------------------------------------------


class BuildJobs:
    """Runs in a worker process, which loads the framework."""

    def load(self, implement: str) -> None:
        """Import a framework, which takes seconds and is nobody's fault."""
        get_framework(implement)

    def build_chain(
        self, chain: dict[str, Any], stem: str, key: str, outputs: bool
    ) -> dict[str, Any]:
        """Build and save a chain's model."""
        spec = Chain.from_json(chain)
        model, shapes = chain_model(spec)

        def check(outputs: Sequence[Any]) -> None:
            planned, found = spec.output_shape(), [int(size) for size in outputs[0].shape[1:]]
            if found != planned:
                raise ShapeError(
                    f"get_output_shape of {spec.ops[-1]} says {planned}, but its output has the "
                    f"shape {found}; test_operator would have shown it"
                )

        return save_model(spec.implement, model, shapes, Path(stem), key, check, outputs)

    def save_testcase(self, entry: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
        """Build and save the models of a test case's class."""
        cls = registry.load(registry.Entry.from_json(entry))
        case = cls(config)
        case.check_contract()
        return {"name": case.name, "models": case.save_testcase()}

    def plan(self, ops: list[str], config: dict[str, Any]) -> dict[str, Any]:
        """Work out the shapes of a chain with a user's operator, which may import a framework."""
        return situations.plan(ops, config).to_json()

    def design(
        self, head: list[str], tail: str, config: dict[str, Any], method: dict[str, Any]
    ) -> dict[str, Any]:
        """Design a question about a chain with a user's operator."""
        known = Method(**{**method, "looks": tuple(method["looks"])})
        return design_edge(head, tail, config, known).to_json()


Task = tuple[str, dict[str, Any]]
"""An operation of ``BuildJobs`` and its arguments."""


class _Builder(Worker):
    """A worker process that builds; a framework is loaded outside the limit of a task."""

    def __init__(self, implement: str, what: str) -> None:
        super().__init__(HANDLER, what=what)
        self._implement = implement

    def carry_out(self, task: Task, time_limit_s: float) -> dict[str, Any] | NNMeterError:
        """Carry out a task; gives the error that it ended with, a crash or the limit included."""
        operation, arguments = task
        try:
            if not self.running:
                self.call("load", _LOAD_LIMIT_S, implement=self._implement)
            answer: dict[str, Any] = self.call(operation, time_limit_s, **arguments)
        except WorkspaceError:
            raise  # a full disk says nothing about the model
        except NNMeterError as exc:
            return exc
        return answer


def plans_elsewhere(
    chains: Sequence[Sequence[str]], config: Mapping[str, Any], time_limit_s: float
) -> list[situations.Plan | NNMeterError]:
    """``situations.plan`` of many, in a worker process: a crash or a hang costs its chain."""
    answers = _elsewhere(
        config["IMPLEMENT"],
        [("plan", {"ops": list(ops), "config": dict(config)}) for ops in chains],
        time_limit_s,
    )
    return [
        answer if isinstance(answer, NNMeterError) else situations.Plan.from_json(answer)
        for answer in answers
    ]


def designs_elsewhere(
    edges: Sequence[tuple[Sequence[str], str, Mapping[str, Any]]],
    method: Method,
    time_limit_s: float,
) -> list[Design | NNMeterError]:
    """``design_edge`` of many, in a worker process: a crash or a hang costs its question.

    Args:
        edges: For each the head, the tail and the configuration; all of one framework.
        method: The constants.
        time_limit_s: For each.
    """
    if not edges:
        return []
    known = asdict(method)
    answers = _elsewhere(
        edges[0][2]["IMPLEMENT"],
        [
            ("design", {"head": list(head), "tail": tail, "config": dict(config), "method": known})
            for head, tail, config in edges
        ],
        time_limit_s,
    )
    return [
        answer if isinstance(answer, NNMeterError) else Design.from_json(answer)
        for answer in answers
    ]


def _elsewhere(
    implement: str, tasks: Iterable[Task], time_limit_s: float
) -> list[dict[str, Any] | NNMeterError]:
    with _Builder(implement, "asking for its shapes") as worker:
        return [worker.carry_out(task, time_limit_s) for task in tasks]


def run_tasks(
    tasks: Mapping[str, Task],
    *,
    implement: str,
    time_limit_s: float,
    done: Callable[[int, str], None],
) -> dict[str, dict[str, Any] | NNMeterError]:
    """Carry out tasks on all cores.

    Args:
        tasks: By a name of their own.
        implement: The framework that they need.
        time_limit_s: For each task.
        done: Told of each that ended: how many have, and its name.

    Returns:
        What each gave, or the error that it ended with.
    """
    found: dict[str, dict[str, Any] | NNMeterError] = {}

    def keep(number: int, name: str, answer: dict[str, Any] | NNMeterError) -> None:
        found[name] = answer
        done(number, name)

    spread(
        tasks,
        opened=lambda: _Builder(implement, "building it"),
        carry_out=lambda builder, task: builder.carry_out(task, time_limit_s),
        done=keep,
    )
    return found
