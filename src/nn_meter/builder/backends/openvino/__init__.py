"""OpenVINO on the CPU of this host.

Who lives here: `backend`, `graph`, `native`, `recorded`, `settings`, `sources`.
"""
