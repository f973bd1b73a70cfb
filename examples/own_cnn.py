"""A network and images of one's own, for docs/tutorials/own_cnn.md.

python own_cnn.py                        writes photos/ and trains own_cnn.pt
amc search network=own_cnn:build data=image_folder data.root=photos data.channels=1 ...
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS, PHOTOS = Path("own_cnn.pt"), Path("photos")
SIDE, MEAN, STD = 32, 0.3, 0.33  # of an image; of pixels from 0 to 1


class OwnCNN(nn.Module):
    """Grey images (N, 1, 32, 32) -> scores (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 32, 64, 64, 128, 128)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.classes = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            if index in (1, 3):
                x = F.max_pool2d(x, 2)
        return self.classes(x.mean((2, 3)))


def build() -> nn.Module:
    """What ``network=own_cnn:build`` calls: the network with its weights."""
    network = OwnCNN()
    network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return network


def write_photos() -> None:
    """Scikit-learn's digits as ``photos/train/<class>/*.png`` and ``photos/test/<class>/*.png``."""
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = PHOTOS / ("test" if index % 5 == 0 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * (255 / 16)).astype("uint8"))
        image.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(folder / f"{index}.png")


def read_photos(split: str) -> tuple[Tensor, Tensor]:
    """Normalised images (n, 1, 32, 32) and labels (n,)."""
    files = sorted((PHOTOS / split).glob("*/*.png"))
    images = torch.stack([torch.tensor(np.array(Image.open(file))) for file in files])
    pixels = images.unsqueeze(1).float() / 255
    return (pixels - MEAN) / STD, torch.tensor([int(file.parent.name) for file in files])


def train(epochs: int = 8) -> float:
    """Train, write the weights, and give the accuracy on the test images."""
    torch.manual_seed(0)
    network, (images, labels) = OwnCNN(), read_photos("train")
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for epoch in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}")
    torch.save(network.state_dict(), WEIGHTS)
    images, labels = read_photos("test")
    with torch.no_grad():
        return (network.eval()(images).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    write_photos()
    accuracy = train(*map(int, sys.argv[1:2]))
    print(f"{accuracy:.2%} on the test images; weights in {WEIGHTS}, images in {PHOTOS}/")
