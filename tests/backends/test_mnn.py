"""What is MNN's own: its converter, the order of inputs and outputs, and what it executes.

What every backend does is in ``test_sessions``.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn_meter.builder.backends.base import ShowsGraph
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.mnn.backend import MNNCPUBackend
from nn_meter.builder.backends.mnn.graph import Command, Memory, executed_graph
from nn_meter.errors import ConversionError, GraphUnavailableError, ModelRejectedError
from nn_meter.reference import compare_outputs, reference_inputs, sample_outputs

CONFIG = {"COUT": 6, "KERNEL_SIZE": 3, "PADDING": "same", "STRIDES": 1, "POOL_STRIDES": 2}
SHAPE = [4, 8, 6]


@pytest.fixture(autouse=True)
def mnn(request) -> None:
    if "tmp_path" not in request.fixturenames:
        return  # it makes no model, so it runs none
    for module in ("MNN", "onnx"):
        if find_spec(module) is None:
            pytest.skip(f"needs {module}, which is not installed")


def chain(*names: str) -> tuple[Any, list[list[int]]]:
    """A chain of the project's own operators, by the names of their classes."""
    from nn_meter.builder.nn_modules.onnx import models, operators

    shape, made = list(SHAPE), []
    for name in names:
        made.append(getattr(operators, name)(shape, CONFIG))
        shape = made[-1].get_output_shape()
    return models.chain_model(made)


def written(write: Callable[..., Any], *shapes: list[int]) -> tuple[Any, list[list[int]]]:
    """A model that a function writes into a graph."""
    from nn_meter.builder.nn_modules.onnx.models import Graph

    graph = Graph()
    outputs = write(graph, *[graph.input(shape) for shape in shapes or [SHAPE]])
    return graph.model(outputs if isinstance(outputs, list) else [outputs]), graph.shapes


def conv(graph: Any, x: str, cout: int = 4) -> str:
    weight = graph.weight(cout, 4, 3, 3)
    return str(graph.op("Conv", [x, weight, graph.bias(cout)], pads=[1] * 4))


class Found:
    """What the backend makes of a model."""

    def __init__(self, model: Any, shapes: list[list[int]], folder: Path) -> None:
        import onnx

        from nn_meter.builder.nn_modules.onnx.models import run_model

        backend = MNNCPUBackend({})
        path = folder / "model.onnx"
        onnx.save(model, path)
        feeds = reference_inputs(shapes)
        converted = backend.convert_model(str(path), str(folder), shapes)
        session = backend.open(converted, shapes)
        self.difference = compare_outputs(
            sample_outputs(session.outputs(feeds)), sample_outputs(run_model(path, feeds))
        )
        session.close()
        self.graph: ExecutedGraph = backend.executed_graph(converted, shapes)

    @property
    def computing(self) -> list[str]:
        return sorted(node.type for node in self.graph.compute())

    @property
    def moving(self) -> list[str]:
        return sorted(node.type for node in self.graph.nodes if node.kind == "move")

    @property
    def all(self) -> Counter[tuple[str, str]]:
        return Counter((node.type, node.kind) for node in self.graph.nodes)


def residual(graph: Any, x: str) -> str:
    return str(graph.op("Relu", [graph.op("Add", [conv(graph, x), x])]))


def scaled(graph: Any, x: str, attribute: int = 2) -> str:
    sizes = graph.constant(np.array([1, 1, attribute, attribute], dtype=np.float32))
    return str(graph.op("Resize", [conv(graph, x), "", sizes], mode="nearest"))


def padded(graph: Any, x: str) -> str:
    pads = graph.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    return str(graph.op("Pad", [conv(graph, x), pads]))


def shuffled(graph: Any, x: str) -> str:
    def sizes(*values: int) -> str:
        return str(graph.constant(np.array(values)))

    x = graph.op("Reshape", [conv(graph, x), sizes(1, 2, 2, 8, 6)])
    x = graph.op("Transpose", [x], perm=[0, 2, 1, 3, 4])
    return str(graph.op("Reshape", [x, sizes(1, 4, 8, 6)]))


