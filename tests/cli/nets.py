"""Networks that the command line's tests name as ``tests.cli.nets:<function>``.

Each brings its own weights: amc seeds the random numbers before it calls a builder.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amc.objectives import Images

CLASSES = 10


class Tiny(nn.Module):
    """Digits (N, 3, 32, 32) -> scores (N, 10): convolutions at stride 2, 2, 1, ... and a linear."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        strides = (2, 2, *[1] * len(widths))
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip((3, *widths), widths, strides, strict=False):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)))


def tiny() -> nn.Module:
    """Two convolutions."""
    return Tiny((16, 24))


def sized(width: int) -> nn.Module:
    """Two convolutions, the first as wide as an option says."""
    return Tiny((width, 24))


def deeper() -> nn.Module:
    """Four convolutions, wider than `tiny`."""
    return Tiny((24, 32, 32, 40))


def broken() -> nn.Module:
    """Returns NaN for every image."""
    network = tiny()
    network.linear.bias.data.fill_(math.nan)
    return network


CALLS: list[str] = []  # what `traced` was called for: a file must not be able to call it


def traced() -> nn.Module:
    """`tiny`, leaving a trace that it was called."""
    CALLS.append("traced")
    return tiny()


def undecided() -> Tensor:
    """Not a network."""
    return torch.zeros(1)


def dense() -> nn.Module:
    """Scores of two classes for every pixel, (n, 2, H, W), from its red and green."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 2, 1),
        )  # fmt: skip
    return network.eval()


class Heads(nn.Module):
    """Digits (N, 3, 32, 32) -> raw maps of two scales by name, and what is decided from them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 4, 1)
        self.neck = nn.Conv2d(16, 16, 3, 2, 1)
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        high = self.stem(x).relu()
        scores = self.scores(self.neck(high).relu())
        return {"boxes": self.boxes(high), "scores": scores, "found": scores.argmax(1)}


def heads() -> nn.Module:
    """A detector's raw maps."""
    return Heads()


def brightest(network: nn.Module, split: Images) -> float:
    """A metric of `heads`: the mean of the highest score, of images that have their labels."""
    assert split.labels is not None
    assert len(split.labels) == len(split.images)
    return float(network(split.images)["scores"].amax((1, 2, 3)).mean())
