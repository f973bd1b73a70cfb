"""What training must keep of a weight that a decision changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Held:
    """A linear space that a weight must not leave: with zeros where they are, with equal numbers.

    Attributes:
        project: A tensor of the weight's shape -> the nearest one of the space.
        gain: What projected gradients are multiplied by; a number, or a tensor of the weight's
            shape that is of the space.
    """

    project: Callable[[Tensor], Tensor]
    gain: float | Tensor = 1.0

    def gradient(self, gradient: Tensor) -> Tensor:
        """What is followed of a gradient by the weight."""
        return self.project(gradient) * self.gain


def keep_zeros(weight: Tensor) -> Held:
    """Weights that are 0 stay 0; the others are trained."""
    return keep_only(weight.detach() != 0)


def keep_only(trained: Tensor) -> Held:
    """Weights are 0, but for those that are trained.

    Args:
        trained: bool, of the weight's shape.
    """
    return Held(lambda tensor: tensor.masked_fill(~trained.to(tensor.device), 0))


def tie_equal(weight: Tensor) -> Held:
    """Weights that are equal stay equal, and 0 stays 0: what is trained is the few values.

    The gradient of a value is the sum over all weights that have it (Deep Compression, Han et al.
    2015, section 3.3), here divided by the root of their number, as LSQ does with a step: n
    weights that move together are sqrt(n) times as long a vector as one of them.
    """
    found = torch.unique(weight.detach(), return_inverse=True, return_counts=True)
    values, which, counts = cast(tuple[Tensor, Tensor, Tensor], found)
    shape, used = weight.shape, (values != 0).to(weight.dtype)

    def project(tensor: Tensor) -> Tensor:
        place = which.flatten().to(tensor.device)
        sums = torch.zeros(len(values), dtype=tensor.dtype, device=tensor.device)
        sums.index_add_(0, place, tensor.flatten())
        means: Tensor = sums / counts.to(tensor) * used.to(tensor)
        return means[place].view(shape)

    return Held(project, counts.to(weight).sqrt()[which])
