"""Designs: which models a question by the clock takes, in which sizes."""

from __future__ import annotations

import json
import os
import textwrap
from dataclasses import replace
from itertools import product

import pytest
import yaml

from nn_meter import registry
from nn_meter.builder.backend_meta.fusion_rule_tester import build
from nn_meter.builder.backend_meta.fusion_rule_tester.clock import measure
from nn_meter.builder.backend_meta.fusion_rule_tester.clock.design import (
    BARRIERS,
    BLOCK,
    HEAD,
    TAIL,
    Design,
    Method,
    design_edge,
    reference_design,
    small_config,
)
from nn_meter.builder.backend_meta.fusion_rule_tester.shapes import plan_chain
from nn_meter.builder.backends.base import Environment
from nn_meter.builder.config import RuletestConfig
from nn_meter.builder.profiling.store import Store
from nn_meter.errors import NNMeterError, OddSizeError, OperatorError, ShapeError

CONFIG = {**RuletestConfig().as_dict(), "IMPLEMENT": "onnx", "MODEL_DIR": "/nowhere"}
METHOD = Method()
NAMES = [entry.name for entry in registry.entries("operator")]


def design(chain: str, **changed: object) -> Design:
    *head, tail = chain.split("_")
    return design_edge(head, tail, CONFIG | changed, METHOD)


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        *[(1, 1), (3, 3), (16, 16), (17, 17), (24, 24), (31, 31)],
        *[(32, 16), (48, 16), (50, 18), (256, 16), (1000, 24), (1279, 31)],
    ],
)
def test_channels_keep_their_remainder_and_small_ones_stay(size, expected):
    found = small_config(CONFIG | {"CIN": size, "COUT": size}, METHOD, 4)
    assert (found["CIN"], found["COUT"]) == (expected, expected)
    assert expected % 16 == size % 16
    assert expected <= size


@pytest.mark.parametrize(("size", "expected"), [(8, 8), (64, 64), (65, 65), (428, 76), (1000, 72)])
def test_so_do_1d_tensors(size, expected):
    assert small_config(CONFIG | {"SHAPE_1D": size}, METHOD, 4)["SHAPE_1D"] == expected


def test_no_size_grows():
    for size in range(1, 130):
        config = CONFIG | dict.fromkeys(("HW", "CIN", "COUT", "SHAPE_1D"), size)
        for method in (METHOD, replace(METHOD, features=100)):
            found = small_config(config, method, 4)
            assert all(found[key] <= size for key in ("HW", "CIN", "COUT", "SHAPE_1D"))


def test_all_other_keys_stay():
    found = small_config(CONFIG | {"MINE": [3]}, METHOD, 4)
    sizes = {"HW": 4, "CIN": 16, "COUT": 16, "SHAPE_1D": 76}
    assert found == CONFIG | {"MINE": [3]} | sizes


