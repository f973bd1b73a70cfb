"""What can happen to a packed file, by chance and by intent."""

from __future__ import annotations

import json
import lzma
import random
import zlib
from typing import Any

from amc.export.packed.bits import Reader, Writer
from amc.export.packed.file import _LZMA

ODD: tuple[Any, ...] = (
    -1,
    0,
    1,
    7,
    255,
    2**20,
    2**31,
    2**62,
    2**70,
    1.5,
    True,
    None,
    "",
    "conv1.weight",
    [],
    {},
)


def checked(body: bytes) -> bytes:
    """A file of these bytes, with the checksum that they have."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def taken_apart(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a packed file, and what is behind it but for the checksum."""
    reader = Reader(content[:-4])
    reader.raw(5)
    reader.whole()
    header = json.loads(lzma.decompress(reader.block(), lzma.FORMAT_RAW, filters=_LZMA))
    return header, reader.raw(reader.left)


def put_together(header: Any, rest: bytes) -> bytes:
    """A packed file of any header and any tensors, with the right lengths and checksum."""
    text = json.dumps(header).encode()
    writer = Writer()
    writer.raw(b"AMCP\1")
    writer.whole(len(text))
    writer.block(lzma.compress(text, lzma.FORMAT_RAW, filters=_LZMA))
    writer.raw(rest)
    return checked(writer.done())


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The file after an accident or an attack; each kind as often."""
    kinds = (_as_it_lies, _with_new_checksum, _in_the_tensors, _in_the_header)
    return draw.choice(kinds)(content, draw)


def _as_it_lies(content: bytes, draw: random.Random) -> bytes:
    return _changed(content, draw)


def _with_new_checksum(content: bytes, draw: random.Random) -> bytes:
    return checked(_changed(content[:-4], draw))


def _in_the_tensors(content: bytes, draw: random.Random) -> bytes:
    """The table says what the tensors' bytes now are."""
    header, rest = taken_apart(content)
    at, parts = 0, []
    chosen = draw.randrange(len(header["tensors"]))
    for place, entry in enumerate(header["tensors"]):
        part = rest[at : at + entry[4]]
        at += entry[4]
        if place == chosen or draw.random() < 0.05:
            part = _changed(part, draw) if part else bytes(draw.randrange(3))
            entry[4] = len(part)
            if draw.random() < 0.2:
                entry[3] = draw.randrange(8)
        parts.append(part)
    return put_together(header, b"".join(parts))


def _in_the_header(content: bytes, draw: random.Random) -> bytes:
    header, rest = taken_apart(content)
    for _ in range(draw.randint(1, 2)):
        _spoil(header, draw)
    return put_together(header, rest)


def _spoil(value: Any, draw: random.Random) -> None:
    """Change, remove, repeat or exchange something, anywhere in containers of containers."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = draw.choice(keys)
    inside = value[key]
    if isinstance(inside, (dict, list)) and inside and draw.random() < 0.85:
        _spoil(inside, draw)
        return
    kind = draw.randrange(4)
    if kind == 0:
        del value[key]
    elif kind == 1 and isinstance(inside, (int, float)):
        value[key] = inside + draw.choice((-1, 1, 3))
    elif kind == 2:
        value[key] = value[draw.choice(keys)]
    else:
        value[key] = draw.choice(ODD)


def _changed(content: bytes, draw: random.Random) -> bytes:
    """Some bytes are others, are gone, are there twice, or the end is missing."""
    found = bytearray(content)
    kind = draw.randrange(5)
    at = draw.randrange(max(len(found), 1))
    if kind == 0 and found:
        for _ in range(draw.choice((1, 1, 2, 8))):
            found[draw.randrange(len(found))] = draw.randrange(256)
    elif kind == 1 and found:
        found[at] ^= 1 << draw.randrange(8)
    elif kind == 2:
        del found[at:]
    elif kind == 3:
        del found[at : at + draw.randint(1, 9)]
    else:
        found[at:at] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 9)))
    return bytes(found)
