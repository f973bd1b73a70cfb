"""Image folders: train/<class>/* and test/<class>/*, only <class>/*, or images alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from amc.data.division import cut_test
from amc.data.files import SUFFIXES, ImageFile, ImageReader, decoded, images_below, shown
from amc.data.options import DataOptions
from amc.data.split import Shape, Split
from amc.errors import DataError
from amc.utils.files import fingerprint

log = logging.getLogger(__name__)

TRAIN, VALIDATION, TEST = "train", "val", "test"
MASK_FOLDERS = ("images", "masks")  # what `amc.data.masks` reads


class FilesOfFolder:
    """What sources of image files share: images of one shape, which the first decides."""

    _options: DataOptions
    _train: list[ImageFile]

    @cached_property
    def _reader(self) -> ImageReader:
        return reader_of(self._train, self._options)

    @property
    def image_shape(self) -> Shape:
        """(channels, height, width)."""
        return self._reader.shape

    @property
    def train_count(self) -> int:
        """Of all images but the test's."""
        return len(self._train)


class FolderSource(FilesOfFolder):
    """Images of a folder, in the order of class name, then file name; decoded when asked for.

    A class's images may lie in folders of its own. A folder that holds images and no folders of
    classes has images without labels. Where there are train, val and test, those of val are for
    search; without test, val is the test.

    Raises:
        DataError: The folder is missing, holds no images or a class without any, its train and
            test classes differ, a file or folder cannot be read, or (while decoding) an image is
            damaged or of another size.
    """

    def __init__(self, root: Path, options: DataOptions, seed: int) -> None:
        self._root, self._options = root, options
        parts = parts_of(root)
        listed = {name: _list_images(folder) for name, folder in parts.items()}
        self.class_names, self._train = listed[TRAIN]
        for name, (classes, _) in listed.items():
            _check_same_classes(parts[TRAIN], self.class_names, parts[name], classes)
        self.searched: Tensor | None = None
        if VALIDATION in listed:
            self.searched = appended(self._train, listed[VALIDATION][1])
        if TEST in listed:
            self._test = listed[TEST][1]
        else:
            labels = _labels_of(self._train)
            self._train, self._test = without_test(root, self._train, labels, seed)

    @cached_property
    def train_labels(self) -> Tensor | None:
        return _labels_of(self._train)

    @property
    def test_labels(self) -> Tensor | None:
        return _labels_of(self._test)

    def load_train(self, indices: Tensor) -> Split:
        return self._decoded([self._train[index] for index in indices.tolist()])

    def load_test(self) -> Split:
        return self._decoded(self._test)

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(listing(self._root, [*self._train, *self._test]))

    def _decoded(self, files: Sequence[ImageFile]) -> Split:
        reader = self._reader
        paths = [file.path for file in files]
        return Split(decoded(paths, reader.shape, reader.pixels), _labels_of(files))


def parts_of(root: Path) -> Mapping[str, Path]:
    """The folders of train, val and test images, those that there are.

    Without train, the folder itself holds the training images; with val and without test, val
    holds the test images.

    Raises:
        DataError: There is no such folder.
    """
    if not root.is_dir():
        raise DataError(f"Image folder not found: {root}. Check data.root.")
    parts = {name: root / name for name in (TRAIN, VALIDATION, TEST) if (root / name).is_dir()}
    if TRAIN not in parts:
        return {TRAIN: root}
    if VALIDATION in parts and TEST not in parts:
        parts[TEST] = parts.pop(VALIDATION)
    return parts


def reader_of(files: Sequence[ImageFile], options: DataOptions) -> ImageReader:
    """What reads images of the shape that the first of them, or the options, decide."""
    reader = ImageReader(options, files[0].path)
    (height, width), (_, new_height, new_width) = reader.found, reader.shape
    if (height, width) != (new_height, new_width):
        log.info(
            "images of %dx%d pixels are brought to %dx%d (data.image_size)",
            *(width, height, new_width, new_height),
        )
    return reader


def appended(train: list[ImageFile], searched: Sequence[ImageFile]) -> Tensor:
    """Append images to a list; where in it they are then."""
    first = len(train)
    train += searched
    return torch.arange(first, len(train))


def listing(root: Path, files: Sequence[ImageFile]) -> str:
    """Names and sizes of files, wherever their folder is."""
    return "\n".join(
        f"{file.path.relative_to(root).as_posix()}\0{file.size_bytes}" for file in files
    )


def without_test(
    root: Path, files: list[ImageFile], labels: Tensor | None, seed: int
) -> tuple[list[ImageFile], list[ImageFile]]:
    """Training and test images, where the user has no test images."""
    train, test = cut_test(len(files), labels, seed)
    log.warning(
        "%s has no test folder: %d of its %d images, chosen with seed %d, are the test split.",
        root,
        len(test),
        len(files),
        seed,
    )
    return [files[index] for index in train.tolist()], [files[index] for index in test.tolist()]


def _labels_of(files: Sequence[ImageFile]) -> Tensor | None:
    """Shape (files,); None where they have none."""
    labels = [file.label for file in files if file.label is not None]
    return torch.tensor(labels) if labels else None


def _list_images(root: Path) -> tuple[tuple[str, ...], list[ImageFile]]:
    """Class names and image files, both sorted by name; files of other types are passed over.

    Without folders of classes, the images of the folder itself, without labels.
    """
    folders, loose = shown(root)
    if not folders:
        files = images_below(root, None)
        if not files:
            raise DataError(
                f"No class folders in {root}, and no images. Expected train/<class>/*, "
                "test/<class>/* or <class>/* below data.root, or images alone."
            )
        return (), files
    names = tuple(entry.name for entry in folders)
    if names == MASK_FOLDERS:
        raise DataError(
            f"{root} holds images and masks, which are no classes. For a class of every pixel: "
            "data=mask_folder objective=segmentation."
        )
    if loose:
        log.warning("%d images in %s lie in no class folder: they are left out.", len(loose), root)
    files = []
    for label, entry in enumerate(folders):
        found = images_below(Path(entry.path), label)
        if not found:
            raise DataError(
                f"Class folder {entry.path} holds no images ({', '.join(SUFFIXES)}). "
                "Fill it or remove it."
            )
        files += found
    return names, files


def _check_same_classes(
    train_root: Path, train: tuple[str, ...], test_root: Path, test: tuple[str, ...]
) -> None:
    if train != test:
        only = {
            train_root: sorted(set(train) - set(test)),
            test_root: sorted(set(test) - set(train)),
        }
        said = "; ".join(
            f"only in {root}: {', '.join(names)}" for root, names in only.items() if names
        )
        raise DataError(
            f"Train and test must have the same class folders. {said}. Rename or remove these."
        )
