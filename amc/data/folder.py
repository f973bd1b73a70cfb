"""Image folders: train/<class>/* and test/<class>/*, only <class>/*, or images alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from amc.data.division import cut_test
from amc.data.options import DataOptions
from amc.data.split import Shape, Split
from amc.errors import DataError
from amc.utils.files import fingerprint
from amc.utils.progress import progress_bar

log = logging.getLogger(__name__)
_T = TypeVar("_T")

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB"}
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
TRAIN_FOLDER, TEST_FOLDERS = "train", ("test", "val")
CHUNK = 512  # images that are decoded between two reports of progress
MANY = 5000  # images from which on progress is shown


@dataclass(frozen=True)
class ImageFile:
    """An image that is not decoded yet, with its label (if any) and its size in bytes."""

    path: Path
    label: int | None
    size_bytes: int


class FolderSource:
    """Images of a folder, in the order of class name, then file name; decoded when asked for.

    A class's images may lie in folders of its own. A folder that holds images and no folders of
    classes has images without labels.

    An image that is not of the size asked for is cropped in its middle to a square, then
    resized (bilinear). Without ``image_size`` all images must have the size of the first.

    Raises:
        DataError: The folder is missing, holds no images or a class without any, its train and
            test classes differ, a file or folder cannot be read, or (while decoding) an image is
            damaged or of another size.
    """

    def __init__(self, root: Path, options: DataOptions, seed: int) -> None:
        if not root.is_dir():
            raise DataError(f"Image folder not found: {root}. Check data.root.")
        self._root, self._options = root, options
        train_root = root / TRAIN_FOLDER
        test_root = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
        if not train_root.is_dir():
            train_root, test_root = root, None
        self.class_names, self._train = _list_images(train_root)
        if test_root is None:
            self._train, self._test = _without_test(train_root, self._train, seed)
        else:
            test_classes, self._test = _list_images(test_root)
            _check_same_classes(train_root, self.class_names, test_root, test_classes)

    @cached_property
    def image_shape(self) -> Shape:
        first = self._train[0].path
        size = self._options.image_size
        with _readable(first) as image:
            width, height = (size, size) if size else image.size
            if image.size != (width, height):
                log.info(
                    "images of %dx%d pixels are brought to %dx%d (data.image_size)",
                    *(*image.size, width, height),
                )
        return self._options.channels or 3, height, width

    @property
    def train_count(self) -> int:
        return len(self._train)

    @cached_property
    def train_labels(self) -> Tensor | None:
        return _labels_of(self._train)

    def load_train(self, indices: Tensor) -> Split:
        return self._decoded([self._train[index] for index in indices.tolist()])

    def load_test(self) -> Split:
        return self._decoded(self._test)

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        listed = (
            f"{file.path.relative_to(self._root).as_posix()}\0{file.size_bytes}"
            for files in (self._train, self._test)
            for file in files
        )
        return fingerprint("\n".join(listed))

    def _decoded(self, files: Sequence[ImageFile]) -> Split:
        images = np.empty((len(files), *self.image_shape), np.uint8)

        def decode(index: int) -> None:
            images[index] = self._pixels(files[index].path)

        # Pillow decodes outside Python's global lock: threads share the work.
        bar = progress_bar("Decoding images", len(files), enabled=len(files) >= MANY)
        with ThreadPoolExecutor(os.cpu_count()) as pool, bar as report:
            for start in range(0, len(files), CHUNK):
                chunk = range(start, min(start + CHUNK, len(files)))
                # The results come in order, so the first damaged file is the one reported.
                for _ in pool.map(decode, chunk):
                    pass
                report.advance(len(chunk))
        return Split(torch.from_numpy(images), _labels_of(files))

    def _pixels(self, path: Path) -> npt.NDArray[np.uint8]:
        """One image as (C, H, W)."""
        channels, height, width = self.image_shape
        with _readable(path) as image:
            if self._options.image_size is None and image.size != (width, height):
                raise DataError(
                    f"{path} is {image.width}x{image.height} pixels, expected {width}x{height} "
                    f"like {self._train[0].path}. Set data.image_size."
                )
            if image.mode in DEEP_MODES:
                raise DataError(
                    f"{path} has more than 8 bits per channel (mode {image.mode}). "
                    "Convert the images to 8 bits."
                )
            if image.mode != MODES[channels]:
                image = image.convert(MODES[channels])
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)  # (H, W) or (H, W, 3)
        return pixels.reshape(height, width, channels).transpose(2, 0, 1)


@contextmanager
def _readable(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as cause:
        raise DataError(
            f"{path} is no readable image: {cause}. Replace the file or remove it."
        ) from cause


def _labels_of(files: Sequence[ImageFile]) -> Tensor | None:
    """Shape (files,); None where they have none."""
    labels = [file.label for file in files if file.label is not None]
    return torch.tensor(labels) if labels else None


def _list_images(root: Path) -> tuple[tuple[str, ...], list[ImageFile]]:
    """Class names and image files, both sorted by name; files of other types are passed over.

    Without folders of classes, the images of the folder itself, without labels.
    """
    folders, loose = _shown(root)
    if not folders:
        files = _images_below(root, None)
        if not files:
            raise DataError(
                f"No class folders in {root}, and no images. Expected train/<class>/*, "
                "test/<class>/* or <class>/* below data.root, or images alone."
            )
        return (), files
    if loose:
        log.warning("%d images in %s lie in no class folder: they are left out.", len(loose), root)
    files = []
    for label, entry in enumerate(folders):
        found = _images_below(Path(entry.path), label)
        if not found:
            raise DataError(
                f"Class folder {entry.path} holds no images ({', '.join(SUFFIXES)}). "
                "Fill it or remove it."
            )
        files += found
    return tuple(entry.name for entry in folders), files


def _images_below(
    folder: Path, label: int | None, above: frozenset[tuple[int, int]] = frozenset()
) -> list[ImageFile]:
    """The images of a folder by name, then those of the folders in it.

    Args:
        above: Device and inode of the folders that it is in: a link to one of them is passed over.
    """
    status = _read(folder, lambda: folder.stat())
    here = status.st_dev, status.st_ino
    if here in above:
        return []
    folders, images = _shown(folder)
    files = [
        ImageFile(Path(entry.path), label, _read(Path(entry.path), entry.stat).st_size)
        for entry in images
    ]
    for entry in folders:
        files += _images_below(Path(entry.path), label, above | {here})
    return files


def _shown(folder: Path) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """Folders and images in a folder by name; neither what is hidden nor other files."""

    def listed() -> list[os.DirEntry[str]]:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)

    folders, images = [], []
    for entry in _read(folder, listed):
        if entry.name.startswith("."):
            continue
        if _read(Path(entry.path), entry.is_dir):
            folders.append(entry)
        elif entry.name.lower().endswith(SUFFIXES):
            images.append(entry)
    return folders, images


def _read(path: Path, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except OSError as cause:
        link = f" (it is a link to {os.readlink(path)})" if path.is_symlink() else ""
        raise DataError(
            f"{path} cannot be read: {cause.strerror}{link}. Restore it or remove it."
        ) from cause


def _without_test(
    root: Path, files: list[ImageFile], seed: int
) -> tuple[list[ImageFile], list[ImageFile]]:
    train, test = cut_test(len(files), _labels_of(files), seed)
    log.warning(
        "%s has no test folder: %d of its %d images, chosen with seed %d, are the test split.",
        root,
        len(test),
        len(files),
        seed,
    )
    return [files[index] for index in train.tolist()], [files[index] for index in test.tolist()]


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
