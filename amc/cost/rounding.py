"""Which tensors between layers may be rounded to 8 bits, and which joins are computed in integers.

The rules of the export (`amc.export.integers`), on the traced graph:

1. A tensor *bears rounding* if 8-bit layers and joins alone read it, be it through copies or means.
2. A join is computed in integers if its result bears rounding and of its operands and its result
   more are in integers anyway than are not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from amc.cost.remember import Remembered
from amc.graph.types import TensorInfo
from amc.strategy import Bits

# Kinds of tensors.
JOINS = ("add", "concat")
_COPIES = ("copy", "maximum", "rectified")
PASSED = (*_COPIES, "mean")


class Rounding:
    """What is rounded between the layers of a network, by the bit pair of every layer.

    Attributes:
        tensors: Of the network.
        readers: For every tensor, those that are made of it.
        is_integer_join: For the tensor that a join gives: whether it is computed in integers, as a
            function of the index of every layer's bit pair.
        join_depends: For the same, the layers on whose bits that depends.
    """

    def __init__(self, tensors: Sequence[TensorInfo], pairs: Sequence[Bits]) -> None:
        """
        Args:
            pairs: The bit pairs that layers may have.
        """
        self.tensors = tensors
        self._rounds = [bits.reads_bytes for bits in pairs]  # reads a rounded tensor
        self._integer = [bits.rounds_both for bits in pairs]
        self.readers: list[list[int]] = [[] for _ in tensors]
        for index, tensor in enumerate(tensors):
            for source in tensor.sources:
                self.readers[source].append(index)
        # Layers that read a tensor itself, and what must be 8-bit for it to bear rounding.
        self.direct = [self._layers_of(readers) for readers in self.readers]
        self._needs: list[tuple[int, ...] | None] = [None] * len(tensors)
        for index in reversed(range(len(tensors))):
            self._needs[index] = self._find_needs(index)
        self._origins = [self._origins_of(index, _COPIES) for index in range(len(tensors))]
        self._clusters = self._find_clusters()
        self.join_depends = {join: self._join_layers(join) for join in self._clusters}
        self.is_integer_join = {
            join: Remembered(partial(self._find_integer_join, join), on)
            for join, on in self.join_depends.items()
        }

    # -- what is known once --------------------------------------------------------------------

    def _layers_of(self, tensors: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.tensors[i].layer for i in tensors if self.tensors[i].kind == "layer")

    def _find_needs(self, index: int) -> tuple[int, ...] | None:
        """Layers that must round what they read for a tensor to bear rounding; None: never."""
        readers = self.readers[index]
        if not readers or self.tensors[index].is_output:
            return None
        found = list(self.direct[index])
        for reader in readers:
            kind = self.tensors[reader].kind
            behind = self._needs[reader]
            if kind == "concat" or kind in PASSED:
                if behind is None:
                    return None
                found += behind
            elif kind not in ("layer", "add"):
                return None
        return tuple(dict.fromkeys(found))

    def _origins_of(self, index: int, kinds: Collection[str]) -> tuple[int, ...]:
        """A tensor and those that it is passed on from, back to what was computed."""
        found = [index]
        while self.tensors[found[-1]].kind in kinds:
            found += self.tensors[found[-1]].sources[:1]
        return tuple(found)

    def _find_clusters(self) -> dict[int, tuple[int, ...]]:
        """Join -> the joins, itself among them, on whose being in integers its own may depend.

        Where a layer reads what passes between two joins directly, it alone decides.
        """
        joins = [index for index, tensor in enumerate(self.tensors) if tensor.kind in JOINS]
        cluster = {join: {join} for join in joins}
        for join in joins:
            for operand in self.tensors[join].sources:
                for origin in self._origins_of(operand, PASSED):
                    if origin in cluster and not self.direct[origin]:
                        both = cluster[join] | cluster[origin]
                        cluster |= dict.fromkeys(both, both)
        return {join: tuple(sorted(members)) for join, members in cluster.items()}

    def _join_layers(self, join: int) -> set[int]:
        """Layers on whose bits it depends whether a join is computed in integers."""
        found = set[int]()
        for member in self._clusters[join]:
            found |= self.needs(member)
            for operand in self.tensors[member].sources:
                for origin in self._origins[operand]:
                    found |= {*self.direct[origin], *self.needs(origin)}
                    found |= {*self._layers_of([origin])}
        return found

    def needs(self, index: int) -> set[int]:
        """Layers on whose bits it depends whether a tensor bears rounding."""
        return set(self._needs[index] or ())

    def passing_depends(self, index: int) -> set[int]:
        """Layers on whose bits `passes` depends."""
        found, left = self.needs(index) | set(self.direct[index]), [index]
        left += self.tensors[index].sources
        while left:
            for reader in self.readers[left.pop()]:
                found |= self.join_depends.get(reader, set())
                if self.tensors[reader].kind in PASSED:
                    found |= set(self.direct[reader])
                    left.append(reader)
        return found

    # -- what depends on bits ------------------------------------------------------------------

    def bears(self, index: int, pairs: Sequence[int]) -> bool:
        """Whether a tensor bears rounding, when layer l has bit pair ``pairs[l]``."""
        needs = self._needs[index]
        return needs is not None and all(self._rounds[pairs[layer]] for layer in needs)

    def passes(self, index: int, pairs: Sequence[int]) -> bool:
        """Whether a copy or a mean of integers is computed in integers."""
        return self.bears(index, pairs) and self._is_wanted(index, pairs)

    def is_operand(self, index: int, pairs: Sequence[int]) -> bool:
        """Whether a join that is computed in integers reads a tensor."""
        joins = self.is_integer_join
        return any(reader in joins and joins[reader](pairs) for reader in self.readers[index])

    def _find_integer_join(self, join: int, pairs: Sequence[int]) -> bool:
        """Whether a join is among the most of its cluster that justify each other."""
        joins = {member for member in self._clusters[join] if self.bears(member, pairs)}
        while join in joins:
            kept = {member for member in joins if self._saves(member, joins, pairs)}
            if kept == joins:
                return True
            joins = kept
        return False

    def _saves(self, join: int, joins: set[int], pairs: Sequence[int]) -> bool:
        """Whether of a join's operands and its result more are in integers anyway than not."""
        sources = self.tensors[join].sources
        ends = sum(self._is_integer_anyway(operand, joins, pairs) for operand in sources)
        ends += self._is_wanted(join, pairs, joins)
        return 2 * ends > len(sources) + 1

    def _is_integer_anyway(self, operand: int, joins: set[int], pairs: Sequence[int]) -> bool:
        for origin in self._origins[operand]:
            if any(self._rounds[pairs[layer]] for layer in self.direct[origin]):
                return True
            layer = self.tensors[origin].layer
            given = origin in joins or (layer >= 0 and self._integer[pairs[layer]])
            if given and self.bears(origin, pairs):
                return True
        return False

    def _is_wanted(self, index: int, pairs: Sequence[int], joins: set[int] | None = None) -> bool:
        """Whether an 8-bit layer or an integer join reads a tensor, be it through copies.

        Args:
            joins: Those taken to be in integers; None: those that are.
        """
        if any(self._rounds[pairs[layer]] for layer in self.direct[index]):
            return True
        for reader in self.readers[index]:
            kind = self.tensors[reader].kind
            if kind in PASSED:
                found = self._is_wanted(reader, pairs, joins)
            elif kind in JOINS:
                known = self.is_integer_join
                found = reader in joins if joins is not None else bool(known[reader](pairs))
            else:
                found = False
            if found:
                return True
        return False
