"""Learning what rules lack: from edges that a runtime executed otherwise to new rules.

``cut`` is a model by rules, held against what was executed; ``proposals`` makes test cases of the
edges that differ; ``asking`` puts them to the runtime; ``borders`` finds the sizes up to which a
rule holds, and ``layouts`` asks for them where there is no model; ``learn`` goes round until
nothing is left to ask. No part of it names a runtime.
"""

from __future__ import annotations

from nn_meter.kernel_detector.suggest.asking import Asker
from nn_meter.kernel_detector.suggest.cut import Known, cut
from nn_meter.kernel_detector.suggest.layouts import ask_sizes
from nn_meter.kernel_detector.suggest.learn import Asked, Learned, learn

__all__ = ["Asked", "Asker", "Known", "Learned", "ask_sizes", "cut", "learn"]
