"""Sources whose images are held in memory: tensors, and torch datasets read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amc.data.division import cut_test
from amc.data.items import Pair, read_items, sized
from amc.data.options import DataOptions
from amc.data.split import Shape, Split
from amc.errors import DataError
from amc.utils.files import fingerprint

# The weights of red, green and blue in grey that Pillow and torchvision use (ITU-R 601-2).
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class MemorySource:
    """Training images in memory, test images behind a function that is called at most once."""

    class_names: tuple[str, ...]
    train: Split
    read_test: Callable[[], Split]
    test_key: str  # stands for the test images in the fingerprint
    searched: Tensor | None = None
    test_labels: Tensor | None = None

    @property
    def image_shape(self) -> Shape:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def train_count(self) -> int:
        return len(self.train)

    @property
    def train_labels(self) -> Tensor | None:
        return self.train.labels

    def load_train(self, indices: Tensor) -> Split:
        return self.train.take(indices)

    def load_test(self, what: str = "Test") -> Split:
        test = self.read_test()
        expected, got = self.train.images.shape[1:], test.images.shape[1:]
        if got != expected:
            raise DataError(
                f"{what} images must be {tuple(expected)} (channels, height, width) like the "
                f"training images, got {tuple(got)}. Set image_size and channels."
            )
        if test.images.dtype != self.train.images.dtype:
            raise DataError(
                f"{what} images must be {self.train.images.dtype} like the training images, "
                f"got {test.images.dtype}."
            )
        return test

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(*_contents(self.train), self.test_key)


def tensor_source(
    train: Pair,
    test: Pair | None,
    class_names: Sequence[str] | None,
    seed: int,
    options: DataOptions,
    searched: Pair | None = None,
) -> MemorySource:
    """A source of tensors; without ``test`` a seeded fifth of ``train`` serves as the test.

    Args:
        searched: For search alone, where there are any.

    Raises:
        DataError: Shapes, types or labels do not fit each other.
    """
    if test is None:
        everything = checked_split(*train, options, "training")
        kept, cut = cut_test(len(everything), everything.labels, seed)
        split, test_split = everything.take(kept), everything.take(cut)
    else:
        split = checked_split(*train, options, "training")
        test_split = checked_split(*test, options, "test")
    split, at = _with_searched(split, searched, options)
    names = checked_names(class_names, (split, test_split))
    key = fingerprint(*_contents(test_split))
    source = MemorySource(names, split, lambda: test_split, key, at, test_split.labels)
    source.load_test()  # a test set of another shape is said now, not after the search
    return source


def _with_searched(
    train: Split, searched: Pair | None, options: DataOptions
) -> tuple[Split, Tensor | None]:
    """Training images with those for search behind them, and where those are."""
    if searched is None:
        return train, None
    split = checked_split(*searched, options, "search")
    first = MemorySource((), train, lambda: split, "")
    first.load_test("Search")
    if (split.labels is None) != (train.labels is None):
        raise DataError("Give labels of training and search images, or of neither.")
    labels = None
    if split.labels is not None and train.labels is not None:
        if split.labels.shape[1:] != train.labels.shape[1:]:
            raise DataError(
                f"Labels of search images must be {tuple(train.labels.shape[1:])} like those of "
                f"training images, got {tuple(split.labels.shape[1:])}."
            )
        labels = torch.cat([train.labels, split.labels.to(train.labels.dtype)])
    both = Split(torch.cat([train.images, split.images]), labels)
    return both, torch.arange(len(train), len(both))


def _contents(split: Split) -> list[Tensor]:
    return [split.images] if split.labels is None else [split.images, split.labels]


def dataset_source(
    train: Any,
    test: Any | None,
    class_names: Sequence[str] | None,
    seed: int,
    options: DataOptions,
) -> MemorySource:
    """A source of map-style datasets; see ``DataSet.from_dataset``."""
    names = class_names or getattr(train, "classes", None)
    if test is None:
        return tensor_source(read_items(train, "training"), None, names, seed, options)
    split = checked_split(*read_items(train, "training"), options, "training")
    known = checked_names(names, (split,))
    length = sized(test, "test")

    def read_test() -> Split:
        found = checked_split(*read_items(test, "test"), options, "test")
        checked_names(known, (found,))
        return found

    # What the first and the last tell of the others is said now, not after the search.
    ends = checked_split(*read_items(test, "test", ends=True), options, "test")
    checked_names(known, (split, ends))
    first = MemorySource(known, split, lambda: ends, "")
    first.load_test()
    return MemorySource(known, split, read_test, str(length), None, ends.labels)


def checked_split(images: Tensor, labels: Tensor | None, options: DataOptions, what: str) -> Split:
    """Images and labels brought to the types of ``Split`` and to the size asked for.

    Raises:
        DataError: Shapes or types are not those of labelled images, or numbers not finite.
    """
    _check_tensor(images, f"{what} images")
    if images.dim() != 4 or images.numel() == 0:
        raise DataError(
            f"The {what} images must have shape (N, C, H, W), got {tuple(images.shape)}."
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise DataError(
            f"The {what} images must be uint8 (0..255) or floating point (normalised already), "
            f"got {images.dtype}."
        )
    if labels is not None:
        _check_labels(labels, len(images), what)
    if images.is_floating_point() and not bool(torch.isfinite(images).all()):
        raise DataError(f"The {what} images hold NaN or infinity. Clean or re-normalise them.")
    if images.dtype != torch.uint8:
        images = images.float()
    if labels is not None and labels.dim() == 1:
        labels = labels.long()
    resized = _resized(images, options, what)
    if labels is not None:
        labels = _resized_map(labels, images.shape[2:], resized.shape[2:])
    return Split(resized, labels)


def _check_labels(labels: Tensor, images: int, what: str) -> None:
    _check_tensor(labels, f"{what} labels")
    is_of_classes = labels.dim() == 1 and not (labels.is_floating_point() or labels.is_complex())
    if labels.shape[:1] != (images,) or not (is_of_classes or labels.dim() > 1):
        raise DataError(
            f"The {what} labels must be {images} integers, one per image (or, for an objective "
            f"that takes them, as many tensors), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )


def _check_tensor(given: object, what: str) -> None:
    if not isinstance(given, Tensor):
        raise DataError(
            f"The {what} must be a torch.Tensor, got {type(given).__name__}. An array becomes one "
            "by torch.as_tensor(array)."
        )


def checked_names(class_names: Sequence[str] | None, splits: Sequence[Split]) -> tuple[str, ...]:
    """Class names, numbers unless given; none where there are no labels (n,).

    Raises:
        DataError: A label is negative or has no class name, or some images alone have labels.
    """
    labels = [split.labels for split in splits if split.labels is not None and len(split)]
    if labels and len(labels) < len([split for split in splits if len(split)]):
        raise DataError("Give labels of training and test images, or of neither.")
    if not all(some.dim() == 1 for some in labels):
        return tuple(class_names or ())
    if not labels:
        return ()
    lowest = min(int(some.min()) for some in labels)
    highest = max(int(some.max()) for some in labels)
    names = tuple(class_names or map(str, range(highest + 1)))
    if lowest < 0 or highest >= len(names):
        raise DataError(
            f"Labels must be from 0 to {len(names) - 1} ({len(names)} classes), "
            f"got {lowest} to {highest}."
        )
    return names


def _resized(images: Tensor, options: DataOptions, what: str) -> Tensor:
    """Images (N, C, H, W) with the channels and the size that the options ask for."""
    kind, given = images.dtype, images.shape[1]
    size, channels = options.size, options.channels or images.shape[1]
    if channels != given and given != 1 and (given, channels) != (3, 1):
        raise DataError(
            f"The {what} images have {given} channels, and data.channels={channels}. Only grey "
            "images become others, and RGB becomes grey: leave it out."
        )
    if channels < given:
        weights = torch.tensor(LUMA).view(3, 1, 1)
        images = (images.float() * weights).sum(dim=1, keepdim=True)
    if size is not None and images.shape[2:] != size:
        images = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
    if kind == torch.uint8 and images.dtype != torch.uint8:
        images = images.round().clamp(0, 255).to(torch.uint8)
    return images.expand(-1, channels, -1, -1).contiguous()


def _resized_map(labels: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Labels of every pixel (N, H, W), resized as their images were, to the nearest pixel."""
    is_map = labels.dim() == 3 and labels.shape[1:] == torch.Size(old)
    if old == new or not is_map or labels.is_floating_point():
        return labels
    rows, columns = (
        ((torch.arange(after) + 0.5) * before / after).long()
        for before, after in zip(old, new, strict=True)
    )
    return labels[:, rows[:, None], columns]
