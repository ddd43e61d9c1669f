"""From the configuration to model files: plan pairs, build what is new, link what is not."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester import build
from nn_meter.builder.backend_meta.fusion_rule_tester.basic import aliases
from nn_meter.builder.backend_meta.fusion_rule_tester.build import Task
from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import Chain
from nn_meter.builder.backend_meta.fusion_rule_tester.situation_models import situation_models
from nn_meter.builder.backend_meta.fusion_rule_tester.situations import Plan, plan
from nn_meter.builder.nn_modules.frameworks import suffix_of
from nn_meter.builder.nn_modules.info import read_info
from nn_meter.builder.profiling.results import read_testcases
from nn_meter.builder.workspace import Workspace, make_folder, read_json, write_json
from nn_meter.errors import ConfigError, NNMeterError, OddSizeError, ResultFileError
from nn_meter.progress import Progress

__all__ = ["Generated", "generate"]

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Generated:
    """Test cases whose models are there.

    Attributes:
        testcases: As ``origin_testcases.json`` has them.
        refused: Test cases that cannot be built, and why.
        built: How many models were built now.
        kept: How many different models were there already.
    """

    testcases: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    built: int = 0
    kept: int = 0


def generate(
    workspace: Workspace,
    found: Generated,
    progress: Progress,
    time_limit_s: float,
    *,
    with_situations: bool,
) -> None:
    """Build the models of all test cases that a workspace asks for.

    Args:
        workspace: Whose configuration asks.
        found: Filled in.
        progress: Told how far it is.
        time_limit_s: For building one model, or the models of one test case of the user's.
        with_situations: Whether to build the models of the situations that only executed graphs
            are asked in.

    Raises:
        ConfigError: A size that an op would have to halve is odd; nothing is written.
    """
    config = workspace.operator_config()
    plans = _plan(workspace, config, found, time_limit_s)
    custom = [
        registry.find("testcase", name, config["IMPLEMENT"])
        for name in workspace.ruletest.OTHER_TESTCASES
    ]
    with workspace.lock():
        _build(
            workspace,
            config,
            plans,
            custom,
            found,
            progress,
            time_limit_s,
            with_situations=with_situations,
        )
    if found.testcases:  # else an error says so
        for name, reason in found.refused.items():
            log.warning("%s cannot be built and is left out: %s", name, reason)


def _plan(
    workspace: Workspace, config: Mapping[str, Any], found: Generated, time_limit_s: float
) -> dict[str, Plan]:
    asked = workspace.ruletest.BASIC_TESTCASES
    everything = isinstance(asked, str)
    chains: list[tuple[str, ...]]
    if everything:
        names = [
            name
            for name in dict.fromkeys(e.name for e in registry.entries("operator"))
            if _is_there(name, config["IMPLEMENT"])
        ]
        chains = list(product(names, names))
    else:
        chains = [tuple(name.split("_")) for name in asked]
    outcomes = _plan_chains(chains, config, time_limit_s)
    plans: dict[str, Plan] = {}
    odd: dict[str, str] = {}
    for ops, outcome in zip(chains, outcomes, strict=True):
        name = "_".join(["BF", *ops])
        if isinstance(outcome, Plan):
            plans[name] = outcome
        elif isinstance(outcome, OddSizeError) and not everything:
            odd[name] = str(outcome)
        elif not everything:
            found.refused[name] = str(outcome)
    if odd:
        name, reason = next(iter(odd.items()))
        more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
        raise ConfigError(f"{workspace.ruletest_file}: {name}{more}: {reason}")
    return plans


def _is_there(op: str, implement: str) -> bool:
    return any(
        entry.name == op and entry.implement in (None, implement)
        for entry in registry.entries("operator")
    )


def _plan_chains(
    chains: list[tuple[str, ...]], config: Mapping[str, Any], time_limit_s: float
) -> list[Plan | NNMeterError]:
    """Plan here where that needs no framework: all chains of built-in operators."""
    builtin = {e.name for e in registry.entries("operator") if e.origin == "builtin"}
    elsewhere = [ops for ops in chains if not builtin.issuperset(ops)]
    found: dict[tuple[str, ...], Plan | NNMeterError] = {}
    if elsewhere:
        plans = build.plans_elsewhere(elsewhere, config, time_limit_s)
        found.update(zip(elsewhere, plans, strict=True))
    for ops in chains:
        if ops not in found:
            try:
                found[ops] = plan(ops, config)
            except NNMeterError as exc:
                found[ops] = exc
    return [found[ops] for ops in chains]


def _build(
    workspace: Workspace,
    config: dict[str, Any],
    plans: Mapping[str, Plan],
    custom: Iterable[registry.Entry],
    found: Generated,
    progress: Progress,
    time_limit_s: float,
    *,
    with_situations: bool,
) -> None:
    models = workspace.models_dir
    for folder in (models, workspace.situations_dir):
        make_folder(folder)
        _clear_unfinished(folder)
    suffix = suffix_of(config["IMPLEMENT"])
    wanted: dict[str, list[tuple[Path, Chain]]] = {}  # by key: every path that it stands at
    for name, planned in plans.items():
        for model, chain in _chains(planned).items():
            path = models / f"{name}_{model}{suffix}"
            wanted.setdefault(build.chain_key(chain), []).append((path, chain))
    timed = set(wanted)
    around = situation_models(workspace, plans if with_situations else {}, suffix, timed)
    for key, path, chain in around.files():
        wanted.setdefault(key, []).append((path, chain))
    tasks: dict[str, Task] = {}
    sources: dict[str, Path] = {}
    for key, places in wanted.items():
        current = next((path for path, _ in places if build.is_current(path, key)), None)
        sources[key] = current or places[0][0]
        if current is None:
            path, chain = places[0]
            stem = str(path).removesuffix(suffix)
            tasks[key] = (
                "build_chain",
                {
                    "chain": chain.to_json(),
                    "stem": stem,
                    "key": key,
                    "outputs": key not in around.chains or key in timed,
                },
            )
    found.built, found.kept = len(tasks), len(wanted) - len(tasks)
    cases: dict[str, tuple[Path, str]] = {}
    for entry in custom:
        key = build.testcase_key(entry, config)
        record = models / ".info" / f"testcase-{entry.name}.json"
        cases[entry.name] = record, key
        if _recorded(workspace, record, key) is None:
            tasks[entry.name] = (
                "save_testcase",
                {"entry": entry.to_json(), "config": config},
            )
    outcomes = _run(tasks, config["IMPLEMENT"], progress, time_limit_s)
    broken = {key: str(error) for key, error in outcomes.items() if isinstance(error, NNMeterError)}
    for key, places in wanted.items():
        for path, _ in places:
            if key not in broken and build.is_current(path, key) is None:
                build.copy_model(sources[key], path)
    _collect(plans, suffix, models, broken, found)
    around.write(workspace, broken)
    rules: dict[str, list[str]] = {}  # by rule: the registered names of the classes that say it
    for name, (record, key) in cases.items():
        rule = _collect_custom(workspace, name, record, key, outcomes.get(name), found)
        if rule is not None:
            rules.setdefault(rule, []).append(name)
    for rule, names in rules.items():
        if len(names) > 1:  # their models lie at the same paths: whose they are, nobody knows
            del found.testcases[rule]
            for name in names:
                cases[name][0].unlink(missing_ok=True)
                others = ", ".join(other for other in names if other != name)
                found.refused[name] = f"its class has the name {rule!r}, as that of {others} has"


def _clear_unfinished(models: Path) -> None:
    """Remove what a killed run left half-written; the workspace is locked, nobody else builds."""
    for path in models.glob(".*"):
        if path.name == ".info":
            continue
        with contextlib.suppress(OSError):  # it is in nobody's way
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _chains(planned: Plan) -> dict[str, Chain]:
    """The models that a test case has in the guide's dict."""
    return planned.alone.chains(aliases(planned.alone.block.ops))


