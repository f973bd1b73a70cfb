"""Which of its prices every operator has, when every layer has its bits.

An operator has a list of *parts*, each something that a device can be asked for, and a *state* that
follows from the bits of a few layers. A layer's state is its bit pair, at every call. On a device
that prices conversions, a layer may also be dequantized, an operator between layers may be computed
in integers or inside of the layer before it, and between layers there are conversions
(`amc.quantplan.forms`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from amc.cost.operators import Operator, operators_of
from amc.graph.graph import NetworkGraph
from amc.graph.types import Signature, TensorInfo
from amc.quantplan.conversions import (
    CONVERSIONS,
    INT8,
    dequantized,
    is_integer,
    reads_counts,
)
from amc.quantplan.forms import COUNTS, PLAIN, Forms
from amc.quantplan.remember import Remembered
from amc.quantplan.rounding import JOINS, PASSED
from amc.strategy import Bits

Part = tuple[Signature, Bits] | None  # None costs nothing
# From the bit pair index of every layer, and the form of every tensor, to a state.
Rule = Callable[[Sequence[int], Sequence[int]], int]
# Forms, and the places among `States.stated` of what may have another state now.
_Change = tuple[list[int], frozenset[int]]
_BASE = 16  # of how often a tensor is converted in each way; more often is not told apart


@dataclass(frozen=True)
class Stated:
    """An operator with its parts.

    Attributes:
        parts: What a device is asked for.
        rule: Gives the state: an index of ``parts``, or, for conversions, how often each of them
            occurs (`decoded`).
        tensor: Index of the tensor that it gives or converts, -1 where its state is its layer's
            bit pair, or always the same.
    """

    operator: Operator
    parts: tuple[Part, ...]
    rule: Rule
    tensor: int = -1
    is_conversion: bool = False

    @property
    def is_optional(self) -> bool:
        """Whether it belongs to a layer, whose option is its state but beside conversions."""
        return _layer_of(self.operator) >= 0

    def occurring(self, state: int) -> list[tuple[Part, int]]:
        """The parts that occur in a state, and how often."""
        if not self.is_conversion:
            return [(self.parts[state], 1)]
        times = decoded(state, len(self.parts))
        return [(part, n) for part, n in zip(self.parts, times, strict=True) if n]


def decoded(state: int, parts: int) -> list[int]:
    """How often each part of a conversion occurs."""
    return [state // _BASE**place % _BASE for place in range(parts)]


def encoded(times: Sequence[int]) -> int:
    """The state in which each part of a conversion occurs so often."""
    return sum(min(count, _BASE - 1) * _BASE**place for place, count in enumerate(times))


class States:
    """All operators of a network with their parts, on a device.

    Attributes:
        stated: The layers in their order, what stands between them, and the conversions.
    """

    def __init__(
        self,
        graph: NetworkGraph,
        pairs: Sequence[Bits],
        reference: Bits,
        converts: Collection[str] = (),
    ) -> None:
        """
        Args:
            pairs: The bit pairs that layers may have.
            reference: What operators between layers run in, unless in integers.
            converts: The conversions that the device prices.
        """
        self._pairs, self._reference = tuple(pairs), reference
        plain = [self._plain(operator) for operator in operators_of(graph)]
        self._forms = Forms(graph, pairs, converts) if converts else None
        self.stated = plain
        if self._forms is not None:
            placed = _Placed(graph, self._forms, self._pairs, reference, converts)
            self.stated = [*map(placed.stated, plain), *placed.conversions()]
            self._near = self._moved_by_forms(self._forms, len(graph.tensors))
        self._own = self._moved_by_bits(graph)

    def _plain(self, operator: Operator) -> Stated:
        layer = _layer_of(operator)
        if layer < 0:
            return Stated(operator, ((operator.signature, self._reference),), _always_first)
        parts = tuple((operator.signature, bits) for bits in self._pairs)
        return Stated(operator, parts, lambda pairs, forms: pairs[layer])

    @property
    def couples(self) -> bool:
        """Whether what an operator costs depends on the bits of several layers."""
        return self._forms is not None

    def forms(self, pairs: Sequence[int]) -> list[int]:
        """The form of every tensor when layer l has bit pair ``pairs[l]``."""
        return self._forms.all(pairs) if self._forms else []

    def after(self, layer: int, pairs: Sequence[int], forms: list[int]) -> _Change:
        """What follows when a layer's bits have changed to ``pairs[layer]``."""
        if self._forms is None:
            return forms, self._own[layer]
        now, others = self._forms.after(layer, pairs, forms)
        return now, self._own[layer].union(*(self._near[tensor] for tensor in others))

    def _moved_by_bits(self, graph: NetworkGraph) -> list[frozenset[int]]:
        """For every layer, the operators whose states depend on its bits themselves."""
        own = [{layer.index} for layer in graph.layers]
        for place, stated in enumerate(self.stated):
            if stated.operator.shared >= 0:
                own[stated.operator.shared].add(place)
            if stated.is_conversion:
                for tensor in graph.tensors:
                    if tensor.layer >= 0 and stated.tensor in tensor.sources:
                        own[tensor.layer].add(place)
        return [frozenset(places) for places in own]

    def _moved_by_forms(self, forms: Forms, tensors: int) -> list[frozenset[int]]:
        """For every tensor, the operators whose states depend on its form."""
        near: list[set[int]] = [set() for _ in range(tensors)]
        for place, stated in enumerate(self.stated):
            if stated.tensor >= 0:
                beside = forms.beside(stated.tensor) if stated.is_conversion else {stated.tensor}
                for tensor in beside:
                    near[tensor].add(place)
        return [frozenset(places) for places in near]


