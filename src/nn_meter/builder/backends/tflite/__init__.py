"""TFLite models in LiteRT, their present runtime, on the CPU of this host.

Who lives here: `backend`; `graph` (what it executes) over `capi` (its C API); `recorded`;
`settings`.
"""
