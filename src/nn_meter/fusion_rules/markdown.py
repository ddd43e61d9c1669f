"""The fusion map: rule files of several runtimes as one page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nn_meter.fusion_rules.rules import ALONE, Finding, Rule, RuleSet

__all__ = ["QUESTIONS", "Question", "render"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What people ask of every runtime: whether a chain becomes one kernel.

    Attributes:
        title: What follows the convolution.
        chain: The basic test case.
        topology: Where the other operand comes from: the situations' suffix; None: there is none.
    """

    title: str
    chain: str
    topology: str | None = None

    @property
    def rule(self) -> str:
        return f"BF_{self.chain}"

    @property
    def situations(self) -> tuple[str, str]:
        """The block alone, and the same in context."""
        return f"{ALONE}{self.topology or ''}", f"context{self.topology or ''}"


QUESTIONS = (
    Question(title="relu", chain="conv_relu"),
    Question(title="hswish", chain="conv_hswish"),
    Question(title="swish (SiLU)", chain="conv_swish"),
    Question(title="gelu", chain="conv_gelu"),
    Question(title="add+relu, other operand a graph input", chain="conv_add_relu", topology=""),
    Question(title="… another conv's output", chain="conv_add_relu", topology="/conv"),
    Question(title="… the block's own input", chain="conv_add_relu", topology="/own"),
)

_LETTERS = {
    "fused": "F",
    "separate": "-",
    "free": "·",
    "undecided": "?",
    "unsupported": "x",
    "unmet": "u",
}
_HEAD = """\
# Which operators fuse, by runtime

Made by `nn-meter map` from the rule files that ship with nn-meter; do not edit it. Every verdict
rests on the graph that the runtime itself says it executed, of models in the shapes below. Other
shapes, processors and versions may fuse otherwise: `nn-meter run` asks on your machine, and
`nn-meter diff {example} WORKSPACE` shows what comes out differently.
"""
_SITUATIONS = """\
A block is asked alone, and in context: a convolution and a pool before it, a pool behind it. The
other operand of an addition is a graph input, another convolution's output (`/conv`), or what the
block itself starts from, as in a residual (`/own`).
"""
_LEGEND = """\
`F` fused into one kernel, `-` a kernel each, `·` one of the two executes nothing that computes, `E`
one of the two is dropped since it changes nothing there, `x` the runtime or its conversion refuses
a model, `?` cannot be told, `u` a rule that it depends on came out otherwise, empty: not asked, or
it cannot be built. `*` elsewhere it is different (see below). A chain is shown by its groups:
`conv+bn` is one kernel. Other test cases are answered by the name of the case that holds.

The block stands alone here, and the other operand of an addition is a graph input.
"""


def render(rule_sets: Sequence[RuleSet]) -> str:
    """Make the page.

    Args:
        rule_sets: The rules of each runtime and version; their names head the columns.
    """
    example = rule_sets[0].name if rule_sets else "RULES"
    parts = [
        _HEAD.format(example=example),
        "## Runtimes\n",
        _runtimes(rule_sets),
        "## What people ask: behind a convolution\n",
        _SITUATIONS,
        _matrix(rule_sets),
        "What was executed; in context, where the answer is another, with the context's own "
        "kernels:\n",
        _evidence(rule_sets),
        "## All rules\n",
        _LEGEND,
        _all_rules(rule_sets),
        "## Where situations differ\n",
        *(_section(rules, _differing(rules)) for rules in rule_sets),
        "## What cannot be told, and why\n",
        *(_section(rules, _open(rules)) for rules in rule_sets),
    ]
    return "\n".join(parts).rstrip("\n") + "\n"


# --- tables --------------------------------------------------------------------------------------


def _runtimes(rule_sets: Sequence[RuleSet]) -> str:
    rows = []
    for rules in rule_sets:
        for environment in rules.environments:
            options = environment.get("options", {})
            models = options.get("models", {})
            rows.append(
                [
                    f"`{rules.name}`",
                    *(str(environment.get(key, "")) for key in ("version", "device", "host")),
                    *(str(environment.get(key, "")) for key in ("threads", "dtype")),
                    ", ".join(f"{key} {value}" for key, value in models.items()),
                    ", ".join(f"{k} {v}" for k, v in options.items() if k != "models"),
                    str(len(rules.rules)),
                ]
            )
    head = ["rules", "version", "device", "host", "threads", "dtype", "models", "options", "count"]
    return _table(head, rows)


