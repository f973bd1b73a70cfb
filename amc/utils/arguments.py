"""Whether the arguments of a public function are of the kinds that it takes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import nn

from amc.errors import AmcError, ConfigError, NetworkError


def check_module(network: object, name: str = "network") -> None:
    """Check that a network is given by itself.

    Raises:
        NetworkError: It is no network: its name, what builds it, its weights, the data.
    """
    if isinstance(network, nn.Module):
        return
    advice = "Give the trained module itself, not its weights."
    if isinstance(network, str):
        advice = "amc.build_network(name, num_classes=..., image_shape=...) makes one by its name."
    elif type(network).__name__ == "DataSet":
        advice = "The network comes first, then the data."
    elif callable(network):
        advice = f"Call it first: {getattr(network, '__name__', 'it')}(...)."
    raise NetworkError(f"{name} must be a torch.nn.Module, got {described(network)}. {advice}")


def check_kind(
    name: str,
    value: object,
    kind: type,
    advice: str = "",
    *,
    optional: bool = False,
    error: type[AmcError] = ConfigError,
) -> None:
    """Check that a value is of one of the classes that `amc` exports.

    Args:
        kind: The class.
        advice: How to get one; unless given, to call the class.
        optional: Whether None is taken, too.

    Raises:
        AmcError: Of the given kind: the value is not of this class.
    """
    if not (isinstance(value, kind) or (optional and value is None)):
        raise error(
            f"{name} must be an amc.{kind.__name__}, got {described(value)}. "
            f"{advice or f'Write amc.{kind.__name__}(...).'}"
        )


def check_whole(name: str, value: object) -> None:
    """Check that a value is a whole number.

    Raises:
        ConfigError: It is no whole number.
    """
    if type(value) is not int:
        raise ConfigError(f"{name} must be a whole number, got {described(value)}.")


def check_count(name: str, value: int, *, least: int = 1) -> None:
    """Check that a value is a whole number of at least ``least``.

    Raises:
        ConfigError: It is no whole number, or below that.
    """
    check_whole(name, value)
    if value < least:
        raise ConfigError(f"{name} must be at least {least}, got {value}.")


def check_folder(folder: object, *, optional: bool = True) -> None:
    """Check that a folder is given by its path.

    Args:
        optional: Whether None is taken, too.

    Raises:
        ConfigError: It is no path.
    """
    if not (isinstance(folder, (str, os.PathLike)) or (optional and folder is None)):
        none = ", or None" if optional else ""
        raise ConfigError(
            f"folder must be a path, as text or pathlib.Path{none}, got {described(folder)}."
        )


def check_image_shape(image_shape: object) -> None:
    """Check that the shape of images is three sizes.

    Raises:
        ConfigError: It is not (channels, height, width).
    """
    sizes = image_shape if isinstance(image_shape, Sequence) else ()
    if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
        raise ConfigError(
            "image_shape must be (channels, height, width), three whole numbers of at least 1 "
            f"such as (3, 32, 32), got {image_shape!r}."
        )


def described(value: object) -> str:
    """A value in a few words: itself where it is short, else its kind."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, (str, bool, int, float)) or value is None:
        return repr(value)
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    return f"an object of type {type(value).__name__}"
