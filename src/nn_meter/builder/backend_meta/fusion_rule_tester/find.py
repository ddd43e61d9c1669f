"""A test case by the name that its results have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester.basic import BasicFusion
from nn_meter.builder.backend_meta.fusion_rule_tester.testcase import BaseTestCase
from nn_meter.builder.config import suggestion
from nn_meter.errors import DetectionError, NNMeterError, OperatorError

__all__ = ["canonical", "make_testcase", "testcase_named"]


def canonical(name: str, config: Mapping[str, Any]) -> str:
    """The name of a rule as it is written: ``conv_relu`` becomes ``BF_conv_relu``."""
    ops = name.split("_")
    known = {entry.name for entry in registry.entries("operator")}
    if len(ops) > 1 and all(op in known for op in ops):
        return f"BF_{name}"
    return name


def make_testcase(entry: registry.Entry, config: Mapping[str, Any]) -> BaseTestCase:
    """Load a test case's class and make it.

    Raises:
        RegistrationError: Its class cannot be loaded.
        OperatorError: It cannot be made of the configuration.
    """
    cls = registry.load(entry)
    try:
        case: BaseTestCase = cls(config)
    except Exception as exc:
        raise OperatorError(
            f"test case {entry.name}: {cls.__name__} cannot be made: {type(exc).__name__}: {exc}"
        ) from exc
    case.check_contract()
    return case


def testcase_named(name: str, config: Mapping[str, Any]) -> BaseTestCase:
    """Find a test case by the name in its results.

    Args:
        name: ``BF_conv_relu``, or the ``name`` of a built-in or registered class.
        config: All keys of ``ruletest_config.yaml``.

    Raises:
        DetectionError: There is none.
    """
    operators = [entry.name for entry in registry.entries("operator")]
    parts = name.split("_")
    if parts[0] == "BF" and len(parts) > 2:
        for op in parts[1:]:
            if op not in operators:
                raise DetectionError(
                    f"{name}: there is no operator {op!r}{suggestion(op, operators)}"
                )
        return BasicFusion(config, *parts[1:])
    entries = [
        entry
        for entry in registry.entries("testcase")
        if entry.implement in (None, config["IMPLEMENT"])
    ]
    entries.sort(key=lambda entry: entry.name not in config["OTHER_TESTCASES"])
    names, broken = [], []
    for entry in entries:
        try:
            case = make_testcase(entry, config)
        except NNMeterError as exc:  # it may be another one that was asked for
            broken.append(str(exc))
            continue
        if case.name == name:
            return case
        names.append(case.name)
    raise DetectionError(
        f"{name}: there is no such test case{suggestion(name, names)}; known besides BF_…: "
        + "; ".join([", ".join(names), *broken])
    )
