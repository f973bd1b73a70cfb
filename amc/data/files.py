"""Image files: which there are in a folder, and what is in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from amc.data.options import DataOptions
from amc.data.split import Shape, check_room
from amc.errors import DataError
from amc.utils.progress import progress_bar

_T = TypeVar("_T")

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
CHUNK = 512  # images that are decoded between two reports of progress
MANY = 5000  # images from which on progress is shown


@dataclass(frozen=True)
class ImageFile:
    """An image that is not decoded yet, with its label (if any) and its size in bytes."""

    path: Path
    label: int | None
    size_bytes: int


class ImageReader:
    """Reads image files as the options ask for.

    An image that is not of the size asked for is cropped in its middle to that shape, then
    resized (bilinear). Without ``image_size`` all images must have the size of the first.

    Raises:
        DataError: No image file has so many channels; or (while reading) a file is damaged, of
            another size, or of more than 8 bits.
    """

    def __init__(self, options: DataOptions, first: Path) -> None:
        """
        Args:
            first: The image whose size all others must have.
        """
        channels = options.channels or 3
        if channels not in MODES:
            raise DataError(
                f"data.channels must be one of {', '.join(map(str, MODES))} for image files, got "
                f"{channels}. Images of other kinds come from a function of yours: "
                "data=package.module:function."
            )
        self.mode, self._options, self._first = MODES[channels], options, first
        with self.opened(first) as image:
            self.found = image.height, image.width
        self.shape: Shape = (channels, *(options.size or self.found))

    @contextmanager
    def opened(self, path: Path) -> Iterator[Image.Image]:
        """An image as it lies in its file, turned where that is asked for."""
        with readable(path) as image:
            yield ImageOps.exif_transpose(image) if self._options.exif else image

    def pixels(self, path: Path) -> npt.NDArray[np.uint8]:
        """One image as (C, H, W)."""
        channels, height, width = self.shape
        with self.opened(path) as image:
            if self._options.size is None and image.size != (width, height):
                raise DataError(
                    f"{path} is {image.width}x{image.height} pixels, expected {width}x{height} "
                    f"like {self._first}. Set data.image_size."
                )
            if image.mode in DEEP_MODES:
                raise DataError(
                    f"{path} has more than 8 bits per channel (mode {image.mode}). "
                    "Convert the images to 8 bits."
                )
            if image.mode != self.mode:
                image = image.convert(self.mode)
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)  # (H, W) or (H, W, 3)
        return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def decoded(
    files: Sequence[Path],
    shape: Sequence[int],
    read: Callable[[Path], npt.NDArray[np.uint8]],
    what: str = "images",
) -> Tensor:
    """What is read of all files, uint8 (files, *shape).

    Raises:
        DataError: What ``read`` raises of the first bad file, or they do not fit into memory.
    """
    check_room(len(files), shape, 1, what)
    found = np.empty((len(files), *shape), np.uint8)

    def decode(index: int) -> None:
        found[index] = read(files[index])

    # Pillow decodes outside Python's global lock: threads share the work.
    bar = progress_bar(f"Decoding {what}", len(files), enabled=len(files) >= MANY)
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar as report:
        for start in range(0, len(files), CHUNK):
            chunk = range(start, min(start + CHUNK, len(files)))
            # The results come in order, so the first damaged file is the one reported.
            for _ in pool.map(decode, chunk):
                pass
            report.advance(len(chunk))
    return torch.from_numpy(found)


@contextmanager
def readable(path: Path) -> Iterator[Image.Image]:
    """An image file, opened.

    Raises:
        DataError: It cannot be read, now or while it is open.
    """
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as cause:
        raise DataError(
            f"{path} is no readable image: {cause}. Replace the file or remove it."
        ) from cause


# -- listing -------------------------------------------------------------------------------


def images_below(
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
    folders, images = shown(folder)
    files = [
        ImageFile(Path(entry.path), label, _read(Path(entry.path), entry.stat).st_size)
        for entry in images
    ]
    for entry in folders:
        files += images_below(Path(entry.path), label, above | {here})
    return files


def shown(folder: Path) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
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
