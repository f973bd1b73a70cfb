"""The packed file: a header, tensors one after the other, and a checksum.

======================= ==================================================================
bytes                   hold
======================= ==================================================================
4                       ``AMCP``
1                       version of the format
LEB128, LEB128          length of the header as text, and as it is here
header                  JSON, by LZMA: what the network is, and a table of the tensors
the rest but 4          the tensors' bytes in the order of the table
4                       CRC-32 of all that is before it, the lowest byte first
======================= ==================================================================

Reading runs no code and believes nothing: the checksum comes first, then every length and shape is
checked against the size of the file before memory is taken for it.
"""

from __future__ import annotations

import json
import lzma
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from amc.errors import ArtifactError, ConfigError, ExportError
from amc.export.packed import integers, tensors
from amc.export.packed.bits import Damaged, Reader, Writer
from amc.utils.documents import (
    OBJECT,
    TEXT,
    Fault,
    Kind,
    check_fields,
    check_format,
    fault,
    is_whole,
    list_of,
    object_of,
    parse_json,
    shown,
)
from amc.utils.files import read_bytes

ENDING = ".amcp"
FORMAT_VERSION = 1
_MAGIC = b"AMCP"
_CHECKSUM_BYTES = 4
_MOST_BYTES = 2**32  # of a file
_MOST_HEADER, _MOST_SQUEEZED = 2**24, 256  # characters, and times its bytes: real ones are 10
_LZMA = [{"id": lzma.FILTER_LZMA1, "dict_size": 2**20, "lc": 0, "lp": 0, "pb": 0}]
# More numbers than a file's size allows are no network, but made to fill the reader's memory: in 15
# bits for 1 weight in 128 bytes no coder would leave anything of it.
_NUMBERS_PER_BYTE, _FEW_NUMBERS = 128, 2**22
_MOST_SIDES = 8
_MOST_PIXELS = 2**24  # of an image, of all channels
_KEPT: Kind = (
    lambda value: isinstance(value, str) and value.strip("0123456789abcdef") == "",
    "positions as hexadecimal digits",
)
_FIELDS: dict[str, Kind] = {
    "network": TEXT,
    "image_shape": list_of((is_whole, "a whole number")),
    "strategy": OBJECT,
    "kept": object_of(_KEPT),
    "coder": TEXT,
    "tensors": list_of((lambda value: isinstance(value, list), "a list")),
}


@dataclass(frozen=True)
class Written:
    """A packed file's bytes.

    Attributes:
        content: All of them.
        forms: Tensor name -> what was made of it.
        header: Bytes of ``content`` that are not of a tensor.
    """

    content: bytes
    forms: Mapping[str, tensors.Form]
    header: int


@dataclass(frozen=True)
class PackedFile:
    """What a packed file holds.

    Attributes:
        header: Checked field by field.
        state: Tensor name -> tensor.
    """

    header: Mapping[str, Any]
    state: Mapping[str, Tensor]

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """Channel group -> positions of its kept channels, of groups that do not keep all."""
        return {name: _positions(text) for name, text in self.header["kept"].items()}


def written(
    header: Mapping[str, Any], state: Mapping[str, Tensor], coder: str = "range"
) -> Written:
    """A packed file of these tensors.

    Args:
        header: "network", "image_shape", "strategy", "kept" (as positions).
        coder: `amc.export.packed.integers.CODERS`.

    Raises:
        ConfigError: There is no such coder.
        ExportError: A tensor has no place in such a file.
    """
    if coder not in integers.CODERS:
        raise ConfigError(f"coder must be one of {', '.join(integers.CODERS)}, got {coder!r}.")
    names = {dtype: name for name, dtype in tensors.DTYPES.items()}
    forms, table, scales = dict[str, tensors.Form](), [], None
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if tensor.dtype not in names or tensor.dim() > _MOST_SIDES:
            raise ExportError(
                f"Tensor {name!r} of {tensor.dtype}, shape {tuple(tensor.shape)}, has no place in "
                f"a packed file: it takes {', '.join(names.values())} of at most {_MOST_SIDES} "
                "sides."
            )
        form = (
            tensors.Form(tensors.SCALES, b"", {})
            if tensors.same_as(tensor, scales)
            else tensors.encoded(tensor, state.get(f"{name}_scale"), coder)
        )
        if form.scales is not None:
            scales = form.scales
        forms[name] = form
        table.append([name, names[tensor.dtype], list(tensor.shape), form.kind, len(form.content)])
    document = {
        "format": "amc-packed",
        "version": FORMAT_VERSION,
        "network": header["network"],
        "image_shape": list(header["image_shape"]),
        "strategy": header["strategy"],
        "kept": {name: _as_hex(positions) for name, positions in header["kept"].items()},
        "coder": _coder_of(forms),
        "tensors": table,
    }
    return _assembled(json.dumps(document, separators=(",", ":")).encode(), forms)


