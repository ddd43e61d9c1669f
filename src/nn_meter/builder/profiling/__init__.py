"""HOW it is measured. Knows backends, and models by their files; knows nothing of fusion.

Who lives here: `interface` (`profile_models` and `convert_models`), `run` (one run of these),
`graphs` (asking what a runtime executes), `fill` (latencies measured elsewhere), `recorded`
(executed graphs recorded elsewhere), `plan` (what to measure next), `measure` (running a plan),
`jobs` (what a backend's process does), `process` and `worker` (the two ends of such a process),
`store` (samples, graphs and environments in SQLite), `results` (the JSON files made of them),
`connection` (a backend as profiling sees it), `convert` (each content once), `pool` (tasks on all
cores), `references` (outputs to check conversions by).
"""
