import pytest

from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.strategy import FLOAT, Bits
from envs.uniform import uniform_strategies


def model_of(graph, metric, fraction, pairs, low=0.2):
    choices = choices_for(graph, pairs, min_preserve_ratio=low)
    return CostModel(graph, choices, Budget(metric, fraction=fraction))


def tiny_macs(a, b):
    """Macs of TinyNet (tests/conftest.py) with a channels of conv1 and b of conv2."""
    return 64 * 27 * a + 16 * 9 * a * b + 16 * 9 * b * b + 5 * b


def test_largest_ratio_that_fits_with_and_without_the_stream(tiny_graph):
    costs = model_of(tiny_graph, "macs", 0.6, (FLOAT,))
    alone, every = uniform_strategies(costs)
    # conv2 and conv3 produce a stream together: alone, only conv1 can give.
    assert dict(alone.preserve_ratio) == {"conv1": 1 / 4, "conv2": 1.0}
    assert tiny_macs(1, 6) <= costs.bound < tiny_macs(2, 6)
    # 3 of 4 are the nearest to ratios from 0.625, 5 of 6 from 0.75, 4 of 6 from 0.583.
    assert dict(every.preserve_ratio) == {"conv1": 3 / 4, "conv2": 4 / 6}
    assert tiny_macs(3, 4) <= costs.bound < tiny_macs(3, 5)


def test_every_uniform_strategy_meets_the_budget(tiny_graph):
    pairs = tuple(Bits(w, a) for w in (2, 4, 8, 32) for a in (4, 8, 32))
    costs = model_of(tiny_graph, "bops", 0.05, pairs)
    strategies = uniform_strategies(costs)
    assert len({strategy.to_json() for strategy in strategies}) == len(strategies) > 3
    for strategy in strategies:
        assert costs.cost_of(strategy) <= costs.bound
        assert len(set(strategy.bits.values())) == 1


def test_most_precise_pairs_come_first(tiny_graph):
    pairs = (Bits(4, 32), FLOAT, Bits(8, 32))
    costs = model_of(tiny_graph, "bops", 0.1, pairs)
    found = [strategy.bits["conv1"] for strategy in uniform_strategies(costs)]
    assert found == sorted(found, reverse=True)


def test_everything_in_eight_bits_comes_before_fewer_channels(tiny_graph):
    """A product of 8 and 8 bits is 1/16 of one of 32 and 32."""
    costs = model_of(tiny_graph, "bops", 0.2, (FLOAT, Bits(8, 8), Bits(4, 4)))
    first, *others = uniform_strategies(costs)
    assert set(first.bits.values()) == {Bits(8, 8)}
    assert set(first.preserve_ratio.values()) == {1.0}
    assert {bits for strategy in others for bits in strategy.bits.values()} == {FLOAT}


def test_channels_go_only_until_eight_bits_meet_the_budget(tiny_graph):
    """All of them in 8 bits are 1/16; 5 of conv2's 6 are 0.86 of that."""
    assert tiny_macs(4, 5) / tiny_macs(4, 6) == pytest.approx(0.861, abs=1e-3)
    costs = model_of(tiny_graph, "bops", 0.95 / 16, (FLOAT, Bits(8, 8)))
    best = max(
        uniform_strategies(costs), key=lambda strategy: sum(strategy.preserve_ratio.values())
    )
    assert set(best.bits.values()) == {Bits(8, 8)}
    assert dict(best.preserve_ratio) == {"conv1": 1.0, "conv2": 5 / 6}


def test_less_precise_pair_that_keeps_no_more_channels_is_left_out(tiny_graph):
    pairs = (FLOAT, Bits(8, 32), Bits(4, 32), Bits(2, 32))
    costs = model_of(tiny_graph, "size_bytes", 0.5, pairs)
    found = [strategy.bits["conv1"] for strategy in uniform_strategies(costs)]
    assert Bits(8, 32) in found  # fits with all channels
    assert Bits(4, 32) not in found
    assert Bits(2, 32) not in found


@pytest.mark.parametrize("fraction", [0.03, 0.3])
def test_bits_give_channels_back(tiny_graph, fraction):
    pairs = (FLOAT, Bits(8, 8), Bits(4, 4))
    costs = model_of(tiny_graph, "bops", fraction, pairs)
    strategies = uniform_strategies(costs)
    kept = [sum(strategy.preserve_ratio.values()) for strategy in strategies]
    fewest = min(strategy.bits["conv1"] for strategy in strategies)
    in_fewest = [
        ratios
        for ratios, strategy in zip(kept, strategies, strict=True)
        if strategy.bits["conv1"] == fewest
    ]
    assert max(kept) == max(in_fewest)


def test_cheapest_strategy_where_no_uniform_one_fits(tiny_graph):
    # The cheapest mixes bits: float is the smaller one where a scale costs more than it saves.
    costs = model_of(tiny_graph, "macs", 0.9, (FLOAT,), low=0.5)
    tight = CostModel(tiny_graph, costs.choices, Budget("macs", absolute=costs.floor))
    cheapest = costs.decode(costs.floor_kept, costs.floor_options)
    assert uniform_strategies(tight) == [cheapest]
