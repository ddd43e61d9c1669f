"""Prints of executed graphs: what each format's reader finds, and what it refuses."""

from __future__ import annotations

import base64
import ctypes
import json
import logging
from typing import Any

import pytest

from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.recorded import FORMATS, read_print
from nn_meter.builder.backends.tensorrt import recorded as tensorrt
from nn_meter.builder.backends.tflite import capi
from nn_meter.builder.backends.tflite.graph import graph_of
from nn_meter.builder.profiling.recorded import choose_format, find_files
from nn_meter.errors import ConfigError, ResultFileError

RULE = "=" * 30


@pytest.fixture
def read(tmp_path):
    """Write a print and read it."""

    def _read(name: str, content: str | bytes, format_name: str) -> ExecutedGraph:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_print(path, FORMATS[format_name])

    return _read


def found(graph: ExecutedGraph) -> list[tuple[str, str]]:
    return [(node.type, node.kind) for node in graph.nodes]


# --- LiteRT --------------------------------------------------------------------------------------

CONV, CLAMP, RESHAPE = "Convolution (NHWC, F32) IGEMM", "Clamp (NC)", "Static Reshape (NC)"
NUMBERS = "\t    0.020\t    0.014\t  3.309%\t 92.948%\t   452.000\t        1\t"
HEAD = "\t   [node type]\t [first]\t [avg ms]\t [%]\t [cdf%]\t [mem KB]\t[times called]\t[Name]"


def table(*rows: tuple[str, str], title: str = "Run Order", head: str = HEAD) -> str:
    lines = [f"\t{kind:>40}{NUMBERS}{name}" for kind, name in rows]
    return "\n".join([f"{RULE} {title} {RULE}", head, *lines, "", ""])


LOADING = "INFO: Profiling Info for Benchmark Initialization:\n" + table(
    ("ModifyGraphWithDelegate", "ModifyGraphWithDelegate/0"), ("CONV_2D", "[made at load]:7")
)
RUNNING = "INFO: Operator-wise Profiling Info for Regular Benchmark Runs:\n"
IN_ORDER = (
    ("LiteRT::Run[buffer registration]", "LiteRT::Run[buffer registration]/0"),
    (CONV, f"Delegate/{CONV}:0"),
    (RESHAPE, f"Delegate/{RESHAPE}:1"),
    ("LOGICAL_NOT", "[out a, out b]:4"),
)
EXPECTED = [(CONV, "compute"), (RESHAPE, "move"), ("LOGICAL_NOT", "compute")]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            LOADING
            + RUNNING
            + table(*IN_ORDER)
            + table(*IN_ORDER[::-1], title="Top by Computation Time"),
            id="benchmark_model",
        ),
        pytest.param(
            RUNNING
            + table(("TfLiteXNNPackDelegate", "[out]:9"), ("LOGICAL_NOT", "[out a, out b]:4"))
            + "Delegate internal: \n"
            + table(
                ("DelegateOpInvoke", f"Delegate/{CONV}:0"),
                ("DelegateOpInvoke", f"Delegate/{RESHAPE}:1"),
            ),
            id="a table for the delegate",
        ),
        pytest.param(
            table(
                (f"Delegate/{CONV}", "[Delegate]:0"),
                (f"Delegate/{RESHAPE}", "[Delegate]:1"),
                ("LOGICAL_NOT", "[Builtin]:2"),
            ).replace("\t", "   "),
            id="LiteRtGetProfileSummary",
        ),
        pytest.param(
            "".join(
                f"05-31 10:31:13.042 217 217 I tflite  : {line}\n"
                for line in (LOADING + RUNNING + table(*IN_ORDER)).splitlines()
            ),
            id="from Android's log",
        ),
        pytest.param(table(*IN_ORDER) + "again:\n" + table(*IN_ORDER), id="twice"),
        pytest.param(
            f"{RULE} Run Order {RULE}\n"
            "node type, start, first, avg_ms, %, cdf%, mem KB, times called, name\n"
            f"{CONV}, 0, 0.16, 0.1999, 11.4405%, 1.4e-05%, 0, 1, "
            "Delegate/Convolution (NHWC\t F32) IGEMM:0\n"
            f"DelegateOpInvoke,0.16,0.1999,11.4405%,11.4405%,0,1,Delegate/{RESHAPE}:1\n"
            "LOGICAL_NOT, 0.16, 0.1999, nan%, 100%, 0, 1, [out a\t out b]:4\n",
            id="CSV",
        ),
    ],
)
def test_litert_tells_each_op_once(read, text):
    graph = read("BF.txt", text, "litert")
    assert sorted(found(graph)) == sorted(EXPECTED)
    assert graph.inputs is None
    assert FORMATS["litert"].reader.recognises(text)


