"""Small networks whose branches meet: what may be added or concatenated in integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.strategy import Bits
from tests.conftest import randomise_norms

EIGHT = Bits(8, 8)


class Residual(nn.Module):
    """Images (N, 3, 8, 8) -> scores (N, 5): two residual blocks, the second of option A."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.c = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.d = nn.Conv2d(8, 8, 3, padding=1)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.norm(self.b(torch.relu(self.a(x)))))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = torch.relu(self.d(torch.relu(self.c(x))) + shortcut)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Inverted(nn.Module):
    """Images (N, 3, 8, 8) -> scores (N, 5): an inverted residual block of MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.expand = nn.Conv2d(4, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project = nn.Conv2d(8, 4, 1)
        self.last = nn.Conv2d(4, 6, 1)
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return self.linear(F.relu6(self.last(x)).mean((2, 3)))


class Concatenated(nn.Module):
    """Images (N, 3, 8, 8) -> scores (N, 5): a branch with and one without a ReLU, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 1)
        self.c = nn.Conv2d(8, 6, 3)
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.cat([torch.relu(self.a(x)), self.b(x)], 1)
        x = F.max_pool2d(torch.relu(self.c(x)), 2)
        return self.linear(x.mean((2, 3)))


class Padded(nn.Module):
    """Images (N, 3, 8, 8) -> scores (N, 5): paddings between layers, each written otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.zeros = nn.ZeroPad2d(1)
        self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(4, 4, 3) for _ in range(5))
        self.reflected = nn.ReflectionPad2d(1)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.zeros(torch.relu(self.stem(x))))
        x = self.b(F.pad(torch.relu(x), (1, 1, 1, 1), "constant", 0))
        x = self.c(self.reflected(torch.relu(x)))
        x = self.d(F.pad(torch.relu(x), (1, 1, 1, 1), mode="replicate"))
        x = self.e(F.pad(torch.relu(x), (1, 1, 1, 1), value=1.0))
        x = F.pad(torch.relu(x), (1, 0, 1, 0), value=0.0)
        return self.linear(x.mean((2, 3)))


class Shared(nn.Module):
    """Images (N, 3, 8, 8) -> scores (N, 5): a layer that is called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.wide, self.last = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 6, 3)
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(torch.relu(self.stem(x)))
        x = torch.sigmoid(self.shared(torch.relu(x)))
        x = torch.relu(self.wide(torch.relu(self.shared(x))))
        x = torch.relu(self.last(x))
        return self.linear(x.mean((2, 3)))


def built(kind: Callable[[], nn.Module]) -> nn.Module:
    """A network with fixed weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise_norms(kind()).eval()


def eight_bits(network: nn.Module, *, but: Sequence[str] = ()) -> dict[str, Bits]:
    """All layers at 8 bits, but those that stay float."""
    kinds = (nn.Conv2d, nn.Linear)
    layers = [path for path, module in network.named_modules() if isinstance(module, kinds)]
    return {path: EIGHT for path in layers if path not in but}
