"""A network small enough for thousands of files of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amc.compress.network import CompressedNetwork, decide
from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import graph_of
from amc.graph.graph import NetworkGraph
from amc.strategy import Bits, Strategy

SHAPE = (3, 8, 8)
STRATEGY = Strategy({"conv1": 0.75}, {"conv2": Bits(3, 8), "fc": Bits(4, 32)})


class Small(nn.Module):
    """Images (N, 3, 8, 8) -> scores (N, 5): 8 and 12 channels, each normalised, then linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        scores: Tensor = self.fc(x.mean((2, 3)))
        return scores


def small() -> Small:
    """With statistics that are not those of a fresh network."""
    torch.manual_seed(0)
    network = Small()
    with torch.no_grad():
        for norm in (network.bn1, network.bn2):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
    return network.eval()


def compressed(strategy: Strategy = STRATEGY) -> tuple[CompressedNetwork, NetworkGraph]:
    """`small` under a strategy: the first channels stay, weights are rounded."""
    graph = graph_of(small(), SHAPE)
    counts = graph.kept_counts(strategy)
    kept = {group.index: torch.arange(counts[group.index]).numpy() for group in graph.free_groups}
    module = remove_channels(graph.plan, keep_mask(graph, kept))
    values = {layer.name: torch.linspace(-1, 2, 100) for layer in graph.layers}
    decide(module, strategy, values)
    positions = {graph.groups[index].name: tuple(p.tolist()) for index, p in kept.items()}
    return CompressedNetwork(module.eval(), strategy, positions), graph


def images(count: int = 16) -> Tensor:
    """Made up, always the same."""
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))
