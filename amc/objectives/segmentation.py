"""Segmentation: a class for every pixel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional

from amc.objectives.classification import TOLERANCE, are_probabilities
from amc.objectives.objective import NamedScore, Objective

IGNORED = 255  # what data sets commonly write where a pixel is of no class
NEAR_CHANCE = 0.1  # of the way from one class everywhere to being always right
_VALUES = 2**22  # of outputs that are looked at at once: maps are large
_SMALLEST = torch.finfo(torch.float32).tiny  # in place of 0, whose logarithm is no number


@dataclass(frozen=True)
class Segmentation(Objective):
    """Outputs are scores of every pixel, (images, classes, height, width); targets are integers,
    (images, height, width).

    Scores are logits, or probabilities where the network ends with a softmax. A map of one channel
    tells two classes apart, 0 and 1: it is the logit of class 1, or its probability where the
    network ends with a sigmoid.

    Attributes:
        ignored: The target of pixels that are of no class: they count in no score and no loss by
            targets.
        probabilities: Whether outputs are probabilities; None: as they look.
        classes: That the network tells apart; None where that is not known.
    """

    name = "segmentation"
    scores = (
        NamedScore("mean_iou", "IoU %", is_fraction=True),
        NamedScore("pixel_accuracy", "pixels %", is_fraction=True),
        NamedScore("agreement", "agreement", needs_targets=False),
        NamedScore("same_pixels", "same %", needs_targets=False, is_fraction=True),
    )
    expected = "a tensor (images, classes, height, width): class scores for every pixel"

    ignored: int = IGNORED
    probabilities: bool | None = None
    classes: int | None = None

    def fits(self, outputs: Tensor, images: int) -> bool:
        return outputs.dim() == 4 and len(outputs) == images

    def suits(self, outputs: Tensor, targets: Tensor | None) -> bool:
        """Whether it is what such outputs and targets are for."""
        return (
            outputs.dim() == 4
            and targets is not None
            and targets.dim() == 3
            and not targets.is_floating_point()
        )

    def mismatch(self, outputs: Tensor, targets: Tensor, classes: int | None = None) -> str:
        if targets.dim() != 3 or targets.is_floating_point() or targets.is_complex():
            shape = tuple(targets.shape)
            return f"they are {targets.dtype} of shape {shape}, not one class for each pixel"
        if targets.shape[1:] != outputs.shape[2:]:
            (th, tw), (oh, ow) = targets.shape[1:], outputs.shape[2:]
            return f"they are maps of {th}x{tw}, and the network's outputs of {oh}x{ow}"
        lowest, highest = 0, -1
        for at in _parts(targets):
            counted = targets[at][targets[at] != self.ignored]
            if counted.numel():
                lowest, highest = min(lowest, int(counted.min())), max(highest, int(counted.max()))
        told_apart = max(2, outputs.shape[1])
        if lowest < 0 or highest >= told_apart:
            wrong = lowest if lowest < 0 else highest
            return (
                f"they have class {wrong}, and the network scores {told_apart} classes (from 0); "
                f"where {wrong} says that a pixel is of no class: data.ignored={wrong}, in Python "
                f"objective=amc.Segmentation(ignored={wrong})"
            )
        return "" if highest >= 0 else f"all of them are {self.ignored}, which is no class"

    def fitted(self, outputs: Tensor) -> Segmentation:
        found = _are_probabilities(outputs)
        return replace(self, probabilities=found, classes=max(2, outputs.shape[1]))

    def judge(
        self, outputs: Tensor, targets: Tensor | None, reference: Tensor | None
    ) -> dict[str, Tensor]:
        """Mean IoU: intersection over union of the pixels of a class, over all images, mean over
        the classes that are in outputs or targets. Pixel accuracy: the fraction of pixels whose
        class is right. Agreement: minus the mean divergence. Same pixels: the fraction of the
        class that the original gives them.
        """
        found = dict[str, Tensor]()
        classes = max(2, outputs.shape[1])
        confusion = torch.zeros(classes, classes, dtype=torch.float64, device=outputs.device)
        diverged, same = [], []
        for part in _parts(outputs):
            decided = self.decisions(outputs[part])
            if targets is not None:
                confusion += self._confusion(decided, targets[part], classes)
            if reference is not None:
                diverged.append(self.divergence(outputs[part], reference[part]))
                alike = decided == self.decisions(reference[part])
                same.append(alike.double().flatten(1).mean(1))
        if targets is not None:
            found["mean_iou"] = mean_iou(confusion)
            right = confusion.diagonal().sum()
            found["pixel_accuracy"] = right / confusion.sum().clamp_min(1)
        if reference is not None:
            found["agreement"] = -torch.cat(diverged).double().mean()
            found["same_pixels"] = torch.cat(same).mean()
        return found

    def _confusion(self, decided: Tensor, targets: Tensor, classes: int) -> Tensor:
        """Numbers of pixels, (target, decided)."""
        counts = targets != self.ignored
        pairs = targets[counts].long() * classes + decided[counts]
        return torch.bincount(pairs, minlength=classes**2).view(classes, classes)

    def decisions(self, outputs: Tensor) -> Tensor:
        if outputs.shape[1] > 1:
            return outputs.argmax(1)
        is_given = self.probabilities
        halfway = 0.5 if (_are_probabilities(outputs) if is_given is None else is_given) else 0.0
        return (outputs[:, 0] > halfway).long()

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """The KL divergence from the original's class probabilities, nats, mean over pixels."""
        found = []
        for part in _parts(outputs):
            given, expected = (self._log_probabilities(some[part]) for some in (outputs, reference))
            by_pixel = (expected.exp() * (expected - given)).sum(1)
            found.append(by_pixel.flatten(1).mean(1))
        return torch.cat(found)

    def sampled_loss(self, outputs: Tensor, generator: Generator) -> Tensor:
        scores = self._log_probabilities(outputs).movedim(1, -1).flatten(0, 2)
        drawn = torch.multinomial(scores.detach().exp(), 1, generator=generator)
        loss = functional.nll_loss(scores, drawn.squeeze(1), reduction="sum")
        # The divergence is a mean over so many pixels, whose gradients are drawn independently.
        return loss / math.sqrt(outputs[0, 0].numel())

    def target_loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """The cross entropy, mean over the pixels that are of a class."""
        targets = targets.long()
        total: Tensor = functional.cross_entropy(
            self._logits(outputs),
            targets,
            ignore_index=self.ignored,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
        return total / (targets != self.ignored).sum().clamp_min(1)

    def teacher_loss(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """T^2 KL(softmax(teacher / T) || softmax(outputs / T)), mean over pixels.

        T^2 keeps the gradient's size independent of T (Hinton et al. 2015, sec. 2.1).
        """
        given, expected = (
            functional.log_softmax(self._logits(some) / temperature, 1)
            for some in (outputs, teacher)
        )
        by_pixel = functional.kl_div(given, expected, reduction="none", log_target=True).sum(1)
        return temperature**2 * by_pixel.mean()

    @property
    def notes(self) -> Sequence[str]:
        if not self.probabilities:
            return ()
        return ("the network gives probabilities: their logarithms are taken for its scores",)

    def doubt(self, scores: Mapping[str, float]) -> str:
        if "mean_iou" not in scores or not self.classes:
            return ""
        chance, found = 1 / self.classes, scores["mean_iou"]  # at most, by one class everywhere
        if found >= chance + NEAR_CHANCE * (1 - chance):
            return ""
        return (
            f"The original's mean IoU is only {100 * found:.2f} % on the search images: is it "
            "trained, on this data? Check data.mean, data.std, data.image_size, and that the "
            "masks number classes as its training did."
        )

    def _logits(self, outputs: Tensor) -> Tensor:
        """Outputs whose log_softmax are log-probabilities; of one channel, of two classes."""
        is_given = self.probabilities
        if _are_probabilities(outputs) if is_given is None else is_given:
            if outputs.shape[1] == 1:
                outputs = torch.cat([1 - outputs, outputs], 1)
            return outputs.clamp_min(_SMALLEST).log()
        if outputs.shape[1] == 1:
            return torch.cat([torch.zeros_like(outputs), outputs], 1)
        return outputs

    def _log_probabilities(self, outputs: Tensor) -> Tensor:
        return functional.log_softmax(self._logits(outputs), 1)


def mean_iou(confusion: Tensor) -> Tensor:
    """Of the classes that there are, the mean of intersection over union; 0 where there are none.

    Args:
        confusion: Numbers of pixels, (target, decided).
    """
    both = confusion.diagonal()
    either = confusion.sum(0) + confusion.sum(1) - both
    there_are = (either > 0).sum().clamp_min(1)
    return (both / either.clamp_min(1)).sum() / there_are


def _are_probabilities(outputs: Tensor) -> bool:
    """Whether a network ends with a softmax, or with a sigmoid where it has one channel."""
    if outputs.shape[1] == 1:
        return bool((outputs >= 0).all()) and bool((outputs <= 1 + TOLERANCE).all())
    return are_probabilities(outputs.movedim(1, -1).flatten(0, -2))


def _parts(maps: Tensor) -> Iterator[slice]:
    """Images few enough for what is computed of them to be small beside them."""
    step = max(1, _VALUES // max(1, maps[0].numel()))
    for start in range(0, len(maps), step):
        yield slice(start, start + step)
