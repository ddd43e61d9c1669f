"""MNN on the CPU of this host.

Who lives here: `backend`, `settings`; `native`, the one way to MNN's own modules; `convert`, from
ONNX to MNN's format; `graph`, what MNN executes.
"""