def _assembled(text: bytes, forms: Mapping[str, tensors.Form]) -> Written:
    squeezed = lzma.compress(text, lzma.FORMAT_RAW, filters=_LZMA)
    writer = Writer()
    writer.raw(_MAGIC)
    writer.byte(FORMAT_VERSION)
    writer.whole(len(text))
    writer.block(squeezed)
    header = len(writer) + _CHECKSUM_BYTES
    for form in forms.values():
        writer.raw(form.content)
    content = writer.done()
    return Written(with_checksum(content), forms, header)


def with_checksum(content: bytes) -> bytes:
    """A file's bytes with their checksum behind them."""
    return content + zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little")


def _coder_of(forms: Mapping[str, tensors.Form]) -> str:
    """What a reader needs: "huffman" is in amc itself."""
    return "range" if any(form.needs_library for form in forms.values()) else "huffman"


def _as_hex(positions: tuple[int, ...]) -> str:
    return f"{sum(1 << position for position in positions):x}"


def _positions(text: str) -> tuple[int, ...]:
    mask = int(text or "0", 16)
    return tuple(place for place in range(mask.bit_length()) if mask >> place & 1)


# -- reading -------------------------------------------------------------------------------


def read(path: Path) -> PackedFile:
    """The content of a packed file.

    Raises:
        ArtifactError: It is missing, damaged, of another version, or no packed file.
        ConfigError: It needs a package that is not installed.
    """
    content = read_bytes(path, "Packed file", most=_MOST_BYTES)
    wrong = fault(f"Packed file {path}", ArtifactError, _AGAIN)
    return parsed(content, wrong)


_AGAIN = "Export it again: amc export format=packed run=<run>."


def parsed(content: bytes, wrong: Fault) -> PackedFile:
    """The content of a packed file's bytes.

    Args:
        wrong: Makes the error of what is wrong with it.

    Raises:
        AmcError: As ``wrong`` makes it; and as `read`.
    """
    try:
        return _parsed(content, wrong)
    except Damaged as error:
        raise wrong(str(error)) from error


def _parsed(content: bytes, wrong: Fault) -> PackedFile:
    reader = Reader(content[:-_CHECKSUM_BYTES])
    if content[:4] != _MAGIC or reader.left < len(_MAGIC) + 1:
        raise wrong(f"is none: it does not begin with {_MAGIC.decode()}")
    reader.raw(len(_MAGIC))
    version = reader.byte()
    if version != FORMAT_VERSION:
        raise wrong(f"has version {version}; this amc reads {FORMAT_VERSION}")
    if with_checksum(content[:-_CHECKSUM_BYTES]) != content:
        raise wrong("is damaged or cut off: its checksum is another")
    header = _header(reader, wrong)
    spans = [_span(entry, wrong) for entry in header["tensors"]]
    if sum(length for *_, length in spans) != reader.left:
        raise wrong("does not hold the tensors of its table, and nothing else")
    most = max(_FEW_NUMBERS, _NUMBERS_PER_BYTE * len(content))
    if sum(shape.count for _, shape, _, _ in spans) > most:
        raise wrong(f"promises more numbers than a file of {len(content)} bytes can hold")
    state, scales = dict[str, Tensor](), None
    for name, shape, kind, length in spans:
        try:
            part = reader.raw(length)
            state[name] = tensors.decoded(kind, shape, part, scales)
            found = tensors.scales_in(kind, shape, part)
        except Damaged as error:
            raise wrong(f"{error}, in tensor {shown(name)}") from error
        scales = scales if found is None else found
    if len(state) < len(spans):
        raise wrong("has two tensors of one name")
    return PackedFile(header, state)


def _header(reader: Reader, wrong: Fault) -> dict[str, Any]:
    length, squeezed = reader.whole(), reader.block()
    if length > min(_MOST_HEADER, _MOST_SQUEEZED * len(squeezed)):
        raise wrong(f"promises a header of {length} characters in {len(squeezed)} bytes")
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA)
    try:
        found = decompressor.decompress(squeezed, length + 1)
        text = found.decode()
    except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise wrong(f"has a header that cannot be read: {error}") from error
    if len(found) != length or not decompressor.eof or decompressor.unused_data:
        raise wrong("has a header of another length than it says")
    document = check_format(parse_json(text, wrong), "amc-packed", FORMAT_VERSION, wrong)
    check_fields(document, _FIELDS, wrong)
    sides = document["image_shape"]
    if len(sides) != 3 or not 0 < math.prod(sides) <= _MOST_PIXELS:
        raise wrong(f"is of images of shape {shown(sides)}, not of three sides that can be")
    return document


def _span(entry: list[Any], wrong: Fault) -> tuple[str, tensors.Shape, int, int]:
    """A tensor's name, shape, form and length."""
    fields: list[Any] = entry if len(entry) == 5 else [None] * 5
    name, dtype, sides, kind, length = fields
    is_known = isinstance(name, str) and isinstance(dtype, str) and dtype in tensors.DTYPES
    is_shape = isinstance(sides, list) and len(sides) <= _MOST_SIDES and all(map(is_whole, sides))
    if not (is_known and is_shape and is_whole(kind) and is_whole(length)):
        raise wrong(
            "must have a name, a type, a shape, a form and a length of every tensor, got "
            f"{shown(entry)}"
        )
    return name, tensors.Shape(dtype, tuple(sides)), kind, length
