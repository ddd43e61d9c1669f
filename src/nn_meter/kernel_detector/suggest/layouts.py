"""Rules that hold where an image has a layout of the runtime's own, and in which sizes it has one.

A block that is separate alone and fused with something around it is executed in a layout that a
runtime makes for the whole of it. Such layouts come in blocks of channels, and where the numbers of
channels do not fit there is none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import BaseBackend
from nn_meter.builder.workspace import Workspace
from nn_meter.fusion_rules.read import parse_rules
from nn_meter.fusion_rules.rules import ALONE
from nn_meter.kernel_detector.patterns import patterns
from nn_meter.kernel_detector.sizes import CHANNELS
from nn_meter.kernel_detector.suggest.asking import Asker, Asks

__all__ = ["ask_sizes", "goes_by_layout", "with_sizes"]

Rules = Mapping[str, Any]

_KEY = "CIN"
_BLOCKS = (16, 8)
"""Channels that a layout may come in multiples of; the first that fits."""
_OTHERS = ((1.5, False), (2, True), (2.5, False), (3, True))
"""How many blocks are asked, and whether these are whole ones."""
_CONTEXT = "context"


def goes_by_layout(rules: Rules) -> list[str]:
    """Names of the rules of blocks that are separate alone and not so in every context."""
    found = []
    for name, rule in parse_rules(rules, "rules").rules.items():
        inside = (f for situation, f in rule.findings.items() if situation.startswith(_CONTEXT))
        if (
            name.startswith("BF_")
            and rule.findings[ALONE].verdict == "separate"
            and any(_may_fuse(name, finding.verdict) for finding in inside)
        ):
            found.append(name)
    return found


def _may_fuse(name: str, verdict: str | None) -> bool:
    """Whether a verdict leaves it possible; of a chain some part may fuse where it is open."""
    return verdict == "fused" or (name.count("_") > 2 and verdict == "undecided")


def ask_sizes(
    rules: Rules,
    backend: BaseBackend,
    workspace: Workspace,
    *,
    earlier: Rules | None = None,
    time_limit_s: float = 300,
) -> dict[str, Any]:
    """Ask in which sizes rules hold that go by a layout; models are made in a temporary folder.

    Args:
        rules: The rules, as a rule file has them.
        backend: What they were found with, connected.
        workspace: Whose configuration they were found by.
        earlier: Rules of the same environment that sizes are taken over from, where nothing else
            has changed.
        time_limit_s: For building one model, or one operation on it.

    Returns:
        The rules that were asked in other sizes: with what holds there, or with none that differs.

    Raises:
        NNMeterError: The backend is gone, a file cannot be written, …
    """
    kept = {
        name: {**rules[name], "sizes": rule["sizes"]}
        for name, rule in (earlier or {}).items()
        if name in rules and isinstance(rule, dict) and rule == {**rules[name], **_sizes_of(rule)}
    }
    left = {name: rule for name, rule in rules.items() if name not in kept}
    with tempfile.TemporaryDirectory(prefix="nn-meter-") as folder:
        asker = Asker(backend, replace(workspace, path=Path(folder)), time_limit_s=time_limit_s)
        alike = {name: {**left[name], "sizes": []} for name in goes_by_layout(left)}
        return kept | alike | with_sizes(left, asker)


def _sizes_of(rule: Rules) -> Rules:
    return {"sizes": rule.get("sizes", [])}


def with_sizes(rules: Rules, asker: Asks) -> dict[str, Any]:
    """Ask the rules that go by a layout in another number of channels.

    Args:
        rules: The rules, as a rule file has them.
        asker: Asks the runtime that they were found with, in the same sizes.

    Returns:
        Those that come out otherwise there, with what holds in which sizes (``Sized``).

    Raises:
        NNMeterError: The backend is gone, a file cannot be written, …
    """
    asking = _Asking(rules, goes_by_layout(rules), asker)
    found: dict[str, Any] = {}
    for block in _BLOCKS:
        for name, situation in asking.differing(int(_OTHERS[0][0] * block)):
            if name not in found and asking.goes_by(block, name, situation):
                found[name] = asking.sized(block, name, situation)
    return found


def _size(name: str) -> str:
    """The size that the channels are in a rule: a second operand has as many as what is given."""
    convolutions = patterns().convolutions
    return "out_channels" if name.split("_")[1] in convolutions else CHANNELS


class _Asking:
    """Some rules in several numbers of channels, all of them at once."""

    def __init__(self, rules: Rules, names: Sequence[str], asker: Asks) -> None:
        self._names = list(names)
        self._asker = asker
        self._usual = int(asker.sizes[_KEY])
        self._answers: dict[int, Rules] = {self._usual: rules}

    def differing(self, channels: int) -> list[tuple[str, str]]:
        """The rules that fuse no longer in so many channels, and a situation where they do not."""
        found: dict[str, str] = {}
        for name in self._names:
            there = self._words(name, channels)
            for situation, words in self._words(name, self._usual).items():
                if (
                    situation.startswith(_CONTEXT)
                    and _may_fuse(name, words)
                    and there.get(situation) == "separate"
                ):
                    found.setdefault(name, situation)
        return list(found.items())

    def goes_by(self, block: int, name: str, situation: str) -> bool:
        """Whether a rule holds of whole blocks of channels, and of no others."""
        if self._usual % block:
            return False
        for times, is_whole in _OTHERS:
            words = self._words(name, int(times * block)).get(situation)
            if words != "separate" and not _may_fuse(name, words):
                return False
            if (words != "separate") is not is_whole:
                return False
        return True

    def sized(self, block: int, name: str, situation: str) -> dict[str, Any]:
        """The rule, with what holds of other numbers of channels."""
        rule = self._answers[self._usual][name]
        other = self._answers[int(_OTHERS[0][0] * block)][name]
        sized = {key: value for key, value in other.items() if key not in ("environment", "sizes")}
        sized["where"] = {_size(name): {"no_multiple_of": block}}
        sized["asked"] = {
            str(channels): words[situation]
            for channels in sorted(self._answers)
            if situation in (words := self._words(name, channels))
        }
        return {**rule, "sizes": [sized]}

    def _words(self, name: str, channels: int) -> dict[str, str]:
        if channels not in self._answers:
            self._answers[channels] = self._asker.ask(self._names, {_KEY: channels}).rules
        if name not in self._answers[channels]:
            return {}
        rule = self._answers[channels][name]
        findings = parse_rules({name: rule}, "rules").rules[name].findings
        return {situation: finding.verdict for situation, finding in findings.items()}