@pytest.mark.parametrize(
    ("chain", "changed", "start", "edge", "end"),
    [
        ("conv_relu", {}, (16, 4, 4), (16, 4, 4), (16, 4, 4)),
        ("conv_relu", {"IMPLEMENT": "tensorflow"}, (4, 4, 16), (4, 4, 16), (4, 4, 16)),
        ("conv_relu", {"HW": 2, "CIN": 3, "COUT": 5}, (3, 2, 2), (5, 2, 2), (5, 2, 2)),
        ("conv_relu", {"CIN": 40, "COUT": 1000}, (24, 4, 4), (24, 4, 4), (24, 4, 4)),
        ("maxpool_conv", {}, (16, 4, 4), (16, 2, 2), (16, 2, 2)),
        # kernels and strides: as small as leaves a width at the edge
        ("conv_relu", {"PADDING": "valid"}, (16, 4, 4), (16, 2, 2), (16, 2, 2)),
        (
            *("conv_relu", {"PADDING": "valid", "KERNEL_SIZE": 5}),
            *((16, 6, 6), (16, 2, 2), (16, 2, 2)),
        ),
        (
            *("conv_relu", {"PADDING": "valid", "KERNEL_SIZE": 7}),
            *((16, 8, 8), (16, 2, 2), (16, 2, 2)),
        ),
        (
            *("conv_conv", {"PADDING": "valid", "KERNEL_SIZE": 7}),
            *((16, 16, 16), (16, 10, 10), (16, 4, 4)),
        ),
        ("conv_relu", {"KERNEL_SIZE": 7}, (16, 4, 4), (16, 4, 4), (16, 4, 4)),
        ("conv_relu", {"STRIDES": 2}, (16, 4, 4), (16, 2, 2), (16, 2, 2)),
        ("conv_relu", {"STRIDES": 3}, (16, 4, 4), (16, 2, 2), (16, 2, 2)),
        (
            *("conv_relu", {"STRIDES": 3, "PADDING": "valid"}),
            *((16, 6, 6), (16, 2, 2), (16, 2, 2)),
        ),
        (
            *("conv_conv", {"STRIDES": 3, "PADDING": "valid", "KERNEL_SIZE": 7}),
            *((16, 28, 28), (16, 8, 8), (16, 1, 1)),
        ),
        # an input of one pixel has no width to keep
        ("conv_relu", {"HW": 1}, (16, 1, 1), (16, 1, 1), (16, 1, 1)),
        ("maxpool_relu", {"HW": 2}, (16, 2, 2), (16, 1, 1), (16, 1, 1)),
        # 1-D, and from 3-D to 1-D
        ("fc_relu", {}, (76,), (256,), (256,)),
        ("fc_fc", {}, (76,), (256,), (256,)),
        ("fc_relu", {"COUT": 1000}, (76,), (264,), (264,)),
        ("fc_relu", {"COUT": 10, "SHAPE_1D": 9}, (9,), (10,), (10,)),
        ("relu_fc", {}, (76,), (76,), (256,)),
        ("globalavgpool_fc", {}, (16, 4, 4), (16,), (16,)),
        ("flatten_fc", {}, (16, 4, 4), (256,), (16,)),
        ("reshape_fc", {}, (76,), (1, 2, 38), (1, 2, 256)),
        # several outputs, two inputs
        ("split_conv", {}, (16, 4, 4), (8, 4, 4), (16, 4, 4)),
        ("concat_conv", {}, (16, 4, 4), (32, 4, 4), (16, 4, 4)),
        ("conv_add", {}, (16, 4, 4), (16, 4, 4), (16, 4, 4)),
        ("add_mul", {}, (16, 4, 4), (16, 4, 4), (16, 4, 4)),
        # three
        ("conv_bn_relu", {}, (16, 4, 4), (16, 4, 4), (16, 4, 4)),
        ("maxpool_maxpool_relu", {}, (16, 6, 6), (16, 2, 2), (16, 2, 2)),
    ],
)
def test_the_smallest_size_that_can_be_built(chain, changed, start, edge, end):
    found = design(chain, **changed)
    block = found.models[BLOCK]
    assert block.input_shape == start
    assert found.shape == edge
    assert tuple(block.output_shape()) == end


@pytest.mark.parametrize("given", [[3, 17, 19], [5, 30, 30], [32, 1, 1]])
def test_a_given_input_shape_is_kept_and_so_is_what_comes_out(given):
    found = design("conv_relu", INPUT_SHAPE=given, COUT=300)
    assert found.models[BLOCK].input_shape == tuple(given)
    assert found.shape == (300, *given[1:])
    assert design("fc_relu", INPUT_SHAPE=[700], COUT=300).shape == (300,)


@pytest.mark.parametrize(
    ("chain", "changed", "kind", "reason"),
    [
        ("conv_fc", {}, ShapeError, "fc takes a 1-D tensor"),
        ("fc_conv", {}, ShapeError, "conv takes a 3-D tensor"),
        (
            *("conv_relu", {"PADDING": "valid", "KERNEL_SIZE": 29}, ShapeError),
            "a kernel of 29 does not fit an input of 28",
        ),
        (
            *("conv_conv", {"PADDING": "valid", "KERNEL_SIZE": 7, "HW": 10}, ShapeError),
            "a kernel of 7 does not fit an input of 4",
        ),
        ("split_relu", {"CIN": 33}, OddSizeError, "must be even, but 17 reach it"),
        ("conv_relu", {"INPUT_SHAPE": [5]}, ShapeError, "conv takes a 3-D tensor"),
        (
            *("conv_relu", {"INPUT_SHAPE": [3, 4, 4], "PADDING": "valid", "KERNEL_SIZE": 5}),
            *(ShapeError, "a kernel of 5 does not fit an input of 4"),
        ),
    ],
)
def test_what_cannot_be_built_says_why(chain, changed, kind, reason):
    with pytest.raises(kind, match=reason):
        design(chain, **changed)


