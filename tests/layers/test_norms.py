"""Normalisations over channels: what they are with some of their channels gone, and ignored."""

import pytest
import torch
from torch import nn

from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import TOLERANCE, graph_of, removal_error
from amc.graph.graph import NetworkGraph
from amc.layers.norms import ignoring_norm, sliced_factors
from tests.graph.nets import SHAPE, Sequence, conv

KEPT = torch.tensor([0, 2, 3, 5])


def randomised(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in norm.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return norm.eval()


class Tokens(nn.Module):
    """Patches as tokens, a residual block of two linear layers, a norm, and the first token."""

    def __init__(self, norm=nn.LayerNorm) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.places = nn.Parameter(torch.randn(1, 4, 8) / 10)
        self.before, self.wide, self.narrow = norm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.scale, self.after = nn.Parameter(torch.rand(8)), norm(8)
        self.head = nn.Linear(8, 5)
        for module in (self.before, self.after):
            randomised(module)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        x = x + self.scale * self.narrow(torch.relu(self.wide(self.before(x))))
        return self.head(self.after(x)[:, 0])


def sizes(graph: NetworkGraph) -> dict[str, int]:
    return {group.name: group.size for group in graph.free_groups}


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.LayerNorm(6), (2, 7, 6)),
        (nn.LayerNorm(6, bias=False), (2, 3, 3, 6)),
        (nn.LayerNorm(6, elementwise_affine=False), (2, 6)),
        (nn.RMSNorm(6), (2, 7, 6)),
        (nn.RMSNorm(6, eps=0.1, elementwise_affine=False), (2, 7, 6)),
        (nn.GroupNorm(1, 6), (2, 6, 3, 3)),
        (nn.GroupNorm(2, 6, affine=False), (2, 6, 3, 3)),
        (nn.GroupNorm(6, 6), (2, 6, 3, 3)),
    ],
    ids=str,
)
def test_ignored_channels_count_in_no_statistic(norm, shape):
    norm, x = randomised(norm), torch.randn(shape) + 1
    dim = 1 if isinstance(norm, nn.GroupNorm) else -1
    ignoring, smaller = ignoring_norm(norm, KEPT), sliced_factors(norm, KEPT)
    given = ignoring(x).index_select(dim, KEPT)
    torch.testing.assert_close(given, smaller(x.index_select(dim, KEPT)))
    torch.testing.assert_close(ignoring_norm(norm, torch.arange(6))(x), norm(x))
    x.index_copy_(dim, torch.tensor([1, 4]), torch.full_like(x, 9).index_select(dim, KEPT[:2]))
    torch.testing.assert_close(ignoring(x).index_select(dim, KEPT), given, rtol=0, atol=0)


def test_a_normalisation_of_each_channel_alone_ignores_nothing():
    assert ignoring_norm(nn.BatchNorm2d(6), KEPT) is None


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_the_stream_of_tokens_is_free_and_removed_as_defined(norm):
    graph = graph_of(Tokens(norm), SHAPE)
    assert sizes(graph) == {"patches": 8, "wide": 12}
    assert [op.signature.op for op in graph.operators].count("layer_norm") == 2
    keep = keep_mask(graph, {0: torch.tensor([0, 3, 6]).numpy(), 1: torch.arange(5).numpy()})
    assert removal_error(graph, keep, torch.randn(2, *SHAPE)) < 1e-5
    smaller = remove_channels(graph.plan, keep)
    assert tuple(smaller.before.normalized_shape) == (3,)
    assert smaller.places.shape == (1, 4, 3)


@pytest.mark.parametrize(("groups", "free"), [(1, 8), (4, 2), (8, 8)])
def test_groups_that_are_normalised_together_lose_equally_many(groups, free):
    network = Sequence(randomised(nn.GroupNorm(groups, 8)), conv(8, 6), features=6)
    graph = graph_of(network, SHAPE)
    assert sizes(graph) == {"first": free, "middle.1": 6}
    keep = keep_mask(graph, {0: torch.arange(1).numpy()})
    assert removal_error(graph, keep, torch.randn(2, *SHAPE)) <= TOLERANCE
    norm = remove_channels(graph.plan, keep).middle.get_submodule("0")
    assert (norm.num_groups, norm.num_channels) == {1: (1, 1), 4: (4, 4), 8: (1, 1)}[groups]


def test_a_normalisation_over_several_dimensions_is_not_followed():
    graph = graph_of(Sequence(nn.LayerNorm((8, 8)), conv(8, 6), features=6), SHAPE)
    assert sizes(graph) == {"middle.1": 6}
    (reason,) = {g.reason for g in graph.frozen_groups if g.name == "first"}
    assert "reaches layer_norm (middle.0), which amc cannot follow" in reason
