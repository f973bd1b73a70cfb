"""Tensors of integers as bytes: the smallest of what the coders make of them.

========= ==========================================================================================
coder     bytes
========= ==========================================================================================
`SAME`    none: there is one symbol alone
`PLAIN`   one Huffman code of all values
`GAPS`    two: how far it is from one value that is not 0 to the next (Han et al. 2015, figure 2),
          and which it is
`RANGE`   a range coder's, by tables of frequencies that the surroundings choose between
          (`amc.export.packed.contexts`)
========= ==========================================================================================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from amc.export.packed import frequencies, huffman
from amc.export.packed.alphabet import HALF, MOST_DIRECT, Alphabet
from amc.export.packed.bits import Damaged, IntArray, Reader, Writer
from amc.export.packed.contexts import (
    MOST_MAGNITUDES,
    MOST_SIGNS,
    UNIT,
    Contexts,
    Grid,
    Surroundings,
    coarser,
    fitted,
)

SAME, PLAIN, GAPS, RANGE = range(4)
CODERS = ("range", "huffman")
LARGEST = 2**17  # magnitude
_LONGEST_GAP = 31  # a longer one has fillers in between, which are 0
_CONTEXTS = ((1, 0), (2, 0), (4, 0), (8, 0), (2, 1), (4, 1), (4, 2), (8, 2), (8, 4))
_FEWEST = 256  # values that contexts are worth trying for
_FRAME = 6  # bytes of a range code beyond what its symbols say: lengths, its last word


@dataclass(frozen=True)
class Coded:
    """A tensor of integers in a file.

    Attributes:
        content: The bytes.
        tables: Of these, what describes the codes and not the values.
    """

    content: bytes
    tables: int

    @property
    def needs_library(self) -> bool:
        """Whether reading it needs the range coder's package."""
        return self.content[0] == RANGE


def encoded(values: IntArray, *, halves: bool = False, coder: str = "range") -> Coded:
    """The smallest bytes for integers below `LARGEST`, in the shape of their tensor.

    Args:
        halves: Whether they are the bits of 16-bit floats.
        coder: `CODERS`; "range" is both.
    """
    found = list(_tried(values, halves, coder))
    best = min(range(len(found)), key=lambda place: found[place].size)
    return found[best].written()


def size_of(values: IntArray, *, halves: bool = False, coder: str = "range") -> tuple[int, int]:
    """Bytes of `encoded` and of its tables, without coding; of range codes within a few bytes."""
    best = min(_tried(values, halves, coder), key=lambda found: found.size)
    return best.size, best.tables


def decoded(reader: Reader, shape: Sequence[int]) -> IntArray:
    """What `encoded` was given, flat.

    Raises:
        Damaged: The bytes are none of such a tensor.
        ConfigError: A range coder's package is missing.
    """
    coder = reader.byte()
    alphabet = Alphabet.read(reader)
    count = math.prod(shape)
    read = {SAME: _read_same, PLAIN: _read_plain, GAPS: _read_gaps, RANGE: _read_range}
    if coder not in read:
        raise Damaged(f"has a coder {coder}, which this amc does not know")
    symbols = read[coder](reader, alphabet, shape, count)
    return alphabet.values(symbols, reader)


# -- what is tried -------------------------------------------------------------------------


class _Try(ABC):
    """A way to write a tensor.

    Attributes:
        tables: Bytes that describe its codes.
        size: All bytes.
    """

    tables: int
    size: int

    @abstractmethod
    def written(self) -> Coded:
        """The bytes."""


def _tried(values: IntArray, halves: bool, coder: str) -> Iterator[_Try]:
    flat = values.reshape(-1)
    spread = int(flat.max() - flat.min())
    alphabets = [HALF] if halves else [Alphabet.buckets(flat)]
    if not halves and 2 * spread < MOST_DIRECT - 1:
        alphabets.insert(0, Alphabet.direct(flat))
    with_range = coder == "range" and frequencies.library() is not None
    for alphabet in alphabets:
        symbols = alphabet.symbols(flat)
        counts = np.bincount(symbols, minlength=alphabet.size)
        if (counts > 0).sum() == 1:
            yield _Same(alphabet, flat, int(symbols[0]), counts)
            continue
        yield _Plain(alphabet, flat, symbols, counts)
        if alphabet.zero >= 0 and 2 * counts[alphabet.zero] > len(flat):
            yield _Gaps(alphabet, flat, symbols, counts)
        if with_range:
            yield from _ranges(alphabet, flat, symbols, counts, values.shape)


