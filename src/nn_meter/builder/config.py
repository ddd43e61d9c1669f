"""The YAML files of a workspace as frozen, validated settings, and as commented templates.

A key of ours has its type, bounds, default and comment here, once: reading a file, refusing a bad
one and writing a template all come from that. Keys of the user's own are kept.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import reprlib
import textwrap
from collections.abc import Collection, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from nn_meter.bounded import read_file
from nn_meter.errors import ConfigError

__all__ = [
    "BackendSettings",
    "RuletestConfig",
    "Settings",
    "default_testcases",
    "edit_distance",
    "read_yaml",
    "render_template",
    "suggestion",
    "validate",
]

log = logging.getLogger(__name__)

S = TypeVar("S", bound="Settings")


# --- reading -------------------------------------------------------------------------------------


_MOST_BYTES = 2**18
_MOST_VALUES = 100_000


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, and aliases that stand for very much."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _values(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"its aliases (*name) stand for more than {_MOST_VALUES} values")
        return node


def _values(node: yaml.Node, counted: dict[int, int]) -> int:
    """How many values a node holds once each alias is replaced by what it stands for."""
    if id(node) not in counted:
        counted[id(node)] = 1  # met again inside itself: that is refused later
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        counted[id(node)] = 1 + sum(_values(part, counted) for part in inner)
    return counted[id(node)]


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        try:
            repeated = key in seen
        except TypeError as exc:
            raise yaml.constructor.ConstructorError(
                None, None, "a key is a list or a mapping", key_node.start_mark
            ) from exc
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is given twice", key_node.start_mark
            )
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


# What PyYAML lets out, besides its own, where a text cannot be of the type that its form or its tag
# says: dates such as 2022-99-99, "!!bool maybe"; a key that is a set.
_NO_YAML = (
    yaml.YAMLError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    TypeError,
    RecursionError,
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping with text keys.

    Raises:
        ConfigError: It cannot be read, is no YAML, gives a key twice, holds something else, or
            very much.
    """
    try:
        text = read_file(path, _MOST_BYTES).decode()
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except ValueError as exc:  # not UTF-8; a NUL in the path
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc
    try:
        data = yaml.load(text, Loader=_StrictLoader)
    except _NO_YAML as exc:
        raise ConfigError(f"{path}: is no valid YAML: {' '.join(str(exc).split())}") from exc
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: should hold 'KEY: value' lines, but holds a {_kind(data)}")
    for key in data:
        if not isinstance(key, str):
            raise ConfigError(f"{path}: the key {key!r} should be text")
    return data


def _kind(value: Any) -> str:
    names = {dict: "mapping", list: "list", str: "text", int: "number", float: "number"}
    return names.get(type(value), type(value).__name__)


def edit_distance(a: str, b: str) -> int:
    """Letters to insert, delete, change or swap with a neighbour (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        older, before, row = before, row, [i]
        for j, y in enumerate(b, start=1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, older[j - 2] + 1)
            row.append(best)
    return row[-1]


def suggestion(found: str, known: Iterable[str]) -> str:
    """The words ``; did you mean 'x'?`` if one of the known names is near, else nothing."""
    names = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(found.casefold(), names, n=1, cutoff=0.6)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def _misspelt(key: str, known: Iterable[str]) -> str | None:
    """The known key that an unknown one was meant to be: within two letters, one if it is short."""
    for name in known:
        if edit_distance(key.upper(), name) <= (1 if len(name) <= 3 else 2):
            return name
    return None


# --- settings ------------------------------------------------------------------------------------


class Settings(BaseModel):
    """A YAML file's keys, frozen. Keys of the user's own are in ``model_extra``."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    def as_dict(self) -> dict[str, Any]:
        """All keys, the user's own included, as plain YAML values."""
        return self.model_dump()