def _layer_of(operator: Operator) -> int:
    """The layer whose bits an operator has; -1 between layers."""
    return max(operator.layer, operator.shared)


def _always_first(pairs: Sequence[int], forms: Sequence[int]) -> int:
    return 0


class _Placed:
    """Operators by the tensors that they give."""

    def __init__(
        self,
        graph: NetworkGraph,
        forms: Forms,
        pairs: tuple[Bits, ...],
        reference: Bits,
        converts: Collection[str],
    ) -> None:
        self._graph, self._forms, self._pairs, self._reference = graph, forms, pairs, reference
        self._converts = converts
        self._rounds = any(map(reads_counts, pairs))
        self._of_layer: dict[int, list[int]] = {}  # what each of its calls gives
        for index, tensor in enumerate(graph.tensors):
            if tensor.layer >= 0:
                self._of_layer.setdefault(tensor.layer, []).append(index)
        self._of_operator = {
            name: (index, place)
            for index, tensor in enumerate(graph.tensors)
            for place, name in enumerate(tensor.operators)
        }

    def stated(self, plain: Stated) -> Stated:
        """An operator with the parts and the state that it has beside conversions."""
        operator = plain.operator
        if _layer_of(operator) >= 0:
            is_linear = operator.signature.op == "linear"
            return plain if is_linear else self._convolution(plain)
        if operator.is_repeat or operator.name not in self._of_operator:
            return plain
        index, place = self._of_operator[operator.name]
        kind = self._graph.tensors[index].kind
        if place == 0 and kind in (*JOINS, *PASSED):
            return self._between(plain, index, kind)
        return self._behind(plain, index) if kind != "layer" else plain

    def _convolution(self, plain: Stated) -> Stated:
        layer = _layer_of(plain.operator)
        index = self._of_layer[layer][plain.operator.call]
        signature, count = plain.operator.signature, len(self._pairs)
        integer = list(map(is_integer, self._pairs))
        places = {pair: count + n for n, pair in enumerate(p for p in range(count) if integer[p])}

        def rule(pairs: Sequence[int], forms: Sequence[int]) -> int:
            pair = pairs[layer]
            return pair if forms[index] >= COUNTS else places.get(pair, pair)

        slow = tuple((signature, dequantized(self._pairs[pair])) for pair in places)
        return replace(plain, parts=(*plain.parts, *slow), rule=rule, tensor=index)

    def _between(self, plain: Stated, index: int, kind: str) -> Stated:
        """A join, a copy or a mean; the runtime adds blocks inside of the layer before."""
        signature = plain.operator.signature
        in_integers: tuple[Part, ...] = ()
        if self._rounds:  # to rectify counts is to cut off their grid: nothing is left to do
            in_integers = (None if signature.op in ("relu", "relu6") else (signature, INT8),)
        state_of = [0, len(in_integers) + 1 if kind == "add" else 0, 1, 1]
        parts: tuple[Part, ...] = (*plain.parts, *in_integers, None)
        return replace(
            plain, parts=parts, rule=lambda pairs, forms: state_of[forms[index]], tensor=index
        )

    def _behind(self, plain: Stated, index: int) -> Stated:
        """A rectifier behind a join: part of it unless that is plain floats."""
        return replace(
            plain,
            parts=(*plain.parts, None),
            rule=lambda pairs, forms: int(forms[index] != PLAIN),
            tensor=index,
        )

    def conversions(self) -> list[Stated]:
        """One operator for every tensor that anything reads.

        What is converted inside of a residual block goes with it. Around one that is gone it is
        priced as if the sum still stood there: what takes its place is nearly always in its form.
        """
        found: list[Stated] = []
        chosen = [place for place, name in enumerate(CONVERSIONS) if name in self._converts]
        names = [name for name in CONVERSIONS if name in self._converts]
        read = {source for tensor in self._graph.tensors for source in tensor.sources}
        for index in sorted(read):
            tensor = self._graph.tensors[index]
            size = tensor.size
            parts = tuple(
                (Signature(name, in_size=size, out_size=size), self._reference) for name in names
            )
            name = f"conversions of {self._name(index)}"
            block = self._block_of(tensor)
            operator = Operator(
                name, parts[0][0], tensor.count, tensor.count, -1, False, block=block
            )
            rule = self._conversion_rule(index, chosen)
            found.append(Stated(operator, parts, rule, index, is_conversion=True))
        return found

    def _conversion_rule(self, index: int, chosen: Sequence[int]) -> Rule:
        def rule(pairs: Sequence[int], forms: Sequence[int]) -> int:
            times = self._forms.conversions(index, pairs, forms)
            return encoded([times[place] for place in chosen])

        return Remembered(rule, self._forms.rounding.direct[index], self._forms.beside(index))

    def _block_of(self, tensor: TensorInfo) -> int:
        """The group of the residual block that a tensor is inside of; -1 if of none."""
        if tensor.layer >= 0:
            given_by = self._graph.layers[tensor.layer].name
        else:
            given_by = tensor.operators[-1] if tensor.operators else ""
        for block in self._graph.plan.blocks:
            if given_by in block.layers or given_by in block.gone - block.heirs.keys():
                return block.group
        return -1

    def _name(self, index: int) -> str:
        tensor = self._graph.tensors[index]
        if tensor.layer >= 0:
            return self._graph.layers[tensor.layer].name
        return tensor.operators[-1] if tensor.operators else tensor.kind
