"""The operators written directly as ONNX graphs, with no framework.

Who lives here: `operators` (one class per operator), `models` (the graph that they write into, and
how a model is made, saved and run), `evaluator` (what runs it), `parts` (what `MON` is built with).
"""
