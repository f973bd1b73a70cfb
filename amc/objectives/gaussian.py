"""What objectives of numbers share: outputs compared in units of their own spread.

A network that gives numbers is taken to predict each up to a spread, that of the channel's values
over the original's outputs: a normal distribution around what it gives. How far two such
predictions are apart is half the squared difference, in spreads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Generator, Tensor

from amc.objectives.objective import Objective
from amc.objectives.outputs import Outputs, by_name

_LEAST = 1e-2  # of the spread of all channels: one that hardly ever changes is not infinitely exact
Scale = tuple[Tensor, Tensor]
"""Mean and spread of the channels, (channels, 1)."""


def by_channel(tensor: Tensor) -> Tensor:
    """Values by channel, (images, channels, places).

    Channels are the first dimension after the images; of two further ones, as detectors give for
    their anchors, the shorter.
    """
    if tensor.dim() < 3:
        return tensor.reshape(len(tensor), -1, 1)
    if tensor.dim() == 3 and tensor.shape[2] < tensor.shape[1]:
        tensor = tensor.transpose(1, 2)
    return tensor.flatten(2)


def scale_of(tensor: Tensor) -> Scale:
    """Mean and spread of each channel of the original's output."""
    values = by_channel(tensor.detach()).double()
    mean = values.mean((0, 2)).unsqueeze(1)
    spread = (values - mean).square().mean((0, 2)).sqrt().unsqueeze(1)
    least = _LEAST * spread.square().mean().sqrt()
    spread = spread.clamp_min(float(least) if least > 0 else 1.0)
    return mean.float(), spread.float()


@dataclass(frozen=True)
class Gaussian(Objective):
    """Numbers as outputs: the base of objectives that give them a meaning."""

    measures_outputs = True

    scales: Mapping[str, Scale] | None = field(
        default=None, kw_only=True, repr=False, compare=False
    )

    def weight_of(self, name: str) -> float:
        """How much an output counts, beside the others."""
        return 1.0

    def shares(self, outputs: Outputs) -> dict[str, float]:
        """Name of an output -> its share; those of none are left out. They sum to 1."""
        weights = {name: self.weight_of(name) for name in by_name(outputs)}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items() if weight > 0}

    def scale(self, name: str, tensor: Tensor) -> Scale:
        """Of an output; where none was measured, of this one."""
        if self.scales is None:
            return scale_of(tensor)
        mean, spread = (number.to(tensor.device) for number in self.scales[name])
        return mean, spread

    def fitted(self, outputs: Outputs) -> Self:
        """The spreads, once and for all: of the first outputs that it sees."""
        if self.scales is not None:
            return self
        scales = {name: scale_of(tensor) for name, tensor in by_name(outputs).items()}
        return replace(self, scales=scales)

    def divergence(self, outputs: Outputs, reference: Outputs) -> Tensor:
        """Half the squared difference in spreads, mean over channels and places, and outputs."""
        theirs = by_name(reference)
        found = torch.zeros((), dtype=torch.float64)
        for name, share in self.shares(outputs).items():
            _, spread = self.scale(name, theirs[name])
            difference = by_channel(by_name(outputs)[name]) - by_channel(theirs[name])
            distance = (difference / spread).square().mean((1, 2)) / 2
            found = found.to(distance.device) + share * distance
        return found

    def sampled_loss(self, outputs: Outputs, generator: Generator) -> Tensor:
        loss = torch.zeros(())
        for name, share in self.shares(outputs).items():
            given = by_channel(by_name(outputs)[name])
            _, spread = self.scale(name, by_name(outputs)[name])
            noise = torch.randn(given.shape, generator=generator, dtype=given.dtype)
            # Targets are drawn around what is given; the divergence is a mean of so many numbers.
            drawn = given.detach() + spread * noise
            factor = (share / given[0].numel()) ** 0.5
            loss = loss + factor * ((given - drawn) / spread).square().sum() / 2
        return loss

    def teacher_loss(self, outputs: Outputs, teacher: Outputs, temperature: float) -> Tensor:
        """How far numbers are from the teacher's, in spreads; the temperature says nothing of them.

        Their square as long as they are near (pseudo-Huber): a network that is far off is not
        thrown further by one step.
        """
        loss = torch.zeros(())
        for name, share in self.shares(outputs).items():
            given, taught = (by_channel(by_name(some)[name]) for some in (outputs, teacher))
            _, spread = self.scale(name, by_name(teacher)[name])
            loss = loss.to(given.device) + share * near((given - taught) / spread).mean()
        return loss


def near(difference: Tensor) -> Tensor:
    """The square of a small difference, twice the size of a large one."""
    return 2 * ((1 + difference.square()).sqrt() - 1)
