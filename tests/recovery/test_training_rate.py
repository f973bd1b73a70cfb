"""The learning rate of a network that is trained already, found by trials."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import amc
from amc.errors import ConfigError, EvaluationError
from amc.recovery.training import train
from amc.recovery.training_rate import RATES, STILL, TRIAL_STEPS, with_rate
from amc.recovery.training_settings import TrainingSettings
from amc.recovery.training_state import EpochRecord, TrainingResult

ASKED = TrainingSettings(epochs=7, learning_rate=None, batch_size=8, average=0.5)


class Losses:
    """Trains nothing, and tells by a table what the loss of a rate is."""

    def __init__(self, network: nn.Module, losses: dict[float, float]) -> None:
        self.network, self.losses = network, losses
        self.asked: list[float] = []
        self.images: list[Tensor] = []

    def __call__(
        self, network: nn.Module, some: Tensor, settings: TrainingSettings
    ) -> TrainingResult:
        assert network is not self.network
        assert (settings.epochs, settings.average, settings.batch_size) == (1, 0.0, 8)
        rate = settings.learning_rate
        assert rate is not None
        self.asked.append(rate)
        self.images.append(some)
        loss = self.losses[rate]
        if loss == float("inf"):
            raise EvaluationError("the loss became inf")
        record = EpochRecord(1, loss, None, None, rate)
        return TrainingResult(network, 1, None, (record,), complete=True)


def test_highest_rate_whose_trial_ends_below_that_of_no_change_is_taken() -> None:
    network = nn.Linear(2, 2)
    losses = Losses(network, {STILL: 1.0, 0.01: float("inf"), 0.003: 1.01, 0.001: 0.99})
    found = with_rate(ASKED, network, 1000, losses)
    assert found == replace(ASKED, learning_rate=0.001)
    assert losses.asked == [STILL, 0.01, 0.003, 0.001]
    assert all(torch.equal(some, losses.images[0]) for some in losses.images)
    assert len(losses.images[0]) == TRIAL_STEPS * 8
    assert (int(losses.images[0][0]), int(losses.images[0][-1])) == (0, 999)


def test_lowest_rate_is_taken_where_none_learns_and_all_images_where_they_are_few() -> None:
    network = nn.Linear(2, 2)
    losses = Losses(network, {STILL: 1.0} | dict.fromkeys(RATES, 1.0))
    assert with_rate(ASKED, network, 5, losses).learning_rate == RATES[-1]
    assert losses.images[0].tolist() == [0, 1, 2, 3, 4]


def test_rate_that_is_given_is_not_tried() -> None:
    network = nn.Linear(2, 2)
    given = replace(ASKED, learning_rate=0.5)
    assert with_rate(given, network, 5, Losses(network, {})) is given


def test_stopped_trial_ends_the_training() -> None:
    def stopped(network: nn.Module, _: Tensor, __: TrainingSettings) -> TrainingResult:
        return TrainingResult(network, 0, None, (), complete=False)

    with pytest.raises(KeyboardInterrupt):
        with_rate(ASKED, nn.Linear(2, 2), 5, stopped)


def test_training_itself_needs_a_rate() -> None:
    images, labels = torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match=r"needs a learning_rate; amc\.finetune alone finds one"):
        train(network, images, labels, mean=[0.0], std=[1.0], settings=ASKED)


@pytest.mark.parametrize(("scale", "learns"), [(1.0, True), (40.0, False)])
def test_rate_that_throws_a_network_off_is_not_taken(
    scale: float, learns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Two linear networks that compute the same of images, one of them of 40 times as large ones.

    A step moves what a network gives by the square of that times as far.
    """
    images = torch.randn(600, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    seen, unseen = images[:, 0, 0, 0], images[:, 0, 0, 1]
    labels = (seen + unseen > 0).long()  # no better than four of five are right by what is seen
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    with torch.no_grad():
        network[1].weight.zero_()[1, 0] = 0.5 / scale
    images[:, 0, 0, 1] = 0
    data = amc.DataSet.from_tensors(scale * images, labels)
    settings = TrainingSettings(epochs=1, learning_rate=None, batch_size=16)
    caplog.set_level(logging.INFO, "amc")
    amc.finetune(copy.deepcopy(network), network, data, settings=settings)
    told = next(line for line in caplog.messages if line.startswith("learning_rate="))
    found = float(told.removeprefix("learning_rate=").partition(":")[0])
    assert (found == RATES[0]) == learns
