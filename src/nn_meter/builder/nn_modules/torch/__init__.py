"""The operators as torch modules.

Who lives here: `operators` (one class per operator), `models` (how a model is made, saved and run),
`layers` (modules that torch lacks), `exporting` (a module as an ONNX model), `parts` (what `MON` is
built with).
"""
