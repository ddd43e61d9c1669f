"""ONNX Runtime: on the CPU of this host, the embedded default, and on other execution providers.

Who lives here: `asked` (the key PROVIDERS), `backend`, `graph`, `plugins`, `probe`, `providers`,
`recorded`, `settings`, `values`.
"""
