"""Networks as people write them: with one dimension, decoders, gates, heads that are shared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import graph_of, removal_error
from amc.cost.account import count_macs
from amc.cost.prices import operator_prices
from amc.export import export_onnx
from amc.graph.graph import NetworkGraph
from amc.problem.candidate import Compressor
from amc.recovery.settings import RecoverySettings
from amc.runtimes.onnxruntime import OnnxNetwork
from amc.strategy import IDENTITY, Strategy
from tests.graph.test_canonical import OwnConv, Standardised, halved, randomised

OUTPUT = "is an output of the network"


class Audio(nn.Module):
    """M5 (Dai et al. 2016): strided convolutions over a wave, pooling, scores at one place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.pool1 = (
            nn.Conv1d(1, 8, 16, 4),
            nn.BatchNorm1d(8),
            nn.MaxPool1d(4),
        )
        self.conv2, self.bn2, self.pool2 = nn.Conv1d(8, 12, 3), nn.BatchNorm1d(12), nn.MaxPool1d(2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(functional.relu(self.bn1(self.conv1(x.squeeze(2)))))
        x = self.pool2(functional.relu(self.bn2(self.conv2(x))))
        x = functional.avg_pool1d(x, x.shape[-1]).permute(0, 2, 1)
        y: Tensor = self.fc(x).squeeze(1)
        return y


class Wave(nn.Module):
    """WaveNet's (van den Oord et al. 2016): causal, gated, residual, with sums of skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 8, 1)
        self.filters, self.gates, self.mixes, self.skips = (
            nn.ModuleList(nn.Conv1d(8, outputs, kernel, dilation=far) for far in dilations)
            for outputs, kernel, dilations in (
                *((8, 2, (1, 2, 4)), (8, 2, (1, 2, 4))),
                *((8, 1, (1, 1)), (10, 1, (1, 1, 1))),
            )
        )
        self.last = nn.Conv1d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x[:, :, 0]), torch.zeros(1)
        for number, (of_values, gate, skip) in enumerate(
            zip(self.filters, self.gates, self.skips, strict=True)
        ):
            seen = functional.pad(x, (2**number, 0))
            y = torch.tanh(of_values(seen)) * torch.sigmoid(gate(seen))
            total = total + skip(y)
            if number < len(self.mixes):
                x = x + self.mixes[number](y)
        return self.last(functional.relu(total)).mean(-1)


class Separator(nn.Module):
    """Demucs's (Defossez et al. 2019): strided and transposed, GLU, skips between."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        inputs = 1
        for number in range(2):
            width = 6 * 2**number
            self.encoders.append(
                nn.Sequential(
                    *(nn.Conv1d(inputs, width, 8, 4, 2), nn.ReLU()),
                    *(nn.Conv1d(width, 2 * width, 1), nn.GLU(dim=1)),
                )
            )
            up = nn.ConvTranspose1d(width, inputs, 8, 4, 2)
            self.decoders.insert(
                0, nn.Sequential(nn.Conv1d(width, 2 * width, 3, padding=1), nn.GLU(dim=1), up)
            )
            inputs = width

    def forward(self, x: Tensor) -> Tensor:
        x, skips = x.squeeze(2), []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
        for decoder in self.decoders:
            x = decoder(x + skips.pop()[..., : x.shape[-1]])
        return x.unsqueeze(2)


class Generator(nn.Sequential):
    """DCGAN's (Radford et al. 2016): from a vector of one place to an image."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.ConvTranspose2d(10, 16, 4, bias=False), nn.BatchNorm2d(16), nn.ReLU(True)),
            *(nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(True)),
            *(nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), nn.Tanh()),
        )


class Up(nn.Module):
    """A step of a U-Net's decoder, padded to what it is joined with."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, inputs // 2, 2, 2)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        high, wide = (skip.size()[dim] - x.size()[dim] for dim in (2, 3))
        x = functional.pad(x, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
        return functional.relu(self.conv(torch.cat([skip, x], dim=1)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 12, 3, padding=1)
        self.c, self.up2, self.up1 = nn.Conv2d(12, 24, 3, padding=1), Up(24, 12), Up(12, 6)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = functional.relu(self.a(x))
        b = functional.relu(self.b(functional.max_pool2d(a, 2)))
        c = functional.relu(self.c(functional.max_pool2d(b, 2)))
        y: Tensor = self.last(self.up1(self.up2(c, b), a))
        return y


class Scales(nn.Module):
    """One head for three scales, each with a factor of its own; the best place's scores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.next = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.fine, self.coarse = nn.Conv2d(8, 10, 1), nn.Conv2d(12, 10, 1)
        self.tower = nn.Sequential(
            *(nn.Conv2d(10, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)),
        )
        self.scores = nn.Conv2d(6, 5, 1)
        self.factors = nn.ParameterList(nn.Parameter(torch.tensor(1.0 + i)) for i in range(2))

    def forward(self, x: Tensor) -> Tensor:
        fine = functional.relu(self.stem(x))
        coarse = functional.relu(self.next(fine))
        low = self.coarse(coarse)
        high = self.fine(fine) + functional.interpolate(low, size=fine.shape[-2:], mode="nearest")
        found = [
            (self.scores(self.tower(one)) * factor).flatten(2).permute(0, 2, 1)
            for one, factor in zip((high, low), self.factors, strict=True)
        ]
        return torch.cat(found, dim=1).max(dim=1).values


class Choices(nn.Module):
    """Maxout, a PReLU, a choice by sign, a stack; tokens, pooled by a softmax over them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.act, self.slope = nn.PReLU(8), nn.Parameter(torch.full((8, 1, 1), 0.2))
        self.mix = nn.Parameter(torch.linspace(-1, 1, 80).view(8, 10).sin())
        self.score, self.last = nn.Linear(10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(torch.max(self.one(x), self.other(x)))
        x = torch.where(x > 0, x, x * self.slope)
        x = torch.stack((x, x.square()), dim=-1).amax(-1)
        tokens = x.flatten(2).transpose(1, 2) @ self.mix
        weights = torch.softmax(self.score(tokens), dim=1)
        y: Tensor = self.last((weights * tokens).sum(dim=1))
        return y


class Columns(nn.Module):
    """Text read column by column: the largest of each, then convolutions over columns."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            *(nn.Conv2d(1, 6, 3, padding=1), nn.InstanceNorm2d(6, affine=True)),
            *(nn.LeakyReLU(0.1), nn.MaxPool2d((2, 1))),
        )
        self.row = nn.Sequential(
            *(nn.Conv1d(6, 8, 5, padding=2), nn.BatchNorm1d(8), nn.Hardswish()),
            *(nn.Dropout1d(0.2), nn.Conv1d(8, 8, 3, padding=1, groups=8), nn.Conv1d(8, 5, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.row(self.image(x).max(2)[0]).mean(2)
        return y


BROADCAST = "is broadcast over channels (mul_1)"  # a token's score, on all of its channels
NETWORKS: list[tuple[type[nn.Module], tuple[int, int, int], set[str]]] = [
    (Audio, (1, 1, 256), {OUTPUT}),
    (Wave, (1, 1, 32), {OUTPUT}),
    (Separator, (1, 1, 64), {OUTPUT}),
    (Generator, (10, 1, 1), {OUTPUT}),
    (UNet, (3, 18, 22), {OUTPUT}),
    (Scales, (3, 16, 16), {OUTPUT}),
    (Choices, (3, 8, 8), {OUTPUT, BROADCAST}),
    (Columns, (1, 8, 16), {OUTPUT}),
]


@pytest.mark.parametrize(("kind", "shape", "reasons"), NETWORKS)
def test_network_is_followed_counted_removed_and_exported(
    kind: type[nn.Module], shape: tuple[int, int, int], reasons: set[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = randomised(kind())

    graph = graph_of(network, shape)

    assert {group.reason for group in graph.frozen_groups} == reasons
    assert not graph.opaque
    assert not graph.unused
    check(network, graph, tmp_path)


def check(network: nn.Module, graph: NetworkGraph, folder: Path) -> None:
    """Counted as PyTorch counts, before and after; removed as ignored; exported as computed."""
    shape = graph.image_shape
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    assert macs(graph, IDENTITY) == count_macs(network, shape)[""]
    keep = halved(graph)
    assert removal_error(graph, keep, images) < 1e-5
    small = remove_channels(graph.plan, keep)
    half = Strategy({group.name: 0.5 for group in graph.free_groups}, {})
    counts = graph.kept_counts(half)
    some = {index: np.arange(counts[index]) for index in range(len(counts))}
    kept = keep_mask(graph, {group.index: some[group.index] for group in graph.free_groups})
    assert macs(graph, half) == count_macs(remove_channels(graph.plan, kept), shape)[""]
    export_onnx(small, shape, folder / "small.onnx")
    written = OnnxNetwork(folder / "small.onnx")(images)
    torch.testing.assert_close(written, small(images), rtol=1e-4, atol=1e-5)


def macs(graph: NetworkGraph, strategy: Strategy) -> float:
    return sum(operator_prices(graph, strategy, "macs", None))


# -- one layer, several calls ----------------------------------------------------------------


class Shared(nn.Module):
    """A head that looks at two scales, as those of detectors do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, 2)
        self.head, self.last = layer, nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        large = torch.relu(self.first(x))
        small = torch.relu(self.second(large))
        seen = [torch.relu(self.head(scale)).mean((2, 3)) for scale in (large, small)]
        y: Tensor = self.last(seen[0] + seen[1])
        return y


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 8, 3, padding=1), OwnConv(8, 8, 1), Standardised(8, 8, 3)]
)
def test_layer_of_several_calls_is_one_and_costs_each_time(
    layer: nn.Module, tmp_path: Path
) -> None:
    network = randomised(Shared(layer))
    graph = graph_of(network, (3, 8, 8))
    assert [found.name for found in graph.layers] == ["first", "second", "head", "last"]
    assert [group.producers for group in graph.free_groups] == [("first", "second"), ("head",)]
    check(network, graph, tmp_path)


