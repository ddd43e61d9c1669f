"""WHAT is tested: operators and the models made of them.

Who lives here: `base` (the contract `BaseOperator`), `shapes` (what the frameworks' twins share:
names, padding arithmetic, output shapes), `frameworks` (the contract of a framework and how one is
found), and a folder per framework, alike inside: `operators` and `models`. A framework is imported
in its own folder only, and there only where it is needed.
"""

from nn_meter.builder.nn_modules.base import BaseOperator

__all__ = ["BaseOperator"]
