import numpy as np
import pytest
import torch
from torch import nn

from amc.compress.verify import graph_of
from amc.errors import CalibrationError
from amc.layers import kind_of
from amc.layers.kind import POSITIONS_PER_IMAGE
from amc.recovery import moments
from amc.recovery.moments import (
    VALUES_PER_LAYER,
    by_channel,
    by_place,
    gather_statistics,
    places_of,
)
from tests.conftest import TINY_SHAPE
from tests.graph.nets import SHAPE, Sequence, conv

LAYERS = {
    "plain": nn.Conv2d(4, 6, 3),
    "padded and strided": nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2)),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2, padding="same"),
    "grouped": nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "reflected": nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"),
}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(70, *TINY_SHAPE, generator=torch.Generator().manual_seed(0)) + 3


@pytest.mark.parametrize("name", LAYERS)
def test_weight_times_input_rows_is_what_the_convolution_gives(name):
    layer = LAYERS[name]
    x = torch.randn(2, 4, 7, 9)
    rows = kind_of(layer).rows(layer, x, None)  # (groups, n * positions, columns)
    weight = layer.weight.reshape(layer.groups, -1, rows.shape[2])
    y = rows @ weight.transpose(1, 2)  # (groups, n * positions, outputs)
    expected = layer(x) - layer.bias.view(1, -1, 1, 1)
    given = y.permute(0, 2, 1).reshape(6, 2, -1).transpose(0, 1).reshape(expected.shape)
    assert torch.allclose(given, expected, atol=1e-5)


def test_rows_of_a_linear_layer_are_its_inputs():
    linear, x = nn.Linear(4, 2), torch.randn(3, 5, 4)
    assert torch.equal(kind_of(linear).rows(linear, x, None)[0], x.reshape(15, 4))


def test_sampled_positions_are_among_all_of_them():
    layer, x = nn.Conv2d(2, 3, 3), torch.randn(1, 2, 12, 12)
    every = {tuple(row) for row in kind_of(layer).rows(layer, x, None)[0].tolist()}
    some = kind_of(layer).rows(layer, x, torch.Generator().manual_seed(0))[0].tolist()
    assert len(some) == POSITIONS_PER_IMAGE < len(every)
    assert {tuple(row) for row in some} < every


def test_moments_are_those_of_the_unfolded_inputs(tiny_net, tiny_graph, images):
    with torch.no_grad():
        x = torch.relu(tiny_net.bn1(tiny_net.conv1(images)))
    rows = nn.functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1).double()
    moments = gather_statistics(tiny_graph, images).moments["conv2"]
    assert moments.mean.shape == (1, 4 * 9)
    assert torch.allclose(moments.mean[0].double(), rows.mean(0), atol=1e-5)
    assert torch.allclose(moments.gram[0].double(), rows.T @ rows / len(rows), atol=1e-4)
    covariance = torch.cov(rows.T, correction=0)
    assert torch.allclose(moments.covariance[0].double(), covariance, atol=1e-5)


def test_small_variation_about_a_large_mean_keeps_its_digits():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5))
    noise = torch.randn(256, *SHAPE, generator=torch.Generator().manual_seed(0)) * 0.01
    images = noise + 50
    moments = gather_statistics(graph_of(network, SHAPE), images).moments["1"]
    expected = torch.cov(images.flatten(1).double().T, correction=0)
    assert torch.allclose(moments.covariance[0].double(), expected, atol=1e-3 * 1e-4)


def test_sampled_values_are_inputs_of_the_layer(tiny_net, tiny_graph, images):
    values = gather_statistics(tiny_graph, images).values["conv2"]
    with torch.no_grad():
        x = torch.relu(tiny_net.bn1(tiny_net.conv1(images)))
    assert VALUES_PER_LAYER <= len(values) < VALUES_PER_LAYER + len(images)
    assert torch.isin(values, x).float().mean() > 0.9  # batches round differently
    assert float(values.min()) >= 0


