"""The TensorFlow twin: operators give their shapes, and what is saved gives the model's values."""

import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from nn_meter.builder.nn_modules import BaseOperator
from nn_meter.builder.nn_modules.frameworks import get_framework
from nn_meter.builder.nn_modules.tensorflow import operators
from nn_meter.errors import OperatorError, ShapeError
from nn_meter.reference import reference_inputs

if find_spec("tensorflow") is None:
    pytest.skip("needs TensorFlow", allow_module_level=True)

from nn_meter.builder.nn_modules.tensorflow import models
from nn_meter.builder.nn_modules.tensorflow.library import keras, tf

CONFIG = {
    "COUT": 8,
    "KERNEL_SIZE": 3,
    "PADDING": "same",
    "STRIDES": 1,
    "POOL_STRIDES": 2,
    "IMPLEMENT": "tensorflow",
}
SHAPES = {1: [12], 3: [7, 6, 4]}
WINDOWED = ["Conv", "DwConv", "ConvTrans", "MaxPool", "AvgPool"]
CASES = [
    (name, rank)
    for name in operators.__all__
    for rank in getattr(operators, name).ranks
    if name not in WINDOWED
]
LITE = Path("assets.extra") / "model.tflite"


def chain(names, shape, **config):
    """The operators of a chain, each made for the shape that the one before it gives."""
    made = []
    for name in names:
        made.append(getattr(operators, name)(shape, CONFIG | config))
        shape = made[-1].get_output_shape()
    return made


def save(tmp_path, model, shapes, name="model"):
    path = tmp_path / name
    models.save_model(model, path, shapes)
    return path


def check_saved(path, model, shapes, *, lite=True):
    """Both files, run on inputs that are not the reference's, give what the model gives."""
    rng = np.random.default_rng(1)
    feeds = [rng.standard_normal((1, *shape)).astype(np.float32) for shape in shapes]
    wanted = keras.tree.flatten(model(feeds if len(feeds) > 1 else feeds[0], training=False))
    for file in [path, path / LITE] if lite else [path]:
        found = models.run_model(file, feeds)
        assert len(found) == len(wanted)
        for got, want in zip(found, wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name], "something is left over"


# --- operators -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rank"), CASES)
def test_operator_gives_the_shape_that_it_says(name, rank):
    getattr(operators, name)(SHAPES[rank], CONFIG).test_operator()


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("name", WINDOWED)
def test_windows_give_the_shape_that_they_say(name, padding, stride, kernel):
    config = CONFIG | {
        "KERNEL_SIZE": kernel,
        "STRIDES": stride,
        "POOL_STRIDES": stride,
        "PADDING": padding,
    }
    getattr(operators, name)(SHAPES[3], config).test_operator()


def test_a_wrong_shape_is_found():
    class Wrong(operators.Relu):
        def get_output_shape(self):
            return [7, 6, 5]

    with pytest.raises(ShapeError, match=r"\[7, 6, 5\].*\[7, 6, 4\]"):
        Wrong(SHAPES[3], CONFIG).test_operator()


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("Relu", lambda x: np.maximum(x, 0)),
        ("Relu6", lambda x: np.clip(x, 0, 6)),
        ("Sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("Hswish", lambda x: x * np.clip(x + 3, 0, 6) / 6),
        ("Flatten", lambda x: x.reshape(1, -1)),
        ("Reshape", lambda x: x.reshape(1, 4, 7, 6)),
        ("GlobalAvgPool", lambda x: x.mean((1, 2))),
        ("Split", lambda x: x[..., :2]),
        # Padding does not count: the last window of 7 rows has one row.
        ("AvgPool", lambda x: x[:, -1:, -2:].mean((1, 2), keepdims=True)),
    ],
)
def test_operator_computes_its_formula(name, formula):
    operator = getattr(operators, name)(SHAPES[3], CONFIG | {"KERNEL_SIZE": 2})
    model, _ = models.chain_model([operator])
    x = 4 * reference_inputs([SHAPES[3]])[0]
    found = keras.tree.flatten(model(x))[0].numpy()
    if name == "AvgPool":
        found = found[:, -1:, -1:]
    np.testing.assert_allclose(found, formula(x), rtol=1e-5, atol=1e-6)


