"""Changes of a file, drawn at random: of its bytes, of its numbers and words, of its values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xC0, 0xFE, 0xFF, *b'"{}[](),:.\\')
_NUMBERS = (
    b"0",
    b"-1",
    b"1e400",
    b"NaN",
    b"-Infinity",
    b"0.5e-320",
    b"1" * 400,
    b"9" * 5000,
    b"2147483648",
    b"9223372036854775807",
    b"18446744073709551616",
    b"1_0",
    b"0x10",
    b"",
)
_OPENINGS = (b"[", b"{", b'{"a":', b"(", b'"', b"[[", b"\x85", b"]", b"- ")
_TOKEN = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\w+")


def flip(content: bytes, draw: Random) -> bytes:
    """Change some bits."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def overwrite(content: bytes, draw: Random) -> bytes:
    """Put bytes that mean something in the place of others."""
    at, length = draw.randrange(len(content)), draw.choice((1, 1, 2, 4, 8))
    return content[:at] + bytes([draw.choice(_BYTES)]) * length + content[at + length :]


def truncate(content: bytes, draw: Random) -> bytes:
    """Cut the end off, or the beginning."""
    at = draw.randrange(len(content))
    return content[:at] if draw.random() < 0.8 else content[at:]


def duplicate(content: bytes, draw: Random) -> bytes:
    """Repeat a part, once or many times."""
    part = _part(content, draw)
    at = draw.randrange(len(content) + 1)
    return content[:at] + part * draw.choice((1, 1, 2, 100)) + content[at:]


def remove(content: bytes, draw: Random) -> bytes:
    """Leave a part out."""
    at = draw.randrange(len(content))
    return content[:at] + content[at + draw.choice((1, 2, 8, 64, 512)) :]


def swap(content: bytes, draw: Random) -> bytes:
    """Exchange two parts."""
    length = draw.choice((1, 2, 8, 64))
    a, b = sorted(draw.randrange(len(content)) for _ in range(2))
    if b - a < length:
        return flip(content, draw)
    one, other = content[a : a + length], content[b : b + length]
    return content[:a] + other + content[a + length : b] + one + content[b + length :]


def number(content: bytes, draw: Random) -> bytes:
    """Put another number in the place of a number or a word."""
    found = list(_TOKEN.finditer(content))
    if not found:
        return flip(content, draw)
    token = draw.choice(found)
    return content[: token.start()] + draw.choice(_NUMBERS) + content[token.end() :]


def nest(content: bytes, draw: Random) -> bytes:
    """Put in what is nested without end."""
    at = draw.randrange(len(content) + 1)
    return (
        content[:at] + draw.choice(_OPENINGS) * draw.choice((3, 100, 3000, 50_000)) + content[at:]
    )


BYTES: tuple[Mutation, ...] = (
    flip,
    overwrite,
    truncate,
    duplicate,
    remove,
    swap,
    number,
    nest,
)


def _part(content: bytes, draw: Random) -> bytes:
    at = draw.randrange(len(content))
    return content[at : at + draw.choice((1, 4, 16, 256))]


# -- values --------------------------------------------------------------------------------


def _deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**39, 10**50, 10**400, 0.5, -0.5, 1e308),
    *(float("nan"), float("inf"), "", "x", "../x", "\ud800", "a" * 5000, "8", "null"),
    *([], {}, [[]], [None], [-1], {"": 0}, {"name": 3}, _deep(70), [0] * 5000),
)


def odd_value(draw: Random) -> Any:
    """What no field expects."""
    return deepcopy(draw.choice(_ODD))


def changed_value(value: Any, draw: Random) -> Any:
    """A value of JSON with one or two of its parts changed; the original stays as it was."""
    made = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 1, 2))):
        made = _changed(made, draw)
    return made


def _changed(value: Any, draw: Random) -> Any:
    if not isinstance(value, (dict, list)) or not value or draw.random() < 0.05:
        return odd_value(draw)
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw.choice(keys)
    if isinstance(value[key], (dict, list)) and draw.random() < 0.6:
        value[key] = _changed(value[key], draw)
        return value
    way = draw.randrange(5)
    if way == 0:
        del value[key]
    elif way == 1:
        other = draw.choice(keys)
        value[key], value[other] = value[other], value[key]
    elif way == 2 and isinstance(value, dict):
        value[draw.choice(("", "x", "a" * 3000, "\x00", "format", f"{key}x"))] = value.pop(key)
    elif way == 2 and isinstance(value, list):
        value.append(value[key])
    else:
        value[key] = odd_value(draw)
    return value


def json_value(content: bytes, draw: Random) -> bytes:
    """Change the values of a JSON text."""
    return json.dumps(changed_value(json.loads(content), draw)).encode()


def line(content: bytes, draw: Random) -> bytes:
    """Change the cells or the lines of a table."""
    lines = content.split(b"\n")
    at = draw.randrange(len(lines))
    if draw.random() < 0.3:
        other = draw.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif draw.random() < 0.3:
        lines.insert(at, lines[draw.randrange(len(lines))])
    else:
        cells = lines[at].split(b",")
        odd = (*_NUMBERS, b"x", b'"', b"a" * 3000, "\u0663".encode(), b"\x00", b"8/8")
        cells[draw.randrange(len(cells))] = draw.choice(odd)
        lines[at] = b",".join(cells)
    return b"\n".join(lines)
