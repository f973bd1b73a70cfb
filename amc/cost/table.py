"""Device tables: measured prices in a CSV file, read with every value checked.

The file opens with ``# key: value`` lines (`TableHeader`), then one line of column names, then
one row for each measured operator (`Request` and `Measurement`)::

    # amc-device-table: 1
    # device: my_board
    # runtime: torch
    # threads: 1
    # batch: 16
    # unit: ms
    # channel_step: 8
    # supported_bits: 32/32 8/8
    op,kernel_h,kernel_w,...,latency_ms,spread_ms,samples
    conv2d,3,3,...,0.25,0.01,7

A file whose ``latency_ms`` cells are empty is a list of what to measure (`list_text`, `read_list`);
it is refused as a table until all of them are filled in. docs/devices.md describes every key and
column.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from amc.cost.correction import KINDS, Correction, correction_text, parse_correction
from amc.cost.device import COVERS, Measurement, TableDevice, TableHeader, parse_bits
from amc.errors import TableError, meant
from amc.graph.types import Signature, Size
from amc.quantplan.conversions import CONVERSIONS
from amc.runtimes.request import Request
from amc.strategy import BIT_WIDTHS, Bits
from amc.utils.documents import shown
from amc.utils.files import read_text, write_text

FORMAT_VERSION = 1
_LARGEST = 2**31 - 1  # of any count: products of two channel counts stay within int64

Value = TypeVar("Value")


def _text(text: str) -> str:
    if not text or text != text.strip() or not text.isprintable():
        raise ValueError(text)
    return text


def _op(text: str) -> str:
    if not (text.isascii() and text.isidentifier()):
        raise ValueError(text)
    return text


def _count(text: str, low: int = 1) -> int:
    value = int(text)
    if not low <= value <= _LARGEST:
        raise ValueError(text)
    return value


def _number(text: str, *, zero: bool = False) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(text)
    return value


def _width(text: str) -> int:
    value = int(text)
    if value not in BIT_WIDTHS:
        raise ValueError(text)
    return value


def _coverage(text: str) -> str:
    if text not in COVERS:
        raise ValueError(text)
    return text


def _bit_pairs(text: str) -> tuple[Bits, ...]:
    pairs = tuple(parse_bits(pair) for pair in text.split(" "))
    if len(set(pairs)) < len(pairs):
        raise ValueError(text)
    return pairs


def _names(text: str) -> tuple[str, ...]:
    names = tuple(map(_op, text.split(" ")))
    if len(set(names)) < len(names):
        raise ValueError(text)
    return names


def _conversions(text: str) -> tuple[str, ...]:
    names = _names(text)
    if not set(names) <= set(CONVERSIONS):
        raise ValueError(text)
    return names


def _correction(text: str) -> Correction | None:
    return parse_correction(text) if text else None


_natural = partial(_count, low=0)
_nonnegative = partial(_number, zero=True)

_EXPECTED: dict[Callable[[str], object], str] = {
    _text: "one line of printable text",
    _op: "an operator's name",
    _count: f"an integer in [1, {_LARGEST}]",
    _natural: f"an integer in [0, {_LARGEST}]",
    _number: "a positive, finite number",
    _nonnegative: "a finite number, not negative",
    _width: f"one of {BIT_WIDTHS}",
    _coverage: f"one of {', '.join(COVERS)}",
    _bit_pairs: "distinct weight/activation pairs, as in '32/32 8/8'",
    _conversions: f"distinct conversions, of {', '.join(CONVERSIONS)}",
    _names: "distinct operators' names, as in 'relu relu6'",
    _correction: f"'{'=1.0 '.join(KINDS)}=1.0 error=0.0 networks=2'",
}
_HEADER_KEYS: dict[str, Callable[[str], Any]] = {
    "device": _text,
    "runtime": _text,
    "threads": _count,
    "batch": _count,
    "channel_step": _count,
    "supported_bits": _bit_pairs,
    "note": _text,
    "source": _text,
    "covers": _coverage,
    "fuses": _names,
    "converts": _conversions,
    "correction": _correction,
}
# Of keys that may be left out.
_DEFAULTS = dict.fromkeys(("note", "source", "fuses", "converts", "correction"), "")
_DEFAULTS["covers"] = "all"
_FIXED_KEYS = {"amc-device-table": str(FORMAT_VERSION), "unit": "ms"}
_PAIRS: dict[str, Callable[[str], Any]] = {  # fields of Signature with a height and a width
    "kernel": _count,
    "stride": _count,
    "padding": _natural,
    "dilation": _count,
    "in": _count,
    "out": _count,
}


def _both_axes(*pairs: str) -> dict[str, Callable[[str], Any]]:
    return {f"{pair}_{axis}": _PAIRS[pair] for pair in pairs for axis in "hw"}


_COLUMNS: dict[str, Callable[[str], Any]] = {
    "op": _op,
    **_both_axes("kernel", "stride", "padding", "dilation"),
    "groups": _natural,
    **_both_axes("in", "out"),
    "in_channels": _count,
    "out_channels": _count,
    "weight_bits": _width,
    "activation_bits": _width,
    "latency_ms": _number,
    "spread_ms": _nonnegative,
    "samples": _natural,  # 0: a mean of other rows
    "energy_mj": _number,
    "median_ms": _number,
}
COLUMNS = tuple(_COLUMNS)
"""Of a table, in order: of the operator, then of its price."""
_OPTIONAL_COLUMNS = ("energy_mj", "median_ms")
_NO_ROWS: Mapping[Request, Measurement] = MappingProxyType({})
# The first two in a list of what to measure.
_MAY_BE_EMPTY = ("latency_ms", "energy_mj", "median_ms")


@dataclass(frozen=True)
class PartialTable:
    """A list of what to measure, as far as it is filled in.

    Attributes:
        rows: Those that have a price.
        empty: Line and request of those that have none.
    """

    header: TableHeader
    rows: dict[Request, Measurement]
    empty: list[tuple[int, Request]]


def read_table(path: Path) -> TableDevice:
    """Read a device table.

    Raises:
        TableError: The file is missing, binary, of another version or unit, has an unknown or
            missing key or column, a value out of its range, two prices for one operator, or none.
            The message names the file, the line, the column and the value.
    """
    found = read_list(path)
    if found.empty:
        line, request = found.empty[0]
        raise TableError(
            f"{path}, line {line}, column latency_ms: expected {_EXPECTED[_number]}, the cell is "
            f"empty ({request}). {len(found.empty)} of {len(found.empty) + len(found.rows)} rows "
            "are still to be filled in: measure them, or leave their lines out where the search "
            "need not ask."
        )
    return TableDevice(found.header, found.rows)


def read_list(path: Path) -> PartialTable:
    """Read a device table of which some prices may still be to be filled in.

    Raises:
        TableError: As `read_table`, but for rows without a price.
    """
    return list_of(read_text(path, "Device table", TableError), path)


def list_of(text: str, path: Path) -> PartialTable:
    """A list of what to measure, or a table, by its text; ``path`` names it in errors.

    Raises:
        TableError: As `read_list`.
    """
    lines = text.removeprefix("\ufeff").split("\n")
    length = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    header = _read_header(path, lines[:length])
    reader = csv.reader(lines[length:], strict=True)
    try:
        found = _read_rows(path, header, length, reader)
    except csv.Error as error:
        line = length + reader.line_num
        raise TableError(f"{path}, line {line}: not a line of a CSV file: {error}.") from error
    if not found.rows and not found.empty:
        raise TableError(f"{path} has no rows below its column names. Measure some: amc profile.")
    return found


def write_table(device: TableDevice, path: Path) -> None:
    """Write a table atomically; `read_table` gives an equal one.

    Raises:
        TableError: The header has a value that a file cannot hold.
        StorageError: The file cannot be written.
    """
    write_text(path, table_text(device))


def table_text(device: TableDevice) -> str:
    """A table as it stands in its file; equal tables give equal text."""
    return list_text(device.header, device.rows, device.rows)


def list_text(
    header: TableHeader,
    requests: Iterable[Request],
    rows: Mapping[Request, Measurement] = _NO_ROWS,
) -> str:
    """A table of which some prices may still be to be filled in: there ``latency_ms`` is empty.

    There ``spread_ms`` is 0 and ``samples`` 1 until whoever measures knows better.

    Args:
        requests: In this order.
        rows: The prices that are known.

    Raises:
        TableError: The header has a value that a file cannot hold.
    """
    measured = rows.values()
    given = {
        column
        for column in _OPTIONAL_COLUMNS
        if any(getattr(measurement, column) is not None for measurement in measured)
    }
    columns = [column for column in _COLUMNS if column not in {*_OPTIONAL_COLUMNS} - given]
    written = ({**_asked(r), **(_measured(rows[r]) if r in rows else _BLANK)} for r in requests)
    return _text_of(header, columns, written)


def _text_of(header: TableHeader, columns: list[str], rows: Iterable[Mapping[str, object]]) -> str:
    buffer = io.StringIO()
    buffer.writelines(f"# {key}: {text}\n" for key, text in _header_texts(header))
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


_BLANK: dict[str, object] = {"latency_ms": "", "spread_ms": "0", "samples": 1}


def _measured(measurement: Measurement) -> dict[str, object]:
    optional = ((name, getattr(measurement, name)) for name in _OPTIONAL_COLUMNS)
    return {
        "latency_ms": repr(measurement.latency_ms),
        "spread_ms": repr(measurement.spread_ms),
        "samples": measurement.samples,
        **{name: "" if value is None else repr(value) for name, value in optional},
    }


def _asked(request: Request) -> dict[str, object]:
    signature = request.signature
    pairs = dict(zip(_PAIRS, _sizes(signature), strict=True))
    return {
        "op": signature.op,
        "groups": signature.groups,
        **{f"{n}_{axis}": size for n in pairs for axis, size in zip("hw", pairs[n], strict=True)},
        "in_channels": request.in_channels,
        "out_channels": request.out_channels,
        "weight_bits": request.bits.weight,
        "activation_bits": request.bits.activation,
    }


def _sizes(s: Signature) -> tuple[Size, ...]:
    """The pairs of a signature in the order of ``_PAIRS``."""
    return s.kernel, s.stride, s.padding, s.dilation, s.in_size, s.out_size


def _header_texts(header: TableHeader) -> Iterator[tuple[str, str]]:
    yield from _FIXED_KEYS.items()
    for key, convert in _HEADER_KEYS.items():
        value = getattr(header, key)
        text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        if key == "correction":
            text = "" if value is None else correction_text(value)
        if text != _DEFAULTS.get(key):
            _convert(text, convert, f"Device table header, key {key!r}")
            yield key, text


def _convert(text: str, convert: Callable[[str], Value], where: str) -> Value:
    try:
        return convert(text)
    except ValueError:
        raise TableError(f"{where}: expected {_EXPECTED[convert]}, got {shown(text)}.") from None


def _read_header(path: Path, lines: list[str]) -> TableHeader:
    allowed = [*_FIXED_KEYS, *_HEADER_KEYS]
    values: dict[str, Any] = {}
    for number, line in enumerate(lines, start=1):
        key, colon, text = (part.strip() for part in line.removeprefix("#").partition(":"))
        where = f"{path}, line {number}, key {shown(key)}"
        if key not in allowed or not colon:
            raise TableError(f"{where}: expected '# key: value' with one of {', '.join(allowed)}.")
        if key in values:
            raise TableError(f"{where}: the key occurs twice. Keep one of them.")
        if key in _FIXED_KEYS:
            if text != _FIXED_KEYS[key]:
                raise TableError(f"{where}: expected {_FIXED_KEYS[key]!r}, got {shown(text)}.")
            values[key] = text
        else:
            values[key] = _convert(text, _HEADER_KEYS[key], where)
    absent = [key for key in allowed if key not in values and key not in _DEFAULTS]
    if absent:
        raise TableError(
            f"{path} is not a device table: its '# key: value' header lacks {', '.join(absent)}."
        )
    return TableHeader(**{key: values[key] for key in _HEADER_KEYS if key in values})


def _check_columns(path: Path, line: int, columns: list[str]) -> list[str]:
    for column in columns:
        if column not in _COLUMNS:
            hint = meant(column, _COLUMNS)
            raise TableError(f"{path}, line {line}: unknown column {shown(column)}. {hint}")
        if columns.count(column) > 1:
            raise TableError(f"{path}, line {line}: column {shown(column)} occurs twice.")
    absent = [c for c in _COLUMNS if c not in columns and c not in _OPTIONAL_COLUMNS]
    if absent:
        raise TableError(f"{path}, line {line}: expected columns are missing: {', '.join(absent)}.")
    return columns


def _read_rows(path: Path, header: TableHeader, length: int, reader: Any) -> PartialTable:
    """All that is below a header of ``length`` lines."""
    rows: dict[Request, Measurement] = {}
    first_line: dict[Request, int] = {}
    empty: list[tuple[int, Request]] = []  # rows of a list that is still to be filled in
    columns = _check_columns(path, length + 1, next(reader, []))
    for cells in filter(None, reader):
        line = length + reader.line_num
        row = _read_row(path, line, columns, cells)
        request = _request(row)
        _check_bits(path, line, header, request)
        if row["latency_ms"] is None:
            empty.append((line, request))
            continue
        measurement = Measurement(
            row["latency_ms"],
            row["spread_ms"],
            row["samples"],
            row.get("energy_mj"),
            row.get("median_ms"),
        )
        if rows.setdefault(request, measurement) != measurement:
            raise TableError(
                f"{path}, line {line}, column latency_ms: {request} already has another price "
                f"on line {first_line[request]} ({rows[request].latency_ms} ms), "
                f"got {measurement.latency_ms}. Keep one of them."
            )
        first_line.setdefault(request, line)
    return PartialTable(header, rows, empty)


def _check_bits(path: Path, line: int, header: TableHeader, request: Request) -> None:
    if request.bits not in header.priced_bits:
        raise TableError(
            f"{path}, line {line}, column weight_bits/activation_bits: expected one of the "
            f"header's supported_bits {' '.join(map(str, header.priced_bits))}, "
            f"got {request.bits}."
        )


def _read_row(path: Path, line: int, columns: list[str], cells: list[str]) -> dict[str, Any]:
    """The values of a row by their columns; None where one of `_MAY_BE_EMPTY` is."""
    if len(cells) != len(columns):
        raise TableError(f"{path}, line {line}: expected {len(columns)} cells, got {len(cells)}.")
    return {
        column: _convert(cell, _COLUMNS[column], f"{path}, line {line}, column {column}")
        if cell or column not in _MAY_BE_EMPTY
        else None
        for column, cell in zip(columns, cells, strict=True)
    }


def _request(row: dict[str, Any]) -> Request:
    kernel, stride, padding, dilation, in_size, out_size = (
        (row[f"{name}_h"], row[f"{name}_w"]) for name in _PAIRS
    )
    signature = Signature(
        row["op"], kernel, stride, padding, dilation, row["groups"], in_size, out_size
    )
    bits = Bits(row["weight_bits"], row["activation_bits"])
    return Request(signature, row["in_channels"], row["out_channels"], bits)
