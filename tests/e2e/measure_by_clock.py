"""Measures rules by the clock on ONNX Runtime and keeps a journal: test_clock_resume.py kills it.

Arguments: a workspace, a journal, and the chains.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nn_meter.builder.backend_meta.fusion_rule_tester.clock.design import Method
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.measure import Asked, bench_of, measure
from nn_meter.builder.backends.interface import connect_backend
from nn_meter.builder.profiling.connection import Connection
from nn_meter.builder.profiling.store import Store
from nn_meter.builder.workspace import open_workspace

BUDGET_S = 120.0


def main(place: str, journal: str, *chains: str) -> None:
    workspace = open_workspace(Path(place))
    config = workspace.operator_config()
    asked = [Asked(rule=f"BF_{c}", ops=tuple(c.split("_")), config=config) for c in chains]
    backend = connect_backend("onnxruntime_cpu", workspace)
    with (
        Path(journal).open("a", buffering=1) as lines,
        Connection(backend) as connection,
        Store(workspace.store_file) as store,
    ):
        campaign = store.campaign(store.environment(connection.name, connection.environment))
        bench, refused = bench_of(
            asked, store, campaign, method=Method(), alpha=0.5, confidence=0.95
        )

        def settled() -> list[str]:
            return [name for name, q in bench.questions.items() if bench.is_settled(q)]

        def write(stage: str, **found: object) -> None:
            lines.write(json.dumps({"stage": stage, "settled": settled(), **found}) + "\n")

        write("begun", questions=list(bench.questions), refused=refused)
        measure(
            workspace,
            connection,
            store,
            campaign,
            bench,
            budget_s=BUDGET_S,
            time_limit_s=60.0,
            progress=lambda stage, done, of, name: write(stage, name=name),
        )
        verdicts = {name: q.opinion.verdict for name, q in bench.questions.items()}
        write("ended", verdicts=verdicts)


if __name__ == "__main__":
    main(*sys.argv[1:])
