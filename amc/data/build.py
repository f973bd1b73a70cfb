"""Data sets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amc.data.custom import build_custom
from amc.data.dataset import DataSet
from amc.data.folder import FolderSource
from amc.data.masks import MaskSource
from amc.data.memory import MemorySource, checked_names, checked_split, tensor_source
from amc.data.options import IMAGENET_MEAN, IMAGENET_STD, DataOptions, read_options
from amc.data.split import Source, Split
from amc.errors import DataError
from amc.utils.machine import cache_folder

IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def build_data(
    name: str, *, root: str | Path | None = None, seed: int = 0, **options: Any
) -> DataSet:
    """A data set of ``DATA_SETS``; equal arguments give equal splits.

    Args:
        name: Or ``package.module:function``, which returns a torch dataset, images and labels as
            tensors, or a dict of these (`amc.data.custom`).
        root: Folder of the images; for mnist and cifar10, where they are kept once downloaded
            (the user's cache unless given).
        seed: Of the choice of search, calibration and (where there are none) test images.
        options: Fields of ``DataOptions``.

    Raises:
        DataError: The name or an option is unknown, or the images are missing or unreadable.
    """
    folder = None if root is None else Path(root).expanduser()
    if ":" in name:
        return build_custom(name, folder, options, seed)
    if name not in DATA_SETS:
        near = difflib.get_close_matches(name, DATA_SETS, n=3, cutoff=0.4)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise DataError(
            f"Unknown data set {name!r}.{hint} Known are: {', '.join(DATA_SETS)}, and "
            "package.module:function."
        )
    defaults, build = DATA_SETS[name]
    chosen = read_options(options, **_fitting(defaults, options))
    return DataSet(name, build(folder, chosen, seed), chosen, seed)


def _fitting(defaults: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """ImageNet's numbers are per colour: on others, 0.5 and 0.5 stand in for them."""
    if options.get("channels") in (None, 3):
        return defaults
    return {key: value for key, value in defaults.items() if key not in ("mean", "std")}


def _digits(root: Path | None, options: DataOptions, seed: int) -> Source:
    """scikit-learn's 1,797 digits, 8x8 pixels of 0..16."""
    from sklearn.datasets import load_digits  # half a second that only this data set needs

    digits = load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)
    names = tuple(map(str, digits.target_names))
    labels = torch.from_numpy(digits.target)
    return tensor_source((images.unsqueeze(1), labels), None, names, seed, options)


def _mnist(root: Path | None, options: DataOptions, seed: int) -> Source:
    return _torchvision_source("MNIST", root, options)


def _cifar10(root: Path | None, options: DataOptions, seed: int) -> Source:
    return _torchvision_source("CIFAR10", root, options)


def _torchvision_source(kind: str, root: Path | None, options: DataOptions) -> MemorySource:
    folder = root or cache_folder() / "data"
    names, images, labels = _downloaded(kind, folder, train=True)
    split = checked_split(images, labels, options, "training")

    def read_test() -> Split:
        _, images, labels = _downloaded(kind, folder, train=False)
        return checked_split(images, labels, options, "test")

    return MemorySource(checked_names(names, (split,)), split, read_test, kind)


def _downloaded(kind: str, root: Path, *, train: bool) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Class names, images (N, C, H, W) and labels of a data set that torchvision fetches."""
    from torchvision import datasets  # a second that image folders and digits do not need

    try:
        found = getattr(datasets, kind)(root, train=train, download=True)
    except (RuntimeError, OSError, EOFError, ValueError) as cause:
        raise DataError(
            f"{kind} is not (completely) in {root} and could not be downloaded: {cause}. Connect "
            "to the internet, or copy torchvision's files there (data.root), or unpack the images "
            "as train/<class>/*, test/<class>/* and use data=image_folder."
        ) from cause
    images = torch.as_tensor(found.data)
    # MNIST keeps (N, H, W), CIFAR-10 (N, H, W, C)
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return tuple(found.classes), images, torch.as_tensor(found.targets)


def _image_folder(root: Path | None, options: DataOptions, seed: int) -> Source:
    if root is None:
        raise DataError(
            "data=image_folder needs data.root: a folder with train/<class>/*, test/<class>/*, "
            "with <class>/*, or with images alone."
        )
    return FolderSource(root, options, seed)


def _mask_folder(root: Path | None, options: DataOptions, seed: int) -> Source:
    if root is None:
        raise DataError(
            "data=mask_folder needs data.root: a folder with images/* and masks/* of the same "
            "names, or with these below train, val and test."
        )
    return MaskSource(root, options, seed)


DATA_SETS: dict[str, tuple[dict[str, Any], Callable[[Path | None, DataOptions, int], Source]]] = {
    "digits": ({"image_size": 32, "channels": 3}, _digits),
    "mnist": ({"channels": 1}, _mnist),
    "cifar10": ({"channels": 3, **IMAGENET, "augment": ("flip", "crop")}, _cifar10),
    "image_folder": ({"channels": 3, **IMAGENET, "augment": ("flip", "crop")}, _image_folder),
    "mask_folder": ({"channels": 3, **IMAGENET, "augment": ("flip",)}, _mask_folder),
}
