"""What LiteRT executes, by its own profiler, of small ``.tflite`` files made by hand.

By hand, since TensorFlow's converter merges ops itself; these files say exactly what LiteRT gets.
"""

from __future__ import annotations

import base64
import ctypes
import logging
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest

from nn_meter.builder.backends.base import ShowsGraph
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.tflite import capi, graph
from nn_meter.builder.backends.tflite.backend import TFLiteCPUBackend
from nn_meter.errors import GraphUnavailableError, ModelRejectedError

pytestmark = pytest.mark.skipif(
    find_spec("ai_edge_litert") is None, reason="needs ai_edge_litert, which is not installed"
)

CONV = "Convolution (NHWC, F32) IGEMM"
CLAMP, HARDSWISH, SIGMOID = "Clamp (NC)", "HardSwish (NC)", "Sigmoid (NC)"
SHAPE = [1, 8, 8, 4]


class Model:
    """A model under construction; tensors are their numbers.

    Args:
        names: What every tensor's name starts with.
    """

    def __init__(self, names: str = "t") -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.s, self.names = schema, names
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model = schema.ModelT()
        self.model.version, self.model.subgraphs = 3, [self.graph]
        self.model.operatorCodes, self.model.buffers = [], [schema.BufferT()]
        self.rng = np.random.default_rng(5)

    def tensor(self, shape: Sequence[int], value: np.ndarray | None = None) -> int:
        tensor = self.s.TensorT()
        tensor.name = f"{self.names}_{len(self.graph.tensors)}".encode()
        tensor.shape = np.maximum(np.array(shape, np.int32), 1)
        if -1 in shape:
            tensor.shapeSignature = np.array(shape, np.int32)
        if value is not None:
            kinds = {"float32": "FLOAT32", "int32": "INT32"}
            tensor.type = getattr(self.s.TensorType, kinds[value.dtype.name])
            buffer = self.s.BufferT()
            buffer.data = np.frombuffer(value.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def ints(self, *values: int) -> int:
        array = np.array(values[0] if len(values) == 1 else values, np.int32)
        return self.tensor(array.shape, array)

    def shape(self, tensor: int) -> list[int]:
        return [int(size) for size in self.graph.tensors[tensor].shape]

    def op(
        self,
        code: str,
        inputs: Sequence[int],
        *shapes: Sequence[int],
        options: str = "",
        **settings: int,
    ) -> int:
        """Add an op; gives its first output. ``options``: the name of its table of options."""
        made = self.s.OperatorCodeT()
        made.builtinCode = getattr(self.s.BuiltinOperator, code)
        made.deprecatedBuiltinCode, made.version = min(made.builtinCode, 127), 1
        self.model.operatorCodes.append(made)
        operator = self.s.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        outputs = [self.tensor(shape) for shape in shapes or [self.shape(inputs[0])]]
        operator.inputs, operator.outputs = (
            np.array(numbers, np.int32) for numbers in (inputs, outputs)
        )
        if options:
            operator.builtinOptions = getattr(self.s, f"{options}T")()
            operator.builtinOptionsType = getattr(self.s.BuiltinOptions, options)
            for name, value in settings.items():
                setattr(operator.builtinOptions, name, value)
        self.graph.operators.append(operator)
        return outputs[0]

    def conv(self, tensor: int, relu: bool = False, valid: bool = False) -> int:
        n, h, w, c = self.shape(tensor)
        kernel = self.rng.standard_normal((c, 3, 3, c)).astype(np.float32)
        weights = [self.tensor(array.shape, array) for array in (kernel, kernel[:, 0, 0, 0].copy())]
        return self.op(
            "CONV_2D",
            [tensor, *weights],
            [n, h - 2, w - 2, c] if valid else [n, h, w, c],
            options="Conv2DOptions",
            padding=self.s.Padding.VALID if valid else self.s.Padding.SAME,
            fusedActivationFunction=int(relu),
            **dict.fromkeys(("strideW", "strideH", "dilationWFactor", "dilationHFactor"), 1),
        )

    def hswish(self, tensor: int) -> int:
        return self.op("HARD_SWISH", [tensor], options="HardSwishOptions")

    def add(self, a: int, b: int, relu: bool = False) -> int:
        return self.op("ADD", [a, b], options="AddOptions", fusedActivationFunction=int(relu))

    def reshape(self, tensor: int, *shape: int) -> int:
        return self.op("RESHAPE", [tensor, self.ints(*shape)], shape, options="ReshapeOptions")

    def dense(self, tensor: int) -> int:
        weights = self.rng.standard_normal((3, self.shape(tensor)[1])).astype(np.float32)
        inputs = [tensor, self.tensor(weights.shape, weights)]
        return self.op("FULLY_CONNECTED", inputs, [1, 3], options="FullyConnectedOptions")

    def write(
        self, path: Path, inputs: Sequence[int], outputs: Sequence[int], *, signed: bool = True
    ) -> Path:
        import flatbuffers

        self.graph.inputs, self.graph.outputs = (
            np.array(numbers, np.int32) for numbers in (inputs, outputs)
        )
        if signed:
            signature = self.s.SignatureDefT()
            signature.signatureKey = b"serving_default"
            signature.inputs, signature.outputs = self._named(inputs), self._named(outputs)
            self.model.signatureDefs = [signature]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.write_bytes(builder.Output())
        return path

    def _named(self, tensors: Sequence[int]) -> list:
        named = []
        for number, tensor in enumerate(tensors):
            entry = self.s.TensorMapT()
            entry.name, entry.tensorIndex = f"{self.names}_io_{number}".encode(), tensor
            named.append(entry)
        return named


BLOCKS = {  # how each is built from its input
    "conv": lambda m, x: m.conv(x),
    "relu": lambda m, x: m.op("RELU", [x]),
    "hswish": lambda m, x: m.hswish(x),
    "conv_relu": lambda m, x: m.op("RELU", [m.conv(x)]),
    "conv_relu_in_the_file": lambda m, x: m.conv(x, relu=True),
    "conv_relu6": lambda m, x: m.op("RELU6", [m.conv(x)]),
    "conv_hswish": lambda m, x: m.hswish(m.conv(x)),
    "relu_conv": lambda m, x: m.conv(m.op("RELU", [x])),
    "relu_relu": lambda m, x: m.op("RELU", [m.op("RELU", [x])]),
    "sigmoid_relu": lambda m, x: m.op("RELU", [m.op("LOGISTIC", [x])]),
    "pad_conv": lambda m, x: m.conv(pad(m, x), valid=True),
    "conv_add_relu": lambda m, x: m.add(m.conv(x), x, relu=True),
    "reshape": lambda m, x: m.reshape(x, 1, 4, 16, 4),
    "flatten_fc": lambda m, x: m.dense(m.reshape(x, 1, 256)),
    "concat": lambda m, x: concat(m, [x, x]),
    "concat_of_six": lambda m, x: concat(m, [x] * 6),
    "split": lambda m, x: split(m, x),
    "conv_cumsum_relu": lambda m, x: m.op("RELU", [cumsum(m, m.conv(x))]),
    "nothing": lambda m, x: x,
}


def pad(m: Model, x: int) -> int:
    n, h, w, c = m.shape(x)
    sizes = np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32)
    inputs = [x, m.tensor(sizes.shape, sizes)]
    return m.op("PAD", inputs, [n, h + 2, w + 2, c], options="PadOptions")