def validate(cls: type[S], data: Mapping[str, Any], source: str) -> S:
    """Make settings of a mapping.

    Args:
        cls: Which settings.
        data: Keys and values, as read from YAML.
        source: Where they come from, for messages: a file.

    Raises:
        ConfigError: A key is misspelt, a value has a wrong type or is impossible; the message has
            source, key, what was found and what is allowed.
    """
    known = cls.model_fields
    for key in data:
        if key not in known and (meant := _misspelt(key, known)):
            raise ConfigError(
                f"{source}: unknown key {key}; did you mean {meant}? "
                "(A key of your own must differ from every known key by more than two letters.)"
            )
    try:
        settings = cls.model_validate(dict(data))
    except ValidationError as exc:
        raise ConfigError(f"{source}: {_refusal(cls, data, exc)}") from exc
    for key, value in data.items():
        if key not in known and not _is_plain({key: value}):
            raise ConfigError(
                f"{source}: {key} must be text, numbers, true, false, or lists and mappings of "
                f"these, but found {_shown(value)}; put a date in quotes"
            )
    return settings


def _refusal(cls: type[Settings], data: Mapping[str, Any], error: ValidationError) -> str:
    """What a validation found, in our words: the first of it."""
    details = error.errors(include_url=False, include_input=False)
    first = details[0]
    key = str(first["loc"][0]) if first["loc"] else "?"
    found = data.get(key)
    field = cls.model_fields.get(key)
    extra = field.json_schema_extra if field is not None else None
    if not isinstance(extra, dict):
        return f"{key}: {first['msg']}, but found {_shown(found)}"
    hint = ""
    if isinstance(found, str):
        expected = [d["ctx"]["expected"] for d in details if d["type"] == "literal_error"]
        hint = suggestion(found, [word for text in expected for word in text.split("'")[1::2]])
    return f"{key} must be {extra['allowed']}, but found {_shown(found)}{hint}"


def _shown(value: Any) -> str:
    """A value as it is shown in a message: not more of it than one cares to read."""
    if value is None:
        return "nothing"
    try:
        return _REPR.repr(value)
    except ValueError:
        return "a number of thousands of digits"  # Python does not write it out


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def _is_plain(value: Any) -> bool:
    """Whether JSON carries a value as it is to the process that builds or measures."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()  # half of a surrogate pair is no text
        return bool(json.loads(text) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def _key(default: Any, comment: str, allowed: str, **bounds: Any) -> Any:
    return Field(
        default=default, description=comment, json_schema_extra={"allowed": allowed}, **bounds
    )


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _number(value: Any) -> Any:
    """Let 1 stand for 1.0; keep bool out."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**63 else str(value)[:80]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # no float then: refused as such
    return value


def _no_entries(value: Any) -> Any:
    """Read a key whose entries are all commented out as an empty list."""
    return [] if value is None else value


Names = Annotated[list[str], BeforeValidator(_no_entries)]
Positive = Annotated[int, Field(ge=1, le=2**20)]
Count = Annotated[int, Field(ge=0, le=10**9)]
_POSITIVE = "a whole number of at least 1 (at most 1048576)"
_CORES = os.cpu_count() or 1
_THREADS = f"a whole number of at least 1 (at most {4 * _CORES}: four for each of {_CORES} cores)"
_COUNT = "a whole number of at least 0"


def default_testcases() -> list[str]:
    """The basic test cases that a new workspace asks.

    The original program's 79 pairs, and for each operator that these leave out the pairs with
    conv, dwconv, relu, add and fc, both ways, less those that no shape allows.
    """
    square = ("conv", "dwconv", "convtrans", "avgpool", "add", "concat", "relu", "reshape")
    original = [
        *(f"{first}_{second}" for first, second in product(square, square)),
        *(f"{op}_fc" for op in ("add", "concat", "relu", "reshape")),
        *(f"fc_{op}" for op in ("add", "concat", "fc", "relu", "reshape")),
        *("bn_relu", "conv_bn", "dwconv_bn", "conv_hswish", "conv_se", "se_relu"),
    ]
    both_ranks = ("relu6", "sigmoid", "hswish")
    three_d = ("maxpool", "se", "bn", "split")
    to_one_d = ("globalavgpool", "flatten")
    more: list[str] = []
    for op in both_ranks:
        more += _both_ways(op, ("conv", "dwconv", "relu", "add", "fc"))
    for op in three_d:
        more += _both_ways(op, ("conv", "dwconv", "relu", "add"))
    for op in to_one_d:
        more += [f"{partner}_{op}" for partner in ("conv", "dwconv", "relu", "add")]
        more += [f"{op}_{partner}" for partner in ("relu", "add", "fc")]
    return list(dict.fromkeys([*sorted(original), *more]))


