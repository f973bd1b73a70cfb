"""A device whose prices are not known yet: it says what it is, and refuses to price."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NoReturn

from amc.cost.device import IntArray, TableDevice
from amc.cost.spec import Spec
from amc.errors import DeviceError
from amc.graph.graph import NetworkGraph
from amc.graph.types import Signature
from amc.strategy import Bits
from amc.utils.files import fingerprint


@dataclass(frozen=True)
class UnmeasuredDevice:
    """What is known of a device before it has prices.

    Attributes:
        advice: How it gets prices, said by the error of every question for one.
    """

    name: str
    runtime: str
    batch: int
    threads: int
    channel_step: int
    supported_bits: tuple[Bits, ...]
    advice: str

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("latency_ms",)

    def price(
        self, metric: str, signature: Signature, in_channels: int, out_channels: int, bits: Bits
    ) -> NoReturn:
        """Refused.

        Raises:
            DeviceError: Always; the message says how to get prices.
        """
        raise DeviceError(f"Device {self.name!r} has no prices yet. {self.advice}")

    def prices(
        self,
        metric: str,
        signature: Signature,
        in_channels: IntArray,
        out_channels: IntArray,
        bits: Bits,
    ) -> NoReturn:
        """Refused, as `price` is."""
        self.price(metric, signature, 0, 0, bits)

    def fingerprint(self) -> str:
        return fingerprint(repr(self))


@dataclass(frozen=True)
class OrderedTable(UnmeasuredDevice, ABC):
    """A table that knows layers by their order alone: it has prices once it has a network."""

    @abstractmethod
    def for_network(self, graph: NetworkGraph) -> TableDevice:
        """The device that prices the layers of this network.

        Raises:
            TableError: The table is not of this network.
        """


def unmeasured_device(spec: Spec) -> UnmeasuredDevice:
    """A device that is to be measured elsewhere, from its options.

    Raises:
        DeviceError: An option is missing, unknown or out of its range.
    """
    spec.allow(["name", "runtime", "batch", "threads", "channel_step", "bits"])
    return UnmeasuredDevice(
        name=spec.name(),
        runtime=spec.text("runtime"),
        batch=spec.integer("batch"),
        threads=spec.integer("threads"),
        channel_step=spec.integer("channel_step"),
        supported_bits=spec.pairs("bits"),
        advice=(
            "List what to measure: amc profile device=todo todo=layers.csv network=<network>. "
            "Fill in its latency_ms column, then search with device=table device.path=layers.csv."
        ),
    )
