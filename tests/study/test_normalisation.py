"""A forgotten normalisation is found by trying the usual ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.data.dataset import DataSet
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from amc.study.introduction import describe
from amc.study.normalisation import other_normalisation

DARK = 60  # an image of class 0 is darker than this, one of class 1 brighter
MIDDLE = DARK / 255


class Threshold(nn.Module):
    """Right on every image if pixels come to it in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(4, 2)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 3)
            self.conv.bias.fill_(1.0)  # above the ReLU whatever the normalisation
            self.fc.weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
            self.fc.bias.copy_(torch.tensor([4 * (1 + MIDDLE), -4 * (1 + MIDDLE)]))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(images)).mean((2, 3)))


def task(images: int = 200, **options: Any) -> CompressionTask:
    labels = torch.arange(images) // 2 % 2  # half of every second image each
    grey = torch.where(labels == 1, DARK + 40, DARK - 40).to(torch.uint8)
    pixels = grey.view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    data = DataSet.from_tensors(
        pixels,
        labels,
        test_images=pixels[:20],
        test_labels=labels[:20],
        search_every=2,
        **options,
    )
    return CompressionTask(
        Problem(Threshold().eval(), data, None, {"metric": "macs", "fraction": 0.9})
    )


def test_a_usual_normalisation_that_does_clearly_better_is_named() -> None:
    assert other_normalisation(task()) == (
        "Normalised by data.mean=0.5 data.std=0.5 (the default), the original's accuracy is "
        "50.00 % on 100 search images; by data.mean=0 data.std=1 it would be 100.00 %. Set both "
        "to what it was trained with."
    )


@pytest.mark.parametrize(
    ("why", "options"),
    [
        ("it is the right one", {"mean": 0.0, "std": 1.0}),
        ("the user chose it", {"mean": 0.4, "std": 0.4}),
        ("too few images tell nothing", {"images": 120}),
    ],
)
def test_nothing_is_said_where(why: str, options: dict[str, Any]) -> None:
    assert other_normalisation(task(**options)) == ""


def test_the_introduction_says_on_how_many_images_the_original_was_judged() -> None:
    assert "original: accuracy 50.00 % on the 100 search images" in describe(task())
