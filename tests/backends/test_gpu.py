"""GPUs on this host: LiteRT's accelerator and ncnn's Vulkan, on whatever Vulkan driver there is.

Where there is none, that of ``scripts/system-packages`` is taken: SwiftShader, a GPU in software.
All that loads a driver runs in a process of its own, as in a run: in worker processes, and below
the layer that counts dispatches.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tflite_models import Model

from gpu_driver import driver_environment
from nn_meter import registry
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.spec import BackendSpec
from nn_meter.builder.backends.tflite.gpu_graph import check_ends
from nn_meter.builder.backends.vulkan import counter as counting
from nn_meter.builder.backends.vulkan.counter import built_layer, layer_environment
from nn_meter.builder.backends.vulkan.devices import cache_folder
from nn_meter.builder.backends.vulkan.watched import call_watched
from nn_meter.builder.profiling.jobs import HANDLER
from nn_meter.builder.profiling.process import Worker
from nn_meter.errors import (
    BackendError,
    DeviceError,
    GraphUnavailableError,
    ModelRejectedError,
    NotInstalledError,
    WorkerCrashedError,
)
from nn_meter.reference import compare_outputs

LIMIT_S = 120
MINE = "watched_functions"


@pytest.fixture(autouse=True, scope="module")
def drivers() -> Iterator[None]:
    """The Vulkan driver that runs all here; without one, everything is skipped."""
    found = driver_environment()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        for name, value in found.items():
            patch.setenv(name, value)
        yield


def connected(name: str, **configs: Any) -> Worker:
    """A worker process that holds a backend, as a run starts it."""
    spec = BackendSpec(entry=registry.find("backend", name), configs=configs)
    return Worker(HANDLER, setup=("connect", {"spec": spec.to_json()}), what=name)


def needs(module: str) -> None:
    if find_spec(module) is None:
        pytest.skip(f"needs {module}, which is not installed")


@pytest.fixture(scope="module")
def tflite() -> Iterator[Worker]:
    needs("ai_edge_litert")
    with connected("tflite_gpu", TARGET="host") as worker:
        yield worker


@pytest.fixture(scope="module")
def ncnn() -> Iterator[Worker]:
    needs("ncnn")
    with connected("ncnn_vulkan") as worker:
        yield worker


@pytest.fixture(scope="module")
def layer() -> Path:
    """The layer that counts; it needs a C compiler and headers."""
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("needs a C compiler; scripts/system-packages installs one")
    if not any(Path(place, "vulkan", "vulkan.h").is_file() for place in _includes()):
        pytest.skip("needs the Vulkan headers; scripts/system-packages installs them")
    return built_layer()


def _includes() -> list[str]:
    sdk = os.environ.get("VULKAN_SDK", "")
    return ["/usr/include", "/usr/local/include", *([f"{sdk}/include"] if sdk else [])]


# --- counting ------------------------------------------------------------------------------------


def test_the_layer_is_built_once(layer, monkeypatch):
    assert layer.is_relative_to(cache_folder())
    manifest = json.loads(next(layer.parent.glob("*.json")).read_text())
    assert manifest["layer"]["library_path"] == str(layer)
    monkeypatch.setattr(counting, "_build", None)  # would be called again
    built_layer.cache_clear()
    assert built_layer() == layer


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "CC",
            "no-such-compiler",
            r"there is no C compiler \(no-such-compiler\): .* apt-get install",
        ),
        ("CC", "cc -nostdinc", r"cc cannot build dispatches\.c: .*error.* libvulkan-dev"),
        ("XDG_CACHE_HOME", "/dev/null", r"/dev/null/.* cannot be written there: .*XDG_CACHE_HOME"),
    ],
)
def test_a_layer_that_cannot_be_built_says_what_is_missing(layer, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    built_layer.cache_clear()
    try:
        with pytest.raises(GraphUnavailableError, match=words):
            call_watched(f"{MINE}:devices")
    finally:
        built_layer.cache_clear()


def test_layers_that_the_user_named_stay(layer):
    found = layer_environment(
        layer, {"VK_LAYER_PATH": "/mine", "VK_INSTANCE_LAYERS": "A", "B": "c"}
    )
    assert found["VK_LAYER_PATH"] == os.pathsep.join(["/mine", str(layer.parent)])
    assert found["VK_INSTANCE_LAYERS"].split(os.pathsep)[0] == "A"
    assert found["B"] == "c"
    assert layer_environment(layer, {})["VK_LAYER_PATH"] == str(layer.parent)


def test_what_is_watched_answers(layer):
    devices = call_watched(f"{MINE}:devices")
    assert devices
    assert all(isinstance(name, str) and name.isprintable() and name for name, _ in devices)


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        ("refuse", ModelRejectedError, "^no such thing$"),
        ("fail", BackendError, "KeyError: 'a key'"),
        ("crash", WorkerCrashedError, "was ended by SIGSEGV: the last words"),
        ("leave", WorkerCrashedError, "ended with exit code 3"),
        ("count_nothing", GraphUnavailableError, "cannot be counted"),
    ],
)
def test_what_goes_wrong_below_the_layer_comes_back(layer, function, error, words):
    arguments = {"words": "no such thing"} if function == "refuse" else {}
    with pytest.raises(error, match=words):
        call_watched(f"{MINE}:{function}", **arguments)


def test_a_driver_that_is_not_there_is_no_device(layer, monkeypatch):
    monkeypatch.setenv("VK_DRIVER_FILES", "/no/such/driver.json")
    monkeypatch.setenv("VK_ICD_FILENAMES", "/no/such/driver.json")
    assert call_watched(f"{MINE}:devices") == []


# --- LiteRT: what is executed --------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """How a model is made, and how many kernels it should be."""

    make: Callable[[], Model]
    kernels: int
    layouts: int = 0


SHAPE = (1, 14, 12, CIN := 16)


def conv() -> Model:
    return Model(*SHAPE).conv()


CHAINS = {
    "conv": Chain(conv, 1),
    "relu": Chain(lambda: Model(*SHAPE).unary("RELU"), 1),
    "add": Chain(lambda: Model(*SHAPE).add(), 1),
    "maxpool": Chain(lambda: Model(*SHAPE).maxpool(), 1),
    "reshape": Chain(lambda: Model(*SHAPE).reshape(1, 12, 14, 16), 0, layouts=1),
    "nothing": Chain(lambda: Model(*SHAPE), 0),
    "conv_relu": Chain(lambda: conv().unary("RELU"), 1),
    "conv_hswish": Chain(lambda: conv().unary("HARD_SWISH"), 1),
    "conv_swish": Chain(lambda: conv().swish(), 1),
    "conv_gelu": Chain(lambda: conv().unary("GELU"), 1),
    "conv_add": Chain(lambda: conv().add(), 1),
    "conv_add_relu": Chain(lambda: conv().add().unary("RELU"), 1),
    "add_relu": Chain(lambda: Model(*SHAPE).add().unary("RELU"), 1),
    "relu_relu": Chain(lambda: Model(*SHAPE).unary("RELU").unary("RELU"), 1),
    "conv_conv": Chain(lambda: conv().conv(), 2),
    "conv_maxpool": Chain(lambda: conv().maxpool(), 2),
    "maxpool_conv": Chain(lambda: Model(*SHAPE).maxpool().conv(), 2),
    "conv_reshape": Chain(lambda: conv().reshape(1, 12, 14, 16), 1, layouts=1),
    "conv_tap_maxpool": Chain(lambda: conv().tap().maxpool(), 2),
    "mean": Chain(lambda: Model(*SHAPE).mean(), 1, layouts=1),  # and a squeeze
    "conv_mean": Chain(lambda: conv().mean(), 2, layouts=1),
    # shapes: other conversions, which are known by running them
    "odd": Chain(lambda: Model(1, 5, 7, 3).conv(6).unary("RELU"), 1),
    "one": Chain(lambda: Model(1, 1, 1, 1).conv(1, 1).unary("ABS"), 1),
    "flat": Chain(lambda: Model(1, 40).unary("ABS"), 1),
    "rank_3": Chain(lambda: Model(1, 6, 10).unary("ABS"), 1),
    "wide": Chain(lambda: Model(1, 30, 2, 130).add().maxpool(), 2),
}


@dataclass(frozen=True)
class Read:
    """A model, its graph, and its outputs on this GPU and on the CPU."""

    path: Path
    shapes: list[list[int]]
    graph: ExecutedGraph


@pytest.fixture(scope="module")
def graphs(tflite, layer, tmp_path_factory) -> dict[str, Read]:
    """The graphs of all chains, as a run asks for them: many at a time."""
    folder = tmp_path_factory.mktemp("chains")
    models = {name: chain.make() for name, chain in CHAINS.items()}
    paths = {name: model.write(folder / f"{name}.tflite") for name, model in models.items()}
    answers = tflite.call(
        "graphs",
        LIMIT_S,
        models=[(str(paths[name]), model.shapes) for name, model in models.items()],
        save_path=str(folder),
    )
    assert sorted(folder.iterdir()) == sorted(paths.values())  # nothing is left behind
    return {
        name: Read(paths[name], model.shapes, ExecutedGraph.from_json(answer["ok"]))
        for (name, model), answer in zip(models.items(), answers, strict=True)
    }


@pytest.mark.parametrize("name", CHAINS)
def test_kernels_are_told_from_conversions(graphs, name):
    chain, nodes = CHAINS[name], graphs[name].graph.nodes
    words = [node.type.partition("[")[0] for node in nodes]
    assert words.count("Kernel") == chain.kernels
    assert words.count("Layout") == chain.layouts
    made = chain.make()
    outputs = 2 if "tap" in name else 1
    ends = (0, 0) if name == "nothing" else (len(made.shapes), outputs)
    assert words[: ends[0]] == ["Convert"] * ends[0]
    assert words[len(words) - ends[1] :] == ["Convert"] * ends[1]
    assert len(words) == chain.kernels + chain.layouts + sum(ends)
    assert all((node.kind == "compute") == node.type.startswith("Kernel") for node in nodes)
    assert len({node.name for node in nodes}) == len(nodes)


def kernels(read: Read) -> list[str]:
    return [node.type for node in read.graph.compute()]


def test_what_does_the_same_has_the_same_type(graphs):
    assert kernels(graphs["conv_tap_maxpool"]) == kernels(graphs["conv_maxpool"])
    assert kernels(graphs["conv_conv"]) == kernels(graphs["conv"]) * 2
    assert kernels(graphs["conv_reshape"]) == kernels(graphs["conv"])


def test_what_is_fused_shows_in_the_type(graphs):
    names = (
        "conv",
        "conv_relu",
        "conv_hswish",
        "conv_swish",
        "conv_gelu",
        "conv_add",
        "conv_add_relu",
    )
    assert len({kernels(graphs[name])[0] for name in names}) == len(names)


def test_one_graph_is_as_many(tflite, graphs):
    """In another process, which starts from nothing."""
    read = graphs["conv_add_relu"]
    found = tflite.call("graph", LIMIT_S, converted=str(read.path), shapes=read.shapes)
    assert ExecutedGraph.from_json(found) == read.graph


@pytest.mark.parametrize("name", ["conv_swish", "conv_add_relu", "conv_tap_maxpool", "odd", "flat"])
def test_outputs_are_those_of_the_cpu(tflite, graphs, name):
    read = graphs[name]
    opened = {"converted": str(read.path), "shapes": read.shapes, "check": True}
    with connected("tflite_cpu", TARGET="host") as cpu:
        wanted = cpu.call("open", LIMIT_S, key=name, **opened)
    found = tflite.call("open", LIMIT_S, key=name, **opened)
    samples = tflite.call("time", LIMIT_S, key=name, runs=3)
    tflite.call("close", LIMIT_S)
    assert compare_outputs(found, wanted) is None
    assert len(samples) == 3
    assert min(samples) > 0


def test_a_file_without_a_signature(tflite, graphs, tmp_path):
    model = conv().add().unary("RELU")
    path = model.write(tmp_path / "bare.tflite", signature=False)
    found = tflite.call("graph", LIMIT_S, converted=str(path), shapes=model.shapes)
    assert ExecutedGraph.from_json(found) == graphs["conv_add_relu"].graph


def test_what_computes_something_else_is_no_evidence(layer, graphs):
    """Here with the files of two models that differ in an activation."""
    on_gpu, on_cpu = (graphs[name].path for name in ("conv_relu", "conv_hswish"))
    with pytest.raises(
        BackendError, match=r"on the GPU it computes something else than on the CPU"
    ):
        call_watched(f"{MINE}:read_against", on_gpu=str(on_gpu), on_cpu=str(on_cpu))
    assert call_watched(f"{MINE}:read_against", on_gpu=str(on_gpu), on_cpu=str(on_gpu))


def test_conversions_that_are_not_the_known_ones_are_no_guess():
    into, out_of = [1, 2], [3]
    check_ends("model", [2, 1, 9, 3], into, out_of)
    check_ends("model", [1, 2, 3], into, out_of)
    for hashes in ([1, 9, 2, 3], [1, 2, 3, 9], [1, 1, 9, 3], [1, 2], []):
        with pytest.raises(
            BackendError, match="which of its dispatches are kernels cannot be told"
        ):
            check_ends("model", hashes, into, out_of)


# --- LiteRT: devices and refusals ----------------------------------------------------------------


def test_the_environment_names_the_device(tflite, layer):
    environment = tflite.call("describe", LIMIT_S)["environment"]
    devices = dict(call_watched(f"{MINE}:devices"))
    name, _, software = environment["device"].partition(", ")
    assert name in devices
    assert software == ("a GPU in software" if devices[name] else "")
    assert environment["runtime"] == "litert"
    facts = tflite.call("describe", LIMIT_S)
    assert (facts["sessions"], facts["gated"], facts["graphs"]) == (True, False, True)


def test_it_greets(tflite):
    assert tflite.call("test_connection", LIMIT_S) == "hello backend !"


def test_a_model_that_is_not_all_for_the_gpu_is_refused(tflite, layer, tmp_path):
    """Never is a part of it run on the CPU without a word."""
    model = conv().reshape(1, 2, 7, 3, 4, 16)  # it takes four dimensions
    path = model.write(tmp_path / "five.tflite")
    calls = {
        "open": {"key": "five", "check": False},
        "graph": {},
    }
    for operation, arguments in calls.items():
        with pytest.raises(ModelRejectedError, match=r"GPU .*refuses the model: .*RESHAPE"):
            tflite.call(operation, LIMIT_S, converted=str(path), shapes=model.shapes, **arguments)


@pytest.mark.parametrize("content", [b"", b"no model at all " * 40], ids=["empty", "garbage"])
def test_a_broken_file_is_refused(tflite, content, tmp_path):
    path = tmp_path / "broken.tflite"
    path.write_bytes(content)
    with pytest.raises(ModelRejectedError, match=r"refuses the model: ."):
        tflite.call("open", LIMIT_S, key="m", converted=str(path), shapes=[], check=False)
    model = conv()  # and the next one is taken
    good = model.write(tmp_path / "good.tflite")
    tflite.call("open", LIMIT_S, key="g", converted=str(good), shapes=model.shapes, check=True)
    tflite.call("close", LIMIT_S)


def test_a_model_of_other_shapes_is_refused(tflite, tmp_path):
    path = conv().write(tmp_path / "conv.tflite")
    with pytest.raises(ModelRejectedError, match=r"refuses the model: .*\[1, 5, 5, 5\]"):
        tflite.call("open", LIMIT_S, key="m", converted=str(path), shapes=[[5, 5, 5]], check=False)


@pytest.mark.parametrize("name", ["tflite_gpu", "ncnn_vulkan"])
def test_no_device_is_an_error_that_helps(name, monkeypatch):
    needs({"tflite_gpu": "ai_edge_litert", "ncnn_vulkan": "ncnn"}[name])
    for variable in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.setenv(variable, "/no/such/driver.json")
    with connected(name, TARGET="host") as worker:
        for operation in ("describe", "test_connection"):
            with pytest.raises(DeviceError) as caught:
                worker.call(operation, LIMIT_S)
            words = str(caught.value)
            assert "Vulkan devices here with VK_DRIVER_FILES=/no/such/driver.json: none" in words
            assert "export VK_ICD_FILENAMES=" in words
            assert "docs/devices/gpu.md" in words


def test_a_crash_costs_that_process_only(tflite, tmp_path):
    """The next call gets a new process, with the device."""
    model = conv()
    path = model.write(tmp_path / "conv.tflite")
    arguments = {"key": "m", "converted": str(path), "shapes": model.shapes, "check": True}
    before = tflite.call("open", LIMIT_S, **arguments)
    (worker,) = psutil.Process(tflite._process.pid).children()  # the other one is its guard
    worker.kill()
    psutil.wait_procs([worker], LIMIT_S)
    with pytest.raises(WorkerCrashedError, match="was ended by SIGKILL"):
        tflite.call("time", LIMIT_S, key="m", runs=1)
    assert tflite.call("open", LIMIT_S, **arguments) == before
    tflite.call("close", LIMIT_S)


# --- ncnn ----------------------------------------------------------------------------------------

_SIZES = "7767517\n{layers} 9\nInput in0 0 1 in0\n{body}\n"
# of all convolutions the one whose shaders a driver in software compiles soonest
_CONV = "ConvolutionDepthWise c 1 1 in0 {out} 0=16 1=3 4=1 5=1 6=144 7=16"


def ncnn_model(folder: Path, name: str, body: str, *, out: tuple[int, ...] = (1, 16, 6, 5)) -> str:
    """A converted model, as the backend's own converter leaves it: 16 channels go in."""
    rng = np.random.default_rng(2)
    param = folder / f"{name}.ncnn.param"
    param.write_text(_SIZES.format(layers=1 + len(body.splitlines()), body=body))
    weights = rng.standard_normal(160).astype(np.float32)
    content = bytes(4) + weights.tobytes() if "Convolution" in body else b""
    param.with_suffix(".bin").write_bytes(content)
    ports = {
        "inputs": [{"name": "in0", "shape": [1, 16, 6, 5], "batch_axis": 0}],
        "outputs": [{"name": "out0", "shape": list(out), "batch_axis": 0}],
    }
    param.with_suffix(".json").write_text(json.dumps(ports))
    return str(param)


