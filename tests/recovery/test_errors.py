"""Errors of single decisions, beside divergences of networks in which they were really taken."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from amc.compress.quantization import (
    activation_range,
    quantize_layer,
    quantize_weight,
    weight_scale,
)
from amc.compress.verify import graph_of
from amc.cost.choices import choices_for
from amc.problem.candidate import Compressor
from amc.recovery.errors import LayerErrors, layer_errors
from amc.recovery.importance import RemovalPath
from amc.recovery.moments import CalibrationStatistics, gather_statistics
from amc.recovery.sensitivity import LinearChange, divergences
from amc.recovery.settings import RecoverySettings
from amc.strategy import FLOAT, Bits, Strategy
from tests.graph.nets import conv

PAIRS = (FLOAT, *(Bits(w, a) for w in (8, 4, 2) for a in (8, 4)))
SMALL = (3, 4, 4)
IMAGES = torch.randn(512, *SMALL, generator=torch.Generator().manual_seed(0))
SETTINGS = RecoverySettings(images=512, batch_norm_images=64, error_images=512)


@pytest.fixture
def network():
    """Channel groups of 6 and 8, and 5 frozen classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = nn.Sequential(
            conv(3, 6), nn.ReLU(), conv(6, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)
        ).eval()
    network[5].weight.data *= 4
    return network


@pytest.fixture
def compressor(network):
    return Compressor(graph_of(network, SMALL), IMAGES, SETTINGS)


def kl(network, changed, images) -> float:
    with torch.no_grad():
        p, q = (functional.log_softmax(net(images).double(), 1) for net in (network, changed))
    return float((p.exp() * (p - q)).sum(1).mean())


# -- removal -------------------------------------------------------------------------------------


def test_every_free_group_has_a_curve_that_falls_to_nothing_lost(compressor):
    errors = compressor.errors(choices_for(compressor.graph, (FLOAT,)))
    assert [len(curve) for curve in errors.removal] == [
        group.size + 1 for group in compressor.graph.groups
    ]
    for group in compressor.graph.free_groups:
        curve = errors.removal[group.index]
        assert curve[-1] == 0
        assert curve[0] == np.inf
        assert (np.diff(curve) <= 0).all()
        assert np.isfinite(curve[1:]).all()
        assert curve[1] > 1e-3


def test_frozen_groups_lose_nothing(compressor):
    errors = compressor.errors(choices_for(compressor.graph, (FLOAT,)))
    frozen = [group.index for group in compressor.graph.groups if not group.is_free]
    assert frozen
    for group in frozen:
        assert not errors.removal[group].any()


def test_curve_passes_through_the_divergences_at_measured_levels(compressor):
    """0.85, 0.7, 0.5, 0.3 and 0.15 of six and of eight channels, rounded."""
    errors, graph = compressor.errors(choices_for(compressor.graph, (FLOAT,))), compressor.graph
    even, odd = compressor._images[::2], compressor._images[1::2]
    most = SETTINGS.error_images // 2
    for group, counts in ((0, (1, 2, 3, 4, 5)), (1, (1, 2, 4, 6, 7))):
        measured = np.zeros(len(counts))
        for fitted, judging in ((even, odd), (odd, even)):
            moments = gather_statistics(graph, fitted).moments
            for place, count in enumerate(counts):
                changes = compressor._removed(group, count, moments)
                named = {path: [(0, change)] for path, change in changes.items()}
                measured[place] += divergences(graph, judging[:most], named, 1)[0] / 2
        assert (np.diff(measured) < 0).all()
        assert errors.removal[group][list(counts)] == pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("gone", [1, 2])
def test_error_of_a_removal_is_near_the_divergence_that_it_causes(compressor, network, group, gone):
    size = compressor.graph.groups[group].size
    name = compressor.graph.groups[group].name
    smaller = compressor.apply(Strategy({name: (size - gone) / size}, {})).module
    true = kl(network, smaller, IMAGES)
    assert true > 1e-4
    assert (
        0.6
        < compressor.errors(choices_for(compressor.graph, (FLOAT,))).removal[group][size - gone]
        / true
        < 1.6
    )


def made_up(size: int, path_errors, measured):
    """A curve of one group, from a path and what its removal does to one layer.

    The layer's output grows by a constant whose divergence is the ``measured`` one: its two
    scores are equally likely, and moved by +-a they are a^2 / 2 nats away.
    """
    network = nn.Sequential(conv(3, size), nn.Flatten(), nn.Linear(16 * size, 2))
    nn.init.zeros_(network[2].weight)
    nn.init.zeros_(network[2].bias)
    graph = graph_of(network, SMALL)

    def removed(group, count):
        moved = math.sqrt(2 * measured(count))
        constant = torch.tensor([moved, -moved])
        return {"2": lambda layer, received: constant.expand(len(received), 2)}

    paths = {0: RemovalPath(np.arange(size), np.array(path_errors))}
    statistics = CalibrationStatistics({}, {})
    errors = layer_errors(
        graph, IMAGES[:8], statistics, paths, removed, choices_for(graph, (FLOAT,))
    )
    return errors.removal[0]


