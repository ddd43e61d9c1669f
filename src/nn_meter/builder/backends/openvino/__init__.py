"""OpenVINO on the CPU of this host.

Who lives here: `backend`, `graph`, `recorded`, `settings`, `sources`.
"""
