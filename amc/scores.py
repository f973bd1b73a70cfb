"""Class scores: what a classifier gives for each image, as logits whatever it ends with."""

from __future__ import annotations

import torch
from torch import Tensor

# How far a row's sum may be from 1: bfloat16 keeps 8 bits of each probability.
TOLERANCE = 1e-2
_SMALLEST = torch.finfo(torch.float32).tiny  # in place of 0, whose logarithm is no number


def are_probabilities(outputs: Tensor) -> bool:
    """Whether a network ends with a softmax: each row at least 0, and of sum 1.

    Args:
        outputs: Shape (images, classes).
    """
    if outputs.shape[1] < 2:  # a single 1 says nothing
        return False
    sums = outputs.float().sum(1)
    return bool((outputs >= 0).all()) and bool(((sums - 1).abs() <= TOLERANCE).all())


def as_logits(outputs: Tensor, probabilities: bool | None = None) -> Tensor:
    """Outputs whose log_softmax are log-probabilities.

    That of probabilities would be nearly the same for all classes: exp(0) and exp(1) are a factor
    of 2.7 apart. Their logarithms are logits: log_softmax only makes their sum exact. Any other
    outputs are given back as they are; so log-probabilities may be, being logits already.

    Args:
        outputs: Of a network, shape (images, classes).
        probabilities: Whether they are; None: as `are_probabilities` finds.
    """
    if are_probabilities(outputs) if probabilities is None else probabilities:
        return outputs.clamp_min(_SMALLEST).log()
    return outputs