@pytest.mark.parametrize("count", [20, 130])  # one batch, three
def test_sample_shows_the_rare_large_values_of_few_images(count):
    """One value in a thousand is 50 times as large as most: a grid must know of it."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5))
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(count, *SHAPE, generator=draw)
    images[torch.rand(images.shape, generator=draw) < 1e-3] = 50.0
    values = gather_statistics(graph_of(network, SHAPE), images).values["1"]
    found, held = ((some == 50).float().mean() for some in (values, images))
    assert float(found) == pytest.approx(float(held), rel=0.6)


def test_depthwise_layers_and_those_of_too_many_inputs_have_no_moments(images, monkeypatch):
    network = Sequence(conv(8, 8, groups=8), conv(8, 6), features=6)
    graph = graph_of(network, SHAPE)
    assert set(gather_statistics(graph, images).moments) == {"first", "middle.1", "last"}
    monkeypatch.setattr(moments, "WIDEST", 8 * 9 - 1)
    narrow = gather_statistics(graph, images)
    assert set(narrow.moments) == {"first", "last"}
    assert set(narrow.values) == {"first", "middle.0", "middle.1", "last"}


def test_of_a_wide_convolution_channels_are_looked_at_pixel_by_pixel():
    images = torch.randn(70, 3, 5, 5, generator=torch.Generator().manual_seed(0)) + 3
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6 * 9, 5)
    ).eval()
    graph = graph_of(network, (3, 5, 5))
    found = gather_statistics(graph, images, max_columns=8 * 9 - 1).moments["1"]
    assert found.places == 9
    with torch.no_grad():
        received = network[0](images)
    pixels = received.transpose(0, 1).flatten(1).double()  # (8, n * height * width)
    assert pixels.shape[1] // len(images) <= POSITIONS_PER_IMAGE  # all are taken
    torch.testing.assert_close(found.mean[0].double(), pixels.mean(1), rtol=1e-4, atol=1e-5)
    expected = torch.cov(pixels, correction=0)
    torch.testing.assert_close(found.covariance[0].double(), expected, rtol=1e-3, atol=1e-5)


def test_of_a_wide_linear_layer_the_channels_that_were_flattened_are_looked_at(images):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    graph = graph_of(network, SHAPE)
    layer, units = network[2], graph.plan.layers["2"].inputs
    assert places_of(layer, units, 4 * 36) == 1
    assert places_of(layer, units, 4 * 36 - 1) == 36
    assert places_of(nn.Linear(6, 5), np.array([0, 0, 1, 1, 1, 2]), 2) == 1  # uneven
    assert places_of(nn.Linear(6, 5), np.zeros(6, np.int64), 2) == 6
    found = gather_statistics(graph, images, max_columns=100).moments["2"]
    assert found.covariance.shape == (1, 4, 4)


@pytest.mark.parametrize("groups", [1, 2])
def test_weight_by_channel_is_put_back_as_it_was(groups):
    weight = torch.randn(4, 6 // groups, 3, 3)
    split = by_channel(weight, groups, 9)
    assert split.shape == (groups, 4 // groups * 9, 6 // groups)
    assert split[0, 1, 0] == weight[0, 0, 0, 1]  # output 0, second place
    assert torch.equal(by_place(split, 9).reshape(weight.shape), weight)


def test_statistics_are_the_same_each_time(tiny_graph, images):
    first, second = (gather_statistics(tiny_graph, images) for _ in range(2))
    for name, found in first.moments.items():
        assert torch.equal(found.covariance, second.moments[name].covariance)
        assert torch.equal(first.values[name], second.values[name])


def test_network_is_left_without_hooks(tiny_graph, images):
    gather_statistics(tiny_graph, images)
    assert not any(m._forward_pre_hooks for m in tiny_graph.plan.module.modules())


def test_activations_that_are_not_finite_are_an_error_that_names_the_layer(tiny_graph, images):
    tiny_graph.plan.module.bn1.weight.data.fill_(float("inf"))
    with pytest.raises(CalibrationError, match="Inputs of layer 'conv2' are not finite"):
        gather_statistics(tiny_graph, images)


def test_one_bad_value_is_found(tiny_graph, images):
    images[5, 0, 3, 3] = float("nan")
    with pytest.raises(CalibrationError, match="not finite"):
        gather_statistics(tiny_graph, images)


def test_shrinkage_is_ledoit_and_wolfs_with_images_as_observations():
    """The expected squared error of the covariances of two columns beside their squares."""
    layer, draw = nn.Conv2d(3, 5, 1), torch.Generator().manual_seed(0)
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(5 * 64, 4))
    images = torch.randn(20, *SHAPE, generator=draw)
    found = gather_statistics(graph_of(network, SHAPE), images).moments["2"]
    with torch.no_grad():
        rows = layer(images).flatten(1).double()
    rows = rows - rows.mean(0)
    each = rows.unsqueeze(2) * rows.unsqueeze(1)
    off = 1 - torch.eye(rows.shape[1], dtype=torch.float64)
    shared = each.mean(0) * off
    error = ((each - each.mean(0)) * off).square().sum() / (20 * 19)
    assert found.images == 20
    assert found.shrinkage == pytest.approx(float(error / shared.square().sum()), rel=1e-3)
    system = found.system(centred=True)[0]
    torch.testing.assert_close(torch.diagonal(system), torch.diagonal(found.covariance[0]))
    torch.testing.assert_close(
        system[0, 1], (1 - found.shrinkage) * found.covariance[0, 0, 1], rtol=1e-4, atol=1e-7
    )


def test_positions_of_one_image_that_are_alike_are_no_more_observations():
    """64 equal positions: the shrinkage of one; independent ones: much less."""
    network = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten(), nn.Linear(5 * 64, 4))
    graph, draw = graph_of(network, SHAPE), torch.Generator().manual_seed(0)
    mixed = torch.randn(3, 3, generator=draw)
    alike = torch.einsum("nchw,cd->ndhw", torch.randn(30, 3, 1, 1, generator=draw), mixed)
    apart = torch.einsum("nchw,cd->ndhw", torch.randn(30, *SHAPE, generator=draw), mixed)
    few = gather_statistics(graph, alike.expand(30, *SHAPE).contiguous()).moments["0"].shrinkage
    many = gather_statistics(graph, apart).moments["0"].shrinkage
    assert many < 0.1 * few


def test_rows_of_a_depthwise_layer_lie_side_by_side():
    """Products of strided rows take 30 times as long."""
    layer, x = nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.randn(2, 8, 6, 6)
    for layout in (torch.contiguous_format, torch.channels_last):
        rows = kind_of(layer).rows(layer, x.contiguous(memory_format=layout), None)
        assert rows.is_contiguous()
        expected = layer(x).flatten(2).permute(1, 0, 2).flatten(1)
        given = (rows @ layer.weight.flatten(2).transpose(1, 2)).squeeze(2) + layer.bias[:, None]
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