def concat(m: Model, tensors: list[int]) -> int:
    *front, c = m.shape(tensors[0])
    shape = [*front, c * len(tensors)]
    return m.op("CONCATENATION", tensors, shape, options="ConcatenationOptions", axis=3)


def split(m: Model, x: int) -> int:
    halves = [[*m.shape(x)[:3], 2]] * 2
    return m.op("SPLIT", [m.ints(3), x], *halves, options="SplitOptions", numSplits=2)


def cumsum(m: Model, x: int) -> int:
    return m.op("CUMSUM", [x, m.ints(1)], options="CumsumOptions")


@pytest.fixture
def backend() -> TFLiteCPUBackend:
    return TFLiteCPUBackend({"TARGET": "host"})


def file_of(name: str, path: Path, names: str = "t") -> Path:
    model = Model(names)
    x = model.tensor(SHAPE)
    return model.write(path, [x], [BLOCKS[name](model, x)])


@pytest.fixture
def executed(backend, tmp_path):
    def _executed(name: str) -> ExecutedGraph:
        return backend.executed_graph(str(file_of(name, tmp_path / "m.tflite")), [SHAPE[1:]])

    return _executed


def types(found: ExecutedGraph) -> list[str]:
    return [node.type for node in found.nodes]


# --- what runs -----------------------------------------------------------------------------------


def test_the_backend_shows_graphs(backend):
    assert isinstance(backend, ShowsGraph)


