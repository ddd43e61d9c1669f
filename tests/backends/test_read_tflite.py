"""TFLite files as graphs: made by the schema itself, field by field."""

from __future__ import annotations

import random

import numpy as np
import pytest

from nn_meter.errors import ModelFileError
from nn_meter.kernel_detector.readers import read_model

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
flatbuffers = pytest.importorskip("flatbuffers")

OPS = schema.BuiltinOperator
TYPES = schema.TensorType
IMAGE = [1, 8, 8, 3]
FLOAT = TYPES.FLOAT32


class Made:
    """A model that grows."""

    def __init__(self):
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.graph.inputs, self.graph.outputs = [], []
        self.model.subgraphs = [self.graph]

    def tensor(self, name, shape=IMAGE, kind=FLOAT, data=None):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name.encode(), list(shape), kind
        tensor.buffer = 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.asarray(data).tobytes(), np.uint8)
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def op(self, kind, inputs, outputs, options=None, custom=None):
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode = kind, min(kind, 127)
        code.customCode = custom
        self.model.operatorCodes.append(code)
        op = schema.OperatorT()
        op.opcodeIndex = len(self.model.operatorCodes) - 1
        op.inputs, op.outputs = inputs, outputs
        if options is not None:
            name = type(options).__name__.removesuffix("T")
            op.builtinOptionsType, op.builtinOptions = getattr(schema.BuiltinOptions, name), options
        self.graph.operators.append(op)

    def bytes(self):
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def conv_options(**said):
    options = schema.Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = schema.Padding.VALID, 2, 2
    options.fusedActivationFunction = schema.ActivationFunctionType.RELU6
    return options


@pytest.fixture
def made():
    """A convolution with an activation of its own, and a multiplication."""
    model = Made()
    x = model.tensor("x")
    w = model.tensor("w", [4, 3, 3, 3], data=np.zeros((4, 3, 3, 3), np.float32))
    c = model.tensor("c", [1, 3, 3, 4])
    k = model.tensor("k", [], data=np.float32(3))
    y = model.tensor("y", [1, 3, 3, 4])
    model.op(OPS.CONV_2D, [x, w, -1], [c], conv_options())
    model.op(OPS.MUL, [c, k], [y], schema.MulOptionsT())
    model.graph.inputs, model.graph.outputs = [x], [y]
    return model


@pytest.fixture
def read(tmp_path):
    def _read(made, **shapes):
        path = tmp_path / "model.tflite"
        path.write_bytes(made if isinstance(made, bytes) else made.bytes())
        return read_model(path, **shapes)

    return _read


def types(graph):
    return [op.type for op in graph.ops]


def test_ops_tensors_and_attributes_come_back(made, read):
    graph = read(made)
    assert (graph.name, graph.format, graph.layout) == ("model.tflite", "tflite", "channels_last")
    assert (graph.inputs, graph.outputs) == (("x",), ("y",))
    conv, mul = graph.ops
    assert (conv.name, conv.type) == ("CONV_2D_0", "CONV_2D")
    assert (conv.inputs, conv.outputs) == (("x", "w", ""), ("c",))
    assert conv.attributes["fused_activation_function"] == "RELU6"
    assert conv.attributes["padding"] == "VALID"
    assert (conv.attributes["stride_h"], conv.attributes["stride_w"]) == (2, 2)
    assert mul.attributes["fused_activation_function"] == "NONE"
    assert graph.shape("y") == (1, 3, 3, 4)
    assert graph.tensors["x"].dtype == "float32"
    assert graph.tensors["k"].value == 3
    assert graph.tensors["w"].is_constant
    assert not graph.tensors["c"].is_constant
    assert [(a.type, b.type, t) for a, b, t in graph.edges()] == [("CONV_2D", "MUL", "c")]


def test_an_open_batch_is_the_one_that_the_file_gives(made, read):
    made.graph.tensors[0].shapeSignature = [-1, 8, 8, 3]
    assert read(made).shape("x") == (1, 8, 8, 3)
    assert read(made, shapes={"x": (1, 8, 8, 3)}).shape("x") == (1, 8, 8, 3)
    with pytest.raises(ModelFileError, match="does not fit"):
        read(made, shapes={"x": (2, 8, 8, 3)})
    with pytest.raises(ModelFileError, match="no input 'z'"):
        read(made, shapes={"z": (1, 8, 8, 3)})


def test_large_constants_keep_their_shape_only(made, read):
    made.graph.tensors[1].shape = [64, 9, 9, 3]
    made.model.buffers[1].data = np.zeros(64 * 9 * 9 * 3 * 4, np.uint8)
    weight = read(made).tensors["w"]
    assert (weight.shape, weight.is_constant, weight.value) == ((64, 9, 9, 3), True, None)


