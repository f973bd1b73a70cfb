"""Image classification: one of several classes for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional

from amc.objectives.objective import NamedScore, Objective

# How far a row's sum may be from 1: bfloat16 keeps 8 bits of each probability.
TOLERANCE = 1e-2
NEAR_CHANCE = 0.3  # of the way from guessing to being always right: too little to be trained
_SMALLEST = torch.finfo(torch.float32).tiny  # in place of 0, whose logarithm is no number


@dataclass(frozen=True)
class Classification(Objective):
    """Outputs are a row of scores for each image, (images, classes); targets integers, (images,).

    Scores are logits, or probabilities where the network ends with a softmax: their logarithms
    are logits then.

    Attributes:
        probabilities: Whether outputs are probabilities; None: as they look (`are_probabilities`).
        classes: That the network scores; None where that is not known.
    """

    name = "classification"
    scores = (
        NamedScore("accuracy", "acc. %", is_fraction=True),
        NamedScore("loss", more_is_better=False),
        NamedScore("agreement", "agreement", needs_targets=False),
    )
    expected = "a tensor (images, classes): one row of class scores for each image"

    probabilities: bool | None = None
    classes: int | None = None

    def fits(self, outputs: Tensor, images: int) -> bool:
        return outputs.dim() == 2 and len(outputs) == images

    def suits(self, outputs: Tensor, targets: Tensor | None) -> bool:
        """Where there are two scores or more, and no other targets than classes."""
        of_classes = targets is None or (targets.dim() == 1 and not targets.is_floating_point())
        return outputs.shape[1] > 1 and of_classes

    def mismatch(self, outputs: Tensor, targets: Tensor, classes: int | None = None) -> str:
        scored = outputs.shape[1]
        if targets.dim() != 1 or targets.is_floating_point():
            shape = tuple(targets.shape)
            return f"they are {targets.dtype} of shape {shape}, not one class for each image"
        if classes is not None:
            why = f"they are of {classes} classes, and the network has {scored} outputs"
            return "" if classes == scored else why
        highest = int(targets.max())
        if highest < scored:
            return ""
        return f"they have class {highest}, and the network scores {scored} classes (from 0)"

    def fitted(self, outputs: Tensor) -> Classification:
        return replace(self, probabilities=are_probabilities(outputs), classes=outputs.shape[1])

    def judge(
        self, outputs: Tensor, targets: Tensor | None, reference: Tensor | None
    ) -> dict[str, Tensor]:
        """Accuracy: the fraction of images classified rightly. Loss: the mean cross-entropy with
        the targets, nats. Agreement: minus the mean KL divergence from the original's class
        probabilities, nats; 0 is perfect.
        """
        given, found = self._log_probabilities(outputs), dict[str, Tensor]()
        if targets is not None:
            found["accuracy"] = (self.decisions(outputs) == targets).double().mean()
            found["loss"] = functional.nll_loss(given, targets)
        if reference is not None:
            expected = self._log_probabilities(reference)
            found["agreement"] = -functional.kl_div(
                given, expected, reduction="batchmean", log_target=True
            )
        return found

    def decisions(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """The KL divergence from the original's class probabilities, nats."""
        expected = self._log_probabilities(reference)
        return (expected.exp() * (expected - self._log_probabilities(outputs))).sum(1)

    def sampled_loss(self, outputs: Tensor, generator: Generator) -> Tensor:
        scores = self._log_probabilities(outputs)
        drawn = torch.multinomial(scores.detach().exp(), 1, generator=generator)
        return functional.nll_loss(scores, drawn.squeeze(1), reduction="sum")

    def target_loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """The cross entropy."""
        logits = as_logits(outputs, self.probabilities)
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)

    def teacher_loss(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """T^2 KL(softmax(teacher / T) || softmax(outputs / T)) (Hinton et al. 2015, sec. 2.1).

        T^2 keeps the gradient's size independent of T.
        """
        given, expected = (as_logits(some, self.probabilities) for some in (outputs, teacher))
        return temperature**2 * functional.kl_div(
            functional.log_softmax(given / temperature, dim=1),
            functional.log_softmax(expected / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )

    @property
    def notes(self) -> Sequence[str]:
        if not self.probabilities:
            return ()
        return ("the network gives probabilities: their logarithms are taken for its scores",)

    def doubt(self, scores: Mapping[str, float]) -> str:
        if "accuracy" not in scores or not self.classes:
            return ""
        chance, accuracy = 1 / self.classes, scores["accuracy"]
        if accuracy >= chance + NEAR_CHANCE * (1 - chance):
            return ""
        return (
            f"The original is right on only {100 * accuracy:.2f} % of the search images, and "
            f"guessing among {self.classes} classes on {100 * chance:.2f} %: is it trained, on "
            "this data? Check data.mean, data.std, data.image_size, and that classes are in the "
            "order of its training."
        )

    def _log_probabilities(self, outputs: Tensor) -> Tensor:
        return functional.log_softmax(as_logits(outputs, self.probabilities), 1)


def are_probabilities(outputs: Tensor) -> bool:
    """Whether a network ends with a softmax: each row at least 0, and of sum 1.

    Args:
        outputs: Shape (images, classes).
    """
    if outputs.shape[1] < 2:  # a single 1 says nothing
        return False
    sums = outputs.float().sum(1)
    return bool((outputs >= 0).all()) and bool(((sums - 1).abs() <= TOLERANCE).all())


def as_logits(outputs: Tensor, probabilities: bool | None = None) -> Tensor:
    """Outputs whose log_softmax are log-probabilities.

    That of probabilities would be nearly the same for all classes: exp(0) and exp(1) are a factor
    of 2.7 apart. Their logarithms are logits: log_softmax only makes their sum exact. Any other
    outputs are given back as they are; so log-probabilities may be, being logits already.

    Args:
        outputs: Of a network, shape (images, classes).
        probabilities: Whether they are; None: as `are_probabilities` finds.
    """
    if are_probabilities(outputs) if probabilities is None else probabilities:
        return outputs.clamp_min(_SMALLEST).log()
    return outputs
