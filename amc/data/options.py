"""What a user may set about a data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from amc.errors import DataError

AUGMENTATIONS = ("flip", "crop")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5,)


@dataclass(frozen=True)
class DataOptions:
    """Options of every data set; None means the data set's own default.

    Attributes:
        image_size: Height and width in pixels to which images are brought: one number for both, or
            the two.
        channels: 1 (grey), 3 (RGB), or as many as the images have.
        mean, std: Normalisation of pixels in [0, 1], per channel or one for all.
        augment: Of "flip" and "crop", those that training may apply.
        calibration, search: Number of images taken out of the training images.
        search_every: Instead of ``search``: every k-th training image, beginning with the
            first. Folders are in the order of class name, then file name.
        exif: Whether image files are turned as their EXIF orientation says. Not, unless asked for:
            neither Pillow nor torchvision's data sets do, so networks are trained without.
        ignored: Bytes of mask files that say that a pixel is of no class.
        mask_values: The byte of each class in mask files, in the order of the network's outputs;
            0, 1, 2, ... unless given.
    """

    image_size: int | tuple[int, int] | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: tuple[str, ...] | None = None
    calibration: int | None = None
    search: int | None = None
    search_every: int | None = None
    exif: bool | None = None
    ignored: tuple[int, ...] | None = None
    mask_values: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._check_size()
        counts = {"channels": 1, "calibration": 1, "search": 1, "search_every": 2}
        for name, least in counts.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise DataError(f"data.{name} must be an integer >= {least}, got {value!r}.")
        if self.exif is not None and type(self.exif) is not bool:
            raise DataError(f"data.exif must be true or false, got {self.exif!r}.")
        if self.search is not None and self.search_every is not None:
            raise DataError("Set data.search or data.search_every, not both.")
        for name, read in _LISTS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, read(name, value))
        if self.mask_values and set(self.mask_values) & set(self.ignored or ()):
            raise DataError(
                f"data.mask_values {list(self.mask_values)} and data.ignored "
                f"{list(self.ignored or ())} must have no byte in common."
            )
        if self.channels is not None:
            normalisation(self, self.channels)  # before any image is read

    def _check_size(self) -> None:
        size = self.image_size
        if size is None or (type(size) is int and size >= 1):
            return
        sides: Sequence[Any] = size if isinstance(size, list | tuple) else ()
        if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
            raise DataError(
                "data.image_size must be an integer >= 1 (height and width), or both of them, "
                f"[height, width], got {size!r}."
            )
        object.__setattr__(self, "image_size", tuple(sides))

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width to which images are brought; None: they stay as they are."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size


def _names(name: str, value: object) -> tuple[str, ...]:
    expected = f"data.{name} must be a list of {', '.join(AUGMENTATIONS)}"
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise DataError(f"{expected}, got {value!r}.")
    unknown = [name for name in value if name not in AUGMENTATIONS]
    if unknown:
        raise DataError(f"{expected}, got {unknown}.")
    return tuple(value)


def _numbers(name: str, value: object) -> tuple[float, ...]:
    """One number for all channels, or a list of them."""
    given: Sequence[Any] = [value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        given = value
    if not given or not all(map(_is_number, given)):
        raise DataError(
            f"data.{name} must be a finite number, or a list of one for each channel, "
            f"got {value!r}."
        )
    return tuple(given)


def _bytes(name: str, value: object) -> tuple[int, ...]:
    """One byte, or a list of different ones."""
    given: Sequence[Any] = [value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        given = value
    fits = all(type(byte) is int and 0 <= byte <= 255 for byte in given)
    if not given or not fits or len(set(given)) < len(given):
        raise DataError(
            f"data.{name} must be a number from 0 to 255, or a list of different ones, got "
            f"{value!r}."
        )
    return tuple(given)


_LISTS: dict[str, Callable[[str, object], tuple[Any, ...]]] = {
    "mean": _numbers,
    "std": _numbers,
    "augment": _names,
    "ignored": _bytes,
    "mask_values": _bytes,
}


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


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


OF_FILES = ("exif", "ignored", "mask_values")
"""Options that say how files are read."""
OF_ALL = tuple(option.name for option in fields(DataOptions) if option.name not in OF_FILES)
"""Options of every data set."""