def test_what_depends_on_constants_and_shapes_only_is_folded(made, read):
    half = made.tensor("half", [4], TYPES.FLOAT16, np.float16([1, 2, 3, 4]))
    full = made.tensor("full", [4])
    shape = made.tensor("shape", [4], TYPES.INT32)
    flat, out = made.tensor("flat", [1, 3, 3, 4]), made.tensor("out", [1, 3, 3, 4])
    made.op(OPS.DEQUANTIZE, [half], [full])
    made.op(OPS.SHAPE, [made.graph.outputs[0]], [shape])
    made.op(OPS.RESHAPE, [made.graph.outputs[0], shape], [flat])
    made.op(OPS.ADD, [flat, full], [out])
    made.graph.outputs = [out]
    graph = read(made)
    assert types(graph) == ["CONV_2D", "MUL", "RESHAPE", "ADD"]
    assert graph.tensors["full"].value.tolist() == [1, 2, 3, 4]
    assert graph.tensors["full"].dtype == "float32"
    assert graph.tensors["shape"].value.tolist() == [1, 3, 3, 4]


def test_custom_and_random_ops_stay(made, read):
    noise, out = made.tensor("noise", [1, 3, 3, 4]), made.tensor("out", [1, 3, 3, 4])
    size = made.tensor("size", [4], TYPES.INT32, np.int32([1, 3, 3, 4]))
    made.op(OPS.RANDOM_UNIFORM, [size], [noise])
    made.op(OPS.CUSTOM, [noise, made.graph.outputs[0]], [out], custom=b"Mine")
    made.graph.outputs = [out]
    assert types(read(made)) == ["CONV_2D", "MUL", "RANDOM_UNIFORM", "custom.Mine"]


def test_quantized_types_are_as_they_are(made, read):
    for tensor in made.graph.tensors:
        tensor.type = TYPES.INT8
    made.model.buffers[1].data = np.zeros(108, np.uint8)
    made.model.buffers[2].data = np.array([5], np.uint8)
    graph = read(made)
    assert {tensor.dtype for tensor in graph.tensors.values()} == {"int8"}
    assert graph.tensors["k"].value == 5
    made.graph.tensors[1].type = TYPES.INT4  # two elements share a byte
    made.model.buffers[1].data = np.zeros(54, np.uint8)
    assert (read(made).tensors["w"].dtype, read(made).tensors["w"].value) == ("int4", None)


def test_tensors_without_names_of_their_own_get_some(made, read):
    for tensor in made.graph.tensors:
        tensor.name = b"same"
    made.graph.tensors[0].name = None
    assert len(read(made).tensors) == 5


# --- what cannot be read


def two_subgraphs(made):
    other = schema.SubGraphT()
    other.name, made.graph.name = b"body", b"main"
    made.model.subgraphs = [made.graph, other]


def a_cycle(made):
    made.graph.operators[0].inputs = [4, 1, -1]


def change(path, value):
    def _change(made):
        *way, last = path.split(".")
        place = made
        for step in way:
            place = place[int(step)] if step.isdigit() else getattr(place, step)
        setattr(place, last, value)

    return _change


HOSTILE = {
    "subgraphs": (two_subgraphs, r"2 subgraphs \('main', 'body'\)"),
    "cycle": (a_cycle, "cycle: 'CONV_2D_0' -> 'MUL_1' -> 'CONV_2D_0'"),
    "no subgraph": (change("model.subgraphs", []), "empty"),
    "no outputs": (change("graph.outputs", []), "no outputs"),
    "no such tensor": (change("graph.outputs", [99]), "by a number that none has"),
    "no such code": (change("graph.operators.0.opcodeIndex", 9), "the code 9"),
    "no such buffer": (change("graph.tensors.1.buffer", 99), "the buffer 99"),
    "short buffer": (change("graph.tensors.1.shape", [4, 3, 3, 30]), "should hold"),
    "huge": (change("graph.tensors.4.shape", [2**30] * 3), "too large"),
    "nobody writes": (change("graph.inputs", []), "'x', which nobody writes"),
}


@pytest.mark.parametrize(("spoil", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_model_that_cannot_be_is_refused(made, read, spoil, words):
    spoil(made)
    with pytest.raises(ModelFileError, match=rf"model\.tflite: .*{words}"):
        read(made)


@pytest.mark.parametrize("data", [b"", b"no model at all", bytes(100), b"\xff\xff\xff\x7fTFL3" * 9])
def test_a_file_that_is_no_model_is_refused(read, data):
    with pytest.raises(ModelFileError, match=r"model\.tflite: "):
        read(data)


def test_damaged_and_truncated_files_never_end_in_a_foreign_error(made, read):
    data = made.bytes()
    chance = random.Random(1)
    refused = 0
    for _ in range(500):
        damaged = bytearray(data[: chance.randrange(1, len(data))])
        if chance.random() < 0.7:
            damaged = bytearray(data)
            for _ in range(chance.randint(1, 4)):
                damaged[chance.randrange(len(data))] = chance.choice([0, 1, 127, 128, 255])
        try:
            read(bytes(damaged))
        except ModelFileError:
            refused += 1
    assert refused > 150
