"""Raw outputs of any form, of detectors above all: maps of several scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from amc.errors import ConfigError, EvaluationError
from amc.objectives.gaussian import Gaussian, by_channel
from amc.objectives.objective import NamedScore
from amc.objectives.outputs import Outputs, by_name

CONFIDENT = 0.01  # of the cells: what a detector finds something in
_STILL = 2  # times as many cells: among these a confident one must be once more


@dataclass(frozen=True)
class Maps(Gaussian):
    """Outputs are tensors of numbers, (images, ...), one or several; there are no targets.

    They are compared with the original's. What they mean for the task is for a metric of the
    user's to say (`amc.objectives.metric`).

    Attributes:
        weights: Name of an output -> how much it counts, from 0; those without a name count 1.
    """

    name = "maps"
    scores = (
        NamedScore("agreement", "agreement", needs_targets=False),
        NamedScore("same_cells", "same %", needs_targets=False, is_fraction=True),
        NamedScore("relative_error", needs_targets=False, is_fraction=True, more_is_better=False),
    )
    expected = "tensors of numbers, each with an entry for each image"
    several = True

    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = {str(name): weight for name, weight in self.weights.items()}
        if any(isinstance(w, bool) or not isinstance(w, (int, float)) for w in given.values()):
            raise ConfigError(f"objective.weights must be numbers by output, got {given}.")
        if any(not 0 <= weight < float("inf") for weight in given.values()):
            raise ConfigError(f"objective.weights must be finite and at least 0, got {given}.")
        object.__setattr__(self, "weights", given)

    def weight_of(self, name: str) -> float:
        return self.weights.get(name, 1.0)

    def fits(self, outputs: Outputs, images: int) -> bool:
        names = list(by_name(outputs))
        unknown = [name for name in self.weights if name not in names]
        if unknown:
            one = "the network returns one tensor: objective.weights says nothing of it"
            several = f"the network's outputs are {', '.join(names)}"
            raise ConfigError(
                f"objective.weights names {', '.join(unknown)}, and "
                f"{one if names == [''] else several}."
            )
        if not any(self.weight_of(name) for name in names):
            raise ConfigError("objective.weights leaves no output that counts: all are 0.")
        return all(len(tensor) == images for tensor in by_name(outputs).values())

    def mismatch(self, outputs: Outputs, targets: Tensor, classes: int | None = None) -> str:
        return "objective=maps compares with the original's outputs alone"

    def judge(
        self, outputs: Outputs, targets: Tensor | None, reference: Outputs | None
    ) -> dict[str, Tensor]:
        """Agreement: minus the mean divergence, half the squared relative error; 0 is perfect.

        Relative error: the root mean square of the difference, in spreads of the channel. Same
        cells: of the hundredth of an output's cells in which the original is most confident, the
        fraction in which the same channel stands out, nearly as much.
        """
        if reference is None:
            return {}
        divergence = self.divergence(outputs, reference).mean()
        same = torch.zeros((), dtype=torch.float64)
        for name, share in self.shares(outputs).items():
            same = same + share * self._same_cells(name, by_name(outputs), by_name(reference))
        return {
            "agreement": -divergence,
            "same_cells": same,
            "relative_error": (2 * divergence).sqrt(),
        }

    def _same_cells(
        self, name: str, outputs: Mapping[str, Tensor], reference: Mapping[str, Tensor]
    ) -> Tensor:
        given, channel = self._confidence(name, outputs[name], reference[name])
        expected, same_channel = self._confidence(name, reference[name], reference[name])
        few = max(1, round(CONFIDENT * len(expected)))
        most = expected.topk(min(_STILL * few, len(expected)))
        cells, least = most.indices[:few], most.values[-1]
        same = (given[cells] >= least) & (channel[cells] == same_channel[cells])
        return same.double().mean()

    def _confidence(self, name: str, tensor: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """How far the channel that stands out most does, and which it is, of all cells."""
        mean, spread = self.scale(name, reference)
        found = ((by_channel(tensor) - mean) / spread).max(1)
        return found.values.flatten(), found.indices.flatten()

    def decisions(self, outputs: Outputs) -> Tensor:
        """In every cell the channel that stands out most; of one channel, whether it does."""
        decided = []
        for name in self.shares(outputs):
            values = by_name(outputs)[name]
            mean, spread = self.scale(name, values)
            standing = (by_channel(values) - mean) / spread
            one = standing.shape[1] == 1
            decided.append((standing[:, 0] > 0).long() if one else standing.argmax(1))
        return torch.cat(decided, 1)

    def target_loss(self, outputs: Outputs, targets: Tensor, label_smoothing: float) -> Tensor:
        raise EvaluationError(f"The labels do not fit: {self.mismatch(outputs, targets)}.")