def _head(coder: int, alphabet: Alphabet) -> Writer:
    writer = Writer()
    writer.byte(coder)
    alphabet.write(writer)
    return writer


class _Same(_Try):
    def __init__(self, alphabet: Alphabet, flat: IntArray, symbol: int, counts: IntArray) -> None:
        self._alphabet, self._flat, self._symbol = alphabet, flat, symbol
        self.tables = len(_head(SAME, alphabet)) + 2
        self.size = self.tables + alphabet.raw_size(counts)

    def written(self) -> Coded:
        writer = _head(SAME, self._alphabet)
        writer.whole(self._symbol)
        tables = len(writer)
        symbols = np.full(len(self._flat), self._symbol)
        writer.raw(self._alphabet.raw_bits(self._flat, symbols))
        return Coded(writer.done(), tables)


def _read_same(reader: Reader, alphabet: Alphabet, shape: Sequence[int], count: int) -> IntArray:
    symbol = reader.whole()
    if symbol >= alphabet.size:
        raise Damaged("has a symbol that its alphabet has not")
    return np.full(count, symbol)


class _Plain(_Try):
    def __init__(
        self, alphabet: Alphabet, flat: IntArray, symbols: IntArray, counts: IntArray
    ) -> None:
        self._alphabet, self._flat, self._symbols = alphabet, flat, symbols
        self._lengths = huffman.code_lengths(counts)
        self.tables = len(_head(PLAIN, alphabet)) + frequencies.levels_size(self._lengths[None])
        codes = huffman.encoded_size(counts, self._lengths)
        self.size = self.tables + 3 + codes + alphabet.raw_size(counts)

    def written(self) -> Coded:
        writer = _head(PLAIN, self._alphabet)
        frequencies.write_levels(writer, self._lengths[None])
        tables = len(writer)
        writer.block(huffman.encoded(self._symbols, self._lengths))
        writer.raw(self._alphabet.raw_bits(self._flat, self._symbols))
        return Coded(writer.done(), tables)


def _read_plain(reader: Reader, alphabet: Alphabet, shape: Sequence[int], count: int) -> IntArray:
    return _read_huffman(reader, alphabet.size, count)


def _read_huffman(reader: Reader, size: int, count: int) -> IntArray:
    lengths = frequencies.read_levels(reader, 1, size, huffman.LONGEST)[0]
    return huffman.decoded(reader.block(), count, lengths)


class _Gaps(_Try):
    def __init__(
        self, alphabet: Alphabet, flat: IntArray, symbols: IntArray, counts: IntArray
    ) -> None:
        self._alphabet, self._flat, self._symbols = alphabet, flat, symbols
        self._gaps, self._kept = _gaps(symbols, alphabet.zero)
        gap_counts = np.bincount(self._gaps, minlength=_LONGEST_GAP + 1)
        kept_counts = np.bincount(self._kept, minlength=alphabet.size)
        self._lengths = huffman.code_lengths(gap_counts), huffman.code_lengths(kept_counts)
        tables = sum(frequencies.levels_size(lengths[None]) for lengths in self._lengths)
        self.tables = len(_head(GAPS, alphabet)) + tables
        codes = huffman.encoded_size(gap_counts, self._lengths[0])
        codes += huffman.encoded_size(kept_counts, self._lengths[1])
        self.size = self.tables + 9 + codes + alphabet.raw_size(counts)

    def written(self) -> Coded:
        writer = _head(GAPS, self._alphabet)
        writer.whole(len(self._kept))
        codes = 0
        for symbols, lengths in zip((self._gaps, self._kept), self._lengths, strict=True):
            frequencies.write_levels(writer, lengths[None])
            content = huffman.encoded(symbols, lengths)
            writer.block(content)
            codes += len(content)
        tables = len(writer) - codes
        writer.raw(self._alphabet.raw_bits(self._flat, self._symbols))
        return Coded(writer.done(), tables)


