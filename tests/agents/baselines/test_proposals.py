import numpy as np
import pytest

from agents.baselines.proposals import Proposals, energy_lost
from amc.recovery.errors import LayerErrors
from amc.strategy import FLOAT, Bits
from tests.agents.baselines.small import PAIRS, small_env

COUNTS = {4: 0, 6: 1}  # size of a group -> its name's number


def kept_of(found):
    return [tuple(walk.kept[:2]) for walk in found]


def errors_of(costs, removal):
    """Errors per channel removed, by group; bits are free."""
    curves = tuple(
        factor * np.arange(size, -1, -1.0)
        for factor, size in zip(removal, costs.graph.sizes().tolist(), strict=True)
    )
    return LayerErrors(curves, np.zeros((len(costs.graph.layers), len(costs.choices.options))))


def test_units_are_free_ratios_and_bits_where_several_are_on_offer(tiny_graph):
    assert len(Proposals(small_env(tiny_graph).costs, None).units) == 2
    assert len(Proposals(small_env(tiny_graph, "bops", 0.3, PAIRS).costs, None).units) == 2 + 4


def test_original_keeps_all_channels_in_the_most_precise_bits(tiny_graph):
    costs = small_env(tiny_graph, "bops", 0.3, PAIRS).costs
    walk = Proposals(costs, None).original()
    assert walk.total == costs.original
    assert walk.kept == costs.graph.sizes().tolist()


@pytest.mark.parametrize(("conv1", "conv2", "first"), [(1.0, 0.1, (4, 4)), (0.1, 1.0, (2, 6))])
def test_smallest_estimated_error_per_cost_saved_comes_first(tiny_graph, conv1, conv2, first):
    costs = small_env(tiny_graph).costs
    proposals = Proposals(costs, errors_of(costs, (conv1, conv2, 0.0)))
    found = proposals.towards(proposals.original(), 0.8 * costs.original)
    assert len(found) == 2
    assert kept_of(found)[0] == first


def test_layer_that_cannot_reach_the_target_alone_is_joined_by_others(tiny_graph):
    costs = small_env(tiny_graph, fraction=0.3).costs
    proposals = Proposals(costs, None)
    found = proposals.towards(proposals.original(), costs.bound)
    assert all(walk.total <= costs.bound for walk in found)
    assert all(conv1 < 4 and conv2 < 6 for conv1, conv2 in kept_of(found))


def test_where_nothing_can_be_lowered_the_cheapest_strategy_is_proposed(tiny_graph):
    costs = small_env(tiny_graph).costs
    (found,) = Proposals(costs, None).towards(costs.start(), 0.0)
    assert found.total == costs.floor


def test_bits_go_down_as_little_as_is_enough(tiny_graph):
    pairs = (Bits(2, 32), Bits(8, 32), FLOAT)
    costs = small_env(tiny_graph, "bops", 0.5, pairs).costs
    proposals = Proposals(costs, None)
    now = proposals.original()
    found = proposals.towards(now, 0.999 * costs.original)
    changed = [walk.options for walk in found if walk.options != now.options]
    assert changed
    assert all(sorted(pairs, reverse=True) == [2, 2, 2, 1] for pairs in changed)


def test_energy_lost_is_the_share_of_channels_and_the_noise_of_rounding(tiny_graph):
    errors = energy_lost(small_env(tiny_graph, "bops", 0.3, PAIRS).costs)
    np.testing.assert_allclose(errors.removal[0], [1, 3 / 4, 2 / 4, 1 / 4, 0])
    # 8 standard deviations in 16 steps of 1/2: noise of 1/4 / 12.
    np.testing.assert_allclose(errors.options[0], [1 / 48, 1 / 48 / 256, 0], atol=1e-12)
    assert errors.options.shape == (4, 3)
