"""What every backend that opens sessions does, said once; run on each with each IMPLEMENT it takes.

Models come from the framework's own writer, and so do the outputs that are right.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn_meter.builder.backends.base import (
    Describes,
    Environment,
    OpensSessions,
    SessionBackend,
)
from nn_meter.builder.backends.iree.backend import IREECPUBackend
from nn_meter.builder.backends.mnn.backend import MNNCPUBackend
from nn_meter.builder.backends.ncnn.backend import NcnnCPUBackend
from nn_meter.builder.backends.onnxruntime.backend import OnnxRuntimeCPUBackend
from nn_meter.builder.backends.openvino.backend import (
    OpenVINOCPUBackend,
    OpenVINOProfiler,
)
from nn_meter.builder.backends.tflite.backend import (
    TFLiteCPUBackend,
    TFLiteProfiler,
)
from nn_meter.builder.nn_modules.frameworks import get_framework, layout_of, suffix_of
from nn_meter.errors import BackendError, ConfigError, ConversionError, ModelRejectedError
from nn_meter.latency import Latency
from nn_meter.reference import reference_inputs

FRAMEWORKS = {"onnx": "onnx", "torch": "torch", "tensorflow": "tensorflow"}
CONFIG = {
    "COUT": 6,
    "KERNEL_SIZE": 3,
    "PADDING": "same",
    "STRIDES": 1,
    "POOL_STRIDES": 2,
}


@dataclass(frozen=True)
class Kind:
    """A backend, and what the tests need to know of it beforehand."""

    cls: type[SessionBackend]
    module: str
    runtime: str
    loads: str
    configs: tuple[tuple[str, Any], ...] = ()
    devices: tuple[str, str] = ("CPU", "CPU")
    """Where it runs with one thread, and with more."""

    def make(self, **configs: Any) -> SessionBackend:
        return self.cls({**dict(self.configs), **configs})


KINDS = {
    "onnxruntime_cpu": Kind(OnnxRuntimeCPUBackend, "onnxruntime", "onnxruntime", ".onnx"),
    "openvino_cpu": Kind(OpenVINOCPUBackend, "openvino", "openvino", ".xml"),
    "tflite_cpu": Kind(
        TFLiteCPUBackend, "ai_edge_litert", "litert", ".tflite", (("TARGET", "host"),)
    ),
    "ncnn_cpu": Kind(NcnnCPUBackend, "ncnn", "ncnn", ".ncnn.param"),
    "mnn_cpu": Kind(MNNCPUBackend, "MNN", "mnn", ".mnn"),
    "iree_cpu": Kind(
        *(IREECPUBackend, "iree.runtime", "iree", ".vmfb"), devices=("local-sync", "local-task")
    ),
}
# A model by the operators in it; what they show beside that outputs are right:
MODELS = {
    "conv_relu": ["Conv", "Relu"],
    "concat_relu": ["Concat", "Relu"],  # which of two like inputs is which
    "split_relu": ["Split", "Relu"],  # which of two like outputs is which
    "conv_add": ["Conv", "Add"],  # two inputs of different shapes
    "flatten_fc": ["Flatten", "FC"],
    "fc_fc": ["Flatten", "FC", "FC"],  # weights that are used where they stand
}


def needs(module: str) -> None:
    try:
        there = find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        there = False
    if not there:
        pytest.skip(f"needs {module}, which is not installed")


@dataclass(frozen=True)
class Made:
    """A model file, the shapes of its inputs, and its outputs for any inputs."""

    path: Path
    shapes: list[list[int]]
    run: Callable[[list[np.ndarray]], list[np.ndarray]]


Maker = Callable[[str, str], Made]


@pytest.fixture(scope="session")
def make(tmp_path_factory) -> Maker:
    """Models by implementation and name; each is made once."""
    made: dict[tuple[str, str], Made] = {}

    def model(implement: str, name: str) -> Made:
        if (implement, name) not in made:
            framework = get_framework(implement)
            classes = importlib.import_module(f"nn_meter.builder.nn_modules.{implement}.operators")
            shape = [7, 6, 4] if layout_of(implement) == "channels_last" else [4, 7, 6]
            operators = []
            for operator in MODELS[name]:
                operators.append(getattr(classes, operator)(shape, CONFIG))
                shape = operators[-1].get_output_shape()
            framework.seed_weights(1)
            built, shapes = framework.chain_model(operators)
            path = tmp_path_factory.mktemp(implement) / f"{name}{suffix_of(implement)}"
            framework.save_model(built, path, shapes)
            made[implement, name] = Made(
                path, shapes, lambda feeds: framework.run_model(path, feeds)
            )
        return made[implement, name]

    return model


@pytest.fixture(params=KINDS)
def kind(request) -> Kind:
    """Every backend whose runtime is installed."""
    found = KINDS[request.param]
    needs(found.module)
    return found


@pytest.fixture
def backend(kind) -> SessionBackend:
    return kind.make()


@pytest.fixture(
    params=[(name, implement) for name, kind in KINDS.items() for implement in kind.cls.takes],
    ids="-".join,
)
def pair(request) -> tuple[SessionBackend, str]:
    """Every backend with every IMPLEMENT that it takes."""
    name, implement = request.param
    needs(KINDS[name].module)
    needs(FRAMEWORKS[implement])
    return KINDS[name].make(), implement


@pytest.fixture
def first(kind, make) -> Made:
    """A model that the backend takes."""
    implement = kind.cls.takes[0]
    needs(FRAMEWORKS[implement])
    return make(implement, "conv_relu")


def opened(backend: SessionBackend, model: Made, folder: Path) -> Any:
    converted = backend.convert_model(str(model.path), str(folder), model.shapes)
    return backend.open(converted, model.shapes)


def feeds_of(model: Made, seed: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((1, *shape)).astype(np.float32) for shape in model.shapes]


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert [output.shape for output in found] == [output.shape for output in wanted]
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * np.abs(want).max())


def contents(path: Path) -> dict[str, str]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {
        str(file.relative_to(path.parent)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file()
    }


# --- sessions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_the_models_own(pair, make, name, tmp_path):
    backend, implement = pair
    model = make(implement, name)
    session = opened(backend, model, tmp_path)
    feeds = feeds_of(model)
    assert_same(session.outputs(feeds), model.run(feeds))
    session.close()


def test_inputs_of_one_shape_are_not_swapped(pair, make, tmp_path):
    backend, implement = pair
    model = make(implement, "concat_relu")
    session = opened(backend, model, tmp_path)
    a, b = feeds_of(model)
    axis = -1 if layout_of(implement) == "channels_last" else 1
    for feeds in ([a, b], [b, a]):
        (found,) = session.outputs(feeds)
        np.testing.assert_allclose(found, np.maximum(np.concatenate(feeds, axis), 0), atol=1e-6)
    session.close()


def test_times_runs_in_nanoseconds(pair, make, tmp_path):
    backend, implement = pair
    session = opened(backend, make(implement, "conv_relu"), tmp_path)
    for n in (1, 7):
        samples = session.time(n)
        assert samples.dtype == np.int64
        assert samples.shape == (n,)
        assert (samples > 0).all()
        assert (samples < 10**9).all()
    session.close()


def test_running_does_not_change_what_is_run(pair, make, tmp_path):
    """Neither timing nor other inputs in between leave a trace."""
    backend, implement = pair
    model = make(implement, "conv_add")
    session = opened(backend, model, tmp_path)
    reference = reference_inputs(model.shapes)
    before = [output.copy() for output in session.outputs(reference)]
    session.time(3)
    others = session.outputs(feeds_of(model))
    session.time(3)
    assert_same(session.outputs(reference), before)
    assert_same(others, model.run(feeds_of(model)))
    session.close()


def test_several_models_stay_loaded_at_once(pair, make, tmp_path):
    backend, implement = pair
    models = [make(implement, name) for name in ("conv_relu", "concat_relu")]
    sessions = [opened(backend, model, tmp_path) for model in models]
    for session in sessions:
        session.time(2)
    sessions[0].close()
    assert_same(sessions[1].outputs(feeds_of(models[1])), models[1].run(feeds_of(models[1])))
    sessions[1].close()


def test_a_model_that_is_loaded_again_and_again_stays_sound(pair, make, tmp_path):
    """Weights stay where they are, and as they are, while others come and go."""
    backend, implement = pair
    model = make(implement, "fc_fc")
    converted = backend.convert_model(str(model.path), str(tmp_path), model.shapes)
    feeds = feeds_of(model)
    sessions = []
    for _ in range(6):
        sessions.append(backend.open(converted, model.shapes))
        sessions[-1].time(30)
        if len(sessions) > 2:
            sessions.pop(0).close()
        gc.collect()
    for session in sessions:
        session.time(30)
        assert_same(session.outputs(feeds), model.run(feeds))
        session.close()


def test_wrong_number_of_inputs_is_an_error(pair, make, tmp_path):
    backend, implement = pair
    model = make(implement, "concat_relu")
    session = opened(backend, model, tmp_path)
    with pytest.raises(ValueError, match=r"\d|longer|shorter"):
        session.outputs(feeds_of(model)[:1])
    session.close()


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"no model at all " * 40], ids=["empty", "garbage"])
def test_garbage_is_refused_in_the_runtimes_words(backend, kind, content, tmp_path):
    path = tmp_path / f"garbage{kind.loads}"
    path.write_bytes(content)
    with pytest.raises(ModelRejectedError, match=r"refuses the model: .") as refusal:
        backend.open(str(path), [[4, 4, 4]])
    cause = refusal.value.__cause__
    assert cause is not None
    assert str(cause).strip().splitlines()[-1].strip() in str(refusal.value)


def test_a_model_of_other_shapes_is_refused(backend, first, tmp_path):
    converted = backend.convert_model(str(first.path), str(tmp_path), first.shapes)
    for shapes in ([[5, 5, 5]], [*first.shapes, *first.shapes]):
        with pytest.raises(ModelRejectedError, match=r"refuses the model: ."):
            backend.open(converted, shapes)


IMPLEMENTS = {  # of which a model of that suffix may be
    ".onnx": {"onnx", "torch"},
    ".tflite": {"tensorflow"},
    "": {"tensorflow"},  # a SavedModel
    ".h5": set(),
}


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        pytest.param(name, suffix, id=f"{name}-{suffix}")
        for name, kind in KINDS.items()
        for suffix, implements in IMPLEMENTS.items()
        if not implements & set(kind.cls.takes)
    ],
    indirect=["kind"],
)
def test_what_it_cannot_take_is_refused_by_name(backend, suffix, tmp_path):
    path = tmp_path / f"my_model{suffix}"
    if suffix:
        path.write_bytes(b"x")
    else:
        path.mkdir()
        (path / "saved_model.pb").write_bytes(b"x")
    saves = tmp_path / "saves"
    saves.mkdir()
    with pytest.raises(ConversionError) as refusal:
        backend.convert_model(str(path), str(saves), [[4, 4, 4]])
    for word in (path.name, *backend.takes):
        assert word in str(refusal.value)
    assert not list(saves.iterdir())


# --- converting ----------------------------------------------------------------------------------


def test_converting_leaves_its_input_as_it_was(pair, make, tmp_path):
    backend, implement = pair
    model = make(implement, "conv_relu")
    before = contents(model.path)
    converted = Path(backend.convert_model(str(model.path), str(tmp_path), model.shapes))
    backend.open(str(converted), model.shapes).close()
    assert contents(model.path) == before
    assert converted.exists()
    assert converted == model.path or converted.name.partition(".")[0] == "conv_relu"


def test_converting_again_leaves_nothing_behind(pair, make, tmp_path):
    backend, implement = pair
    model = make(implement, "conv_relu")
    converted = backend.convert_model(str(model.path), str(tmp_path), model.shapes)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert backend.convert_model(str(model.path), str(tmp_path), model.shapes) == converted
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert not [name for name in files if name.startswith(".")]


def test_another_model_of_the_same_name_takes_its_place(pair, make, tmp_path):
    backend, implement = pair
    older, newer = make(implement, "conv_relu"), make(implement, "flatten_fc")
    saves, same = tmp_path / "saves", tmp_path / "same"
    saves.mkdir()
    same.mkdir()
    for model in (older, newer):
        path = same / f"model{suffix_of(implement)}"
        path.unlink(missing_ok=True)
        path.symlink_to(model.path, target_is_directory=model.path.is_dir())
        converted = backend.convert_model(str(path), str(saves), model.shapes)
        session = backend.open(converted, model.shapes)
        assert_same(session.outputs(feeds_of(model)), model.run(feeds_of(model)))
        session.close()


# --- the backend ---------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_describes_its_environment(kind, threads):
    backend = kind.make(THREADS=threads)
    assert isinstance(backend, Describes)
    found = backend.describe()
    assert found.runtime == kind.runtime
    assert found.version[0].isdigit()
    assert found.device == kind.devices[threads > 1]
    assert found.threads == threads
    assert found.dtype == "float32"
    assert found.host
    assert Environment(**found.to_json()) == found


def test_opens_with_more_threads(kind, first, tmp_path):
    session = opened(kind.make(THREADS=2), first, tmp_path)
    assert_same(session.outputs(feeds_of(first)), first.run(feeds_of(first)))
    session.close()


def test_says_hello(backend):
    assert isinstance(backend, OpensSessions)
    assert backend.test_connection() == "hello backend !"


def test_profiles_a_file_in_milliseconds(kind, first, tmp_path):
    results = kind.make(RUNS=5, WARMUPS=1).profile_model_file(
        str(first.path), str(tmp_path / "new"), first.shapes
    )
    latency = results.get("latency")
    assert isinstance(latency, Latency)
    assert 0 < latency.avg < 1000


@pytest.mark.parametrize("configs", [{}, {"TARGET": "phone"}], ids=["missing", "unknown"])
def test_where_tflite_runs_is_never_guessed(configs):
    backend = TFLiteCPUBackend(configs)
    for call in (backend.test_connection, backend.describe, lambda: backend.open("m", [])):
        with pytest.raises(ConfigError, match=r"TARGET must say host .* or android"):
            call()


def test_a_device_that_is_not_there_is_named_beside_those_that_are():
    needs("openvino")
    from nn_meter.builder.backends import OpenVINOBackend

    backend = OpenVINOBackend({"DEVICE": "TOASTER"})
    with pytest.raises(BackendError, match=r"no device TOASTER here; there is: .*CPU"):
        backend.test_connection()


def test_profilers_can_be_derived_from():
    assert OpenVINOCPUBackend.profiler_class is OpenVINOProfiler
    assert TFLiteCPUBackend.profiler_class is TFLiteProfiler


# --- SavedModels of others -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def keras_model(tmp_path_factory) -> Made:
    """A Keras export as Keras makes it: batch open, no .tflite inside, twelve inputs and outputs.

    Its inputs are subtracted in turn, last to first: any two swapped would show.
    """
    needs("tensorflow")
    from nn_meter.builder.nn_modules.tensorflow.library import keras

    inputs = [keras.Input((6,), name=f"input_{n}") for n in range(1, 12)]
    inputs.append(keras.Input((2, 3), name="input_12"))
    outputs = [keras.layers.Flatten()(inputs[-1])]
    for n, tensor in enumerate(reversed(inputs[:-1])):
        weights = keras.initializers.RandomNormal(stddev=0.4, seed=n)
        flowing = keras.layers.Dense(6, kernel_initializer=weights)(outputs[-1])
        outputs.append(keras.layers.Subtract()([keras.layers.ReLU()(flowing), tensor]))
    return exported(keras.Model(inputs, outputs), tmp_path_factory.mktemp("keras") / "many.v1")


@pytest.fixture(scope="session")
def open_model(tmp_path_factory) -> Made:
    """A Keras export that takes pictures of any size."""
    needs("tensorflow")
    from nn_meter.builder.nn_modules.tensorflow.library import keras

    picture = keras.Input((None, None, 3))
    model = keras.Model(picture, keras.layers.Conv2D(4, 3, padding="same")(picture))
    return exported(model, tmp_path_factory.mktemp("keras") / "open", [[6, 5, 3]])


def exported(model: Any, path: Path, shapes: list[list[int]] | None = None) -> Made:
    model.export(path, verbose=False)
    shapes = shapes or [list(tensor.shape[1:]) for tensor in model.inputs]

    def run(feeds: list[np.ndarray]) -> list[np.ndarray]:
        outputs = model(feeds if len(feeds) > 1 else feeds[0])
        return [t.numpy() for t in (outputs if isinstance(outputs, list) else [outputs])]

    return Made(path, shapes, run)


@pytest.fixture(params=["openvino_cpu", "tflite_cpu"])
def takes_saved_models(request) -> SessionBackend:
    needs(KINDS[request.param].module)
    return KINDS[request.param].make()


@pytest.mark.parametrize("name", ["keras_model", "open_model"])
def test_exported_by_keras(takes_saved_models, name, request, tmp_path):
    model = request.getfixturevalue(name)
    converted = Path(takes_saved_models.convert_model(str(model.path), str(tmp_path), model.shapes))
    assert converted.stem == model.path.name
    session = takes_saved_models.open(str(converted), model.shapes)
    feeds = feeds_of(model)
    assert_same(session.outputs(feeds), model.run(feeds))
    session.close()


@pytest.mark.parametrize("name", ["keras_model", "open_model"])
def test_converted_by_tensorflows_usual_way(takes_saved_models, name, request, tmp_path):
    """Such a ``.tflite`` file has its inputs in the order of a hash table, and open sizes."""
    model = request.getfixturevalue(name)
    from nn_meter.builder.nn_modules.tensorflow.library import tf

    path = tmp_path / "usual.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(model.path)).convert())
    assert takes_saved_models.convert_model(str(path), str(tmp_path)) == str(path)
    session = takes_saved_models.open(str(path), model.shapes)
    feeds = feeds_of(model)
    found, wanted = session.outputs(feeds), model.run(feeds)
    if isinstance(takes_saved_models, OpenVINOCPUBackend):
        # It does not read signatures, so nothing tells it the order of the outputs.
        for outputs in (found, wanted):
            outputs.sort(key=lambda output: float(output.ravel()[0]))
    assert_same(found, wanted)
    session.close()


def test_openvino_keeps_weights_as_they_are(make, tmp_path):
    needs("openvino")
    needs("tensorflow")
    model = make("tensorflow", "conv_relu")
    converted = OpenVINOCPUBackend({}).convert_model(str(model.path), str(tmp_path), model.shapes)
    assert 'element_type="f32"' in Path(converted).read_text(encoding="utf-8")
    assert 'element_type="f16"' not in Path(converted).read_text(encoding="utf-8")


def test_a_broken_saved_model_is_a_conversion_error(takes_saved_models, tmp_path):
    path = tmp_path / "broken"
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"no model at all")
    saves = tmp_path / "saves"
    saves.mkdir()
    root = logging.getLogger()
    logs = root.level, list(root.handlers), list(root.filters)
    with pytest.raises(ConversionError, match=r"^broken: \w+ cannot convert it.*: ."):
        takes_saved_models.convert_model(str(path), str(saves), [[4]])
    assert not list(saves.iterdir())
    assert logs == (root.level, list(root.handlers), list(root.filters))


# --- what happens in a process of its own --------------------------------------------------------


def run_alone(script: str, *arguments: str, home: Path) -> str:
    """Run a script in a fresh Python whose home is ``home``; returns its standard output."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "HOME": str(home), "CI": "", "TF_BUILD": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_modules_need_numpy_only(kind, tmp_path):
    """Worker processes of other virtual environments import them without nn-Meter's libraries."""
    script = """if True:
        import importlib, sys
        for name in ("pydantic", "yaml", "click", "rich", "onnx", "filelock", sys.argv[2]):
            sys.modules[name] = None
        importlib.import_module(sys.argv[1])
    """
    assert run_alone(script, kind.cls.__module__, kind.module, home=tmp_path) == ""


