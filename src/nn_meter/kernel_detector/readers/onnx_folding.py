"""Shapes and constants of an ONNX model, node by node in one walk.

Every input has a shape, so the shape of a tensor is known before the nodes that read it are looked
at: what is computed of shapes only, such as ``Shape -> Gather -> Concat -> Reshape``, is constant
by then, and gives the next shape. One walk is therefore enough, and takes time in proportion to
the number of nodes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, TypeProto, helper, numpy_helper
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError, infer_node_outputs

from nn_meter.errors import ModelFileError
from nn_meter.kernel_detector.readers.common import (
    KEPT_ELEMENTS,
    check_size,
    holds,
    plain,
    shown,
)
from nn_meter.kernel_detector.readers.onnx_file import Constant, ONNXFile, domain_of

__all__ = ["Known", "Walk"]

Array = npt.NDArray[Any]

# What folding may keep in all, as many nodes can make many constants; lists of sizes always stay.
_KEPT_IN_ALL = 2**24
_ALWAYS_KEPT = 64
_TOLD_ELEMENTS = 1024  # of a constant that decides a shape: sizes, axes, pads

_NAMES = """
    Abs Add And Cast CastLike Ceil Clip Compress Concat CumSum DequantizeLinear Div Equal Exp Expand
    Flatten Floor Gather GatherElements GatherND Greater GreaterOrEqual Identity Less LessOrEqual
    Log MatMul Max Mean Min Mod Mul Neg NonZero Not OneHot Or Pow QuantizeLinear Range Reciprocal
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Reshape Round ScatterElements ScatterND
    Sigmoid Sign Slice Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Trilu Unique Unsqueeze Where
    Xor
"""
# A constant of these is computed if it and what it is computed of are small. All of them need
# memory for what they read and write only.
_EVALUATED = frozenset(_NAMES.split())
# What these write is never larger than what they read, times its rank.
_BOUNDED = frozenset({"Compress", "NonZero", "Unique"})
# These go through their elements one by one: so many in all.
_SLOW = frozenset({"GatherND", "ScatterElements", "ScatterND"})
_MOST_SLOW_ELEMENTS = 2**20
_INDEXED = frozenset({"GatherElements", "OneHot"})
_ONLY_RESHAPE = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_NUMBERS = frozenset(
    {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT32}
    | {TensorProto.INT64}
)
_RANDOM = frozenset(
    {
        *("Bernoulli", "Multinomial"),
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    }
)
# onnx infers no shapes for the first version of most ops, and for some that are functions: then the
# next version tells, or another op that takes the same, or the first input.
_INFERS_SINCE = 6
_INFERS_LIKE = {"GreaterOrEqual": "Greater", "LessOrEqual": "Less"}
_FIRST_NAMES = """
    Abs Add BatchNormalization Ceil Clip Div Dropout Elu Exp Floor GroupNormalization HardSigmoid
    InstanceNormalization LeakyRelu Log Max Mean MeanVarianceNormalization Min Mul Neg PRelu
    Reciprocal Relu Selu Sigmoid Sqrt Sub Sum Tanh
"""
_LIKE_FIRST = frozenset(_FIRST_NAMES.split())


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a tensor.

    Attributes:
        type: As onnx has it; None: nothing is known.
        shape: Its sizes, if all are known.
        constant: What it holds, if it depends on no input.
    """

    type: TypeProto | None
    shape: tuple[int, ...] | None
    constant: Constant | None = None


def static_shape(kind: TypeProto | None) -> tuple[int, ...] | None:
    """The sizes of a tensor type, if all are known."""
    if kind is None or not kind.HasField("tensor_type"):
        return None
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return None
    sizes = []
    for dim in tensor.shape.dim:
        if not dim.HasField("dim_value") or dim.dim_value < 0:
            return None
        sizes.append(dim.dim_value)
    return tuple(sizes)


