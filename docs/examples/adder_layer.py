"""A layer kind of one's own: the adder layer (docs/extending.md).

    python -m docs.examples.adder_layer

An adder layer compares its input with its weights by their L1 distance instead of multiplying them:
``y = -sum |x - w|`` over the window (Chen et al. 2020, "AdderNet: Do We Really Need Multiplications
in Deep Learning?"). What is counted as a multiply-add of it is a subtraction and the addition of
its absolute value: as many as a convolution of that shape has products.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import amc


class Adder2d(nn.Module):
    """Images (n, in_channels, height, width) to (n, out_channels, ...)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel, self.stride, self.padding = kernel, stride, padding
        shape = out_channels, in_channels, kernel, kernel
        self.weight = nn.Parameter(torch.randn(shape, device=device))
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return self.compared(x, self.weight, self.bias)

    def compared(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What it gives with this weight and bias."""
        windows = functional.unfold(x, self.kernel, padding=self.padding, stride=self.stride)
        apart = windows.unsqueeze(1) - weight.flatten(1)[:, :, None]  # (n, outputs, inputs, places)
        rows = (x.shape[2] + 2 * self.padding - self.kernel) // self.stride + 1
        y = -apart.abs().sum(2).unflatten(2, (rows, -1))
        return y if bias is None else y + bias[:, None, None]


class QuantizedAdder2d(amc.Quantized, Adder2d):
    """What it becomes where its bits are few."""


class AdderKind(amc.LayerKind[Adder2d]):
    """How amc removes channels of adder layers, and what that costs."""

    op, modules = "adder2d", (Adder2d,)

    def signature(
        self, layer: Adder2d, in_shape: tuple[int, ...], out_shape: tuple[int, ...]
    ) -> amc.Signature:
        kernel, stride, padding = ((n, n) for n in (layer.kernel, layer.stride, layer.padding))
        sizes = {"in_size": in_shape[2:], "out_size": out_shape[2:]}
        return amc.Signature(self.op, kernel, stride, padding, **sizes)

    def build(self, signature: amc.Signature, inputs: int, outputs: int) -> nn.Module:
        sizes = signature.kernel[0], signature.stride[0], signature.padding[0]
        return Adder2d(inputs, outputs, *sizes, device="meta")

    def apply(self, layer: Adder2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return layer.compared(x, weight, bias)

    def ignore(self, layer: Adder2d, columns: Tensor) -> None:
        """An input of 0 still adds -|w|, a weight of 0 still -|x|: both must be 0."""
        layer.weight.data[:, columns] = 0
        layer.register_forward_pre_hook(lambda _, given: (given[0].index_fill(1, columns, 0),))

    def column_costs(self, layer: Adder2d, values: Tensor, sensitivities: Tensor) -> Tensor:
        """The bias makes up for the mean of what goes: the variance of |x - w| is the error."""
        weight, some = layer.weight.detach().double().flatten(1), values.double()[:1024]
        return sensitivities @ (some[:, None, None] - weight).abs().var(0)


amc.register_layer(AdderKind())


def toy_data(count: int = 160, size: int = 8) -> amc.DataSet:
    """Noise with a square of one of three colours: its class."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 120, (count, 3, size, size), generator=draw, dtype=torch.uint8)
    for number, (y, x) in enumerate(torch.randint(size - 3, (count, 2), generator=draw).tolist()):
        images[number, number % 3, y : y + 4, x : x + 4] += 100
    return amc.DataSet.from_tensors(images, torch.arange(count) % 3)


def toy_network(data: amc.DataSet) -> nn.Module:
    """A convolution and two adder layers, trained for a moment."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        Adder2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        Adder2d(8, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    images, labels = data.train.normalised(data.mean, data.std), data.train.labels
    for step in range(40):
        some = slice(step % 2, None, 2)
        optimizer.zero_grad()
        functional.cross_entropy(network(images[some]), labels[some]).backward()
        optimizer.step()
    return network.eval()


if __name__ == "__main__":
    data = toy_data()
    print(amc.search(toy_network(data), data, None, amc.Budget("macs", fraction=0.5)))
