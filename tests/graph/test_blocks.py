"""Residual blocks that can go: which there are, and the network without them."""

from itertools import chain, combinations

import numpy as np
import pytest
import torch
from torch import nn

from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import freeze_groups, graph_of
from amc.errors import StrategyError
from amc.graph.blocks import called_paths, without
from amc.graph.graph import build_graph
from amc.networks import build_network
from amc.strategy import Strategy
from tests.conftest import randomise_norms
from tests.graph.nets import SHAPE, Net, Residuals, conv

INNER = ["blocks.0.0", "blocks.1.0", "blocks.2.0", "blocks.3.0"]
IMAGES = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
SUBSETS = [set(s) for s in chain.from_iterable(combinations(range(4), n) for n in range(1, 5))]


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise_norms(Residuals()).eval()


@pytest.fixture(scope="module")
def graph(network):
    return graph_of(network, SHAPE)


def group_names(graph):
    return [graph.groups[block.group].name for block in graph.plan.blocks]


def is_the_network_without(network, smaller, left_out):
    network.left_out = left_out
    try:
        with torch.no_grad():
            return torch.allclose(smaller(IMAGES), network(IMAGES), atol=1e-5)
    finally:
        network.left_out = set()


# -- which there are -----------------------------------------------------------------------------


def test_blocks_are_found_with_all_that_goes_with_them(graph):
    assert group_names(graph) == INNER
    first, second, bottleneck, inverted = graph.plan.blocks
    assert first.end == "blocks.0.3"
    assert first.layers == {"blocks.0.0", "blocks.0.3"}
    assert bottleneck.layers == {"blocks.2.0", "blocks.2.2", "blocks.2.4"}
    assert inverted.layers == {"blocks.3.0", "blocks.3.2", "blocks.3.4"}
    # Convolution, norm, ReLU, convolution, norm; the addition, and the ReLU behind it.
    assert len(first.gone) == 7
    assert len(second.gone) == 5
    assert len(inverted.gone) == 6  # nothing is rectified behind the last sum


def test_rectifier_behind_a_block_stays_where_its_shortcut_is_not_rectified():
    class Plain(Net):
        def __init__(self):
            super().__init__(8)
            self.stem, self.branch = conv(8, 8), nn.Sequential(conv(8, 4), nn.ReLU(), conv(4, 8))

        def body(self, x):
            x = self.stem(x)  # negative values, too
            return torch.relu(x + self.branch(x))

    network = Plain().eval()
    graph = graph_of(network, SHAPE)
    (block,) = graph.plan.blocks
    smaller = without(graph.plan.module, [block])
    with torch.no_grad():
        x = network.stem(torch.relu(network.first(IMAGES)))
        expected = network.last(torch.relu(x).mean((2, 3)))
        assert torch.allclose(smaller(IMAGES), expected, atol=1e-6)


def test_published_networks_have_their_blocks():
    shape = (3, 32, 32)
    resnet = build_graph(build_network("resnet20", num_classes=10, image_shape=shape), shape)
    # The first blocks of the second and third stage change the shape: their shortcut is padded.
    assert group_names(resnet) == [
        f"layer{stage}.{place}.conv1"
        for stage in (1, 2, 3)
        for place in range(3)
        if stage == 1 or place
    ]
    mobile = build_graph(build_network("mobilenet_v2", num_classes=10, image_shape=shape), shape)
    repeats = {2: 1, 3: 2, 4: 3, 5: 2, 6: 2}  # Sandler et al. 2018, table 2: n - 1, of stride 1
    assert len(mobile.plan.blocks) == sum(repeats.values())
    efficient = build_network("efficientnet_b0", num_classes=10, image_shape=shape)
    repeats = {2: 1, 3: 1, 4: 2, 5: 2, 6: 3}  # Tan and Le 2019, table 1: its layers less one
    assert len(build_graph(efficient, shape).plan.blocks) == sum(repeats.values())


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: x + net.branch(x).mean((2, 3), keepdim=True),  # broadcast
        lambda net, x: torch.add(x, net.branch(x), alpha=2),  # scaled
        lambda net, x: x - net.branch(x),  # no sum
        lambda net, x: torch.cat([x, net.branch(x)], 1)[:, :8],
        lambda net, x: x + torch.sigmoid(net.branch(x)),  # no layer at its end
        lambda net, x: (x + net.branch(x)) + net.branch[0](x).mean(),  # read elsewhere
    ],
)
def test_what_is_no_block_is_left_alone(function):
    class Other(Net):
        def __init__(self):
            super().__init__(8)
            self.branch = nn.Sequential(conv(8, 4), nn.ReLU(), conv(4, 8))

        def body(self, x):
            return function(self, x)

    assert graph_of(Other().eval(), SHAPE).plan.blocks == ()


def test_of_nested_blocks_the_innermost_can_go():
    class Nested(Net):
        def __init__(self):
            super().__init__(8)
            self.inner = nn.Sequential(conv(8, 4), nn.ReLU(), conv(4, 8))
            self.before, self.after = conv(8, 8), conv(8, 8)

        def body(self, x):
            y = torch.relu(self.before(x))
            y = torch.relu(y + self.inner(y))
            return x + self.after(y)

    assert [block.end for block in graph_of(Nested().eval(), SHAPE).plan.blocks] == ["inner.2"]


def test_block_of_a_frozen_group_cannot_go(graph):
    frozen = graph.plan.blocks[1].group
    fixed = freeze_groups(graph, {frozen: "is a test"})
    assert group_names(fixed) == [name for name in INNER if name != "blocks.1.0"]
    smaller = remove_channels(fixed.plan, keep_mask(fixed, {}))
    assert called_paths(smaller) == called_paths(graph.plan.module)


# -- the network without them --------------------------------------------------------------------


@pytest.mark.parametrize("left_out", SUBSETS, ids=str)
def test_network_without_blocks_is_the_one_in_which_they_add_nothing(network, graph, left_out):
    empty = {graph.plan.blocks[number].group: np.array([], np.int64) for number in left_out}
    smaller = remove_channels(graph.plan, keep_mask(graph, empty))
    assert is_the_network_without(network, smaller, left_out)
    gone = {layer for number in left_out for layer in graph.plan.blocks[number].layers}
    assert not gone & called_paths(smaller)
    assert not any(name.startswith(tuple(gone)) for name, _ in smaller.named_parameters())


def test_what_a_smaller_network_is_given_does_not_reach_the_original(network, graph):
    empty = {graph.plan.blocks[0].group: np.array([], np.int64)}
    smaller = remove_channels(graph.plan, keep_mask(graph, empty))
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.zero_()
    assert is_the_network_without(network, graph.plan.module, set())


# -- strategies ----------------------------------------------------------------------------------


def test_ratio_of_nothing_is_for_blocks_alone(graph):
    kept = graph.kept_counts(Strategy({"blocks.2.0": 0.0}, {}))
    assert kept[graph.plan.blocks[2].group] == 0
    with pytest.raises(StrategyError, match=r"'first'.*blocks.0.0, blocks.1.0, blocks.2.0, blo"):
        graph.kept_counts(Strategy({"first": 0.0}, {}))


def test_network_without_blocks_says_that_there_are_none(tiny_graph):
    with pytest.raises(StrategyError, match="only the inside of a residual block can go, here non"):
        tiny_graph.kept_counts(Strategy({"conv1": 0.0}, {}))
