"""Integers as symbols of a small alphabet, and as raw bits where the alphabet would be large.

=========  ====================================================  ============================
kind       symbols                                               raw bits
=========  ====================================================  ============================
`DIRECT`   one for each value                                    none
`BUCKETS`  magnitudes 0 to 3, then two for each power of two,    what the bucket leaves open
           each with its sign
`HALVES`   0, and the high byte of the 16 bits of a half         the low byte of what is not 0
=========  ====================================================  ============================

5 is in the bucket of 4 and 5, with a raw bit of 1; 11 in that of 8 to 11, with the raw bits 11.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from amc.export.packed.bits import Damaged, IntArray, Reader, Writer, packed, packed_size, unpacked

DIRECT, BUCKETS, HALVES = range(3)
MOST_DIRECT = 256  # symbols
MOST_BUCKET = 34  # that of magnitudes of some 2^17
_EXACT = 4  # smallest magnitude that shares a bucket


@dataclass(frozen=True)
class Alphabet:
    """How integers become symbols.

    Attributes:
        kind: Of the table above.
        lowest: Value of the first symbol of `DIRECT`.
        size: Symbols.
    """

    kind: int
    lowest: int
    size: int

    @classmethod
    def direct(cls, values: IntArray) -> Alphabet:
        """One symbol for each value between the smallest and the largest; symmetric around 0 where
        they have both signs, so that a symbol has an opposite.
        """
        low, high = int(values.min()), int(values.max())
        if low < 0 < high:
            low, high = min(low, -high), max(high, -low)
        return cls(DIRECT, low, high - low + 1)

    @classmethod
    def buckets(cls, values: IntArray) -> Alphabet:
        """Buckets up to that of the largest magnitude."""
        most = int(_bucket(np.abs(values)).max())
        return cls(BUCKETS, 0, 2 * most + 1)

    @classmethod
    def read(cls, reader: Reader) -> Alphabet:
        """
        Raises:
            Damaged: There is no such alphabet.
        """
        kind = reader.byte()
        if kind == HALVES:
            return HALF
        lowest = reader.signed() if kind == DIRECT else 0
        size = reader.whole()
        limits = {DIRECT: MOST_DIRECT, BUCKETS: 2 * MOST_BUCKET + 1}
        wrong = kind not in limits or not 1 <= size <= limits[kind] or abs(lowest) > 2**17
        if wrong or (kind == BUCKETS and size % 2 == 0):
            raise Damaged(f"has an alphabet of {size} symbols of kind {kind}")
        return cls(kind, lowest, size)

    def write(self, writer: Writer) -> None:
        """What `read` reads."""
        writer.byte(self.kind)
        if self.kind == DIRECT:
            writer.signed(self.lowest)
        if self.kind != HALVES:
            writer.whole(self.size)

    @property
    def has_opposites(self) -> bool:
        """Whether symbol s and symbol size - 1 - s have opposite values."""
        return self.kind == BUCKETS or (self.kind == DIRECT and self.lowest == -(self.size // 2))

    @property
    def zero(self) -> int:
        """The symbol of 0; -1 where there is none."""
        if self.kind == HALVES:
            return 0
        place = self.size // 2 if self.kind == BUCKETS else -self.lowest
        return place if 0 <= place < self.size else -1

    @cached_property
    def widths(self) -> IntArray:
        """Raw bits of every symbol."""
        if self.kind == DIRECT:
            return np.zeros(self.size, np.int64)
        if self.kind == HALVES:
            return np.where(np.arange(self.size) > 0, 8, 0)
        return _bucket_of_index(np.abs(np.arange(self.size) - self.size // 2))[1]

    @cached_property
    def typical(self) -> IntArray:
        """A value of every symbol, about the middle; of halves whether they are not 0."""
        if self.kind == DIRECT:
            return np.arange(self.size) + self.lowest
        if self.kind == HALVES:
            return (np.arange(self.size) > 0).astype(np.int64)
        index = np.arange(self.size) - self.size // 2
        low, width = _bucket_of_index(np.abs(index))
        middle: IntArray = np.sign(index) * (low + (1 << width >> 1))
        return middle

    def symbols(self, values: IntArray) -> IntArray:
        """The symbol of every value."""
        if self.kind == DIRECT:
            return values - self.lowest
        if self.kind == HALVES:
            return np.where(values == 0, 0, 1 + (values >> 8))
        return np.sign(values) * _bucket(np.abs(values)) + self.size // 2

    def raw_bits(self, values: IntArray, symbols: IntArray) -> bytes:
        """What the symbols leave open, those of few bits first."""
        widths, parts = self.widths[symbols], []
        for width in _widths_of(self.widths):
            chosen = np.abs(values[widths == width]) & (1 << width) - 1
            parts.append(packed(chosen, width))
        return b"".join(parts)

    def raw_size(self, counts: IntArray) -> int:
        """Bytes of `raw_bits` where every symbol occurs so often."""
        of_width = (int(counts[self.widths == width].sum()) for width in _widths_of(self.widths))
        return sum(map(packed_size, of_width, _widths_of(self.widths)))

    def values(self, symbols: IntArray, raw: Reader) -> IntArray:
        """What symbols and raw bits stand for.

        Raises:
            Damaged: Raw bits are missing.
        """
        if self.kind == DIRECT:
            return symbols + self.lowest
        widths, rest = self.widths[symbols], np.zeros(len(symbols), np.int64)
        for width in _widths_of(self.widths):
            chosen = widths == width
            count = int(chosen.sum())
            rest[chosen] = unpacked(raw.raw(packed_size(count, width)), count, width)
        if self.kind == HALVES:
            return np.where(symbols == 0, 0, (symbols - 1 << 8) + rest)
        index = symbols - self.size // 2
        values: IntArray = np.sign(index) * (_bucket_of_index(np.abs(index))[0] + rest)
        return values


HALF = Alphabet(HALVES, 0, 257)


def _widths_of(widths: IntArray) -> list[int]:
    return [int(width) for width in np.unique(widths) if width]


def _bucket(magnitude: IntArray) -> IntArray:
    power = np.frexp(np.maximum(magnitude, _EXACT).astype(np.float64))[1].astype(np.int64) - 1
    shared = 4 + 2 * (power - 2) + (magnitude >> np.maximum(power - 1, 0) & 1)
    return np.where(magnitude < _EXACT, magnitude, shared)


def _bucket_of_index(index: IntArray) -> tuple[IntArray, IntArray]:
    """Smallest magnitude of a bucket, and its raw bits."""
    power, upper = 2 + (np.maximum(index, _EXACT) - 4) // 2, index % 2
    low = np.where(index < _EXACT, index, (2 + upper) << power - 1)
    return low, np.where(index < _EXACT, 0, power - 1)
