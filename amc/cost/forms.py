"""In which form every tensor between layers is, and what it is converted to.

An 8-bit layer beside a float one brings conversions, and may not be computed in integers at all.
All of it follows from the bits of the layers around a tensor, by the rules of the export
(`amc.export.integers`) and of ONNX Runtime on a CPU:

1. A tensor *bears rounding* if 8-bit layers and joins alone read it, be it through copies or means.
2. A convolution with quantized weights and inputs is computed in integers if its output bears
   rounding; otherwise its weights and inputs are dequantized whenever it runs, and it is slower
   than in float. A quantized linear layer is always computed in integers, and gives floats.
3. A join is computed in integers if its result bears rounding and of its operands and its result
   more are in integers anyway than are not.
4. A tensor has one of four forms: floats, plain or in blocks of channels (as float convolutions
   give them), or 8-bit counts, plain or channels last (as integer convolutions give them). A join
   keeps blocks (channels last) if all of its operands have them; else all are made plain.

A walk changes the bits of one layer at a time, and what depends on them is little: `Forms.touched`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from amc.graph.graph import NetworkGraph
from amc.graph.types import TensorInfo
from amc.strategy import FLOAT, FLOAT_BITS, Bits

PLAIN, BLOCKED, COUNTS, CHANNELS_LAST = range(4)  # forms; the last two are integers


class _Reading(NamedTuple):
    """What the readers of a tensor ask for."""

    floats: int  # readers of plain floats
    convolutions: int  # float convolutions, depthwise ones aside
    depthwise: int  # and those
    dequantized: int  # readers of rounded values as floats
    counts: bool  # whether anyone reads plain counts
    last: bool  # whether anyone reads counts with channels last


class Forms:
    """The forms of all tensors of a network, as functions of the bit pair of every layer.

    Attributes:
        touched: For every layer, the tensors whose form may change with its bits, ascending.
        concerned: For every layer, the tensors whose conversions may change with its bits.
    """

    def __init__(self, graph: NetworkGraph, pairs: Sequence[Bits]) -> None:
        """
        Args:
            pairs: The bit pairs that layers may have; forms are asked for by index of pair.
        """
        self._tensors = graph.tensors
        self._depthwise = [layer.signature.is_depthwise for layer in graph.layers]
        self._linear = [layer.signature.op == "linear" for layer in graph.layers]
        self._rounds = [bits.activation == 8 for bits in pairs]  # reads a rounded tensor
        self._quantizes = [bits.activation != FLOAT_BITS for bits in pairs]
        self._integer = [FLOAT_BITS not in bits for bits in pairs]
        self._float = [bits == FLOAT for bits in pairs]
        self._readers: list[list[int]] = [[] for _ in self._tensors]
        for index, tensor in enumerate(self._tensors):
            for source in tensor.sources:
                self._readers[source].append(index)
        # Layers that read a tensor itself, and what must be 8-bit for it to bear rounding.
        self._direct = [self._layers_of(readers) for readers in self._readers]
        self._needs: list[tuple[int, ...] | None] = [None] * len(self._tensors)
        for index in reversed(range(len(self._tensors))):
            self._needs[index] = self._find_needs(index)
        self._origins = [self._find_origins(index) for index in range(len(self._tensors))]
        self._joins = [i for i, t in enumerate(self._tensors) if t.kind in ("add", "concat")]
        self._clusters = self._find_clusters()
        self._find_dependencies(len(graph.layers))

    # -- what is known once --------------------------------------------------------------------

    def _layers_of(self, tensors: Sequence[int]) -> tuple[int, ...]:
        return tuple(self._tensors[i].layer for i in tensors if self._tensors[i].kind == "layer")

    def _find_needs(self, index: int) -> tuple[int, ...] | None:
        """Layers that must round what they read for a tensor to bear rounding; None: never."""
        readers = self._readers[index]
        if not readers or self._tensors[index].is_output:
            return None
        found: list[int] = []
        for reader in readers:
            tensor = self._tensors[reader]
            if tensor.kind == "layer":
                found.append(tensor.layer)
            elif tensor.kind in ("concat", "copy", "mean"):
                behind = self._needs[reader]
                if behind is None:
                    return None
                found += behind
            elif tensor.kind != "add":
                return None
        return tuple(dict.fromkeys(found))

    def _find_origins(self, index: int) -> tuple[int, ...]:
        """A tensor and those that it is a copy of, back to what was computed."""
        found = [index]
        while self._tensors[found[-1]].kind == "copy":
            found += self._tensors[found[-1]].sources[:1]
        return tuple(found)

    def _find_clusters(self) -> dict[int, tuple[int, ...]]:
        """Join -> the joins, itself among them, on whose being in integers its own may depend.

        Where a layer reads what passes between two joins directly, it alone decides.
        """
        cluster = {join: {join} for join in self._joins}
        for join in self._joins:
            for operand in self._tensors[join].sources:
                for origin in self._origins[operand]:
                    if origin in cluster and not self._direct[origin]:
                        both = cluster[join] | cluster[origin]
                        for member in both:
                            cluster[member] = both
        return {join: tuple(sorted(members)) for join, members in cluster.items()}

    def _find_dependencies(self, layers: int) -> None:
        on = [set[int]() for _ in self._tensors]  # layers on whose bits a tensor's form depends
        joined = {join: self._join_depends(members) for join, members in self._clusters.items()}
        for index, tensor in enumerate(self._tensors):
            if tensor.kind == "layer":
                on[index] = {tensor.layer, *(self._needs[index] or ())}
            elif tensor.kind in ("add", "concat", "copy", "mean"):
                on[index] = set().union(*(on[source] for source in tensor.sources))
                on[index] |= joined.get(index, set()) | set(self._needs[index] or ())
                for reader in self._beyond(index):
                    on[index] |= joined.get(reader, set())
        self.touched = [
            tuple(i for i, depends in enumerate(on) if layer in depends) for layer in range(layers)
        ]
        around = [
            depends.union(*(on[reader] for reader in readers))
            for depends, readers in zip(on, self._readers, strict=True)
        ]
        self.concerned = [
            frozenset(i for i, depends in enumerate(around) if layer in depends)
            for layer in range(layers)
        ]

    def _join_depends(self, members: Sequence[int]) -> set[int]:
        found = set[int]()
        for join in members:
            found |= {*(self._needs[join] or ()), *self._direct[join]}
            for operand in self._tensors[join].sources:
                for origin in self._origins[operand]:
                    found |= {*self._direct[origin], *(self._needs[origin] or ())}
                    found |= set(self._layers_of([origin]))
        return found

    def _beyond(self, index: int) -> list[int]:
        """Joins that read what a tensor, or one of its sources, is passed on as."""
        found, left = list[int](), [index, *self._tensors[index].sources]
        while left:
            for reader in self._readers[left.pop()]:
                if self._tensors[reader].kind in ("add", "concat"):
                    found.append(reader)
                elif self._tensors[reader].kind in ("copy", "mean"):
                    left.append(reader)
        return found

    # -- the forms -----------------------------------------------------------------------------

    def all(self, pairs: Sequence[int]) -> list[int]:
        """The form of every tensor, when layer l has bit pair ``pairs[l]``."""
        forms = [PLAIN] * len(self._tensors)
        for index in range(len(self._tensors)):
            forms[index] = self._form(index, pairs, forms)
        return forms

    def after(self, layer: int, pairs: Sequence[int], forms: Sequence[int]) -> list[int]:
        """The forms once a layer's bits have changed to ``pairs[layer]``."""
        changed = list(forms)
        for index in self.touched[layer]:
            changed[index] = self._form(index, pairs, changed)
        return changed

    def _form(self, index: int, pairs: Sequence[int], forms: Sequence[int]) -> int:
        tensor = self._tensors[index]
        if tensor.kind == "layer":
            pair = pairs[tensor.layer]
            if self._linear[tensor.layer]:
                return PLAIN
            if self._float[pair]:
                return BLOCKED
            return CHANNELS_LAST if self._integer[pair] and self._bears(index, pairs) else PLAIN
        sources = [forms[source] for source in tensor.sources]
        if tensor.kind in ("add", "concat"):
            if self._is_integer_join(index, pairs):
                return CHANNELS_LAST if min(sources) == CHANNELS_LAST else COUNTS
            return BLOCKED if min(sources) == max(sources) == BLOCKED else PLAIN
        if tensor.kind in ("copy", "mean"):
            return self._passed(index, tensor, sources[0], pairs)
        return PLAIN

    def _passed(self, index: int, tensor: TensorInfo, source: int, pairs: Sequence[int]) -> int:
        """The form of a copy or a mean."""
        is_pool = "pool" in "".join(tensor.operators) or tensor.kind == "mean"
        rounded = source >= COUNTS or any(
            self._is_integer_join(reader, pairs)
            for reader in self._readers[tensor.sources[0]]
            if reader in self._clusters
        )
        if rounded and self._bears(index, pairs) and self._is_wanted(index, pairs):
            return max(source, COUNTS)
        return BLOCKED if is_pool and source == BLOCKED else PLAIN

    def _bears(self, index: int, pairs: Sequence[int]) -> bool:
        needs = self._needs[index]
        return needs is not None and all(self._rounds[pairs[layer]] for layer in needs)

    # -- joins ---------------------------------------------------------------------------------

    def integer_joins(self, pairs: Sequence[int]) -> list[int]:
        """The tensors that joins give in integers."""
        return [join for join in self._joins if self._is_integer_join(join, pairs)]

    def _is_integer_join(self, join: int, pairs: Sequence[int]) -> bool:
        """Whether it is among the most joins of its cluster that justify each other."""
        joins = {member for member in self._clusters[join] if self._bears(member, pairs)}
        while join in joins:
            kept = {member for member in joins if self._saves(member, joins, pairs)}
            if kept == joins:
                return True
            joins = kept
        return False

    def _saves(self, join: int, joins: set[int], pairs: Sequence[int]) -> bool:
        """Whether of a join's operands and its result more are in integers anyway than not."""
        sources = self._tensors[join].sources
        ends = sum(self._is_integer_anyway(operand, joins, pairs) for operand in sources)
        ends += self._is_wanted(join, pairs, joins)
        return 2 * ends > len(sources) + 1

    def _is_integer_anyway(self, operand: int, joins: set[int], pairs: Sequence[int]) -> bool:
        for origin in self._origins[operand]:
            if any(self._rounds[pairs[layer]] for layer in self._direct[origin]):
                return True
            layer = self._tensors[origin].layer
            given = origin in joins or (layer >= 0 and self._integer[pairs[layer]])
            if given and self._bears(origin, pairs):
                return True
        return False

    def _is_wanted(self, index: int, pairs: Sequence[int], joins: set[int] | None = None) -> bool:
        """Whether an 8-bit layer or an integer join reads a tensor, be it through copies."""
        if any(self._rounds[pairs[layer]] for layer in self._direct[index]):
            return True
        for reader in self._readers[index]:
            kind = self._tensors[reader].kind
            if kind in ("copy", "mean"):
                if self._is_wanted(reader, pairs, joins):
                    return True
            elif kind in ("add", "concat") and (
                reader in joins if joins is not None else self._is_integer_join(reader, pairs)
            ):
                return True
        return False

    # -- conversions ---------------------------------------------------------------------------

    def conversions(
        self, index: int, pairs: Sequence[int], forms: Sequence[int]
    ) -> tuple[int, ...]:
        """How often a tensor is converted in each way of `amc.cost.conversions.CONVERSIONS`."""
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
            )
        is_last = form == CHANNELS_LAST
        floats = read.dequantized + read.floats
        turned = (read.counts or floats > 0) if is_last else read.last
        again = is_last and self._meets_counts(index, forms)
        return (0, 0, 0, int(again), floats + int(again), int(turned))

    def _reading(self, index: int, pairs: Sequence[int], forms: Sequence[int]) -> _Reading:
        floats, convolutions, depthwise, rounded = int(self._tensors[index].is_output), 0, 0, 0
        counts = last = False
        for reader in self._readers[index]:
            tensor, given = self._tensors[reader], forms[reader]
            if tensor.kind == "layer":
                pair, is_linear = pairs[tensor.layer], self._linear[tensor.layer]
                if self._quantizes[pair]:
                    last = last or given == CHANNELS_LAST
                    counts = counts or (is_linear and self._integer[pair])
                    rounded += given != CHANNELS_LAST and not (is_linear and self._integer[pair])
                elif is_linear or not self._float[pair]:
                    floats += 1
                elif self._depthwise[tensor.layer]:
                    depthwise += 1
                else:
                    convolutions += 1
            else:
                floats += given == PLAIN
                counts = counts or given == COUNTS
        return _Reading(floats, convolutions, depthwise, rounded, counts, last)

    def _meets_counts(self, index: int, forms: Sequence[int]) -> bool:
        """Whether a float addition meets plain counts beside it: then the runtime rounds again."""
        return any(
            self._tensors[reader].kind == "add"
            and forms[reader] == PLAIN
            and any(forms[other] == COUNTS for other in self._tensors[reader].sources)
            for reader in self._readers[index]
        )