def test_litert_prints_what_its_profiler_tells(read, tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert, which is not installed")
    library = capi.Library(capi.find_library())
    summarize = ctypes.CDLL(str(capi.find_library())).LiteRtGetProfileSummary
    summarize.argtypes = [ctypes.c_void_p] * 3
    asked: dict[str, Any] = {}
    texts = []
    get, read_out = library.get, capi._events

    def remember(name: str, *arguments: Any) -> Any:
        asked[name] = arguments
        return get(name, *arguments)

    def also_print(given: Any, profiler: Any, wall_us: float) -> Any:
        (compiled,) = asked["LiteRtCompiledModelGetProfiler"]
        text = ctypes.c_char_p()
        assert summarize(profiler, compiled, ctypes.byref(text)) == 0
        texts.append(text.value)
        return read_out(given, profiler, wall_us)

    monkeypatch.setattr(library, "get", remember)
    monkeypatch.setattr(capi, "_events", also_print)
    model = tmp_path / "two_ops.tflite"
    model.write_bytes(base64.b64decode(capi._MODEL))
    live = graph_of(capi.profile(library, model, capi._INPUTS, threads=1))
    assert len(live.nodes) == 2
    assert read("BF.txt", texts[0], "litert") == live


def test_litert_merges_equal_operators_of_two_delegated_parts(read):
    text = table((CLAMP, f"Delegate/{CLAMP}:0")).replace("        1\t", "        2\t")
    assert found(read("BF.txt", text, "litert")) == [(CLAMP, "compute")] * 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_print_that_a_shell_redirected(read, encoding):
    graph = read("BF.txt", table(*IN_ORDER).encode(encoding), "litert")
    assert found(graph) == EXPECTED


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Inference timings in us: Init: 1523", "has no table 'Run Order'; run benchmark_model"),
        (LOADING, "shows no op in the table"),
        (table(("TfLiteXNNPackDelegate", "[out]:0")), "shows that XNNPACK ran, but not what"),
        (table(("TfLiteGpuDelegateV2", "[out]:0")), "shows that TfLiteGpuDelegateV2 ran a part"),
        (table(("x" * 30_000, "[out]:0")), "has a line of more than"),
    ],
)
def test_litert_refuses(read, text, words):
    with pytest.raises(ResultFileError, match=rf"BF\.txt: .*{words}"):
        read("BF.txt", text, "litert")


# --- TensorRT ------------------------------------------------------------------------------------


def layer(name: str, kind: str, reads: list[str], writes: list[str], **more: Any) -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{"Name": tensor, "Dimensions": [1, 16, 28, 28]} for tensor in reads],
        "Outputs": [{"Name": tensor, "Dimensions": [1, 16, 28, 28]} for tensor in writes],
        **more,
    }


