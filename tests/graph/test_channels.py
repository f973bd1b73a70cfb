"""How channels pass through operators; what amc takes for exact is checked in tests/compress."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import graph_of, removal_error
from amc.graph import channels
from amc.graph.graph import NetworkGraph, build_graph
from amc.graph.types import ChannelCount
from tests.graph.nets import (
    SHAPE,
    CalledTwice,
    Concat,
    FactorsOfTwoVectors,
    Flattening,
    Function,
    LayerScale,
    PaddedShortcut,
    Patches,
    PositionMap,
    Sequence,
    SharedFactors,
    SpatialAttention,
    SplitShuffle,
    SqueezeExcite,
    conv,
)

IMAGES = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
# What `FactorsOfTwoVectors` scales its channels by.
PRODUCT = torch.linspace(0.5, 1.5, 8) * torch.linspace(2.0, 1.0, 8)


def sizes(graph: NetworkGraph) -> dict[str, int]:
    return {group.name: group.size for group in graph.free_groups}


def reason(graph: NetworkGraph, name: str) -> str:
    (found,) = (group.reason for group in graph.frozen_groups if group.name == name)
    assert found is not None
    return found


def test_tensors_that_are_added_share_a_group(tiny_graph):
    assert sizes(tiny_graph) == {"conv1": 4, "conv2": 6}
    stream = tiny_graph.groups[1]
    assert stream.producers == ("conv2", "conv3")
    assert stream.consumers == ("conv3", "linear")


def test_classes_are_frozen(tiny_graph):
    assert reason(tiny_graph, "linear") == "is an output of the network"


def test_concatenated_tensors_keep_groups_of_their_own():
    graph = graph_of(Concat(), SHAPE)
    assert sizes(graph) == {"first": 8, "a": 4, "b": 6, "merge": 7}
    assert [group.consumers for group in graph.free_groups[1:3]] == [("merge",), ("merge",)]


def test_depthwise_outputs_follow_the_group_that_feeds_them():
    graph = graph_of(Sequence(conv(8, 16, groups=8), conv(16, 6), features=6), SHAPE)
    assert sizes(graph) == {"first": 8, "middle.1": 6}


def test_convolution_groups_lose_equally_many_channels():
    graph = graph_of(Sequence(conv(8, 12, groups=4), conv(12, 6), features=6), SHAPE)
    assert sizes(graph) == {"first": 8 // 4, "middle.0": 12 // 4, "middle.1": 6}


def test_shuffled_and_split_channels_are_grouped_by_who_reads_them():
    graph = graph_of(SplitShuffle(), SHAPE)
    assert [(g.size, g.consumers) for g in graph.free_groups if "first" in g.name] == [
        (4, ("part",)),
        (4, ("last",)),
    ]
    # rows of 0 4 1 5 | 2 6 3 7: the half is fed by channels 0, 1, 4, 5
    assert graph.plan.unit_group[graph.plan.layers["first"].outputs].tolist() == [
        0, 0, 1, 1, 0, 0, 1, 1,
    ]  # fmt: skip


def test_pixel_shuffle_unites_the_channels_that_become_one():
    graph = graph_of(Sequence(nn.PixelShuffle(2), conv(2, 6), features=6), SHAPE)
    assert sizes(graph) == {"first": 8 // 4, "middle.1": 6}


def test_channels_beside_a_padded_shortcut_are_a_group_of_their_own():
    graph = graph_of(PaddedShortcut(), SHAPE)
    assert [(g.producers, g.size) for g in graph.free_groups] == [
        (("first", "wide"), 8),
        (("wide",), 12 - 8),
    ]


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: torch.flatten(x, 1),
        nn.Flatten(),
        lambda x: x.view(-1, 4 * 8 * 8),
        lambda x: x.reshape(x.size(0), -1),
        lambda x: x.view(x.shape[0], 4 * 8 * 8),
        lambda x: x.flatten(2).flatten(1),
    ],
)
def test_flattened_channel_is_read_once_per_position(flatten):
    graph = graph_of(Flattening(flatten), SHAPE)
    assert sizes(graph) == {"first": 4}
    assert graph.layers[1].inputs.terms == ((0, 8 * 8),)


@pytest.mark.parametrize(
    "combine", [lambda x, gate: x * gate, lambda x, gate: gate.expand_as(x) * x]
)
def test_squeeze_excite_gates_belong_to_the_group_they_scale(combine):
    graph = graph_of(SqueezeExcite(combine), SHAPE)
    assert sizes(graph) == {"first": 8, "squeeze": 3}
    assert graph.groups[0].producers == ("first", "excite")


def test_spatial_attention_map_is_frozen_and_what_it_scales_is_free():
    graph = graph_of(SpatialAttention(), SHAPE)
    assert sizes(graph) == {"first": 8}
    assert "is broadcast over channels" in reason(graph, "map")


def test_map_over_positions_leaves_the_channels_free():
    assert sizes(graph_of(PositionMap(), SHAPE)) == {"first": 8}


def test_factors_per_channel_belong_to_the_group():
    for network in (LayerScale(), Sequence(nn.PReLU(8), nn.InstanceNorm2d(8), features=8)):
        assert sizes(graph_of(network, SHAPE)) == {"first": 8}


def test_factors_used_twice_tie_the_groups_that_use_them():
    graph = graph_of(SharedFactors(), SHAPE)
    assert [(g.producers, g.size) for g in graph.free_groups] == [(("first", "second"), 8)]


def test_product_of_two_vectors_of_factors_is_one_and_belongs_to_the_group():
    graph = graph_of(FactorsOfTwoVectors(), SHAPE)
    assert sizes(graph) == {"first": 8}
    half = remove_channels(graph.plan, keep_mask(graph, {0: np.array([1, 2, 5])}))
    torch.testing.assert_close(half.amc_constant_0, PRODUCT[[1, 2, 5]])
    assert [stored.count.count([8]) for stored in graph.stored] == [8]
    assert not graph.unused


@pytest.mark.parametrize(
    "reshape",
    [
        lambda x: x.reshape(x.shape[0], x.shape[1], x.shape[2] // 2, x.shape[3] * 2),
        lambda x: x.flatten(2).unsqueeze(2),
        lambda x: x.view(*x.shape[:2], 1, -1),
        lambda x: x[:, 2:].reshape(x.shape[0], -1, 4, 16),
    ],
)
def test_reshape_of_height_and_width_alone_is_kept_and_leaves_the_group_free(reshape):
    network = Function(lambda x: x)
    network.function = lambda x: functional.max_pool2d(reshape(x), (1, 2))
    network.last = nn.Linear(reshape(torch.zeros(1, 8, 8, 8)).shape[1], 5)
    graph = graph_of(network, SHAPE)
    images = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(graph.plan.module(images), network(images))
    assert sum(sizes(graph).values()) == 8


@pytest.mark.parametrize("stride", [2, 4])
def test_channels_that_are_mixed_patch_by_patch_are_followed(stride):
    graph = graph_of(Patches(stride), SHAPE)
    assert sizes(graph) == {"first": 8, "down": 8, "mix": 8}


def test_parameter_with_a_batch_dimension_of_its_own_may_be_expanded():
    class Token(LayerScale):
        def body(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale[None].expand(x.shape[0], -1, -1, -1)

    assert sizes(graph_of(Token(), SHAPE)) == {"first": 8}


def test_very_large_parameter_freezes_what_it_meets(monkeypatch):
    monkeypatch.setattr(channels, "MAX_ELEMENTS", 8 - 1)
    graph = graph_of(LayerScale(), SHAPE)
    assert reason(graph, "first") == "meets parameter scale, too large to follow"


def test_layer_called_twice_keeps_the_same_channels_in_both_calls_and_is_costed_twice():
    graph = graph_of(CalledTwice(), SHAPE)
    assert sizes(graph) == {"first": 8, "free": 6}
    (first, _) = graph.free_groups
    assert first.producers == ("first", "shared")
    assert [layer.name for layer in graph.layers].count("shared") == 1
    (further,) = (op for op in graph.operators if op.name == "shared")
    assert further.inputs == further.outputs == ChannelCount(0, ((0, 1),))
    keep = keep_mask(graph, {0: np.array([0, 3, 6])})
    assert removal_error(graph, keep, IMAGES) <= 1e-5


@pytest.mark.parametrize(
    ("module", "name"),
    [(nn.LayerNorm([8, 8, 8]), "layer_norm"), (nn.Softmax2d(), "module Softmax2d")],
)
def test_statistics_over_channels_freeze_what_they_are_taken_of(module, name):
    graph = graph_of(Sequence(module, conv(8, 6), features=6), SHAPE)
    assert sizes(graph) == {"middle.1": 6}
    assert reason(graph, "first") == f"reaches {name} (middle.0), which amc cannot follow"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.softmax(x, 1),
        lambda x: x - x.std(1, keepdim=True),
        lambda x: x + x.sum(),
        lambda x: x[:, torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])],
        lambda x: functional.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: torch.cat(x.split([2, 6], 1)[::-1], 1),
        lambda x: functional.pad(x, (1, 1, 1, 1, 1, 1), value=1.0)[:, 1:-1],
    ],
)
def test_operator_that_is_not_known_freezes_what_reaches_it(function):
    graph = graph_of(Function(function), SHAPE)
    assert sizes(graph) == {}
    assert all(group.reason for group in graph.groups)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x.mean(1, keepdim=True),
        lambda x: x * x.shape[1],
        lambda x: x.mean(-1).mean(-1)[:, :, None, None],
        lambda x: x.flatten(2).mean(2)[..., None, None],
        lambda x: x.unsqueeze(2).squeeze(2),
        lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: functional.interpolate(x, scale_factor=2),
        lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2).contiguous(),
        lambda x: x.repeat(1, 1, 2, 2).flip(1).flip(1),
        lambda x: x**2 + x.clamp(0, 1) / 2 - 1,
        lambda x: x.view(x.size(0) * x.size(1), -1).view(x.shape),
        lambda x: x.transpose(2, 3)[..., ::2],
        lambda x: torch.where(x > 0.5, x, torch.zeros(1)),
        lambda x: x.masked_fill(x < 0, -1.0),
        lambda x: torch.max(x, 2 * x - 1),
        lambda x: torch.min(input=x, other=x.square()),
        lambda x: x.max(dim=3)[0].amin(2)[..., None, None],
        lambda x: torch.stack([x, x.sigmoid()], 1).sum(1),
        lambda x: x.flatten(2).transpose(1, 2).mean(1)[..., None, None],  # over tokens
        lambda x: x * x.flatten(2).softmax(-1).view(x.shape),
        lambda x: x.permute(0, 2, 3, 1).std((1, 2), keepdim=True).permute(0, 3, 1, 2),
        lambda x: torch.std_mean(x, (2, 3), keepdim=True)[1],
        lambda x: functional.max_pool1d(x.flatten(2), 4)[..., None],
        lambda x: functional.adaptive_avg_pool1d(x.mean(2), 3)[..., None],
        lambda x: functional.lp_pool2d(x, 2.0, 2),
    ],
)
def test_operators_that_keep_channels_apart_leave_the_group_free(function):
    assert sizes(graph_of(Function(function), SHAPE)) == {"first": 8}


def test_halves_of_a_gated_unit_lose_the_same_channels():
    for module in (nn.GLU(1), Function(lambda x: functional.glu(x, 1)).function):
        network = Function(module, 4).eval()
        graph = graph_of(network, SHAPE)
        assert sizes(graph) == {"first": 4}
        half = remove_channels(graph.plan, keep_mask(graph, {0: np.array([0, 3])}))
        assert torch.equal(half.first.weight, network.first.weight[[0, 3, 4, 7]])


def test_channels_that_a_softmax_weighs_against_one_another_go_together():
    def attention(x: torch.Tensor) -> torch.Tensor:
        parts = x.view(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:])
        weights = parts.mean((3, 4), keepdim=True).softmax(1)
        return (parts * weights).sum(1)

    graph = graph_of(Function(attention, 4), SHAPE)
    assert sizes(graph) == {"first": 4}
    half = remove_channels(graph.plan, keep_mask(graph, {0: np.array([1, 2])}))
    assert torch.equal(half.first.weight, graph.plan.module.first.weight[[1, 2, 5, 6]])


def test_constant_channel_count_in_the_code_freezes_the_group_by_the_check():
    def fixed(x: torch.Tensor) -> torch.Tensor:
        n, _, h, w = x.shape
        return torch.cat(x.view(n, 2, 4, h, w).unbind(1), 1)

    network = Function(fixed)
    assert sizes(build_graph(network, SHAPE)) == {"first": 8}
    graph = graph_of(network, SHAPE)
    assert sizes(graph) == {}
    assert "stops the network from running when channels are removed" in reason(graph, "first")
    assert graph.layers[0].decides == ()
    assert graph.layers[0].outputs.terms == graph.layers[1].inputs.terms == ()
    assert graph.layers[0].outputs.fixed == graph.layers[1].inputs.fixed == 8


def test_question_about_the_number_of_channels_freezes_the_group_by_the_check():
    network = Function(lambda x: x * (x.shape[1] == 8))
    assert "changes the network when removed" in reason(graph_of(network, SHAPE), "first")


def test_check_freezes_only_the_group_that_fails():
    class Fixed(Concat):
        def body(self, x: torch.Tensor) -> torch.Tensor:
            return super().body(x * (x.shape[1] == 8))

    assert sizes(graph_of(Fixed(), SHAPE)) == {"a": 4, "b": 6, "merge": 7}


def test_group_of_one_channel_is_frozen():
    graph = graph_of(Sequence(conv(8, 1), conv(1, 6), features=6), SHAPE)
    assert sizes(graph) == {"first": 8, "middle.1": 6}
    assert "one channel" in reason(graph, "middle.0")
