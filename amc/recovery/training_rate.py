"""A learning rate for a network that is trained already.

A compressed network is near to where it should be. A rate that is too high throws it off, and a
short training, as one on few images is, does not bring it back. Which rate that is depends on the
network and on the images. So rates are tried, the highest first, each by a few steps on a copy, and
the first is taken at which the network learns: the mean loss of the steps is below what it is where
nothing changes, on the same images and in the same mode.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from amc.errors import EvaluationError
from amc.recovery.training_settings import TrainingSettings
from amc.recovery.training_state import TrainingResult

log = logging.getLogger("amc")

RATES = (0.01, 0.003, 0.001, 0.0003, 0.0001)
STILL = 1e-20  # a rate that changes nothing
TRIAL_STEPS = 20

Training = Callable[[nn.Module, torch.Tensor, TrainingSettings], TrainingResult]
"""Trains a network, in place, on the images at some indices."""


def with_rate(
    settings: TrainingSettings, network: nn.Module, images: int, training: Training
) -> TrainingSettings:
    """Settings with a learning rate: their own, or one at which a network learns.

    Args:
        network: Not modified.
        images: How many there are.

    Raises:
        KeyboardInterrupt: A trial was stopped.
    """
    if settings.learning_rate is not None:
        return settings
    count = min(images, TRIAL_STEPS * settings.batch_size)
    some = torch.linspace(0, images - 1, count).long()  # evenly: data come sorted by class

    def loss(rate: float) -> float:
        asked = replace(settings, epochs=1, learning_rate=rate, gradual=0.0, average=0.0)
        try:
            history = training(copy.deepcopy(network), some, asked).history
        except EvaluationError:  # it was thrown so far off that its loss is no number
            return float("inf")
        if not history:
            raise KeyboardInterrupt
        return history[0].loss

    still = loss(STILL)
    found = next((rate for rate in RATES if loss(rate) < still), RATES[-1])
    log.info("learning_rate=%g: of %s the highest at which a short trial learns", found, RATES)
    return replace(settings, learning_rate=found)
