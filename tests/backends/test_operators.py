"""Each operator in each framework: its shapes, its values, and what it refuses.

The values are compared with `operators_reference`, plain numpy with the same weights.
"""

from __future__ import annotations

import importlib
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from operators_reference import OPERATORS, Setting, compute

from nn_meter.builder.nn_modules.frameworks import IMPLEMENTS, get_framework, suffix_of
from nn_meter.errors import OddSizeError, ShapeError
from nn_meter.reference import reference_inputs

CONFIG = {
    "COUT": 6,
    "KERNEL_SIZE": 3,
    "PADDING": "same",
    "STRIDES": 1,
    "POOL_STRIDES": 2,
}
IMAGE = (4, 7, 8)  # an odd and an even size at once
VECTOR = (10,)
WINDOWED = ("Conv", "DwConv", "ConvTrans", "MaxPool", "AvgPool")
BOTH_RANKS = (
    *("FC", "Relu", "Relu6", "Sigmoid", "Hswish", "Reshape", "Add", "Concat"),
    *("Swish", "Gelu", "LeakyRelu", "PRelu", "HardSigmoid", "Tanh"),
    *("LayerNorm", "Softmax", "MatMul", "Mul", "RunningSum"),
    *("Bias", "Center", "Scale", "AddScalar", "MulScalar", "MulOne", "Square", "Mean"),
    "RowSoftmax",
)
WITH_WEIGHTS = (
    *("Conv", "DwConv", "ConvTrans", "BatchNorm", "SE", "FC"),
    *("PRelu", "LayerNorm", "MatMul", "Bias", "Center", "Scale"),
)


@dataclass(frozen=True)
class Case:
    """An operator, the shape that reaches it with the channels first, and what is configured."""

    operator: str
    shape: tuple[int, ...]
    config: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        changed = "-".join(f"{key.lower()}{value}" for key, value in self.config)
        return "-".join(filter(None, [self.operator, f"{len(self.shape)}d", changed]))


def windowed_cases(*, half: bool = False) -> list[Case]:
    """All combinations, or every other one: each two settings still meet."""
    found = []
    for name, padding, kernel in itertools.product(WINDOWED, ("same", "valid"), (1, 2, 3, 5)):
        strides_key = "POOL_STRIDES" if name.endswith("Pool") else "STRIDES"
        # A kernel smaller, as large and larger than the stride; pooling takes its own stride.
        for stride in (1, 2, 3) if name in ("MaxPool", "AvgPool", "ConvTrans") else (1, 2):
            if half and (kernel + stride + len(padding)) % 2:
                continue
            cout = 6 if kernel % 2 else 3  # more channels than come in, and fewer
            config = {
                "PADDING": padding,
                "KERNEL_SIZE": kernel,
                "COUT": cout,
                strides_key: stride,
            }
            found.append(Case(name, IMAGE, tuple(config.items())))
    return found


def other_cases() -> list[Case]:
    found = [Case(name, IMAGE) for name in OPERATORS if name not in (*WINDOWED, "BMM")]
    found += [Case("BMM", (3, 5, 5)), Case("BMM", (1, 2, 2))]
    found += [Case(name, VECTOR) for name in BOTH_RANKS]
    for name in ("FC", "MatMul"):
        found += [Case(name, shape, (("COUT", 16),)) for shape in (VECTOR, IMAGE)]
    found += [Case("SE", (2, 3, 3)), Case("SE", (16, 5, 4)), Case("GlobalAvgPool", (3, 1, 1))]
    # Of four channels a shuffle is its own inverse; of six it is not.
    found += [Case("ChannelShuffle", (6, 5, 4)), Case("ChannelShuffle", (2, 1, 3))]
    found += [Case("Resize", (3, 1, 1)), Case("Resize", (2, 4, 3))]
    found += [Case("Pad", (3, 1, 2), (("KERNEL_SIZE", size),)) for size in (1, 2, 4, 7)]
    found += [
        Case(name, (3, 1, 5))
        for name in (
            "PRelu",
            "LayerNorm",
            "Softmax",
            "Mul",
            "RunningSum",
            "Scale",
            "Mean",
            "RowSoftmax",
        )
    ]
    # An odd size of 1 pixel, a kernel larger than the input with padding, an even kernel of 4.
    for name in WINDOWED:
        found.append(Case(name, (2, 1, 3), (("KERNEL_SIZE", 5), ("COUT", 2))))
        strides = (("STRIDES", 2), ("POOL_STRIDES", 2))
        found.append(Case(name, (2, 5, 6), (("KERNEL_SIZE", 4), ("COUT", 2), *strides)))
        found.append(Case(name, (2, 6, 5), (("KERNEL_SIZE", 4), ("COUT", 2), ("POOL_STRIDES", 1))))
    return found


