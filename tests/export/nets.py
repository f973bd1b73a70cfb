"""Small networks with what an export must not get wrong, quantized as a strategy says."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx, nn

from amc.compress.quantization import activation_range, quantize_layer
from amc.compress.verify import graph_of
from amc.strategy import Bits

SHAPE = (3, 8, 8)


class Branches(nn.Module):
    """Images (N, 3, 8, 8) -> scores (N, 5): depthwise, concatenation, a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=False)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.point = nn.Conv2d(4, 4, 1, bias=False)
        self.reflect = nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect")
        self.hidden = nn.Linear(4, 6, bias=False)
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.point(self.point(x)) + self.norm(self.depthwise(x)))
        x = self.reflect(torch.cat([x, torch.sigmoid(x)], 1))
        return self.linear(torch.relu(self.hidden(x.mean((2, 3)))))


def branches() -> nn.Module:
    """A `Branches` with fixed weights and statistics, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Branches().eval()
        network.norm.running_mean.normal_(0, 0.2)
        network.norm.running_var.uniform_(0.5, 1.5)
    return network


def pictures(count: int = 16, seed: int = 1) -> Tensor:
    """Images, (count, 3, 8, 8)."""
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def quantized(network: nn.Module, bits: Mapping[str, Bits]) -> fx.GraphModule:
    """The network with some layers quantized; inputs on the grids of `pictures`."""
    seen: dict[str, Tensor] = {}

    def note(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: seen.update({path: inputs[0].flatten()})

    hooks = [network.get_submodule(path).register_forward_pre_hook(note(path)) for path in bits]
    with torch.no_grad():
        network(pictures())
    for hook in hooks:
        hook.remove()
    module = graph_of(network, SHAPE).plan.module
    for path, pair in bits.items():
        grid = None if pair.activation == 32 else activation_range(seen[path], pair.activation)
        module.set_submodule(path, quantize_layer(module.get_submodule(path), pair, grid))
    return module


def scores(network: nn.Module, images: Tensor) -> Tensor:
    """What a network gives for images."""
    with torch.inference_mode():
        output: Tensor = network(images)
    return output


class OneLayer(nn.Module):
    """A convolution 1x1 with bias on (N, 1, 2, 2) images, a normalisation after it or not."""

    def __init__(self, outputs: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, outputs, 1)
        self.norm = norm or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3))
