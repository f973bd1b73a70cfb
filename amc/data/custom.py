"""Data of a function of the user's: tensors, datasets, or splits of them by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc.data.dataset import DataSet
from amc.data.items import Pair, read_items
from amc.data.memory import dataset_source, tensor_source
from amc.data.options import OF_FILES, DataOptions, read_options
from amc.data.split import Source
from amc.errors import DataError
from amc.utils.packages import import_named

TRAIN, TEST = "train", "test"
SEARCH = ("val", "search")  # either name
EXPECTED = (
    "a torch dataset (with __len__ and __getitem__), a tensor of images, a pair (images, labels), "
    "or a dict of these by train, val and test"
)


def build_custom(name: str, root: Path | None, options: Mapping[str, Any], seed: int) -> DataSet:
    """The data set behind ``package.module:function``.

    The function is called with root and seed if its signature takes them.

    Raises:
        DataError: It cannot be imported, it fails, or it returns something else.
    """
    made = _called(name, {"root": root, "seed": seed})
    if isinstance(made, DataSet):
        given = [option for option, value in options.items() if value is not None]
        if given:
            raise DataError(
                f"Data {name!r} returns an amc.DataSet, which has its options already: leave out "
                f"{', '.join(f'data.{option}' for option in given)}."
            )
        return made
    chosen = read_options(dict(options))
    unused = [option for option in OF_FILES if getattr(chosen, option) is not None]
    if unused:
        raise DataError(
            f"data.{unused[0]} is for image files: {name!r} gives images and masks as they are to "
            "be taken."
        )
    return DataSet(name, _source(name, made, chosen, seed), chosen, seed)


def _called(name: str, offered: Mapping[str, Any]) -> object:
    make = import_named(name, "Data", "function", DataError)
    try:
        taken = set(inspect.signature(make).parameters)
    except (TypeError, ValueError):  # some builtins have no signature
        taken = set()
    try:
        return make(**{key: value for key, value in offered.items() if key in taken})
    except DataError:
        raise
    except Exception as cause:  # whatever the user's code raises
        raise DataError(
            f"Data {name!r} could not be made: {type(cause).__name__}: {cause}. Correct the "
            "function, or what it reads."
        ) from cause


def _source(name: str, made: object, options: DataOptions, seed: int) -> Source:
    if not isinstance(made, Mapping):
        made = {TRAIN: made}
    unknown = sorted(str(key) for key in set(made) - {TRAIN, TEST, *SEARCH})
    if TRAIN not in made or unknown or set(SEARCH) <= set(made):
        raise DataError(
            f"Data {name!r} must return {EXPECTED}; got a dict of {', '.join(map(str, made))}."
        )
    for part in made.values():
        if not _is_tensors(part) and not hasattr(part, "__getitem__"):
            raise DataError(f"Data {name!r} must return {EXPECTED}; got {type(part).__name__}.")
    train, test = made[TRAIN], made.get(TEST)
    searched = next((made[key] for key in SEARCH if key in made), None)
    names = getattr(train, "classes", None)
    if searched is None and not _is_tensors(train) and not _is_tensors(test):
        return dataset_source(train, test, names, seed, options)  # test images when needed
    return tensor_source(
        _pair(train, "training"),
        None if test is None else _pair(test, "test"),
        names,
        seed,
        options,
        None if searched is None else _pair(searched, "search"),
    )


def _is_array(part: object) -> bool:
    return isinstance(part, Tensor | np.ndarray)


def _is_tensors(part: object) -> bool:
    """Whether it is images, or images and labels."""
    if isinstance(part, tuple):
        return len(part) == 2 and _is_array(part[0]) and (part[1] is None or _is_array(part[1]))
    return _is_array(part)


def _pair(part: Any, what: str) -> Pair:
    if not _is_tensors(part):
        return read_items(part, what)
    images, labels = part if isinstance(part, tuple) else (part, None)
    return torch.as_tensor(images), None if labels is None else torch.as_tensor(labels)
