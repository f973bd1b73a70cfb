"""One small network for every way in which channels can pass; images are (3, 8, 8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SHAPE = (3, 8, 8)


def conv(inputs: int, outputs: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Net(nn.Module):
    """A body that the subclass defines, then pooling and a classifier of 5 classes."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = conv(3, 8)
        self.last = nn.Linear(features, 5)

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(torch.relu(self.first(x)))
        return self.last(x.mean((2, 3)))


class Sequence(Net):
    """Any modules, one after another, between the first convolution and the classifier."""

    def __init__(self, *modules: nn.Module, features: int) -> None:
        super().__init__(features)
        self.middle = nn.Sequential(*modules)

    def body(self, x: Tensor) -> Tensor:
        return self.middle(x)


class Function(Net):
    """Any function of the first convolution's output."""

    def __init__(self, function, features: int = 8) -> None:
        super().__init__(features)
        self.function = function

    def body(self, x: Tensor) -> Tensor:
        return self.function(x)


class Concat(Net):
    def __init__(self) -> None:
        super().__init__(7)
        self.a, self.b, self.merge = conv(8, 4), conv(8, 6), conv(10, 7)

    def body(self, x: Tensor) -> Tensor:
        return self.merge(torch.cat([self.a(x), self.b(x)], 1))


class SplitShuffle(Net):
    """Shuffled in two rows, 0 4 1 5 | 2 6 3 7; the first half is convolved, the second kept."""

    def __init__(self) -> None:
        super().__init__(9)
        self.part = conv(4, 5)

    def body(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)
        first, second = x.chunk(2, dim=1)
        return torch.cat([self.part(first), second], dim=1)


class PaddedShortcut(Net):
    """Option A of He et al. 2016: channels 2..9 of ``wide`` are added to those of ``first``."""

    def __init__(self) -> None:
        super().__init__(12)
        self.wide = conv(8, 12, stride=2)

    def body(self, x: Tensor) -> Tensor:
        return self.wide(x) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


class Flattening(nn.Module):
    """Convolution to (4, 8, 8), flattened by a function, and a linear layer of 256 inputs."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.function = conv(3, 4), function
        self.last = nn.Linear(4 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(torch.relu(self.first(x))))


class SqueezeExcite(Net):
    def __init__(self, combine) -> None:
        super().__init__(8)
        self.squeeze, self.excite = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)
        self.combine = combine

    def body(self, x: Tensor) -> Tensor:
        gate = torch.relu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))
        return self.combine(x, torch.sigmoid(self.excite(gate)))


class SpatialAttention(Net):
    def __init__(self) -> None:
        super().__init__(8)
        self.map = conv(8, 1)

    def body(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.map(x))  # (n, 8, h, w) * (n, 1, h, w)


class LayerScale(Net):
    def __init__(self) -> None:
        super().__init__(8)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8).view(8, 1, 1))

    def body(self, x: Tensor) -> Tensor:
        return x + self.scale * x


class FactorsOfTwoVectors(Net):
    """Channels of the pooled output are scaled by a product of parameters of one dimension."""

    def __init__(self) -> None:
        super().__init__(8)
        self.one = nn.Parameter(torch.linspace(0.5, 1.5, 8))
        self.other = nn.Parameter(torch.linspace(2.0, 1.0, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)).mean((2, 3))
        return self.last(x * (self.one * self.other))


class Patches(Net):
    """MobileViT's: a map cut into patches of 2 x 2, a linear layer over their channels, and back.

    On a map of 2 x 2 there is one patch, and the cutting a reshape to (n, channels, 1, 4).
    """

    def __init__(self, stride: int) -> None:
        super().__init__(8)
        self.down, self.mix = conv(8, 8, stride=stride), nn.Linear(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.down(x)
        n, c, h, w = x.shape
        rows, columns = h // 2, w // 2
        x = x.reshape(n * c * rows, 2, columns, 2).transpose(1, 2)
        x = x.reshape(n, c, rows * columns, 4).transpose(1, 3)  # (n, 4, patches, c)
        x = torch.relu(self.mix(x)).transpose(1, 3)
        x = x.reshape(n * c * rows, columns, 2, 2).transpose(1, 2)
        return x.reshape(n, c, h, w)


class PositionMap(Net):
    """A learned map over positions, the same for all channels."""

    def __init__(self) -> None:
        super().__init__(8)
        self.map = nn.Parameter(torch.linspace(-1, 1, 64).view(1, 1, 8, 8))

    def body(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.map)


class CalledTwice(Net):
    def __init__(self) -> None:
        super().__init__(6)
        self.shared, self.free = conv(8, 8), conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.free(self.shared(self.shared(x)))


class SharedFactors(Net):
    """One PReLU of eight factors for two groups: they must lose the same channels."""

    def __init__(self) -> None:
        super().__init__(8)
        self.second = conv(8, 8)
        self.act = nn.PReLU(8)
        self.act.weight.data = torch.linspace(-1, 1, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.act(x)))


class ShapeControl(Net):
    """Python control flow over shapes: the branch that the example takes is followed."""

    def __init__(self) -> None:
        super().__init__(8)
        self.wide, self.narrow = conv(8, 8), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        if x.shape[1] > 7 and x.dim() == 4 and len(x.shape) == 4:
            x = self.wide(x)
        else:
            x = self.narrow(x)
        for _ in range(x.size(2) // 4):
            x = functional.avg_pool2d(x, 2)
        return x


class Gate(nn.Module):
    """Reads the contents of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.mean() > 1e6 else self.inner(x) * 2


class ItemGate(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.mean().item() > 1e6 else self.inner(x) * 2


class Gated(Net):
    def __init__(self, gate: nn.Module) -> None:
        super().__init__(7)
        self.before, self.gate, self.after = conv(8, 6), gate, conv(8, 7)
        self.to_gate = conv(6, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.gate(self.to_gate(self.before(x))))


class InPlaceAlias(Net):
    """What is added last is what the in-place ReLU left behind, not what the first layer gave."""

    def __init__(self) -> None:
        super().__init__(8)
        self.norm, self.relu, self.second = nn.BatchNorm2d(8), nn.ReLU(inplace=True), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        kept = x
        return self.second(self.relu(x)) + kept


class Residuals(Net):
    """Residual blocks: two basic ones, a bottleneck, an inverted one whose sum is not rectified.

    Attributes:
        left_out: Numbers of blocks that add nothing.
    """

    def __init__(self) -> None:
        super().__init__(8)
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(
                    conv(8, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 8), nn.BatchNorm2d(8)
                ),
                nn.Sequential(conv(8, 4), nn.ReLU(), conv(4, 8)),
                nn.Sequential(
                    nn.Conv2d(8, 4, 1), nn.ReLU(), conv(4, 4), nn.ReLU(), nn.Conv2d(4, 8, 1)
                ),
                nn.Sequential(
                    nn.Conv2d(8, 12, 1),
                    nn.ReLU6(),
                    conv(12, 12, groups=12),
                    nn.ReLU6(),
                    nn.Conv2d(12, 8, 1),
                ),
            ]
        )
        self.left_out: set[int] = set()

    def body(self, x: Tensor) -> Tensor:
        for number, branch in enumerate(self.blocks):
            if number not in self.left_out:
                x = x + branch(x)
            if number < 3:
                x = torch.relu(x)
        return x
