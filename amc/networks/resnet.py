"""Residual networks for small images, with shortcuts that hold no weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGE_CHANNELS = (16, 32, 64)

Layer = Callable[[int, int, int], nn.Module]
"""(in_channels, out_channels, stride) -> a layer of 3x3 windows, padded by one."""


def convolution(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A 3x3 convolution, to be normalised."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 layers around a shortcut of type A (He et al. 2016, sec. 4.2).

    Where the block halves the image, the shortcut takes every second pixel and fills the
    missing channels with zeros, half of them on either side.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, layer: Layer) -> None:
        super().__init__()
        self.conv1 = layer(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = layer(out_channels, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.subsamples = stride != 1
        self.zero_channels = (out_channels - in_channels) // 2  # on either side

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.subsamples:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.zero_channels, self.zero_channels))
        total: Tensor = self.relu(out + x)
        return total


class CifarResNet(nn.Module):
    """The CIFAR ResNet of He et al. 2016, sec. 4.2: 6n + 2 layers in three stages.

    Input (N, input_channels, H, W), 32x32 in the paper; output (N, num_classes). The layers of its
    blocks may be others than convolutions.
    """

    def __init__(
        self,
        blocks_per_stage: int,
        num_classes: int,
        input_channels: int,
        layer: Layer = convolution,
    ) -> None:
        super().__init__()
        first, second, third = STAGE_CHANNELS
        self.conv1 = nn.Conv2d(input_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = _stage(first, first, blocks_per_stage, 1, layer)
        self.layer2 = _stage(first, second, blocks_per_stage, 2, layer)
        self.layer3 = _stage(second, third, blocks_per_stage, 2, layer)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(third, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))  # (N, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 64, H/4, W/4)
        logits: Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return logits


def blocks_of(depth: int) -> int:
    """Blocks of each stage, of a network of ``depth`` = 6n + 2 layers."""
    return (depth - 2) // 6


def _stage(
    in_channels: int, out_channels: int, blocks: int, stride: int, layer: Layer
) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, layer)
    rest = (BasicBlock(out_channels, out_channels, 1, layer) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def cifar_resnet(*, depth: int, num_classes: int, image_shape: tuple[int, int, int]) -> CifarResNet:
    """A CIFAR ResNet of ``depth`` = 6n + 2 layers (20, 32, 44, 56, 110)."""
    return CifarResNet(blocks_of(depth), num_classes, input_channels=image_shape[0])