# --- all pairs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("implement", ["onnx", "tensorflow"])
def test_every_pair_that_can_be_built_has_a_design(implement):
    config = CONFIG | {"IMPLEMENT": implement}
    buildable, refused, wrong = 0, [], []
    for pair in product(NAMES, NAMES):
        try:
            plan = plan_chain(pair, config)
        except OperatorError:
            with pytest.raises(OperatorError):
                design_edge(pair[:1], pair[1], config, METHOD)
            continue
        buildable += 1
        try:
            found = design_edge(pair[:1], pair[1], config, METHOD)
        except OperatorError as exc:
            refused.append((pair, str(exc)))
            continue
        ranks = [len(shape) for shape in plan.block.shapes()]
        if [len(shape) for shape in found.models[BLOCK].shapes()] != ranks:
            wrong.append(pair)
        for chain in found.models.values():
            chain.output_shape()  # or the operators refuse what reaches them
    assert buildable > 900
    assert refused == []
    assert wrong == []


@pytest.mark.parametrize(
    "changed", [{"HW": 20, "CIN": 24, "COUT": 48}, {"PADDING": "valid", "STRIDES": 2}, {"HW": 7}]
)
def test_so_it_is_in_other_sizes(changed):
    config = CONFIG | changed
    for pair in product(NAMES[::2], NAMES[1::2]):
        try:
            plan_chain(pair, config)
        except OperatorError:
            continue
        design_edge(pair[:1], pair[1], config, METHOD)


# --- parts ---------------------------------------------------------------------------------------


def test_the_parts_of_a_3d_question():
    found = design("conv_relu")
    assert {part: chain.ops for part, chain in found.models.items()} == {
        "head": ("conv",),
        "tail": ("relu",),
        "block": ("conv", "relu"),
        "head|avgpool": ("conv", "avgpool"),
        "head|avgpool|tail": ("conv", "avgpool", "relu"),
        "head|tanh": ("conv", "tanh"),
        "head|tanh|tail": ("conv", "tanh", "relu"),
        "head|sum": ("conv", "running_sum"),
        "head|sum|tail": ("conv", "running_sum", "relu"),
        "|avgpool": ("avgpool",),
        "|avgpool|relu": ("avgpool", "relu"),
        "|tanh": ("tanh",),
        "|tanh|relu": ("tanh", "relu"),
        "|sum": ("running_sum",),
        "|sum|relu": ("running_sum", "relu"),
    }
    assert found.barriers == ["avgpool", "tanh", "sum"]
    assert (found.head, found.tail, found.elementwise) == (("conv",), "relu", True)


def test_the_parts_of_a_1d_question():
    found = design("globalavgpool_fc")
    assert found.barriers == ["tanh", "sum"]
    assert found.models["head|sum|tail"].ops == ("globalavgpool", "running_sum", "fc")
    assert found.models["|tanh|fc"].input_shape == (16,)
    assert not [part for part in found.models if "avgpool" in part.replace("globalavgpool", "")]
    assert not found.elementwise


def test_the_head_of_a_chain_is_a_chain():
    found = design("conv_bn_relu")
    assert found.head == ("conv", "bn")
    assert found.models[HEAD].ops == ("conv", "bn")
    assert found.models[BLOCK].ops == ("conv", "bn", "relu")
    assert found.models["head|tanh|tail"].ops == ("conv", "bn", "tanh", "relu")
    assert found.models["|tanh|relu"].ops == ("tanh", "relu")


