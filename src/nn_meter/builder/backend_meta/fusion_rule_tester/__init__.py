"""WHAT FOLLOWS: test cases, and the rules that their measurements show.

Who lives here: `testcase` (the contract `BaseTestCase`), `basic` and `mon` (the guide's test
cases), `shapes` (which pairs can be built, and in which shapes), `build` (model files, on all
cores), `find` (a test case by its name), `evidence` (what speaks for a verdict), `verdict` (plain
values), `detect` (dependencies, verdicts), `interface` (`generate_testcases`,
`detect_fusion_rule`, and the files they write).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nn_meter.builder.backend_meta.fusion_rule_tester.interface import (
        detect_fusion_rule,
        generate_testcases,
    )
    from nn_meter.builder.backend_meta.fusion_rule_tester.testcase import BaseTestCase

__all__ = ["BaseTestCase", "detect_fusion_rule", "generate_testcases"]

_LAZY = {
    "BaseTestCase": "testcase",
    "detect_fusion_rule": "interface",
    "generate_testcases": "interface",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
