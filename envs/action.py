"""From three numbers in [-1, 1] to a preserve ratio and bit-widths, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc.strategy import Bits

ACTION_NAMES = ("preserve_ratio", "weight_bits", "activation_bits")
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BitChoice:
    """Bit pairs on a plane: each pair at its weight and activation bits, scaled to [-1, 1].

    With widths 2, 4, 8, 32 they sit at -1, -1/3, 1/3, 1: equal steps from one width to the next.
    """

    pairs: tuple[Bits, ...]

    @property
    def coordinates(self) -> FloatArray:
        """Shape (pairs, 2)."""
        return np.stack(
            [
                _scaled([pair.weight for pair in self.pairs]),
                _scaled([pair.activation for pair in self.pairs]),
            ],
            1,
        )


def _scaled(widths: Sequence[int]) -> FloatArray:
    distinct = sorted(set(widths))
    if len(distinct) == 1:
        return np.zeros(len(widths))
    return np.array([2 * distinct.index(width) / (len(distinct) - 1) - 1 for width in widths])


def to_ratio(action: float, lowest: float) -> float:
    """Preserve ratio of an action: -1 is the lowest, 1 keeps everything."""
    return lowest + (action + 1) / 2 * (1 - lowest)


def from_ratio(ratio: FloatArray | float, lowest: float) -> FloatArray:
    """Action of a preserve ratio."""
    if lowest >= 1:
        return np.ones_like(np.asarray(ratio, np.float64))
    return np.clip(2 * (np.asarray(ratio) - lowest) / (1 - lowest) - 1, -1, 1)