@pytest.mark.parametrize(
    ("name", "ran"),
    {
        "conv": [CONV],
        "relu": [CLAMP],
        "conv_relu": [CONV],
        "conv_relu_in_the_file": [CONV],
        "conv_relu6": [CONV],
        "conv_hswish": [CONV, HARDSWISH],
        "relu_conv": [CLAMP, CONV],
        "relu_relu": [CLAMP],
        "sigmoid_relu": [SIGMOID, CLAMP],
        "pad_conv": [CONV],
        "conv_add_relu": [CONV, "Add (ND)", CLAMP],
        "concat": ["Copy (NC, X32)"],
        "split": ["Copy (NC, X32)"],
        "concat_of_six": ["CONCATENATION"],  # XNNPACK takes up to five
        "conv_cumsum_relu": [CONV, "CUMSUM", CLAMP],
        "nothing": [],
    }.items(),
)
def test_every_op_that_ran_is_a_node_that_computes(executed, name, ran):
    found = executed(name)
    assert types(found) == ran
    assert all(node.kind == "compute" for node in found.nodes)


@pytest.mark.parametrize(("name", "computes"), [("reshape", 0), ("flatten_fc", 1)])
def test_reshapes_do_not_compute(executed, name, computes):
    found = executed(name)
    assert len(found.compute()) == computes
    assert len(found.nodes) > computes


def test_the_other_operand_may_be_an_input(backend, tmp_path):
    model = Model()
    x, y = model.tensor(SHAPE), model.tensor(SHAPE)
    path = model.write(tmp_path / "m.tflite", [x, y], [model.add(model.conv(x), y)])
    assert types(backend.executed_graph(str(path), [SHAPE[1:]] * 2)) == [CONV, "Add (ND)"]


def test_names_in_the_file_change_nothing(backend, tmp_path):
    graphs = [
        backend.executed_graph(
            str(file_of("conv_cumsum_relu", tmp_path / f"{names}.tflite", names)), [SHAPE[1:]]
        )
        for names in ("t", "TfLiteXNNPackDelegate")
    ]
    assert graphs[0] == graphs[1]


def test_a_file_without_a_signature(backend, tmp_path):
    model = Model()
    x = model.tensor(SHAPE)
    y = model.hswish(model.conv(x))
    path = model.write(tmp_path / "m.tflite", [x], [y], signed=False)
    assert types(backend.executed_graph(str(path), [SHAPE[1:]])) == [CONV, HARDSWISH]


def test_open_sizes_take_those_that_are_asked_for(backend, tmp_path):
    model = Model()
    x = model.tensor([1, -1, -1, 4])
    y = model.op("CUMSUM", [x, model.ints(1)], [1, -1, -1, 4], options="CumsumOptions")
    path = model.write(tmp_path / "m.tflite", [x], [y])
    assert types(backend.executed_graph(str(path), [[5, 6, 4]])) == ["CUMSUM"]


def test_the_profile_shows_what_is_timed(backend, tmp_path):
    """The interpreter hands over to XNNPACK as many parts as the profile has."""
    from ai_edge_litert.interpreter import Interpreter

    for name in BLOCKS:
        path = file_of(name, tmp_path / f"{name}.tflite")
        interpreter = Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
        parts = [op["op_name"] for op in interpreter._get_ops_details()].count("DELEGATE")
        del interpreter
        events = capi.profile(
            capi.Library(capi.find_library()), path, {0: (tuple(SHAPE), bytes(1024))}, threads=1
        )
        starts = [e for e in events if e.type == capi.DELEGATE_OP and e.index == 0]
        assert len(starts) == parts, name


def test_threads(tmp_path):
    path = file_of("conv_hswish", tmp_path / "m.tflite")
    found = TFLiteCPUBackend({"TARGET": "host", "THREADS": 3}).executed_graph(str(path), [])
    assert types(found) == [CONV, HARDSWISH]


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"no model at all " * 40], ids=["empty", "garbage"])
def test_a_broken_file_is_refused(backend, content, tmp_path):
    path = tmp_path / "broken.tflite"
    path.write_bytes(content)
    with pytest.raises(ModelRejectedError, match=r"LiteRT refuses the model: ."):
        backend.executed_graph(str(path), [SHAPE[1:]])


def test_other_shapes_are_refused(backend, tmp_path):
    path = file_of("conv", tmp_path / "m.tflite")
    with pytest.raises(ModelRejectedError, match=r"should be of the shapes"):
        backend.executed_graph(str(path), [[9, 9, 9]])


def test_a_model_that_only_the_interpreter_takes(executed, monkeypatch):
    executed("conv")  # LiteRT itself is fine
    monkeypatch.setattr(
        capi,
        "_index",
        lambda library, tensor: 7,  # a tensor that the interpreter does not know
    )
    with pytest.raises(GraphUnavailableError, match=r"takes the model, but cannot tell .*input"):
        executed("conv")


