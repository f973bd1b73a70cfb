"""The items of map-style datasets, read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from amc.data.split import check_room
from amc.errors import DataError
from amc.utils.progress import progress_bar

Pair = tuple[Tensor, Tensor | None]  # images, labels

EXPECTED = (
    "(image tensor or PIL image, integer label or tensor of labels), or an image without a label"
)


def read_items(dataset: Any, what: str, *, ends: bool = False) -> Pair:
    """All images and labels of a map-style dataset, in its order.

    Args:
        ends: Only the first and the last.

    Raises:
        DataError: The dataset has no length or is empty, an item cannot be read or is none of
            `EXPECTED`, shapes differ, or all of them do not fit into memory.
    """
    last = sized(dataset, what) - 1
    asked = sorted({0, last}) if ends else range(last + 1)
    count = len(asked)
    images, labels = _Column(what, "image", count), _Column(what, "label", count)
    with progress_bar(f"Reading {what} images", count) as bar:
        for row, index in enumerate(asked):
            try:
                item = dataset[index]
            except Exception as cause:  # whatever the user's code raises
                raise DataError(
                    f"Item {index} of the {what} dataset cannot be read: {type(cause).__name__}: "
                    f"{cause}."
                ) from cause
            try:
                image, label = _parts(item)
            except (TypeError, ValueError, RuntimeError) as cause:
                raise DataError(
                    f"Item {index} of the {what} dataset must be {EXPECTED}: {cause}."
                ) from cause
            images.put(row, image, index)
            labels.put(row, label, index)
            bar.advance()
    found = images.tensor
    assert found is not None
    return found, labels.tensor


def sized(dataset: Any, what: str) -> int:
    """How many items a map-style dataset has.

    Raises:
        DataError: That is not known, or there are none.
    """
    try:
        count = len(dataset)
    except (TypeError, NotImplementedError) as cause:
        raise DataError(
            f"The {what} dataset must know its length (__len__) and give items by their number "
            f"(__getitem__), got {type(dataset).__name__}: {cause}."
        ) from cause
    if count == 0:
        raise DataError(f"The {what} dataset is empty.")
    return count


@dataclass
class _Column:
    """Images, or labels, as they are read: in one tensor, made for all of them by the first."""

    what: str
    part: str
    count: int
    tensor: Tensor | None = None

    def put(self, row: int, value: Tensor | None, index: int) -> None:
        """Args: index: Of the item, in its dataset."""
        if row == 0 and value is not None:
            self.tensor = self._room(value)
        if (value is None) != (self.tensor is None):
            has, first = ("no", "a") if value is None else ("a", "none")
            raise DataError(
                f"Item {index} of the {self.what} dataset has {has} {self.part}, and the first has "
                f"{first if value is not None else 'one'}. Give labels of all images, or of none."
            )
        if self.tensor is None or value is None:
            return
        if value.shape != self.tensor.shape[1:]:
            raise DataError(
                f"Item {index} of the {self.what} dataset has {self._named} of shape "
                f"{tuple(value.shape)}, expected {tuple(self.tensor.shape[1:])} like the first. "
                "Resize them in its transform."
            )
        if value.is_floating_point() != self.tensor.is_floating_point():
            raise DataError(
                f"Item {index} of the {self.what} dataset has {self._named} of {value.dtype}, "
                f"expected {self.tensor.dtype} like the first."
            )
        self.tensor[row] = value

    @property
    def _named(self) -> str:
        return "an image" if self.part == "image" else "a label"

    def _room(self, first: Tensor) -> Tensor:
        if self.part == "image" and first.dim() != 3:
            raise DataError(
                f"Item 0 of the {self.what} dataset has an image of shape {tuple(first.shape)}, "
                "expected (channels, height, width)."
            )
        kind = torch.float32 if first.dtype.is_floating_point else first.dtype
        check_room(self.count, first.shape, kind.itemsize, f"{self.part}s")
        return torch.empty((self.count, *first.shape), dtype=kind)


def _parts(item: object) -> tuple[Tensor, Tensor | None]:
    """Image and label of an item."""
    if isinstance(item, tuple | list):
        if len(item) == 2:
            return _image_tensor(item[0]), _label_tensor(item[1])
        if len(item) == 1:
            return _image_tensor(item[0]), None
        raise TypeError(f"got {len(item)} things")
    return _image_tensor(item), None


def _image_tensor(item: object) -> Tensor:
    if isinstance(item, Image.Image):
        mode = item.mode if item.mode in ("L", "RGB", "RGBA") else "RGB"
        pixels = np.array(item.convert("L" if item.mode == "1" else mode))  # (H, W) or (H, W, C)
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
    if isinstance(item, Tensor | np.ndarray):
        return torch.as_tensor(item)
    raise TypeError(f"got an image of type {type(item).__name__}")


def _label_tensor(label: object) -> Tensor:
    """One class, of no dimension; or labels of any shape, such as a mask."""
    if isinstance(label, Image.Image):
        return torch.from_numpy(np.array(label))
    if isinstance(label, Tensor | np.ndarray) and label.ndim > 0:
        return torch.as_tensor(label)
    return torch.tensor(int(label))  # type: ignore[call-overload]
