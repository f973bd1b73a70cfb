"""Which of the prices that a search asks for are measured, and what the others are taken to be.

The time of an operator is nearly linear in its channels as long as the runtime computes it in the
same way, and in which way goes by what the counts are multiples of: blocks of 16 channels, the rest
of a block, single channels. So counts are sorted by their largest common divisor with 16. Among
those of one kind some are measured (`_nodes`), and between them a price is the weighted mean of its
neighbours': of two where outputs follow inputs, else of four, one kind of inputs beside one of
outputs. 112 channels in between of 64 (2 ms) and 128 (4 ms) cost 0.25 * 2 + 0.75 * 4 = 3.5 ms.

Some prices in between are measured too (`Grid.checks`). They tell how far the means are off.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc.cost.device import Measurement
from amc.cost.formulas import is_paired
from amc.runtimes.request import Request

COARSE, FULL = GRIDS = ("coarse", "full")
SPACING = 2.0  # from one measured count to the next one of its kind, at most, where there is one
LEAST = 1000  # prices: so many are measured in half a minute
CHECKS = 100
_BLOCK = 16  # channels; larger ones that runtimes compute in are multiples of it
_GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, lie evenly however many there are

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
_Weighted = tuple[tuple[Request, float], ...]


@dataclass(frozen=True)
class Error:
    """How far means are off where what they stand for was measured.

    The measurements' own noise is in it.

    Attributes:
        median, high: Of |mean / measured - 1|; ``high`` is the 95th percentile.
        checks: At how many prices.
    """

    median: float
    high: float
    checks: int

    def __str__(self) -> str:
        return (
            f"off by {self.median:.1%} in the median, {self.high:.1%} in the 95th percentile, at "
            f"{self.checks:,} prices that were measured beside"
        )


class Grid:
    """What is measured of some requests; it follows from them alone.

    Attributes:
        requests: All that can be asked for, distinct.
        measured: What is to be measured: the nodes, among which may be counts that are not asked
            for, and then the checks.
        checks: Requests that lie between nodes and are measured all the same.
    """

    def __init__(
        self, requests: Iterable[Request], exact: Collection[Request] = (), kind: str = COARSE
    ) -> None:
        """
        Args:
            exact: Of the requests, those that are to be measured in any case.
            kind: Of `GRIDS`. Few requests are all measured.
        """
        self.requests = list(dict.fromkeys(requests))
        self._means: dict[Request, _Weighted] = {}
        if kind == COARSE and len(self.requests) > LEAST:
            self._means = _means(self.requests)
        between = [request for request in self.requests if request in self._means]
        chosen = {between[place] for place in _evenly(len(between), CHECKS)} | set(exact)
        self.checks = [request for request in between if request in chosen]
        nodes = dict.fromkeys(r for r in self.requests if r not in self._means)
        for mean in self._means.values():
            nodes.update((node, None) for node, _ in mean)
        self.measured = [*nodes, *self.checks]

    @property
    def is_full(self) -> bool:
        """Whether all is measured that is asked for."""
        return not self._means

    def rows(self, rows: Mapping[Request, Measurement]) -> dict[Request, Measurement]:
        """A price for every request, of 0 samples where it is a mean.

        Args:
            rows: Of all that is measured, but for what cannot be: it has none, nor has a mean of
                it. What else there is counts for nothing: a table that grows changes no price.
        """
        own = set(self.measured)
        return {
            r: rows[r] if r in own else _mean(self._means[r], rows)
            for r in self.requests
            if (r in rows if r in own else self._has_mean(r, rows))
        }

    def _has_mean(self, request: Request, rows: Mapping[Request, Measurement]) -> bool:
        return all(node in rows for node, _ in self._means[request])

    def error(self, rows: Mapping[Request, Measurement]) -> Error:
        """How far the means are off at the checks, of which there must be some."""
        off = [
            abs(_mean(self._means[check], rows).latency_ms / rows[check].latency_ms - 1)
            for check in self.checks
            if check in rows and self._has_mean(check, rows)
        ]
        median, high = np.percentile(off, [50, 95]).tolist()
        return Error(median, high, len(off))


def _mean(nodes: _Weighted, rows: Mapping[Request, Measurement]) -> Measurement:
    latency_ms = sum(weight * rows[node].latency_ms for node, weight in nodes)
    spread_ms = sum(weight * rows[node].spread_ms for node, weight in nodes)
    return Measurement(latency_ms, spread_ms, 0)


def _evenly(count: int, wanted: int) -> set[int]:
    """About so many places of a list, in no rhythm that the list may have itself."""
    if count <= wanted:
        return set(range(count))
    return {int(count * (place * _GOLDEN % 1)) for place in range(1, wanted + 1)}


def _means(requests: Sequence[Request]) -> dict[Request, _Weighted]:
    """What every request between nodes is a mean of; nodes are left out."""
    found: dict[Request, _Weighted] = {}
    for alike in _by_operator(requests):
        signature, bits = alike[0].signature, alike[0].bits
        ins = _neighbours(np.array([request.in_channels for request in alike], np.int64))
        outs = _neighbours(np.array([request.out_channels for request in alike], np.int64))
        for place, request in enumerate(alike):
            if is_paired(signature):
                times = request.out_channels // request.in_channels
                near = [(i, i * times, weight) for i, weight in ins[place]]
            else:
                near = [(i, o, wi * wo) for i, wi in ins[place] for o, wo in outs[place]]
            if len(near) > 1:
                found[request] = tuple(
                    (Request(signature, i, o, bits), weight) for i, o, weight in near
                )
    return found


def _by_operator(requests: Sequence[Request]) -> list[list[Request]]:
    """Requests of one operator in the same bits, whose channels alone differ."""
    groups: dict[object, list[Request]] = {}
    for request in requests:
        paired = is_paired(request.signature)
        times = request.out_channels // request.in_channels if paired else 0
        groups.setdefault((request.signature, request.bits, times), []).append(request)
    return list(groups.values())


def _neighbours(counts: IntArray) -> list[list[tuple[int, float]]]:
    """For every count the node that it is, or those below and above it, with their weights."""
    low, high = counts.copy(), counts.copy()
    kinds = np.gcd(counts, _BLOCK)
    for kind in np.unique(kinds):
        own = counts[kinds == kind]
        nodes = _nodes(np.unique(own))
        above = np.searchsorted(nodes, own)
        high[kinds == kind] = nodes[above]
        low[kinds == kind] = np.where(nodes[above] == own, own, nodes[np.maximum(above - 1, 0)])
    weight = (counts - low) / np.maximum(high - low, 1)
    return [
        [(a, 1 - w), (b, w)] if a < b else [(a, 1.0)]
        for a, b, w in zip(low.tolist(), high.tolist(), weight.tolist(), strict=True)
    ]


def _nodes(counts: IntArray) -> IntArray:
    """Of ascending counts the largest, the least within `SPACING` below it, and so on.

    16, 32, ..., 160: of 160 to 80, of 80 to 48, of 48 to 32, of 32 to 16.
    """
    nodes = [int(counts[-1])]
    while nodes[-1] > counts[0]:
        below = counts[counts < nodes[-1]]
        within = below[below >= nodes[-1] / SPACING]
        nodes.append(int(within[0] if len(within) else below[-1]))
    return np.array(nodes[::-1], np.int64)
