"""What the layers of a network take in a packed file, under every option.

A layer's own weights are changed as the option says and coded as in the file: that gives the bytes
of a weight. What is in a file once, its header and the constants beside the weights, is what two
whole files have beyond their weights: one of the original, and one with rounded weights.

A repair moves weights, and puts zeros where they cost least: of a layer with dead inputs these
share columns, which take fewer bytes to tell than zeros anywhere. And what is left of a layer is
not like the whole. How much that is, of every layer by itself, is learned from whole networks under
some options, with all and with few of their channels, repaired and written (`PackedCosts.correct`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from amc.compress.network import CompressedNetwork, decide
from amc.compress.quantization import Quantized
from amc.compress.removal import keep_mask, remove_channels
from amc.cost.formulas import params
from amc.cost.operators import operators_of
from amc.cost.stored import StoredCost, stored_bytes, stored_cost
from amc.decisions import decision_named
from amc.export.packed import frequencies, tensors
from amc.export.packed.network import Packed, pack
from amc.graph.graph import NetworkGraph
from amc.graph.types import LayerInfo
from amc.layers import ProductKind, find_kind, layer_at
from amc.layers.copies import clone_module
from amc.strategy import FLOAT_BITS, Bits, Option, Strategy
from amc.utils.files import fingerprint
from amc.utils.progress import progress_bar

HALF_BYTES = 2
MOST_WEIGHTS = 262_144  # of a layer that are coded to know what one takes; more cost the same
_FOLDED = 2 * HALF_BYTES  # of a channel whose normalisation has a factor and a shift
_SAMPLED = torch.linspace(-1, 2, 256)  # inputs: their grid takes as many bytes whatever it is
_ROUNDED = Bits(4, FLOAT_BITS)
_CORRECTED = 4  # options that whole files are written of
_FEW = 0.4  # of the channels, in one of two files
_LEAST_HALVINGS, _MOST_GROWTH = 0.1, 0.2
_OF_WEIGHTS = ("symbols", "tables", "floats")  # parts of a tensor that are its weights' own


class _Correction(NamedTuple):
    """What a whole file said of a layer under an option.

    Attributes:
        at: Bytes of a weight as they were predicted; corrections in between are interpolated.
        factor: Of these.
        growth: As of `StoredCost`.
        beside: Bytes beside the weights that were not predicted.
    """

    at: float = 0.0
    factor: float = 1.0
    growth: float = 0.0
    beside: float = 0.0


class PackedCosts:
    """Costs of layers in a packed file (`amc.cost.stored.StoredCosts`).

    Attributes:
        number: Bytes of a parameter that no layer has.
    """

    number = float(HALF_BYTES)

    def __init__(self, graph: NetworkGraph, options: Sequence[Option], name: str) -> None:
        """
        Args:
            options: On offer for every layer; others are coded when first asked for.
            name: Of the network, as the file's header has it.
        """
        self._graph, self._name = graph, name
        self._folded = set(graph.plan.folds.values())
        self._known: dict[tuple[int, Option], StoredCost] = {}
        # Beside the weights, rounded or not: bytes, and how many times the weights' own are real.
        self._once = {False: (0.0, 1.0), True: (0.0, 1.0)}
        self._corrections = {layer.index: [_Correction()] for layer in graph.layers}
        asked = dict.fromkeys((Option(), *options))
        with progress_bar("coding", len(graph.layers)) as bar:
            for layer in graph.layers:
                for option in asked:
                    self.of(layer.index, option)
                bar.advance(note=layer.name)
        whole = self._beyond(None)
        rounds = any(option.bits.weight != FLOAT_BITS for option in asked)
        self._once = {False: whole, True: self._beyond(_ROUNDED) if rounds else whole}

    def of(self, layer: int, option: Option) -> StoredCost:
        """Of a layer under an option.

        Raises:
            StrategyError: amc knows no decision of that name.
        """
        key = layer, option
        if key not in self._known:
            self._known[key] = self._coded(self._graph.layers[layer], option)
        found = self._known[key]
        once, real = self._once[option.bits.weight != FLOAT_BITS]
        at, *known = np.array(self._corrections[layer]).T
        factor, growth, beside = (float(np.interp(found.weight, at, values)) for values in known)
        if option == Option():  # no repair moves the original's weights
            factor, beside = 1.0, 0.0
        weight, once = found.weight * factor * real, max(found.once + once + beside, 0.0)
        return replace(found, weight=weight, once=once, growth=growth)

    def correct(
        self,
        make: Callable[[Strategy], CompressedNetwork],
        options: Sequence[Option],
    ) -> None:
        """Learn from whole files what repairs and fewer channels add.

        Args:
            make: The repaired network of a strategy.
            options: On offer, that which changes most of a layer first.
        """
        places = np.linspace(0, len(options) - 1, min(len(options), _CORRECTED)).round()
        found: list[dict[int, _Correction]] = []
        with progress_bar("writing files", len(set(places.tolist()))) as bar:
            for place in sorted(set(places.astype(int).tolist())):
                found.append(self._correction(make, options[place]))
                bar.advance(note=str(options[place]))
        self._corrections = {
            layer: sorted(corrected[layer] for corrected in found) for layer in self._corrections
        }

    def _correction(
        self, make: Callable[[Strategy], CompressedNetwork], option: Option
    ) -> dict[int, _Correction]:
        """Of every layer under an option."""
        names = {layer.index: layer.name for layer in self._graph.layers}
        others = {name: dict.fromkeys(names.values(), value) for name, value in option.others}
        bits = dict.fromkeys(names.values(), option.bits)
        factors, growth, unforeseen = dict.fromkeys(names, 1.0), 0.0, 0.0
        for ratio in (1.0, _FEW):
            ratios = {group.name: ratio for group in self._graph.free_groups}
            strategy = Strategy(ratios, bits, others)
            weights, beside, halvings = self._predicted(strategy, option)
            packed = pack(make(strategy), self._graph, self._name)
            real = _weight_bytes(packed, names)
            if ratio == 1:
                factors |= {layer: real[layer] / weights[layer] for layer in real}
                unforeseen = len(packed.content) - math.fsum(real.values()) - beside
            elif halvings > _LEAST_HALVINGS:
                expected = math.fsum(factors[layer] * weights[layer] for layer in real)
                growth = (math.fsum(real.values()) / expected - 1) / halvings
        growth = min(max(growth, 0.0), _MOST_GROWTH)
        return {
            layer: _Correction(
                self._known[layer, option].weight, factors[layer], growth, unforeseen / len(names)
            )
            for layer in names
        }

    def _predicted(
        self, strategy: Strategy, option: Option
    ) -> tuple[dict[int, float], float, float]:
        """Bytes of every layer's weights as they are coded in the original, and of all that is
        beside weights; and how often the weights are halved, weighed by their bytes.
        """
        kept = self._graph.kept_counts(strategy).tolist()
        weights, beside, halved = dict[int, float](), 0.0, 0.0
        _, real = self._once[option.bits.weight != FLOAT_BITS]
        for operator in operators_of(self._graph):
            if operator.is_repeat:
                continue
            ins, outs = operator.inputs.count(kept), operator.outputs.count(kept)
            cost = stored_cost(self, operator, option)
            if operator.layer < 0:
                beside += stored_bytes(cost, operator.signature, ins, outs)
                continue
            number = params(operator.signature, ins, outs, False)
            own = self._known[operator.layer, option].weight * number * real
            weights[operator.layer] = own
            beside += cost.output * outs + cost.once
            halved += own * math.log2(cost.all_weights / max(number, 1))
        return weights, beside, halved / math.fsum(weights.values())

    def fingerprint(self) -> str:
        """Changes with the costs, the network's weights aside."""
        return fingerprint("packed 3", str(frequencies.library() is not None))

    def _beyond(self, bits: Bits | None) -> tuple[float, float]:
        """Bytes of a whole file beyond those of its weights, for each layer, and a factor of these.

        Where the whole file takes less than its weights by themselves (of wide layers some rows
        are coded, and fewer of them take more each), nothing is beyond, and the factor is below 1.

        Args:
            bits: Of all layers.
        """
        graph = self._graph
        names = [] if bits is None else [layer.name for layer in graph.layers]
        strategy = Strategy({}, dict.fromkeys(names, bits or Bits()))
        module = remove_channels(graph.plan, keep_mask(graph, {}))
        decide(module, strategy, dict.fromkeys(names, _SAMPLED))
        kept = {group.name: tuple(range(group.size)) for group in graph.free_groups}
        network = CompressedNetwork(module.eval(), strategy, kept)
        real = len(pack(network, graph, self._name).content)
        sizes = graph.sizes().tolist()
        known = math.fsum(
            stored_bytes(
                stored_cost(self, operator, Option(bits or Bits())),
                operator.signature,
                operator.inputs.count(sizes),
                operator.outputs.count(sizes),
            )
            for operator in operators_of(graph)
            if not operator.is_repeat
        )
        return max(real - known, 0.0) / len(graph.layers), min(real / known, 1.0)

    def _coded(self, layer: LayerInfo, option: Option) -> StoredCost:
        made = self._made(layer, option)
        is_folded = layer.name in self._folded
        weight, steps = _weight_of(made, is_free=is_folded)
        rows = _evenly(len(weight), min(len(weight), _rows_of(weight)))
        form = tensors.encoded(weight[rows], None if steps is None else steps[rows])
        parts, coded = form.parts, weight[rows].numel()
        # Fewer weights have fewer contexts, and so smaller tables.
        per_weight = sum(parts.get(part, 0) for part in _OF_WEIGHTS) / coded
        scales = form.kind == tensors.GRID and parts["scales"] > HALF_BYTES * len(rows)
        per_output = HALF_BYTES * int(scales) + (
            _FOLDED if is_folded else HALF_BYTES * int(layer.has_bias)
        )
        once = float(parts.get("centroids", 0))
        return StoredCost(per_weight, per_output, once, weight.numel())

    def _made(self, layer: LayerInfo, option: Option) -> nn.Module:
        """A copy of a layer under an option."""
        original = layer_at(self._graph.plan.module, layer.name)
        made: nn.Module = clone_module(original, {"weight": original.weight.detach().clone()})
        for name, value in (*option.others, ("precision", option.bits)):
            made = decision_named(name).apply(made, value, _SAMPLED)
        return made


