"""The one table of operators, and those that read it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from amc.compress.verify import graph_of
from amc.graph.operators import OPERATORS, PRICED, Flow
from amc.layers.signature import LAYER_OPS
from amc.recovery.rectified import find_clips
from amc.runtimes import operators, torch_operators


def test_all_that_is_priced_is_written_by_both_timers() -> None:
    for timer in (torch_operators, operators):
        assert set(timer._BUILDERS) >= PRICED  # type: ignore[attr-defined]
    assert not PRICED & LAYER_OPS


def test_every_spelling_is_of_one_operator() -> None:
    modules = Counter(kind for operator in OPERATORS.values() for kind in operator.modules)
    aliases = Counter(alias for operator in OPERATORS.values() for alias in operator.aliases)
    assert {*modules.values(), *aliases.values()} == {1}
    assert not OPERATORS.keys() & aliases.keys()


def test_only_what_gives_what_it_receives_is_free() -> None:
    unpriced = {name: operator for name, operator in OPERATORS.items() if operator.price is None}
    free = {name for name, operator in unpriced.items() if operator.flow is not Flow.PRODUCT}
    assert free == {name for name, operator in OPERATORS.items() if operator.is_nothing}
    assert all(OPERATORS[name].flow is Flow.POINTWISE for name in free)


@pytest.mark.parametrize(("last", "clips"), [(nn.ReLU6(), (0.0, 6.0)), (nn.Hardtanh(), None)])
def test_activation_that_clips_says_so_in_its_line(
    last: nn.Module, clips: tuple[float, float] | None
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), last, nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(1, 3, 6, 6))
    found = find_clips(graph_of(network, (3, 6, 6)), {}).get("0")
    assert (found and (found.low, found.high)) == clips


def test_block_whose_branch_ends_in_a_copy_can_go() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            x = x + self.two(torch.relu(self.one(x))).contiguous()
            return self.last(x.mean((2, 3)))

    (block,) = graph_of(Block(), (3, 4, 4)).plan.blocks
    assert block.layers == {"one", "two"}
