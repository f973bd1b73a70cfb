"""ShuffleNet V1: grouped 1x1 convolutions, between which channels are shuffled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM_CHANNELS = 24
# Convolution groups -> output channels of the three stages (Zhang et al. 2018, table 1).
STAGE_CHANNELS = {
    1: (144, 288, 576),
    2: (200, 400, 800),
    3: (240, 480, 960),
    4: (272, 544, 1088),
    8: (384, 768, 1536),
}
STAGE_UNITS = (4, 8, 4)
NARROWER = 4  # a unit's bottleneck has a quarter of its output channels
SMALL_IMAGE = 64  # pixels; up to here the stem keeps the resolution


class ShuffleUnit(nn.Module):
    """A bottleneck around a shortcut (Zhang et al. 2018, figure 2 b and c).

    With stride 2 the shortcut is pooled and stands before the branch's channels; otherwise it is
    added to them.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, groups: int, first_groups: int
    ) -> None:
        """
        Args:
            first_groups: Of the first convolution: 1 behind the stem, which is narrow.
        """
        super().__init__()
        middle = out_channels // NARROWER
        added = out_channels - in_channels if stride == 2 else out_channels
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.shuffle = nn.ChannelShuffle(groups)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, added, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(added)
        self.relu = nn.ReLU()
        self.pools = stride == 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.shuffle(self.relu(self.bn1(self.conv1(x))))
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        if self.pools:
            x = F.avg_pool2d(x, 3, stride=2, padding=1)
            joined: Tensor = self.relu(torch.cat([x, out], 1))
            return joined
        total: Tensor = self.relu(x + out)
        return total


class ShuffleNetV1(nn.Module):
    """ShuffleNet (Zhang et al. 2018, table 1).

    Input (N, input_channels, H, W), output (N, num_classes). For images of up to 64 pixels the stem
    neither strides nor pools: of 32x32, the last maps are 4x4.
    """

    def __init__(
        self, groups: int, scale: float, num_classes: int, input_channels: int, is_small: bool
    ) -> None:
        super().__init__()
        channels = _scaled(STEM_CHANNELS, scale, groups)
        stem = nn.Conv2d(input_channels, channels, 3, 1 if is_small else 2, padding=1, bias=False)
        pool = nn.Identity() if is_small else nn.MaxPool2d(3, 2, padding=1)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(channels), nn.ReLU(), pool)
        stages = []
        for number, (base, units) in enumerate(
            zip(STAGE_CHANNELS[groups], STAGE_UNITS, strict=True)
        ):
            wide = _scaled(base, scale, NARROWER * groups)
            first = ShuffleUnit(channels, wide, 2, groups, 1 if number == 0 else groups)
            rest = (ShuffleUnit(wide, wide, 1, groups, groups) for _ in range(units - 1))
            stages.append(nn.Sequential(first, *rest))
            channels = wide
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stages(self.stem(x)))  # (N, channels, 1, 1)
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def _scaled(channels: int, scale: float, multiple: int) -> int:
    """So many channels, up to the next multiple of what divides them."""
    return max(multiple, -(-round(channels * scale) // multiple) * multiple)


def shufflenet_v1(
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    groups: int = 3,
    scale: float = 1.0,
) -> ShuffleNetV1:
    """ShuffleNet ``scale`` x with so many groups.

    Raises:
        ValueError: Groups of which the paper has no network, or a scale that is none.
    """
    if groups not in STAGE_CHANNELS:
        known = ", ".join(map(str, STAGE_CHANNELS))
        raise ValueError(f"groups must be one of {known}, got {groups!r}")
    if not scale > 0:
        raise ValueError(f"scale must be greater than 0, got {scale!r}")
    channels, height, width = image_shape
    return ShuffleNetV1(groups, scale, num_classes, channels, min(height, width) <= SMALL_IMAGE)
