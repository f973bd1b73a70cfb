"""From numbers in [-1, 1] to a preserve ratio and an option, and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amc.errors import ConfigError

FloatArray = npt.NDArray[np.float64]
RATIO = "preserve_ratio"
"""The first part of every action; the parts of the decisions on a layer follow."""


def coordinates(numbers: FloatArray) -> FloatArray:
    """Where options are among actions: each of their numbers scaled to [-1, 1].

    With weight bits of 2, 4, 8, 32 they sit at -1, -1/3, 1/3, 1: equal steps from one width to
    the next.

    Args:
        numbers: Of the options, shape (options, parts).
    """
    return np.stack([_scaled(part.tolist()) for part in numbers.T], 1)


def _scaled(numbers: list[float]) -> FloatArray:
    distinct = sorted(set(numbers))
    if len(distinct) == 1:
        return np.zeros(len(numbers))
    return np.array([2 * distinct.index(number) / (len(distinct) - 1) - 1 for number in numbers])


def to_ratio(action: float, lowest: float) -> float:
    """Preserve ratio of an action: -1 is the lowest, 1 keeps everything."""
    return lowest + (action + 1) / 2 * (1 - lowest)


def from_ratio(ratio: FloatArray | float, lowest: float) -> FloatArray:
    """Action of a preserve ratio."""
    if lowest >= 1:
        return np.ones_like(np.asarray(ratio, np.float64))
    return np.clip(2 * (np.asarray(ratio) - lowest) / (1 - lowest) - 1, -1, 1)


def checked_action(action: npt.ArrayLike, parts: int) -> FloatArray:
    """An action as so many finite numbers, cut off at -1 and 1.

    Raises:
        ConfigError: It is not.
    """
    asked = np.asarray(action, np.float64)
    if asked.size != parts or not np.isfinite(asked).all():
        raise ConfigError(f"An action must be {parts} numbers in [-1, 1], got {action!r}.")
    return np.clip(asked.reshape(parts), -1, 1)
