"""The YAML of meta files and of ``registry.yaml``: mappings of text, strictly read.

A file is read as nodes, which keep what stands in it: YAML turns a bare ``on`` into true and
``2022-06-14`` into a date, and here each of them is refused with the key that it stands at. PyYAML
is imported when a file is read, not before: worker processes have none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nn_meter.bounded import read_file
from nn_meter.errors import RegistrationError
from nn_meter.registry.entry import nearest, with_article

if TYPE_CHECKING:
    import yaml

__all__ = ["mapping", "read", "replace_file", "sequence", "text_fields"]

_MOST_BYTES = 2**18
_SHOWN = 80
_LONGEST = 1024


def read(path: Path) -> yaml.Node | None:
    """Read a file as nodes, by YAML's safe loader; None for a file without content.

    Raises:
        RegistrationError: It cannot be read, is no YAML in UTF-8, or is too large for a meta file.
    """
    import yaml

    try:
        text = read_file(path, _MOST_BYTES).decode("utf-8")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as exc:
        raise RegistrationError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except yaml.YAMLError as exc:
        raise RegistrationError(f"{path}: is no valid YAML: {' '.join(str(exc).split())}") from exc
    except (ValueError, OverflowError, RecursionError) as exc:
        # not UTF-8; a NUL in the path; a number or an escape that Python cannot hold; too deep
        raise RegistrationError(f"{path}: is no valid YAML: {exc}") from exc


def mapping(node: yaml.Node | None, known: Sequence[str], where: str) -> dict[str, yaml.Node]:
    """Return the values of a mapping by key.

    Args:
        node: The mapping.
        known: The keys that it may have.
        where: What an error message starts with, e.g. ``"meta.yaml: "``.

    Raises:
        RegistrationError: It is no mapping, or a key is unknown or given twice.
    """
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise RegistrationError(f"{where}should hold 'key: value' lines: {', '.join(known)}")
    result: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else _kind(key_node)
        line = key_node.start_mark.line + 1
        if key not in known:
            key = key[:_SHOWN]
            raise RegistrationError(
                f"{where}unknown key {key!r} in line {line}{nearest(key, known)}; "
                f"known keys: {', '.join(known)}"
            )
        if key in result:
            raise RegistrationError(f"{where}the key {key!r} is given again in line {line}")
        result[key] = value
    return result


def sequence(node: yaml.Node, where: str) -> list[yaml.Node]:
    """Return the items of a list.

    Raises:
        RegistrationError: It is no list.
    """
    import yaml

    if not isinstance(node, yaml.SequenceNode):
        raise RegistrationError(f"{where}should be a list, but is {with_article(_kind(node))}")
    return list(node.value)


def text_fields(
    node: yaml.Node | None, required: Sequence[str], optional: Sequence[str], where: str
) -> dict[str, str]:
    """Return the keys of a mapping whose values are text.

    Args:
        node: The mapping.
        required: Keys that must be there and hold text.
        optional: Keys that may be missing or empty; then they are not in the result.
        where: What an error message starts with.

    Raises:
        RegistrationError: A key is missing, unknown, given twice, empty, or holds no text.
    """
    import yaml

    known = [*required, *optional]
    pairs = mapping(node, known, where)
    result = {}
    for key in known:
        if key not in pairs:
            if key in required:
                raise RegistrationError(
                    f"{where}the key {key!r} is missing; there should be {', '.join(known)}"
                )
            continue
        value = pairs[key]
        what = _kind(value)
        if not isinstance(value, yaml.ScalarNode):
            raise RegistrationError(f"{where}{key} should be text, but is {with_article(what)}")
        if what == "null" or not value.value.strip():
            if key in required:
                raise RegistrationError(f"{where}{key} is empty")
        elif what != "str":
            raise RegistrationError(
                f"{where}{key} should be text, but YAML takes {value.value:.{_SHOWN}} for "
                f"{with_article(what)}; put it in quotes"
            )
        elif len(value.value) > _LONGEST:
            raise RegistrationError(f"{where}{key} has more than {_LONGEST} characters")
        else:
            result[key] = value.value
    return result


def replace_file(path: Path, text: str) -> None:
    """Write a file in one step: whoever reads it sees the old one or the new one, whole.

    Raises:
        OSError: It cannot be written; the old file is as it was.
    """
    path = path.resolve()  # a link stays a link
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        with temporary.open("xb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _kind(node: yaml.Node) -> str:
    """Return what a node is, in words: text stays YAML's ``str``, nothing ``null``."""
    tag = node.tag.removeprefix("tag:yaml.org,2002:")
    words = {"seq": "list", "map": "mapping", "bool": "truth value", "int": "number"}
    return {**words, "float": "number", "timestamp": "date"}.get(tag, tag)
