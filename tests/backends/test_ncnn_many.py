"""Ncnn: many models through few runs of pnnx become what they become one by one."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_ncnn import (
    SHAPE,
    Shapes,
    alone,
    chain,
    installed,
    types,
    unknown_operator,
    wiring,
    written,
)

from nn_meter.builder.backends.base import ConvertsMany
from nn_meter.builder.backends.ncnn import backend as ncnn_backend
from nn_meter.builder.backends.ncnn import merge
from nn_meter.builder.backends.ncnn.backend import NcnnCPUBackend
from nn_meter.builder.backends.ncnn.convert import read_ports
from nn_meter.builder.backends.ncnn.graph import read_layers
from nn_meter.builder.backends.ncnn.weights import layer_weights
from nn_meter.builder.nn_modules.onnx import operators
from nn_meter.builder.nn_modules.onnx.models import Graph, run_model
from nn_meter.errors import ConversionError, NNMeterError, OperatorError


@pytest.fixture
def backend() -> NcnnCPUBackend:
    return installed()


# --- graphs --------------------------------------------------------------------------------------


def pairs(folder: Path) -> list[tuple[Path, Shapes]]:
    """Models of two operators, each operator among the first and the second ones."""
    models = []
    names = sorted(operators.__all__)
    for step, (index, name) in product((3, 11), enumerate(names)):
        chosen = [name, names[(index + step) % len(names)]]
        path = folder / f"{'_'.join(chosen)}.onnx"
        for shape in ([*SHAPE[:1], 8, 6], [24]):
            try:
                models.append((path, chain(path, chosen, shape)))
                break
            except OperatorError:
                pass  # no such pair
    return models[:40]


def test_together_models_become_what_they_become_alone(backend, tmp_path, monkeypatch):
    models = pairs(tmp_path)
    assert len(models) == 40
    runs = count_runs(monkeypatch)
    together = backend.executed_graphs([(str(path), s) for path, s in models], str(tmp_path))
    assert len(runs) < 10  # constants that are added cannot be told apart in one run
    with ThreadPoolExecutor(2) as pool:
        single = list(pool.map(lambda model: alone(backend, *model, tmp_path), models))
    for (path, _), found, wanted in zip(models, together, single, strict=True):
        if isinstance(wanted, NNMeterError):
            assert (type(found), str(found)) == (type(wanted), str(wanted)), path.stem
        else:
            assert wiring(found) == wiring(wanted), path.stem


def count_runs(monkeypatch) -> list[int]:
    """Count the runs of pnnx by the number of models in them."""
    runs: list[int] = []
    run = merge._run

    def counted(batch, root):
        runs.append(len(batch))
        return run(batch, root)

    monkeypatch.setattr(merge, "_run", counted)
    return runs


def test_a_model_that_fails_costs_only_itself(backend, tmp_path):
    names = ["good.onnx", "crash.onnx", "broken.onnx", "other.h5", "gone.onnx", "more.onnx"]
    good = chain(tmp_path / names[0], ["Conv", "Relu"])
    crash = unknown_operator(tmp_path / names[1])
    (tmp_path / names[2]).write_bytes(b"no model at all")
    (tmp_path / names[3]).write_bytes(b"x")
    more = chain(tmp_path / names[5], ["Add", "Relu"])
    shapes = [good, crash, good, good, good, more]
    saves = tmp_path / "saves"
    saves.mkdir()
    found = backend.executed_graphs(
        [(str(tmp_path / name), s) for name, s in zip(names, shapes, strict=True)], str(saves)
    )
    assert types(found[0]) == ["Convolution[relu]"]
    assert types(found[5]) == ["BinaryOp[add]", "ReLU"]
    for name, error in zip(names[1:5], found[1:5], strict=True):
        assert isinstance(error, ConversionError)
        assert name in str(error)
    assert not list(saves.iterdir())


def test_models_with_equal_constants_are_told_apart(backend, tmp_path, monkeypatch):
    """Pnnx makes one constant of two that are equal: then the models hang together."""

    def build(graph: Graph, x: str) -> str:
        vector = graph.constant(np.arange(SHAPE[0], dtype=np.float32).reshape(-1, 1, 1))
        return str(graph.op("Add", [graph.op("Tanh", [x]), vector]))

    models = []
    for number in range(2):
        path = tmp_path / f"{number}.onnx"
        models.append((str(path), written(path, build)))
    path = tmp_path / "other.onnx"
    models.append((str(path), chain(path, ["Relu"])))
    runs = count_runs(monkeypatch)
    first, second, other = backend.executed_graphs(models, str(tmp_path))
    wanted = wiring(alone(backend, Path(models[0][0]), models[0][1], tmp_path))
    assert wiring(first) == wiring(second) == wanted
    assert types(other) == ["ReLU"]
    assert runs == [3, 1, 1]


# --- files ---------------------------------------------------------------------------------------

Models = list[tuple[str, Shapes]]


def folders(root: Path, count: int) -> list[str]:
    made = [root / str(number) for number in range(count)]
    for folder in made:
        folder.mkdir(parents=True)
    return [str(folder) for folder in made]


def one_by_one(backend: NcnnCPUBackend, models: Models, root: Path) -> list[str | NNMeterError]:
    def converted(model: tuple[str, Shapes], folder: str) -> str | NNMeterError:
        try:
            return backend.convert_model(model[0], folder, model[1])
        except NNMeterError as exc:
            return exc

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(converted, models, folders(root, len(models))))


def outputs(backend: NcnnCPUBackend, converted: str, feeds: Sequence[Any]) -> list[np.ndarray]:
    session = backend.open(converted, [feed.shape[1:] for feed in feeds])
    found = session.outputs(feeds)
    session.close()
    return found


def ports(converted: str) -> list[Any]:
    """All of the inputs and outputs but their names."""
    found = read_ports(Path(converted))
    return [[(p.shape, p.batch_axis) for p in side] for side in (found.inputs, found.outputs)]


def random_feeds(shapes: Shapes) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, *shape)).astype(np.float32) for shape in shapes]


def assert_same(backend: NcnnCPUBackend, found: Any, wanted: Any, shapes: Shapes) -> None:
    """The same files but for names, which compute the same; or the same error."""
    if isinstance(wanted, NNMeterError):
        assert (type(found), str(found)) == (type(wanted), str(wanted))
        return
    assert Path(found).name == Path(wanted).name
    listed = [sorted(path.name for path in Path(path).parent.iterdir()) for path in (found, wanted)]
    assert listed[0] == listed[1]
    weights = [Path(path).with_suffix(".bin").read_bytes() for path in (found, wanted)]
    assert weights[0] == weights[1]
    assert ports(found) == ports(wanted)
    layers = [
        [(layer.type, layer.params) for layer in read_layers(Path(path).read_text())]
        for path in (found, wanted)
    ]
    assert layers[0] == layers[1]
    feeds = random_feeds(shapes)
    pairs = zip(outputs(backend, found, feeds), outputs(backend, wanted, feeds), strict=True)
    for got, want in pairs:
        np.testing.assert_array_equal(got, want)


def every_operator(folder: Path) -> Models:
    """A model of each operator, now of one replica and now of four; and chains of them."""
    kinds = [*((name,) for name in sorted(operators.__all__)), ("Conv", "Hswish")]
    kinds += [("Add", "Conv", "BatchNorm"), ("Conv", "Split"), ("FC", "PRelu")]
    models = []
    for number, names in enumerate(kinds):
        path = folder / f"{number}.{'_'.join(names)}.onnx"
        for shape in ([*SHAPE[:1], 8, 6], [24]):
            try:
                shapes = chain(path, names, shape, replicas=1 + 3 * (number % 2))
                models.append((str(path), shapes))
                break
            except OperatorError:
                pass  # not on such a shape
    assert len(models) == len(kinds)
    return models


def others(folder: Path) -> Models:
    """Models of no chain, one of which pnnx refuses, and no model."""

    def leaky(graph: Graph, x: str) -> str:
        return str(graph.op("PRelu", [x, graph.weight(SHAPE[0], 1, 1)]))

    built = {
        "refused": lambda g, x: g.op("AveragePool", [x], kernel_shape=[3, 3], pads=[0, 0, 1, 1]),
        "matmul": lambda g, x: g.op("MatMul", [x, g.weight(6, 5)]),
        "constant": lambda g, x: g.op("Sub", [g.weight(SHAPE[0], 1, 1), x]),
        "several": lambda g, x: [g.op("Flatten", [y := leaky(g, x)]), y, g.op("Relu", [x])],
    }
    models = [(str(path := folder / f"{n}.onnx"), written(path, b)) for n, b in built.items()]
    (folder / "other.h5").write_bytes(b"x")
    return [*models, (str(folder / "other.h5"), [SHAPE])]


def test_files_made_in_one_go_are_those_made_one_by_one(backend, tmp_path, monkeypatch):
    models = every_operator(tmp_path)
    models[7:7] = others(tmp_path)  # those that are refused stand between others
    runs = count_runs(monkeypatch)
    together = backend.convert_models(models, folders(tmp_path / "together", len(models)))
    assert runs[0] == len(models) - 1
    assert set(runs[1:]) <= {1}, "in one run or alone"
    assert len(runs) <= 3  # constants that are added cannot be told apart in one run
    single = one_by_one(backend, models, tmp_path / "single")
    assert sum(isinstance(found, str) for found in single) > 30
    assert {
        Path(models[n][0]).stem for n, made in enumerate(single) if not isinstance(made, str)
    } >= {"refused", "other"}
    for (_, shapes), found, wanted in zip(models, together, single, strict=True):
        assert_same(backend, found, wanted, shapes)
    assert isinstance(backend, ConvertsMany)


def test_replicas_compute_what_the_source_does(backend, tmp_path):
    models = []
    for names in (("Add", "Conv"), ("Conv", "Relu")):
        path = tmp_path / f"{names[0]}.onnx"
        models.append((str(path), chain(path, names, replicas=4)))
    found = backend.convert_models(models, folders(tmp_path / "saves", 2))
    for (path, shapes), converted in zip(models, found, strict=True):
        feeds = random_feeds(shapes)
        wanted = run_model(path, feeds)
        assert len(wanted) == 4
        for got, want in zip(outputs(backend, converted, feeds), wanted, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-4)


def test_a_model_that_breaks_the_run_costs_only_its_own_files(backend, tmp_path):
    names = ["good.onnx", "crash.onnx", "broken.onnx", "gone.onnx", "more.onnx"]
    shapes = [
        chain(tmp_path / names[0], ["Conv", "Relu"]),
        unknown_operator(tmp_path / names[1]),
        [SHAPE],
        [SHAPE],
        chain(tmp_path / names[4], ["Conv", "Add"]),
    ]
    (tmp_path / names[2]).write_bytes(b"no model at all")
    models = [(str(tmp_path / name), s) for name, s in zip(names, shapes, strict=True)]
    saves = folders(tmp_path / "saves", len(models))
    found = backend.convert_models(models, saves)
    single = one_by_one(backend, models, tmp_path / "single")
    assert [isinstance(made, NNMeterError) for made in found] == [False, True, True, True, False]
    for made, wanted, shape in zip(found, single, shapes, strict=True):
        assert_same(backend, made, wanted, shape)
    for name, made, folder in zip(names[1:4], found[1:4], saves[1:4], strict=True):
        assert isinstance(made, ConversionError)
        assert name in str(made)
        assert not list(Path(folder).iterdir())


def test_a_shape_that_is_not_the_models_is_refused(backend, tmp_path):
    """The words are those of the model alone, with its own inputs; others are not concerned."""
    models = []
    for number in range(3):
        path = tmp_path / f"{number}.onnx"
        models.append((str(path), chain(path, ["Conv", "Add"])))
    models[1] = (models[1][0], [SHAPE, SHAPE[:2]])
    together = backend.convert_models(models, folders(tmp_path / "together", 3))
    single = one_by_one(backend, models, tmp_path / "single")
    assert isinstance(single[1], ConversionError)
    for (_, shapes), found, wanted in zip(models, together, single, strict=True):
        assert_same(backend, found, wanted, shapes)


def test_where_weights_cannot_be_told_apart_models_are_converted_alone(
    backend, tmp_path, monkeypatch
):
    models = []
    for number in range(3):
        path = tmp_path / f"{number}.onnx"
        models.append((str(path), chain(path, ["Conv", "BatchNorm"])))
    monkeypatch.setattr(ncnn_backend, "layer_weights", lambda *args, **kwargs: None)
    runs = count_runs(monkeypatch)
    found = backend.convert_models(models, folders(tmp_path / "together", 3))
    assert sorted(runs) == [1, 1, 1, 2, 3]
    single = one_by_one(backend, models, tmp_path / "single")
    for (_, shapes), made, wanted in zip(models, found, single, strict=True):
        assert_same(backend, made, wanted, shapes)


def test_every_byte_of_the_weights_is_one_layers(backend):
    ncnn = pytest.importorskip("ncnn")
    layers = read_layers(
        """7767517
7 8
Input in0 0 1 in0
Nonesuch n 1 1 in0 a
Convolution c 1 1 a b 0=2 1=3 4=1 5=1 6=36
Split s 1 2 b c d
MemoryData m 0 1 e 0=5
PReLU p 1 1 c f 0=2
BinaryOp a 2 1 d e g 0=0
"""
    )
    sizes = [0, 0, 4 + 4 * 36 + 4 * 2, 0, 4 * 5, 4 * 2, 0]
    tag = bytes(4)  # a convolution's weights begin with their type: float32
    content = tag + bytes(number % 251 for number in range(sum(sizes) - 4))

    def told(weights: bytes) -> list[bytes] | None:
        return layer_weights(layers, weights, net=backend._net(), ncnn=ncnn)

    found = told(content)
    assert found is not None
    assert [len(share) for share in found] == sizes
    assert b"".join(found) == content
    assert told(content + b"more") is None
    assert told(content[:-1]) is None
