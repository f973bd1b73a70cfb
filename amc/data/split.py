"""Images in memory, and what a data set asks of the place they come from."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from amc.errors import DataError

Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Split:
    """Images in memory, with their labels where there are any.

    Attributes:
        images: uint8 (N, C, H, W), or float32 that the user has normalised already.
        labels: int64 (N,), or another tensor of (N, ...) for an objective that takes it; None
            where there are none, or none that count.
        aside: Labels that do not count for the objective, as a metric of the user's may see them.
    """

    images: Tensor
    labels: Tensor | None
    aside: Tensor | None = None

    @property
    def all_labels(self) -> Tensor | None:
        """The labels, whether they count or not."""
        return self.aside if self.labels is None else self.labels

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> Split:
        """The images at ``indices``, in their order."""
        labels, aside = (
            None if some is None else some[indices] for some in (self.labels, self.aside)
        )
        return Split(self.images[indices], labels, aside)

    def spread(self, count: int) -> Split:
        """At most ``count`` images, evenly spread over the split (which may be sorted by class)."""
        if count >= len(self):
            return self
        return self.take(torch.linspace(0, len(self) - 1, count).round().long())

    def normalised(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """Images ``start:stop`` as a network takes them: (pixel / 255 - mean) / std.

        Float images are returned as they are.

        Returns:
            float32 (n, C, H, W), on the device of the images.
        """
        images = self.images[start:stop]
        if images.dtype != torch.uint8:
            return images
        per_channel = (len(mean), 1, 1)
        means = torch.tensor(mean, device=images.device).view(per_channel)
        stds = torch.tensor(std, device=images.device).view(per_channel)
        return images.float().div_(255).sub_(means).div_(stds)


def check_room(count: int, shape: Sequence[int], item_bytes: int, what: str) -> None:
    """Check that so many images fit into this machine's memory, before they are read.

    Raises:
        DataError: They do not.
    """
    wanted = count * math.prod(shape) * item_bytes
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted > there:
        raise DataError(
            f"{count} {what} of {'x'.join(map(str, shape))} take {wanted / 1e9:,.1f} GB, and this "
            f"machine has {there / 1e9:,.1f} GB of memory. Give fewer (a few thousand are enough "
            "for a search), or smaller ones: data.image_size."
        )


class Source(Protocol):
    """Where the images of a data set come from; nothing is decoded before it is asked for."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels; none where there are no labels."""

    @property
    def image_shape(self) -> Shape:
        """(C, H, W) of every image."""

    @property
    def train_count(self) -> int:
        """Number of images that may be divided into train, calibration and search."""

    @property
    def searched(self) -> Tensor | None:
        """Which of them are for search, where the source says so: sorted indices."""

    @property
    def train_labels(self) -> Tensor | None:
        """Theirs, (train_count, ...), known without decoding an image; None: without."""

    @property
    def test_labels(self) -> Tensor | None:
        """Labels of the test images, or of some of them, as far as they are known before all test
        images are read; None: of none.
        """

    def load_train(self, indices: Tensor) -> Split:
        """The training images at ``indices``."""

    def load_test(self) -> Split:
        """All test images."""

    def fingerprint(self) -> str:
        """Changes with the images or their labels."""