class Walk:
    """Goes through the nodes in a topological order, and knows all tensors up to there.

    Args:
        file: The model.
        inputs: Types of its inputs, shapes included.
    """

    def __init__(self, file: ONNXFile, inputs: Mapping[str, TypeProto]) -> None:
        self._file = file
        self._opset_ids = [helper.make_opsetid(d, v) for d, v in file.opsets.items()]
        self._schemas: dict[tuple[str, str], tuple[onnx.defs.OpSchema | None, bool]] = {}
        self._data: dict[str, TensorProto] = {}
        self._room = _KEPT_IN_ALL
        self._slow_left = _MOST_SLOW_ELEMENTS
        graph = file.model.graph
        self._declared = {v.name: v.type for v in (*graph.value_info, *graph.output)}
        self.known = {name: _of_type(kind) for name, kind in inputs.items()}
        for name, constant in file.constants.items():
            self.known[name] = _of_constant(constant)

    def fold(self, node: NodeProto, name: str) -> bool:
        """Learn what a node writes.

        Returns:
            Whether that is constant, so that the node vanishes.

        Raises:
            ModelFileError: The node cannot take what it reads.
        """
        folded = None
        if domain_of(node) == "":
            folded = self._constants(node, name)
        if folded is not None:
            for tensor, constant in folded.items():
                if constant.shape is not None:
                    check_size(self._file.path, tensor, constant.shape)
                self.known[tensor] = _of_constant(self._afforded(constant))
            return True
        types = self._infer(node, name)
        for tensor in node.output:
            if tensor:
                self.known[tensor] = self._written(tensor, types.get(tensor))
        return False

    def _afforded(self, constant: Constant) -> Constant:
        """A constant, without its value if those that were kept take all the room."""
        if constant.value is None or constant.value.size <= _ALWAYS_KEPT:
            return constant
        if constant.value.size > self._room:
            return replace(constant, value=None)
        self._room -= constant.value.size
        return constant

    def _written(self, tensor: str, inferred: TypeProto | None) -> Known:
        """A computed tensor; where inference does not tell its shape, the file may."""
        known = _of_type(inferred)
        if known.shape is None:
            declared = _of_type(self._declared.get(tensor))
            if declared.shape is not None or inferred is None:
                known = declared
        if known.shape is not None:
            check_size(self._file.path, tensor, known.shape)
        return known

    def _constants(self, node: NodeProto, name: str) -> dict[str, Constant] | None:
        """What a node writes if it is constant; None: it is not."""
        if node.op_type == "Constant":
            return {node.output[0]: self._held(node, name)} if node.output else {}
        reads = [self.known[tensor] for tensor in node.input if tensor]
        if not reads or node.op_type in _RANDOM:
            return None
        if node.op_type in ("Shape", "Size") and (shape := reads[0].shape) is not None:
            value = _of_shape(node, shape)
            return {node.output[0]: _constant_of(value)}
        if node.op_type == "CastLike" and len(reads) == 2 and reads[1].constant is None:
            return self._cast_like(node, *reads)
        if any(known.constant is None for known in reads):
            return None
        if node.op_type == "ConstantOfShape":
            return {node.output[0]: self._filled(node, name, reads[0].constant)}
        return self._computed(node, name)

    def _cast_like(self, node: NodeProto, read: Known, like: Known) -> dict[str, Constant] | None:
        """A constant in the type of a tensor that is computed: that type is all that is read."""
        if read.constant is None or like.type is None or not node.output:
            return None
        elem_type = like.type.tensor_type.elem_type
        value = read.constant.value
        if value is not None and elem_type == read.constant.elem_type:
            return {node.output[0]: read.constant}
        if value is not None and value.dtype.kind in "fiub" and elem_type in _NUMBERS:
            value = value.astype(helper.tensor_dtype_to_np_dtype(elem_type))
        else:
            value = None
        return {node.output[0]: replace(read.constant, elem_type=elem_type, value=value)}

    def _held(self, node: NodeProto, name: str) -> Constant:
        """What a ``Constant`` node holds."""
        for attribute in node.attribute:
            if attribute.HasField("t"):
                return self._file.constant(attribute.t, f"node {shown(name)}")
            if attribute.HasField("sparse_tensor"):
                sparse = attribute.sparse_tensor
                return Constant(shape=tuple(sparse.dims), elem_type=sparse.values.data_type)
            if attribute.name in ("value_float", "value_floats"):
                value = helper.get_attribute_value(attribute)
                return _constant_of(np.array(value, np.float32))
            if attribute.name in ("value_int", "value_ints"):
                return _constant_of(np.array(helper.get_attribute_value(attribute), np.int64))
            if attribute.name in ("value_string", "value_strings"):
                return _constant_of(np.array(helper.get_attribute_value(attribute), object))
        raise ModelFileError(f"{self._file.path}: node {shown(name)} is a Constant without a value")

    def _filled(self, node: NodeProto, name: str, sizes: Constant | None) -> Constant:
        """What a ``ConstantOfShape`` writes, which is not made if it is large."""
        fill: Array = np.zeros(1, np.float32)
        elem_type = int(TensorProto.FLOAT)
        for attribute in node.attribute:
            if attribute.name == "value":
                held = self._file.constant(attribute.t, f"node {shown(name)}")
                elem_type = held.elem_type
                if held.value is None or held.value.size != 1:
                    raise ModelFileError(
                        f"{self._file.path}: node {shown(name)} should fill with one value"
                    )
                fill = held.value
        if sizes is None or sizes.value is None:
            return Constant(shape=None, elem_type=elem_type)
        shape = tuple(int(size) for size in sizes.value.ravel())
        if any(size < 0 for size in shape):
            raise ModelFileError(f"{self._file.path}: node {shown(name)} makes a size below 0")
        value = None
        if holds(shape) <= KEPT_ELEMENTS and fill.dtype.kind not in "OSU":
            value = np.full(shape, fill.ravel()[0])
        return Constant(shape=shape, elem_type=elem_type, value=value)

    def _computed(self, node: NodeProto, name: str) -> dict[str, Constant]:
        """What a node computes of constants: its value where it is small, else its shape."""
        types = self._infer(node, name)
        outputs = [tensor for tensor in node.output if tensor]
        found = {}
        for tensor in outputs:
            kind = types.get(tensor)
            elem_type = kind.tensor_type.elem_type if kind is not None else 0
            found[tensor] = Constant(shape=static_shape(kind), elem_type=elem_type)
        small = all(
            constant.shape is not None and holds(constant.shape) <= KEPT_ELEMENTS
            for constant in found.values()
        )
        if small or node.op_type in _BOUNDED:
            values = self._evaluate(node, found)
            found.update(
                (tensor, _constant_of(value))
                for tensor, value in zip(node.output, values, strict=False)
                if tensor
            )
        return found

    def _evaluate(self, node: NodeProto, found: Mapping[str, Constant]) -> list[Array]:
        """The values that a node writes; none: they are not computed."""
        feeds: dict[str, Array] = {}
        for tensor in node.input:
            constant = self.known[tensor].constant if tensor else None
            if constant is not None and constant.value is None:
                return []
            if constant is not None and constant.value is not None:
                feeds[tensor] = constant.value
        if node.op_type not in _EVALUATED or not self._is_bounded(node, feeds):
            return []
        if node.op_type in _ONLY_RESHAPE and len(node.output) == 1:
            value = feeds[node.input[0]]
            shape = found[node.output[0]].shape
            if value is not None and shape is not None and math.prod(shape) == value.size:
                return [value.reshape(shape)]
        from onnx.reference import ReferenceEvaluator

        bare = NodeProto()
        bare.CopyFrom(node)
        bare.domain = ""
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                values = ReferenceEvaluator(bare, opsets=dict(self._file.opsets)).run(None, feeds)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - what the reference cannot compute stays unknown
            return []
        arrays = [np.asarray(value) for value in values]
        return arrays if all(_onnx_type(array) for array in arrays) else []

    def _is_bounded(self, node: NodeProto, feeds: Mapping[str, Array]) -> bool:
        """Whether computing a node takes no more than its small inputs and outputs promise.

        Shapes are inferred with numbers of 64 bits, which a file can make overflow.
        """
        if any(value.dtype.kind in "OSU" for value in feeds.values()):
            return False  # texts: the sum of two is a longer one, and so on
        if any(abs(attribute.i) > KEPT_ELEMENTS for attribute in node.attribute):
            return False
        if node.op_type == "Range":
            return _steps_of_range([feeds[tensor] for tensor in node.input]) <= KEPT_ELEMENTS
        if node.op_type in _INDEXED:  # numpy steps from an index far outside to the next inside
            indices = feeds[node.input[1]]
            return bool(np.all((indices >= -KEPT_ELEMENTS) & (indices <= KEPT_ELEMENTS)))
        if node.op_type in _SLOW:
            self._slow_left -= sum(value.size for value in feeds.values())
            return self._slow_left >= 0
        return True

    def _infer(self, node: NodeProto, name: str) -> Mapping[str, TypeProto]:
        """Types of what a node writes, as far as onnx can tell."""
        types = {tensor: self.known[tensor].type for tensor in node.input if tensor}
        told = {tensor: kind for tensor, kind in types.items() if kind is not None}
        if len(told) < len(types):
            return {}
        schema, is_own = self._schema(node)
        if schema is not None:
            data = {tensor: held for tensor in told if (held := self._told(tensor)) is not None}
            try:
                found: Mapping[str, TypeProto] = infer_node_outputs(
                    schema, node, told, data, None, self._opset_ids, self._file.model.ir_version
                )
            except (InferenceError, ValidationError) as exc:
                if is_own and all(self.known[tensor].shape is not None for tensor in told):
                    raise ModelFileError(
                        f"{self._file.path}: node {shown(name)} ({node.op_type}) cannot take "
                        f"{self._sizes_text(node)}: {plain(exc)}"
                    ) from exc
            else:
                return found
        if not is_own and node.op_type in _LIKE_FIRST and node.input and node.output:
            return {node.output[0]: told[node.input[0]]} if node.input[0] else {}
        return {}

    def _sizes_text(self, node: NodeProto) -> str:
        shapes = [self.known[tensor].shape for tensor in node.input[:4] if tensor]
        return " and ".join(
            "x".join(map(str, shape)) or "a scalar" for shape in shapes if shape is not None
        )

    def _told(self, tensor: str) -> TensorProto | None:
        """A constant's value, for onnx to tell a shape by; None: it is no short list of numbers."""
        constant = self.known[tensor].constant
        value = constant.value if constant is not None else None
        if value is None or value.size > _TOLD_ELEMENTS or value.dtype.kind not in "iufb":
            return None
        if tensor not in self._data:
            self._data[tensor] = numpy_helper.from_array(value, tensor)
        return self._data[tensor]

    def _schema(self, node: NodeProto) -> tuple[onnx.defs.OpSchema | None, bool]:
        """A schema that infers what a node writes, and whether it is the node's own."""
        key = (domain_of(node), node.op_type)
        if key not in self._schemas:
            self._schemas[key] = self._find_schema(*key)
        return self._schemas[key]

    def _find_schema(self, domain: str, op_type: str) -> tuple[onnx.defs.OpSchema | None, bool]:
        version = self._file.opsets.get(domain, 0)
        if version < 1:
            return None, True  # of a domain that is not onnx's
        version = min(version, 2**31 - 1)
        for name in (op_type, _INFERS_LIKE.get(op_type, op_type)):
            for tried in (version, max(version, _INFERS_SINCE)):
                try:
                    schema = onnx.defs.get_schema(name, tried, domain)
                except onnx.defs.SchemaError:
                    continue
                if schema.has_type_and_shape_inference_function:
                    return schema, name == op_type and tried == version
        return None, bool(domain)


