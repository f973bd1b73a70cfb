"""What a network is for: how its outputs are judged, compared, and learned from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Generator, Tensor


@dataclass(frozen=True)
class NamedScore:
    """A number that says how well a network does its task.

    Attributes:
        name: An identifier: what rewards, files and options call it.
        heading: Of its column in reports; without one it is not printed.
        needs_targets: Whether it compares outputs with targets, not with the original's outputs.
        is_fraction: Whether it is a fraction, to be printed as percent.
    """

    name: str
    heading: str = ""
    needs_targets: bool = True
    is_fraction: bool = False

    def text(self, value: float) -> str:
        """The number as it is printed."""
        return f"{100 * value:.2f} %" if self.is_fraction else f"{value + 0.0:.4g}"  # no -0


class Objective(Protocol):
    """A task. Classes that inherit from it may leave out what has a body here.

    Targets are a tensor whose first dimension is the images, or None where there are none.
    Outputs are what the network returns for some images: those of the original network where they
    are called ``reference`` or ``teacher``.

    Attributes:
        name: What a configuration calls it.
        scores: All that `judge` may find. Of those that need targets the first is what networks
            are ranked and printed by; where there are no targets, the first of the others.
        expected: What a network must return, in words that follow "expected".
    """

    name: str
    scores: Sequence[NamedScore]
    expected: str

    @abstractmethod
    def fits(self, outputs: Tensor, images: int) -> bool:
        """Whether a network's outputs for so many images are of the shape that this judges."""

    @abstractmethod
    def mismatch(self, outputs: Tensor, targets: Tensor, classes: int | None = None) -> str:
        """Why targets say nothing of such outputs, in a few words; empty where they do.

        Args:
            classes: How many the data have names for; None where that is not known.
        """

    def fitted(self, outputs: Tensor) -> Self:
        """The same for networks like the one that gave these outputs, which fit."""
        return self

    @abstractmethod
    def judge(
        self, outputs: Tensor, targets: Tensor | None, reference: Tensor | None
    ) -> Mapping[str, Tensor]:
        """The scores that can be had, by name, each a tensor of one number."""

    @abstractmethod
    def decisions(self, outputs: Tensor) -> Tensor:
        """What a network decides by its outputs: integers, of which equal ones are the same."""

    @abstractmethod
    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """How far outputs are from the original's: at least 0, of each image; shape (images,)."""

    @abstractmethod
    def sampled_loss(self, outputs: Tensor, generator: Generator) -> Tensor:
        """Minus the log-likelihood, summed, of targets drawn from what the outputs predict.

        The squares of its gradients are, on average, twice what small changes make of
        `divergence` (Amari 1998); they say how much a layer matters.
        """

    @abstractmethod
    def target_loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """What training on targets minimises, mean over images."""

    @abstractmethod
    def teacher_loss(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """What training on the original's outputs minimises, mean over images."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know of how this reads the network's outputs."""
        return ()

    def doubt(self, scores: Mapping[str, float]) -> str:
        """Why the original network's scores are no good, in a sentence; empty where they are."""
        return ""


def primary_score(objective: Objective, *, labelled: bool) -> NamedScore:
    """What networks are ranked and printed by."""
    return next(score for score in objective.scores if score.needs_targets == labelled)


def score_texts(objective: Objective, scores: Mapping[str, float], *, labelled: bool) -> str:
    """The printed scores in words: "accuracy 91.20 %"."""
    shown = (s for s in objective.scores if s.heading and s.needs_targets == labelled)
    return ", ".join(f"{s.name} {s.text(scores[s.name])}" for s in shown if s.name in scores)


def identity_of(thing: object) -> str:
    """What stands for an objective where results of equal ones are recalled: its repr, if any."""
    kind = type(thing)
    has_own = kind.__repr__ is not object.__repr__
    return repr(thing) if has_own else f"{kind.__module__}.{kind.__qualname__}"
