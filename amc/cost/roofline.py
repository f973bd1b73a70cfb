"""Devices without a table: prices from a few published numbers of the hardware."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from amc.cost.device import FloatArray, IntArray
from amc.cost.formulas import is_paired, macs, params
from amc.errors import DeviceError
from amc.graph.types import Signature
from amc.strategy import Bits
from amc.utils.files import fingerprint

_FLOAT_BYTES = 4

# Runtimes compute these in registers, within the layer before them.
_ACTIVATIONS = ("relu", "relu6", "leaky_relu", "hardswish", "silu", "gelu")
_GATES = ("sigmoid", "hardsigmoid", "tanh")
_FUSED = frozenset([*_ACTIVATIONS, *_GATES, "batch_norm"])
_TWO_INPUTS = ("add", "mul")


@dataclass(frozen=True)
class Energy:
    """Energy of arithmetic and of moving data.

    Attributes:
        pj_per_mac: Bits -> picojoules of one multiply-add.
        pj_per_byte: Picojoules to move one byte from or to memory.
    """

    pj_per_mac: Mapping[Bits, float]
    pj_per_byte: float


@dataclass(frozen=True)
class RooflineDevice:
    """A device bound by its arithmetic or by its memory (roofline, Williams et al. 2009).

    The latency of an operator is ``max(macs / peak, bytes / bandwidth) + overhead``, where the
    macs count channels rounded up to what the hardware processes at once, within each
    convolution group (a depthwise layer rounds its output channels). Its energy is
    ``macs * pj_per_mac + bytes * pj_per_byte``, without rounding. The bytes are the packed
    weights, the float biases, and the activations read and written once. Operators between
    layers are bound by memory; those that runtimes fuse into the layer before (activation
    functions and batch_norm) cost nothing.

    Example: 16 -> 16 channels, 3x3 on 32x32, is 2.36 million macs and 140 kB in float: on
    22.7 giga-macs/s and 34.1 GB/s, max(0.104, 0.004) ms.

    Attributes:
        source: Where the numbers come from.
        peak_gmacs: Bits -> peak giga-macs per second; the pairs that the device supports.
        bandwidth_gb_s: Memory bandwidth in 1e9 bytes per second.
        overhead_us: Fixed time of each operator that is not fused.
        channel_step: Input and output channels are processed in multiples of it.
        energy: None when energy is not modelled.

    Raises:
        DeviceError: A number is not positive and finite, or energy lacks supported bits.
    """

    name: str
    source: str
    peak_gmacs: Mapping[Bits, float]
    bandwidth_gb_s: float
    overhead_us: float
    channel_step: int
    batch: int = 1
    threads: int = 1
    energy: Energy | None = None

    def __post_init__(self) -> None:
        numbers: dict[str, float] = {
            "bandwidth_gb_s": self.bandwidth_gb_s,
            "channel_step": self.channel_step,
            "batch": self.batch,
            "threads": self.threads,
            **{f"peak_gmacs[{bits}]": peak for bits, peak in self.peak_gmacs.items()},
        }
        if self.energy is not None:
            numbers["energy.pj_per_byte"] = self.energy.pj_per_byte
            for bits in self.peak_gmacs:
                pj = self.energy.pj_per_mac.get(bits, math.nan)
                numbers[f"energy.pj_per_mac[{bits}]"] = pj
        for key, number in numbers.items():
            if not (math.isfinite(number) and number > 0):
                raise DeviceError(
                    f"Device {self.name!r}: {key} must be a positive, finite number, got {number}."
                )
        if not (math.isfinite(self.overhead_us) and self.overhead_us >= 0):
            raise DeviceError(
                f"Device {self.name!r}: overhead_us must be finite and not negative, "
                f"got {self.overhead_us}."
            )
        if not self.peak_gmacs:
            raise DeviceError(f"Device {self.name!r}: peak_gmacs names no bits, as in '32/32'.")

    @property
    def runtime(self) -> str:
        return "roofline"

    @property
    def supported_bits(self) -> tuple[Bits, ...]:
        """Float first, then fewer and fewer bits."""
        return tuple(sorted(self.peak_gmacs, reverse=True))

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("latency_ms",) if self.energy is None else ("latency_ms", "energy_mj")

    def price(
        self, metric: str, signature: Signature, in_channels: int, out_channels: int, bits: Bits
    ) -> float:
        """Price of one batch (ms or mJ).

        Raises:
            DeviceError: The metric or the bits are not supported.
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
        """Prices of one batch, shape (len(in_channels), len(out_channels)), or paired 1-D.

        Raises:
            DeviceError: The metric or the bits are not supported.
        """
        self._check(metric, bits)
        if not is_paired(signature):
            in_channels, out_channels = in_channels[:, None], out_channels[None, :]
        moved = self._bytes(signature, in_channels, out_channels, bits)
        if signature.op in _FUSED:
            return moved * 0.0
        if self.energy is not None and metric == "energy_mj":
            done = macs(signature, in_channels, out_channels) * self.batch
            moving_pj = moved * self.energy.pj_per_byte
            energy_mj: FloatArray = (done * self.energy.pj_per_mac[bits] + moving_pj) * 1e-9
            return energy_mj
        rounded = self._rounded_macs(signature, in_channels, out_channels)
        compute_ms = rounded / (self.peak_gmacs[bits] * 1e6)
        memory_ms = moved / (self.bandwidth_gb_s * 1e6)
        latency_ms: FloatArray = np.maximum(compute_ms, memory_ms) + self.overhead_us * 1e-3
        return latency_ms

    def prices_whole(self, signature: Signature, bits: Bits) -> bool:
        """Calls that amc does not follow are bound by their multiply-adds or their bytes too."""
        return bits in self.peak_gmacs

    def fingerprint(self) -> str:
        """Changes whenever a number of the device changes."""
        return fingerprint(repr(self))

    def _check(self, metric: str, bits: Bits) -> None:
        if metric not in self.metrics:
            raise DeviceError(
                f"Device {self.name!r} has no {metric!r}; it has {', '.join(self.metrics)}."
            )
        if bits not in self.peak_gmacs:
            raise DeviceError(
                f"Device {self.name!r} does not support {bits} bits; it supports "
                f"{' '.join(map(str, self.supported_bits))}."
            )

    def _rounded_macs(self, signature: Signature, ins: IntArray, outs: IntArray) -> FloatArray:
        """Macs of a batch with channels rounded up, shape of the broadcast channels."""
        if signature.is_product:
            return (macs(signature, ins, outs) * self.batch).astype(np.float64)
        if not signature.is_layer:
            own = float(signature.own_macs * self.batch)
            return np.full(np.broadcast_shapes(ins.shape, outs.shape), own)
        groups = max(signature.groups, 1)
        ins, outs = self._rounded(-(-ins // groups)), self._rounded(-(-outs // groups))
        pairs = ins * 0 + outs if signature.is_depthwise else ins * outs * groups
        taps = math.prod(signature.kernel) * math.prod(signature.run_size)
        return (pairs * (taps * self.batch)).astype(np.float64)

    def _rounded(self, channels: IntArray) -> IntArray:
        return -(-channels // self.channel_step) * self.channel_step

    def _bytes(self, signature: Signature, ins: IntArray, outs: IntArray, bits: Bits) -> FloatArray:
        """Bytes that a batch moves, shape of the broadcast channels."""
        count = params(signature, ins, outs, has_bias=False) + signature.own_params
        weights = count * (bits.weight / 8)
        biases = outs * (_FLOAT_BYTES * int(signature.is_layer))
        read = ins * math.prod(signature.in_size) * (1 + (signature.op in _TWO_INPUTS))
        written = outs * math.prod(signature.out_size)
        moved: FloatArray = weights + biases + (read + written) * (self.batch * bits.activation / 8)
        return moved


def bit_serial_gmacs(base_gmacs: float, widths: Iterable[int]) -> dict[Bits, float]:
    """Peaks of arithmetic that multiplies one weight bit by one activation bit at a time.

    A mac takes weight_bits * activation_bits binary macs (BISMO, Umuroglu et al. 2018, alg. 1),
    so that with 3200 binary giga-macs/s, 8/8 bits reach 50 and 4/4 bits 200.
    """
    return {Bits(w, a): base_gmacs / (w * a) for w, a in product(widths, repeat=2)}


def bit_serial_pj(
    pj_per_binary_mac: float, pj_per_accumulate: float, widths: Iterable[int]
) -> dict[Bits, float]:
    """Energy of a mac of such arithmetic: its binary macs and one accumulation."""
    pairs = product(widths, repeat=2)
    return {Bits(w, a): pj_per_binary_mac * w * a + pj_per_accumulate for w, a in pairs}
