"""Operators one after the other: inputs, outputs and weights of a chain, in each framework."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn_meter.builder.nn_modules import BaseOperator
from nn_meter.builder.nn_modules.frameworks import IMPLEMENTS, Operand, get_framework, suffix_of
from nn_meter.builder.nn_modules.info import hash_model
from nn_meter.errors import OperatorError
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


class Saved:
    """A chain that was built and saved; it runs from all files that were written."""

    def __init__(
        self,
        implement: str,
        operators: list[BaseOperator],
        folder: Path,
        operands: Sequence[Operand] | None = None,
        replicas: int = 1,
    ) -> None:
        self.framework = get_framework(implement)
        self.framework.seed_weights(5)
        model, self.shapes = self.framework.chain_model(operators, operands, replicas=replicas)
        self.path = folder / f"model{suffix_of(implement)}"
        self.own = self.framework.save_model(model, self.path, self.shapes)
        self.files = [self.path]
        if implement == "tensorflow":
            self.files.append(self.path / "assets.extra" / "model.tflite")

    def __call__(self, *feeds: Any) -> list[Any]:
        first, *others = [self.framework.run_model(file, feeds) for file in self.files]
        for other in others:
            for one, same in zip(first, other, strict=True):
                np.testing.assert_allclose(one, same, rtol=1e-4, atol=1e-5)
        return first

    def input_names(self) -> list[str]:
        if self.path.is_dir():
            from nn_meter.builder.nn_modules.tensorflow.library import SavedModel

            saved = SavedModel.FromString((self.path / "saved_model.pb").read_bytes())
            return sorted(saved.meta_graphs[0].signature_def["serving_default"].inputs)
        import onnx

        return [value.name for value in onnx.load(self.path).graph.input]


def run(implement: str, operators: list[BaseOperator], folder: Path) -> tuple[Any, Any]:
    saved = Saved(implement, operators, folder)
    feeds = reference_inputs(saved.shapes)
    return feeds, saved(*feeds)


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


# --- where the second operand comes from ---------------------------------------------------------


def channels(implement: str) -> int:
    return 3 if implement == "tensorflow" else 1


def like(implement: str, *shape: int) -> list[int]:
    """A shape given with the channels first, in a framework's layout."""
    return [*shape[1:], shape[0]] if implement == "tensorflow" else list(shape)


def operator(implement: str, name: str, *shape: int) -> BaseOperator:
    return chain(implement, name, shape=shape)[0]


def test_an_operand_may_be_an_operator_on_an_input_of_its_own(implement, tmp_path):
    conv, add = chain(implement, "Conv", "Add")
    other = operator(implement, "Conv", 3, 6, 8)
    saved = Saved(implement, [conv, add], tmp_path, [None, other])
    assert saved.shapes == [like(implement, 4, 6, 8), like(implement, 3, 6, 8)]
    assert saved.input_names() == ["input_1", "input_2"]

    (tmp_path / "alone").mkdir()
    alone = Saved(implement, [conv], tmp_path / "alone")  # of the same seed: the same first weights
    (x1, y1), (y2,) = reference_inputs(saved.shapes), reference_inputs([saved.shapes[1]])
    x2 = x1[:, ::-1].copy()
    np.testing.assert_allclose(saved(x1, y1)[0], saved.own[0], rtol=1e-4, atol=1e-5)
    second = [saved(x, y)[0] - alone(x)[0] for x, y in [(x1, y1), (x2, y1), (x1, y2)]]
    np.testing.assert_allclose(second[0], second[1], rtol=0, atol=1e-4)
    assert np.abs(second[0] - second[2]).max() > 0.1


def test_two_convolutions_of_one_shape_have_weights_of_their_own(implement, tmp_path):
    conv, add = chain(implement, "Conv", "Add")
    saved = Saved(implement, [conv, add], tmp_path, [None, conv])
    x, y = reference_inputs(saved.shapes)
    assert np.abs(saved(x, y)[0] - saved(y, x)[0]).max() > 0.1


def test_an_operand_may_be_the_input_of_the_chain(implement, tmp_path):
    conv, add, relu = chain(implement, "Conv", "Add", "Relu", shape=(6, 6, 8))
    saved = Saved(implement, [conv, add, relu], tmp_path, [None, 0, None])
    assert saved.shapes == [like(implement, 6, 6, 8)]

    (tmp_path / "alone").mkdir()
    alone = Saved(implement, [conv], tmp_path / "alone")
    (x,) = reference_inputs(saved.shapes)
    wanted = np.maximum(alone(x)[0] + x, 0)
    for found in (saved(x)[0], saved.own[0]):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_an_operand_of_another_shape_is_what_the_operator_was_made_for(implement, tmp_path):
    (conv,) = chain(implement, "Conv")
    shapes = [conv.get_output_shape(), conv.input_shape]
    concat = type(operator(implement, "Concat", 1))(shapes, CONFIG)
    saved = Saved(implement, [conv, concat], tmp_path, [None, 0])
    assert saved.shapes == [conv.input_shape]

    (x,) = reference_inputs(saved.shapes)
    first, second = np.split(saved(x)[0], [CONFIG["COUT"]], axis=channels(implement))
    np.testing.assert_array_equal(second, x)
    assert first.std() > 0.1


def test_the_first_operator_may_take_one_input_twice(implement, tmp_path):
    saved = Saved(implement, chain(implement, "Add"), tmp_path, [0])
    assert saved.shapes == [like(implement, *SHAPE)]
    assert saved.input_names() == ["input_1"]
    (x,) = reference_inputs(saved.shapes)
    np.testing.assert_allclose(saved(x)[0], 2 * x)