def test_without_the_runtime_it_says_how_to_get_it(kind, tmp_path):
    script = """if True:
        import importlib, importlib.metadata, sys
        sys.modules[sys.argv[3]] = None
        known = importlib.metadata.version
        def version(name):
            if name.startswith("nn"):
                return known(name)
            raise importlib.metadata.PackageNotFoundError(name)
        importlib.metadata.version = version
        cls = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
        from nn_meter.errors import NotInstalledError
        backend = cls({"TARGET": "host"})
        for call in (backend.describe, backend.test_connection, lambda: backend.open("m", [[4]])):
            try:
                call()
            except NotInstalledError as exc:
                assert "pip install" in str(exc), exc
            else:
                raise SystemExit("no error")
    """
    run_alone(script, kind.cls.__module__, kind.cls.__name__, kind.module, home=tmp_path)


def test_is_silent_and_leaves_nothing_at_home(pair, make, tmp_path):
    """Nothing on standard output, and no telemetry: OpenVINO's first trace is a file at home."""
    backend, implement = pair
    model = make(implement, "conv_relu")
    home = tmp_path / "home"
    home.mkdir()
    script = """if True:
        import importlib, json, sys
        module, name, model, folder, shapes = sys.argv[1:]
        backend = getattr(importlib.import_module(module), name)({"TARGET": "host"})
        backend.describe()
        shapes = json.loads(shapes)
        session = backend.open(backend.convert_model(model, folder, shapes), shapes)
        session.time(3)
        session.close()
        assert "openvino_telemetry" not in sys.modules
        assert "tensorflow" not in sys.modules
    """
    cls = type(backend)
    output = run_alone(
        script,
        cls.__module__,
        cls.__name__,
        str(model.path),
        str(tmp_path),
        str(model.shapes),
        home=home,
    )
    assert output == ""
    assert not list(home.iterdir())
