"""What the sum over single operators misses of a whole network: factors, and so much for each call.

The sum leaves out what happens between operators (the call of each, memory that is cold) and counts
what the measurement itself adds. Some of it grows with what is summed, some comes with every call.
A few networks measured whole, with random channels, tell how much of each kind's price arrives at
the end, and what a call adds or has too much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc.errors import DeviceError
from amc.graph.types import Signature
from amc.quantplan.conversions import CONVERSIONS
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
FREE_MS = 5e-5  # what costs less is computed inside of another operator: it is no call
_LEAST = 0.1  # of a price is left, whatever a call has too much
_PASSES = 20  # over which prices keep their least and how much networks count; a few settle it
_FIRM = 1.345  # errors in deviations up to which a network counts whole (Huber 1964)
_DEVIATION = 1.4826  # of a normal distribution, in medians of absolute values

FloatArray = npt.NDArray[np.float64]
Call = tuple[str, float]
"""The kind of an operator that a network runs, and its price in ms."""


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
        """Prices of an operator as a network pays them; never less than a tenth.

        What is computed inside of another operator stays free.
        """
        corrected = _corrected(self.factor(signature, bits) * prices_ms, self.call_ms)
        return np.where(prices_ms < FREE_MS, prices_ms, corrected)


def parse_correction(text: str) -> Correction:
    """The correction that `correction_text` wrote.

    Raises:
        ValueError: The text is something else.
    """
    given = dict(part.split("=") for part in text.split(" "))
    kinds = next((kinds for kinds in (MIXED_KINDS, KINDS) if set(kinds) <= set(given)), KINDS)
    if list(given) not in ([*kinds, "error", "networks"], [*kinds, "call_ms", "error", "networks"]):
        raise ValueError(text)
    factors, call_ms = [float(given[kind]) for kind in kinds], float(given.get("call_ms", "0.0"))
    error, networks = float(given["error"]), int(given["networks"])
    are_finite = all(map(math.isfinite, (*factors, call_ms, error)))
    if not (are_finite and min(factors) > 0 and error >= 0 and networks >= 1):
        raise ValueError(text)
    return Correction(tuple(factors), error, networks, call_ms)


def correction_text(correction: Correction) -> str:
    """A correction as one line: ``conv2d=0.9 ... call_ms=-0.001 error=0.03 networks=9``."""
    named = dict(zip(correction.kinds, map(repr, correction.factors), strict=True))
    if correction.call_ms:
        named["call_ms"] = repr(correction.call_ms)
    named |= {"error": repr(correction.error), "networks": str(correction.networks)}
    return " ".join(f"{name}={value}" for name, value in named.items())


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
    if signature.is_depthwise:
        return "depthwise"
    return "linear" if signature.op == "linear" else "conv2d"


def fit_correction(
    networks: Sequence[Sequence[Call]],
    measured: Sequence[float],
    kinds: tuple[str, ...] = KINDS,
    noise: float = NOISE,
) -> Correction:
    """The factors and the time per call that make predictions right, in relative least squares.

    Minimises ``sum_i rho(p_i / m_i - 1) / noise^2 + sum_k (f_k - f)^2 / RANGE^2 +
    c^2 / CALL_RANGE_MS^2``, where p_i is the sum of a network's corrected prices, and f the one
    common factor that is best by the median: a kind that hardly occurs keeps it. rho is the square
    near 0 and grows linearly from there on (Huber 1964): a network that was timed while the
    machine was busy pulls no harder than one that is somewhat off.

    Args:
        networks: The calls of every network.
        measured: Milliseconds m of every whole network, (networks,).
        kinds: What calls are of, `KINDS` or `MIXED_KINDS`.
        noise: Of predictions, relative.

    Raises:
        DeviceError: Fewer than two networks, or a time that is not positive.
    """
    calls = [
        (np.array([kinds.index(kind) for kind, _ in network]), np.array([ms for _, ms in network]))
        for network in networks
    ]
    times = np.array(measured, np.float64)
    if len(calls) < 2 or not (times > 0).all() or not all(ms.sum() > 0 for _, ms in calls):
        raise DeviceError(
            "A correction needs two networks or more with positive times, "
            f"got measured {times.tolist()} ms."
        )
    left_out = []
    for index, (of, ms) in enumerate(calls):
        factors, call_ms = _found(
            calls[:index] + calls[index + 1 :], np.delete(times, index), len(kinds), noise
        )
        left_out.append(_corrected(factors[of] * ms, call_ms).sum() / times[index] - 1)
    error = float(np.median(np.abs(left_out)))
    factors, call_ms = _found(calls, times, len(kinds), noise)
    return Correction(tuple(factors.tolist()), error, len(calls), call_ms)


def _corrected(scaled_ms: FloatArray, call_ms: float) -> FloatArray:
    return np.maximum(scaled_ms + call_ms, _LEAST * scaled_ms)


def _found(
    calls: Sequence[tuple[npt.NDArray[np.int64], FloatArray]],
    times: FloatArray,
    kinds: int,
    noise: float,
) -> tuple[FloatArray, float]:
    """The factors and the time per call, by least squares that are weighed anew in each pass."""
    sums = np.array([ms.sum() for _, ms in calls])
    common = 1 / float(np.median(sums / times))
    expected = np.append(np.full(kinds, common), 0.0)
    pull = np.append(np.full(kinds, (noise / RANGE) ** 2), noise**2)
    least = [np.zeros(len(ms), bool) for _, ms in calls]
    weights = np.ones(len(calls))
    for _ in range(_PASSES):
        # Of what was measured: every kind, and a call that takes `CALL_RANGE_MS`.
        shares = np.array(
            [
                np.append(
                    np.bincount(of, np.where(at_least, _LEAST, 1.0) * ms, kinds),
                    CALL_RANGE_MS * (~at_least).sum(),
                )
                / time
                for (of, ms), at_least, time in zip(calls, least, times, strict=True)
            ]
        )
        weighed = weights[:, None] * shares
        found = np.linalg.solve(
            weighed.T @ shares + np.diag(pull), weighed.sum(0) + pull * expected
        )
        # A kind may look cheap beside noise; it does not give time back.
        factors = np.clip(found[:kinds], common / 3, common * 3)
        call_ms = float(found[kinds]) * CALL_RANGE_MS
        before = *least, weights
        least = [(1 - _LEAST) * factors[of] * ms < -call_ms for of, ms in calls]
        weights = _weights(shares @ found - 1, noise)
        if all(map(np.allclose, before, (*least, weights))):
            break
    return factors, call_ms


def _weights(errors: FloatArray, noise: float) -> FloatArray:
    """How much each network counts: whole, or less the further its error is from the others'."""
    deviation = max(_DEVIATION * float(np.median(np.abs(errors))), noise)
    weights: FloatArray = np.minimum(1.0, _FIRM * deviation / np.maximum(np.abs(errors), 1e-12))
    return weights
