"""A table that remembers what it was asked for: it answers from larger rows, and so never fails."""

from __future__ import annotations

import numpy as np

from amc.cost.device import FloatArray, IntArray, Measurement, TableDevice, TableHeader
from amc.cost.formulas import is_paired
from amc.graph.types import Signature
from amc.runtimes.request import Request
from amc.strategy import Bits


class RememberingTable(TableDevice):
    """A `TableDevice` with all requests that it was asked for in ``asked``."""

    def __init__(self, header: TableHeader, rows: dict[Request, Measurement]) -> None:
        super().__init__(header, rows)
        self.asked: set[Request] = set()

    def prices(
        self,
        metric: str,
        signature: Signature,
        in_channels: IntArray,
        out_channels: IntArray,
        bits: Bits,
    ) -> FloatArray:
        ins, outs = in_channels, out_channels
        if not is_paired(signature):
            ins, outs = (side.ravel() for side in np.meshgrid(in_channels, out_channels))
        pairs = zip(ins.tolist(), outs.tolist(), strict=True)
        self.asked |= {Request(signature, *pair, bits) for pair in pairs}
        return super().prices(metric, signature, in_channels, out_channels, bits)
