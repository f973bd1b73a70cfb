"""A set of images in four splits: to train on, to calibrate by, to search on, to test with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from amc.data.division import FEW_IMAGES, divide
from amc.data.memory import dataset_source, tensor_source
from amc.data.options import OF_FILES, DataOptions, normalisation, read_options
from amc.data.split import Source, Split
from amc.errors import DataError
from amc.utils.arguments import described
from amc.utils.files import fingerprint


class DataSet:
    """A source divided into train, calibration, search and test.

    Each split is loaded when it is first accessed, and kept. Search and calibration images
    are taken out of the training images; the test split is the source's own. No image of the
    search and test splits is in another; where images are few, calibration and train share theirs
    (`amc.data.division.calibration_count`).

    Attributes:
        name: Of the data set.
        image_shape: (C, H, W).
        mean, std: Per channel, of pixels in [0, 1].
        augment: Of "flip" and "crop", those that training may apply.

    Raises:
        DataError: The options do not fit the source: too few images, or mean and std of
            another number of channels.
    """

    def __init__(self, name: str, source: Source, options: DataOptions, seed: int) -> None:
        self.name = name
        self.image_shape = source.image_shape
        self.mean, self.std = normalisation(options, self.image_shape[0])
        self.augment = options.augment or ()
        self._source, self._options = source, options
        self._loaded: dict[str, Split] = {}  # what `without_labels` gives shares it
        self._why_aside = ""
        self._division = divide(
            source.train_count, source.train_labels, options, seed, source.searched
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels; none where there are no labels."""
        return () if self._why_aside else self._source.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 where there are no labels."""
        return len(self.class_names)

    @property
    def is_labelled(self) -> bool:
        """Whether the images have labels."""
        return self.train_labels is not None

    @property
    def has_other_labels(self) -> bool:
        """Whether there are labels, which say nothing of the network's outputs."""
        return bool(self._why_aside)

    @property
    def labels_in_words(self) -> str:
        """What the labels are, in two or three words."""
        if self.train_labels is None:
            return "no labels"
        if self.num_classes:
            return f"{self.num_classes} classes"
        return f"labels of shape {tuple(self.train_labels.shape[1:])}"

    @property
    def why_unlabelled(self) -> str:
        """Why there are no labels, in a few words; empty where there are."""
        return "" if self.is_labelled else self._why_aside or "its images have none"

    @property
    def train_labels(self) -> Tensor | None:
        """Of all images but the test's, in the source's order; known without reading an image."""
        return None if self._why_aside else self._source.train_labels

    @property
    def test_labels(self) -> Tensor | None:
        """Of the test images, or of some of them, where they are known without reading all."""
        return None if self._why_aside else self._source.test_labels

    def without_labels(self, why: str) -> DataSet:
        """The same images, of which the labels say nothing for a reason."""
        bare = copy.copy(self)
        bare._why_aside = why
        return bare

    @property
    def shortage(self) -> str:
        """What is too little of the data to rely on, in a sentence; empty if nothing is."""
        few = {
            "calibration": len(self._division.calibration),
            "search": len(self._division.search),
        }
        said = [f"{count} for {what}" for what, count in few.items() if count < FEW_IMAGES]
        if not said:
            return ""
        return (
            f"Few images: {' and '.join(said)}. What is fitted to and judged on fewer than "
            f"{FEW_IMAGES} holds less well for other images: more of the same kind help."
        )

    @property
    def train(self) -> Split:
        """What weights may be trained on."""
        return self._split("train", lambda: self._source.load_train(self._division.train))

    @property
    def calibration(self) -> Split:
        """What statistics are gathered from: least squares, batch normalisation, ranges."""
        indices = self._division.calibration
        return self._split("calibration", lambda: self._source.load_train(indices))

    @property
    def search(self) -> Split:
        """What the reward is measured on; never trained on."""
        return self._split("search", lambda: self._source.load_train(self._division.search))

    @property
    def test(self) -> Split:
        """What is reported; neither trained on nor searched on."""
        return self._split("test", self._source.load_test)

    def _split(self, name: str, load: Callable[[], Split]) -> Split:
        if name not in self._loaded:
            self._loaded[name] = load()
        found = self._loaded[name]
        return replace(found, labels=None, aside=found.labels) if self._why_aside else found

    def fingerprint(self) -> str:
        """Changes with the images, their labels, or how they are divided and normalised.

        Images in memory count by content; folders by relative file names and sizes.
        """
        aside = self._why_aside
        return fingerprint(self._fingerprint, "without labels") if aside else self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        # Augmentation changes what a network is trained to, not what it is measured on.
        settings = {**asdict(self._options), "mean": self.mean, "std": self.std, "augment": None}
        # These stand for nothing where they are not set: so it was before there were any.
        unset = [name for name in OF_FILES if settings[name] is None]
        settings = {name: value for name, value in settings.items() if name not in unset}
        division = self._division
        return fingerprint(
            self._source.fingerprint(),
            repr(self._source.class_names),
            repr(settings),
            *(division.train, division.calibration, division.search),
        )

    @classmethod
    def from_tensors(
        cls,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        test_images: Tensor | None = None,
        test_labels: Tensor | None = None,
        class_names: Sequence[str] | None = None,
        name: str = "tensors",
        seed: int = 0,
        **options: Any,
    ) -> DataSet:
        """A data set of tensors; without test images, a seeded fifth becomes the test split.

        Args:
            images: uint8 (N, C, H, W), or floating point that is normalised already.
            labels: Integers (N,) from 0 to the number of classes - 1; or, for an objective that
                takes others (`amc.objectives`), any tensor of (N, ...). None: a search without
                labels, by agreement with the original's outputs.
            class_names: In the order of the labels (N,); "0", "1", ... unless given.
            options: Fields of ``DataOptions``.

        Raises:
            DataError: Shapes, types or labels do not fit each other, or an option is unknown.
        """
        if (test_images is None or labels is None) != (test_labels is None):
            raise DataError(
                "Give test_images and test_labels, or neither of them; without labels, no "
                "test_labels."
            )
        test = None if test_images is None else (test_images, test_labels)
        chosen = read_options(options)
        source = tensor_source((images, labels), test, class_names, seed, chosen)
        return cls(name, source, chosen, seed)

    @classmethod
    def from_dataset(
        cls,
        train: Any,
        test: Any | None = None,
        *,
        class_names: Sequence[str] | None = None,
        name: str = "dataset",
        seed: int = 0,
        **options: Any,
    ) -> DataSet:
        """A data set of map-style torch datasets that give (image tensor or PIL image, label).

        The training images are read once, now; the test images when they are first needed.
        Random transforms would be drawn only once: leave them out and set ``augment``.

        Args:
            train, test: Anything with ``__len__`` and ``__getitem__``. Without ``test``, a
                seeded fifth of ``train`` becomes the test split.
            class_names: In the order of the labels; ``train.classes`` or numbers unless given.
            options: Fields of ``DataOptions``.

        Raises:
            DataError: Items have other types or shapes, labels are out of range, or an option
                is unknown.
        """
        chosen = read_options(options)
        source = dataset_source(train, test, class_names, seed, chosen)
        return cls(name, source, chosen, seed)


def check_data(data: object) -> None:
    """Check that the data are a data set of amc's.

    Raises:
        DataError: It is no `DataSet`.
    """
    if not isinstance(data, DataSet):
        raise DataError(
            f"data must be an amc.DataSet, got {described(data)}. Make one: "
            "amc.DataSet.from_tensors(images, labels), amc.DataSet.from_dataset(dataset), or "
            "amc.build_data(name)."
        )
