"""In which steps of channels a device's times fall, found out by timing a few convolutions.

A runtime computes channels in blocks: 18 of them may take as long as 24. What is kept should then
be whole blocks, and a table need hold no more than those. So a step is the device's if rounding
counts of channels above it up to multiples of it costs little. (Within the first block less may pay
all the same: few input channels are often computed by a kernel of their own.)

On average over the counts: a single one costs up to a tenth more or less from probe to probe, and
which step a machine has would depend on its hour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from amc.graph.types import Signature
from amc.runtimes import Sampler
from amc.runtimes.request import Request
from amc.strategy import Bits
from amc.utils.progress import progress_bar

# Blocks of 16 and more are whole numbers of 8, and within the first of them 8 may be worth it. A
# step finer than 4 is not looked for: a table holds the square of how many counts there are.
STEPS = (8, 4)
LOSS = 0.1  # relative: what rounding up to a step may cost on average; 0.15 if time is linear
ROUNDS = 15

_COUNTS = range(4, 65, 4)
_BESIDE = 32  # channels on the other side of the convolution
_SIGNATURE = Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(16, 16), out_size=(16, 16))


def probe_requests(bits: Bits) -> list[Request]:
    """3x3 convolutions with ever more outputs, then with ever more inputs."""
    return [
        *(Request(_SIGNATURE, _BESIDE, count, bits) for count in _COUNTS),
        *(Request(_SIGNATURE, count, _BESIDE, bits) for count in _COUNTS),
    ]


def step_of(prices: Mapping[int, float]) -> int:
    """The largest of `STEPS` that counts above it may be rounded up to.

    Args:
        prices: Channels -> ms, for all multiples of the least step up to a multiple of the
            largest.
    """
    for step in STEPS:
        lost = [
            prices[-(-count // step) * step] / price - 1
            for count, price in prices.items()
            if count > step and count % step
        ]
        if fmean(lost or [0.0]) <= LOSS:
            return step
    return STEPS[-1]


def probe_step(name: str, sample: Sampler, pairs: Sequence[Bits]) -> int:
    """The step of a device that computes in these bits: the finest that any of them has.

    A count of channels is an output of one layer and an input of the next, so it is the sum of
    both prices that counts.

    Args:
        name: Of the device, for the progress bar.
        sample: Gives milliseconds, one sample of each request that it is given.
    """
    requests = [request for bits in pairs for request in probe_requests(bits)]
    with progress_bar(f"probing {name}", ROUNDS) as bar:
        rounds = []
        for _ in range(ROUNDS):
            rounds.append(list(sample(requests)))
            bar.advance()
    prices = [min(samples) for samples in zip(*rounds, strict=True)]
    steps = []
    for place in range(len(pairs)):
        first = place * 2 * len(_COUNTS)
        outs = prices[first : first + len(_COUNTS)]
        ins = prices[first + len(_COUNTS) : first + 2 * len(_COUNTS)]
        sums = [out + into for out, into in zip(outs, ins, strict=True)]
        steps.append(step_of(dict(zip(_COUNTS, sums, strict=True))))
    return min(steps)