CONV = ["Raster[ConvertTensor]"] * 2
# By a name that says what the model is: the model, what computes, and what moves.
MODELS: dict[str, tuple[Callable[[], Any], list[str], list[str]]] = {
    "conv relu": (lambda: chain("Conv", "Relu"), ["Convolution[relu]"], CONV),
    "dwconv relu6": (
        lambda: chain("DwConv", "Relu6"),
        ["ConvolutionDepthwise[relu6]"],
        CONV,
    ),
    "conv bn relu": (lambda: chain("Conv", "BatchNorm", "Relu"), ["Convolution[relu]"], CONV),
    "conv hswish": (
        lambda: chain("Conv", "Hswish"),
        ["Convolution", "UnaryOp[HARDSWISH]"],
        CONV,
    ),
    "add relu": (lambda: chain("Add", "Relu"), ["BinaryOp[ADD+relu]"], []),
    "conv add relu, its own input": (
        lambda: written(residual),
        ["BinaryOp[ADD+relu]", "Convolution"],
        CONV,
    ),
    "relu relu": (lambda: chain("Relu", "Relu"), ["ReLU", "ReLU"], []),
    "concat conv": (
        lambda: chain("Concat", "Conv"),
        ["Convolution", "Raster[Concat]"],
        ["Raster[ConvertTensor]"],
    ),
    "conv split relu": (
        lambda: chain("Conv", "Split", "Relu"),
        ["Convolution", "Raster[Slice]", "Raster[Slice]", "ReLU"],
        ["Raster[ConvertTensor]"],
    ),
    "concat split": (lambda: chain("Concat", "Split"), ["Raster[Concat+Slice]"] * 2, []),
    "reshape": (lambda: chain("Reshape"), [], ["Raster[Reshape]"]),
    "flatten fc": (
        lambda: chain("Flatten", "FC"),
        ["Convolution"],
        ["Raster[ConvertTensor+Flatten+Reshape]", "Raster[ConvertTensor+Reshape]"],
    ),
    # Two passes in a row, of which one pads. Its ops run in the kernels without AVX: see Memory.
    "conv pad": (
        lambda: written(padded),
        ["Convolution", "Raster[Padding]"],
        CONV,
    ),
    "conv resize": (lambda: written(scaled), ["Convolution", "Interp"], CONV),
    "conv channelshuffle": (
        lambda: written(shuffled),
        ["Convolution"],
        ["Raster[ConvertTensor]", *["Raster[ConvertTensor+Permute+Reshape+Reshape]"] * 2],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_nodes_really_executed(name, tmp_path):
    make, computing, moving = MODELS[name]
    found = Found(*make(), tmp_path)
    assert found.difference is None
    assert found.computing == sorted(computing)
    assert found.moving == sorted(moving)


# Names that MNN gives to what it makes itself, numbers, and what a file system or JSON dislikes.
NASTY = ["0", "1", "_raster_0", "0_raster_0", "0_raster_1", "x__before_tr", "Reshape10", "Const6"]
NASTY += ["a/b:0", '"quoted"', "\u00e9\n", "t_1", "output_0", "input_1", "input_0", "BinaryOp7"]


def renamed(model: Any) -> Any:
    model = copy.deepcopy(model)
    graph = model.graph
    used = dict.fromkeys(name for node in graph.node for name in [*node.output, *node.input])
    names = dict(zip(filter(None, used), [*NASTY, *map(str, range(2, 99))], strict=False))
    for node in graph.node:
        node.name = "_raster_0"
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in [*graph.input, *graph.output, *graph.initializer, *graph.value_info]:
        tensor.name = names[tensor.name]
    return model


@pytest.mark.parametrize("name", ["conv split relu", "concat split", "flatten fc", "conv pad"])
def test_names_do_not_matter(name, tmp_path):
    model, shapes = MODELS[name][0]()
    found = Found(model, shapes, tmp_path)
    again = Found(renamed(model), shapes, tmp_path)
    assert again.difference is None
    assert again.all == found.all
    assert again.graph.inputs == found.graph.inputs


@pytest.mark.parametrize("name", [*MODELS, "split conv", "conv se", "conv prelu"])
def test_what_computes_depends_on_the_inputs(name, tmp_path):
    """Also across copies that MNN does not report, and memory that is used again."""
    classes = {"se": "SE", "prelu": "PRelu"}
    make = MODELS[name][0] if name in MODELS else None
    model = make() if make else chain(*[classes.get(n, n.capitalize()) for n in name.split()])
    graph = Found(*model, tmp_path).graph
    assert graph.inputs == tuple(f"input_{i}" for i in range(len(model[1])))
    reached = graph.behind(graph.inputs)
    assert all(node in reached for node in graph.compute())
    for number, node in enumerate(graph.nodes):
        known = {name for earlier in graph.nodes[:number] for name in earlier.outputs}
        assert known.union(graph.inputs).issuperset(node.inputs)


def test_each_output_of_a_split_is_followed(tmp_path):
    """Behind concat and split, each output is a copy of one input and depends on no other."""
    graph = Found(*chain("Concat", "Split"), tmp_path).graph
    assert [node.inputs for node in graph.nodes] == [("input_0",), ("input_1",)]


def test_inputs_and_outputs_keep_their_order(tmp_path):
    """More than ten, so that neither MNN's order nor the alphabet's will do."""

    def write(graph: Any, *inputs: str) -> list[str]:
        outputs = [inputs[0]]
        for x in reversed(inputs[1:]):
            outputs.append(graph.op("Sub", [graph.op("Tanh", [outputs[-1]]), x]))
        return outputs[:0:-1]

    model, shapes = written(write, *[[3, 2]] * 13)
    import onnx

    from nn_meter.builder.nn_modules.onnx.models import run_model

    path = tmp_path / "many.onnx"
    onnx.save(model, path)
    backend = MNNCPUBackend({})
    session = backend.open(backend.convert_model(str(path), str(tmp_path), shapes), shapes)
    feeds = reference_inputs(shapes)
    for got, wanted in zip(session.outputs(feeds), run_model(path, feeds), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    session.close()


def test_sizes_that_the_model_leaves_open_are_those_asked_for(tmp_path):
    model, shapes = chain("Conv", "Relu")
    size = model.graph.input[0].type.tensor_type.shape.dim
    size[0].dim_param, size[2].dim_param = "batch", "height"
    del model.graph.value_info[:]
    assert Found(model, shapes, tmp_path).difference is None


def test_timed_runs_compute_on_the_inputs(tmp_path):
    """MNN uses an input's memory for other tensors once it is read."""
    import onnx

    from nn_meter.builder.backends.mnn.backend import _values

    model, shapes = chain("Conv", "Relu", "Conv")
    onnx.save(model, tmp_path / "model.onnx")
    backend = MNNCPUBackend({})
    converted = backend.convert_model(str(tmp_path / "model.onnx"), str(tmp_path), shapes)
    session = backend.open(converted, shapes)
    (wanted,) = session.outputs(reference_inputs(shapes))
    session.time(3)
    np.testing.assert_array_equal(_values(session._outputs["output_0"]), wanted)
    session.close()


# --- refusals ------------------------------------------------------------------------------------


def test_an_op_that_mnn_lacks_is_named(tmp_path):
    import onnx

    model, shapes = written(lambda graph, x: graph.op("Mish", [x]))
    onnx.save(model, tmp_path / "mish.onnx")
    saves = tmp_path / "saves"
    saves.mkdir()
    with pytest.raises(ConversionError, match=r"^mish.onnx: MNN .*: .*Not Support: ONNX::Mish$"):
        MNNCPUBackend({}).convert_model(str(tmp_path / "mish.onnx"), str(saves), shapes)
    assert not list(saves.iterdir())


@pytest.mark.parametrize("content", [b"", b"no model at all " * 40], ids=["empty", "garbage"])
def test_what_is_no_onnx_model_is_refused(content, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    saves = tmp_path / "saves"
    saves.mkdir()
    with pytest.raises(ConversionError, match=r"^broken.onnx: MNN cannot convert it: ."):
        MNNCPUBackend({}).convert_model(str(path), str(saves), [[4]])
    assert not list(saves.iterdir())


def test_what_mnn_cannot_run_is_refused_in_its_words(tmp_path):
    """The converter takes it; the session does not."""
    import onnx

    model, shapes = written(lambda graph, x: graph.op("Cast", [graph.op("NonZero", [x])], to=1))
    onnx.save(model, tmp_path / "model.onnx")
    backend = MNNCPUBackend({})
    converted = backend.convert_model(str(tmp_path / "model.onnx"), str(tmp_path), shapes)
    for call in (backend.open, backend.executed_graph):
        with pytest.raises(ModelRejectedError, match="need input content"):
            call(converted, shapes)


def test_an_output_that_mnn_forgets_is_missed(tmp_path):
    import onnx

    def write(graph: Any, x: str) -> list[str]:
        total = graph.op("Add", [x, graph.op("Tanh", [x])])
        return [graph.op("Relu", [total]), total]

    model, shapes = written(write)
    onnx.save(model, tmp_path / "model.onnx")
    backend = MNNCPUBackend({})
    converted = backend.convert_model(str(tmp_path / "model.onnx"), str(tmp_path), shapes)
    with pytest.raises(ModelRejectedError, match="lost output_1"):
        backend.executed_graph(converted, shapes)


# --- what MNN does beside -------------------------------------------------------------------------

SCRIPT = """if True:
    import json, os, sys
    events = []
    model, folder, shapes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    watched = ("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.")
    def hook(event, arguments):
        if event.startswith(watched):
            events.append(event)
        elif event == "open" and isinstance(arguments[0], str):
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes and not arguments[0].startswith((folder, os.devnull)):
                events.append(f"open {arguments[0]}")
    sys.addaudithook(hook)
    from nn_meter.builder.backends.mnn.backend import MNNCPUBackend
    backend = MNNCPUBackend({})
    converted = backend.convert_model(model, folder, shapes)
    session = backend.open(converted, shapes)
    session.time(3)
    session.close()
    backend.executed_graph(converted, shapes)
    backend.test_connection()
    events += [name for name in sys.modules if name.startswith("MNN.tools")]
    os.write(1, json.dumps(events).encode())
"""


@pytest.fixture
def alone(tmp_path) -> tuple[list[str], dict[str, Path]]:
    """A command that converts and runs a model, and the folders that it knows."""
    import onnx

    folders = {name: tmp_path / name for name in ("home", "tmp", "saves", "cwd")}
    for folder in folders.values():
        folder.mkdir()
    model, shapes = chain("Conv", "Relu")
    onnx.save(model, tmp_path / "model.onnx")
    arguments = [str(tmp_path / "model.onnx"), str(folders["saves"]), json.dumps(shapes)]
    return [sys.executable, "-B", "-c", SCRIPT, *arguments], folders


def ran(command: list[str], folders: dict[str, Path]) -> str:
    environment = {**os.environ, "HOME": str(folders["home"]), "TMPDIR": str(folders["tmp"])}
    done = subprocess.run(
        command, cwd=folders["cwd"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_starts_reports_and_leaves_nothing(alone):
    command, folders = alone
    assert json.loads(ran(command, folders)) == []
    assert [path.name for path in folders.pop("saves").iterdir()] == ["model.mnn"]
    assert not [path for folder in folders.values() for path in folder.iterdir()]


def test_nor_does_its_native_code(alone, tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("needs strace, which is not installed")
    command, folders = alone
    trace = tmp_path / "trace"
    calls = "trace=network,process,openat,open,creat,mkdir,mkdirat,rename,renameat,chdir"
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("strace may not trace here")
    ran(["strace", "-f", "-s", "400", "-e", calls, "-o", str(trace), *command], folders)
    lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
    assert len([line for line in lines if " execve(" in line]) == 1  # Python itself
    where = ""
    for line in lines:
        assert not re.search(r"\b(socket|connect|sendto|bind|v?fork)\(", line), line
        if re.search(r"\bclone3?\(", line):
            assert "CLONE_THREAD" in line, line
        place = re.search(r'"([^"]*)"', line)
        if place and re.search(r"O_WRONLY|O_RDWR|O_CREAT|\b(creat|mkdir|mkdirat|rename)\(", line):
            # A path without a folder is one in the folder that the last chdir went to.
            allowed = (str(folders["saves"]), "/dev/", ".__convert_external_data.bin")
            assert place[1].startswith(allowed), line
            assert "/" in place[1] or where.startswith(str(folders["saves"])), line
        if place and " chdir(" in line:
            where = place[1]


# --- the graph alone -----------------------------------------------------------------------------


def op(name: str, type_: str, inputs: list[int], outputs: list[int]) -> dict[str, Any]:
    return {"name": name, "type": type_, "inputIndexes": inputs, "outputIndexes": outputs}


TENSOR = (1, 4, 8, 6)


def test_a_copy_that_is_not_reported_is_bridged():
    """The second op reads memory that the first did not write, and that an input was in before."""
    model = {
        "oplists": [op("x", "Input", [], [0]), op("a", "ReLU", [0], [1]), op("b", "Exp", [1], [2])],
        "tensorName": ["x", "a", "b"],
        "outputName": ["b"],
    }
    first, second, third = (Memory(address, TENSOR) for address in (1, 2, 3))
    commands = [
        Command(name="a", type="ReLU", reads=(first,), writes=(second,)),
        Command(name="b", type="Exp", reads=(first,), writes=(third,)),
    ]
    graph = executed_graph(model, commands, {"x": first})
    assert [node.inputs for node in graph.nodes] == [("x",), ("a",)]


def test_a_command_of_no_op_is_not_guessed_at():
    model = {"oplists": [op("x", "Input", [], [0])], "tensorName": ["x"], "outputName": []}
    command = Command(name="new", type="Fused", reads=(), writes=())
    with pytest.raises(GraphUnavailableError, match="Fused new, which belongs to no op"):
        executed_graph(model, [command], {"x": Memory(1, TENSOR)})


def test_it_says_that_it_shows_graphs():
    assert isinstance(MNNCPUBackend({}), ShowsGraph)


def test_what_reads_no_more_than_a_shape_does_no_work_on_the_data():
    """The sizes that a reshape is told are computed at load."""
    model = {
        "oplists": [
            op("x", "Input", [], [0]),
            op("shape", "Shape", [0], [1]),
            op("sizes", "Concat", [1], [2]),
            op("y", "Reshape", [0, 2], [3]),
        ],
        "tensorName": ["x", "shape", "sizes", "y"],
        "outputName": ["y"],
    }
    memory = Memory(1, TENSOR)
    raster = Command(
        name="y_raster_0", type="Raster", reads=(memory,), writes=(Memory(2, (1, 192)),)
    )
    (node,) = executed_graph(model, [raster], {"x": memory}).nodes
    assert (node.type, node.kind, node.inputs) == ("Raster[Reshape]", "move", ("x",))


def test_memory_that_holds_another_shape_by_now_is_not_mistaken():
    """Both inputs of the concat are copied, one of them to where the other one was."""
    model = {
        "oplists": [
            op("x", "Input", [], [0]),
            op("y", "Input", [], [1]),
            op("z", "Concat", [0, 1], [2]),
        ],
        "tensorName": ["x", "y", "z"],
        "outputName": ["z"],
    }
    x, y = Memory(1, (1, 2)), Memory(2, (1, 3))
    raster = Command(
        name="z_raster_0",
        type="Raster",
        reads=(Memory(9, x.shape), Memory(x.address, y.shape)),
        writes=(Memory(4, (1, 5)),),
    )
    (node,) = executed_graph(model, [raster], {"x": x, "y": y}).nodes
    assert sorted(node.inputs) == ["x", "y"]
