"""OpenVINO on the CPU of this host, and on other devices that it finds.

Who lives here: `backend`, `devices` (their names, and what really ran), `doubts`, `graph`, `models`
(reading them), `native`, `recorded`, `settings`, `sources`, `transformed`, `written`.
"""
