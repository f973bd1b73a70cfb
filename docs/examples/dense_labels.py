"""An objective of one's own: dense labels, a class for every pixel (docs/extending.md).

    python -m docs.examples.dense_labels

A toy: each image holds a red or a green square on noise, and the network says of every pixel
whether it is background, red or green.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

import amc

CLASSES = 3


class DenseLabels(amc.Objective):
    """Outputs are logits (images, classes, height, width); targets are (images, height, width)."""

    name = "dense_labels"
    scores = (
        amc.NamedScore("mean_iou", "IoU %", is_fraction=True),
        amc.NamedScore("agreement", "agreement", needs_targets=False),
        amc.NamedScore("same_pixels", "same %", needs_targets=False, is_fraction=True),
    )
    expected = "a tensor (images, classes, height, width) of class scores for each pixel"

    def fits(self, outputs: Tensor, images: int) -> bool:
        return outputs.dim() == 4 and len(outputs) == images

    def mismatch(self, outputs: Tensor, targets: Tensor, classes: int | None = None) -> str:
        if targets.shape[1:] != outputs.shape[2:]:
            return f"they are {tuple(targets.shape[1:])}, the outputs {tuple(outputs.shape[2:])}"
        found = int(targets.max()) + 1
        return f"they have {found} classes" if found > outputs.shape[1] else ""

    def judge(
        self, outputs: Tensor, targets: Tensor | None, reference: Tensor | None
    ) -> dict[str, Tensor]:
        """Mean IoU: of the classes, the mean of intersection over union of their pixels.

        Agreement: minus the mean divergence; same pixels: the fraction of the original's class.
        """
        found: dict[str, Tensor] = {}
        decided = self.decisions(outputs)
        if targets is not None:
            named = range(outputs.shape[1])
            both = torch.stack([((decided == c) & (targets == c)).sum() for c in named])
            any_ = torch.stack([((decided == c) | (targets == c)).sum() for c in named])
            found["mean_iou"] = (both[any_ > 0] / any_[any_ > 0]).mean()
        if reference is not None:
            found["agreement"] = -self.divergence(outputs, reference).mean()
            found["same_pixels"] = (decided == self.decisions(reference)).double().mean()
        return found

    def decisions(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """KL divergence, nats, mean over the pixels of an image."""
        given, expected = outputs.log_softmax(1), reference.log_softmax(1)
        return (expected.exp() * (expected - given)).sum(1).mean((1, 2))

    def sampled_loss(self, outputs: Tensor, generator: Generator) -> Tensor:
        by_pixel = outputs.movedim(1, -1).flatten(0, 2)  # (images * height * width, classes)
        drawn = torch.multinomial(by_pixel.detach().softmax(1), 1, generator=generator)
        pixels = outputs[0, 0].numel()  # whose mean the divergence is
        return functional.cross_entropy(by_pixel, drawn[:, 0], reduction="sum") / pixels**0.5

    def target_loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        return functional.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def teacher_loss(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        found = self.divergence(outputs / temperature, teacher / temperature)
        return temperature**2 * found.mean()


def toy_data(count: int = 160, size: int = 8) -> amc.DataSet:
    """Noise with a square of one of two colours, and the class of every pixel."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(120, (count, 3, size, size), generator=draw, dtype=torch.uint8)
    labels = torch.zeros(count, size, size, dtype=torch.long)
    corners = torch.randint(size - 3, (count, 2), generator=draw).tolist()
    for number, (y, x) in enumerate(corners):
        square = slice(y, y + 4), slice(x, x + 4)
        colour = number % 2
        images[number, colour, *square] += 100
        labels[number, *square] = colour + 1
    return amc.DataSet.from_tensors(images, labels)


def toy_network(data: amc.DataSet) -> nn.Module:
    """Three convolutions, trained for a moment."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, CLASSES, 1),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    images, labels = data.train.normalised(data.mean, data.std), data.train.labels
    assert labels is not None
    for _ in range(30):
        optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval()


if __name__ == "__main__":
    data = toy_data()
    budget = amc.Budget("macs", fraction=0.5)
    print(
        amc.search(toy_network(data), data, None, budget, objective=DenseLabels(), evaluations=20)
    )
