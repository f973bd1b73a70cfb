"""MobileNetV1: depthwise separable convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STEM_CHANNELS = 32
# Output channels and stride of each depthwise separable block (Howard et al. 2017, table 1).
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
SMALL_IMAGE = 64  # pixels; up to here the stem keeps the resolution


class MobileNetV1(nn.Module):
    """MobileNetV1 (Howard et al. 2017, table 1).

    Input (N, input_channels, H, W), output (N, num_classes). ``stem_stride`` is 2 in the paper
    (224x224 images); 1 suits 32x32 images, whose last maps are then 2x2. ``width`` multiplies
    every channel count (their alpha).
    """

    def __init__(
        self, num_classes: int, input_channels: int, stem_stride: int, width: float
    ) -> None:
        super().__init__()
        channels = _scaled(STEM_CHANNELS, width)
        blocks = [_stem(input_channels, channels, stem_stride)]
        for base, stride in BLOCKS:
            blocks.append(_separable(channels, _scaled(base, width), stride))
            channels = _scaled(base, width)
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))  # (N, 1024 * width, 1, 1)
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def _scaled(channels: int, width: float) -> int:
    return max(8, int(channels * width))


def _stem(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def mobilenet_v1(
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    width: float = 1.0,
    stem_stride: int | None = None,
) -> MobileNetV1:
    """MobileNetV1; without ``stem_stride``, 1 for images of up to 64 pixels and 2 above."""
    channels, height, breadth = image_shape
    if stem_stride is None:
        stem_stride = 1 if min(height, breadth) <= SMALL_IMAGE else 2
    return MobileNetV1(num_classes, channels, stem_stride, width)
