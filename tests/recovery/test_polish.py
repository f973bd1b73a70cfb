"""A smaller network fitted to the original block by block, without labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from amc.compress.quantization import Quantized
from amc.compress.removal import KeepMask, keep_mask, remove_channels
from amc.compress.verify import graph_of
from amc.decisions import build_decision
from amc.errors import ConfigError
from amc.graph.graph import NetworkGraph
from amc.objectives import DEFAULT
from amc.problem import candidate
from amc.problem.candidate import Compressor
from amc.recovery import polish as polishing
from amc.recovery.polish import blocks_of, importances, polish, steps_of
from amc.recovery.settings import RecoverySettings
from amc.strategy import Bits, Strategy
from docs.examples.weight_sparsity import Sparsity

SHAPE = (1, 8, 8)


class Net(nn.Module):
    """Two residual blocks and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.one = nn.Conv2d(6, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 6, 3, padding=1)
        self.three = nn.Conv2d(6, 8, 3, padding=1)
        self.four = nn.Conv2d(8, 6, 3, padding=1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.two(torch.relu(self.one(x))))
        x = torch.relu(x + self.four(torch.relu(self.three(x))))
        return self.fc(x.mean((2, 3)))


def images(count: int = 96, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def graph() -> NetworkGraph:
    torch.manual_seed(0)
    network = Net()
    with torch.no_grad():
        network.fc.weight.mul_(8)
        network.train()(images(64, 5))
    return graph_of(network.eval(), SHAPE)


def halved(graph: NetworkGraph) -> tuple[fx.GraphModule, KeepMask]:
    """Without every other channel of all groups."""
    kept = {group.index: np.arange(0, group.size, 2) for group in graph.free_groups}
    keep = keep_mask(graph, kept)
    return remove_channels(graph.plan, keep), keep


def divergence(graph: NetworkGraph, smaller: nn.Module, seed: int = 9) -> float:
    with torch.no_grad():
        pair = smaller(images(64, seed)), graph.plan.module(images(64, seed))
    return float(DEFAULT.divergence(*pair).mean())


def test_a_block_is_a_residual_block_or_a_layer_with_what_follows_it(graph: NetworkGraph) -> None:
    smaller, keep = halved(graph)
    blocks = blocks_of(graph, smaller, keep, images(2))
    assert [block.name for block in blocks] == ["relu", "relu_2", "output"]
    assert blocks[0].kept is not None
    assert blocks[0].kept.tolist() == [0, 2, 4]
    paths = [sorted({n.partition(".")[0] for n, _ in b.smaller.named_parameters()}) for b in blocks]
    assert paths == [["norm", "stem"], ["one", "two"], ["fc", "four", "three"]]
    given = expected = images(2)
    for block in blocks:
        given, expected = block.smaller(given), block.original(expected)
    assert torch.equal(given, smaller(images(2)))
    assert torch.equal(expected, graph.plan.module(images(2)))


def test_what_cannot_be_cut_is_one_block() -> None:
    class Across(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.two(torch.relu(self.one(x)))).mean((2, 3))

    torch.manual_seed(0)
    graph = graph_of(Across().eval(), SHAPE)
    smaller, keep = halved(graph)
    (block,) = blocks_of(graph, smaller, keep, images(2))
    assert block.kept is None


def test_an_error_matters_as_the_gradient_of_the_loss_says(graph: NetworkGraph) -> None:
    """Of a small random error e_c of each channel alone: sum over positions of w_c e_c^2."""
    smaller, keep = halved(graph)
    blocks = blocks_of(graph, smaller, keep, images(2))
    some = images(512, 3)
    weights = importances(blocks, some, DEFAULT)["relu_2"].flatten()
    with torch.no_grad():
        at = blocks[1].original(blocks[0].original(some))
        before = blocks[2].original(at)
        found = []
        for channel in (0, 2, 4):
            error = torch.zeros_like(at)
            error[:, channel] = 0.05 * torch.randn(512, 8, 8)
            found.append(DEFAULT.divergence(blocks[2].original(at + error), before).mean())
    torch.testing.assert_close(torch.stack(found) / (64 * 0.05**2), weights, rtol=0.35, atol=1e-7)


def test_polish_brings_outputs_closer_to_the_originals_on_other_images(graph: NetworkGraph) -> None:
    smaller, keep = halved(graph)
    before, counted = divergence(graph, smaller), list[str]()
    statistics = smaller.get_submodule("norm").running_mean.clone()
    polish(graph, smaller, keep, images(), epochs=6, objective=DEFAULT, on_step=counted.append)
    assert divergence(graph, smaller) < 0.6 * before
    assert len(counted) == steps_of(3, 96, 6) == 3 * 6 * 3
    assert torch.equal(smaller.get_submodule("norm").running_mean, statistics)
    assert not any(parameter.requires_grad for parameter in smaller.parameters())


def test_same_polish_gives_the_same_bits(graph: NetworkGraph) -> None:
    found = []
    for _ in range(2):
        smaller, keep = halved(graph)
        polish(graph, smaller, keep, images(), epochs=1, objective=DEFAULT)
        found.append(smaller.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def compressor(graph: NetworkGraph, polish: int) -> Compressor:
    settings = RecoverySettings(repair_images=96, images=64, polish=polish)
    return Compressor(graph, images(160, 7), settings)


STRATEGY = Strategy(
    {"one": 0.5, "three": 0.5},
    {"one": Bits(3, 4), "two": Bits(1, 32)},
    {"sparsity": {"three": (0.5,)}},
)


def test_polished_network_keeps_what_was_decided(graph: NetworkGraph) -> None:
    build_decision(Sparsity())
    made, plain = (compressor(graph, epochs).repair(STRATEGY).module for epochs in (8, 0))
    assert not torch.equal(made.get_submodule("one").weight, plain.get_submodule("one").weight)
    assert (made.get_submodule("three").weight == 0).double().mean() == 0.5
    for path in ("one", "two"):
        layer = made.get_submodule(path)
        assert isinstance(layer, Quantized)
        torch.testing.assert_close(layer.quantized_weight(), layer.weight)
        assert not layer.learns_steps


def test_polish_that_is_no_better_on_held_out_images_is_refused(
    graph: NetworkGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_decision(Sparsity())

    def ruined(graph: object, smaller: nn.Module, *_: object, **__: object) -> None:
        with torch.no_grad():
            smaller.get_submodule("fc").weight.neg_()

    plain = compressor(graph, 0).repair(STRATEGY)
    monkeypatch.setattr(candidate, "polish", ruined)
    made = compressor(graph, 1).repair(STRATEGY)
    assert made.notes[-1].startswith("The polish was refused: on 20 calibration images")
    for name, tensor in plain.module.state_dict().items():
        assert torch.equal(made.module.state_dict()[name], tensor)


def test_fewer_images_are_used_where_memory_is_short(
    graph: NetworkGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The largest values of an image are 8 channels of 8 x 8, held at four ends at once.
    monkeypatch.setattr(polishing, "MEMORY_BYTES", 40 * 4 * 8 * 64 * 4)
    smaller, keep = halved(graph)
    counted: list[str] = []
    polish(graph, smaller, keep, images(), epochs=1, objective=DEFAULT, on_step=counted.append)
    assert len(counted) == 3  # 40 images: one step of 32 for each block


def test_number_of_passes_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"recovery\.polish must be at least 0, got -1"):
        replace(RecoverySettings(), polish=-1)