def test_inputs_are_numbered_as_they_are_needed(implement, tmp_path):
    """Sigmoid on the second, a third as it is, what reaches the relu once more, and a fourth."""
    operators = chain(implement, "Add", "Concat", "Relu", "Add", "Concat", "Sigmoid")
    doubled = operators[2].input_shape
    split = operator(implement, "Split", 16, 6, 8)
    operands = [operator(implement, "Sigmoid", *SHAPE), None, None, 2, split, None]
    saved = Saved(implement, operators, tmp_path, operands)
    assert saved.shapes == [like(implement, n, 6, 8) for n in (4, 4, 4, 16)]
    assert saved.input_names() == ["input_1", "input_2", "input_3", "input_4"]

    a, b, c, d = reference_inputs(saved.shapes)
    axis = channels(implement)
    joined = np.concatenate([a + 1 / (1 + np.exp(-b)), c], axis=axis)
    assert list(joined.shape[1:]) == doubled
    flowing, rest = np.split(d, 2, axis=axis)
    wanted = np.concatenate([np.maximum(joined, 0) + joined, flowing], axis=axis)
    found = saved(a, b, c, d)
    assert len(found) == 2
    np.testing.assert_allclose(found[0], 1 / (1 + np.exp(-wanted)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[1], rest)


@pytest.mark.parametrize(
    ("names", "operands", "reason"),
    [
        (["Conv", "Add"], [None], "operands has 1 entries for 2 operators"),
        (["Conv", "Add"], [None, 2], r"operands\[1\], .* of Add, is 2, .* operators 0 to 1"),
        (["Conv", "Add"], [None, -1], r"operands\[1\], .* of Add, is -1"),
        (["Conv", "Add"], [None, True], "an operator or a position in the chain, not True"),
        (["Conv", "Add"], [None, "conv"], "an operator or a position in the chain, not 'conv'"),
        (["Conv", "Add"], [None, "Add"], "is Add, which takes two inputs itself"),
    ],
)
def test_an_operand_that_cannot_be_is_refused(implement, names, operands, reason):
    if operands[-1] == "Add":
        operands = [None, operator(implement, "Add", 6, 6, 8)]
    with pytest.raises(OperatorError, match=reason):
        get_framework(implement).chain_model(chain(implement, *names), operands)


@pytest.mark.parametrize(
    ("operand", "words"), [("MaxPool", "MaxPool gives"), (0, "what reaches operator 0 has")]
)
def test_an_operand_of_a_wrong_shape_is_refused_with_both(implement, operand, words):
    if operand == "MaxPool":
        operand = operator(implement, "MaxPool", 4, 6, 8)
        given = like(implement, 4, 3, 4)
    else:
        given = like(implement, *SHAPE)
    with pytest.raises(OperatorError) as caught:
        get_framework(implement).chain_model(chain(implement, "Conv", "Add"), [None, operand])
    wanted = like(implement, 6, 6, 8)
    assert f"of Add, should have the shape {wanted}, but {words} {given}" in str(caught.value)


def test_what_an_operator_with_one_input_is_told_of_operands_does_not_matter(implement, tmp_path):
    saved = Saved(implement, chain(implement, "Relu"), tmp_path, [7])
    (x,) = reference_inputs(saved.shapes)
    np.testing.assert_array_equal(saved(x)[0], np.maximum(x, 0))


# --- the file ------------------------------------------------------------------------------------


def test_without_outputs_the_same_file_is_written_and_not_run(implement, tmp_path, monkeypatch):
    framework = get_framework(implement)
    runner = "run_model" if implement == "tensorflow" else "evaluate"

    def refuse(*_: Any) -> Any:
        raise AssertionError("the file was run")

    hashes = []
    for name, outputs in [("one", True), ("other", False)]:
        if not outputs:
            monkeypatch.setattr(framework, runner, refuse)
        framework.seed_weights(7)
        model, shapes = framework.chain_model(chain(implement, "Conv", "Split"))
        path = tmp_path / f"{name}{suffix_of(implement)}"
        found = framework.save_model(model, path, shapes, outputs=outputs)
        assert len(found) == (2 if outputs else 0)
        hashes.append(hash_model(path))
    assert hashes[0] == hashes[1]


def test_replicas_stand_side_by_side_with_inputs_and_weights_of_their_own(implement, tmp_path):
    operators = chain(implement, "Conv", "Split", "Add")
    for folder in ("one", "three"):
        (tmp_path / folder).mkdir()
    one = Saved(implement, operators, tmp_path / "one")
    three = Saved(implement, operators, tmp_path / "three", replicas=3)

    assert three.shapes == one.shapes * 3
    feeds = reference_inputs(three.shapes)
    outputs = three(*feeds)
    assert len(outputs) == 3 * len(one(*reference_inputs(one.shapes)))
    same = three(*feeds[: len(one.shapes)] * 3)
    for first, second in zip(same[:2], same[2:4], strict=True):
        assert first.shape == second.shape
        assert not np.allclose(first, second)  # other weights
    changed = three(*feeds[: len(one.shapes)], *[2 * feed for feed in feeds[len(one.shapes) :]])
    for before, after in zip(outputs[:2], changed[:2], strict=True):
        np.testing.assert_array_equal(before, after)  # a replica knows nothing of the others


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