def _run(
    tasks: Mapping[str, Task], implement: str, progress: Progress, time_limit_s: float
) -> dict[str, dict[str, Any] | NNMeterError]:
    def done(number: int, name: str) -> None:
        operation, arguments = tasks[name]
        label = Path(arguments["stem"]).name if operation == "build_chain" else name
        progress("generate", number, len(tasks), label)

    return build.run_tasks(tasks, implement=implement, time_limit_s=time_limit_s, done=done)


def _collect(
    plans: Mapping[str, Plan],
    suffix: str,
    models: Path,
    broken: Mapping[str, str],
    found: Generated,
) -> None:
    for name, planned in plans.items():
        chains = _chains(planned)
        reasons = [
            f"{model}: {broken[key]}"
            for model, chain in chains.items()
            if (key := build.chain_key(chain)) in broken
        ]
        if reasons:
            found.refused[name] = reasons[0]
            continue
        case = {}
        for model in chains:
            path = models / f"{name}_{model}{suffix}"
            info = read_info(path)
            assert info is not None, path
            case[model] = build.entry_of(path, info.shapes)
        found.testcases[name] = case


def _recorded(workspace: Workspace, record: Path, key: str) -> dict[str, Any] | None:
    """The entry of a test case that was built from the same, if its models are still there."""
    if not record.is_file():
        return None
    try:
        data = read_json(record, "a test case")
        ((name, models),) = read_testcases(data["testcases"]).items()
        files = [workspace.resolve(entry["model"]) for entry in models.values()]
        there = all(build.is_whole(file, read_info(file)) for file in files)
    except (ResultFileError, KeyError, ValueError, OSError):
        return None  # damaged: it is built again
    return {"name": name, "models": models} if there and data.get("key") == key else None


def _collect_custom(
    workspace: Workspace,
    name: str,
    record: Path,
    key: str,
    outcome: dict[str, Any] | NNMeterError | None,
    found: Generated,
) -> str | None:
    """Take up a test case of a class; gives the name of its rule, None if it is refused."""
    if isinstance(outcome, NNMeterError):
        found.refused[name] = str(outcome)
        return None
    if outcome is not None:
        write_json(record, {"key": key, "testcases": {outcome["name"]: outcome["models"]}})
        found.built += len(outcome["models"])
    case = outcome if outcome is not None else _recorded(workspace, record, key)
    assert case is not None, record
    found.testcases[case["name"]] = case["models"]
    return str(case["name"])
