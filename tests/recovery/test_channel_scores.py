from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from amc.compress.verify import graph_of
from amc.objectives import Classification
from amc.recovery.channel_scores import SCORES, Known, _entering
from amc.recovery.importance import removal_paths
from amc.recovery.moments import gather_statistics
from amc.recovery.sensitivity import input_pulls
from amc.recovery.settings import IMPORTANCES
from tests.graph.nets import SHAPE, Residuals, conv

IMAGES = torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(0))


class Summed(Classification):
    """Whose loss is the sum of all outputs."""

    def sampled_loss(self, outputs, generator):
        return outputs.sum()


def network(places: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        conv(3, 4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Flatten(),
        nn.Linear(6 * places, 5),
    )  # fmt: skip


def known_of(net: nn.Module, objective=None) -> tuple[Known, list[np.ndarray]]:
    graph = graph_of(net, SHAPE)
    ones = {
        path: torch.ones(len(units.outputs), dtype=torch.float64)
        for path, units in graph.plan.layers.items()
    }
    found = Known(
        graph,
        gather_statistics(graph, IMAGES),
        ones,
        lambda: input_pulls(graph, IMAGES, objective or Classification()),
    )
    members = [np.flatnonzero(graph.plan.unit_group == group.index) for group in graph.free_groups]
    return found, members


def test_every_name_is_an_importance():
    assert set(IMPORTANCES) == {"surgeon", "magnitude", *SCORES}


def test_norms_and_distances_are_of_the_filters_that_produce_a_channel():
    net = network()
    known, (first, _) = known_of(net)
    rows = net[0].weight.detach().double().flatten(1)
    torch.testing.assert_close(SCORES["l1"](known, first), rows.abs().sum(1))
    torch.testing.assert_close(SCORES["l2"](known, first), rows.square().sum(1).sqrt())
    distances = [sum(float((a - b).norm()) for b in rows) for a in rows]
    assert SCORES["geometric_median"](known, first).tolist() == pytest.approx(distances)


def test_filters_of_all_layers_that_add_to_a_stream_count_together():
    net = Residuals()
    known, members = known_of(net)
    producers = {
        path: units
        for path, units in known.graph.plan.layers.items()
        if np.isin(units.outputs, members[0]).any()
    }
    total = sum(
        known.graph.plan.module.get_submodule(path).weight.detach().double().flatten(1).abs().sum(1)
        for path in producers
    )
    torch.testing.assert_close(SCORES["l1"](known, members[0]), total)


def test_activation_is_the_energy_of_what_readers_receive():
    known, (_, second) = known_of(net := network())
    with torch.no_grad():
        received = net[2](net[1](net[0](IMAGES))).double()
    energy = received.square().mean((0, 2, 3)) * 16  # of a channel's 16 inputs of the linear layer
    torch.testing.assert_close(SCORES["activation"](known, second), energy, rtol=1e-4, atol=1e-6)


def test_taylor_is_the_square_of_what_a_channel_adds_to_the_loss():
    known, (_, second) = known_of(net := network(), Summed())
    with torch.no_grad():
        received = net[2](net[1](net[0](IMAGES))).double()
        slopes = net[4].weight.double().sum(0).view(6, 4, 4)
    added = (received * slopes).sum((2, 3))
    expected = added.square().mean(0)
    torch.testing.assert_close(SCORES["taylor"](known, second), expected, rtol=1e-4, atol=1e-8)


def test_lasso_drops_the_weakest_first_and_of_near_twins_one():
    diagonal = torch.diag(torch.tensor([3.0, 1.0, 2.0])).double()
    assert _entering(diagonal).argsort().tolist() == [1, 2, 0]
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.1], [1.0, 0.05]]).double()
    assert _entering(rows @ rows.T).argsort().tolist() == [0, 1, 2]  # the last stands in for it
    assert _entering(torch.zeros(2, 2).double()).tolist() == [0, 0]


def test_channels_of_largest_gradient_are_added_first():
    """By hand: the norms of the outputs' error's gradients, summed over images one by one."""
    known, (_, second) = known_of(net := network())
    with torch.no_grad():
        received = net[2](net[1](net[0](IMAGES))).double().flatten(1)  # (images, 6 * 16)
    rows, added = net[4].weight.detach().double(), list[int]()
    for _ in range(6):
        missing = torch.ones(6, 16, dtype=torch.float64)
        missing[added] = 0.0
        error = received * missing.flatten() @ rows.T  # (images, outputs)
        gradient = error.T @ received / len(IMAGES)
        norms = gradient.square().sum(0).view(6, 16).sum(1)
        norms[added] = -1
        added.append(int(norms.argmax()))
    scores = SCORES["discrimination"](known, second)
    assert scores.argsort(descending=True).tolist() == added
    assert sorted(scores.tolist()) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("make", [network, Residuals])
def test_path_takes_the_least_score_first_and_errors_grow(name, make):
    known, members = known_of(make())
    paths = removal_paths(known.graph, known.statistics, known.sensitivities, name, known.pulls)
    assert len(paths) == len(members)
    for path, group in zip(paths.values(), members, strict=True):
        scores = SCORES[name](known, group)
        assert scores.shape == (len(group),)
        assert (scores[torch.from_numpy(path.order)].diff() >= 0).all()
        assert sorted(path.order) == list(range(len(group)))
        assert np.isinf(path.errors[0])
        assert path.errors[-1] == 0
        assert (np.diff(path.errors[1:]) <= 0).all()


def test_channels_of_a_wide_layer_are_scored_by_channel(monkeypatch):
    net = network()
    graph = graph_of(net, SHAPE)
    wide = gather_statistics(graph, IMAGES, max_columns=20)
    assert wide.moments["4"].places == 16
    known, (first, second) = known_of(net)
    wide_known = Known(graph, wide, known.sensitivities, known.pulls)
    for members in (first, second):
        assert SCORES["lasso"](wide_known, members).shape == (len(members),)
        close = SCORES["activation"](wide_known, members) / SCORES["activation"](known, members)
        assert close.tolist() == pytest.approx([1] * len(members), rel=0.3)


def test_gradients_are_asked_for_once_and_by_taylor_alone():
    known, _ = known_of(network())
    asked = []

    def pulls():
        asked.append(1)
        return known.pulls()

    given = known.graph, known.statistics, known.sensitivities
    for name in IMPORTANCES:
        removal_paths(*given, name, pulls)
    assert asked == [1]
