"""ONNX files as graphs: what is folded, which shapes are known, what is refused."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from nn_meter.errors import ModelFileError, NNMeterError
from nn_meter.kernel_detector.readers import SUFFIXES, read_model
from nn_meter.kernel_detector.readers.common import KEPT_ELEMENTS

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
# ops after folding, and edges with Dropout contracted
LIGHT_MODELS = {
    "bvlc_alexnet": (24, 21),
    "zfnet512": (22, 21),
    "densenet121": (668, 725),
    "inception_v1": (143, 168),
    "inception_v2": (371, 398),
    "resnet50": (176, 191),
    "shufflenet": (203, 218),
    "squeezenet": (66, 72),
    "vgg19": (46, 43),
}
FLOAT = TensorProto.FLOAT
IMAGE = [1, 3, 8, 8]


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def value(name, shape=IMAGE, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


@pytest.fixture
def write(tmp_path):
    """Write a model of nodes; its input is ``x``, its output ``y``."""

    def _write(nodes, *, constants=(), inputs=None, outputs=("y",), opset=17, **model):
        graph = helper.make_graph(
            nodes,
            "graph",
            inputs if inputs is not None else [value("x")],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            list(constants),
        )
        opsets = [helper.make_opsetid("", opset), *model.pop("opsets", ())]
        made = helper.make_model(graph, opset_imports=opsets, **model)
        path = tmp_path / "model.onnx"
        path.write_bytes(made.SerializeToString())
        return path

    return _write


def types(graph):
    return [op.type for op in graph.ops]


@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_the_light_models_have_the_ops_and_edges_that_are_known(name):
    graph = read_model(LIGHT / f"light_{name}.onnx")
    dropouts = [op for op in graph.ops if op.type == "Dropout"]
    edges = len(list(graph.edges())) - len(dropouts)
    assert (len(graph.ops), edges) == LIGHT_MODELS[name]
    assert all(graph.shape(op.outputs[0]) for op in graph.ops)
    assert {op.name for op in graph.ops} == {op.name for op in graph.makers.values()}


def test_large_weights_are_not_made():
    graph = read_model(LIGHT / "light_vgg19.onnx")
    weights = [tensor for tensor in graph.tensors.values() if tensor.is_constant]
    sizes = [int(np.prod(tensor.shape)) for tensor in weights]
    assert max(sizes) > 10**8
    for tensor, size in zip(weights, sizes, strict=True):
        assert (tensor.value is not None) == (size <= KEPT_ELEMENTS)


def test_ops_tensors_and_attributes_come_back(write):
    path = write(
        [
            node("Conv", "x w", "c", name="conv", pads=[1, 1, 1, 1], group=1),
            node("Clip", "c low high", "y", name="clip"),
        ],
        constants=[
            constant("w", np.zeros((4, 3, 3, 3), np.float32)),
            constant("low", np.float32(0)),
            constant("high", np.float32(6)),
        ],
    )
    graph = read_model(path)
    assert graph.name == "model.onnx"
    assert (graph.format, graph.layout) == ("onnx", "channels_first")
    assert (graph.inputs, graph.outputs) == (("x",), ("y",))
    conv, clip = graph.ops
    assert (conv.name, conv.type, conv.inputs, conv.outputs) == ("conv", "Conv", ("x", "w"), ("c",))
    assert conv.attributes == {"pads": [1, 1, 1, 1], "group": 1}
    assert graph.shape("c") == (1, 4, 8, 8)
    assert graph.tensors["c"].dtype == "float32"
    assert not graph.is_constant("c")
    assert graph.tensors[clip.inputs[2]].value == 6


def test_weights_among_the_inputs_are_constants(write):
    path = write(
        [node("Add", "x w", "y")],
        constants=[constant("w", np.ones(8, np.float32))],
        inputs=[value("x"), value("w", [8])],
        ir_version=3,
    )
    graph = read_model(path)
    assert graph.inputs == ("x",)
    assert graph.is_constant("w")


def test_a_chain_of_shapes_folds(write):
    path = write(
        [
            node("Relu", "x", "r"),
            node("Shape", "r", "s"),
            node("Gather", "s zero", "batch", axis=0),
            node("Unsqueeze", "batch axes", "first"),
            node("Concat", "first rest", "sizes", axis=0),
            node("Reshape", "r sizes", "flat"),
            node("Shape", "flat", "s2"),
            node("Slice", "s2 one two", "width"),
            node("ConstantOfShape", "width", "filled", value=constant("v", np.float32([2]))),
            node("Mul", "flat filled", "y"),
        ],
        constants=[
            constant("zero", np.int64(0)),
            constant("axes", np.int64([0])),
            constant("rest", np.int64([-1])),
            constant("one", np.int64([1])),
            constant("two", np.int64([2])),
        ],
    )
    graph = read_model(path)
    assert types(graph) == ["Relu", "Reshape", "Mul"]
    assert graph.shape("y") == (1, 192)
    assert graph.tensors["sizes"].value.tolist() == [1, -1]
    assert graph.tensors["filled"].value.tolist() == [2] * 192


def test_a_constant_in_the_type_of_what_is_computed_is_a_constant(write):
    model = write(
        [node("CastLike", "w x", "c"), node("Mul", "x c", "y")],
        constants=[constant("w", np.float64(2.5))],
    )
    graph = read_model(model)
    assert types(graph) == ["Mul"]
    assert graph.tensors["c"].value == 2.5
    assert graph.tensors["c"].dtype == "float32"


def test_what_is_computed_of_large_constants_keeps_its_shape(write):
    path = write(
        [node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "x t", "y")],
        constants=[constant("w", np.zeros((100, 64), np.float32))],
        inputs=[value("x", [2, 64])],
    )
    graph = read_model(path)
    assert types(graph) == ["MatMul"]
    assert (graph.shape("t"), graph.tensors["t"].value) == ((64, 100), None)
    assert graph.shape("y") == (2, 100)


@pytest.mark.parametrize("sizes", [[2**20, 2**19], [2, 2]])
def test_a_constant_of_any_size_is_folded_without_being_made(write, sizes):
    path = write(
        [
            node("ConstantOfShape", "sizes", "big"),
            node("Shape", "big", "s"),
            node("Add", "x s", "y"),
        ],
        constants=[constant("sizes", np.int64(sizes))],
        inputs=[value("x", [2], TensorProto.INT64)],
    )
    graph = read_model(path)
    assert types(graph) == ["Add"]
    assert graph.tensors["s"].value.tolist() == sizes


def test_many_constants_are_not_all_kept(write, monkeypatch):
    monkeypatch.setattr("nn_meter.kernel_detector.readers.onnx_folding._KEPT_IN_ALL", 250)
    nodes, last = [], "x"
    for k in range(4):
        nodes.append(node("ConstantOfShape", "sizes", f"c{k}"))
        nodes.append(node("Add", f"{last} c{k}", "y" if k == 3 else f"a{k}"))
        last = f"a{k}"
    path = write(nodes, constants=[constant("sizes", np.int64([100]))], inputs=[value("x", [100])])
    tensors = read_model(path).tensors
    assert [tensors[f"c{k}"].value is not None for k in range(4)] == [True, True, False, False]
    assert all(tensors[f"c{k}"].shape == (100,) for k in range(4))


def test_random_ops_and_foreign_ops_stay(write):
    path = write(
        [
            node("RandomNormal", "", "noise", shape=[8]),
            node("Strange", "w", "odd", domain="my.domain"),
            node("Add", "noise odd", "sum"),
            node("Add", "x sum", "y"),
        ],
        constants=[constant("w", np.ones(8, np.float32))],
        opsets=[helper.make_opsetid("my.domain", 1)],
    )
    assert types(read_model(path)) == ["RandomNormal", "my.domain.Strange", "Add", "Add"]


def test_a_shape_that_depends_on_values_is_not_known(write):
    path = write([node("NonZero", "x", "n"), node("Relu", "x", "y")], outputs=["n", "y"])
    graph = read_model(path)
    assert graph.shape("n") is None
    assert graph.tensors["n"].dtype == "int64"


def test_ops_that_no_output_needs_are_left_out(write):
    path = write([node("Relu", "x", "y"), node("Sigmoid", "x", "unused")])
    assert types(read_model(path)) == ["Relu"]


def test_unnamed_and_equally_named_nodes_get_names_of_their_own(write):
    path = write(
        [
            node("Relu", "x", "a", name="same"),
            node("Relu", "a", "b"),
            node("Relu", "b", "c", name="same"),
            node("Relu", "c", "y", name="Relu_1"),
        ]
    )
    names = [op.name for op in read_model(path).ops]
    assert names == ["same", "Relu_1_1", "same_1", "Relu_1"]
    assert names == [op.name for op in read_model(path).ops]


def test_nodes_in_any_order_are_put_in_one_that_works(write):
    path = write([node("Relu", "b", "y"), node("Sigmoid", "a", "b"), node("Tanh", "x", "a")])
    assert types(read_model(path)) == ["Tanh", "Sigmoid", "Relu"]


def test_functions_of_the_model_are_put_in_their_places(write):
    swish = helper.make_function(
        "mine",
        "Swish",
        ["a"],
        ["b"],
        [node("Sigmoid", "a", "s"), node("Mul", "a s", "b")],
        [helper.make_opsetid("", 17)],
    )
    path = write(
        [node("Swish", "x", "m", domain="mine"), node("Add", "m w", "y")],
        constants=[constant("w", np.ones(8, np.float32))],
        opsets=[helper.make_opsetid("mine", 1)],
        functions=[swish],
    )
    graph = read_model(path)
    assert types(graph) == ["Sigmoid", "Mul", "Add"]
    assert graph.shape("y") == tuple(IMAGE)
    assert graph.tensors["w"].value.tolist() == [1] * 8


@pytest.mark.parametrize("opset", [1, 6, 7, 13, onnx.defs.onnx_opset_version()])
def test_old_and_new_opsets(write, opset):
    extra = {"broadcast": 1, "axis": 1} if opset < 7 else {}
    shape = [3] if opset < 7 else [3, 1, 1]
    path = write(
        [node("Add", "x w", "a", **extra), node("Relu", "a", "y")],
        constants=[constant("w", np.ones(shape, np.float32))],
        opset=opset,
    )
    graph = read_model(path)
    assert types(graph) == ["Add", "Relu"]
    assert graph.shape("y") == tuple(IMAGE)


# --- dynamic inputs


@pytest.fixture
def dynamic(write):
    return write([node("Relu", "input", "y")], inputs=[value("input", ["n", 3, None, None])])


def test_an_open_shape_asks_for_one(dynamic):
    with pytest.raises(ModelFileError, match=r"input 'input'.*--shape input=1,3,224,224"):
        read_model(dynamic)


def test_a_shape_is_taken(dynamic):
    graph = read_model(dynamic, shapes={"input": (2, 3, 5, 7)})
    assert graph.shape("y") == (2, 3, 5, 7)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"other": (1, 3, 8, 8)}, "no input 'other'; its inputs: 'input'"),
        ({"input": (1, 3, 8)}, "4 dimensions"),
        ({"input": (1, 4, 8, 8)}, "does not fit"),
        ({"input": (1, 3, 0, 8)}, "whole numbers above 0"),
        ({"input": (1, 3, 2**60, 8)}, "too large"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(dynamic, shapes, words):
    with pytest.raises(ModelFileError, match=words):
        read_model(dynamic, shapes=shapes)


def test_a_shape_that_a_node_cannot_take_is_refused(write):
    path = write(
        [node("MatMul", "x w", "y", name="product")],
        constants=[constant("w", np.ones((8, 4), np.float32))],
        inputs=[value("x", ["n", "k"])],
    )
    with pytest.raises(ModelFileError, match=r"'product' \(MatMul\) cannot take 2x9 and 8x4"):
        read_model(path, shapes={"x": (2, 9)})


# --- external data


def external(tensor, location, **place):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, said in {"location": location, **place}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(said)
    return tensor


def test_external_data_is_read_from_the_models_folder(write, tmp_path):
    (tmp_path / "sub").mkdir()
    weights = np.arange(8, dtype=np.float32)
    (tmp_path / "sub" / "w.bin").write_bytes(b"1234" + weights.tobytes())
    tensor = external(constant("w", weights), "sub/w.bin", offset=4, length=32)
    graph = read_model(write([node("Add", "x w", "y")], constants=[tensor]))
    assert graph.tensors["w"].value.tolist() == weights.tolist()


@pytest.mark.parametrize(
    ("location", "place", "words"),
    [
        ("../outside.bin", {}, r"'\.\./outside\.bin'.*own folder"),
        ("/etc/hostname", {}, "own folder"),
        ("link.bin", {}, "own folder"),
        ("", {}, "own folder"),
        ("missing.bin", {}, "no such file"),
        ("short.bin", {}, "needs 32 bytes and the file has 8"),
        ("short.bin", {"offset": 2**60}, "needs 32 bytes"),
        ("short.bin", {"offset": -8}, "needs 32 bytes"),
        ("short.bin", {"offset": "first"}, "no number"),
        ("\0", {}, "no path"),
    ],
)
def test_external_data_that_is_not_there_or_elsewhere_is_refused(
    write, tmp_path, location, place, words
):
    outside = tmp_path.parent / "outside.bin"
    outside.write_bytes(bytes(32))
    (tmp_path / "link.bin").symlink_to(outside)
    (tmp_path / "short.bin").write_bytes(bytes(8))
    tensor = external(constant("w", np.zeros(8, np.float32)), location, **place)
    path = write([node("Add", "x w", "y")], constants=[tensor])
    with pytest.raises(ModelFileError, match=f"model.onnx.*{words}"):
        read_model(path)


# --- what cannot be read


def branch(name):
    return helper.make_graph(
        [node("Constant", "", name, value_float=1.0)], name, [], [value(name, [])]
    )


def test_control_flow_is_refused_by_the_nodes_name(write):
    path = write(
        [node("If", "x", "y", name="choose", then_branch=branch("a"), else_branch=branch("b"))],
        inputs=[value("x", [], TensorProto.BOOL)],
    )
    with pytest.raises(ModelFileError, match=r"node 'choose' is a If.*control flow"):
        read_model(path)


def test_a_cycle_is_named(write):
    path = write(
        [
            node("Relu", "x", "a", name="before"),
            node("Add", "a d", "b", name="one"),
            node("Relu", "b", "c", name="two"),
            node("Relu", "c", "d", name="three"),
            node("Relu", "d", "y", name="behind"),
        ]
    )
    with pytest.raises(ModelFileError, match="'one' -> 'two' -> 'three' -> 'one'"):
        read_model(path)


def nested_functions(calls):
    """Ten functions, each of which calls the next one some times."""
    made = []
    for depth in range(10):
        body = [node(f"F{depth + 1}", f"a{k}", f"a{k + 1}", domain="f") for k in range(calls)]
        if depth == 9:
            body = [node("Relu", f"a{k}", f"a{k + 1}") for k in range(calls)]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
        made.append(helper.make_function("f", f"F{depth}", ["a0"], [f"a{calls}"], body, opsets))
    return made


def endless_functions():
    opsets = [helper.make_opsetid("f", 1)]
    return [
        helper.make_function("f", "F0", ["a"], ["b"], [node("F1", "a", "b", domain="f")], opsets),
        helper.make_function("f", "F1", ["a"], ["b"], [node("F0", "a", "b", domain="f")], opsets),
    ]


@pytest.mark.parametrize(
    ("functions", "words"),
    [(nested_functions(10), "would have .* nodes"), (endless_functions(), "calls itself")],
    ids=["many", "endless"],
)
def test_functions_that_become_too_much_are_refused(write, functions, words):
    path = write(
        [node("F0", "x", "y", domain="f")],
        opsets=[helper.make_opsetid("f", 1)],
        functions=functions,
    )
    with pytest.raises(ModelFileError, match=words):
        read_model(path)


def huge(name="w"):
    return TensorProto(name=name, dims=[2**60], data_type=FLOAT)


def short(name="w"):
    return TensorProto(name=name, dims=[8, 8], data_type=FLOAT, raw_data=bytes(8))


def unknown_type(name="w"):
    return TensorProto(name=name, dims=[1], data_type=999, raw_data=bytes(8))


HOSTILE = {
    "nobody writes": dict(nodes=[node("Relu", "nothing", "y", name="r")]),
    "two writers": dict(nodes=[node("Relu", "x", "y"), node("Tanh", "x", "y")]),
    "no output": dict(nodes=[node("Relu", "x", "z")]),
    "no outputs": dict(nodes=[node("Relu", "x", "z")], outputs=()),
    "huge weight": dict(nodes=[node("Add", "x w", "y")], constants=[huge()]),
    "short weight": dict(nodes=[node("Add", "x w", "y")], constants=[short()]),
    "unknown type": dict(nodes=[node("Add", "x w", "y")], constants=[unknown_type()]),
    "same weights": dict(
        nodes=[node("Add", "x w", "y")], constants=[constant("w", np.ones(8, np.float32))] * 2
    ),
    "huge input": dict(nodes=[node("Relu", "x", "y")], inputs=[value("x", [2**30, 2**30])]),
    "same inputs": dict(nodes=[node("Relu", "x", "y")], inputs=[value("x"), value("x")]),
    "huge constant": dict(
        nodes=[node("ConstantOfShape", "w", "c"), node("Add", "x c", "y")],
        constants=[constant("w", np.int64([2**60]))],
    ),
    "many dimensions": dict(
        nodes=[node("ConstantOfShape", "w", "c"), node("Add", "x c", "y")],
        constants=[constant("w", np.int64([2] * 4000))],
    ),
    "a size below 0": dict(
        nodes=[node("ConstantOfShape", "w", "c"), node("Add", "x c", "y")],
        constants=[constant("w", np.int64([-1]))],
    ),
    "huge tile": dict(
        nodes=[node("Tile", "w n", "c"), node("Add", "x c", "y")],
        constants=[constant("w", np.ones(4000, np.float32)), constant("n", np.int64([2**50]))],
    ),
    "no inputs of a Conv": dict(nodes=[node("Conv", "x", "y")]),
    "stride 0": dict(nodes=[node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[0, 0])]),
    "empty Constant": dict(nodes=[node("Constant", "", "c"), node("Add", "x c", "y")]),
    "newer opset": dict(nodes=[node("Relu", "x", "y")], opset=2**40),
    "opset 0": dict(nodes=[node("Relu", "x", "y")], opset=0),
}


@pytest.mark.parametrize("made", HOSTILE.values(), ids=HOSTILE)
def test_a_model_that_cannot_be_is_refused_at_once(write, made):
    path = write(**made)
    start_s = time.process_time()
    with pytest.raises(ModelFileError, match=r"model\.onnx: "):
        read_model(path)
    assert time.process_time() - start_s < 5


def deep_model():
    """A graph in an attribute of a node of a graph, and so on, as bytes: onnx makes none such."""

    def field(number, data):
        size, varint = len(data), b""
        while size > 127:
            varint += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + varint + bytes([size]) + data

    graph = b""
    for _ in range(2000):
        graph = field(1, field(5, field(6, graph)))
    return b"\x08\x08" + field(7, graph)


FILES = {
    "empty": b"",
    "text": b"this is no model",
    "zeros": bytes(100),
    "noise": random.Random(0).randbytes(1000),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(50),
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_a_file_that_is_no_model_is_refused(tmp_path, data):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"model\.onnx: "):
        read_model(path)


def test_nesting_without_end_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(deep_model())
    with pytest.raises(ModelFileError, match=r"model\.onnx: "):
        read_model(path)


def test_a_truncated_file_never_ends_in_a_foreign_error(tmp_path):
    data = (LIGHT / "light_bvlc_alexnet.onnx").read_bytes()
    path = tmp_path / "model.onnx"
    for size in range(1, len(data), 97):
        path.write_bytes(data[:size])
        with pytest.raises(ModelFileError, match=r"model\.onnx: "):
            read_model(path)


def test_a_damaged_file_never_ends_in_a_foreign_error(tmp_path):
    data = (LIGHT / "light_squeezenet.onnx").read_bytes()
    path = tmp_path / "model.onnx"
    chance = random.Random(1)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 5)):
            damaged[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            read_model(path)
        except ModelFileError:
            refused += 1
    assert refused > 50


def test_a_folder_a_pipe_and_nothing_are_refused(tmp_path):
    with pytest.raises(ModelFileError, match="no such file"):
        read_model(tmp_path / "nothing.onnx")
    with pytest.raises(ModelFileError, match="no SavedModel"):
        read_model(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelFileError, match="no regular file"):
        read_model(tmp_path / "pipe.onnx")


@pytest.mark.parametrize("name", ["model.pb", "model", "model.onnx.txt"])
def test_an_unknown_suffix_says_what_can_be_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelFileError, match="SavedModel") as refused:
        read_model(tmp_path / name)
    assert all(suffix in str(refused.value) for suffix in SUFFIXES)


def test_importing_the_face_imports_no_onnx():
    code = (
        "import sys, nn_meter, nn_meter.kernel_detector.readers;"
        "sys.exit(any(name in sys.modules for name in ('onnx', 'tensorflow', 'ai_edge_litert')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_errors_exit_code_is_its_own():
    kinds = NNMeterError.__subclasses__()
    assert len({kind.exit_code for kind in kinds}) == len(kinds)


# --- any graph


@st.composite
def _graphs(draw):
    """Nodes that read what is there before them, of ops that keep the shape."""
    nodes = []
    for place in range(draw(st.integers(1, 12))):
        there = ["x", *(f"t{k}" for k in range(place))]
        op = draw(st.sampled_from(["Relu", "Sigmoid", "Add", "Mul", "Sum", "Identity"]))
        count = {"Add": 2, "Mul": 2, "Sum": 3}.get(op, 1)
        reads = [draw(st.sampled_from(there)) for _ in range(count)]
        name = draw(st.sampled_from(["", f"n{place}"]))
        nodes.append(helper.make_node(op, reads, [f"t{place}"], name=name))
    order = draw(st.permutations(range(len(nodes))))
    return nodes, order


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=_graphs())
def test_any_graph_comes_back_with_its_ops_and_edges(write, made):
    nodes, order = made
    read = {tensor for each in nodes for tensor in each.input}
    outputs = [each.output[0] for each in nodes if each.output[0] not in read]
    graph = read_model(write([nodes[place] for place in order], outputs=outputs))
    ops = {op.outputs[0]: op for op in graph.ops}
    assert len({op.name for op in graph.ops}) == len(nodes)
    for each in nodes:
        op = ops[each.output[0]]
        assert (op.type, list(op.inputs)) == (each.op_type, list(each.input))
        assert not each.name or op.name == each.name
        assert graph.shape(each.output[0]) == tuple(IMAGE)
    found = {(maker.outputs[0], reader.outputs[0]) for maker, reader, _ in graph.edges()}
    edges = {(t, each.output[0]) for each in nodes for t in each.input if t != "x"}
    assert found == edges
    places = {op.outputs[0]: place for place, op in enumerate(graph.ops)}
    assert all(places[maker] < places[reader] for maker, reader in found)


def test_reading_takes_time_in_proportion_to_the_nodes(write):
    def seconds(count):
        nodes = [node("Relu", f"t{k}", f"t{k + 1}", name="same") for k in range(count)]
        path = write(nodes, inputs=[value("t0")], outputs=[f"t{count}"])
        start_s = time.process_time()
        assert len(read_model(path).ops) == count
        return time.process_time() - start_s

    seconds(100)
    assert seconds(16_000) < 20 * seconds(2_000)