def test_two_operands_are_taken_in_order():
    a, b = reference_inputs([[12], [12]])
    for name, wanted in (("Add", a + b), ("Concat", np.concatenate([a, b], axis=-1))):
        model, shapes = models.chain_model(chain([name], [12]))
        assert shapes == [[12], [12]]
        np.testing.assert_allclose(keras.tree.flatten(model([a, b]))[0], wanted)


def test_no_weight_is_trivial_and_no_two_are_alike():
    models.seed_weights(3)
    model, _ = models.chain_model(chain(["Conv", "BatchNorm", "DwConv", "SE", "Conv"], [5, 5, 8]))
    weights = [w.numpy() for w in model.weights]
    assert len(weights) == 2 + 4 + 2 + 4 + 2
    for number, weight in enumerate(weights):
        assert np.all(weight != 0)
        for other in weights[number + 1 :]:
            assert weight.shape != other.shape or not np.any(weight == other)


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "shape", "inputs", "outputs"),
    [
        (["Add", "Conv"], [7, 6, 4], 2, 1),
        (["Conv", "Add"], [7, 6, 4], 2, 1),
        (["Concat", "Concat"], [7, 6, 4], 3, 1),
        (["Concat", "Relu"], [12], 2, 1),
        (["Conv", "Split", "Relu"], [7, 6, 4], 1, 2),
        (["Split", "Split"], [7, 6, 4], 1, 3),
        (["FC", "Reshape", "Conv"], [12], 1, 1),
        (["Reshape", "FC"], [12], 1, 1),
        (["Conv", "FC"], [1, 2, 6], 1, 1),
        (["GlobalAvgPool", "FC"], [7, 6, 4], 1, 1),
        (["Flatten", "FC"], [7, 6, 4], 1, 1),
        (["ConvTrans", "BatchNorm", "Relu6"], [7, 6, 4], 1, 1),
        (["DwConv", "SE", "Hswish"], [7, 6, 4], 1, 1),
        (["MaxPool", "Sigmoid", "AvgPool"], [7, 6, 4], 1, 1),
        (["Add", "FC"], [12], 2, 1),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) and value[0] is str else None,
)
def test_chain_is_saved_as_it_is(tmp_path, names, shape, inputs, outputs):
    made = chain(names, shape)
    model, shapes = models.chain_model(made)
    assert len(shapes) == len(model.inputs) == inputs
    assert [x.name for x in model.inputs] == [f"input_{i + 1}" for i in range(inputs)]
    assert {x.shape[0] for x in model.inputs} == {1}
    assert len(model.outputs) == outputs
    assert list(model.outputs[0].shape[1:]) == made[-1].get_output_shape()
    check_saved(save(tmp_path, model, shapes), model, shapes)


def test_kernels_smaller_than_strides_are_saved_as_they_are(tmp_path):
    for padding in ("same", "valid"):
        made = chain(["ConvTrans", "Conv"], SHAPES[3], KERNEL_SIZE=2, STRIDES=3, PADDING=padding)
        model, shapes = models.chain_model(made)
        path = tmp_path / padding / "model"
        path.parent.mkdir()
        models.save_model(model, path, shapes)
        check_saved(path, model, shapes)


def test_the_tflite_file_has_the_operators_of_the_block(tmp_path):
    """A 1-D sum is one operator, and so is hswish."""
    for names, shape, wanted in (
        (["FC", "Add"], [12], ["FULLY_CONNECTED", "ADD"]),
        (["Conv", "Hswish"], SHAPES[3], ["CONV_2D", "HARD_SWISH"]),
    ):
        path = save(tmp_path, *models.chain_model(chain(names, shape)))
        assert lite_operators(path / LITE) == wanted


def lite_operators(file):
    with warnings.catch_warnings(action="ignore"):
        interpreter = tf.lite.Interpreter(
            str(file),
            experimental_op_resolver_type=(
                tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            ),
        )
    return [op["op_name"] for op in interpreter._get_ops_details()]


def test_saving_again_replaces(tmp_path):
    for names in (["Relu"], ["Add"]):
        model, shapes = models.chain_model(chain(names, [12]))
        check_saved(save(tmp_path, model, shapes), model, shapes)


