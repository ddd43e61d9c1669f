"""The smallest model that every execution provider should run: one convolution and one relu."""

from __future__ import annotations

import base64

__all__ = ["PROBE_SHAPE", "probe_model"]

PROBE_SHAPE = (4, 8, 8)
"""Of its input, without the batch dimension."""

# ONNX, opset 13: x -> Conv (1x1, four channels) -> Relu -> y. As bytes, since the environment that
# the runtime is in need not have the package onnx.
_MODEL = """
CAgSADq9AQoVCgF4CgF3EgFjGgRjb252IgRDb252ChIKAWMSAXkaBHJlbHUiBFJlbHUSBXByb2JlKk8IBAgECAEI
ARABQgF3SkAAAIC/3t1dv7y7O7+amRm/7+7uvquqqr7NzEy+iYiIvYmIiD3NzEw+q6qqPu/u7j6amRk/vLs7P97d
XT8AAIA/WhsKAXgSFgoUCAESEAoCCAEKAggECgIICAoCCAhiGwoBeRIWChQIARIQCgIIAQoCCAQKAggICgIICEIE
CgAQDQ==
"""


def probe_model() -> bytes:
    """The content of its file."""
    return base64.b64decode(_MODEL)
