"""The readers of outside data, each with valid files and ways to make hostile ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import fuzz_data
import fuzz_onnx
import fuzz_prints
import fuzz_tflite
from fuzz_mutation import damage

from nn_meter.builder.backends.recorded import FORMATS, guess_format, read_print
from nn_meter.fusion_rules.compare import compare
from nn_meter.fusion_rules.read import read_rules
from nn_meter.kernel_detector import RuleSplitter
from nn_meter.kernel_detector.readers import read_model
from nn_meter.kernel_detector.rule_source import load_rules

__all__ = ["READERS", "File", "Reader"]

File = tuple[str, bytes]
"""Name and content."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A reader of outside data.

    Attributes:
        name: What it is called.
        about: The files that it reads.
        corpus: Valid files.
        make: Makes a hostile file that is well formed.
        prepare: Gets a folder of its own, and gives the function that reads a file.
        names_file: Whether all its errors name the file: not those of what follows the reading.
    """

    name: str
    about: str
    corpus: Callable[[], Sequence[File]]
    make: Callable[[Random], File]
    prepare: Callable[[Path], Callable[[Path], object]]
    names_file: bool = True

    def file(self, chance: Random) -> File:
        """A hostile file: made as such, or a valid one that was damaged."""
        if chance.random() < 0.5:
            return self.make(chance)
        files = self.corpus()
        name, data = chance.choice(files)
        return name, damage(chance, data, [other for _, other in files])


def _plain(read: Callable[[Path], object]) -> Callable[[Path], Callable[[Path], object]]:
    return lambda folder: read


@cache
def _splitter() -> RuleSplitter:
    return RuleSplitter("onnxruntime-1.31")


def _kernels(path: Path) -> object:
    """Read a model and cut it, as ``nn-meter kernels`` does."""
    return _splitter().split(read_model(path))


def _rules(path: Path) -> object:
    """Read rules, compare them with others, and cut a model by them."""
    rules = load_rules(path)
    kernels = RuleSplitter(rules).split(fuzz_onnx.graph())
    compare(read_rules(path), read_rules("onnxruntime-1.31"))
    return kernels


def _print(path: Path) -> object:
    kind = guess_format(path)
    named = next((k for k in FORMATS.values() if path.suffix in k.suffixes), None)
    return read_print(path, kind or named or FORMATS["litert"])


READERS = {
    reader.name: reader
    for reader in (
        Reader(
            name="configuration",
            about="ruletest_config.yaml, backend_config.yaml",
            corpus=fuzz_data.configurations,
            make=fuzz_data.make_configuration,
            prepare=_plain(fuzz_data.read_configuration),
        ),
        Reader(
            name="registration",
            about="meta files, registry.yaml",
            corpus=fuzz_data.registrations,
            make=fuzz_data.make_registration,
            prepare=fuzz_data.registration_reader,
        ),
        Reader(
            name="rules",
            about="detected_fusion_rule.json, also of the original program",
            corpus=fuzz_data.rule_files,
            make=fuzz_data.make_rules,
            prepare=_plain(_rules),
        ),
        Reader(
            name="onnx",
            about=".onnx models, and their kernels",
            corpus=fuzz_onnx.models,
            make=fuzz_onnx.make_model,
            prepare=_plain(_kernels),
        ),
        Reader(
            name="tflite",
            about=".tflite models, and their kernels",
            corpus=fuzz_tflite.models,
            make=fuzz_tflite.make_model,
            prepare=_plain(_kernels),
        ),
        Reader(
            name="results",
            about="test cases and profiled results, and what is detected of them",
            corpus=fuzz_data.result_files,
            make=fuzz_data.make_results,
            prepare=fuzz_data.results_reader,
            names_file=False,
        ),
        Reader(
            name="store",
            about="samples.db",
            corpus=fuzz_data.stores,
            make=fuzz_data.make_store,
            prepare=_plain(fuzz_data.read_store),
        ),
        Reader(
            name="prints",
            about="executed graphs that import-graph takes",
            corpus=fuzz_prints.prints,
            make=fuzz_prints.make_print,
            prepare=_plain(_print),
        ),
        Reader(
            name="outputs",
            about="what benchmark_model prints on a phone",
            corpus=fuzz_prints.outputs,
            make=fuzz_prints.make_output,
            prepare=_plain(fuzz_prints.read_output),
            names_file=False,
        ),
    )
}