CASES = {
    # TensorFlow saves each model twice and checks both, which takes its time.
    implement: [*windowed_cases(half=implement == "tensorflow"), *other_cases()]
    for implement in IMPLEMENTS
}
SQUARE = (4, 6, 6)
DEFAULTS = [Case(name, SQUARE if name == "BMM" else IMAGE) for name in OPERATORS] + [
    Case(name, VECTOR) for name in BOTH_RANKS
]


@pytest.fixture(params=IMPLEMENTS)
def implement(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    pytest.importorskip(name)
    return name


def make(implement: str, case: Case) -> Any:
    """An operator of a framework, from shapes in the framework's layout."""
    module = importlib.import_module(f"nn_meter.builder.nn_modules.{implement}.operators")
    shape = list(case.shape)
    if implement == "tensorflow" and len(shape) == 3:
        shape = [*shape[1:], shape[0]]
    return getattr(module, case.operator)(shape, CONFIG | dict(case.config))


def weights_of(implement: str, operator: str, model: Any) -> list[np.ndarray]:
    """The weights of a model of one operator, in the reference's form."""
    if operator not in WITH_WEIGHTS:
        return []
    if implement == "torch":
        state = model.state_dict()
        weights = [v.numpy() for name, v in state.items() if "num_batches" not in name]
        if operator == "FC":
            weights[0] = weights[0].T
    elif implement == "onnx":
        from onnx import numpy_helper

        weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    else:
        weights = [weight.numpy() for weight in model.weights]
        to_channels_first = {
            "Conv": (3, 2, 0, 1),  # from [kh, kw, cin, cout]
            "DwConv": (2, 3, 0, 1),  # from [kh, kw, channels, 1]
            "ConvTrans": (3, 2, 0, 1),  # from [kh, kw, cout, cin]
            "SE": (3, 2, 0, 1),
        }
        if operator in to_channels_first:
            axes = to_channels_first[operator]
            weights = [w.transpose(axes) if w.ndim == 4 else w for w in weights]
    if operator == "DwConv":
        weights[0] = weights[0][:, 0]
    if operator == "SE":
        weights = [w[:, :, 0, 0] if w.ndim == 4 else w for w in weights]
    return weights


def setting_of(implement: str, case: Case) -> Setting:
    config = CONFIG | dict(case.config)
    pools = case.operator in ("MaxPool", "AvgPool")
    return Setting(
        kernel=config["KERNEL_SIZE"],
        stride=config["POOL_STRIDES" if pools else "STRIDES"],
        padding=config["PADDING"],
        symmetric=implement == "torch",
        channels_last=implement == "tensorflow",
        epsilon=1e-3 if implement == "tensorflow" else 1e-5,
    )


@pytest.mark.parametrize(
    ("implement", "case"),
    [(implement, case) for implement, cases in CASES.items() for case in cases],
    ids=str,
)
def test_a_saved_operator_has_the_shape_and_the_values_of_its_definition(
    implement: str, case: Case, tmp_path: Any
) -> None:
    pytest.importorskip(implement)
    framework = get_framework(implement)
    framework.seed_weights(CASES[implement].index(case))
    operator = make(implement, case)
    model, shapes = framework.chain_model([operator])
    feeds = [feed * 4.0 for feed in reference_inputs(shapes)]  # beyond the 6 of relu6
    path = tmp_path / f"model{suffix_of(implement)}"

    framework.save_model(model, path, shapes)
    outputs = framework.run_model(path, feeds)

    expected = compute(
        case.operator,
        [feed[0] for feed in feeds],
        weights_of(implement, case.operator, model),
        setting_of(implement, case),
    )
    assert list(outputs[0].shape[1:]) == operator.get_output_shape()
    assert len(outputs) == len(expected)
    for found, wanted in zip(outputs, expected, strict=True):
        scale = max(np.abs(wanted).max(), 1e-3)
        np.testing.assert_allclose(found[0], wanted, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize(
    ("name", "factor", "tolerance"),
    [
        ("Gelu", 2.0, 1e-5),  # the approximation by tanh is 5e-4 off
        ("LayerNorm", 0.002, 1e-4),  # a variance as small as what is added to it
        ("Softmax", 0.1, 1e-5),
    ],
)
@pytest.mark.parametrize("shape", [IMAGE, VECTOR], ids=["3d", "1d"])
def test_what_large_values_would_hide(
    implement: str, name: str, factor: float, tolerance: float, shape: Any, tmp_path: Any
) -> None:
    framework, case = get_framework(implement), Case(name, shape)
    model, shapes = framework.chain_model([make(implement, case)])
    path = tmp_path / f"model{suffix_of(implement)}"
    framework.save_model(model, path, shapes)
    feeds = [feed * np.float32(factor) for feed in reference_inputs(shapes)]

    (found,) = framework.run_model(path, feeds)

    weights = weights_of(implement, name, model)
    (wanted,) = compute(name, [feeds[0][0]], weights, setting_of(implement, case))
    np.testing.assert_allclose(found[0], wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_test_operator_accepts_a_builtin_operator(implement: str, case: Case) -> None:
    make(implement, case).test_operator()


def test_test_operator_notices_a_wrong_shape(implement: str) -> None:
    operator = make(implement, Case("Conv", IMAGE))
    operator.get_output_shape = lambda: [1, 2, 3]
    with pytest.raises(ShapeError, match=r"says \[1, 2, 3\], but .* has the shape"):
        operator.test_operator()


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_no_weight_is_trivial_and_two_of_a_kind_differ(implement: str, name: str) -> None:
    framework = get_framework(implement)
    framework.seed_weights(1)
    shape = (16,) if name in ("FC", "MatMul") else (16, 5, 5)
    operators = [make(implement, Case(name, shape, (("COUT", 16),))) for _ in range(2)]
    both, _ = framework.chain_model(operators)

    weights = weights_of(implement, name, both)

    half = len(weights) // 2
    for one, other in zip(weights[:half], weights[half:], strict=True):
        assert np.abs(one - other).max() > 0.05
    for weight in weights:
        assert np.unique(weight).size == weight.size
        if weight.ndim == 1:
            assert np.abs(weight).min() >= 0.05
    if name == "BatchNorm":
        scale, _, _, variance = weights[:4]
        assert 0.5 <= scale.min() < scale.max() <= 1.5
        assert 0.5 <= variance.min() < variance.max() <= 1.5
    if name == "LayerNorm":
        assert 0.5 <= weights[0].min() < weights[0].max() <= 1.5
    if name == "PRelu":
        assert np.abs(weights[0]).max() < 1.0  # a slope, not a second gain


# --- what is refused; this needs no framework ----------------------------------------------------


@pytest.mark.parametrize("implement", IMPLEMENTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_shape_of_another_rank_is_refused(implement: str, name: str) -> None:
    wrong = [(3, 4), (2, 4, 5, 6), ()] + ([] if name in BOTH_RANKS else [VECTOR])
    for shape in wrong:
        with pytest.raises(ShapeError, match=rf"^{name.lower()} takes a .*3-D tensor, but \["):
            make(implement, Case(name, shape))


@pytest.mark.parametrize("implement", IMPLEMENTS)
def test_what_cannot_be_halved_is_refused(implement: str) -> None:
    with pytest.raises(ShapeError, match="must be even, but 5"):
        make(implement, Case("Split", (5, 4, 4)))
    with pytest.raises(OddSizeError, match=r"channelshuffle halves .* must be even, but 5"):
        make(implement, Case("ChannelShuffle", (5, 4, 4)))
    with pytest.raises(ShapeError, match="must be even, but 5"):
        make(implement, Case("Reshape", (5,)))
    assert make(implement, Case("Reshape", (5, 4, 4))).get_output_shape()


@pytest.mark.parametrize("implement", IMPLEMENTS)
@pytest.mark.parametrize("name", ["Conv", "DwConv", "MaxPool", "AvgPool"])
def test_a_kernel_that_does_not_fit_is_refused(implement: str, name: str) -> None:
    config = (("KERNEL_SIZE", 5), ("PADDING", "valid"))
    for shape in ((2, 4, 9), (2, 9, 4)):
        with pytest.raises(ShapeError, match="a kernel of 5 does not fit an input of 4"):
            make(implement, Case(name, shape, config)).get_output_shape()
    fitting = make(implement, Case(name, (2, 5, 5), config)).get_output_shape()
    assert sorted(fitting)[:2] == [1, 1]
