"""Layers are found however a network writes them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import graph_of, removal_error
from amc.graph.graph import NetworkGraph
from amc.layers import layer_at

SHAPE = (3, 8, 8)


class OwnConv(nn.Conv2d):
    """As many libraries have one: nothing but a name."""


class SamePadded(nn.Conv2d):
    """Padding that is computed from the input's size, as TensorFlow does it."""

    def forward(self, x: Tensor) -> Tensor:
        missing = max((-(-x.shape[-1] // 2) - 1) * 2 + 3 - x.shape[-1], 0)
        x = functional.pad(x, (missing // 2, missing - missing // 2) * 2)
        return functional.conv2d(x, self.weight, self.bias, 2)


class Standardised(nn.Conv2d):
    """Weight standardisation: of mean 0 and variance 1 for each output."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6)
        return functional.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)


class NormAndActivation(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        y = functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training
        )
        return functional.relu(y)


class Chain(nn.Module):
    """A layer and a normalisation that are given, between plain layers."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.conv(x)))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class Functions(nn.Module):
    """All weights lie bare in the network."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3) / 5)
        self.matrix = nn.Parameter(torch.randn(5, 8))
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(functional.conv2d(x, self.kernel, padding="same"))
        x = x * (self.scale * 2)
        return functional.linear(x.mean((2, 3)), self.matrix)


class ReadTwice(nn.Module):
    """A convolution's weight is read by something else too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = OwnConv(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x).mean((2, 3))
        y: Tensor = self.head(features * self.conv.weight.abs().mean((1, 2, 3)))
        return y


class Branches(nn.Module):
    """A block whose shortcut is added last, in place, as in RepVGG."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = OwnConv(3, 8, 3, padding=1)
        self.one, self.three = OwnConv(8, 8, 1), OwnConv(8, 8, 3, padding=1)
        self.norm = NormAndActivation(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shortcut = self.norm(x)
        x = self.one(x) + self.three(x)
        x += shortcut
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class SplitAttention(nn.Module):
    """ResNeSt's (Zhang et al. 2020, section 3): a softmax over two halves of the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 16, 1)
        self.head, self.dim = nn.Linear(8, 5), dim

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        halves = x.reshape(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:])
        pooled = halves.sum(1).mean((2, 3), keepdim=True)
        gates = self.gate(pooled).view(x.shape[0], 2, -1, 1, 1).softmax(self.dim)
        y: Tensor = self.head((halves * gates).sum(1).mean((2, 3)))
        return y


def randomised(network: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.dim() == 1 and tensor.is_floating_point():
            low = 0.5 if "bias" not in name and "mean" not in name else -0.5
            tensor.data.uniform_(low, 1.5)
    return network.eval()


def halved(graph: NetworkGraph) -> np.ndarray:
    """Every second channel of every free group."""
    return keep_mask(graph, {g.index: np.arange(0, g.size, 2) for g in graph.free_groups})


IMAGES = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "conv",
    [
        lambda: OwnConv(3, 8, 3, padding=1, groups=1),
        lambda: OwnConv(3, 8, 3, padding=1, padding_mode="circular"),
        lambda: SamePadded(3, 8, 3),
        lambda: Standardised(3, 8, 3),
        lambda: parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
    ],
)
@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm2d(8),
        lambda: NormAndActivation(8),
        lambda: nn.SyncBatchNorm(8),
        lambda: FrozenBatchNorm2d(8),
    ],
)
def test_a_layer_is_one_at_its_own_name_however_it_is_written(
    conv: Callable[[], nn.Module], norm: Callable[[], nn.Module]
) -> None:
    network = randomised(Chain(conv(), norm()))

    graph = graph_of(network, SHAPE)

    assert [layer.name for layer in graph.layers] == ["conv", "head"]
    assert [(group.name, group.size) for group in graph.free_groups] == [("conv", 8)]
    frozen = isinstance(network.get_submodule("norm"), FrozenBatchNorm2d)
    assert dict(graph.plan.folds) == ({} if frozen else {"norm": "conv"})
    assert not graph.unused
    assert not graph.wholes
    with torch.no_grad():
        torch.testing.assert_close(graph.plan.module(IMAGES), network(IMAGES))
    assert removal_error(graph, halved(graph), IMAGES) < 1e-6


def test_a_frozen_normalisation_is_a_part_of_its_layer_and_stays_frozen_in_training() -> None:
    network = randomised(Chain(OwnConv(3, 8, 3), FrozenBatchNorm2d(8)))

    graph = graph_of(network, SHAPE)

    # w / sqrt(v + eps) before the layer's weight; its bias less the mean, scaled, and the shift.
    norm, conv = network.norm, network.conv
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    layer = layer_at(graph.plan.module, "conv")
    torch.testing.assert_close(layer.weight, (conv.weight * scale[:, None, None, None]).detach())
    torch.testing.assert_close(
        layer.bias, ((conv.bias - norm.running_mean) * scale + norm.bias).detach()
    )
    with torch.no_grad():
        torch.testing.assert_close(graph.plan.module.train()(IMAGES), network(IMAGES))


def test_functions_on_bare_parameters_are_layers_named_after_the_call() -> None:
    network = randomised(Functions())

    graph = graph_of(network, SHAPE)

    assert [(one.name, one.in_channels, one.out_channels) for one in graph.layers] == [
        ("conv2d", 3, 8),
        ("linear", 8, 5),
    ]
    assert [(group.name, group.size) for group in graph.free_groups] == [("conv2d", 8)]
    assert not graph.unused
    with torch.no_grad():
        torch.testing.assert_close(graph.plan.module(IMAGES), network(IMAGES))
    assert removal_error(graph, halved(graph), IMAGES) < 1e-6


def test_what_is_computed_from_parameters_is_computed_once_and_still_trained() -> None:
    network = randomised(Functions())

    module = graph_of(network, SHAPE).plan.module

    assert "amc_constant_0" in dict(module.named_parameters())
    torch.testing.assert_close(module.amc_constant_0, 2 * network.scale)


def test_a_standardised_weight_is_the_one_that_the_network_computes() -> None:
    network = randomised(Chain(Standardised(3, 8, 3), nn.BatchNorm2d(8)))

    weight = layer_at(graph_of(network, SHAPE).plan.module, "conv").weight

    assert type(weight) is nn.Parameter
    rows = weight.flatten(1).detach()
    torch.testing.assert_close(rows.mean(1), torch.zeros(8), atol=1e-6, rtol=0)
    torch.testing.assert_close(rows.var(1, unbiased=False), torch.ones(8), atol=1e-3, rtol=0)


def test_a_table_that_is_looked_up_stays_a_table() -> None:
    class Table(nn.Module):
        """A position's bias comes from a table of a few, as in Swin (Liu et al. 2021)."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
            self.table = nn.Parameter(torch.randn(4))
            self.register_buffer("index", torch.arange(64).view(8, 8) % 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(x)) * self.table[self.index]
            y: Tensor = self.head(x.mean((2, 3)))
            return y

    network = randomised(Table())

    module = graph_of(network, SHAPE).plan.module

    assert {name: p.numel() for name, p in module.named_parameters()}["table"] == 4
    with torch.no_grad():
        torch.testing.assert_close(module(IMAGES), network(IMAGES))


def test_a_weight_that_others_read_too_is_kept_for_them() -> None:
    network = randomised(ReadTwice())

    graph = graph_of(network, SHAPE)

    assert [layer.name for layer in graph.layers] == ["conv", "head"]
    with torch.no_grad():
        torch.testing.assert_close(graph.plan.module(IMAGES), network(IMAGES))
    assert removal_error(graph, halved(graph), IMAGES) < 1e-6


@pytest.mark.parametrize("first", [True, False])
def test_a_module_whose_parameters_are_read_directly_too_comes_whole_into_a_candidate(
    first: bool,
) -> None:
    class Reads(nn.Module):
        """Before its modules are called, or behind."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.head = nn.Linear(8, 5)

        def read(self, x: Tensor) -> Tensor:
            return x * self.norm.weight.view(1, -1, 1, 1) + self.norm.bias[:, None, None]

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x = self.norm(self.read(x)) if first else self.read(self.norm(x))
            y: Tensor = self.head(x.mean((2, 3)))
            return y

    network = randomised(Reads())

    graph = graph_of(network, SHAPE)

    assert [(group.name, group.size) for group in graph.free_groups] == [("conv", 8)]
    assert not graph.unused
    assert removal_error(graph, halved(graph), IMAGES) < 1e-6
    small = remove_channels(graph.plan, halved(graph))
    assert small.get_submodule("norm").num_features == 4


def test_a_layer_below_another_that_is_called_later_stays_below_it() -> None:
    class Tied(nn.Module):
        """A layer's weight is the weight of another, too, turned into another one."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).mean((2, 3))
            scores = functional.linear(x, self.head.weight.exp())
            y: Tensor = self.head(x)
            return y + scores

    graph = graph_of(randomised(Tied()), SHAPE)

    assert [layer.name for layer in graph.layers] == ["conv", "head.linear", "head"]
    assert [group.name for group in graph.free_groups] == ["conv"]
    assert removal_error(graph, halved(graph), IMAGES) < 1e-6


def test_a_function_called_twice_with_one_weight_is_one_layer_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 8, 3), OwnConv(8, 8, 1)
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(torch.relu(self.conv(self.stem(x))))
            y: Tensor = self.head(x.mean((2, 3)))
            return y

    graph = graph_of(randomised(Twice()), SHAPE)

    assert [layer.name for layer in graph.layers] == ["stem", "conv", "head"]
    assert [(group.name, group.producers) for group in graph.free_groups] == [
        ("stem", ("stem", "conv"))
    ]
    assert sum(one.name == "conv" for one in graph.operators) == 1


def test_a_shortcut_read_before_it_is_added_in_place_is_followed() -> None:
    graph = graph_of(randomised(Branches()), SHAPE)

    assert [(group.name, group.size) for group in graph.free_groups] == [("stem", 8)]
    assert graph.free_groups[0].producers == ("stem", "one", "three")
    assert removal_error(graph, halved(graph), IMAGES) < 1e-6


def test_channels_that_one_softmax_weighs_are_kept_or_removed_together() -> None:
    graph = graph_of(randomised(SplitAttention(dim=1)), SHAPE)

    # Channel j of either half of both layers: eight units, each of two channels of a layer.
    assert [(group.name, group.size) for group in graph.free_groups] == [("conv", 8)]
    assert graph.layers[0].outputs.terms == graph.layers[1].outputs.terms == ((0, 2),)
    mask = halved(graph)
    assert removal_error(graph, mask, IMAGES) < 1e-6
    assert remove_channels(graph.plan, mask).get_submodule("conv").weight.shape[0] == 8


def test_a_softmax_over_all_channels_freezes_them() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Softmax(1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )

    graph = graph_of(randomised(network), SHAPE)

    assert not graph.free_groups
    assert graph.groups[0].reason == "reaches softmax (1), which amc cannot follow"


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8), nn.PReLU(8)])
def test_other_functions_with_a_weight_are_their_modules(norm: nn.Module) -> None:
    kind = type(norm)
    subclass = type("Own", (kind,), {"__module__": "elsewhere"})
    norm.__class__ = subclass
    network = randomised(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), norm, nn.Linear(8, 5)))

    module = graph_of(network, SHAPE).plan.module

    assert type(module.get_submodule("2")) is kind
    with torch.no_grad():
        torch.testing.assert_close(module(IMAGES), network(IMAGES))


def test_groups_are_normalised_by_their_module_too() -> None:
    own = type("Own", (nn.GroupNorm,), {"__module__": "elsewhere"})
    network = randomised(Chain(nn.Conv2d(3, 8, 3), own(2, 8)))

    module = graph_of(network, SHAPE).plan.module

    assert type(module.get_submodule("norm")) is nn.GroupNorm
    with torch.no_grad():
        torch.testing.assert_close(module(IMAGES), network(IMAGES))
