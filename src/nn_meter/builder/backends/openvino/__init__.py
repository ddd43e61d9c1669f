"""OpenVINO on the CPU of this host.

Who lives here: `backend`, `graph`, `settings`, `sources`.
"""
