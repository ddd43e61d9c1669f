"""What is known of six runtimes, held against what `nn-meter run` finds on them.

The matrix was read off the runtimes' own dumps by hand, for ONNX Runtime 1.31 and 1.32, OpenVINO
2026.4, LiteRT 2.3, ncnn 1.0.20261020, MNN 3.6 and IREE 3.13. A chain is written as its groups:
`conv+add|relu` has a kernel of convolution and addition, and one of the relu.
"""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from driving import User

CASES = ("conv_relu", "conv_hswish", "conv_swish", "conv_gelu", "conv_add_relu")
NONE, RELU_ONLY = "conv|add|relu", ["conv+relu", "conv|hswish", "conv|swish", "conv|gelu"]
ALL = [group.replace("|", "+") for group in RELU_ONLY]

# Backend -> modules, IMPLEMENT; the first four alone; add and relu behind the convolution by where
# the other operand of the addition comes from: a graph input, another convolution, the block's own
# input; and the same two inside a model.
MATRIX = {
    "onnxruntime_cpu": (
        ("onnxruntime",),
        RELU_ONLY,
        {
            "alone": NONE,
            "alone/conv": "conv+add+relu",
            "alone/own": NONE,
            "context": NONE,
            "context/conv": "conv+add+relu",
            "context/own": "conv+add+relu",
        },
    ),
    "openvino_cpu": (
        ("openvino",),
        ALL,
        {
            "alone": "conv+add+relu",
            "alone/conv": "conv+add+relu",
            "alone/own": "conv|add+relu",
            "context": "conv+add+relu",
            "context/conv": "conv+add+relu",
            "context/own": "conv|add+relu",
        },
    ),
    "tflite_cpu": (
        ("ai_edge_litert", "tensorflow"),
        RELU_ONLY,
        dict.fromkeys(
            ("alone", "alone/conv", "alone/own", "context", "context/conv", "context/own"), NONE
        ),
    ),
    "ncnn_cpu": (
        ("ncnn", "pnnx"),
        RELU_ONLY,
        dict.fromkeys(
            ("alone", "alone/conv", "alone/own", "context", "context/conv", "context/own"), NONE
        ),
    ),
    "mnn_cpu": (
        ("MNN",),
        RELU_ONLY,
        dict.fromkeys(
            ("alone", "alone/conv", "alone/own", "context", "context/conv", "context/own"),
            "conv|add+relu",
        ),
    ),
    "iree_cpu": (
        ("iree.compiler", "iree.runtime"),
        ALL,
        {"alone": "conv+add+relu", "alone/own": "conv+add+relu", "context/own": "conv+add+relu"},
    ),
}
# In a blocked layout ONNX Runtime takes hswish into the convolution, though not alone.
IN_CONTEXT = {"onnxruntime_cpu": {"conv_hswish": "conv+hswish"}}


@pytest.mark.parametrize("backend", MATRIX)
def test_the_matrix(user: User, backend):
    modules, pairs, sums = MATRIX[backend]
    for module in modules:
        if not there(module):
            pytest.skip(f"needs {module}, which is not installed")
    asked = ("run", "--evidence", "graph", "--json", "--backend", backend)
    verdicts = json.loads(user.succeed(*asked, "--testcases", ",".join(CASES)))["verdicts"]
    found = [groups(f"BF_{case}", verdicts[f"BF_{case}"]) for case in CASES[:4]]
    assert found == pairs
    for case, group in zip(CASES, pairs, strict=False):
        inside = groups(f"BF_{case}", verdicts[f"BF_{case}"]["when"]["context"])
        assert inside == IN_CONTEXT.get(backend, {}).get(case, group)
    when = verdicts["BF_conv_add_relu"]["when"]
    assert {name: groups("BF_conv_add_relu", when[name]) for name in sums} == sums
    assert all(verdict["kernels"] for verdict in verdicts.values())


def there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def groups(rule: str, verdict: dict) -> str:
    """A verdict as the groups that it makes of a chain."""
    ops = rule.split("_")[1:]
    edges = [edge["verdict"] for edge in verdict.get("edges", [verdict])]
    joints = {"fused": "+", "separate": "|"}
    return ops[0] + "".join(
        joints.get(edge, f" {edge} ") + op for edge, op in zip(edges, ops[1:], strict=True)
    )