def _both_ways(op: str, partners: Iterable[str]) -> list[str]:
    return [pair for partner in partners for pair in (f"{partner}_{op}", f"{op}_{partner}")]


class RuletestConfig(Settings):
    """``ruletest_config.yaml``: what is asked, in which shapes, and how it is decided."""

    DETAIL: bool = _key(
        False,
        "Whether to attach detail to the results: the latencies behind each rule.",
        "true or false",
    )
    IMPLEMENT: Literal["tensorflow", "torch", "onnx"] = _key(
        "onnx",
        "How the models are made: tensorflow, torch, or onnx (directly, with no framework).",
        "tensorflow, torch or onnx",
    )
    HW: Positive = _key(28, "Height and width of every input that is not 1-D.", _POSITIVE)
    CIN: Positive = _key(16, "Channels of every input that is not 1-D.", _POSITIVE)
    SHAPE_1D: Positive = _key(428, "Size of every 1-D input, e.g. of fc.", _POSITIVE)
    COUT: Positive = _key(256, "Output channels of conv, convtrans and fc.", _POSITIVE)
    KERNEL_SIZE: Positive = _key(3, "Kernel size of convolutions and pools.", _POSITIVE)
    PADDING: Annotated[Literal["same", "valid"], BeforeValidator(_lower)] = _key(
        "same", "Padding of convolutions and pools: same or valid.", "same or valid"
    )
    STRIDES: Positive = _key(1, "Stride of convolutions.", _POSITIVE)
    POOL_STRIDES: Positive = _key(2, "Stride of pools.", _POSITIVE)
    EPS_ALPHA: Annotated[float, BeforeValidator(_number), Field(ge=0, le=1e6)] = _key(
        0.5,
        "Two ops count as fused if T(op1) + T(op2) - T(block) > EPS_ALPHA * min(T(op1), T(op2)).",
        "a number of at least 0",
    )
    EVIDENCE: Literal["auto", "graph", "latency", "formula"] = _key(
        "auto",
        "What a verdict rests on: auto (the best that there is), graph (what the runtime "
        "executed), latency (a controlled experiment) or formula (the inequality above).",
        "auto, graph, latency or formula",
    )
    CONFIDENCE: Annotated[float, BeforeValidator(_number), Field(ge=0.5, le=0.9999)] = _key(
        0.95,
        "With which a verdict by latency has to hold; what does not reach it is undecided.",
        "a number from 0.5 to 0.9999",
    )
    TIME_BUDGET: Annotated[float, BeforeValidator(_number), Field(gt=0, le=86400)] = _key(
        0.35,
        "Seconds that the clock may take for each test case, on average (and 10 in all at the "
        "least); what is not decided by then is undecided.",
        "a number above 0",
    )
    BASIC_TESTCASES: Annotated[list[str] | Literal["all"], BeforeValidator(_no_entries)] = _key(
        default_testcases(),
        "Pairs of operators to test, joined by _, or longer chains like conv_bn_relu; or: all "
        "(every ordered pair that can be built).",
        "a list of pairs like conv_relu, or: all",
    )
    OTHER_TESTCASES: Names = _key(
        ["MON"],
        "Further test cases: MON (one output read by two ops), and your own after registering.",
        "a list of names of test cases",
    )
    LAYERS_1D: Names = _key(
        ["fc"], "Operators whose input must be 1-D.", "a list of names of operators"
    )

    def model_settings(self) -> dict[str, Any]:
        """The keys that decide what is measured: framework, shapes, strides, padding."""
        names = ("IMPLEMENT", "HW", "CIN", "SHAPE_1D", "COUT")
        return {
            name: getattr(self, name)
            for name in (*names, "KERNEL_SIZE", "PADDING", "STRIDES", "POOL_STRIDES")
        }

    @classmethod
    def load(cls, path: Path, *, operators: Collection[str], testcases: Collection[str]) -> Self:
        """Read ``ruletest_config.yaml``.

        Args:
            path: The file.
            operators: Names of the operators that there are.
            testcases: Names of the other test cases that there are.

        Raises:
            ConfigError: File, key, what was found, and what is allowed.
        """
        return cls.from_dict(
            read_yaml(path), source=str(path), operators=operators, testcases=testcases
        )

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        *,
        source: str,
        operators: Collection[str],
        testcases: Collection[str],
    ) -> Self:
        """As ``load``, of a mapping."""
        config = validate(cls, _rename_alpha(dict(data), source), source)
        basic = config.BASIC_TESTCASES
        if not isinstance(basic, str):
            basic = list(dict.fromkeys(_chain(source, name, operators) for name in basic))
        for key, names, known in (
            ("OTHER_TESTCASES", config.OTHER_TESTCASES, testcases),
            ("LAYERS_1D", config.LAYERS_1D, operators),
        ):
            for name in names:
                if name not in known:
                    raise ConfigError(
                        f"{source}: {key}: {name!r} is unknown{suggestion(name, known)}; "
                        f"known: {', '.join(known)}"
                    )
        return config.model_copy(
            update={
                "BASIC_TESTCASES": basic,
                "OTHER_TESTCASES": list(dict.fromkeys(config.OTHER_TESTCASES)),
            }
        )


