"""nn-Meter: which operators does an inference runtime fuse into one kernel?

Who lives here: `errors` and `latency` (plain values), `registry` (what users add), `builder`
(make models of operator pairs, measure them, decide), `cli` (the command ``nn-meter``).
Importing this package loads no framework and no runtime.
"""

__all__ = ["__version__"]

__version__ = "3.0.0"
