"""ONNX Runtime on the CPU of this host, the embedded default.

Who lives here: `backend`, `graph`, `recorded`, `settings`.
"""
