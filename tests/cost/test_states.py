"""Prices that depend on several layers' bits: costs, walks, and what is asked of a device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.choices import choices_for, requests_for
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.model import CostModel, operator_prices
from amc.cost.states import decoded, encoded
from amc.cost.walk import WalkCosts
from amc.errors import TableError
from amc.graph.graph import NetworkGraph
from amc.graph.types import Signature
from amc.quantplan.conversions import CONVERSIONS
from amc.runtimes.request import Request
from amc.strategy import FLOAT, IDENTITY, Bits, Strategy
from envs.compression import CompressionEnv
from tests.conftest import classified
from tests.cost.asked import RememberingTable
from tests.export.joins import Concatenated, Inverted, Residual, Shared, built
from tests.export.nets import SHAPE

INT8, WITHOUT_INTEGERS = Bits(8, 8), Bits(8, 32)
PAIRS = (FLOAT, INT8)
HEADER = TableHeader(
    "board", "none", 1, 1, 1, PAIRS, fuses=("relu", "relu6"), converts=tuple(CONVERSIONS)
)


def table_of(requests: list[Request], prices: Callable[[Request], float]) -> TableDevice:
    return TableDevice(HEADER, {r: Measurement(prices(r), 0.0, 1) for r in requests})


def requests_of(graph: NetworkGraph) -> list[Request]:
    choices = choices_for(graph, PAIRS, min_preserve_ratio=0.5)
    return requests_for(graph, choices, FLOAT, HEADER.fuses, HEADER.converts)


def device_of(graph: NetworkGraph, seed: int = 0) -> TableDevice:
    rng = np.random.default_rng(seed)
    return table_of(requests_of(graph), lambda _: float(rng.uniform(0.5, 2)))


def model_of(graph: NetworkGraph, device: TableDevice) -> CostModel:
    choices = choices_for(graph, PAIRS, min_preserve_ratio=0.5)
    return CostModel(graph, choices, Budget("latency_ms", fraction=0.95), device)


@pytest.fixture(params=[Residual, Inverted, Concatenated, Shared])
def graph(request: pytest.FixtureRequest) -> NetworkGraph:
    return graph_of(built(request.param), SHAPE)


# -- by hand: every operator of TinyNet costs a power of two -------------------------------------


def tiny_price(request: Request) -> float:
    """Layers 1, in integers 2, dequantized 4; joins and means 8, in integers 16; the others."""
    if request.signature.is_layer:
        return {FLOAT: 1.0, INT8: 2.0, WITHOUT_INTEGERS: 4.0}[request.bits]
    if request.signature.op in CONVERSIONS:
        return {"quantize": 64.0, "dequantize": 128.0, "transpose": 256.0}.get(
            request.signature.op, 1 / 1024
        )
    if request.signature.op == "relu":
        return 32.0
    return {FLOAT: 8.0, INT8: 16.0}[request.bits]


@pytest.mark.parametrize(
    ("eight", "milliseconds", "layouts"),
    [
        # Blocks of channels: the addition and its ReLU cost nothing. Images, two narrow, mean.
        ("", 4 * 1 + 8, 4),
        # All in integers: images to channels last, and back for the linear layer.
        ("conv1 conv2 conv3 linear", 4 * 2 + 16 + 16 + 64 + 2 * 256, 0),
        # conv2 dequantized: its input is quantized and read as floats; the sum and its ReLU are
        # plain, and so is the mean. Images in, conv1 out, conv2 in, conv3 out.
        ("conv2", 3 * 1 + 4 + 8 + 32 + 8 + 64 + 128, 4),
        # conv3 in integers, for the addition alone: dequantized and turned.
        ("conv3", 3 * 1 + 2 + 8 + 32 + 8 + 64 + 256 + 128 + 256, 3),
        # The sum in integers; conv3's output is turned for it.
        ("conv3 linear", 2 * 1 + 2 * 2 + 16 + 16 + 64 + 256 + 256, 3),
    ],
)
def test_cost_of_mixed_bits_is_the_sum_of_what_runs(
    tiny_graph: NetworkGraph, eight: str, milliseconds: float, layouts: int
) -> None:
    device = table_of(requests_of(tiny_graph), tiny_price)
    strategy = Strategy({}, dict.fromkeys(eight.split(), INT8))
    total = math.fsum(operator_prices(tiny_graph, strategy, "latency_ms", device))
    assert total == milliseconds + layouts / 1024


def test_device_without_conversions_prices_a_layer_by_its_own_bits(
    tiny_graph: NetworkGraph,
) -> None:
    header = dataclasses.replace(HEADER, converts=())
    choices = choices_for(tiny_graph, PAIRS)
    requests = requests_for(tiny_graph, choices, FLOAT, header.fuses)
    assert {r.bits for r in requests} == set(PAIRS)
    assert not {r.signature.op for r in requests} & set(CONVERSIONS)
    device = TableDevice(header, {r: Measurement(tiny_price(r), 0.0, 1) for r in requests})
    strategy = Strategy({}, {"conv2": INT8})
    # Three layers in float, one in integers; the addition, its ReLU and the mean in float.
    total = math.fsum(operator_prices(tiny_graph, strategy, "latency_ms", device))
    assert total == 3 * 1 + 2 + 8 + 32 + 8


def test_float_search_asks_for_no_integers(tiny_graph: NetworkGraph) -> None:
    choices = choices_for(tiny_graph, (FLOAT,))
    requests = requests_for(tiny_graph, choices, FLOAT, HEADER.fuses, HEADER.converts)
    assert {r.bits for r in requests} == {FLOAT}
    assert {r.signature.op for r in requests} >= {"unblock", "narrow", "block"}


def test_conversion_that_a_device_does_not_list_costs_nothing(tiny_graph: NetworkGraph) -> None:
    header = dataclasses.replace(HEADER, converts=("quantize",))
    choices = choices_for(tiny_graph, PAIRS)
    requests = requests_for(tiny_graph, choices, FLOAT, header.fuses, header.converts)
    assert {r.signature.op for r in requests} & set(CONVERSIONS) == {"quantize"}
    device = TableDevice(header, {r: Measurement(tiny_price(r), 0.0, 1) for r in requests})
    strategy = Strategy({}, {"conv2": INT8})
    total = math.fsum(operator_prices(tiny_graph, strategy, "latency_ms", device))
    assert total == 3 * 1 + 4 + 8 + 32 + 8 + 64


def test_states_of_conversions_survive_encoding() -> None:
    assert decoded(encoded((1, 0, 3, 0, 2, 1)), 6) == [1, 0, 3, 0, 2, 1]
    assert decoded(encoded((0, 99)), 2) == [0, 15]


# -- walks ---------------------------------------------------------------------------------------


def test_requests_are_all_that_strategies_ask(graph: NetworkGraph) -> None:
    device, rng = RememberingTable(HEADER, device_of(graph).rows), np.random.default_rng(3)
    choices = choices_for(graph, PAIRS, min_preserve_ratio=0.5)
    for _ in range(20):
        ratios = {g.name: int(rng.choice(choices.kept[g.index])) / g.size for g in graph.groups}
        bits = {layer.name: PAIRS[int(rng.integers(2))] for layer in graph.layers}
        operator_prices(graph, Strategy(ratios, bits), "latency_ms", device)
    assert device.asked <= set(requests_of(graph))
    assert {request.bits for request in device.asked} == {FLOAT, INT8, WITHOUT_INTEGERS}
    model_of(graph, device)
    assert device.asked <= set(requests_of(graph))


@pytest.mark.parametrize("seed", range(3))
def test_totals_along_a_walk_are_costs_from_scratch_to_the_last_bit(
    graph: NetworkGraph, seed: int
) -> None:
    device = device_of(graph, seed)
    model, rng = model_of(graph, device), np.random.default_rng(seed)
    walk = model.start()
    for layer in graph.layers:
        totals = walk.decision_costs(layer.index, None, None)
        fits = np.argwhere(totals <= model.bound)
        level, pair = (int(i) for i in rng.choice(fits))
        alone = walk.decision_costs(layer.index, level, pair)[0, 0]
        assert alone == pytest.approx(totals[level, pair], rel=1e-12)
        walk.decide(layer.index, level, pair)
        assert walk.total == alone == model.cost(walk.kept, walk.options)
        strategy = model.decode(walk.kept, walk.options)
        asked = operator_prices(graph, strategy, "latency_ms", device)
        assert walk.total == math.fsum(asked) <= model.bound


def test_every_decision_costs_what_it_leads_to(graph: NetworkGraph) -> None:
    model, rng = model_of(graph, device_of(graph)), np.random.default_rng(5)
    sizes = graph.sizes().tolist()
    for _ in range(5):
        pairs = rng.integers(2, size=len(graph.layers)).tolist()
        walk = WalkCosts(model, sizes, pairs)
        for layer in graph.layers:
            totals = walk.decision_costs(layer.index, None, None)
            for level in range(totals.shape[0]):
                for pair in range(totals.shape[1]):
                    exact = walk.decision_costs(layer.index, level, pair)[0, 0]
                    assert totals[level, pair] == pytest.approx(exact, rel=1e-12)


def test_decisions_asked_again_cost_what_they_cost_at_first(graph: NetworkGraph) -> None:
    device = device_of(graph)
    model, other = model_of(graph, device), model_of(graph, device)
    walk, rng = model.start(), np.random.default_rng(6)
    for _ in range(80):  # back and forth: the same strategies are met from several sides
        layer = int(rng.integers(3))
        totals = walk.decision_costs(layer, None, None)
        other.known_decisions.clear()
        fresh = WalkCosts(other, walk.kept, walk.options).decision_costs(layer, None, None)
        assert totals.tolist() == fresh.tolist()
        walk.decide(layer, *(int(rng.integers(size)) for size in np.minimum(totals.shape, 2)))
    with pytest.raises(ValueError, match="read-only"):
        totals += 1


def test_floor_is_found_where_every_single_step_towards_it_costs_more() -> None:
    graph = graph_of(built(Inverted), SHAPE)

    def price(request: Request) -> float:
        """Integers are cheap, and conversions cost more than any layer saves."""
        if request.signature.op in ("quantize", "dequantize"):
            return 3.0
        return 1.0 if request.bits == INT8 or not request.signature.is_layer else 2.0

    model = model_of(graph, table_of(requests_of(graph), price))
    alone = WalkCosts(model, model.floor_kept, [0] * 6)
    assert all(
        alone.decision_costs(layer, 0, 1)[0, 0] >= alone.total for layer in range(5)
    )  # the last, linear layer reads a mean: it may pay alone
    assert model.floor_options.tolist() == [1] * 6


def test_missing_conversion_is_named(tiny_graph: NetworkGraph) -> None:
    requests = [r for r in requests_of(tiny_graph) if r.signature.op != "quantize"]
    device = table_of(requests, lambda _: 1.0)
    assert [r.signature.op for r in device.missing(requests_of(tiny_graph))][:1] == ["quantize"]
    with pytest.raises(TableError, match="no price for quantize kernel 1x1 stride 1x1 on 8x8"):
        operator_prices(tiny_graph, Strategy({}, {"conv2": INT8}), "latency_ms", device)
    assert operator_prices(tiny_graph, IDENTITY, "latency_ms", device)


def test_rows_in_bits_that_only_conversions_bring_need_the_header_to_say_so() -> None:
    row = {
        Request(Signature("conv2d", (3, 3)), 4, 4, WITHOUT_INTEGERS): Measurement(1.0, 0.0, 1),
        Request(Signature("add"), 4, 4, INT8): Measurement(1.0, 0.0, 1),
    }
    assert TableDevice(HEADER, row).rows == row
    with pytest.raises(TableError, match="8/32 bits, but its supported_bits"):
        TableDevice(dataclasses.replace(HEADER, converts=()), row)


def test_walk_in_integers_is_not_held_up_by_floats_that_may_never_follow(
    tiny_graph: NetworkGraph,
) -> None:
    """The smallest network is cheapest in float, and a layer in 8 bits before one in float dear."""
    sizes = {
        layer.signature: (layer.in_channels, layer.out_channels) for layer in tiny_graph.layers
    }

    def price(request: Request) -> float:
        if not request.signature.is_layer:
            return 1 / 1024
        whole = math.prod(sizes[request.signature])
        shrinks = request.in_channels * request.out_channels / whole
        return {FLOAT: shrinks, INT8: 0.4, WITHOUT_INTEGERS: 8.0}[request.bits]

    device = table_of(requests_of(tiny_graph), price)
    integers = Strategy({}, {layer.name: INT8 for layer in tiny_graph.layers})
    loose = model_of(tiny_graph, device)
    share = 1.05 * loose.cost_of(integers) / loose.original
    costs = CostModel(tiny_graph, loose.choices, Budget("latency_ms", fraction=share), device)
    assert PAIRS[costs.floor_options[0]] == FLOAT
    assert costs.start().decision_costs(0, -1, 1)[0, 0] > costs.bound  # before floats
    score = classified(accuracy=0.5, loss=1.0, agreement=-0.1)
    env = CompressionEnv(costs, lambda strategy: score, score, "agreement")
    env.reset()
    for action in env.encode(integers):
        *_, info = env.step(action)
        assert not info["clamped"]
    assert costs.decode(*costs.encode(info["strategy"])) == costs.decode(*costs.encode(integers))
