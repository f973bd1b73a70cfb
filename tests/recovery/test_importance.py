import itertools

import numpy as np
import pytest
import torch
from torch import nn

from amc.compress.verify import graph_of
from amc.recovery.importance import absorbs_shift, column_units, removal_orders
from amc.recovery.moments import gather_statistics, input_rows
from tests.conftest import TINY_SHAPE
from tests.graph.nets import SHAPE, Sequence, conv


def images(count: int = 64) -> torch.Tensor:
    return torch.randn(count, *TINY_SHAPE, generator=torch.Generator().manual_seed(0))


def refit_error(rows: np.ndarray, outputs: np.ndarray, kept: list[int]) -> float:
    """What is left of the outputs after the best linear fit from some columns."""
    solution, *_ = np.linalg.lstsq(rows[:, kept], outputs, rcond=None)
    return float(((rows[:, kept] @ solution - outputs) ** 2).sum())


@pytest.mark.parametrize("bias", [True, False])
def test_each_removal_is_the_one_that_refitting_repairs_best(bias):
    """Against trying all: 5 channels that a 3 x 3 convolution reads at 4 x 4 positions."""
    torch.manual_seed(0)
    reader = nn.Conv2d(5, 6, 3, stride=2, padding=1, bias=bias)
    network = nn.Sequential(conv(3, 5), nn.ReLU(), reader, nn.Flatten(), nn.Linear(6 * 16, 4))
    graph, batch = graph_of(network, SHAPE), images()
    order = removal_orders(graph, gather_statistics(graph, batch))[0].tolist()
    with torch.no_grad():
        x = torch.relu(network[0](batch))
        rows = input_rows(reader, x, None)[0].double()
        if bias:  # a constant is repaired by the bias
            rows = rows - rows.mean(0)
        outputs = rows @ reader.weight.double().flatten(1).T
    left = list(range(5))
    for removed in order[:-1]:
        errors = {}
        for channel in left:
            rest = [c for c in left if c != channel]
            kept = [9 * c + tap for c, tap in itertools.product(rest, range(9))]
            errors[channel] = refit_error(rows.numpy(), outputs.numpy(), kept)
        assert removed == min(errors, key=errors.__getitem__)
        left.remove(removed)


def test_one_of_two_equal_channels_goes_first():
    torch.manual_seed(0)
    network = Sequence(conv(8, 6), features=6)
    network.first.weight.data[5] = network.first.weight.data[2]
    network.first.bias.data[5] = network.first.bias.data[2]
    graph = graph_of(network, SHAPE)
    order = removal_orders(graph, gather_statistics(graph, images()))[0]
    assert order[0] in (2, 5)


def test_channel_that_is_never_active_goes_first(tiny_net):
    tiny_net.bn1.bias.data[1] = -100
    graph = graph_of(tiny_net, TINY_SHAPE)
    assert removal_orders(graph, gather_statistics(graph, images()))[0][0] == 1


def test_orders_hold_every_channel_of_every_free_group_once(tiny_graph):
    orders = removal_orders(tiny_graph, gather_statistics(tiny_graph, images()))
    assert {group: sorted(order) for group, order in orders.items()} == {
        0: list(range(4)),
        1: list(range(6)),
    }


def test_flattened_and_grouped_readers_are_ranked():
    grouped = conv(8, 8, groups=2)
    network = nn.Sequential(conv(3, 8), grouped, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5))
    graph = graph_of(network, SHAPE)
    orders = removal_orders(graph, gather_statistics(graph, images()))
    assert [sorted(order) for order in orders.values()] == [list(range(4)), list(range(4))]


def test_without_moments_the_smallest_weights_go_first():
    network = Sequence(conv(8, 6), features=6)
    sizes = torch.tensor([5.0, 1, 7, 3, 8, 2, 6, 4])
    network.middle[0].weight.data = sizes.view(1, 8, 1, 1).repeat(6, 1, 3, 3)
    graph = graph_of(network, SHAPE)
    orders = removal_orders(graph, gather_statistics(graph, images(), max_columns=9))
    assert orders[0].tolist() == sizes.argsort().tolist()


def test_columns_of_a_weight_name_the_units_they_read(tiny_graph):
    units = tiny_graph.plan.layers
    columns = column_units(tiny_graph.plan.module.conv2, units["conv2"].inputs)
    assert columns.tolist() == np.repeat(units["conv2"].inputs, 9).tolist()
    linear = column_units(tiny_graph.plan.module.linear, units["linear"].inputs)
    assert linear.tolist() == units["linear"].inputs.tolist()


def test_constant_is_absorbed_by_a_bias_or_by_the_norm_that_follows(tiny_graph):
    assert absorbs_shift(tiny_graph, "conv2")  # bn2
    assert absorbs_shift(tiny_graph, "linear")  # its bias
    bare = Sequence(nn.Conv2d(8, 6, 3, bias=False), features=6)
    assert not absorbs_shift(graph_of(bare, SHAPE), "middle.0")
