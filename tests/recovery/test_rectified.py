"""Targets that look through an activation that clips."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from amc.compress.verify import graph_of
from amc.recovery.rectified import Clip, find_clips
from amc.recovery.reference import find_streams
from tests.conftest import TINY_SHAPE

INF = float("inf")


def loss_of(clip, wanted, received):
    """What is lost behind the activation, where what it throws away may be anything."""
    low = torch.where(wanted <= clip.low, (received - clip.low).clamp(min=0), 0.0)
    high = torch.where(wanted >= clip.high, (clip.high - received).clamp(min=0), 0.0)
    between = (wanted > clip.low) & (wanted < clip.high)
    return low**2 + high**2 + torch.where(between, received - wanted, 0.0) ** 2


def test_relu_does_not_ask_for_what_it_throws_away():
    wanted = torch.tensor([2.0, 2.0, -1.0, -1.0, 0.0])
    received = torch.tensor([3.0, -3.0, 3.0, -3.0, -2.0])
    # Below 0 what is received may stay below 0; above 0 it has to be matched.
    assert Clip(0.0).aims(wanted, received).tolist() == [2.0, 2.0, 0.0, -3.0, -2.0]
    assert loss_of(Clip(0.0), wanted, received).tolist() == [1.0, 25.0, 9.0, 0.0, 0.0]


def test_relu6_does_not_ask_for_what_is_above_six_either():
    wanted = torch.tensor([7.0, 7.0, 6.0, -1.0, 3.0])
    received = torch.tensor([9.0, 5.0, 6.5, 1.0, 9.0])
    assert Clip(0.0, 6.0).aims(wanted, received).tolist() == [9.0, 6.0, 6.5, 0.0, 3.0]
    assert loss_of(Clip(0.0, 6.0), wanted, received).tolist() == [0.0, 1.0, 0.0, 1.0, 36.0]


@pytest.mark.parametrize("clip", [Clip(0.0), Clip(0.0, 1.0)])
def test_aiming_anew_never_raises_the_loss_and_ends_at_its_least(clip):
    """Against a minimiser that knows the loss alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    wanted = x @ torch.randn(6, generator=generator, dtype=torch.float64)
    wanted -= x[:, 0] ** 2 + x[:, 1] ** 2  # far below 0 where no weight can follow
    weight = torch.linalg.lstsq(x, wanted[:, None]).solution[:, 0]
    losses = []
    for _ in range(300):
        losses.append(float(loss_of(clip, wanted, x @ weight).sum()))
        weight = torch.linalg.lstsq(x, clip.aims(wanted, x @ weight)[:, None]).solution[:, 0]
    assert all(after <= before + 1e-9 for before, after in pairwise(losses))

    def loss(candidate):
        return float(loss_of(clip, wanted, x @ torch.from_numpy(candidate)).sum())

    least = minimize(loss, np.zeros(6), method="Powell", options={"xtol": 1e-8, "ftol": 1e-12}).fun
    assert losses[-1] == pytest.approx(least, rel=1e-4)
    assert losses[-1] < 0.9 * losses[0]


class Activations(nn.Module):
    """One layer for every way to be read."""

    def __init__(self):
        super().__init__()
        names = "plain normed six summed read_twice smooth pre"
        for name in names.split():
            setattr(self, name, nn.Conv2d(6 if name != "plain" else 3, 6, 1))
        self.norm, self.activation = nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.last = nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu(self.plain(x))
        x = self.activation(self.norm(self.normed(x)))
        x = nn.functional.relu6(self.six(x))
        x = nn.functional.relu(x + self.summed(x), inplace=True)
        y = self.read_twice(x)
        x = y.relu() + y
        x = nn.functional.silu(self.smooth(x))
        x = x + self.pre(x)
        return self.last(torch.relu(x).mean((2, 3)) + x.mean((2, 3)))


def test_clips_are_found_behind_norms_and_additions_and_where_nothing_else_reads():
    graph = graph_of(Activations().eval(), TINY_SHAPE)
    assert find_clips(graph, find_streams(graph)) == {
        "plain": Clip(0.0, INF),
        "normed": Clip(0.0, INF),
        "six": Clip(0.0, 6.0),
        "summed": Clip(0.0, INF),
    }
    # Without its stream, what the layer gives is read by an addition.
    assert "summed" not in find_clips(graph, {})
