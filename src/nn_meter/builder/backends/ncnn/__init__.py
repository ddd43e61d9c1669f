"""Ncnn on the CPU of this host.

Who lives here: `backend`, `settings`, `convert` (running pnnx), `graph` (reading what it wrote),
`merge` (many models through one run of pnnx), `weights` (which layer reads which of them).
"""
