"""A decision on every layer: how many bits say which of a few values a weight has.

The values are the layer's own (Deep Compression, Han et al. 2016). They are floats: fewer bits are
stored, and none are computed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.decisions.decision import Decision
from amc.decisions.forms import Levels, Zeros, forms_of, hold
from amc.errors import ConfigError
from amc.strategy import FLOAT_BITS, Bits, Value

STORED = ("size_bytes", "packed_bytes")
PASSES = 50  # of k-means at most


@dataclass(frozen=True)
class Codebook(Decision):
    """Bits of a layer's codebook: with 4, its weights have 16 different values; 32: as they are.

    Where the layer has zeros too, zero is one of the values. A layer whose weights are integers of
    few bits has no codebook beside them.

    Attributes:
        bits: On offer, 1 to 8 or 32.
    """

    bits: tuple[int, ...] = (*range(1, 9), FLOAT_BITS)

    name = "codebook"
    parts = ("codebook_bits",)
    unchanged = (float(FLOAT_BITS),)

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: Bits are none.
        """
        if not self.bits or not set(self.bits) <= {*range(1, 9), FLOAT_BITS}:
            raise ConfigError(
                f"bits of Codebook must be a tuple of numbers among 1 to 8 and {FLOAT_BITS}, got "
                f"{self.bits!r}."
            )

    def values(self, metric: str, device: object) -> Sequence[Value]:
        return [(float(b),) for b in self.bits] if metric in STORED else [self.unchanged]

    def suits(self, value: Value, bits: Bits) -> bool:
        return bits.weight == FLOAT_BITS

    def stored(self, value: Value, bits: Bits) -> Bits:
        return bits._replace(weight=min(int(value[0]), bits.weight))

    def form(self, value: Value) -> Levels | None:
        return Levels(2 ** int(value[0])) if value != self.unchanged else None

    def apply(self, layer: nn.Module, value: Value, inputs: Tensor | None) -> nn.Module:
        form, weight = self.form(value), layer.weight
        assert isinstance(weight, Tensor)
        if form is not None:
            hold(layer, form)
            has_zeros = any(isinstance(held, Zeros) for held in forms_of(layer))
            weight.data = of_few_values(weight.data, form.count, has_zeros=has_zeros)
        return layer

    def change(self, layer: nn.Module, part: str, number: float, inputs: Tensor) -> Tensor:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return of_few_values(weight.detach(), 2 ** int(number))

    def feature(self, number: float) -> float:
        return math.log2(1 + number) / math.log2(1 + FLOAT_BITS)


def of_few_values(weight: Tensor, count: int, *, has_zeros: bool = False) -> Tensor:
    """A weight, each number at the nearest of so many values; as it is if it has no more.

    Args:
        has_zeros: Whether what is zero stays zero.
    """
    free = weight != 0 if has_zeros else torch.ones_like(weight, dtype=torch.bool)
    if len(torch.unique(weight)) <= count or not bool(free.any()):
        return weight
    numbers, most = weight[free].double(), count - int(has_zeros)
    found = torch.zeros_like(weight)
    found[free] = nearest(numbers, k_means(numbers, torch.ones_like(numbers), most)).to(weight)
    return found


def k_means(numbers: Tensor, mass: Tensor, count: int) -> Tensor:
    """Means of at most so many clusters of numbers (Lloyd 1982), sorted, float64.

    They start once evenly spaced from the smallest to the largest number, once with as many
    numbers for each; the better end is taken.

    Args:
        numbers: (n,).
        mass: What each counts, (n,), not negative.
    """
    numbers, order = numbers.double().sort(stable=True)
    mass = mass.double()[order]
    mass = mass.clamp_min(1e-12 * float(mass.max()) or 1.0)
    sums = torch.stack([mass, mass * numbers, mass * numbers.square()]).cumsum(1)
    sums = nn.functional.pad(sums, (1, 0))
    spaced = torch.linspace(float(numbers[0]), float(numbers[-1]), count, dtype=torch.float64)
    places = (torch.arange(count) * 2 + 1) * len(numbers) // (2 * count)
    best, lowest = spaced, math.inf
    for start in (spaced, numbers[places]):
        means, error = _lloyd(numbers, sums, start)
        if error < lowest:
            best, lowest = means, error
    return best


def _lloyd(numbers: Tensor, sums: Tensor, means: Tensor) -> tuple[Tensor, float]:
    """Where means that start so end, and the squared error that is left.

    Args:
        numbers: Sorted.
        sums: Of mass, mass * number and mass * number^2 before each place, (3, n + 1).
    """
    for _ in range(PASSES):
        cuts = torch.searchsorted(numbers, (means[1:] + means[:-1]) / 2)
        cuts = torch.cat([cuts.new_zeros(1), cuts, cuts.new_tensor([len(numbers)])])
        mass, first, second = sums[:, cuts[1:]] - sums[:, cuts[:-1]]
        moved = torch.where(mass > 0, first / mass.clamp_min(1e-300), means).sort().values
        if torch.equal(moved, means):
            break
        means = moved
    error = second - 2 * means * first + means.square() * mass
    return torch.unique(means), float(error.sum())


def nearest(numbers: Tensor, values: Tensor) -> Tensor:
    """Each number's nearest value; of two equally near the smaller.

    Args:
        values: Sorted, (count,).
    """
    return values[torch.bucketize(numbers, (values[1:] + values[:-1]) / 2)]