@pytest.mark.parametrize("chain", ["conv_relu", "maxpool_avgpool", "avgpool_maxpool", "fc_tanh"])
def test_what_holds_for_all_models_of_a_design(chain):
    found = design(chain, STRIDES=1, KERNEL_SIZE=5)
    block = found.models[BLOCK]
    for part, model in found.models.items():
        assert model.replicas == METHOD.replicas
        assert model.config == block.config
        assert len(model.overrides) == len(model.ops)
        behind_the_edge = part.startswith("|") or part == TAIL
        assert model.input_shape == (found.shape if behind_the_edge else block.input_shape)
        own = dict(zip(model.ops, model.overrides, strict=True))
        for op, keys in own.items():
            barrier = [b.keys for b in BARRIERS.values() if b.op == op]
            assert dict(keys) in [{}, *map(dict, barrier)]
    for name in found.barriers:
        control = found.models[f"head|{name}"]
        assert control.shapes()[-1] == control.shapes()[-2] == found.shape  # a barrier keeps it
        assert found.models[f"head|{name}|tail"].output_shape() == block.output_shape()
        assert found.models[f"|{name}|{found.tail}"].output_shape() == block.output_shape()


def test_an_op_that_is_also_a_barrier_keeps_its_own_keys():
    found = design("avgpool_avgpool", HW=16, POOL_STRIDES=2)
    control = found.models["head|avgpool|tail"]
    assert control.ops == ("avgpool",) * 3
    assert [dict(own) for own in control.overrides] == [{}, dict(BARRIERS["avgpool"].keys), {}]
    assert control.shapes() == [(16, 4, 4), (16, 2, 2), (16, 2, 2), (16, 1, 1)]


def test_the_reference_of_a_3d_and_of_a_1d_question():
    found = reference_design(design("conv_sigmoid"))
    assert {part: chain.ops for part, chain in found.items()} == {
        "|avgpool": ("avgpool",),
        "|avgpool|relu": ("avgpool", "relu"),
        "|tanh": ("tanh",),
        "|tanh|relu": ("tanh", "relu"),
        "|sum": ("running_sum",),
        "|sum|relu": ("running_sum", "relu"),
        "|avgpool|avgpool": ("avgpool", "avgpool"),
        "|tanh|avgpool": ("tanh", "avgpool"),
    }
    found = reference_design(design("fc_sigmoid"))
    assert set(found) == {"|tanh", "|tanh|relu", "|sum", "|sum|relu"}
    assert {chain.input_shape for chain in found.values()} == {(256,)}
    assert {chain.replicas for chain in found.values()} == {METHOD.replicas}


def test_questions_with_an_equal_tensor_share_their_reference():
    one, other = design("conv_relu"), design("dwconv_hswish")
    assert reference_design(one) == reference_design(other)
    assert reference_design(one) != reference_design(design("maxpool_relu"))


@pytest.mark.parametrize("chain", ["conv_relu", "split_conv", "flatten_fc", "conv_bn_relu"])
def test_a_design_comes_back_as_it_went(chain):
    went = design(chain)
    came = Design.from_json(json.loads(json.dumps(went.to_json())))
    assert (came.head, came.tail, came.shape) == (went.head, went.tail, went.shape)
    assert came.elementwise is went.elementwise
    assert came.barriers == went.barriers
    for models in (went.models, reference_design(went)):
        others = came.models if models is went.models else reference_design(came)
        assert list(models) == list(others)
        for part, model in models.items():
            assert build.chain_key(model) == build.chain_key(others[part])


# --- operators of users --------------------------------------------------------------------------

OWN = """
    import os, sys, time
    from pathlib import Path
    from nn_meter.builder.nn_modules import BaseOperator

    if Path(__file__).with_name("import").exists():
        IMPORTED

    class Own(BaseOperator):
        elementwise = True

        def get_model(self):
            return lambda graph, x: graph.op("Relu", [x])

        def get_output_shape(self):
            print("asked", os.getpid(), file=Path(__file__).with_name("asked").open("a"))
            SHAPE
            return self.input_shape
"""


