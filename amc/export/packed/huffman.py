"""Canonical Huffman codes (Huffman 1952), as Deep Compression (Han et al. 2015) stores networks.

Codes of one length ascend with their symbols, and go on from those of shorter lengths: so lengths
are all that a file needs. 4 symbols of lengths 1, 2, 3, 3 have the codes 0, 10, 110, 111.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from amc.export.packed.bits import Damaged, IntArray

LONGEST = 15  # bits of a code


def code_lengths(counts: IntArray) -> IntArray:
    """Bits of every symbol's code, by how often it occurs; 0 where it does not."""
    counts = counts.copy()
    while True:
        lengths = _lengths(counts)
        if lengths.max() <= LONGEST:
            return lengths
        counts = np.where(counts > 0, counts // 2 + 1, 0)  # nearer to each other, less deep


def _lengths(counts: IntArray) -> IntArray:
    lengths = np.zeros(len(counts), np.int64)
    present = np.flatnonzero(counts)
    if len(present) == 1:
        lengths[present] = 1
        return lengths
    heap = [(int(counts[symbol]), int(symbol), [int(symbol)]) for symbol in present]
    heapq.heapify(heap)
    while len(heap) > 1:
        one, other = heapq.heappop(heap), heapq.heappop(heap)
        members = one[2] + other[2]
        lengths[members] += 1
        heapq.heappush(heap, (one[0] + other[0], min(one[1], other[1]), members))
    return lengths


def _codes(lengths: IntArray) -> IntArray:
    """The code of every symbol, in the low bits."""
    order = np.lexsort((np.arange(len(lengths)), lengths))
    codes, code, before = np.zeros(len(lengths), np.int64), 0, 0
    for symbol in order[lengths[order] > 0].tolist():
        length = int(lengths[symbol])
        code <<= length - before
        codes[symbol], before = code, length
        code += 1
    return codes


def encoded(symbols: IntArray, lengths: IntArray) -> bytes:
    """The codes of symbols, one after the other; the last byte is filled with 0."""
    if not len(symbols):
        return b""
    codes, widths = _codes(lengths)[symbols], lengths[symbols]
    ends = np.cumsum(widths)
    bits = np.zeros(int(ends[-1]), np.uint8)
    for place in range(int(widths.max())):  # from the last bit of every code
        chosen = widths > place
        bits[ends[chosen] - 1 - place] = codes[chosen] >> place & 1
    return np.packbits(bits).tobytes()


def encoded_size(counts: IntArray, lengths: IntArray) -> int:
    """Bytes of `encoded`, of symbols that occur so often."""
    return (int((counts * lengths).sum()) + 7) // 8


def decoded(content: bytes, count: int, lengths: IntArray) -> IntArray:
    """The first symbols of what `encoded` gave.

    Raises:
        Damaged: The lengths are of no code, or the bytes of no such symbols.
    """
    table, widths = _table(lengths)
    bits = np.unpackbits(np.frombuffer(content, np.uint8)).astype(np.int64)
    if len(bits) < count:  # every code has a bit
        raise Damaged("is cut off in Huffman codes")
    padded = np.concatenate([bits, np.zeros(LONGEST, np.int64)])
    window = np.zeros(len(bits), np.int64)
    for place in range(LONGEST):
        window = window << 1 | padded[place : place + len(bits)]
    places = _chain(widths[window].tolist(), count)
    symbols: IntArray = table[window[places]]
    if (symbols < 0).any():
        raise Damaged("is damaged in Huffman codes")
    return symbols


def _chain(steps: Sequence[int], count: int) -> list[int]:
    """Where codes begin: each as far behind the one before as that is long."""
    places, at, end = [], 0, len(steps)
    for _ in range(count):
        if at >= end:
            raise Damaged("is cut off in Huffman codes")
        places.append(at)
        at += steps[at]
    if at > end or end - at >= 8:
        raise Damaged("is damaged in Huffman codes")
    return places


def _table(lengths: IntArray) -> tuple[IntArray, IntArray]:
    """Symbol and length of the code that begins each of 2^15 windows; -1, and 1, where none does.

    Raises:
        Damaged: There are more codes than fit.
    """
    used = lengths[lengths > 0]
    if not len(used) or used.max() > LONGEST or (1 << LONGEST - used).sum() > 1 << LONGEST:
        raise Damaged("has lengths that no Huffman code has")
    table, widths = np.full(1 << LONGEST, -1, np.int64), np.ones(1 << LONGEST, np.int64)
    first = _codes(lengths) << LONGEST - lengths
    for symbol in np.flatnonzero(lengths).tolist():
        begin = int(first[symbol])
        end = begin + (1 << LONGEST - int(lengths[symbol]))
        table[begin:end], widths[begin:end] = symbol, lengths[symbol]
    return table, widths