def _gaps(symbols: IntArray, zero: int) -> tuple[IntArray, IntArray]:
    """Zeros before each symbol that is kept, and these; some are 0 where a gap is too long."""
    places = np.flatnonzero(symbols != zero)
    gaps = np.diff(places, prepend=-1) - 1
    fillers = gaps // (_LONGEST_GAP + 1)
    ends = np.cumsum(fillers + 1) - 1
    all_gaps = np.full(int((fillers + 1).sum()), _LONGEST_GAP, np.int64)
    kept = np.full(len(all_gaps), zero, np.int64)
    all_gaps[ends], kept[ends] = gaps % (_LONGEST_GAP + 1), symbols[places]
    return all_gaps, kept


def _read_gaps(reader: Reader, alphabet: Alphabet, shape: Sequence[int], count: int) -> IntArray:
    kept_count = reader.whole()
    if not 0 < kept_count <= count or alphabet.zero < 0:
        raise Damaged("keeps more values than there are")
    gaps = _read_huffman(reader, _LONGEST_GAP + 1, kept_count)
    kept = _read_huffman(reader, alphabet.size, kept_count)
    places = np.cumsum(gaps + 1) - 1
    if places[-1] >= count:
        raise Damaged("has a value beyond its tensor's end")
    symbols = np.full(count, alphabet.zero)
    symbols[places] = kept
    return symbols


# -- range codes ---------------------------------------------------------------------------


def _ranges(
    alphabet: Alphabet, flat: IntArray, symbols: IntArray, counts: IntArray, shape: Sequence[int]
) -> Iterator[_Try]:
    if len(flat) < _FEWEST:
        yield _Range(alphabet, flat, symbols, shape, None, None, counts[None])
        return
    seen = _Seen(alphabet, symbols, shape)
    for magnitudes, signs in _CONTEXTS:
        if signs and not alphabet.has_opposites:
            continue
        contexts = None if magnitudes == 1 else coarser(seen.contexts, magnitudes, signs)
        yield _Range(alphabet, flat, symbols, shape, contexts, seen, seen.counts(magnitudes, signs))


class _Seen:
    """A tensor's symbols in the order of reading, with their finest contexts.

    Attributes:
        contexts: The finest.
    """

    def __init__(self, alphabet: Alphabet, symbols: IntArray, shape: Sequence[int]) -> None:
        grid = Grid(shape)
        places, typical = grid.spread(symbols), alphabet.typical
        values = grid.spread(typical[symbols])
        start = int(np.abs(values).sum()) * UNIT // values.size
        around = Surroundings(grid, start)
        known: list[IntArray] = []
        signed: list[IntArray] = []
        ordered: list[IntArray] = []
        for part in grid.slices():
            for found, one in zip((known, signed), around.of(part), strict=True):
                found.append(one)
            here = _at(values, part)
            around.note(part, here)
            ordered.append(_at(places, part).reshape(-1))
        self._known, self._signed = np.concatenate(known), np.concatenate(signed)
        self._symbols, self._size = np.concatenate(ordered), alphabet.size
        self.contexts = fitted(self._known, self._signed, typical[self._symbols], start)
        self._finest: dict[bool, IntArray] = {}

    def counts(self, magnitudes: int, signs: int) -> IntArray:
        """How often every symbol occurs in every context, shape (contexts, symbols)."""
        is_signed = signs > 0
        if is_signed not in self._finest:
            self._finest[is_signed] = self._count(is_signed)
        finest = self._finest[is_signed].reshape(
            magnitudes, MOST_MAGNITUDES // magnitudes, max(signs, 1), -1, self._size
        )
        counts: IntArray = finest.sum((1, 3)).reshape(-1, self._size)
        return counts

    def _count(self, is_signed: bool) -> IntArray:
        signs = MOST_SIGNS if is_signed else 0
        contexts = coarser(self.contexts, MOST_MAGNITUDES, signs)
        chosen, opposite = contexts.choose(self._known, self._signed)
        symbols = np.where(opposite, self._size - 1 - self._symbols, self._symbols)
        counts = np.bincount(chosen * self._size + symbols, minlength=contexts.count * self._size)
        return counts.reshape(MOST_MAGNITUDES, -1, self._size)

    def ordered(self, contexts: Contexts) -> tuple[IntArray, IntArray]:
        """Every place's context, and its symbol or the opposite."""
        chosen, opposite = contexts.choose(self._known, self._signed)
        return chosen, np.where(opposite, self._size - 1 - self._symbols, self._symbols)