ENGINE = {
    "Layers": [
        layer("c", "Constant", [], ["w"]),
        layer("r", "Reformat", ["x"], ["x8"], ParameterType="Reformat", Origin="REFORMAT"),
        layer("[trainStation1]", "signal", [], []),
        layer(
            *("conv + add + relu", "CaskConvolution", ["x8", "skip"], ["y"]),
            **{"ParameterType": "Convolution", "Activation": "RELU", "HasReLU": 1},
        ),
        layer("conv + add + relu [profile 1]", "CaskConvolution", ["x8"], ["y"]),
        layer("conv2", "CaskConvolution", ["y"], ["z"], Activation="NONE", ParameterType="Conv"),
        layer("s", "Shuffle", ["z"], ["s"], FirstTranspose=[0, 1, 2], SecondTranspose=[0, 1]),
        layer("t", "Shuffle", ["s"], ["t"], FirstTranspose=[0, 2, 1], SecondTranspose=[0, 1]),
        layer("n", "NoOp", ["t"], ["u"]),
        layer("e", "ElementWise", ["u", "w"], ["out"], Operation="SUM"),
    ],
    "Bindings": ["skip", "x", "out"],
}


def test_tensorrt_of_the_documentation(read, caplog):
    tensorrt._say_untried.cache_clear()
    with caplog.at_level(logging.WARNING, logger="nn_meter"):
        graph = read("BF.json", json.dumps(ENGINE), "tensorrt")
        read("BF.json", json.dumps(ENGINE), "tensorrt")
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "reading TensorRT's layer information is untried"
    ]
    assert found(graph) == [
        ("Constant", "const"),
        ("Reformat", "move"),
        ("CaskConvolution[sum, Activation=RELU]", "compute"),
        ("CaskConvolution", "compute"),
        ("Shuffle", "view"),
        ("Shuffle", "move"),
        ("NoOp", "view"),
        ("ElementWise[Operation=SUM]", "compute"),
    ]
    assert graph.inputs == ("skip", "x")
    assert graph.nodes[-1].inputs == ("u",)  # no constant
    del (older := dict(ENGINE))["Bindings"]
    assert read("BF.json", json.dumps(older), "tensorrt").inputs == ("x", "skip")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"Layers": ["conv + relu"], "Bindings": ["x"]}, "names of layers only; run trtexec with"),
        ({"layers": []}, "has no list of 'Layers'"),
        ([], "has no list of 'Layers'"),
        ({"Layers": [{"Name": "a"}]}, "does not say what it does"),
        ({"Layers": [3]}, "does not say what it does"),
        ({"Layers": []}, "in which nothing is executed"),
        ({"Layers": [layer("all", "Myelin", ["x"], ["y"])]}, "compiled a part of the model as one"),
    ],
)
def test_tensorrt_refuses(read, data, words):
    with pytest.raises(ResultFileError, match=rf"BF\.json: .*{words}"):
        read("BF.json", json.dumps(data), "tensorrt")


# --- OpenVINO ------------------------------------------------------------------------------------

DATA = 'execOrder="{order}" originalLayersNames="{names}" primitiveType="{primitive}"'


def net(*layers: tuple[str, str, int, int], edges: str) -> str:
    """Layers as type, original names, and how many tensors go in and out."""
    text = ""
    for number, (kind, names, reads, writes) in enumerate(layers):
        data = DATA.format(order=number, names=names, primitive="jit_avx2_f32")
        ports = [f'<port id="{port}"/>' for port in range(reads + writes)]
        text += (
            f'<layer id="{number}" name="n{number}" type="{kind}"><data {data}/>'
            f"<input>{''.join(ports[:reads])}</input>"
            f"<output>{''.join(ports[reads:])}</output></layer>"
        )
    wires = ""
    for edge in edges.split():
        start, from_port, end, to_port = edge.replace("-", ".").split(".")
        wires += (
            f'<edge from-layer="{start}" from-port="{from_port}" to-layer="{end}" '
            f'to-port="{to_port}"/>'
        )
    return f'<?xml version="1.0"?><net><layers>{text}</layers><edges>{wires}</edges></net>'


RUNTIME_MODEL = net(
    ("Input", "x", 0, 1),
    ("Const", "w", 0, 1),
    ("Reorder", "", 1, 1),
    ("Split", "s", 1, 2),
    ("Convolution", "a,b,c", 2, 1),
    ("Reshape", "f", 1, 1),
    ("Output", "o", 1, 0),
    edges="0.0-2.0 2.1-3.0 3.2-4.0 1.0-4.1 1.0-5.0 4.2-6.0",
)


