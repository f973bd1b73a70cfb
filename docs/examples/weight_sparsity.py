"""A decision of one's own: a fraction of a layer's single weights set to zero (docs/extending.md).

    python -m docs.examples.weight_sparsity

Simulated: no runtime that amc knows skips a zero. So nothing is on offer under a device's metric,
and what a search reports of a network with zeros says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import amc
from amc.decisions import Held, keep_only
from amc.strategy import Bits, Value

FRACTIONS = 0.0, 0.25, 0.5, 0.75, 0.9


class Sparsity(amc.Decision):
    """Zeros by magnitude (Han et al. 2015): the smallest weights of a layer go."""

    name = "zeros"
    parts = ("zeros",)
    unchanged = (0.0,)

    def values(self, metric: str, device: object) -> Sequence[Value]:
        counted = metric in ("macs", "bops", "size_bytes", "packed_bytes")
        return [(fraction,) for fraction in FRACTIONS] if counted else [self.unchanged]

    def apply(self, layer: nn.Module, value: Value, inputs: Tensor | None) -> nn.Module:
        assert isinstance(layer.weight, Tensor)
        layer.weight.data = without_smallest(layer.weight.data, value[0])
        return layer

    def constrain(self, layer: nn.Module, value: Value, share: float) -> Held:
        """Training leaves the zeros alone; gradually, fewer weights are zero at first."""
        assert isinstance(layer.weight, Tensor)
        return keep_only(largest(layer.weight.detach(), share * value[0]))

    def change(self, layer: nn.Module, part: str, number: float, inputs: Tensor) -> Tensor:
        assert isinstance(layer.weight, Tensor)
        return without_smallest(layer.weight.detach(), number)

    def cost_factor(self, metric: str, value: Value, bits: Bits) -> float:
        """Multiply-adds of what is left; of bytes, a bit more for each weight: whether it is 0."""
        left = 1 - value[0]
        if metric == "size_bytes":
            return min(1.0, left + 1 / bits.weight)
        return left if metric in ("macs", "bops") else 1.0


def without_smallest(weight: Tensor, fraction: float) -> Tensor:
    """A weight with so many of its numbers set to zero, those of the smallest magnitude."""
    return weight.masked_fill(~largest(weight, fraction), 0)


def largest(weight: Tensor, fraction: float) -> Tensor:
    """Which numbers are left without so many of the smallest magnitude; bool, as the weight."""
    left = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    left[weight.flatten().abs().argsort()[: round(fraction * len(left))]] = False
    return left.view(weight.shape)


def toy_data(count: int = 240, size: int = 8) -> amc.DataSet:
    """Noise that is brighter in one of four quarters, which is the class."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(120, (count, 1, size, size), generator=draw, dtype=torch.uint8)
    labels = torch.arange(count) % 4
    half = size // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        y, x = label // 2 * half, label % 2 * half
        image[:, y : y + half, x : x + half] += 40
    return amc.DataSet.from_tensors(images, labels)


def toy_network(data: amc.DataSet) -> nn.Module:
    """Two convolutions and a linear layer, trained for a moment."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 4),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    images, labels = data.train.normalised(data.mean, data.std), data.train.labels
    assert labels is not None
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval()


if __name__ == "__main__":
    data = toy_data()
    print(
        amc.search(
            toy_network(data),
            data,
            None,
            amc.Budget("size_bytes", fraction=0.25),
            space=amc.SearchSpace(weight_bits=(32,), decisions=(Sparsity(),)),
            evaluations=20,
        )
    )