def test_openvino_reads_the_savedmodel(tmp_path):
    openvino = pytest.importorskip("openvino")
    model, shapes = models.chain_model(chain(["Concat", "Concat", "Conv"], SHAPES[3]))
    path = save(tmp_path, model, shapes)
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    feeds = reference_inputs(shapes)
    found = compiled({f"input_{i}": feed for i, feed in enumerate(feeds, start=1)})["output_1"]
    np.testing.assert_allclose(found, models.run_model(path, feeds)[0], rtol=1e-4, atol=1e-4)


# --- what users write ----------------------------------------------------------------------------


class GuideConv(BaseOperator):
    def get_model(self):
        from tensorflow import keras

        cout = self.input_shape[2] if "COUT" not in self.config else self.config["COUT"]
        return keras.layers.Conv2D(
            cout,
            kernel_size=self.config["KERNEL_SIZE"],
            strides=self.config["STRIDES"],
            padding="same",
        )

    def get_output_shape(self):
        cout = self.input_shape[2] if "COUT" not in self.config else self.config["COUT"]
        output_h = (self.input_shape[0] - 1) // self.config["STRIDES"] + 1
        output_w = (self.input_shape[1] - 1) // self.config["STRIDES"] + 1
        return [output_h, output_w, cout]


class GuideSigmoid(BaseOperator):
    def get_model(self):
        def func(inputs):
            return tf.nn.sigmoid(inputs)

        return func


class GuideAdd(BaseOperator):
    def get_model(self):
        return keras.layers.Add()

    def get_is_two_inputs(self):
        return True


class LayerOfTheirOwn(BaseOperator):
    def get_model(self):
        class Scale(keras.layers.Layer):
            def build(self, shape):
                self.scale = self.add_weight(shape=(shape[-1],), initializer="random_normal")

            def call(self, inputs):
                return tf.math.softplus(inputs * self.scale)

        return Scale()


class LayersInsideAFunction(BaseOperator):
    """As written for Keras 2: layers are made while the function runs, and mixed with tf."""

    def get_model(self):
        def func(inputs):
            x = keras.layers.Conv2D(inputs.shape[-1], 1)(inputs)
            x = tf.nn.relu6(tf.math.add(x, 3.0)) * 0.16667
            return tf.concat([x, inputs], axis=-1)[..., : inputs.shape[-1]]

        return func


class RealTensorsOnly(BaseOperator):
    def get_model(self):
        @tf.function
        def func(inputs):
            if not isinstance(inputs, tf.Tensor):
                raise TypeError("a tensor, please")
            return tf.abs(inputs)

        return func


@pytest.mark.parametrize(
    "operator",
    [
        GuideConv,
        GuideSigmoid,
        GuideAdd,
        LayerOfTheirOwn,
        LayersInsideAFunction,
        RealTensorsOnly,
    ],
)
def test_users_operators_run_unchanged(tmp_path, operator):
    theirs = operator(SHAPES[3], CONFIG)
    theirs.test_operator()
    model, shapes = models.chain_model([theirs, operators.Relu(theirs.get_output_shape(), CONFIG)])
    check_saved(save(tmp_path, model, shapes), model, shapes)


def test_a_users_layer_follows_a_users_function(tmp_path):
    """Keras calls a tensor times a number sparse, and tries the next layer on a sparse one."""

    class Scaled(BaseOperator):
        def get_model(self):
            return lambda inputs: inputs * tf.nn.relu6(inputs + 3) * 0.16667

    model, shapes = models.chain_model(
        [made(SHAPES[3], CONFIG) for made in (Scaled, LayerOfTheirOwn)]
    )
    check_saved(save(tmp_path, model, shapes), model, shapes)


def test_what_goes_wrong_in_a_users_operator_names_it():
    class Broken(BaseOperator):
        def get_model(self):
            return keras.layers.Conv2D(8, 9)

    with pytest.raises(OperatorError, match=r"^Broken[^\x1b]+$") as caught:
        models.chain_model([Broken(SHAPES[3], CONFIG)])
    assert isinstance(caught.value.__cause__, ValueError)


