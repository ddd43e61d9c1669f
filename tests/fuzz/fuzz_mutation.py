"""Damaging valid data: bytes, and values of JSON."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

__all__ = ["HOSTILE_INTS", "damage", "damaged_json", "hostile_value"]

HOSTILE_INTS = (
    *(0, 1, -1, 2, 3, 4, 7, 8, 64, 127, 128, 255, 256, 4096, 65535, 65536),
    *(2**20, 2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**60, 2**62, 2**63 - 1, 2**63, 2**64, 10**30),
    *(-2, -(2**31), -(2**60), -(2**63)),
)
_TEXTS = (
    *("", " ", "\0", "\n", "\x1b[31m", "ä", "\U0001f600", "\u202e", "..", "../../x", "/dev/zero"),
    *("/etc/passwd", "fused", "separate", "alone", "context", "case1", "BF_conv_relu", "conv_relu"),
    *("relu", "null", "true", "NaN", "1e999", "12.0 +- 3.0", "-1 +- 2", "1" * 400, "x" * 5000),
)


def damage(chance: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A few changes of bytes: flips, lengths, cut ends, parts of it again, parts of others."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        if not found:
            break
        at = chance.randrange(len(found))
        kind = chance.randrange(10)
        if kind < 3:
            found[at] ^= 1 << chance.randrange(8)
        elif kind == 3:
            found[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
        elif kind == 4:  # what may be a length, an offset or a number of a tensor
            size = chance.choice((1, 2, 4, 8))
            at -= at % size
            number = chance.choice(HOSTILE_INTS) % 2 ** (8 * size)
            found[at : at + size] = number.to_bytes(size, "little")
        elif kind == 5:  # the same as a number of protobuf
            found[at : at + 1] = _varint(chance.choice(HOSTILE_INTS) % 2**64)
        elif kind == 6:
            del found[at:]
        elif kind == 7:
            del found[at : at + chance.choice((1, 2, 4, 16, 100))]
        elif kind == 8:
            part = found[at : at + chance.choice((1, 4, 16, 200))]
            found[at:at] = part * chance.choice((1, 2, 50))
        else:
            source = chance.choice(others) if others else bytes(found)
            start = chance.randrange(len(source) or 1)
            size = chance.choice((1, 4, 16, 200))
            found[at : at + size] = source[start : start + size]
    return bytes(found)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def hostile_value(chance: Random, depth: int = 0) -> Any:
    """A value of JSON that nobody expects."""
    kind = chance.randrange(9)
    if kind < 2:
        return chance.choice(HOSTILE_INTS)
    if kind < 4:
        return chance.choice(_TEXTS)
    if kind == 4:
        return chance.choice((True, False, None))
    if kind == 5:
        return chance.choice((0.5, -1.5, 1e308, 1e-320, float("inf"), float("nan")))
    if depth > 2:
        return []
    if kind == 6:
        return [hostile_value(chance, depth + 1) for _ in range(chance.choice((0, 1, 2, 5)))]
    if kind == 7:
        inner: Any = chance.choice((0, [], {}))
        for _ in range(chance.choice((1, 10, 200))):
            inner = [inner] if chance.random() < 0.5 else {"a": inner}
        return inner
    return {chance.choice(_TEXTS): hostile_value(chance, depth + 1) for _ in range(3)}


def damaged_json(chance: Random, data: Any) -> bytes:
    """JSON with some of its values replaced, taken away, doubled or moved; at times damaged."""
    data = copy.deepcopy(data)
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        places = _places(data)
        if not places:
            break
        holder, key = chance.choice(places)
        kind = chance.randrange(6)
        if kind < 3:
            holder[key] = hostile_value(chance)
        elif kind == 3:
            del holder[key]
        elif kind == 4:
            other, place = chance.choice(places)
            holder[key] = copy.deepcopy(other[place]) if _has(other, place) else None
        elif isinstance(holder, dict):
            holder[str(hostile_value(chance))[:100]] = copy.deepcopy(holder[key])
        else:
            holder.extend(copy.deepcopy(holder)[:50])
    text = json.dumps(data)
    if chance.random() < 0.1:
        text = text.replace("Infinity", "1e999").replace(" 1,", f" {'9' * 5000},")
    found = text.encode()
    return damage(chance, found) if chance.random() < 0.1 else found


def _places(data: Any) -> list[tuple[Any, Any]]:
    """Holders and keys of all values."""
    found: list[tuple[Any, Any]] = []
    waiting = [data]
    while waiting and len(found) < 3000:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)
