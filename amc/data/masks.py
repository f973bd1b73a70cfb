"""Images with a mask each: a class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from torch import Tensor

from amc.data.files import ImageFile, decoded, images_below, readable
from amc.data.folder import (
    MASK_FOLDERS,
    TEST,
    TRAIN,
    VALIDATION,
    FilesOfFolder,
    appended,
    listing,
    parts_of,
    without_test,
)
from amc.data.options import DataOptions
from amc.data.split import Split
from amc.errors import DataError
from amc.utils.files import fingerprint

IMAGES, MASKS = MASK_FOLDERS
NO_CLASS = 255  # what masks in memory hold where a pixel is of no class
NAMED = 5  # files, of those that lack another
MASK_MODES = ("L", "P", "1")  # one number a pixel
_UNKNOWN = -1


class MaskSource(FilesOfFolder):
    """``images/*`` and ``masks/*`` of the same name but for the ending, in the order of the names.

    Below the folder itself, or below train, val and test in it: those of val are for search;
    without test, val is the test. A mask holds one byte for each pixel of its image, the class (of
    a palette image, the index), and is cropped and resized as its image is, to the nearest pixel.

    Raises:
        DataError: A folder or a mask is missing, or a file cannot be read; or (while decoding) a
            mask is of another size than its image, or holds what is no class.
    """

    class_names: tuple[str, ...] = ()
    searched: Tensor | None

    def __init__(self, root: Path, options: DataOptions, seed: int) -> None:
        self._root, self._options = root, options
        parts = parts_of(root)
        self._mask_of: dict[Path, ImageFile] = {}
        listed = {name: self._pairs(folder) for name, folder in parts.items()}
        self._train, self.searched = listed[TRAIN], None
        if VALIDATION in listed:
            self.searched = appended(self._train, listed[VALIDATION])
        if TEST in listed:
            self._test = listed[TEST]
        else:
            self._train, self._test = without_test(root, self._train, None, seed)
        self._class_of = _class_of_bytes(options)

    def _pairs(self, folder: Path) -> list[ImageFile]:
        """The images, each with its mask noted."""
        for name in MASK_FOLDERS:
            if not (folder / name).is_dir():
                raise DataError(
                    f"{folder} has no folder {name!r}. Expected images/* and masks/* of the same "
                    "names below data.root, or below train, val and test in it. For images alone: "
                    "data=image_folder."
                )
        images = images_below(folder / IMAGES, None)
        masks = _by_stem(folder / MASKS, images_below(folder / MASKS, None))
        if not images:
            raise DataError(f"{folder / IMAGES} holds no images.")
        lacking = list[Path]()
        for stem, image in _by_stem(folder / IMAGES, images).items():
            if stem in masks:
                self._mask_of[image.path] = masks.pop(stem)
            else:
                lacking.append(image.path)
        if lacking:
            expected = folder / MASKS / lacking[0].relative_to(folder / IMAGES)
            raise DataError(
                f"{_some(lacking)} no mask: expected {expected.with_suffix('.png')} (or another "
                "kind of image file). Add what is missing, or remove the images."
            )
        if masks:
            stray = [mask.path for mask in masks.values()]
            raise DataError(
                f"{_some(stray)} no image in {folder / IMAGES}. Add what is missing, or remove "
                "the masks."
            )
        return images

    @cached_property
    def train_labels(self) -> Tensor:
        """uint8 (images, height, width); 255 where a pixel is of no class."""
        found = self._masks(self._train)
        is_plain = self._options.ignored is None and self._options.mask_values is None
        if is_plain and _bytes_in(found) == {0, NO_CLASS}:
            raise DataError(
                f"The masks in {self._root} hold 0 and {NO_CLASS} alone. Is {NO_CLASS} a class: "
                f"data.mask_values=[0,{NO_CLASS}]; or does it say that a pixel is of no class: "
                f"data.ignored={NO_CLASS}?"
            )
        return found

    @cached_property
    def test_labels(self) -> Tensor:
        """uint8 (images, height, width), as `train_labels`."""
        return self._masks(self._test)

    def load_train(self, indices: Tensor) -> Split:
        files = [self._train[index] for index in indices.tolist()]
        return Split(self._images(files), self.train_labels[indices])

    def load_test(self) -> Split:
        return Split(self._images(self._test), self.test_labels)

    def _images(self, files: Sequence[ImageFile]) -> Tensor:
        return decoded([file.path for file in files], self._reader.shape, self._reader.pixels)

    def _masks(self, files: Sequence[ImageFile]) -> Tensor:
        shape = self._reader.shape[1:]
        return decoded([file.path for file in files], shape, self._classes, "masks")

    def _classes(self, image: Path) -> npt.NDArray[np.uint8]:
        """The mask of an image, (H, W)."""
        path, (height, width) = self._mask_of[image].path, self._reader.shape[1:]
        with self._reader.opened(image) as pictured:
            size = pictured.size
        with readable(path) as mask:
            if mask.mode not in MASK_MODES:
                raise DataError(
                    f"{path} is no mask (mode {mask.mode}): expected one byte for each pixel, its "
                    "class, in a grey image or one with a palette."
                )
            if mask.size != size:
                raise DataError(
                    f"{path} is {mask.width}x{mask.height} pixels, and its image "
                    f"{size[0]}x{size[1]}. (data.exif turns images, and no masks.)"
                )
            numbers = Image.fromarray(np.asarray(mask).astype(np.uint8))  # no palette any more
            if size != (width, height):
                numbers = ImageOps.fit(numbers, (width, height), Image.Resampling.NEAREST)
        bytes_ = np.asarray(numbers)
        classes = self._class_of[bytes_]
        if (classes == _UNKNOWN).any():
            byte = int(bytes_[classes == _UNKNOWN][0])
            raise DataError(
                f"{path} holds {byte}, which is neither in data.mask_values "
                f"{list(self._options.mask_values or ())} nor in data.ignored."
            )
        found: npt.NDArray[np.uint8] = classes.astype(np.uint8)
        return found

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        images = [*self._train, *self._test]
        masks = [self._mask_of[image.path] for image in images]
        return fingerprint(listing(self._root, images), listing(self._root, masks))


def _some(paths: Sequence[Path]) -> str:
    """Up to five of them, how many they are, and their verb."""
    if len(paths) == 1:
        return f"{paths[0]} has"
    named = ", ".join(map(str, paths[:NAMED]))
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"{named}{more} ({len(paths)} files) have"


def _bytes_in(masks: Tensor) -> set[int]:
    """Which bytes they hold."""
    return {int(byte) for mask in masks.numpy() for byte in np.bincount(mask.ravel()).nonzero()[0]}


def _by_stem(folder: Path, files: Sequence[ImageFile]) -> dict[str, ImageFile]:
    """The files by their path below a folder, without its ending."""
    found: dict[str, ImageFile] = {}
    for file in files:
        stem = file.path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise DataError(
                f"{found[stem].path} and {file.path} have the same name: which belongs to the "
                "other file of that name? Remove one."
            )
        found[stem] = file
    return found


def _class_of_bytes(options: DataOptions) -> npt.NDArray[np.int16]:
    """Shape (256,): of each byte its class, `NO_CLASS` or `_UNKNOWN`."""
    found = np.arange(256, dtype=np.int16)
    if options.mask_values is not None:
        found[:] = _UNKNOWN
        found[list(options.mask_values)] = np.arange(len(options.mask_values))
        if NO_CLASS not in options.mask_values:
            found[NO_CLASS] = NO_CLASS
    found[list(options.ignored or ())] = NO_CLASS
    return found