def test_between_measured_levels_the_path_gives_the_shape():
    """Twenty channels; the path says 20 - k, measured is ten times as much at every level."""
    path = [np.inf, *(20.0 - k for k in range(1, 21))]
    curve = made_up(20, path, lambda count: 10 * (20 - count))
    assert curve[1:].tolist() == pytest.approx([10 * (20 - k) for k in range(1, 21)], rel=1e-4)


def test_factor_between_two_levels_is_their_geometric_mean_half_way():
    """Measured at 17, 14, 10, 6 and 3 of 20: 8 lies half way between 6 and 10."""
    path = [np.inf, *(20.0 - k for k in range(1, 21))]
    curve = made_up(20, path, lambda count: (20 - count) * (9 if count <= 6 else 1))
    assert curve[6] == pytest.approx(14 * 9, rel=1e-4)
    assert curve[10] == pytest.approx(10, rel=1e-4)
    assert curve[8] == pytest.approx(12 * 3, rel=1e-4)
    assert curve[1] == pytest.approx(19 * 9, rel=1e-4)  # beyond the last level: its factor
    assert curve[19] == pytest.approx(1, rel=1e-4)
    assert curve[20] == 0


def test_fewer_channels_never_err_less():
    path = [np.inf, *(20.0 - k for k in range(1, 21))]
    curve = made_up(20, path, lambda count: 5.0 if count == 10 else 1.0)
    assert (np.diff(curve) <= 0).all()
    assert curve[3] == curve[10] == pytest.approx(5.0, rel=1e-4)


def test_group_of_one_channel_has_nothing_to_lose():
    curve = made_up(1, [np.inf, 0.0], lambda count: 0.0)
    assert curve.tolist() == [np.inf, 0.0]


# -- bits ----------------------------------------------------------------------------------------


def test_float_is_free_and_fewer_bits_are_never_cheaper(compressor):
    errors = compressor.errors(choices_for(compressor.graph, PAIRS)).options
    assert errors.shape == (3, len(PAIRS))
    assert (errors[:, 0] == 0).all()
    table = {pair: errors[:, index] for index, pair in enumerate(PAIRS)}
    for weight, activation in ((8, 8), (4, 8), (2, 8), (8, 4), (4, 4), (2, 4)):
        for fewer in (Bits(weight, 4), Bits(2, activation), Bits(min(weight, 4), activation)):
            assert (table[fewer] >= table[Bits(weight, activation)]).all()
    assert (table[Bits(2, 4)] > 1e-4).all()


def test_errors_of_weights_and_activations_add(compressor):
    pairs = (Bits(4, 32), Bits(32, 4), Bits(4, 4))
    weight, activation, both = compressor.errors(choices_for(compressor.graph, pairs)).options.T
    assert both == pytest.approx(weight + activation)


def test_errors_do_not_depend_on_what_else_is_on_offer(compressor):
    few, many = (
        compressor.errors(choices_for(compressor.graph, (Bits(4, 8),))),
        compressor.errors(choices_for(compressor.graph, PAIRS)),
    )
    assert few.options[:, 0] == pytest.approx(many.options[:, PAIRS.index(Bits(4, 8))])


@pytest.mark.parametrize("name", ["0", "2", "5"])
@pytest.mark.parametrize("bits", [Bits(5, 32), Bits(32, 5)])
def test_error_of_bits_is_near_the_divergence_of_the_quantized_network(
    compressor, network, name, bits
):
    (layer,) = (layer for layer in compressor.graph.layers if layer.name == name)
    estimated = compressor.errors(choices_for(compressor.graph, (bits,))).options[layer.index, 0]
    grid = None
    if bits.activation < 32:
        grid = activation_range(compressor.statistics.values[name], bits.activation)
    changed = graph_of(network, SMALL).plan.module
    changed._modules[name] = quantize_layer(changed.get_submodule(name), bits, grid)
    true = kl(network, changed, IMAGES)
    assert true > 1e-5
    assert 0.6 < estimated / true < 1.6


# -- the changes and their sum -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "received"),
    [
        (nn.Linear(6, 3), torch.randn(4, 6)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), torch.randn(2, 4, 7, 7)),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), torch.randn(2, 4, 7, 7)),
    ],
)
def test_linear_change_is_the_difference_of_both_outputs(layer, received):
    grid = quantize_weight(layer.weight, weight_scale(layer.weight, 3), 3).detach()
    shift = torch.randn(len(layer.weight))
    before = layer(received)
    change = LinearChange(grid - layer.weight.detach(), shift)(layer, received)
    layer.weight.data, layer.bias.data = grid, layer.bias.data + shift
    torch.testing.assert_close(layer(received) - before, change, rtol=1e-4, atol=1e-5)


def test_total_is_the_sum_over_groups_and_layers():
    removal = (np.array([np.inf, 3.0, 1.0, 0.0]), np.zeros(3))
    errors = LayerErrors(removal, np.array([[0.0, 0.5], [0.0, 0.25]]))
    assert errors.total([3, 2], [0, 0]) == 0
    assert errors.total([1, 2], [0, 1]) == 3 + 0.25
    assert errors.total([2, 2], [1, 1]) == 1 + 0.75
