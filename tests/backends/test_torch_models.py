"""torch modules as ONNX files: the graph is the module's own, and so is what it computes."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import pytest

from nn_meter.builder.nn_modules import BaseOperator
from nn_meter.builder.nn_modules.torch import operators
from nn_meter.errors import OperatorError
from nn_meter.reference import reference_inputs

if find_spec("torch") is None:
    pytest.skip("needs torch", allow_module_level=True)

import torch

from nn_meter.builder.nn_modules.torch import exporting, models, parts

CONFIG = {"COUT": 6, "KERNEL_SIZE": 3, "PADDING": "same", "STRIDES": 1, "POOL_STRIDES": 2}
IMAGE = [4, 7, 8]

ONE_NODE = {
    "Conv": "Conv",
    "DwConv": "Conv",
    "ConvTrans": "ConvTranspose",
    "BatchNorm": "BatchNormalization",
    "MaxPool": "MaxPool",
    "AvgPool": "AveragePool",
    "Relu": "Relu",
    "Relu6": "Clip",
    "Sigmoid": "Sigmoid",
    "Reshape": "Reshape",
    "Add": "Add",
    "Concat": "Concat",
    "Flatten": "Flatten",
    "Split": "Split",
}


class Function(torch.nn.Module):
    """A function as a module; given layers are its own."""

    def __init__(self, function: Any, **layers: Any) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def save(tmp_path: Any, model: Any, *shapes: list[int]) -> onnx.ModelProto:
    path = tmp_path / "model.onnx"
    models.save_model(model, path, shapes)
    assert list(tmp_path.iterdir()) == [path]
    return onnx.load(path)


def node_types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def operator_model(name: str, **config: Any) -> tuple[Any, list[list[int]]]:
    return models.chain_model([getattr(operators, name)(IMAGE, CONFIG | config)])


@pytest.fixture
def only_torch_export(monkeypatch):
    """torch as it will be without its tracing exporter."""
    export = torch.onnx.export

    def without_tracing(*args: Any, dynamo: bool = True, **kwargs: Any) -> Any:
        if not dynamo:
            raise ValueError("dynamo=False is no longer supported")
        return export(*args, dynamo=True, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", without_tracing)


# --- the graph -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONE_NODE)
def test_an_operator_that_onnx_has_is_one_node(name, tmp_path):
    model, shapes = operator_model(name)
    assert node_types(save(tmp_path, model, *shapes)) == [ONE_NODE[name]]


def test_operators_that_onnx_has_not_are_their_parts(tmp_path):
    found = {
        name: node_types(save(tmp_path, *(lambda m, s: (m, *s))(*operator_model(name))))
        for name in ("Hswish", "SE", "GlobalAvgPool", "FC")
    }
    assert found == {
        "Hswish": ["Add", "Clip", "Mul", "Div"],
        "SE": ["GlobalAveragePool", "Conv", "Relu", "Conv", "HardSigmoid", "Mul"],
        "GlobalAvgPool": ["GlobalAveragePool", "Flatten"],
        "FC": ["MatMul", "Add"],
    }
    vector = models.chain_model([operators.FC([8], CONFIG)])
    assert node_types(save(tmp_path, vector[0], *vector[1])) == ["Gemm"]


@pytest.mark.parametrize("name", ["Conv", "DwConv", "ConvTrans", "MaxPool", "AvgPool"])
@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_a_stride_is_never_paid_with_a_node_more(name, kernel, tmp_path):
    for stride in (2, 3):
        model, shapes = operator_model(
            name, KERNEL_SIZE=kernel, STRIDES=stride, POOL_STRIDES=stride
        )
        assert node_types(save(tmp_path, model, *shapes)) == [ONE_NODE[name]]


def check_conv_bn_relu(tmp_path):
    chain = [
        operators.Conv(IMAGE, CONFIG),
        operators.BatchNorm([6, 7, 8], CONFIG),
        operators.Relu([6, 7, 8], CONFIG),
    ]
    model = save(tmp_path, *(lambda m, s: (m, *s))(*models.chain_model(chain)))
    assert node_types(model) == ["Conv", "BatchNormalization", "Relu"]
    return model


def test_batch_normalization_is_not_folded_into_the_convolution(tmp_path):
    check_conv_bn_relu(tmp_path)


def test_inputs_outputs_and_all_that_is_between_have_static_shapes(tmp_path):
    graph = check_conv_bn_relu(tmp_path).graph
    shapes = {
        info.name: [d.dim_value for d in info.type.tensor_type.shape.dim]
        for info in (*graph.input, *graph.value_info, *graph.output)
    }
    assert shapes["input_1"] == [1, 4, 7, 8]
    assert shapes["output_1"] == [1, 6, 7, 8]
    assert {name for node in graph.node for name in node.output} <= set(shapes)
    assert not any(tensor.external_data for tensor in graph.initializer)


def test_a_fresh_batch_normalization_has_its_weights_as_initializers(tmp_path):
    """Mean and offset are equal then, as are variance and scale: exporters share them by nodes."""
    layers = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3), torch.nn.BatchNorm2d(6))
    model = save(tmp_path, layers, IMAGE)
    assert node_types(model) == ["Conv", "BatchNormalization"]
    names = {tensor.name for tensor in model.graph.initializer}
    assert set(model.graph.node[1].input[1:]) <= names


def test_what_depends_on_no_input_is_an_initializer(tmp_path):
    def function(x: Any) -> Any:
        x = torch.nn.functional.pad(x, (1, 2, 0, 1))
        first, _ = torch.chunk(x, 2, dim=1)
        return first.reshape(first.shape[0], first.shape[1] // 2, -1) * torch.arange(3.0).sum()

    assert node_types(save(tmp_path, Function(function), IMAGE)) == [
        "Pad",
        "Slice",
        "Reshape",
        "Mul",
    ]


def test_dropout_and_training_are_off(tmp_path):
    layers = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.5)).train()
    assert node_types(save(tmp_path, layers, IMAGE)) == ["BatchNormalization"]


def test_mon_is_a_graph_of_five_nodes(tmp_path):
    built = parts.Parts(kernel_size=3, padding="same")
    x = built.dwconv(built.input(IMAGE))
    first = built.relu(built.relu(x))
    second = built.dwconv(built.relu(x, negative_slope=2.0))
    model = save(tmp_path, built.model([first, second]), IMAGE)
    assert node_types(model) == ["Conv", "Relu", "Relu", "LeakyRelu", "Conv"]
    root = model.graph.node[0].output[0]
    assert [root in node.input for node in model.graph.node] == [False, True, False, True, False]


# --- users' modules ------------------------------------------------------------------------------


def test_a_module_may_take_and_give_several_tensors(tmp_path):
    model = Function(lambda a, b: (a - b, [a * 2.0, (b.flatten(1),)]))
    path = tmp_path / "model.onnx"
    expected = models.save_model(model, path, [[3, 4], [3, 4]])

    feeds = reference_inputs([[3, 4], [3, 4]])
    outputs = models.run_model(path, feeds)

    a, b = feeds
    for found in (outputs, expected):
        for got, want in zip(found, [a - b, a * 2, b.reshape(1, 12)], strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6)
    graph = onnx.load(path).graph
    assert [value.name for value in graph.input] == ["input_1", "input_2"]
    assert [value.name for value in graph.output] == ["output_1", "output_2", "output_3"]


def test_values_that_are_no_numbers_are_values(tmp_path):
    (output,) = models.save_model(
        Function(lambda x: torch.sqrt(x) / 0.0), tmp_path / "model.onnx", [[50]]
    )
    assert np.isnan(output).any()
    assert np.isinf(output).any()


def test_an_input_that_nothing_takes_stays_an_input(tmp_path):
    model = save(tmp_path, Function(lambda a, b, c: a + c), [3], [4], [3])
    assert [value.name for value in model.graph.input] == ["input_1", "input_2", "input_3"]


def test_a_function_of_an_operator_may_hold_layers_of_its_own(tmp_path):
    class Mine(BaseOperator):
        def get_model(self) -> Any:
            layer = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Dropout(0.9))
            return lambda x: layer(x) + 1.0

    model, shapes = models.chain_model([Mine([5]), Mine([5])])
    assert node_types(save(tmp_path, model, *shapes)) == ["Gemm", "Add", "Gemm", "Add"]


def test_what_tracing_refuses_goes_the_other_way(tmp_path):
    function = Function(lambda x: torch.fft.fft(x).real)
    assert "DFT" in node_types(save(tmp_path, function, [8, 8]))


@pytest.mark.usefixtures("only_torch_export")
class TestWithoutTracing:
    def test_batch_normalization_is_not_folded_either(self, tmp_path):
        check_conv_bn_relu(tmp_path)

    @pytest.mark.parametrize("name", ["Split", "Relu6", "Hswish", "MaxPool"])
    def test_the_graph_is_as_clean(self, name, tmp_path):
        model, shapes = operator_model(name)
        assert node_types(save(tmp_path, model, *shapes)) == (
            ["Add", "Clip", "Mul", "Div"] if name == "Hswish" else [ONE_NODE[name]]
        )


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda x: x, "a torch model is a torch.nn.Module, not a function"),
        (Function(lambda x: x @ torch.ones(9, 9)), r"does not run on \[4, 7, 8\]: RuntimeError"),
        (Function(lambda x, y: x), "does not run on .*missing 1 required positional argument"),
        (Function(lambda x: {"out": x}), "lists or tuples of them, not a dict"),
        (Function(lambda x: ()), "gives no output"),
        (Function(lambda x: x + torch.rand_like(x)), "the exported model is another: output 1 dif"),
        (Function(torch.special.bessel_j0), "by tracing: .*bessel_j0.*; by torch.export: .*bessel"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_the_old_file_stays(model, reason, tmp_path, capfd):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(OperatorError, match=reason):
        models.save_model(model, path, [IMAGE])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert capfd.readouterr().out == ""


def test_an_exporter_that_changes_the_model_is_found_out(tmp_path, monkeypatch):
    def wrong(model: Any, inputs: Any, n_outputs: int) -> onnx.ModelProto:
        exported = exporting.by_tracing(model, inputs, n_outputs)
        exported.graph.node[0].input[:] = list(reversed(exported.graph.node[0].input))
        return exported

    monkeypatch.setattr(models, "EXPORTERS", {"wrongly": wrong})
    with pytest.raises(OperatorError, match="wrongly: the exported model is another"):
        save(tmp_path, Function(lambda a, b: a - b), [5], [5])


# --- quiet, reproducible, and late ---------------------------------------------------------------


def test_saving_says_nothing(tmp_path, capfd):
    def branches(x: Any) -> Any:  # of which the exporter would warn
        return x + 1 if x.shape[0] == 1 and bool((x.sum() != 0.5).item()) else x

    save(tmp_path, Function(branches), IMAGE)
    for kernel in (2, 3):
        model, shapes = operator_model("Conv", KERNEL_SIZE=kernel)
        save(tmp_path, model, *shapes)
    assert capfd.readouterr() == ("", "")


PROGRAM = """
import sys
from pathlib import Path
from nn_meter.builder.nn_modules.torch import models, operators
config = {"COUT": 6, "KERNEL_SIZE": 3, "PADDING": "same", "STRIDES": 1}
for _ in range(int(sys.argv[2])):
    models.seed_weights(5)
    made = [operators.Conv([4, 7, 8], config), operators.SE([6, 7, 8], config)]
    models.save_model(*[(m, Path(sys.argv[1]), s) for m, s in [models.chain_model(made)]][0])
"""


def test_every_process_writes_the_same_bytes(tmp_path):
    found = []
    for name, repeats in (("a.onnx", "1"), ("b.onnx", "3")):
        arguments = [sys.executable, "-c", PROGRAM, str(tmp_path / name), repeats]
        subprocess.run(arguments, check=True)
        found.append((tmp_path / name).read_bytes())
    assert found[0] == found[1]


def test_operators_need_no_torch_until_a_model_is_made():
    program = """
import sys
sys.modules["torch"] = None
from nn_meter.builder.nn_modules.frameworks import get_framework
from nn_meter.builder.nn_modules.torch import operators
from nn_meter.errors import NotInstalledError
conv = operators.Conv([4, 7, 8], {"COUT": 6, "KERNEL_SIZE": 3, "STRIDES": 1})
print(conv.get_output_shape())
for needs_torch in (conv.get_model, conv.test_operator, lambda: get_framework("torch")):
    try:
        needs_torch()
    except NotInstalledError as exc:
        print(exc)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    message = "torch is not installed; pip install 'nn-meter[torch]' brings it"
    assert found.stdout.splitlines() == ["[6, 7, 8]", message, message, message]
