"""ONNX models: valid ones, and such as no exporter writes."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from fuzz_mutation import HOSTILE_INTS
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from nn_meter.kernel_detector.graph import Graph
from nn_meter.kernel_detector.readers import read_model

__all__ = ["graph", "make_model", "models"]

_LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
_IMAGE = [1, 3, 8, 8]
_SMALL = (0, 1, -1, 2, 3, 4, 8)
_TYPES = (1, 1, 1, 6, 7, 7, 9, 10, 11, 8, 16, 17, 22, 0, 99)


@cache
def models() -> list[tuple[str, bytes]]:
    """A model that an exporter could have written, and two of the onnx package's own."""
    made = [("model.onnx", _network().SerializeToString())]
    for name in ("squeezenet", "shufflenet"):
        made.append(("model.onnx", (_LIGHT / f"light_{name}.onnx").read_bytes()))
    return made


@cache
def graph() -> Graph:
    """The first of the valid models, read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(models()[0][1])
        return read_model(path)


def _network() -> onnx.ModelProto:
    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(np.full(shape, 0.5, np.float32), name)

    swish = helper.make_function(
        *("mine", "Swish", ["a"], ["b"]),
        [
            helper.make_node("Sigmoid", ["a"], ["s"]),
            helper.make_node("Mul", ["a", "s"], ["b"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "v", "v", "v", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "w4"], ["c2"], group=4, kernel_shape=[1, 1]),
        helper.make_node("Add", ["c2", "r"], ["sum"]),
        helper.make_node("Swish", ["sum"], ["swish"], domain="mine"),
        helper.make_node("Shape", ["swish"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Unsqueeze", ["batch", "axes"], ["first"]),
        helper.make_node("Concat", ["first", "rest"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["swish", "sizes"], ["flat"]),
        helper.make_node("Tile", ["k", "two"], ["tiled"]),
        helper.make_node("Range", ["zero", "four", "one"], ["range"]),
        helper.make_node("Cast", ["range"], ["floats"], to=1),
        helper.make_node("Expand", ["floats", "four1"], ["more"]),
        helper.make_node("ReduceSum", ["more"], ["scale"], keepdims=0),
        helper.make_node("Mul", ["flat", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "fc"], ["y"]),
    ]
    numbers = {
        **{"zero": np.int64(0), "one": np.int64(1), "four": np.int64(4)},
        **{"axes": np.int64([0]), "rest": np.int64([-1]), "two": np.int64([2])},
        **{"four1": np.int64([4]), "k": np.float32([1, 2])},
    }
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, _IMAGE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [
            *(weight("w", 4, 3, 3, 3), weight("v", 4), weight("w4", 4, 1, 1, 1)),
            weight("fc", 4 * 64, 5),
            *(numpy_helper.from_array(value, name) for name, value in numbers.items()),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    # of an IR version that ONNX Runtime takes
    return helper.make_model(made, opset_imports=opsets, functions=[swish], ir_version=10)


@cache
def _schemas() -> list[onnx.defs.OpSchema]:
    return [s for s in onnx.defs.get_all_schemas() if s.domain in ("", "ai.onnx.ml")]


@cache
def _folding() -> list[onnx.defs.OpSchema]:
    """Those of ops that are computed when they read constants only."""
    from nn_meter.kernel_detector.readers import onnx_folding

    return [s for s in _schemas() if s.domain == "" and s.name in onnx_folding._EVALUATED]


def make_model(chance: Random) -> tuple[str, bytes]:
    """A valid model with some parts spoilt, or one of any ops."""
    if chance.random() < 0.5:
        model = _network()
        for _ in range(chance.choice((1, 1, 2, 4))):
            _spoil(chance, model.graph)
        return "model.onnx", model.SerializeToString()
    return _of_any_ops(chance)


def _spoil(chance: Random, made: onnx.GraphProto) -> None:
    node, at = chance.choice(made.node), chance.randrange(len(made.initializer))
    names = [each.name for each in made.initializer] + [t for n in made.node for t in n.output]
    kind = chance.randrange(9)
    if kind < 3:
        made.initializer[at].CopyFrom(_constant(chance, made.initializer[at].name))
    elif kind == 3:
        made.initializer[at].dims[:] = [_size(chance) for _ in range(chance.randrange(4))]
    elif kind == 4 and node.input:
        node.input[chance.randrange(len(node.input))] = chance.choice((*names, "", "nothing"))
    elif kind == 5:
        del node.input[chance.randrange(len(node.input) + 1) :]
    elif kind == 6:
        known = [s for s in _schemas() if s.name == node.op_type and s.attributes]
        if known:
            attributes = list(chance.choice(known).attributes.values())
            node.attribute.append(_attribute(chance, chance.choice(attributes)))
    elif kind == 7:
        node.op_type = chance.choice(_schemas()).name
    else:
        dim = chance.choice(made.input[0].type.tensor_type.shape.dim)
        dim.dim_value = abs(_size(chance)) % 2**40


def _of_any_ops(chance: Random) -> tuple[str, bytes]:
    """A model of any ops, put together without regard to what they take."""
    there = ["x", "x", ""]
    constants = []
    for number in range(chance.randrange(1, 6)):
        name = chance.choice((f"w{number}", f"w{number}", "x", "w0"))
        constants.append(_constant(chance, name))
        there.append(name)
    nodes = []
    for number in range(chance.choice((1, 2, 3, 6, 12))):
        only_constants = chance.random() < 0.5
        schema = chance.choice(_folding() if only_constants else _schemas())
        lowest = min(schema.min_input, 6)
        highest = max(lowest, min(schema.max_input, 6))
        from_ = there[3:] if only_constants and len(there) > 3 else there
        reads = [chance.choice(from_) for _ in range(chance.randint(lowest, highest))]
        count = max(min(schema.min_output, 4), chance.choice((1, 1, 1, 2, 5)))
        writes = [f"t{number}_{k}" for k in range(count)]
        node = helper.make_node(
            schema.name,
            reads,
            writes,
            name=chance.choice(("", f"n{number}", "same", "\x1b[31mrot", "ä" * 200)),
            domain=chance.choice((schema.domain,) * 8 + ("mine", "ai.onnx", "com.microsoft")),
        )
        for attribute in schema.attributes.values():
            if attribute.required or chance.random() < 0.4:
                node.attribute.append(_attribute(chance, attribute))
        nodes.append(node)
        there.extend(writes)
    if chance.random() < 0.2:
        chance.shuffle(nodes)
    outputs = chance.sample(there[2:], min(len(there) - 2, chance.choice((1, 1, 2))))
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", chance.choice(_TYPES), _shape(chance))],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        constants,
    )
    if chance.random() < 0.2:
        shape = [_size(chance) for _ in range(chance.randrange(5))]
        kind = helper.make_tensor_type_proto(chance.choice(_TYPES), shape)
        made.value_info.append(helper.make_value_info(chance.choice(there), kind))
    version = chance.choice((17, 17, 17, 21, 26, 13, 11, 7, 6, 1, 0, 2**40))
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", version)])
    if chance.random() < 0.5:
        model.opset_import.append(helper.make_opsetid("ai.onnx.ml", chance.choice((1, 3, 5))))
    if chance.random() < 0.1:
        model.functions.append(_function(chance))
    return "model.onnx", model.SerializeToString()


def _function(chance: Random) -> onnx.FunctionProto:
    name = chance.choice(("Relu", "F", "Add"))
    inner = helper.make_node(name, ["a"], ["b"], domain=chance.choice(("mine", "")))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_function("mine", name, ["a"], ["b"], [inner], opsets)


def _shape(chance: Random) -> list[int]:
    if chance.random() < 0.7:
        return _IMAGE
    return [abs(_size(chance)) % 2**31 for _ in range(chance.randrange(5))]


def _size(chance: Random) -> int:
    if chance.random() < 0.7:
        return chance.choice(_SMALL)
    return max(min(chance.choice(HOSTILE_INTS), 2**63 - 1), -(2**63))


def _constant(chance: Random, name: str) -> TensorProto:
    """An initializer: sizes, numbers, words; at times one that does not hold what it says."""
    kind = chance.randrange(10)
    count = chance.choice((0, 1, 1, 2, 3, 4, 4, 20))
    if kind < 5:
        numbers = np.array([_size(chance) for _ in range(count)], np.int64)
        shape: Any = (count,) if count != 1 else chance.choice(((), (1,)))
        found: TensorProto = numpy_helper.from_array(numbers.reshape(shape), name)
    elif kind < 8:
        special = chance.choice((0.0, 1.0, -1.0, float("inf"), float("nan"), 1e30, 1e-40))
        kinds = (np.float32, np.float64, np.float16, np.bool_, np.uint8, np.int32, np.uint64)
        rank = chance.randrange(4)
        with np.errstate(all="ignore"):
            array = np.full([chance.choice((1, 2, 3, 16)) for _ in range(rank)], special)
            found = numpy_helper.from_array(array.astype(chance.choice(kinds)), name)
    elif kind == 8:
        words = np.array(["", "a", "x" * 50][: chance.randint(1, 3)], object)
        found = numpy_helper.from_array(words, name)
    else:
        dims = [_size(chance) for _ in range(chance.choice((1, 2, 3, 70)))]
        found = TensorProto(name=name, dims=dims, data_type=chance.choice(_TYPES))
        if chance.random() < 0.5:
            found.raw_data = bytes(chance.choice((0, 1, 8, 32)))
        if chance.random() < 0.3:
            found.data_location = TensorProto.EXTERNAL
            places = {
                "location": chance.choice(("../x", "/dev/zero", "/proc/self/mem", "model.onnx")),
                "offset": str(_size(chance)),
                "length": str(_size(chance)),
            }
            for key, said in places.items():
                entry = found.external_data.add()
                entry.key, entry.value = key, said
    return found


def _attribute(chance: Random, schema: Any) -> AttributeProto:
    kind = int(schema.type.value)
    if chance.random() < 0.1:
        kind = chance.randrange(15)
    found = AttributeProto(name=schema.name, type=kind)
    if kind == AttributeProto.INT:
        found.i = _size(chance)
    elif kind == AttributeProto.INTS:
        count = chance.choice((0, 1, 2, 2, 4, 4, 8, 40))
        found.ints.extend(_size(chance) for _ in range(count))
    elif kind == AttributeProto.FLOAT:
        found.f = chance.choice((0.0, -1.0, 0.5, float("nan"), float("inf")))
    elif kind == AttributeProto.FLOATS:
        found.floats.extend([0.5, float("nan")][: chance.randrange(3)])
    elif kind == AttributeProto.STRING:
        words = (b"", b"SAME_UPPER", b"ij,jk->ik", b"...i,->", b"a" * 300, b"\xff", b"linear")
        found.s = chance.choice(words)
    elif kind == AttributeProto.STRINGS:
        found.strings.extend([b"a", b"\xff"][: chance.randrange(3)])
    elif kind == AttributeProto.TENSOR:
        found.t.CopyFrom(_constant(chance, "t"))
    elif kind == AttributeProto.GRAPH:
        found.g.name = "g"
    return found
