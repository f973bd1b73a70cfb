"""A device of one's own that is a formula (docs/extending.md).

amc search device=docs.examples.toy_board:ToyBoard +device.options.macs_per_ms=2e5
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amc.cost.formulas import is_paired, macs
from amc.graph.types import Signature
from amc.strategy import FLOAT, Bits

INTEGERS = Bits(8, 8)


class ToyBoard:
    """Eight channels at a time; 8-bit integers four times as fast; 10 us for every call."""

    name, runtime = "toy_board", "none"
    batch, threads, channel_step = 1, 1, 8
    supported_bits = (FLOAT, INTEGERS)
    metrics = ("latency_ms",)

    def __init__(self, macs_per_ms: float = 1e5) -> None:
        self.macs_per_ms = macs_per_ms

    def price(
        self, metric: str, signature: Signature, in_channels: int, out_channels: int, bits: Bits
    ) -> float:
        """Milliseconds of one operator."""
        ins, outs = (-(-channels // 8) * 8 for channels in (in_channels, out_channels))
        speed = self.macs_per_ms * (4 if bits == INTEGERS else 1)
        return 0.01 + macs(signature, ins, outs) / speed

    def prices(
        self,
        metric: str,
        signature: Signature,
        in_channels: npt.NDArray[np.int64],
        out_channels: npt.NDArray[np.int64],
        bits: Bits,
    ) -> npt.NDArray[np.float64]:
        """Of all pairs of channels; where outputs follow inputs, of each with its own."""

        def one(ins: int, outs: int) -> float:
            return self.price(metric, signature, int(ins), int(outs), bits)

        if is_paired(signature):
            return np.array([one(i, o) for i, o in zip(in_channels, out_channels, strict=True)])
        return np.array([[one(i, o) for o in out_channels] for i in in_channels])

    def fingerprint(self) -> str:
        """Changes with the prices: a search of other prices is another search."""
        return f"toy_board 1 {self.macs_per_ms}"
