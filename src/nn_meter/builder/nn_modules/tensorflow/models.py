"""Keras models: how one is made, saved (as SavedModel and .tflite at once) and run.

A saved model is a folder::

    <name>/saved_model.pb               the graph, weights in it; batch 1
    <name>/assets.extra/model.tflite    the same graph converted; absent if TFLite lacks an operator

Weights are constants in the graph, and the SavedModel is written as a message, with no checkpoint
and no fingerprint beside it: that takes a millisecond, and equal models give equal bytes.
Its signature ``serving_default`` calls inputs ``input_1``, … and outputs ``output_1``, … in the
model's order; from ten on they are ``input_01``, … for readers that sort by name.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nn_meter.builder.nn_modules.base import BaseOperator
from nn_meter.builder.nn_modules.frameworks import Operand
from nn_meter.builder.nn_modules.tensorflow.library import (
    ConverterError,
    FunctionNode,
    SavedModel,
    convert_variables_to_constants_v2,
    dense,
    keras,
    tf,
)
from nn_meter.builder.nn_modules.wiring import join
from nn_meter.errors import NNMeterError, OperatorError
from nn_meter.reference import compare_outputs, reference_inputs, sample_outputs

__all__ = [
    "chain_model",
    "output_shape",
    "run_model",
    "save_model",
    "seed_weights",
    "version",
]

Array = npt.NDArray[np.float32]

_SIGNATURE = "serving_default"
_LITE = Path("assets.extra") / "model.tflite"
_log = logging.getLogger(__name__)


def seed_weights(seed: int) -> None:
    """Seed TensorFlow, numpy and Python from here on, and start layer names afresh."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed % 2**32)


def chain_model(
    operators: Sequence[BaseOperator],
    operands: Sequence[Operand] | None = None,
    *,
    replicas: int = 1,
) -> tuple[Any, list[list[int]]]:
    """Build a chain of operators; see ``frameworks.Framework.chain_model``.

    Raises:
        OperatorError: An operand is not what the operator takes, or Keras or an operator raised an
            error, which is chained.
    """
    keras.backend.clear_session(free_memory=False)
    inputs: list[Any] = []
    shapes: list[list[int]] = []

    def graph_input(shape: Sequence[int]) -> Any:
        shapes.append(list(shape))
        inputs.append(keras.Input(shapes[-1], batch_size=1, name=f"input_{len(shapes)}"))
        return inputs[-1]

    def apply(operator: BaseOperator, taken: Any) -> list[Any]:
        with _blaming(type(operator).__name__):
            outputs = _apply(operator.get_model(), taken)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        return [dense(output) for output in outputs]

    outputs = join(operators, operands, graph_input=graph_input, apply=apply, replicas=replicas)
    with _blaming(" + ".join(type(operator).__name__ for operator in operators)):
        model = keras.Model(_single(inputs), _single(outputs), name="model")
    return model, shapes


def save_model(
    model: Any,
    path: Path,
    shapes: Sequence[Sequence[int]],
    *,
    outputs: bool = True,
) -> list[Array]:
    """Write the folder ``path``: complete and checked against ``model``, or not at all.

    Both files must give what ``model`` gives, output by output, on the reference inputs, unless
    ``outputs`` is False. A model with an operator that TFLite lacks is saved without the
    ``.tflite``, with a warning in the log.

    Args:
        model: A ``keras.Model``; any number of inputs and outputs, any batch.
        path: The folder; one that is there is replaced.
        shapes: Shapes of the inputs, in the model's order, without the batch dimension.
        outputs: False: nothing is run, and nothing checked.

    Returns:
        What ``model`` gives on the reference inputs; nothing without ``outputs``.

    Raises:
        OperatorError: The model cannot be traced, or what was written gives other values.
    """
    if not isinstance(model, keras.Model):
        raise OperatorError(f"a tensorflow model is a keras.Model, not a {type(model).__name__}")
    feeds = reference_inputs(shapes) if outputs else []
    expected: list[Array] = []
    with _blaming(path.name):
        if outputs:
            expected = [np.asarray(y) for y in _call(model, [tf.constant(feed) for feed in feeds])]
        frozen = _freeze(model, shapes)
        with _complete(path) as folder:
            (folder / "saved_model.pb").write_bytes(_saved_model(frozen))
            written = {"the SavedModel": folder}
            if lite := _convert(frozen, path.name):
                written["the TFLite model"] = folder / _LITE
                (folder / _LITE).parent.mkdir()
                (folder / _LITE).write_bytes(lite)
            if outputs:
                for what, file in written.items():
                    _check(f"{path.name}: {what}", run_model(file, feeds), expected)
    return expected


def run_model(path: Path, feeds: Sequence[Array]) -> list[Array]:
    """Run a SavedModel folder, or a ``.tflite`` file; inputs and outputs in order."""
    if path.is_file():
        return _run_lite(path, feeds)
    function = tf.saved_model.load(str(path)).signatures[_SIGNATURE]
    names = sorted(function.structured_input_signature[1])
    outputs = function(**{name: tf.constant(feed) for name, feed in zip(names, feeds, strict=True)})
    return [outputs[name].numpy() for name in sorted(outputs)]


def output_shape(operator: BaseOperator) -> list[int]:
    """Shape of an operator's first output, by running the operator alone."""
    model, shapes = chain_model([operator])
    with _blaming(type(operator).__name__):
        outputs = _call(model, [tf.constant(feed) for feed in reference_inputs(shapes)])
    return [int(size) for size in outputs[0].shape[1:]]


def version() -> str:
    """Name and version."""
    return f"tensorflow {tf.__version__}"


