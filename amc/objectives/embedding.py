"""Embeddings: a vector for each image, of which the direction counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from amc.objectives.objective import NamedScore, Objective
from amc.objectives.outputs import Outputs

_ROWS = 1024  # of the similarities of all images with all others, held at once
_TEMPERATURE = 0.1  # of the contrastive loss (Khosla et al. 2020, sec. 4)


@dataclass(frozen=True)
class Embedding(Objective):
    """Outputs are a vector for each image, (images, numbers); targets integers, (images,).

    Vectors are compared by their cosine. Images of the same target are of the same thing: any
    number of things, of which the network needs to have seen none.
    """

    name = "embedding"
    scores = (
        NamedScore("recall_at_1", "recall@1 %", is_fraction=True),
        NamedScore("agreement", "agreement", needs_targets=False),
        NamedScore("cosine", needs_targets=False),
        NamedScore("same_neighbour", "same nb. %", needs_targets=False, is_fraction=True),
    )
    expected = "a tensor (images, numbers): one vector for each image"

    def fits(self, outputs: Outputs, images: int) -> bool:
        return outputs.dim() == 2 and outputs.shape[1] > 1 and len(outputs) == images

    def mismatch(self, outputs: Outputs, targets: Tensor, classes: int | None = None) -> str:
        if targets.dim() == 1 and not targets.is_floating_point():
            return ""
        return f"they are {targets.dtype} of shape {tuple(targets.shape)}, not one integer each"

    def judge(
        self, outputs: Outputs, targets: Tensor | None, reference: Outputs | None
    ) -> dict[str, Tensor]:
        """Recall at 1: the fraction of images whose nearest other image has the same target.

        Cosine: of the angle to the original's vector, mean over the images. Agreement: minus the
        mean of 1 - cosine; 0 is perfect. Same neighbour: the fraction of images whose nearest
        other image is the one that it is to the original.
        """
        found: dict[str, Tensor] = {}
        nearest = self.decisions(outputs)
        if targets is not None:
            found["recall_at_1"] = (targets[nearest] == targets).double().mean()
        if reference is not None:
            divergence = self.divergence(outputs, reference).mean()
            same = (nearest == self.decisions(reference)).double().mean()
            found |= {"agreement": -divergence, "cosine": 1 - divergence, "same_neighbour": same}
        return found

    def decisions(self, outputs: Outputs) -> Tensor:
        """The nearest other image, of the same images."""
        directions, found = functional.normalize(outputs, dim=1), []
        for start in range(0, len(directions), _ROWS):
            similar = directions[start : start + _ROWS] @ directions.T
            own = torch.arange(len(similar), device=similar.device)
            similar[own, start + own] = -torch.inf
            found.append(similar.argmax(1))
        return torch.cat(found)

    def divergence(self, outputs: Outputs, reference: Outputs) -> Tensor:
        """1 - cosine."""
        return (1 - functional.cosine_similarity(outputs, reference, dim=1)).clamp_min(0)

    def sampled_loss(self, outputs: Outputs, generator: Generator) -> Tensor:
        """Of directions drawn around those that are given: 1 - cosine is half their distance^2."""
        given = functional.normalize(outputs, dim=1)
        noise = torch.randn(given.shape, generator=generator, dtype=given.dtype)
        return (given - (given.detach() + noise)).square().sum() / 2

    def target_loss(self, outputs: Outputs, targets: Tensor, label_smoothing: float) -> Tensor:
        """The supervised contrastive loss (Khosla et al. 2020, eq. 2) among the batch's images.

        Of images whose target no other has in the batch there is none.
        """
        directions = functional.normalize(outputs, dim=1)
        own = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
        similar = (directions @ directions.T / _TEMPERATURE).masked_fill(own, -1e9)
        alike = (targets[:, None] == targets) & ~own
        count = alike.sum(1)
        likelihood = (similar.log_softmax(1) * alike).sum(1)[count > 0] / count[count > 0]
        return -likelihood.sum() / max(len(likelihood), 1)

    def teacher_loss(self, outputs: Outputs, teacher: Outputs, temperature: float) -> Tensor:
        """1 - cosine, mean over images; the temperature says nothing of directions."""
        return self.divergence(outputs, teacher).mean()
