"""The two LeNets that the compression literature starts from (Han et al. 2015, table 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amc.errors import NetworkError

SMALLEST_IMAGE = 16  # pixels; what two 5x5 convolutions and two poolings leave is 1x1


class LeNet300100(nn.Module):
    """Two hidden linear layers of 300 and 100 features; 266,610 parameters on MNIST.

    Input (N, C, H, W) with C * H * W = ``input_features``, output (N, num_classes).
    """

    def __init__(self, input_features: int, num_classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(input_features, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.fc1(torch.flatten(x, 1)))
        logits: Tensor = self.fc3(self.relu(self.fc2(x)))
        return logits


class LeNet5(nn.Module):
    """Caffe's LeNet-5 (20-50-500); 431,080 parameters on MNIST.

    Input (N, input_channels, H, W), output (N, num_classes).
    """

    def __init__(self, input_channels: int, size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        height, width = (((side - 4) // 2 - 4) // 2 for side in size)  # after conv2 and pool
        self.conv1 = nn.Conv2d(input_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(50 * height * width, 500)
        self.fc2 = nn.Linear(500, num_classes)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))  # (N, 20, 12, 12) on MNIST
        x = self.pool(self.relu(self.conv2(x)))  # (N, 50, 4, 4)
        logits: Tensor = self.fc2(self.relu(self.fc1(torch.flatten(x, 1))))
        return logits


def lenet_300_100(*, num_classes: int, image_shape: tuple[int, int, int]) -> LeNet300100:
    """LeNet-300-100 for images of any shape."""
    return LeNet300100(math.prod(image_shape), num_classes)


def lenet_5(
    *, num_classes: int, image_shape: tuple[int, int, int], input_channels: int | None = None
) -> LeNet5:
    """LeNet-5; ``input_channels`` are those of the images unless given.

    Raises:
        NetworkError: The images are smaller than 16x16.
    """
    channels, height, width = image_shape
    if min(height, width) < SMALLEST_IMAGE:
        raise NetworkError(
            f"lenet_5 needs images of at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE}, "
            f"got {height}x{width}. Set data.image_size or choose network=lenet_300_100."
        )
    return LeNet5(input_channels or channels, (height, width), num_classes)
