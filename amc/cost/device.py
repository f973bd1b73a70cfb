"""What a device is: it prices operators. Here the protocol, and the device that was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from amc.cost.correction import Correction
from amc.cost.formulas import is_paired
from amc.cost.listing import listing_command
from amc.errors import DeviceError, TableError
from amc.graph.types import Signature
from amc.quantplan.conversions import INT8, dequantized
from amc.runtimes import DEVICES
from amc.runtimes.request import Request
from amc.strategy import BIT_WIDTHS, Bits
from amc.utils.files import fingerprint

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
_Index = npt.NDArray[np.intp]


class Device(Protocol):
    """What prices operators: a table, or a model of the hardware.

    A price is for one batch of ``batch`` samples: milliseconds (``latency_ms``) or millijoules
    (``energy_mj``).

    Attributes:
        channel_step: Prices change at multiples of it; other channel counts waste work.
        supported_bits: Weight/activation pairs that have a price.
        metrics: ``("latency_ms",)`` or ``("latency_ms", "energy_mj")``.
    """

    @property
    def name(self) -> str: ...
    @property
    def runtime(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def channel_step(self) -> int: ...
    @property
    def supported_bits(self) -> tuple[Bits, ...]: ...
    @property
    def metrics(self) -> tuple[str, ...]: ...

    def price(
        self, metric: str, signature: Signature, in_channels: int, out_channels: int, bits: Bits
    ) -> float:
        """Price of one batch.

        Raises:
            DeviceError: The device has no such metric or no price for the operator.
        """

    def prices(
        self,
        metric: str,
        signature: Signature,
        in_channels: IntArray,
        out_channels: IntArray,
        bits: Bits,
    ) -> FloatArray:
        """Prices of one batch for every pair, shape (len(in_channels), len(out_channels)).

        Where output channels follow input channels (`amc.cost.formulas.is_paired`), both
        arrays are equally long and paired, and so is the result.
        """

    def fingerprint(self) -> str:
        """Changes whenever a price may have changed."""


@dataclass(frozen=True)
class Measurement:
    """The price of a request for one batch, its spread, and how many samples it is of.

    Attributes:
        samples: 0 where the price is a mean of others (`amc.cost.grid`).
        median_ms: Of the samples, where that is not the price; None where it is not known.
    """

    latency_ms: float
    spread_ms: float
    samples: int
    energy_mj: float | None = None
    median_ms: float | None = None


@dataclass(frozen=True)
class TableHeader:
    """What every row of a table has in common.

    Attributes:
        threads, batch: Of the measurement; a price is for one batch of ``batch`` samples.
        channel_step: Channel counts that are multiples of it were measured.
        supported_bits: Weight/activation pairs that the runtime computes.
        note, source: Free text, one line each.
        covers: A key of `COVERS`: which operators the rows are of.
        fuses: Operators that the runtime computes inside of the layer before them where nothing
            else reads its output; there they cost nothing.
        converts: Conversions between layers that have rows, of
            `amc.quantplan.conversions.CONVERSIONS`. Then rows may also be of operators between
            layers in 8-bit integers, and of layers whose weights are quantized and whose inputs
            are not.
        correction: Of all latencies, from whole networks; rows are as they were measured.
    """

    device: str
    runtime: str
    threads: int
    batch: int
    channel_step: int
    supported_bits: tuple[Bits, ...]
    note: str = ""
    source: str = ""
    # Not in repr: the fingerprints of tables that cover all stay what they were.
    covers: str = field(default="all", repr=False)
    fuses: tuple[str, ...] = field(default=(), repr=False)
    converts: tuple[str, ...] = field(default=(), repr=False)
    correction: Correction | None = field(default=None, repr=False)

    @property
    def priced_bits(self) -> tuple[Bits, ...]:
        """Weight/activation pairs that rows may have."""
        if not self.converts:
            return self.supported_bits
        without = (dequantized(bits) for bits in self.supported_bits)
        return tuple(dict.fromkeys((*self.supported_bits, INT8, *without)))


# What a table has prices for. Where operators between layers have none, they cost nothing.
COVERS: dict[str, str] = {
    "all": "layers and the operators between them",
    "layers": "layers only",
    "full_layers": "layers only, with all their channels",
}


class TableDevice:
    """A device whose prices were measured, or are means of such (`amc.cost.grid`).

    Prices are looked up in its rows: a runtime works in steps. A channel count between
    those of the rows costs as much as the next one on its axis; where that pair of counts
    has no row, the cheaper of the next pairs along either axis.
    """

    def __init__(self, header: TableHeader, rows: Mapping[Request, Measurement]) -> None:
        """Keep ``rows``.

        Raises:
            TableError: There is no row, a row has bits that the header does not list, or only
                some rows have an energy.
        """
        self.header, self.rows = header, dict(sorted(rows.items()))
        self.name, self.runtime = header.device, header.runtime
        self.batch, self.threads = header.batch, header.threads
        self.channel_step, self.supported_bits = header.channel_step, header.supported_bits
        self.fuses, self.converts = header.fuses, header.converts
        if not self.rows:
            raise TableError(f"The table of device {self.name!r} has no rows. {self.advice}")
        for request in self.rows:
            if request.bits not in header.priced_bits:
                raise TableError(
                    f"The table of device {self.name!r} has a row for {request}, but its "
                    f"supported_bits are {' '.join(map(str, self.supported_bits))}."
                )
        with_energy = sum(row.energy_mj is not None for row in self.rows.values())
        if with_energy not in (0, len(self.rows)):
            raise TableError(
                f"The table of device {self.name!r} has energy_mj in {with_energy} of "
                f"{len(self.rows)} rows. Give it in every row, or in none."
            )
        self.metrics: tuple[str, ...] = ("latency_ms", "energy_mj")[: 2 if with_energy else 1]
        self._grids: dict[tuple[str, Signature, Bits], _Grid] = {}
        self._by_operator: dict[tuple[Signature, Bits], list[Request]] = {}
        for request in self.rows:
            self._by_operator.setdefault((request.signature, request.bits), []).append(request)

    def price(
        self, metric: str, signature: Signature, in_channels: int, out_channels: int, bits: Bits
    ) -> float:
        """Price of one batch (ms or mJ).

        Raises:
            DeviceError: The table has no such metric.
            TableError: The operator, its bits, or so many channels were not measured.
        """
        pair = np.array([in_channels]), np.array([out_channels])
        return float(self.prices(metric, signature, *pair, bits).item())

    def prices(
        self,
        metric: str,
        signature: Signature,
        in_channels: IntArray,
        out_channels: IntArray,
        bits: Bits,
    ) -> FloatArray:
        """Prices of one batch, shape (len(in_channels), len(out_channels)).

        Depthwise layers and operators between layers pair their channels instead: both arrays
        are equally long, and so is the result.

        Raises:
            DeviceError, TableError: As `price`.
        """
        grid = self._grid(metric, signature, bits)
        if self.header.covers != "all" and not signature.is_layer and grid.is_empty:
            return np.zeros(len(in_channels))
        if not is_paired(signature):
            in_channels, out_channels = np.meshgrid(in_channels, out_channels, indexing="ij")
        found = grid.look_up(in_channels, out_channels)
        if np.isinf(found).any():
            where = tuple(np.argwhere(np.isinf(found))[0])
            channels = int(in_channels[where]), int(out_channels[where])
            raise self._not_measured(Request(signature, *channels, bits))
        return found

    def missing(self, requests: Iterable[Request]) -> list[Request]:
        """The requests that the table cannot price, without repetitions, in their order.

        Calls that amc does not follow are timed where a network is at hand; without a row they
        cost nothing, and a run says so.
        """
        return [
            request
            for request in dict.fromkeys(requests)
            if not (request.signature.is_whole or self._has(request))
        ]

    def prices_whole(self, signature: Signature, bits: Bits) -> bool:
        """Whether a call that amc does not follow was timed, as it stands."""
        return (signature, bits) in self._by_operator

    def fingerprint(self, requests: Iterable[Request] | None = None) -> str:
        """Changes whenever a price or the header changes.

        Args:
            requests: All that will be asked: prices of anything else, which a table has or gets
                for other networks, then make no difference. None: all rows.

        Raises:
            TableError: The table cannot price a request.
        """
        covers = () if self.header.covers == "all" else (self.header.covers,)
        correction = () if self.header.correction is None else (repr(self.header.correction),)
        return fingerprint(
            repr(self.header),
            repr(self.rows if requests is None else self._prices_of(requests)),
            *covers,
            *self.header.fuses,
            *self.header.converts,
            *correction,
        )

    def _prices_of(self, requests: Iterable[Request]) -> list[tuple[Request, list[float]]]:
        """Prices as they were measured where there is a row, else as they are looked up."""
        return [
            (r, [self._price_of(metric, r) for metric in self.metrics])
            for r in sorted(set(requests))
            if not r.signature.is_whole or self.prices_whole(r.signature, r.bits)
        ]

    def _price_of(self, metric: str, r: Request) -> float:
        if r in self.rows:
            measured: float = getattr(self.rows[r], metric)
            return measured
        return self.price(metric, r.signature, r.in_channels, r.out_channels, r.bits)

    def _has(self, r: Request) -> bool:
        try:
            self.price("latency_ms", r.signature, r.in_channels, r.out_channels, r.bits)
        except TableError:
            return False
        return True

    def _grid(self, metric: str, signature: Signature, bits: Bits) -> _Grid:
        if metric not in self.metrics:
            raise DeviceError(
                f"The table of device {self.name!r} has no {metric!r}; it has "
                f"{', '.join(self.metrics)}."
            )
        key = (metric, signature, bits)
        if key not in self._grids:
            requests = self._by_operator.get((signature, bits), [])
            correction = self.header.correction if metric == "latency_ms" else None
            prices = np.array([getattr(self.rows[r], metric) for r in requests], np.float64)
            self._grids[key] = _Grid(
                np.array([(r.in_channels, r.out_channels) for r in requests], np.int64),
                correction.corrected(prices, signature, bits) if correction else prices,
                exact=self.header.covers == "full_layers",
            )
        return self._grids[key]

    def _not_measured(self, request: Request) -> TableError:
        rows = self._by_operator.get((request.signature, request.bits), [])
        largest = max(((r.in_channels, r.out_channels) for r in rows), default=None)
        measured = (
            f"rows for it reach {largest[0]} -> {largest[1]} channels"
            if largest
            else f"no row for it (supported bits: {' '.join(map(str, self.supported_bits))})"
        )
        return TableError(
            f"The table of device {self.name!r} has no price for {request}: {measured}. "
            f"{self.advice}"
        )

    @property
    def advice(self) -> str:
        """What to do where a price is missing."""
        if self.header.covers == "full_layers":
            return (
                "It has prices of one network's layers with all their channels: search that "
                "network's bits alone, with env.min_preserve_ratio=1."
            )
        listing = f"list what to measure elsewhere: {listing_command(self.header)}"
        if self.name not in DEVICES:
            return listing.replace("list", "List", 1)
        same = " ".join(
            f"device.{key}={getattr(self.header, key)}"
            for key in ("batch", "threads", "channel_step")
        )
        return (
            f"Measure it, if it is this machine: amc profile device={self.name} {same} "
            f"network=<network> output=<file>.csv; or {listing}"
        )


class _Grid:
    """Prices of one operator over the channel counts that occur in its rows."""

    def __init__(self, channels: IntArray, prices: FloatArray, *, exact: bool = False) -> None:
        """Fill the grid from ``channels``, shape (rows, 2), and ``prices``, shape (rows,).

        Args:
            exact: Whether counts that are not in a row have no price.
        """
        self.is_empty, self._exact = not len(prices), exact
        channels = channels.reshape(-1, 2)
        self._axes = np.unique(channels[:, 0]), np.unique(channels[:, 1])
        # One more line on each axis, never measured: what lies above every measured count.
        shape = len(self._axes[0]) + 1, len(self._axes[1]) + 1
        grid = np.full(shape, np.inf)
        grid[self._place(channels[:, 0], channels[:, 1])] = prices
        if exact:
            self._prices = grid
            return
        lines = grid.tolist()
        for line, above in reversed(list(pairwise(lines))):
            for column in reversed(range(shape[1] - 1)):
                if line[column] == np.inf:
                    line[column] = min(above[column], line[column + 1])
        self._prices = np.array(lines, np.float64)

    def look_up(self, in_channels: IntArray, out_channels: IntArray) -> FloatArray:
        """Prices, shape of the arrays; infinite above every measured count."""
        found: FloatArray = self._prices[self._place(in_channels, out_channels)]
        if self._exact:
            ins, outs = self._axes
            measured = np.isin(in_channels, ins) & np.isin(out_channels, outs)
            return np.where(measured, found, np.inf)
        return found

    def _place(self, in_channels: IntArray, out_channels: IntArray) -> tuple[_Index, _Index]:
        ins, outs = self._axes
        return np.searchsorted(ins, in_channels), np.searchsorted(outs, out_channels)


def parse_bits(text: str) -> Bits:
    """Read ``weight/activation``, as in 8/8.

    Raises:
        ValueError: It is not a pair of known bit-widths.
    """
    weight, activation = (int(part) for part in text.split("/"))
    if weight not in BIT_WIDTHS or activation not in BIT_WIDTHS:
        raise ValueError(text)
    return Bits(weight, activation)
