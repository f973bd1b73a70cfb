"""In which form every tensor between layers is, and what it is converted to.

An 8-bit layer beside a float one brings conversions, and may not be computed in integers at all.
All of it follows from the bits of the layers around a tensor, by what the export rounds
(`amc.quantplan.rounding`), by which layouts a runtime has, and by what runtimes of such files do:

1. A convolution with quantized weights and inputs is computed in integers if its output bears
   rounding; otherwise its weights and inputs are dequantized whenever it runs, and it is slower
   than in float. A quantized linear layer is always computed in integers, and gives floats.
2. A tensor has one of four forms: floats, plain or in blocks of channels (as float convolutions
   give them), or 8-bit counts, plain or with channels last (as integer convolutions give them),
   where the runtime converts to and from these. A join keeps blocks (channels last) if all of its
   operands have them; else all are made plain.

A walk changes the bits of one layer at a time, and what follows from that is little: `Forms.after`
finds it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from heapq import heappop, heappush
from typing import NamedTuple

from amc.graph.graph import NetworkGraph
from amc.quantplan.conversions import (
    BLOCK_CONVERSIONS,
    CONVERSIONS,
    TRANSPOSE,
    is_integer,
    reads_counts,
)
from amc.quantplan.remember import Remembered
from amc.quantplan.rounding import JOINS, PASSED, Rounding
from amc.strategy import FLOAT, FLOAT_BITS, Bits

PLAIN, BLOCKED, COUNTS, CHANNELS_LAST = range(4)  # forms; the last two are integers
# Layers that give floats whatever they read, and those that know no blocks of channels.
_GIVING_FLOATS = ("linear", "conv_transpose2d", "conv_transpose1d")
_WITHOUT_BLOCKS = (*_GIVING_FLOATS, "conv1d")
_KEEPING_BLOCKS = ("maximum", "rectified", "mean")  # of what is passed on
_IN_FLOATS, _AS_ITS_SOURCE, _IN_INTEGERS = range(3)  # how it is passed on


class _Reading(NamedTuple):
    """What the readers of a tensor ask for."""

    floats: int  # readers of plain floats
    convolutions: int  # float convolutions, depthwise ones aside
    depthwise: int  # and those
    dequantized: int  # readers of rounded values as floats
    counts: bool  # whether anyone reads plain counts
    last: bool  # whether anyone reads counts with channels last


class Forms:
    """The forms of all tensors of a network, by the bit pair of every layer.

    Attributes:
        rounding: What is rounded.
    """

    def __init__(
        self, graph: NetworkGraph, pairs: Sequence[Bits], converts: Collection[str] = CONVERSIONS
    ) -> None:
        """
        Args:
            pairs: The bit pairs that layers may have; forms are asked for by index of pair.
            converts: The conversions that the runtime has. Without those of blocks its float
                convolutions give plain floats, without `TRANSPOSE` its integer ones plain counts.
        """
        self._of_floats = BLOCKED if BLOCK_CONVERSIONS & set(converts) else PLAIN
        self._of_integers = CHANNELS_LAST if TRANSPOSE in converts else COUNTS
        self._rescales = "dequantize" not in converts
        self._integer = [is_integer(bits) for bits in pairs]
        self.rounding = Rounding(graph.tensors, list(map(reads_counts, pairs)), self._integer)
        self._tensors, self._readers = graph.tensors, self.rounding.readers
        self._depthwise = [layer.signature.is_depthwise for layer in graph.layers]
        self._linear = [layer.signature.op == "linear" for layer in graph.layers]
        self._gives_floats = [layer.signature.op in _GIVING_FLOATS for layer in graph.layers]
        self._plain = [layer.signature.op in _WITHOUT_BLOCKS for layer in graph.layers]
        self._quantizes = [bits.activation != FLOAT_BITS for bits in pairs]
        self._float = [bits == FLOAT for bits in pairs]
        self._by_bits: list[Remembered | None] = []  # what follows from bits alone
        self._touched: list[list[int]] = [[] for _ in graph.layers]
        for index in range(len(self._tensors)):
            self._by_bits.append(self._remembered(index))

    def _remembered(self, index: int) -> Remembered | None:
        tensor, rounding = self._tensors[index], self.rounding
        if tensor.kind == "layer":
            on = {tensor.layer} | rounding.needs(index)
            found = Remembered(partial(self._layer_form, index), on)
        elif tensor.kind in PASSED:
            on = rounding.passing_depends(index)
            found = Remembered(partial(self._passing, index), on)
        elif tensor.kind in JOINS:
            on = rounding.join_depends[index]
            found = rounding.is_integer_join[index]
        else:
            return None
        for layer in on:
            self._touched[layer].append(index)
        return found

    # -- forms ---------------------------------------------------------------------------------

    def all(self, pairs: Sequence[int]) -> list[int]:
        """The form of every tensor, when layer l has bit pair ``pairs[l]``."""
        forms = [PLAIN] * len(self._tensors)
        for index in range(len(self._tensors)):
            forms[index] = self._form(index, pairs, forms)
        return forms

    def after(
        self, layer: int, pairs: Sequence[int], forms: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """The forms once a layer's bits have changed to ``pairs[layer]``, and whose are others."""
        now, others = list(forms), []
        left = self._touched[layer].copy()  # ascending, and so a heap
        while left:
            index = heappop(left)
            form = self._form(index, pairs, now)
            if form == now[index]:
                continue
            now[index] = form
            others.append(index)
            for reader in self._readers[index]:
                if self._tensors[reader].kind != "layer" and reader not in left:
                    heappush(left, reader)
        return now, others

    def _form(self, index: int, pairs: Sequence[int], forms: Sequence[int]) -> int:
        by_bits = self._by_bits[index]
        if by_bits is None:
            return PLAIN
        tensor, known = self._tensors[index], by_bits(pairs)
        if tensor.kind == "layer":
            return known
        source = forms[tensor.sources[0]]
        if tensor.kind in PASSED:
            if known == _IN_INTEGERS or (known == _AS_ITS_SOURCE and source >= COUNTS):
                return max(source, COUNTS)
            return BLOCKED if source == BLOCKED and tensor.kind in _KEEPING_BLOCKS else PLAIN
        kept, plain = (self._of_integers, COUNTS) if known else (self._of_floats, PLAIN)
        return kept if all(forms[other] == kept for other in tensor.sources) else plain

    def _layer_form(self, index: int, pairs: Sequence[int]) -> int:
        layer = self._tensors[index].layer
        if self._gives_floats[layer]:
            return PLAIN
        if self._float[pairs[layer]]:
            return PLAIN if self._plain[layer] else self._of_floats
        in_integers = self._integer[pairs[layer]] and self.rounding.bears(index, pairs)
        return self._of_integers if in_integers else PLAIN

    def _passing(self, index: int, pairs: Sequence[int]) -> int:
        if not self.rounding.passes(index, pairs):
            return _IN_FLOATS
        joined = self.rounding.is_operand(self._tensors[index].sources[0], pairs)
        return _IN_INTEGERS if joined else _AS_ITS_SOURCE

    # -- conversions ---------------------------------------------------------------------------

    def beside(self, index: int) -> set[int]:
        """The tensors on whose forms a tensor's conversions depend; and whose depend on its."""
        readers = self._readers[index]
        others = {source for reader in readers for source in self._tensors[reader].sources}
        return {index, *readers, *others}

    def conversions(
        self, index: int, pairs: Sequence[int], forms: Sequence[int]
    ) -> tuple[int, ...]:
        """How often a tensor is converted in each way of `amc.quantplan.conversions.CONVERSIONS`.

        Depends on the forms of the tensors `beside` it, and on the bits of the layers that read it.
        """
        read, form = self._reading(index, pairs, forms), forms[index]
        if form < COUNTS:
            quantized = read.counts or read.last or read.dequantized > 0
            plain = quantized or read.floats > 0
            blocks = read.convolutions + read.depthwise > 0
            return (
                int(form == BLOCKED and plain),
                int(form == BLOCKED and not plain and read.convolutions > 0),
                int(form == PLAIN and blocks),
                int(quantized),
                read.dequantized,
                int(read.last),
                0,
            )
        is_last, floats = form == CHANNELS_LAST, read.dequantized + read.floats
        turned = (read.counts or floats > 0) if is_last else read.last
        again = int(is_last and self._meets_counts(index, forms))
        rescaled = read.floats if self._rescales else 0
        return (0, 0, 0, again, floats + again, int(turned), rescaled)

    def _reading(self, index: int, pairs: Sequence[int], forms: Sequence[int]) -> _Reading:
        floats, convolutions, depthwise, rounded = int(self._tensors[index].is_output), 0, 0, 0
        counts = last = False
        for reader in self._readers[index]:
            tensor, given = self._tensors[reader], forms[reader]
            if tensor.kind != "layer":
                floats += given == PLAIN
                counts = counts or given == COUNTS
                continue
            pair, is_linear = pairs[tensor.layer], self._linear[tensor.layer]
            if self._quantizes[pair]:
                in_integers = given >= COUNTS or (is_linear and self._integer[pair])
                last = last or given == CHANNELS_LAST
                counts = counts or (in_integers and given != CHANNELS_LAST)
                rounded += not in_integers
            elif self._plain[tensor.layer] or not self._float[pair]:
                floats += 1
            elif self._depthwise[tensor.layer]:
                depthwise += 1
            else:
                convolutions += 1
        return _Reading(floats, convolutions, depthwise, rounded, counts, last)

    def _meets_counts(self, index: int, forms: Sequence[int]) -> bool:
        """Whether a float addition meets plain counts beside it: then the runtime rounds again."""
        return any(
            self._tensors[reader].kind == "add"
            and forms[reader] == PLAIN
            and any(forms[other] == COUNTS for other in self._tensors[reader].sources)
            for reader in self._readers[index]
        )
