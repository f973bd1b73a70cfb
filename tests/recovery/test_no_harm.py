"""A repaired network is no worse on unseen images than its unrepaired self."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amc.compress.verify import graph_of
from amc.problem import candidate
from amc.problem.candidate import Compressor
from amc.recovery import sequential
from amc.recovery.settings import RecoverySettings
from amc.strategy import Bits, Strategy
from tests.conftest import randomise_norms

SHAPE = (3, 16, 16)
CLASSES = 10


def images(count, seed):
    """Smooth, as photographs are: neighbours are alike, and so are one image's positions."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=draw)
    return F.interpolate(coarse, SHAPE[1:], mode="bilinear") + 0.2 * torch.randn(
        count, *SHAPE, generator=draw
    )


def unit(inputs, outputs, kernel=3, *, stride=1, groups=1, activation=nn.ReLU):
    """A convolution with its batch normalisation and activation."""
    padding = kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([activation()] if activation else []))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(unit(3, 16), unit(16, 24, stride=2), unit(24, 64, stride=2))
        self.last = nn.Linear(64, CLASSES)

    def forward(self, x):
        return self.last(self.body(x).mean((2, 3)))


class Residual(Plain):
    def __init__(self):
        super().__init__()
        self.body = unit(3, 16, stride=2)
        self.one, self.two = unit(16, 24), unit(24, 16, activation=None)
        self.wide = unit(16, 64, 1)

    def forward(self, x):
        x = self.body(x)
        x = torch.relu(x + self.two(self.one(x)))
        return self.last(self.wide(x).mean((2, 3)))


class InvertedResidual(Plain):
    """Expand, depthwise, project; only the expansion is rectified, by ReLU6."""

    def __init__(self):
        super().__init__()
        self.body = unit(3, 8, stride=2, activation=nn.ReLU6)
        self.expand = unit(8, 48, 1, activation=nn.ReLU6)
        self.depthwise = unit(48, 48, 5, groups=48, activation=nn.ReLU6)
        self.project = unit(48, 8, 1, activation=None)
        self.head = unit(8, 64, 1, activation=nn.ReLU6)

    def forward(self, x):
        x = self.body(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.last(self.head(x).mean((2, 3)))


class Dense(Plain):
    def __init__(self):
        super().__init__()
        self.body = unit(3, 16, stride=2)
        self.one, self.two = unit(16, 16), unit(32, 16)
        self.wide = unit(48, 64, 1)

    def forward(self, x):
        x = self.body(x)
        x = torch.cat([x, self.one(x)], 1)
        x = torch.cat([x, self.two(x)], 1)
        return self.last(self.wide(x).mean((2, 3)))


class SqueezeExcite(Plain):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(unit(3, 16, stride=2), unit(16, 32))
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.wide = unit(32, 64, 1)

    def forward(self, x):
        x = self.body(x)
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return self.last(self.wide(x * torch.sigmoid(gate)).mean((2, 3)))


NETWORKS = (Plain, Residual, InvertedResidual, Dense, SqueezeExcite)


def built(build):
    """With statistics of its own activations, and scores that differ from image to image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = randomise_norms(build())
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            network.train()(images(256, 3))
        network.eval()
        network.last.weight.data *= 10
        return network


def divergence(network, original, on):
    with torch.no_grad():
        p, q = (module(on).double().log_softmax(1) for module in (original, network))
    return float((p.exp() * (p - q)).sum(1).mean())


def unrepaired(compressor, strategy):
    """Channels and bits gone, batch normalisation recalibrated."""
    repairs = compressor.settings
    compressor.settings = replace(repairs, least_squares=False)
    module = compressor.repair(strategy).module
    compressor.settings = repairs
    return module


@pytest.mark.parametrize("count", [40, 256])
@pytest.mark.parametrize("build", NETWORKS)
def test_repaired_network_is_no_worse_on_unseen_images(build, count):
    network, unseen = built(build), images(512, 2)
    graph = graph_of(network, SHAPE)
    compressor = Compressor(graph, images(count, 1), RecoverySettings())
    ratios = {group.name: 0.6 for group in graph.free_groups}
    rounded = {layer.name: Bits(8, 8) for layer in graph.layers}
    for strategy in (Strategy(ratios, {}), Strategy({}, rounded)):
        before = divergence(unrepaired(compressor, strategy), network, unseen)
        after = divergence(compressor.repair(strategy).module, network, unseen)
        assert after <= 1.02 * before + 1e-4


def test_worse_repair_of_the_whole_is_refused_and_said(monkeypatch):
    network = built(Plain)
    graph = graph_of(network, SHAPE)
    compressor = Compressor(graph, images(96, 1), RecoverySettings())
    strategy = Strategy({group.name: 0.6 for group in graph.free_groups}, {})

    def broken(graph, smaller, *_, **__):
        smaller.get_submodule("last").weight.data.neg_()
        return []

    monkeypatch.setattr(candidate, "refit_layers", broken)
    found = compressor.repair(strategy)
    (note,) = found.notes
    assert "layer by layer was refused: on 12 calibration images" in note
    assert divergence(found.module, network, images(256, 2)) < divergence(
        unrepaired(compressor, strategy), network, images(256, 2)
    )


def test_layers_whose_refit_was_refused_are_said():
    refits = [
        sequential.Refit("last", 1.0, 1.0, 12, 64),
        sequential.Refit("body", 1e-3, 0.1, 12, 27),
    ]
    (note,) = candidate._refusals(refits)
    assert "most outputs of 1 of 2 layers, 'last' among them (12 images, 64 columns)" in note
    assert candidate._refusals(refits[1:]) == ()