def test_layer_whose_calls_do_not_agree_is_frozen_with_the_reason() -> None:
    class Recurrent(nn.Module):
        """A layer on the image, and once more on its own output."""

        def __init__(self) -> None:
            super().__init__()
            self.shared, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(torch.relu(self.shared(self.shared(x))).mean((2, 3)))
            return y

    graph = graph_of(randomised(Recurrent()), (3, 8, 8))
    assert [(g.name, g.size, g.reason) for g in graph.groups] == [
        ("shared", 3, "is an input of the network"),
        ("last", 5, OUTPUT),
    ]


def test_layer_of_several_calls_is_refitted_to_what_all_of_them_receive() -> None:
    torch.manual_seed(0)
    network = randomised(Shared(nn.Conv2d(8, 8, 3, padding=1)))
    graph = graph_of(network, (3, 8, 8))
    images = torch.randn(600, 3, 8, 8)
    compressor = Compressor(graph, images, RecoverySettings(images=600, repair_images=600))
    strategy = Strategy({"first": 0.5}, {})
    small = compressor.repair(strategy).module
    unrepaired = remove_channels(graph.plan, keep_mask(graph, compressor.kept_positions(strategy)))
    assert macs(graph, strategy) == count_macs(small, (3, 8, 8))[""]
    repaired, sliced = (one.get_submodule("head").weight for one in (small, unrepaired))
    assert repaired.shape == sliced.shape
    assert not torch.equal(repaired, sliced)
    with torch.no_grad():
        expected, seen = network(images), (small(images), unrepaired(images))
    errors = [float((given - expected).square().mean()) for given in seen]
    assert errors[0] < 0.3 * errors[1]
