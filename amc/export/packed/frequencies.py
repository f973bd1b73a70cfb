"""How often symbols are expected: tables of levels, in files and as a range coder takes them.

A level is minus the binary logarithm of a frequency, in quarters: 0 is always, 4 every second time,
8 every fourth. Quarters cost at most some two thousandths of a bit of every symbol.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from amc.errors import ConfigError
from amc.export.packed.bits import (
    RICE_END,
    Damaged,
    IntArray,
    Reader,
    Writer,
    rice_bits,
    rice_packed,
    rice_unpacked,
)

FloatArray = npt.NDArray[np.float64]
RARER = 12  # levels: what does not occur, below the rarest that does
MOST_LEVEL = 79
_MOST_WIDTH = 5  # of Rice codes
_PART = 1 << 24
# 2^24 / 2^(n/4), rounded: the same on every machine.
_QUARTERS = 16777216, 14107902, 11863283, 9975792


def levels_of(counts: IntArray) -> IntArray:
    """The levels of tables of counts, shape (tables, symbols)."""
    totals = counts.sum(1, keepdims=True)
    shares = np.log2(np.maximum(totals, 1) / np.maximum(counts, 1))
    levels = np.rint(4 * shares).astype(np.int64)
    rarest = np.where(counts > 0, levels, 0).max(1, keepdims=True)
    found: IntArray = np.minimum(np.where(counts > 0, levels, rarest + RARER), MOST_LEVEL)
    return found


def frequencies(levels: IntArray) -> FloatArray:
    """Weights of symbols, not summing to 1; exact."""
    weights: IntArray = np.array(_QUARTERS, np.int64)[levels % 4] >> levels // 4
    return weights.astype(np.float64)


def coded_bits(counts: IntArray, levels: IntArray) -> float:
    """What a range coder needs for so many symbols of every table."""
    weights = frequencies(levels)
    costs = np.log2(weights.sum(1, keepdims=True) / weights)
    return float((counts * costs).sum())


# -- in files ------------------------------------------------------------------------------


def write_levels(writer: Writer, levels: IntArray) -> None:
    """Tables by Rice codes of their steps, from symbol to symbol or from table to table."""
    steps, width, across = _steps(levels)
    writer.byte(width << 1 | across)
    writer.block(rice_packed(steps.tolist(), width))


def levels_size(levels: IntArray) -> int:
    """Bytes of `write_levels`."""
    steps, width, _ = _steps(levels)
    size = (rice_bits(steps, width) + 7) // 8
    return size + 1 + (1 if size < 128 else 2)


def _steps(levels: IntArray) -> tuple[IntArray, int, int]:
    along = np.diff(levels, axis=1, prepend=0)
    across = np.concatenate([along[:1], np.diff(levels, axis=0)])
    options = [
        (rice_bits(zigzag, width), width, is_across, zigzag)
        for is_across, steps in enumerate((along, across))
        for zigzag in [_zigzag(steps.ravel())]
        for width in range(_MOST_WIDTH)
        if int(zigzag.max()) >> width < RICE_END  # a reader looks no further
    ]
    _, width, is_across, steps = min(options, key=lambda option: option[:3])
    return steps, width, is_across


def _zigzag(steps: IntArray) -> IntArray:
    return np.where(steps >= 0, 2 * steps, -2 * steps - 1)


def read_levels(reader: Reader, tables: int, size: int, most: int = MOST_LEVEL) -> IntArray:
    """What `write_levels` wrote, shape (tables, size).

    Raises:
        Damaged: A level is below 0 or above the largest.
    """
    first = reader.byte()
    if first >= 2 * _MOST_WIDTH:
        raise Damaged("is damaged in a table of frequencies")
    found = np.array(rice_unpacked(reader.block(), tables * size, first >> 1), np.int64)
    steps = np.where(found % 2, -(found + 1) // 2, found // 2).reshape(tables, size)
    if first & 1:
        steps[0] = np.cumsum(steps[0])
        levels = np.cumsum(steps, axis=0)
    else:
        levels = np.cumsum(steps, axis=1)
    if levels.min() < 0 or levels.max() > most:
        raise Damaged("is damaged in a table of frequencies")
    return levels


# -- the range coder -----------------------------------------------------------------------


@cache
def library() -> Any:
    """The package `constriction`, whose range coder is used; None where it is not installed."""
    try:
        import constriction  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        return None
    return constriction.stream


def needed() -> Any:
    """The same, needed.

    Raises:
        ConfigError: It is not installed.
    """
    found = library()
    if found is None:
        raise ConfigError(
            "This packed file is range coded, and the package constriction, which reads that, is "
            "not installed: pip install 'amc-compress[packed]'. A file that needs no package is "
            "written where it is missing too, or with coder=huffman."
        )
    return found


def models(levels: IntArray) -> list[Any]:
    """Of every table, as the coder takes them."""
    categorical = needed().model.Categorical
    weights = frequencies(levels)
    return [categorical(row / row.sum(), perfect=False) for row in weights]


class RangeWriter:
    """Symbols to bytes."""

    def __init__(self) -> None:
        self._coder = needed().queue.RangeEncoder()

    def add(self, symbols: IntArray, model: Any) -> None:
        if len(symbols):
            self._coder.encode(symbols.astype(np.int32), model)

    def done(self) -> bytes:
        """Words of four bytes, without the zeros at their end."""
        content: bytes = self._coder.get_compressed().astype("<u4").tobytes()
        return content.rstrip(b"\0")


class RangeReader:
    """Bytes to symbols."""

    def __init__(self, content: bytes) -> None:
        filled = content + bytes(-len(content) % 4)
        self._coder = needed().queue.RangeDecoder(np.frombuffer(filled, "<u4").astype(np.uint32))

    def next(self, count: int, model: Any) -> IntArray:
        """
        Raises:
            Damaged: The bytes are of no such symbols.
        """
        if not count:
            return np.zeros(0, np.int64)
        try:
            found: IntArray = self._coder.decode(model, count).astype(np.int64)
        except (AssertionError, ValueError) as error:
            raise Damaged("is damaged in range codes") from error
        return found
