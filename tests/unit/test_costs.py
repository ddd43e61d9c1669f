"""What kernels cost: the models that they are cut out as, and what follows from their times."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from nn_meter.errors import ModelRejectedError
from nn_meter.kernel_detector.check.prepare import prepare
from nn_meter.kernel_detector.costs import Costs
from nn_meter.kernel_detector.costs.cutting import Cut, Cutter, Excerpt
from nn_meter.kernel_detector.costs.estimate import Cost, cost_of, costs_of
from nn_meter.kernel_detector.costs.timing import Timed, Times
from nn_meter.kernel_detector.kernels import Kernel
from nn_meter.kernel_detector.readers import read_model

# --- cutting -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """Two equal blocks whose sums read what came before, a pool, and a fully connected layer."""
    rng = np.random.default_rng(0)

    def weights(name, *shape):
        return numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)

    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [helper.make_node("Conv", ["x", "w0"], ["c0"], "conv0", **conv)]
    before = "c0"
    for i in (1, 2):
        nodes += [
            helper.make_node("Conv", [before, f"w{i}"], [f"c{i}"], f"conv{i}", **conv),
            helper.make_node("Add", [f"c{i}", before], [f"a{i}"], f"add{i}"),
            helper.make_node("Relu", [f"a{i}"], [f"r{i}"], f"relu{i}"),
        ]
        before = f"r{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [before], ["p"], "pool"),
        helper.make_node("Reshape", ["p", "sizes"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w3"], ["g"], "fc"),
        helper.make_node("Dropout", ["g"], ["d"], "drop"),
        helper.make_node("Softmax", ["d"], ["y"], "softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [
            weights("w0", 4, 4, 3, 3),
            *(weights(f"w{i}", 4, 4, 3, 3) for i in (1, 2)),
            weights("w3", 4, 5),
            numpy_helper.from_array(np.array([1, 4], np.int64), "sizes"),
        ],
    )
    folder = tmp_path_factory.mktemp("residual")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "residual.onnx")
    return cutter_of(folder / "residual.onnx", RESIDUAL, folder / "copy")


RESIDUAL = {
    "stem": ["conv0"],
    "block#1": ["conv1", "add1", "relu1"],
    "block#2": ["conv2", "add2", "relu2"],
    "pool": ["pool", "flat"],
    "fc": ["fc", "drop"],
    "softmax": ["softmax"],
}


def kernel(name, ops):
    return Kernel(name=name, type=name, operators=(), ops=tuple(ops), inputs=(), outputs=())


def cutter_of(path, ops, folder):
    folder.mkdir()
    graph = read_model(path)
    kernels = [kernel(name, found) for name, found in ops.items()]
    copy = prepare(path, graph, folder)
    return Cutter(copy, graph, kernels), {each.name: each for each in kernels}, copy


def run(model, feeds):
    names = [value.name for value in model.graph.input]
    assert set(names) == set(feeds)
    found = ReferenceEvaluator(model).run(None, feeds)
    return dict(zip([value.name for value in model.graph.output], found, strict=True))


def values_inside(cutter, copy):
    """What every tensor of the copy holds on its input."""
    model = onnx.load(copy.path)
    inner = [out for node in model.graph.node for out in node.output]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(t, 1, None) for t in inner)
    feeds = dict(copy.inputs)
    return {**feeds, **run(model, feeds)}


@pytest.mark.parametrize("name", RESIDUAL)
def test_a_kernel_cut_out_alone_computes_what_it_does_inside(residual, name):
    cutter, kernels, copy = residual
    inside = values_inside(cutter, copy)
    model = cutter.cut(kernels[name]).alone.make()
    onnx.checker.check_model(model)
    feeds = {
        value.name: inside[value.name].reshape([d.dim_value for d in shape_of(value)])
        for value in model.graph.input
    }
    for tensor, value in run(model, feeds).items():
        np.testing.assert_allclose(value, inside[tensor], rtol=1e-4, atol=1e-5)


def shape_of(value):
    return value.type.tensor_type.shape.dim


@pytest.mark.parametrize("name", RESIDUAL)
def test_its_other_models_differ_by_it_and_by_outputs_only(residual, name):
    cutter, kernels, _ = residual
    cut = cutter.cut(kernels[name])
    if cut.feeding is None:
        assert (name, cut.shares) == ("stem", {})
        assert cut.behind is cut.both is cut.alone
        return
    feeding, behind, both = (e.make() for e in (cut.feeding, cut.behind, cut.both))
    for model in (feeding, behind, both):
        onnx.checker.check_model(model)
    names = [{node.name for node in model.graph.node} for model in (feeding, behind, both)]
    assert names[1] == names[2]
    assert names[0] < names[1]
    executed = [op for op in kernels[name].ops if op != "drop"]
    assert len(names[1] - names[0]) == len(executed)
    outputs = [[value.name for value in m.graph.output] for m in (feeding, behind, both)]
    assert outputs[2] == [*outputs[0], *outputs[1]]
    given = [[value.name for value in m.graph.input] for m in (feeding, behind, both)]
    assert given[0] == given[1] == given[2]
    assert sum(cut.shares.values()) == pytest.approx(1)


def test_a_kernel_with_a_heavy_op_feeds_others_by_that_op_alone(residual):
    cutter, kernels, _ = residual
    feeding = cutter.cut(kernels["block#2"]).feeding.make()
    assert [node.op_type for node in feeding.graph.node] == ["Conv"]
    light = cutter.cut(kernels["softmax"]).feeding.make()
    assert [node.op_type for node in light.graph.node] == ["Gemm"]
    through = cutter.cut(kernels["fc"]).feeding.make()
    assert [n.op_type for n in through.graph.node] == ["Conv", "GlobalAveragePool", "Reshape"]


def test_equal_kernels_are_one_and_others_are_not(residual):
    cutter, kernels, _ = residual
    keys = {name: cutter.cut(found).key for name, found in kernels.items()}
    assert keys["block#1"] == keys["block#2"]
    assert len(set(keys.values())) == len(keys) - 1
    assert cutter.alone("conv1").key == cutter.alone("conv2").key
    assert cutter.alone("conv1").key != cutter.alone("add1").key


def test_an_op_that_is_not_executed_is_no_model(residual):
    cutter, _, _ = residual
    assert cutter.alone("drop") is None


def test_other_inputs_than_images_of_floats_are_fed_as_backends_feed_them(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], "turn", perm=[1, 0]),
        helper.make_node("Cast", ["t"], ["i"], "cast", to=TensorProto.INT64),
        helper.make_node("Add", ["i", "i"], ["y"], "add"),
    ]
    graph = helper.make_graph(
        nodes,
        "turned",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 7])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [7, 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "turned.onnx")
    ops = {"turn": ["turn"], "cast": ["cast"], "add": ["add"]}
    cutter, kernels, _ = cutter_of(tmp_path / "turned.onnx", ops, tmp_path / "copy")
    alone = cutter.cut(kernels["add"]).alone
    made = alone.make()
    onnx.checker.check_model(made)
    (given,) = made.graph.input
    assert given.type.tensor_type.elem_type == TensorProto.FLOAT
    assert [d.dim_value for d in shape_of(given)] == [1, 7, 1]
    assert alone.shapes == [[7, 1]]
    (found,) = run(made, {given.name: np.full((1, 7, 1), 3.0, np.float32)}).values()
    assert found.shape == (7, 1)
    assert (found == 6).all()


def test_what_has_no_fixed_shape_cannot_be_cut(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["r"], "relu"),
            helper.make_node("NonZero", ["r"], ["n"], "find"),
            helper.make_node("Cast", ["n"], ["y"], "cast", to=TensorProto.FLOAT),
        ],
        "found",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 7])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, None])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "found.onnx")
    ops = {"relu": ["relu"], "find": ["find"], "cast": ["cast"]}
    cutter, kernels, _ = cutter_of(tmp_path / "found.onnx", ops, tmp_path / "copy")
    assert cutter.cut(kernels["relu"]) is not None
    with pytest.raises(ModelRejectedError, match=r"found.onnx: the shape of .* is not known"):
        cutter.cut(kernels["cast"])


# --- estimates -----------------------------------------------------------------------------------

CALL = "call"


class Machine:
    """Kernels in a row, and what their models take on a machine that is known.

    Args:
        own: Kernel -> what it takes, what converting its output takes, bytes of its weights and of
            its output.
        reads: Kernel -> kernels that it reads.
        byte_ns: For a byte of weights, and one of outputs, that the caches do not hold.
        noise: Between passes, as a share.
    """

    def __init__(self, own, reads, *, byte_ns=(0.0, 0.0), noise=0.0, passes=5, seed=0):
        self.own, self.reads, self.byte_ns = own, reads, byte_ns
        self.noise, self.passes = noise, passes
        self.rng = np.random.default_rng(seed)
        self.timed = Timed(passes=passes)
        self._add(CALL, 2_000.0, 2_000.0)
        self.cuts = [self._cut(name) for name in own]
        total = 2_000.0 + sum(ns for ns, *_ in own.values())
        self.timed.whole = Times(warm=self._passes(total))

    def costs(self):
        kept = {name: [name] if self._is_read(name) else [] for name in self.own}
        return costs_of(self.cuts, self.timed, CALL, kept)

    def _is_read(self, name):
        return any(name in found for found in self.reads.values())

    def _cut(self, name):
        ns, convert, weights, written = self.own[name]
        feeding = None
        feed_ns = feed_convert = feed_cold = 0.0
        for other in self.reads.get(name, ()):
            feed_ns += self.own[other][0]
            feed_convert += self.own[other][1]
            feed_cold += self._cold(other)
        base = 2_000.0 + feed_ns
        if self.reads.get(name):
            warm = base + feed_convert
            feeding = self._excerpt(f"{name} feeding", warm, warm + feed_cold)
        warm = base + ns + convert
        behind = self._excerpt(f"{name} behind", warm, warm + feed_cold + self._cold(name))
        both = self._excerpt(f"{name} both", warm + feed_convert, 0.0)
        sizes = {other: self.own[other][3] for other in self.reads.get(name, ())}
        return Cut(
            kernel=kernel(name, [name]),
            alone=behind,
            feeding=feeding,
            behind=behind,
            both=both if feeding is not None else behind,
            shares={t: size / sum(sizes.values()) for t, size in sizes.items()},
            weights=weights,
            written=written,
        )

    def _cold(self, name):
        _, _, weights, written = self.own[name]
        return weights * self.byte_ns[0] + written * self.byte_ns[1]

    def _excerpt(self, key, warm, behind):
        self._add(key, warm, behind)
        return Excerpt(key=key, make=lambda: None, shapes=[], weights=0, parts=None)

    def _add(self, key, warm, behind):
        self.timed.times[key] = Times(warm=self._passes(warm), behind=self._passes(behind))

    def _passes(self, ns):
        return list(ns * (1 + self.noise * self.rng.normal(size=self.passes)))


CHAIN = {
    "a": (100_000.0, 20_000.0, 40_000, 10_000),
    "b": (5_000.0, 9_000.0, 0, 10_000),
    "c": (60_000.0, 3_000.0, 90_000, 5_000),
    "d": (30_000.0, 1_000.0, 10_000, 5_000),
}
IN_A_ROW = {"b": ["a"], "c": ["b"], "d": ["c"]}


def test_conversions_at_the_cuts_are_no_cost_of_kernels():
    machine = Machine(CHAIN, IN_A_ROW)
    found = machine.costs()
    for name, (ns, convert, *_) in CHAIN.items():
        real = ns + (convert if name == "d" else 0.0)  # the model itself gives d's
        assert found[name].ns == pytest.approx(real)


def test_a_tensor_that_many_read_is_converted_for_none_of_them():
    reads = {"b": ["a"], "c": ["a"], "d": ["b", "c"]}
    found = Machine({**CHAIN, "d": (30_000.0, 0.0, 0, 5_000)}, reads).costs()
    # by their sizes, and not by what each takes: b's and c's are told apart by d alone
    assert sum(cost.ns for cost in found.values()) == pytest.approx(195_000.0)
    assert found["a"].ns == pytest.approx(100_000.0)
    assert found["d"].ns == pytest.approx(30_000.0)


def test_weights_are_read_anew_and_memory_that_is_written_was_just_used():
    machine = Machine(CHAIN, IN_A_ROW, byte_ns=(0.05, 0.4))
    found = machine.costs()
    for name, (ns, convert, weights, _) in CHAIN.items():
        real = ns + weights * 0.05 + (convert if name == "d" else 0.0)
        assert found[name].ns == pytest.approx(real)


def test_intervals_cover_what_is_true():
    covered, count = 0, 0
    for seed in range(60):
        found = Machine(CHAIN, IN_A_ROW, noise=0.01, seed=seed).costs()
        for name, (ns, convert, *_) in CHAIN.items():
            real = ns + (convert if name == "d" else 0.0)
            covered += found[name].low <= real <= found[name].high
            count += 1
    assert covered / count > 0.9


def test_one_pass_that_is_off_changes_nothing():
    machine = Machine(CHAIN, IN_A_ROW)
    for times in machine.timed.times.values():
        times.warm[2] *= 5
    assert machine.costs()["c"].ns == pytest.approx(60_000.0)


def test_a_kernel_that_could_not_be_timed_is_left_out():
    machine = Machine(CHAIN, IN_A_ROW)
    machine.timed.times["c behind"].warm.clear()
    assert set(machine.costs()) == {"a", "b", "d"}


def test_with_one_pass_there_is_no_interval():
    machine = Machine(CHAIN, IN_A_ROW, passes=1)
    cost = machine.costs()["a"]
    assert cost.ns == pytest.approx(100_000.0)
    assert math.isinf(cost.high)
    assert cost_of(Times(), machine.timed) is None


def test_the_sum_takes_equal_kernels_to_be_wrong_together():
    one, other = Cost(ns=1e6, low=0.9e6, high=1.1e6), Cost(ns=2e6, low=1.7e6, high=2.3e6)
    whole = Cost(ns=4e6, low=3.9e6, high=4.1e6)
    costs = Costs(
        kernels={"a#1": one, "a#2": one, "b": other}, whole=whole, alone_ns=None, ops_alone_ns=None
    )
    assert costs.sum.ns == 4e6
    assert costs.sum.high - costs.sum.ns == pytest.approx(math.hypot(0.2e6, 0.3e6))
    assert costs.share("b") == 0.5
    told = costs.to_json()
    assert told["sum_ms"]["value"] == told["whole_ms"]["value"] == 4.0
    assert told["ratio"] == 1.0
    assert told["alone"] == {"kernels_ms": None, "single_ops_ms": None}
