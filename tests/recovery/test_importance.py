import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from amc.compress.verify import graph_of
from amc.errors import CalibrationError
from amc.layers import kind_of
from amc.recovery import importance, moments
from amc.recovery.importance import absorbs_shift, column_units, removal_paths
from amc.recovery.moments import CalibrationStatistics, gather_statistics
from amc.recovery.sensitivity import output_sensitivities
from tests.conftest import TINY_SHAPE
from tests.graph.nets import SHAPE, Sequence, conv


def images(count: int = 64) -> torch.Tensor:
    return torch.randn(count, *TINY_SHAPE, generator=torch.Generator().manual_seed(0))


def equally(graph) -> dict[str, torch.Tensor]:
    """Every output of every layer matters as much."""
    return {
        path: torch.ones(len(units.outputs), dtype=torch.float64)
        for path, units in graph.plan.layers.items()
    }


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
    paths = removal_paths(graph, gather_statistics(graph, batch), equally(graph))
    order = paths[0].order.tolist()
    with torch.no_grad():
        x = torch.relu(network[0](batch))
        rows = kind_of(reader).rows(reader, x, None)[0].double()
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
    statistics = gather_statistics(graph, images())
    order = removal_paths(graph, statistics, equally(graph))[0].order
    assert order[0] in (2, 5)


def test_channel_that_is_never_active_goes_first(tiny_net):
    tiny_net.bn1.bias.data[1] = -100
    graph = graph_of(tiny_net, TINY_SHAPE)
    paths = removal_paths(graph, gather_statistics(graph, images()), equally(graph))
    assert paths[0].order[0] == 1
    assert paths[0].errors[3] < 0.01 * paths[0].errors[2]


def test_orders_hold_every_channel_of_every_free_group_once(tiny_graph):
    sensitivities = output_sensitivities(tiny_graph, images())
    paths = removal_paths(tiny_graph, gather_statistics(tiny_graph, images()), sensitivities)
    assert {group: sorted(path.order) for group, path in paths.items()} == {
        0: list(range(4)),
        1: list(range(6)),
    }


def test_flattened_and_grouped_readers_are_ranked():
    grouped = conv(8, 8, groups=2)
    network = nn.Sequential(conv(3, 8), grouped, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5))
    graph = graph_of(network, SHAPE)
    paths = removal_paths(graph, gather_statistics(graph, images()), equally(graph))
    assert [sorted(p.order) for p in paths.values()] == [list(range(4)), list(range(4))]


def test_without_moments_the_smallest_weights_go_first(monkeypatch):
    network = Sequence(conv(8, 6), features=6)
    sizes = torch.tensor([5.0, 1, 7, 3, 8, 2, 6, 4])
    network.middle[0].weight.data = sizes.view(1, 8, 1, 1).repeat(6, 1, 3, 3)
    graph = graph_of(network, SHAPE)
    monkeypatch.setattr(moments, "WIDEST", 9)
    statistics = gather_statistics(graph, images())
    (path, *_) = removal_paths(graph, statistics, equally(graph)).values()
    assert path.order.tolist() == sizes.argsort().tolist()


# -- the error along the way ---------------------------------------------------------------------


def weighted_refit_error(rows, outputs, kept, sensitivity) -> float:
    """Nats: mean squared error of each output after the best linear fit, times its sensitivity."""
    solution, *_ = np.linalg.lstsq(rows[:, kept], outputs, rcond=None)
    squared = ((rows[:, kept] @ solution - outputs) ** 2).mean(0)
    return float(squared @ sensitivity)


def columns_of(channels: list[int]) -> list[int]:
    """Of a 3 x 3 kernel."""
    return [9 * c + tap for c, tap in itertools.product(channels, range(9))]


