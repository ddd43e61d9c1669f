"""IREE on the CPU of this host.

Who lives here: `backend`, `settings`, `graph`.
"""
