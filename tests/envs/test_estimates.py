"""What is known of a decision alone, worked out from the sizes of TinyNet (tests/conftest.py)."""

import numpy as np
import pytest

from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.networks import build_network
from amc.recovery.errors import LayerErrors
from amc.strategy import FLOAT, Bits
from envs.estimates import layer_estimates
from tests.envs.made_up import made_up_errors

INT8, INT4, INT2 = Bits(8, 8), Bits(4, 4), Bits(2, 2)


def macs(a, b, bits=(1, 1, 1, 1)):
    """Of TinyNet with a channels of conv1 and b of conv2, layers weighted."""
    layers = 64 * 27 * a, 16 * 9 * a * b, 16 * 9 * b * b, 5 * b
    return sum(layer * weight for layer, weight in zip(layers, bits, strict=True))


WHOLE = macs(4, 6)


def model_of(graph, metric="macs", pairs=(FLOAT,), fraction=0.6):
    choices = choices_for(graph, pairs, min_preserve_ratio=0.2)
    return CostModel(graph, choices, Budget(metric, fraction=fraction))


def errors_of(bits):
    conv1 = np.array([np.inf, 0.7, 0.5, 0.3, 0.0])
    conv2 = np.array([np.inf, 6.0, 5.0, 4.0, 3.0, 2.0, 0.0])
    return LayerErrors((conv1, conv2, np.zeros(6)), np.array(bits))


def test_errors_and_savings_of_three_ratios_by_hand(tiny_graph):
    seen = layer_estimates(model_of(tiny_graph), errors_of([[0.0]] * 4))
    assert len(seen) == 4
    # 3, 2 and 1 of 4 channels; of 6 are 4 (4.5: the first of two as near), 3 and 2 (at least).
    assert seen[0].removal_error == (0.3, 0.5, 0.7)
    assert seen[0].removal_saved == pytest.approx([1 - macs(k, 6) / WHOLE for k in (3, 2, 1)])
    assert seen[1].removal_error == (3.0, 4.0, 5.0)
    assert seen[1].removal_saved == pytest.approx([1 - macs(4, k) / WHOLE for k in (4, 3, 2)])


def test_layer_that_decides_no_group_saves_and_loses_nothing_by_removal(tiny_graph):
    for layer in layer_estimates(model_of(tiny_graph), errors_of([[0.0]] * 4))[2:]:
        assert layer.removal_error == (0, 0, 0)
        assert layer.removal_saved == (0, 0, 0)


def test_errors_and_savings_of_bits_by_hand(tiny_graph):
    """Fewest on offer, and the middle of four pairs, beside the most precise."""
    pairs = (INT4, FLOAT, INT2, INT8)
    bits = [[0.2, 0.0, 0.4, 0.1], [2.0, 0.0, 4.0, 1.0], [0.0] * 4, [9.0, 0.0, 9.5, 8.0]]
    seen = layer_estimates(model_of(tiny_graph, "bops", pairs), errors_of(bits))
    assert [layer.bits_error for layer in seen] == [(0.4, 0.1), (4.0, 1.0), (0, 0), (9.5, 8.0)]
    for index, layer in enumerate(seen):
        for saved, width in zip(layer.bits_saved, (2, 8), strict=True):
            weights = [1.0] * 4
            weights[index] = width**2 / 32**2
            assert saved == pytest.approx(1 - macs(4, 6, weights) / WHOLE)


def test_with_one_pair_bits_save_and_lose_nothing(tiny_graph):
    for layer in layer_estimates(model_of(tiny_graph), errors_of([[0.0]] * 4)):
        assert layer.bits_error == layer.bits_saved == (0, 0)


def test_removal_is_seen_at_the_most_precise_bits(tiny_graph):
    seen = layer_estimates(model_of(tiny_graph, "bops", (INT8, FLOAT)), errors_of([[0.0, 0.0]] * 4))
    assert seen[0].removal_saved[1] == pytest.approx(1 - macs(2, 6) / WHOLE)


def test_layer_that_decides_several_groups_loses_the_sum_of_their_errors():
    shape = (3, 32, 32)
    network = build_network("shufflenet_v2_x0_5", num_classes=10, image_shape=shape)
    graph = graph_of(network.eval(), shape)
    costs = model_of(graph)
    errors = made_up_errors(costs)
    (layer, *_) = (layer for layer in graph.layers if len(layer.decides) > 1)
    level = int(np.abs(costs.level_ratios[layer.index] - 0.5).argmin())
    kept = costs.levels[layer.index][level]
    expected = sum(errors.removal[g][k] for g, k in zip(layer.decides, kept, strict=True))
    assert layer_estimates(costs, errors)[layer.index].removal_error[1] == pytest.approx(expected)