@pytest.fixture
def operator(tmp_path):
    """Register an operator that does something as it is imported, or asked for its shape."""

    def _operator(name: str, imported: str = "pass", shape: str = "pass"):
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").touch()
        code = OWN.replace("IMPORTED", imported).replace("SHAPE", shape)
        (package / "script.py").write_text(textwrap.dedent(code))
        meta = {"builtin_name": name, "implement": "onnx", "package_location": str(package)}
        meta |= {"class_module": "script", "class_name": "Own"}
        (tmp_path / "meta.yaml").write_text(yaml.safe_dump(meta))
        registry.register("operator", tmp_path / "meta.yaml")
        (package / "import").touch()  # the next import is another one
        return package

    return _operator


@pytest.fixture
def bench_of(tmp_path):
    """The bench of rules, from an empty store."""
    with Store(tmp_path / "samples.db") as store:
        number = store.environment("fake", Environment(runtime="fake", version="1"))

        def _bench_of(*rules: str, time_limit_s: float = 60.0):
            asked = [
                measure.Asked(rule=f"BF_{rule}", ops=tuple(rule.split("_")), config=CONFIG)
                for rule in rules
            ]
            return measure.bench_of(
                asked,
                store,
                store.campaign(number),
                method=METHOD,
                alpha=0.5,
                confidence=0.95,
                time_limit_s=time_limit_s,
            )

        yield _bench_of


def test_a_users_operator_is_asked_in_another_process(operator, bench_of):
    package = operator("own")
    bench, refused = bench_of("own_relu", "conv_own_relu", "conv_relu")
    assert refused == {}
    assert list(bench.questions) == [
        *("clock:BF_own_relu:1", "clock:BF_conv_own_relu:1", "clock:BF_conv_own_relu:2"),
        "clock:BF_conv_relu:1",
    ]
    first = bench.questions["clock:BF_conv_own_relu:1"].design
    assert (first.head, first.tail, first.elementwise) == (("conv",), "own", True)
    assert first.models["head|tanh|tail"].ops == ("conv", "tanh", "own")
    asked = set((package / "asked").read_text().split()) - {"asked"}
    assert len(asked) == 1  # one process for all of them
    assert str(os.getpid()) not in asked


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"imported": "os._exit(3)"}, "ended with exit code 3"),
        ({"shape": "os._exit(4)"}, "ended with exit code 4"),
        ({"imported": "raise KeyError('x')"}, "KeyError: 'x'"),
        ({"imported": "sys.exit(5)"}, "5"),
        ({"shape": "raise KeyError('x')"}, "KeyError: 'x'"),
        ({"shape": "os.kill(os.getpid(), 11)"}, "ended by SIGSEGV"),
    ],
)
def test_one_that_crashes_costs_its_questions_only(operator, bench_of, faults, reason):
    operator("bad", **faults)
    operator("good")
    bench, refused = bench_of("conv_bad", "good_relu", "conv_relu")
    assert list(refused) == ["clock:BF_conv_bad:1"]
    assert reason in refused["clock:BF_conv_bad:1"]
    assert set(bench.questions) == {"clock:BF_good_relu:1", "clock:BF_conv_relu:1"}


def test_one_that_hangs_costs_its_questions_only(operator, bench_of):
    operator("bad", shape="time.sleep(60)")
    operator("good")
    bench, refused = bench_of("conv_bad", "good_relu", time_limit_s=2.0)
    assert "time limit of 2 s" in refused["clock:BF_conv_bad:1"]
    assert list(bench.questions) == ["clock:BF_good_relu:1"]


def test_a_chain_of_the_users_that_cannot_be_built(operator, bench_of):
    operator("own")
    bench, refused = bench_of("fc_own_conv")
    assert list(bench.questions) == ["clock:BF_fc_own_conv:1"]
    assert "conv takes a 3-D tensor" in refused["clock:BF_fc_own_conv:2"]


def test_designs_elsewhere_are_those_made_here(operator):
    edges = [(("conv",), "relu", CONFIG), (("fc",), "fc", CONFIG | {"COUT": 1000})]
    found = build.designs_elsewhere(edges, replace(METHOD, looks=(1, 5)), 60.0)
    for (head, tail, config), came in zip(edges, found, strict=True):
        assert not isinstance(came, NNMeterError)
        assert came.to_json() == design_edge(head, tail, config, METHOD).to_json()
    assert build.designs_elsewhere([], METHOD, 60.0) == []
