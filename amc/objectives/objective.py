"""What a network is for: how its outputs are judged, compared, and learned from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Generator, Tensor, nn

from amc.objectives.outputs import Outputs


class Images(Protocol):
    """Images of a split, `amc.data.split.Split`.

    Attributes:
        images: As networks take them: float32 (images, channels, height, width).
        labels: Of the data, (images, ...); None where there are none.
    """

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor | None: ...


@dataclass(frozen=True)
class NamedScore:
    """A number that says how well a network does its task.

    Attributes:
        name: An identifier: what rewards, files and options call it.
        heading: Of its column in reports; without one it is not printed.
        needs_targets: Whether it compares outputs with targets, not with the original's outputs.
            None: it is had with and without targets.
        is_fraction: Whether it is a fraction, to be printed as percent.
        more_is_better: Whether a search may maximise it.
    """

    name: str
    heading: str = ""
    needs_targets: bool | None = True
    is_fraction: bool = False
    more_is_better: bool = True

    def text(self, value: float) -> str:
        """The number as it is printed."""
        return f"{100 * value:.2f} %" if self.is_fraction else f"{value + 0.0:.4g}"  # no -0


class Objective(Protocol):
    """A task. Classes that inherit from it may leave out what has a body here.

    Targets are a tensor whose first dimension is the images, or None where there are none.
    Outputs are what the network returns for some images: a tensor of float32, or, of a network that
    returns several, such tensors by name (`amc.objectives.outputs`); those of the original network
    where they are called ``reference`` or ``teacher``.

    Attributes:
        name: What a configuration calls it.
        scores: All that `judge` may find. Of those that need targets the first is what networks
            are ranked and printed by; where there are no targets, or none needs any, the first of
            the others.
        expected: What a network must return, in words that follow "expected".
        several: Whether it takes several outputs, a dict; without, a network gives it one tensor.
        measures_outputs: Whether `fitted` needs outputs for images of the data (a scale, say),
            where the form that any images give is not enough.
    """

    name: str
    scores: Sequence[NamedScore]
    expected: str
    several: bool = False
    measures_outputs: bool = False

    @abstractmethod
    def fits(self, outputs: Outputs, images: int) -> bool:
        """Whether a network's outputs for so many images are of the shape that this judges."""

    def suits(self, outputs: Outputs, targets: Tensor | None) -> bool:
        """Whether to take it where the user names none: what the outputs mean must be plain.

        Args:
            outputs: They fit.
            targets: Of all images but the test's, if there are any.
        """
        return False

    @abstractmethod
    def mismatch(self, outputs: Outputs, targets: Tensor, classes: int | None = None) -> str:
        """Why targets say nothing of such outputs, in a few words; empty where they do.

        Args:
            classes: How many the data have names for; None where that is not known.
        """

    def fitted(self, outputs: Outputs) -> Self:
        """The same for networks like the one that gave these outputs, which fit."""
        return self

    @abstractmethod
    def judge(
        self, outputs: Outputs, targets: Tensor | None, reference: Outputs | None
    ) -> Mapping[str, Tensor]:
        """The scores that can be had, by name, each a tensor of one number."""

    def measure(self, network: nn.Module, split: Images) -> Mapping[str, float]:
        """Scores that outputs alone do not tell, by name; called for every network that is judged.

        Args:
            network: In evaluation mode.
            split: The images as the network takes them, and their labels.
        """
        return {}

    @abstractmethod
    def decisions(self, outputs: Outputs) -> Tensor:
        """What a network decides by its outputs: integers, of which equal ones are the same."""

    @abstractmethod
    def divergence(self, outputs: Outputs, reference: Outputs) -> Tensor:
        """How far outputs are from the original's: at least 0, of each image; shape (images,)."""

    @abstractmethod
    def sampled_loss(self, outputs: Outputs, generator: Generator) -> Tensor:
        """Minus the log-likelihood, summed, of targets drawn from what the outputs predict.

        The squares of its gradients are, on average, twice what small changes make of
        `divergence` (Amari 1998); they say how much a layer matters.
        """

    @abstractmethod
    def target_loss(self, outputs: Outputs, targets: Tensor, label_smoothing: float) -> Tensor:
        """What training on targets minimises, mean over images."""

    @abstractmethod
    def teacher_loss(self, outputs: Outputs, teacher: Outputs, temperature: float) -> Tensor:
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
    return _had(objective, labelled=labelled)[0]


def _had(objective: Objective, *, labelled: bool) -> Sequence[NamedScore]:
    """The scores that go with labels, or those that go without."""
    had = [score for score in objective.scores if score.needs_targets in (labelled, None)]
    return had or objective.scores  # none needs targets: they are had all the same


def accepts(objective: Objective, outputs: Outputs, images: int) -> bool:
    """Whether an objective judges such outputs for so many images."""
    if not (isinstance(outputs, Tensor) or objective.several):
        return False
    return objective.fits(outputs, images)


def score_texts(objective: Objective, scores: Mapping[str, float], *, labelled: bool) -> str:
    """The printed scores in words: "accuracy 91.20 %"."""
    shown = (s for s in _had(objective, labelled=labelled) if s.heading)
    return ", ".join(f"{s.name} {s.text(scores[s.name])}" for s in shown if s.name in scores)


def identity_of(thing: object) -> str:
    """What stands for an objective where results of equal ones are recalled: its repr, if any."""
    kind = type(thing)
    has_own = kind.__repr__ is not object.__repr__
    return repr(thing) if has_own else f"{kind.__module__}.{kind.__qualname__}"