def _at(places: IntArray, part: tuple[int, int, int, int]) -> IntArray:
    first, last, place, columns = part
    found: IntArray = places[first:last, :columns, place]
    return found


class _Range(_Try):
    def __init__(
        self,
        alphabet: Alphabet,
        flat: IntArray,
        symbols: IntArray,
        shape: Sequence[int],
        contexts: Contexts | None,
        seen: _Seen | None,
        counts: IntArray,
    ) -> None:
        self._alphabet, self._flat, self._symbols, self._shape = alphabet, flat, symbols, shape
        self._contexts, self._seen = contexts, seen
        self._levels = frequencies.levels_of(counts)
        head = self._head()
        bits = frequencies.coded_bits(counts, self._levels)
        self.tables = len(head)
        raw = alphabet.raw_size(np.bincount(symbols, minlength=alphabet.size))
        self.size = len(head) + _FRAME + math.ceil(bits / 8) + raw

    def _head(self) -> Writer:
        writer = _head(RANGE, self._alphabet)
        writer.byte(self._contexts is not None)
        if self._contexts is not None:
            self._contexts.write(writer)
        frequencies.write_levels(writer, self._levels)
        return writer

    def written(self) -> Coded:
        writer = self._head()
        tables = len(writer)
        models = frequencies.models(self._levels)
        coder = frequencies.RangeWriter()
        if self._contexts is None:
            coder.add(self._symbols, models[0])
        else:
            assert self._seen is not None
            chosen, symbols = self._seen.ordered(self._contexts)
            first = 0
            for part in Grid(self._shape).slices():
                last = first + (part.last - part.first) * part.columns
                for context, model in enumerate(models):
                    coder.add(symbols[first:last][chosen[first:last] == context], model)
                first = last
        writer.block(coder.done())
        writer.raw(self._alphabet.raw_bits(self._flat, self._symbols))
        return Coded(writer.done(), tables)


def _read_range(reader: Reader, alphabet: Alphabet, shape: Sequence[int], count: int) -> IntArray:
    has_contexts = reader.byte()
    if has_contexts > 1 or alphabet.size < 2:
        raise Damaged("is damaged in range codes")
    contexts = Contexts.read(reader) if has_contexts else None
    tables = 1 if contexts is None else contexts.count
    levels = frequencies.read_levels(reader, tables, alphabet.size)
    models = frequencies.models(levels)
    coder = frequencies.RangeReader(reader.block())
    if contexts is None:
        return coder.next(count, models[0])
    if contexts.sign_factors and not alphabet.has_opposites:
        raise Damaged("predicts signs of symbols that have none")
    grid = Grid(shape)
    around = Surroundings(grid, contexts.start)
    places = np.zeros(grid.shape, np.int64)
    for part in grid.slices():
        chosen, opposite = contexts.choose(*around.of(part))
        symbols = np.zeros(len(chosen), np.int64)
        for context, model in enumerate(models):
            of_it = chosen == context
            symbols[of_it] = coder.next(int(of_it.sum()), model)
        symbols = np.where(opposite, alphabet.size - 1 - symbols, symbols)
        here = symbols.reshape(part.last - part.first, part.columns)
        _at(places, part)[...] = here
        around.note(part, alphabet.typical[here])
    return grid.gathered(places)