def _matrix(rule_sets: Sequence[RuleSet]) -> str:
    return _table(
        ["one kernel with the conv?", *(question.title for question in QUESTIONS)],
        [
            [f"`{rules.name}`", *(_answer(rules, question) for question in QUESTIONS)]
            for rules in rule_sets
        ],
    )


def _answer(rules: RuleSet, question: Question) -> str:
    """Yes or no, alone; and in context, where that is another answer."""
    rule = rules.rules.get(question.rule)
    if rule is None:
        return ""
    alone, context = (_yes_or_no(rule.findings.get(name)) for name in question.situations)
    if not context or alone == context:
        return alone
    return f"{alone}; in context: {context}" if alone else f"in context: {context}"


def _yes_or_no(finding: Finding | None) -> str:
    if finding is None:
        return ""
    words = {"fused": "yes", "separate": "no"}
    text = words.get(finding.verdict, finding.verdict)
    return f"{text} ({finding.groups})" if finding.groups and finding.verdict != "fused" else text


def _evidence(rule_sets: Sequence[RuleSet]) -> str:
    """What was executed for each question alone, and in context where the answer is another."""
    rows = []
    for question in QUESTIONS:
        for rules in rule_sets:
            rule = rules.rules.get(question.rule)
            shown: set[str] = set()
            for situation in question.situations:
                finding = rule.findings.get(situation) if rule is not None else None
                if finding is None or finding.kernels is None or finding.answer in shown:
                    continue
                shown.add(finding.answer)
                kernels = ", ".join(f"`{kernel}`" for kernel in finding.kernels)
                row = [f"`{question.rule}`", situation, f"`{rules.name}`", str(finding)]
                rows.append([*row, kernels])
    return _table(["rule", "where", "runtime", "verdict", "kernels"], rows)


def _all_rules(rule_sets: Sequence[RuleSet]) -> str:
    names = sorted({name for rules in rule_sets for name in rules.rules})
    return _table(
        ["rule", *(f"`{rules.name}`" for rules in rule_sets)],
        [[f"`{name}`", *(_letter(rules.rules.get(name)) for rules in rule_sets)] for name in names],
    )


def _letter(rule: Rule | None) -> str:
    if rule is None:
        return ""
    alone = rule.alone
    if alone.eliminated:
        letter = "E"
    elif alone.groups and alone.verdict == "separate":
        letter = alone.groups
    else:
        letter = _LETTERS.get(alone.verdict, alone.verdict)
    return f"{letter} \\*" if _differs(rule) else letter


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "None.\n"
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# --- lists ---------------------------------------------------------------------------------------


def _section(rules: RuleSet, items: Iterator[str]) -> str:
    found = "".join(f"- {item}\n" for item in items)
    return f"### {rules.name}\n\n{found or 'Nothing.' + chr(10)}"


def _differs(rule: Rule) -> bool:
    return any(found.answer != rule.alone.answer for found in rule.findings.values())


def _differing(rules: RuleSet) -> Iterator[str]:
    """Rules that situations decide, those that they decide alike together."""
    by_answers: dict[str, list[str]] = {}
    for rule in rules.rules.values():
        if not _differs(rule):
            continue
        by_verdict: dict[str, list[str]] = {}
        for situation, finding in rule.findings.items():
            by_verdict.setdefault(finding.answer, []).append(situation)
        told = "; ".join(f"**{verdict}** {', '.join(w)}" for verdict, w in by_verdict.items())
        by_answers.setdefault(told, []).append(f"`{rule.name}`")
    for told, names in by_answers.items():
        yield f"{told}: {', '.join(names)}"


def _open(rules: RuleSet) -> Iterator[str]:
    """Rules without an answer, those with the same reason together."""
    by_reason: dict[str, list[str]] = {}
    for rule in rules.rules.values():
        for situation, found in rule.findings.items():
            if found.is_open:
                told = f"**{found.verdict}** {found.reason[:300]}"
                where = "" if situation == ALONE else f" ({situation})"
                by_reason.setdefault(told, []).append(f"`{rule.name}`{where}")
    for told, names in by_reason.items():
        yield f"{told}: {', '.join(names)}"
