"""TFLite models: in LiteRT, their present runtime, on this host's CPU or GPU, or on a phone.

Who lives here: `backend` and `settings`; `graph` (what LiteRT executes on the CPU) over `capi` (its
C API); `gpu`, `gpu_graph` and `gpu_models` (this host's GPU); `phone`, with what it is
(`phone_device`), what a run keeps on it (`phone_files`), the script that runs there
(`phone_script`) and what comes of a visit (`phone_output`), over `adb`; `benchmark_output`,
`benchmark_gpu` and `recorded` (what ``benchmark_model`` prints).
"""