# --- versions ------------------------------------------------------------------------------------


@pytest.fixture
def unchecked():
    """LiteRT as a new process finds it: no version was checked yet."""
    graph._library.cache_clear()
    yield
    graph._library.cache_clear()


class Smaller(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64 * 4 if name == "memory" else type_)
        for name, type_ in capi._Event._fields_
    )


class Larger(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64 * 8 if name == "memory" else type_)
        for name, type_ in capi._Event._fields_
    )


@pytest.mark.parametrize("layout", [Smaller, Larger])
def test_events_of_another_layout_are_an_error(unchecked, executed, layout, monkeypatch):
    monkeypatch.setattr(capi, "_Event", layout)
    with pytest.raises(GraphUnavailableError, match=r"ai-edge-litert [\d.]+ .*tested: 2\.3\.0"):
        executed("conv")


def test_a_missing_function_is_an_error(unchecked, executed, monkeypatch):
    monkeypatch.setitem(capi._FUNCTIONS, "LiteRtGoneInThisVersion", ())
    with pytest.raises(GraphUnavailableError, match=r"LiteRtGoneInThisVersion; tested: 2\.3\.0"):
        executed("conv")


def test_other_events_than_must_be_are_an_error(unchecked, executed, monkeypatch):
    monkeypatch.setattr(capi, "_KNOWN_TAG", "LOGICAL_AND")
    with pytest.raises(GraphUnavailableError, match=r"should see .*LOGICAL_AND.*LOGICAL_NOT"):
        executed("conv")


def test_an_untried_version_that_passes_is_used_with_one_warning(
    unchecked, executed, monkeypatch, caplog
):
    monkeypatch.setattr(graph, "TESTED", ("1.0.0",))
    with caplog.at_level(logging.WARNING):
        assert types(executed("conv_hswish")) == [CONV, HARDSWISH]
        assert types(executed("conv")) == [CONV]
    (record,) = caplog.records
    assert "was never tried" in record.getMessage()


@pytest.mark.parametrize(
    ("child", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", r"crashed .*signal 11"),
        ("import sys; sys.exit('an odd answer')", "an odd answer"),
    ],
)
def test_an_untried_version_crashes_elsewhere(unchecked, executed, monkeypatch, child, words):
    monkeypatch.setattr(graph, "TESTED", ("1.0.0",))
    monkeypatch.setattr(graph, "_CHILD", child)
    with pytest.raises(GraphUnavailableError, match=rf"{words}.*; tested: 1\.0\.0"):
        executed("conv")


def test_the_model_for_calibration_is_what_it_says():
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(base64.b64decode(capi._MODEL), 0)
    (only,) = model.subgraphs
    codes = [model.operatorCodes[op.opcodeIndex].builtinCode for op in only.operators]
    assert codes == [schema.BuiltinOperator.RELU, schema.BuiltinOperator.LOGICAL_NOT]
    assert list(only.inputs) == list(capi._INPUTS)


# --- manners -------------------------------------------------------------------------------------


def test_many_calls_leave_nothing_behind(backend, tmp_path):
    model, shapes = Model(), [[256, 256, 4]]  # 1 MB, so that one that stays shows
    x = model.tensor([1, *shapes[0]])
    path = str(model.write(tmp_path / "m.tflite", [x], [model.hswish(x)]))
    process = psutil.Process()

    def left() -> tuple[int, int, int]:
        return process.memory_info().rss, process.num_fds(), process.num_threads()

    for _ in range(3):
        first = backend.executed_graph(path, shapes)
    memory, files, threads = left()
    for _ in range(50):
        assert backend.executed_graph(path, shapes) == first
    memory_after, files_after, threads_after = left()
    # 50 MB if a tensor stayed each time; what else lives in this process moves it by a few
    assert memory_after - memory < 25 * 2**20
    assert (files_after, threads_after) == (files, threads)
    session = backend.open(path, shapes)
    assert (session.time(5) > 0).all()
    session.close()


def test_says_nothing_and_ends_well(tmp_path):
    path = file_of("conv_hswish", tmp_path / "m.tflite")
    script = """if True:
        import sys
        from nn_meter.builder.backends.tflite.backend import TFLiteCPUBackend
        graph = TFLiteCPUBackend({"TARGET": "host"}).executed_graph(sys.argv[1], [])
        assert len(graph.nodes) == 2
    """
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    # LiteRT says once, in each of its two libraries, that it has XNNPACK; so it does when it times.
    assert set(done.stderr.splitlines()) <= {
        "INFO: Created TensorFlow Lite XNNPACK delegate for CPU."
    }
