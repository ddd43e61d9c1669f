"""Patterns of operators, read from ``patterns.yaml``, which says how they are written."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import permutations
from typing import Any

import yaml

from nn_meter.errors import ConfigError

__all__ = ["Any_", "Call", "Composite", "Expression", "Number", "Patterns", "Variable", "patterns"]


@dataclass(frozen=True)
class Variable:
    """A tensor that is computed; the same one wherever its name stands."""

    name: str


@dataclass(frozen=True)
class Number:
    """A constant tensor of one number."""

    value: float


@dataclass(frozen=True)
class Any_:
    """Any constant tensor; ``vector``: one with at most one axis that is longer than 1."""

    vector: bool


@dataclass(frozen=True)
class Call:
    """What an op, or several, give.

    Attributes:
        name: An operator, an arithmetic function, a form's name, or an op's type.
        args: What it reads.
        attributes: Attributes that the op must have.
    """

    name: str
    args: tuple[Expression, ...]
    attributes: tuple[tuple[str, float], ...] = ()


Expression = Variable | Number | Any_ | Call


@dataclass(frozen=True, kw_only=True)
class Composite:
    """An operator that several ops make up.

    Attributes:
        operator: Its name.
        forms: The ways to write it.
        condition: Name of what must hold besides; empty: nothing.
    """

    operator: str
    forms: tuple[Expression, ...]
    condition: str = ""


@dataclass(frozen=True, kw_only=True)
class Patterns:
    """What the file holds; its own head says what each part means.

    Attributes:
        operators: Op type -> operators that it may be and the condition of each, in order.
        composites: The longest first.
        forms: Name -> the ways to write it, of composites and helpers.
    """

    noops: frozenset[str]
    views: frozenset[str]
    heavy: frozenset[str]
    convolutions: frozenset[str]
    linear: frozenset[str]
    nonlinear: frozenset[str]
    elementwise: frozenset[str]
    passing: frozenset[str]
    one_op: Mapping[str, Sequence[str]]
    folds_as: Mapping[str, str]
    stands_for: Mapping[str, Sequence[str]]
    activations: Mapping[str, Mapping[str, str]]
    arithmetic: Mapping[str, frozenset[str]]
    operators: Mapping[str, Sequence[tuple[str, str]]]
    composites: Sequence[Composite]
    forms: Mapping[str, Sequence[Expression]] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """All operators that can be recognized."""
        single = {name for lines in self.operators.values() for name, _ in lines}
        return frozenset(single | {composite.operator for composite in self.composites})


@cache
def patterns() -> Patterns:
    """The patterns that ship with the package."""
    return read_patterns(files(__package__).joinpath("patterns.yaml").read_text("utf-8"))


def read_patterns(text: str) -> Patterns:
    """Read patterns.

    Raises:
        ConfigError: A form cannot be read; says which.
    """
    data: dict[str, Any] = yaml.safe_load(text)
    operators: dict[str, list[tuple[str, str]]] = {}
    for line in data["operators"]:
        for op_type in line["types"]:
            operators.setdefault(op_type, []).append((line["operator"], line.get("if", "")))
    composites = tuple(
        Composite(
            operator=entry["operator"],
            forms=_forms(entry["forms"]),
            condition=entry.get("if", ""),
        )
        for entry in data["composites"]
    )
    forms: dict[str, tuple[Expression, ...]] = {
        name: _forms(lines) for name, lines in data["helpers"].items()
    }
    for composite in composites:
        if not composite.condition:  # a form inside another one is not asked for conditions
            forms[composite.operator] = (*forms.get(composite.operator, ()), *composite.forms)
    return Patterns(
        noops=frozenset(data["noops"]),
        views=frozenset(data["views"]),
        heavy=frozenset(data["heavy"]),
        convolutions=frozenset(data["convolutions"]),
        linear=frozenset(data["linear"]),
        nonlinear=frozenset(data["nonlinear"]),
        elementwise=frozenset(data["elementwise"]) | frozenset(data["nonlinear"]),
        passing=frozenset(data["passing"]) | frozenset(data["nonlinear"]),
        one_op=data["one_op"],
        folds_as=data["folds_as"],
        stands_for=data["stands_for"],
        activations=data["activations"],
        arithmetic={name: frozenset(types) for name, types in data["arithmetic"].items()},
        operators=operators,
        composites=composites,
        forms=forms,
    )


def _forms(lines: Sequence[str]) -> tuple[Expression, ...]:
    found: list[Expression] = []
    for line in lines:
        try:
            form = _expression(ast.parse(line, mode="eval").body)
        except SyntaxError as exc:
            raise ConfigError(f"patterns: {line!r} is no expression: {exc}") from exc
        found += _orders(form)
    return tuple(found)


def _expression(node: ast.expr) -> Expression:
    match node:
        case ast.Name(id="constant" | "vector" as name):
            return Any_(name == "vector")
        case ast.Name(id=name):
            return Variable(name)
        case ast.Constant(value=int() | float() as value):
            return Number(float(value))
        case ast.BinOp(
            left=ast.Constant(value=int() | float() as over),
            op=ast.Div(),
            right=ast.Constant(value=int() | float() as under),
        ):
            return Number(over / under)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            attributes = []
            for keyword in keywords:
                number = _expression(keyword.value)
                if keyword.arg is None or not isinstance(number, Number):
                    break
                attributes.append((keyword.arg, number.value))
            else:
                return Call(name, tuple(map(_expression, args)), tuple(attributes))
    raise ConfigError(f"patterns: {ast.unparse(node)!r} means nothing in a form")


def _orders(form: Expression) -> list[Expression]:
    """A form whose outermost call is a product, as every tree of two-operand products."""
    if not isinstance(form, Call) or form.name != "product":
        return [form]
    return [
        Call("mul", (Call("mul", (first, second)), third))
        for first, second, third in permutations(form.args)
        if form.args.index(first) < form.args.index(second)
    ]