def _weight_bytes(packed: Packed, names: Mapping[int, str]) -> dict[int, int]:
    """Bytes of the weights of every layer in a file, without what is there once."""
    of = {tensor.name: tensor.parts for tensor in packed.tensors}
    return {
        layer: sum(of[f"{name}.weight"].get(part, 0) for part in _OF_WEIGHTS)
        for layer, name in names.items()
        if f"{name}.weight" in of
    }


def _weight_of(layer: nn.Module, *, is_free: bool) -> tuple[Tensor, Tensor | None]:
    """The weight that a file has of a layer, and the scales of its grid where they are known.

    Args:
        is_free: Whether a normalisation behind it takes its scales.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    if not (isinstance(layer, Quantized) and layer.bits.weight != FLOAT_BITS):
        return weight, None
    weight, steps = layer.quantized_weight().detach(), layer.weight_scale
    if is_free and isinstance(find_kind(layer), ProductKind):
        weight = (weight / steps.view(-1, *[1] * (weight.dim() - 1))).round()
        steps = torch.ones_like(steps)
    return weight, steps


def _rows_of(weight: Tensor) -> int:
    return max(1, MOST_WEIGHTS // max(1, weight[0].numel()))


def _evenly(count: int, taken: int) -> Tensor:
    return torch.linspace(0, count - 1, taken).round().long()