def test_openvino_without_the_model(read):
    graph = read("BF.xml", RUNTIME_MODEL, "openvino")
    assert found(graph) == [
        ("Reorder", "move"),
        ("Split", "compute"),
        ("Convolution[3 ops]", "compute"),
        ("Reshape", "const"),
    ]
    assert graph.inputs == ("n0:0",)
    assert graph.nodes[2].inputs == ("n3:1",)  # the split's second output, and no constant
    assert graph.ops is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<net><layers>", "is no runtime model of OpenVINO"),
        ("Run Order", "is no runtime model of OpenVINO"),
        ('<!DOCTYPE net [<!ENTITY a "a">]>' + RUNTIME_MODEL, "has a document type"),
        (RUNTIME_MODEL.replace("primitiveType", "type"), "KeyError: 'primitiveType'"),
        (RUNTIME_MODEL.replace('execOrder="2"', 'execOrder="b"'), "ValueError"),
        (RUNTIME_MODEL.replace('from-layer="2"', 'from-layer="9"'), "KeyError"),
        ("<net/>", "in which nothing is executed"),
    ],
)
def test_openvino_refuses(read, text, words):
    with pytest.raises(ResultFileError, match=rf"BF\.xml: .*{words}"):
        read("BF.xml", text, "openvino")


# --- all -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_print_at_all(read, name):
    for content in (b"", b"\xff\x00\xfe", b"\x00" * 40, b"[" * 100_000, b'{"Layers": [{}', b"<a"):
        with pytest.raises(ResultFileError, match=r"BF\.any: "):
            read("BF.any", content, name)


@pytest.mark.parametrize("name", ["openvino", "litert", "tensorrt"])
def test_a_file_that_is_too_large(tmp_path, name):
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(ResultFileError, match=r"huge: .*larger than 8388608 bytes"):
        read_print(path, FORMATS[name])


def test_an_onnx_model_that_onnxruntime_did_not_optimize(generated, tmp_path):
    workspace, _ = generated
    model = workspace.models_dir / "BF_conv_relu_block.onnx"
    with pytest.raises(ResultFileError, match=r"block\.onnx: .*none that ONNX Runtime optimized"):
        read_print(model, FORMATS["onnxruntime"])


def test_the_format_is_what_the_files_surely_are(tmp_path):
    files = {
        "a.xml": RUNTIME_MODEL,
        "b.txt": table(*IN_ORDER),
        "c.json": json.dumps(ENGINE),
        "notes.txt": "to do",
        "d.json": "{}",
    }
    paths = {}
    for name, text in files.items():
        paths[name] = tmp_path / name
        paths[name].write_text(text)
    for name, kind in (("a.xml", "openvino"), ("b.txt", "litert"), ("c.json", "tensorrt")):
        assert choose_format([paths[name], paths["notes.txt"]], None) is FORMATS[kind]
    assert choose_format([paths["d.json"]], "tensorrt") is FORMATS["tensorrt"]
    with pytest.raises(
        ConfigError, match=r"d\.json\) tell no format; give --format onnxruntime or"
    ):
        choose_format([paths["d.json"]], None)
    with pytest.raises(ConfigError, match="could be of litert and openvino"):
        choose_format(find_files([tmp_path], None)[:3], None)


def test_folders_and_files(tmp_path):
    (tmp_path / "in" / "side").mkdir(parents=True)
    inner = tmp_path / "in" / "side" / "a.xml"
    inner.write_text("")
    (tmp_path / "in" / "a.bin").write_text("")
    assert find_files([tmp_path, inner], FORMATS["openvino"]) == [inner]
    assert find_files([tmp_path / "in" / "a.bin"], None) == [tmp_path / "in" / "a.bin"]
    with pytest.raises(ResultFileError, match=r"in: there is no print in this folder; .* \.onnx"):
        find_files([tmp_path / "in"], FORMATS["onnxruntime"])
    with pytest.raises(ResultFileError, match="gone: there is no such file or folder"):
        find_files([tmp_path / "gone"], None)