NCNN = {
    "relu": (_CONV.format(out="out0") + " 9=1", ["ConvolutionDepthWise[relu]"]),
    "clip": (_CONV.format(out="out0") + " 9=3 -23310=2,0.0,6.0", ["ConvolutionDepthWise[clip]"]),
    "hardswish": (
        _CONV.format(out="a") + "\nHardSwish h 1 1 a out0 0=1.666667e-1 1=5.000000e-1",
        ["ConvolutionDepthWise", "HardSwish"],
    ),
}


@pytest.mark.parametrize("name", ["relu", "hardswish"])
def test_ncnn_runs_what_it_does_on_the_cpu(ncnn, tmp_path, name):
    body, types = NCNN[name]
    converted = ncnn_model(tmp_path, name, body)
    opened = {"key": name, "converted": converted, "shapes": [[16, 6, 5]], "check": True}
    with connected("ncnn_cpu") as cpu:
        wanted = cpu.call("open", LIMIT_S, **opened)
    assert compare_outputs(ncnn.call("open", LIMIT_S, **opened), wanted) is None
    assert min(ncnn.call("time", LIMIT_S, key=name, runs=2)) > 0
    ncnn.call("close", LIMIT_S)
    graph = ncnn.call("graph", LIMIT_S, converted=converted, shapes=[[16, 6, 5]])
    assert [node.type for node in ExecutedGraph.from_json(graph).compute()] == types


