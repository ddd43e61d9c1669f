"""Operators one after the other: inputs, outputs and weights of a chain, in each framework."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from nn_meter.builder.nn_modules import BaseOperator
from nn_meter.builder.nn_modules.frameworks import IMPLEMENTS, get_framework, suffix_of
from nn_meter.builder.nn_modules.info import hash_model
from nn_meter.reference import reference_inputs

CONFIG = {"COUT": 6, "KERNEL_SIZE": 3, "PADDING": "same", "STRIDES": 1, "POOL_STRIDES": 2}
SHAPE = (4, 6, 8)


@pytest.fixture(params=IMPLEMENTS)
def implement(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    pytest.importorskip(name)
    return name


def chain(implement: str, *names: str, shape: tuple[int, ...] = SHAPE) -> list[BaseOperator]:
    """Operators, each made for the shape that the one before it gives."""
    module = importlib.import_module(f"nn_meter.builder.nn_modules.{implement}.operators")
    flowing = list(shape)
    if implement == "tensorflow" and len(shape) == 3:
        flowing = [*shape[1:], shape[0]]
    operators = []
    for name in names:
        operators.append(getattr(module, name)(flowing, CONFIG))
        flowing = operators[-1].get_output_shape()
    return operators


def run(implement: str, operators: list[BaseOperator], folder: Any) -> tuple[Any, Any]:
    framework = get_framework(implement)
    model, shapes = framework.chain_model(operators)
    path = folder / f"model{suffix_of(implement)}"
    framework.save_model(model, path, shapes)
    feeds = reference_inputs(shapes)
    return feeds, framework.run_model(path, feeds)


def test_each_operator_with_two_inputs_takes_an_input_of_its_own(implement, tmp_path):
    operators = chain(implement, "Add", "Relu", "Concat", "Add")
    feeds, outputs = run(implement, operators, tmp_path)

    shape = operators[0].input_shape
    doubled = operators[2].get_output_shape()
    assert [list(feed.shape[1:]) for feed in feeds] == [shape, shape, shape, doubled]
    axis = -1 if implement == "tensorflow" else 1
    joined = np.concatenate([np.maximum(feeds[0] + feeds[1], 0), feeds[2]], axis=axis)
    assert len(outputs) == 1
    np.testing.assert_allclose(outputs[0], joined + feeds[3], rtol=1e-6, atol=1e-6)


def test_what_does_not_flow_on_is_an_output(implement, tmp_path):
    feeds, outputs = run(implement, chain(implement, "Split", "Relu", "Split", "Sigmoid"), tmp_path)

    axis = 3 if implement == "tensorflow" else 1
    first, second, rest = np.split(feeds[0], [1, 2], axis=axis)
    assert len(outputs) == 3
    np.testing.assert_allclose(outputs[0], 1 / (1 + np.exp(-np.maximum(first, 0))), rtol=1e-5)
    np.testing.assert_array_equal(outputs[1], rest)
    np.testing.assert_array_equal(outputs[2], np.maximum(second, 0))


@pytest.mark.parametrize(
    "names",
    [
        ("Conv", "BatchNorm", "Hswish", "SE", "MaxPool", "Reshape", "Flatten", "FC"),
        ("DwConv", "ConvTrans", "AvgPool", "GlobalAvgPool", "Reshape", "Conv"),
        ("FC", "Relu6", "FC"),
    ],
)
def test_a_chain_gives_the_shape_of_its_last_operator(implement, names, tmp_path):
    operators = chain(implement, *names)
    _, outputs = run(implement, operators, tmp_path)
    assert list(outputs[0].shape) == [1, *operators[-1].get_output_shape()]
    assert np.isfinite(outputs[0]).all()
    assert outputs[0].std() > 1e-3  # nothing vanished on the way


def test_equal_seeds_give_equal_files_and_others_do_not(implement, tmp_path):
    framework = get_framework(implement)
    hashes = []
    for number, seed in enumerate([7, 7, 8]):
        framework.seed_weights(seed)
        model, shapes = framework.chain_model(chain(implement, "Conv", "BatchNorm", "SE"))
        path = tmp_path / f"{number}{suffix_of(implement)}"
        framework.save_model(model, path, shapes)
        hashes.append(hash_model(path))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_framework_says_its_version(implement):
    name, version = get_framework(implement).version().split()
    assert name == implement
    assert version[0].isdigit()
