"""What a user may set about a data set, and how its images are divided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from amc.errors import DataError

AUGMENTATIONS = ("flip", "crop")
CHANNELS = (1, 3)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5,)

# Without a count of the user's: a fraction of the training images, at most a number of them.
CALIBRATION = (0.1, 5000)
SEARCH = (0.2, 5000)
TEST_FRACTION = 0.2  # of the images, where the data come without a test set


@dataclass(frozen=True)
class DataOptions:
    """Options of every data set; None means the data set's own default.

    Attributes:
        image_size: Height and width in pixels to which images are brought.
        channels: 1 (grey) or 3 (RGB).
        mean, std: Normalisation of pixels in [0, 1], per channel or one for all.
        augment: Of "flip" and "crop", those that training may apply.
        calibration, search: Number of images taken out of the training images.
        search_every: Instead of ``search``: every k-th training image, beginning with the
            first. Folders are in the order of class name, then file name.
    """

    image_size: int | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: tuple[str, ...] | None = None
    calibration: int | None = None
    search: int | None = None
    search_every: int | None = None

    def __post_init__(self) -> None:
        counts = {"image_size": 1, "calibration": 1, "search": 1, "search_every": 2}
        for name, least in counts.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise DataError(f"data.{name} must be an integer >= {least}, got {value!r}.")
        if self.channels is not None and self.channels not in CHANNELS:
            raise DataError(f"data.channels must be 1 or 3, got {self.channels!r}.")
        if self.search is not None and self.search_every is not None:
            raise DataError("Set data.search or data.search_every, not both.")
        for name in ("mean", "std", "augment"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _as_tuple(name, value))
        unknown = set(self.augment or ()) - set(AUGMENTATIONS)
        if unknown:
            raise DataError(
                f"data.augment must be of {', '.join(AUGMENTATIONS)}, got {sorted(unknown)}."
            )


def _as_tuple(name: str, value: object) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise DataError(f"data.{name} must be a list, got {value!r}.")
    if name != "augment" and not all(
        isinstance(number, int | float) and math.isfinite(number) for number in value
    ):
        raise DataError(f"data.{name} must be a list of finite numbers, got {value!r}.")
    return tuple(value)


def read_options(given: dict[str, Any], **defaults: Any) -> DataOptions:
    """``given`` over ``defaults``; None in ``given`` leaves the default.

    Raises:
        DataError: An option is unknown or has a value that it cannot take.
    """
    known = [option.name for option in fields(DataOptions)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise DataError(f"Unknown data options {unknown}. Known are: {', '.join(known)}.")
    chosen = {name: value for name, value in given.items() if value is not None}
    return DataOptions(**{**defaults, **chosen})


def normalisation(
    options: DataOptions, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, one number per channel.

    Raises:
        DataError: Not one number per channel, or a standard deviation of zero or less.
    """
    mean, std = options.mean or HALF, options.std or HALF
    for name, numbers in (("mean", mean), ("std", std)):
        if len(numbers) not in (1, channels):
            raise DataError(
                f"data.{name} must hold 1 number or {channels} (one per channel), got {numbers}."
            )
    if min(std) <= 0:
        raise DataError(f"data.std must be greater than zero, got {std}.")
    return (
        mean * channels if len(mean) == 1 else mean,
        std * channels if len(std) == 1 else std,
    )


@dataclass(frozen=True, eq=False)
class Division:
    """Which training images serve what; sorted indices that never overlap."""

    train: Tensor
    calibration: Tensor
    search: Tensor = field(repr=False)


def divide(count: int, options: DataOptions, seed: int) -> Division:
    """Divide ``count`` training images: search first, then calibration, train is the rest.

    Raises:
        DataError: The splits leave no image to train on.
    """
    calibration = options.calibration or _share(count, CALIBRATION)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if options.search_every is not None:
        search = torch.arange(0, count, options.search_every)
        rest = order[order % options.search_every != 0]
    else:
        wanted = options.search or _share(count, SEARCH)
        search, rest = order[:wanted], order[wanted:]
    if len(rest) <= calibration:
        raise DataError(
            f"{count} training images cannot give {len(search)} for search and {calibration} for "
            "calibration and leave some to train on. Lower data.search or data.calibration."
        )
    parts = (rest[calibration:], rest[:calibration], search)
    return Division(*(part.sort().values for part in parts))


def _share(count: int, rule: tuple[float, int]) -> int:
    fraction, most = rule
    return max(1, min(most, int(count * fraction)))


def cut_test(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted indices of a training and a test part, for data without a test set."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    size = max(1, int(count * TEST_FRACTION))
    return order[size:].sort().values, order[:size].sort().values
