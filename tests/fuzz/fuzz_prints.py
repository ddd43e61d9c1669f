"""Prints of executed graphs: one of each format, and such as no runtime writes."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from random import Random

import fuzz_onnx
from fuzz_mutation import damaged_json

__all__ = ["make_output", "make_print", "outputs", "prints", "read_output"]

_RULE = "=" * 30
_NUMBERS = "\t    0.020\t    0.014\t  3.309%\t 92.948%\t   452.000\t        1\t"
_HEAD = "\t   [node type]\t [first]\t [avg ms]\t [%]\t [cdf%]\t [mem KB]\t[times called]\t[Name]"
_CONV = "Convolution (NHWC, F32) IGEMM"
_ROWS = ((_CONV, f"Delegate/{_CONV}:0"), ("LOGICAL_NOT", "[out a, out b]:4"))
_CSV = f"{_CONV}, 0, 0.16, 0.1999, 11.4405%, 1.4e-05%, 0, 1, Delegate/{_CONV}:0"
_NET = """<?xml version="1.0"?><net name="m" version="11"><layers>
<layer id="0" name="x" type="Input"><data execOrder="0" originalLayersNames="x"
 primitiveType="unknown_f32"/><output><port id="0"/></output></layer>
<layer id="1" name="c" type="Convolution"><data execOrder="1" originalLayersNames="c,r"
 primitiveType="jit_avx2_f32"/><input><port id="0"/></input><output><port id="1"/></output></layer>
<layer id="2" name="y" type="Output"><data execOrder="2" originalLayersNames="y"
 primitiveType="unknown_f32"/><input><port id="0"/></input></layer>
</layers><edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>
<edge from-layer="1" from-port="1" to-layer="2" to-port="0"/></edges>
<originalLayersNames/></net>"""


_SPOILT = (
    *("", 'id="1"', 'execOrder="-9"', 'execOrder="1e9"', f'execOrder="{"9" * 5000}"'),
    *("a," * 5000, "<input>" * 3000, "&amp;", "&#0;", "&a;", "\x1b", "<!-- -->", "\0"),
    *('<!DOCTYPE a [<!ENTITY a "b">]>', "<layer/>", "Output", "Const"),
)


def _layer(name: str, kind: str, reads: list[str], writes: list[str], **more: object) -> object:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{"Name": tensor, "Dimensions": [1, 16, 28, 28]} for tensor in reads],
        "Outputs": [{"Name": tensor, "Dimensions": [1, 16, 28, 28]} for tensor in writes],
        **more,
    }


_ENGINE = {
    "Layers": [
        _layer("c", "Constant", [], ["w"]),
        _layer("r", "Reformat", ["x"], ["x8"], ParameterType="Reformat"),
        _layer("conv + relu", "CaskConvolution", ["x8"], ["y"], Activation="RELU", HasReLU=1),
        _layer("s", "Shuffle", ["y"], ["s"], FirstTranspose=[0, 2, 1], SecondTranspose=[0, 1]),
        _layer("e", "ElementWise", ["s", "w"], ["out"], Operation="SUM"),
    ],
    "Bindings": ["x", "out"],
}


@cache
def prints() -> list[tuple[str, bytes]]:
    """A valid print of each format; that of ONNX Runtime is its own."""
    table = "\n".join(
        [
            f"{_RULE} Run Order {_RULE}",
            _HEAD,
            *(f"\t{kind:>40}{_NUMBERS}{name}" for kind, name in _ROWS),
            "",
        ]
    )
    csv = f"{_RULE} Run Order {_RULE}\nnode type, start, first\n{_CSV}\n"
    return [
        ("p.txt", f"INFO: Operator-wise Profiling Info for Regular Runs:\n{table}".encode()),
        ("p.csv", csv.encode()),
        ("p.xml", _NET.encode()),
        ("p.json", json.dumps(_ENGINE).encode()),
        ("p.onnx", _optimized()),
    ]


_OUTPUT = """STARTING!
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: Though GPU delegate is explicitly applied, the model graph will be partially executed by it.
Running benchmark for at least 1 iterations and at least 0.5 seconds.
count=16 first=35201 curr=32001 min=31850 max=35201 avg=32600.5 std=800

Running benchmark for at least 50 iterations and at least 1 seconds.
count=50 first=32891 curr=33004 min=32641 max=34005 avg=33209.4 std=450 p5=32641 median=33004

Inference timings in us: Init: 1523, First inference: 35201, \
Warmup (avg): 32600.5, Inference (avg): 33209.4
"""


@cache
def outputs() -> list[tuple[str, bytes]]:
    """What benchmark_model prints, with and without an op profile."""
    profile = prints()[0][1].decode()
    return [("output.txt", _OUTPUT.encode()), ("output.txt", (_OUTPUT + profile).encode())]


def make_output(chance: Random) -> tuple[str, bytes]:
    """An output whose lines are repeated, exchanged or blown up."""
    return "output.txt", _spoilt_table(chance, chance.choice(outputs())[1].decode()).encode()


def read_output(path: Path) -> object:
    """Read an output as it comes from a device."""
    from nn_meter.builder.backends.tflite.benchmark_output import read

    return read(path.read_text(encoding="utf-8", errors="replace"))


def _optimized() -> bytes:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "optimized.onnx"
        source.write_bytes(fuzz_onnx.models()[0][1])
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(target), 4
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        return target.read_bytes()


def make_print(chance: Random) -> tuple[str, bytes]:
    """A print whose parts are repeated, exchanged or blown up."""
    kind = chance.randrange(5)
    if kind == 0:
        return "p.json", damaged_json(chance, _ENGINE)
    if kind == 1:
        return "p.onnx", fuzz_onnx.make_model(chance)[1]
    if kind == 2:
        return "p.xml", _spoilt_net(chance).encode()
    name, data = chance.choice(prints()[:2])
    return name, _spoilt_table(chance, data.decode()).encode()


def _spoilt_net(chance: Random) -> str:
    text = _NET
    for _ in range(chance.choice((1, 2, 3))):
        old = chance.choice(
            ('id="0"', 'id="1"', 'execOrder="1"', "c,r", "Convolution", "<input>", "</layers>")
        )
        new = chance.choice(_SPOILT)
        text = text.replace(old, new, chance.choice((1, -1)))
    return text


def _spoilt_table(chance: Random, text: str) -> str:
    lines = text.splitlines()
    for _ in range(chance.choice((1, 2, 4))):
        at = chance.randrange(len(lines))
        kind = chance.randrange(6)
        if kind == 0:
            lines[at:at] = [lines[at]] * chance.choice((1, 5, 2000))
        elif kind == 1:
            lines[at] = lines[at].replace("\t", chance.choice(("\t" * 3000, " " * 9000, ",", "")))
        elif kind == 2:
            lines[at] = lines[at].replace("1", chance.choice(("9" * 6000, "-1", "1e9", "nan")))
        elif kind == 3:
            part = chance.choice((" ", "=", "\t", ",", "1 ", "1%", "[", "Delegate/"))
            lines[at] += part * chance.choice((1, 100, 15_000))
        elif kind == 4:
            lines[at] = chance.choice(("=" * 50_000, "=====" + " " * 50_000, "", _HEAD))
        else:
            del lines[at]
        lines = lines or [""]
    return chance.choice(("\n", "\n", "\r\n", "\x0b", "\u2028")).join(lines)[: 2**22]
