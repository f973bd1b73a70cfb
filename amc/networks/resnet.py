"""Residual networks for small images, with shortcuts that hold no weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGE_CHANNELS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut of type A (He et al. 2016, sec. 4.2).

    Where the block halves the image, the shortcut takes every second pixel and fills the
    missing channels with zeros, half of them on either side.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
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

    Input (N, input_channels, H, W), 32x32 in the paper; output (N, num_classes).
    """

    def __init__(self, blocks_per_stage: int, num_classes: int, input_channels: int) -> None:
        super().__init__()
        first, second, third = STAGE_CHANNELS
        self.conv1 = nn.Conv2d(input_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = _stage(first, first, blocks_per_stage, stride=1)
        self.layer2 = _stage(first, second, blocks_per_stage, stride=2)
        self.layer3 = _stage(second, third, blocks_per_stage, stride=2)
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


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    rest = (BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def cifar_resnet(*, depth: int, num_classes: int, image_shape: tuple[int, int, int]) -> CifarResNet:
    """A CIFAR ResNet of ``depth`` = 6n + 2 layers (20, 32, 44, 56, 110)."""
    return CifarResNet((depth - 2) // 6, num_classes, input_channels=image_shape[0])