@pytest.mark.parametrize("bias", [True, False])
def test_errors_are_those_of_least_squares_times_sensitivity(bias):
    torch.manual_seed(0)
    reader = nn.Conv2d(5, 6, 3, stride=2, padding=1, bias=bias)
    network = nn.Sequential(conv(3, 5), nn.ReLU(), reader, nn.Flatten(), nn.Linear(6 * 16, 4))
    graph, batch = graph_of(network, SHAPE), images()
    reader_sensitivities = np.array([3.0, 0, 1, 0.5, 2, 7])
    sensitivities = {**equally(graph), "2": torch.from_numpy(reader_sensitivities)}
    statistics = gather_statistics(graph, batch)
    plain = {name: replace(found, shrinkage=0.0) for name, found in statistics.moments.items()}
    path = removal_paths(graph, replace(statistics, moments=plain), sensitivities)[0]
    with torch.no_grad():
        rows = kind_of(reader).rows(reader, torch.relu(network[0](batch)), None)[0].double()
        rows = rows - rows.mean(0) if bias else rows
        outputs = (rows @ reader.weight.double().flatten(1).T).numpy()
    expected = [
        weighted_refit_error(
            rows.numpy(), outputs, columns_of(path.order[5 - k :].tolist()), reader_sensitivities
        )
        for k in range(1, 5)
    ]
    assert path.errors[0] == np.inf
    assert path.errors[5] == 0
    assert path.errors[1:5].tolist() == pytest.approx(expected, rel=0.01)


def test_channel_that_only_reaches_outputs_that_do_not_matter_goes_first():
    torch.manual_seed(0)
    network = Sequence(conv(8, 6), features=6)
    reader = network.middle[0]
    reader.weight.data[1:, 3] = 0  # only output 0 reads channel 3 ...
    reader.weight.data[0, 3] = 10
    graph = graph_of(network, SHAPE)
    statistics, matters = gather_statistics(graph, images()), equally(graph)
    assert removal_paths(graph, statistics, matters)[0].order[0] != 3
    matters["middle.0"][0] = 0  # ... and output 0 does not matter
    path = removal_paths(graph, statistics, matters)[0]
    assert path.order[0] == 3
    assert path.errors[7] == pytest.approx(0, abs=1e-9)


def test_errors_of_all_readers_add():
    """A sum that two layers read: the errors are those of each reader alone, together."""
    torch.manual_seed(0)
    graph = graph_of(Sequence(conv(8, 6), features=6), SHAPE)
    statistics = gather_statistics(graph, images())
    reader = torch.tensor([3.0, 1, 1, 2, 2, 1]).double()
    once = removal_paths(graph, statistics, {**equally(graph), "middle.0": reader})[0]
    twice = removal_paths(graph, statistics, {**equally(graph), "middle.0": 2 * reader})[0]
    assert twice.order.tolist() == once.order.tolist()
    assert twice.errors[1:] == pytest.approx(2 * once.errors[1:])


def test_large_groups_lose_several_channels_at_a_step(monkeypatch):
    torch.manual_seed(0)
    graph = graph_of(Sequence(conv(8, 6), features=6), SHAPE)
    statistics = gather_statistics(graph, images())
    exact = removal_paths(graph, statistics, equally(graph))[0]
    monkeypatch.setattr(importance, "MAX_STEPS", 3)  # two channels at a step
    rough = removal_paths(graph, statistics, equally(graph))[0]
    assert sorted(rough.order) == list(range(8))
    assert rough.order[0] == exact.order[0]
    assert rough.errors[7] == pytest.approx(exact.errors[7])
    assert (np.diff(rough.errors[1:]) < 0).all()
    assert rough.errors[0] == np.inf
    assert rough.errors[8] == 0


