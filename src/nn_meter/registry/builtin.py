"""What nn-Meter brings itself: strings only, in the order in which commands list them.

The guide's come first, in the guide's order, then ours.
"""

from __future__ import annotations

from dataclasses import replace

from nn_meter.registry.entry import Entry, Kind

__all__ = ["builtin_entries", "control_entries", "for_implement"]

_OPERATOR_MODULE = "nn_meter.builder.nn_modules.{implement}.operators"
_BACKENDS_PACKAGE = "nn_meter.builder.backends"

_OPERATORS = {
    "conv": "Conv",
    "dwconv": "DwConv",
    "convtrans": "ConvTrans",
    "bn": "BatchNorm",
    "globalavgpool": "GlobalAvgPool",
    "maxpool": "MaxPool",
    "avgpool": "AvgPool",
    "se": "SE",
    "fc": "FC",
    "relu": "Relu",
    "relu6": "Relu6",
    "sigmoid": "Sigmoid",
    "hswish": "Hswish",
    "reshape": "Reshape",
    "add": "Add",
    "concat": "Concat",
    "flatten": "Flatten",
    "split": "Split",
    "swish": "Swish",
    "gelu": "Gelu",
    "leakyrelu": "LeakyRelu",
    "prelu": "PRelu",
    "hardsigmoid": "HardSigmoid",
    "tanh": "Tanh",
    "layernorm": "LayerNorm",
    "softmax": "Softmax",
    "matmul": "MatMul",
    "mul": "Mul",
    "pad": "Pad",
    "resize": "Resize",
    "channelshuffle": "ChannelShuffle",
    "bias": "Bias",
    "center": "Center",
    "scale": "Scale",
    "addscalar": "AddScalar",
    "mulscalar": "MulScalar",
    "mulone": "MulOne",
    "square": "Square",
    "mean": "Mean",
    "bmm": "BMM",
    "rowsoftmax": "RowSoftmax",
}
_CONTROLS = {"running_sum": "RunningSum"}
"""Operators that only controls are made of. No list has them; with its "_" the name is nobody's."""

_TESTER_PACKAGE = "nn_meter.builder.backend_meta.fusion_rule_tester"
_TESTCASES = {
    "MON": (f"{_TESTER_PACKAGE}.mon", "MultipleOutNodes"),
    "MIN": (f"{_TESTER_PACKAGE}.min", "MultipleInNodes"),
    "MINRELU": (f"{_TESTER_PACKAGE}.min", "MultipleInNodesRelu"),
    "MONELTWISE": (f"{_TESTER_PACKAGE}.mon", "MultipleOutElementwise"),
    "MINELTWISE": (f"{_TESTER_PACKAGE}.min", "MultipleInElementwise"),
}
_BACKENDS = {
    "tflite_cpu": (f"{_BACKENDS_PACKAGE}.tflite.backend", "TFLiteCPUBackend"),
    "tflite_gpu": (f"{_BACKENDS_PACKAGE}.tflite.gpu", "TFLiteGPUBackend"),
    "openvino_vpu": (f"{_BACKENDS_PACKAGE}.openvino.backend", "OpenVINOVPUBackend"),
    "onnxruntime_cpu": (f"{_BACKENDS_PACKAGE}.onnxruntime.backend", "OnnxRuntimeCPUBackend"),
    "onnxruntime_providers": (f"{_BACKENDS_PACKAGE}.onnxruntime.providers", "OnnxRuntimeEPBackend"),
    "openvino_cpu": (f"{_BACKENDS_PACKAGE}.openvino.backend", "OpenVINOCPUBackend"),
    "openvino_gpu": (f"{_BACKENDS_PACKAGE}.openvino.backend", "OpenVINOGPUBackend"),
    "ncnn_cpu": (f"{_BACKENDS_PACKAGE}.ncnn.backend", "NcnnCPUBackend"),
    "ncnn_vulkan": (f"{_BACKENDS_PACKAGE}.ncnn.vulkan", "NcnnVulkanBackend"),
    "mnn_cpu": (f"{_BACKENDS_PACKAGE}.mnn.backend", "MNNCPUBackend"),
    "iree_cpu": (f"{_BACKENDS_PACKAGE}.iree.backend", "IREECPUBackend"),
    "debug_backend": (f"{_BACKENDS_PACKAGE}.debug.backend", "DebugBackend"),
}
_CLASSES: dict[Kind, dict[str, tuple[str, str]]] = {
    "operator": {name: ("", class_name) for name, class_name in _OPERATORS.items()},
    "testcase": _TESTCASES,
    "backend": _BACKENDS,
}


def builtin_entries(kind: Kind) -> list[Entry]:
    """List the built-ins of a kind, of no framework in particular."""
    return [
        Entry(kind=kind, name=name, origin="builtin", class_module=module, class_name=class_name)
        for name, (module, class_name) in _CLASSES[kind].items()
    ]


def control_entries() -> list[Entry]:
    """List the operators that only controls are made of."""
    return [
        Entry(kind="operator", name=name, origin="builtin", class_module="", class_name=class_name)
        for name, class_name in _CONTROLS.items()
    ]


def for_implement(entry: Entry, implement: str) -> Entry:
    """Return the entry of a built-in for one framework; an operator has a class in each."""
    module = entry.class_module or _OPERATOR_MODULE.format(implement=implement)
    return replace(entry, implement=implement, class_module=module)
