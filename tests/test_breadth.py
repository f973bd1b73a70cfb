"""What the benchmark of breadth says of networks, on some that can be counted by hand."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from amc.compress.verify import graph_of
from amc.cost.account import count_macs
from benchmarks import breadth, zoo
from benchmarks.breadth import at_ends, free_shares, half, not_followed, rival, row_of, streams

SHAPE = (3, 8, 8)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        scores: Tensor = self.head((x + self.branch(x)).mean((2, 3)))
        return scores


def test_free_shares_and_streams_by_hand() -> None:
    network = Residual().eval()
    graph = graph_of(network, SHAPE)
    stem, branch, head = 64 * 12, 64 * 144, 8
    free = free_shares(graph)
    assert free.macs == stem + branch + head == count_macs(network, SHAPE)[""]
    assert free.both == free.can == pytest.approx(branch / free.macs)
    assert free.one == 1.0
    assert streams(graph) == "1/1"


def test_what_is_fixed_between_layers_could_be_free_and_ends_could_not() -> None:
    class Sorted(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = self.branch(self.stem(x).sort(1).values)
            return self.head(x.mean((2, 3))).softmax(1)

    graph = graph_of(Sorted().eval(), SHAPE)
    free = free_shares(graph)
    assert at_ends(graph) == ({"stem"}, {"head"})
    assert free.both == 0.0
    assert free.can == pytest.approx(64 * 144 / free.macs)  # the branch's, from sorted channels
    assert "4 channels: reaches sort" in not_followed(graph)
    assert "softmax" not in not_followed(graph)  # an end of the network, whatever is behind it


def test_network_of_several_outputs_is_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Several(Residual):
        def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:  # type: ignore[override]
            return {"scores": super().forward(x)}, x.mean((2, 3))

    monkeypatch.setattr(breadth, "build", lambda name: (Several().eval(), SHAPE))
    row = row_of("package/several")
    assert (row["layers"], row["macs ratio"], row["image"]) == (3, "1.0000", 8)
    assert float(str(row["removed = ignored"])) < 1e-5
    assert float(str(row["ONNX"])) < 1e-5


def test_statistics_factors_and_shifts_are_drawn_and_weights_are_not() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
    before = network[0].weight.clone()
    network.append(nn.Linear(4, 2))
    nn.init.zeros_(network[3].weight)
    zoo.randomise(network, seed=0)
    assert torch.equal(network[0].weight, before)
    assert network[3].weight.all()  # zeros would hide all that is before them
    for norm in network[1:3]:
        assert len(norm.weight.unique()) == len(norm.bias.unique()) == 4
        assert 0.5 <= norm.weight.min() <= norm.weight.max() <= 1.5
    assert (network[1].running_var != 1).all()
    assert (network[1].running_mean != 0).all()


def test_half_of_every_free_group_by_hand() -> None:
    network = Residual().eval()
    left = half(graph_of(network, SHAPE))  # two of the stream's four channels
    assert count_macs(left, SHAPE)[""] == 64 * 3 * 2 + 64 * 9 * 2 * 2 + 2 * 2


def test_layers_that_give_the_outputs_are_those_nearest_to_them() -> None:
    class Two(Residual):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            x = self.stem(x)
            return self.head(x.mean((2, 3))).softmax(1), self.branch(x).relu()

    network = Two()
    found = breadth._last_layers(network, torch.randn(1, *SHAPE))
    assert set(found) == {network.head, network.branch}


def test_torch_pruning_is_given_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning")

    class Broken(Residual):
        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.stem(x).mean((2, 3)).view(-1, 4))  # of 2 afterwards
            return scores

    networks = {"tiny/whole": Residual(), "tiny/broken": Broken()}
    monkeypatch.setattr(breadth, "build", lambda name: (networks[name].eval(), SHAPE))
    before, left = 64 * 12 + 64 * 144 + 8, 64 * 6 + 64 * 36 + 4
    said = f"-{100 * (1 - left / before):.1f} %"
    assert rival("tiny/whole") == {"torch-pruning": said}
    assert str(rival("tiny/broken")["torch-pruning"]).startswith("fails (")


def test_rival_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert "not installed" in str(row_of("timm/resnet18", rival)["error"])


def test_network_that_fails_is_a_row_with_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ModuleNotFoundError("No module named 'timm'")

    monkeypatch.setitem(zoo._BUILDERS, "timm", missing)  # type: ignore[arg-type]
    said = "not installed: No module named 'timm'"
    assert row_of("timm/resnet18") == {"network": "timm/resnet18", "error": said}
    assert "networks are named package/network" in str(row_of("tim/resnet18")["error"])