def _rename_alpha(data: dict[str, Any], source: str) -> dict[str, Any]:
    """Read the name that older files use for EPS_ALPHA."""
    if "EMP_ALPHA" not in data:
        return data
    old = data.pop("EMP_ALPHA")
    if "EPS_ALPHA" in data and data["EPS_ALPHA"] != old:
        raise ConfigError(
            f"{source}: EPS_ALPHA is {data['EPS_ALPHA']!r}, but its old name EMP_ALPHA says "
            f"{old!r}; remove EMP_ALPHA"
        )
    log.warning("%s: EMP_ALPHA is now called EPS_ALPHA; please rename it", source)
    return {**data, "EPS_ALPHA": old}


_LONGEST = 16


def _chain(source: str, name: str, operators: Collection[str]) -> str:
    """Check the name of a basic test case; returns it without the prefix BF_."""
    ops = name.removeprefix("BF_").split("_")
    if not 2 <= len(ops) <= _LONGEST or not all(ops):
        raise ConfigError(
            f"{source}: BASIC_TESTCASES: {name!r} is no chain; join two or more operators (at most "
            f"{_LONGEST}) by one _ each, like conv_relu or conv_bn_relu"
        )
    for op in ops:
        if op not in operators:
            raise ConfigError(
                f"{source}: BASIC_TESTCASES: {name!r}: there is no operator {op!r}"
                f"{suggestion(op, operators)}; known: {', '.join(operators)}"
            )
    return "_".join(ops)


class BackendSettings(Settings):
    """``backend_config.yaml``: the keys that every built-in backend has."""

    THREADS: Annotated[int, Field(ge=1, le=4 * _CORES)] = _key(
        1, "Threads that the runtime may use.", _THREADS
    )
    RUNS: Positive = _key(50, "Measured runs of each model.", _POSITIVE)
    WARMUPS: Count = _key(10, "Runs of each model before the first measured one.", _COUNT)
    ROUNDS: Positive | None = _key(
        None,
        "Rounds that measuring is spread over: in each, every model of a test case has its turn. "
        "Empty: 10; on a phone 5; of a backend that has only profile(), asked once a round, 2.",
        f"{_POSITIVE}, or empty",
    )
    PYTHON: str | None = _key(
        None,
        "Another Python interpreter (of a virtual environment) to run this runtime in; empty: this "
        "one. It needs numpy and the runtime, not nn-meter.",
        "a path, or empty",
    )


# --- templates -----------------------------------------------------------------------------------


def render_template(cls: type[Settings], title: str, **values: Any) -> str:
    """Write settings as a commented YAML file.

    Args:
        cls: Which settings.
        title: The first line, a comment.
        **values: Values that differ from the defaults.
    """
    blocks = [f"# {title}\n"]
    for key, field in cls.model_fields.items():
        comment = textwrap.fill(
            field.description or "", 98, initial_indent="# ", subsequent_indent="# "
        )
        value = values.get(key, field.get_default(call_default_factory=True))
        blocks.append(f"{comment}\n{_yaml_line(key, value)}")
    return "\n".join(blocks)


def _yaml_line(key: str, value: Any) -> str:
    if value is None:
        return f"{key}:\n"
    return yaml.safe_dump({key: value}, default_flow_style=False, sort_keys=False)