def mon():
    """The guide's block of two branches, with the batch open."""
    x_in = keras.Input(shape=SHAPES[3])
    x = keras.layers.DepthwiseConv2D(3, padding="same")(x_in)
    branch_1 = keras.layers.ReLU(negative_slope=0)(x)
    branch_1 = keras.layers.ReLU(negative_slope=0)(branch_1)
    branch_2 = keras.layers.ReLU(negative_slope=2)(x)
    branch_2 = keras.layers.DepthwiseConv2D(3, padding="same")(branch_2)
    return keras.models.Model(x_in, [branch_1, branch_2])


def dwconv_add_add():
    input_1, input_2 = keras.Input(shape=SHAPES[3]), keras.Input(shape=SHAPES[3])
    x = keras.layers.DepthwiseConv2D(3, padding="same")(input_1)
    x = keras.layers.Add()([x, input_1])
    return keras.models.Model([input_1, input_2], keras.layers.Add()([x, 2 * input_2]))


def functions_on_symbolic_tensors():
    x = keras.Input(shape=SHAPES[3])
    return keras.Model(x, tf.nn.relu6(tf.transpose(x, [0, 3, 1, 2])))


def sequential():
    return keras.Sequential([keras.layers.Dense(3), keras.layers.Softmax()])


class Subclass(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, inputs):
        a, b = inputs
        return {"b": self.dense(a) - b[..., :1], "a": a + 2 * b}


class SubclassOfTwo(keras.Model):
    def call(self, a, b):
        return a - b


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (mon, 1),
        (dwconv_add_add, 2),
        (functions_on_symbolic_tensors, 1),
        (sequential, 1),
        (Subclass, 2),
    ],
)
def test_models_of_test_cases_are_saved_as_they_are(tmp_path, build, count):
    model, shapes = build(), [SHAPES[3]] * count
    check_saved(save(tmp_path, model, shapes), model, shapes)


def test_a_class_with_two_arguments_is_saved(tmp_path):
    path = save(tmp_path, SubclassOfTwo(), [[4], [4]])
    a, b = reference_inputs([[4], [4]])
    np.testing.assert_allclose(models.run_model(path / LITE, [a, b])[0], a - b)


def test_inputs_by_name_go_in_the_models_order(tmp_path):
    ins = {name: keras.Input([4], name=name) for name in ("p", "q")}
    path = save(tmp_path, keras.Model(ins, {"d": ins["p"] - ins["q"]}), [[4], [4]])
    p, q = reference_inputs([[4], [4]])
    np.testing.assert_allclose(models.run_model(path, [p, q])[0], p - q)


def test_many_inputs_and_outputs_keep_their_order(tmp_path):
    ins = [keras.Input([3], batch_size=1) for _ in range(12)]
    outs = [x * (number + 1.0) for number, x in enumerate(ins)][::-1]
    model = keras.Model(ins, [*outs, ins[0], outs[0]])
    shapes = [[3]] * 12
    check_saved(save(tmp_path, model, shapes), model, shapes)


def test_an_input_that_is_not_used_stays_an_input(tmp_path):
    a, b, c = (keras.Input([3], batch_size=1) for _ in range(3))
    model = keras.Model([a, b, c], [c * 2.0, a * 3.0])
    shapes = [[3]] * 3
    check_saved(save(tmp_path, model, shapes), model, shapes)


# --- what must not pass --------------------------------------------------------------------------


def test_what_tflite_lacks_is_saved_without_it(tmp_path, caplog):
    x = keras.Input([4])
    model = keras.Model(x, tf.math.bessel_i0e(x))
    path = save(tmp_path, model, [[4]])
    assert [p.name for p in path.iterdir()] == ["saved_model.pb"]
    assert "without a .tflite" in caplog.text
    check_saved(path, model, [[4]], lite=False)


def test_a_wrong_conversion_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    """The other model has its inputs swapped: the same shapes, other values."""
    a, b = keras.Input([4], batch_size=1), keras.Input([4], batch_size=1)
    model, swapped = keras.Model([a, b], a - b), keras.Model([a, b], b - a)
    other = models._convert(models._freeze(swapped, [[4], [4]]), "swapped")
    monkeypatch.setattr(models, "_convert", lambda frozen, name: other)
    with pytest.raises(OperatorError, match="the TFLite model differs from the model in output 1"):
        save(tmp_path, model, [[4], [4]])
    assert not list(tmp_path.iterdir())


