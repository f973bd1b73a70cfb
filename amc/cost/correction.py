"""What the sum over single operators misses of a whole network: factors, and so much for each call.

The sum leaves out what happens between operators (the call of each, memory that is cold) and counts
what the measurement itself adds. Some of it grows with what is summed, some comes with every call.
A few networks measured whole, with random channels, tell how much of each kind's price arrives at
the end, and what a call adds or has too much.
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
NOISE = 0.035  # of the sums beside whole networks, relative: prices are measured too
RANGE = 0.3  # how far the factor of a kind is expected to be from the common one
CALL_RANGE_MS = 3e-3  # what a call is expected to add, or to have too much
_LEAST = 0.1  # of a price is left, whatever a call has too much

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Correction:
    """Factors of prices, and what is added to each, from whole networks.

    Attributes:
        factors: Of `KINDS`, in their order; or of `MIXED_KINDS`.
        error: Median of |predicted / measured - 1| over the networks, each predicted by the
            factors that the others give.
        networks: How many were measured.
        call_ms: Added to every price; negative where the measurement of single operators adds more
            to each than a network does.
    """

    factors: tuple[float, ...]
    error: float
    networks: int
    call_ms: float = 0.0

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the factors are of."""
        return MIXED_KINDS if len(self.factors) == len(MIXED_KINDS) else KINDS

    def factor(self, signature: Signature, bits: Bits = FLOAT) -> float:
        """What prices of an operator are multiplied by."""
        kinds = self.kinds
        return self.factors[kinds.index(kind_of(signature, bits, kinds))]

    def corrected(self, prices_ms: FloatArray, signature: Signature, bits: Bits) -> FloatArray:
        """Prices of an operator as a network pays them; never less than a tenth."""
        scaled = self.factor(signature, bits) * prices_ms
        return np.maximum(scaled + self.call_ms, _LEAST * scaled)


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
    parts: Sequence[Sequence[float]],
    calls: Sequence[float],
    measured: Sequence[float],
    noise: float = NOISE,
) -> Correction:
    """The factors and the time per call that make predictions right, in relative least squares.

    Minimises ``sum_i ((sum_k f_k p_ik + c n_i) / m_i - 1)^2 / noise^2 + sum_k (f_k - f)^2 / RANGE^2
    + c^2 / CALL_RANGE_MS^2``, where f is the one common factor that is best by the median: a kind
    that hardly occurs keeps it.

    Args:
        parts: Milliseconds p of every network by kind, (networks, kinds).
        calls: How many operators n each network runs, (networks,).
        measured: Milliseconds m of every whole network, (networks,).
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
    # Shares of what was measured: of every kind, and of a call that takes `CALL_RANGE_MS`.
    called = CALL_RANGE_MS * np.array(calls, np.float64)
    shares = np.column_stack([sums, called]) / times[:, None]
    left_out = [
        float(shares[index] @ _found(np.delete(shares, index, 0), noise)) - 1
        for index in range(len(shares))
    ]
    error = float(np.median(np.abs(left_out)))
    *factors, ranges = _found(shares, noise).tolist()
    return Correction(tuple(factors), error, len(shares), ranges * CALL_RANGE_MS)


def _found(shares: FloatArray, noise: float) -> FloatArray:
    """The factors, and the time per call in `CALL_RANGE_MS`."""
    kinds = shares.shape[1] - 1
    common = 1 / float(np.median(shares[:, :kinds].sum(1)))
    expected = np.append(np.full(kinds, common), 0.0)
    pull = np.append(np.full(kinds, (noise / RANGE) ** 2), noise**2)
    found = np.linalg.solve(shares.T @ shares + np.diag(pull), shares.sum(0) + pull * expected)
    # A kind may look cheap beside noise; it does not give time back.
    found[:kinds] = np.clip(found[:kinds], common / 3, common * 3)
    clipped: FloatArray = found
    return clipped
