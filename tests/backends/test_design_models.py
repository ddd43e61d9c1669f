"""The models of designs, built: what the plan says of them is what comes out."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest

from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester import build
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.design import (
    Design,
    Method,
    design_edge,
    reference_design,
)
from nn_meter.builder.config import RuletestConfig
from nn_meter.builder.nn_modules.frameworks import get_framework
from nn_meter.errors import OperatorError

pytest.importorskip("onnx")

CONFIG = {**RuletestConfig().as_dict(), "IMPLEMENT": "onnx"}
CHAINS = [("conv", "bn", "relu"), ("split", "conv", "add"), ("maxpool", "globalavgpool", "fc")]


def designs() -> dict[str, Design]:
    """Some of the default list and of another one, and of three."""
    names = [entry.name for entry in registry.entries("operator")]
    pairs = list(product(names, names))
    random.Random(20261122).shuffle(pairs)
    found: dict[str, Design] = {}
    for number, pair in enumerate(pairs):
        changed = {} if number % 4 else {"PADDING": "valid", "STRIDES": 2, "CIN": 24, "COUT": 42}
        try:
            found["_".join(pair)] = design_edge(pair[:1], pair[1], CONFIG | changed, Method())
        except OperatorError:
            continue
        if len(found) == 40:
            break
    for chain in CHAINS:
        found["_".join(chain)] = design_edge(chain[:-1], chain[-1], CONFIG, Method())
    return found


DESIGNS = designs()


@pytest.mark.parametrize("name", DESIGNS)
def test_every_model_is_built_and_gives_what_the_plan_says(name, tmp_path):
    framework, replicas = get_framework("onnx"), Method().replicas
    design = DESIGNS[name]
    computed = {}
    for part, chain in {**reference_design(design), **design.models}.items():
        model, shapes = build.chain_model(chain)
        path = tmp_path / "model.onnx"
        outputs = framework.save_model(model, path, shapes)
        assert len(shapes) % replicas == 0
        assert shapes == shapes[: len(shapes) // replicas] * replicas
        assert tuple(shapes[0]) == chain.input_shape
        each = len(outputs) // replicas
        for first in outputs[::each]:
            assert list(first.shape[1:]) == chain.output_shape(), part
        assert all(np.isfinite(values).all() for values in outputs)
        computed[part] = outputs
    # a barrier computes something: it is not there for nothing
    for barrier in design.barriers:
        control, head = computed[f"head|{barrier}"][0], computed["head"][0]
        assert control.shape == head.shape
        assert np.abs(control - head).max() > 1e-4 or np.ptp(head) == 0