def _apply(model: Any, inputs: Any) -> Any:
    """Put a layer, or a function, on symbolic tensors.

    A function is called on them as it stands, so the layers that it makes are made once. One that
    wants real tensors, and fails, becomes a node that calls it.
    """
    if isinstance(model, keras.Operation):
        return model(inputs)
    try:
        return model(inputs)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return FunctionNode(model)(inputs)


def _single(tensors: list[Any]) -> Any:
    return tensors if len(tensors) > 1 else tensors[0]


def _call(model: Any, tensors: Sequence[Any]) -> list[Any]:
    """Call a model on a flat list of inputs; its outputs, flat, in order."""
    try:
        structure = model.input
    except (AttributeError, ValueError):  # a model without a graph: a class of the user's
        structure = None
    if structure is not None:
        wanted = len(keras.tree.flatten(structure))
        if wanted != len(tensors):
            raise OperatorError(f"the model has {wanted} inputs, but {len(tensors)} shapes")
        arguments = [keras.tree.pack_sequence_as(structure, list(tensors))]
    elif len(tensors) == 1 or _required_arguments(model.call) == len(tensors):
        arguments = list(tensors)
    else:
        arguments = [list(tensors)]
    return list(keras.tree.flatten(model(*arguments, training=False)))


def _required_arguments(function: Any) -> int:
    parameters = inspect.signature(function).parameters.values()
    return sum(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters)


def _freeze(model: Any, shapes: Sequence[Sequence[int]]) -> Any:
    """Trace a model once, for batch 1, and put its weights into the graph as constants."""
    specs = [
        tf.TensorSpec([1, *shape], tf.float32, name=name)
        for name, shape in zip(_names("input", len(shapes)), shapes, strict=True)
    ]
    traced = tf.function(lambda *tensors: _call(model, tensors), autograph=False)
    return convert_variables_to_constants_v2(traced.get_concrete_function(*specs))


def _saved_model(frozen: Any) -> bytes:
    saved = SavedModel(saved_model_schema_version=1)
    meta = saved.meta_graphs.add()
    meta.meta_info_def.tags.append(tf.saved_model.SERVING)
    meta.meta_info_def.tensorflow_version = tf.__version__
    meta.graph_def.CopyFrom(frozen.graph.as_graph_def())
    # Freezing leaves the inputs in an order that changes from process to process.
    order = {tensor.op.name: number for number, tensor in enumerate(frozen.inputs)}
    meta.graph_def.node.sort(key=lambda node: order.get(node.name, len(order)))
    signature = meta.signature_def[_SIGNATURE]
    signature.method_name = "tensorflow/serving/predict"
    for prefix, tensors, infos in (
        ("input", frozen.inputs, signature.inputs),
        ("output", frozen.outputs, signature.outputs),
    ):
        for name, tensor in zip(_names(prefix, len(tensors)), tensors, strict=True):
            infos[name].name = tensor.name
            infos[name].dtype = tensor.dtype.as_datatype_enum
            infos[name].tensor_shape.CopyFrom(tensor.shape.as_proto())
    return bytes(saved.SerializeToString(deterministic=True))


def _convert(frozen: Any, name: str) -> bytes | None:
    """Convert to TFLite; None if it has no operator for something in the graph."""
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module())
    # The default goes through another SavedModel, which is slow, and for functions whose variables
    # are not frozen it is wrong without a word.
    converter.experimental_lower_to_saved_model = False
    try:
        return bytes(converter.convert())
    except ConverterError as exc:
        _log.warning("%s is saved without a .tflite file: TFLite cannot convert it: %s", name, exc)
        return None


def _run_lite(path: Path, feeds: Sequence[Array]) -> list[Array]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated")
        interpreter = tf.lite.Interpreter(
            str(path),
            # Without XNNPACK: that announces itself on standard error.
            experimental_op_resolver_type=(
                tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            ),
        )
    interpreter.allocate_tensors()
    for detail, feed in zip(interpreter.get_input_details(), feeds, strict=True):
        interpreter.set_tensor(detail["index"], feed)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def _check(what: str, found: Sequence[Array], expected: Sequence[Array]) -> None:
    """Compare outputs one by one, so that those in another order do not pass."""
    if len(found) != len(expected):
        raise OperatorError(f"{what} has {len(found)} outputs, but the model has {len(expected)}")
    for number, (got, want) in enumerate(zip(found, expected, strict=True), start=1):
        if difference := compare_outputs(sample_outputs([got]), sample_outputs([want])):
            raise OperatorError(f"{what} differs from the model in output {number}: {difference}")


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` that takes its place when all went well, and goes away otherwise."""
    folder = path.with_name(f".{path.name}.{os.getpid()}.new")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    for stale in (folder, old):
        shutil.rmtree(stale, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
        if path.exists():
            path.rename(old)
        folder.rename(path)
    finally:
        for stale in (folder, old):
            shutil.rmtree(stale, ignore_errors=True)


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Turn what TensorFlow or a user's code raises into an error that names what was built."""
    try:
        yield
    except (NNMeterError, OSError):
        raise
    except Exception as exc:
        reason = re.sub(r"\x1b\[\d*m", "", str(exc))  # Keras prints its reasons bold
        raise OperatorError(f"{name} cannot be built in TensorFlow: {reason}") from exc


def _names(prefix: str, count: int) -> list[str]:
    """Names that sort in order: ``input_1``, …, or ``input_01``, … if there are ten or more."""
    return [f"{prefix}_{number:0{len(str(count))}}" for number in range(1, count + 1)]