def _steps_of_range(bounds: list[Array]) -> float:
    """How many elements a ``Range`` writes, in numbers that do not overflow."""
    if len(bounds) != 3 or any(bound.size != 1 for bound in bounds):
        return math.inf
    start, limit, step = (bound.item() for bound in bounds)
    if not all(map(math.isfinite, (start, limit, step))) or not step:
        return math.inf
    return float(abs((limit - start) / step))


def _of_constant(constant: Constant) -> Known:
    kind = None
    if constant.elem_type:
        kind = helper.make_tensor_type_proto(constant.elem_type, constant.shape)
    return Known(kind, constant.shape, constant)


def _of_type(kind: TypeProto | None) -> Known:
    return Known(kind, static_shape(kind))


def _constant_of(value: Array) -> Constant:
    kept = value if holds(value.shape) <= KEPT_ELEMENTS else None
    return Constant(shape=value.shape, elem_type=_onnx_type(value), value=kept)


def _onnx_type(value: Array) -> int:
    """ONNX's number for a type; 0: it has none."""
    try:
        return int(helper.np_dtype_to_tensor_dtype(value.dtype))
    except (KeyError, TypeError, ValueError):
        return 0


def _of_shape(node: NodeProto, shape: tuple[int, ...]) -> Array:
    """What a ``Shape`` or ``Size`` writes."""
    if node.op_type == "Size":
        return np.array(math.prod(shape), np.int64)
    part = {a.name: a.i for a in node.attribute if a.name in ("start", "end")}
    return np.array(shape[part.get("start", 0) : part.get("end", len(shape))], np.int64)