def test_outputs_in_another_order_are_refused(tmp_path, monkeypatch):
    x = keras.Input([4], batch_size=1)
    model, swapped = keras.Model(x, [x + 1.0, x * 2.0]), keras.Model(x, [x * 2.0, x + 1.0])
    freeze = models._freeze
    monkeypatch.setattr(models, "_freeze", lambda model, shapes: freeze(swapped, shapes))
    with pytest.raises(OperatorError, match="the SavedModel differs"):
        save(tmp_path, model, [[4]])


def test_a_model_that_gives_nan_is_saved_all_the_same(tmp_path):
    logarithm = keras.Sequential([keras.layers.Lambda(tf.math.log)])
    outputs = models.save_model(logarithm, tmp_path / "model", [[64]])
    assert np.isnan(outputs[0]).any()
    assert np.isfinite(outputs[0]).any()


@pytest.mark.parametrize(
    ("model", "shapes", "reason"),
    [
        (lambda: "model", [[4]], "keras.Model, not a str"),
        (mon, [SHAPES[3]] * 2, "1 inputs, but 2 shapes"),
        (mon, [[7, 6, 5]], "cannot be built"),
        (
            lambda: keras.Sequential([keras.layers.Lambda(lambda x: x + tf.random.uniform([4]))]),
            [[4]],
            "differs from the model",
        ),
    ],
    ids=["no model", "count", "shape", "random"],
)
def test_a_model_that_cannot_be_vouched_for_is_refused(tmp_path, model, shapes, reason):
    with pytest.raises(OperatorError, match=reason):
        save(tmp_path, model(), shapes)
    assert not list(tmp_path.iterdir())


# --- other processes -----------------------------------------------------------------------------

SAVE = """
import sys
from pathlib import Path
from nn_meter.builder.nn_modules.tensorflow import models, operators
config = {"COUT": 8, "KERNEL_SIZE": 3, "STRIDES": 1}
folder = Path(sys.argv[1])
if len(sys.argv) > 2:  # what was built before must not show
    models.chain_model([operators.Conv([7, 6, 4], config)])
for names in ("Add Add", "Conv Hswish", "DwConv SE", "ConvTrans BatchNorm", "Split Concat"):
    chain, shape = [], [7, 6, 4]
    for name in names.split():
        chain.append(getattr(operators, name)(shape, config))
        shape = chain[-1].get_output_shape()
    models.seed_weights(11)
    model, shapes = models.chain_model(chain)
    models.save_model(model, folder / names.replace(" ", "_"), shapes)
"""

WITHOUT = """
import sys
sys.modules["tensorflow"] = None
from nn_meter.builder.nn_modules.frameworks import get_framework
from nn_meter.builder.nn_modules.tensorflow import operators
from nn_meter.errors import NotInstalledError
operator = operators.Conv([7, 6, 4], {"KERNEL_SIZE": 3, "STRIDES": 2, "COUT": 5})
assert operator.get_output_shape() == [4, 3, 5]
for call in (operator.get_model, lambda: get_framework("tensorflow")):
    try:
        call()
    except NotInstalledError as exc:
        assert "nn-meter[tensorflow]" in str(exc)
    else:
        raise AssertionError
"""


def start(code, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


def test_equal_models_are_equal_bytes_and_standard_output_is_ours(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    processes = [
        start(SAVE, folders[0], PYTHONHASHSEED="1"),
        start(SAVE, folders[1], "another", PYTHONHASHSEED="2"),
    ]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        assert out == b""
    files = [
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in folders
    ]
    assert len(files[0]) == 10
    assert files[0] == files[1]


def test_shapes_are_known_without_tensorflow():
    process = start(WITHOUT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()


def test_the_framework_is_found_by_its_name():
    framework = get_framework("tensorflow")
    assert framework is models
    assert framework.version() == f"tensorflow {tf.__version__}"


def test_keras_on_another_backend_is_refused():
    code = "from nn_meter.builder.nn_modules.tensorflow import models"
    process = start(code, KERAS_BACKEND="jax")
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "ConfigError: IMPLEMENT: tensorflow needs Keras on tensorflow" in err.decode()
