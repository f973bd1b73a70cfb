"""What the sum over single operators misses of a whole network, as one factor per kind of operator.

The sum leaves out what happens between operators (the call of each, memory that is cold) and counts
what the measurement itself adds. Both grow with what is summed: a few networks measured whole, with
random channels, tell how much of each kind's price arrives at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc.cost.conversions import CONVERSIONS
from amc.errors import DeviceError
from amc.graph.types import Signature
from amc.strategy import FLOAT, FLOAT_BITS, Bits

# The kinds of operators that have a factor of their own; operators between layers share one.
KINDS = ("conv2d", "depthwise", "linear", "between")
# And those where networks of mixed bits were measured.
MIXED_KINDS = (
    *KINDS,
    *("integer_conv2d", "integer_depthwise", "dequantized", "integer_between", "conversion"),
)
NOISE = 0.02  # of a whole network's time, relative, on a quiet machine
# And of one of mixed bits: more passes between its layers that no price is of.
MIXED_NOISE = 0.05
RANGE = 0.3  # how far the factor of a kind is expected to be from the common one

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Correction:
    """Factors of prices, from whole networks.

    Attributes:
        factors: Of `KINDS`, in their order; or of `MIXED_KINDS`.
        error: Median of |predicted / measured - 1| over the networks, each predicted by the
            factors that the others give.
        networks: How many were measured.
    """

    factors: tuple[float, ...]
    error: float
    networks: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the factors are of."""
        return MIXED_KINDS if len(self.factors) == len(MIXED_KINDS) else KINDS

    def factor(self, signature: Signature, bits: Bits = FLOAT) -> float:
        """What prices of an operator are multiplied by."""
        kinds = self.kinds
        return self.factors[kinds.index(kind_of(signature, bits, kinds))]


def kind_of(signature: Signature, bits: Bits = FLOAT, kinds: tuple[str, ...] = KINDS) -> str:
    """Which of ``kinds`` an operator is."""
    plain = _plain_kind(signature)
    if kinds == KINDS:
        return plain
    if signature.op in CONVERSIONS:
        return "conversion"
    if plain == "linear" or bits == FLOAT:
        return plain
    return "dequantized" if FLOAT_BITS in bits else f"integer_{plain}"


def _plain_kind(signature: Signature) -> str:
    if not signature.is_layer:
        return "between"
    return "depthwise" if signature.is_depthwise else signature.op


def fit_correction(
    parts: Sequence[Sequence[float]], measured: Sequence[float], noise: float = NOISE
) -> Correction:
    """The factors that make predictions right, in relative least squares.

    Minimises ``sum_i (sum_k f_k p_ik / m_i - 1)^2 / noise^2 + sum_k (f_k - f)^2 / RANGE^2``, where
    f is the one common factor that is best by the median: a kind that hardly occurs keeps it.

    Args:
        parts: Milliseconds of every network by kind, (networks, kinds).
        measured: Milliseconds of every whole network, (networks,).
        noise: Of these, relative.

    Raises:
        DeviceError: Fewer than two networks, or a time that is not positive.
    """
    sums, times = np.array(parts, np.float64), np.array(measured, np.float64)
    if len(sums) < 2 or not (times > 0).all() or not (sums.sum(1) > 0).all():
        raise DeviceError(
            "A correction needs two networks or more with positive times, "
            f"got measured {times.tolist()} ms."
        )
    shares = sums / times[:, None]
    left_out = [
        float(shares[index] @ _factors(np.delete(shares, index, 0), noise)) - 1
        for index in range(len(shares))
    ]
    error = float(np.median(np.abs(left_out)))
    return Correction(tuple(_factors(shares, noise).tolist()), error, len(shares))


def _factors(shares: FloatArray, noise: float) -> FloatArray:
    common = 1 / float(np.median(shares.sum(1)))
    pull = (noise / RANGE) ** 2
    system = shares.T @ shares + pull * np.eye(shares.shape[1])
    found = np.linalg.solve(system, shares.sum(0) + pull * common)
    # A kind may look cheap beside noise; it does not give time back.
    clipped: FloatArray = np.clip(found, common / 3, common * 3)
    return clipped
