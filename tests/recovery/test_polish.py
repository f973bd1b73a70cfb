"""A smaller network fitted to the original's outputs, without labels."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from amc.compress.quantization import Quantized
from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import graph_of
from amc.decisions import build_decision
from amc.errors import ConfigError
from amc.graph.graph import NetworkGraph
from amc.objectives import DEFAULT
from amc.problem import candidate
from amc.problem.candidate import Compressor
from amc.recovery import polish as polish_module
from amc.recovery.polish import polish, steps_of
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


def halved(graph: NetworkGraph) -> fx.GraphModule:
    """Without every other channel of all groups."""
    kept = {group.index: np.arange(0, group.size, 2) for group in graph.free_groups}
    return remove_channels(graph.plan, keep_mask(graph, kept))


def divergence(graph: NetworkGraph, smaller: nn.Module, seed: int = 9) -> float:
    with torch.no_grad():
        pair = smaller(images(64, seed)), graph.plan.module(images(64, seed))
    return float(DEFAULT.divergence(*pair).mean())


def test_polish_brings_outputs_closer_to_the_originals_on_other_images(graph: NetworkGraph) -> None:
    smaller = halved(graph)
    before, counted = divergence(graph, smaller), list[bool]()
    statistics = smaller.get_submodule("norm").running_mean.clone()
    polish(
        smaller,
        graph.plan.module,
        images(),
        epochs=10,
        objective=DEFAULT,
        on_step=lambda: counted.append(True),
    )
    assert divergence(graph, smaller) < 0.6 * before
    assert len(counted) == steps_of(96, 10) == 10 * 96 // 4
    assert torch.equal(smaller.get_submodule("norm").running_mean, statistics)
    assert not any(parameter.requires_grad for parameter in smaller.parameters())


def test_steps_see_fewer_images_where_there_are_few() -> None:
    assert [steps_of(images, 1) for images in (3, 320, 960, 2048, 5000)] == [1, 64, 64, 64, 156]


def test_the_original_says_what_it_gives_for_images_as_they_are_seen(graph: NetworkGraph) -> None:
    """Mirrored images are learned as the original sees them: it is what it is on both sides."""
    seen = list[Tensor]()

    class Original(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return graph.plan.module(x)

    marked = images(8)
    same = copy.deepcopy(graph.plan.module)
    polish(same, Original(), marked, epochs=2, objective=DEFAULT, augment=["flip"])
    given = torch.cat(seen[1:])  # the first tells how much there is to hold
    assert len(given) == 2 * 8
    mirrored = [any(torch.equal(image, other.flip(-1)) for other in marked) for image in given]
    as_it_is = [any(torch.equal(image, other) for other in marked) for image in given]
    assert any(mirrored)
    assert any(as_it_is)
    assert all(m != a for m, a in zip(mirrored, as_it_is, strict=True))
    assert divergence(graph, same) < 1e-3  # nothing is to be learned


def test_large_outputs_are_computed_when_they_are_needed(
    graph: NetworkGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for room in (3 * 96, 3 * 96 - 1):
        monkeypatch.setattr(polish_module, "HELD_NUMBERS", room)
        smaller, asked = halved(graph), list[int]()

        class Original(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                asked.append(len(x))  # noqa: B023
                return graph.plan.module(x)

        polish(smaller, Original(), images(), epochs=1, objective=DEFAULT)
        found.append(smaller.state_dict())
        assert asked == ([1, 64, 32] if room == 3 * 96 else [1] + [4] * 24)
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, atol=1e-5, rtol=1e-4)


def test_same_polish_gives_the_same_bits(graph: NetworkGraph) -> None:
    found = []
    for _ in range(2):
        smaller = halved(graph)
        polish(smaller, graph.plan.module, images(), epochs=1, objective=DEFAULT)
        found.append(smaller.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def compressor(graph: NetworkGraph, polish: int) -> Compressor:
    settings = RecoverySettings(repair_images=96, images=64, polish=polish)
    return Compressor(graph, images(160, 7), settings)


STRATEGY = Strategy(
    {"one": 0.5, "three": 0.5},
    {"one": Bits(3, 4), "two": Bits(1, 32)},
    {Sparsity.name: {"three": (0.5,)}},
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

    def ruined(smaller: nn.Module, *_: object, **__: object) -> None:
        with torch.no_grad():
            smaller.get_submodule("fc").weight.neg_()

    plain = compressor(graph, 0).repair(STRATEGY)
    monkeypatch.setattr(candidate, "polish", ruined)
    made = compressor(graph, 1).repair(STRATEGY)
    assert made.notes[-1].startswith("The polish was refused: on 20 calibration images")
    for name, tensor in plain.module.state_dict().items():
        assert torch.equal(made.module.state_dict()[name], tensor)


def test_number_of_passes_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"recovery\.polish must be at least 0, got -1"):
        replace(RecoverySettings(), polish=-1)
