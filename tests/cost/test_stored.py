from __future__ import annotations

import math

import numpy as np
import pytest

from amc.cost.budget import Budget
from amc.cost.choices import choices_for
from amc.cost.model import CostModel
from amc.cost.stored import StoredCost, StoredPrices
from amc.graph.graph import NetworkGraph
from amc.graph.types import Signature
from amc.strategy import FLOAT, Bits, Option

LINEAR = Signature("linear")
COST = StoredCost(weight=0.5, output=2.0, once=10.0, all_weights=64, growth=0.1)


class ByBits:
    """A weight takes its bits, an output 4 bytes, a layer 7."""

    number = 2.0

    def of(self, layer: int, option: Option) -> StoredCost:
        return StoredCost(option.bits.weight / 8, 4.0, 7.0)

    def fingerprint(self) -> str:
        return "by bits"


def test_a_weight_takes_more_where_few_are_left() -> None:
    prices = StoredPrices(LINEAR, [COST])
    # All 64 weights; 16 are two halvings: a fifth more for each.
    assert prices.one(16, 4, 0) == pytest.approx(0.5 * 64 + 2 * 4 + 10)
    assert prices.one(8, 2, 0) == pytest.approx(0.5 * 16 * 1.2 + 2 * 2 + 10)


def test_prices_of_arrays_are_those_of_numbers() -> None:
    prices = StoredPrices(LINEAR, [COST, StoredCost(0.25)])
    ins, outs = np.array([1, 8, 16, 16]), np.array([4, 2, 4, 1])
    table = prices.table(ins, outs, [0, 1])
    for row, (i, o) in enumerate(zip(ins.tolist(), outs.tolist(), strict=True)):
        assert table[row].tolist() == pytest.approx([prices.one(i, o, 0), prices.one(i, o, 1)])


def test_a_walk_costs_what_its_layers_take(tiny_graph: NetworkGraph) -> None:
    options = (FLOAT, Bits(4, 32))
    choices = choices_for(tiny_graph, options, min_preserve_ratio=0.5)
    budget = Budget("packed_bytes", fraction=0.5)
    model = CostModel(tiny_graph, choices, budget, None, ByBits())
    weights = [4 * 3 * 9, 6 * 4 * 9, 6 * 6 * 9, 5 * 6]
    outputs = [4, 6, 6, 5]
    held = sum(stored.count.count(tiny_graph.sizes().tolist()) for stored in tiny_graph.stored)
    assert model.original == pytest.approx(
        sum(4 * w + 4 * o + 7 for w, o in zip(weights, outputs, strict=True)) + 2 * held
    )
    four = list(choices.options).index(Option(Bits(4, 32)))
    cost = model.cost(tiny_graph.sizes(), [four] * 4)
    assert cost == pytest.approx(
        sum(w / 2 + 4 * o + 7 for w, o in zip(weights, outputs, strict=True)) + 2 * held
    )
    assert model.start().total == math.fsum(
        model.operator_costs(model.floor_kept, model.floor_options)
    )
