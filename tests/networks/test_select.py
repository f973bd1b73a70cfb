from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.compress.verify import graph_of
from amc.errors import NetworkError
from amc.networks import SelectOutputs

SHAPE = (3, 8, 8)


class Heads(nn.Module):
    """Raw maps of two scales, an auxiliary head, and boxes decoded from the maps."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.raw, self.aux = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        x = self.body(x)
        maps = [self.raw(x), nn.functional.avg_pool2d(x, 2)]
        boxes = maps[0].flatten(2).sigmoid()
        return boxes, {"maps": maps, "aux.head": self.aux(x), "halves": x.chunk(2, 1)}


def test_chosen_outputs_are_given_one_as_it_is_and_several_by_name() -> None:
    network, x = Heads(), torch.rand(2, *SHAPE)
    _, others = network(x)
    assert torch.equal(SelectOutputs(network, ["1.maps.0"])(x), others["maps"][0])
    found = SelectOutputs(network, ["1.aux.head", "1.halves.1"])(x)
    assert list(found) == ["1.aux.head", "1.halves.1"]
    assert torch.equal(found["1.halves.1"], others["halves"][1])
    assert len(SelectOutputs(network, [1])(x)) == 3


def test_what_only_others_are_computed_from_is_no_part_of_the_network() -> None:
    whole = {layer.name for layer in graph_of(Heads(), SHAPE).layers}
    chosen = graph_of(SelectOutputs(Heads(), ["1.maps"]), SHAPE)
    assert whole == {"body", "raw", "aux"}
    assert {layer.name for layer in chosen.layers} == {"network.body", "network.raw"}
    halves = graph_of(SelectOutputs(Heads(), ["1.halves.0"]), SHAPE)
    assert {layer.name for layer in halves.layers} == {"network.body"}


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (
            ["1.mops"],
            r"names '1.mops', and there is no 'mops' in what .* there: dict with the keys",
        ),
        ([2], r"names '2', and there is no '2' in what the network returned there: tuple of 2"),
        (["0.x"], r"no 'x' in what the network returned there: a tensor of shape \(2, 4, 64\)"),
    ],
)
def test_outputs_that_there_are_not_are_said_beside_those_there_are(
    outputs: list[Any], said: str
) -> None:
    with pytest.raises(NetworkError, match=said):
        SelectOutputs(Heads(), outputs)(torch.rand(2, *SHAPE))


@pytest.mark.parametrize("outputs", [[], ["0", 0]])
def test_outputs_are_named_once(outputs: list[Any]) -> None:
    with pytest.raises(NetworkError, match=r"must name outputs, each once, as \[0,1\] or \[out\]"):
        SelectOutputs(Heads(), outputs)
