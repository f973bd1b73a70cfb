"""How the images of a data set are divided into test, search, calibration and train."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from amc.data.options import DataOptions
from amc.errors import DataError

# Without a count of the user's: a fraction of the training images, at most a number of them.
CALIBRATION = (0.1, 5000)
SEARCH = (0.2, 5000)
TEST_FRACTION = 0.2  # of the images, where the data come without a test set

# Fewer calibration images say too little of a network to refit its weights by.
FEW_IMAGES = 128
# Of so many images of each class in a split, chance alone keeps the shares.
MANY_OF_A_CLASS = 10


@dataclass(frozen=True, eq=False)
class Division:
    """Which training images serve what; sorted indices.

    None of ``search`` is in another part. ``calibration`` is ``train`` where images are few
    (`calibration_count`), else they have none in common.
    """

    train: Tensor
    calibration: Tensor
    search: Tensor = field(repr=False)


def divide(
    count: int,
    labels: Tensor | None,
    options: DataOptions,
    seed: int,
    searched: Tensor | None = None,
) -> Division:
    """Divide ``count`` training images: search first, then calibration, train is the rest.

    By chance, and where that would leave few images of a class in a split, so that every split
    has its share of each class (`shuffled`).

    Args:
        labels: Of the images, shape (count,) or (count, ...); None: without.
        searched: Those that the data themselves have for search; none of them is in another part.

    Raises:
        DataError: The splits leave no image to train on.
    """
    if searched is not None:
        return _divided(count, labels, options, seed, searched)
    wanted = options.search or _share(count, SEARCH)
    smallest = min(wanted, options.calibration or _share(count, CALIBRATION))
    order = shuffled(count, labels, seed, smallest)
    if options.search_every is not None:
        search = torch.arange(0, count, options.search_every)
        rest = order[order % options.search_every != 0]
    else:
        search, rest = order[:wanted], order[wanted:]
    return _cut(count, search, rest, options)


def _divided(
    count: int, labels: Tensor | None, options: DataOptions, seed: int, searched: Tensor
) -> Division:
    """As `divide`, where the search images are given: all of them, or as many as asked for."""
    if options.search_every is not None:
        raise DataError(
            f"data.search_every={options.search_every} cannot be had: the data come with "
            f"{len(searched)} images for search. Leave it out."
        )
    most = options.search or min(SEARCH[1], len(searched))
    if most > len(searched):
        raise DataError(
            f"data.search={most} cannot be had: the data come with {len(searched)} images for "
            "search. Lower it, or leave it out."
        )
    picked = shuffled(len(searched), _at(labels, searched), seed, most)[:most]
    others = torch.ones(count, dtype=torch.bool)
    others[searched] = False
    left = others.nonzero().flatten()
    smallest = options.calibration or _share(len(left), CALIBRATION)
    rest = left[shuffled(len(left), _at(labels, left), seed, smallest)]
    return _cut(len(left), searched[picked], rest, options)


def _at(labels: Tensor | None, indices: Tensor) -> Tensor | None:
    return None if labels is None else labels[indices]


def _cut(count: int, search: Tensor, rest: Tensor, options: DataOptions) -> Division:
    """The division with these images for search, of which the others are cut for calibration."""
    calibration = calibration_count(count, len(rest), options.calibration)
    if calibration is None and len(rest):
        parts = (rest, rest, search)
    elif calibration is not None and calibration < len(rest):
        parts = (rest[calibration:], rest[:calibration], search)
    else:
        raise DataError(
            f"{count} training images cannot give {len(search)} for search and {calibration or 1} "
            "for calibration and leave some to train on. Lower data.search or data.calibration."
        )
    return Division(*(part.sort().values for part in parts))


def calibration_count(count: int, rest: int, promised: int | None) -> int | None:
    """How many images are set aside for calibration; None: those to train on serve for both.

    What the user promised; else a tenth of the training images, at most 5000. Where a tenth is
    fewer than 128 (or more than search leaves), calibration uses all that is there but for search
    and test: it fits weights as training does, so the two may share images, and statistics of a
    few images carry over badly.

    Args:
        count: Of all training images.
        rest: Of those that are not for search.
        promised: ``data.calibration``.
    """
    if promised is not None:
        return promised
    tenth = _share(count, CALIBRATION)
    return tenth if FEW_IMAGES <= tenth < rest else None


def _share(count: int, rule: tuple[float, int]) -> int:
    fraction, most = rule
    return max(1, min(most, int(count * fraction)))


def cut_test(count: int, labels: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted indices of a training and a test part, for data without a test set.

    Raises:
        DataError: There is only one image.
    """
    if count < 2:
        raise DataError(
            f"{count} image cannot be divided into images to compress by and images to test with: "
            "at least 3 are needed, or 2 and test images of their own."
        )
    size = max(1, int(count * TEST_FRACTION))
    order = shuffled(count, labels, seed, size)
    return order[size:].sort().values, order[:size].sort().values


def shuffled(count: int, labels: Tensor | None, seed: int, smallest: int) -> Tensor:
    """All indices in a seeded order, of which every stretch is a fair sample of the classes.

    Chance does that where even the smallest split gets ten images and more of each class. Where it
    does not, the k-th of a class's n images, in the order that chance gave them, comes after
    (k - 1/2) / n of the whole. Of classes of 6 and 3: a b a a b a a b a.

    Args:
        smallest: Images of the smallest split.

    Returns:
        Shape (count,).
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if labels is None or labels.dim() != 1 or count == 0:
        return order
    labels = torch.unique(labels, return_inverse=True)[1]
    sizes = torch.bincount(labels)
    if int(sizes.min()) * smallest >= MANY_OF_A_CLASS * count:
        return order
    by_class = order[labels[order].argsort(stable=True)]  # of each class, in the order of chance
    first = sizes.cumsum(0) - sizes
    sorted_labels = labels[by_class]
    rank = torch.arange(count) - first[sorted_labels]
    place = torch.empty(count)
    place[by_class] = (rank + 0.5) / sizes[sorted_labels]
    return order[place[order].argsort(stable=True)]
