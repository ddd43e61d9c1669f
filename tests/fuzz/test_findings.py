"""What fuzzing found, and what was found by looking: each file once did harm, or might have."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import fuzz_data
import fuzz_onnx
import fuzz_prints
import fuzz_tflite
import numpy as np
import pytest
import yaml
from fuzz_readers import READERS
from fuzz_running import limited_memory, run
from onnx import TensorProto, helper, numpy_helper

from nn_meter.bounded import parse_json, read_file
from nn_meter.builder.config import read_yaml
from nn_meter.builder.nn_modules.info import hash_model, info_file, read_info
from nn_meter.builder.profiling.recorded import find_files
from nn_meter.builder.profiling.results import read_testcases
from nn_meter.builder.workspace import read_json
from nn_meter.errors import NNMeterError, ResultFileError

pytestmark = pytest.mark.timeout(300)

LAUGHS = fuzz_data._LAUGHS
NUMBERS = "\t 0.1\t 0.1\t 1%\t 1%\t 0\t"
LONG_S = 30.0  # a test says nothing of speed, only that there is an end
TITLE = "=" * 30 + " Run Order " + "=" * 30 + "\n"


@pytest.fixture
def read(tmp_path):
    """Give a file to a reader; it has to be refused, or read within limits."""

    def _read(reader: str, name: str, data: bytes | str, *, refused: bool | None = True):
        (tmp_path / "in").mkdir(exist_ok=True)
        path = tmp_path / "in" / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        known = READERS[reader]
        function = known.prepare(tmp_path)
        with limited_memory():
            outcome = run(function, path, names_file=known.names_file, most_s=LONG_S)
        assert not outcome.finding, outcome
        assert refused is None or outcome.refused == refused, outcome
        return outcome

    return _read


# --- files that are none -------------------------------------------------------------------------

PLACES = {
    "configuration": "tflite.yaml",
    "registration": "operator.yaml",
    "rules": "rules.json",
    "onnx": "model.onnx",
    "tflite": "model.tflite",
    "results": "results.json",
    "prints": "p.txt",
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("kind", ["pipe", "zeros", "memory", "folder"])
def test_a_pipe_and_a_device_are_neither_waited_for_nor_read(tmp_path, name, kind):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / PLACES[name]
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"zeros": "/dev/zero", "memory": "/proc/self/mem"}[kind])
    known = READERS[name]
    outcome = run(known.prepare(tmp_path), path, most_s=LONG_S)
    assert outcome.refused, outcome
    assert not outcome.finding, outcome


@pytest.mark.parametrize("suffix", [".txt", ".xml", ".json", ".onnx"])
def test_no_print_is_waited_for(tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    os.mkfifo(path)
    outcome = run(READERS["prints"].prepare(tmp_path), path, most_s=LONG_S)
    assert outcome.refused, outcome


@pytest.mark.parametrize("name", [n for n in PLACES if n not in ("onnx", "tflite")])
def test_a_file_of_gigabytes_is_not_read(tmp_path, name):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / PLACES[name]
    with path.open("wb") as file:
        file.truncate(2**33)
    with limited_memory():
        outcome = run(READERS[name].prepare(tmp_path), path, most_s=LONG_S)
    assert outcome.refused, outcome
    assert not outcome.finding, outcome


def test_a_file_is_read_whole_whatever_size_it_says(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_file(path, 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_file(path, 4)
    assert read_file(Path("/proc/self/status"), 2**16).startswith(b"Name:")


def test_no_model_of_a_hand_written_list_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.onnx")
    (tmp_path / "endless.onnx").symlink_to("/dev/zero")
    for name in ("model.onnx", "endless.onnx"):
        with pytest.raises(ResultFileError, match=rf"{name}: .*no regular file"):
            hash_model(tmp_path / name)
        with pytest.raises(ResultFileError, match=rf"{name}: is no regular file"):
            find_files([tmp_path / name], None)


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e999", "-1e999", "NaN", "Infinity", "[" * 10**5, "9" * 5000])
def test_what_python_takes_for_json_and_is_none(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
    assert parse_json("[1e3, -0.5, 7]") == [1000.0, -0.5, 7]


def test_many_values_in_little_text_do_not_fill_the_memory(read):
    read("rules", "rules.json", '{"a": [' + "[]," * 20_000_000 + "1]}")


def test_a_warning_names_some_of_many_operators(read, caplog):
    rules = {f"BF_conv_op{n}": {"obey": True} for n in range(3000)}
    read("rules", "rules.json", json.dumps(rules), refused=False)
    assert "and 2980 more" in caplog.text
    assert max(len(record.getMessage()) for record in caplog.records) < 500


def test_infinite_sizes_in_what_is_known_of_a_model(tmp_path):
    model = tmp_path / "m.onnx"
    info_file(model).parent.mkdir()
    info_file(model).write_text('{"key": "k", "sha256": "s", "shapes": [[1e999]], "outputs": []}')
    assert read_info(model) is None
    with pytest.raises(ResultFileError, match=r"m\.onnx\.json: .*1e999 is no number"):
        read_json(info_file(model), "info")


@pytest.mark.parametrize("shape", [[2**60], [2**21, 2**21], [1, 2**41, 1]])
def test_shapes_that_no_memory_holds(shape):
    cases = {"BF_conv_relu": {"block": {"model": "m.onnx", "shapes": [shape]}}}
    with pytest.raises(ResultFileError, match=r"BF_conv_relu: block: .*no memory"):
        read_testcases(cases)


# --- YAML ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("{!!set {a}: 1}", "? !!omap [a: 1]\n: 1", "a: !!python/object/apply:os.getcwd []"),
        *("a: *b", "a: &a [*a]\nb: &b {<<: *b}", "[" * 1000, "a: 1\na: 2", "a: 2022-99-99"),
        *("a: \0", "{a: 1, [b]: 2}", LAUGHS),
    ],
)
def test_yaml_that_is_refused(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(NNMeterError, match=r"a\.yaml: "):
        read_yaml(path)


@pytest.mark.parametrize("key", ["HW", "CIN", "COUT", "SHAPE_1D", "KERNEL_SIZE", "EPS_ALPHA"])
@pytest.mark.parametrize("value", [str(2**61), "0x" + "f" * 9000, ".inf", "-1", "1:" * 9])
def test_numbers_that_no_model_can_have(read, key, value):
    said = read("configuration", "ruletest.yaml", f"{key}: {value}").said
    assert key in said


@pytest.mark.parametrize("key", fuzz_data._ITEM)
def test_long_words_in_a_meta_file(read, key):
    item = {**fuzz_data._ITEM, key: "x" * 200_000}
    assert len(read("registration", "operator.yaml", yaml.safe_dump(item)).said) < 500


# --- prints --------------------------------------------------------------------------------------

SLOW = {
    "a line of blanks": TITLE + "x" + " " * 19_000 + "\n",
    "many of them": TITLE + ("x" + " " * 9_000 + "\n") * 800,
    "a title that does not end": "=" * 2**22,
    "a title without words": "=====" + " " * 2**22,
    "a number of many digits": f"{TITLE}A{NUMBERS}{'9' * 6000}\t[a]:0\n",
    "calls without end": TITLE + "".join(f"A{NUMBERS}999\t[a]:{n}\n" for n in range(5000)),
}


@pytest.mark.parametrize("text", SLOW.values(), ids=SLOW)
def test_a_print_of_litert_takes_time_in_proportion_to_its_size(read, text):
    read("prints", "p.txt", text)


def test_a_print_of_tensorrt_takes_time_in_proportion_to_its_size(read):
    layers = [fuzz_prints._layer("l", "A", [f"{n}" for n in range(30_000)], ["y"])]
    engine = {"Layers": layers, "Bindings": [f"{n}" for n in reversed(range(30_000))]}
    read("prints", "p.json", json.dumps(engine), refused=False)


@pytest.mark.parametrize("kind", [0, 99])
def test_an_attribute_of_no_type_in_a_print_of_onnxruntime(read, kind):
    node = helper.make_node("Relu", ["x"], ["y"])
    attribute = node.attribute.add()
    attribute.name = "a"
    if kind:
        attribute.ref_attr_name = "b"
    read("prints", "p.onnx", model([node]))


# --- ONNX ----------------------------------------------------------------------------------------


def model(nodes, constants=(), *, opset=17, outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets).SerializeToString()


def computed(op, *values, **attributes):
    """A model in which an op computes something of constants."""
    names = [f"c{place}" for place in range(len(values))]
    nodes = [helper.make_node(op, names, ["c"], **attributes)]
    nodes.append(helper.make_node("Relu", ["x"], ["y"]))
    return model(nodes, list(zip(names, values, strict=True)), outputs=("y", "c"))


def doubled(op, value):
    """A constant put to itself again and again."""
    nodes = [helper.make_node(op, [f"t{n}", f"t{n}"], [f"t{n + 1}"]) for n in range(60)]
    return model(
        [*nodes, helper.make_node("Relu", ["x"], ["y"])], [("t0", value)], outputs=("y", "t60")
    )


I64 = np.int64
HUGE = {
    "tile, and nothing of it": computed("Tile", np.ones((1, 1)), I64([2**33, 0])),
    "tile past 64 bits": computed("Tile", np.ones(4), I64([2**62])),
    "range past 64 bits": computed("Range", I64(-(2**63)), I64(2**63 - 1), I64(2**33)),
    "range of numbers": computed("Range", np.float32(0), np.float32(1e38), np.float32(1)),
    "range of nothing": computed("Range", np.float32(0), np.float32(np.nan), np.float32(0)),
    "expand, and nothing of it": computed("Expand", np.ones((1, 1)), I64([2**40, 0])),
    "filled with nothing": computed("ConstantOfShape", I64([2**60, 0])),
    "filled with words": computed(
        "ConstantOfShape",
        I64([4000]),
        value=helper.make_tensor("v", TensorProto.STRING, [1], [b"x" * 2**20]),
    ),
    "an index far outside": computed("GatherElements", np.ones(1), I64([-(2**60)]), axis=0),
    "indices of nothing": computed(
        "ScatterND", np.ones(4), np.zeros((2**38, 0), np.int64), np.ones(4)
    ),
    "split in many": computed("Split", np.ones(4), num_outputs=2**33),
    "one hot of a number": computed("OneHot", I64([0]), np.float32(2**33), np.float32([0, 1])),
    "one hot": computed("OneHot", I64([0]), I64(2**40), np.float32([0, 1])),
    "words put together": doubled("Add", np.array(["ab"], object)),
    "resize": model(
        [helper.make_node("Resize", ["x", "", "", "s"], ["y"])], [("s", I64([1, 3, 2**60, 1]))]
    ),
    "resize by a number": model(
        [helper.make_node("Resize", ["x", "", "s"], ["y"])], [("s", np.float32([1, 1, 1e30, 1e30]))]
    ),
    "pad": model([helper.make_node("Pad", ["x", "p"], ["y"])], [("p", I64([0] * 7 + [2**60]))]),
    "reshape": model([helper.make_node("Reshape", ["x", "s"], ["y"])], [("s", I64([2**60, -1]))]),
    "space": model([helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=2**60)]),
    "conv": model(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[2**60] * 4, strides=[1, 1])],
        [("w", np.ones((4, 3, 3, 3), np.float32))],
    ),
}


@pytest.mark.parametrize("data", HUGE.values(), ids=HUGE)
def test_sizes_beyond_all_memory_are_never_made(read, data):
    read("onnx", "model.onnx", data, refused=None)


def test_many_slow_constants_take_bounded_time(read):
    indices, updates = np.arange(4096)[:, None], np.ones(4096, np.float32)
    nodes = [helper.make_node("ScatterND", [f"t{n}", "i", "u"], [f"t{n + 1}"]) for n in range(2000)]
    nodes.append(helper.make_node("Relu", ["x"], ["y"]))
    constants = [("t0", updates), ("i", indices), ("u", updates)]
    read("onnx", "model.onnx", model(nodes, constants, outputs=("y", "t2000")), refused=False)


def test_more_nodes_than_can_be_held_are_counted_only(read):
    data = helper.make_model(helper.make_graph([], "graph", [], [])).SerializeToString()
    graph = b"\x0a\x00" * 400_000  # a node without anything takes two bytes
    field = b"\x3a" + bytes([len(graph) & 127 | 128, len(graph) >> 7 & 127 | 128, len(graph) >> 14])
    assert "400000 nodes" in read("onnx", "model.onnx", data + field + graph).said


def test_words_of_a_file_do_not_command_a_terminal(read):
    node = helper.make_node("Conv", ["x"], ["y", "z"], name="\x1b[31mred\x07")
    assert read("onnx", "model.onnx", model([node])).said.isprintable()


@pytest.mark.parametrize("op", ["Conv", "MatMul", "Gemm", "MaxPool", "Concat", "Softmax", "Split"])
def test_an_op_that_reads_nothing_is_no_operator(read, op):
    nodes = [helper.make_node(op, [], ["a"]), helper.make_node("Add", ["x", "a"], ["y"])]
    read("onnx", "model.onnx", model(nodes), refused=None)


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("inputs", [[], [-1], [0], [-1, -1, -1]])
def test_an_op_of_tflite_that_lacks_inputs(read, place, inputs):
    network = fuzz_tflite._network()
    network.subgraphs[0].operators[place].inputs = inputs
    read("tflite", "model.tflite", fuzz_tflite._packed(network), refused=None)


def test_a_tflite_model_cut_at_any_byte(read):
    data = fuzz_tflite.models()[0][1]
    for size in range(0, len(data), 41):
        read("tflite", "model.tflite", data[:size], refused=None)


def test_external_data_that_is_a_device(tmp_path, read):
    tensor = TensorProto(name="w", dims=[8], data_type=1, data_location=TensorProto.EXTERNAL)
    for key, said in {"location": "w.bin", "offset": "9" * 5000}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, said
    made = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        *("graph", [helper.make_tensor_value_info("x", 1, [1, 8])]),
        *([helper.make_empty_tensor_value_info("y")], [tensor]),
    )
    data = helper.make_model(made).SerializeToString()
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "w.bin")
    assert "no such file" in read("onnx", "model.onnx", data).said
    (tmp_path / "in" / "w.bin").unlink()
    (tmp_path / "in" / "w.bin").write_bytes(bytes(32))
    assert len(read("onnx", "model.onnx", data).said) < 400


# --- the sample store ----------------------------------------------------------------------------


@pytest.mark.parametrize("statement", [s for s in fuzz_data._STATEMENTS if "CREATE" in s])
def test_a_store_that_runs_something_when_it_is_used(read, tmp_path, statement):
    path = tmp_path / "samples.db"
    path.write_bytes(fuzz_data.stores()[0][1])
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(statement)
    read("store", "samples.db", path.read_bytes(), refused=None)


def test_a_store_with_text_that_is_none(read, tmp_path):
    path = tmp_path / "samples.db"
    path.write_bytes(fuzz_data.stores()[0][1])
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for column in ("key", "data"):
            db.execute(f"UPDATE environments SET {column} = CAST(? AS TEXT)", (b"\xff\xfe\x80",))
    read("store", "samples.db", path.read_bytes(), refused=None)


# --- the command line ----------------------------------------------------------------------------

_BAD = {
    "bad.json": b'{"BF_conv_relu": {"obey": "\\u001b[31m"}}',
    "bad.onnx": fuzz_onnx.models()[0][1][:700],
    "bad.yaml": b"builtin_name: [\x41]\n",
    "bad.xml": b"<!DOCTYPE a [<!ENTITY b 'b'>]><net>&b;</net>",
}
COMMANDS = {
    "rules": (["diff", "bad.json", "onnxruntime-1.31"], 9),
    "a model": (["kernels", "bad.onnx", "--rules", "onnxruntime-1.31", "--json", "k.json"], 11),
    "rules of kernels": (["kernels", "good.onnx", "--rules", "bad.json", "--html", "k.html"], 9),
    "a meta file": (["register", "--operator", "bad.yaml"], 5),
    "a print": (["import-graph", "--format", "openvino", "bad.xml"], 9),
    "a configuration": (["run", "--workspace", "ws"], 3),
}


@pytest.mark.parametrize(("arguments", "code"), COMMANDS.values(), ids=COMMANDS)
def test_the_command_line_says_so_in_one_line_and_writes_nothing(tmp_path, arguments, code):
    for name, data in {**_BAD, "good.onnx": fuzz_onnx.models()[0][1]}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "ws" / "configs").mkdir(parents=True)
    (tmp_path / "ws" / "configs" / "ruletest_config.yaml").write_text(LAUGHS)
    before = sorted(tmp_path.rglob("*"))
    found = subprocess.run(
        [sys.executable, "-c", "from nn_meter.cli.main import main; main()", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert found.returncode == code, found.stderr
    (line,) = found.stderr.splitlines()
    assert line.startswith("nn-meter: error: ")
    assert line.isprintable()
    assert not found.stdout
    assert sorted(tmp_path.rglob("*")) == before
