"""Removed means removed: a smaller network equals the full one whose channels nothing reads."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc.compress.removal import KeepMask, keep_mask, remove_channels
from amc.compress.verify import graph_of, removal_error
from amc.graph.graph import NetworkGraph, build_graph
from amc.layers.copies import clone_module
from amc.networks import build_network
from tests.conftest import TINY_SHAPE, randomise_norms
from tests.graph import nets

TOLERANCE = 1e-5

# name -> (image size, free groups, frozen groups)
NETWORKS = {
    # 9 blocks, and 3 parts of the stream: in all stages, from the second, in the third only
    "resnet20": (32, 9 + 3, 1),
    "resnet18": (64, 8 + 4, 1),  # 8 blocks, 4 stages that each project their shortcut
    "densenet121": (64, 1 + 2 * 58 + 3, 1),  # stem, two per dense layer, transitions
    "squeezenet1_1": (64, 1 + 3 * 8, 1),  # stem; a squeeze and two expansions per fire module
    "mobilenet_v1": (64, 1 + 13, 1),  # stem, pointwise convolutions
    # stem, expansions of 16 of the 17 blocks, 7 streams, last convolution
    "mobilenet_v2": (64, 1 + 16 + 7 + 1, 1),
    "mnasnet1_0": (64, 1 + 16 + 7 + 1, 1),
    # stem, 10 expansions, 9 squeezes, 5 streams, last convolution, hidden linear layer
    "mobilenet_v3_small": (64, 1 + 10 + 9 + 5 + 1 + 1, 1),
    "efficientnet_b0": (64, 1 + 15 + 16 + 7 + 1, 1),  # as above; no hidden linear layer
    "vgg11_bn": (32, 8 + 2, 1),
}


def random_mask(graph: NetworkGraph, seed: int = 0) -> KeepMask:
    generator = np.random.default_rng(seed)
    kept = {
        group.index: np.sort(
            generator.permutation(group.size)[: generator.integers(1, group.size + 1)]
        )
        for group in graph.free_groups
    }
    return keep_mask(graph, kept)


def network_of(name: str, size: int) -> nn.Module:
    network = build_network(name, num_classes=10, image_shape=(3, size, size))
    return randomise_norms(network).eval()


def images_of(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", NETWORKS)
def test_smaller_network_equals_the_one_that_ignores_the_channels(name):
    size, free, frozen = NETWORKS[name]
    network = network_of(name, size)
    graph = build_graph(network, (3, size, size))
    assert (len(graph.free_groups), len(graph.frozen_groups)) == (free, frozen)
    assert graph.frozen_groups[0].reason == "is an output of the network"
    assert removal_error(graph, random_mask(graph), images_of(size)) < TOLERANCE


def test_shufflenet_groups_are_the_channels_that_the_same_layers_read():
    network = network_of("shufflenet_v2_x1_0", 64)
    graph = build_graph(network, (3, 64, 64))
    expected = [len(channels) for channels in shufflenet_channels_by_use().values()]
    assert sorted(g.size for g in graph.groups[:-1]) == sorted(expected)
    assert len(graph.free_groups) == sum(size > 1 for size in expected)
    assert removal_error(graph, random_mask(graph), images_of(64)) < TOLERANCE


def shufflenet_channels_by_use() -> dict[tuple[str, frozenset[str]], list[int]]:
    """Channels of ShuffleNet V2 1.0x (Ma et al. 2018, table 5), followed by hand."""
    readers: list[tuple[str, set[str]]] = []

    def produced(by: str, count: int) -> list[int]:
        readers.extend((by, set()) for _ in range(count))
        return list(range(len(readers) - count, len(readers)))

    def read(channels: list[int], by: str) -> None:
        for channel in channels:
            readers[channel][1].add(by)

    def branch(stream: list[int], name: str, half: int) -> list[int]:
        read(stream, f"{name}.in")
        read(produced(f"{name}.in", half), f"{name}.out")  # past a depthwise layer
        return produced(f"{name}.out", half)

    stream = produced("stem", 24)
    for stage, (outputs, blocks) in enumerate([(116, 4), (232, 8), (464, 4)]):
        half = outputs // 2
        for block in range(blocks):
            name = f"{stage}.{block}"
            if block == 0:
                read(stream, f"{name}.shortcut")
                left, right = produced(f"{name}.shortcut", half), branch(stream, name, half)
            else:
                left, right = stream[:half], branch(stream[half:], name, half)
            stream = [channel for pair in zip(left, right, strict=True) for channel in pair]
    read(stream, "last")
    read(produced("last", 1024), "classifier")
    groups: dict[tuple[str, frozenset[str]], list[int]] = {}
    for channel, (producer, by) in enumerate(readers):
        groups.setdefault((producer, frozenset(by)), []).append(channel)
    return groups


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "densenet121"])
def test_smaller_network_equals_the_users_network_with_silenced_producers(name):
    """Independent of the traced graph: whatever makes a removed channel is set to zero."""
    size = NETWORKS[name][0]
    network = network_of(name, size)
    graph = build_graph(network, (3, size, size))
    keep = random_mask(graph, seed=1)
    silenced = {path: units.outputs for path, units in graph.plan.layers.items()}
    for path, units in {**silenced, **graph.plan.per_channel}.items():
        network.get_submodule(path).register_forward_hook(silence(keep[units]))
    images = images_of(size)
    with torch.no_grad():
        expected, given = network(images), remove_channels(graph.plan, keep)(images)
    assert float((given - expected).abs().max() / expected.abs().max()) < TOLERANCE


def silence(keep: KeepMask):
    mask = torch.from_numpy(keep).float()

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * mask.view(1, -1, *[1] * (output.dim() - 2))

    return hook


SMALL = {
    "concat": nets.Concat,
    "depthwise": lambda: nets.Sequence(
        nets.conv(8, 16, groups=8), nn.BatchNorm2d(16), nets.conv(16, 6), features=6
    ),
    "grouped": lambda: nets.Sequence(
        nets.conv(8, 12, groups=4), nn.BatchNorm2d(12), nets.conv(12, 6), features=6
    ),
    "split and shuffle": nets.SplitShuffle,
    "pixel shuffle": lambda: nets.Sequence(nn.PixelShuffle(2), nets.conv(2, 6), features=6),
    "padded shortcut": nets.PaddedShortcut,
    "flatten": lambda: nets.Flattening(nn.Flatten()),
    "flatten by view": lambda: nets.Flattening(lambda x: x.view(-1, 4 * 8 * 8)),
    "squeeze and excite": lambda: nets.SqueezeExcite(lambda x, gate: x * gate.expand_as(x)),
    "spatial attention": nets.SpatialAttention,
    "prelu": lambda: nets.Sequence(nn.PReLU(8), nn.PReLU(), features=8),
    "shared factors": nets.SharedFactors,
    "instance norm": lambda: nets.Sequence(nn.InstanceNorm2d(8, affine=True), features=8),
    "layer scale": nets.LayerScale,
    "position map": nets.PositionMap,
    "alias changed in place": nets.InPlaceAlias,
    "opaque module": lambda: nets.Gated(nets.Gate()),
    "layer called twice": nets.CalledTwice,
    "flipped channels": lambda: nets.Function(lambda x: x.flip(1) + 2 * x),
    "every second channel": lambda: nets.Function(lambda x: x[:, ::2], features=4),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_way_of_passing_channels_is_removed_exactly(name):
    torch.manual_seed(0)
    network = randomise_norms(SMALL[name]()).eval()
    graph = graph_of(network, nets.SHAPE)
    images = torch.randn(3, *nets.SHAPE)
    assert graph.free_groups
    assert torch.allclose(graph.plan.module(images), network(images), atol=1e-6)
    for seed in range(4):
        assert removal_error(graph, random_mask(graph, seed), images) < TOLERANCE


def test_removed_channels_are_gone_from_every_tensor(tiny_graph):
    smaller = remove_channels(
        tiny_graph.plan, keep_mask(tiny_graph, {0: np.array([1, 3]), 1: np.array([0, 2, 5])})
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in smaller.named_parameters()}
    assert shapes == {
        "conv1.weight": (2, 3, 3, 3),
        "bn1.weight": (2,),
        "bn1.bias": (2,),
        "conv2.weight": (3, 2, 3, 3),
        "bn2.weight": (3,),
        "bn2.bias": (3,),
        "conv3.weight": (3, 3, 3, 3),
        "bn3.weight": (3,),
        "bn3.bias": (3,),
        "linear.weight": (5, 3),
        "linear.bias": (5,),
    }
    assert smaller.conv2.in_channels == 2
    assert smaller.conv2.out_channels == smaller.bn2.num_features == smaller.linear.in_features == 3


def test_kept_channels_keep_their_weights(tiny_net, tiny_graph):
    smaller = remove_channels(
        tiny_graph.plan, keep_mask(tiny_graph, {0: np.array([1, 3]), 1: np.array([0, 2, 5])})
    )
    expected = tiny_net.conv2.weight[[0, 2, 5]][:, [1, 3]]
    assert torch.equal(smaller.conv2.weight, expected)
    assert torch.equal(smaller.bn2.running_var, tiny_net.bn2.running_var[[0, 2, 5]])


def test_given_weights_stand_where_they_differ_from_the_slice(tiny_graph):
    weight = torch.full((6, 2, 3, 3), 7.0)
    keep = keep_mask(tiny_graph, {0: np.array([0, 1])})
    smaller = remove_channels(tiny_graph.plan, keep, {"conv2": weight})
    assert torch.equal(smaller.conv2.weight, weight)


def test_mask_names_the_kept_positions_of_each_group(tiny_graph):
    keep = keep_mask(tiny_graph, {0: np.array([1, 3])})
    units = tiny_graph.plan.layers["conv1"].outputs
    assert keep[units].tolist() == [False, True, False, True]
    assert int((~keep).sum()) == 2


def test_nothing_done_to_a_candidate_reaches_the_original():
    torch.manual_seed(0)
    gate = nn.Sequential(nets.Gate(), nn.BatchNorm2d(8))
    network = nets.Sequence(nn.Dropout(0.5), nn.ReLU(), gate, nn.PReLU(), features=8)
    graph = graph_of(network, nets.SHAPE)
    images = torch.randn(2, *nets.SHAPE)
    before = copy.deepcopy(graph.plan.module.state_dict())
    seen: list[str] = []
    candidate = remove_channels(graph.plan, random_mask(graph))
    candidate.train().requires_grad_(True)
    for module in candidate.modules():
        module.register_forward_hook(lambda *_: seen.append("candidate"))
    optimiser = torch.optim.SGD(candidate.parameters(), lr=0.1)
    candidate(images).square().sum().backward()
    optimiser.step()
    seen.clear()
    graph.plan.module(images)
    assert not seen
    assert not any(module.training for module in graph.plan.module.modules())
    assert not any(parameter.requires_grad for parameter in graph.plan.module.parameters())
    after = graph.plan.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_clone_shares_what_is_not_named(tiny_net):
    bias = torch.zeros(5)
    clone = clone_module(tiny_net.linear, {"bias": bias})
    assert clone.weight is tiny_net.linear.weight
    assert torch.equal(clone.bias, bias)
    assert not torch.equal(tiny_net.linear.bias, bias)


def test_candidate_can_be_copied_and_saved(tiny_graph):
    candidate = remove_channels(tiny_graph.plan, random_mask(tiny_graph))
    images = torch.randn(2, *TINY_SHAPE)
    again = copy.deepcopy(candidate)
    assert torch.equal(again(images), candidate(images))
    again.load_state_dict(candidate.state_dict())