def test_an_activation_inside_of_a_layer_costs_no_dispatch(layer, tmp_path):
    """What the .param file says is what is dispatched."""
    needs("ncnn")
    bodies = {
        "conv": _CONV.format(out="out0"),
        **{name: body for name, (body, _) in NCNN.items()},
    }
    params = [ncnn_model(tmp_path, name, body) for name, body in bodies.items()]
    found = call_watched(
        "nn_meter.builder.backends.ncnn.vulkan_counts:count_dispatches", params=params
    )
    counts = dict(zip(bodies, found, strict=True))
    assert counts["conv"] == counts["relu"] == counts["clip"] == counts["hardswish"] - 1


def test_ncnn_says_where_the_dispatches_contradict(layer, tmp_path, monkeypatch):
    from nn_meter.builder.backends.ncnn import vulkan

    needs("ncnn")
    backend = vulkan.NcnnVulkanBackend({})
    converted = ncnn_model(tmp_path, "relu", NCNN["relu"][0])
    told = ExecutedGraph.from_json(
        {"nodes": [{"name": "c", "type": "ConvolutionDepthWise[relu]", "inputs": [], "outputs": [],
                    "kind": "compute"}]}
    )  # fmt: skip
    for counts in ([3, 2], [0, 0]):
        monkeypatch.setattr(vulkan, "call_watched", lambda *_, counts=counts, **__: counts)
        with pytest.raises(BackendError, match="which of them share a kernel cannot be told"):
            backend._check(told, Path(converted))


def test_ncnn_refuses_what_it_would_run_on_the_cpu(ncnn, tmp_path):
    converted = ncnn_model(tmp_path, "sums", "CumulativeSum s 1 1 in0 out0 0=0", out=(1, 16, 6, 5))
    for operation, arguments in {"open": {"key": "s", "check": False}, "graph": {}}.items():
        with pytest.raises(ModelRejectedError, match=r"no Vulkan code for CumulativeSum"):
            ncnn.call(operation, LIMIT_S, converted=converted, shapes=[[16, 6, 5]], **arguments)


def test_ncnn_names_the_device(ncnn, layer):
    environment = ncnn.call("describe", LIMIT_S)["environment"]
    assert environment["device"].partition(", ")[0] in dict(call_watched(f"{MINE}:devices"))
    assert environment["runtime"] == "ncnn"
    assert ncnn.call("test_connection", LIMIT_S) == "hello backend !"


def test_litert_without_compiled_models_says_so(monkeypatch):
    import sys

    from nn_meter.builder.backends.tflite.gpu import Accelerator

    monkeypatch.setitem(sys.modules, "ai_edge_litert.compiled_model", None)
    with pytest.raises(NotInstalledError, match="ai-edge-litert with compiled models"):
        Accelerator().load(b"")
