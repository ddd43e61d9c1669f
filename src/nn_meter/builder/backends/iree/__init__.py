"""IREE on the CPU of this host.

Who lives here: `backend`, `settings`; `convert` imports and compiles models, `graph` reads what the
compiler made of them, and `bodies` what each dispatch in it does.
"""
