"""Whole networks timed on this machine's PyTorch, side by side.

A latency is that of the shortest call. What else runs on a machine only ever adds time, and to
some networks more than to others: beside a busy neighbour on the same core, integers were seen to
slow down by 1.7 and floats by 1.25, for most of the time. Medians then say how busy the neighbour
was (15 to 60 % apart from one minute to the next); the shortest calls were 2 to 7 % apart. (Chen
and Revels 2016, "Robust benchmarking in noisy environments", arXiv:1608.04295.)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from amc.errors import DeviceError
from amc.utils.energy import Counter, counters, energy_mj

ROUNDS = 41  # the same for all that is compared: the shortest of more calls is shorter
STEADY = 0.1  # of a ratio of two times: how far apart the rounds may be for it to be a statement
_BURST_S = 0.02  # per network and round: what disturbs a shared machine pauses in between


@dataclass(frozen=True)
class Timing:
    """Latency of one network.

    Attributes:
        latency_ms: For one batch: the shortest call.
        spread_ms: Half the interquartile range of the rounds' shortest calls: how much else the
            machine did.
        rounds_ms: The shortest call of every round. Of networks that were timed in turn, those of
            one round stand side by side.
        energy_mj: Of one batch, the whole processor's while the network runs again and again
            (`amc.utils.energy`); None where it was not asked for, or the machine does not show it.
    """

    latency_ms: float
    spread_ms: float
    rounds_ms: tuple[float, ...] = field(default=(), repr=False, compare=False)
    energy_mj: float | None = field(default=None, compare=False)

    def share_of(self, other: Timing) -> Share:
        """How long it takes compared with another network that was timed in turn with it."""
        value = self.latency_ms / other.latency_ms
        pairs = zip(self.rounds_ms, other.rounds_ms, strict=True)
        ratios = [mine / its for mine, its in pairs]
        if len(ratios) < 2:
            return Share(value, value, value)
        low, _, high = statistics.quantiles(ratios, n=4)
        return Share(value, min(low, value), max(high, value))


@dataclass(frozen=True)
class Share:
    """A network's time as a fraction of another's.

    Attributes:
        value: Of the shortest calls.
        low, high: Of the middle half of the rounds, and the value. What a neighbour does meets both
            networks alike, unless it slows one kind of operator more than another.
    """

    value: float
    low: float
    high: float

    @property
    def is_steady(self) -> bool:
        """Whether the rounds agree well enough for the value alone to be said."""
        return self.high - self.low <= STEADY * self.value

    def leaves_open(self, bound: float) -> bool:
        """Whether it cannot be told if the time is below a fraction of the other network's."""
        return not self.is_steady and self.low <= bound <= self.high

    @property
    def caveat(self) -> str:
        """What is to be said where it is not steady: a sentence."""
        return (
            "The machine was too busy for a finer statement of the time than: "
            f"{self.low:.2f} to {self.high:.2f} of the original's, in the middle half of the "
            "rounds."
        )

    def __str__(self) -> str:
        """The value, or from where to where it was seen: "0.28", "0.27 to 0.34"."""
        return f"{self.value:.2f}" if self.is_steady else f"{self.low:.2f} to {self.high:.2f}"


def measure_latency(
    networks: Sequence[nn.Module],
    image_shape: tuple[int, int, int],
    *,
    batch: int = 1,
    threads: int = 1,
    device: str = "cpu",
    rounds: int = ROUNDS,
    energy: bool = False,
) -> list[Timing]:
    """Time networks in turn, round by round, so that drift of the machine meets all alike.

    Args:
        networks: In evaluation mode, on ``device``.
        batch: Images per call.
        threads: CPU threads; restored afterwards.
        energy: Whether a second more for each network finds its energy out, where the machine
            shows it.
    """
    images = torch.randn(batch, *image_shape, generator=torch.Generator().manual_seed(0))
    images = images.to(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    samples: list[list[float]] = [[] for _ in networks]
    try:
        with torch.inference_mode():
            calls = [_calls(network, images) for network in networks]
            for _ in range(rounds):
                for index, network in enumerate(networks):
                    seconds = min(_time(network, images) for _ in range(calls[index]))
                    samples[index].append(seconds * 1e3)
            shown = _counters() if energy and device == "cpu" else []
            used = [
                energy_mj(shown, partial(network, images))[0] if shown else None
                for network in networks
            ]
    finally:
        torch.set_num_threads(before)
    return [
        replace(_summary(values), energy_mj=mj) for values, mj in zip(samples, used, strict=True)
    ]


def _counters() -> list[Counter]:
    """Of energy; none where the machine does not show it, or not to this user."""
    with suppress(DeviceError):
        return counters()
    return []


def _calls(network: nn.Module, images: torch.Tensor) -> int:
    for _ in range(3):
        network(images)
    return max(1, min(200, round(_BURST_S / max(_time(network, images), 1e-6))))


def _time(network: nn.Module, images: torch.Tensor) -> float:
    if images.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    network(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _summary(values: Sequence[float]) -> Timing:
    if len(values) < 2:
        return Timing(values[0], 0.0, tuple(values))
    low, _, high = statistics.quantiles(values, n=4)
    return Timing(min(values), (high - low) / 2, tuple(values))
