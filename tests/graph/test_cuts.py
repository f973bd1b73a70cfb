from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from amc.graph.cuts import cuts, shapes_at, stage_ends, with_values


class Residual(nn.Module):
    """A stem, a block that adds, a stride, and a linear layer that reads the batch's size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, padding=1)
        self.inner = nn.Conv2d(2, 2, 3, padding=1)
        self.factor = nn.Parameter(torch.ones(1))
        self.down = nn.Conv2d(2, 3, 2, stride=2)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        count = x.size(0)
        x = self.stem(x)
        x = torch.relu(x + self.factor * self.inner(x))
        return self.fc(self.down(x).mean((2, 3)).view(count, -1))


def traced() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(Residual()).eval()


IMAGES = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_everything_passes_through_cuts_and_nothing_inside_of_a_block_is_one() -> None:
    module = traced()
    found = [node.name for node in cuts(module, shapes_at(module, IMAGES))]
    assert found == ["x", "stem", "add", "relu", "down", "mean", "view", "fc"]


def test_stages_end_where_the_size_of_maps_changes() -> None:
    module = traced()
    ends = stage_ends(module, shapes_at(module, IMAGES))
    assert {tuple(size): node.name for size, node in ends.items()} == {
        (4, 4): "relu",
        (2, 2): "down",
    }


def test_values_of_nodes_are_given_out_beside_the_output_by_the_same_modules() -> None:
    module = traced()
    tapped = with_values(module, ["relu", "down"])
    output, (relu, down) = tapped(IMAGES)
    assert torch.equal(output, module(IMAGES))
    assert torch.equal(module.get_submodule("down")(relu), down)
    assert tapped.get_submodule("stem") is module.get_submodule("stem")