def test_readers_too_wide_for_moments_cost_energy_times_squared_weights():
    """E[x^2] = (1^2 + 3^2) / 2 = 5, and every kernel holds nine equal weights."""
    network = Sequence(conv(8, 2), features=2)
    weights = torch.tensor([[5.0, 1, 7, 3, 8, 2, 6, 4], [0.0, 0, 0, 0, 0, 0, 0, 1]])
    network.middle[0].weight.data = weights.view(2, 8, 1, 1).repeat(1, 1, 3, 3)
    graph = graph_of(network, SHAPE)
    values = {"first": torch.ones(1), "middle.0": torch.tensor([1.0, 3.0]), "last": torch.ones(1)}
    statistics = CalibrationStatistics({}, values)
    sensitivities = {**equally(graph), "middle.0": torch.tensor([0.5, 2.0]).double()}
    costs = 5 * 9 * (0.5 * weights[0] ** 2 + 2 * weights[1] ** 2)
    path = removal_paths(graph, statistics, sensitivities)[0]
    assert path.order.tolist() == costs.argsort().tolist()
    gone = costs.sort().values.cumsum(0)[:7].flip(0)  # 7, ..., 1 channels gone
    assert path.errors[1:8].tolist() == pytest.approx(gone.tolist())


def test_readers_with_and_without_moments_cost_together(tiny_graph, monkeypatch):
    """conv2's channels are read by conv3 (54 columns) and, with what it adds, by linear (6)."""
    statistics, matters = gather_statistics(tiny_graph, images()), equally(tiny_graph)
    monkeypatch.setattr(moments, "WIDEST", 36)
    narrow = gather_statistics(tiny_graph, images())
    assert set(statistics.moments) - set(narrow.moments) == {"conv3"}
    without = {**matters, "conv3": 0 * matters["conv3"]}
    of_linear = removal_paths(tiny_graph, narrow, without)[1]
    both = removal_paths(tiny_graph, narrow, matters)[1]
    first = both.order[0]
    columns = slice(9 * first, 9 * first + 9)
    weight = tiny_graph.plan.module.get_submodule("conv3").weight.detach().double().flatten(1)
    loose = statistics.values["conv3"].double().square().mean() * weight[:, columns].square().sum()
    assert both.errors[5] > float(loose)
    assert both.errors[5] - float(loose) >= of_linear.errors[5] * (1 - 1e-9)


def test_importance_by_magnitude_takes_inputs_as_independent_and_of_equal_energy():
    torch.manual_seed(0)
    graph = graph_of(Sequence(conv(8, 6), features=6), SHAPE)
    statistics, matters = gather_statistics(graph, images()), equally(graph)
    path = removal_paths(graph, statistics, matters, "magnitude")[0]
    weight = graph.plan.module.get_submodule("middle.0").weight.detach().double()
    energy = statistics.values["middle.0"].double().square().mean()
    costs = energy * weight.square().sum((0, 2, 3))
    assert path.order.tolist() == costs.argsort().tolist()
    assert path.errors[7] == pytest.approx(float(costs.min()))
    assert path.errors[1] == pytest.approx(float(costs.sum() - costs.max()))


def test_outputs_that_do_not_matter_make_removal_cost_nothing():
    torch.manual_seed(0)
    network = Sequence(conv(8, 6), features=6)
    graph = graph_of(network, SHAPE)
    nothing = {path: 0 * values for path, values in equally(graph).items()}
    path = removal_paths(graph, gather_statistics(graph, images()), nothing)[0]
    assert sorted(path.order) == list(range(8))
    assert path.errors[1:].tolist() == [0] * 8


# -- columns and constants -----------------------------------------------------------------------


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


def test_layer_whose_moments_have_no_inverse_is_named(tiny_graph):
    batch = images()
    statistics = gather_statistics(tiny_graph, batch)
    wrong = replace(statistics.moments["conv2"], covariance=-statistics.moments["conv2"].covariance)
    statistics = replace(statistics, moments={**statistics.moments, "conv2": wrong})
    with pytest.raises(CalibrationError, match="the inputs of layer 'conv2' has no solution"):
        removal_paths(tiny_graph, statistics, equally(tiny_graph))
